"""Clients that do not read: what they hold of the gateway's memory, and for how long.

What a stream holds is measured over real sockets, from outside: whatever the provider got rid of
and the client's machine has not received lies with the gateway, in its own memory or its kernel's.
"""

from __future__ import annotations

import array
import contextlib
import fcntl
import json
import os
import socket
import struct
import sys
import termios
from functools import partial
from typing import Protocol

import pytest
import trio
from trio.testing import MockClock

from adapters.catalogue import Provider
from ledger.store import EventStatus
from proxy.connection import STALL_SECONDS
from proxy.exchange import serve_connection
from proxy.listener import Listener, bind
from proxy.settings import ServerSettings
from proxy.transport import RECEIVE_BYTES, SocketDialer, Transport
from proxy.upstream import Upstreams
from proxy.watch import EpollWatch
from tests.fakes import provider
from tests.fakes.gateway import KEY, Client, World, model_of, running
from tests.fakes.provider import STREAM_HEAD, ScriptedProvider, delta

CHAT = "/v1/chat/completions"
ASK = {"model": "gpt", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1_000_000}
MIB = 1024 * 1024

READERS = 50
READ_BYTES = MIB  # before they stop: by then the kernel has widened what it widens
STREAM_BYTES_MAX = MIB
QUIET_SECONDS = 0.3
SECONDS = 60
SO_MEMINFO = 55  # not in Python's socket module


# -- how long -------------------------------------------------------------------------------------


async def log_of(world: World) -> list[int]:
    """The statuses in the log."""
    while not world.log:  # noqa: ASYNC110 - a thread writes it
        await trio.sleep(1)
    return [json.loads(line)["status"] for lines in world.log for line in lines.splitlines()]


async def unread(client: Client, **options: object) -> None:
    """Ask, and read nothing of the answer."""
    await client.send(CHAT, ASK | options)


async def test_a_stream_that_nobody_reads_is_cut_and_charged(autojump_clock: MockClock) -> None:
    endless = ScriptedProvider([STREAM_HEAD, *[delta("x" * 9000)] * 100, 3600.0])
    async with running({"p": endless}) as world:
        client = world.connect()
        await unread(client, stream=True)
        await trio.sleep(STALL_SECONDS - 1)
        assert world.gateway.load.exchanges == 1
        await trio.sleep(3)
        assert world.gateway.load.exchanges == 0
        (event,) = await world.flushed()
        assert event.status == EventStatus.CANCELLED
        assert event.charge > 0
        assert await log_of(world) == [499]
        await world.assert_books_are_clean()


async def test_a_whole_answer_that_nobody_takes_is_given_up(autojump_clock: MockClock) -> None:
    long = ScriptedProvider(provider.completion("x" * MIB))
    async with running({"p": long}) as world:
        client = world.connect()
        await unread(client)
        await trio.sleep(STALL_SECONDS - 1)
        assert world.gateway.load.exchanges == 1
        await trio.sleep(3)
        assert world.gateway.load.exchanges == 0
        assert world.gateway.memory.held_bytes == 0
        (event,) = await world.flushed()
        assert event.status == EventStatus.SETTLED  # it was complete
        assert await log_of(world) == [499]
        await world.assert_books_are_clean()


async def test_a_stream_that_is_read_now_and_then_goes_on(autojump_clock: MockClock) -> None:
    script = provider.stream(*["x" * 9000] * 100)
    settings = ServerSettings(max_request_seconds=3600)
    async with running({"p": ScriptedProvider(script)}, settings=settings) as world:
        client = world.connect()
        await unread(client, stream=True)
        received = data = b"..."
        while data and b"[DONE]" not in received:
            await trio.sleep(STALL_SECONDS - 1)
            data = await client.transport.receive()
            received += data
        assert data, "it was cut"
        assert await log_of(world) == [200]


# -- how much -------------------------------------------------------------------------------------


class Pouring:
    """A provider that streams as fast as anybody takes it."""

    def __init__(self) -> None:
        self.streams: list[trio.SocketStream] = []
        self.sent_bytes = 0

    async def serve(self, stream: trio.SocketStream) -> None:
        self.streams.append(stream)
        chunk = delta("x" * 4000) * 4
        with contextlib.suppress(OSError, trio.BrokenResourceError):
            await stream.receive_some()
            await stream.send_all(STREAM_HEAD)
            at = 0
            while True:
                sent = await stream.socket.send(chunk[at:])
                at = (at + sent) % len(chunk)
                self.sent_bytes += sent


