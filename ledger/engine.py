"""The ledger's core without I/O: reservations in memory, against credit the store has set aside.

The server feeds it time and the store's answers, and does what it asks: append `take_records()`
to the journal before answering, send `next_asks()` on the grant lane and `next_exchange()` on the
exchange lane, wake the `Waiter`s it decided. Nothing here awaits, so nothing can interleave.

Invariants (checked after every step; a breach raises LedgerDivergence and ends admission)
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
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ledger.errors import (
    AccountSuspended,
    InsufficientCredit,
    LedgerDivergence,
    LedgerError,
    LedgerUnavailable,
    RateLimited,
    ReservationClosed,
)
from ledger.limits import Denied, Limiter, LimitState
from ledger.pool import SCARCE_SECONDS, HolderPool, Lane, Sizing
from ledger.records import Attempt, Extend, Record, Reserve, Settle, Void
from ledger.reservation import (
    Hold,
    HoldState,
    ReservationRequest,
    Settled,
    TokenCounts,
    Waiter,
)
from ledger.store import (
    Ask,
    EventStatus,
    PoolGrant,
    PoolReport,
    PoolStatus,
    Session,
    UsageEvent,
    emptied,
)

if TYPE_CHECKING:  # the journal does I/O; only its state is read here
    from ledger.journal import RecoveredState

FORGET_SECONDS = 900.0
TOKENS_MAX = 2**31 - 1  # the width of the usage history's columns
RECALL_RETRIES = 4
RECALL_RETRY_SECONDS = 0.02
REFUSALS_BEFORE_BISECTION = 2
CHECK_VIOLATION = "23514"  # SQLSTATE


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """Bounds of a holder; amounts are nano-dollars."""

    sizing: Sizing = field(default_factory=Sizing)
    validity_seconds: float = 300.0
    heartbeat_seconds: float = 5.0
    batch_max: int = 5_000
    exposure_max: int = 500_000_000_000
    events_pressed: int = 100_000
    event_pressed_seconds: float = 30.0
    events_max: int = 500_000
    waiters_max: int = 10_000
    patience_seconds: float = 0.5  # how long after losing the store callers may still wait for it
    retry_after_seconds: float = 2.0


@dataclass(frozen=True, slots=True)
class Exchange:
    """One batched round trip: the next run of events, and a report for each pool concerned."""

    first_seq: int
    events: list[UsageEvent]
    reports: list[PoolReport]

    @property
    def last_seq(self) -> int:
        """The sequence number of the last event; first_seq − 1 if there is none."""
        return self.first_seq + len(self.events) - 1


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
        settings: EngineSettings | None = None,
    ) -> None:
        self.settings = settings or EngineSettings()
        self.limiter = Limiter()
        self.applied_seq = recovered.acked_seq
        self.next_seq = recovered.next_seq
        self.halted: str | None = None
        self.draining = False
        self._next_reservation_id = recovered.next_reservation_id
        self._pools: dict[int, HolderPool] = {}
        self._active: dict[HolderPool, None] = {}  # pools to look at in the next exchange
        self._thirsty: dict[HolderPool, dict[Waiter, None]] = {}  # in order of arrival
        self._open: dict[int, Hold] = {}
        self._waiting: dict[Waiter, None] = {}
        self._events: deque[UsageEvent] = deque()
        self._event_times: deque[float] = deque()
        self._records: list[Record] = []
        self._leased = 0
        self._valid_until = now
        self._away_since: float | None = now
        self._known = False  # whether any session was ever open
        self._exchanged_at = now
        self._scanned_at = now
        self._in_flight: Exchange | None = None
        self._grant_marks: dict[int, int] = {}
        self._refusal: tuple[int, int, str] | None = None  # first, last, code
        self._refusals = 0
        self._suspect_last: int | None = None
        self._refused_settlements = 0
        self._quarantined = 0
        self._overrun = 0
        self._recover(recovered, now, occurred_at)

    # -- reserving --------------------------------------------------------------------------

    def reserve(self, now: float, request: ReservationRequest) -> Hold | Waiter:
        """Bind the amount in every pool, or return a Waiter if the lease is too small for it.

        Raises the LedgerErrors; then nothing is held and no limit was consumed.
        """
        self._refuse_unless_admitting(now)
        states = self.limiter.admit(now, request.limits, request.tokens)
        if isinstance(states, Denied):
            raise RateLimited(
                states.limit, states.retry_after, states.states, never_fits=states.never_fits
            )
        amount = request.amount
        pools = self._pools_of(request, now)
        for pool in pools:
            if pool.free < amount or pool.status != PoolStatus.OPEN:
                break
        else:
            return self._bind(now, request, pools, states)
        try:
            return self._wait(now, Waiter(request, amount, pools, states, None))
        except LedgerError:
            self.limiter.undo(request.limits, request.tokens)
            raise

    def extend(self, now: float, hold: Hold, extra: int) -> bool | Waiter:
        """Bind `extra` more for an open reservation; False where the ledger refuses."""
        if hold.state is not HoldState.OPEN or extra < 0:
            return False
        if all(pool.free >= extra for pool in hold.pools):
            self._grow(now, hold, extra)
            return True
        if self.halted or now >= self._valid_until:
            return False
        try:
            return self._wait(now, Waiter(hold.request, extra, hold.pools, hold.limits, hold))
        except LedgerError:
            return False

    def cancel(self, now: float, waiter: Waiter) -> None:
        """The caller left: whatever the outcome was or would be, nothing stays held."""
        outcome = waiter.outcome
        if outcome is None:
            self._decide(waiter, LedgerUnavailable(0, "the caller left"))
        elif isinstance(outcome, Hold) and waiter.hold is None:
            self.void(now, outcome, reason="caller left")

    def undo(self, hold: Hold) -> None:
        """The reservation could not be journalled: it never was. Only right after reserve()."""
        self._records.clear()
        self.limiter.undo(hold.request.limits, hold.request.tokens)
        self._release(hold)
        hold.state = HoldState.VOID

    def undo_extension(self, hold: Hold, extra: int) -> None:
        """The extension could not be journalled: it never was. Only right after extend()."""
        self._records.clear()
        hold.amount -= extra
        for pool in hold.pools:
            pool.pending -= extra
            pool.free += extra

    # -- ending a reservation ---------------------------------------------------------------

    def settle(
        self,
        now: float,
        hold: Hold,
        *,
        provider_id: int,
        price_id: int,
        cost: int,
        charge: int,
        tokens: TokenCounts,
        status: EventStatus,
        ttfb_ms: int,
        duration_ms: int,
        occurred_at: int,
    ) -> Settled:
        """Post the charge. A second call changes nothing and returns the first one's result.

        Raises ReservationClosed after `void`.
        """
        if hold.settled is not None:
            return hold.settled
        self._refuse_closed(hold)
        amount = hold.amount
        covered = []
        for pool in hold.pools:
            part = min(charge, amount + pool.free)
            pool.pending -= amount
            pool.free += amount - part
            pool.unposted += part
            pool.charged += charge
            pool.recent += charge
            pool.used_at = now
            self._active[pool] = None
            covered.append(part)
        used = tokens.input + tokens.output
        if status is EventStatus.REVIEW:
            used = hold.request.tokens
        self._close(hold, HoldState.SETTLED, max(used, 0))
        self._overrun += max(charge - amount, 0)
        event = self._event(
            hold.request,
            provider_id=provider_id,
            price_id=price_id,
            status=status,
            reserved=amount,
            cost=cost,
            charge=charge,
            tokens=tokens,
            ttfb_ms=ttfb_ms,
            duration_ms=duration_ms,
            occurred_at=occurred_at,
            covered=tuple(covered),
        )
        self._post(now, event)
        self._records.append(Settle(hold.id, event))
        settled = hold.settled = Settled(cost, charge, hold.pools[0].posted_balance)
        self._check(hold.pools)
        return settled

    def attempt(
        self,
        now: float,
        hold: Hold,
        *,
        provider_id: int,
        price_id: int,
        cost: int,
        status: EventStatus,
        ttfb_ms: int,
        duration_ms: int,
        occurred_at: int,
    ) -> None:
        """A provider was contacted in vain: an event with charge 0; the reservation stays open."""
        self._refuse_closed(hold)
        event = self._event(
            hold.request,
            provider_id=provider_id,
            price_id=price_id,
            status=status,
            reserved=0,
            cost=cost,
            ttfb_ms=ttfb_ms,
            duration_ms=duration_ms,
            occurred_at=occurred_at,
        )
        self._post(now, event)
        self._records.append(Attempt(hold.id, event))

    def void(
        self,
        now: float,
        hold: Hold,
        *,
        reason: str,
        status: EventStatus | None = None,
        provider_id: int = 0,
        price_id: int = 0,
        cost: int = 0,
        duration_ms: int = 0,
        occurred_at: int = 0,
    ) -> None:
        """Give the reservation back; an event only with a `status`. Does nothing if closed."""
        if hold.state is not HoldState.OPEN:
            return
        amount = hold.amount
        self._release(hold)
        self._close(hold, HoldState.VOID, 0)
        event = None
        if status is not None:
            event = self._event(
                hold.request,
                provider_id=provider_id,
                price_id=price_id,
                status=status,
                reserved=amount,
                cost=cost,
                duration_ms=duration_ms,
                occurred_at=occurred_at,
            )
            self._post(now, event)
        self._records.append(Void(hold.id, reason, event))
        for pool in hold.pools:
            pool.used_at = now
            self._active[pool] = None
        self._check(hold.pools)

    # -- the session ------------------------------------------------------------------------

    def session_opened(self, now: float, sent_at: float, session: Session) -> None:
        """The store's word on what happened: drop what it has applied, recompute what is free."""
        if session.applied_seq < self.applied_seq:
            raise self._diverged(
                f"the store knows events up to {session.applied_seq}, "
                f"but has acknowledged {self.applied_seq}"
            )
        self._drop_events(session.applied_seq)
        # A store that knows more than the journal (which then lost its tail): carry on behind it.
        self.next_seq = max(self.next_seq, session.applied_seq + 1)
        self._in_flight = None
        self._grant_marks.clear()
        for pool_id in session.leases:
            self._pool(pool_id, now)
        for pool in self._pools.values():
            pool.lane = Lane.IDLE
            pool.posting = False
            pool.returning = 0
            pool.spent_total = None
            self._set_outstanding(pool, session.leases.get(pool.pool_id, 0))
            pool.free = pool.outstanding - pool.pending - pool.unposted
            self._active[pool] = None
        self._check(self._pools.values())
        self._away_since = None
        self._known = True
        self._acknowledged(sent_at)

    def session_lost(self, now: float) -> None:
        """An outcome is uncertain: serve from what is free, ask nothing until reopened."""
        if self._away_since is None:
            self._away_since = now

    # -- the grant lane ---------------------------------------------------------------------

    @property
    def thirsty(self) -> bool:
        """Whether anybody waits for credit."""
        return bool(self._thirsty)

    def serve_waiters(self, now: float) -> list[Waiter]:
        """Bind what fits by now, in order of arrival; the caller wakes those returned."""
        return [w for w in list(self._waiting) if w.fits() and self._grant(now, w)]

    def next_asks(self, now: float) -> tuple[list[Ask], list[Waiter]]:
        """What to ask the store for, and the waiters refused because it must not be asked."""
        asks: list[Ask] = []
        refused: list[Waiter] = []
        room = self.settings.exposure_max - self._leased
        for pool in list(self._thirsty):
            if pool.lane is not Lane.IDLE or now < pool.ask_after:
                continue
            waiting = self._lacking(pool)
            if not waiting:
                continue
            need = min(waiter.amount for waiter in waiting) - pool.free
            want = self._target(now, pool) + sum(w.amount for w in waiting) - pool.free
            want = max(want, need)
            if pool.kind == "account":
                if need > room:
                    refused += self._refuse_lacking(pool, "this node may not lease more credit")
                    continue
                want = min(want, room)
                room -= want
            pool.lane = Lane.GRANT
            self._grant_marks[pool.pool_id] = pool.postings
            asks.append(Ask(pool.pool_id, need, want))
        return asks, refused

    def granted(
        self, now: float, asks: Sequence[Ask], replies: Iterable[PoolGrant]
    ) -> list[Waiter]:
        """The store has answered `asks`: the waiters this decides, either way."""
        answers = {reply.pool_id: reply for reply in replies}
        decided: list[Waiter] = []
        for ask in asks:
            pool = self._pools[ask.pool_id]
            pool.lane = Lane.IDLE
            reply = answers.get(ask.pool_id) or _unknown_pool(ask)
            # With a posting under way meanwhile, the reply shows the lease before or after it.
            mark = self._grant_marks.pop(ask.pool_id)
            unambiguous = not pool.posting and mark == pool.postings
            self._credit(now, pool, reply, ask.want)
            if unambiguous:
                pool.balance = reply.balance
                if reply.granted and reply.outstanding != pool.outstanding:
                    raise self._diverged(
                        f"pool {ask.pool_id}: the store leases {reply.outstanding}, "
                        f"this holder knows of {pool.outstanding}"
                    )
            self._check((pool,))
            if not reply.granted:
                decided += self._not_granted(now, pool, ask, reply)
        return decided + self.serve_waiters(now)

    # -- the exchange lane ------------------------------------------------------------------

    def next_exchange(self, now: float, upto: int) -> Exchange | None:
        """The next batch of events up to `upto` (the last durable one) and what pools report.

        None when there is nothing to tell and no heartbeat is due.
        """
        assert self._in_flight is None, "one exchange at a time"
        events = self._next_events(upto)
        covered: dict[int, int] = {}
        short: dict[int, int] = {}
        for event in events:
            for pool_id, part, rest in zip(event.pools, event.covered, event.short, strict=True):
                covered[pool_id] = covered.get(pool_id, 0) + part
                short[pool_id] = short.get(pool_id, 0) + rest
                self._active[self._pool(pool_id, now)] = None
        reports = [
            report
            for pool in self._pools_to_report(now)
            if (report := self._report(now, pool, covered, short))
        ]
        heartbeat = now - self._exchanged_at >= self.settings.heartbeat_seconds
        if not events and not reports and not heartbeat:
            return None
        self._exchanged_at = now
        self._in_flight = Exchange(self.applied_seq + 1, events, reports)
        return self._in_flight

    def exchanged(self, now: float, sent_at: float, replies: Iterable[PoolGrant]) -> None:
        """The store has applied the exchange in flight; it was sent at `sent_at`.

        Replies beyond the reported pools tell what another holder asks back.
        """
        exchange = self._in_flight
        assert exchange is not None, "no exchange in flight"
        self._in_flight = None
        answers: dict[int, PoolGrant] = {}
        for reply in replies:
            answers[reply.pool_id] = reply
            if reply.recall:
                self._recall(reply.pool_id)
        self._pop_events(exchange.last_seq)
        for report in exchange.reports:
            pool = self._pools[report.pool_id]
            answer = answers.get(report.pool_id)
            if answer is None:
                raise self._diverged(f"the store did not answer for pool {report.pool_id}")
            if pool.posting:
                pool.posting = False
                pool.postings += 1
            pool.unposted -= report.covered
            pool.charged -= report.covered + report.short
            pool.balance = answer.balance
            self._set_outstanding(pool, pool.outstanding - report.covered)
            if report.sync:
                self._set_outstanding(pool, pool.outstanding - pool.returning)
                pool.returning = 0
                pool.lane = Lane.IDLE
                pool.recalled = answer.recall
                self._credit(now, pool, answer, report.want)
                if answer.outstanding != pool.outstanding:
                    raise self._diverged(
                        f"pool {pool.pool_id}: the store leases {answer.outstanding}, "
                        f"this holder knows of {pool.outstanding}"
                    )
            if pool.spent_total is not None:
                pool.spent_total += report.covered
                if answer.spent_total != pool.spent_total:
                    raise self._diverged(
                        f"pool {pool.pool_id}: the store counts {answer.spent_total} as spent, "
                        f"this holder {pool.spent_total}"
                    )
            pool.spent_total = answer.spent_total
            self._check((pool,))
        self._refusal = None
        if self._suspect_last is not None and self.applied_seq >= self._suspect_last:
            self._suspect_last = None
        self._acknowledged(sent_at)

    def refused(self, code: str) -> UsageEvent | None:
        """The store refused the exchange in flight: narrow down which event is to blame.

        A batch refused twice alike is halved until one event is left; that one is returned, to be
        quarantined. The session must be reopened in any case. Not for refusals that say nothing
        about the batch (stale epoch, sequence, the store being busy). Raises LedgerDivergence if
        no event can be to blame.
        """
        exchange = self._in_flight
        assert exchange is not None, "no exchange in flight"
        if code == CHECK_VIOLATION:
            raise self._diverged("a pool or lease would break a constraint of the store")
        refusal = (exchange.first_seq, exchange.last_seq, code)
        self._refusals = self._refusals + 1 if refusal == self._refusal else 1
        self._refusal = refusal
        if self._refusals < REFUSALS_BEFORE_BISECTION:
            return None
        self._refusal = None
        if not exchange.events:
            raise self._diverged(f"the store refuses what this holder reports ({code})")
        if len(exchange.events) == 1:
            return exchange.events[0]
        self._suspect_last = exchange.last_seq
        return None

    def quarantined(self, event: UsageEvent) -> None:
        """Replace the event at the head by an empty one, which keeps the sequence contiguous."""
        assert self._events[0].seq == event.seq, "only the first unposted event can be to blame"
        self._reverse(event)
        for pool_id, part in zip(event.pools, event.covered, strict=True):
            if part:
                self._pools[pool_id].returning += part  # free again once the session is reopened
        self._events[0] = emptied(event)
        self._suspect_last = None
        self._quarantined += 1

    # -- what others may know ---------------------------------------------------------------

    @property
    def open_reservations(self) -> int:
        """How many reservations are open."""
        return len(self._open)

    @property
    def pending_events(self) -> int:
        """How many events the store has not acknowledged."""
        return len(self._events)

    @property
    def drained(self) -> bool:
        """Whether the store knows everything and holds no credit for us that is not bound."""
        return not self._events and all(p.outstanding == p.pending for p in self._pools.values())

    def balance(self, account_id: int) -> int | None:
        """The posted balance minus everything charged since; None if the store never said."""
        pool = self._pools.get(account_id)
        return None if pool is None else pool.posted_balance

    def top_up_hint(self, account_id: int) -> None:
        """Credit may have arrived: forget that the account's pool was exhausted."""
        pool = self._pools.get(account_id)
        if pool is not None:
            pool.exhausted_until = 0.0
            pool.scarce_until = 0.0

    def revoke(self, waiters: Iterable[Waiter], reason: str) -> None:
        """What was just granted to `waiters` could not be journalled: refuse them instead."""
        self._records.clear()
        for waiter in waiters:
            if not isinstance(waiter.outcome, Hold):
                continue
            if waiter.hold is None:
                self.undo(waiter.outcome)
            else:
                self.undo_extension(waiter.hold, waiter.amount)
            waiter.outcome = self._unavailable(reason)

    def take_records(self) -> list[Record]:
        """The records written since the last call; to be journalled before anything is answered."""
        records = self._records
        self._records = []
        return records

    def statistics(self, now: float) -> EngineStatistics:
        """A snapshot; iterates over the pools."""
        oldest = next(iter(self._open.values()), None)
        accounts = [pool for pool in self._pools.values() if pool.kind == "account"]
        return EngineStatistics(
            open_reservations=len(self._open),
            oldest_reservation_seconds=now - oldest.opened_at if oldest else 0.0,
            reserved_nusd=sum(pool.pending for pool in accounts),
            leased_nusd=self._leased,
            pending_events=len(self._events),
            oldest_event_seconds=now - self._event_times[0] if self._event_times else 0.0,
            waiting=len(self._waiting),
            pools=len(self._pools),
            applied_seq=self.applied_seq,
            refused_settlements=self._refused_settlements,
            quarantined=self._quarantined,
            overrun_nusd=self._overrun,
            halted=self.halted,
        )

    def check(self) -> None:
        """Every invariant that can be seen from inside; for tests and after doubt."""
        self._check(self._pools.values())
        assert len(self._events) == self.next_seq - self.applied_seq - 1
        for pool in self._pools.values():
            bound = sum(hold.amount for hold in self._open.values() if pool in hold.pools)
            assert bound == pool.pending, f"pool {pool.pool_id}: {bound} bound, {pool.pending}"

    # -- inside -----------------------------------------------------------------------------

    def _recover(self, recovered: RecoveredState, now: float, occurred_at: int) -> None:
        """Rebuild from the journal. What was open died with its worker: voided, charge 0."""
        for event in recovered.events:
            assert event.seq == self.applied_seq + len(self._events) + 1, "a gap in the journal"
            self._events.append(event)
            self._event_times.append(now)
            for pool_id, part, rest in zip(event.pools, event.covered, event.short, strict=True):
                pool = self._pool(pool_id, now)
                pool.unposted += part
                pool.charged += part + rest
                # The lease is unknown until a session is open; H holds with what is certain.
                self._set_outstanding(pool, pool.outstanding + part)
        for reserve in recovered.open.values():
            event = self._event(
                _request_of(reserve),
                provider_id=reserve.provider_id,
                price_id=reserve.price_id,
                status=EventStatus.ORPHANED,
                reserved=reserve.amount,
                cost=0,
                occurred_at=occurred_at,
            )
            self._post(now, event)
            self._records.append(Void(reserve.reservation_id, "orphaned", event))

    def _refuse_unless_admitting(self, now: float) -> None:
        if self.halted:
            raise self._unavailable(self.halted)
        if self.draining:
            raise self._unavailable("draining")
        # Right after the start nothing can be bound yet, but callers may wait for the store.
        if now >= self._valid_until and (self._known or self._is_given_up(now)):
            raise self._unavailable("the database has not answered for too long")
        if len(self._events) >= self.settings.events_max:
            raise self._unavailable("too much usage waits to be posted")

    def _is_given_up(self, now: float) -> bool:
        away = self._away_since
        return away is not None and now - away >= self.settings.patience_seconds

    def _unavailable(self, reason: str) -> LedgerUnavailable:
        return LedgerUnavailable(self.settings.retry_after_seconds, reason)

    def _diverged(self, what: str) -> LedgerDivergence:
        self.halted = f"the books disagree: {what}"
        return LedgerDivergence(what)

    def _check(self, pools: Iterable[HolderPool]) -> None:
        for pool in pools:
            try:
                pool.check()
            except LedgerDivergence as divergence:
                self.halted = f"the books disagree: {divergence}"
                raise

    def _pool(self, pool_id: int, now: float) -> HolderPool:
        pool = self._pools.get(pool_id)
        if pool is None:
            pool = self._pools[pool_id] = HolderPool(pool_id, now)
        return pool

    def _pools_of(self, request: ReservationRequest, now: float) -> tuple[HolderPool, ...]:
        return tuple([self._pool(pool_id, now) for pool_id in request.pools])

    def _set_outstanding(self, pool: HolderPool, outstanding: int) -> None:
        if pool.kind == "account":
            self._leased += outstanding - pool.outstanding
        pool.outstanding = outstanding

    def _target(self, now: float, pool: HolderPool) -> int:
        if self.draining:
            return 0
        target = pool.target(now, self.settings.sizing)
        return target // 2 if self._is_pressed(now) else target

    def _is_pressed(self, now: float) -> bool:
        """Usage is not flowing off, so as little as possible should be at stake."""
        return len(self._events) >= self.settings.events_pressed or (
            bool(self._event_times)
            and now - self._event_times[0] > self.settings.event_pressed_seconds
        )

    # reservations

    def _bind(
        self,
        now: float,
        request: ReservationRequest,
        pools: tuple[HolderPool, ...],
        limits: tuple[LimitState, ...],
    ) -> Hold:
        hold = Hold(self._next_reservation_id, request, pools, limits, now)
        self._next_reservation_id += 1
        amount = hold.amount
        for pool in pools:
            pool.free -= amount
            pool.pending += amount
            pool.used_at = now
            if amount:
                pool.sizes.append(amount)
            self._active[pool] = None
        self._open[hold.id] = hold
        self._records.append(
            Reserve(
                hold.id,
                request.request_id,
                request.account_id,
                request.key_id,
                request.pools,
                amount,
                request.model_id,
                request.provider_id,
                request.price_id,
                request.endpoint,
            )
        )
        self._check(pools)
        return hold

    def _grow(self, now: float, hold: Hold, extra: int) -> None:
        hold.amount += extra
        for pool in hold.pools:
            pool.free -= extra
            pool.pending += extra
            pool.used_at = now
            self._active[pool] = None
        self._records.append(Extend(hold.id, extra))
        self._check(hold.pools)

    def _release(self, hold: Hold) -> None:
        self._open.pop(hold.id, None)
        for pool in hold.pools:
            pool.pending -= hold.amount
            pool.free += hold.amount

    def _close(self, hold: Hold, state: HoldState, used_tokens: int) -> None:
        self._open.pop(hold.id, None)
        hold.state = state
        self.limiter.settle(hold.request.limits, hold.request.tokens, used_tokens)

    def _refuse_closed(self, hold: Hold) -> None:
        if hold.state is not HoldState.OPEN:
            self._refused_settlements += 1
            raise ReservationClosed(f"reservation {hold.id} is {hold.state.value}")

    def _event(
        self,
        request: ReservationRequest,
        *,
        provider_id: int,
        price_id: int,
        status: int,
        reserved: int,
        cost: int,
        occurred_at: int,
        charge: int = 0,
        tokens: TokenCounts | None = None,
        ttfb_ms: int = 0,
        duration_ms: int = 0,
        covered: tuple[int, ...] = (),
    ) -> UsageEvent:
        """The next event of the sequence; without `covered` it charges nothing anywhere."""
        counts = tokens or _NO_TOKENS
        parts = covered or (0,) * len(request.pools)
        return UsageEvent(
            seq=self.next_seq,
            occurred_at=occurred_at,
            request_id=request.request_id,
            account_id=request.account_id,
            key_id=request.key_id,
            model_id=request.model_id,
            provider_id=provider_id,
            price_id=price_id,
            endpoint=request.endpoint,
            status=int(status),
            reserved=reserved,
            cost=cost,
            charge=charge,
            input_tokens=_column(counts.input),
            cached_input_tokens=_column(counts.cached_input),
            output_tokens=_column(counts.output),
            reasoning_tokens=_column(counts.reasoning),
            ttfb_ms=_column(ttfb_ms),
            duration_ms=_column(duration_ms),
            units={unit: _column(quantity) for unit, quantity in counts.units.items()},
            pools=request.pools,
            covered=parts,
            short=tuple([charge - part for part in parts]),
        )

    def _post(self, now: float, event: UsageEvent) -> None:
        self._events.append(event)
        self._event_times.append(now)
        self.next_seq += 1

    # waiting

    def _wait(self, now: float, waiter: Waiter) -> Waiter:
        """Queue for credit, unless it is already known that none will come."""
        amount = waiter.amount
        for pool in waiter.pools:
            if pool.status != PoolStatus.OPEN and (pool.free or now < pool.exhausted_until):
                raise self._insufficient(pool, amount)
            if pool.knows_exhausted(now, amount):
                raise self._insufficient(pool, amount)
        if self._is_given_up(now):
            raise self._unavailable("the database is not reachable")
        if len(self._waiting) >= self.settings.waiters_max:
            raise self._unavailable("too many requests wait for credit")
        self._waiting[waiter] = None
        for pool in waiter.pools:
            self._thirsty.setdefault(pool, {})[waiter] = None
            pool.used_at = now
        return waiter

    def _insufficient(self, pool: HolderPool, required: int) -> LedgerError:
        if pool.kind == "account" and pool.status == PoolStatus.SUSPENDED:
            return AccountSuspended(pool.pool_id)
        return InsufficientCredit(
            pool.pool_id,
            pool.kind,
            balance=pool.posted_balance or 0,
            reserved=pool.pending,
            required=required,
            available=max(pool.available, 0) + pool.free,
        )

    def _lacking(self, pool: HolderPool) -> list[Waiter]:
        return [
            waiter
            for waiter in self._thirsty.get(pool, ())
            if waiter.amount > pool.free or pool.status != PoolStatus.OPEN
        ]

    def _grant(self, now: float, waiter: Waiter) -> bool:
        """Give a waiter that fits what it waits for."""
        if waiter.hold is None:
            self._decide(waiter, self._bind(now, waiter.request, waiter.pools, waiter.limits))
        elif waiter.hold.state is HoldState.OPEN:
            self._grow(now, waiter.hold, waiter.amount)
            self._decide(waiter, waiter.hold)
        else:
            self._decide(waiter, ReservationClosed("settled while waiting for more credit"))
        return True

    def _decide(self, waiter: Waiter, outcome: Hold | LedgerError) -> Waiter:
        waiter.outcome = outcome
        del self._waiting[waiter]
        for pool in waiter.pools:
            waiting = self._thirsty[pool]
            del waiting[waiter]
            if not waiting:
                del self._thirsty[pool]
        if isinstance(outcome, LedgerError) and waiter.hold is None:
            self.limiter.undo(waiter.request.limits, waiter.request.tokens)
        return waiter

    def _not_granted(
        self, now: float, pool: HolderPool, ask: Ask, reply: PoolGrant
    ) -> list[Waiter]:
        """The store has less than anybody needs: retry while others give back, else refuse."""
        if reply.recalled and pool.recalls_asked < RECALL_RETRIES:
            pool.ask_after = now + RECALL_RETRY_SECONDS * 2**pool.recalls_asked
            pool.recalls_asked += 1
            return []
        pool.recalls_asked = 0
        solvent = reply.status == PoolStatus.OPEN and reply.available >= ask.need
        if pool.kind == "account" and solvent:  # nobody is granted anything: not their fault
            return self._refuse_lacking(pool, "no credit is granted at the moment")
        pool.exhausted(now, max(ask.need, 1))
        # Who came, or whose credit came back, since the question was put is asked for anew.
        return [
            self._decide(waiter, self._insufficient(pool, waiter.amount))
            for waiter in self._lacking(pool)
            if waiter.amount - pool.free >= ask.need or pool.status != PoolStatus.OPEN
        ]

    def _refuse_lacking(self, pool: HolderPool, reason: str) -> list[Waiter]:
        return [self._decide(waiter, self._unavailable(reason)) for waiter in self._lacking(pool)]

    def _credit(self, now: float, pool: HolderPool, reply: PoolGrant, want: int) -> None:
        """Take the store's word about a pool, and the credit it granted."""
        pool.status = reply.status
        pool.available = reply.available
        pool.free += reply.granted
        self._set_outstanding(pool, pool.outstanding + reply.granted)
        if reply.granted < want:
            pool.scarce_until = now + SCARCE_SECONDS
        if reply.granted:
            pool.recalls_asked = 0
            pool.exhausted_until = 0.0
        if pool.free and (reply.granted < want or reply.status != PoolStatus.OPEN):
            self._active[pool] = None  # the next exchange gives back

    # posting

    def _next_events(self, upto: int) -> list[UsageEvent]:
        count = min(len(self._events), upto - self.applied_seq, self.settings.batch_max)
        if self._suspect_last is not None:
            count = min(count, max((self._suspect_last - self.applied_seq) // 2, 1))
        return list(itertools.islice(self._events, max(count, 0)))

    def _pools_to_report(self, now: float) -> list[HolderPool]:
        """Pools with news; now and then all of them, to find the idle ones."""
        if self.draining or now - self._scanned_at >= self.settings.heartbeat_seconds:
            self._scanned_at = now
            self._forget_unused(now)
            self._active.clear()
            return list(self._pools.values())
        active = list(self._active)
        self._active.clear()
        return active

    def _forget_unused(self, now: float) -> None:
        bound = {pool for hold in self._open.values() for pool in hold.pools}
        for pool in list(self._pools.values()):
            held = pool.outstanding or pool.charged or pool in bound or pool in self._thirsty
            if not held and now - pool.used_at >= FORGET_SECONDS:
                del self._pools[pool.pool_id]

    def _report(
        self, now: float, pool: HolderPool, covered: Mapping[int, int], short: Mapping[int, int]
    ) -> PoolReport | None:
        """One pool's section, after taking what goes back out of `free`; None without news."""
        posts = pool.pool_id in covered
        part, rest = covered.get(pool.pool_id, 0), short.get(pool.pool_id, 0)
        # A pool that somebody waits for is left to the grant lane, which is quicker.
        sync = pool.lane is Lane.IDLE and pool not in self._thirsty
        want = 0
        if sync:
            target = self._target(now, pool)
            pool.returning = pool.surplus(target)
            pool.free -= pool.returning
            want = pool.shortage(now, target)
            if pool.kind == "account":
                want = max(min(want, self.settings.exposure_max - self._leased), 0)
        else:
            self._active[pool] = None
        if not posts and not pool.returning and not want:
            return None
        pool.posting = posts
        if sync:
            pool.lane = Lane.EXCHANGE
        held = pool.free + pool.pending + pool.unposted - part
        return PoolReport(pool.pool_id, part, rest, sync, held, pool.pending, 0, want)

    def _recall(self, pool_id: int) -> None:
        pool = self._pools.get(pool_id)
        if pool is not None:
            pool.recalled = True
            self._active[pool] = None

    def _acknowledged(self, sent_at: float) -> None:
        self._valid_until = max(self._valid_until, sent_at + self.settings.validity_seconds)

    def _pop_events(self, last_seq: int) -> None:
        while self._events and self._events[0].seq <= last_seq:
            self._events.popleft()
            self._event_times.popleft()
        self.applied_seq = max(self.applied_seq, last_seq)

    def _drop_events(self, applied_seq: int) -> None:
        """The store has applied these although its answer was lost."""
        for event in itertools.takewhile(lambda e: e.seq <= applied_seq, self._events):
            self._reverse(event, posted=True)
        self._pop_events(applied_seq)

    def _reverse(self, event: UsageEvent, *, posted: bool = False) -> None:
        """Take an event's charges out of the pools' unposted credit."""
        for pool_id, part, rest in zip(event.pools, event.covered, event.short, strict=True):
            if not part and not rest:
                continue  # such a pool may have been forgotten
            pool = self._pools[pool_id]
            pool.unposted -= part
            pool.charged -= part + rest
            if posted and pool.balance is not None:
                pool.balance -= part + rest


_NO_TOKENS = TokenCounts()


def _column(value: int) -> int:
    return min(max(value, 0), TOKENS_MAX)


def _request_of(reserve: Reserve) -> ReservationRequest:
    """The request of a reservation that the journal remembers."""
    return ReservationRequest(
        request_id=reserve.request_id,
        account_id=reserve.account_id,
        key_id=reserve.key_id,
        pools=reserve.pools,
        amount=reserve.amount,
        tokens=0,
        limits=(),
        model_id=reserve.model_id,
        provider_id=reserve.provider_id,
        price_id=reserve.price_id,
        endpoint=reserve.endpoint,
    )


def _unknown_pool(ask: Ask) -> PoolGrant:
    """The store's silence about a pool: it does not exist, so it has no credit."""
    return PoolGrant(ask.pool_id, 0, 0, 0, 0, 0, int(PoolStatus.OPEN))
