"""One attempt at one upstream: pool, deadlines, failure classes.

The client side of HTTP/1.1 over h11, without a general-purpose connection pool: idle connections
of an origin form a stack, only the one that is taken is checked, and nothing is locked (decision
record 0002 has the figures). Request heads are written from parts that were validated with the
configuration; h11 is told of a request so that it parses the answer, its own bytes are dropped.

Whatever goes wrong leaves this file as `AttemptFailed` with facts: what happened, whether another
attempt may help, and whether the provider can have seen the request.
"""

from __future__ import annotations

import socket
import ssl
from collections import deque
from dataclasses import dataclass
from typing import Literal
from urllib.parse import quote, urlsplit

import h11
import trio

from adapters.catalogue import Provider
from proxy.memory import Share
from proxy.transport import Dialer, Transport

Reason = Literal[
    "busy",
    "dns",
    "connect",
    "connect_timeout",
    "tls",
    "reset",
    "first_byte_timeout",
    "idle_timeout",
    "protocol",
    "truncated",
]

_IDLE_SECONDS_MAX = 60.0  # an idle connection older than this is not worth a try
_FINISH_SECONDS = 0.5
_KEY_RESTS_SECONDS = 60.0
_KEY_REFUSED = frozenset({401, 403})
_JOIN_BYTES_MAX = 65_536  # a longer body is sent by itself rather than copied behind its head
_AUTH_HEADERS = {
    "bearer": "authorization: Bearer {}",
    "api-key": "api-key: {}",
    "x-api-key": "x-api-key: {}",
    "x-goog-api-key": "x-goog-api-key: {}",
}
# h11 needs to know that a POST was sent; what it would have written is not used.
_REQUEST = h11.Request(
    method=b"POST", target=b"/", headers=[(b"host", b"upstream"), (b"content-length", b"0")]
)
_END = h11.EndOfMessage()


class AttemptFailed(Exception):
    """An attempt did not produce an answer.

    `contacted`: the provider may have seen the request, and may bill for it. `retryable`: another
    attempt, elsewhere or later, may succeed.
    """

    def __init__(
        self, reason: Reason, detail: str, *, contacted: bool, retryable: bool = True
    ) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason: Reason = reason
        self.contacted = contacted
        self.retryable = retryable


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a provider's connections go."""

    host: str
    port: int
    tls: bool
    authority: str
    prefix: str  # path of the base URL, without a trailing slash

    @classmethod
    def of(cls, provider: Provider) -> Origin:
        parts = urlsplit(provider.base_url)
        tls = parts.scheme == "https"
        return cls(
            host=parts.hostname or "",
            port=parts.port or (443 if tls else 80),
            tls=tls,
            authority=parts.netloc.rpartition("@")[2],
            prefix=parts.path.rstrip("/"),
        )


@dataclass(frozen=True, slots=True)
class Sent:
    """One POST. `path` is relative to the base URL and may have a query; `headers` are added to
    the provider's."""

    path: str
    body: bytes
    stream: bool = False
    headers: tuple[tuple[str, str], ...] = ()


class UpstreamResponse:
    """An answer whose head has arrived. Close it, or read it to its end, exactly once."""

    __slots__ = ("_connection", "_pool", "ended", "headers", "status")

    def __init__(self, connection: _Connection, pool: _Pool) -> None:
        self.status = connection.status
        self.headers = connection.headers
        self.ended = False
        self._connection = connection
        self._pool = pool

    async def receive(self) -> bytes:
        """The next bytes of the body; empty at its end.

        The caller sets the deadline. Raises AttemptFailed where the connection breaks or the
        framing ends early.
        """
        if self.ended:
            return b""
        data, self.ended = await self._connection.receive_body()
        if self.ended:
            self._pool.give_back(self._connection)
        return data

    async def read(self, max_bytes: int, idle_seconds: float, share: Share | None = None) -> bytes:
        """The whole body. Raises AttemptFailed, also where it is too large or stalls.

        What does not come with the head is counted in `share`, whose owner gives it back.
        """
        data, ended = self._connection.buffered_body()
        if ended:  # it came with the head, as small answers do: nothing to wait for
            self.ended = True
            self._pool.give_back(self._connection)
            return data
        parts = [data]
        size = len(data)
        with trio.CancelScope() as scope:
            while not self.ended:
                scope.deadline = trio.current_time() + idle_seconds
                parts.append(await self.receive())
                size += len(parts[-1])
                if size > max_bytes:
                    raise AttemptFailed("protocol", "answer too large", contacted=True)
                if share is not None and not share.take(len(parts[-1])):
                    raise AttemptFailed("busy", "no memory for the answer", contacted=True)
        if scope.cancelled_caught:
            raise AttemptFailed("idle_timeout", f"no byte for {idle_seconds} s", contacted=True)
        return b"".join(parts)

    async def finish(self) -> None:
        """The content is complete: wait briefly for the end of the body, to keep the connection.

        Events may end before the framing does, in another packet. Never raises, and a client that
        leaves meanwhile changes nothing: it has the whole answer.
        """
        with trio.move_on_after(_FINISH_SECONDS, shield=True):
            try:
                if not self.ended:
                    await self.receive()
            except AttemptFailed:
                return

    def close(self) -> None:
        """Give the upstream up: an unfinished answer ends with its connection."""
        if not self.ended:
            self.ended = True
            self._pool.discard(self._connection)


