"""A seed means the same in every process, or a violation could not be looked at twice."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import trio
from trio._core import _run, _traps
from trio.testing import MockClock

from tests.simulation.scheduling import deterministic

ROOT = Path(__file__).resolve().parents[2]
ONCE = """
from tests.simulation.world import run
for seed in (1, 5, 16, 22):
    report = run(seed)
    print(report.seed, report.steps, report.digest, report.virtual_seconds)
"""


def test_a_seed_repeats_itself_in_another_process() -> None:
    said = [
        subprocess.run(
            [sys.executable, "-c", ONCE],
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        ).stdout
        for hash_seed in ("1", "2")
    ]
    assert said[0] == said[1]
    assert len(said[0].splitlines()) == 4


def test_the_names_of_trio_that_this_depends_on_exist() -> None:
    assert isinstance(vars(_run)["_ALLOW_DETERMINISTIC_SCHEDULING"], bool)
    assert isinstance(vars(_run)["_r"], random.Random)
    assert "WaitTaskRescheduled" in vars(_traps)
    assert {"instruments"} <= set(dir(_run.Runner))
    assert {"_next_send_fn", "_next_send", "_counter"} <= set(dir(trio.lowlevel.Task))


def test_the_order_of_tasks_comes_from_the_generator() -> None:
    orders = {tuple(_order(seed)) for seed in range(20)}
    assert len(orders) > 10
    assert all(_order(seed) == _order(seed) for seed in range(5))


def _order(seed: int) -> list[int]:
    order: list[int] = []

    async def note(number: int) -> None:
        await trio.sleep(1)
        order.append(number)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            for number in range(6):
                nursery.start_soon(note, number)

    with deterministic(random.Random(seed)):
        trio.run(main, clock=MockClock(autojump_threshold=0))
    return order
