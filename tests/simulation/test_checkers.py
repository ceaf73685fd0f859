"""The simulation finds what it is there to find: one deliberate fault each, within some seeds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from ledger import memory
from ledger.client import Reservation
from ledger.engine import Engine
from ledger.lanes import EngineSettings, Lanes
from ledger.memory import Holder, MemoryStore
from ledger.pool import HolderPool
from ledger.records import Record, Reserve, Settle
from ledger.reservation import Waiter
from ledger.scribe import Scribe
from ledger.segments import RecoveredState
from ledger.server import LedgerSettings
from ledger.store import HolderState, Session, StoreRefused
from ledger.waiting import WaitingRoom
from tests.simulation import node as simulated
from tests.simulation.oracle import WatchedJournal
from tests.simulation.plan import Plan
from tests.simulation.world import run

SEEDS = 60


def drop_the_epoch_test(patch: pytest.MonkeyPatch) -> None:
    def holder(self: MemoryStore, session: Session, *states: HolderState) -> Holder:
        row = self.holder_rows.get(session.holder_id)
        if row is None:
            raise StoreRefused("LE001", "unknown")
        return row

    patch.setattr(MemoryStore, "_holder", holder)


def grant_whatever_is_wanted(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(memory, "grant_amount", lambda _cap, _need, want: max(want, 0))


def settle_twice_after_a_restart(patch: pytest.MonkeyPatch) -> None:
    """Recovery forgets that a settlement ends its reservation."""
    real = RecoveredState.apply

    def apply(self: RecoveredState, record: Record) -> None:
        reservation = self.open.get(record.reservation_id) if isinstance(record, Settle) else None
        real(self, record)
        if reservation is not None:
            self.open[reservation.reservation_id] = reservation

    patch.setattr(RecoveredState, "apply", apply)


def keep_what_is_given_back(patch: pytest.MonkeyPatch) -> None:
    """Surplus is told to the store, and stays free."""
    real = Lanes.next_exchange

    def next_exchange(self: Lanes, now: float, upto: int) -> object:
        exchange = real(self, now, upto)
        for pool in self._book.pools:
            pool.free += pool.returning
        return exchange

    patch.setattr(Lanes, "next_exchange", next_exchange)
    patch.setattr(HolderPool, "check", lambda _self: None)


def lose_a_record(patch: pytest.MonkeyPatch) -> None:
    """Settlements are not journalled."""
    real = WatchedJournal.append

    def append(self: WatchedJournal, records: Sequence[Record]) -> int:
        return real(self, [record for record in records if not isinstance(record, Settle)])

    patch.setattr(WatchedJournal, "append", append)


def answer_before_journalling(patch: pytest.MonkeyPatch) -> None:
    """Reservations are not journalled: nobody knows of them after a restart."""
    real = WatchedJournal.append

    def append(self: WatchedJournal, records: Sequence[Record]) -> int:
        return real(self, [record for record in records if not isinstance(record, Reserve)])

    patch.setattr(WatchedJournal, "append", append)


def post_before_it_is_durable(patch: pytest.MonkeyPatch) -> None:
    async def at_once(_self: Scribe) -> None:
        pass

    patch.setattr(Scribe, "make_durable", at_once)


class _Forgetful(dict[int, Waiter]):
    """Waiters of whom nobody knows that they wait."""

    def __contains__(self, _number: object) -> bool:
        return False


def forget_that_it_waits(patch: pytest.MonkeyPatch) -> None:
    """A reservation that is said again while it waits is made a second time."""
    real = WaitingRoom.__init__

    def begin(self: WaitingRoom) -> None:
        real(self)
        self.reservations = _Forgetful()

    patch.setattr(WaitingRoom, "__init__", begin)


def say_nothing_again(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Reservation, "unanswered", lambda _self: [])


def void_nothing_of_the_dead(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Engine, "worker_gone", lambda _self, _now, _instance, _occurred_at: [])


def accept_any_sequence(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(MemoryStore, "_expect_sequence", lambda _self, _holder, _seq: None)


def sync_rarely(patch: pytest.MonkeyPatch) -> None:
    """What waits for no exchange stays in memory for longer than it should."""
    real = WatchedJournal.recover

    def recover(directory: Path, *, fsync_interval: float, **options: object) -> object:
        return real(directory, fsync_interval=fsync_interval + 0.05, **options)  # type: ignore[arg-type]  # as they come

    patch.setattr(WatchedJournal, "recover", recover)


def post_rarely(patch: pytest.MonkeyPatch) -> None:
    """An exchange is due two seconds later than it should be."""

    def settings(*, engine: EngineSettings, node: str, flush_seconds: float) -> LedgerSettings:
        return LedgerSettings(engine=engine, node=node, flush_seconds=flush_seconds + 2)

    patch.setattr(simulated, "LedgerSettings", settings)


FAULTS: list[tuple[Callable[[pytest.MonkeyPatch], None], dict[str, float]]] = [
    (drop_the_epoch_test, {}),
    (grant_whatever_is_wanted, {}),
    (settle_twice_after_a_restart, {"kill ledgerd": 2}),
    (keep_what_is_given_back, {}),
    (lose_a_record, {"kill ledgerd": 2}),
    (answer_before_journalling, {"kill ledgerd": 2}),
    (post_before_it_is_durable, {}),
    (forget_that_it_waits, {"cut link": 0.3, "database down": 4}),
    (say_nothing_again, {"cut link": 0.3}),
    (void_nothing_of_the_dead, {"kill worker": 2}),
    (accept_any_sequence, {"repeated statements": 0.2}),
    (sync_rarely, {"power cut": 4}),
    (post_rarely, {"destroy node": 6}),
]
"""With what makes each of them matter: mean seconds between two faults, or how likely they are."""


@pytest.mark.parametrize(("fault", "faults"), FAULTS, ids=[each.__name__ for each, _ in FAULTS])
def test_a_deliberate_fault_is_found(
    fault: Callable[[pytest.MonkeyPatch], None],
    faults: dict[str, float],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fault(monkeypatch)
    for seed in range(SEEDS):
        plan = Plan.of(seed)
        plan.faults |= faults
        plan.statements.repeated = plan.faults.pop("repeated statements", 0.0)
        if run(seed, plan).violation:
            return
    raise AssertionError(f"not found in {SEEDS} seeds")