class Upstreams:
    """The connections of one worker to all providers."""

    def __init__(self, dialer: Dialer) -> None:
        self._dialer = dialer
        self._pools: dict[tuple[str, str, int, tuple[str, ...]], _Pool] = {}

    async def post(self, provider: Provider, sent: Sent) -> UpstreamResponse:
        """Send one request and wait for the head of its answer.

        Where the provider refuses one of several API keys, the key rests for a while and the
        request is sent with the next.
        """
        pool = self._pool(provider)
        for _ in provider.api_keys[1:]:
            api_key = pool.next_key()
            response = await self._post(pool, provider, api_key, sent)
            if response.status not in _KEY_REFUSED:
                return response
            response.close()
            pool.rest(api_key)
        return await self._post(pool, provider, pool.next_key(), sent)

    async def _post(
        self, pool: _Pool, provider: Provider, api_key: str, sent: Sent
    ) -> UpstreamResponse:
        """One try with one key.

        A connection that was idle may have been closed by the provider at that very moment: then
        the request is sent once more over a new one. Raises AttemptFailed.
        """
        head = pool.request_head(provider, api_key, sent)
        stale = False
        while True:
            connection = None if stale else pool.take_idle()
            connection = connection or await _connected(pool, provider, unused=stale)
            try:
                with trio.move_on_after(provider.first_byte_seconds):
                    await connection.exchange(head, sent.body)
                    return UpstreamResponse(connection, pool)
            except _StaleConnection:
                pool.discard(connection)
                stale = True
                continue
            except BaseException:
                pool.discard(connection)
                raise
            pool.discard(connection)
            raise AttemptFailed(
                "first_byte_timeout",
                f"no answer within {provider.first_byte_seconds} s",
                contacted=True,
            )

    async def run(self) -> None:
        """Close connections that have been idle for too long, until cancelled."""
        while True:
            await trio.sleep(_IDLE_SECONDS_MAX / 2)
            for pool in self._pools.values():
                pool.sweep()

    def close(self) -> None:
        """Drop all idle connections."""
        for pool in self._pools.values():
            pool.sweep(everything=True)

    def _pool(self, provider: Provider) -> _Pool:
        # Whatever a pool is made of: a reload that changes any of it begins a pool of its own.
        key = (provider.name, provider.base_url, provider.max_connections, provider.api_keys)
        pool = self._pools.get(key)
        if pool is None:
            pool = self._pools[key] = _Pool(self._dialer, provider)
        return pool


async def _connected(pool: _Pool, provider: Provider, *, unused: bool) -> _Connection:
    """A connection for one request, within the provider's time for it."""
    with trio.move_on_after(provider.connect_seconds):
        return await pool.take(unused=unused)
    raise AttemptFailed(
        "connect_timeout", f"no connection within {provider.connect_seconds} s", contacted=False
    )


class _StaleConnection(Exception):
    """A reused connection was closed before any byte of an answer."""