class RememberingDialer(SocketDialer):
    """The real one, which knows what it has opened."""

    def __init__(self) -> None:
        super().__init__()
        self.opened: list[Transport] = []

    async def connect(self, host: str, port: int, *, tls: bool) -> Transport:
        transport = await super().connect(host, port, tls=tls)
        self.opened.append(transport)
        return transport


def unacknowledged_bytes(sock: Pollable) -> int:
    """Sent, and not in the peer's kernel yet."""
    return _told(sock, termios.TIOCOUTQ)


def unread_bytes(sock: Pollable) -> int:
    """Received, and read by nobody yet."""
    return _told(sock, termios.FIONREAD)


def _told(sock: Pollable, question: int) -> int:
    answer = array.array("i", [0])
    fcntl.ioctl(sock.fileno(), question, answer)
    return answer[0]


def kernel_bytes(transport: Transport) -> int:
    """What the kernel holds for a connection, its own structures included."""
    with socket.socket(fileno=os.dup(transport.fileno())) as sock:
        told = sock.getsockopt(socket.SOL_SOCKET, SO_MEMINFO, 36)
    received, _, _, _, _, queued, _, _, _ = struct.unpack("9I", told)
    return int(received + queued)


class Reader:
    """A client that reads for a while, and then no more."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self.read_bytes = 0

    async def ask(self) -> None:
        body = json.dumps(ASK | {"stream": True, "max_tokens": 100}).encode()
        await self.stream.send_all(
            f"POST {CHAT} HTTP/1.1\r\nhost: gateway\r\nauthorization: Bearer {KEY}\r\n"
            f"content-length: {len(body)}\r\n\r\n".encode()
            + body
        )
        data = await self.stream.receive_some()
        assert data.startswith(b"HTTP/1.1 200 "), data
        while data and self.read_bytes < READ_BYTES:
            self.read_bytes += len(data)
            data = await self.stream.receive_some()
        self.read_bytes += len(data)


async def nothing_moves(pouring: Pouring) -> None:
    """Until the provider cannot get rid of any more."""
    sent = -1
    while sent != pouring.sent_bytes:
        sent = pouring.sent_bytes
        await trio.sleep(QUIET_SECONDS)


@pytest.mark.skipif(sys.platform != "linux", reason="asks the Linux kernel what it holds")
async def test_a_stream_that_nobody_reads_holds_less_than_a_mebibyte() -> None:
    pouring = Pouring()
    async with trio.open_nursery() as providers:
        (listening,) = await providers.start(
            partial(trio.serve_tcp, pouring.serve, 0, host="127.0.0.1")
        )
        port = listening.socket.getsockname()[1]
        host = Provider("p", "openai", f"http://127.0.0.1:{port}/v1", api_keys=("key",))
        with trio.fail_after(SECONDS):
            async with running({}, models=[model_of("gpt", host)]) as world:
                await hold_still(world, pouring)
        providers.cancel_scope.cancel()


async def hold_still(world: World, pouring: Pouring) -> None:
    """Readers over real sockets who stop; what they hold."""
    gateway = world.gateway
    dialer, clients = RememberingDialer(), list[Transport]()
    gateway.upstreams, gateway.watch = Upstreams(dialer), EpollWatch()

    async def serve(transport: Transport) -> None:
        clients.append(transport)
        await serve_connection(gateway, transport)

    listener = Listener(bind("127.0.0.1", 0), serve, max_connections=READERS)
    world.nursery.start_soon(gateway.watch.run)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(listener.run)
        readers = [Reader(await trio.open_tcp_stream(*listener.address)) for _ in range(READERS)]
        async with trio.open_nursery() as reading:
            for reader in readers:
                reading.start_soon(reader.ask)
        await nothing_moves(pouring)
        kernel = [kernel_bytes(each) for each in (*clients, *dialer.opened)]
        delivered = sum(each.read_bytes + unread_bytes(each.stream.socket) for each in readers)
        queued = sum(unacknowledged_bytes(each.socket) for each in pouring.streams)
        held = pouring.sent_bytes - queued - delivered
        for reader in readers:
            await reader.stream.aclose()
        listener.stop()
    assert len(kernel) == 2 * READERS
    assert held / READERS < STREAM_BYTES_MAX, "what the provider is rid of and the client has not"
    assert sum(kernel) / READERS < STREAM_BYTES_MAX - 2 * RECEIVE_BYTES
    assert max(kernel) < STREAM_BYTES_MAX
    print(f"{held // READERS} bytes a stream, {sum(kernel) // READERS} in the kernel")  # noqa: T201
    assert gateway.load.exchanges == 0


class Pollable(Protocol):
    """What has a file descriptor."""

    def fileno(self) -> int: ...
