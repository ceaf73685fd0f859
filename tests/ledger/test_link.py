"""Workers and their ledger through a unix socket: links break, ledgers restart, workers die."""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock, memory_stream_pair

from ledger import link, messages
from ledger.client import Ledger, LedgerUnavailable, RateLimited
from ledger.journal import RecoveredState
from ledger.limits import LimitRef
from ledger.link import Frames, LinkRejected, SocketLink, WorkerIdentity, frame, is_alive
from ledger.memory import MemoryStore
from ledger.messages import Message
from ledger.records import Worker
from ledger.reservation import instance_of, reservation_id
from ledger.server import LedgerServer
from ledger.store import EventStatus
from ledger.wire import SocketStream
from tests.fakes.faulty_store import FaultyStore
from tests.fakes.journal import MemoryJournal
from tests.fakes.ledger import PRICE, PROVIDER, funded_store, request
from tests.ledger.test_client import in_order, settle

BALANCE = 1_000_000
SLOT = LimitRef("key", "concurrent", 1)


@pytest.fixture
def path() -> Iterator[Path]:
    """Where a ledger listens; short enough for a socket's name."""
    with tempfile.TemporaryDirectory(prefix="farebox-link-") as folder:
        yield Path(folder) / "ledger"


@dataclass
class Node:
    """A ledger that serves links, until its `scope` is cancelled."""

    store: FaultyStore
    journal: MemoryJournal
    server: LedgerServer
    scope: trio.CancelScope


def listening_at(path: Path) -> socket.socket:
    """What the supervisor makes for its ledger."""
    path.unlink(missing_ok=True)
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(os.fspath(path))
    listening.listen()
    return listening


@contextlib.asynccontextmanager
async def serving(
    path: Path,
    books: MemoryStore,
    *,
    journal: MemoryJournal | None = None,
    alive: Sequence[int] = (),
) -> AsyncIterator[Node]:
    """A ledger until the block ends, rebuilt from `journal` where there is one."""
    store = FaultyStore(books)
    journal = journal or MemoryJournal()
    server = LedgerServer(
        store,
        journal,
        journal.state.copy(),
        alive=alive,
        clock=trio.current_time,
        wall_clock=lambda: 1_000_000,
        jitter=lambda: 1.0,
    )
    with listening_at(path) as listening:
        async with trio.open_nursery() as services:
            await services.start(server.run)
            await services.start(link.serve, server, listening)
            yield Node(store, journal, server, services.cancel_scope)
            services.cancel_scope.cancel()


@contextlib.asynccontextmanager
async def crashing(path: Path, books: MemoryStore) -> AsyncIterator[Node]:
    """A ledger that ends with the block as by `kill -9`: nothing that it does then has effect."""
    async with serving(path, books) as node:
        yield node
        node.store.away = True
        node.journal.failed = True
        node.server._drain_tried = True  # no farewell


@contextlib.asynccontextmanager
async def worker(path: Path, identity: WorkerIdentity | None = None) -> AsyncIterator[Ledger]:
    """This process as a worker, until the block ends; its link then closes."""
    way = SocketLink(path, worker=identity or WorkerIdentity.of_this_process())
    ledger = Ledger([way])
    async with trio.open_nursery() as nursery:
        await nursery.start(way.run)
        yield ledger
        nursery.cancel_scope.cancel()


def another(identity: WorkerIdentity) -> WorkerIdentity:
    """The same number in another process."""
    return WorkerIdentity(identity.instance, identity.pid, identity.started + 1)


# -- a link that holds ----------------------------------------------------------------------------


async def test_a_request_is_reserved_settled_and_posted_through_a_socket(
    path: Path, autojump_clock: MockClock
) -> None:
    books = await funded_store(BALANCE)
    async with serving(path, books) as node, worker(path) as ledger:
        reservation = await ledger.reserve(request(100))
        assert await reservation.extend(50)
        reservation.attempt(
            provider_id=PROVIDER, price_id=PRICE.price_id, status=EventStatus.FAILED, cost=3
        )
        settle(reservation, 120)
        assert await reservation.journalled() == BALANCE - 120
        assert [event.charge for event in node.journal.state.events] == [0, 120]
        await ledger.flush()
        assert [event.charge for _, event in books.events] == [0, 120]
    await in_order(books, [0, 120])


