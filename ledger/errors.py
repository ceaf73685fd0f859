"""Why the ledger refuses: facts for the caller, who turns them into its own answers.

InsufficientCredit and RateLimited are known facts; LedgerUnavailable says that the ledger cannot
know at the moment. A guess is never reported as InsufficientCredit.

What a driver says of its own errors is told to operators in one line (`brief`).
"""

from __future__ import annotations

from typing import Literal

from ledger.limits import LimitRef, LimitState

PoolKind = Literal["account", "budget"]


class LedgerError(Exception):
    """The ledger refused; nothing is held and nothing was consumed."""


class InsufficientCredit(LedgerError):
    """The reservation does not fit into a pool; amounts are nano-dollars.

    `balance` is credited − charged, `reserved` what open requests hold of it or other nodes have
    set aside, `required` the size of the refused reservation, `available` the largest one that
    would have fitted.
    """

    def __init__(
        self,
        pool_id: int,
        kind: PoolKind,
        *,
        balance: int,
        reserved: int,
        required: int,
        available: int,
    ) -> None:
        super().__init__(f"{kind} pool {pool_id}: {required} required, {available} available")
        self.pool_id = pool_id
        self.kind: PoolKind = kind
        self.balance = balance
        self.reserved = reserved
        self.required = required
        self.available = available


class RateLimited(LedgerError):
    """A limit refused. `never_fits`: the request alone exceeds it, so a retry cannot help."""

    def __init__(
        self,
        limit: LimitRef,
        retry_after: float,
        states: tuple[LimitState, ...],
        *,
        never_fits: bool = False,
    ) -> None:
        super().__init__(f"{limit.kind} limit {limit.limit} of {limit.scope}")
        self.limit = limit
        self.retry_after = retry_after
        self.states = states
        self.never_fits = never_fits


class LedgerUnavailable(LedgerError):
    """The ledger cannot know now: store away, journal full, draining, too much unposted."""

    def __init__(self, retry_after: float, reason: str) -> None:
        super().__init__(reason)
        self.retry_after = retry_after
        self.reason = reason


class AccountSuspended(LedgerError):
    """The account's pool is not open for new reservations."""

    def __init__(self, account_id: int) -> None:
        super().__init__(f"account {account_id} is suspended")
        self.account_id = account_id


class ReservationClosed(LedgerError):
    """A settlement or attempt after `void`: a mistake of the caller, refused and counted."""


class LedgerDivergence(Exception):
    """The holder's books and the store's disagree: admission stops, nothing is repaired."""


def brief(error: Exception) -> str:
    """The first line of what an error says, or else what it is called."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
