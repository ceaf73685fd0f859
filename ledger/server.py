"""The lease holder at work: the engine, its journal, and two lanes to the store.

Workers say messages (`ledger.messages`) through a link (`ledger.link`), in this process or another.
`handle` is synchronous: what happened is journalled before it is answered, and nothing waits for
the store. `run` keeps a session with the store and drives the lanes: *exchange* posts events and
moves surplus (every `flush_seconds`, one at a time, only what is already durable), *grant* gets
credit for those who wait.

Rules
- Any uncertain outcome on either lane ends the session; both lanes stop and a new one is opened,
  which tells what happened. So no reply is ever guessed.
- The store may be away: admission goes on from leases until they are used up or too old,
  settlements always proceed, and opening a session is retried with full jitter.
- If the two sides' books disagree, nothing more is admitted, posted or repaired. A store that says
  itself that it has lost what it had acknowledged (another timeline, after a failover) gets it
  again from the journal, and what is bound is attested.
- A holder whose leases were given away because it was silent for too long posts what it has, then
  begins anew as another holder.
- Leaving `run` by cancellation still posts everything and gives all credit back, for at most
  `close_seconds`; the journal has what is left.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import random
import time
from collections.abc import Awaitable, Callable, Container, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import trio

from ledger import messages
from ledger.engine import Engine, EngineSettings, EngineStatistics
from ledger.errors import LedgerDivergence, LedgerError, LedgerUnavailable
from ledger.journal import JournalFailed, JournalFull, RecoveredState
from ledger.lanes import Exchange, Phase
from ledger.limits import LimiterPort
from ledger.messages import Message, Reply, facts_of
from ledger.records import Extend, Record, Reserve, Timeline, Worker
from ledger.reservation import Hold, Waiter, instance_of
from ledger.store import (
    Ask,
    HolderState,
    LedgerStore,
    PoolGrant,
    RecallHint,
    Session,
    StoreError,
    StoreRefused,
    StoreUncertain,
    UsageEvent,
)
from ledger.valkey import QuotaLane, QuotasPort

log = logging.getLogger(__name__)

FlushObserver = Callable[[float, int], None]
_T = TypeVar("_T")

_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)  # elsewhere the latter counts it

_OTHERS_EPOCH = frozenset({"LE001", "LE002"})
_UNKNOWN_POOL = "LE004"
_HOLDER_CLOSED = "LE006"
# SQLSTATE classes that speak of the database, not of the batch: connection, rollback, resources,
# not in the right state (locks), operator intervention, system.
_NOT_THE_BATCH = ("08", "40", "53", "55", "57", "58")


class JournalPort(Protocol):
    """What the server needs of `journal.Journal`."""

    journal_id: bytes
    synced: int

    def append(self, records: Sequence[Record]) -> int: ...

    async def sync(self, upto: int) -> None: ...

    def acknowledge(self, applied_seq: int) -> None: ...

    def headroom(self, open_reservations: int) -> bool: ...

    async def events_after(self, applied_seq: int) -> list[UsageEvent]: ...

    def begin_anew(self) -> None: ...

    async def run(self) -> None: ...

    def close(self) -> None: ...


class Peer(Protocol):
    """A worker as the server sees it: where answers go."""

    def send(self, replies: Sequence[Reply]) -> None: ...


@dataclass(frozen=True, slots=True)
class LedgerSettings:
    """Times of the lanes, in seconds, and the engine's bounds."""

    engine: EngineSettings = field(default_factory=EngineSettings)
    node: str = "local"
    max_request_seconds: float = 900.0
    flush_seconds: float = 0.25
    flush_events: int = 2_000
    linger_seconds: float = 0.002
    store_seconds: float = 15.0
    retry_min_seconds: float = 0.05
    retry_max_seconds: float = 2.0
    close_seconds: float = 15.0


@dataclass(frozen=True, slots=True)
class LedgerStatistics(EngineStatistics):
    """The holder's state for metrics and tests."""

    connected: bool
    sessions: int
    flushes: int
    last_flush_seconds: float
    workers: int


def boottime() -> float:
    """Seconds that never go back and count suspend: a paused machine sees that time has passed."""
    return time.clock_gettime(_CLOCK)


