"""Waiting for what comes about by itself: other processes and providers take their time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import trio

SOON_SECONDS = 10.0
_PAUSE_SECONDS = 0.02


def eventually(
    condition: Callable[[], bool],
    what: str,
    seconds: float = SOON_SECONDS,
    pause_seconds: float = _PAUSE_SECONDS,
) -> None:
    """Until it is so; raises AssertionError where it does not come about."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds:g} seconds: {what}"
        threading.Event().wait(pause_seconds)


async def until(condition: Callable[[], bool], what: str, seconds: float = SOON_SECONDS) -> None:
    """As `eventually`, while clients run; `condition` is asked in a thread."""
    await trio.to_thread.run_sync(eventually, condition, what, seconds)
