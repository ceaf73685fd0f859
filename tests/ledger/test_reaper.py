"""The reaper: when a silent holder is fenced and reclaimed, never before; and who may reap."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import psycopg
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from ledger import reaper
from ledger.directory import Directory
from ledger.memory import MemoryStore
from ledger.postgres import PostgresStore
from ledger.reaper import Fence, NotDead, Reclaim, Reclaimed, Watch, declare_dead
from ledger.store import HolderId, HolderRow, HolderState, LedgerStore, StoreUncertain
from tests.fakes.faulty_store import FaultyStore
from tests.fakes.ledger import ACCOUNT, funded_store
from tests.fakes.model_holder import ModelHolder

HOLDER = HolderRow(HolderId(1), "n", HolderState.ACTIVE, 1, 7, 300, 900)
FENCE_SECONDS = 300 * 1.05 + 5
RECLAIM_SECONDS = 900 * 1.05 + 5
LATE = 2 * reaper.POLL_SECONDS  # reading takes place every so often


# -- deciding -------------------------------------------------------------------------------------


def test_a_holder_is_fenced_after_its_validity_and_reclaimed_after_its_longest_request() -> None:
    watch = Watch()
    assert watch.look(0, [HOLDER]) == []
    assert watch.look(FENCE_SECONDS - 0.1, [HOLDER]) == []
    assert watch.look(FENCE_SECONDS, [HOLDER]) == [Fence(HOLDER)]
    fenced = replace(HOLDER, state=HolderState.FENCED, epoch=2)
    assert watch.look(400, [fenced]) == []
    assert watch.look(400 + RECLAIM_SECONDS - 0.1, [fenced]) == []
    assert watch.look(400 + RECLAIM_SECONDS, [fenced]) == [Reclaim(fenced)]


def test_each_holder_has_times_of_its_own() -> None:
    watch, brief = Watch(), replace(HOLDER, holder_id=HolderId(2), validity_seconds=10)
    watch.look(0, [HOLDER, brief])
    assert watch.look(20, [HOLDER, brief]) == [Fence(brief)]
    longer = replace(brief, validity_seconds=20)  # restarted with another configuration
    assert watch.look(30, [HOLDER, longer]) == []


def test_a_verdict_that_failed_is_given_again() -> None:
    watch = Watch()
    watch.look(0, [HOLDER])
    assert watch.look(400, [HOLDER]) == watch.look(405, [HOLDER]) == [Fence(HOLDER)]


def test_a_holder_that_was_missing_once_is_new() -> None:
    watch = Watch()
    watch.look(0, [HOLDER])
    watch.look(200, [])
    assert watch.look(400, [HOLDER]) == []


class World:
    """One holder, the time that really passes, and a reaper whose clock is not the best."""

    def __init__(self, rate: float) -> None:
        self.row = replace(HOLDER, validity_seconds=30, max_request_seconds=90)
        self.now = self.clock = 0.0
        self.rate = rate
        self.watch = Watch()
        self.heard_at = self.fenced_at = 0.0

    def wait(self, seconds: int) -> None:
        self.now += seconds
        self.clock += seconds * self.rate

    def beat(self) -> None:
        if self.row.state is HolderState.ACTIVE:
            self.row = replace(self.row, heartbeat=self.row.heartbeat + 1)
            self.heard_at = self.now

    def come_back(self) -> None:
        self.row = replace(self.row, state=HolderState.ACTIVE, epoch=self.row.epoch + 1)
        self.beat()

    def look(self) -> None:
        """Verdicts are executed as the store does; none may come early."""
        for verdict in self.watch.look(self.clock, [self.row]):
            match verdict:
                case Fence(holder):
                    assert holder == self.row
                    assert self.now - self.heard_at >= holder.validity_seconds
                    self.row = replace(self.row, state=HolderState.FENCED, epoch=self.row.epoch + 1)
                    self.fenced_at = self.now
                case Reclaim(holder):
                    assert holder == self.row
                    assert holder.state is HolderState.FENCED
                    assert self.now - self.fenced_at >= holder.max_request_seconds
                    self.come_back()


STEPS = st.one_of(
    st.integers(0, 200),  # seconds
    st.sampled_from(["beat", "look", "look", "come back", "forget", "clock set back"]),
)


@given(st.floats(0.5, 1.05), st.lists(STEPS, max_size=60))
def test_nobody_is_fenced_or_reclaimed_early(rate: float, steps: list[int | str]) -> None:
    world = World(rate)
    for step in steps:
        match step:
            case int():
                world.wait(step)
            case "beat":
                world.beat()
            case "look":
                world.look()
            case "come back":
                world.come_back()
            case "forget":
                world.watch = Watch()
            case _:
                world.clock -= 100


# -- acting ---------------------------------------------------------------------------------------


@pytest.fixture
async def books() -> MemoryStore:
    """An account with 1000, of which a holder has 600."""
    return await funded_store(1000)


@pytest.fixture
async def holder(books: MemoryStore) -> ModelHolder:
    holder = ModelHolder(books, "node-1")
    await holder.open()
    await holder.grant(ACCOUNT, 600, 600)
    return holder


@asynccontextmanager
async def reaping(*stores: LedgerStore) -> AsyncIterator[trio.CancelScope]:
    """Reapers on these stores, started in their order; the scope is the first one's."""
    async with trio.open_nursery() as nursery:
        scope = trio.CancelScope()

        async def first() -> None:
            with scope:
                await reaper.run(stores[0], trio.current_time)

        nursery.start_soon(first)
        await trio.testing.wait_all_tasks_blocked()
        for store in stores[1:]:
            nursery.start_soon(reaper.run, store, trio.current_time)
        await trio.testing.wait_all_tasks_blocked()
        yield scope
        nursery.cancel_scope.cancel()


