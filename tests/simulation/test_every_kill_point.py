"""Small scenarios with a death at every single step: whoever dies, whenever, the books are right.

A step is one run of one task between two awaits. For each of them the scenario is repeated to
there, somebody is killed (the ledger's process, a worker, the machine by a power cut), everything
is restarted and brought to rest, and all that the simulation checks is checked. Every
KILL_POINT_STRIDE-th step is tried, from another one in each scenario; 1 tries them all.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
import trio

from ledger.client import LedgerError
from tests.simulation.node import Node, Worker
from tests.simulation.scenarios import SCENARIOS, Scenario
from tests.simulation.world import Report, World, run

STRIDE = int(os.environ.get("KILL_POINT_STRIDE", "15"))


def kill_ledger(world: World) -> None:
    for node in world.nodes[:1]:  # in the first steps there is none yet
        if node.ledgerd is not None:
            node.ledgerd.kill()


def kill_worker(world: World) -> None:
    for node in world.nodes[:1]:
        for worker in list(node.workers.values())[:1]:
            worker.process.kill()


def cut_power(world: World) -> None:
    for node in world.nodes[:1]:
        if node.up:
            node.cut_power()


VICTIMS: dict[str, Callable[[World], None]] = {
    "ledger": kill_ledger,
    "worker": kill_worker,
    "machine": cut_power,
}


def play(scenario: Scenario, interruption: tuple[int, Callable[[World], None]] | None) -> Report:
    """The scenario, perhaps with a death in it."""
    begun: set[tuple[int, int]] = set()

    async def traffic(world: World, node: Node, worker: Worker) -> None:
        number = world.nodes.index(node)
        place = next(place for place, each in node.workers.items() if each is worker)
        part = scenario.parts.get((number, place))
        if part is not None and (number, place) not in begun:
            begun.add((number, place))
            try:
                await part(world.customer(worker))
            except* LedgerError:
                pass
        await trio.sleep_forever()

    async def story(world: World) -> None:
        async with trio.open_nursery() as nursery:
            if scenario.events is not None:
                nursery.start_soon(scenario.events, world)
            await trio.sleep(scenario.seconds)
            nursery.cancel_scope.cancel()
        world.database.poison.clear()
        await world.come_to_rest()

    return run(0, scenario.plan(), story, traffic=traffic, interruption=interruption)


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_whoever_dies_whenever(scenario: Scenario) -> None:
    undisturbed = play(scenario, None)
    assert not undisturbed.violation
    assert undisturbed.settled or scenario.name in ("nothing to charge", "clients leave")
    first = 1 + SCENARIOS.index(scenario) % STRIDE
    points = range(first, undisturbed.active_steps + 1, STRIDE)
    violations = [
        f"{victim} at step {step}: {report.violation}"
        for victim, kill in VICTIMS.items()
        for step in points
        if (report := play(scenario, (step, kill))).violation
    ]
    assert not violations, "\n".join([f"{len(violations)} of {3 * len(points)}", *violations[:10]])
    print(f"{len(points)} of {undisturbed.active_steps} steps, {3 * len(points)} deaths")  # noqa: T201
