"""What a worker counts (contract §6), each combination of labels resolved once and kept.

Label values come from configuration and from tables of this file, never from a request: a name
that is not in the catalogue is counted as `unknown`.

Money is counted so that ratios can be made of it over any time, by any label and over all workers:
two counters and a quotient, never a ratio that has to be averaged. It is counted in nano-dollars,
and shown in dollars. What others count they are asked at each scrape, in the process that has them
(`proxy.figures`). docs/metrics.md says what to make of it all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Gauge

from ledger.journal import JournalStatistics
from ledger.money import NANO_PER_USD
from ledger.server import LedgerStatistics
from proxy import figures
from proxy.tallies import Spread, Spreads, Tallies, Tally

if TYPE_CHECKING:  # a ledger's process has metrics, and nothing that workers need
    from proxy.health import UpstreamState
    from proxy.memory import Memory

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 900)
_OVERHEAD = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5)
_FLUSH = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5)
ENDINGS = ("settled", "estimated", "cancelled", "review", "free", "voided")
"""How a reservation can end: the status of its settlement, or that there was none."""


class Metrics:
    """The collectors of one worker, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        counter, histogram = partial(Tallies, registry), partial(Spreads, registry)
        usd = partial(counter, parts=NANO_PER_USD)
        self._requests = counter(
            "farebox_requests_total",
            "Requests answered, by the status the client saw (499: it had left)",
            "surface",
            "model",
            "provider",
            "status",
        )
        self._duration = histogram(
            "farebox_request_duration_seconds",
            "From the request's head to the last byte of its answer",
            "surface",
            "model",
            bounds=_SECONDS,
        )
        self._overhead = histogram(
            "farebox_overhead_seconds",
            "Time Farebox itself added: total minus waiting for upstream and client",
            bounds=_OVERHEAD,
        )()
        self._first_byte = histogram(
            "farebox_time_to_first_byte_seconds",
            "From the request's head to the first byte of its answer",
            "surface",
            "model",
            bounds=_SECONDS,
        )
        self.open_streams = Gauge(
            "farebox_open_streams", "Streams being relayed now", registry=registry
        )
        self._tokens = counter("farebox_tokens_total", "Tokens", "model", "provider", "kind")
        self._charged = usd("farebox_charged_usd_total", "Charged", "model", "provider")
        self._cost = usd(
            "farebox_provider_cost_usd_total", "What providers bill for it", "model", "provider"
        )
        self._reserved = usd(
            "farebox_settled_reserved_usd_total",
            "What was reserved for that which was charged or settled as free",
            "model",
            "provider",
        )
        self._overrun = usd(
            "farebox_overrun_usd_total", "Charged above what was reserved", "model", "provider"
        )
        self.unbilled = usd(
            "farebox_unbilled_provider_cost_usd_total",
            "What providers bill and no customer was charged for",
            "provider",
        )
        self._settlements = counter(
            "farebox_settlements_total",
            "Reservations that have ended, by how they were settled",
            "model",
            "provider",
            "status",
        )
        self.short_of_credit = counter(
            "farebox_streams_short_of_credit_total",
            "Streams that were ended because no more credit could be held for them",
            "model",
        )
        self.attempt = counter(
            "farebox_upstream_attempts_total",
            "Attempts at upstreams, by outcome",
            "provider",
            "outcome",
        )
        self.console = counter(
            "farebox_console_requests_total", "Requests to the console and its API", "status"
        )
        self.limited = counter("farebox_rate_limited_total", "Requests refused by a limit", "limit")
        self.insufficient_balance = counter(
            "farebox_insufficient_balance_total", "Requests refused with 402"
        )()
        self.flush = histogram(
            "farebox_ledger_flush_seconds", "One exchange with the database", bounds=_FLUSH
        )()
        self.alarm = counter(
            "farebox_upstream_alarms_total",
            "Failures that an operator has to see to",
            "provider",
            "reason",
        )
        self.retry_budget_denied = counter(
            "farebox_retry_budget_denied_total",
            "Attempts that were not made because there had been too many of their kind",
        )()
        self.hedge = counter(
            "farebox_hedges_total",
            "Second attempts beside a slow first one, by what came of them",
            "model",
            "outcome",
        )
        Gauge(
            "farebox_build_info",
            "Constant 1; the version is a label",
            ["version"],
            registry=registry,
        ).labels(version("farebox")).set(1)
        self.exchanges = _Exchanges(self)

    def exchange(self, surface: str, model: str, provider: str, status: int) -> ExchangeMetrics:
        """Resolve what one kind of exchange is counted in."""
        return ExchangeMetrics(
            requests=self._requests(surface, model, provider, str(status)),
            duration=self._duration(surface, model),
            first_byte=self._first_byte(surface, model),
            overhead=self._overhead,
            input_tokens=self._tokens(model, provider, "input"),
            cached_input_tokens=self._tokens(model, provider, "cached_input"),
            output_tokens=self._tokens(model, provider, "output"),
            reasoning_tokens=self._tokens(model, provider, "reasoning"),
            charged=self._charged(model, provider),
            cost=self._cost(model, provider),
            reserved=self._reserved(model, provider),
            overrun=self._overrun(model, provider),
            unbilled=self.unbilled(provider),
            endings={each: self._settlements(model, provider, each) for each in ENDINGS},
        )

    def watch_ledger(self, statistics: Callable[[], LedgerStatistics]) -> None:
        """Show the ledger's state at each scrape."""
        self.registry.register(figures.asked(figures.LEDGER, statistics))

    def watch_memory(self, memory: Memory) -> None:
        """Show what exchanges hold at each scrape."""
        self.registry.register(figures.asked(figures.MEMORY, lambda: memory))

    def watch_journal(self, statistics: Callable[[], JournalStatistics]) -> None:
        """Show the journal's state at each scrape."""
        self.registry.register(figures.asked(figures.JOURNAL, statistics))

    def watch_upstreams(self, states: Callable[[], Sequence[UpstreamState]]) -> None:
        """Show how every upstream is at each scrape."""
        self.registry.register(figures.asked_of_upstreams(states))


@dataclass(frozen=True, slots=True)
class ExchangeMetrics:
    """Everything that one kind of exchange is counted in, resolved at once."""

    requests: Tally
    duration: Spread
    first_byte: Spread
    overhead: Spread
    input_tokens: Tally
    cached_input_tokens: Tally
    output_tokens: Tally
    reasoning_tokens: Tally
    charged: Tally
    cost: Tally
    reserved: Tally
    overrun: Tally
    unbilled: Tally
    endings: Mapping[str, Tally]

    def settle(self, reserved: int, charge: int, cost: int) -> None:
        """Count one settlement; amounts are nano-dollars."""
        self.charged.value += charge
        self.cost.value += cost
        self.reserved.value += reserved
        if charge > reserved:
            self.overrun.value += charge - reserved
        if cost > charge:
            self.unbilled.value += cost - charge


class _Exchanges(dict[tuple[str, str, str, int], ExchangeMetrics]):
    """What each kind of exchange is counted in: by surface, model, provider and status."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def __missing__(self, kind: tuple[str, str, str, int]) -> ExchangeMetrics:
        made = self[kind] = self._metrics.exchange(*kind)
        return made
