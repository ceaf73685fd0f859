"""Small stories, each about one thing that a ledger does, for killing somebody at every step.

A scenario has parts: what the first process in a worker's place does, and what happens to the
world meanwhile. Nobody expects that a part gets to its end; the books must be right all the same.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import trio

from ledger.client import LedgerError
from ledger.lanes import EngineSettings
from ledger.pool import BUDGET_POOL_MIN, Sizing
from ledger.store import EventStatus
from tests.fakes.ledger import PRICE, PROVIDER
from tests.simulation.client import Customer, Habits
from tests.simulation.node import NodeSettings
from tests.simulation.plan import Plan
from tests.simulation.world import World

ACCOUNT, SECOND = 7, 8
BUDGET = BUDGET_POOL_MIN + ACCOUNT

Part = Callable[[Customer], Awaitable[None]]


@dataclass(frozen=True)
class Scenario:
    """`parts` are by node and place; `events` is what happens to the world."""

    name: str
    parts: dict[tuple[int, int], Part]
    events: Callable[[World], Awaitable[None]] | None = None
    seconds: float = 1.0
    nodes: int = 1
    balance: int = 1000
    segment_bytes: int = 1 << 13
    synchronous: bool = True
    poison: bool = False
    batch_max: int = 5000
    validity_seconds: float = 20.0
    flush_seconds: float = 0.05

    def plan(self) -> Plan:
        """A world of the scenario's size, in which everything else is quick."""
        workers = 1 + max(place for _, place in self.parts)
        return Plan(
            generator=random.Random(self.name),
            scheduling=random.Random(self.name),
            nodes=self.nodes,
            node=NodeSettings(
                workers=workers,
                flush_seconds=self.flush_seconds,
                fsync_interval=0.005,
                segment_bytes=self.segment_bytes,
                restart_seconds=0.02,
                engine=EngineSettings(
                    sizing=Sizing(holding_seconds=0.5),
                    heartbeat_seconds=1.0,
                    validity_seconds=self.validity_seconds,
                    batch_max=self.batch_max,
                ),
            ),
            accounts={ACCOUNT: 0, SECOND: 100},
            balance=self.balance,
            budget=500,
            habits=Habits(
                accounts=(ACCOUNT, SECOND),
                budgets={ACCOUNT: BUDGET},
                poison=1.0 if self.poison else 0.0,
            ),
            synchronous=self.synchronous,
            max_request_seconds=int(self.validity_seconds),
            active_seconds=self.seconds,
        )


# -- what customers do ----------------------------------------------------------------------------


def use(*charges: int, amount: int = 100, account: int = ACCOUNT, budget: bool = False) -> Part:
    """One request after the other, each charged as told."""

    async def part(customer: Customer) -> None:
        for charge in charges:
            request = customer.request(account, with_budget=budget)
            try:
                reservation = await customer.reserve(request, amount)
            except LedgerError:
                continue
            request.contacted = True
            await trio.sleep(0.01)
            customer.settle(request, reservation, charge)
            await customer.deliver(request, reservation)

    return part


def held(seconds: float, charge: int, *, amount: int = 100) -> Part:
    """One request that takes its time."""

    async def part(customer: Customer) -> None:
        request = customer.request(ACCOUNT)
        reservation = await customer.reserve(request, amount)
        request.contacted = True
        await trio.sleep(seconds)
        customer.settle(request, reservation, charge)
        await customer.deliver(request, reservation)

    return part


async def grow(customer: Customer) -> None:
    """A request that is extended twice, one of them in vain."""
    request = customer.request(ACCOUNT)
    reservation = await customer.reserve(request, 10)
    request.contacted = True
    await reservation.extend(50)
    reservation.ask_for(5_000)
    await trio.sleep(0.05)
    reservation.ask_for(reservation.amount + 100)
    await trio.sleep(0.05)
    customer.settle(request, reservation, min(150, reservation.amount))
    await customer.deliver(request, reservation)


async def fail_twice(customer: Customer) -> None:
    """Two providers fail, the third one answers."""
    request = customer.request(ACCOUNT)
    reservation = await customer.reserve(request, 100)
    request.contacted = True
    for cost in (1, 2):
        reservation.attempt(
            provider_id=PROVIDER, price_id=PRICE.price_id, status=EventStatus.FAILED, cost=cost
        )
        await trio.sleep(0.02)
    customer.settle(request, reservation, 60)
    await customer.deliver(request, reservation)


async def produce_nothing(customer: Customer) -> None:
    """One request whose provider had no answer, and one that never got there."""
    for contacted in (True, False):
        request = customer.request(ACCOUNT)
        reservation = await customer.reserve(request, 100)
        await trio.sleep(0.01)
        customer.void(request, reservation, contacted=contacted)
        await customer.deliver(request, reservation)


