"""`farebox serve` with a clock that moves only when it is told to.

A program whose instructions are counted runs fifty times slower. What it does four times a second,
counts fifty times as often for each request as it does in life, and more often still while the
machine is busy. So time stands still here: the counted program does what requests make it do, and
nothing else. Told to move by `STEP_SECONDS`, it goes from one timer to the next at once, each in
its turn, and does what is due by then, such as telling Postgres what was settled. A few
milliseconds pass as soon as there is nothing else to do: a request may have to wait for them.

- SIGUSR1 stops the clock; each further one moves it.
- SIGUSR2 lets it run with the time again, from where it stands.

Run by its path, with Python's `-P`: it must not put this directory before the packages of the
gateway, which are found through PYTHONPATH.
"""

from __future__ import annotations

import functools
import math
import signal
import time
from types import FrameType

import trio
import trio.abc

STEP_SECONDS = 0.5
_MOMENT_SECONDS = 0.01


class StillClock(trio.abc.Clock):
    """The monotonic clock until `step` stops it, and again after `run`."""

    def __init__(self) -> None:
        self._ahead = 0.0  # of the monotonic clock, while it runs
        self._stands: float | None = None  # at which moment
        self._goal = 0.0  # how far it may move

    def start_clock(self) -> None:
        pass

    def current_time(self) -> float:
        return time.monotonic() + self._ahead if self._stands is None else self._stands

    def deadline_to_sleep_time(self, deadline: float) -> float:
        """Asked when nothing else is to be done: then it moves, where it may."""
        if self._stands is None:
            return deadline - self.current_time()
        if deadline > max(self._goal, self._stands + _MOMENT_SECONDS):
            return math.inf  # the signal that moves the clock wakes the loop
        self._stands = max(self._stands, deadline)
        return 0.0

    def step(self) -> None:
        """Stop; or, where it stands already, move on."""
        if self._stands is None:
            self._stands = self._goal = self.current_time()
        else:
            self._goal += STEP_SECONDS

    def run(self) -> None:
        """Go with the time."""
        self._ahead, self._stands = self.current_time() - time.monotonic(), None


def main() -> None:
    from farebox.cli import main as farebox  # whichever tree's PYTHONPATH names

    clock = StillClock()

    def moved(number: int, _frame: FrameType | None) -> None:
        (clock.step if number == signal.SIGUSR1 else clock.run)()

    for number in (signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, moved)
    trio.run = functools.partial(trio.run, clock=clock)  # type: ignore[assignment] # its one loop
    farebox()


if __name__ == "__main__":
    main()
