"""What is sent in one turn of the loop leaves together: in order, whole, and never not at all."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from proxy.outbox import HELD_BYTES_MAX, Outbox
from proxy.transport import RECEIVE_BYTES, SocketTransport

_SMALL = b"answer"
_FULL = 1 << 16


@contextmanager
def _pair(
    outbox: Outbox | None, *, buffer: int = 0
) -> Iterator[tuple[SocketTransport, socket.socket]]:
    """Our end of a connection, and the peer's plain socket."""
    ours, theirs = socket.socketpair()
    if buffer:
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer)
    theirs.setblocking(False)
    with closing(SocketTransport(ours, outbox)) as transport, theirs:
        yield transport, theirs


def _arrived(theirs: socket.socket) -> bytes:
    data = b""
    while True:
        try:
            piece = theirs.recv(RECEIVE_BYTES)
        except BlockingIOError:
            return data
        if not piece:
            return data
        data += piece


async def _heard(theirs: socket.socket, count: int) -> bytes:
    data = b""
    with trio.fail_after(5):
        while len(data) < count:
            await trio.lowlevel.wait_readable(theirs)
            data += theirs.recv(RECEIVE_BYTES)
    return data


async def test_the_first_of_a_turn_leaves_at_once_and_the_others_at_its_end() -> None:
    outbox = Outbox()
    with outbox.open(), _pair(outbox) as (one, first), _pair(outbox) as (other, second):
        await trio.lowlevel.checkpoint()
        await one.send(_SMALL)
        assert other.send_now(_SMALL) == len(_SMALL)
        await other.send(b", and more")
        assert (_arrived(first), _arrived(second)) == (_SMALL, b"")
        await trio.lowlevel.checkpoint()
        assert _arrived(second) == b"answer, and more"
        await other.send(b"the next turn's first")
        assert _arrived(second) == b"the next turn's first"


async def test_what_is_alone_never_waits() -> None:
    with _pair(None) as (transport, theirs):
        for _ in range(3):
            await transport.send(_SMALL)
            assert _arrived(theirs) == _SMALL


async def test_without_turns_nothing_waits() -> None:
    outbox = Outbox()
    with _pair(outbox) as (transport, theirs):
        with outbox.open():
            await transport.send(_SMALL)
        for _ in range(3):
            await transport.send(_SMALL)
        assert _arrived(theirs) == _SMALL * 4


@pytest.mark.parametrize("end", ["close", "send_eof", "the turns"])
async def test_what_waits_leaves_before_the_end_of_its_connection(end: str) -> None:
    outbox = Outbox()
    with _pair(outbox) as (transport, theirs):
        with outbox.open():
            outbox.sent = True
            await transport.send(_SMALL)
            assert _arrived(theirs) == b""
            if end != "the turns":
                getattr(transport, end)()
                assert _arrived(theirs) == _SMALL
        assert _arrived(theirs) == (_SMALL if end == "the turns" else b"")


async def test_long_messages_and_gathered_ones_do_not_overtake_what_waits() -> None:
    outbox = Outbox()
    long = b"l" * (HELD_BYTES_MAX + 1)
    with outbox.open(), _pair(outbox) as (transport, theirs):
        outbox.sent = True
        await transport.send(_SMALL)
        await transport.send(long)
        assert _arrived(theirs) == _SMALL + long
        await transport.send(_SMALL)
        await transport.send(b"head", b"body")
        assert _arrived(theirs) == _SMALL + b"headbody"
        await transport.send(_SMALL)
        await transport.send(b"m" * HELD_BYTES_MAX)  # together they are long
        await trio.lowlevel.checkpoint()
        assert _arrived(theirs) == _SMALL + b"m" * HELD_BYTES_MAX


async def test_what_a_peer_does_not_take_goes_on_by_itself_and_before_everything_else() -> None:
    outbox = Outbox()
    with outbox.open(), _pair(outbox, buffer=4096) as (transport, theirs):
        full = transport.send_now(b"f" * _FULL)
        assert 0 < full < _FULL
        outbox.sent = True
        assert transport.send_now(b"h" * 9_000) == 9_000
        await trio.testing.wait_all_tasks_blocked()
        assert transport.send_now(b"later") == 0, "nothing may overtake what waits"
        assert transport.send_now(b"") == 0
        async with trio.open_nursery() as nursery:
            nursery.start_soon(transport.send, b"then this")
            heard = await _heard(theirs, full + 9_000 + 9)
        assert heard == b"f" * full + b"h" * 9_000 + b"then this"
        await transport.send(b"!")
        assert await _heard(theirs, 1) == b"!"