def state(books: MemoryStore, holder: ModelHolder) -> HolderState:
    return books.holder_rows[holder.session.holder_id].state


async def test_a_silent_holder_loses_its_credit_in_the_end(
    books: MemoryStore, holder: ModelHolder, autojump_clock: MockClock
) -> None:
    async with reaping(books):
        await trio.sleep(FENCE_SECONDS - LATE)
        assert state(books, holder) is HolderState.ACTIVE
        await trio.sleep(2 * LATE)
        assert state(books, holder) is HolderState.FENCED
        await trio.sleep(RECLAIM_SECONDS - 2 * LATE)
        assert books.pools[ACCOUNT].available == 400
        await trio.sleep(2 * LATE)
        assert state(books, holder) is HolderState.RECLAIMED
        assert books.pools[ACCOUNT].available == 1000
    assert await books.check() == []


async def test_a_holder_that_is_heard_keeps_it(
    books: MemoryStore, holder: ModelHolder, autojump_clock: MockClock
) -> None:
    async with reaping(books):
        for _ in range(500):
            await trio.sleep(5)
            await holder.exchange()
    assert holder.free == {ACCOUNT: 600}


async def test_a_holder_that_comes_back_in_time_goes_on(
    books: MemoryStore, holder: ModelHolder, autojump_clock: MockClock
) -> None:
    async with reaping(books):
        await trio.sleep(FENCE_SECONDS + RECLAIM_SECONDS - 2 * LATE)
        assert state(books, holder) is HolderState.FENCED
        await holder.open()
        await trio.sleep(FENCE_SECONDS - LATE)
        assert holder.free == {ACCOUNT: 600}
        assert state(books, holder) is HolderState.ACTIVE


async def test_one_reaps_at_a_time_and_another_takes_over(
    books: MemoryStore, holder: ModelHolder, autojump_clock: MockClock
) -> None:
    one, two = FaultyStore(books), FaultyStore(books)
    async with reaping(one, two) as first:
        await trio.sleep(100)
        assert "holders" not in two.calls
        first.cancel()
        await trio.sleep(FENCE_SECONDS - LATE)
        assert state(books, holder) is HolderState.ACTIVE  # what the first saw is not known
        await trio.sleep(2 * LATE)
        assert state(books, holder) is HolderState.FENCED


async def test_a_database_that_was_away_has_heard_nobody(
    books: MemoryStore, holder: ModelHolder, autojump_clock: MockClock
) -> None:
    store = FaultyStore(books)
    async with reaping(store):
        await trio.sleep(200)
        store.away = True
        await trio.sleep(2000)
        store.away = False
        await trio.sleep(FENCE_SECONDS - LATE)
        assert state(books, holder) is HolderState.ACTIVE
        await trio.sleep(2 * LATE)
        assert state(books, holder) is HolderState.FENCED


