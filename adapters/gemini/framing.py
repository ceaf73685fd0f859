"""How chunks follow one another: as server-sent events, or as the items of one JSON array."""

from __future__ import annotations

from typing import Protocol

from adapters import sse


class Framing(Protocol):
    """One stream's. `payload` is always one JSON object."""

    def item(self, payload: bytes) -> bytes:
        """One more chunk."""
        ...

    def end(self) -> bytes:
        """What follows the last one."""
        ...


class EventFraming:
    """`alt=sse`."""

    __slots__ = ()

    def item(self, payload: bytes) -> bytes:
        return sse.event(payload)

    def end(self) -> bytes:
        return b""


class ArrayFraming:
    """The stream of plain REST callers."""

    __slots__ = ("_begun",)

    def __init__(self) -> None:
        self._begun = False

    def item(self, payload: bytes) -> bytes:
        before, self._begun = b",\n" if self._begun else b"[", True
        return before + payload

    def end(self) -> bytes:
        return b"]" if self._begun else b"[]"


def framing(array: bool) -> Framing:
    """A new stream's."""
    return ArrayFraming() if array else EventFraming()