async def test_an_orderly_end_waits_for_what_the_peer_has_not_taken() -> None:
    outbox = Outbox()
    with outbox.open(), _pair(outbox, buffer=4096) as (transport, theirs):
        full = transport.send_now(b"f" * _FULL)
        outbox.sent = True
        await transport.send(b"h" * 9_000)

        async def finish() -> None:
            await transport.drain()
            transport.close()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(finish)
            heard = await _heard(theirs, full + 9_000)
        assert heard[full:] == b"h" * 9_000


async def test_an_end_waits_for_nobody_who_reads_nothing(
    autojump_clock: trio.testing.MockClock,
) -> None:
    outbox = Outbox()
    with outbox.open(), _pair(outbox, buffer=4096) as (transport, _):
        transport.send_now(b"f" * _FULL)
        outbox.sent = True
        await transport.send(b"h" * 9_000)
        began = trio.current_time()
        await transport.drain()
        assert trio.current_time() - began == 10


async def test_a_send_that_failed_at_the_end_of_its_turn_ends_the_wait_for_an_answer() -> None:
    outbox = Outbox()
    with outbox.open(), _pair(outbox) as (transport, theirs):
        theirs.close()
        outbox.sent = True
        await transport.send(_SMALL)
        with trio.fail_after(5):
            assert await transport.receive() == b""
        for _ in range(2):
            with pytest.raises(BrokenPipeError):
                await transport.send(_SMALL)
            with pytest.raises(BrokenPipeError):
                await transport.send(b"he", b"ad")
        await transport.drain()


async def test_one_that_is_closed_while_the_rest_is_sent_fails_who_waits_to_send() -> None:
    outbox = Outbox()
    with outbox.open(), _pair(outbox, buffer=4096) as (transport, _):
        transport.send_now(b"f" * _FULL)
        outbox.sent = True
        await transport.send(b"h" * 9_000)
        await trio.testing.wait_all_tasks_blocked()

        async def send() -> None:
            with pytest.raises(OSError, match="closed"):
                await transport.send(_SMALL)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            await trio.testing.wait_all_tasks_blocked()
            transport.close()


_MESSAGES = st.lists(
    st.tuples(
        st.integers(0, 2),  # who
        st.sampled_from((1, 100, 5_000, HELD_BYTES_MAX, HELD_BYTES_MAX + 1, 100_000)),
        st.booleans(),  # in one piece
        st.booleans(),  # the last of its turn
    ),
    max_size=25,
)


@given(messages=_MESSAGES, buffer=st.sampled_from((4096, 65_536)))
async def test_every_byte_arrives_once_and_in_order(
    messages: list[tuple[int, int, bool, bool]], buffer: int
) -> None:
    outbox = Outbox()
    sent = [b"", b"", b""]
    heard = [b"", b"", b""]
    with (
        outbox.open(),
        _pair(outbox, buffer=buffer) as one,
        _pair(outbox, buffer=buffer) as two,
        _pair(outbox, buffer=buffer) as three,
    ):
        ends = (one, two, three)

        async def read(place: int) -> None:
            theirs = ends[place][1]
            while True:
                await trio.lowlevel.wait_readable(theirs)
                if not (data := theirs.recv(RECEIVE_BYTES)):
                    return
                heard[place] += data

        async with trio.open_nursery() as nursery:
            for place in range(3):
                nursery.start_soon(read, place)
            for number, (place, size, whole, last) in enumerate(messages):
                data = bytes([number]) * size
                sent[place] += data
                pieces = (data,) if whole else (data[:1], data[1:])
                await ends[place][0].send(*pieces)
                if last:
                    await trio.lowlevel.checkpoint()
            for transport, _ in ends:
                await transport.drain()
                transport.send_eof()
    assert heard == sent
