"""What a worker and its node's ledger say to each other.

A worker names its reservations itself (`reservation.reservation_id`), so each message means the
same however often it arrives: after a broken link the worker says again whatever was not answered,
in its old order, and nothing happens twice.
- `Reserve` of an open reservation is answered again; `Extend` names the whole amount, not the
  difference; an `Attempt` carries its place among those of its reservation.
- `Settle` and `Void` end a reservation once; repeated, or contradicting each other, the first one
  counts, and `Closed` says that it is in the journal.
"""

from __future__ import annotations

import msgspec

from ledger.errors import (
    AccountSuspended,
    InsufficientCredit,
    LedgerError,
    LedgerUnavailable,
    PoolKind,
    RateLimited,
)
from ledger.limits import LimitRef, LimitState
from ledger.reservation import Amount, ReservationRequest, Settlement

# -- what a worker says --------------------------------------------------------------------------


class OpenReservation(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """A reservation that a worker still has, as it introduces itself."""

    reservation_id: int
    limits: tuple[LimitRef, ...]
    tokens: int


class Hello(msgspec.Struct, frozen=True, gc=False, array_like=True, tag=1):
    """The first message of a link. `started` tells two processes of the same pid apart."""

    instance: int
    pid: int
    started: int
    open: list[OpenReservation]


class Reserve(msgspec.Struct, frozen=True, gc=False, array_like=True, tag=2):
    """Set credit and limits aside. Answered by `Reserved` or `Refused`."""

    reservation_id: int
    request: ReservationRequest


class Extend(msgspec.Struct, frozen=True, gc=False, array_like=True, tag=3):
    """Let the reservation become `amount` as a whole; what it has already withdraws the wish.

    Answered by `Extended`.
    """

    reservation_id: int
    amount: Amount


class Attempt(msgspec.Struct, frozen=True, gc=False, array_like=True, tag=4):
    """A provider was contacted in vain, the `ordinal`-th time (from 1). Not answered."""

    reservation_id: int
    ordinal: int
    settlement: Settlement


class Settle(msgspec.Struct, frozen=True, gc=False, array_like=True, tag=5):
    """Post the charge. Answered by `Closed`."""

    reservation_id: int
    settlement: Settlement


class Void(msgspec.Struct, frozen=True, gc=False, array_like=True, tag=6):
    """Give the reservation back, or wait for it no longer. Answered by `Closed`.

    With a settlement a provider was contacted, and an event says so.
    """

    reservation_id: int
    settlement: Settlement | None


class Flush(msgspec.Struct, frozen=True, gc=False, array_like=True, tag=7):
    """Post everything now. Answered by `Flushed`, once it is done."""

    number: int


class CreditHint(msgspec.Struct, frozen=True, gc=False, array_like=True, tag=8):
    """The account may have been credited: forget that it was exhausted. Not answered."""

    account_id: int


Message = Hello | Reserve | Extend | Attempt | Settle | Void | Flush | CreditHint


# -- what the ledger answers ---------------------------------------------------------------------


class Welcome(msgspec.Struct, frozen=True, gc=False, array_like=True, tag=1):
    """The worker is known from here on."""


class Rejected(msgspec.Struct, frozen=True, gc=False, array_like=True, tag=2):
    """The number that the worker goes by is another's: it must start anew."""


class Reserved(msgspec.Struct, frozen=True, gc=False, array_like=True, tag=3):
    """The permit. `limits` is what was left of each limit."""

    reservation_id: int
    amount: int
    limits: tuple[LimitState, ...]


class Refused(msgspec.Struct, frozen=True, gc=False, array_like=True, tag=4):
    """Nothing is held; see `refusal_of` for what `facts` are."""

    reservation_id: int
    facts: Facts


class Extended(msgspec.Struct, frozen=True, gc=False, array_like=True, tag=5):
    """The reservation's amount as a whole; less than was `asked` for is a refusal."""

    reservation_id: int
    asked: int
    amount: int


class Closed(msgspec.Struct, frozen=True, gc=False, array_like=True, tag=6):
    """The end of the reservation is in the journal. `balance` is the account's, if known."""

    reservation_id: int
    balance: int | None


class Flushed(msgspec.Struct, frozen=True, gc=False, array_like=True, tag=7):
    """Everything settled before the question is posted."""

    number: int


Reply = Welcome | Rejected | Reserved | Refused | Extended | Closed | Flushed


# -- refusals ------------------------------------------------------------------------------------


class Insufficient(msgspec.Struct, frozen=True, gc=False, array_like=True, tag=1):
    """`errors.InsufficientCredit`."""

    pool_id: int
    kind: PoolKind
    balance: int
    reserved: int
    required: int
    available: int


class Limited(msgspec.Struct, frozen=True, gc=False, array_like=True, tag=2):
    """`errors.RateLimited`."""

    limit: LimitRef
    retry_after: float
    states: tuple[LimitState, ...]
    never_fits: bool


class Unavailable(msgspec.Struct, frozen=True, gc=False, array_like=True, tag=3):
    """`errors.LedgerUnavailable`."""

    retry_after: float
    reason: str


class Suspended(msgspec.Struct, frozen=True, gc=False, array_like=True, tag=4):
    """`errors.AccountSuspended`."""

    account_id: int


Facts = Insufficient | Limited | Unavailable | Suspended


def facts_of(error: LedgerError) -> Facts:
    """A refusal as it travels."""
    match error:
        case InsufficientCredit():
            return Insufficient(
                error.pool_id,
                error.kind,
                error.balance,
                error.reserved,
                error.required,
                error.available,
            )
        case RateLimited():
            return Limited(error.limit, error.retry_after, error.states, error.never_fits)
        case LedgerUnavailable():
            return Unavailable(error.retry_after, error.reason)
        case AccountSuspended():
            return Suspended(error.account_id)
        case _:
            raise AssertionError(f"{error!r} is no refusal")


def refusal_of(facts: Facts) -> LedgerError:
    """The refusal that travelled."""
    match facts:
        case Insufficient():
            return InsufficientCredit(
                facts.pool_id,
                facts.kind,
                balance=facts.balance,
                reserved=facts.reserved,
                required=facts.required,
                available=facts.available,
            )
        case Limited():
            return RateLimited(
                facts.limit, facts.retry_after, facts.states, never_fits=facts.never_fits
            )
        case Unavailable():
            return LedgerUnavailable(facts.retry_after, facts.reason)
        case Suspended():
            return AccountSuspended(facts.account_id)
