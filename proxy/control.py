"""The way from the public port to the console: another process, behind a unix socket.

Problem: people, Stripe and MCP clients come to the same port as requests to models, but what
answers them (frameworks, templates, SQL that takes its time) must not be able to slow or break
serving. Approach: the request is read here like any other, handed on over a connection of our own,
and what comes back is passed on as it comes, so a stream of events arrives event by event. The
client side of HTTP is the one that providers are asked with, without anything that is about money.

Rules
- The supervisor keeps the socket, whichever process serves it: while one starts, callers wait in
  the socket's queue, so that a connection tells nothing. Before a request is entrusted to one that
  is new, or was idle for a while, the console is asked whether it lives, and has seconds to say so.
  Where it does not, the answer is 503 in JSON, with `retry-after`; nothing was handed over.
- A request is handed over once. Only where reading it twice does no harm, and its connection turns
  out to have been closed by a process that is no more, is it handed over again.
- What is about a connection stays on it (RFC 9110 §7.6.1). What the console trusts us to say,
  nobody else can: from which address a client comes (`CLIENT_HEADER`, found by `forwarded`).
- Nothing is reserved or charged, and none of it counts as a request to a model. Places, bytes and
  seconds are bounded, and a client that leaves closes the way to the console behind it, too.
- Who asks is not known here, so places and bytes are bounded apart from those of models: whoever
  fills them, with bodies that never end, keeps others from the console and from nothing else.
"""

from __future__ import annotations

import math
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import msgspec
import trio

from adapters import sse
from adapters.codec import Headers, Operation
from adapters.errors import APIError, InternalError, NotFound
from adapters.limits import Left
from adapters.refusals import message_of, retry_headers
from proxy.admit import Load
from proxy.connection import Connection
from proxy.deadlines import Deadlines
from proxy.forwarded import FORWARDED_FOR, client_address
from proxy.memory import Memory
from proxy.pool import Pool, PoolFull
from proxy.request_head import Head
from proxy.transport import SocketTransport, Transport, detached
from proxy.upstream_connection import UpstreamConnection
from proxy.upstream_errors import AttemptFailed, StaleConnection
from proxy.upstream_head import ResponseHead
from proxy.upstream_response import UpstreamResponse

if TYPE_CHECKING:
    from proxy.gateway import Gateway
    from proxy.record import Record

CLIENT_HEADER = "x-farebox-client"
ALIVE_PATH = "/alive"
"""Answered with 204 by a console that lives. Nothing from outside gets there."""

_PATHS = ("/console", "/mcp")
_BELOW = tuple(f"{path}/" for path in _PATHS)
_ALIVE = f"GET {ALIVE_PATH} HTTP/1.1\r\nhost: console\r\n\r\n".encode()
_ALIVE_SECONDS = 8.0
_FRESH_SECONDS = 1.0  # so long after an answer the console is taken for alive
_AGAIN_SECONDS = 0.05
_QUEUE_SECONDS = 2.0
_CONNECTIONS_MAX = 128
_IDLE_SECONDS_MAX = 60.0
_OPEN_MAX = 512  # exchanges, those whose body is still coming included
_HELD_BYTES_MAX = 64 << 20  # by all bodies together
_BODY_BYTES_MAX = 1 << 20  # parsed before it is known whose it is, to many times its size
_TOOL_BODY_BYTES_MAX = 16 << 20
_WHOLE_BYTES_MAX = 1 << 20  # a longer answer is passed on in pieces
_RETRY_AFTER_SECONDS = 1
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
_BODILESS = frozenset({204, 304})
_HOP_BY_HOP = frozenset(
    {"connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding"}
    | {"upgrade", "proxy-authenticate", "proxy-authorization"}
)
_OURS_TO_SAY = frozenset(
    {CLIENT_HEADER, "content-length", "expect", "x-forwarded-host", "x-forwarded-proto"}
)
"""`x-forwarded-proto` too: `server.public_url` says whether browsers come by HTTPS."""

_PASSED_ON = frozenset({"forwarded", "x-forwarded-for", "x-real-ip"})
"""These go on: the console believes nothing that they say, but that they are there, which says that
somebody has passed the request on (`console.sign_in`). So no client may call them headers of its
connection, to have them left away: there are proxies that pass `connection` on."""

Dial = Callable[[], Awaitable[Transport]]


class ConsoleUnavailable(InternalError):
    """No process of the console answers. It was asked for nothing."""

    status, code = 503, "console_unavailable"

    def __init__(self) -> None:
        super().__init__(
            "The console is not there at the moment. Requests to models go on being served.",
            retry_after=_RETRY_AFTER_SECONDS,
        )


