"""One HTTP/1.1 connection to a provider, over h11: a request out, its answer in.

h11 is told of a request so that it parses the answer; its own bytes are dropped, the caller has
written the head. An `h11.Connection` serves one message and is replaced by the next. A body of
known length is counted here, which spares it a copy; every other is framed by h11.

Whatever goes wrong once a connection stands leaves this file as `AttemptFailed`, or as
`StaleConnection` where the request may be sent again: `proxy.upstream` says when that is.
"""

from __future__ import annotations

from typing import Literal

import h11
import trio

from proxy.transport import Transport

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
"""What went wrong on the way, rather than what a provider told of."""

_STALE_SECONDS = 1.0  # an end that was under way when a request was sent is here by then
_NO_CONTENT = frozenset({204, 304})  # whatever their heads announce (RFC 9112 §6.3)
_JOIN_BYTES_MAX = 65_536  # a longer body is sent by itself rather than copied behind its head
# h11 needs to know that a POST was sent; what it would have written is not used.
_REQUEST = h11.Request(method=b"POST", target=b"/", headers=[(b"host", b"upstream")])
_END = h11.EndOfMessage()


class AttemptFailed(Exception):
    """An attempt did not produce an answer.

    `contacted`: the provider may have seen the request, and may bill for it.
    """

    def __init__(self, reason: Reason, detail: str, *, contacted: bool) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason: Reason = reason
        self.contacted = contacted


class StaleConnection(Exception):
    """A reused connection was closed before the request can have been acted upon."""


class UpstreamConnection:
    """One connection to a provider. After `exchange` come `status` and `headers`, then the body;
    once that has ended, `reusable` says whether another exchange may follow."""

    __slots__ = (
        "_buffered",
        "_drained",
        "_h11",
        "_missing",
        "_used",
        "_whole",
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
        self._drained = False  # what has been received of the body was taken
        self._used = False
        self._whole = True  # the request has left to its end

    @property
    def _keeps_alive(self) -> bool:
        """Whether another request may follow: the answer's head says so, as h11 has read it."""
        return self._whole and self._h11.our_state is h11.DONE

    def is_ready(self) -> bool:
        """Take it up again after it has been idle; False where it does not stand any more."""
        if self.transport.is_stale():
            return False
        self._h11 = h11.Connection(h11.CLIENT)
        self._used = True
        self.reusable = False
        return True

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
        except OSError:
            # Who refuses a request by its head answers, and closes, before the body is there.
            self._whole = False
        response = await self._read_head()
        self.status = response.status_code
        self.headers = headers = {
            name.lower(): value for name, value in response.headers.raw_items()
        }
        self._drained = False
        # A body of known length is counted here, the others are framed by h11.
        length = headers.get(b"content-length")
        self._missing = None
        if length is None or b"transfer-encoding" in headers or self.status in _NO_CONTENT:
            return
        self._missing = int(length)  # h11 has checked that it is a number
        self._buffered = self._h11.trailing_data[0]

    async def _read_head(self) -> h11.Response:
        sent_at = trio.current_time()
        silent = True
        while True:
            try:
                data = await self.transport.receive()
            except OSError as error:
                if silent:
                    raise self._unanswered(sent_at) from error
                raise AttemptFailed("reset", "broken in the head", contacted=True) from error
            if not data and silent:
                raise self._unanswered(sent_at)
            if not data:
                raise AttemptFailed("reset", "closed in the head", contacted=True)
            silent = False
            self._h11.receive_data(data)
            while (event := self._next_event()) is not h11.NEED_DATA:
                if isinstance(event, h11.Response):
                    return event  # what came before it was interim (1xx) and is not needed

    def _unanswered(self, sent_at: float) -> StaleConnection | AttemptFailed:
        """The connection ended without a byte: may the request be sent again?"""
        if self._used and trio.current_time() - sent_at < _STALE_SECONDS:
            return StaleConnection()
        detail = "closed without an answer" if self._whole else "closed while being sent to"
        return AttemptFailed("reset", detail, contacted=True)

    async def receive_body(self) -> tuple[bytes, bool]:
        """(payload of what has arrived, whether the body has ended). Waits for some."""
        while True:
            if not self._drained:
                data, ended = self.buffered_body()
                if data or ended:
                    return data, ended
            try:
                received = await self.transport.receive()
            except OSError as error:
                raise AttemptFailed("truncated", "connection reset", contacted=True) from error
            self._drained = False
            if self._missing is None:
                self._h11.receive_data(received)
            elif received:
                self._buffered = received
            else:
                raise AttemptFailed("truncated", "closed inside the body", contacted=True)

    def buffered_body(self) -> tuple[bytes, bool]:
        """The same of what has been received already, without waiting."""
        self._drained = True
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
