"""Rows of numbers that the workers of a node share, found by name.

Problem: several processes have to agree on a few numbers for each of many names, at once and on
the path of a request, although any of them may be killed at any step. Approach: one piece of
memory that the supervisor makes and every worker inherits, and the kernel's locks for whatever
more than one may change. A worker that is alone has the same rows in memory of its own.

A row is a list of 64-bit words: two for its name, those that its owner (`proxy.health`) gives a
meaning to, and one *place* for each worker at the end.

Rules
- Reading takes no lock. A word is read and written whole; two words read after each other may be
  of different moments, so a reader has to bear being wrong once.
- A word at a worker's place is written by that worker alone, and cleared when the place is filled
  anew: what a dead one left there counts for nothing from then on.
- Every other word is changed under the row's lock (`changing`), which nobody waits for: after a few
  tries the change is given up, so that a process that was stopped inside delays nobody. Only who
  finds a row free waits for it, once in the life of a name: two rows of one name would be for good.
- A row's *claim* is a second lock, held for as long as something takes that only one process at a
  time may do.
- The kernel gives back the locks of whoever dies. There is nothing to clean up.

The locks are POSIX record locks (fcntl(2)), a byte of the file for each. They belong to a process
as a whole: two tasks of one worker are kept apart by a flag beside the claim. And a process loses
all of them when it closes *any* descriptor of the file, so a worker opens it once, for good.

Prior art: the shared memory zones of nginx, and the scoreboard of the Apache HTTP server.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b
from typing import Final

ROWS: Final = 4096
_WORD_BYTES: Final = 8
_NAME_WORDS: Final = 2
_TRIES: Final = 8
_TRY: Final = fcntl.LOCK_EX | fcntl.LOCK_NB
_HELD_ELSEWHERE: Final = frozenset({errno.EACCES, errno.EAGAIN})


def make_memory(words: int, places: int) -> int:
    """A descriptor of memory for rows of so many words, shared by so many workers.

    Whoever inherits it may use it (`Rows.shared`); it is gone with the last of them.
    """
    size = ROWS * (_NAME_WORDS + words + places) * _WORD_BYTES
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("farebox-rows", os.MFD_CLOEXEC)
    else:
        with tempfile.TemporaryFile(prefix="farebox-rows-") as file:
            descriptor = os.dup(file.fileno())
    os.ftruncate(descriptor, size)
    return descriptor


class Row:
    """The words of one name. `places` are its last ones, `place` the index of this worker's."""

    __slots__ = ("_claimed", "_descriptor", "_offset", "place", "places", "words")

    def __init__(
        self, words: memoryview, places: int, place: int, descriptor: int | None, offset: int
    ) -> None:
        self.words = words
        self.places = words[-places:]
        self.place = len(words) - places + place
        self._offset = offset
        self._descriptor = descriptor
        self._claimed = False

    @contextmanager
    def changing(self) -> Iterator[bool]:
        """The right to change words that all may change, where it is given: False means no."""
        given = self._lock(0, _TRIES)
        try:
            yield given
        finally:
            if given:
                self._unlock(0)

    def claim(self) -> bool:
        """Whether this caller has the row's claim from now on, until it is released."""
        if self._claimed or not self._lock(1, 1):
            return False
        self._claimed = True
        return True

    def release(self) -> None:
        """Give the claim back, if this process has it."""
        if self._claimed:
            self._claimed = False
            self._unlock(1)

    def take(self, name: tuple[int, int]) -> bool:
        """Whether this row is the one of `name`, if need be from now on."""
        words = self.words
        if not words[0]:
            self._wait_for_lock()
            if not words[0]:
                words[1] = name[1]
                words[0] = name[0]  # last: a reader takes a row without it for free
            self._unlock(0)
        return words[0] == name[0] and words[1] == name[1]

    def _lock(self, byte: int, tries: int) -> bool:
        if self._descriptor is None:
            return True
        for _ in range(tries):
            try:
                fcntl.lockf(self._descriptor, _TRY, 1, self._offset + byte)
            except OSError as error:
                if error.errno not in _HELD_ELSEWHERE:
                    raise
            else:
                return True
        return False

    def _wait_for_lock(self) -> None:
        if self._descriptor is not None:
            fcntl.lockf(self._descriptor, fcntl.LOCK_EX, 1, self._offset)

    def _unlock(self, byte: int) -> None:
        if self._descriptor is not None:
            fcntl.lockf(self._descriptor, fcntl.LOCK_UN, 1, self._offset + byte)


class Rows:
    """All rows, as one process sees them: `private` or `shared`.

    A name for which no row is left gets one that only this process knows.
    """

    def __init__(
        self, memory: memoryview, rows: int, places: int, place: int, descriptor: int | None
    ) -> None:
        self._memory = memory
        self._rows = rows
        self._stride = len(memory) // rows
        self._places = places
        self._place = place
        self._descriptor = descriptor
        self._found: dict[str, Row] = {}

    @classmethod
    def private(cls, words: int, *, rows: int = ROWS) -> Rows:
        """Rows of `words` words for a worker that is alone."""
        return cls(_memory(rows * (_NAME_WORDS + words + 1)), rows, 1, 0, None)

    @classmethod
    def shared(cls, descriptor: int, words: int, *, place: int | None = None) -> Rows:
        """The rows of `make_memory(words, …)`.

        `place` is this worker's among all of them, counted from 0 and empty from now on; whoever
        has none only looks.
        """
        memory = memoryview(mmap.mmap(descriptor, 0)).cast("q")
        places = len(memory) // ROWS - _NAME_WORDS - words
        assert place is None or place < places, "a place for each worker"
        if place is not None:
            stride = len(memory) // ROWS
            memory[stride - places + place :: stride] = _memory(ROWS)
        return cls(memory, ROWS, places, place or 0, descriptor)

    def row(self, name: str) -> Row:
        """The row of `name`."""
        found = self._found.get(name)
        if found is None:
            found = self._found[name] = self._find(name)
        return found

    def _find(self, name: str) -> Row:
        key = _key(name)
        for step in range(self._rows):
            row = self._at((key[0] + step) % self._rows)
            if row.take(key):
                return row
        return self._apart()

    def _at(self, index: int) -> Row:
        start = index * self._stride
        words = self._memory[start : start + self._stride]
        return Row(words, self._places, self._place, self._descriptor, start * _WORD_BYTES)

    def _apart(self) -> Row:
        return Row(_memory(self._stride), self._places, self._place, None, 0)


def _key(name: str) -> tuple[int, int]:
    """Two words; the first is never 0, which is a free row, unless 2^64 is a small number."""
    digest = blake2b(name.encode(), digest_size=_NAME_WORDS * _WORD_BYTES).digest()
    return (
        int.from_bytes(digest[:_WORD_BYTES], signed=True),
        int.from_bytes(digest[_WORD_BYTES:], signed=True),
    )


def _memory(words: int) -> memoryview:
    return memoryview(bytearray(words * _WORD_BYTES)).cast("q")
