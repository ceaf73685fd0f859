"""What the relays of streams between two ends of the same protocol have in common.

Raw events pass one by one, in the order in which they came. The first one that has no room in the
limit waits, and all behind it, for a higher limit or to be cut off. What is cut off no client gets:
it is only read for its figures.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Protocol

from adapters import sse
from adapters.codec import Counted, Expected, UpstreamFailure
from adapters.errors import UpstreamProtocolViolation
from adapters.stream import cut_at, nothing_expected


class Metering(Protocol):
    """What counts an answer."""

    @property
    def output_tokens(self) -> int: ...

    def counted(self, expected: Expected) -> Counted: ...


class LimitedStream(ABC):
    """The part of `codec.StreamRelay` that asks nothing of what is in an event.

    `metering` counts what was consumed, cut or not. `limited`: a limit may be given while it runs.
    """

    __slots__ = (
        "_expected",
        "_limit",
        "_limited",
        "_metering",
        "_splitter",
        "_waiting",
        "cut",
        "ended",
        "failure",
        "full",
    )

    def __init__(self, metering: Metering, *, limited: bool) -> None:
        self.ended = False
        self.cut = False
        self.full = False
        self.failure: UpstreamFailure | None = None
        self._metering = metering
        self._splitter = sse.Splitter()
        self._limited = limited
        self._limit: int | None = None
        self._waiting: list[bytes] = []  # raw events without room
        self._expected: Expected = nothing_expected  # by those who read on

    @abstractmethod
    def _pass(self, raw: bytes) -> bytes:
        """Read one event; return what the client sees of it."""

    @abstractmethod
    def _read_on(self, raw: bytes) -> None:
        """An event behind the cut, whatever it is worth."""

    @abstractmethod
    def _break_off(self) -> None:
        """The body has ended, and the upstream's last word was not in it."""

    @property
    @abstractmethod
    def _complete(self) -> bool:
        """Whether the upstream has said its last word, whoever heard it."""

    @property
    def waiting_bytes(self) -> int:
        return self._splitter.waiting_bytes

    def limit(self, output_tokens: int | None) -> bytes:
        assert self._limited, "the relay was made without"
        self._limit = output_tokens
        waiting, self._waiting, self.full = self._waiting, [], False
        return b"".join([self._pass(raw) for raw in waiting])

    def cut_short(self, expected: Expected) -> None:
        self.full, self.cut, self.ended = False, True, True
        self._expected = expected
        for raw in self._waiting:
            self._read_on(raw)
        self._waiting.clear()

    def feed(self, data: bytes) -> bytes:
        if self.ended:
            return b""
        try:
            events = self._splitter.feed(data)
        except UpstreamProtocolViolation as violation:
            self._fail(UpstreamFailure("protocol", str(violation)))
            return b""
        if len(events) == 1:
            return self._pass(events[0])
        return b"".join([self._pass(raw) for raw in events])

    def close(self) -> bytes:
        rest = self._splitter.close()
        out = self._pass(sse.terminated(rest)) if sse.data_of(rest) else b""
        if not (self.ended or self.full):
            self._break_off()
        return out

    def read_on(self, data: bytes) -> bool:
        if self.full:
            self.cut_short(nothing_expected)
        if not self.cut:
            self.feed(data)
            return self.ended
        try:
            for raw in self._splitter.feed(data):
                self._read_on(raw)
        except UpstreamProtocolViolation:
            return True
        return self._complete

    @property
    def output_tokens(self) -> int:
        output = self._metering.output_tokens
        return min(output, self._limit) if self.cut and self._limit is not None else output

    def counted(self, expected: Expected) -> Counted:
        counted = self._metering.counted(expected)
        return cut_at(counted, self._limit) if self.cut and self._limit is not None else counted

    def _wait(self, raw: bytes) -> bytes:
        """There is no room for this event."""
        self.full = True
        self._waiting.append(raw)
        return b""

    def _keep_back(self, raw: bytes) -> None:
        """An event that comes when others wait, or when the answer is over."""
        if self.full:
            self._waiting.append(raw)
        elif self.cut:
            self._read_on(raw)

    def _fail(self, failure: UpstreamFailure) -> None:
        self.failure, self.ended = failure, True
