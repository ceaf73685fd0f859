"""What a holder tells the store, and what it makes of the answers: the sans-IO half of both lanes.

*Exchange* posts the next run of events and reports, for every pool with news, the absolute credit
still held; the store sets the lease to that plus what it grants. *Grant* asks for more where
somebody waits. `session_opened` tells after any uncertain outcome what really happened.

Rules
1. A pool takes part in at most one request at a time; events of a pool may be posted while it is
   in the grant lane (posting only subtracts, granting only adds), but it is then not reported.
2. Credit leaves `free` before the store is told (`returning`) and enters it by the store's answer.
3. What the store says is compared with what this holder knows: a difference halts, nothing is
   repaired. The exceptions are failures of the store that it admits itself: a reclaimed holder
   (its leases are gone), and a failover that lost what had been acknowledged.
"""

from __future__ import annotations

import enum
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from ledger.book import Book
from ledger.errors import (
    AccountSuspended,
    InsufficientCredit,
    LedgerError,
    LedgerUnavailable,
)
from ledger.money import AMOUNT_MAX
from ledger.pool import SCARCE_SECONDS, HolderPool, Lane, Sizing
from ledger.reservation import Waiter
from ledger.store import (
    Ask,
    HolderState,
    PoolGrant,
    PoolId,
    PoolReport,
    PoolStatus,
    Session,
    UsageEvent,
)
from ledger.waiting import WaitingRoom

FORGET_SECONDS = 900.0
RECALL_RETRIES = 4
RECALL_RETRY_SECONDS = 0.02
BOUND_RETRIES = 2  # where others have credit, but were using all of it
RECALL_SECONDS = 0.35  # callers give up after half a second, and shall hear a reason before
OVERDUE_SECONDS = 0.05
CHECK_VIOLATION = "23514"  # SQLSTATE
_EXPOSED = "this node may not lease more credit"


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


class Phase(enum.Enum):
    """Whether a holder takes part in the life of its pools."""

    SERVING = "serving"
    DRAINING = "draining"  # told to end: post everything, give everything back
    RECLAIMED = "reclaimed"  # its leases were given away: post what is left, then begin anew


