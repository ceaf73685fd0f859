"""A socket between processes of one machine as a stream, with as few steps as there can be.

`trio.SocketStream` lets other tasks run after every call that went through at once, and asks the
socket for data before it waits, in vain as a rule. For messages of microseconds that is most of
what they cost. Here sending is a checkpoint only where the other end does not keep up, and
receiving always begins with waiting.
"""

from __future__ import annotations

import socket

import trio


class SocketStream(trio.abc.Stream):
    """A connected socket. One task sends and one receives."""

    def __init__(self, connected: socket.socket) -> None:
        connected.setblocking(False)
        self._socket = connected

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Raises BrokenResourceError or ClosedResourceError."""
        rest = memoryview(data)
        while rest:
            sent = self.send_now(rest)
            if not sent:
                await self.wait_send_all_might_not_block()
            rest = rest[sent:]

    def send_now(self, data: bytes | memoryview) -> int:
        """How much of it goes through without waiting. Raises as `send_all` does."""
        try:
            return self._socket.send(data)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise self._why(error) from error

    async def wait_send_all_might_not_block(self) -> None:
        """Raises ClosedResourceError."""
        await trio.lowlevel.wait_writable(self._socket)

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Raises BrokenResourceError or ClosedResourceError; nothing is the end."""
        while True:
            if self._socket.fileno() < 0:
                raise trio.ClosedResourceError("this end was closed")
            await trio.lowlevel.wait_readable(self._socket)
            try:
                return self._socket.recv(max_bytes or 65536)
            except BlockingIOError:
                continue
            except OSError as error:
                raise self._why(error) from error

    async def aclose(self) -> None:
        """Close; whoever waits on it gets ClosedResourceError."""
        if self._socket.fileno() >= 0:
            trio.lowlevel.notify_closing(self._socket)
            self._socket.close()
        await trio.lowlevel.checkpoint()

    def _why(self, error: OSError) -> Exception:
        if self._socket.fileno() < 0:
            return trio.ClosedResourceError("this end was closed")
        return trio.BrokenResourceError(str(error))


class SocketListener(trio.abc.Listener[SocketStream]):
    """A listening unix socket."""

    def __init__(self, listening: socket.socket) -> None:
        listening.setblocking(False)
        self._socket = listening

    async def accept(self) -> SocketStream:
        """The next connection."""
        while True:
            await trio.lowlevel.wait_readable(self._socket)
            try:
                connected, _ = self._socket.accept()
            except (BlockingIOError, ConnectionAbortedError):
                continue
            return SocketStream(connected)

    async def aclose(self) -> None:
        """Close."""
        trio.lowlevel.notify_closing(self._socket)
        self._socket.close()
        await trio.lowlevel.checkpoint()
