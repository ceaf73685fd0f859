"""Byte streams: the narrow interface between protocol code and the network.

The data plane and the sandbox see only `Transport` and `Dialer`; production gives them sockets,
tests give them memory. Sockets are plain non-blocking ones under trio's `wait_readable`: what we
read next has practically never arrived yet, so trying first costs a system call and an exception,
and what we send practically always fits, so a checkpoint after it costs a turn of the scheduler.
Every receive waits, which is where tasks take turns and are cancelled.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
from typing import Protocol

import trio

RECEIVE_BYTES = 65_536


class Transport(Protocol):
    """A connected byte stream. Failures of the network are `OSError`."""

    async def receive(self) -> bytes:
        """Whatever has arrived, at most `RECEIVE_BYTES`; empty at the end of the stream."""
        ...

    async def send(self, data: bytes) -> None:
        """Send all of `data`. Cancelled or failed half-way, the stream is unusable."""
        ...

    def send_now(self, data: bytes) -> int:
        """Send what there is room for without waiting; how many bytes were taken."""
        ...

    def send_eof(self) -> None:
        """Say that nothing more will be sent; what the peer still sends can be received."""
        ...

    def close(self) -> None:
        """Drop the connection at once. May be called twice."""
        ...

    def is_stale(self) -> bool:
        """True where an idle connection was closed, or spoke, behind our back."""
        ...

    def fileno(self) -> int:
        """The file descriptor to watch for the peer leaving, or -1 where there is none."""
        ...


class SocketTransport:
    """A plain TCP (or Unix) connection."""

    __slots__ = ("_socket",)

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        sock.setblocking(False)
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    async def receive(self) -> bytes:
        while True:
            await trio.lowlevel.wait_readable(self._socket)
            try:
                return self._socket.recv(RECEIVE_BYTES)
            except BlockingIOError:
                continue  # woken for nothing

    async def send(self, data: bytes) -> None:
        sent = self._try_to_send(data)
        if sent == len(data):
            return
        with memoryview(data) as view:
            while sent < len(data):
                await trio.lowlevel.wait_writable(self._socket)
                sent += self._try_to_send(view[sent:])

    def send_now(self, data: bytes) -> int:
        return self._try_to_send(data)

    def _try_to_send(self, data: bytes | memoryview) -> int:
        try:
            return self._socket.send(data)
        except BlockingIOError:
            return 0

    def send_eof(self) -> None:
        # A peer that is gone already is what the next receive will tell.
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        if self._socket.fileno() >= 0:
            trio.lowlevel.notify_closing(self._socket)
            self._socket.close()

    def is_stale(self) -> bool:
        # An idle HTTP/1.1 peer has nothing to say: readable means closed or confused.
        try:
            self._socket.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            return True
        return True

    def fileno(self) -> int:
        return self._socket.fileno()


class TLSTransport:
    """A TLS connection to an upstream, verified against the trust store of its context."""

    __slots__ = ("_socket", "_stream")

    def __init__(self, stream: trio.SSLStream[trio.SocketStream]) -> None:
        self._stream = stream
        self._socket = stream.transport_stream.socket

    async def receive(self) -> bytes:
        try:
            return bytes(await self._stream.receive_some(RECEIVE_BYTES))
        except trio.BrokenResourceError as error:
            raise ConnectionResetError("TLS connection broken") from error

    async def send(self, data: bytes) -> None:
        try:
            await self._stream.send_all(data)
        except trio.BrokenResourceError as error:
            raise ConnectionResetError("TLS connection broken") from error

    def send_now(self, data: bytes) -> int:
        return 0  # what goes to providers always waits

    def send_eof(self) -> None:
        self.close()  # TLS has no half-open state worth keeping

    def close(self) -> None:
        # Without close_notify: an HTTP/1.1 message carries its own length.
        self._socket.close()

    def is_stale(self) -> bool:
        return self._socket.is_readable()

    def fileno(self) -> int:
        return self._socket.fileno()


class Dialer(Protocol):
    """How upstream connections are opened; the caller sets the deadline."""

    async def connect(self, host: str, port: int, *, tls: bool) -> Transport:
        """Raises OSError, of which `ssl.SSLError` and `socket.gaierror` are kinds."""
        ...


class SocketDialer:
    """The real network: DNS, several addresses at once, TLS with verification."""

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        self._context = context or ssl.create_default_context()
        self._context.set_alpn_protocols(["http/1.1"])

    async def connect(self, host: str, port: int, *, tls: bool) -> Transport:
        stream = await trio.open_tcp_stream(host, port)
        if not tls:
            return SocketTransport(detached(stream.socket))
        secured = trio.SSLStream(stream, self._context, server_hostname=host, https_compatible=True)
        try:
            await secured.do_handshake()
        except trio.BrokenResourceError as error:
            stream.socket.close()
            # trio wraps what OpenSSL said; the reason decides how the attempt is classified.
            raise _cause(error) from error
        except BaseException:
            stream.socket.close()
            raise
        return TLSTransport(secured)


def detached(sock: trio.socket.SocketType) -> socket.socket:
    """The same connection as a plain socket; trio's wrapper is done with."""
    return socket.socket(sock.family, sock.type, sock.proto, fileno=sock.detach())


def _cause(error: trio.BrokenResourceError) -> OSError:
    cause = error.__cause__
    return cause if isinstance(cause, OSError) else ConnectionResetError("TLS handshake broken")
