"""What a worker counts (contract §6), with label children resolved once and kept.

`labels()` costs three times what an increment does, so every combination seen is remembered.
Label values come from configuration and from tables of this file, never from a request: a name
that is not in the catalogue is counted as `unknown`.

Money is counted so that ratios can be made of it over any time, by any label and over all workers:
two counters and a quotient, never a ratio that has to be averaged. What the ledger and its journal
have to say they are asked at each scrape, in the process that has them. docs/metrics.md says what
to make of it all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING, Generic, TypeVar

import trio
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from ledger.journal import JournalStatistics
from ledger.server import LedgerStatistics

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
NUSD = 1e9  # metrics are floats by definition; the books are not made from them


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
        self.registry.register(_Collector(partial(_shown, _LEDGER_FIGURES), statistics))

    def watch_memory(self, memory: Memory) -> None:
        """Show what exchanges hold at each scrape."""
        self.registry.register(_Collector(partial(_shown, _MEMORY_FIGURES), lambda: memory))

    def watch_journal(self, statistics: Callable[[], JournalStatistics]) -> None:
        """Show the journal's state at each scrape."""
        self.registry.register(_Collector(partial(_shown, _JOURNAL_FIGURES), statistics))

    def watch_upstreams(self, states: Callable[[], Sequence[UpstreamState]]) -> None:
        """Show how every upstream is at each scrape."""
        self.registry.register(_Collector(_upstreams, states))


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


@dataclass(frozen=True, slots=True)
class _Figure(Generic[_T]):
    """One figure of a snapshot. The name of what only grows ends in `_total`."""

    name: str
    documentation: str
    read: Callable[[_T], float]

    def metric(self, snapshot: _T) -> Metric:
        value = float(self.read(snapshot))
        if self.name.endswith("_total"):
            return CounterMetricFamily(self.name, self.documentation, value)
        return GaugeMetricFamily(self.name, self.documentation, value)


_MEMORY_FIGURES: Sequence[_Figure[Memory]] = (
    _Figure(
        "farebox_held_bytes",
        "Request bodies and answers that exchanges hold",
        lambda memory: memory.held_bytes,
    ),
    _Figure(
        "farebox_held_bytes_max",
        "How many bytes they may hold before large requests are refused",
        lambda memory: memory.max_bytes,
    ),
)
_LEDGER_FIGURES: Sequence[_Figure[LedgerStatistics]] = (
    _Figure(
        "farebox_ledger_pending_events",
        "Events in the journal that are not posted yet",
        lambda state: state.pending_events,
    ),
    _Figure(
        "farebox_ledger_oldest_event_seconds",
        "Age of the oldest event that is not posted yet",
        lambda state: state.oldest_event_seconds,
    ),
    _Figure(
        "farebox_ledger_leased_usd",
        "Credit held in leases",
        lambda state: state.leased_nusd / NUSD,
    ),
    _Figure(
        "farebox_ledger_reserved_usd",
        "Credit held by open reservations",
        lambda state: state.reserved_nusd / NUSD,
    ),
    _Figure(
        "farebox_ledger_open_reservations",
        "Reservations that are neither posted nor voided",
        lambda state: state.open_reservations,
    ),
    _Figure(
        "farebox_ledger_oldest_reservation_seconds",
        "Age of the oldest open reservation",
        lambda state: state.oldest_reservation_seconds,
    ),
    _Figure(
        "farebox_ledger_waiting_reservations",
        "Requests that wait for credit from the database",
        lambda state: state.waiting,
    ),
    _Figure(
        "farebox_ledger_sessions_total",
        "Sessions opened with the database: one, and one more for each that was lost",
        lambda state: state.sessions,
    ),
    _Figure(
        "farebox_ledger_disconnected",
        "1 while the ledger has no session with the database",
        lambda state: not state.connected,
    ),
    _Figure(
        "farebox_ledger_halted",
        "1 once the ledger has stopped because its books and the database's disagree",
        lambda state: state.halted is not None,
    ),
    _Figure(
        "farebox_ledger_workers",
        "Workers that the ledger serves now",
        lambda state: state.workers,
    ),
    _Figure(
        "farebox_ledger_orphaned_reservations_total",
        "Reservations given back because their worker had died",
        lambda state: state.orphaned,
    ),
    _Figure(
        "farebox_ledger_orphaned_usd_total",
        "What was reserved for them: the most that providers may bill of it",
        lambda state: state.orphaned_nusd / NUSD,
    ),
    _Figure(
        "farebox_ledger_fleet_disconnected",
        "1 while limits cannot be shared with the fleet's other nodes",
        lambda state: state.fleet_connected is False,
    ),
    _Figure(
        "farebox_ledger_refused_settlements_total",
        "Settlements of reservations that were closed already: a bug",
        lambda state: state.refused_settlements,
    ),
    _Figure(
        "farebox_ledger_quarantined_events_total",
        "Events that the database refuses, put aside for an operator",
        lambda state: state.quarantined,
    ),
)
_JOURNAL_FIGURES: Sequence[_Figure[JournalStatistics]] = (
    _Figure(
        "farebox_journal_syncs_total",
        "Times that the journal was brought to the disk",
        lambda state: state.syncs,
    ),
    _Figure(
        "farebox_journal_sync_seconds_total",
        "How long that took, in all",
        lambda state: state.sync_seconds,
    ),
    _Figure(
        "farebox_journal_unsynced_bytes",
        "Written and not yet on the disk: what a power failure would lose",
        lambda state: state.position - state.synced,
    ),
    _Figure(
        "farebox_journal_room_bytes",
        "Room left in the segment and its spare, allocated already",
        lambda state: state.segment_free + state.spare_bytes,
    ),
    _Figure(
        "farebox_journal_retained_segments",
        "Segments whose events are all posted, kept for a lossy failover of the database",
        lambda state: state.retained_segments,
    ),
    _Figure(
        "farebox_journal_rescues_total",
        "Times that unsynced records were written again because the disk refused to sync",
        lambda state: state.rescues,
    ),
    _Figure(
        "farebox_journal_failed",
        "1 once the journal could not be kept any longer",
        lambda state: state.failed,
    ),
)


