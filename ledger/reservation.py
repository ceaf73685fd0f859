"""Reservations: what is asked for, what is held, who waits for credit, how it ended.

The engine changes these; callers only read them.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field

from ledger.errors import LedgerError
from ledger.limits import LimitRef, LimitState
from ledger.pool import HolderPool
from ledger.store import PoolStatus


@dataclass(slots=True)
class ReservationRequest:
    """What a request may cost at most, and whom. `pools`: the account's first, then budgets."""

    request_id: bytes
    account_id: int
    key_id: int
    pools: tuple[int, ...]
    amount: int
    tokens: int
    limits: tuple[LimitRef, ...]
    model_id: int
    provider_id: int
    price_id: int
    endpoint: int


@dataclass(frozen=True, slots=True)
class TokenCounts:
    """The usage history's columns; totals are inclusive, `units` are priced units besides."""

    input: int = 0
    cached_input: int = 0
    output: int = 0
    reasoning: int = 0
    units: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Settled:
    """What a settlement did; `balance` is the account's afterwards, None if never heard of."""

    cost: int
    charge: int
    balance: int | None


class HoldState(enum.Enum):
    """The life of a reservation."""

    OPEN = "open"
    SETTLED = "settled"
    VOID = "void"


class Hold:
    """A reservation inside the lease: `amount` is bound in each of `pools`."""

    __slots__ = ("amount", "id", "limits", "opened_at", "pools", "request", "settled", "state")

    def __init__(
        self,
        id: int,  # noqa: A002  # the journal's word
        request: ReservationRequest,
        pools: tuple[HolderPool, ...],
        limits: tuple[LimitState, ...],
        opened_at: float,
    ) -> None:
        self.id = id
        self.request = request
        self.amount = request.amount
        self.pools = pools
        self.limits = limits
        self.opened_at = opened_at
        self.state = HoldState.OPEN
        self.settled: Settled | None = None


class Waiter:
    """A reservation, or an extension of `hold`, that waits for credit. It holds nothing.

    `outcome` is set once; the server then calls `wake`.
    """

    __slots__ = ("amount", "hold", "limits", "outcome", "pools", "request", "wake")

    def __init__(
        self,
        request: ReservationRequest,
        amount: int,
        pools: tuple[HolderPool, ...],
        limits: tuple[LimitState, ...],
        hold: Hold | None,
    ) -> None:
        self.request = request
        self.amount = amount
        self.pools = pools
        self.limits = limits
        self.hold = hold
        self.outcome: Hold | LedgerError | None = None
        self.wake = _nobody_waits

    def fits(self) -> bool:
        """Whether every pool has the credit now."""
        return all(p.free >= self.amount and p.status == PoolStatus.OPEN for p in self.pools)


def _nobody_waits() -> None:
    """A waiter's `wake` until the server has set it."""
