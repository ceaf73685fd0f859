"""What the data plane calls: reserve before anything is sent, settle or void on every way out.

`reserve` answers at once while the node holds enough credit; else it waits a little for a grant.
Ending a reservation is synchronous, so a cancellation cannot fall into it. Everything here is one
thin layer over the lease holder in the same process.
"""

from __future__ import annotations

from collections.abc import Mapping

import trio

from ledger.errors import (
    AccountSuspended,
    InsufficientCredit,
    LedgerError,
    LedgerUnavailable,
    RateLimited,
    ReservationClosed,
)
from ledger.limits import LimitRef, LimitState
from ledger.money import AMOUNT_MAX, Price, cost_and_charge
from ledger.reservation import Hold, HoldState, ReservationRequest, Settled, TokenCounts, Waiter
from ledger.server import FlushObserver, LedgerServer, LedgerStatistics
from ledger.store import EventStatus

__all__ = [
    "AccountSuspended",
    "InsufficientCredit",
    "Ledger",
    "LedgerError",
    "LedgerStatistics",
    "LedgerUnavailable",
    "LimitRef",
    "LimitState",
    "RateLimited",
    "Reservation",
    "ReservationClosed",
    "ReservationRequest",
    "Settled",
    "TokenCounts",
    "bill",
]

IMPLAUSIBLE_FACTOR = 3
RETRY_AFTER_SECONDS = 1.0


class Reservation:
    """Credit set aside for one request. It must end in `settle` or `void`; see `open`."""

    __slots__ = ("_extend_timeout", "_hold", "_server")

    def __init__(self, server: LedgerServer, hold: Hold, extend_timeout: float) -> None:
        self._server = server
        self._hold = hold
        self._extend_timeout = extend_timeout

    @property
    def id(self) -> int:
        """Unique within this holder."""
        return self._hold.id

    @property
    def amount(self) -> int:
        """Nano-dollars set aside, extensions included."""
        return self._hold.amount

    @property
    def limits(self) -> tuple[LimitState, ...]:
        """What was left of each limit when this was admitted."""
        return self._hold.limits

    @property
    def open(self) -> bool:
        """Whether it was neither settled nor voided."""
        return self._hold.state is HoldState.OPEN

    def attempt(
        self,
        *,
        provider_id: int,
        price_id: int,
        status: EventStatus,
        cost: int = 0,
        ttfb_ms: int = 0,
        duration_ms: int = 0,
    ) -> None:
        """A provider failed and another may be tried: an event with charge 0.

        Raises ReservationClosed.
        """
        self._server.attempt(
            self._hold,
            provider_id=provider_id,
            price_id=price_id,
            cost=cost,
            status=status,
            ttfb_ms=ttfb_ms,
            duration_ms=duration_ms,
        )

    def settle(
        self,
        *,
        price: Price,
        provider_id: int,
        quantities: Mapping[str, int],
        tokens: TokenCounts,
        status: EventStatus,
        ttfb_ms: int,
        duration_ms: int,
    ) -> Settled:
        """Charge what was used; durable against a crash of this process before it returns.

        A second call changes nothing and returns the first one's result. Raises UnpricedUnit (the
        reservation then stays open) and, after `void`, ReservationClosed.
        """
        cost, charge, status = bill(price, quantities, self._hold.amount, status)
        return self._server.settle(
            self._hold,
            provider_id=provider_id,
            price_id=price.price_id,
            cost=cost,
            charge=charge,
            tokens=tokens,
            status=status,
            ttfb_ms=ttfb_ms,
            duration_ms=duration_ms,
        )

    def void(
        self,
        *,
        status: EventStatus | None = None,
        provider_id: int = 0,
        price_id: int = 0,
        duration_ms: int = 0,
        cost: int = 0,
    ) -> None:
        """Charge nothing. With a `status` a provider was contacted, and an event says so.

        Does nothing if the reservation is closed.
        """
        self._server.void(
            self._hold,
            status=status,
            provider_id=provider_id,
            price_id=price_id,
            cost=cost,
            duration_ms=duration_ms,
        )

    async def extend(self, extra: int) -> bool:
        """Set `extra` more aside; False if that is refused or takes too long."""
        outcome = self._server.extend(self._hold, extra)
        if not isinstance(outcome, Waiter):
            return outcome
        return isinstance(await wait_for(self._server, outcome, self._extend_timeout), Hold)


class Ledger:
    """The data plane's view of the ledger. Times are seconds."""

    def __init__(
        self, server: LedgerServer, *, reserve_timeout: float = 0.5, extend_timeout: float = 0.25
    ) -> None:
        self._server = server
        self._reserve_timeout = reserve_timeout
        self._extend_timeout = extend_timeout

    async def reserve(self, request: ReservationRequest) -> Reservation:
        """Set credit and limits aside for a request; no checkpoint while the lease suffices.

        Raises InsufficientCredit, RateLimited, AccountSuspended or LedgerUnavailable; after any of
        them, and after cancellation, nothing is held.
        """
        outcome = self._server.reserve(request)
        if isinstance(outcome, Waiter):
            outcome = await self._granted(outcome)
        return Reservation(self._server, outcome, self._extend_timeout)

    async def _granted(self, waiter: Waiter) -> Hold:
        outcome = await wait_for(self._server, waiter, self._reserve_timeout)
        if isinstance(outcome, Hold):
            return outcome
        if outcome is not None:
            raise outcome
        raise LedgerUnavailable(RETRY_AFTER_SECONDS, "the database did not grant credit in time")

    def balance(self, account_id: int) -> int | None:
        """Credited − charged in nano-dollars; None if the store has not said anything yet."""
        return self._server.balance(account_id)

    def top_up_hint(self, account_id: int) -> None:
        """The account may have been credited: ask the store again at the next request."""
        self._server.top_up_hint(account_id)

    def statistics(self) -> LedgerStatistics:
        """A snapshot for metrics."""
        return self._server.statistics()

    def on_flush(self, callback: FlushObserver) -> None:
        """Call `callback(seconds, events)` after every exchange with the store."""
        self._server.observers.append(callback)


async def wait_for(
    server: LedgerServer, waiter: Waiter, seconds: float
) -> Hold | LedgerError | None:
    """How the waiter was decided; None after `seconds`. Leaves nothing held unless it is a Hold."""
    decided = trio.Event()
    waiter.wake = decided.set
    handed_over = False
    try:
        with trio.move_on_after(seconds):
            await decided.wait()
        handed_over = waiter.outcome is not None
        return waiter.outcome
    finally:
        if not handed_over:
            server.cancel(waiter)


def bill(
    price: Price, quantities: Mapping[str, int], reserved: int, status: EventStatus
) -> tuple[int, int, EventStatus]:
    """Cost, charge and status of a settlement. Implausible usage is charged at most as reserved.

    Implausible is a negative quantity, or a charge of more than three times the reservation: the
    provider is wrong, and the customer must not pay for it before somebody has looked. A request
    declared FREE costs the customer nothing.
    """
    negative = min(quantities.values(), default=0) < 0
    if negative:
        quantities = {unit: max(quantity, 0) for unit, quantity in quantities.items()}
    cost, charge = cost_and_charge(price, quantities)
    cost = min(cost, AMOUNT_MAX)
    if status is EventStatus.FREE:
        return cost, 0, status
    if negative or charge > IMPLAUSIBLE_FACTOR * reserved:
        return cost, min(charge, reserved), EventStatus.REVIEW
    return cost, charge, status
