"""What becomes of a holder that was silent for too long, or whose store has lost something."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from ledger.client import LedgerUnavailable
from ledger.memory import MemoryStore
from ledger.store import HolderId, HolderState
from tests.fakes.journal import MemoryJournal
from tests.fakes.ledger import ACCOUNT, funded_store, request
from tests.ledger.test_client import Node, in_order, running, settle

BALANCE = 1_000
SECOND = HolderId(2)


async def fence_and_reclaim(books: MemoryStore) -> None:
    (row, *_) = await books.holders()
    assert await books.fence_holder(row.holder_id, row.heartbeat)
    (row, *_) = await books.holders()
    assert await books.reclaim_holder(row.holder_id, row.epoch) is not None


def state_of_the_first(books: MemoryStore) -> HolderState:
    return books.holder_rows[1].state


async def serves(node: Node, charge: int) -> None:
    reservation = await node.ledger.reserve(request(charge))
    settle(reservation, charge)
    await node.ledger.flush()


async def test_a_reclaimed_holder_posts_what_it_has_and_goes_on_as_another(
    autojump_clock: MockClock,
) -> None:
    books = await funded_store(BALANCE)
    async with running(books) as node:
        first = await node.ledger.reserve(request(100))
        second = await node.ledger.reserve(request(100))
        node.store.away = True
        settle(first, 60)
        await trio.sleep(1_300)
        await fence_and_reclaim(books)
        assert books.pools[ACCOUNT].available == BALANCE
        node.store.away = False
        await trio.sleep(5)
        assert state_of_the_first(books) is HolderState.RECLAIMED  # one is still open
        settle(second, 30)
        await trio.sleep(5)
        assert state_of_the_first(books) is HolderState.CLOSED
        await serves(node, 7)
        assert {holder for holder, event in books.events if event.charge == 7} == {SECOND}
    await in_order(books, [60, 30, 7])
    assert books.pools[ACCOUNT].spent == 97


async def test_a_reclaimed_holder_admits_nothing_until_it_is_another(
    autojump_clock: MockClock,
) -> None:
    books = await funded_store(BALANCE)
    async with running(books) as node:
        open_ = await node.ledger.reserve(request(100))
        node.store.away = True
        await trio.sleep(1_300)
        await fence_and_reclaim(books)
        node.store.away = False
        await trio.sleep(5)
        with pytest.raises(LedgerUnavailable, match="reclaimed"):
            await node.ledger.reserve(request(1))
        open_.void()
        await trio.sleep(5)
        await serves(node, 5)
    await in_order(books, [5])


async def test_what_money_is_left_pays_late_and_the_operator_the_rest(
    autojump_clock: MockClock,
) -> None:
    books = await funded_store(100)
    async with running(books) as node:
        late = await node.ledger.reserve(request(100))
        node.store.away = True
        settle(late, 100)
        await trio.sleep(1_300)
        await fence_and_reclaim(books)
        async with running(books, journal=MemoryJournal(journal_id=b"k" * 16)) as other:
            await serves(other, 70)
        node.store.away = False
        await trio.sleep(5)
        assert books.pools[ACCOUNT].available == 0
        assert [t.amount for t in books.transfers if t.code == 40] == [70]
    await in_order(books, [70, 100])


async def test_a_closing_whose_answer_was_lost_is_not_repeated(autojump_clock: MockClock) -> None:
    books = await funded_store(BALANCE)
    async with running(books) as node:
        await serves(node, 10)
        node.store.away = True
        await trio.sleep(1_300)
        await fence_and_reclaim(books)
        # register, open, exchange what is left (a heartbeat) and close
        node.store.away = False
        while "close_holder" not in node.store.calls:
            node.store.faults.clear()
            node.store.faults.append("none")
            await trio.sleep(0.0005)
            if books.holder_rows[1].state is HolderState.RECLAIMED:
                node.store.faults.append("after")
        await trio.sleep(10)
        await serves(node, 11)
    await in_order(books, [10, 11])


async def test_events_that_a_failover_lost_are_posted_again(autojump_clock: MockClock) -> None:
    books = await funded_store(BALANCE)
    async with running(books) as node:
        await serves(node, 10)
        standby = books.copy()
        await serves(node, 20)
        held = await node.ledger.reserve(request(300))
        await trio.sleep(1)
        books.fail_over(standby)
        assert [event.charge for _, event in books.events] == [10]
        node.store.faults.extend(["after"])  # connections break in a failover
        settle(held, 40)
        await trio.sleep(5)
        assert node.server.engine.book.halted is None
        await serves(node, 5)
    await in_order(books, [10, 20, 40, 5])


async def test_a_crash_in_the_middle_of_posting_again_forgets_nothing(
    autojump_clock: MockClock,
) -> None:
    books = await funded_store(BALANCE)
    journal = MemoryJournal()
    async with running(books, journal=journal) as node:
        for charge in (10, 20, 30):
            await serves(node, charge)
        standby = books.copy()
        await serves(node, 40)
        await trio.sleep(1)
        books.fail_over(standby)
        node.store.faults.append("after")
        while node.server.engine.book.outbox.applied_seq != 3:  # noqa: ASYNC110 - nothing tells
            await trio.sleep(0.0005)
        node.store.away = True
        crashed = journal.state.copy()
        node.server.engine.book.halted = "the process is dead"
        node.scope.cancel()
    again = MemoryJournal(crashed)
    again.records, again.state = list(journal.records), crashed
    async with running(books, journal=again, recovered=crashed) as node:
        await trio.sleep(5)
        assert node.server.engine.book.halted is None
        await serves(node, 5)
    await in_order(books, [10, 20, 30, 40, 5])


async def test_a_store_that_forgets_without_a_failover_is_not_believed(
    autojump_clock: MockClock,
) -> None:
    books = await funded_store(BALANCE)
    async with running(books) as node:
        await serves(node, 10)
        standby = books.copy()
        await serves(node, 20)
        books.fail_over(standby)
        books.server_timeline -= 1
        node.store.faults.append("after")
        await trio.sleep(20)
        assert node.server.engine.book.halted is not None
