"""What is asked at each scrape: figures of snapshots, and how every upstream is.

The ledger, its journal, the memory that exchanges hold and the upstreams count for themselves; each
has a snapshot that says all. A scrape takes one and shows it. What is counted as it happens is in
`proxy.metrics`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Generic, TypeVar

import trio
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from ledger.journal import JournalStatistics
from ledger.money import NANO_PER_USD
from ledger.server import LedgerStatistics

if TYPE_CHECKING:  # a ledger's process has metrics, and nothing that workers need
    from proxy.health import UpstreamState
    from proxy.memory import Memory

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Figure(Generic[_T]):
    """One figure of a snapshot. The name of what only grows ends in `_total`."""

    name: str
    documentation: str
    read: Callable[[_T], float]

    def metric(self, snapshot: _T) -> Metric:
        """What it is at the moment of a snapshot."""
        value = float(self.read(snapshot))
        if self.name.endswith("_total"):
            return CounterMetricFamily(self.name, self.documentation, value)
        return GaugeMetricFamily(self.name, self.documentation, value)


MEMORY: Sequence[Figure[Memory]] = (
    Figure(
        "farebox_held_bytes",
        "Request bodies and answers that exchanges hold",
        lambda memory: memory.held_bytes,
    ),
    Figure(
        "farebox_held_bytes_max",
        "How many bytes they may hold before large requests are refused",
        lambda memory: memory.max_bytes,
    ),
)
LEDGER: Sequence[Figure[LedgerStatistics]] = (
    Figure(
        "farebox_ledger_pending_events",
        "Events in the journal that are not posted yet",
        lambda state: state.pending_events,
    ),
    Figure(
        "farebox_ledger_oldest_event_seconds",
        "Age of the oldest event that is not posted yet",
        lambda state: state.oldest_event_seconds,
    ),
    Figure(
        "farebox_ledger_leased_usd",
        "Credit held in leases",
        lambda state: state.leased_nusd / NANO_PER_USD,
    ),
    Figure(
        "farebox_ledger_reserved_usd",
        "Credit held by open reservations",
        lambda state: state.reserved_nusd / NANO_PER_USD,
    ),
    Figure(
        "farebox_ledger_open_reservations",
        "Reservations that are neither posted nor voided",
        lambda state: state.open_reservations,
    ),
    Figure(
        "farebox_ledger_oldest_reservation_seconds",
        "Age of the oldest open reservation",
        lambda state: state.oldest_reservation_seconds,
    ),
    Figure(
        "farebox_ledger_waiting_reservations",
        "Requests that wait for credit from the database",
        lambda state: state.waiting,
    ),
    Figure(
        "farebox_ledger_sessions_total",
        "Sessions opened with the database: one, and one more for each that was lost",
        lambda state: state.sessions,
    ),
    Figure(
        "farebox_ledger_disconnected",
        "1 while the ledger has no session with the database",
        lambda state: not state.connected,
    ),
    Figure(
        "farebox_ledger_halted",
        "1 once the ledger has stopped because its books and the database's disagree",
        lambda state: state.halted is not None,
    ),
    Figure(
        "farebox_ledger_workers",
        "Workers that the ledger serves now",
        lambda state: state.workers,
    ),
    Figure(
        "farebox_ledger_orphaned_reservations_total",
        "Reservations given back because their worker had died",
        lambda state: state.orphaned,
    ),
    Figure(
        "farebox_ledger_orphaned_usd_total",
        "What was reserved for them: the most that providers may bill of it",
        lambda state: state.orphaned_nusd / NANO_PER_USD,
    ),
    Figure(
        "farebox_ledger_fleet_disconnected",
        "1 while limits cannot be shared with the fleet's other nodes",
        lambda state: state.fleet_connected is False,
    ),
    Figure(
        "farebox_ledger_refused_settlements_total",
        "Settlements of reservations that were closed already: a bug",
        lambda state: state.refused_settlements,
    ),
    Figure(
        "farebox_ledger_quarantined_events_total",
        "Events that the database refuses, put aside for an operator",
        lambda state: state.quarantined,
    ),
)
JOURNAL: Sequence[Figure[JournalStatistics]] = (
    Figure(
        "farebox_journal_syncs_total",
        "Times that the journal was brought to the disk",
        lambda state: state.syncs,
    ),
    Figure(
        "farebox_journal_sync_seconds_total",
        "How long that took, in all",
        lambda state: state.sync_seconds,
    ),
    Figure(
        "farebox_journal_unsynced_bytes",
        "Written and not yet on the disk: what a power failure would lose",
        lambda state: state.position - state.synced,
    ),
    Figure(
        "farebox_journal_room_bytes",
        "Room left in the segment and its spare, allocated already",
        lambda state: state.segment_free + state.spare_bytes,
    ),
    Figure(
        "farebox_journal_retained_segments",
        "Segments whose events are all posted, kept for a lossy failover of the database",
        lambda state: state.retained_segments,
    ),
    Figure(
        "farebox_journal_rescues_total",
        "Times that unsynced records were written again because the disk refused to sync",
        lambda state: state.rescues,
    ),
    Figure(
        "farebox_journal_failed",
        "1 once the journal could not be kept any longer",
        lambda state: state.failed,
    ),
)


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


class _Snapshots(Collector, Generic[_T]):
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


def asked(figures: Sequence[Figure[_T]], snapshot: Callable[[], _T]) -> Collector:
    """A collector of some figures."""
    return _Snapshots(partial(_shown, figures), snapshot)


def _shown(figures: Sequence[Figure[_T]], snapshot: _T) -> list[Metric]:
    return [figure.metric(snapshot) for figure in figures]


def asked_of_upstreams(states: Callable[[], Sequence[UpstreamState]]) -> Collector:
    """A collector of how every upstream is."""
    return _Snapshots(_upstreams, states)
