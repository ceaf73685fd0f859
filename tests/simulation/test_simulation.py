"""Random fleets with random faults: SIMULATION_SEEDS of them, on two cores."""

from __future__ import annotations

import os

import pytest

from tests.simulation.__main__ import simulate

SEEDS = int(os.environ.get("SIMULATION_SEEDS", "500"))
CHUNK = 100


@pytest.mark.parametrize("first", range(0, SEEDS, CHUNK))
def test_no_seed_breaks_a_promise(first: int) -> None:
    total = simulate(range(first, min(first + CHUNK, SEEDS)), processes=2)
    assert not total.violated, "\n".join(total.lines(0))
    assert total.settled > total.seeds
    assert total.faults.total() > total.seeds
