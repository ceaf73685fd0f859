"""A store on a bad network: each call may be lost before or after it happened, hang, or be late."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Literal, TypeVar

import trio

from ledger.store import (
    Ask,
    HolderId,
    LedgerStore,
    PoolGrant,
    PoolId,
    PoolReport,
    Session,
    StoreRefused,
    StoreUncertain,
    UsageEvent,
    Violation,
)

T = TypeVar("T")
Fault = Literal["none", "before", "after", "hang"]


class FaultyStore:
    """Passes the holder's calls on to `store`, `delay` seconds each.

    `faults` are used up one per call; `away` loses every request; `poison` names events (by their
    sequence number) that no batch may contain.
    """

    def __init__(self, store: LedgerStore) -> None:
        self.store = store
        self.delay = 0.001
        self.away = False
        self.faults: deque[Fault] = deque()
        self.poison: set[int] = set()
        self.calls: list[str] = []

    async def register_holder(self, journal_id: bytes, node: str) -> HolderId:
        return await self._call(
            "register_holder", lambda: self.store.register_holder(journal_id, node)
        )

    async def open_session(self, holder: HolderId, journal_id: bytes) -> Session:
        return await self._call("open_session", lambda: self.store.open_session(holder, journal_id))

    async def exchange(
        self, session: Session, events: Sequence[UsageEvent], pools: Sequence[PoolReport]
    ) -> list[PoolGrant]:
        if self.poison & {event.seq for event in events}:
            raise StoreRefused("22P02", "invalid input syntax")
        return await self._call("exchange", lambda: self.store.exchange(session, events, pools))

    async def grant_lease(self, session: Session, asks: Sequence[Ask]) -> list[PoolGrant]:
        return await self._call("grant_lease", lambda: self.store.grant_lease(session, asks))

    async def quarantine(self, session: Session, event: UsageEvent, error: str) -> None:
        await self._call("quarantine", lambda: self.store.quarantine(session, event, error))

    async def credit_pool(
        self, pool: PoolId, amount: int, code: int, contra: int, ref: str
    ) -> bool:
        return await self.store.credit_pool(pool, amount, code, contra, ref)

    async def debit_pool(
        self, pool: PoolId, amount: int, code: int, contra: int, ref: str, *, forced: bool = False
    ) -> bool:
        return await self.store.debit_pool(pool, amount, code, contra, ref, forced=forced)

    async def check(self) -> list[Violation]:
        return await self.store.check()

    async def _call(self, name: str, call: Callable[[], Awaitable[T]]) -> T:
        self.calls.append(name)
        fault = self.faults.popleft() if self.faults else "none"
        await trio.sleep(self.delay)
        if fault == "hang":
            await trio.sleep_forever()
        if self.away or fault == "before":
            raise StoreUncertain("the request was lost")
        answer = await call()
        if fault == "after":
            raise StoreUncertain("the answer was lost")
        return answer
