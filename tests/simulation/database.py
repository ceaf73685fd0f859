"""Postgres and the network before it: a statement may be lost, answered, hang, come late or twice.

The books are the real `MemoryStore`. A statement that was sent is executed by the world, whatever
becomes of who sent it: after its session has moved on, or its process has died. Only a failover,
which breaks all connections, makes an end of what is under way.
"""

from __future__ import annotations

import random
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, aclosing
from contextvars import copy_context
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import outcome
import trio

from ledger.memory import MemoryStore
from ledger.store import (
    Ask,
    Hint,
    HolderId,
    HolderRow,
    PoolGrant,
    PoolId,
    PoolReport,
    Session,
    StoreError,
    StoreRefused,
    StoreUncertain,
    UsageEvent,
    Violation,
)
from tests.simulation.process import Process

T = TypeVar("T")

HANGING_SECONDS = 5.0, 25.0  # the holder gives up after 15, the kernel some time
LANES = ("exchange", "grant_lease")  # with a connection of their own


@dataclass
class StatementFaults:
    """How likely a statement meets each fate, 0 to 1."""

    lost: float = 0.0  # before it happened, or only its answer
    hanging: float = 0.0
    late: float = 0.0  # it fails for the caller, and happens up to 40 s later
    repeated: float = 0.0  # it happens, is answered, and happens again up to 40 s later
    hint_lost: float = 0.0


@dataclass
class _Statement(Generic[T]):
    """One call on its way."""

    name: str
    run: Callable[[], Awaitable[T]]
    generation: int
    repeatable: bool
    done: trio.Event = field(default_factory=trio.Event)
    result: outcome.Outcome[T] | None = None

    def answer(self, result: outcome.Outcome[T]) -> None:
        if self.result is None:
            self.result = result
            self.done.set()


