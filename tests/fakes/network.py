"""A network in memory: transports, a dialer and a watch with the real ones' behaviour.

Bounded buffers give back-pressure, closing resets the peer, a closed peer fires the watch. With
`trio.testing.MockClock` whole exchanges run in virtual time.

How a connection can fail to come about is data: an `OSError` where one is raised, seconds where it
takes its time, `NEVER` where nobody answers. `refused`, `unknown_host`, `bad_certificate` and
`tls_broken` are the errors as the real network raises them.
"""

from __future__ import annotations

import errno
import math
import socket
import ssl
from collections import deque
from collections.abc import Awaitable, Callable, Sequence

import trio

from proxy.transport import RECEIVE_BYTES, Transport

ADDRESS = "192.0.2.7"
"""Where everybody is."""

BUFFER_BYTES = 256 * 1024
NEVER = math.inf
"""So long takes what does not happen."""

Trouble = OSError | float
"""What a connection meets: an error, or seconds until it is there."""


def refused() -> OSError:
    """Nobody listens there."""
    return ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")


def unknown_host() -> OSError:
    """A name that no server knows."""
    return socket.gaierror(socket.EAI_NONAME, "Name or service not known")


def bad_certificate() -> OSError:
    """A server that is not who it should be."""
    error = ssl.SSLCertVerificationError(1, "[SSL: CERTIFICATE_VERIFY_FAILED]")
    error.reason = "CERTIFICATE_VERIFY_FAILED"
    error.verify_message = "certificate has expired"
    return error


def tls_broken() -> OSError:
    """A server that speaks something else."""
    error = ssl.SSLError(1, "[SSL: WRONG_VERSION_NUMBER] wrong version number")
    error.reason = "WRONG_VERSION_NUMBER"
    return error


class _Pipe:
    """One direction of a connection."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.ended = False  # the writer will send no more
        self.broken = False  # one side closed: writes fail, reads end
        self.was_reset = False  # and reads fail behind what has arrived
        self.changed = trio.lowlevel.ParkingLot()


class MemoryTransport:
    """One end of a connection in memory."""

    def __init__(self, incoming: _Pipe, outgoing: _Pipe) -> None:
        self._incoming = incoming
        self._outgoing = outgoing
        self.closed = False
        self.acknowledged = 0
        self.on_peer_close: Callable[[], None] | None = None
        self.peer: MemoryTransport | None = None

    async def receive(self) -> bytes:
        await trio.lowlevel.checkpoint()
        pipe = self._incoming
        while not pipe.data and not pipe.ended:
            self._check()
            await pipe.changed.park()
        self._check()
        if pipe.was_reset and not pipe.data:
            raise ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")
        data = bytes(pipe.data[:RECEIVE_BYTES])
        del pipe.data[:RECEIVE_BYTES]
        pipe.changed.unpark_all()
        return data

    async def send(self, *pieces: bytes | memoryview) -> None:
        await trio.lowlevel.checkpoint()
        pipe = self._outgoing
        view = memoryview(b"".join(pieces))
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

    def acknowledge(self) -> None:
        self.acknowledged += 1

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

    def reset(self) -> None:
        """Close without a goodbye: the peer's next receive fails instead of ending."""
        self._outgoing.was_reset = True
        self.close()

    async def peer_gone(self) -> None:
        """Until the peer sends no more, whatever it has sent before."""
        while not self._incoming.ended:
            await self._incoming.changed.park()

    def is_stale(self) -> bool:
        return bool(self._incoming.data) or self._incoming.ended

    def fileno(self) -> int:
        return -1

    def address(self) -> str:
        return ADDRESS

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
    Connections to a host take `delays[host]` seconds; but the next ones meet its `troubles`, one
    each and in order. `dialled` are the hosts, and `dialled_at` the moments, of all of them.
    """

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self.hosts: dict[str, Callable[[Transport], Awaitable[None]] | OSError] = {}
        self.delays: dict[str, float] = {}
        self.dialled: list[str] = []
        self.dialled_at: list[float] = []
        self._troubles: dict[str, deque[Trouble]] = {}

    def trouble(self, host: str, troubles: Sequence[Trouble]) -> None:
        """What the next connections to `host` meet."""
        self._troubles.setdefault(host, deque()).extend(troubles)

    async def connect(self, host: str, port: int, *, tls: bool) -> Transport:
        self.dialled.append(host)
        self.dialled_at.append(trio.current_time())
        waiting = self._troubles.get(host)
        trouble = waiting.popleft() if waiting else self.delays.get(host, 0)
        if isinstance(trouble, OSError):
            await trio.lowlevel.checkpoint()
            raise trouble
        await trio.sleep(trouble)
        handler = self.hosts.get(host, refused())
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
