"""PostgresStore and MemoryStore are the same store: same calls, same answers, same tables.

Everything above the store is tested on the one in memory, so a difference here would make those
tests worthless. Each seed is one history with lawful and unlawful calls.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from typing import TypeVar

import psycopg
import pytest

from ledger.accounts import Budget
from ledger.directory import Directory
from ledger.memory import MemoryStore
from ledger.postgres import PostgresStore
from ledger.store import (
    MAX_REQUEST_SECONDS,
    VALIDITY_SECONDS,
    Ask,
    Hint,
    HolderId,
    HolderRow,
    HolderState,
    LedgerStore,
    PoolGrant,
    PoolId,
    PoolReport,
    Session,
    StoreRefused,
    UsageEvent,
    Violation,
)
from tests.fakes.model_holder import ModelHolder, event, report

T = TypeVar("T")
ACCOUNTS = (1, 2, 3)
BUDGET = 2**40
STEPS = 120


async def outcome(call: Awaitable[T]) -> T | StoreRefused:
    """What a call returns, or how it was refused."""
    try:
        return await call
    except StoreRefused as refused:
        return refused


class TwinStore:
    """Both stores at once; every answer and every refusal must be the same."""

    def __init__(self, postgres: PostgresStore, memory: MemoryStore) -> None:
        self.postgres = postgres
        self.memory = memory

    async def _both(self, call: Callable[[LedgerStore], Awaitable[T]]) -> T:
        in_memory = await outcome(call(self.memory))
        in_postgres = await outcome(call(self.postgres))
        if isinstance(in_memory, StoreRefused):
            assert isinstance(in_postgres, StoreRefused), f"only one refused: {in_memory}"
            assert in_postgres.code == in_memory.code
            raise in_memory
        assert in_postgres == in_memory
        return in_memory

    async def register_holder(
        self,
        journal_id: bytes,
        node: str,
        *,
        validity_seconds: int = VALIDITY_SECONDS,
        max_request_seconds: int = MAX_REQUEST_SECONDS,
    ) -> HolderId:
        return await self._both(
            lambda store: store.register_holder(
                journal_id,
                node,
                validity_seconds=validity_seconds,
                max_request_seconds=max_request_seconds,
            )
        )

    async def open_session(self, holder: HolderId, journal_id: bytes) -> Session:
        return await self._both(lambda store: store.open_session(holder, journal_id))

    async def exchange(
        self, session: Session, events: Sequence[UsageEvent], pools: Sequence[PoolReport]
    ) -> list[PoolGrant]:
        return await self._both(lambda store: store.exchange(session, events, pools))

    async def grant_lease(self, session: Session, asks: Sequence[Ask]) -> list[PoolGrant]:
        return await self._both(lambda store: store.grant_lease(session, asks))

    async def quarantine(self, session: Session, event: UsageEvent, error: str) -> None:
        await self._both(lambda store: store.quarantine(session, event, error))

    async def reattest(self, session: Session, held: Mapping[PoolId, int]) -> int:
        return await self._both(lambda store: store.reattest(session, held))

    async def close_holder(self, session: Session) -> None:
        await self._both(lambda store: store.close_holder(session))

    def hints(self) -> AsyncIterator[Hint]:
        return self.postgres.hints()

    def reaper_lock(self) -> AbstractAsyncContextManager[bool]:
        return self.postgres.reaper_lock()

    async def holders(self) -> list[HolderRow]:
        return await self._both(lambda store: store.holders())

    async def fence_holder(self, holder: HolderId, heartbeat_seen: int) -> bool:
        return await self._both(lambda store: store.fence_holder(holder, heartbeat_seen))

    async def reclaim_holder(self, holder: HolderId, epoch_seen: int) -> int | None:
        return await self._both(lambda store: store.reclaim_holder(holder, epoch_seen))

    async def end_learning(self) -> bool:
        return await self._both(lambda store: store.end_learning())

    async def credit_pool(
        self, pool: PoolId, amount: int, code: int, contra: int, ref: str
    ) -> bool:
        return await self._both(lambda store: store.credit_pool(pool, amount, code, contra, ref))

    async def debit_pool(
        self, pool: PoolId, amount: int, code: int, contra: int, ref: str, *, forced: bool = False
    ) -> bool:
        return await self._both(
            lambda store: store.debit_pool(pool, amount, code, contra, ref, forced=forced)
        )

    async def check(self) -> list[Violation]:
        return await self._both(lambda store: store.check())


@pytest.fixture
async def twins(database: str) -> AsyncIterator[TwinStore]:
    """Three accounts, the second with a credit limit; a budget; one provider."""
    memory = MemoryStore()
    with Directory(database) as directory:
        directory.register_catalogue(["m"], ["p"], [])
        memory.add_provider(1)
        for number in ACCOUNTS:
            account = directory.create_account(f"a{number}")
            memory.add_account(account.account_id, credit_limit=5000 if number == 2 else 0)
        directory.create_project("a1", "tight", Budget(40_000))
        memory.add_budget(BUDGET, 1, 40_000)
    with psycopg.connect(database) as connection:
        connection.execute("UPDATE ledger.pool SET credit_limit = 5000 WHERE pool_id = 2")
    postgres = PostgresStore(database)
    try:
        yield TwinStore(postgres, memory)
    finally:
        await postgres.aclose()


async def lawful(twins: TwinStore, holder: ModelHolder, chance: random.Random, step: int) -> None:
    """One thing that a holder or an operator does."""
    account = chance.choice(ACCOUNTS)
    pool = chance.choice([*ACCOUNTS, BUDGET])
    match chance.randrange(8):
        case 0 | 1:
            await holder.grant(pool, chance.randrange(20_000), chance.randrange(60_000))
        case 2 | 3:
            charge = chance.randrange(2 * holder.free.get(account, 0) + 2)
            holder.settle(account, charge, chance.choice([charge, charge * 10 // 11, 7]))
        case 4:
            await holder.exchange((pool, chance.randrange(5000), chance.randrange(60_000)))
        case 5:
            await twins.exchange(holder.session, holder.unposted, holder.batch())
            await holder.open()
        case 6:
            bad = event(holder.session.applied_seq + 1, account)
            if not holder.unposted:
                await twins.quarantine(holder.session, bad, "poison")
            await holder.open()
        case _:
            await twins.credit_pool(PoolId(account), chance.randrange(1, 40_000), 1, 4, f"{step}")


async def reap(twins: TwinStore, chance: random.Random) -> None:
    """What a reaper does to one holder, with what it saw now or before."""
    row = chance.choice(await twins.holders())
    if row.state is HolderState.ACTIVE:
        await twins.fence_holder(row.holder_id, row.heartbeat - chance.randrange(2))
    else:
        await twins.reclaim_holder(row.holder_id, row.epoch - chance.randrange(2))
    await twins.end_learning()


async def recover(twins: TwinStore, holder: ModelHolder, chance: random.Random) -> None:
    """What a holder does that was fenced: it goes on, or posts the rest and begins anew."""
    await holder.open()
    if holder.session.state is HolderState.RECLAIMED and chance.random() < 0.5:
        await holder.exchange()
        await twins.close_holder(holder.session)
        holder.journal_id = chance.randbytes(16)
        await holder.open()


def lose_grant(
    database: str, twins: TwinStore, pool: int, holder_id: int, lost: int, *, synchronous: bool
) -> None:
    """A standby takes over that had not heard of a grant."""
    twins.memory.pools[pool].available += lost
    twins.memory.pools[pool].leased -= lost
    twins.memory.leases[pool, holder_id].outstanding -= lost
    twins.memory.synchronous_replication = synchronous
    twins.memory.timeline = -1
    for row in twins.memory.holder_rows.values():
        row.timeline = 0
    with psycopg.connect(database) as connection:
        connection.execute(
            "UPDATE ledger.lease SET outstanding = outstanding - %s,"
            " granted_total = granted_total - %s WHERE (pool_id, holder_id) = (%s, %s)",
            [lost, lost, pool, holder_id],
        )
        connection.execute(
            "UPDATE ledger.pool SET available = available + %s, leased = leased - %s"
            " WHERE pool_id = %s",
            [lost, lost, pool],
        )
        connection.execute(
            "UPDATE ledger.cluster SET timeline = '0', synchronous_replication = %s", [synchronous]
        )
        connection.execute("UPDATE ledger.holder SET timeline = NULL")


async def fail_over(
    database: str, twins: TwinStore, holders: Sequence[ModelHolder], chance: random.Random
) -> None:
    """Some of a lease is lost, and granted to another if it is fast; most holders attest theirs."""
    held = {key: row.outstanding for key, row in twins.memory.leases.items() if row.outstanding}
    if not held:
        return
    (pool, holder_id), outstanding = chance.choice(sorted(held.items()))
    lost = chance.randrange(outstanding) + 1
    lose_grant(database, twins, pool, holder_id, lost, synchronous=chance.random() < 0.5)
    other = chance.choice(holders)
    if other.session.holder_id != holder_id:
        await recover(twins, other, chance)
        if other.session.state is HolderState.ACTIVE:
            await other.grant(pool, lost, lost)
    for holder in holders:
        state = twins.memory.holder_rows[holder.session.holder_id].state
        if state is HolderState.RECLAIMED:
            await holder.open()
        elif holder.session.holder_id == holder_id or chance.random() < 0.7:
            await holder.attest()


def expire_budget(database: str, twins: TwinStore) -> None:
    """Its month is over."""
    twins.memory.pools[BUDGET].expired = True
    with psycopg.connect(database) as connection:
        connection.execute(
            "UPDATE ledger.pool SET valid_until = now() - interval '1 second' WHERE pool_id = %s",
            [BUDGET],
        )


def unlawful(
    twins: TwinStore, holder: ModelHolder, chance: random.Random
) -> tuple[Awaitable[object], str]:
    """A call that must be refused, and the code it must be refused with."""
    session = holder.session
    seq = session.applied_seq + 1
    paid = report(1, covered=110)
    too_much = 10**15
    calls: list[tuple[Callable[[], Awaitable[object]], str]] = [
        (lambda: twins.exchange(replace(session, epoch=0), [], []), "LE001"),
        (lambda: twins.grant_lease(replace(session, epoch=0), []), "LE001"),
        (lambda: twins.exchange(session, [event(seq + 1, 1)], [paid]), "LE002"),
        (lambda: twins.quarantine(session, event(seq + 1, 1), "no"), "LE002"),
        (lambda: twins.exchange(session, [event(seq, 1)], []), "LE003"),
        (lambda: twins.exchange(session, [], [paid]), "LE003"),
        (lambda: twins.exchange(session, [], [report(99)]), "LE004"),
        (lambda: twins.exchange(session, [], [report(1), report(1)]), "LE004"),
        (lambda: twins.grant_lease(session, [Ask(PoolId(99), 1, 1)]), "LE004"),
        (lambda: twins.credit_pool(PoolId(BUDGET), 1, 1, 4, "x"), "LE004"),
        (lambda: twins.debit_pool(PoolId(99), 1, 3, 4, "x"), "LE004"),
        (lambda: twins.reattest(replace(session, epoch=0), {}), "LE001"),
        (lambda: twins.close_holder(session), "LE001"),
        (
            lambda: twins.quarantine(replace(session, holder_id=HolderId(99)), event(1, 1), ""),
            "LE001",
        ),
        (lambda: twins.open_session(session.holder_id, b"?" * 16), "LE006"),
        (lambda: twins.debit_pool(PoolId(3), too_much, 3, 4, "x"), "LE007"),
        (lambda: twins.exchange(session, [], [report(3, held=too_much)]), "23514"),
    ]
    call, code = chance.choice(calls)
    return call(), code


async def step_of(
    database: str,
    twins: TwinStore,
    holders: Sequence[ModelHolder],
    chance: random.Random,
    step: int,
) -> None:
    holder = chance.choice(holders)
    match chance.random():
        case dice if dice < 0.1:
            await reap(twins, chance)
        case dice if dice < 0.13:
            await fail_over(database, twins, holders, chance)
        case _:
            refused = await outcome(lawful(twins, holder, chance, step))
            if refused is not None:
                assert refused.code == "LE001", refused  # fenced, or reclaimed
                await recover(twins, holder, chance)


@pytest.mark.parametrize("seed", range(12))
async def test_the_same_calls_have_the_same_answers_and_end_in_the_same_tables(
    database: str, twins: TwinStore, seed: int
) -> None:
    chance = random.Random(seed)
    holders = [ModelHolder(twins, f"node{n}") for n in range(3)]
    for holder in holders:
        await holder.open()
    for step in range(STEPS):
        await step_of(database, twins, holders, chance, step)
        if step == STEPS // 2:
            expire_budget(database, twins)
        holder = chance.choice(holders)
        row = twins.memory.holder_rows[holder.session.holder_id]
        current = row.state is HolderState.ACTIVE and row.epoch == holder.session.epoch
        if current and not holder.unposted and chance.random() < 0.3:
            call, code = unlawful(twins, holder, chance)
            with pytest.raises(StoreRefused) as refused:
                await call
            assert refused.value.code == code
    assert await twins.check() == []
    assert in_postgres(database) == in_memory(twins.memory)


async def test_what_a_failover_lets_be_spent_twice_is_booked_alike(
    database: str, twins: TwinStore
) -> None:
    first, second = ModelHolder(twins, "first"), ModelHolder(twins, "second")
    await twins.credit_pool(PoolId(3), 1000, 1, 4, "x")
    await first.open()
    await first.grant(3, 1000, 1000)
    lose_grant(database, twins, 3, first.session.holder_id, 1000, synchronous=True)
    await second.open()
    await second.grant(3, 1000, 1000)
    assert await first.attest() == 1000
    for holder, charge in ((first, 900), (second, 700)):
        holder.settle(3, charge, charge)
        await holder.exchange()
    assert [t.amount for t in twins.memory.transfers if t.code == 12] == [600]
    assert await twins.check() == []
    assert in_postgres(database) == in_memory(twins.memory)


Tables = dict[str, list[tuple[object, ...]]]


def in_postgres(database: str) -> Tables:
    queries = {
        "pools": "SELECT pool_id, funded, available, leased, spent, status, overgranted"
        " FROM ledger.pool",
        "holders": "SELECT holder_id, node_name, epoch, state, applied_seq, heartbeat"
        " FROM ledger.holder JOIN ledger.holder_progress USING (holder_id)",
        "leases": "SELECT pool_id, holder_id, outstanding, pending, recall, spent_total"
        " FROM ledger.lease",
        "transfers": "SELECT code, amount, account_id, coalesce(holder_id, 0),"
        " coalesce(last_seq, 0) FROM ledger.transfer",
        "batches": "SELECT holder_id, first_seq, last_seq, cost, charge FROM ledger.batch",
        "events": "SELECT holder_id, seq, account_id, status, cost, charge FROM ledger.usage_event",
    }
    with psycopg.connect(database) as connection:
        return {
            name: sorted(connection.execute(query.encode()).fetchall())
            for name, query in queries.items()
        }


def in_memory(store: MemoryStore) -> Tables:
    return {
        "pools": sorted(
            (p.pool_id, p.funded, p.available, p.leased, p.spent, int(p.status), p.overgranted)
            for p in store.pools.values()
        ),
        "holders": sorted(
            (holder_id, h.node, h.epoch, int(h.state), h.applied_seq, h.heartbeat)
            for holder_id, h in store.holder_rows.items()
        ),
        "leases": sorted(
            (pool_id, holder_id, x.outstanding, x.pending, x.recall, x.spent_total)
            for (pool_id, holder_id), x in store.leases.items()
        ),
        "transfers": sorted(
            (t.code, t.amount, t.account_id, t.holder_id or 0, t.last_seq or 0)
            for t in store.transfers
        ),
        "batches": sorted(
            (b.holder_id, b.first_seq, b.last_seq, b.cost, b.charge) for b in store.batches
        ),
        "events": sorted(
            (holder_id, e.seq, e.account_id, e.status, e.cost, e.charge)
            for holder_id, e in store.events
        ),
    }
