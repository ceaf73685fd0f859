"""One attempt at one upstream: pool, deadlines, API keys, failure classes.

The client side of HTTP/1.1 (`proxy.upstream_connection`), without a general-purpose connection
pool: idle connections of a provider form a stack, only the one that is taken is checked, and
nothing is locked (decision record 0002 has the figures). Request heads are written from parts that
were validated with the configuration.

Whatever goes wrong leaves this file as `AttemptFailed` with facts: what happened, and whether the
provider can have seen the request. Waiting for one of our own places is no fault of the provider:
it is apart from connecting, and ends as "busy".

**When a request is sent twice.** A provider closes idle connections when it likes, now and then
while a request is on its way to it. A POST is not idempotent: it may only be repeated by whoever
can tell that it was not acted upon (RFC 9110 §9.2.2; RFC 9112 §9.3.1 has no more for it). So it is
sent a second time, once, over a new connection, only where the first one had been idle, no byte of
an answer has come over it, and either

- it broke before the request had left whole: what lacks its end is never acted upon; or
- it ended within a second of that: so soon ends what was being closed already. Who reads a request
  and then takes its time to fail has been asked, and that is a `reset`.

What is left is a provider that takes a request and dies within the second. It is asked again, as it
would be after the `reset`; the client gets, and pays, one answer all the same. Only what makes the
provider act (`Sent.once`) is not left to that: it goes over a new connection, and is sent once.
"""

from __future__ import annotations

import errno
import math
import socket
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from urllib.parse import quote, urlsplit

import trio

from adapters import failures
from adapters.catalogue import Provider
from adapters.codec import FailureKind, UpstreamFailure
from proxy.api_keys import ApiKeys
from proxy.memory import Share
from proxy.pool import Pool, PoolFull, PoolStatistics
from proxy.transport import Dialer
from proxy.upstream_connection import AttemptFailed, Reason, StaleConnection, UpstreamConnection

__all__ = [
    "AttemptFailed",
    "Reason",
    "Sent",
    "UpstreamResponse",
    "Upstreams",
]

_IDLE_SECONDS_MAX = 60.0  # an idle connection older than this is not worth a try
_FINISH_SECONDS = 0.5
_KEY_RESTS_SECONDS: Mapping[FailureKind, float] = {"auth": 60.0, "quota": 60.0, "rate_limited": 1.0}
_KEY_RESTS_SECONDS_MAX = 60.0
_REFUSAL_BYTES_MAX = 64 * 1024
_REFUSAL_SECONDS = 5.0
# Errors of connecting that tell of this machine.
_OURS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL})
_AUTH_HEADERS = {
    "bearer": "authorization: Bearer {}",
    "api-key": "api-key: {}",
    "x-api-key": "x-api-key: {}",
    "x-goog-api-key": "x-goog-api-key: {}",
}

ReadError = Callable[[int, Mapping[bytes, bytes], bytes], UpstreamFailure]
"""What an error answer says, by its status, headers and body: a codec's `read_error`."""


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


@dataclass(slots=True)
class Sent:
    """One POST. `path` is relative to the base URL and may have a query; `headers` are added to
    the provider's. `once`: it may not be said twice, and so not over a used connection, which may
    break under it. `contacted`: the provider may have seen it, also where nobody was told how that
    ended."""

    path: str
    body: bytes
    stream: bool = False
    headers: tuple[tuple[str, str], ...] = ()
    once: bool = False
    contacted: bool = False


class UpstreamResponse:
    """An answer whose head has arrived. Close it, or read it to its end, exactly once."""

    __slots__ = ("_connection", "_endpoint", "_whole", "ended", "headers", "status")

    def __init__(self, connection: UpstreamConnection, endpoint: _Endpoint) -> None:
        self.status = connection.status
        self.headers = connection.headers
        self.ended = False
        self._whole: bytes | None = None
        self._connection = connection
        self._endpoint = endpoint

    async def receive(self) -> bytes:
        """The next bytes of the body; empty at its end.

        The caller sets the deadline. Raises AttemptFailed where the connection breaks or the
        framing ends early.
        """
        if self.ended:
            return b""
        data, self.ended = await self._connection.receive_body()
        if self.ended:
            self._endpoint.give_back(self._connection)
        return data

    async def read(self, max_bytes: int, idle_seconds: float, share: Share | None = None) -> bytes:
        """The whole body. Raises AttemptFailed, also where it is too large or stalls.

        What does not come with the head is counted in `share`, whose owner gives it back.
        """
        if self._whole is not None:
            return self._whole
        data, ended = self._connection.buffered_body()
        if ended:  # it came with the head, as small answers do: nothing to wait for
            self.ended = True
            self._endpoint.give_back(self._connection)
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

    async def read_error(self, read: ReadError) -> UpstreamFailure:
        """Why the provider refused. The body can be read again; where it does not come, or takes
        its time, the head has to do."""
        whole = b""
        try:
            with trio.move_on_after(_REFUSAL_SECONDS):
                whole = await self.read(_REFUSAL_BYTES_MAX, math.inf)
        except AttemptFailed:
            whole = b""
        finally:
            self.close()
        self._whole = whole
        return read(self.status, self.headers, whole)

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
            self._endpoint.discard(self._connection)


