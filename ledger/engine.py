"""The ledger's core without I/O: reservations in memory, against credit the store has set aside.

The server feeds it time and the store's answers, and does what it asks: append `take_records()`
to the journal before answering, send what `lanes` has to say, answer the `Waiter`s it decided.
Nothing here awaits, so nothing can interleave.

Invariants (checked after every step, by `take_records`; a breach raises LedgerDivergence and ends
admission)
1. H (pool.py): what is free, bound, unposted and returning is exactly the lease. So the sum of all
   holders' promises never exceeds what the store has taken out of the pools for them.
2. A reservation is OPEN, then SETTLED or VOID, once. It leaves at most one charged event.
3. The reservations of one request over several pools are made in all of them or in none.
4. Sequence numbers are contiguous: `applied_seq + 1 … next_seq − 1` are the unposted events.
5. A pool is part of at most one request to the store, and at most one exchange is in flight.
6. Credit leaves `free` before the store is told, and enters it only by the store's answer.
7. After an uncertain outcome nothing is sent until a session was opened; `free` is then recomputed
   from the store's lease: lost replies and lost requests need no other cure.

Settling above the reservation takes the reservation, then `free` of the same lease; the rest is
`short`, which the store collects from what is available there or books as the operator's loss.

The parts: `book` (what is held), `waiting` (who waits), `lanes` (what is said to the store).
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ledger.book import Book, request_of
from ledger.errors import LedgerError, RateLimited, ReservationClosed
from ledger.lanes import EngineSettings, Lanes, Phase
from ledger.limits import Denied, Limiter, LimiterPort, LimitState
from ledger.records import Attempt, Record, Settle, Void, Worker, WorkerGone
from ledger.reservation import (
    Hold,
    ReservationRequest,
    Settlement,
    Waiter,
    affordable,
    instance_of,
)
from ledger.store import EventStatus, PoolStatus
from ledger.waiting import WaitingRoom

if TYPE_CHECKING:  # the journal does I/O; only its state is read here
    from ledger.messages import OpenReservation
    from ledger.segments import RecoveredState

__all__ = ["Engine", "EngineSettings", "EngineStatistics"]

_SERVING = Phase.SERVING  # what every request asks for: in an enum's class it takes a while to find
_REVIEW = EventStatus.REVIEW


@dataclass(frozen=True, slots=True)
class EngineStatistics:
    """A snapshot for metrics and tests; amounts are nano-dollars of account pools."""

    open_reservations: int
    oldest_reservation_seconds: float
    reserved_nusd: int
    leased_nusd: int
    pending_events: int
    oldest_event_seconds: float
    waiting: int
    pools: int
    applied_seq: int
    orphaned: int
    orphaned_nusd: int
    fleet_connected: bool | None
    refused_settlements: int
    quarantined: int
    overrun_nusd: int
    halted: str | None


class Engine:
    """The state of one holder. `now` is any clock that never goes back and counts suspend."""

    def __init__(
        self,
        recovered: RecoveredState,
        *,
        now: float,
        occurred_at: int,
        alive: Container[int] = (),
        settings: EngineSettings | None = None,
        limiter: LimiterPort | None = None,
    ) -> None:
        """Rebuild from the journal.

        What a worker of `alive` had open stays open until that worker has introduced itself again;
        everything else died with its worker: voided, charge 0.
        """
        self.settings = settings or EngineSettings()
        self.limiter: LimiterPort = limiter or Limiter()
        self.book = Book(recovered.acked_seq, recovered.acked_seq + 1)
        self.room = WaitingRoom()
        self.lanes = Lanes(self.book, self.room, self.settings, now)
        self._orphaned = 0
        self._orphaned_nusd = 0
        self._refused_settlements = 0
        self._recover(recovered, alive, now, occurred_at)

    def _recover(
        self, recovered: RecoveredState, alive: Container[int], now: float, occurred_at: int
    ) -> None:
        book = self.book
        for event in recovered.events:
            book.outbox.add(now, event)
            book.owe(now, event)
        for reserve in recovered.open.values():
            request = request_of(reserve)
            pools = book.pools_of(request.pools, now)
            hold = Hold(reserve.reservation_id, request, request.amount, pools, (), now)
            hold.attempts = reserve.attempts
            book.open[hold.id] = hold
            for pool in hold.pools:
                pool.pending += hold.amount
                book.set_outstanding(pool, pool.outstanding + hold.amount)
        gone = {instance_of(rid) for rid in recovered.open} | recovered.workers.keys()
        for instance in sorted(gone):
            if instance not in alive:
                self.worker_gone(now, instance, occurred_at)

    # -- reserving --------------------------------------------------------------------------

    def find(self, reservation_id: int) -> Hold | None:
        """The reservation, while it is open."""
        return self.book.open.get(reservation_id)

    def reserve(
        self, now: float, reservation_id: int, request: ReservationRequest
    ) -> Hold | Waiter:
        """Bind the amount in every pool, or return a Waiter if the lease is too small for it.

        Raises the LedgerErrors; then nothing is held and no limit was consumed.
        """
        self._refuse_unless_admitting(now)
        pools = self.book.pools_of(request.pools, now)
        states = self._admit(now, request) if request.limits else ()
        if states is not None and affordable(pools, request.amount):
            hold = Hold(reservation_id, request, request.amount, pools, states, now)
            self.book.bind(now, hold)
            return hold
        waiter = Waiter(reservation_id, request, request.amount, pools, states or (), None)
        return self._defer(waiter) if states is None else self._await_credit(now, waiter)

    def extend(self, now: float, hold: Hold, amount: int) -> int | Waiter:
        """Let an open reservation become `amount` as a whole: what it is now, or a Waiter.

        Less than `amount` is a refusal. What it has already withdraws an extension that waits.
        """
        if hold.extension is not None:
            self._withdraw(hold.extension)
        extra = amount - hold.amount
        if extra <= 0 or hold.state != "open":
            return hold.amount
        if all(pool.free >= extra for pool in hold.pools):
            self.book.grow(now, hold, extra)
            return hold.amount
        if self.book.halted or now >= self.lanes.valid_until:
            return hold.amount
        waiter = Waiter(hold.id, hold.request, extra, hold.pools, hold.limits, hold)
        try:
            self._wait(now, waiter)
        except LedgerError:
            return hold.amount
        hold.extension = waiter
        return waiter

    def undo(self, now: float, hold: Hold) -> None:
        """The reservation could not be journalled: it never was."""
        self.limiter.undo(hold.request.limits, hold.request.tokens)
        self.book.release(now, hold)

    # -- ending a reservation ---------------------------------------------------------------

    def settle(self, now: float, hold: Hold, settlement: Settlement) -> None:
        """Post the charge. A second call changes nothing. Raises ReservationClosed after `void`."""
        if hold.state == "settled":
            return
        self._refuse_closed(hold)
        book, tokens = self.book, settlement.tokens
        book.records.append(Settle(hold.id, book.post(now, hold, settlement)))
        used = tokens.input + tokens.output
        if settlement.status is _REVIEW:
            used = hold.request.tokens
        self._closed(hold, max(used, 0))

    def attempt(self, now: float, hold: Hold, ordinal: int, settlement: Settlement) -> None:
        """A provider was contacted in vain, the `ordinal`-th time: an event with charge 0.

        The reservation stays open. What was heard before changes nothing.
        """
        self._refuse_closed(hold)
        if ordinal <= hold.attempts:
            return
        hold.attempts = ordinal
        event = self.book.add_event(now, hold, settlement, reserved=0)
        self.book.records.append(Attempt(hold.id, event))

    def void(
        self, now: float, hold: Hold, settlement: Settlement | None, reason: str = "void"
    ) -> None:
        """Give the reservation back; with a `settlement` an event with charge 0 says so.

        Does nothing if it is closed.
        """
        if hold.state != "open":
            return
        reserved = hold.amount
        self.book.release(now, hold)
        event = None
        if settlement is not None:
            event = self.book.add_event(now, hold, settlement, reserved=reserved)
        self.book.records.append(Void(hold.id, reason, event))
        self._closed(hold, 0)

    def withdraw(self, reservation_id: int) -> None:
        """The caller of a reservation that waits is gone: it holds nothing, and never will."""
        waiter = self.room.reservations.get(reservation_id)
        if waiter is not None:
            self._withdraw(waiter)

    # -- workers ----------------------------------------------------------------------------

    def worker_known(self, worker: Worker) -> None:
        """A worker has introduced itself for the first time."""
        self.book.records.append(worker)

    def attest(
        self,
        now: float,
        instance: int,
        open_reservations: Iterable[OpenReservation],
        occurred_at: int,
    ) -> None:
        """A worker has introduced itself: what it does not know of any more is voided."""
        known = {each.reservation_id: each for each in open_reservations}
        for hold in self._holds_of(instance):
            said = known.get(hold.id)
            if said is None:
                self._orphan(now, hold, occurred_at)
            elif said.limits and not hold.request.limits:  # a journal does not remember limits
                hold.resume(said.limits, said.tokens)
                self.limiter.occupy(said.limits)

    def worker_gone(self, now: float, instance: int, occurred_at: int) -> list[Waiter]:
        """A worker's process has ended: what it had open is voided, what it waited for too."""
        waiting = [waiter for waiter in self.room if instance_of(waiter.id) == instance]
        for waiter in waiting:
            self._withdraw(waiter)
        for hold in self._holds_of(instance):
            self._orphan(now, hold, occurred_at)
        self.book.records.append(WorkerGone(instance))
        return waiting

    def _holds_of(self, instance: int) -> list[Hold]:
        return [hold for hold in self.book.open.values() if instance_of(hold.id) == instance]

    def _orphan(self, now: float, hold: Hold, occurred_at: int) -> None:
        self._orphaned += 1
        self._orphaned_nusd += hold.amount
        self.void(
            now,
            hold,
            Settlement(
                status=EventStatus.ORPHANED,
                provider_id=hold.request.provider_id,
                price_id=hold.request.price_id,
                occurred_at=occurred_at,
            ),
            "orphaned",
        )

    # -- waiters ----------------------------------------------------------------------------

    @property
    def thirsty(self) -> bool:
        """Whether anybody waits for credit."""
        return bool(self.room.pools)

    def serve_waiters(self, now: float) -> list[Waiter]:
        """Bind what fits by now, in order of arrival: those whom this decides."""
        return [self._grant(now, waiter) for waiter in self.room.thirsty if waiter.fits()]

    def serve_deferred(self, now: float) -> list[Waiter]:
        """The limits may have an answer by now: those whom this decides."""
        decided = []
        for waiter in self.room.deferred:
            try:
                states = self._admit(now, waiter.request)
                if states is None:
                    continue
                self.room.admit(waiter)
                waiter.limits = states
                if waiter.fits():
                    waiter.outcome = self._bind(now, waiter.begin(now))
                else:
                    self._await_credit(now, waiter)
            except LedgerError as error:
                if self.room.is_deferred(waiter):
                    self.room.leave(waiter)
                waiter.outcome = error
            if waiter.outcome is not None:
                decided.append(waiter)
        return decided

    def refuse(self, refused: Iterable[tuple[Waiter, LedgerError]]) -> list[Waiter]:
        """Decide against waiters, as the lanes say. One may be named for several pools."""
        return [self._decide(waiter, error) for waiter, error in refused if waiter.outcome is None]

    def revoke(self, now: float, waiters: Sequence[Waiter], reason: str) -> None:
        """What was just granted to `waiters` could not be journalled: refuse them instead."""
        for waiter in waiters:
            if not isinstance(waiter.outcome, Hold):
                continue
            if waiter.hold is None:
                self.undo(now, waiter.outcome)
            else:
                self.book.shrink(waiter.hold, waiter.amount)
            waiter.outcome = self.lanes.unavailable(reason)

    # -- what others may know ---------------------------------------------------------------

    @property
    def open_reservations(self) -> int:
        """How many reservations are open."""
        return len(self.book.open)

    @property
    def pending_events(self) -> int:
        """How many events the store has not acknowledged."""
        return len(self.book.outbox.events)

    def drain(self) -> None:
        """Admit nothing more; the lanes give all credit back."""
        self.lanes.phase = Phase.DRAINING

    def begin_anew(self, now: float) -> None:
        """Become another holder: nothing leased, nothing to post, the limits as they are."""
        self.book = Book(0, 1)
        self.room = WaitingRoom()
        self.lanes = Lanes(self.book, self.room, self.settings, now)

    @property
    def drained(self) -> bool:
        """Whether the store knows everything and holds no credit for us that is not bound."""
        return self.lanes.finished

    def credit_hint(self, account_id: int) -> None:
        """Credit may have arrived: forget that the account's pool was exhausted."""
        pool = self.book.find_pool(account_id)
        if pool is not None:
            pool.exhausted_until = 0.0
            pool.scarce_until = 0.0
            pool.ask_after = 0.0

    def take_records(self) -> list[Record]:
        """What happened since the last call; to be journalled before anything is answered.

        Raises LedgerDivergence where it broke invariant H.
        """
        return self.book.take_records()

    def statistics(self, now: float) -> EngineStatistics:
        """A snapshot; iterates over the pools."""
        book = self.book
        oldest = next(iter(book.open.values()), None)
        return EngineStatistics(
            open_reservations=len(book.open),
            oldest_reservation_seconds=now - oldest.opened_at if oldest else 0.0,
            reserved_nusd=sum(pool.pending for pool in book.pools if pool.kind == "account"),
            leased_nusd=book.leased,
            pending_events=len(book.outbox.events),
            oldest_event_seconds=book.outbox.oldest_seconds(now),
            waiting=len(self.room),
            pools=len(list(book.pools)),
            applied_seq=book.outbox.applied_seq,
            orphaned=self._orphaned,
            orphaned_nusd=self._orphaned_nusd,
            fleet_connected=self.limiter.fleet_connected,
            refused_settlements=self._refused_settlements,
            quarantined=book.outbox.quarantined,
            overrun_nusd=book.overrun,
            halted=book.halted,
        )

    def check(self) -> None:
        """Every invariant that can be seen from inside; for tests and after doubt."""
        self.book.check_all()

    # -- inside -----------------------------------------------------------------------------

    def _refuse_unless_admitting(self, now: float) -> None:
        lanes, book = self.lanes, self.book
        if book.halted:
            raise lanes.unavailable(book.halted)
        if lanes.phase is not _SERVING:
            raise lanes.unavailable(lanes.phase.value)
        # Right after the start nothing can be bound yet, but callers may wait for the store.
        if now >= lanes.valid_until and (lanes.known or lanes.is_given_up(now)):
            raise lanes.unavailable("the database has not answered for too long")
        if len(book.outbox.events) >= self.settings.events_max:
            raise lanes.unavailable("too much usage waits to be posted")

    def _refuse_closed(self, hold: Hold) -> None:
        if hold.state != "open":
            self._refused_settlements += 1
            raise ReservationClosed(f"reservation {hold.id} is {hold.state}")

    def refused_settlement(self) -> None:
        """A settlement for a reservation that is not known (any more) changes nothing."""
        self._refused_settlements += 1

    def _closed(self, hold: Hold, used_tokens: int) -> None:
        if hold.extension is not None:
            self._withdraw(hold.extension)
        request = hold.request
        if request.limits:
            self.limiter.settle(request.limits, request.tokens, used_tokens)

    def _admit(self, now: float, request: ReservationRequest) -> tuple[LimitState, ...] | None:
        """The limits admit it now; None if they have to be asked first. Raises RateLimited."""
        states = self.limiter.admit(now, request.limits, request.tokens)
        if type(states) is tuple:
            return states
        if isinstance(states, Denied):
            raise RateLimited(
                states.limit, states.retry_after, states.states, never_fits=states.never_fits
            )
        return None

    def _defer(self, waiter: Waiter) -> Waiter:
        if len(self.room) >= self.settings.waiters_max:
            raise self.lanes.unavailable("too many requests wait for their limits")
        self.room.defer(waiter)
        return waiter

    def _await_credit(self, now: float, waiter: Waiter) -> Waiter:
        """The limits have admitted it, credit is lacking; what they took goes back if refused."""
        try:
            return self._wait(now, waiter)
        except LedgerError:
            self.limiter.undo(waiter.request.limits, waiter.request.tokens)
            raise

    def _bind(self, now: float, hold: Hold) -> Hold:
        self.book.bind(now, hold)
        return hold

    def _wait(self, now: float, waiter: Waiter) -> Waiter:
        """Queue for credit, unless it is already known that none will come."""
        amount = waiter.amount
        for pool in waiter.pools:
            if pool.status != PoolStatus.OPEN and (pool.free or now < pool.exhausted_until):
                raise self.lanes.refusal(pool, amount)
            if pool.knows_exhausted(now, amount):
                raise self.lanes.refusal(pool, amount)
        if self.lanes.is_given_up(now):
            raise self.lanes.unavailable("the database is not reachable")
        if len(self.room) >= self.settings.waiters_max:
            raise self.lanes.unavailable("too many requests wait for credit")
        waiter.since = now
        self.room.enter(waiter)
        for pool in waiter.pools:
            pool.used_at = now
        return waiter

    def _grant(self, now: float, waiter: Waiter) -> Waiter:
        """Give a waiter that fits what it waits for."""
        hold = waiter.hold
        if hold is None:
            hold = self._bind(now, waiter.begin(now))
        else:
            self.book.grow(now, hold, waiter.amount)
        return self._decide(waiter, hold)

    def _withdraw(self, waiter: Waiter) -> None:
        self._decide(waiter, self.lanes.unavailable("the caller left"))

    def _decide(self, waiter: Waiter, outcome: Hold | LedgerError) -> Waiter:
        waiter.outcome = outcome
        deferred = self.room.is_deferred(waiter)
        self.room.leave(waiter)
        if waiter.hold is not None:
            waiter.hold.extension = None
        elif isinstance(outcome, LedgerError) and not deferred:
            self.limiter.undo(waiter.request.limits, waiter.request.tokens)
        return waiter
