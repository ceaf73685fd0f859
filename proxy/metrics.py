"""What a worker counts (contract §6), with label children resolved once and kept.

`labels()` costs three times what an increment does, so every combination seen is remembered.
Label values come from configuration and from tables of this file, never from a request: a name
that is not in the catalogue is counted as `unknown`.

Money is counted so that ratios can be made of it over any time, by any label and over all workers:
two counters and a quotient, never a ratio that has to be averaged. What others count they are asked
at each scrape, in the process that has them (`proxy.figures`). docs/metrics.md says what to make of
it all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Generic, TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from ledger.journal import JournalStatistics
from ledger.money import NANO_PER_USD
from ledger.server import LedgerStatistics
from proxy import figures

if TYPE_CHECKING:  # a ledger's process has metrics, and nothing that workers need
    from proxy.health import UpstreamState
    from proxy.memory import Memory

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 900)
_OVERHEAD = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5)
_FLUSH = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5)
TOKEN_KINDS = ("input", "cached_input", "output", "reasoning")
ENDINGS = ("settled", "estimated", "cancelled", "review", "free", "voided")
"""How a reservation can end: the status of its settlement, or that there was none."""
_T = TypeVar("_T")
NUSD = float(NANO_PER_USD)  # metrics are floats by definition; the books are not made from them


class Metrics:
    """The collectors of one worker, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        requests = Counter(
            "farebox_requests_total",
            "Requests answered, by the status the client saw (499: it had left)",
            ["surface", "model", "provider", "status"],
            registry=registry,
        )
        duration = Histogram(
            "farebox_request_duration_seconds",
            "From the request's head to the last byte of its answer",
            ["surface", "model"],
            buckets=_SECONDS,
            registry=registry,
        )
        overhead = Histogram(
            "farebox_overhead_seconds",
            "Time Farebox itself added: total minus waiting for upstream and client",
            buckets=_OVERHEAD,
            registry=registry,
        )
        first_byte = Histogram(
            "farebox_time_to_first_byte_seconds",
            "From the request's head to the first byte of its answer",
            ["surface", "model"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.open_streams = Gauge(
            "farebox_open_streams", "Streams being relayed now", registry=registry
        )
        tokens = Counter(
            "farebox_tokens_total", "Tokens", ["model", "provider", "kind"], registry=registry
        )
        charged = Counter(
            "farebox_charged_usd_total", "Charged", ["model", "provider"], registry=registry
        )
        cost = Counter(
            "farebox_provider_cost_usd_total",
            "What providers bill for it",
            ["model", "provider"],
            registry=registry,
        )
        reserved = Counter(
            "farebox_settled_reserved_usd_total",
            "What was reserved for that which was charged or settled as free",
            ["model", "provider"],
            registry=registry,
        )
        overrun = Counter(
            "farebox_overrun_usd_total",
            "Charged above what was reserved",
            ["model", "provider"],
            registry=registry,
        )
        unbilled = Counter(
            "farebox_unbilled_provider_cost_usd_total",
            "What providers bill and no customer was charged for",
            ["provider"],
            registry=registry,
        )
        settlements = Counter(
            "farebox_settlements_total",
            "Reservations that have ended, by how they were settled",
            ["model", "provider", "status"],
            registry=registry,
        )
        short_of_credit = Counter(
            "farebox_streams_short_of_credit_total",
            "Streams that were ended because no more credit could be held for them",
            ["model"],
            registry=registry,
        )
        attempts = Counter(
            "farebox_upstream_attempts_total",
            "Attempts at upstreams, by outcome",
            ["provider", "outcome"],
            registry=registry,
        )
        limited = Counter(
            "farebox_rate_limited_total",
            "Requests refused by a limit",
            ["limit"],
            registry=registry,
        )
        self.insufficient_balance = Counter(
            "farebox_insufficient_balance_total", "Requests refused with 402", registry=registry
        )
        self.flush = Histogram(
            "farebox_ledger_flush_seconds",
            "One exchange with the database",
            buckets=_FLUSH,
            registry=registry,
        )
        alarms = Counter(
            "farebox_upstream_alarms_total",
            "Failures that an operator has to see to",
            ["provider", "reason"],
            registry=registry,
        )
        self.retry_budget_denied = Counter(
            "farebox_retry_budget_denied_total",
            "Attempts that were not made because there had been too many of their kind",
            registry=registry,
        )
        hedges = Counter(
            "farebox_hedges_total",
            "Second attempts beside a slow first one, by what came of them",
            ["model", "outcome"],
            registry=registry,
        )
        Gauge(
            "farebox_build_info",
            "Constant 1; the version is a label",
            ["version"],
            registry=registry,
        ).labels(version("farebox")).set(1)
        self.attempt = _Remembered(attempts.labels)
        self.alarm = _Remembered(alarms.labels)
        self.hedge = _Remembered(hedges.labels)
        self.unbilled = _Remembered(unbilled.labels)
        self.short_of_credit = _Remembered(short_of_credit.labels)
        self.limited = _Remembered(limited.labels)
        self.exchange = _Remembered(
            lambda surface, model, provider, status: ExchangeMetrics(
                requests=requests.labels(surface, model, provider, status),
                duration=duration.labels(surface, model),
                first_byte=first_byte.labels(surface, model),
                overhead=overhead,
                tokens={kind: tokens.labels(model, provider, kind) for kind in TOKEN_KINDS},
                charged=charged.labels(model, provider),
                cost=cost.labels(model, provider),
                reserved=reserved.labels(model, provider),
                overrun=overrun.labels(model, provider),
                unbilled=unbilled.labels(provider),
                endings={each: settlements.labels(model, provider, each) for each in ENDINGS},
            )
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

    requests: Counter
    duration: Histogram
    first_byte: Histogram
    overhead: Histogram
    tokens: Mapping[str, Counter]
    charged: Counter
    cost: Counter
    reserved: Counter
    overrun: Counter
    unbilled: Counter
    endings: Mapping[str, Counter]

    def settle(self, *, reserved: int, charge: int, cost: int) -> None:
        """Count one settlement; amounts are nano-dollars."""
        self.charged.inc(charge / NUSD)
        self.cost.inc(cost / NUSD)
        self.reserved.inc(reserved / NUSD)
        if charge > reserved:
            self.overrun.inc((charge - reserved) / NUSD)
        if cost > charge:
            self.unbilled.inc((cost - charge) / NUSD)


class _Remembered(Generic[_T]):
    """What `make` gives for label values, made once for each."""

    def __init__(self, make: Callable[..., _T]) -> None:  # type: ignore[explicit-any] # label values
        self._make = make
        self._made: dict[tuple[str, ...], _T] = {}

    def __call__(self, *labels: str) -> _T:
        made = self._made.get(labels)
        if made is None:
            made = self._made[labels] = self._make(*labels)
        return made
