"""Customers who never stop: real HTTP clients in a loop, and what each of them knows afterwards.

Some are rich and must never hear that they are not; one is nearly broke, one has a key with a
small budget. They call plainly and stream, for short and long answers, and some hang up.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from dataclasses import dataclass, field
from decimal import Decimal

import trio

from tests.fakes.callers import Outcome, call
from tests.fakes.process import GatewayProcess

CALLERS = 24
_NOBODY_THERE_SECONDS = 0.05
_REFUSED_SECONDS = 0.1
_BETWEEN_SECONDS = 0.02


@dataclass(frozen=True, slots=True)
class Customer:
    """An account with one key. `credit` and `budget` (of the key) are dollars."""

    account: str
    credit: Decimal
    budget: Decimal | None = None

    @property
    def is_poor(self) -> bool:
        """Whether a refusal for lack of credit is as it should be."""
        return self.budget is not None or self.credit < 1

    @property
    def spendable(self) -> Decimal:
        """The most that may ever be charged."""
        return self.credit if self.budget is None else min(self.credit, self.budget)


CUSTOMERS = (
    Customer("acme", Decimal(500)),
    Customer("globex", Decimal(500)),
    Customer("initech", Decimal(500)),
    Customer("nearly-broke", Decimal("0.05")),
    Customer("on-a-budget", Decimal(500), Decimal("0.10")),
)


@dataclass(frozen=True, slots=True)
class Habit:
    """How something is asked for."""

    model: str
    stream: bool
    max_tokens: int
    leave_after: int | None = None


HABITS = (
    Habit("sandbox", stream=False, max_tokens=100),
    Habit("sandbox", stream=True, max_tokens=600),
    Habit("sandbox-long", stream=True, max_tokens=2000),
    Habit("sandbox-long", stream=False, max_tokens=300),
    Habit("sandbox-slow", stream=True, max_tokens=100),
    Habit("sandbox-slow", stream=False, max_tokens=100),
    Habit("sandbox-slow", stream=True, max_tokens=100, leave_after=700),
    Habit("sandbox-long", stream=True, max_tokens=2000, leave_after=5000),
)


@dataclass
class Load:
    """The clients' side of the story. `answered` are complete answers by the customer's account."""

    gateway: GatewayProcess
    keys: dict[str, str]
    seed: int
    done: trio.Event = field(default_factory=trio.Event)
    answered: dict[str, list[Outcome]] = field(default_factory=dict)
    statuses: Counter[tuple[int, str]] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    served: list[tuple[float, float]] = field(default_factory=list)
    """When an answer was asked for and complete, by the clock of the faults."""

    async def run(self) -> None:
        """Until `done`, and the last answer has come or has not."""
        async with trio.open_nursery() as nursery:
            for number in range(CALLERS):
                nursery.start_soon(self._caller, random.Random(self.seed * CALLERS + number))

    def served_since(self, moment: float) -> bool:
        """Whether a request was answered that began after that."""
        return any(begun > moment for begun, _ in self.served[-CALLERS:])

    async def _caller(self, dice: random.Random) -> None:
        while not self.done.is_set():
            customer = dice.choice(CUSTOMERS)
            habit = dice.choice(HABITS)
            if not (base_url := self.gateway.base_url):
                await trio.sleep(_NOBODY_THERE_SECONDS)
                continue
            begun = time.monotonic()
            outcome = await call(
                base_url,
                self.keys[customer.account],
                habit.model,
                stream=habit.stream,
                leave_after=habit.leave_after,
                max_tokens=habit.max_tokens,
                stream_options={"include_usage": True} if habit.stream else None,
            )
            self._note(customer, outcome, begun)
            await trio.sleep(_BETWEEN_SECONDS if outcome.status == 200 else _REFUSED_SECONDS)

    def _note(self, customer: Customer, outcome: Outcome, begun: float) -> None:
        self.statuses[outcome.status, outcome.code if outcome.status not in (0, 200) else ""] += 1
        if outcome.status == 200:
            if outcome.complete:
                self.answered.setdefault(customer.account, []).append(outcome)
                self.served.append((begun, time.monotonic()))
            return
        expected = (
            outcome.status == 0
            or (outcome.status == 402 and customer.is_poor)
            or (outcome.status == 503 and "retry-after" in outcome.headers)
            or not outcome.complete
        )
        if not expected:
            self.wrong.append(f"{customer.account}: {outcome.status} {outcome.body.decode()}")
