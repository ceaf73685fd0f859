"""What the books can do: the interface between a lease holder and the store, and its words.

A *pool* is something credit can be leased from (an account's prepaid balance, or a budget). A
*holder* owns leases; it is a journal on disk, not a process. An *exchange* is the batched round
trip that posts events, reports what is still held and obtains new credit; a *grant* asks for more
while callers wait. Two implementations: `postgres.PostgresStore` and `memory.MemoryStore`.

Every call ends as "did not happen" (`StoreRefused`), "happened" (it returned) or "unknown"
(`StoreUncertain`); unknown always ends the session, and `open_session` tells what happened.
"""

from __future__ import annotations

import enum
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import NewType, Protocol

import msgspec

PoolId = NewType("PoolId", int)
HolderId = NewType("HolderId", int)

VALIDITY_SECONDS = 300
MAX_REQUEST_SECONDS = 900


class EventStatus(enum.IntEnum):
    """How a request ended, as stored in `usage_event.status`."""

    SETTLED = 1
    ESTIMATED = 2
    CANCELLED = 3
    FAILED = 5
    UNKNOWN = 6
    ORPHANED = 7
    REVIEW = 8
    QUARANTINED = 9
    FREE = 10


class PoolStatus(enum.IntEnum):
    """Whether a pool may be leased from."""

    OPEN = 1
    SUSPENDED = 2
    CLOSED = 3


