"""Reservations: what is asked for, what is held, who waits for credit, how it ended.

`ReservationRequest` and `Settlement` are said by callers and travel as they are; `Hold` and
`Waiter` belong to the engine, which changes them, and others only read them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Literal, final

import msgspec

from ledger.errors import LedgerError
from ledger.limits import LimitRef, LimitState
from ledger.money import AMOUNT_MAX
from ledger.pool import HolderPool
from ledger.store import EventStatus, PoolStatus

_COUNTER_BITS = 38
INSTANCES_MAX = 1 << 25
"""A worker names itself by a number below this, and its reservations by `reservation_id`."""


def reservation_id(instance: int, counter: int) -> int:
    """The id of a worker's `counter`-th reservation, unique within a holder's journal."""
    return instance << _COUNTER_BITS | counter


def instance_of(reservation_id: int) -> int:
    """The worker that made a reservation."""
    return reservation_id >> _COUNTER_BITS


TOKENS_BITS = 31
TOKENS_MAX = (1 << TOKENS_BITS) - 1
"""The width of the usage history's columns."""

Amount = Annotated[int, msgspec.Meta(ge=0, le=AMOUNT_MAX)]
"""Nano-dollars as they travel: what is out of bounds is not even decoded."""


class ReservationRequest(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """What a request may cost at most, and whom. `pools`: the account's first, then budgets."""

    request_id: bytes
    account_id: int
    key_id: int
    pools: tuple[int, ...]
    amount: Amount
    tokens: int
    limits: tuple[LimitRef, ...]
    model_id: int
    provider_id: int
    price_id: int
    endpoint: int


class TokenCounts(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """The usage history's columns; totals are inclusive, `units` are priced units besides."""

    input: int = 0
    cached_input: int = 0
    output: int = 0
    reasoning: int = 0
    units: dict[str, int] = {}  # msgspec copies it; nobody changes one

    def bounded(self) -> TokenCounts:
        """The same within the columns' width: providers can say anything."""
        together = self.input | self.cached_input | self.output | self.reasoning
        for count in self.units.values():
            together |= count
        if not together >> TOKENS_BITS:  # one that is negative, or too large, shows in it
            return self
        return TokenCounts(
            _column(self.input),
            _column(self.cached_input),
            _column(self.output),
            _column(self.reasoning),
            {unit: _column(count) for unit, count in self.units.items()},
        )


def _column(count: int) -> int:
    return min(max(count, 0), TOKENS_MAX)


class Settlement(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """How a reservation, or an attempt within it, ended: what its event says of itself.

    Amounts are nano-dollars, times milliseconds, `occurred_at` microseconds since the epoch (for
    information only).
    """

    status: EventStatus
    provider_id: int = 0
    price_id: int = 0
    cost: Amount = 0
    charge: Amount = 0
    tokens: TokenCounts = TokenCounts()
    ttfb_ms: int = 0
    duration_ms: int = 0
    occurred_at: int = 0


HoldState = Literal["open", "settled", "void"]
"""The life of a reservation."""

_OPEN = PoolStatus.OPEN  # looked up once: in an enum's class that takes longer than comparing


@final
class Hold(msgspec.Struct, eq=False):
    """A reservation inside the lease: `amount` is bound in each of `pools`.

    `attempts` counts the events it has left so far, `extension` is a request for more that waits.
    """

    id: int
    request: ReservationRequest
    amount: int
    pools: tuple[HolderPool, ...]
    limits: tuple[LimitState, ...]
    opened_at: float
    attempts: int = 0
    state: HoldState = "open"
    extension: Waiter | None = None

    @property
    def open(self) -> bool:
        """Whether it was neither settled nor voided."""
        return self.state == "open"

    def resume(self, limits: tuple[LimitRef, ...], tokens: int) -> None:
        """Know again which limits it counts in, after a restart."""
        self.request = msgspec.structs.replace(self.request, limits=limits, tokens=tokens)


@final
class Waiter(msgspec.Struct, eq=False):
    """A reservation, or an extension of `hold` by `amount`, that waits for credit. It holds none.

    `limits` is what the limits said when they admitted it, `since` when it began to wait for
    credit. `outcome` is set once.
    """

    id: int
    request: ReservationRequest
    amount: int
    pools: tuple[HolderPool, ...]
    limits: tuple[LimitState, ...]
    hold: Hold | None
    since: float = 0.0
    outcome: Hold | LedgerError | None = None

    def fits(self) -> bool:
        """Whether every pool has the credit now."""
        return affordable(self.pools, self.amount)

    def begin(self, now: float) -> Hold:
        """The reservation that it waited for."""
        return Hold(self.id, self.request, self.amount, self.pools, self.limits, now)


def affordable(pools: Iterable[HolderPool], amount: int) -> bool:
    """Whether every pool may be used and has so much free."""
    for pool in pools:  # noqa: SIM110 - a generator would cost more than all the rest of it
        if pool.free < amount or pool.status != _OPEN:
            return False
    return True
