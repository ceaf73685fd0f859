"""The two clocks of a ledger: one for how long, one for when."""

from __future__ import annotations

import time

_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)  # elsewhere the latter counts it


def boottime() -> float:
    """Seconds that never go back and count suspend: a paused machine sees that time has passed."""
    return time.clock_gettime(_CLOCK)


def wall_microseconds() -> int:
    """The time of day, for `occurred_at` only."""
    return time.time_ns() // 1000
