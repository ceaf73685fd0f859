"""What the relays of streams between two ends of the same protocol have in common.

Raw events pass one by one, in the order in which they came. The first one that has no room in the
limit waits, and all behind it, for a higher limit or to be cut off. What is cut off no client gets:
it is only read for its figures.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

from adapters import sse
from adapters.codec import Counted, UpstreamFailure
from adapters.errors import UpstreamProtocolViolation
from adapters.stream import cut_at


class LimitedStream(ABC):
    """The part of `codec.StreamRelay` that asks nothing of what is in an event.

    `metered` is what was consumed, cut or not. `limited`: a limit may be given while it runs.
    """

    __slots__ = (
        "_input_text_bytes",
        "_limit",
        "_limited",
        "_metered",
        "_splitter",
        "_waiting",
        "cut",
        "ended",
        "failure",
        "full",
    )

    def __init__(self, metered: Callable[[int], Counted], *, limited: bool) -> None:
        self.ended = False
        self.cut = False
        self.full = False
        self.failure: UpstreamFailure | None = None
        self._metered = metered
        self._splitter = sse.Splitter()
        self._limited = limited
        self._limit: int | None = None
        self._waiting: list[bytes] = []  # raw events without room
        self._input_text_bytes = 0

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

    def cut_short(self, input_text_bytes: int) -> None:
        self.full, self.cut, self.ended = False, True, True
        self._input_text_bytes = input_text_bytes
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
        return b"".join([self._pass(raw) for raw in events])

    def close(self) -> bytes:
        rest = self._splitter.close()
        out = self._pass(sse.terminated(rest)) if sse.data_of(rest) else b""
        if not (self.ended or self.full):
            self._break_off()
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
        return self._complete

    def counted(self, input_text_bytes: int) -> Counted:
        counted = self._metered(input_text_bytes)
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
