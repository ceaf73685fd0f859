"""A store on a bad network: each call may be lost before or after it happened, hang, or be late."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Literal, TypeVar

import trio

from ledger.store import (
    MAX_REQUEST_SECONDS,
    VALIDITY_SECONDS,
    Ask,
    Hint,
    HolderId,
    HolderRow,
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
    sequence number) that no batch may contain. `refusals` are the codes with which the next
    exchanges are refused.
    """

    def __init__(self, store: LedgerStore) -> None:
        self.store = store
        self.delay = 0.001
        self.away = False
        self.faults: deque[Fault] = deque()
        self.poison: set[int] = set()
        self.refusals: deque[str] = deque()
        self.calls: list[str] = []

    async def register_holder(
        self,
        journal_id: bytes,
        node: str,
        *,
        validity_seconds: int = VALIDITY_SECONDS,
        max_request_seconds: int = MAX_REQUEST_SECONDS,
    ) -> HolderId:
        return await self._call(
            "register_holder",
            lambda: self.store.register_holder(
                journal_id,
                node,
                validity_seconds=validity_seconds,
                max_request_seconds=max_request_seconds,
            ),
        )

    async def open_session(self, holder: HolderId, journal_id: bytes) -> Session:
        return await self._call("open_session", lambda: self.store.open_session(holder, journal_id))

    async def exchange(
        self, session: Session, events: Sequence[UsageEvent], pools: Sequence[PoolReport]
    ) -> list[PoolGrant]:
        if self.poison & {event.seq for event in events}:
            raise StoreRefused("22P02", "invalid input syntax")
        if self.refusals:
            raise StoreRefused(self.refusals.popleft(), "for a test")
        return await self._call("exchange", lambda: self.store.exchange(session, events, pools))

    async def grant_lease(self, session: Session, asks: Sequence[Ask]) -> list[PoolGrant]:
        return await self._call("grant_lease", lambda: self.store.grant_lease(session, asks))

    async def quarantine(self, session: Session, event: UsageEvent, error: str) -> None:
        await self._call("quarantine", lambda: self.store.quarantine(session, event, error))

    async def reattest(self, session: Session, held: Mapping[PoolId, int]) -> int:
        return await self._call("reattest", lambda: self.store.reattest(session, held))

    async def close_holder(self, session: Session) -> None:
        await self._call("close_holder", lambda: self.store.close_holder(session))

    async def hints(self) -> AsyncIterator[Hint]:
        async for hint in self.store.hints():
            if self.away:
                raise StoreUncertain("the connection broke")
            yield hint

    def reaper_lock(self) -> AbstractAsyncContextManager[bool]:
        return self.store.reaper_lock()

    async def holders(self) -> list[HolderRow]:
        return await self._call("holders", self.store.holders)

    async def fence_holder(self, holder: HolderId, heartbeat_seen: int) -> bool:
        return await self._call(
            "fence_holder", lambda: self.store.fence_holder(holder, heartbeat_seen)
        )

    async def reclaim_holder(self, holder: HolderId, epoch_seen: int) -> int | None:
        return await self._call(
            "reclaim_holder", lambda: self.store.reclaim_holder(holder, epoch_seen)
        )

    async def end_learning(self) -> bool:
        return await self._call("end_learning", self.store.end_learning)

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
