"""Workers that share a socket get its connections evenly, however these come."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest
import trio

from proxy.health import shared_memory, shared_rows
from proxy.listener import Listener, Shares, bind
from proxy.transport import Transport


@pytest.fixture
def shared_socket() -> Iterator[socket.socket]:
    with bind("127.0.0.1", 0) as listening:
        yield listening


class Acceptors:
    """Workers that accept from one socket, and keep what they have; and others that do not run.

    Only their listeners are real: each has a place of its own in memory that they share.
    """

    def __init__(self, listening: socket.socket, count: int, *, absent: int = 0) -> None:
        self._address = listening.getsockname()
        self._memory = shared_memory(count + absent)
        self._clients: list[trio.SocketStream] = []
        self.all = [self._listener(listening.dup(), number) for number in range(count)]

    def _listener(self, listening: socket.socket, place: int) -> Listener:
        shares = Shares(shared_rows(self._memory, place))
        return Listener(listening, self._keep, max_connections=1000, shares=shares)

    async def _keep(self, transport: Transport) -> None:
        await transport.receive()

    async def connect(self, connections: int, *, pause_seconds: float) -> None:
        """Make so many connections, and wait until all are accepted."""
        before = sum(self.connections)
        for _ in range(connections):
            self._clients.append(await trio.open_tcp_stream(*self._address))
            await trio.sleep(pause_seconds)
        with trio.fail_after(10):
            while sum(self.connections) < before + connections:  # noqa: ASYNC110 - real sockets
                await trio.sleep(0.001)

    @property
    def connections(self) -> list[int]:
        """How many each has."""
        return [each.connections for each in self.all]

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """None runs yet: see `begin`."""
        async with trio.open_nursery() as self._nursery:
            yield
            for each in self.all:
                each.stop()
            for client in self._clients:
                await client.aclose()
        os.close(self._memory)

    def begin(self, *workers: Listener) -> None:
        """These run from now on."""
        for each in workers:
            self._nursery.start_soon(each.run)


@pytest.mark.parametrize("workers", [2, 4])
@pytest.mark.parametrize("pause_seconds", [0, 0.002], ids=["burst", "trickle"])
async def test_workers_get_connections_evenly(
    shared_socket: socket.socket, workers: int, pause_seconds: float
) -> None:
    acceptors = Acceptors(shared_socket, workers)
    async with acceptors.running():
        acceptors.begin(*acceptors.all)
        await acceptors.connect(128, pause_seconds=pause_seconds)
        assert max(acceptors.connections) <= 1.3 * 128 / workers


async def test_nobody_waits_for_a_worker_that_is_not_there(shared_socket: socket.socket) -> None:
    acceptors = Acceptors(shared_socket, 2, absent=1)
    async with acceptors.running():
        acceptors.begin(*acceptors.all)
        await acceptors.connect(40, pause_seconds=0)
        acceptors.all[0].stop()
        await acceptors.connect(40, pause_seconds=0)
        assert acceptors.connections[1] >= 50


async def test_a_worker_that_begins_anew_catches_up(shared_socket: socket.socket) -> None:
    acceptors = Acceptors(shared_socket, 2)
    first, second = acceptors.all
    async with acceptors.running():
        acceptors.begin(first)
        await acceptors.connect(40, pause_seconds=0)
        acceptors.begin(second)
        await acceptors.connect(40, pause_seconds=0)
        assert second.connections > 30
