"""The accept loop: one task a connection, a bound on their number, and drain.

A full machine (no file descriptors, no memory) is waited out; anything else that goes wrong while
accepting is a bug and ends the worker. What goes wrong inside a connection ends that connection.

What a client leaves unread is bounded here as well, for all of its connections at once.

Where several workers share a socket, every one of them is woken for a connection, and the quickest
would take it, and the next ones, and keep them: clients hold on to theirs. So each lets the others
know how many it has (`proxy.shared_rows`), and who has more than the least of them steps back for a
moment before it takes what is still there then. Nobody has to wait for a worker that is busy, or
gone. (Sockets of their own, SO_REUSEPORT, spread by a hash: one worker of four gets more than 1.3
times its share of 128 connections in every ninth start, and what waits for one that dies is lost.)
"""

from __future__ import annotations

import errno
import socket
import sys
import traceback
from collections.abc import Awaitable, Callable

import trio

from proxy.cork import Cork
from proxy.shared_rows import Row, Rows
from proxy.transport import SocketTransport, Transport, known_options

_MACHINE_FULL = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
_FULL_PAUSE_SECONDS = 0.1
SEND_BUFFER_BYTES = 131_072
_OPTIONS = known_options(
    (socket.SOL_SOCKET, "SO_SNDBUF", SEND_BUFFER_BYTES),
    (socket.IPPROTO_TCP, "TCP_USER_TIMEOUT", 120_000),  # milliseconds
)
_STEP_BACK_SECONDS = 0.001
_SLACK = 16  # a sixteenth more than the least is no reason to step back: storms are over sooner
_ROW = "connections"  # no upstream's: their names have a slash
_TAKES_NONE = 1 << 62
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


class Shares:
    """How many connections each worker of a node has, as one of them sees it."""

    def __init__(self, rows: Rows) -> None:
        self._row: Row = rows.row(_ROW)

    def tell(self, connections: int) -> None:
        """So many has this one."""
        self._row.words[self._row.place] = connections

    def withdraw(self) -> None:
        """This one takes no more: the others need not wait for it."""
        self.tell(_TAKES_NONE)

    def ahead(self, connections: int) -> bool:
        """Whether one that has so many should let others go first."""
        least = min(self._row.places)
        return connections > least + least // _SLACK


class Listener:
    """Serves every connection of one socket with `handler`, which closes nothing itself.

    `shares`: others accept from the same socket. `cork`: where upstreams' requests wait as well.
    """

    def __init__(
        self,
        listening: socket.socket,
        handler: Handler,
        *,
        max_connections: int,
        shares: Shares | None = None,
        cork: Cork | None = None,
    ) -> None:
        listening.setblocking(False)
        self._socket = listening
        self._handler = handler
        self._max_connections = max_connections
        self._shares = shares
        self._cork = Cork() if cork is None else cork
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
        if self._shares is not None:
            self._shares.withdraw()
            self._shares = None

    async def run(self) -> None:
        """Accept until stopped, then return when the last connection has ended."""
        with self._cork.open():
            async with trio.open_nursery() as connections:
                await self._accept_into(connections)
                self._socket.close()

    async def _accept_into(self, connections: trio.Nursery) -> None:
        with self._accepting:
            while True:
                accepted = await self._accept()
                if self.connections >= self._max_connections:
                    _turn_away(accepted)
                    continue
                self._count(1)
                connections.start_soon(self._serve, accepted)

    async def _accept(self) -> socket.socket:
        while True:
            await trio.lowlevel.wait_readable(self._socket)
            if self._shares is not None and self._shares.ahead(self.connections):
                await trio.sleep(_STEP_BACK_SECONDS)
            try:
                return self._socket.accept()[0]
            except BlockingIOError:
                continue  # another worker has it
            except OSError as error:
                if error.errno in _MACHINE_FULL:
                    await trio.sleep(_FULL_PAUSE_SECONDS)
                elif error.errno not in (errno.ECONNABORTED, errno.EPROTO):
                    raise

    async def _serve(self, accepted: socket.socket) -> None:
        try:
            transport = SocketTransport(accepted, self._cork)
            try:
                await self._handler(transport)
            finally:
                transport.close()
        except Exception:  # a bug costs its connection, not the worker with all others
            sys.stderr.write(f"A connection failed: {traceback.format_exc()}")
        finally:
            accepted.close()
            self._count(-1)

    def _count(self, change: int) -> None:
        self.connections += change
        if self._shares is not None:
            self._shares.tell(self.connections)


def _turn_away(accepted: socket.socket) -> None:
    """One connection too many: say so (a fresh socket's buffer takes it) and never wait."""
    with accepted:
        accepted.setblocking(False)
        try:
            accepted.send(_BUSY)
        except OSError:
            return