class Database:
    """The world's one database. `after_commit` is told each statement that was executed."""

    def __init__(
        self,
        books: MemoryStore,
        generator: random.Random,
        *,
        after_commit: Callable[[str], None],
        validity_seconds: int,
        max_request_seconds: int,
    ) -> None:
        self.books = books
        self.faults = StatementFaults()
        self.down = False
        self.disturbed_at = 0.0  # when it was last away, or lost a connection
        self.generation = 0
        self.astray = 0  # statements that something happens to, not over yet
        self.poison: set[bytes] = set()
        self.injected: dict[str, int] = {}
        self.validity_seconds = validity_seconds
        self.max_request_seconds = max_request_seconds
        self._generator = generator
        self._after_commit = after_commit
        self._spawn: Callable[[_Statement[object]], None] | None = None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Execute what arrives, in tasks of the world, whoever sent it."""
        world = copy_context()
        async with trio.open_nursery() as statements:
            self._spawn = lambda each: world.run(lambda: statements.start_soon(self._execute, each))
            task_status.started()
            await trio.sleep_forever()

    def break_connections(self) -> None:
        """Nobody hears the answers of what is under way, and what has not happened never will."""
        self.generation += 1
        self.disturbed_at = trio.current_time()

    async def call(
        self,
        process: Process,
        name: str,
        run: Callable[[], Awaitable[T]],
        *,
        repeatable: bool = True,
    ) -> T:
        """Send a statement and wait for its answer.

        What has neither a sequence number nor a key is not `repeatable`: in the same session,
        nothing would tell its repetition from the next. No connection to Postgres repeats anything.
        """
        process.check()
        statement = _Statement(name, run, self.generation, repeatable)
        assert self._spawn is not None, "the database does not run yet"
        self._spawn(statement)  # type: ignore[arg-type]  # each has its own result
        await statement.done.wait()
        process.check()
        assert statement.result is not None
        return statement.result.unwrap()

    async def _execute(self, statement: _Statement[object]) -> None:
        fate = self._fate()
        if fate == "repeated" and not statement.repeatable:
            fate = "none"
        if fate != "none":
            self.injected[f"statement {fate}"] = self.injected.get(f"statement {fate}", 0) + 1
        self.astray += fate != "none"
        await self._suffer(statement, fate)
        self.astray -= fate != "none"

    async def _suffer(self, statement: _Statement[object], fate: str) -> None:
        await trio.sleep(self._generator.uniform(0.0005, 0.004))
        if fate == "late":
            if self._generator.random() < 0.5:
                statement.answer(outcome.Error(StoreUncertain("the connection broke")))
            await self._while_others_go_on()
        elif fate == "before" or self.down:
            statement.answer(outcome.Error(StoreUncertain("the request was lost")))
            return
        if statement.generation != self.generation or self.down:
            statement.answer(outcome.Error(StoreUncertain("the connection is broken")))
            return
        happens = fate != "hang" or self._generator.random() < 0.5
        result = await self._committed(statement) if happens else None
        patience = HANGING_SECONDS if fate == "hang" else (0.0005, 0.002)
        await trio.sleep(self._generator.uniform(*patience))
        if (
            result is None
            or fate in ("after", "late", "hang")
            or statement.generation != self.generation
        ):
            result = outcome.Error(StoreUncertain("the answer was lost"))
        statement.answer(result)
        if fate == "repeated":
            await self._while_others_go_on()
            if statement.generation == self.generation and not self.down:
                await self._committed(statement)

    async def _while_others_go_on(self) -> None:
        await trio.sleep(40 * self._generator.random() ** 3)

    async def _committed(self, statement: _Statement[object]) -> outcome.Outcome[object]:
        try:
            value = await statement.run()
        except StoreError as error:
            return outcome.Error(error)
        self._after_commit(statement.name)
        return outcome.Value(value)

    def _fate(self) -> str:
        faults, dice = self.faults, self._generator.random()
        for fate, likely in (
            ("before", faults.lost / 2),
            ("after", faults.lost / 2),
            ("hang", faults.hanging),
            ("late", faults.late),
            ("repeated", faults.repeated),
        ):
            if dice < likely:
                return fate
            dice -= likely
        return "none"

    def forgets(self, likely: float) -> bool:
        """Whether something of no consequence is lost."""
        return self._generator.random() < likely


class Client:
    """One process's `LedgerStore`."""

    def __init__(self, database: Database, process: Process) -> None:
        self._database = database
        self._process = process
        self._connections: dict[str, int] = {}  # lane → generation

    async def _call(
        self,
        name: str,
        run: Callable[[MemoryStore], Awaitable[T]],
        *,
        repeatable: bool = True,
    ) -> T:
        database, lane = self._database, name if name in LANES else "control"
        broken = self._connections.get(lane, database.generation) != database.generation
        self._connections[lane] = database.generation
        if name == "open_session":  # a session outlives none of its lanes' connections
            for other in LANES:
                self._connections[other] = database.generation
        if broken:
            await trio.lowlevel.checkpoint()
            raise StoreUncertain("the connection is broken")
        return await database.call(
            self._process, name, lambda: run(database.books), repeatable=repeatable
        )

    async def register_holder(
        self,
        journal_id: bytes,
        node: str,
        *,
        validity_seconds: int = 0,
        max_request_seconds: int = 0,
    ) -> HolderId:
        database = self._database
        return await self._call(
            "register_holder",
            lambda books: books.register_holder(
                journal_id,
                node,
                validity_seconds=database.validity_seconds,
                max_request_seconds=database.max_request_seconds,
            ),
        )

    async def open_session(self, holder: HolderId, journal_id: bytes) -> Session:
        return await self._call(
            "open_session", lambda books: books.open_session(holder, journal_id)
        )

    async def exchange(
        self, session: Session, events: Sequence[UsageEvent], pools: Sequence[PoolReport]
    ) -> list[PoolGrant]:
        async def post(books: MemoryStore) -> list[PoolGrant]:
            if any(event.request_id in self._database.poison for event in events):
                raise StoreRefused("22P02", "invalid input syntax")
            return await books.exchange(session, events, pools)

        return await self._call("exchange", post, repeatable=bool(events))

    async def grant_lease(self, session: Session, asks: Sequence[Ask]) -> list[PoolGrant]:
        return await self._call(
            "grant_lease", lambda books: books.grant_lease(session, asks), repeatable=False
        )

    async def quarantine(self, session: Session, event: UsageEvent, error: str) -> None:
        await self._call("quarantine", lambda books: books.quarantine(session, event, error))

    async def reattest(self, session: Session, held: Mapping[PoolId, int]) -> int:
        return await self._call(
            "reattest", lambda books: books.reattest(session, held), repeatable=False
        )

    async def close_holder(self, session: Session) -> None:
        await self._call("close_holder", lambda books: books.close_holder(session))

    async def hints(self) -> AsyncIterator[Hint]:
        database, generation = self._database, self._database.generation
        if database.down:
            raise StoreUncertain("nobody there")
        async with aclosing(_closable(database.books.hints())) as hints:
            async for hint in hints:
                self._process.check()
                if database.down or database.generation != generation:
                    raise StoreUncertain("the connection broke")
                if not database.forgets(database.faults.hint_lost):
                    yield hint

    def reaper_lock(self) -> AbstractAsyncContextManager[bool]:
        return self._database.books.reaper_lock()

    async def holders(self) -> list[HolderRow]:
        return await self._call("holders", lambda books: books.holders())

    async def fence_holder(self, holder: HolderId, heartbeat_seen: int) -> bool:
        return await self._call(
            "fence_holder", lambda books: books.fence_holder(holder, heartbeat_seen)
        )

    async def reclaim_holder(self, holder: HolderId, epoch_seen: int) -> int | None:
        return await self._call(
            "reclaim_holder", lambda books: books.reclaim_holder(holder, epoch_seen)
        )

    async def end_learning(self) -> bool:
        return await self._call("end_learning", lambda books: books.end_learning())

    async def credit_pool(
        self, pool: PoolId, amount: int, code: int, contra: int, ref: str
    ) -> bool:
        return await self._call(
            "credit_pool", lambda books: books.credit_pool(pool, amount, code, contra, ref)
        )

    async def debit_pool(
        self, pool: PoolId, amount: int, code: int, contra: int, ref: str, *, forced: bool = False
    ) -> bool:
        return await self._call(
            "debit_pool",
            lambda books: books.debit_pool(pool, amount, code, contra, ref, forced=forced),
        )

    async def check(self) -> list[Violation]:
        return await self._database.books.check()


def _closable(hints: AsyncIterator[Hint]) -> AsyncGenerator[Hint, None]:
    assert isinstance(hints, AsyncGenerator)
    return hints
