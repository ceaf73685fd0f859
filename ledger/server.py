"""The lease holder at work: the engine, its journal, and two lanes to the store.

Callers in this process use `reserve`, `settle` … directly: they are synchronous, journal what
happened before they return, and never wait for the store. `run` keeps a session with the store
and drives the lanes: *exchange* posts events and moves surplus (every `flush_seconds`, one at a
time, only what is already durable), *grant* gets credit for those who wait.

Rules
- Any uncertain outcome on either lane ends the session; both lanes stop and a new one is opened,
  which tells what happened. So no reply is ever guessed.
- The store may be away: admission goes on from leases until they are used up or too old,
  settlements always proceed, and opening a session is retried with full jitter.
- If the two sides' books disagree, nothing more is admitted, posted or repaired.
- Leaving `run` by cancellation still posts everything and gives all credit back, for at most
  `close_seconds`; the journal has what is left.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import trio

from ledger.engine import Engine, EngineSettings, EngineStatistics, Exchange
from ledger.errors import LedgerDivergence, LedgerUnavailable
from ledger.journal import JournalFailed, JournalFull, RecoveredState
from ledger.records import Record
from ledger.reservation import Hold, ReservationRequest, Settled, TokenCounts, Waiter
from ledger.store import (
    Ask,
    EventStatus,
    LedgerStore,
    PoolGrant,
    Session,
    StoreError,
    StoreRefused,
    StoreUncertain,
)

log = logging.getLogger(__name__)

FlushObserver = Callable[[float, int], None]
_T = TypeVar("_T")

_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)  # elsewhere the latter counts it

_OTHERS_EPOCH = frozenset({"LE001", "LE002"})
_UNKNOWN_POOL = "LE004"
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

    async def run(self) -> None: ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class LedgerSettings:
    """Times of the lanes, in seconds, and the engine's bounds."""

    engine: EngineSettings = field(default_factory=EngineSettings)
    node: str = "local"
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


def boottime() -> float:
    """Seconds that never go back and count suspend: a paused machine sees that time has passed."""
    return time.clock_gettime(_CLOCK)


def wall_microseconds() -> int:
    """The time of day, for `occurred_at` only."""
    return time.time_ns() // 1000