def _shown(figures: Sequence[_Figure[_T]], snapshot: _T) -> list[Metric]:
    return [figure.metric(snapshot) for figure in figures]


_STATES = {"ready": 0, "probe": 1, "open": 2, "resting": 3, "full": 4}
_CIRCUITS = {"probe": 1, "open": 2}


def _upstreams(states: Sequence[UpstreamState]) -> list[Metric]:
    """Figures of the node: the same, whichever of its processes is asked."""
    circuit = GaugeMetricFamily(
        "farebox_circuit_state",
        "Worst circuit of a provider: 0 closed, 1 half-open, 2 open",
        labels=["provider"],
    )
    condition = GaugeMetricFamily(
        "farebox_upstream_state",
        "0 ready, 1 circuit half-open, 2 open, 3 resting, 4 full",
        labels=["upstream"],
    )
    in_flight = GaugeMetricFamily(
        "farebox_upstream_in_flight", "Attempts in flight", labels=["upstream"]
    )
    limit = GaugeMetricFamily(
        "farebox_upstream_limit",
        "How many may be in flight, as found by what it refused; 0: no limit",
        labels=["upstream"],
    )
    worst: dict[str, int] = {}
    for state in states:
        word = state.state.value
        worst[state.provider] = max(worst.get(state.provider, 0), _CIRCUITS.get(word, 0))
        condition.add_metric([state.name], _STATES[word])
        in_flight.add_metric([state.name], state.in_flight)
        limit.add_metric([state.name], state.limit)
    for provider, number in worst.items():
        circuit.add_metric([provider], number)
    return [circuit, condition, in_flight, limit]


class _Collector(Collector, Generic[_T]):
    """Metrics of a snapshot that is taken at each scrape.

    It is taken in the thread of the trio run in which this was made: a scrape is rendered in
    another, and must not look at what is being changed.
    """

    def __init__(self, metrics: Callable[[_T], list[Metric]], snapshot: Callable[[], _T]) -> None:
        self._metrics = metrics
        self._snapshot = snapshot
        self._run = trio.lowlevel.current_trio_token() if trio.lowlevel.in_trio_run() else None

    def collect(self) -> list[Metric]:
        """The metrics now."""
        return self._metrics(self._taken())

    def _taken(self) -> _T:
        if self._run is None or trio.lowlevel.in_trio_run():
            return self._snapshot()
        return trio.from_thread.run_sync(self._snapshot, trio_token=self._run)


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
