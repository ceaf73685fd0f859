"""Other processes that share memory with a test, and do what they are told line by line.

What they run is a script of the test's: it gets the descriptor and its place as arguments, says
"here" once it is ready, and answers each line on its standard input with another.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_DEADLINE_SECONDS = 10


class Sharer:
    """One of them."""

    def __init__(self, script: str, memory: int, place: int) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", script, str(memory), str(place)],
            pass_fds=[memory],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def tell(self, order: str) -> None:
        """Say what to do, and do not wait for it."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{order}\n")
        self.process.stdin.flush()

    def says(self) -> str:
        """Its next answer."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def ask(self, order: str) -> str:
        """Say what to do, and hear how it went."""
        self.tell(order)
        return self.says()

    def kill(self) -> None:
        """`kill -9`, and wait for its end."""
        self.process.kill()
        self.process.wait(_DEADLINE_SECONDS)

    def close(self) -> None:
        """See to it that it has ended."""
        self.kill()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()


@contextmanager
def sharers(script: str, memory: int, count: int, first: int = 0) -> Iterator[list[Sharer]]:
    """So many, at places from `first` on, all of them there."""
    started = [Sharer(script, memory, first + place) for place in range(count)]
    try:
        assert [each.says() for each in started] == ["here"] * count
        yield started
    finally:
        for each in started:
            each.close()
