"""What one end of a wire sends, the other receives; and everybody hears of an end."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from ledger.wire import SocketListener, SocketStream

Pair = tuple[SocketStream, SocketStream]


@pytest.fixture
def pair() -> Iterator[Pair]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield SocketStream(ours), SocketStream(theirs)


async def received(stream: SocketStream, size: int | None = None) -> bytes:
    data = b""
    while some := await stream.receive_some(size):
        data += some
    return data


async def sent(stream: SocketStream, parts: list[bytes]) -> None:
    for part in parts:
        await stream.send_all(part)
    await stream.aclose()


@given(parts=st.lists(st.binary(max_size=3_000)), size=st.integers(1, 5_000))
def test_everything_arrives_in_order(parts: list[bytes], size: int) -> None:
    async def main() -> bytes:
        ours, theirs = map(SocketStream, socket.socketpair())
        async with trio.open_nursery() as nursery, theirs:
            nursery.start_soon(sent, ours, parts)
            return await received(theirs, size)

    assert trio.run(main) == b"".join(parts)


async def test_more_than_the_kernel_takes_waits_for_the_other_end(pair: Pair) -> None:
    data = bytes(range(256)) * 20_000
    async with trio.open_nursery() as nursery:
        nursery.start_soon(sent, pair[0], [data])
        await trio.testing.wait_all_tasks_blocked()
        assert await received(pair[1]) == data


async def test_a_wire_without_its_other_end_is_broken(pair: Pair) -> None:
    await pair[1].aclose()
    with pytest.raises(trio.BrokenResourceError):
        await pair[0].send_all(b"x")
    assert await pair[0].receive_some() == b""


async def test_a_reset_is_broken_too(pair: Pair) -> None:
    await pair[0].send_all(b"never read")
    await pair[1].aclose()  # with something unread: the kernel says so
    with pytest.raises(trio.BrokenResourceError):
        await pair[0].receive_some()


async def test_closing_wakes_whoever_waits_and_refuses_whoever_comes(pair: Pair) -> None:
    async def waits() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await pair[0].receive_some()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(waits)
        await trio.testing.wait_all_tasks_blocked()
        await pair[0].aclose()
    await pair[0].aclose()
    with pytest.raises(trio.ClosedResourceError):
        await pair[0].receive_some()
    with pytest.raises(trio.ClosedResourceError):
        await pair[0].send_all(b"x")


async def test_a_cancelled_wait_takes_nothing(pair: Pair) -> None:
    with trio.move_on_after(0):
        await pair[1].receive_some()
    await pair[0].send_all(b"still there")
    assert await pair[1].receive_some() == b"still there"


async def test_who_connects_is_accepted(tmp_path: Path) -> None:
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(tmp_path / "s"))
    listening.listen()
    async with SocketListener(listening) as listener:
        with socket.socket(socket.AF_UNIX) as client:
            async with trio.open_nursery() as nursery:
                accepted: list[SocketStream] = []

                async def accept() -> None:
                    accepted.append(await listener.accept())

                nursery.start_soon(accept)
                await trio.testing.wait_all_tasks_blocked()
                client.connect(str(tmp_path / "s"))
            client.sendall(b"hello")
            async with accepted[0] as stream:
                assert await stream.receive_some() == b"hello"
