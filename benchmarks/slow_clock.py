"""Time that passes more slowly, for programs that are counted and so run more slowly.

What a gateway does every few milliseconds would otherwise weigh the more, the slower its requests
are served. `in_every_python` has all processes of a tree live by such a clock, whatever they start.
"""

from __future__ import annotations

import functools
import time
from pathlib import Path

import trio
import trio.abc


class SlowClock(trio.abc.Clock):
    """The monotonic clock, some times slower."""

    def __init__(self, times: float) -> None:
        self._times = times

    def start_clock(self) -> None:
        pass

    def current_time(self) -> float:
        return time.monotonic() / self._times

    def deadline_to_sleep_time(self, deadline: float) -> float:
        return (deadline - self.current_time()) * self._times


def slow_down(times: float) -> None:
    """Whatever event loop this process runs from here on."""
    trio.run = functools.partial(trio.run, clock=SlowClock(times))  # type: ignore[assignment]


def in_every_python(times: float, directory: Path) -> Path:
    """What has to be in PYTHONPATH, beside this package: `site` imports it as each one starts."""
    module = directory / "sitecustomize.py"
    module.write_text(f"from benchmarks.slow_clock import slow_down\n\nslow_down({times!r})\n")
    return directory