async def test_grants_begin_again_when_the_last_one_that_did_not_attest_is_fenced(
    books: MemoryStore, holder: ModelHolder, autojump_clock: MockClock
) -> None:
    other = ModelHolder(books, "node-2")
    await other.open()
    books.synchronous_replication = False
    books.fail_over(books.copy())
    await other.open()
    await books.reattest(other.session, {})

    async def go_on() -> None:
        while True:
            await other.exchange()
            await trio.sleep(5)

    async with reaping(books), trio.open_nursery() as nursery:
        nursery.start_soon(go_on)
        await trio.sleep(FENCE_SECONDS - LATE)
        assert (await other.grant(ACCOUNT, 1, 1)).granted == 0
        await trio.sleep(2 * LATE)
        assert (await other.grant(ACCOUNT, 1, 1)).granted == 1
        nursery.cancel_scope.cancel()


# -- declared dead --------------------------------------------------------------------------------


async def test_a_dead_node_gives_back_at_once(
    books: MemoryStore, holder: ModelHolder, autojump_clock: MockClock
) -> None:
    assert await declare_dead(books, "node-1") == [Reclaimed(HolderId(1), "node-1", 600)]
    assert trio.current_time() < 15
    assert books.pools[ACCOUNT].available == 1000
    with pytest.raises(NotDead, match="No gateway called 'node-1' holds credit"):
        await declare_dead(books, "node-1")


async def test_a_node_that_is_fenced_already_is_not_waited_for(
    books: MemoryStore, holder: ModelHolder, autojump_clock: MockClock
) -> None:
    (row,) = await books.holders()
    assert await books.fence_holder(row.holder_id, row.heartbeat)
    assert [reclaimed.amount for reclaimed in await declare_dead(books, "node-1")] == [600]
    assert trio.current_time() == 0


async def test_an_idle_node_is_alive_and_keeps_what_it_holds(
    books: MemoryStore, holder: ModelHolder, autojump_clock: MockClock
) -> None:
    async def idle() -> None:
        while True:
            await trio.sleep(reaper.HEARTBEAT_SECONDS_MAX)
            await holder.exchange()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(idle)
        with pytest.raises(NotDead, match="node-1 is alive"):
            await declare_dead(books, "node-1")
        nursery.cancel_scope.cancel()
    assert books.pools[ACCOUNT].leased == 600


async def test_a_name_that_is_nearly_right_is_corrected(
    books: MemoryStore, holder: ModelHolder
) -> None:
    with pytest.raises(NotDead, match="did you mean 'node-1'"):
        await declare_dead(books, "nod-1")


# -- the lock in Postgres -------------------------------------------------------------------------


async def test_the_lock_is_had_once_until_it_is_let_go(database: str) -> None:
    one, two = PostgresStore(database), PostgresStore(database)
    async with one.reaper_lock() as acquired, two.reaper_lock() as acquired_too:
        assert (acquired, acquired_too) == (True, False)
    with trio.fail_after(10):
        while True:  # the server notices a closed connection when it does
            async with two.reaper_lock() as acquired:
                if acquired:
                    break
    await one.aclose()
    await two.aclose()


async def test_a_lock_that_is_lost_is_heard_of(database: str) -> None:
    store = PostgresStore(database)
    async with store.reaper_lock() as acquired:
        assert acquired
        await store.holders()
        with psycopg.connect(database, autocommit=True) as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_locks"
                " WHERE locktype = 'advisory' AND granted AND pid <> pg_backend_pid()"
            )
        with pytest.raises(StoreUncertain):
            await store.holders()
    await store.aclose()


async def test_it_reaps_in_postgres(database: str, autojump_clock: MockClock) -> None:
    with Directory(database) as directory:
        account_id = directory.create_account("a", credit=1000).account_id
    store = PostgresStore(database)
    holder = ModelHolder(store, "node-1")
    await holder.open()
    await holder.grant(account_id, 600, 600)
    async with reaping(store):
        while True:
            await trio.sleep(60)
            if not await store.holders():
                break
    assert trio.current_time() >= FENCE_SECONDS + RECLAIM_SECONDS
    await holder.open()
    assert holder.session.state is HolderState.RECLAIMED
    assert holder.session.leases == {}
    await store.aclose()
