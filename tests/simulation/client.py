"""What runs in a worker: requests as the data plane makes them, of customers of every sort.

A request reserves, meets a provider (some fail first), grows as it streams, and ends in a
settlement or a void, whatever happens; some clients leave early. What the provider really produced
is decided here, and told to the oracle, before the ledger hears of it.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import trio

from ledger.client import Ledger, LedgerError, Reservation, ReservationRequest
from ledger.limits import LimitRef
from ledger.store import EventStatus
from tests.fakes.ledger import PRICE, PROVIDER, output
from tests.simulation.oracle import Oracle, Request
from tests.simulation.process import Process

CONFIRMATION_SECONDS = 4.99  # `journalled` gives up soon after


@dataclass(frozen=True)
class Habits:
    """What the customers of one world are like."""

    accounts: tuple[int, ...]
    budgets: dict[int, int] = field(default_factory=dict)  # account → its key's budget
    amount_max: int = 300
    chunk_seconds: float = 0.3
    overrun: float = 0.0  # how often a provider produces more than was reserved
    fails: float = 0.1  # how often there is nothing to charge
    extends: float = 0.3
    leaves: float = 0.1
    poison: float = 0.0  # how often the store will not take the event
    limits: tuple[LimitRef, ...] = ()


class Customer:
    """Makes requests through the ledger of one worker."""

    def __init__(
        self,
        process: Process,
        ledger: Ledger,
        oracle: Oracle,
        generator: random.Random,
        habits: Habits,
        poison: set[bytes],
    ) -> None:
        self._process = process
        self._ledger = ledger
        self._oracle = oracle
        self._generator = generator
        self._habits = habits
        self._poison = poison

    async def ask(self) -> None:
        """One request from its first byte to its last."""
        habits, dice = self._habits, self._generator
        account = dice.choice(habits.accounts)
        amount = int(habits.amount_max ** dice.random())
        request = self.request(account, with_budget=dice.random() < 0.5)
        try:
            reservation = await self.reserve(request, amount)
        except LedgerError:
            return
        with trio.CancelScope() as client:
            if dice.random() < habits.leaves:
                client.deadline = trio.current_time() + dice.expovariate(1.0)
            await self._serve(request, reservation)
        if reservation.open:  # as the data plane does on its way out
            self.settle(request, reservation, int(reservation.amount * dice.random()))

    def request(self, account: int, *, with_budget: bool = False) -> Request:
        """A request that the oracle knows of."""
        habits, dice = self._habits, self._generator
        pools: tuple[int, ...] = (account,)
        if with_budget and account in habits.budgets:
            pools = account, habits.budgets[account]
        request = Request(dice.randbytes(16), account, pools, self._process)
        self._oracle.requests[request.id] = request
        if dice.random() < habits.poison:
            self._poison.add(request.id)
        return request

    async def reserve(self, request: Request, amount: int) -> Reservation:
        """The permit. Raises the LedgerErrors."""
        reservation = await self._ledger.reserve(
            ReservationRequest(
                request_id=request.id,
                account_id=request.account,
                key_id=1,
                pools=request.pools,
                amount=amount,
                tokens=amount,
                limits=self._habits.limits,
                model_id=5,
                provider_id=PROVIDER,
                price_id=PRICE.price_id,
                endpoint=1,
            )
        )
        self._process.check()
        request.permitted = True
        return reservation

    async def _serve(self, request: Request, reservation: Reservation) -> None:
        habits, dice = self._habits, self._generator
        while dice.random() < habits.fails / 2:
            await self._produce(request, 1)
            reservation.attempt(
                provider_id=PROVIDER, price_id=PRICE.price_id, status=EventStatus.FAILED, cost=1
            )
        if dice.random() < habits.fails:
            await trio.sleep(dice.uniform(0, habits.chunk_seconds))
            self.void(request, reservation, contacted=dice.random() < 0.5)
            return
        await self._produce(request, dice.randrange(4))
        if dice.random() < habits.extends:
            await self._grow(request, reservation)
        most = reservation.amount * (2 if dice.random() < habits.overrun else 1)
        self.settle(request, reservation, dice.randint(0, most))
        await self.deliver(request, reservation)

    async def _produce(self, request: Request, chunks: int) -> None:
        self._process.check()
        request.contacted = True
        for _ in range(chunks):
            await trio.sleep(self._generator.uniform(0, self._habits.chunk_seconds))

    async def _grow(self, request: Request, reservation: Reservation) -> None:
        dice = self._generator
        for _ in range(dice.randint(1, 3)):
            extra = dice.randint(1, self._habits.amount_max)
            if dice.random() < 0.5:
                await reservation.extend(extra)
            else:
                reservation.ask_for(reservation.amount + extra)
                await self._produce(request, 1)

    def settle(self, request: Request, reservation: Reservation, charge: int) -> None:
        """Charge `charge`."""
        self._process.check()
        settled = reservation.settle(
            price=PRICE,
            provider_id=PROVIDER,
            quantities={"output": charge},
            tokens=output(charge),
            status=EventStatus.SETTLED,
            ttfb_ms=1,
            duration_ms=2,
        )
        request.charge = settled.charge

    def void(self, request: Request, reservation: Reservation, *, contacted: bool) -> None:
        """There is nothing to charge."""
        self._process.check()
        if contacted:
            request.contacted = True
        status = EventStatus.CANCELLED if request.contacted else None
        reservation.void(status=status, provider_id=PROVIDER, price_id=PRICE.price_id)

    async def deliver(self, request: Request, reservation: Reservation) -> None:
        """The last byte goes out when the settlement is in the journal."""
        began = trio.current_time()
        await reservation.journalled()
        self._process.check()
        request.confirmed = trio.current_time() - began < CONFIRMATION_SECONDS
        request.delivered = True
