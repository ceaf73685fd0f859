"""What a seed decides before the world begins: its size, its habits, and which faults it knows.

Swarm testing: each seed switches on some of the faults only, each as often as it likes. A fleet in
which everything fails all the time never gets anywhere near the interesting states.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from ledger.lanes import EngineSettings
from ledger.limits import LimitRef
from ledger.pool import BUDGET_POOL_MIN, Sizing
from ledger.reaper import POLL_SECONDS
from tests.simulation.client import Habits
from tests.simulation.database import StatementFaults
from tests.simulation.node import NodeSettings

FAULTS = (
    "kill worker",
    "kill ledgerd",
    "power cut",
    "destroy node",
    "cut link",
    "delay messages",
    "disk full",
    "write error",
    "sync error",
    "wall clock jump",
    "pause node",
    "database down",
    "failover",
    "failover with loss",
    "suspend account",
    "expire budget",
)
"""What `faults.Chaos` can do to a world again and again."""

FLAVOURS = (
    "lost statements",
    "hanging statements",
    "late statements",
    "repeated statements",
    "lost hints",
    "drifting clocks",
    "overruns",
    "poison",
    "refunds",
    "colliding workers",
    "slow disk",
)
"""What a world is like from its beginning to its end."""


class Destroyable(Protocol):
    """Something that may be gone for good."""

    destroyed: bool


@dataclass
class Plan:
    """One world. Amounts are nano-dollars, times seconds."""

    generator: random.Random
    scheduling: random.Random
    nodes: int = 1
    node: NodeSettings = field(default_factory=NodeSettings)
    accounts: dict[int, int] = field(default_factory=lambda: {7: 0})  # with their credit limits
    balance: int = 10_000
    budget: int = 0
    habits: Habits = field(default_factory=lambda: Habits(accounts=(7,)))
    synchronous: bool = True
    max_request_seconds: int = 900
    requests_per_second: float = 2.0
    active_seconds: float = 20.0
    payment_seconds: float = 5.0
    refunds: bool = False
    statements: StatementFaults = field(default_factory=StatementFaults)
    faults: dict[str, float] = field(default_factory=dict)  # name → mean seconds between two
    flavours: tuple[str, ...] = ()
    injected: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, seed: int) -> Plan:
        """The plan of a seed."""
        dice = random.Random(seed)
        share = dice.choice([0.0, 0.15, 0.3, 0.5])
        faults = {name: 30 ** dice.uniform(0, 1.2) for name in FAULTS if dice.random() < share}
        flavours = [name for name in FLAVOURS if dice.random() < share]
        chosen = dice.sample([7, 8, 9, 10], dice.choice([1, 1, 2, 3]))
        accounts = {account: dice.choice([0, 0, 500]) for account in chosen}
        budgets = {account: BUDGET_POOL_MIN + account for account in chosen if dice.random() < 0.3}
        limits = (LimitRef("account", "concurrent", 20),) if dice.random() < 0.3 else ()
        return cls(
            generator=dice,
            scheduling=random.Random(dice.getrandbits(64)),
            nodes=dice.choice([1, 1, 2, 2, 3]),
            node=_node(dice, flavours, resends="failover with loss" in faults),
            accounts=accounts,
            balance=int(10 ** dice.uniform(2, 5)),
            budget=int(10 ** dice.uniform(2, 5)),
            habits=Habits(
                accounts=tuple(chosen),
                budgets=budgets,
                amount_max=dice.choice([20, 300, 3000]),
                chunk_seconds=dice.choice([0.01, 0.3, 1.5]),
                overrun=0.2 if "overruns" in flavours else 0.0,
                fails=dice.choice([0.0, 0.1, 0.4]),
                leaves=dice.choice([0.0, 0.1, 0.4]),
                extends=dice.choice([0.0, 0.3, 0.8]),
                poison=0.05 if "poison" in flavours else 0.0,
                limits=limits,
            ),
            synchronous="failover with loss" not in faults,
            max_request_seconds=dice.choice([30] * 9 + [900]),
            requests_per_second=dice.choice([1.0, 4.0, 12.0]),
            active_seconds=dice.choice([5.0, 15.0, 40.0]),
            payment_seconds=dice.choice([3.0, 10.0, 100.0]),
            refunds="refunds" in flavours,
            statements=StatementFaults(
                lost=dice.uniform(0, 0.2) if "lost statements" in flavours else 0.0,
                hanging=dice.uniform(0, 0.05) if "hanging statements" in flavours else 0.0,
                late=dice.uniform(0, 0.2) if "late statements" in flavours else 0.0,
                repeated=dice.uniform(0, 0.2) if "repeated statements" in flavours else 0.0,
                hint_lost=0.5 if "lost hints" in flavours else 0.0,
            ),
            faults=faults,
            flavours=tuple(flavours),
        )

    @property
    def requests_per_worker(self) -> float:
        """A second."""
        return self.requests_per_second / (self.nodes * self.node.workers)

    def disk_seconds(self) -> float:
        """How long the disk takes, this time."""
        return self.scheduling.uniform(0.0001, self.node.disk_seconds_max)

    def patience_seconds(self, nodes: Sequence[Destroyable]) -> float:
        """How much longer rest may take, for credit that went down with a machine."""
        if not any(node.destroyed for node in nodes):
            return 0.0
        waits = self.node.engine.validity_seconds, self.max_request_seconds
        return sum(seconds * 1.05 + 5 for seconds in waits) + 4 * POLL_SECONDS + 30


def _node(dice: random.Random, flavours: Sequence[str], *, resends: bool) -> NodeSettings:
    flush_seconds, batch_max = dice.choice(
        [(0.05, 1), (0.05, 5000), (0.25, 5), (0.25, 5000), (1.0, 5000), (5.0, 5000)]
    )
    return NodeSettings(
        workers=dice.choice([1, 2, 3]),
        flush_seconds=flush_seconds,
        fsync_interval=dice.choice([0.0, 0.010, 0.010, 0.1]),
        segment_bytes=dice.choice([1 << 13, 1 << 15, 1 << 17]),
        retention_bytes=1 << 22 if resends else dice.choice([0, 1 << 16]),
        engine=EngineSettings(
            sizing=Sizing(lease_max=dice.choice([0, 100, 1000, 50_000_000_000])),
            validity_seconds=dice.choice([20.0] * 9 + [300.0]),
            batch_max=batch_max,
            exposure_max=dice.choice([10_000, 500_000_000_000]),
        ),
        disk_seconds_max=0.05 if "slow disk" in flavours else 0.004,
        instances_max=4 if "colliding workers" in flavours else 1 << 25,
    )
