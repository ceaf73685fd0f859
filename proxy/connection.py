"""An HTTP/1.1 server connection: requests are read, answers written, one after the other.

A head of the plain form is read by `request_head`, every other, and every chunked body, by an
`h11.Connection` that is made for this one message. What comes behind a message is the beginning of
the next: that way nothing but h11's public interface is used although h11 never sees our answers
(decision record 0002), whose heads `answer_head` writes.

A connection is in one of these stages, and moves its deadline as the stage changes:

waiting   between requests: `keep_alive_seconds`, then closed silently
head      part of a head has arrived: `head_seconds` for all of it, then 408
body      the body is being read: `body_seconds` between bytes, then 408
serving   the request is complete: `max_request_seconds` since its head, then 504

A client that does not read holds what it was sent, in our kernel, and keeps its upstream waiting.
How much that can be is bounded by the listener's socket; how long, here: a piece of an answer that
has not left within `STALL_SECONDS` is taken for a client that is gone. A send that fits the socket
at once, as practically all do, costs neither a scope nor a turn of the scheduler.
"""

from __future__ import annotations

import io
from collections.abc import Awaitable, Callable
from typing import Literal

import h11
import trio

from adapters.errors import (
    HeadTooLarge,
    InvalidRequest,
    RequestTooLarge,
    UnsupportedEncoding,
)
from proxy.answer_head import CHUNKED, CLOSE, Headers, render_head
from proxy.deadlines import Deadline
from proxy.request_head import Head, PlainHeads, head_of
from proxy.settings import ServerSettings
from proxy.transport import Transport

STALL_SECONDS = 120.0
"""How long a client may take nothing of its answer before it counts as having left."""

_PLAIN = b"identity"
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_LAST_CHUNK = b"0\r\n\r\n"
_DRAIN_BYTES_MAX = 262_144  # an unread body up to this size is read away to keep the connection
_LINGER_SECONDS = 2.0
_PIECE_BYTES = 65_536
_CHUNKS_A_TURN = 64  # parsed between two turns of other tasks


Stage = Literal["waiting", "head", "body", "serving"]
"""Where a connection stands; see the top of the file."""


class ClientGone(Exception):
    """The client closed the connection before its answer was complete."""


