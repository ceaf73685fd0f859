"""A network in memory: transports, a dialer and a watch with the real ones' behaviour.

Bounded buffers give back-pressure, closing resets the peer, a closed peer fires the watch. With
`trio.testing.MockClock` whole exchanges run in virtual time.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio

from proxy.transport import RECEIVE_BYTES, Transport

BUFFER_BYTES = 256 * 1024


class _Pipe:
    """One direction of a connection."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.ended = False  # the writer will send no more
        self.broken = False  # one side closed: writes fail, reads end
        self.changed = trio.lowlevel.ParkingLot()


class MemoryTransport:
    """One end of a connection in memory."""

    def __init__(self, incoming: _Pipe, outgoing: _Pipe) -> None:
        self._incoming = incoming
        self._outgoing = outgoing
        self.closed = False
        self.on_peer_close: Callable[[], None] | None = None
        self.peer: MemoryTransport | None = None

    async def receive(self) -> bytes:
        await trio.lowlevel.checkpoint()
        pipe = self._incoming
        while not pipe.data and not pipe.ended:
            self._check()
            await pipe.changed.park()
        self._check()
        data = bytes(pipe.data[:RECEIVE_BYTES])
        del pipe.data[:RECEIVE_BYTES]
        pipe.changed.unpark_all()
        return data

    async def send(self, data: bytes) -> None:
        await trio.lowlevel.checkpoint()
        pipe = self._outgoing
        view = memoryview(data)
        while view:
            self._check()
            if pipe.broken or pipe.ended:
                raise BrokenPipeError("peer closed")
            room = BUFFER_BYTES - len(pipe.data)
            if room <= 0:
                await pipe.changed.park()
                continue
            pipe.data += view[:room]
            view = view[room:]
            pipe.changed.unpark_all()

    def send_now(self, data: bytes) -> int:
        self._check()
        pipe = self._outgoing
        if pipe.broken or pipe.ended:
            raise BrokenPipeError("peer closed")
        taken = max(0, min(len(data), BUFFER_BYTES - len(pipe.data)))
        pipe.data += data[:taken]
        pipe.changed.unpark_all()
        return taken

    def send_eof(self) -> None:
        self._outgoing.ended = True
        self._outgoing.changed.unpark_all()
        if self.peer is not None and self.peer.on_peer_close is not None:
            self.peer.on_peer_close()

    def close(self) -> None:
        if self.closed:
            return
        self.closed = True
        self._incoming.broken = True
        self._incoming.changed.unpark_all()
        self.send_eof()

    def is_stale(self) -> bool:
        return bool(self._incoming.data) or self._incoming.ended

    def fileno(self) -> int:
        return -1

    def _check(self) -> None:
        if self.closed:
            raise OSError("transport is closed")


def connected_pair() -> tuple[MemoryTransport, MemoryTransport]:
    """Two ends of one connection."""
    there, back = _Pipe(), _Pipe()
    left, right = MemoryTransport(back, there), MemoryTransport(there, back)
    left.peer, right.peer = right, left
    return left, right


class MemoryWatch:
    """Cancels a scope when the peer of a memory transport goes."""

    def add(self, transport: Transport, scope: trio.CancelScope) -> None:
        assert isinstance(transport, MemoryTransport)
        transport.on_peer_close = scope.cancel
        if transport.peer is not None and transport.peer.closed:
            scope.cancel()

    def remove(self, transport: Transport) -> None:
        assert isinstance(transport, MemoryTransport)
        transport.on_peer_close = None

    async def run(self) -> None:
        await trio.sleep_forever()


class MemoryDialer:
    """Hosts by name: each is a handler for the server's end of a new connection.

    A host that is not listed refuses connections; one whose handler is an exception raises it.
    """

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self.hosts: dict[str, Callable[[Transport], Awaitable[None]] | OSError] = {}
        self.delays: dict[str, float] = {}
        self.dialled: list[str] = []

    async def connect(self, host: str, port: int, *, tls: bool) -> Transport:
        self.dialled.append(host)
        await trio.sleep(self.delays.get(host, 0))
        handler = self.hosts.get(host, ConnectionRefusedError(f"nobody listens at {host}:{port}"))
        if isinstance(handler, OSError):
            raise handler
        ours, theirs = connected_pair()
        self._nursery.start_soon(self._serve, handler, theirs)
        return ours

    async def _serve(
        self, handler: Callable[[Transport], Awaitable[None]], transport: Transport
    ) -> None:
        try:
            await handler(transport)
        finally:
            transport.close()
