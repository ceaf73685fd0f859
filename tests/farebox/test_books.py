"""A worker's books in another process: when it may go, and when it has to wait."""

from __future__ import annotations

from pathlib import Path

import trio
from trio.testing import MockClock

from farebox.books import SharedBooks
from ledger.client import Ledger
from ledger.reservation import instance_of
from tests.fakes.journal import MemoryJournal
from tests.fakes.ledger import funded_store, request
from tests.ledger.test_client import in_order, settle
from tests.ledger.test_link import BALANCE, crashing, path, serving

__all__ = ["path"]

SOON_SECONDS = 1.0
PATIENCE_SECONDS = 20.0


async def closing_seconds(books: SharedBooks) -> float:
    began = trio.current_time()
    await books.close()
    return trio.current_time() - began


async def settle_one(ledger: Ledger) -> None:
    settle(await ledger.reserve(request(100)), 80)


async def test_a_worker_does_not_wait_for_the_database(
    path: Path, autojump_clock: MockClock
) -> None:
    store = await funded_store(BALANCE)
    async with serving(path, store) as node, trio.open_nursery() as nursery:
        books = SharedBooks([str(path)])
        await nursery.start(books.run)
        reservation = await books.ledger.reserve(request(100))
        node.store.away = True
        settle(reservation, 80)
        assert await closing_seconds(books) < SOON_SECONDS
        assert [event.charge for event in node.journal.state.events] == [80]
        nursery.cancel_scope.cancel()
        node.store.away = False
    await in_order(store, [80])


async def test_a_worker_waits_for_a_ledger_that_starts_again(
    path: Path, autojump_clock: MockClock
) -> None:
    store = await funded_store(BALANCE)
    books = SharedBooks([str(path)])
    async with trio.open_nursery() as nursery:
        async with crashing(path, store) as node:
            await nursery.start(books.run)
            reservation = await books.ledger.reserve(request(100))
            survived = MemoryJournal(node.journal.state)
        settle(reservation, 80)
        closed = trio.Event()

        async def close() -> None:
            await books.close()
            closed.set()

        nursery.start_soon(close)
        await trio.sleep(2)
        assert not closed.is_set()
        alive = [instance_of(reservation.id)]
        async with serving(path, store, journal=survived, alive=alive):
            with trio.fail_after(SOON_SECONDS):
                await closed.wait()
            assert [event.charge for event in survived.state.events] == [80]
        nursery.cancel_scope.cancel()
    await in_order(store, [80])


async def test_a_worker_does_not_wait_for_ever(path: Path, autojump_clock: MockClock) -> None:
    store = await funded_store(BALANCE)
    books = SharedBooks([str(path)])
    async with trio.open_nursery() as nursery:
        async with crashing(path, store):
            await nursery.start(books.run)
            await settle_one(books.ledger)
            reservation = await books.ledger.reserve(request(100))
        settle(reservation, 80)
        assert SOON_SECONDS < await closing_seconds(books) < PATIENCE_SECONDS
        nursery.cancel_scope.cancel()
