"""A lease holder reduced to arithmetic: the least that a store can be driven with.

It keeps the three figures of a lease (free, pending within a settlement, unposted) and nothing
else, so that a test can lose, repeat and delay what it sends.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import replace

import msgspec

from ledger.store import (
    Ask,
    EventStatus,
    HolderState,
    LedgerStore,
    PoolGrant,
    PoolId,
    PoolReport,
    Session,
    UsageEvent,
)


def event(seq: int, account_id: int, **changes: object) -> UsageEvent:
    """A settled request that cost 100 and was charged 110, out of the account's lease."""
    facts: dict[str, object] = {
        "seq": seq,
        "occurred_at": 1_800_000_000_000_000 + seq,
        "request_id": uuid.UUID(int=seq).bytes,
        "account_id": account_id,
        "key_id": 0,
        "model_id": 1,
        "provider_id": 1,
        "price_id": 1,
        "endpoint": 1,
        "status": EventStatus.SETTLED,
        "reserved": 200,
        "cost": 100,
        "charge": 110,
        "input_tokens": 12,
        "cached_input_tokens": 3,
        "output_tokens": 34,
        "reasoning_tokens": 5,
        "ttfb_ms": 20,
        "duration_ms": 300,
        "units": {},
        "pools": (account_id,),
        "covered": (110,),
        "short": (0,),
    }
    return UsageEvent(**(facts | changes))  # type: ignore[arg-type]  # names are the struct's own


def report(pool: int, **changes: object) -> PoolReport:
    """A pool's section of an exchange that holds nothing and wants nothing."""
    facts: dict[str, object] = {
        "pool_id": PoolId(pool),
        "covered": 0,
        "short": 0,
        "sync": True,
        "held": 0,
        "pending": 0,
        "need": 0,
        "want": 0,
    }
    return PoolReport(**(facts | changes))  # type: ignore[arg-type]  # names are the class's own


class ModelHolder:
    """A holder of one journal. Every method is one step; `free` is per pool."""

    def __init__(self, store: LedgerStore, node: str = "model") -> None:
        self.store = store
        self.node = node
        self.journal_id = uuid.uuid4().bytes
        self.session: Session
        self.free: dict[int, int] = {}
        self.unposted: list[UsageEvent] = []
        self.charged: dict[int, int] = {}

    async def open(self) -> None:
        """Begin a session, and learn from it what was applied and what is held.

        A reclaimed holder holds nothing: what it has settled is short of all its charge.
        """
        await self._begin()
        if self.session.state is HolderState.RECLAIMED:
            self.unposted = [
                msgspec.structs.replace(e, covered=(0,), short=(e.charge,)) for e in self.unposted
            ]
        self.free = dict(self.session.leases.items())
        for e in self.unposted:
            self.free[e.pools[0]] = self.free.get(e.pools[0], 0) - e.covered[0]

    async def attest(self) -> int:
        """Begin a session after a failover, and say what is really held."""
        await self._begin()
        held = dict(self.free)
        for e in self.unposted:
            held[e.pools[0]] = held.get(e.pools[0], 0) + e.covered[0]
        return await self.store.reattest(
            self.session, {PoolId(pool): amount for pool, amount in held.items()}
        )

    async def _begin(self) -> None:
        holder_id = await self.store.register_holder(self.journal_id, self.node)
        self.session = await self.store.open_session(holder_id, self.journal_id)
        self.unposted = [e for e in self.unposted if e.seq > self.session.applied_seq]

    @property
    def next_seq(self) -> int:
        """The sequence number of the next event."""
        return (self.unposted[-1].seq if self.unposted else self.session.applied_seq) + 1

    def settle(self, account_id: int, charge: int, cost: int) -> None:
        """Charge a request: from the lease as far as it goes, the rest is short."""
        covered = min(charge, self.free.get(account_id, 0))
        self.free[account_id] = self.free.get(account_id, 0) - covered
        self.charged[account_id] = self.charged.get(account_id, 0) + charge
        self.unposted.append(
            event(
                self.next_seq,
                account_id,
                charge=charge,
                cost=cost,
                covered=(covered,),
                short=(charge - covered,),
            )
        )

    def batch(self, wants: Sequence[tuple[int, int, int]] = ()) -> list[PoolReport]:
        """The pools of an exchange that posts everything; `wants` is (pool, need, want)."""
        asked = {pool: (need, want) for pool, need, want in wants}
        pools = {e.pools[0] for e in self.unposted} | set(asked)
        return [
            report(
                pool,
                covered=sum(e.covered[0] for e in self.unposted if e.pools[0] == pool),
                short=sum(e.short[0] for e in self.unposted if e.pools[0] == pool),
                held=self.free.get(pool, 0),
                need=asked.get(pool, (0, 0))[0],
                want=asked.get(pool, (0, 0))[1],
            )
            for pool in sorted(pools)
        ]

    async def exchange(self, *wants: tuple[int, int, int]) -> list[PoolGrant]:
        """Post everything, and take over what the reply grants."""
        replies = await self.store.exchange(self.session, self.unposted, self.batch(wants))
        if self.unposted:
            self.session = replace(self.session, applied_seq=self.unposted[-1].seq)
        self.unposted = []
        for reply in replies:
            self.free[reply.pool_id] = self.free.get(reply.pool_id, 0) + reply.granted
            assert self.free[reply.pool_id] == reply.outstanding
        return replies

    async def grant(self, pool: int, need: int, want: int) -> PoolGrant:
        """Ask for more of one pool."""
        (reply,) = await self.store.grant_lease(self.session, [Ask(PoolId(pool), need, want)])
        self.free[pool] = self.free.get(pool, 0) + reply.granted
        return reply
