"""Byte streams: the narrow interface between protocol code and the network.

The data plane and the sandbox see only `Transport` and `Dialer`; production gives them sockets,
tests give them memory. Sockets are plain non-blocking ones under trio's `wait_readable`: what we
read next has practically never arrived yet, so trying first costs a system call and an exception,
and what we send practically always fits, so a checkpoint after it costs a turn of the scheduler.
Every receive waits, which is where tasks take turns and are cancelled.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import ssl
from collections.abc import Sequence
from typing import Protocol

import trio

from proxy.resolve import Address, Resolver

RECEIVE_BYTES = 65_536
_PIECES_AT_ONCE = 1024  # IOV_MAX of Linux

_HEAD_START_SECONDS = 0.25  # RFC 8305 §8, "Connection Attempt Delay"
# What a provider has sent and a slow client has not read lies in the kernel, which takes twice this
# value for a bound, and without one may grow the buffer to 32 MiB. The price is that an answer
# comes with no more than some 300 KB a round trip: 15 MB/s from a provider's edge 20 ms away.
_UNREAD_BYTES = 256 * 1024


def known_options(*wanted: tuple[int, str, int]) -> tuple[tuple[int, int, int], ...]:
    """Socket options, (level, name, value), as this system calls them; without those it lacks."""
    return tuple(
        (level, getattr(socket, name), value)
        for level, name, value in wanted
        if hasattr(socket, name)
    )


_OPTIONS = known_options(
    (socket.SOL_SOCKET, "SO_RCVBUF", _UNREAD_BYTES),
    # Nothing moves while a long answer is awaited: routers on the way must not forget the
    # connection, and a provider that vanished without a word is found out within a minute, be it
    # by probes that it does not answer or by a request that it does not acknowledge.
    (socket.SOL_SOCKET, "SO_KEEPALIVE", 1),
    (socket.IPPROTO_TCP, "TCP_KEEPIDLE", 30),
    (socket.IPPROTO_TCP, "TCP_KEEPINTVL", 10),
    (socket.IPPROTO_TCP, "TCP_KEEPCNT", 3),
    (socket.IPPROTO_TCP, "TCP_USER_TIMEOUT", 60_000),  # milliseconds
)

# OpenSSL's words for an end of the stream: nothing was wrong with what came before it.
_HUNG_UP = (ssl.SSLEOFError, ssl.SSLZeroReturnError)


class Transport(Protocol):
    """A connected byte stream. Failures of the network are `OSError`, and so is the end of a wait
    during which the transport was closed."""

    async def receive(self) -> bytes:
        """Whatever has arrived, at most `RECEIVE_BYTES`; empty at the end of the stream."""
        ...

    async def send(self, *pieces: bytes) -> None:
        """Send all of `pieces`, as if they were one. Cancelled or failed half-way, the stream is
        unusable."""
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
            try:
                await trio.lowlevel.wait_readable(self._socket)
                return self._socket.recv(RECEIVE_BYTES)
            except BlockingIOError:
                continue  # woken for nothing
            except trio.ClosedResourceError as error:
                raise _closed() from error

    async def send(self, *pieces: bytes) -> None:
        taken = self._try_to_send(pieces[0]) if len(pieces) == 1 else self._try_to_gather(pieces)
        for piece in pieces:
            if taken < len(piece):
                await self._send_rest(piece, taken)
                taken = len(piece)
            taken -= len(piece)

    async def _send_rest(self, piece: bytes, taken: int) -> None:
        with memoryview(piece) as view:
            while taken < len(piece):
                try:
                    await trio.lowlevel.wait_writable(self._socket)
                except trio.ClosedResourceError as error:
                    raise _closed() from error
                taken += self._try_to_send(view[taken:])

    def send_now(self, data: bytes) -> int:
        return self._try_to_send(data)

    def _try_to_send(self, data: bytes | memoryview) -> int:
        try:
            return self._socket.send(data)
        except BlockingIOError:
            return 0

    def _try_to_gather(self, pieces: Sequence[bytes]) -> int:
        try:
            return self._socket.sendmsg(pieces[:_PIECES_AT_ONCE])
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


def _closed() -> OSError:
    """What a wait ends with whose connection is closed under it, by whoever keeps the time."""
    return OSError(errno.EBADF, "closed while it was waited for")


class TLSTransport:
    """A TLS connection to an upstream, verified against the trust store of its context."""

    __slots__ = ("_socket", "_stream")

    def __init__(self, stream: trio.SSLStream[trio.SocketStream]) -> None:
        self._stream = stream
        self._socket = stream.transport_stream.socket

    async def receive(self) -> bytes:
        try:
            return bytes(await self._stream.receive_some(RECEIVE_BYTES))
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise ConnectionResetError("TLS connection broken") from error

    async def send(self, *pieces: bytes) -> None:
        try:
            for piece in pieces:
                await self._stream.send_all(piece)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
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

    def __init__(
        self, context: ssl.SSLContext | None = None, resolver: Resolver | None = None
    ) -> None:
        self._context = context or ssl.create_default_context()
        self._context.set_alpn_protocols(["http/1.1"])
        self._resolver = resolver or Resolver()

    async def connect(self, host: str, port: int, *, tls: bool) -> Transport:
        sock = await first_connected(await self._resolver.addresses(host), port)
        if not tls:
            return SocketTransport(detached(sock))
        stream = trio.SocketStream(sock)
        secured = trio.SSLStream(stream, self._context, server_hostname=host, https_compatible=True)
        try:
            await secured.do_handshake()
        except trio.BrokenResourceError as error:
            sock.close()
            # trio wraps what OpenSSL said; the reason decides how the attempt is classified.
            raise _cause(error) from error
        except BaseException:
            sock.close()
            raise
        return TLSTransport(secured)


async def first_connected(addresses: Sequence[Address], port: int) -> trio.socket.SocketType:
    """A connection to the first of several addresses that lets itself be connected to.

    Happy eyeballs, RFC 8305 §5: each address has a quarter of a second before the next is tried
    beside it, and none where it fails. Raises OSError where all of them do.
    """
    if len(addresses) == 1:
        return await _connected(addresses[0], port)
    connected: list[trio.socket.SocketType] = []
    errors: list[OSError] = []

    async def attempt(address: Address, failed: trio.Event) -> None:
        try:
            connected.append(await _connected(address, port))
            nursery.cancel_scope.cancel()
        except OSError as error:
            errors.append(error)
            failed.set()

    try:
        async with trio.open_nursery() as nursery:
            for address in addresses:
                failed = trio.Event()
                nursery.start_soon(attempt, address, failed)
                with trio.move_on_after(_HEAD_START_SECONDS):
                    await failed.wait()
    except BaseException:
        _close(connected)
        raise
    _close(connected[1:])  # two may get there at the same time
    if not connected:
        raise _together(errors)
    return connected[0]


async def _connected(address: Address, port: int) -> trio.socket.SocketType:
    sock = trio.socket.socket(address.family, socket.SOCK_STREAM)
    try:
        for level, option, value in _OPTIONS:
            sock.setsockopt(level, option, value)
        await sock.connect(address.at(port))
    except BaseException:
        sock.close()
        raise
    return sock


def _close(sockets: Sequence[trio.socket.SocketType]) -> None:
    for sock in sockets:
        sock.close()


def _together(errors: Sequence[OSError]) -> OSError:
    """One error for all addresses: the first one's number, everyone's words."""
    words = "; ".join(error.strerror or str(error) for error in errors)
    return OSError(errors[0].errno, words)  # of the kind that belongs to its number


def detached(sock: trio.socket.SocketType) -> socket.socket:
    """The same connection as a plain socket; trio's wrapper is done with."""
    return socket.socket(sock.family, sock.type, sock.proto, fileno=sock.detach())


def _cause(error: trio.BrokenResourceError) -> OSError:
    cause = error.__cause__
    if not isinstance(cause, OSError) or isinstance(cause, _HUNG_UP):
        return ConnectionResetError("connection closed in the TLS handshake")
    return cause