def wall_microseconds() -> int:
    """The time of day, for `occurred_at` only."""
    return time.time_ns() // 1000


class _Batch:
    """Messages that are handled together: one write to the journal, then the answers."""

    __slots__ = ("grown", "made", "replies")

    def __init__(self) -> None:
        self.replies: list[Reply] = []
        self.made: list[Hold] = []
        self.grown: list[tuple[Hold, int]] = []


class LedgerServer:
    """One lease holder. Belongs to one trio thread; `run` must be running for anything to flow."""

    def __init__(
        self,
        store: LedgerStore,
        journal: JournalPort,
        recovered: RecoveredState,
        *,
        alive: Container[int] = (),
        settings: LedgerSettings | None = None,
        fleet: tuple[LimiterPort, QuotasPort] | None = None,
        clock: Callable[[], float] = boottime,
        wall_clock: Callable[[], int] = wall_microseconds,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        """`alive` are the workers of the journal whose processes still run: they will be back.

        `fleet` is how limits are shared with other nodes, if they are.
        """
        self.settings = settings or LedgerSettings()
        self.observers: list[FlushObserver] = []
        self._store = store
        self._journal = journal
        self._clock = clock
        self._wall_clock = wall_clock
        self._jitter = jitter
        self.engine = Engine(
            recovered,
            now=clock(),
            occurred_at=wall_clock(),
            alive=alive,
            settings=self.settings.engine,
            limiter=fleet[0] if fleet else None,
        )
        self._quota_lane = (
            QuotaLane(*fleet, clock=clock, decided=self._serve_deferred) if fleet else None
        )
        self._workers: dict[int, Worker] = {
            number: worker for number, worker in recovered.workers.items() if number in alive
        }
        self._recovered_seq = recovered.next_seq
        self._peers: dict[int, Peer] = {}
        self._position = 0
        self._journal_failed: JournalFailed | None = None
        self._divergence: LedgerDivergence | None = None
        self._drain_tried = False
        self._session: Session | None = None
        self._timeline = recovered.timeline
        self._applied_max = recovered.acked_seq
        self._forgiven = ""  # the timeline that has explained a divergence
        self._sessions = 0
        self._flushes = 0
        self._last_flush_seconds = 0.0
        self._awaiting_flush: list[tuple[Peer, int, int]] = []  # with the number to reach
        self._flush_due = trio.Event()
        self._credit_wanted = trio.Event()
        self._closing = trio.Event()
        self._closed = trio.Event()
        self._journal_scope = trio.CancelScope(shield=True)
        self._serving = trio.CancelScope()
        self._journalise_settlements()  # what recovery decided

    # -- workers ------------------------------------------------------------------------------

    def join(self, peer: Peer, hello: messages.Hello) -> bool:
        """A worker introduces itself, or comes back. False if another goes by its number.

        What it had open and does not know any more is voided.
        """
        worker = Worker(hello.instance, hello.pid, hello.started)
        known = self._workers.get(hello.instance)
        if known is None:
            self._workers[hello.instance] = worker
            self.engine.worker_known(worker)
        elif known != worker:
            return False
        self._peers[hello.instance] = peer
        self.engine.attest(self._clock(), hello.instance, hello.open, self._wall_clock())
        self._journalise_settlements()
        return True

    def leave(self, instance: int) -> None:
        """A worker's process has ended: void what it left open."""
        self._peers.pop(instance, None)
        if self._workers.pop(instance, None) is not None:
            self.engine.worker_gone(self._clock(), instance, self._wall_clock())
            self._journalise_settlements()

    @property
    def workers(self) -> list[Worker]:
        """Every worker that has not ended, connected or not."""
        return list(self._workers.values())

    def disconnect(self, instance: int, peer: Peer) -> None:
        """The link of a worker broke; it may come back with another."""
        if self._peers.get(instance) is peer:
            del self._peers[instance]

    def handle(self, peer: Peer, said: Iterable[Message]) -> None:
        """Do what a worker says, journal it, answer.

        Without a journal nothing is answered: the worker will say it again to who comes after us.
        """
        if self._journal_failed is not None:
            return
        now = self._clock()
        batch = _Batch()
        for message in said:
            match message:
                case messages.Reserve():
                    self._reserve(now, batch, message)
                case messages.Settle():
                    self._settle(now, batch, message)
                case messages.Void():
                    self._void(now, batch, message)
                case messages.Extend():
                    self._extend(now, batch, message)
                case messages.Attempt():
                    self._attempt(now, message)
                case messages.Flush():
                    self._flush(peer, batch, message)
                case messages.CreditHint():
                    self.engine.credit_hint(message.account_id)
                case messages.Hello():
                    raise AssertionError("a worker introduces itself once a link")
        self._journalise_batch(now, batch)
        if batch.replies and self._journal_failed is None:
            peer.send(batch.replies)

    def _reserve(self, now: float, batch: _Batch, message: messages.Reserve) -> None:
        engine, number = self.engine, message.reservation_id
        hold = engine.find(number)
        if hold is None:
            if engine.awaits(number):
                return
            try:
                if not self._has_room():
                    raise self._unavailable("the journal is full")
                outcome = engine.reserve(now, number, message.request)
            except LedgerError as error:
                batch.replies.append(messages.Refused(number, facts_of(error)))
                return
            if type(outcome) is Waiter:
                self._credit_wanted.set()
                if self._quota_lane is not None:
                    self._quota_lane.wake()
                return
            assert type(outcome) is Hold
            hold = outcome
            batch.made.append(hold)
        batch.replies.append(messages.Reserved(number, hold.amount, hold.limits))

    def _extend(self, now: float, batch: _Batch, message: messages.Extend) -> None:
        hold = self.engine.find(message.reservation_id)
        if hold is None:
            batch.replies.append(messages.Extended(message.reservation_id, message.amount, 0))
            return
        before = hold.amount
        wanted = message.amount if self._has_room() else before
        outcome = self.engine.extend(now, hold, wanted)
        if isinstance(outcome, Waiter):
            self._credit_wanted.set()
            return
        if outcome > before:
            batch.grown.append((hold, outcome - before))
        batch.replies.append(messages.Extended(hold.id, message.amount, outcome))

    def _has_room(self) -> bool:
        """Whether the journal can take one more, and the end of all that are open or wait."""
        engine = self.engine
        return self._journal.headroom(engine.open_reservations + len(engine.room))

    def _attempt(self, now: float, message: messages.Attempt) -> None:
        hold = self.engine.find(message.reservation_id)
        if hold is None:
            self.engine.refused_settlement()
        else:
            self.engine.attempt(now, hold, message.ordinal, message.settlement)

    def _settle(self, now: float, batch: _Batch, message: messages.Settle) -> None:
        hold = self.engine.find(message.reservation_id)
        balance = None
        if hold is None:  # settled before, or its worker was taken for dead
            self.engine.refused_settlement()
        else:
            self.engine.settle(now, hold, message.settlement)
            self._return_scarce(now, hold)
            balance = self.engine.balance(hold.request.account_id)
        batch.replies.append(messages.Closed(message.reservation_id, balance))

    def _void(self, now: float, batch: _Batch, message: messages.Void) -> None:
        hold = self.engine.find(message.reservation_id)
        if hold is None:
            self.engine.withdraw(message.reservation_id)
        else:
            self.engine.void(now, hold, message.settlement)
            self._return_scarce(now, hold)
        batch.replies.append(messages.Closed(message.reservation_id, None))

    def _return_scarce(self, now: float, hold: Hold) -> None:
        """What it no longer holds of a scarce pool is worth an exchange of its own."""
        if any(pool.is_scarce(now) for pool in hold.pools):
            self._flush_due.set()

    def _flush(self, peer: Peer, batch: _Batch, message: messages.Flush) -> None:
        outbox = self.engine.book.outbox
        if not len(outbox):
            batch.replies.append(messages.Flushed(message.number))
            return
        self._awaiting_flush.append((peer, message.number, outbox.next_seq - 1))
        self._flush_due.set()

    @property
    def ready(self) -> bool:
        """Whether a session with the store is open and reservations are admitted."""
        engine = self.engine
        serving = engine.lanes.phase is Phase.SERVING
        return self._session is not None and serving and engine.book.halted is None

    def statistics(self) -> LedgerStatistics:
        """A snapshot."""
        engine = self.engine.statistics(self._clock())
        return LedgerStatistics(
            **{name: getattr(engine, name) for name in EngineStatistics.__dataclass_fields__},
            connected=self._session is not None,
            sessions=self._sessions,
            flushes=self._flushes,
            last_flush_seconds=self._last_flush_seconds,
            workers=len(self._workers),
        )

    # -- the service --------------------------------------------------------------------------

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until drained or cancelled. Reports started at once: the store may be away.

        Raises JournalFailed, at once, if the journal can no longer be kept: what it does not know
        must not be said, neither to the store nor to a worker, and it has all the rest.
        """
        try:
            async with trio.open_nursery() as services:
                services.start_soon(self._run_journal)
                services.start_soon(self._follow_hints)
                if self._quota_lane is not None:
                    services.start_soon(self._quota_lane.run)
                task_status.started()
                try:
                    with self._serving:
                        await self._serve()
                finally:
                    try:
                        await self._post_the_rest()
                    finally:  # whatever happens: a shielded task must not outlive this
                        self._journal_scope.cancel()
                        services.cancel_scope.cancel()
        finally:
            self._closed.set()
            self._journal.close()
        if self._journal_failed is not None:
            raise self._journal_failed

    async def drain(self, timeout: float = 15.0) -> bool:  # noqa: ASYNC109  # a bound on `run`
        """Admit nothing more, post everything, give all credit back; whether that was achieved.

        Call it when no request is running any more: what an open reservation binds stays leased.
        """
        self._drain_tried = True
        self.engine.drain()
        self._closing.set()
        self._flush_due.set()
        with trio.move_on_after(timeout):
            await self._closed.wait()
        return self._closed.is_set() and self.engine.drained

    async def _run_journal(self) -> None:
        with self._journal_scope:
            try:
                await self._journal.run()
            except JournalFailed as error:
                self._journal_lost(error)

    async def _serve(self) -> None:
        """One session after the other, until drained or the books disagree."""
        try:
            while not self._finished:
                session = await self._open_session()
                await self._use(session)
        except LedgerDivergence as divergence:
            log.critical("the ledger stops: %s", divergence)
            self._session = None
            await self._closing.wait()

    async def _post_the_rest(self) -> None:
        """After a cancellation: what `_serve` would have done, within bounds."""
        if self._finished or self._drain_tried or self.engine.book.halted:
            return
        if self._journal_failed is not None:
            return
        self.engine.drain()
        self._closing.set()
        with trio.move_on_after(self.settings.close_seconds, shield=True) as scope:
            await self._serve()
        if scope.cancelled_caught:
            log.warning("%d events stay in the journal", self.engine.pending_events)

    @property
    def _finished(self) -> bool:
        return self._closing.is_set() and self.engine.drained

    async def _follow_hints(self) -> None:
        """Hints only save time: whoever misses one learns the same in the next exchange."""
        while True:
            try:
                async for hint in self._store.hints():
                    if isinstance(hint, RecallHint):
                        self.engine.lanes.recall(hint.pool_id)
                        self._flush_due.set()
                    else:
                        self.engine.credit_hint(hint.account_id)
            except StoreError as error:
                log.info("no hints from the database: %s", error)
            await trio.sleep(self.settings.retry_max_seconds * self._jitter())

    async def _open_session(self) -> Session:
        """Retry until the store answers."""
        delay = self.settings.retry_min_seconds
        while True:
            sent_at = self._clock()
            try:
                session = await self._within_bounds(self._call_open_session)
                self._explain_divergence(session)
                session = await self._reconcile(session)
            except StoreError as error:
                log.warning("no session with the database: %s", error)
                self._begin_anew_if_closed(error)
            else:
                self.engine.lanes.session_opened(self._clock(), sent_at, session)
                self._acknowledge()
                self._answer_flushes()
                self._session = session
                self._remember_timeline(session)
                self._sessions += 1
                return session
            await trio.sleep(delay * self._jitter())
            delay = min(2 * delay, self.settings.retry_max_seconds)

    async def _call_open_session(self) -> Session:
        journal_id = self._journal.journal_id
        holder = await self._store.register_holder(
            journal_id,
            self.settings.node,
            validity_seconds=math.ceil(self.settings.engine.validity_seconds),
            max_request_seconds=math.ceil(self.settings.max_request_seconds),
        )
        return await self._store.open_session(holder, journal_id)

    def _explain_divergence(self, session: Session) -> None:
        """The two sides' books disagree: go on only if a failover is to blame, once for each.

        Connections need not break in one: a pooler may hide it. Raises LedgerDivergence.
        """
        if self._divergence is None:
            return
        if session.timeline in (self._timeline, self._forgiven):
            raise self._divergence
        self._forgiven = session.timeline
        self._divergence = None
        self.engine.book.halted = None

    async def _reconcile(self, session: Session) -> Session:
        """Give a store that has lost acknowledged work, as its new timeline admits, its due."""
        if self._timeline == session.timeline or session.state is HolderState.RECLAIMED:
            return session
        lanes = self.engine.lanes
        acknowledged = self.engine.book.outbox.applied_seq
        if session.applied_seq < acknowledged:
            found = await self._journal.events_after(session.applied_seq)
            lost = [event for event in found if event.seq <= acknowledged]
            log.critical("the database has lost %d events; they are posted again", len(lost))
            lanes.restore(self._clock(), lost)
        while True:  # also where nothing is missing: others may wait for our word
            missing = dict(lanes.missing(session))
            total = await self._within_bounds(lambda: self._store.reattest(session, missing))  # noqa: B023 - awaited here
            if total:
                log.critical("the database has lost leases of %d nano-dollars in use", total)
            session = dataclasses.replace(session, leases={**session.leases, **missing})
            if not lanes.missing(session):  # else more was bound meanwhile
                return session

    async def _use(self, session: Session) -> None:
        """Both lanes, until one of them loses the session or everything is done."""
        async with trio.open_nursery() as lanes:
            lanes.start_soon(self._lane, self._exchange_lane, session, lanes.cancel_scope)
            lanes.start_soon(self._lane, self._grant_lane, session, lanes.cancel_scope)
        self._session = None
        self.engine.lanes.session_lost(self._clock())

    async def _lane(
        self,
        lane: Callable[[Session], Awaitable[None]],
        session: Session,
        both: trio.CancelScope,
    ) -> None:
        try:
            await lane(session)
        except StoreError as error:
            log.warning("the session with the database ends: %s", error)
        except LedgerDivergence as divergence:  # the next session tells whether it is explained
            log.critical("the books disagree: %s", divergence)
            self._divergence = divergence
        finally:
            both.cancel()

    # -- the exchange lane --------------------------------------------------------------------

    async def _exchange_lane(self, session: Session) -> None:
        while not self._finished:
            if not self._closing.is_set():
                with trio.move_on_after(self.settings.flush_seconds):
                    await self._flush_due.wait()
            self._flush_due = trio.Event()
            upto = self.engine.book.outbox.next_seq - 1
            await self._make_durable()
            if self._is_history:
                await self._within_bounds(lambda: self._store.close_holder(session))
                self._begin_anew()
                return
            exchange = self.engine.lanes.next_exchange(self._clock(), upto)
            if exchange is not None:
                await self._exchange(session, exchange)
            elif self._closing.is_set():  # what is left is bound by open reservations
                await trio.sleep(self.settings.linger_seconds)

    async def _exchange(self, session: Session, exchange: Exchange) -> None:
        sent_at = self._clock()
        try:
            replies = await self._within_bounds(
                lambda: self._store.exchange(session, exchange.events, exchange.reports)
            )
        except StoreRefused as refusal:
            await self._refused(session, refusal)
            raise
        now = self._clock()
        self.engine.lanes.exchanged(now, sent_at, replies)
        self._acknowledge()
        self._remember_timeline(session)
        self._answer_flushes()
        self._flushes += 1
        self._last_flush_seconds = now - sent_at
        for observe in self.observers:
            observe(self._last_flush_seconds, len(exchange.events))

    async def _refused(self, session: Session, refusal: StoreRefused) -> None:
        """Find out whether one event is to blame, and put it aside if so."""
        if refusal.code in _OTHERS_EPOCH or refusal.code.startswith(_NOT_THE_BATCH):
            return
        event = self.engine.lanes.refused(refusal.code)
        if event is None:
            return
        log.critical("event %d goes into quarantine: %s", event.seq, refusal)
        await self._within_bounds(lambda: self._store.quarantine(session, event, str(refusal)))
        self.engine.lanes.quarantined(event)

    async def _make_durable(self) -> None:
        """Everything up to here is on disk, or this ends here."""
        try:
            await self._journal.sync(self._position)
        except JournalFailed as error:
            self._journal_lost(error)
        await trio.lowlevel.checkpoint_if_cancelled()

    def _answer_flushes(self) -> None:
        applied = self.engine.book.outbox.applied_seq
        awaiting, self._awaiting_flush = self._awaiting_flush, []
        for peer, number, upto in awaiting:
            if upto <= applied:
                peer.send([messages.Flushed(number)])
            else:
                self._awaiting_flush.append((peer, number, upto))

    def _remember_timeline(self, session: Session) -> None:
        """Once the store has again all that it ever acknowledged; a crash before begins anew."""
        applied = self.engine.book.outbox.applied_seq
        self._applied_max = max(self._applied_max, applied)
        if session.timeline != self._timeline and applied == self._applied_max:
            self._timeline = session.timeline
            self._journalise_settlements([Timeline(session.timeline)])

    # -- after the leases were given away -------------------------------------------------------

    @property
    def _is_history(self) -> bool:
        """Whether a reclaimed holder has posted the last it had to say."""
        engine = self.engine
        reclaimed = engine.lanes.phase is Phase.RECLAIMED
        return reclaimed and not engine.open_reservations and engine.drained

    def _begin_anew_if_closed(self, error: StoreError) -> None:
        """The holder was closed, and the answer, or with this process the knowledge of it, lost.

        It is closed only when everything was posted, so nothing here can have come since.
        """
        closed = isinstance(error, StoreRefused) and error.code == _HOLDER_CLOSED
        engine = self.engine
        is_old = engine.book.outbox.next_seq == self._recovered_seq
        if closed and not engine.open_reservations and (is_old or self._is_history):
            self._begin_anew()

    def _begin_anew(self) -> None:
        """As another holder, with nothing leased and nothing to post."""
        try:
            self._journal.begin_anew()
        except (JournalFull, JournalFailed) as error:
            self._journal_lost(error)
            return
        log.warning("the leases were given away after a long silence; going on as another holder")
        unavailable = self._unavailable("the ledger begins anew")
        self._answer(self.engine.refuse([(each, unavailable) for each in self.engine.room]))
        self.engine.begin_anew(self._clock())
        self._applied_max = 0
        for worker in self._workers.values():
            self.engine.worker_known(worker)
        self._journalise_settlements()

    # -- the grant lane -----------------------------------------------------------------------

    async def _grant_lane(self, session: Session) -> None:
        engine = self.engine
        while True:
            if not engine.thirsty:
                self._credit_wanted = trio.Event()
                await self._credit_wanted.wait()
            await trio.sleep(self.settings.linger_seconds)
            self._answer(engine.serve_waiters(self._clock()))
            asks, refused = engine.lanes.next_asks(self._clock())
            self._answer(engine.refuse(refused))
            if asks:
                replies = await self._ask(session, asks)
                now = self._clock()
                refused = engine.lanes.granted(now, asks, replies)
                if engine.lanes.recalled(asks):
                    self._flush_due.set()
                self._answer(engine.refuse(refused) + engine.serve_waiters(now))

    def _serve_deferred(self) -> None:
        self._answer(self.engine.serve_deferred(self._clock()))
        self._credit_wanted.set()

    async def _ask(self, session: Session, asks: Sequence[Ask]) -> list[PoolGrant]:
        """One request for all; one each where the store does not know some pool."""
        try:
            return await self._within_bounds(lambda: self._store.grant_lease(session, asks))
        except StoreRefused as refusal:
            if refusal.code != _UNKNOWN_POOL:
                raise
        if len(asks) == 1:
            return []
        return [reply for ask in asks for reply in await self._ask(session, [ask])]

    def _answer(self, decided: Sequence[Waiter]) -> None:
        """Journal what was granted, then tell those who waited."""
        if not decided:
            return
        try:
            self._journalise(self.engine.take_records())
        except (JournalFull, JournalFailed) as error:
            self.engine.revoke(self._clock(), decided, str(error))
            if isinstance(error, JournalFailed):
                self._journal_lost(error)
                return
        for waiter in decided:
            peer = self._peers.get(instance_of(waiter.id))
            if peer is not None:
                peer.send([_told(waiter)])

    # -- shared -------------------------------------------------------------------------------

    async def _within_bounds(self, call: Callable[[], Awaitable[_T]]) -> _T:
        """The store's answer; StoreUncertain if there is none in time."""
        with trio.move_on_after(self.settings.store_seconds):
            return await call()
        raise StoreUncertain(f"no answer within {self.settings.store_seconds:g} s")

    def _unavailable(self, reason: str) -> LedgerUnavailable:
        return LedgerUnavailable(self.settings.retry_max_seconds, reason)

    def _journalise(self, records: Sequence[Record]) -> None:
        if records:
            self._position = self._journal.append(records)
        if self.engine.pending_events >= self.settings.flush_events:
            self._flush_due.set()

    def _journalise_batch(self, now: float, batch: _Batch) -> None:
        """Where the journal has no room nothing new is admitted, but settlements proceed."""
        records = self.engine.take_records()
        try:
            self._journalise(records)
        except (JournalFull, JournalFailed) as error:
            if isinstance(error, JournalFailed):
                self._journal_lost(error)
                return
            refused = self._undo(now, batch, str(error))
            self._journalise_settlements(
                [
                    record
                    for record in records
                    if not (
                        isinstance(record, Reserve | Extend) and record.reservation_id in refused
                    )
                ]
            )

    def _undo(self, now: float, batch: _Batch, reason: str) -> set[int]:
        """Take back what the batch reserved; the ids of the reservations concerned."""
        for hold, extra in batch.grown:
            if hold.open:
                self.engine.book.shrink(hold, extra)
        for hold in batch.made:
            if hold.open:
                self.engine.undo(now, hold)
        made = {hold.id for hold in batch.made}
        grown = {hold.id: hold.amount for hold, _ in batch.grown}
        facts = facts_of(self._unavailable(reason))
        batch.replies = [
            messages.Refused(reply.reservation_id, facts)
            if isinstance(reply, messages.Reserved) and reply.reservation_id in made
            else messages.Extended(reply.reservation_id, reply.asked, grown[reply.reservation_id])
            if isinstance(reply, messages.Extended) and reply.reservation_id in grown
            else reply
            for reply in batch.replies
        ]
        return made | grown.keys()

    def _acknowledge(self) -> None:
        """Let the journal forget what is posted; a later call makes up for a failed one."""
        if self._journal_failed is not None:
            return
        try:
            self._journal.acknowledge(self.engine.book.outbox.applied_seq)
        except JournalFull:
            pass  # the room that is left belongs to settlements
        except JournalFailed as error:
            self._journal_lost(error)

    def _journalise_settlements(self, records: Sequence[Record] | None = None) -> None:
        """Settlements always have room, see `headroom`; if not even they have, this ends."""
        try:
            self._journalise(self.engine.take_records() if records is None else records)
        except (JournalFull, JournalFailed) as error:
            self._journal_lost(error)

    def _journal_lost(self, error: JournalFull | JournalFailed) -> None:
        """End as by a kill: what was not journalled has not happened."""
        if self._journal_failed is not None:
            return
        log.critical("the journal cannot be kept: %s", error)
        failure = error if isinstance(error, JournalFailed) else JournalFailed(str(error))
        self._journal_failed = failure
        self._serving.cancel()


def _told(waiter: Waiter) -> Reply:
    """What the worker hears of how its waiting ended."""
    outcome = waiter.outcome
    assert outcome is not None, "it still waits"
    if waiter.hold is not None:
        lacking = waiter.amount if isinstance(outcome, LedgerError) else 0
        return messages.Extended(waiter.id, waiter.hold.amount + lacking, waiter.hold.amount)
    if isinstance(outcome, Hold):
        return messages.Reserved(waiter.id, outcome.amount, outcome.limits)
    return messages.Refused(waiter.id, facts_of(outcome))
