"""Answers between two ends of the same protocol: bytes go on as they came, read beside that.

A reader turns every event into canonical ones for what they cost and whether they end or break the
answer; the client gets the event itself, under its own name of the model. From the reason to stop
on, events are held back until the money is settled.

A stream that is cut at a limit ends in events of ours: what they need to know of those that have
passed is remembered on the way, and only where a limit may come.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

import msgspec

from adapters import sse
from adapters.canonical import Event, Usage
from adapters.codec import EMPTY_ANSWER, Counted, Expected, Reader, UpstreamFailure
from adapters.errors import APIError
from adapters.limited import LimitedStream
from adapters.pieces import Body
from adapters.stream import Meter


class Manner(Protocol):
    """What a protocol does to the events of a stream that passes."""

    def shown(self, raw: bytes, payload: bytes) -> bytes:
        """One raw event as the client sees it; `payload` is empty for comments."""
        ...

    def end(self) -> bytes:
        """What follows the upstream's last event; nothing in most protocols."""
        ...

    def remember(self, payload: bytes) -> None:
        """An event has passed, in a stream that may be cut."""
        ...

    def cut(self, usage: Usage) -> bytes:
        """The last events of a stream that stops here, at its output limit; `end` follows."""
        ...

    def error_event(self, error: APIError, request_id: str) -> bytes: ...


class PassingCall(msgspec.Struct, frozen=True):
    """A request as it came, at a provider of its own protocol. Implements `codec.Call`.

    `reader` and `manner` make those of one answer, `shown` gives a whole one as the client sees it,
    `failure` reads what is no answer. `silent`: the request wants no output.
    """

    path: str
    body: Body
    reader: Callable[[], Reader]
    manner: Callable[[], Manner]
    shown: Callable[[bytes], bytes]
    failure: Callable[[int, Mapping[bytes, bytes], bytes], UpstreamFailure]
    pieces: Mapping[str, int]
    headers: tuple[tuple[str, str], ...] = ()
    dropped: tuple[str, ...] = ()
    silent: bool = False

    def read_error(
        self, status: int, headers: Mapping[bytes, bytes], body: bytes
    ) -> UpstreamFailure:
        return self.failure(status, headers, body)

    def stream(self, *, limited: bool = False) -> PassingStream:
        return PassingStream(self.reader(), self._meter(), self.manner(), limited=limited)

    def plain(self, body: bytes) -> PassingPlain:
        return PassingPlain(self.reader(), self._meter(), body, self.shown(body))

    def _meter(self) -> Meter:
        return Meter(self.pieces, silent=self.silent)


class PassingStream(LimitedStream):
    """One stream on its way through. Implements `codec.StreamRelay`."""

    __slots__ = ("_held", "_held_bytes", "_manner", "_meter", "_reader", "_unread")

    def __init__(
        self, reader: Reader, meter: Meter, manner: Manner, *, limited: bool = False
    ) -> None:
        super().__init__(meter, limited=limited)
        self._reader = reader
        self._meter = meter
        self._manner = manner
        self._held: list[bytes] = []
        self._held_bytes = 0
        self._unread: list[Event] | None = None  # of the first raw event that waits

    @property
    def has_content(self) -> bool:
        return self._meter.has_content

    @property
    def terminal(self) -> bytes:
        if self.cut and not self._held:
            self._held.append(self._manner.cut(self.counted(self._expected).usage))
        return b"".join(self._held) + self._manner.end()

    def error_event(self, error: APIError, request_id: str) -> bytes:
        return self._manner.error_event(error, request_id)

    def _pass(self, raw: bytes) -> bytes:
        if self.ended or self.full:
            self._keep_back(raw)
            return b""
        payload = sse.data_of(raw)
        if payload:
            events = self._events_of(payload)
            if self._limited:
                if self._limit is not None and not self._has_room(events, self._limit):
                    self._unread = events
                    return self._wait(raw)
                self._manner.remember(payload)
            self._look(events)
            if self.failure is not None:
                return b""
        shown = self._manner.shown(raw, payload)
        if not self._reader.composer.has_reason:
            return shown
        self._held.append(shown)
        self._held_bytes += len(shown)
        if self._held_bytes > sse.EVENT_BYTES_MAX:
            self._fail(UpstreamFailure("protocol", "The stream goes on after its end."))
        return b""

    def _events_of(self, payload: bytes) -> list[Event]:
        """What the reader sees in an event, once, also where it had to wait in between."""
        events, self._unread = self._unread, None
        if events is None:
            self._reader.read(payload)
            events = self._reader.composer.take()
        return events

    def _has_room(self, events: list[Event], limit: int) -> bool:
        return self._reader.composer.has_reason or self._meter.has_room(events, limit)

    def _look(self, events: list[Event]) -> None:
        """Count what the reader saw, and whether it was the end."""
        composer = self._reader.composer
        for event in events:
            self._meter.read(event)
        if composer.failure is not None:
            self._fail(composer.failure)
        elif composer.ended:
            self.ended = True
            if self._meter.empty:
                self._fail(EMPTY_ANSWER)

    def _read_on(self, raw: bytes) -> None:
        if payload := sse.data_of(raw):
            self._meter.read_on(self._events_of(payload))

    def _break_off(self) -> None:
        self._reader.close()
        self._reader.composer.finish()
        self._look(self._reader.composer.take())

    @property
    def _complete(self) -> bool:
        return self._reader.composer.ended


class PassingPlain:
    """One answer in one piece. Implements `codec.PlainRelay`; `shown` is what the client gets."""

    __slots__ = ("_meter", "body", "failure")

    def __init__(self, reader: Reader, meter: Meter, body: bytes, shown: bytes) -> None:
        self.body = b""
        self._meter = meter
        reader.plain(body)
        reader.composer.finish()
        for event in reader.composer.take():
            meter.read(event)
        self.failure = reader.composer.failure
        if self.failure is None and meter.empty:
            self.failure = EMPTY_ANSWER
        if self.failure is None:
            self.body = shown

    def counted(self, expected: Expected) -> Counted:
        return self._meter.counted(expected)
