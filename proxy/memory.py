"""The bytes that exchanges hold, counted, so that large requests are refused before memory ends.

A stream holds little: one read, and what that becomes. What grows with the traffic are request
bodies, which stay until their answer begins to stream, or has been sent whole, and answers that
have to be whole before they count.
Each is bounded by itself, but a thousand times 64 MiB is not. So a worker keeps one count of such
bytes, and goes by it where something new begins:

- above three quarters of the bound no body of more than a mebibyte is taken, so the rest is for
  small requests, and for the answers to what was taken already;
- above the bound no exchange begins, and no answer grows.

Both are refused as overload, before they cost anything but their head. A body of declared length is
counted before any of it is read, one in chunks as they come. What fits one read is not counted.

The bound is on bytes as they travel. Decoding them takes a few times as much for a moment, which is
why all workers together may hold no more than an eighth of the machine's memory. Answers recorded
for `Idempotency-Key` have a bound of their own (`proxy.idempotency`): where that is reached nobody
is refused, so what is recorded shall not be why somebody else is.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from proxy.settings import ServerSettings

HELD_BYTES_MIN = 256 * 1024 * 1024
BODIES_MIN = 4
"""The least that a worker's bound has room for: so much, and so many of the largest bodies."""

LARGE_BYTES = 1024 * 1024
"""A body of more is refused first."""

_PART_OF_MACHINE = 8
_LIMIT_FILES = (  # of a control group: version 2, then version 1
    ("", "sys/fs/cgroup", "memory.max"),
    ("memory", "sys/fs/cgroup/memory", "memory.limit_in_bytes"),
)


class Memory:
    """What the exchanges of a worker hold, and may hold."""

    __slots__ = ("_calm_bytes", "_max_bytes", "held_bytes")

    def __init__(self, max_bytes: int) -> None:
        self.held_bytes = 0
        self.max_bytes = max_bytes

    @property
    def max_bytes(self) -> int:
        """The bound. It may change: what is held already stays."""
        return self._max_bytes

    @max_bytes.setter
    def max_bytes(self, size: int) -> None:
        self._max_bytes = size
        self._calm_bytes = size // 4 * 3

    def allows(self, body_bytes: int) -> bool:
        """Whether there is room for a body that is so long, or has come so far."""
        held = self.held_bytes
        if held <= self._calm_bytes:
            return True
        return held <= self._max_bytes and body_bytes <= LARGE_BYTES

    def share(self) -> Share:
        """What one holder has of it; nothing yet."""
        return Share(self)


class Share(msgspec.Struct, eq=False):
    """The bytes of `memory` that one holder has. Whoever makes one closes it, however things end.

    Those that it is made with are in the count already.
    """

    memory: Memory
    held_bytes: int = 0

    def take(self, size: int) -> bool:
        """Count `size` more. False where they are too many, and all had better be let go."""
        self.held_bytes += size
        memory = self.memory
        memory.held_bytes += size
        return memory.held_bytes <= memory.max_bytes

    def close(self) -> None:
        """Give everything back. May be called twice."""
        if self.held_bytes:
            self.memory.held_bytes -= self.held_bytes
            self.held_bytes = 0


def bound_of(settings: ServerSettings, workers: int) -> int:
    """What each of so many workers may hold: as configured, else its part of our memory."""
    if settings.max_held_bytes:
        return settings.max_held_bytes
    least = max(HELD_BYTES_MIN, BODIES_MIN * settings.max_body_bytes)
    return max(memory_bytes() // _PART_OF_MACHINE // workers, least)


def memory_bytes(root: Path = Path("/")) -> int:
    """The machine's memory, or less where a control group allows no more. Blocks for a moment."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([machine, *_group_limits(root)])


def _group_limits(root: Path) -> list[int]:
    """What our control group and those around it allow.

    In a container our own path may be one of the machine outside, of which only the end is to be
    seen: what does not exist is passed over, and the topmost group is always looked at.
    """
    limits = []
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        for controller, mounted, name in _LIMIT_FILES:
            if controller in controllers.split(","):
                group = Path(path.lstrip("/"))
                for each in (group, *group.parents):
                    limit = _text(root / mounted / each / name).strip()
                    if limit.isdecimal():  # version 2 has "max" where there is none
                        limits.append(int(limit))
    return limits


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
