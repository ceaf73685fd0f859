"""A disk in memory for `ledger.segments.Files`: it can fill up, refuse, lose power and lie."""

from __future__ import annotations

import errno
import itertools
from collections.abc import Callable
from pathlib import Path

from ledger.segments import JournalLocked

SECTOR_BYTES = 512


class MemoryDisk:
    """What a file holds now (`content`), and what of it would survive a power cut (`durable`).

    Faults are set by the test: `full` refuses new files, `refuse_writes` and `refuse_syncs` hold
    how many of the next calls fail; `after_create` runs once, while a new file is on its way to
    the caller, and `after_sync` once, when a sync has all that it will have. `syncs` counts
    successes, `refused` files for lack of room.
    """

    def __init__(self) -> None:
        self.content: dict[Path, bytearray] = {}
        self.durable: dict[Path, bytes] = {}
        self.full = False
        self.after_create: Callable[[], None] | None = None
        self.after_sync: Callable[[], object] | None = None
        self.refuse_writes = 0
        self.refuse_syncs = 0
        self.syncs = 0
        self.refused = 0
        self._open: dict[int, Path] = {}
        self._locks: dict[int, Path] = {}
        self._descriptors = itertools.count(3)

    # Files

    def lock(self, directory: Path) -> int:
        if directory in self._locks.values():
            raise JournalLocked(directory)
        descriptor = next(self._descriptors)
        self._locks[descriptor] = directory
        return descriptor

    def segments(self, directory: Path) -> list[Path]:
        return sorted(p for p in self.content if p.parent == directory and p.suffix == ".journal")

    def read(self, path: Path) -> bytes:
        return bytes(self.content[path])

    def create(self, path: Path, size: int) -> int:
        if self.full:
            self.refused += 1
            raise OSError(errno.ENOSPC, "No space left on device")
        assert path not in self.content
        self.content[path] = bytearray(size)
        self.durable[path] = bytes(size)
        descriptor = next(self._descriptors)
        self._open[descriptor] = path
        interruption, self.after_create = self.after_create, None
        if interruption is not None:
            interruption()
        return descriptor

    def write(self, file: int, data: bytes | bytearray, offset: int) -> None:
        content = self.content[self._open[file]]
        assert offset + len(data) <= len(content), "writes stay inside the preallocated space"
        if self.refuse_writes:
            self.refuse_writes -= 1
            half = len(data) // 2
            content[offset : offset + half] = data[:half]
            raise OSError(errno.EIO, "Input/output error")
        content[offset : offset + len(data)] = data

    def sync(self, file: int) -> None:
        if self.refuse_syncs:
            self.refuse_syncs -= 1
            raise OSError(errno.EIO, "Input/output error")
        path = self._open[file]
        self.durable[path] = bytes(self.content[path])
        interruption, self.after_sync = self.after_sync, None
        if interruption is not None:
            interruption()
        self.syncs += 1

    def close(self, file: int) -> None:
        if file in self._locks:
            del self._locks[file]
        else:
            del self._open[file]

    def remove(self, path: Path) -> None:
        self.content.pop(path, None)
        self.durable.pop(path, None)

    # what can happen to it

    def kill(self) -> None:
        """The process dies, the machine lives: all that was written is still there."""
        self._open.clear()
        self._locks.clear()

    def cut_power(self, survives: Callable[[], bool]) -> None:
        """The machine dies: of every sector written since the last sync, `survives` decides."""
        self.kill()
        for path, content in self.content.items():
            after = bytearray(self.durable[path])
            for begin in range(0, len(content), SECTOR_BYTES):
                sector = slice(begin, begin + SECTOR_BYTES)
                if content[sector] != after[sector] and survives():
                    after[sector] = content[sector]
            self.content[path] = after
            self.durable[path] = bytes(after)