async def test_a_refusal_travels_with_its_figures(path: Path, autojump_clock: MockClock) -> None:
    books = await funded_store(BALANCE)
    async with serving(path, books), worker(path) as ledger:
        held = await ledger.reserve(request(100, limits=(SLOT,)))
        with pytest.raises(RateLimited) as caught:
            await ledger.reserve(request(100, limits=(SLOT,)))
        assert caught.value.limit == SLOT
        held.void()


async def test_many_at_once_share_frames(
    path: Path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    books = await funded_store(BALANCE)
    frames: list[int] = []

    def counted(said: Sequence[messages.Message | messages.Reply]) -> bytes:
        frames.append(len(said))
        return frame(said)

    monkeypatch.setattr(link, "frame", counted)

    async def one(ledger: Ledger) -> None:
        settle(await ledger.reserve(request(100)), 10)

    async with serving(path, books), worker(path) as ledger:
        async with trio.open_nursery() as callers:
            for _ in range(200):
                callers.start_soon(one, ledger)
        await ledger.flush()
    await in_order(books, [10] * 200)
    assert sum(frames) >= 4 * 200  # reserve, settle, and what is answered
    assert len(frames) < 20


# -- links that break -----------------------------------------------------------------------------


async def test_what_is_open_survives_a_broken_link(path: Path, autojump_clock: MockClock) -> None:
    books = await funded_store(BALANCE)
    identity = WorkerIdentity.of_this_process()
    async with serving(path, books) as node:
        way = SocketLink(path, worker=identity)
        ledger = Ledger([way])
        for n in range(3):
            async with trio.open_nursery() as nursery:
                await nursery.start(way.run)
                if n == 0:
                    reservation = await ledger.reserve(request(100, limits=(SLOT,)))
                    silent = await ledger.reserve(request(100))
                await trio.testing.wait_all_tasks_blocked(0.01)
                nursery.cancel_scope.cancel()
            await trio.sleep(1)
            assert node.server.statistics().open_reservations == 2
        settle(reservation, 60)  # said to nobody: it has to be said again
        assert node.server.statistics().open_reservations == 2
        async with trio.open_nursery() as nursery:
            await nursery.start(way.run)
            assert await reservation.journalled() == BALANCE - 60
            silent.void()
            await silent.journalled()
            assert (await ledger.reserve(request(1, limits=(SLOT,)))).open  # its slot is free
            nursery.cancel_scope.cancel()
        node.server.leave(identity.instance)
    await in_order(books, [60, 0])


async def test_a_worker_without_a_link_is_dead_after_its_grace(
    path: Path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "pidfd_open")  # as on another kernel
    books = await funded_store(BALANCE)
    async with serving(path, books) as node:
        async with worker(path) as ledger:
            await ledger.reserve(request(100))
        await trio.sleep(link.GRACE_SECONDS - 1)
        assert node.server.statistics().open_reservations == 1
        await trio.sleep(2)
        assert node.server.statistics().open_reservations == 0
        assert node.server.statistics().workers == 0
    await in_order(books, [0])


async def test_a_number_belongs_to_one_worker(path: Path, autojump_clock: MockClock) -> None:
    books = await funded_store(BALANCE)
    identity = WorkerIdentity.of_this_process()
    async with serving(path, books) as node, worker(path, identity) as ledger:
        held = await ledger.reserve(request(100))
        impostor = SocketLink(path, worker=another(identity))
        Ledger([impostor])
        with trio.fail_after(5), pytest.RaisesGroup(LinkRejected, allow_unwrapped=True):
            await impostor.run()
        assert node.server.statistics().open_reservations == 1
        held.void()
        await held.journalled()


@pytest.mark.parametrize(
    "sent", [b"\xff" * 64, frame([messages.Flush(1)]), b"\1\0\0\0\xc1"], ids=["noise", "no", "bad"]
)
async def test_a_stranger_is_shown_the_door(
    path: Path, sent: bytes, autojump_clock: MockClock
) -> None:
    async with serving(path, await funded_store(BALANCE)) as node:
        async with await trio.open_unix_socket(path) as stranger:
            await stranger.send_all(sent)
            assert await stranger.receive_some() == b""
        assert node.server.statistics().workers == 0


# -- ledgers that restart -------------------------------------------------------------------------


async def test_a_ledger_that_restarts_is_told_again(path: Path, autojump_clock: MockClock) -> None:
    books = await funded_store(BALANCE)
    identity = WorkerIdentity.of_this_process()
    async with trio.open_nursery() as nursery:
        way = SocketLink(path, worker=identity)
        ledger = Ledger([way], reserve_timeout=20)
        async with crashing(path, books) as node:
            await nursery.start(way.run)
            running = await ledger.reserve(request(100, limits=(SLOT,)))
            running.attempt(
                provider_id=PROVIDER, price_id=PRICE.price_id, status=EventStatus.FAILED, cost=3
            )
            finished = await ledger.reserve(request(100))
            await trio.testing.wait_all_tasks_blocked(0.01)
            survived = MemoryJournal(node.journal.state)
        settle(finished, 60)
        late: list[int] = []

        async def reserve_meanwhile() -> None:
            late.append((await ledger.reserve(request(10))).amount)

        nursery.start_soon(reserve_meanwhile)
        await trio.sleep(1)
        async with serving(path, books, journal=survived, alive=[identity.instance]) as node:
            await finished.journalled()
            await trio.sleep(1)
            assert late == [10]
            assert running.open
            with pytest.raises(RateLimited):  # the slot is taken again
                await ledger.reserve(request(1, limits=(SLOT,)))
            settle(running, 70)
            assert await running.journalled() is not None
            await ledger.flush()
            assert [e.charge for _, e in books.events] == [0, 60, 70]  # the attempt only once
            nursery.cancel_scope.cancel()
    assert not await books.check()


async def test_what_a_worker_does_not_know_any_more_is_voided(
    path: Path, autojump_clock: MockClock
) -> None:
    books = await funded_store(BALANCE)
    identity = WorkerIdentity.of_this_process()
    async with crashing(path, books) as node, worker(path, identity) as ledger:
        await ledger.reserve(request(100))
        survived = MemoryJournal(node.journal.state)
    async with serving(path, books, journal=survived, alive=[identity.instance]) as node:
        assert node.server.statistics().open_reservations == 1
        async with worker(path, identity):
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert node.server.statistics().open_reservations == 0
    await in_order(books, [0])


async def test_a_ledger_that_stays_away_is_unavailable(
    path: Path, autojump_clock: MockClock
) -> None:
    books = await funded_store(BALANCE)
    async with trio.open_nursery() as nursery:
        way = SocketLink(path, worker=WorkerIdentity.of_this_process())
        ledger = Ledger([way])
        async with serving(path, books):
            await nursery.start(way.run)
        started = trio.current_time()
        with pytest.raises(LedgerUnavailable):
            await ledger.reserve(request(100))
        assert trio.current_time() - started == pytest.approx(0.5, abs=0.1)
        nursery.cancel_scope.cancel()


# -- workers that die -----------------------------------------------------------------------------

_WORKER = """
import os
import sys
import trio
from ledger.client import Ledger
from ledger.link import SocketLink, WorkerIdentity
from ledger.store import EventStatus
from tests.fakes.ledger import PRICE, PROVIDER, output, request
import trio.testing

async def main() -> None:
    link = SocketLink(sys.argv[1], worker=WorkerIdentity.of_this_process())
    ledger = Ledger([link], reserve_timeout=20)
    async with trio.open_nursery() as nursery:
        await nursery.start(link.run)
        finished = await ledger.reserve(request(100))
        await ledger.reserve(request(200))
        print(link.instance, flush=True)
        sys.stdin.readline()
        finished.settle(
            price=PRICE, provider_id=PROVIDER, quantities={"output": 60}, tokens=output(60),
            status=EventStatus.SETTLED, ttfb_ms=1, duration_ms=2,
        )
        await trio.testing.wait_all_tasks_blocked()  # it is in the socket
        os._exit(9)

trio.run(main)
"""


@contextlib.contextmanager
def process(path: Path) -> Iterator[subprocess.Popen[str]]:
    """A worker in a process of its own with two open reservations; told to, it settles and dies."""
    child = subprocess.Popen(
        [sys.executable, "-c", _WORKER, os.fspath(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).resolve().parents[2],
    )
    try:
        yield child
    finally:
        child.kill()
        child.wait()
        for pipe in (child.stdin, child.stdout):
            assert pipe is not None
            pipe.close()


async def ready(child: subprocess.Popen[str]) -> int:
    assert child.stdout is not None
    return int(await trio.to_thread.run_sync(child.stdout.readline))


def settle_and_die(child: subprocess.Popen[str]) -> None:
    assert child.stdin is not None
    child.stdin.write("\n")
    child.stdin.flush()


async def until_ended(node: Node) -> None:
    while node.server.statistics().workers:  # noqa: ASYNC110  # nothing else tells
        await trio.sleep(0.005)


@pytest.mark.parametrize("killed", [True, False])
async def test_a_dead_worker_is_voided_at_once_and_its_last_words_count(
    path: Path, killed: bool
) -> None:
    books = await funded_store(BALANCE)
    with trio.fail_after(30), process(path) as child:
        async with serving(path, books) as node:
            await ready(child)
            if killed:
                child.send_signal(signal.SIGKILL)
            else:
                settle_and_die(child)
            with trio.fail_after(link.GRACE_SECONDS - 1):
                await until_ended(node)
            assert node.server.statistics().open_reservations == 0
    await in_order(books, [0, 0] if killed else [60, 0])


async def test_what_was_said_before_death_is_heard_although_the_death_is_seen_first(
    path: Path,
) -> None:
    books = await funded_store(BALANCE)
    with trio.fail_after(30), process(path) as child:
        async with serving(path, books) as node:
            await ready(child)
            settle_and_die(child)
            child.wait()  # the event loop stands still: it will hear of all at the same moment
            await until_ended(node)
    await in_order(books, [60, 0])


class OneGuest(trio.abc.Listener[trio.abc.Stream]):
    """A listener for a single connection."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._streams = [stream]

    async def accept(self) -> trio.abc.Stream:
        if not self._streams:
            await trio.sleep_forever()
        return self._streams.pop()

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()


async def test_what_arrives_from_a_worker_that_was_taken_for_dead_was_never_said(
    autojump_clock: MockClock,
) -> None:
    """Or nobody would ever end what it reserves."""
    server = LedgerServer(
        FaultyStore(await funded_store(BALANCE)),
        MemoryJournal(),
        RecoveredState(),
        clock=trio.current_time,
    )
    dead = trio.Event()

    async def ended(_worker: object) -> bool:
        await dead.wait()
        return True

    def reserve(number: int) -> messages.Reserve:
        return messages.Reserve(reservation_id(5, number), request(0))

    ours, theirs = memory_stream_pair()
    async with trio.open_nursery() as services:
        await services.start(server.run)
        await services.start(link.serve_streams, server, OneGuest(theirs), ended)
        await ours.send_all(link.frame([messages.Hello(5, 1, 1, []), reserve(1)]))
        await trio.sleep(0.1)
        assert server.statistics().open_reservations == 1
        dead.set()
        await trio.sleep(2 * link.LAST_WORDS_SECONDS)
        assert server.workers == []
        await ours.send_all(link.frame([reserve(2)]))
        await trio.sleep(0.1)
        assert server.statistics().open_reservations == 0
        services.cancel_scope.cancel()


def flushes(numbers: Sequence[int]) -> list[Message]:
    return [messages.Flush(number) for number in numbers]


async def test_what_one_read_has_brought_is_answered_with_one_write(
    autojump_clock: MockClock,
) -> None:
    server = LedgerServer(
        FaultyStore(await funded_store(BALANCE)),
        MemoryJournal(),
        RecoveredState(),
        clock=trio.current_time,
    )
    voids: list[Message] = [messages.Void(reservation_id(5, number), None) for number in (1, 2, 3)]
    ours, theirs = memory_stream_pair()
    deliver = theirs.send_stream.send_all_hook
    assert deliver is not None
    writes = 0

    async def written() -> None:
        nonlocal writes
        writes += 1
        await deliver()

    theirs.send_stream.send_all_hook = written
    async with trio.open_nursery() as services:
        await services.start(link.serve_streams, server, OneGuest(theirs), process_lives)
        await ours.send_all(link.frame([messages.Hello(5, 1, 1, []), *voids[:2]]) + frame(voids))
        await trio.sleep(0.1)
        (answers,) = Frames().feed(await ours.receive_some())
        assert len(msgspec.msgpack.decode(answers)) == 1 + 2 + 3
        assert writes == 1
        await ours.send_all(frame(voids[:1]) + frame(voids[1:]))
        await trio.sleep(0.1)
        assert writes == 2
        (answers,) = Frames().feed(await ours.receive_some())
        assert len(msgspec.msgpack.decode(answers)) == 3
        services.cancel_scope.cancel()


async def process_lives(_worker: object) -> bool:
    await trio.sleep(1_000)
    return False


async def test_one_writes_at_a_time_and_nothing_is_overtaken(autojump_clock: MockClock) -> None:
    ours, theirs = memory_stream_pair()
    outgoing = link._Outgoing(ours)
    deliver = ours.send_stream.send_all_hook
    assert deliver is not None

    async def slowly() -> None:
        await trio.sleep(1)
        await deliver()

    ours.send_stream.send_all_hook = slowly
    async with trio.open_nursery() as nursery:
        with outgoing.sending(nursery):
            outgoing.say(messages.Flush(1))
            await trio.sleep(0.5)  # the task sends
            outgoing.add(flushes([2, 3]))
            await outgoing.flush()
            outgoing.add(flushes([4]))
            await trio.sleep(1)
            outgoing.add(flushes([5]))
            await trio.sleep(5)
    said = [msgspec.msgpack.decode(each) for each in Frames().feed(await theirs.receive_some())]
    assert [number for each in said for _, number in each] == [1, 2, 3, 4, 5]


@dataclass
class Wire:
    """One end says, the other is read by hand."""

    ours: SocketStream
    theirs: socket.socket
    frames: Frames = field(default_factory=Frames)

    @functools.cached_property
    def outgoing(self) -> link._Outgoing:
        """Made where trio runs."""
        return link._Outgoing(self.ours)

    def arrived(self) -> list[int]:
        """The numbers of the flushes that are there by now."""
        data = bytearray()
        with contextlib.suppress(BlockingIOError):
            while some := self.theirs.recv(1 << 20):
                data += some
        said = [msgspec.msgpack.decode(each) for each in self.frames.feed(data)]
        return [number for each in said for _, number in each]


@pytest.fixture
def wires() -> Iterator[list[Wire]]:
    """Two, with as little room as the kernel gives."""
    with contextlib.ExitStack() as stack:
        made: list[Wire] = []
        for _ in range(2):
            ours, theirs = map(stack.enter_context, socket.socketpair())
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
            theirs.setblocking(False)
            made.append(Wire(SocketStream(ours), theirs))
        yield made


async def test_what_is_said_in_a_tick_leaves_at_its_end_on_every_link(wires: list[Wire]) -> None:
    async with trio.open_nursery() as nursery:
        with wires[0].outgoing.sending(nursery), wires[1].outgoing.sending(nursery):
            await trio.lowlevel.checkpoint()
            for number in (1, 2):
                wires[0].outgoing.say(messages.Flush(number))
                wires[1].outgoing.add(flushes([10 * number]))
            assert not wires[0].arrived()
            await trio.lowlevel.checkpoint()  # the loop goes round once
            assert wires[0].arrived() == [1, 2]
            assert wires[1].arrived() == [10, 20]
        wires[0].outgoing.say(messages.Flush(3))
        await trio.lowlevel.checkpoint()
        assert not wires[0].arrived()


async def test_what_a_full_socket_does_not_take_arrives_before_what_is_said_later(
    wires: list[Wire],
) -> None:
    many, arrived = 3 * link.FRAME_MESSAGES_MAX, list[int]()
    async with trio.open_nursery() as nursery:
        with wires[0].outgoing.sending(nursery):
            wires[0].outgoing.add(flushes(range(many)))
            await trio.testing.wait_all_tasks_blocked()
            wires[0].outgoing.add(flushes(range(many, many + 10)))
            await trio.testing.wait_all_tasks_blocked()
            with trio.fail_after(10):
                while len(arrived) < many + 10:
                    arrived += wires[0].arrived()
                    await trio.testing.wait_all_tasks_blocked()
            wires[0].outgoing.say(messages.Flush(many + 10))
            await trio.lowlevel.checkpoint()
            arrived += wires[0].arrived()
    assert arrived == list(range(many + 11))


async def test_a_link_that_ends_leaves_what_is_unsent(wires: list[Wire]) -> None:
    async with trio.open_nursery() as nursery:
        with trio.fail_after(10), wires[0].outgoing.sending(nursery):
            wires[0].outgoing.add(flushes(range(3 * link.FRAME_MESSAGES_MAX)))
            await trio.testing.wait_all_tasks_blocked()
    assert wires[0].theirs.recv(1)  # it had begun


async def test_what_is_said_into_a_broken_link_is_for_the_receiving_side_to_see(
    wires: list[Wire],
) -> None:
    async with trio.open_nursery() as nursery:
        with wires[0].outgoing.sending(nursery), wires[1].outgoing.sending(nursery):
            wires[0].theirs.close()
            for number in (1, 2):
                wires[0].outgoing.say(messages.Flush(number))
                wires[1].outgoing.say(messages.Flush(number))
                await trio.lowlevel.checkpoint()
            assert wires[1].arrived() == [1, 2]
            assert await wires[0].ours.receive_some() == b""


async def test_what_cannot_be_said_ends_the_worker_and_not_just_the_hook(
    wires: list[Wire], caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.RaisesGroup(OverflowError):
        async with trio.open_nursery() as nursery:
            with wires[0].outgoing.sending(nursery):
                wires[0].outgoing.say(messages.Flush(1 << 70))
                await trio.sleep_forever()
    assert "before_io_wait" in caplog.text


async def test_a_worker_that_does_not_listen_is_not_heard(wires: list[Wire]) -> None:
    server = LedgerServer(
        FaultyStore(await funded_store(BALANCE)),
        MemoryJournal(),
        RecoveredState(),
        clock=trio.current_time,
    )
    theirs = wires[0].theirs
    voids: list[Message] = [messages.Void(reservation_id(5, 1), None)] * link.FRAME_MESSAGES_MAX
    said, heard = frame(voids), 0
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    async with trio.open_nursery() as services:
        await services.start(link.serve_streams, server, OneGuest(wires[0].ours), process_lives)
        theirs.send(link.frame([messages.Hello(5, 1, 1, [])]))
        with contextlib.suppress(BlockingIOError):
            while heard < 100 * len(said):
                heard += theirs.send(memoryview(said)[heard % len(said) :])
                await trio.testing.wait_all_tasks_blocked()
        services.cancel_scope.cancel()
    assert heard < 100 * len(said)


async def test_a_worker_that_dies_while_the_ledger_restarts_is_voided(path: Path) -> None:
    books = await funded_store(BALANCE)
    with trio.fail_after(30), process(path) as child:
        async with crashing(path, books) as node:
            instance = await ready(child)
            survived = MemoryJournal(node.journal.state)
        (known,) = survived.state.workers.values()
        assert is_alive(known)
        async with serving(path, books, journal=survived, alive=[instance]) as node:
            child.kill()
            with trio.fail_after(link.GRACE_SECONDS - 1):
                await until_ended(node)
        child.wait()
        assert not is_alive(known)
    await in_order(books, [0, 0])


def test_a_process_that_goes_by_a_dead_workers_number_is_not_that_worker() -> None:
    mine = WorkerIdentity.of_this_process()
    assert is_alive(Worker(mine.instance, mine.pid, mine.started))
    assert not is_alive(Worker(mine.instance, mine.pid, mine.started - 1))
    assert not is_alive(Worker(mine.instance, 0, 0))


async def test_a_process_with_a_dead_workers_number_keeps_nothing_open(
    path: Path, autojump_clock: MockClock
) -> None:
    books = await funded_store(BALANCE)
    predecessor = another(WorkerIdentity.of_this_process())  # the same pid, another beginning
    async with crashing(path, books) as node, worker(path, predecessor) as ledger:
        reservation = await ledger.reserve(request(100))
        survived = MemoryJournal(node.journal.state)
    alive = [instance_of(reservation.id)]
    async with serving(path, books, journal=survived, alive=alive) as node:
        await trio.sleep(0.1)
        assert node.server.statistics().workers == 0
    await in_order(books, [0])


# -- frames ---------------------------------------------------------------------------------------


@given(
    numbers=st.lists(st.lists(st.integers(0, 2**40)), max_size=5),
    cuts=st.lists(st.integers(0, 200)),
)
def test_frames_come_out_whole_however_they_are_cut(
    numbers: list[list[int]], cuts: list[int]
) -> None:
    said = [[messages.Flush(number) for number in each] for each in numbers]
    stream = b"".join(map(frame, said))
    places = sorted({0, len(stream), *(min(cut, len(stream)) for cut in cuts)})
    frames = Frames()
    payloads = [
        payload
        for begin, end in itertools.pairwise(places)
        for payload in frames.feed(stream[begin:end])
    ]
    assert [link._message_decoder.decode(payload) for payload in payloads] == said


def test_a_frame_that_is_too_large_is_refused() -> None:
    with pytest.raises(ValueError, match="a frame of"):
        list(Frames().feed((link.FRAME_BYTES_MAX + 1).to_bytes(4, "little")))