def by_status(status: int, headers: Mapping[bytes, bytes], body: bytes) -> UpstreamFailure:
    """What an error answer says to whom no protocol is known."""
    hint = failures.retry_after(headers)
    return UpstreamFailure(failures.kind_of(status, ""), "", status, retry_after=hint)


def _unheard(failure: UpstreamFailure) -> None:
    pass


class Upstreams:
    """The connections of one worker to all providers."""

    def __init__(self, dialer: Dialer) -> None:
        self._dialer = dialer
        self._endpoints: dict[tuple[str, str, int, tuple[str, ...]], _Endpoint] = {}

    async def post(
        self,
        provider: Provider,
        sent: Sent,
        *,
        queue_seconds: float,
        first_byte_seconds: float | None = None,
        affinity: int | None = None,
        read_error: ReadError = by_status,
        on_refused: Callable[[UpstreamFailure], None] = _unheard,
    ) -> UpstreamResponse:
        """Send one request and wait for the head of its answer. Raises AttemptFailed.

        Where all connections are in use, one of them is waited for no longer than `queue_seconds`.
        `first_byte_seconds` is the provider's, if there is none.

        Of several API keys requests with the same `affinity` get the same. Where the provider
        refuses one (as `read_error` understands it), it rests for a while, and the request is sent
        with the next: an attempt of its own, of whose end `on_refused` is told. The answer to the
        last one is returned, whatever it says.
        """
        endpoint = self._endpoint(provider)
        if first_byte_seconds is None:
            first_byte_seconds = provider.first_byte_seconds
        if endpoint.keys is None:
            only = provider.api_keys[0] if provider.api_keys else ""
            return await endpoint.ask(provider, sent, only, queue_seconds, first_byte_seconds)
        asked: list[str] = []
        api_key = endpoint.keys.first(trio.current_time(), affinity)
        while True:
            asked.append(api_key)
            response = await endpoint.ask(
                provider, sent, api_key, queue_seconds, first_byte_seconds
            )
            if response.status == 200:
                return response
            failure = await response.read_error(read_error)
            now = trio.current_time()
            if not _key_is_refused(endpoint.keys, api_key, failure, now):
                return response
            following = endpoint.keys.next(now, affinity, asked)
            if following is None:
                return response
            on_refused(failure)
            api_key = following

    async def run(self) -> None:
        """Close connections that have been idle for too long, until cancelled."""
        while True:
            await trio.sleep(_IDLE_SECONDS_MAX / 2)
            for key, endpoint in list(self._endpoints.items()):
                endpoint.sweep()
                if endpoint.is_unused():  # a reload may have put another in its place
                    del self._endpoints[key]

    def close(self) -> None:
        """Drop all idle connections."""
        for endpoint in self._endpoints.values():
            endpoint.sweep(everything=True)

    def statistics(self) -> list[tuple[str, PoolStatistics]]:
        """The connections by provider; one has several pools while a reload is taking hold."""
        return [(key[0], endpoint.pool.statistics()) for key, endpoint in self._endpoints.items()]

    def _endpoint(self, provider: Provider) -> _Endpoint:
        # Whatever it is made of: a reload that changes any of it begins one of its own.
        key = (provider.name, provider.base_url, provider.max_connections, provider.api_keys)
        endpoint = self._endpoints.get(key)
        if endpoint is None:
            endpoint = self._endpoints[key] = _Endpoint(self._dialer, provider)
        return endpoint


def _key_is_refused(keys: ApiKeys, api_key: str, failure: UpstreamFailure, now: float) -> bool:
    """Whether another key may do better. This one rests then, as long as the provider says."""
    seconds = _KEY_RESTS_SECONDS.get(failure.kind)
    if seconds is None:
        return False
    hint = failure.retry_after if failure.kind == "rate_limited" else None
    if hint is not None:
        seconds = min(hint, _KEY_RESTS_SECONDS_MAX)
    keys.rest(api_key, now + seconds)
    return True