class ConsoleFailed(InternalError):
    """It was asked, and ended before its answer did."""

    status, code = 502, "console_failed"

    def __init__(self) -> None:
        super().__init__(
            "The console ended before it had answered. What was asked of it may have been done."
        )


class ConsoleRefusals:
    """Our refusals in the form of the console's own."""

    def error_body(self, error: APIError, request_id: str) -> bytes:
        """As of Refusals."""
        own = isinstance(error, ConsoleUnavailable | ConsoleFailed)
        message = error.message if own else message_of(error, request_id)
        return msgspec.json.encode({"error": {"code": error.code, "message": message}})

    def error_headers(self, error: APIError) -> Headers:
        """As of Refusals."""
        return [("cache-control", "no-store"), *retry_headers(error)]

    def limit_headers(self, limits: Sequence[Left], now: float) -> Headers:
        """As of Refusals: there are none."""
        return []

    def error_event(self, error: APIError, request_id: str) -> bytes:
        """As of Refusals."""
        return sse.event(self.error_body(error, request_id))


OPERATION = Operation("console", "console", 0, ConsoleRefusals())


def takes(path: str) -> bool:
    """Whether what is there is the console's."""
    return path.startswith(_BELOW) or path in _PATHS


async def serve(gateway: Gateway, connection: Connection, head: Head, record: Record) -> None:
    """One exchange with the console, from the request's body to the answer's end.

    Raises APIError, where nothing of an answer was sent or its rest will not come, and ClientGone.
    """
    record.operation, record.refusals = OPERATION, OPERATION.refusals
    if gateway.control is None:
        raise NotFound("This gateway has no console.")
    if gateway.draining:
        raise ConsoleUnavailable
    declared = connection.body_bytes
    with (
        gateway.control.load.admit(gateway.control.memory, declared) as permit,
        gateway.load.admit(gateway.memory, declared),
    ):
        body = await connection.read_body(_body_bytes_max(head.path), permit.chunk)
        peer, said = connection.transport.address(), head.header(FORWARDED_FOR) or ""
        address = client_address(peer, said, gateway.settings.trusted_proxies)
        asked = _request_head(head, len(body), address)
        async with gateway.control.answer(asked, body, head.method) as (answered, response):
            record.status = answered.status
            await _pass_on(connection, answered, response, head.method, record.id_headers())


def _body_bytes_max(path: str) -> int:
    return _BODY_BYTES_MAX if path.startswith("/console") else _TOOL_BODY_BYTES_MAX


async def _pass_on(
    connection: Connection,
    answered: ResponseHead,
    response: UpstreamResponse,
    method: str,
    id_headers: Headers,
) -> None:
    bodiless = method == "HEAD" or answered.status in _BODILESS
    headers = [*_passed_on(answered, keeps_length=bodiless), *id_headers]
    if bodiless:
        await response.receive()
        await connection.respond_head(answered.status, headers)
    elif answered.length is not None and answered.length <= _WHOLE_BYTES_MAX:
        body = await response.read(_WHOLE_BYTES_MAX, math.inf)
        await connection.respond(answered.status, headers, body)
    else:
        await connection.start_stream(answered.status, headers, b"")
        while data := await response.receive():
            await connection.send_chunk(data)
        await connection.end_stream(b"")


# -- connections ----------------------------------------------------------------------------------


