"""Server-sent events: incremental framing for both directions.

Reading: bytes in, *raw events* out. A raw event is everything up to and including the blank line
that ends it, so it can be relayed exactly as it came; `data_of` reads its payload. Lines end with
LF, CR or CRLF and with nothing else (U+2028 and its like occur inside JSON strings), input may be
cut anywhere, and a single event is limited, so that no upstream can fill the memory.

Writing: what every SDK accepts is one `data:` line of compact JSON and a blank line.
"""

from __future__ import annotations

import re

from adapters.errors import UpstreamProtocolViolation

KEEP_ALIVE = b": keep-alive\n\n"  # a comment: readers pass over it
EVENT_BYTES_MAX = 16 * 1024 * 1024

_BOM = b"\xef\xbb\xbf"
_LINE_END = re.compile(rb"\r\n|\n|\r")
# A CR at the very end of what has arrived may still become a CRLF, so it ends no line yet.
# Written out twice instead of repeated, so that the search can skip to the first CR or LF.
_BOUNDARY = re.compile(rb"(?:\r\n|\n|\r(?=[^\n]))(?:\r\n|\n|\r(?=[^\n]))")
_BOUNDARY_BYTES_MAX = 4
_CRLF_TWICE = b"\r\n\r\n"


class Splitter:
    """Cuts a byte stream into raw events. One per stream; a byte order mark is dropped.

    How the stream was cut into reads never changes what comes out.
    """

    __slots__ = ("_buffer", "_event_bytes_max", "_only_lf", "_searched", "_started")

    def __init__(self, event_bytes_max: int = EVENT_BYTES_MAX) -> None:
        self._buffer = bytearray()  # the event that has begun
        self._searched = 0  # no boundary begins before this offset
        self._started = False
        self._only_lf = True  # no CR so far: boundaries can be found without a pattern
        self._event_bytes_max = event_bytes_max

    @property
    def waiting_bytes(self) -> int:
        """How much of an event that is not complete has arrived."""
        return len(self._buffer)

    def feed(self, data: bytes) -> list[bytes]:
        """The raw events that `data` completes.

        Raises UpstreamProtocolViolation where an event outgrows the limit.
        """
        if not self._started:
            data = self._start(data)
        if self._only_lf and b"\r" in data:
            self._only_lf = False
        return self._cut_at_lf(data) if self._only_lf else self._cut_at_any(data)

    def payloads(self, data: bytes) -> list[bytes]:
        """The payloads of the raw events that `data` completes, for who needs no more of them.

        Raises as `feed` does.
        """
        if self._buffer or not self._started or len(data) > self._event_bytes_max:
            return [payload for raw in self.feed(data) if (payload := data_of(raw))]
        if b"\r" not in data:
            *events, rest = data.split(b"\n\n")
        elif _is_google_s(data):
            *events, rest = data.split(_CRLF_TWICE)
        else:
            return [payload for raw in self.feed(data) if (payload := data_of(raw))]
        if rest:
            self.feed(rest)
        return [payload for event in events if (payload := _one_line_of(event))]

    def close(self) -> bytes:
        """What was left without its blank line when the stream ended; often nothing."""
        rest = bytes(self._buffer)
        self._buffer.clear()
        self._searched = 0
        return rest

    def _start(self, data: bytes) -> bytes:
        """What is to be cut, without byte order mark; nothing while it may be half of one."""
        head = bytes(self._buffer) + data
        self._buffer.clear()
        if len(head) < len(_BOM) and _BOM.startswith(head):
            self._buffer += head
            return b""
        self._started = True
        return head.removeprefix(_BOM)

    def _cut_at_lf(self, data: bytes) -> list[bytes]:
        buffer = self._buffer
        if buffer:
            buffer += data
            if buffer.find(b"\n\n", self._searched) < 0:
                self._keep_searching()
                return []
            data = bytes(buffer)
            buffer.clear()
        one = data.endswith(b"\n\n") and data.find(b"\n\n") == len(data) - 2
        if one and len(data) <= self._event_bytes_max:
            self._searched = 0
            return [data]  # one event, as it mostly is
        parts = data.split(b"\n\n")
        buffer += parts.pop()
        self._keep_searching()
        if len(data) > self._event_bytes_max and parts:
            self._check(len(max(parts, key=len)))
        return [part + b"\n\n" for part in parts]

    def _cut_at_any(self, data: bytes) -> list[bytes]:
        buffer, begin, events = self._buffer, 0, list[bytes]()
        if not buffer and len(data) <= self._event_bytes_max and _is_google_s(data):
            return [part + _CRLF_TWICE for part in data.split(_CRLF_TWICE)[:-1]]
        buffer += data
        boundary = _BOUNDARY.search(buffer, self._searched)
        while boundary is not None:
            end = boundary.end()
            self._check(end - begin)
            events.append(bytes(buffer[begin:end]))
            begin = end
            boundary = _BOUNDARY.search(buffer, begin)
        del buffer[:begin]
        self._keep_searching()
        return events

    def _keep_searching(self) -> None:
        """Where the next search begins: the first part of a boundary may have arrived."""
        self._check(len(self._buffer))
        self._searched = max(0, len(self._buffer) - _BOUNDARY_BYTES_MAX)

    def _check(self, event_bytes: int) -> None:
        if event_bytes > self._event_bytes_max:
            raise UpstreamProtocolViolation(
                f"an event is larger than {self._event_bytes_max} bytes"
            )


def _is_google_s(data: bytes) -> bool:
    """Whether these are whole events of one line each, with CRLF, as Gemini sends them."""
    if not data.endswith(_CRLF_TWICE):
        return False
    events = data.count(_CRLF_TWICE)
    return data.count(b"\n") == data.count(b"\r") == 2 * events


def data_of(event: bytes) -> bytes:
    """The payload of a raw event: its data lines joined by LF; empty where it has none."""
    # Nearly all have one data line, some with a name before it.
    begin = event.find(b"\n") + 1 if event.startswith(b"event: ") else 0
    one_line = event.startswith(b"data: ", begin) and event.find(b"\n", begin) == len(event) - 2
    if one_line and event.find(b"\r", 0, begin) < 0:
        return event[begin + 6 : -2]
    last = len(event) - 4
    if event.startswith(b"data: ") and event.find(b"\r") == last and event.find(b"\n") > last:
        return event[6:last]
    return b"\n".join(
        line[5:].removeprefix(b" ") for line in _LINE_END.split(event) if line.startswith(b"data:")
    )


def _one_line_of(event: bytes) -> bytes:
    """The payload of an event without its blank line and with no CR between its lines."""
    begin = event.find(b"\n") + 1 if event.startswith(b"event: ") else 0
    if event.startswith(b"data: ", begin) and event.find(b"\n", begin) < 0:
        return event[begin + 6 :]
    return data_of(event + b"\n\n")


def with_data(event: bytes, data: bytes) -> bytes:
    """The same event with another payload on one line; its other fields and comments stay."""
    kept = [
        line
        for line in _LINE_END.split(event)
        if line and line != b"data" and not line.startswith(b"data:")
    ]
    return b"\n".join([*kept, b"data: " + data, b"", b""])


def terminated(event: bytes) -> bytes:
    """An event that came without its blank line, with it: SDKs lose the last one otherwise."""
    return event.rstrip(b"\r\n") + b"\n\n"


def event(data: bytes) -> bytes:
    """An unnamed event. `data` must be a single line, as compact JSON is."""
    return b"data: %b\n\n" % data