class _Endpoint:
    """One provider as one worker reaches it: its connections, its keys, its requests' heads."""

    def __init__(self, dialer: Dialer, provider: Provider) -> None:
        self.pool: Pool[UpstreamConnection] = Pool(provider.max_connections)
        self.keys = ApiKeys(provider.api_keys) if len(provider.api_keys) > 1 else None
        self._dialer = dialer
        self._origin = Origin.of(provider)
        self._heads: dict[tuple[object, ...], bytes] = {}

    async def ask(
        self,
        provider: Provider,
        sent: Sent,
        api_key: str,
        queue_seconds: float,
        first_byte_seconds: float,
    ) -> UpstreamResponse:
        """Ask once, with one key. Raises AttemptFailed."""
        head = self._request_head(provider, api_key, sent)
        connection = None if sent.once else self._idle()
        connection = connection or await self._placed(provider, sent, queue_seconds)
        while True:
            sent.contacted = True
            try:
                with trio.move_on_after(first_byte_seconds):
                    await connection.exchange(head, sent.body)
                    return UpstreamResponse(connection, self)
            except StaleConnection:
                connection.transport.close()
                connection = await self._connected(provider, contacted=True)
                continue
            except BaseException:
                self.discard(connection)
                raise
            self.discard(connection)
            raise AttemptFailed(
                "first_byte_timeout", f"no answer within {first_byte_seconds} s", contacted=True
            )

    def _idle(self) -> UpstreamConnection | None:
        """An idle connection that still stands."""
        while (connection := self.pool.take_idle()) is not None:
            if connection.is_ready():
                return connection
            self.discard(connection)
        return None

    async def _placed(
        self, provider: Provider, sent: Sent, queue_seconds: float
    ) -> UpstreamConnection:
        """A connection in the next place that is free, within the caller's time for that."""
        try:
            connection = await self.pool.place(queue_seconds)
        except PoolFull:
            detail = f"all {provider.max_connections} connections are in use"
            raise AttemptFailed("busy", detail, contacted=False) from None
        if connection is not None:
            if not sent.once and connection.is_ready():
                return connection
            connection.transport.close()
        return await self._connected(provider)

    async def _connected(
        self, provider: Provider, *, contacted: bool = False
    ) -> UpstreamConnection:
        """A new connection, within the provider's time for it, in a place that is ours already.

        `contacted`: the request was sent before, over a connection that turned out to be stale.
        """
        origin = self._origin
        try:
            with trio.move_on_after(provider.connect_seconds):
                return UpstreamConnection(
                    await self._dialer.connect(origin.host, origin.port, tls=origin.tls)
                )
            detail = f"no connection within {provider.connect_seconds} s"
            raise AttemptFailed("connect_timeout", detail, contacted=contacted)
        except BaseException as error:
            self.pool.free()
            if isinstance(error, OSError):
                reason = _connect_failure(error)
                raise AttemptFailed(reason, str(error), contacted=contacted) from error
            raise

    def give_back(self, connection: UpstreamConnection) -> None:
        """Keep a connection whose exchange is complete; drop it where it cannot be used again."""
        if not connection.reusable:
            self.discard(connection)
            return
        connection.idle_since = trio.current_time()
        self.pool.give_back(connection)

    def discard(self, connection: UpstreamConnection) -> None:
        """Close a connection."""
        connection.transport.close()
        self.pool.free()

    def sweep(self, *, everything: bool = False) -> None:
        """Close connections that have been idle for too long."""
        oldest = trio.current_time() - _IDLE_SECONDS_MAX
        for connection in self.pool.oldest(lambda idle: everything or idle.idle_since < oldest):
            self.discard(connection)

    def is_unused(self) -> bool:
        """Whether nothing would be lost with it."""
        rests = self.keys is not None and self.keys.rests(trio.current_time())
        return not rests and self.pool.statistics().taken == 0

    def _request_head(self, provider: Provider, api_key: str, sent: Sent) -> bytes:
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


def _connect_failure(error: OSError) -> Reason:
    if error.errno in _OURS:
        return "busy"
    if isinstance(error, ssl.SSLError):
        return "tls"
    if isinstance(error, socket.gaierror):
        return "dns"
    return "connect_timeout" if isinstance(error, TimeoutError) else "connect"
