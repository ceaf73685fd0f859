"""Accepting over real sockets: a connection that fails is the only one that ends."""

from __future__ import annotations

import socket

import pytest
import trio

from proxy.connection import STALL_SECONDS
from proxy.listener import SEND_BUFFER_BYTES, Listener, bind
from proxy.transport import Transport

SECONDS = 10


async def ask(address: tuple[str, int], data: bytes) -> bytes:
    """What a connection answers; empty where it was closed."""
    stream = await trio.open_tcp_stream(*address)
    async with stream:
        await stream.send_all(data)
        try:
            return bytes(await stream.receive_some())
        except trio.BrokenResourceError:
            return b""


async def echo(transport: Transport) -> None:
    data = await transport.receive()
    if data == b"bug":
        raise RuntimeError("a bug of ours")
    await transport.send(data)


async def test_a_bug_costs_only_its_connection(capsys: pytest.CaptureFixture[str]) -> None:
    listener = Listener(bind("127.0.0.1", 0), echo, max_connections=10)
    with trio.fail_after(SECONDS):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(listener.run)
            assert await ask(listener.address, b"bug") == b""
            assert await ask(listener.address, b"hello") == b"hello"
            listener.stop()
    assert listener.connections == 0
    assert "a bug of ours" in capsys.readouterr().err


async def test_one_connection_too_many_is_turned_away() -> None:
    listener = Listener(bind("127.0.0.1", 0), echo, max_connections=1)
    with trio.fail_after(SECONDS):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(listener.run)
            first = await trio.open_tcp_stream(*listener.address)
            while not listener.connections:  # it is accepted any moment
                await trio.lowlevel.checkpoint()
            second = await trio.open_tcp_stream(*listener.address)
            assert (await second.receive_some()).startswith(b"HTTP/1.1 503 ")
            await first.send_all(b"still served")
            assert await first.receive_some() == b"still served"
            await first.aclose()
            await second.aclose()
            listener.stop()


async def test_stopping_lets_open_connections_finish() -> None:
    listener = Listener(bind("127.0.0.1", 0), echo, max_connections=10)
    with trio.fail_after(SECONDS):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(listener.run)
            stream = await trio.open_tcp_stream(*listener.address)
            while not listener.connections:  # it is accepted any moment
                await trio.lowlevel.checkpoint()
            address = listener.address
            listener.stop()
            await stream.send_all(b"late")
            assert await stream.receive_some() == b"late"
            await stream.aclose()
    with socket.socket() as probe:
        assert probe.connect_ex(address) != 0


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="is Linux's")
def test_connections_inherit_their_bounds() -> None:
    with bind("127.0.0.1", 0) as listening, socket.create_connection(listening.getsockname()):
        accepted, _ = listening.accept()
        with accepted:
            kept = accepted.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
            assert kept == 2 * SEND_BUFFER_BYTES  # the kernel's own structures are half of it
            unanswered = accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)
            assert unanswered == STALL_SECONDS * 1000
