"""A provider's answer, from the arrival of its head to the end of its connection's service."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Protocol

import msgspec
import trio

from adapters.codec import UpstreamFailure
from proxy.deadlines import NEVER
from proxy.memory import Share
from proxy.upstream_body import Body, body_of
from proxy.upstream_connection import UpstreamConnection
from proxy.upstream_errors import AttemptFailed
from proxy.upstream_head import ResponseHead

_FINISH_SECONDS = 0.5
_REFUSAL_BYTES_MAX = 64 * 1024
_REFUSAL_SECONDS = 5.0

ReadError = Callable[[int, Mapping[bytes, bytes], bytes], UpstreamFailure]
"""What an error answer says, by its status, headers and body: a codec's `read_error`."""


class Owner(Protocol):
    """Whose connection it is."""

    def give_back(self, connection: UpstreamConnection) -> None:
        """Keep a connection that another exchange may follow on."""
        ...

    def discard(self, connection: UpstreamConnection) -> None:
        """Close a connection."""
        ...


class UpstreamResponse(msgspec.Struct, eq=False):
    """An answer whose head has arrived. Close it, or read it to its end, exactly once."""

    _connection: UpstreamConnection
    _head: ResponseHead
    _owner: Owner
    ended: bool = False
    _begun: bool = False  # what came with the head is read
    _body: Body | None = None  # until some of it is read
    _whole: bytes | None = None

    @property
    def status(self) -> int:
        return self._head.status

    async def receive(self, by: float = NEVER) -> bytes:
        """The next bytes of the body; empty at its end.

        Raises AttemptFailed where the connection breaks, the framing does not hold, or nothing has
        come by that moment on trio's clock.
        """
        if self.ended:
            return b""
        if not self._begun:
            data = self._came_ahead()
            if data or self.ended:
                return data
        connection = self._connection
        while True:
            connection.alarm.at = by
            try:
                received = await connection.transport.receive()
            except OSError as error:
                raise self._broken() from error
            connection.alarm.at = NEVER
            data = self._payload(received)
            if data or self.ended:
                return data

    async def read(self, max_bytes: int, idle_seconds: float, share: Share | None = None) -> bytes:
        """The whole body. Raises AttemptFailed, also where it is too large or stalls.

        What does not come with the head is counted in `share`, whose owner gives it back.
        """
        if self._whole is not None:
            return self._whole
        head = self._head
        if not self._begun and len(head.ahead) == head.length:  # as of a small answer
            self._end(exact=True)
            return head.ahead
        parts = [self._came_ahead()]
        size = len(parts[0])
        while not self.ended:
            data = await self.receive(trio.current_time() + idle_seconds)
            parts.append(data)
            size += len(data)
            if size > max_bytes:
                raise AttemptFailed("protocol", "answer too large", contacted=True)
            if share is not None and not share.take(len(data)):
                raise AttemptFailed("busy", "no memory for the answer", contacted=True)
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
        return read(self.status, self._head.headers(), whole)

    async def finish(self) -> None:
        """The content is complete: wait briefly for the end of the body, to keep the connection.

        Events may end before the framing does, in another packet. Never raises, and a client that
        leaves meanwhile changes nothing: it has the whole answer.
        """
        if self.ended:
            return
        with trio.move_on_after(_FINISH_SECONDS, shield=True):
            try:
                await self.receive()
            except AttemptFailed:
                return

    def close(self) -> None:
        """Give the upstream up: an unfinished answer ends with its connection."""
        if not self.ended:
            self.ended = True
            self._owner.discard(self._connection)

    def _came_ahead(self) -> bytes:
        """What of the body came with the head; once."""
        ahead = b"" if self._begun else self._head.ahead
        self._begun = True
        return self._payload(ahead)

    def _payload(self, received: bytes) -> bytes:
        """What of the body is in bytes that have arrived; behind the head none mean the end."""
        body = self._body
        if body is None:
            body = self._body = body_of(self._head)
        elif not received:
            body.close()
        data = body.feed(received)
        if body.ended:
            self._end(exact=body.exact)
        return data

    def _end(self, *, exact: bool) -> None:
        """The body is complete, and with `exact` nothing came behind it."""
        self.ended = self._begun = True
        # Who says more than was announced is not to be trusted with another request.
        if exact and self._head.keeps_alive and self._connection.whole:
            self._owner.give_back(self._connection)
        else:
            self._owner.discard(self._connection)

    def _broken(self) -> AttemptFailed:
        if self._connection.alarm.expired:
            return AttemptFailed("idle_timeout", "no byte came in time", contacted=True)
        return AttemptFailed("truncated", "connection reset", contacted=True)
