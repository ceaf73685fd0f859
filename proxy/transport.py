"""Byte streams: the narrow interface between protocol code and the network.

The data plane and the sandbox see only `Transport` and `Dialer`; production gives them sockets,
tests give them memory. Sockets are plain non-blocking ones under trio's `wait_readable`: what we
read next has practically never arrived yet, so trying first costs a system call and an exception,
and what we send practically always fits, so a checkpoint after it costs a turn of the scheduler.
Every receive waits, which is where tasks take turns and are cancelled. What many of them send in
one turn leaves together (`proxy.cork`).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import select
import socket
import ssl
import sys
import termios
from collections.abc import Sequence
from typing import Protocol

import trio
from trio.lowlevel import wait_readable

from proxy.cork import Cork
from proxy.resolve import Address, Resolver

RECEIVE_BYTES = 65_536
HELD_BYTES_MAX = 16_384  # until the end of a turn: an empty send buffer takes it whole
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
_ACKNOWLEDGE = known_options((socket.IPPROTO_TCP, "TCP_QUICKACK", 1))


class Transport(Protocol):
    """A connected byte stream. Failures of the network are `OSError`, and so is the end of a wait
    during which the transport was closed."""

    async def receive(self) -> bytes:
        """Whatever has arrived, at most `RECEIVE_BYTES`; empty at the end of the stream."""
        ...

    async def send(self, *pieces: bytes | memoryview) -> None:
        """Send all of `pieces`, as if they were one. Cancelled or failed half-way, the stream is
        unusable."""
        ...

    def send_now(self, data: bytes) -> int:
        """Send what there is room for without waiting; how many bytes were taken. They may leave
        with what others send in this turn of the loop: that this failed is told by a later send."""
        ...

    def acknowledge(self) -> None:
        """Tell the peer now that what it sent has arrived: it may wait for that to send more."""
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

    def address(self) -> str:
        """The IP address of the peer; "" where it has none, or has gone."""
        ...


def _has_room(sock: socket.socket) -> bool:
    """Whether the kernel takes `HELD_BYTES_MAX` with certainty: the peer has acknowledged all that
    was sent. False where that is unknown."""
    if sys.platform != "linux":
        return False
    unacknowledged = bytearray(4)
    try:
        fcntl.ioctl(sock, termios.TIOCOUTQ, unacknowledged)  # SIOCOUTQ of tcp(7)
    except (OSError, ValueError):  # it was closed
        return False
    return not any(unacknowledged)


class SocketTransport:
    """A plain TCP (or Unix) connection. With a `cork`, what is small may wait for the end of the
    turn: `_held`.

    Only behind nothing, so that the kernel will take all of it: for what it takes in part, somebody
    would have to wait until it takes the rest.
    """

    __slots__ = ("_cork", "_held", "_poll", "_socket")

    def __init__(self, sock: socket.socket, cork: Cork | None = None) -> None:
        self._socket = sock
        buffer_bytes = sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
        self._cork = cork if buffer_bytes >= 2 * HELD_BYTES_MAX else None
        self._held = b""
        self._poll: select.poll | None = None
        sock.setblocking(False)
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    async def receive(self) -> bytes:
        fd = self._socket.fileno()
        if fd < 0:  # trio would never forget a wait for no file
            raise _closed()
        while True:
            try:
                await wait_readable(fd)
                return self._socket.recv(RECEIVE_BYTES)
            except BlockingIOError:
                continue  # woken for nothing
            except trio.ClosedResourceError as error:
                raise _closed() from error

    async def send(self, *pieces: bytes | memoryview) -> None:
        if len(pieces) == 1:
            taken = self.send_now(pieces[0])
            if taken < len(pieces[0]):
                await self._send_rest(pieces[0], taken)
            return
        taken = self._try_to_gather(pieces)
        for piece in pieces:
            if taken < len(piece):
                await self._send_rest(piece, taken)
                taken = len(piece)
            taken -= len(piece)

    async def _send_rest(self, piece: bytes | memoryview, taken: int) -> None:
        with memoryview(piece) as view:
            while taken < len(piece):
                try:
                    await trio.lowlevel.wait_writable(self._socket)
                except trio.ClosedResourceError as error:
                    raise _closed() from error
                taken += self.send_now(view[taken:])

    def send_now(self, data: bytes | memoryview) -> int:
        cork = self._cork
        if cork is not None:
            if cork.sent and self._hold(data, cork):
                return len(data)
            cork.sent = cork.turns
            if self._held:
                self.flush()
        try:
            return self._socket.send(data)
        except BlockingIOError:
            return 0

    def _try_to_gather(self, pieces: Sequence[bytes | memoryview]) -> int:
        self.flush()
        try:
            return self._socket.sendmsg(pieces[:_PIECES_AT_ONCE])
        except BlockingIOError:
            return 0

    def _hold(self, data: bytes | memoryview, cork: Cork) -> bool:
        """Let it wait, if it may."""
        if len(self._held) + len(data) > HELD_BYTES_MAX:
            return False
        if self._held:
            self._held += data
            return True
        if not _has_room(self._socket):
            return False
        self._held = bytes(data)
        cork.hold(self)
        return True

    def flush(self) -> None:
        """Send what is held. Never raises: a connection that does not take it is at its end, which
        the next receive and the next send tell."""
        if not self._held:
            return
        held, self._held = self._held, b""
        with contextlib.suppress(OSError):
            if self._socket.send(held) == len(held):
                return
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def acknowledge(self) -> None:
        # The kernel waits up to 40 ms for an answer that could carry it, and the peer's as long
        # for the acknowledgement before it sends a small rest (RFC 896), unless told otherwise.
        with contextlib.suppress(OSError):
            for level, option, value in _ACKNOWLEDGE:
                self._socket.setsockopt(level, option, value)

    def send_eof(self) -> None:
        self.flush()
        # A peer that is gone already is what the next receive will tell.
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        if self._socket.fileno() >= 0:
            self.flush()
            trio.lowlevel.notify_closing(self._socket)
            self._socket.close()

    def is_stale(self) -> bool:
        # An idle HTTP/1.1 peer has nothing to say: readable means closed or confused.
        if self._poll is None:
            self._poll = select.poll()
            self._poll.register(self._socket, select.POLLIN)
        return bool(self._poll.poll(0))

    def fileno(self) -> int:
        return self._socket.fileno()

    def address(self) -> str:
        if self._socket.family == socket.AF_UNIX:
            return ""
        try:
            host: str = self._socket.getpeername()[0]
        except OSError:
            return ""
        return host.removeprefix("::ffff:").partition("%")[0]


def _closed() -> OSError:
    """What a wait ends with whose connection is closed under it, or before, by whoever keeps the
    time."""
    return OSError(errno.EBADF, "the connection was closed on our side")


class TLSTransport:
    """TLS over a plain connection to an upstream, verified against the trust store of its context.

    OpenSSL works in memory here: what one read has brought is decrypted to its last whole record,
    and what is sent together leaves together. Make one with `secured`.
    """

    __slots__ = ("_ended", "_host", "_incoming", "_outgoing", "_plain", "_sessions", "_tls")

    def __init__(
        self, plain: SocketTransport, context: ssl.SSLContext, host: str, sessions: Sessions
    ) -> None:
        self._plain = plain
        self._host = host
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._sessions: Sessions | None = sessions  # until it has what is there to be kept
        self._ended = False
        self._tls = context.wrap_bio(
            self._incoming, self._outgoing, server_hostname=host, session=sessions.get(host)
        )

    async def shake_hands(self) -> None:
        """What comes before anything else. Raises OSError, of which ssl.SSLError is a kind.

        Our last word of it is left to go out with the first request.
        """
        try:
            while not self._hands_are_shaken():
                await self._plain.send(self._outgoing.read())
                data = await self._plain.receive()
                if not data:
                    raise ConnectionResetError("connection closed in the TLS handshake")
                self._incoming.write(data)
        except ssl.SSLZeroReturnError as error:
            raise ConnectionResetError("connection closed in the TLS handshake") from error
        except ssl.SSLError:
            with contextlib.suppress(OSError):  # tell the server what is wrong with it
                self._plain.send_now(self._outgoing.read())
            raise

    def _hands_are_shaken(self) -> bool:
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            return False
        return True

    async def receive(self) -> bytes:
        while not self._ended:
            received = await self._plain.receive()
            if not received:
                return b""  # without a goodbye: an HTTP/1.1 message carries its own length
            self._incoming.write(received)
            if data := self._decrypted():
                return data
        await trio.lowlevel.checkpoint()
        return b""

    def _decrypted(self) -> bytes:
        """All that is in the records which are there."""
        parts: list[bytes] = []
        try:
            while self._incoming.pending:
                parts.append(self._tls.read(RECEIVE_BYTES))
        except ssl.SSLWantReadError:
            pass  # a part of a record, or one that was for OpenSSL alone
        except ssl.SSLZeroReturnError:
            self._ended = True
        if parts and self._sessions is not None:  # it came with the first answer at the latest
            self._sessions.keep(self._host, self._tls.session)
            self._sessions = None
        return b"".join(parts)

    async def send(self, *pieces: bytes | memoryview) -> None:
        for piece in pieces:
            with memoryview(piece) as view:
                at = 0
                while at < len(piece):
                    at += self._tls.write(view[at : at + RECEIVE_BYTES])
                    if self._outgoing.pending >= RECEIVE_BYTES:
                        await self._plain.send(self._outgoing.read())
        if self._outgoing.pending:
            await self._plain.send(self._outgoing.read())

    def send_now(self, data: bytes) -> int:
        return 0  # all of it is for `send`, which may have to wait in between

    def acknowledge(self) -> None:
        self._plain.acknowledge()

    def send_eof(self) -> None:
        self.close()  # TLS has no half-open state worth keeping

    def close(self) -> None:
        # Without close_notify: an HTTP/1.1 message carries its own length.
        self._plain.close()

    def is_stale(self) -> bool:
        return self._ended or self._plain.is_stale()

    def fileno(self) -> int:
        return self._plain.fileno()

    def address(self) -> str:
        return self._plain.address()


class Sessions:
    """What servers have given for new connections to be cheap, by host (RFC 8446 §2.2).

    It spares both sides the signatures, and us the certificates, of a whole handshake.
    """

    def __init__(self) -> None:
        self._by_host: dict[str, ssl.SSLSession] = {}

    def get(self, host: str) -> ssl.SSLSession | None:
        """What a new connection may begin with."""
        return self._by_host.get(host)

    def keep(self, host: str, session: ssl.SSLSession | None) -> None:
        """What a connection that stands was given."""
        if session is not None and session.has_ticket:
            self._by_host[host] = session

    def forget(self, host: str) -> None:
        """Let the next connection begin from nothing."""
        self._by_host.pop(host, None)


class Dialer(Protocol):
    """How upstream connections are opened; the caller sets the deadline."""

    async def connect(self, host: str, port: int, *, tls: bool) -> Transport:
        """Raises OSError, of which `ssl.SSLError` and `socket.gaierror` are kinds."""
        ...


class SocketDialer:
    """The real network: DNS, several addresses at once, TLS with verification."""

    def __init__(
        self,
        context: ssl.SSLContext | None = None,
        resolver: Resolver | None = None,
        cork: Cork | None = None,
    ) -> None:
        self._context = context or ssl.create_default_context()
        self._context.set_alpn_protocols(["http/1.1"])
        # What TLS 1.2 knows of it would come between a request and its answer.
        self._context.options |= ssl.OP_NO_RENEGOTIATION
        self._resolver = resolver or Resolver()
        self._sessions = Sessions()
        self._cork = cork

    async def connect(self, host: str, port: int, *, tls: bool) -> Transport:
        sock = await first_connected(await self._resolver.addresses(host), port)
        plain = SocketTransport(detached(sock), self._cork)
        if not tls:
            return plain
        secured = TLSTransport(plain, self._context, host, self._sessions)
        try:
            await secured.shake_hands()
        except BaseException:
            secured.close()
            self._sessions.forget(host)  # it may be what the server stumbled over
            raise
        return secured


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
