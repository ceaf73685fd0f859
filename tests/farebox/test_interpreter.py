"""How a process that serves is set: its limit of open files, and when all objects are looked at."""

from __future__ import annotations

import gc
import subprocess
import sys

import pytest
import trio
from trio.testing import MockClock

from farebox import interpreter
from farebox.interpreter import collect_when_idle

HARD = 512
RAISED = f"""
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (64, {HARD}))
from farebox.interpreter import allow_many_files
allow_many_files()
print(*resource.getrlimit(resource.RLIMIT_NOFILE))
"""


def test_as_many_files_may_be_open_as_the_system_allows() -> None:
    program = [sys.executable, "-c", RAISED]
    done = subprocess.run(program, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(HARD), str(HARD)]


async def test_all_objects_are_looked_at_in_a_moment_of_rest(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    pending, busy, looked = 0, True, 0

    def collect() -> None:
        nonlocal pending, looked
        pending, looked = 0, looked + 1

    monkeypatch.setattr(gc, "collect", collect)
    monkeypatch.setattr(gc, "get_count", lambda: (0, 0, pending))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(collect_when_idle, lambda: not busy)
        pending = interpreter._MIDDLE_COLLECTIONS_IDLE
        await trio.sleep(100)
        assert looked == 0, "somebody is served"
        busy = False
        await trio.sleep(100)
        assert looked == 1
        pending = 1
        await trio.sleep(100)
        assert looked == 1, "there is hardly anything new"
        nursery.cancel_scope.cancel()