class Control:
    """The connections of one worker to the console."""

    def __init__(self, dial: Dial, deadlines: Deadlines, max_request_seconds: float) -> None:
        self._dial = dial
        self._deadlines = deadlines
        self._max_request_seconds = max_request_seconds
        self._pool: Pool[UpstreamConnection] = Pool(_CONNECTIONS_MAX)
        self.load = Load(exchanges_max=_OPEN_MAX)
        self.memory = Memory(_HELD_BYTES_MAX)

    async def run(self) -> None:
        """Close connections that have been idle for too long, until cancelled; then all."""
        try:
            while True:
                await trio.sleep(_IDLE_SECONDS_MAX / 2)
                self._sweep(trio.current_time() - _IDLE_SECONDS_MAX)
        finally:
            self._sweep(trio.current_time())

    def _sweep(self, before: float) -> None:
        for connection in self._pool.oldest(lambda idle: idle.idle_since <= before):
            self.discard(connection)

    @asynccontextmanager
    async def answer(
        self, head: bytes, body: bytes, method: str
    ) -> AsyncIterator[tuple[ResponseHead, UpstreamResponse]]:
        """Hand a request over; its answer, which is given up on leaving if it has not ended.

        Raises ConsoleUnavailable, and ConsoleFailed, which may also come of reading the answer.
        """
        connection, answered = await self._ask(head, body, repeatable=method in _SAFE_METHODS)
        if method == "HEAD":
            answered = msgspec.structs.replace(answered, length=0, chunked=False)
        response = UpstreamResponse(connection, answered, self)
        try:
            yield answered, response
        except AttemptFailed as error:
            raise ConsoleFailed from error
        finally:
            response.close()

    async def _ask(
        self, head: bytes, body: bytes, *, repeatable: bool
    ) -> tuple[UpstreamConnection, ResponseHead]:
        while True:
            connection = await self._living()
            try:
                answered = await connection.exchange(head, body, self._max_request_seconds)
            except StaleConnection as error:
                self.discard(connection)
                if not repeatable:
                    raise ConsoleFailed from error
                repeatable = False
            except AttemptFailed as error:
                self.discard(connection)
                raise ConsoleFailed from error
            except BaseException:
                self.discard(connection)
                raise
            else:
                return connection, answered

    async def _living(self) -> UpstreamConnection:
        """A connection to a console that lives. Raises ConsoleUnavailable."""
        try:
            connection = await self._pool.place(_QUEUE_SECONDS)
        except PoolFull:
            raise ConsoleUnavailable from None
        by = trio.current_time() + _ALIVE_SECONDS
        try:
            while connection is None or not await self._is_alive(connection, by):
                if connection is not None:
                    connection.close()
                    connection = None
                    await trio.sleep(_AGAIN_SECONDS)
                if trio.current_time() >= by:
                    raise ConsoleUnavailable
                connection = UpstreamConnection(await self._dialled(), self._deadlines)
        except BaseException:
            if connection is not None:
                connection.close()
            self._pool.free()
            raise
        return connection

    async def _dialled(self) -> Transport:
        try:
            return await self._dial()
        except OSError as error:  # not even the supervisor is there
            raise ConsoleUnavailable from error

    async def _is_alive(self, connection: UpstreamConnection, by: float) -> bool:
        """Whether somebody answers there."""
        now = trio.current_time()
        if connection.transport.is_stale():
            return False
        if connection.idle_since and now - connection.idle_since < _FRESH_SECONDS:
            return True
        try:
            answered = await connection.exchange(_ALIVE, b"", by - now)
        except (AttemptFailed, StaleConnection):
            return False
        return answered.status == 204 and answered.keeps_alive and not answered.ahead

    def give_back(self, connection: UpstreamConnection) -> None:
        """Keep a connection that another exchange may follow on."""
        connection.idle_since = trio.current_time()
        self._pool.give_back(connection)

    def discard(self, connection: UpstreamConnection) -> None:
        """Close a connection."""
        connection.close()
        self._pool.free()


def unix_dial(path: str) -> Dial:
    """How the socket at `path` is called."""

    async def dial() -> Transport:
        sock = trio.socket.socket(socket.AF_UNIX)
        try:
            await sock.connect(path)
        except BaseException:
            sock.close()
            raise
        return SocketTransport(detached(sock))

    return dial


# -- heads ----------------------------------------------------------------------------------------


def _request_head(head: Head, body_bytes: int, address: str) -> bytes:
    """The head as the console gets it."""
    named = _listed(head.header(b"connection") or "") - _PASSED_ON
    lines = [f"{head.method} {head.path}{f'?{head.query}' if head.query else ''} HTTP/1.1"]
    for raw_name, value in head.headers.items():
        name = raw_name.decode("latin-1")
        if name not in _HOP_BY_HOP and name not in _OURS_TO_SAY and name not in named:
            lines.append(f"{name}: {value.decode('latin-1')}")
    if body_bytes or head.method not in _SAFE_METHODS:
        lines.append(f"content-length: {body_bytes}")
    lines.append(f"{CLIENT_HEADER}: {address}")
    written = "\r\n".join(lines).encode("latin-1")
    assert written.count(b"\r") == written.count(b"\n") == len(lines) - 1, (
        "neither our parsers nor an address admit line breaks"
    )
    return written + b"\r\n\r\n"


def _passed_on(answered: ResponseHead, *, keeps_length: bool) -> Headers:
    """The headers of an answer as the client gets them; `keeps_length`: no body follows, and the
    length is that of the one that would."""
    pairs = answered.pairs()
    named = {name for key, value in pairs if key == "connection" for name in _listed(value)}
    dropped = _HOP_BY_HOP | named | {"date"} | (set() if keeps_length else {"content-length"})
    return [(name, value) for name, value in pairs if name not in dropped]


def _listed(connection: str) -> set[str]:
    """What a `connection` header names, in lower case."""
    return {name.strip().lower() for name in connection.split(",")}
