"""What is sent in one turn of the loop leaves together: in order, whole, and never not at all."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from itertools import pairwise

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from proxy.cork import Cork
from proxy.transport import HELD_BYTES_MAX, RECEIVE_BYTES, SocketTransport

_SMALL = b"answer"
_FULL = 1 << 20


@contextmanager
def _pair(cork: Cork | None, *, buffer: int = 0) -> Iterator[tuple[SocketTransport, socket.socket]]:
    """Our end of a connection, and the peer's plain socket."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        ours = socket.create_connection(listening.getsockname())
        theirs, _ = listening.accept()
    if buffer:
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer)
    theirs.setblocking(False)
    with closing(SocketTransport(ours, cork)) as transport, theirs:
        yield transport, theirs


def _arrived(theirs: socket.socket) -> bytes:
    data = b""
    with suppress(BlockingIOError):
        while piece := theirs.recv(RECEIVE_BYTES):
            data += piece
    return data


async def test_the_first_of_a_turn_leaves_at_once_and_the_others_at_its_end() -> None:
    cork = Cork()
    with cork.open(), _pair(cork) as (one, first), _pair(cork) as (other, second):
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
    cork = Cork()
    with _pair(cork) as (transport, theirs):
        with cork.open():
            await transport.send(_SMALL)
        for _ in range(3):
            await transport.send(_SMALL)
        assert _arrived(theirs) == _SMALL * 4


@pytest.mark.parametrize("end", ["close", "send_eof", "the turns"])
async def test_what_waits_leaves_before_the_end_of_its_connection(end: str) -> None:
    cork = Cork()
    with _pair(cork) as (transport, theirs):
        with cork.open():
            cork.sent = True
            await transport.send(_SMALL)
            assert _arrived(theirs) == b""
            if end != "the turns":
                getattr(transport, end)()
                assert _arrived(theirs) == _SMALL
        assert _arrived(theirs) == (_SMALL if end == "the turns" else b"")


async def test_long_messages_and_gathered_ones_do_not_overtake_what_waits() -> None:
    cork = Cork()
    long = b"l" * (HELD_BYTES_MAX + 1)
    with cork.open(), _pair(cork) as (transport, theirs):
        cork.sent = True
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


async def test_what_the_kernel_might_take_in_part_does_not_wait() -> None:
    """Because the peer has not taken what was sent before, or the buffer is too small for it."""
    cork = Cork()
    with cork.open(), _pair(cork) as (transport, theirs):
        sent = transport.send_now(b"f" * _FULL)
        cork.sent = True
        sent += transport.send_now(_SMALL)
        assert len(_arrived(theirs)) == sent
    with cork.open(), _pair(cork, buffer=4096) as (transport, theirs):
        cork.sent = True
        await transport.send(_SMALL)
        assert _arrived(theirs) == _SMALL


async def test_what_the_kernel_does_not_take_after_all_ends_its_connection() -> None:
    """It cannot be sent in part, and must not be left out: who waits for an answer is told."""
    cork = Cork()
    with cork.open(), _pair(cork) as (transport, theirs):
        cork.sent = True
        await transport.send(_SMALL)
        while transport._socket.send(b"f" * _FULL) == _FULL:
            pass
        transport.flush()
        with trio.fail_after(5):
            assert await transport.receive() == b""
        with pytest.raises(BrokenPipeError):
            await transport.send(_SMALL)
        assert _SMALL not in _arrived(theirs)


async def test_a_send_that_failed_at_the_end_of_its_turn_ends_the_wait_for_an_answer() -> None:
    cork = Cork()
    with cork.open(), _pair(cork) as (transport, theirs):
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        theirs.close()
        cork.sent = True
        await transport.send(_SMALL)
        with trio.fail_after(5), suppress(ConnectionResetError):
            assert await transport.receive() == b""
        for pieces in ((_SMALL,), (b"he", b"ad")):
            cork.sent = False
            with pytest.raises(BrokenPipeError):
                await transport.send(*pieces)


async def test_of_a_closed_transport_nothing_waits() -> None:
    cork = Cork()
    with cork.open(), _pair(cork) as (transport, _):
        cork.sent = True
        await transport.send(_SMALL)
        transport.close()
        with pytest.raises(OSError, match="descriptor"):
            await transport.send(_SMALL)
        await trio.lowlevel.checkpoint()


async def test_once_it_has_failed_nothing_waits_any_more(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """trio takes a hook away that raises: its turns have no end then."""

    class Failing:
        def flush(self) -> None:
            raise MemoryError

    cork = Cork()
    with cork.open(), _pair(cork) as (transport, theirs):
        cork.hold(Failing())
        await trio.lowlevel.checkpoint()
        for _ in range(2):
            await transport.send(_SMALL)
        assert _arrived(theirs) == _SMALL * 2
    assert "MemoryError" in caplog.text


_MESSAGES = st.lists(
    st.tuples(
        st.integers(0, 2),  # who
        st.sampled_from((1, 100, 5_000, HELD_BYTES_MAX, HELD_BYTES_MAX + 1, 100_000)),
        st.booleans(),  # in one piece
        st.booleans(),  # the last of its turn
    ),
    max_size=25,
)


@given(messages=_MESSAGES, buffer=st.sampled_from((4096, 16_384, 65_536)))
async def test_every_byte_arrives_once_and_in_order(
    messages: list[tuple[int, int, bool, bool]], buffer: int
) -> None:
    cork = Cork()
    sent = [b"", b"", b""]
    heard = [b"", b"", b""]
    with (
        cork.open(),
        _pair(cork, buffer=buffer) as one,
        _pair(cork, buffer=buffer) as two,
        _pair(cork, buffer=buffer) as three,
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
                cuts = (0, size // 3, size // 2, size)
                pieces = [data] if whole else [data[a:b] for a, b in pairwise(cuts)]
                await ends[place][0].send(*pieces)
                if last:
                    await trio.lowlevel.checkpoint()
            for transport, _ in ends:
                transport.send_eof()
    assert heard == sent
