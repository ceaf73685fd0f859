"""One HTTP/1.1 connection to a provider: a request out, the head of its answer in.

What has no I/O is elsewhere: the request's head is written by `upstream_request`, the answer's read
by `upstream_head`. Waiting has one deadline after the other (the first byte, each pause in the
answer) and no scope: when one has passed, the connection is closed, which ends the wait, and is
what becomes of it in any case.

Whatever goes wrong once a connection stands is an `AttemptFailed`, or `StaleConnection` where the
request may be sent again: `proxy.upstream` says when that is.
"""

from __future__ import annotations

import trio

from adapters.pieces import Body
from proxy.deadlines import NEVER, Alarm, Deadlines
from proxy.transport import Transport
from proxy.upstream_errors import AttemptFailed, StaleConnection
from proxy.upstream_head import HeadReader, ResponseHead, ordinary_head

_STALE_SECONDS = 1.0  # an end that was under way when a request was sent is here by then
_JOIN_BYTES_MAX = 65_536  # a longer body is not copied behind its head


class UpstreamConnection:
    """One connection to a provider.

    `alarm` is what closes it when whoever waits for its bytes has waited for too long, on the clock
    that is `now`; `whole`: the request has left to its end.
    """

    __slots__ = ("_used", "alarm", "idle_since", "now", "transport", "whole")

    def __init__(self, transport: Transport, deadlines: Deadlines) -> None:
        self.transport = transport
        self.now = trio.lowlevel.current_clock().current_time
        self.alarm = Alarm(deadlines, transport.close)
        self.alarm.start()
        self.idle_since = 0.0
        self.whole = True
        self._used = False

    def close(self) -> None:
        """Drop it at once."""
        self.alarm.stop()
        self.transport.close()

    async def exchange(self, head: bytes, body: Body, first_byte_seconds: float) -> ResponseHead:
        """Send a request and read the head of its answer."""
        self.alarm.at = self.now() + first_byte_seconds
        try:
            if not isinstance(body, bytes):
                await self.transport.send(head, *body)
            elif len(body) > _JOIN_BYTES_MAX:
                await self.transport.send(head, body)
            else:
                request = head + body
                taken = self.transport.send_now(request)  # as a rule all, without a coroutine
                if taken < len(request):
                    await self.transport.send(request[taken:])
        except OSError:
            # Who refuses a request by its head answers, and closes, before the body is there.
            self.whole = False
        sent_at = self.now()
        try:
            data = await self.transport.receive()
        except OSError as error:
            raise self._unanswered(sent_at, first_byte_seconds) from error
        if not data:
            raise self._unanswered(sent_at, first_byte_seconds)
        answered = ordinary_head(data)
        if answered is None:
            answered = await self._read_on(data, first_byte_seconds)
        self.alarm.at = NEVER
        self._used = True
        return answered

    async def _read_on(self, data: bytes, first_byte_seconds: float) -> ResponseHead:
        """A head that is not ordinary, or not all there, and begins with `data`."""
        reader = HeadReader()
        while (head := reader.feed(data)) is None:
            try:
                data = await self.transport.receive()
            except OSError as error:
                raise self._broken("broken in the head", first_byte_seconds) from error
            if not data:
                raise self._broken("closed in the head", first_byte_seconds)
        return head

    def _unanswered(
        self, sent_at: float, first_byte_seconds: float
    ) -> StaleConnection | AttemptFailed:
        """The connection ended without a byte: may the request be sent again?"""
        soon = self.now() - sent_at < _STALE_SECONDS
        if self._used and soon and not self.alarm.expired:
            return StaleConnection()
        detail = "closed without an answer" if self.whole else "closed while being sent to"
        return self._broken(detail, first_byte_seconds)

    def _broken(self, detail: str, first_byte_seconds: float) -> AttemptFailed:
        if self.alarm.expired:
            detail = f"no answer within {first_byte_seconds} s"
            return AttemptFailed("first_byte_timeout", detail, contacted=True)
        return AttemptFailed("reset", detail, contacted=True)