class Lanes:
    """Decides what is sent on either lane, and applies what comes back."""

    def __init__(self, book: Book, room: WaitingRoom, settings: EngineSettings, now: float) -> None:
        self.settings = settings
        self.phase = Phase.SERVING
        self.valid_until = now
        self.away_since: float | None = now
        self.known = False  # whether any session was ever open
        self._book = book
        self._room = room
        self._exchanged_at = now
        self._scanned_at = now
        self._in_flight: Exchange | None = None
        self._grant_marks: dict[int, int] = {}
        self._wanted = 0  # of account pools, on its way to the store
        self._cramped_until = 0.0  # until then nothing is leased ahead of need
        self.exchange_wanted = False
        """Whether the next exchange should begin at once: somebody waits for what it gives back."""

    # -- sessions -----------------------------------------------------------------------------

    def restore(self, now: float, lost: Sequence[UsageEvent]) -> None:
        """The store has lost events that it had acknowledged: here they are again, in order."""
        book = self._book
        book.outbox.restore(now, lost)
        for event in lost:
            book.owe(now, event)

    def missing(self, session: Session) -> Mapping[PoolId, int]:
        """What is bound or spent beyond the lease the store knows of, as absolute leases.

        Only a failover that lost grants makes this so; the store must attest it before
        `session_opened`. Free credit is not claimed: it is simply gone.
        """
        if session.state is HolderState.RECLAIMED:
            return {}
        bound = {pool.pool_id: pool.pending + pool.unposted for pool in self._book.pools}
        for event in self._book.outbox.events:
            if event.seq > session.applied_seq:
                break
            for pool, part, _ in self._book.charges(event):
                bound[pool.pool_id] -= part
        leases = session.leases
        return {pool: held for pool, held in bound.items() if held > leases.get(pool, 0)}

    def session_opened(
        self,
        now: float,
        sent_at: float,
        session: Session,
    ) -> None:
        """The store's word on what happened: drop what it has applied, recompute all the rest."""
        book, outbox = self._book, self._book.outbox
        if session.applied_seq < outbox.applied_seq:
            raise book.diverged(
                f"the store knows events up to {session.applied_seq}, "
                f"but has acknowledged {outbox.applied_seq}"
            )
        for event in outbox.applied(session.applied_seq):
            for pool, part, rest in book.charges(event):
                if pool.balance is not None:
                    pool.balance -= part + rest
        self._in_flight = None
        self._grant_marks.clear()
        self._wanted = 0
        if session.state is HolderState.RECLAIMED:
            self._be_reclaimed()
        for pool_id in session.leases:
            book.pool(pool_id, now)
        for pool in book.pools:
            pool.lane = Lane.IDLE
            pool.posting = False
            pool.returning = pool.unposted = pool.charged = 0
            pool.spent_total = None
        for event in outbox.events:
            for pool, part, rest in book.charges(event):
                pool.unposted += part
                pool.charged += part + rest
        for pool in book.pools:
            book.set_outstanding(pool, session.leases.get(pool.pool_id, 0))
            pool.free = pool.outstanding - pool.pending - pool.unposted
            book.active[pool] = None
        book.check(book.pools)
        self.away_since = None
        self.known = True
        self._acknowledged(sent_at)

    def session_lost(self, now: float) -> None:
        """An outcome is uncertain: serve from what is free, ask nothing until reopened."""
        if self.away_since is None:
            self.away_since = now

    def is_given_up(self, now: float) -> bool:
        """Whether the store has been away for longer than anybody should wait for it."""
        away = self.away_since
        return away is not None and now - away >= self.settings.patience_seconds

    @property
    def finished(self) -> bool:
        """Whether the store knows everything and holds no credit for us that is not bound."""
        book = self._book
        return not len(book.outbox.events) and all(p.outstanding == p.pending for p in book.pools)

    def _be_reclaimed(self) -> None:
        """Nothing is leased any more, so nothing is bound or covered; see `Outbox.uncover`."""
        self.phase = Phase.RECLAIMED
        book = self._book
        book.outbox.uncover()
        for pool in book.pools:
            pool.pending = 0
        for hold in book.open.values():
            hold.amount = 0

    # -- the grant lane -----------------------------------------------------------------------

    def next_asks(self, now: float) -> tuple[list[Ask], list[tuple[Waiter, LedgerError]]]:
        """What to ask the store for, and who is refused because it must not be asked."""
        asks: list[Ask] = []
        refused: list[tuple[Waiter, LedgerError]] = []
        if self.phase is Phase.RECLAIMED:
            return [], self._refusing(self._room, self.phase.value)
        for pool in self._room.pools:
            if pool.lane is not Lane.IDLE:
                continue
            waiting = self._lacking(pool)
            if not (askable := _askable(now, pool, waiting)):
                continue
            need = _most_urgent(now, askable).amount - pool.free
            want = self._target(now, pool) + sum(w.amount for w in waiting) - pool.free
            want = min(max(want, need), AMOUNT_MAX)
            if pool.kind == "account":
                left = self._exposure_left(pool)
                if need > left and pool.available >= need:
                    refused += self._exposed(now, pool)
                    continue
                want = min(want, left) if need <= left else 0  # else to know whether it is there
                self._wanted += want
            pool.lane = Lane.GRANT
            self._grant_marks[pool.pool_id] = pool.postings
            asks.append(Ask(pool.pool_id, need, want))
        return asks, refused

    def granted(
        self, now: float, asks: Sequence[Ask], replies: Iterable[PoolGrant]
    ) -> list[tuple[Waiter, LedgerError]]:
        """The store has answered `asks`: whom that refuses. Others may fit now."""
        answers = {reply.pool_id: reply for reply in replies}
        refused: list[tuple[Waiter, LedgerError]] = []
        for ask in asks:
            pool = self._book.pool(ask.pool_id, now)
            pool.lane = Lane.IDLE
            if pool.kind == "account":
                self._wanted -= ask.want
            reply = answers.get(ask.pool_id) or _unknown_pool(ask)
            # With a posting under way meanwhile, the reply shows the lease before or after it.
            mark = self._grant_marks.pop(ask.pool_id)
            unambiguous = not pool.posting and mark == pool.postings
            self._credit(now, pool, reply, ask.want)
            if unambiguous:
                pool.balance = reply.balance
                if reply.granted and reply.outstanding != pool.outstanding:
                    raise self._book.diverged(
                        f"pool {ask.pool_id}: the store leases {reply.outstanding}, "
                        f"this holder knows of {pool.outstanding}"
                    )
            self._book.check((pool,))
            if not reply.granted:
                refused += self._not_granted(now, pool, ask, reply)
            if pool.recalled and pool.free:
                self.exchange_wanted = True
        return refused

    def refusal(self, pool: HolderPool, required: int) -> LedgerError:
        """Why `required` cannot be had from this pool."""
        if pool.kind == "account" and pool.status == PoolStatus.SUSPENDED:
            return AccountSuspended(pool.pool_id)
        balance = pool.posted_balance or 0
        available = max(pool.available, 0) + pool.free
        return InsufficientCredit(
            pool.pool_id,
            pool.kind,
            balance=balance,
            reserved=max(balance - available, pool.pending),  # of other nodes as well
            required=required,
            available=available,
        )

    def unavailable(self, reason: str) -> LedgerUnavailable:
        """The ledger cannot know now."""
        return LedgerUnavailable(self.settings.retry_after_seconds, reason)

    def _lacking(self, pool: HolderPool) -> list[Waiter]:
        return [
            waiter
            for waiter in self._room.at(pool)
            if waiter.amount > pool.free or pool.status != PoolStatus.OPEN
        ]

    def _not_granted(
        self, now: float, pool: HolderPool, ask: Ask, reply: PoolGrant
    ) -> list[tuple[Waiter, LedgerError]]:
        """The store has less than was asked for: retry while others give back, else refuse.

        That decides about everybody who needs more than there is, whoever was asked for.
        """
        if pool.kind == "account" and not ask.want and reply.available >= ask.need:
            return self._exposed(now, pool)
        short_of = max(min(ask.need, reply.available + 1), 1)
        elsewhere = reply.balance > reply.available + reply.outstanding
        concerned = [
            waiter
            for waiter in self._lacking(pool)
            if waiter.amount - pool.free >= short_of or pool.status != PoolStatus.OPEN
        ]
        retries = RECALL_RETRIES if reply.recalled else BOUND_RETRIES if elsewhere else 0
        retry_at = now + RECALL_RETRY_SECONDS * 2**pool.recalls_asked
        in_time = all(retry_at - waiter.since < RECALL_SECONDS for waiter in concerned)
        if pool.recalls_asked < retries and in_time:
            pool.ask_after = retry_at
            pool.short_of = short_of + pool.free
            pool.recalls_asked += 1
            return []
        pool.recalls_asked = pool.short_of = 0
        solvent = reply.status == PoolStatus.OPEN and reply.available >= ask.need
        if pool.kind == "account" and solvent:  # nobody is granted anything: not their fault
            return self._refusing(self._lacking(pool), "no credit is granted at the moment")
        pool.exhausted(now, short_of)
        return [(waiter, self.refusal(pool, waiter.amount)) for waiter in concerned]

    def _refusing(self, waiters: Iterable[Waiter], reason: str) -> list[tuple[Waiter, LedgerError]]:
        return [(waiter, self.unavailable(reason)) for waiter in waiters]

    def _credit(self, now: float, pool: HolderPool, reply: PoolGrant, want: int) -> None:
        """Take the store's word about a pool, and the credit it granted."""
        pool.status = reply.status
        pool.available = reply.available
        pool.free += reply.granted
        self._book.set_outstanding(pool, pool.outstanding + reply.granted)
        if reply.granted < want:
            pool.scarce_until = now + SCARCE_SECONDS
        if reply.granted:
            pool.recalls_asked = 0
            pool.exhausted_until = 0.0
        if pool.free and (reply.granted < want or reply.status != PoolStatus.OPEN):
            self._book.active[pool] = None  # the next exchange gives back

    # -- the exchange lane --------------------------------------------------------------------

    def next_exchange(self, now: float, upto: int) -> Exchange | None:
        """The next batch of events up to `upto` (the last durable one) and what pools report.

        None when there is nothing to tell and no heartbeat is due.
        """
        assert self._in_flight is None, "one exchange at a time"
        self.exchange_wanted = False
        book = self._book
        book.check_moved()
        events = book.outbox.batch(upto, self.settings.batch_max)
        covered: defaultdict[int, int] = defaultdict(int)
        short: defaultdict[int, int] = defaultdict(int)
        for event in events:
            # `strict` would take as long as all of it.
            for pool_id, part, rest in zip(event.pools, event.covered, event.short):  # noqa: B905
                covered[pool_id] += part
                if rest:
                    short[pool_id] += rest
        for pool_id in covered:
            book.active[book.pool(pool_id, now)] = None
        reports = [
            report
            for pool in self._pools_to_report(now)
            if (report := self._report(now, pool, covered, short))
        ]
        heartbeat = now - self._exchanged_at >= self.settings.heartbeat_seconds
        if not events and not reports and not heartbeat:
            return None
        self._exchanged_at = now
        self._in_flight = Exchange(book.outbox.applied_seq + 1, events, reports)
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
                self.recall(reply.pool_id)
        self._book.outbox.applied(exchange.last_seq)
        self._book.outbox.accepted()
        for report in exchange.reports:
            answer = answers.get(report.pool_id)
            if answer is None:
                raise self._book.diverged(f"the store did not answer for pool {report.pool_id}")
            self._answered(now, report, answer)
        self._acknowledged(sent_at)

    def _answered(self, now: float, report: PoolReport, answer: PoolGrant) -> None:
        book = self._book
        pool = book.pool(report.pool_id, now)
        if pool.posting:
            pool.posting = False
            pool.postings += 1
        pool.unposted -= report.covered
        pool.charged -= report.covered + report.short
        pool.balance = answer.balance
        book.set_outstanding(pool, pool.outstanding - report.covered)
        if report.sync:
            book.set_outstanding(pool, pool.outstanding - pool.returning)
            pool.returning = 0
            pool.lane = Lane.IDLE
            if pool.kind == "account":
                self._wanted -= report.want
            if pool.recalled:  # somebody else was short
                pool.scarce_until = now + SCARCE_SECONDS
            pool.recalled = answer.recall
            self._credit(now, pool, answer, report.want)
            if answer.outstanding != pool.outstanding:
                raise book.diverged(
                    f"pool {pool.pool_id}: the store leases {answer.outstanding}, "
                    f"this holder knows of {pool.outstanding}"
                )
        if pool.spent_total is not None:
            pool.spent_total += report.covered
            if answer.spent_total != pool.spent_total:
                raise book.diverged(
                    f"pool {pool.pool_id}: the store counts {answer.spent_total} as spent, "
                    f"this holder {pool.spent_total}"
                )
        pool.spent_total = answer.spent_total
        book.check((pool,))

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
            raise self._book.diverged("a pool or lease would break a constraint of the store")
        if not self._book.outbox.refused_twice(exchange.first_seq, exchange.last_seq, code):
            return None
        if not exchange.events:
            raise self._book.diverged(f"the store refuses what this holder reports ({code})")
        if len(exchange.events) == 1:
            return exchange.events[0]
        self._book.outbox.suspect(exchange.last_seq)
        return None

    def quarantined(self, event: UsageEvent) -> None:
        """Replace the event at the head by an empty one, which keeps the sequence contiguous."""
        for pool, part, rest in self._book.charges(event):
            pool.unposted -= part
            pool.charged -= part + rest
            pool.returning += part  # free again once the session is reopened
        self._book.outbox.empty_first(event)

    def recall(self, pool_id: int) -> None:
        """Another holder needs this pool's credit: the next exchange gives back what is free."""
        pool = self._book.find_pool(pool_id)
        if pool is not None:
            pool.recalled = True
            self._book.active[pool] = None

    def is_pressed(self, now: float) -> bool:
        """Usage is not flowing off, so as little as possible should be at stake."""
        outbox, settings = self._book.outbox, self.settings
        return (
            len(outbox.events) >= settings.events_pressed
            or outbox.oldest_seconds(now) > settings.event_pressed_seconds
        )

    def _exposure_left(self, pool: HolderPool) -> int:
        """How much more may be leased for an account; all that could be granted counts.

        The last tenth is for accounts with less than a hundredth, so that a few large ones cannot
        stop everybody else.
        """
        most = self.settings.exposure_max
        left = most - self._book.leased - self._wanted
        small = most // 100 - pool.outstanding
        return max(left - most // 10, min(left, small))

    def _exposed(self, now: float, pool: HolderPool) -> list[tuple[Waiter, LedgerError]]:
        """More is needed than may be leased: refuse, but wait while others give back."""
        lacking = self._lacking(pool)
        if self._makes_room(now, pool):
            lacking = [waiter for waiter in lacking if now - waiter.since >= RECALL_SECONDS]
        return self._refusing(lacking, _EXPOSED)

    def _makes_room(self, now: float, pool: HolderPool) -> bool:
        """Whether other accounts' pools give back what nobody uses, so that more may be leased."""
        if now < self._cramped_until:
            return True
        others = [each for each in self._book.pools if each.kind == "account" and each is not pool]
        idle = [each for each in others if each.free]
        if not idle:
            return False
        self._cramped_until = now + SCARCE_SECONDS
        self._book.active.update(dict.fromkeys(idle))
        self.exchange_wanted = True
        return True

    def _target(self, now: float, pool: HolderPool) -> int:
        if self.phase is not Phase.SERVING or now < self._cramped_until:
            return 0
        target = pool.target(now, self.settings.sizing)
        return target // 2 if self.is_pressed(now) else target

    def _pools_to_report(self, now: float) -> list[HolderPool]:
        """Pools with news; now and then all of them, to find the idle ones."""
        book = self._book
        overdue = now - self._scanned_at >= self.settings.heartbeat_seconds
        if overdue or self.phase is not Phase.SERVING:
            self._scanned_at = now
            self._forget_unused(now)
            book.active.clear()
            return list(book.pools)
        active = list(book.active)
        book.active.clear()
        return active

    def _forget_unused(self, now: float) -> None:
        book = self._book
        used = {pool for hold in book.open.values() for pool in hold.pools}
        used.update(pool for waiter in self._room for pool in waiter.pools)
        for pool in list(book.pools):
            held = pool.outstanding or pool.charged or pool in used
            if not held and now - pool.used_at >= FORGET_SECONDS:
                book.forget(pool)

    def _report(
        self, now: float, pool: HolderPool, covered: Mapping[int, int], short: Mapping[int, int]
    ) -> PoolReport | None:
        """One pool's section, after taking what goes back out of `free`; None without news."""
        book = self._book
        posts = pool.pool_id in covered
        part, rest = covered.get(pool.pool_id, 0), short.get(pool.pool_id, 0)
        # A pool that somebody waits for is left to the grant lane, which is quicker. Unless it is
        # recalled: two holders that wait, each for what the other has, would both be refused.
        sync = pool.lane is Lane.IDLE and (pool.recalled or not self._room.is_awaited(pool))
        want = 0
        if sync:
            target = self._target(now, pool)
            pool.returning = pool.surplus(target)
            pool.free -= pool.returning
            want = pool.shortage(now, target)
            if pool.kind == "account":
                want = max(min(want, self._exposure_left(pool)), 0)
                self._wanted += want
        else:
            book.active[pool] = None
        # What is not bound any more others may ask back, once the store knows.
        freed = sync and pool.pending < pool.told_pending
        if not (posts or pool.returning or want or freed):
            return None
        pool.posting = posts
        if sync:
            pool.lane = Lane.EXCHANGE
            pool.told_pending = pool.pending
        held = pool.free + pool.pending + pool.unposted - part
        return PoolReport(pool.pool_id, part, rest, sync, held, pool.pending, 0, want)

    def _acknowledged(self, sent_at: float) -> None:
        self.valid_until = max(self.valid_until, sent_at + self.settings.validity_seconds)


def _askable(now: float, pool: HolderPool, lacking: Sequence[Waiter]) -> list[Waiter]:
    """For whom to ask: while others give back, only for who needs less than what was refused."""
    if now >= pool.ask_after or pool.status != PoolStatus.OPEN:
        return list(lacking)
    return [waiter for waiter in lacking if waiter.amount < pool.short_of]


def _most_urgent(now: float, waiters: Sequence[Waiter]) -> Waiter:
    """Whose need decides whether anything is granted: the smallest, as most can be served then.

    Who has waited for long comes first, or it would not be decided as long as smaller ones come.
    """
    first = waiters[0]
    if now - first.since >= OVERDUE_SECONDS:
        return first
    return min(waiters, key=lambda waiter: waiter.amount)


def _unknown_pool(ask: Ask) -> PoolGrant:
    """The store's silence about a pool: it does not exist, so it has no credit."""
    return PoolGrant(ask.pool_id, 0, 0, 0, 0, 0, int(PoolStatus.OPEN))