class UsageEvent(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """One settled (or failed) attempt: exactly one row of the usage history.

    `pools` are the pools it was reserved from (the account's first); `covered` and `short` say,
    per pool, what comes out of the lease and what does not. Amounts are nano-dollars, times are
    milliseconds, `occurred_at` is microseconds since the epoch (information only), `units` are
    priced quantities without a column of their own. Token totals are inclusive.
    """

    seq: int
    occurred_at: int
    request_id: bytes  # 16 bytes, a UUIDv7
    account_id: int
    key_id: int
    model_id: int
    provider_id: int
    price_id: int
    endpoint: int
    status: int
    reserved: int
    cost: int
    charge: int
    input_tokens: int
    cached_input_tokens: int
    output_tokens: int
    reasoning_tokens: int
    ttfb_ms: int
    duration_ms: int
    units: dict[str, int]
    pools: tuple[int, ...]
    covered: tuple[int, ...]
    short: tuple[int, ...]


def emptied(event: UsageEvent) -> UsageEvent:
    """What takes the place of a quarantined event: who and when, without figures."""
    return UsageEvent(
        seq=event.seq,
        occurred_at=event.occurred_at,
        request_id=event.request_id,
        account_id=event.account_id,
        key_id=event.key_id,
        model_id=0,
        provider_id=0,
        price_id=0,
        endpoint=0,
        status=int(EventStatus.QUARANTINED),
        reserved=0,
        cost=0,
        charge=0,
        input_tokens=0,
        cached_input_tokens=0,
        output_tokens=0,
        reasoning_tokens=0,
        ttfb_ms=0,
        duration_ms=0,
        units={},
        pools=(),
        covered=(),
        short=(),
    )


class HolderState(enum.IntEnum):
    """The life of a holder. A reclaimed one may still post what its journal has (late)."""

    ACTIVE = 1
    FENCED = 2
    RECLAIMED = 3
    CLOSED = 4


@dataclass(frozen=True, slots=True)
class Session:
    """A holder's right to talk to the store, valid until its epoch is superseded.

    In state RECLAIMED the leases are gone: whatever is posted has to be charged from what is
    available, and nothing is granted.
    """

    holder_id: HolderId
    epoch: int
    applied_seq: int
    leases: Mapping[PoolId, int]
    state: HolderState = HolderState.ACTIVE
    timeline: str = ""  # the database's: another one may have lost what this one acknowledged


@dataclass(frozen=True, slots=True)
class HolderRow:
    """What the reaper sees of a holder. `heartbeat` changes with each exchange and session of it.

    Times are seconds, as the holder itself stated them when it registered.
    """

    holder_id: HolderId
    node: str
    state: HolderState
    epoch: int
    heartbeat: int
    validity_seconds: int
    max_request_seconds: int


@dataclass(frozen=True, slots=True)
class RecallHint:
    """Another holder needs credit of this pool: give back what is free. May be lost or repeated."""

    pool_id: PoolId


@dataclass(frozen=True, slots=True)
class CreditHint:
    """This account was credited or changed: ask again. May be lost or repeated."""

    account_id: int


Hint = RecallHint | CreditHint


class PoolReport(msgspec.Struct, frozen=True, gc=False):
    """One pool's section of an exchange.

    `covered` and `short` belong to the batch's events. With `sync`, `held` is the absolute credit
    that the holder keeps beyond this batch, `need` the smallest waiting reservation, `want` what
    it would like on top.
    """

    pool_id: PoolId
    covered: int
    short: int
    sync: bool
    held: int
    pending: int
    need: int
    want: int


@dataclass(frozen=True, slots=True)
class Ask:
    """A pool's line in a grant request."""

    pool_id: PoolId
    need: int
    want: int


class PoolGrant(msgspec.Struct, frozen=True, gc=False):
    """The store's answer for one pool.

    `balance` is credited − charged as posted so far (reserved not taken off), `available` what no
    holder has leased. `spent_total` is what this lease has spent, to be compared by the holder.
    """

    pool_id: PoolId
    granted: int
    outstanding: int
    spent_total: int
    available: int
    balance: int
    status: int
    recall: bool = False
    recalled: int = 0


@dataclass(frozen=True, slots=True)
class Violation:
    """A broken invariant of the books, as `farebox ledger verify` reports it."""

    check: str
    subject: str
    detail: str


class StoreError(Exception):
    """The store did not do what was asked."""


class StoreRefused(StoreError):
    """It certainly did not happen; `code` is the SQLSTATE (LE001 stale epoch, LE002 sequence …)."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code


class StoreUncertain(StoreError):
    """It may or may not have happened: time-out, broken connection."""


class LedgerStore(Protocol):
    """The operations of a lease holder. All are safe to abandon: the outcome is then unknown.

    A holder registers with its own times: how long it admits requests without an answer of the
    store, and how long one of them may last. `reattest` says what a holder really holds, where a
    failover has lost grants: the difference is taken out of the pools, and returned in sum; grants
    begin again when every active holder has said so, if only that it holds nothing more.
    `close_holder` ends a reclaimed holder that has posted everything. `hints` yields until its
    connection breaks (StoreUncertain).

    The reaper's operations follow. Of all stores on the same books one at a time has the
    `reaper_lock`, which says whether it was free; an error of any operation inside means that it
    may be lost. `holders` are the active and the fenced ones, who may have credit. `fence_holder`
    does nothing if the heartbeat was not the latest, `reclaim_holder` (None) if the holder is not
    fenced in this epoch.
    """

    async def register_holder(
        self,
        journal_id: bytes,
        node: str,
        *,
        validity_seconds: int = VALIDITY_SECONDS,
        max_request_seconds: int = MAX_REQUEST_SECONDS,
    ) -> HolderId: ...

    async def open_session(self, holder: HolderId, journal_id: bytes) -> Session: ...

    async def exchange(
        self, session: Session, events: Sequence[UsageEvent], pools: Sequence[PoolReport]
    ) -> list[PoolGrant]: ...

    async def grant_lease(self, session: Session, asks: Sequence[Ask]) -> list[PoolGrant]: ...

    async def quarantine(self, session: Session, event: UsageEvent, error: str) -> None: ...

    async def reattest(self, session: Session, held: Mapping[PoolId, int]) -> int: ...

    async def close_holder(self, session: Session) -> None: ...

    def hints(self) -> AsyncIterator[Hint]: ...

    def reaper_lock(self) -> AbstractAsyncContextManager[bool]: ...

    async def holders(self) -> list[HolderRow]: ...

    async def fence_holder(self, holder: HolderId, heartbeat_seen: int) -> bool: ...

    async def reclaim_holder(self, holder: HolderId, epoch_seen: int) -> int | None: ...

    async def end_learning(self) -> bool: ...

    async def credit_pool(
        self, pool: PoolId, amount: int, code: int, contra: int, ref: str
    ) -> bool: ...

    async def debit_pool(
        self, pool: PoolId, amount: int, code: int, contra: int, ref: str, *, forced: bool = False
    ) -> bool: ...

    async def check(self) -> list[Violation]: ...
