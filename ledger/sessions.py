"""The holder's side of the store: one session after the other, and in each of them two lanes.

*exchange* posts events and moves surplus: every `flush_seconds`, one at a time, only what is
already durable. *grant* gets credit for those who wait.

Rules
- Any uncertain outcome on either lane ends the session; both lanes stop and a new one is opened,
  which tells what happened. So no reply is ever guessed.
- The store may be away: opening a session is retried with full jitter; the engine goes on from its
  leases until they are used up or too old.
- If the two sides' books disagree, nothing more is admitted, posted or repaired. A store that says
  itself that it has lost what it had acknowledged (another timeline, after a failover) gets it
  again from the journal, and what is bound is attested.
- A holder whose leases were given away because it was silent for too long posts what it has, then
  begins anew as another holder.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import trio

from ledger.engine import Engine, EngineSettings
from ledger.errors import LedgerDivergence
from ledger.lanes import Exchange, Phase
from ledger.records import Timeline, Worker
from ledger.reservation import Waiter
from ledger.scribe import Scribe
from ledger.segments import RecoveredState
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
)

log = logging.getLogger(__name__)

FlushObserver = Callable[[float, int], None]
_T = TypeVar("_T")

_OTHERS_EPOCH = frozenset({"LE001", "LE002"})
_UNKNOWN_POOL = "LE004"
_HOLDER_CLOSED = "LE006"
# SQLSTATE classes that speak of the database, not of the batch: connection, rollback, resources,
# not in the right state (locks), operator intervention, system.
_NOT_THE_BATCH = ("08", "40", "53", "55", "57", "58")


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


class Sessions:
    """Drives the lanes of one holder; `serve` must be running for anything to flow."""

    def __init__(
        self,
        store: LedgerStore,
        engine: Engine,
        scribe: Scribe,
        recovered: RecoveredState,
        *,
        settings: LedgerSettings,
        workers: Callable[[], Iterable[Worker]],
        answer: Callable[[Sequence[Waiter]], None],
        clock: Callable[[], float],
        jitter: Callable[[], float],
    ) -> None:
        """`answer` tells waiters what was decided; `workers` are those that have not ended."""
        self.observers: list[FlushObserver] = []
        self.session: Session | None = None
        self.opened = 0
        self.flushes = 0
        self.last_flush_seconds = 0.0
        self._store = store
        self._engine = engine
        self._scribe = scribe
        self._settings = settings
        self._workers = workers
        self._answer = answer
        self._clock = clock
        self._jitter = jitter
        self._recovered_seq = recovered.next_seq
        self._divergence: LedgerDivergence | None = None
        self._timeline = recovered.timeline
        self._applied_max = recovered.acked_seq
        self._forgiven = ""  # the timeline that has explained a divergence
        self._awaiting_posting: list[tuple[int, Callable[[], None]]] = []
        self._exchange_due = trio.Event()
        self._credit_wanted = trio.Event()
        self._closing = trio.Event()

    def hurry(self) -> None:
        """Let the next exchange begin at once."""
        self._exchange_due.set()

    def want_credit(self) -> None:
        """Somebody waits for credit."""
        self._credit_wanted.set()

    def once_posted(self, call: Callable[[], None]) -> None:
        """Post everything now, and call as soon as that is done."""
        outbox = self._engine.book.outbox
        if len(outbox.events):
            self._awaiting_posting.append((outbox.next_seq - 1, call))
            self.hurry()
        else:
            call()

    def close(self) -> None:
        """Admit nothing more; `serve` ends once everything is posted and given back."""
        self._engine.drain()
        self._closing.set()
        self.hurry()

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do."""
        return self._closing.is_set() and self._engine.drained

    async def serve(self) -> None:
        """One session after the other, until drained or the books disagree."""
        try:
            while not self.finished:
                session = await self._open_session()
                await self._use(session)
        except LedgerDivergence as divergence:
            log.critical("the ledger stops: %s", divergence)
            self.session = None
            await self._closing.wait()

    async def follow_hints(self) -> None:
        """Hints only save time: whoever misses one learns the same in the next exchange."""
        while True:
            try:
                async for hint in self._store.hints():
                    if isinstance(hint, RecallHint):
                        self._engine.lanes.recall(hint.pool_id)
                        self.hurry()
                    else:
                        self._engine.credit_hint(hint.account_id)
            except StoreError as error:
                log.info("no hints from the database: %s", error)
            await trio.sleep(self._settings.retry_max_seconds * self._jitter())

    # -- sessions -----------------------------------------------------------------------------

    async def _open_session(self) -> Session:
        """Retry until the store answers."""
        delay = self._settings.retry_min_seconds
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
                self._engine.lanes.session_opened(self._clock(), sent_at, session)
                self._scribe.acknowledge()
                self._tell_posted()
                self.session = session
                self._remember_timeline(session)
                self.opened += 1
                return session
            await trio.sleep(delay * self._jitter())
            delay = min(2 * delay, self._settings.retry_max_seconds)

    async def _call_open_session(self) -> Session:
        journal_id = self._scribe.journal_id
        holder = await self._store.register_holder(
            journal_id,
            self._settings.node,
            validity_seconds=math.ceil(self._settings.engine.validity_seconds),
            max_request_seconds=math.ceil(self._settings.max_request_seconds),
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
        self._engine.book.halted = None

    async def _reconcile(self, session: Session) -> Session:
        """Give a store that has lost acknowledged work, as its new timeline admits, its due."""
        if self._timeline == session.timeline or session.state is HolderState.RECLAIMED:
            return session
        lanes = self._engine.lanes
        lost = await self._scribe.lost_by(session.applied_seq)
        if lost:
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
        self.session = None
        self._engine.lanes.session_lost(self._clock())

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
        while not self.finished:
            if not self._closing.is_set():
                with trio.move_on_after(self._settings.flush_seconds):
                    await self._exchange_due.wait()
            self._exchange_due = trio.Event()
            upto = self._engine.book.outbox.next_seq - 1
            await self._scribe.make_durable()
            if self._is_history:
                await self._within_bounds(lambda: self._store.close_holder(session))
                self._begin_anew()
                return
            exchange = self._engine.lanes.next_exchange(self._clock(), upto)
            if exchange is not None:
                await self._exchange(session, exchange)
            elif self._closing.is_set():  # what is left is bound by open reservations
                await trio.sleep(self._settings.linger_seconds)

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
        self._engine.lanes.exchanged(now, sent_at, replies)
        self._scribe.acknowledge()
        self._remember_timeline(session)
        self._tell_posted()
        self.flushes += 1
        self.last_flush_seconds = now - sent_at
        for observe in self.observers:
            observe(self.last_flush_seconds, len(exchange.events))

    async def _refused(self, session: Session, refusal: StoreRefused) -> None:
        """Find out whether one event is to blame, and put it aside if so."""
        if refusal.code in _OTHERS_EPOCH or refusal.code.startswith(_NOT_THE_BATCH):
            return
        event = self._engine.lanes.refused(refusal.code)
        if event is None:
            return
        log.critical("event %d goes into quarantine: %s", event.seq, refusal)
        await self._within_bounds(lambda: self._store.quarantine(session, event, str(refusal)))
        self._engine.lanes.quarantined(event)

    def _tell_posted(self) -> None:
        applied = self._engine.book.outbox.applied_seq
        awaiting, self._awaiting_posting = self._awaiting_posting, []
        for upto, call in awaiting:
            if upto <= applied:
                call()
            else:
                self._awaiting_posting.append((upto, call))

    def _remember_timeline(self, session: Session) -> None:
        """Once the store has again all that it ever acknowledged; a crash before begins anew."""
        applied = self._engine.book.outbox.applied_seq
        self._applied_max = max(self._applied_max, applied)
        if session.timeline != self._timeline and applied == self._applied_max:
            self._timeline = session.timeline
            self._scribe.settle([Timeline(session.timeline)])

    # -- after the leases were given away -------------------------------------------------------

    @property
    def _is_history(self) -> bool:
        """Whether a reclaimed holder has posted the last it had to say."""
        engine = self._engine
        reclaimed = engine.lanes.phase is Phase.RECLAIMED
        return reclaimed and not engine.open_reservations and engine.drained

    def _begin_anew_if_closed(self, error: StoreError) -> None:
        """The holder was closed, and the answer, or with this process the knowledge of it, lost.

        It is closed only when everything was posted, so nothing here can have come since.
        """
        closed = isinstance(error, StoreRefused) and error.code == _HOLDER_CLOSED
        engine = self._engine
        is_old = engine.book.outbox.next_seq == self._recovered_seq
        if closed and not engine.open_reservations and (is_old or self._is_history):
            self._begin_anew()

    def _begin_anew(self) -> None:
        """As another holder, with nothing leased and nothing to post."""
        if not self._scribe.begin_anew():
            return
        log.warning("the leases were given away after a long silence; going on as another holder")
        unavailable = self._engine.lanes.unavailable("the ledger begins anew")
        self._answer(self._engine.refuse([(each, unavailable) for each in self._engine.room]))
        self._engine.begin_anew(self._clock())
        self._applied_max = 0
        for worker in self._workers():
            self._engine.worker_known(worker)
        self._scribe.settle()

    # -- the grant lane -----------------------------------------------------------------------

    async def _grant_lane(self, session: Session) -> None:
        engine = self._engine
        while True:
            if not engine.thirsty:
                self._credit_wanted = trio.Event()
                await self._credit_wanted.wait()
            await trio.sleep(self._settings.linger_seconds)
            self._answer(engine.serve_waiters(self._clock()))
            asks, refused = engine.lanes.next_asks(self._clock())
            self._answer(engine.refuse(refused))
            if asks:
                replies = await self._ask(session, asks)
                now = self._clock()
                refused = engine.lanes.granted(now, asks, replies)
                self._answer(engine.refuse(refused) + engine.serve_waiters(now))
            if engine.lanes.exchange_wanted:
                self.hurry()

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

    async def _within_bounds(self, call: Callable[[], Awaitable[_T]]) -> _T:
        """The store's answer; StoreUncertain if there is none in time."""
        with trio.move_on_after(self._settings.store_seconds):
            return await call()
        raise StoreUncertain(f"no answer within {self._settings.store_seconds:g} s")
