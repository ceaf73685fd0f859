"""What a worker counts (contract §6), with label children resolved once and kept.

`labels()` costs three times what an increment does, so every combination seen is remembered.
Label values come from configuration and from tables of this file, never from a request: a name
that is not in the catalogue is counted as `unknown`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Generic, TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from ledger.client import LedgerStatistics

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 900)
_OVERHEAD = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5)
_FLUSH = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5)
TOKEN_KINDS = ("input", "cached_input", "output", "reasoning")
_T = TypeVar("_T")
_NUSD = 1e9  # metrics are floats by definition; the books are not made from them


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
        self.circuit = Gauge(
            "farebox_circuit_state",
            "Circuit of a provider: 0 closed, 1 half-open, 2 open",
            ["provider"],
            registry=registry,
        )
        Gauge(
            "farebox_build_info",
            "Constant 1; the version is a label",
            ["version"],
            registry=registry,
        ).labels(version("farebox")).set(1)
        self.attempt = _Remembered(attempts.labels)
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
            )
        )

    def watch_ledger(self, statistics: Callable[[], LedgerStatistics]) -> None:
        """Show the ledger's state at each scrape."""
        self.registry.register(_LedgerCollector(statistics))


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


class _LedgerCollector(Collector):
    def __init__(self, statistics: Callable[[], LedgerStatistics]) -> None:
        self._statistics = statistics

    def collect(self) -> list[Metric]:
        """The ledger's figures now."""
        state = self._statistics()
        figures = {
            "farebox_ledger_pending_events": (
                "Events in the journal that are not posted yet",
                state.pending_events,
            ),
            "farebox_ledger_leased_usd": (
                "Credit held in leases",
                state.leased_nusd / _NUSD,
            ),
            "farebox_ledger_reserved_usd": (
                "Credit held by open reservations",
                state.reserved_nusd / _NUSD,
            ),
            "farebox_ledger_open_reservations": (
                "Reservations that are neither posted nor voided",
                state.open_reservations,
            ),
            "farebox_ledger_oldest_reservation_seconds": (
                "Age of the oldest open reservation",
                state.oldest_reservation_seconds,
            ),
        }
        return [GaugeMetricFamily(name, text, value) for name, (text, value) in figures.items()]


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
