"""The accept loop: one task a connection, a bound on their number, and drain.

A full machine (no file descriptors, no memory) is waited out; anything else that goes wrong while
accepting is a bug and ends the worker. What goes wrong inside a connection ends that connection.

What a client leaves unread is bounded here as well, for all of its connections at once.

Where several workers share a socket, whoever is awake could take a whole burst of connections, and
keep it: clients hold on to theirs. So after a few a worker steps back for a moment, which is long
enough for another to be woken.
"""

from __future__ import annotations

import errno
import socket
import sys
import traceback
from collections.abc import Awaitable, Callable

import trio

from proxy.transport import SocketTransport, Transport, detached, known_options

_MACHINE_FULL = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
_FULL_PAUSE_SECONDS = 0.1
_IN_A_ROW_MAX = 2
SEND_BUFFER_BYTES = 131_072
_OPTIONS = known_options(
    (socket.SOL_SOCKET, "SO_SNDBUF", SEND_BUFFER_BYTES),
    (socket.IPPROTO_TCP, "TCP_USER_TIMEOUT", 120_000),  # milliseconds
)
_STEP_BACK_SECONDS = 0.001
_BUSY = (
    b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\ncontent-length: 0\r\n"
    b"connection: close\r\n\r\n"
)

Handler = Callable[[Transport], Awaitable[None]]


def bind(host: str, port: int, *, backlog: int = 4096) -> socket.socket:
    """A listening TCP socket; IPv6 literals come without brackets. Raises OSError.

    Connections inherit what is set here, without a system call of their own.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        _bound_what_is_unread(listening)
        listening.bind((host, port))
        listening.listen(backlog)
    except BaseException:
        listening.close()
        raise
    return listening


def _bound_what_is_unread(listening: socket.socket) -> None:
    """Let the kernel keep little for clients that do not read, and not for ever.

    By itself it takes up to 4 MiB of an answer for a client that reads nothing, and goes on trying
    for a quarter of an hour where one has vanished without a word. With a buffer of a fixed size it
    takes at most twice that with its own structures, which still carries some 2 MB a second over a
    tenth of a second of distance: many times what any model writes.
    """
    for level, option, value in _OPTIONS:
        listening.setsockopt(level, option, value)


class Listener:
    """Serves every connection of one socket with `handler`, which closes nothing itself.

    `shared`: others accept from the same socket.
    """

    def __init__(
        self,
        listening: socket.socket,
        handler: Handler,
        *,
        max_connections: int,
        shared: bool = False,
    ) -> None:
        listening.setblocking(False)
        self._socket = trio.socket.from_stdlib_socket(listening)
        self._handler = handler
        self._max_connections = max_connections
        self._shared = shared
        self._accepted = 0
        self._accepting = trio.CancelScope()
        self.connections = 0

    @property
    def address(self) -> tuple[str, int]:
        """Where it listens: host and port."""
        host, port = self._socket.getsockname()[:2]
        return host, port

    def stop(self) -> None:
        """Accept no more; connections that are open go on."""
        self._accepting.cancel()

    async def run(self) -> None:
        """Accept until stopped, then return when the last connection has ended."""
        async with trio.open_nursery() as connections:
            with self._accepting:
                while True:
                    accepted = await self._accept()
                    if self.connections >= self._max_connections:
                        await _turn_away(accepted)
                        continue
                    self.connections += 1
                    connections.start_soon(self._serve, accepted)
                    self._accepted += 1
                    if self._shared and self._accepted % _IN_A_ROW_MAX == 0:
                        await trio.sleep(_STEP_BACK_SECONDS)
            self._socket.close()

    async def _accept(self) -> trio.socket.SocketType:
        while True:
            try:
                accepted, _ = await self._socket.accept()
            except OSError as error:
                if error.errno in _MACHINE_FULL:
                    await trio.sleep(_FULL_PAUSE_SECONDS)
                elif error.errno not in (errno.ECONNABORTED, errno.EPROTO):
                    raise
            else:
                return accepted

    async def _serve(self, accepted: trio.socket.SocketType) -> None:
        with detached(accepted) as plain:
            try:
                transport = SocketTransport(plain)
                try:
                    await self._handler(transport)
                finally:
                    transport.close()
            except Exception:  # a bug costs its connection, not the worker with all others
                sys.stderr.write(f"A connection failed: {traceback.format_exc()}")
            finally:
                self.connections -= 1


async def _turn_away(accepted: trio.socket.SocketType) -> None:
    """One connection too many: say so (a fresh socket's buffer takes it) and never wait."""
    with accepted:
        try:
            await accepted.send(_BUSY)
        except OSError:
            return
