"""Answers between two ends of the same protocol: bytes go on as they came, read beside that.

A reader turns every event into canonical ones for what they cost and whether they end or break the
answer; the client gets the event itself, under its own name of the model. From the reason to stop
on, events are held back until the money is settled.

A stream that is cut at a limit ends in events of ours: what they need to know of those that have
passed is remembered on the way, and only where a limit may come.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from adapters import sse
from adapters.canonical import Event, Usage
from adapters.codec import EMPTY_ANSWER, Counted, Reader, UpstreamFailure
from adapters.errors import APIError, UpstreamProtocolViolation
from adapters.stream import Meter, cut_at


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


@dataclass(frozen=True, slots=True)
class PassingCall:
    """A request as it came, at a provider of its own protocol. Implements `codec.Call`.

    `reader` and `manner` make those of one answer, `shown` gives a whole one as the client sees it,
    `failure` reads what is no answer. `silent`: the request wants no output.
    """

    path: str
    body: bytes
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


class PassingStream:
    """One stream on its way through. Implements `codec.StreamRelay`."""

    __slots__ = (
        "_held",
        "_held_bytes",
        "_input_text_bytes",
        "_limit",
        "_limited",
        "_manner",
        "_meter",
        "_reader",
        "_splitter",
        "_unread",
        "_waiting",
        "cut",
        "ended",
        "failure",
        "full",
    )

    def __init__(
        self, reader: Reader, meter: Meter, manner: Manner, *, limited: bool = False
    ) -> None:
        self.ended = False
        self.cut = False
        self.full = False
        self.failure: UpstreamFailure | None = None
        self._reader = reader
        self._meter = meter
        self._manner = manner
        self._splitter = sse.Splitter()
        self._held: list[bytes] = []
        self._held_bytes = 0
        self._limited = limited
        self._limit: int | None = None
        self._unread: list[Event] = []  # of the first raw event that waits
        self._waiting: list[bytes] = []  # raw events without room
        self._input_text_bytes = 0

    @property
    def waiting_bytes(self) -> int:
        return self._splitter.waiting_bytes

    def limit(self, output_tokens: int | None) -> bytes:
        assert self._limited, "the relay was made without"
        self._limit = output_tokens
        if not self.full:
            return b""
        self.full = False
        (first, *rest), self._waiting = self._waiting, []
        out = self._pass(first, self._unread)
        return out + b"".join([self._pass(raw) for raw in rest])

    def cut_short(self, input_text_bytes: int) -> None:
        self.full, self.cut, self.ended = False, True, True
        self._input_text_bytes = input_text_bytes
        self._meter.read_on(self._unread)
        for raw in self._waiting[1:]:
            self._read_on(raw)
        self._waiting.clear()

    @property
    def has_content(self) -> bool:
        return self._meter.has_content

    @property
    def terminal(self) -> bytes:
        if self.cut and not self._held:
            self._held.append(self._manner.cut(self.counted(self._input_text_bytes).usage))
        return b"".join(self._held) + self._manner.end()

    def feed(self, data: bytes) -> bytes:
        if self.ended:
            return b""
        try:
            events = self._splitter.feed(data)
        except UpstreamProtocolViolation as violation:
            self._fail(UpstreamFailure("protocol", str(violation)))
            return b""
        return b"".join([self._pass(event) for event in events])

    def close(self) -> bytes:
        rest = self._splitter.close()
        out = self._pass(sse.terminated(rest)) if sse.data_of(rest) else b""
        if not (self.ended or self.full):
            self._reader.close()
            self._reader.composer.finish()
            self._look(self._reader.composer.take())
        return out

    def read_on(self, data: bytes) -> bool:
        if self.full:
            self.cut_short(0)
        if not self.cut:
            self.feed(data)
            return self.ended
        try:
            for raw in self._splitter.feed(data):
                self._read_on(raw)
        except UpstreamProtocolViolation:
            return True
        return self._reader.composer.ended

    def counted(self, input_text_bytes: int) -> Counted:
        counted = self._meter.counted(input_text_bytes)
        return cut_at(counted, self._limit) if self.cut and self._limit is not None else counted

    def error_event(self, error: APIError, request_id: str) -> bytes:
        return self._manner.error_event(error, request_id)

    def _pass(self, raw: bytes, unread: list[Event] | None = None) -> bytes:
        """What the client sees of one raw event; `unread` is what the reader saw of it before."""
        if self.ended or self.full:
            self._keep_back(raw)
            return b""
        payload = sse.data_of(raw)
        if payload:
            if unread is None:
                self._reader.read(payload)
                unread = self._reader.composer.take()
            if self._limited:
                if self._limit is not None and not self._has_room(unread, self._limit):
                    self.full, self._unread = True, unread
                    self._waiting.append(raw)
                    return b""
                self._manner.remember(payload)
            self._look(unread)
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

    def _keep_back(self, raw: bytes) -> None:
        if self.full:
            self._waiting.append(raw)
        elif self.cut:
            self._read_on(raw)

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
        """An event behind the cut."""
        if payload := sse.data_of(raw):
            self._reader.read(payload)
            self._meter.read_on(self._reader.composer.take())

    def _fail(self, failure: UpstreamFailure) -> None:
        self.failure, self.ended = failure, True


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

    def counted(self, input_text_bytes: int) -> Counted:
        return self._meter.counted(input_text_bytes)
