"""A lease holder without trio: the engine, a journal's state and MemoryStore, step by step.

What the server does with tasks and time-outs is done here by hand, so that a test decides the
order of everything and which messages are lost.
"""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Literal, TypeVar

from ledger.engine import Engine
from ledger.journal import RecoveredState
from ledger.lanes import EngineSettings, Exchange
from ledger.memory import MemoryStore
from ledger.reservation import (
    Hold,
    ReservationRequest,
    Settlement,
    Waiter,
    reservation_id,
)
from ledger.store import Ask, EventStatus, HolderId, PoolGrant, Session
from tests.fakes.ledger import PRICE, PROVIDER, output

T = TypeVar("T")
Lost = Literal["nothing", "request", "reply"]
JOURNAL_ID = b"j" * 16
WORKER = 1


def finish(call: Coroutine[object, object, T]) -> T:
    """The result of a coroutine that never waits, as all of MemoryStore's."""
    try:
        call.send(None)
    except StopIteration as stop:
        result: T = stop.value
        return result
    raise AssertionError("it waits")


def posted_balance(engine: Engine, account_id: int) -> int | None:
    """Credited − charged, including what the store has not heard of yet; None if unknown."""
    pool = engine.book.find_pool(account_id)
    return None if pool is None else pool.posted_balance


class Holder:
    """One holder on virtual time; `now` moves only when told."""

    def __init__(
        self, store: MemoryStore, *, settings: EngineSettings | None = None, open_: bool = True
    ) -> None:
        self.store = store
        self.settings = settings
        self.now = 1000.0
        self.journal = RecoveredState()
        self.holder_id: HolderId = finish(store.register_holder(JOURNAL_ID, "test"))
        self.session: Session | None = None
        self.reservations = 0
        self.engine = self._engine()
        if open_:
            self.open()

    def _engine(self) -> Engine:
        return Engine(self.journal.copy(), now=self.now, occurred_at=1, settings=self.settings)

    # -- callers

    def reserve(self, request: ReservationRequest) -> Hold | Waiter:
        self.reservations += 1
        outcome = self.engine.reserve(self.now, reservation_id(WORKER, self.reservations), request)
        self.write()
        return outcome

    def hold(self, request: ReservationRequest) -> Hold:
        """Reserve, with a grant if one is needed."""
        outcome = self.reserve(request)
        if isinstance(outcome, Waiter):
            self.grant()
            decided = outcome.outcome
            if isinstance(decided, Exception):
                raise decided
            assert decided is not None
            return decided
        return outcome

    def settle(self, hold: Hold, charge: int, status: EventStatus = EventStatus.SETTLED) -> None:
        settlement = Settlement(
            status=status,
            provider_id=PROVIDER,
            price_id=PRICE.price_id,
            cost=charge,
            charge=charge,
            tokens=output(charge),
            ttfb_ms=1,
            duration_ms=2,
            occurred_at=1,
        )
        try:
            self.engine.settle(self.now, hold, settlement)
        finally:
            self.write()

    def attempt(self, hold: Hold, cost: int) -> None:
        self.engine.attempt(self.now, hold, hold.attempts + 1, in_vain(EventStatus.FAILED, cost))
        self.write()

    def void(self, hold: Hold, status: EventStatus | None = None, cost: int = 0) -> None:
        self.engine.void(self.now, hold, None if status is None else in_vain(status, cost))
        self.write()

    def extend(self, hold: Hold, extra: int) -> bool | Waiter:
        """Whether it is granted at once; else who waits."""
        wanted = hold.amount + extra
        outcome = self.engine.extend(self.now, hold, wanted)
        self.write()
        return outcome if isinstance(outcome, Waiter) else outcome == wanted

    # -- the lanes

    def write(self) -> None:
        for record in self.engine.take_records():
            self.journal.apply(record)

    def open(self) -> None:
        self.session = finish(self.store.open_session(self.holder_id, JOURNAL_ID))
        self.engine.lanes.session_opened(self.now, self.now, self.session)
        self.journal.acknowledge(self.engine.book.outbox.applied_seq)
        self.write()

    def reopen(self) -> None:
        self.engine.lanes.session_lost(self.now)
        self.open()

    def next_exchange(self) -> Exchange | None:
        return self.engine.lanes.next_exchange(self.now, self.engine.book.outbox.next_seq - 1)

    def send(self, exchange: Exchange) -> list[PoolGrant]:
        assert self.session is not None
        return finish(self.store.exchange(self.session, exchange.events, exchange.reports))

    def acknowledge(self, replies: list[PoolGrant]) -> None:
        self.engine.lanes.exchanged(self.now, self.now, replies)
        self.journal.acknowledge(self.engine.book.outbox.applied_seq)

    def exchange(self, lost: Lost = "nothing") -> Exchange | None:
        exchange = self.next_exchange()
        if exchange is None:
            return None
        replies = [] if lost == "request" else self.send(exchange)
        if lost == "nothing":
            self.acknowledge(replies)
        else:
            self.reopen()
        return exchange

    def ask(self, asks: list[Ask]) -> list[PoolGrant]:
        assert self.session is not None
        return finish(self.store.grant_lease(self.session, asks))

    def grant(self, lost: Lost = "nothing") -> list[Waiter]:
        decided = self.engine.serve_waiters(self.now)
        asks, refused = self.engine.lanes.next_asks(self.now)
        decided += self.engine.refuse(refused)
        if asks:
            replies = [] if lost == "request" else self.ask(asks)
            if lost == "nothing":
                decided += self.granted(asks, replies)
            else:
                self.reopen()
        self.write()
        return decided

    def granted(self, asks: list[Ask], replies: list[PoolGrant]) -> list[Waiter]:
        refused = self.engine.refuse(self.engine.lanes.granted(self.now, asks, replies))
        return refused + self.engine.serve_waiters(self.now)

    def cancel(self, waiter: Waiter) -> None:
        """The caller left: whatever the outcome was or would be, nothing stays held."""
        if waiter.hold is not None:
            self.engine.extend(self.now, waiter.hold, 0)
        elif isinstance(waiter.outcome, Hold):
            self.engine.void(self.now, waiter.outcome, None)
        else:
            self.engine.withdraw(waiter.id)
        self.write()

    # -- accidents and the end

    def restart(self) -> None:
        """The process died and came back with its journal."""
        self.session = None
        self.engine = self._engine()
        self.write()
        self.open()

    def drain(self) -> None:
        """Post everything and give all credit back."""
        self.engine.drain()
        for _ in range(20):
            if self.engine.drained:
                return
            self.exchange()
        raise AssertionError("not drained")


def in_vain(status: EventStatus, cost: int) -> Settlement:
    """A provider was contacted, and nothing is charged."""
    return Settlement(status=status, provider_id=PROVIDER, cost=cost, duration_ms=1, occurred_at=1)