async def leave_while_waiting(customer: Customer) -> None:
    """Clients who are gone before there was a permit."""
    for seconds in (0.0005, 0.002, 0.004, 0.006):
        with trio.move_on_after(seconds):
            request = customer.request(ACCOUNT)
            reservation = await customer.reserve(request, 700)
            customer.void(request, reservation, contacted=False)


async def many_at_once(customer: Customer) -> None:
    """More than the account has, at the same time."""
    async with trio.open_nursery() as nursery:
        for _ in range(6):
            nursery.start_soon(use(90, amount=300), customer)


# -- what happens to the world --------------------------------------------------------------------


async def cut_links(world: World) -> None:
    for _ in range(6):
        await trio.sleep(0.013)
        for node in world.nodes:
            node.look()
            for worker in node.workers.values():
                for end in worker.ends:
                    end.cut()


async def restart_ledger(world: World) -> None:
    await trio.sleep(0.03)
    if ledgerd := world.nodes[0].ledgerd:
        ledgerd.kill()


async def sleep_for_long(world: World) -> None:
    """Long enough for a node's leases to be given away."""
    await trio.sleep(0.03)
    world.nodes[0].pause()
    await trio.sleep(40)
    world.nodes[0].resume()


async def lose_acknowledged(world: World) -> None:
    standby = world.books.copy()
    await trio.sleep(0.09)
    world.fail_over(standby)
    await world.repeat_payments()


async def lose_grants(world: World) -> None:
    await trio.sleep(0.002)
    standby = world.books.copy()
    await trio.sleep(0.02)
    world.fail_over(standby)
    await world.repeat_payments()


async def pay_and_refund(world: World) -> None:
    for _ in range(4):
        await trio.sleep(0.02)
        await world.pay(ACCOUNT, 200)
        await world.refund(ACCOUNT, 50)


async def lose_the_database(world: World) -> None:
    await trio.sleep(0.02)
    world.database.down = True
    world.database.break_connections()
    await trio.sleep(0.5)
    world.database.down = False


async def fill_the_disk(world: World) -> None:
    await trio.sleep(0.01)
    world.nodes[0].disk.full = True
    await trio.sleep(0.4)
    world.nodes[0].disk.full = False


SCENARIOS = [
    Scenario("reserve and settle", {(0, 0): use(60)}, seconds=0.3),
    Scenario("two workers, one account", {(0, 0): use(60, 70), (0, 1): use(50, 80)}, seconds=0.3),
    Scenario("extend", {(0, 0): grow}, seconds=0.5),
    Scenario("many wait for one grant", {(0, 0): many_at_once}, seconds=0.5),
    Scenario("exchange under way", {(0, 0): use(1, 2, 3, 4, 5, 6)}, seconds=0.5, batch_max=1),
    Scenario(
        "recall",
        {(0, 0): use(10, 10, amount=400), (1, 0): use(10, 10, amount=900)},
        seconds=0.5,
        nodes=2,
    ),
    Scenario("restart during recovery", {(0, 0): held(0.1, 60)}, restart_ledger, seconds=0.5),
    Scenario(
        "reclaim and late settlement",
        {(0, 0): held(0.2, 60), (1, 0): held(0.01, 5)},
        sleep_for_long,
        seconds=42,
        nodes=2,
        validity_seconds=5,
        flush_seconds=2,
    ),
    Scenario(
        "begin anew",
        {(0, 0): use(*[3] * 20), (1, 0): held(0.01, 5)},
        sleep_for_long,
        seconds=42,
        nodes=2,
        validity_seconds=5,
        flush_seconds=2,
    ),
    Scenario("segment roll", {(0, 0): use(*[5] * 12)}, seconds=0.5, segment_bytes=4096),
    Scenario(
        "failover that lost events", {(0, 0): use(*[7] * 8)}, lose_acknowledged, synchronous=False
    ),
    Scenario("failover that lost grants", {(0, 0): held(0.1, 60)}, lose_grants, synchronous=False),
    Scenario("links cut", {(0, 0): use(60, 70), (0, 1): grow}, cut_links, seconds=0.5),
    Scenario("attempts", {(0, 0): fail_twice}, seconds=0.3),
    Scenario("nothing to charge", {(0, 0): produce_nothing}, seconds=0.3),
    Scenario("a budget besides", {(0, 0): use(90, 200, 100, budget=True, amount=200)}, seconds=0.5),
    Scenario("more than reserved", {(0, 0): use(150, 190, 180, 100)}, seconds=0.5, balance=500),
    Scenario("quarantine", {(0, 0): use(60, 70)}, seconds=0.5, poison=True),
    Scenario("payments", {(0, 0): use(*[90] * 8)}, pay_and_refund, seconds=0.5, balance=100),
    Scenario("clients leave", {(0, 0): leave_while_waiting}, seconds=0.3),
    Scenario("database away", {(0, 0): use(60, 70), (0, 1): held(0.2, 9)}, lose_the_database),
    Scenario("disk full", {(0, 0): use(*[5] * 9)}, fill_the_disk, segment_bytes=4096),
]