class _Connection:
    """One HTTP/1.1 client connection."""

    __slots__ = (
        "_buffered",
        "_h11",
        "_missing",
        "_used",
        "headers",
        "idle_since",
        "reusable",
        "status",
        "transport",
    )

    def __init__(self, transport: Transport) -> None:
        self.transport = transport
        self.status = 0
        self.headers: dict[bytes, bytes] = {}
        self.idle_since = 0.0
        self.reusable = False
        self._h11 = h11.Connection(h11.CLIENT)
        self._missing: int | None = None  # bytes of a body of known length; None: h11 frames it
        self._buffered = b""
        self._used = False

    @property
    def _keeps_alive(self) -> bool:
        """Whether the answer's head lets another request follow; h11 has read it."""
        return self._h11.our_state is h11.DONE

    def next_cycle(self) -> None:
        self._h11 = h11.Connection(h11.CLIENT)
        self._used = True
        self.reusable = False

    async def exchange(self, head: bytes, body: bytes) -> None:
        """Send a request and read the head of its answer: `status` and `headers`."""
        self._h11.send(_REQUEST)
        self._h11.send(_END)
        try:
            if len(body) <= _JOIN_BYTES_MAX:
                await self.transport.send(head + body)
            else:
                await self.transport.send(head)
                await self.transport.send(body)
        except OSError as error:
            if self._used:
                raise _StaleConnection from error
            raise AttemptFailed("reset", "broken while sending", contacted=True) from error
        response = await self._read_head()
        self.status = response.status_code
        self.headers = headers = {
            name.lower(): value for name, value in response.headers.raw_items()
        }
        # A body of known length is counted here, the others are framed by h11.
        length = headers.get(b"content-length")
        self._missing = None
        if length is not None and b"transfer-encoding" not in headers:
            self._missing = int(length)  # h11 has checked that it is a number
            self._buffered = self._h11.trailing_data[0]

    async def _read_head(self) -> h11.Response:
        silent = True
        while True:
            try:
                data = await self.transport.receive()
            except OSError as error:
                if self._used and silent:
                    raise _StaleConnection from error
                raise AttemptFailed("reset", "no answer", contacted=True) from error
            if not data and silent and self._used:
                raise _StaleConnection
            if not data:
                raise AttemptFailed("reset", "closed without an answer", contacted=True)
            silent = False
            self._h11.receive_data(data)
            while (event := self._next_event()) is not h11.NEED_DATA:
                if isinstance(event, h11.Response):
                    return event  # what came before it was interim (1xx) and is not needed

    async def receive_body(self) -> tuple[bytes, bool]:
        """(payload of what has arrived, whether the body has ended). Waits for some."""
        while True:
            data, ended = self.buffered_body()
            if data or ended:
                return data, ended
            try:
                received = await self.transport.receive()
            except OSError as error:
                raise AttemptFailed("truncated", "connection reset", contacted=True) from error
            if self._missing is None:
                self._h11.receive_data(received)
            elif received:
                self._buffered = received
            else:
                raise AttemptFailed("truncated", "closed inside the body", contacted=True)

    def buffered_body(self) -> tuple[bytes, bool]:
        """The same of what has been received already, without waiting."""
        if self._missing is None:
            return self._buffered_by_h11()
        data, self._buffered = self._buffered, b""
        self._missing -= len(data)
        if self._missing > 0:
            return data, False
        # An upstream that says more than it announced is not to be trusted with another request.
        self.reusable = self._missing == 0 and self._keeps_alive
        return data[: self._missing or None], True

    def _buffered_by_h11(self) -> tuple[bytes, bool]:
        parts: list[bytes] = []
        while True:
            event = self._next_event()
            if isinstance(event, h11.Data):
                parts.append(event.data)
            elif event is h11.NEED_DATA:
                return b"".join(parts), False
            else:
                done = self._h11.their_state is h11.DONE and not self._h11.trailing_data[0]
                self.reusable = done and self._keeps_alive
                return b"".join(parts), True

    def _next_event(self) -> type[h11.NEED_DATA | h11.PAUSED] | h11.Event:
        try:
            return self._h11.next_event()
        except h11.RemoteProtocolError as error:
            # h11 reports an end of the stream inside a body in the same way as bad framing.
            cut = "peer closed connection" in str(error)
            reason: Reason = "truncated" if cut else "protocol"
            raise AttemptFailed(reason, str(error), contacted=True) from error


