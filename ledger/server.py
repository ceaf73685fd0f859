"""The lease holder at work: the engine, its journal, and its sessions with the store.

Workers say messages (`ledger.messages`) through a link (`ledger.link`), in this process or another.
`handle` is synchronous: what happened is journalled (`ledger.scribe`) before it is answered, and
nothing waits for the store. `run` keeps the journal, and a session with the store that posts usage
and moves credit (`ledger.sessions`).

Rules
- Admission goes on from leases while the store is away; settlements always proceed.
- Leaving `run` by cancellation still posts everything and gives all credit back, for at most
  `close_seconds`; the journal has what is left.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from typing import Protocol

import trio

from ledger import messages
from ledger.clocks import boottime, wall_microseconds
from ledger.engine import Engine, EngineStatistics
from ledger.errors import LedgerError
from ledger.journal import JournalFailed, JournalFull, RecoveredState
from ledger.lanes import Phase
from ledger.limits import LimiterPort
from ledger.messages import Message, Reply, facts_of
from ledger.records import Extend, Record, Reserve, Worker
from ledger.reservation import Hold, Waiter, instance_of
from ledger.scribe import JournalPort, Scribe
from ledger.sessions import FlushObserver, LedgerSettings, Sessions
from ledger.store import LedgerStore
from ledger.valkey import QuotaLane, QuotasPort

__all__ = [
    "FlushObserver",
    "LedgerServer",
    "LedgerSettings",
    "LedgerStatistics",
    "Peer",
]

log = logging.getLogger(__name__)


class Peer(Protocol):
    """A worker as the server sees it: where answers go."""

    def send(self, replies: Sequence[Reply]) -> None: ...


@dataclass(frozen=True, slots=True)
class LedgerStatistics(EngineStatistics):
    """The holder's state for metrics and tests."""

    connected: bool
    sessions: int
    flushes: int
    last_flush_seconds: float
    workers: int


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
        self._clock = clock
        self._wall_clock = wall_clock
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
        self._peers: dict[int, Peer] = {}
        self._drain_tried = False
        self._closed = trio.Event()
        self._journal_scope = trio.CancelScope(shield=True)
        self._serving = trio.CancelScope()
        self._scribe = Scribe(self.engine, journal, lost=self._serving.cancel)
        self._sessions = Sessions(
            store,
            self.engine,
            self._scribe,
            recovered,
            settings=self.settings,
            workers=self._workers.values,
            answer=self._answer,
            clock=clock,
            jitter=jitter,
        )
        self._scribe.settle()  # what recovery decided

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
        self._scribe.settle()
        return True

    def leave(self, instance: int) -> None:
        """A worker's process has ended: void what it left open."""
        self._peers.pop(instance, None)
        if self._workers.pop(instance, None) is not None:
            self.engine.worker_gone(self._clock(), instance, self._wall_clock())
            self._scribe.settle()

    @property
    def workers(self) -> list[Worker]:
        """Every worker that has not ended, connected or not."""
        return list(self._workers.values())

    def disconnect(self, instance: int, peer: Peer) -> None:
        """The link of a worker broke; it may come back with another."""
        if self._peers.get(instance) is peer:
            del self._peers[instance]

    def handle(self, peer: Peer, said: Sequence[Message]) -> None:
        """Do what a worker says, journal it, answer.

        Without a journal nothing is answered: the worker will say it again to who comes after us.
        """
        if self._scribe.failure is not None:
            return
        now = self._clock()
        replies: list[Reply] = []
        roomy = len(said) > 1 and self._scribe.has_room(len(said))  # else each one asks
        for message in said:  # `match` would take three times as long
            if type(message) is messages.Reserve:
                self._reserve(now, replies, message, roomy=roomy)
            elif type(message) is messages.Settle:
                self._settle(now, replies, message)
            elif type(message) is messages.Void:
                self._void(now, replies, message)
            elif type(message) is messages.Extend:
                self._extend(now, replies, message)
            elif type(message) is messages.Attempt:
                self._attempt(now, message)
            elif type(message) is messages.Flush:
                self._flush(peer, message)
            elif type(message) is messages.CreditHint:
                self.engine.credit_hint(message.account_id)
            else:
                raise AssertionError("a worker introduces itself once a link")
        records = self.engine.book.take_records()
        try:
            self._scribe.write(records)
        except JournalFailed as error:
            self._scribe.lose(error)
            return
        except JournalFull as error:
            replies = self._refuse_new(now, records, replies, str(error))
        if replies:
            peer.send(replies)

    def _reserve(
        self, now: float, replies: list[Reply], message: messages.Reserve, *, roomy: bool
    ) -> None:
        engine, number = self.engine, message.reservation_id
        hold = engine.book.open.get(number)
        if hold is None:
            if number in engine.room.reservations:  # said again, it is not made a second time
                return
            try:
                if not roomy and not self._scribe.has_room():
                    raise engine.lanes.unavailable("the journal is full")
                outcome = engine.reserve(now, number, message.request)
            except LedgerError as error:
                replies.append(messages.Refused(number, facts_of(error)))
                return
            if type(outcome) is Waiter:
                self._sessions.want_credit()
                if self._quota_lane is not None:
                    self._quota_lane.wake()
                return
            hold = outcome
        replies.append(messages.Reserved(number, hold.amount, hold.limits))

    def _extend(self, now: float, replies: list[Reply], message: messages.Extend) -> None:
        hold = self.engine.find(message.reservation_id)
        if hold is None:
            replies.append(messages.Extended(message.reservation_id, message.amount, 0))
            return
        before = hold.amount
        wanted = message.amount if self._scribe.has_room() else before
        outcome = self.engine.extend(now, hold, wanted)
        if isinstance(outcome, Waiter):
            self._sessions.want_credit()
            return
        replies.append(messages.Extended(hold.id, message.amount, outcome))

    def _attempt(self, now: float, message: messages.Attempt) -> None:
        hold = self.engine.find(message.reservation_id)
        if hold is None:
            self.engine.refused_settlement()
        else:
            self.engine.attempt(now, hold, message.ordinal, message.settlement)

    def _settle(self, now: float, replies: list[Reply], message: messages.Settle) -> None:
        engine, number = self.engine, message.reservation_id
        hold = engine.book.open.get(number)
        balance = None
        if hold is None:  # settled before, or its worker was taken for dead
            engine.refused_settlement()
        else:
            engine.settle(now, hold, message.settlement)
            self._hurry(now, hold)
            balance = hold.pools[0].posted_balance
        replies.append(messages.Closed(number, balance))

    def _void(self, now: float, replies: list[Reply], message: messages.Void) -> None:
        hold = self.engine.find(message.reservation_id)
        if hold is None:
            self.engine.withdraw(message.reservation_id)
        else:
            self.engine.void(now, hold, message.settlement)
            self._hurry(now, hold)
        replies.append(messages.Closed(message.reservation_id, None))

    def _hurry(self, now: float, hold: Hold) -> None:
        """What it holds no longer of a scarce pool is worth an exchange; so is much usage."""
        if len(self.engine.book.outbox.events) >= self.settings.flush_events:
            self._sessions.hurry()
        for pool in hold.pools:
            if now < pool.scarce_until and pool.free:
                self._sessions.hurry()

    def _flush(self, peer: Peer, message: messages.Flush) -> None:
        def flushed() -> None:
            peer.send([messages.Flushed(message.number)])

        self._sessions.once_posted(flushed)

    @property
    def observers(self) -> list[FlushObserver]:
        """Called after each exchange with its seconds and its number of events."""
        return self._sessions.observers

    @property
    def ready(self) -> bool:
        """Whether a session with the store is open and reservations are admitted."""
        engine = self.engine
        serving = engine.lanes.phase is Phase.SERVING
        return self._sessions.session is not None and serving and engine.book.halted is None

    def statistics(self) -> LedgerStatistics:
        """A snapshot."""
        engine = self.engine.statistics(self._clock())
        return LedgerStatistics(
            **{name: getattr(engine, name) for name in EngineStatistics.__dataclass_fields__},
            connected=self._sessions.session is not None,
            sessions=self._sessions.opened,
            flushes=self._sessions.flushes,
            last_flush_seconds=self._sessions.last_flush_seconds,
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
                services.start_soon(self._sessions.follow_hints)
                if self._quota_lane is not None:
                    services.start_soon(self._quota_lane.run)
                task_status.started()
                try:
                    with self._serving:
                        await self._sessions.serve()
                finally:
                    try:
                        await self._post_the_rest()
                    finally:  # whatever happens: a shielded task must not outlive this
                        self._journal_scope.cancel()
                        services.cancel_scope.cancel()
        finally:
            self._closed.set()
            self._scribe.close()
        if self._scribe.failure is not None:
            raise self._scribe.failure

    async def drain(self, timeout: float = 15.0) -> bool:  # noqa: ASYNC109  # a bound on `run`
        """Admit nothing more, post everything, give all credit back; whether that was achieved.

        Call it when no request is running any more: what an open reservation binds stays leased.
        """
        self._drain_tried = True
        self._sessions.close()
        with trio.move_on_after(timeout):
            await self._closed.wait()
        return self._closed.is_set() and self.engine.drained

    async def _run_journal(self) -> None:
        with self._journal_scope:
            await self._scribe.run()

    async def _post_the_rest(self) -> None:
        """After a cancellation: what `_serve` would have done, within bounds."""
        if self._sessions.finished or self._drain_tried or self.engine.book.halted:
            return
        if self._scribe.ended:
            return
        self._sessions.close()
        with trio.move_on_after(self.settings.close_seconds, shield=True) as scope:
            await self._sessions.serve()
        if scope.cancelled_caught:
            log.warning("%d events stay in the journal", self.engine.pending_events)

    def _serve_deferred(self) -> None:
        self._answer(self.engine.serve_deferred(self._clock()))
        self._sessions.want_credit()

    def _answer(self, decided: Sequence[Waiter]) -> None:
        """Journal what was granted, then tell those who waited."""
        if not decided or self._scribe.ended:
            return
        try:
            self._scribe.write(self.engine.take_records())
        except (JournalFull, JournalFailed) as error:
            self.engine.revoke(self._clock(), decided, str(error))
            if isinstance(error, JournalFailed):
                self._scribe.lose(error)
                return
        for waiter in decided:
            peer = self._peers.get(instance_of(waiter.id))
            if peer is not None:
                peer.send([_told(waiter)])

    def _refuse_new(
        self, now: float, records: Sequence[Record], replies: Sequence[Reply], reason: str
    ) -> list[Reply]:
        """The journal has no room: nothing new is admitted, but settlements proceed.

        What may be answered then, which is nothing if not even that can be written down.
        """
        taken = [record for record in records if isinstance(record, Reserve | Extend)]
        answers = self._undo(now, taken, replies, reason)
        kept = [record for record in records if not isinstance(record, Reserve | Extend)]
        return answers if self._scribe.settle(kept) else []

    def _undo(
        self,
        now: float,
        taken: Sequence[Reserve | Extend],
        replies: Sequence[Reply],
        reason: str,
    ) -> list[Reply]:
        """Take back what was reserved and what was added; what is answered instead of `replies`.

        What has ended by now needs no taking back.
        """
        made = {record.reservation_id for record in taken if isinstance(record, Reserve)}
        grown: dict[int, int] = {}
        for record in taken:
            if isinstance(record, Extend):
                hold = self.engine.find(record.reservation_id)
                if hold is not None:
                    self.engine.book.shrink(hold, record.extra)
                grown[record.reservation_id] = hold.amount if hold is not None else 0
        for number in made:
            hold = self.engine.find(number)
            if hold is not None:
                self.engine.undo(now, hold)
        facts = facts_of(self.engine.lanes.unavailable(reason))
        return [
            messages.Refused(reply.reservation_id, facts)
            if isinstance(reply, messages.Reserved) and reply.reservation_id in made
            else messages.Extended(reply.reservation_id, reply.asked, grown[reply.reservation_id])
            if isinstance(reply, messages.Extended) and reply.reservation_id in grown
            else reply
            for reply in replies
        ]


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