class LedgerServer:
    """One lease holder. Belongs to one trio thread; `run` must be running for anything to flow."""

    def __init__(
        self,
        store: LedgerStore,
        journal: JournalPort,
        recovered: RecoveredState,
        *,
        settings: LedgerSettings | None = None,
        clock: Callable[[], float] = boottime,
        wall_clock: Callable[[], int] = wall_microseconds,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self.settings = settings or LedgerSettings()
        self.observers: list[FlushObserver] = []
        self._store = store
        self._journal = journal
        self._clock = clock
        self._wall_clock = wall_clock
        self._jitter = jitter
        self._engine = Engine(
            recovered, now=clock(), occurred_at=wall_clock(), settings=self.settings.engine
        )
        self._position = 0
        self._journal_failed: JournalFailed | None = None
        self._divergence: LedgerDivergence | None = None
        self._drain_tried = False
        self._session: Session | None = None
        self._sessions = 0
        self._flushes = 0
        self._last_flush_seconds = 0.0
        self._flush_due = trio.Event()
        self._credit_wanted = trio.Event()
        self._closing = trio.Event()
        self._closed = trio.Event()
        self._journal_scope = trio.CancelScope(shield=True)
        self._journalise()  # what recovery decided

    # -- for callers in this process ----------------------------------------------------------

    def reserve(self, request: ReservationRequest) -> Hold | Waiter:
        """Reserve now, or get a Waiter. Raises the LedgerErrors; then nothing is held."""
        engine = self._engine
        if not self._journal.headroom(engine.open_reservations):
            raise LedgerUnavailable(self.settings.retry_max_seconds, "the journal is full")
        outcome = engine.reserve(self._clock(), request)
        if type(outcome) is Waiter:
            self._credit_wanted.set()
            return outcome
        assert type(outcome) is Hold
        try:
            self._journalise()
        except (JournalFull, JournalFailed) as error:
            engine.undo(outcome)
            raise LedgerUnavailable(self.settings.retry_max_seconds, str(error)) from error
        return outcome

    def extend(self, hold: Hold, extra: int) -> bool | Waiter:
        """Reserve `extra` more; False if the ledger or the journal refuses."""
        outcome = self._engine.extend(self._clock(), hold, extra)
        if type(outcome) is Waiter:
            self._credit_wanted.set()
        elif outcome:
            try:
                self._journalise()
            except (JournalFull, JournalFailed):
                self._engine.undo_extension(hold, extra)
                return False
        return outcome

    def cancel(self, waiter: Waiter) -> None:
        """The caller no longer waits; nothing stays held."""
        self._engine.cancel(self._clock(), waiter)
        self._journalise_settlement()

    def settle(
        self,
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
    ) -> Settled:
        """Post a charge; journalled before it returns."""
        try:
            return self._engine.settle(
                self._clock(),
                hold,
                provider_id=provider_id,
                price_id=price_id,
                cost=cost,
                charge=charge,
                tokens=tokens,
                status=status,
                ttfb_ms=ttfb_ms,
                duration_ms=duration_ms,
                occurred_at=self._wall_clock(),
            )
        finally:
            self._journalise_settlement()

    def attempt(
        self,
        hold: Hold,
        *,
        provider_id: int,
        price_id: int,
        cost: int,
        status: EventStatus,
        ttfb_ms: int,
        duration_ms: int,
    ) -> None:
        """Record an attempt in vain."""
        self._engine.attempt(
            self._clock(),
            hold,
            provider_id=provider_id,
            price_id=price_id,
            cost=cost,
            status=status,
            ttfb_ms=ttfb_ms,
            duration_ms=duration_ms,
            occurred_at=self._wall_clock(),
        )
        self._journalise_settlement()

    def void(
        self,
        hold: Hold,
        *,
        status: EventStatus | None,
        provider_id: int,
        price_id: int,
        cost: int,
        duration_ms: int,
    ) -> None:
        """Give a reservation back."""
        try:
            self._engine.void(
                self._clock(),
                hold,
                reason="void" if status is None else status.name.lower(),
                status=status,
                provider_id=provider_id,
                price_id=price_id,
                cost=cost,
                duration_ms=duration_ms,
                occurred_at=self._wall_clock(),
            )
        finally:
            self._journalise_settlement()

    def balance(self, account_id: int) -> int | None:
        """The posted balance minus everything charged since."""
        return self._engine.balance(account_id)

    def top_up_hint(self, account_id: int) -> None:
        """Credit may have arrived."""
        self._engine.top_up_hint(account_id)

    @property
    def ready(self) -> bool:
        """Whether a session with the store is open and reservations are admitted."""
        engine = self._engine
        return self._session is not None and not engine.draining and engine.halted is None

    def statistics(self) -> LedgerStatistics:
        """A snapshot."""
        engine = self._engine.statistics(self._clock())
        return LedgerStatistics(
            **{name: getattr(engine, name) for name in EngineStatistics.__dataclass_fields__},
            connected=self._session is not None,
            sessions=self._sessions,
            flushes=self._flushes,
            last_flush_seconds=self._last_flush_seconds,
        )

    # -- the service --------------------------------------------------------------------------

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until drained or cancelled. Reports started at once: the store may be away.

        Raises JournalFailed after everything was posted, if the journal could no longer be kept.
        """
        try:
            async with trio.open_nursery() as services:
                services.start_soon(self._run_journal)
                task_status.started()
                try:
                    await self._serve()
                finally:
                    await self._post_the_rest()
                    self._journal_scope.cancel()
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
        self._engine.draining = True
        self._closing.set()
        self._flush_due.set()
        with trio.move_on_after(timeout):
            await self._closed.wait()
        return self._closed.is_set() and self._engine.drained

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
        if self._finished or self._drain_tried or self._engine.halted:
            return
        self._engine.draining = True
        self._closing.set()
        with trio.move_on_after(self.settings.close_seconds, shield=True) as scope:
            await self._serve()
        if scope.cancelled_caught:
            log.warning("%d events stay in the journal", self._engine.pending_events)

    @property
    def _finished(self) -> bool:
        return self._closing.is_set() and self._engine.drained

    async def _open_session(self) -> Session:
        """Retry until the store answers."""
        delay = self.settings.retry_min_seconds
        while True:
            sent_at = self._clock()
            try:
                session = await self._within_bounds(self._call_open_session)
            except StoreError as error:
                log.warning("no session with the database: %s", error)
            else:
                self._engine.session_opened(self._clock(), sent_at, session)
                self._acknowledge()
                self._session = session
                self._sessions += 1
                return session
            await trio.sleep(delay * self._jitter())
            delay = min(2 * delay, self.settings.retry_max_seconds)

    async def _call_open_session(self) -> Session:
        journal_id = self._journal.journal_id
        holder = await self._store.register_holder(journal_id, self.settings.node)
        return await self._store.open_session(holder, journal_id)

    async def _use(self, session: Session) -> None:
        """Both lanes, until one of them loses the session or everything is done."""
        async with trio.open_nursery() as lanes:
            lanes.start_soon(self._lane, self._exchange_lane, session, lanes.cancel_scope)
            lanes.start_soon(self._lane, self._grant_lane, session, lanes.cancel_scope)
        self._session = None
        self._engine.session_lost(self._clock())
        if self._divergence is not None:
            raise self._divergence

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
        except LedgerDivergence as divergence:  # not through the nursery, which would wrap it
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
            upto = self._engine.next_seq - 1
            await self._make_durable()
            exchange = self._engine.next_exchange(self._clock(), upto)
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
        self._engine.exchanged(now, sent_at, replies)
        self._acknowledge()
        self._flushes += 1
        self._last_flush_seconds = now - sent_at
        for observe in self.observers:
            observe(self._last_flush_seconds, len(exchange.events))

    async def _refused(self, session: Session, refusal: StoreRefused) -> None:
        """Find out whether one event is to blame, and put it aside if so."""
        if refusal.code in _OTHERS_EPOCH or refusal.code.startswith(_NOT_THE_BATCH):
            return
        event = self._engine.refused(refusal.code)
        if event is None:
            return
        log.critical("event %d goes into quarantine: %s", event.seq, refusal)
        await self._within_bounds(lambda: self._store.quarantine(session, event, str(refusal)))
        self._engine.quarantined(event)

    async def _make_durable(self) -> None:
        """Everything up to here is on disk, or never will be: then the store is the last resort."""
        if self._journal_failed is not None:
            return
        try:
            await self._journal.sync(self._position)
        except JournalFailed as error:
            self._journal_lost(error)

    # -- the grant lane -----------------------------------------------------------------------

    async def _grant_lane(self, session: Session) -> None:
        while True:
            if not self._engine.thirsty:
                self._credit_wanted = trio.Event()
                await self._credit_wanted.wait()
            await trio.sleep(self.settings.linger_seconds)
            self._wake(self._engine.serve_waiters(self._clock()))
            asks, refused = self._engine.next_asks(self._clock())
            self._wake(refused)
            if asks:
                replies = await self._ask(session, asks)
                self._wake(self._engine.granted(self._clock(), asks, replies))

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

    def _wake(self, waiters: Iterable[Waiter]) -> None:
        decided = list(waiters)
        try:
            self._journalise()
        except (JournalFull, JournalFailed) as error:
            self._engine.revoke(decided, str(error))
        for waiter in decided:
            waiter.wake()

    # -- shared -------------------------------------------------------------------------------

    async def _within_bounds(self, call: Callable[[], Awaitable[_T]]) -> _T:
        """The store's answer; StoreUncertain if there is none in time."""
        with trio.move_on_after(self.settings.store_seconds):
            return await call()
        raise StoreUncertain(f"no answer within {self.settings.store_seconds:g} s")

    def _journalise(self) -> None:
        records = self._engine.take_records()
        if records:
            self._position = self._journal.append(records)
        if self._engine.pending_events >= self.settings.flush_events:
            self._flush_due.set()

    def _acknowledge(self) -> None:
        """Let the journal forget what is posted; a later call makes up for a failed one."""
        if self._journal_failed is not None:
            return
        try:
            self._journal.acknowledge(self._engine.applied_seq)
        except JournalFull:
            pass  # the room that is left belongs to settlements
        except JournalFailed as error:
            self._journal_lost(error)

    def _journalise_settlement(self) -> None:
        """Settlements proceed even without a journal: they are then posted directly."""
        try:
            self._journalise()
        except (JournalFull, JournalFailed) as error:
            self._journal_lost(error)

    def _journal_lost(self, error: JournalFull | JournalFailed) -> None:
        """Admit nothing more, post everything, end."""
        if self._journal_failed is not None:
            return
        log.critical("the journal cannot be kept: %s", error)
        failure = error if isinstance(error, JournalFailed) else JournalFailed(str(error))
        self._journal_failed = failure
        self._engine.draining = True
        self._closing.set()
        self._flush_due.set()