class _Pool:
    """Connections to one provider: a stack of idle ones and a bound on all."""

    def __init__(self, dialer: Dialer, provider: Provider) -> None:
        self._dialer = dialer
        self._origin = Origin.of(provider)
        self._limit = provider.max_connections
        self._idle: deque[_Connection] = deque()
        self._open = 0
        self._waiting = trio.lowlevel.ParkingLot()
        self._heads: dict[tuple[object, ...], bytes] = {}
        self._keys: deque[str] = deque(provider.api_keys or ("",))
        self._resting: dict[str, float] = {}

    def next_key(self) -> str:
        """The API key whose turn it is, passing over those that rest; "" where none is needed."""
        now = trio.current_time()
        for _ in range(len(self._keys)):
            api_key = self._keys[0]
            self._keys.rotate(-1)
            if self._resting.get(api_key, now) <= now:
                return api_key
        return self._keys[0]  # all rest: refusing to try would be worse

    def rest(self, api_key: str) -> None:
        """The provider has refused this key: leave it out for a while."""
        self._resting[api_key] = trio.current_time() + _KEY_RESTS_SECONDS

    def take_idle(self) -> _Connection | None:
        """An idle connection that still stands."""
        while self._idle:
            connection = self._idle.pop()
            if not connection.transport.is_stale():
                connection.next_cycle()
                return connection
            self.discard(connection)
        return None

    async def take(self, *, unused: bool = False) -> _Connection:
        """An idle connection, or a new one; waits where the limit is reached.

        `unused`: only a new one, which an idle one makes room for.
        """
        while True:
            connection = None if unused else self.take_idle()
            if connection is not None:
                return connection
            if unused and self._idle and self._open >= self._limit:
                self.discard(self._idle.popleft())
            if self._open < self._limit:
                return await self._connect()
            await self._waiting.park()

    async def _connect(self) -> _Connection:
        self._open += 1
        try:
            transport = await self._dialer.connect(
                self._origin.host, self._origin.port, tls=self._origin.tls
            )
        except BaseException as error:
            self._forget()
            if isinstance(error, OSError):
                raise _connect_failure(error) from error
            raise
        return _Connection(transport)

    def give_back(self, connection: _Connection) -> None:
        """Keep a connection whose exchange is complete; drop it where it cannot be used again."""
        if not connection.reusable:
            self.discard(connection)
            return
        connection.idle_since = trio.current_time()
        self._idle.append(connection)
        self._waiting.unpark()

    def discard(self, connection: _Connection) -> None:
        """Close a connection."""
        connection.transport.close()
        self._forget()

    def _forget(self) -> None:
        self._open -= 1
        self._waiting.unpark()

    def sweep(self, *, everything: bool = False) -> None:
        """Close connections that have been idle for too long (the oldest are on the left)."""
        oldest = trio.current_time() - _IDLE_SECONDS_MAX
        while self._idle and (everything or self._idle[0].idle_since < oldest):
            self.discard(self._idle.popleft())

    def request_head(self, provider: Provider, api_key: str, sent: Sent) -> bytes:
        """A request head; all but the length is written once per provider, key and path."""
        key = (provider, api_key, sent.path, sent.stream, sent.headers)
        fixed = self._heads.get(key)
        if fixed is None:
            if len(self._heads) > 1024:
                self._heads.clear()  # keys and settings change seldom: a bound, nothing more
            fixed = self._heads[key] = _fixed_head(self._origin, provider, api_key, sent)
        return fixed + b"content-length: %d\r\n\r\n" % len(sent.body)


def _fixed_head(origin: Origin, provider: Provider, api_key: str, sent: Sent) -> bytes:
    query = "&".join(f"{quote(name)}={quote(value)}" for name, value in provider.query)
    target = origin.prefix + sent.path
    if query:
        target += f"{'&' if '?' in target else '?'}{query}"
    own = {
        "host": origin.authority,
        "user-agent": "farebox",
        "accept": "text/event-stream" if sent.stream else "application/json",
        "accept-encoding": "identity",
        "content-type": "application/json",
        **dict(sent.headers),
        **dict(provider.headers),
    }
    lines = [f"POST {target} HTTP/1.1"]
    if api_key:
        lines.append(_AUTH_HEADERS[provider.auth].format(api_key))
    lines += [f"{name}: {value}" for name, value in own.items()]
    head = "\r\n".join(lines).encode("latin-1")
    assert head.count(b"\n") == len(lines) - 1, "neither configuration nor h11 admit line breaks"
    return head + b"\r\n"


def _connect_failure(error: OSError) -> AttemptFailed:
    if isinstance(error, ssl.SSLError):
        return AttemptFailed("tls", str(error), contacted=False)
    if isinstance(error, socket.gaierror):
        return AttemptFailed("dns", str(error), contacted=False)
    return AttemptFailed("connect", str(error), contacted=False)
