"""The body of a provider's answer: the bytes of a connection in, those of the body out.

There are three framings (RFC 9112 §6.3): a length that the head has told, chunks, and the end of
the connection. Each is a small machine without I/O: `feed` takes what one read has brought and
returns the payload in it, all at once; `close` says that nothing more will come. Both raise
AttemptFailed where the framing does not hold.

Chunks are the framing of streams, and most streams have a chunk for each event. Ordinary ones, a
size and nothing else, are read here; h11 makes several objects of each, which takes five times as
long. Everything else (extensions, trailers, bad sizes …) makes h11 take over, for the rest of the
body: what it says of that is so by definition, and that the two agree on all other bodies is tested
(`tests/proxy/test_upstream_body.py`).

To have but one kind of border, the line break that ends a chunk is taken for the beginning of the
next one's head. The one that the first chunk lacks is put in front of the body.
"""

from __future__ import annotations

import re
from typing import Protocol

import h11

from proxy.upstream_errors import AttemptFailed
from proxy.upstream_head import ResponseHead

_BREAK = b"\r\n"
_BORDER = re.compile(rb"\r\n([0-9a-fA-F]{1,8})\r\n")
_END = re.compile(rb"\r\n0{1,8}\r\n\r\n")
_UNFINISHED = re.compile(rb"\r|\r\n[0-9a-fA-F]{0,8}|\r\n[0-9a-fA-F]{1,8}\r|\r\n0{1,8}\r\n\r?")
_REQUEST = h11.Request(method=b"POST", target=b"/", headers=[(b"host", b"upstream")])
# What h11 has to have seen to be where we are: right behind the payload of a chunk.
_CHUNK_BEFORE = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\n."


class Body(Protocol):
    """A body that is being read. `ended`: it is complete. `exact`: and nothing came behind it."""

    ended: bool
    exact: bool

    def feed(self, data: bytes) -> bytes:
        """The payload in what has arrived. Raises AttemptFailed."""
        ...

    def close(self) -> None:
        """Nothing more will arrive. Raises AttemptFailed where something is missing."""
        ...


class SizedBody:
    """A body of a length that is known."""

    __slots__ = ("_missing", "ended", "exact")

    def __init__(self, length: int) -> None:
        self._missing = length
        self.ended = self.exact = not length

    def feed(self, data: bytes) -> bytes:
        """The payload in what has arrived."""
        missing = self._missing = self._missing - len(data)
        if missing > 0:
            return data
        self.ended, self.exact = True, missing == 0
        return data if self.exact else data[:missing]

    def close(self) -> None:
        """Nothing more will arrive. Raises AttemptFailed where something is missing."""
        raise AttemptFailed("truncated", "closed inside the body", contacted=True)


class BodyToTheEnd:
    """A body that ends where its connection does."""

    __slots__ = ("ended", "exact")

    def __init__(self) -> None:
        self.ended = self.exact = False

    def feed(self, data: bytes) -> bytes:
        """The payload in what has arrived: all of it."""
        return data

    def close(self) -> None:
        """Nothing more will arrive: it is complete."""
        self.ended = True


class ChunkedBody:
    """A body in chunks."""

    __slots__ = ("_by_h11", "_missing", "_rest", "ended", "exact")

    def __init__(self) -> None:
        self.ended = self.exact = False
        self._missing = 0  # of the chunk that has begun
        self._rest = _BREAK  # the beginning of a border
        self._by_h11: h11.Connection | None = None

    def feed(self, data: bytes) -> bytes:
        """The payload in what has arrived. Raises AttemptFailed."""
        if len(data) <= self._missing:  # the inside of a large chunk, as it is
            self._missing -= len(data)
            return data
        if self._by_h11 is not None:
            return self._feed_h11(self._by_h11, data)
        if self._rest:
            data, self._rest = self._rest + data, b""
        parts: list[bytes] = []
        begin, end = 0, self._missing
        while end < len(data):
            if begin < end:
                parts.append(data[begin:end])
            border = _BORDER.match(data, end)
            if border is None or not (size := int(border[1], 16)):
                self._missing = 0
                self._at_border(data[end:], parts)
                break
            begin = border.end()
            end = begin + size
        else:
            self._missing = end - len(data)
            parts.append(data[begin:])
        return b"".join(parts)

    def close(self) -> None:
        """Nothing more will arrive, and something is missing."""
        raise AttemptFailed("truncated", "closed inside the body", contacted=True)

    def _at_border(self, rest: bytes, parts: list[bytes]) -> None:
        """What follows a chunk, where it is not simply the next one."""
        if rest == _BREAK or _UNFINISHED.fullmatch(rest):
            self._rest = rest
        elif end := _END.match(rest):
            self.ended, self.exact = True, end.end() == len(rest)
        else:
            self._by_h11 = h11.Connection(h11.CLIENT)
            self._by_h11.send(_REQUEST)
            self._by_h11.send(h11.EndOfMessage())
            self._by_h11.receive_data(_CHUNK_BEFORE)
            while self._by_h11.next_event() is not h11.NEED_DATA:
                pass
            parts.append(self._feed_h11(self._by_h11, rest))

    def _feed_h11(self, reader: h11.Connection, data: bytes) -> bytes:
        parts: list[bytes] = []
        reader.receive_data(data)
        try:
            while (event := reader.next_event()) is not h11.NEED_DATA:
                if not isinstance(event, h11.Data):
                    self.ended, self.exact = True, not reader.trailing_data[0]
                    break
                parts.append(event.data)
        except h11.RemoteProtocolError as error:
            raise AttemptFailed("protocol", str(error), contacted=True) from error
        return b"".join(parts)


def body_of(head: ResponseHead) -> Body:
    """The body that a head announces."""
    if head.length is not None:
        return SizedBody(head.length)
    return ChunkedBody() if head.chunked else BodyToTheEnd()