class Connection:
    """One client connection. `reusable` says whether another request may follow.

    `body_bytes` is the declared length of the request's body, None where it is chunked.
    `waited_seconds` is how long this exchange has waited for its client, to send the body or to
    take the answer. While `outlives_client` is set, a client that has left is no error: nothing is
    sent any more, and `client_gone` says so.
    """

    def __init__(self, transport: Transport, settings: ServerSettings, deadline: Deadline) -> None:
        self.transport = transport
        self.settings = settings
        self.deadline = deadline
        self.stage: Stage = "waiting"
        self.reusable = True
        self.response_started = False
        self.waited_seconds = 0.0
        self.outlives_client = False
        self.client_gone = False
        self._now = trio.lowlevel.current_clock().current_time
        self._plain_heads = PlainHeads()
        self._parser: h11.Connection | None = None  # of the request that is read, if it needs one
        self._arrived = b""  # behind the head
        self._leftover = b""  # behind the body
        self._owed = b""  # of a frame that was sent in part
        self._torn = False  # somewhere inside of what was sent: no frame can follow
        self.body_bytes: int | None = 0  # as declared; None: chunked
        self._body_pending = False
        self._encoding = _PLAIN
        self._continue_awaited = False
        self._chunked = True
        self._head_only = False
        self._ends_at = 0.0  # of the whole exchange

    @property
    def is_idle(self) -> bool:
        """Whether it waits for a request, or for the rest of its head."""
        return self.stage in ("waiting", "head")

    # -- reading ----------------------------------------------------------------------------------

    async def read_head(self) -> Head | None:
        """The next request's head, or None where the peer closed or reset between requests.

        Raises RequestError for a head that is malformed, too large or contradictory.
        """
        self.stage = "waiting"
        self.response_started = False
        self.waited_seconds = 0.0
        if self._parser is not None:
            self._forget_odd_head()
        if data := self._leftover:  # requests sent ahead take turns with everybody else's
            self._leftover = b""
            await trio.lowlevel.checkpoint()
        else:
            self.deadline.at = self._now() + self.settings.keep_alive_seconds
            try:
                data = await self.transport.receive()
            except OSError:  # reset by a client that had not read all of an answer
                return None
            if not data:
                return None
        plain = self._plain_heads.read(data)
        if plain is None:
            head = await self._read_odd_head(data)
        else:
            head, self.body_bytes, self._arrived = plain
            self._begin_serving(len(data) - len(self._arrived))
        self._body_pending = True
        self._encoding = head.headers.get(b"content-encoding", _PLAIN).lower()
        self.reusable = not head.is_last
        return head

    async def _read_odd_head(self, data: bytes) -> Head:
        """One that is not of the plain form, or does not arrive at once."""
        parser = self._parser = h11.Connection(
            h11.SERVER, max_incomplete_event_size=self.settings.max_head_bytes
        )
        received = len(data)
        while True:
            parser.receive_data(data)
            event = self._next_event(parser)
            if isinstance(event, h11.Request):
                break
            if self.stage == "waiting":
                self.stage = "head"
                self.deadline.after(self.settings.head_seconds)
            data = await self._receive()
            if not data:
                raise ClientGone
            received += len(data)
        self._arrived = parser.trailing_data[0]
        self._chunked = event.http_version >= b"1.1"
        self._head_only = event.method == b"HEAD"
        # h11's own limit counts an incomplete head only.
        self._begin_serving(received - len(self._arrived))
        head, self.body_bytes = head_of(event)
        self._continue_awaited = parser.they_are_waiting_for_100_continue
        return head

    def _forget_odd_head(self) -> None:
        self._parser = None
        self._chunked = True
        self._head_only = self._continue_awaited = False

    def _begin_serving(self, head_bytes: int) -> None:
        self.stage = "serving"
        self.deadline.at = self._ends_at = self._now() + self.settings.max_request_seconds
        # Until it is certain where this request ends, nothing may be taken for the next one.
        self.reusable = self._body_pending = False
        if head_bytes > self.settings.max_head_bytes:
            raise self._head_too_large()

    async def read_body(self, max_bytes: int, count: Callable[[int], None] | None = None) -> bytes:
        """The whole body. One without a declared length is told to `count`, which may raise, chunk
        by chunk.

        Raises UnsupportedEncoding, RequestTooLarge, and InvalidRequest where it is cut short.
        """
        if self._encoding != _PLAIN:
            raise UnsupportedEncoding(
                f"Content-Encoding {self._encoding.decode('latin-1')} is not supported: "
                "send the body uncompressed."
            )
        length = self.body_bytes
        if length is not None and length > max_bytes:
            raise RequestTooLarge(f"The body is larger than {max_bytes} bytes.")
        if self._continue_awaited:
            self._continue_awaited = False
            await self.send(_CONTINUE)
        if length is None:
            body = await self._read_chunked(max_bytes, count)
        elif length <= len(self._arrived):
            body, self._leftover = self._arrived[:length], self._arrived[length:]
        else:
            body = await self._read_sized(length)
        self._arrived = b""
        self._body_pending = False
        if self.stage == "body":
            self.stage = "serving"
            self.deadline.at = self._ends_at
        return body

    async def _read_sized(self, length: int) -> bytes:
        """A body of known length is counted here: passing through h11 would copy it twice.

        There is room for all of it from the beginning, so that it is copied once, to its place;
        the kernel provides what has been written to.
        """
        body = io.BytesIO(bytes(length))
        body.write(self._arrived)
        missing = length - len(self._arrived)
        while missing > 0:
            data = await self._receive_body()
            if not data:
                self.reusable = False
                raise InvalidRequest("The body ended before its Content-Length.")
            if len(data) > missing:  # the next request follows in the same packet
                data, self._leftover = data[:missing], data[missing:]
            body.write(data)
            missing -= len(data)
        return body.getvalue()

    async def _read_chunked(self, max_bytes: int, count: Callable[[int], None] | None) -> bytes:
        assert self._parser is not None, "it has read the head"
        body = io.BytesIO()  # not a list: chunks may be of one byte each
        turn = 0
        while True:
            event = self._next_event(self._parser)
            if isinstance(event, h11.Data):
                body.write(event.data)
                if body.tell() > max_bytes:
                    raise RequestTooLarge(f"The body is larger than {max_bytes} bytes.")
                if count is not None:
                    count(len(event.data))
                turn += 1
                if turn % _CHUNKS_A_TURN == 0:
                    await trio.lowlevel.checkpoint()
            elif event is h11.NEED_DATA:
                self._parser.receive_data(await self._receive_body())
            else:
                self._leftover = self._parser.trailing_data[0]
                return body.getvalue()

    async def _receive_body(self) -> bytes:
        self.transport.acknowledge()
        self.stage = "body"
        began = self._now()
        self.deadline.at = min(began + self.settings.body_seconds, self._ends_at)
        try:
            return await self._receive()
        finally:
            self.waited_seconds += self._now() - began

    async def skip_body(self) -> None:
        """Read a small unread body away, so that the connection can carry another request.

        Where the body is large or late, or the client waits for `100 Continue`, the connection is
        marked to be closed instead. Never raises.
        """
        if not self._body_pending:
            return
        if self.stage == "body" or self._continue_awaited:
            self.reusable = False
            return
        self._encoding = _PLAIN  # whatever it is, nobody looks
        try:
            with trio.move_on_after(_LINGER_SECONDS) as scope:
                await self.read_body(_DRAIN_BYTES_MAX)
        except (InvalidRequest, RequestTooLarge, ClientGone):
            self.reusable = False
        if scope.cancelled_caught:
            self.reusable = False

    async def linger(self) -> None:
        """Before closing on an unread body: let the answer arrive instead of a reset.

        Closing a socket with unread data resets it, and the reset can overtake the response.
        """
        self.transport.send_eof()
        began = self._now()
        # The client closing is what is waited for, so that it may not count as leaving.
        with trio.move_on_after(_LINGER_SECONDS, shield=True):
            try:
                while await self.transport.receive():
                    pass
            except OSError:
                pass
        self.waited_seconds += self._now() - began

    def _next_event(self, parser: h11.Connection) -> type[h11.NEED_DATA | h11.PAUSED] | h11.Event:
        try:
            return parser.next_event()
        except h11.RemoteProtocolError as error:
            self.reusable = self._body_pending = False  # nothing that follows can be told apart
            if error.error_status_hint == 431:
                raise self._head_too_large() from error
            raise InvalidRequest(f"The request is not valid HTTP/1.1: {error}.") from error

    def _head_too_large(self) -> HeadTooLarge:
        return HeadTooLarge(
            f"The request's head is larger than {self.settings.max_head_bytes} bytes."
        )

    async def _receive(self) -> bytes:
        try:
            return await self.transport.receive()
        except OSError as error:
            raise ClientGone from error

    # -- writing ----------------------------------------------------------------------------------

    async def send(self, data: bytes) -> None:
        """Send bytes as they are. Raises ClientGone.

        A send that failed, or was cancelled when the client had a part of it, poisons the
        connection: nothing can follow.
        """
        if self._torn:
            self._gone(None)
            return
        if self._owed:
            data, self._owed = self._owed + data, b""
        try:
            taken = self.transport.send_now(data)
            if taken < len(data):
                await self._send_slowly(data, taken)
        except OSError as error:
            self._gone(error)

    async def _send_slowly(self, data: bytes, taken: int) -> None:
        """The rest of what the client did not take at once. TimeoutError: it takes nothing."""
        self._torn = True
        began = self._now()
        try:
            while taken < len(data):
                piece = data[taken : taken + _PIECE_BYTES]
                with trio.move_on_after(STALL_SECONDS) as stall:
                    await self.transport.send(piece)
                if stall.cancelled_caught:
                    raise TimeoutError(f"the client took nothing for {STALL_SECONDS} s")
                taken += len(piece)
        finally:
            self.waited_seconds += self._now() - began
        self._torn = False

    def _gone(self, error: OSError | None) -> None:
        """Nothing can be sent any more."""
        self.reusable = False
        self.client_gone = self._torn = True
        if not self.outlives_client:
            raise ClientGone from error

    def respond(self, status: int, headers: Headers, body: bytes) -> Awaitable[None]:
        """Send a whole response in one piece."""
        head = self._head(status, headers, f"content-length: {len(body)}\r\n")
        self.response_started = True
        return self.send(head if self._head_only else head + body)

    async def respond_head(self, status: int, headers: Headers) -> None:
        """Send a response that has no body, as to HEAD; a length it tells is another's."""
        self.response_started = True
        await self.send(self._head(status, headers, ""))

    async def start_stream(self, status: int, headers: Headers, first: bytes) -> None:
        """Send the head of a response of unknown length together with its first bytes."""
        begin = self._stream_head(status, headers) + self._frame(first)
        self.response_started = True
        await self.send(begin)

    def send_chunk(self, data: bytes) -> Awaitable[None]:
        """Send the next bytes of a stream."""
        return self.send(self._frame(data))

    def beat(self, data: bytes) -> None:
        """Send a few bytes of a stream if there is room for them now.

        Never waits and never raises: a client that is gone is found out by the next send.
        """
        if not data:
            return
        owed = len(self._owed)
        frame = self._owed + self._frame(data)
        try:
            taken = self.transport.send_now(frame)
        except OSError:
            return
        # Half a frame is completed by the next send; one that was not begun is forgotten.
        self._owed = frame[taken:] if taken > owed else frame[taken:owed]

    def beat_head(self, status: int, headers: Headers, first: bytes) -> None:
        """Begin a stream that way. What does not fit goes out with the next send."""
        frame = self._stream_head(status, headers) + self._frame(first)
        self.response_started = True
        try:
            taken = self.transport.send_now(frame)
        except OSError:
            taken = 0
        self._owed = frame[taken:]

    async def end_stream(self, final: bytes) -> None:
        """Send the last bytes of a stream and its end, in one piece."""
        end = _LAST_CHUNK if self._chunked else b""
        await self.send(self._frame(final) + end)

    def _stream_head(self, status: int, headers: Headers) -> bytes:
        if self._chunked:
            return self._head(status, headers, CHUNKED)
        self.reusable = False  # the end of the body is the end of the connection
        return self._head(status, headers, "")

    def _head(self, status: int, headers: Headers, framing: str) -> bytes:
        return render_head(status, headers, framing if self.reusable else framing + CLOSE)

    def _frame(self, data: bytes) -> bytes:
        if not data or not self._chunked:
            return data
        return b"%x\r\n%b\r\n" % (len(data), data)
