"""What happens to a world: each kind of fault again and again, at times that the seed decides."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import trio

from ledger.memory import MemoryStore
from ledger.store import PoolStatus
from tests.simulation.database import StatementFaults
from tests.simulation.node import YEAR_MICROSECONDS, Node

if TYPE_CHECKING:
    from tests.simulation.world import World

PAUSE_SECONDS = 0.001, 7200.0
OUTAGE_SECONDS = 1.0, 120.0
RECOVERY_SECONDS = 3.0  # after whatever failed: a session again, and everything posted
QUEUE_MAX = 100  # events in a batch, with which no event has to wait for the one after the next


class Chaos:
    """The faults of one world's plan."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._dice = world.generator
        self._deeds: dict[str, Callable[[], Awaitable[None]]] = {
            "kill worker": self._kill_worker,
            "kill ledgerd": self._kill_ledgerd,
            "power cut": self._cut_power,
            "destroy node": self._destroy_node,
            "cut link": self._cut_link,
            "delay messages": self._delay_messages,
            "disk full": self._fill_disk,
            "write error": self._refuse_writes,
            "sync error": self._refuse_syncs,
            "wall clock jump": self._turn_clock,
            "pause node": self._pause_node,
            "database down": self._stop_database,
            "failover": self._fail_over,
            "failover with loss": self._fail_over_with_loss,
            "suspend account": self._suspend_account,
            "expire budget": self._expire_budget,
        }

    async def run(self) -> None:
        """Until cancelled; then `end` has to follow."""
        plan = self._world.plan
        self._world.database.faults = plan.statements
        if "drifting clocks" in plan.flavours:
            for node in self._world.nodes:
                node.drift = self._dice.uniform(0.95, 1.05)
        async with trio.open_nursery() as nursery:
            for name, seconds in plan.faults.items():
                nursery.start_soon(self._repeat, name, seconds)
            nursery.start_soon(self._pay)

    async def end(self) -> None:
        """No fault lasts any longer."""
        world = self._world
        world.database.faults = StatementFaults()
        world.database.down = False
        world.database.poison.clear()
        for node in world.nodes:
            node.disk.full = False
            node.disk.refuse_writes = node.disk.refuse_syncs = 0
            node.message_delay = 0.0
            node.resume()
        for pool in world.books.pools.values():
            pool.status, pool.expired = PoolStatus.OPEN, False
        if not world.plan.synchronous:
            await world.repeat_payments()

    async def _repeat(self, name: str, seconds: float) -> None:
        injected = self._world.plan.injected
        while True:
            await trio.sleep(self._dice.expovariate(1 / seconds))
            injected[name] = injected.get(name, 0) + 1
            await self._deeds[name]()

    async def _pay(self) -> None:
        world = self._world
        while True:
            await trio.sleep(self._dice.expovariate(1 / world.plan.payment_seconds))
            account = self._dice.choice(list(world.plan.accounts))
            amount = self._dice.randint(1, world.plan.balance)
            if world.database.down:
                continue
            if world.plan.refunds and self._dice.random() < 0.5:
                await world.refund(account, amount)
            else:
                await world.pay(account, amount)

    def _node(self) -> Node | None:
        """A machine that runs."""
        up = [node for node in self._world.nodes if node.up]
        return self._dice.choice(up) if up else None

    def _between(self, limits: tuple[float, float]) -> float:
        """Any order of magnitude is as likely as any other."""
        least, most = limits
        return float(least * (most / least) ** self._dice.random())

    # -- processes and machines -------------------------------------------------------------------

    async def _kill_worker(self) -> None:
        node = self._node()
        if node is not None and node.workers:
            self._dice.choice(list(node.workers.values())).process.kill()

    async def _kill_ledgerd(self) -> None:
        node = self._node()
        if node is not None and node.ledgerd is not None:
            node.ledgerd.kill()
            node.disturbed_at = trio.current_time()

    async def _cut_power(self) -> None:
        node = self._node()
        if node is not None:
            node.cut_power()

    async def _destroy_node(self) -> None:
        nodes = self._world.nodes
        node = self._node()
        if node is not None and sum(not each.destroyed for each in nodes) > 1:
            node.destroy(unposted_since=self._unposted_since(node))

    def _unposted_since(self, node: Node) -> float:
        """An event that is older must have reached the database, if nothing kept it from there."""
        world = self._world
        now, limit = trio.current_time(), node.post_seconds()
        fails = world.plan.statements != StatementFaults(hint_lost=world.plan.statements.hint_lost)
        quiet_since = max(node.disturbed_at, world.database.disturbed_at) + RECOVERY_SECONDS
        queues = node.settings.engine.batch_max < QUEUE_MAX
        if fails or queues or world.database.down or world.plan.habits.poison:
            return float("-inf")
        return now - limit if now - limit > quiet_since else float("-inf")

    async def _pause_node(self) -> None:
        node = self._node()
        if node is None:
            return
        node.pause()
        await trio.sleep(self._between(PAUSE_SECONDS))
        node.resume()

    async def _turn_clock(self) -> None:
        node = self._dice.choice(self._world.nodes)
        node.wall_offset = self._dice.randint(-YEAR_MICROSECONDS, YEAR_MICROSECONDS)

    # -- links and disks --------------------------------------------------------------------------

    async def _cut_link(self) -> None:
        node = self._node()
        if node is None:
            return
        node.look()
        for worker in node.workers.values():
            for end in worker.ends:
                if self._dice.random() < 0.5:
                    end.cut()

    async def _delay_messages(self) -> None:
        node = self._dice.choice(self._world.nodes)
        node.message_delay = self._between((0.001, 2.0))
        await trio.sleep(self._between((0.1, 5.0)))
        node.message_delay = 0.0

    async def _fill_disk(self) -> None:
        node = self._dice.choice(self._world.nodes)
        node.disk.full = True
        await trio.sleep(self._between((0.1, 30.0)))
        node.disk.full = False
        node.disturbed_at = trio.current_time()

    async def _refuse_writes(self) -> None:
        node = self._dice.choice(self._world.nodes)
        node.disk.refuse_writes = self._dice.choice([1, 1, 2, 3])
        node.disturbed_at = trio.current_time()

    async def _refuse_syncs(self) -> None:
        node = self._dice.choice(self._world.nodes)
        node.disk.refuse_syncs = self._dice.choice([1, 1, 2, 3])
        node.disturbed_at = trio.current_time()

    # -- the database -----------------------------------------------------------------------------

    async def _stop_database(self) -> None:
        database = self._world.database
        database.down = True
        database.break_connections()
        await trio.sleep(self._between(OUTAGE_SECONDS))
        database.down = False
        database.disturbed_at = trio.current_time()

    async def _fail_over(self) -> None:
        world = self._world
        world.database.break_connections()
        world.books.fail_over(world.books.copy())

    async def _fail_over_with_loss(self) -> None:
        world = self._world
        standby = world.books.copy()
        await trio.sleep(self._between((0.01, 3.0)))
        world.fail_over(standby)

    # -- the customers ----------------------------------------------------------------------------

    async def _suspend_account(self) -> None:
        account = self._dice.choice(list(self._world.plan.accounts))
        self._world.books.pools[account].status = PoolStatus.SUSPENDED
        await trio.sleep(self._between((0.1, 10.0)))
        self._world.books.pools[account].status = PoolStatus.OPEN

    async def _expire_budget(self) -> None:
        books: MemoryStore = self._world.books
        for pool in books.pools.values():
            if pool.gl_account_id is None:
                pool.expired = True
        await trio.sleep(self._between((0.1, 10.0)))
        for pool in books.pools.values():
            pool.expired = False
