"""Small accidents that must not become large ones: each was once possible."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from ledger import link, messages
from ledger.client import Ledger, LedgerUnavailable, bill
from ledger.limits import LimitRef
from ledger.link import SocketLink, WorkerIdentity, frame
from ledger.records import Attempt, Extend, Worker
from ledger.reservation import instance_of
from ledger.segments import RecoveredState
from ledger.store import EventStatus
from tests.fakes.journal import MemoryJournal
from tests.fakes.ledger import ACCOUNT, PRICE, funded_store, request
from tests.ledger.test_client import in_order, running, settle
from tests.ledger.test_holder_lives import serves
from tests.ledger.test_journal import event
from tests.ledger.test_link import listening_at, path, serving, worker

__all__ = ["path"]  # a fixture

BALANCE = 1_000_000


def test_what_is_plausible_is_measured_by_what_a_request_may_cost() -> None:
    """An adaptive reservation begins with less than that."""
    usage = {"output": 500}
    held = 100
    assert bill(PRICE, usage, held, EventStatus.SETTLED) == (500, 100, EventStatus.REVIEW)
    whole = (500, 500, EventStatus.SETTLED)
    assert bill(PRICE, usage, held, EventStatus.SETTLED, plausible=400) == whole


async def test_a_reservation_during_an_attestation_does_not_halt(autojump_clock: MockClock) -> None:
    """What is free may be what the failover has lost: it is attested once it is bound."""
    books = await funded_store(BALANCE)
    async with running(books) as node:
        await serves(node, 10)
        standby = books.copy()
        await serves(node, 1_000)
        await trio.sleep(0.5)
        books.fail_over(standby)
        node.store.faults.append("after")
        node.store.delay = 0.1
        while "reattest" not in node.store.calls:  # noqa: ASYNC110 - nothing tells
            await trio.sleep(0.01)
        free = node.server.engine.book.pool(ACCOUNT, 0).free
        assert free
        held = await node.ledger.reserve(request(free))
        await trio.sleep(5)
        assert node.server.engine.book.halted is None
        settle(held, 7)
        await node.ledger.flush()
    await in_order(books, [10, 1_000, 7])


async def test_waiters_count_in_the_journals_headroom(autojump_clock: MockClock) -> None:
    books = await funded_store(BALANCE)
    journal = MemoryJournal()
    asked: list[int] = []

    def headroom(open_reservations: int) -> bool:
        asked.append(open_reservations)
        return open_reservations < 3

    journal.headroom = headroom  # type: ignore[method-assign]  # a small disk
    refused = 0
    async with running(books, journal=journal) as node:

        async def caller() -> None:
            nonlocal refused
            try:
                (await node.ledger.reserve(request(10))).void()
            except LedgerUnavailable:
                refused += 1

        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(caller)
    assert refused == 7
    assert max(asked) == 3


async def test_what_one_read_has_brought_does_not_exceed_the_journals_headroom(
    path: Path, autojump_clock: MockClock
) -> None:
    journal = MemoryJournal()
    journal.headroom = lambda open_reservations: open_reservations < 3  # type: ignore[method-assign]  # a small disk
    refused = 0

    async def caller(ledger: Ledger) -> None:
        nonlocal refused
        try:
            (await ledger.reserve(request(10))).void()
        except LedgerUnavailable:
            refused += 1

    books = await funded_store(BALANCE)
    async with (
        serving(path, books, journal=journal),
        worker(path) as ledger,
        trio.open_nursery() as nursery,
    ):
        for _ in range(10):
            nursery.start_soon(caller, ledger)
    assert refused == 7


async def test_nothing_grows_where_the_journal_has_no_room(autojump_clock: MockClock) -> None:
    books = await funded_store(BALANCE)
    async with running(books) as node:
        reservation = await node.ledger.reserve(request(100))
        node.journal.headroom_seen = False
        assert not await reservation.extend(1)
        settle(reservation, 100)
        node.journal.headroom_seen = None
    await in_order(books, [100])


async def test_a_flush_is_answered_although_the_answer_to_it_was_lost(
    autojump_clock: MockClock,
) -> None:
    books = await funded_store(BALANCE)
    async with running(books) as node:
        settle(await node.ledger.reserve(request(10)), 10)
        node.store.faults.append("after")
        await node.ledger.flush()
        assert [each.charge for _, each in books.events] == [10]


async def test_who_has_given_up_does_not_ask_again(path: Path, autojump_clock: MockClock) -> None:
    """It would consume limits, and credit for a moment, for nobody."""
    books = await funded_store(BALANCE)
    rpm = LimitRef("key", "rpm", 60)
    way = SocketLink(path, worker=WorkerIdentity.of_this_process())
    ledger = Ledger([way])
    async with trio.open_nursery() as nursery:
        async with serving(path, books):
            await nursery.start(way.run)
        for _ in range(50):
            with pytest.raises(LedgerUnavailable):
                await ledger.reserve(request(10, limits=(rpm,)))
        async with serving(path, books) as node:
            with trio.fail_after(5):
                while not way.connected:  # noqa: ASYNC110 - nothing tells
                    await trio.sleep(0.01)
            reservation = await ledger.reserve(request(10, limits=(rpm,)))
            assert [state.remaining for state in reservation.limits] == [59]
            reservation.void()
            await ledger.flush()
            assert node.server.engine.open_reservations == 0
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize("said", ["hello again", "less than nothing", "more than there is"])
async def test_nonsense_closes_one_link_only(
    said: str, path: Path, autojump_clock: MockClock
) -> None:
    books = await funded_store(BALANCE)
    identity = WorkerIdentity.of_this_process()
    hello = messages.Hello(identity.instance, identity.pid, identity.started, [])
    nonsense: dict[str, messages.Message] = {
        "hello again": hello,
        "less than nothing": messages.Reserve(identity.instance << 38, request(-5)),
        "more than there is": messages.Reserve(identity.instance << 38, request(2**63)),
    }
    async with serving(path, books), worker(path) as ledger:
        async with await trio.open_unix_socket(os.fspath(path)) as peer:
            await peer.send_all(frame([hello]) + frame([nonsense[said]]))
            with trio.fail_after(5):
                while await peer.receive_some():
                    pass
        settle(await ledger.reserve(request(10)), 10)
        await ledger.flush()
    await in_order(books, [10])


async def test_garbled_replies_cost_a_worker_its_link_only(
    path: Path, autojump_clock: MockClock
) -> None:
    way = SocketLink(path, worker=WorkerIdentity.of_this_process())
    Ledger([way])
    listening = listening_at(path)
    listening.setblocking(False)
    listener = trio.SocketListener(trio.socket.from_stdlib_socket(listening))
    async with listener, trio.open_nursery() as nursery:
        nursery.start_soon(way.run)
        async with await listener.accept() as stream:
            await stream.send_all(b"\x04\0\0\0oops")
            with trio.fail_after(5):
                async with await listener.accept():
                    nursery.cancel_scope.cancel()


async def test_a_stalled_worker_that_lives_keeps_what_it_has_open(
    path: Path, autojump_clock: MockClock
) -> None:
    """Only where the system cannot tell whether a process lives is its silence its death."""
    books = await funded_store(BALANCE)
    async with serving(path, books) as node:
        async with worker(path) as ledger:
            reservation = await ledger.reserve(request(100))
        await trio.sleep(3 * link.GRACE_SECONDS)
        assert node.server.engine.find(reservation.id) is not None
        node.server.leave(instance_of(reservation.id))


def test_a_journal_makes_nothing_of_what_happened_to_no_reservation() -> None:
    state = RecoveredState()
    state.apply(Extend(9, 5))
    state.apply(Attempt(9, event(1, charge=0)))
    assert not state.open
    assert [each.seq for each in state.events] == [1]


async def test_only_the_living_are_counted_after_a_restart(autojump_clock: MockClock) -> None:
    books = await funded_store(BALANCE)
    recovered = dataclasses.replace(RecoveredState(), workers={5: Worker(5, 6, 7)})
    async with running(books, recovered=recovered) as node:
        assert [each.instance for each in node.server.workers if each.instance == 5] == []
