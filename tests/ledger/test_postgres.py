"""The books in Postgres: every rule of the store, on a real server."""

from __future__ import annotations

import random
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import datetime

import psycopg
import pytest
import trio

from ledger.directory import Directory, PriceRow
from ledger.postgres import PostgresStore
from ledger.store import (
    Ask,
    CreditHint,
    EventStatus,
    Hint,
    HolderId,
    HolderRow,
    HolderState,
    LedgerStore,
    PoolGrant,
    PoolId,
    PoolStatus,
    RecallHint,
    Session,
    StoreRefused,
    StoreUncertain,
)
from tests.fakes.model_holder import ModelHolder, event, report
from tests.fakes.postgres import TestServer

GOODWILL = 7


@pytest.fixture
def accounts(database: str) -> list[int]:
    """Three accounts with 1,000,000 nano-dollars each; model, provider and price 1 exist."""
    with Directory(database) as directory:
        directory.register_catalogue(
            ["m"], ["p"], [PriceRow("m", "p/m", "", (("input", 1),), 1000)]
        )
        return [directory.create_account(f"a{n}", credit=1_000_000).account_id for n in range(3)]


@pytest.fixture
async def store(database: str) -> AsyncIterator[PostgresStore]:
    store = PostgresStore(database)
    try:
        yield store
    finally:
        await store.aclose()


@pytest.fixture
async def holder(store: PostgresStore, accounts: list[int]) -> ModelHolder:
    """A holder with an open session; depends on the accounts, so their ids are 1, 2, 3."""
    holder = ModelHolder(store)
    await holder.open()
    return holder


def scalar(database: str, query: str) -> object:
    with psycopg.connect(database) as connection:
        row = connection.execute(query.encode()).fetchone()
        assert row is not None
        return row[0]


# -- sessions -------------------------------------------------------------------------------------


async def test_a_journal_is_one_holder_whatever_the_node_is_called(store: PostgresStore) -> None:
    journal = uuid.uuid4().bytes
    first = await store.register_holder(journal, "one")
    assert await store.register_holder(journal, "two") == first
    assert await store.register_holder(uuid.uuid4().bytes, "two") != first


async def test_a_session_says_what_was_applied_and_what_is_held(holder: ModelHolder) -> None:
    await holder.grant(1, 1000, 1000)
    holder.settle(1, 110, 100)
    await holder.exchange()
    session = await holder.store.open_session(holder.session.holder_id, holder.journal_id)
    assert session == Session(
        holder.session.holder_id, 2, 1, {PoolId(1): 890}, timeline=session.timeline
    )


async def test_only_the_owner_of_the_journal_opens_a_session(
    store: PostgresStore, holder: ModelHolder
) -> None:
    with pytest.raises(StoreRefused) as refused:
        await store.open_session(holder.session.holder_id, uuid.uuid4().bytes)
    assert refused.value.code == "LE006"


async def test_an_old_epoch_is_refused_in_both_lanes(holder: ModelHolder) -> None:
    stale = holder.session
    await holder.open()
    with pytest.raises(StoreRefused, match="LE001"):
        await holder.store.exchange(stale, [], [])
    with pytest.raises(StoreRefused, match="LE001"):
        await holder.store.grant_lease(stale, [Ask(PoolId(1), 1, 1)])
    with pytest.raises(StoreRefused, match="LE001"):
        await holder.store.quarantine(stale, event(1, 1), "no")


# -- grants ---------------------------------------------------------------------------------------


async def test_a_grant_says_what_is_left(holder: ModelHolder) -> None:
    assert await holder.grant(1, 400, 10_000) == PoolGrant(
        pool_id=PoolId(1),
        granted=10_000,
        outstanding=10_000,
        spent_total=0,
        available=990_000,
        balance=1_000_000,
        status=PoolStatus.OPEN,
    )


@pytest.mark.parametrize(
    ("need", "want", "granted"),
    [
        (1, 800_000, 250_000),  # at most a quarter of what is left …
        (600_000, 800_000, 600_000),  # … or exactly the smallest waiting reservation
        (1_000_000, 1_000_000, 1_000_000),
        (1_000_001, 1_000_001, 0),
        (0, 0, 0),
    ],
)
async def test_how_much_is_granted(holder: ModelHolder, need: int, want: int, granted: int) -> None:
    assert (await holder.grant(1, need, want)).granted == granted


async def test_several_pools_are_answered_in_order(holder: ModelHolder) -> None:
    asks = [Ask(PoolId(3), 5, 5), Ask(PoolId(1), 7, 7)]
    replies = await holder.store.grant_lease(holder.session, asks)
    assert [(reply.pool_id, reply.granted) for reply in replies] == [(1, 7), (3, 5)]


async def test_an_unknown_pool_is_refused(holder: ModelHolder) -> None:
    with pytest.raises(StoreRefused, match="LE004"):
        await holder.store.grant_lease(holder.session, [Ask(PoolId(99), 1, 1)])
    with pytest.raises(StoreRefused, match="LE004"):
        await holder.store.exchange(holder.session, [], [report(99)])


async def test_a_suspended_pool_grants_nothing(database: str, holder: ModelHolder) -> None:
    with Directory(database) as directory:
        directory.suspend("a0")
        reply = await holder.grant(1, 1, 1)
        assert (reply.granted, reply.status) == (0, PoolStatus.SUSPENDED)
        directory.resume("a0")
    assert (await holder.grant(1, 1, 1)).granted == 1


async def test_what_others_hold_idle_is_recalled(store: PostgresStore, holder: ModelHolder) -> None:
    poor = ModelHolder(store)
    await poor.open()
    await holder.grant(1, 1_000_000, 1_000_000)
    refused = await poor.grant(1, 500, 500)
    assert (refused.granted, refused.recalled) == (0, 1)

    (reply,) = await holder.exchange()  # a pool of which the exchange said nothing
    assert (reply.pool_id, reply.recall) == (1, True)
    holder.free[1] = 0
    (reply,) = await holder.exchange((1, 0, 0))
    assert (reply.recall, reply.outstanding, reply.available) == (False, 0, 1_000_000)
    assert (await poor.grant(1, 500, 500)).granted == 500


# -- exchanges ------------------------------------------------------------------------------------


async def test_an_event_is_stored_as_it_was_sent(database: str, holder: ModelHolder) -> None:
    await holder.grant(1, 1000, 1000)
    sent = event(1, 1, units={"image": 2}, key_id=2**40, endpoint=7)
    (reply,) = await holder.store.exchange(
        holder.session, [sent], [report(1, covered=110, held=890)]
    )
    assert (reply.outstanding, reply.spent_total, reply.balance) == (890, 110, 999_890)
    with psycopg.connect(database) as connection:
        row = connection.execute(
            "SELECT seq, (extract(epoch FROM occurred_at) * 1000000)::bigint, request_id,"
            " account_id, key_id, model_id, provider_id, price_id, endpoint, status, reserved,"
            " cost, charge, tok_in, tok_cached, tok_out, tok_reason, ttfb_ms, duration_ms, units"
            " FROM ledger.usage_event"
        ).fetchone()
    assert row == (
        *(1, sent.occurred_at, uuid.UUID(bytes=sent.request_id), 1, 2**40, 1, 1, 1, 7, 1, 200),
        *(100, 110, 12, 3, 34, 5, 20, 300, {"image": 2}),
    )


@pytest.mark.parametrize("occurred_at", [-(2**63), 2**63 - 1])
async def test_a_mad_clock_does_no_harm(
    database: str, holder: ModelHolder, occurred_at: int
) -> None:
    sent = event(1, 1, occurred_at=occurred_at, charge=0, cost=0, covered=(0,))
    await holder.store.exchange(holder.session, [sent], [])
    assert isinstance(scalar(database, "SELECT occurred_at FROM ledger.usage_event"), datetime)


async def test_postings_are_two_sided(database: str, holder: ModelHolder) -> None:
    await holder.grant(1, 10_000, 10_000)
    holder.settle(1, 110, 100)
    holder.settle(1, 0, 30)  # the provider bills, the customer does not pay
    await holder.exchange()
    with psycopg.connect(database) as connection:
        rows = connection.execute(
            "SELECT t.code, d.kind, c.kind, t.amount FROM ledger.transfer t"
            " JOIN ledger.gl_account d ON d.gl_account_id = t.debit_account_id"
            " JOIN ledger.gl_account c ON c.gl_account_id = t.credit_account_id"
            " WHERE t.code >= 30 ORDER BY 1"
        ).fetchall()
    assert rows == [(30, 1, 2, 100), (31, 1, 3, 10), (32, 10, 2, 30)]
    assert await holder.store.check() == []


async def test_a_gap_and_a_repeated_batch_are_refused(holder: ModelHolder) -> None:
    await holder.grant(1, 1000, 1000)
    pools = [report(1, covered=110, held=780)]
    with pytest.raises(StoreRefused, match="LE002: expected seq 1, got 2"):
        await holder.store.exchange(holder.session, [event(2, 1)], pools)
    await holder.store.exchange(holder.session, [event(1, 1)], pools)
    with pytest.raises(StoreRefused, match="LE002: expected seq 2, got 1"):
        await holder.store.exchange(holder.session, [event(1, 1)], pools)
    assert await holder.store.check() == []


async def test_a_negative_amount_is_the_events_fault_not_a_disagreement(
    holder: ModelHolder,
) -> None:
    await holder.grant(1, 1_000, 1_000)
    with pytest.raises(StoreRefused, match="LE003"):
        await holder.store.exchange(
            holder.session, [event(1, 1, cost=-1)], [report(1, covered=110)]
        )


async def test_charges_that_no_pool_pays_are_refused(holder: ModelHolder) -> None:
    await holder.grant(1, 1000, 1000)
    with pytest.raises(StoreRefused, match="LE003"):
        await holder.store.exchange(holder.session, [event(1, 1)], [report(1, covered=109)])
    with pytest.raises(StoreRefused, match="LE003"):
        await holder.store.exchange(holder.session, [event(1, 1)], [])
    with pytest.raises(StoreRefused, match="LE003"):
        await holder.store.exchange(holder.session, [], [report(1, covered=1, held=999)])


async def test_a_holder_cannot_spend_what_it_does_not_hold(holder: ModelHolder) -> None:
    with pytest.raises(StoreRefused) as refused:
        await holder.store.exchange(holder.session, [event(1, 1)], [report(1, covered=110)])
    assert refused.value.code == "23514"  # the row's own constraint
    with pytest.raises(StoreRefused):
        await holder.store.exchange(holder.session, [], [report(1, held=1)])


async def test_surplus_goes_back_even_after_a_lost_reply(holder: ModelHolder) -> None:
    session = holder.session
    await holder.store.grant_lease(session, [Ask(PoolId(1), 1000, 1000)])  # reply lost
    (reply,) = await holder.store.exchange(session, [], [report(1)])
    assert (reply.outstanding, reply.available) == (0, 1_000_000)


async def test_an_overrun_is_collected_and_the_rest_is_ours(
    database: str, holder: ModelHolder
) -> None:
    await holder.grant(1, 999_900, 999_900)
    holder.settle(1, 1_000_500, 900_000)
    await holder.exchange()
    assert await holder.store.check() == []
    with Directory(database) as directory:
        statement = directory.show_account("a0")
    assert (statement.balance, statement.charged) == (0, 1_000_500)
    assert scalar(database, "SELECT amount FROM ledger.transfer WHERE code = 40") == 500


async def test_a_pool_outside_the_sync_section_keeps_its_lease(holder: ModelHolder) -> None:
    await holder.grant(1, 1000, 1000)
    (reply,) = await holder.store.exchange(
        holder.session, [event(1, 1)], [report(1, covered=110, sync=False, want=500)]
    )
    assert (reply.outstanding, reply.granted) == (890, 0)


async def test_a_batch_may_be_large(holder: ModelHolder, accounts: list[int]) -> None:
    for account_id in accounts:
        await holder.grant(account_id, 500_000, 500_000)
    for n in range(5000):
        holder.settle(accounts[n % 3], 110, 100)
    await holder.exchange()
    assert await holder.store.check() == []


# -- poison ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "poison",
    [
        {"input_tokens": 2**31},
        {"cost": -1},
        {"status": 2**15},
        {"charge": 2**70, "cost": 2**70},
        {"provider_id": 99},
        {"units": {"image\0": 1}},
    ],
)
async def test_an_event_that_does_not_fit_is_refused_and_quarantined(
    database: str, holder: ModelHolder, poison: dict[str, object]
) -> None:
    await holder.grant(1, 1000, 1000)
    bad = event(1, 1, **poison)
    with pytest.raises(StoreRefused):
        await holder.store.exchange(holder.session, [bad], [report(1, covered=110, held=890)])

    await holder.store.quarantine(holder.session, bad, "22003: out of range")
    with pytest.raises(StoreRefused, match="LE002"):
        await holder.store.quarantine(holder.session, bad, "again")
    await holder.store.exchange(holder.session, [event(2, 1)], [report(1, covered=110, held=890)])
    assert await holder.store.check() == []
    assert scalar(database, "SELECT status FROM ledger.usage_event WHERE seq = 1") == (
        EventStatus.QUARANTINED
    )
    assert scalar(database, "SELECT payload ->> 'account_id' FROM ledger.quarantine") == "1"


# -- money in and out -----------------------------------------------------------------------------


async def test_a_reference_is_posted_once(holder: ModelHolder) -> None:
    store = holder.store
    assert await store.credit_pool(PoolId(1), 500, 1, 4, "pi_1")
    assert not await store.credit_pool(PoolId(1), 500, 1, 4, "pi_1")
    assert await store.debit_pool(PoolId(1), 500, 3, 4, "pi_1")
    assert not await store.debit_pool(PoolId(1), 500, 3, 4, "pi_1")
    assert (await holder.grant(1, 0, 1)).balance == 1_000_000
    assert await store.check() == []


async def test_leased_credit_cannot_be_taken_away_unless_forced(holder: ModelHolder) -> None:
    await holder.grant(1, 600_000, 600_000)
    with pytest.raises(StoreRefused, match="LE007"):
        await holder.store.debit_pool(PoolId(1), 400_001, 3, 4, "r")
    assert await holder.store.debit_pool(PoolId(1), 400_001, 7, 4, "r", forced=True)
    assert await holder.store.check() == []


@pytest.mark.parametrize("table", ["transfer", "usage_event", "batch"])
async def test_history_cannot_be_changed(database: str, holder: ModelHolder, table: str) -> None:
    await holder.grant(1, 1000, 1000)
    holder.settle(1, 110, 100)
    await holder.exchange()
    with psycopg.connect(database, autocommit=True) as connection:
        for statement in (
            f"DELETE FROM ledger.{table}",
            f"UPDATE ledger.{table} SET holder_id = 1",
        ):
            with pytest.raises(psycopg.Error, match="append-only"):
                connection.execute(statement.encode())


# -- dead holders ---------------------------------------------------------------------------------


async def fence(store: LedgerStore, holder: ModelHolder) -> int:
    """End the holder's session as the reaper does; its epoch afterwards."""
    heartbeats = {row.holder_id: row.heartbeat for row in await store.holders()}
    holder_id = holder.session.holder_id
    assert await store.fence_holder(holder_id, heartbeats[holder_id])
    return holder.session.epoch + 1


async def reclaim(store: LedgerStore, holder: ModelHolder) -> int | None:
    return await store.reclaim_holder(holder.session.holder_id, await fence(store, holder))


async def test_a_holder_is_listed_with_its_own_times(store: PostgresStore) -> None:
    journal_id = uuid.uuid4().bytes
    await store.register_holder(journal_id, "n")
    assert await store.holders() == [
        HolderRow(HolderId(1), "n", HolderState.ACTIVE, 0, 0, 300, 900)
    ]
    await store.register_holder(journal_id, "m", validity_seconds=60, max_request_seconds=120)
    await store.open_session(HolderId(1), journal_id)
    assert await store.holders() == [HolderRow(HolderId(1), "m", HolderState.ACTIVE, 1, 1, 60, 120)]


async def test_a_holder_is_fenced_only_if_nothing_arrived_since(holder: ModelHolder) -> None:
    (row,) = await holder.store.holders()
    await holder.exchange()
    assert not await holder.store.fence_holder(row.holder_id, row.heartbeat)
    assert await holder.store.fence_holder(row.holder_id, row.heartbeat + 1)
    assert not await holder.store.fence_holder(row.holder_id, row.heartbeat + 1)
    assert not await holder.store.fence_holder(HolderId(99), 0)
    with pytest.raises(StoreRefused, match="LE001"):
        await holder.exchange()


async def test_a_silent_holder_is_fenced_then_reclaimed(holder: ModelHolder) -> None:
    await holder.grant(1, 1000, 1000)
    epoch = await fence(holder.store, holder)
    assert await holder.store.reclaim_holder(holder.session.holder_id, epoch - 1) is None
    assert await holder.store.reclaim_holder(holder.session.holder_id, epoch) == 1000
    assert await holder.store.reclaim_holder(holder.session.holder_id, epoch) is None
    assert await holder.store.holders() == []
    assert await holder.store.check() == []


async def test_a_fenced_holder_that_returns_in_time_goes_on(holder: ModelHolder) -> None:
    await holder.grant(1, 1000, 1000)
    epoch = await fence(holder.store, holder)
    await holder.open()
    assert (holder.session.state, holder.free) == (HolderState.ACTIVE, {1: 1000})
    assert await holder.store.reclaim_holder(holder.session.holder_id, epoch) is None


async def test_a_recall_ends_with_the_lease(
    database: str, store: PostgresStore, holder: ModelHolder
) -> None:
    await holder.grant(1, 1_000_000, 1_000_000)
    poor = ModelHolder(store)
    await poor.open()
    assert (await poor.grant(1, 1, 1)).recalled == 1
    assert await reclaim(store, holder) == 1_000_000
    await holder.open()
    assert await holder.exchange() == []


async def test_a_reclaimed_holder_may_only_post_what_it_still_has(
    database: str, holder: ModelHolder
) -> None:
    await holder.grant(1, 1000, 1000)
    holder.settle(1, 110, 100)
    assert await reclaim(holder.store, holder) == 1000
    await holder.open()
    assert (holder.session.state, holder.session.leases) == (HolderState.RECLAIMED, {})
    (reply,) = await holder.exchange((1, 10, 10))
    assert (reply.granted, reply.outstanding, reply.balance) == (0, 0, 999_890)
    with pytest.raises(StoreRefused, match="LE001"):
        await holder.grant(1, 1, 1)
    assert scalar(database, "SELECT count(*) FROM ledger.transfer WHERE code = 40") == 0
    assert await holder.store.check() == []


async def test_a_late_event_that_nothing_is_left_for_is_ours(
    database: str, holder: ModelHolder
) -> None:
    await holder.grant(1, 1_000_000, 1_000_000)
    holder.settle(1, 1_000_000, 900_000)
    await reclaim(holder.store, holder)
    await holder.store.debit_pool(PoolId(1), 999_950, 3, 4, "refunded")
    await holder.open()
    (reply,) = await holder.exchange()
    assert (reply.balance, reply.available) == (0, 0)
    assert scalar(database, "SELECT amount FROM ledger.transfer WHERE code = 40") == 999_950
    assert await holder.store.check() == []


async def test_a_reclaimed_holder_cannot_claim_its_lease(holder: ModelHolder) -> None:
    await holder.grant(1, 1000, 1000)
    holder.settle(1, 110, 100)
    await reclaim(holder.store, holder)
    covered = holder.unposted
    await holder.open()
    for events, pool in ((covered, report(1, covered=110)), ([], report(1, held=1))):
        with pytest.raises(StoreRefused, match="23514"):
            await holder.store.exchange(holder.session, events, [pool])
    with pytest.raises(StoreRefused, match="LE001"):
        await holder.store.reattest(holder.session, {PoolId(1): 1000})


async def test_a_reclaimed_holder_may_quarantine(holder: ModelHolder) -> None:
    await reclaim(holder.store, holder)
    await holder.open()
    await holder.store.quarantine(holder.session, event(1, 1), "no")
    assert await holder.store.check() == []


async def test_only_a_reclaimed_holder_is_closed_and_then_for_good(holder: ModelHolder) -> None:
    with pytest.raises(StoreRefused, match="LE001"):
        await holder.store.close_holder(holder.session)
    await reclaim(holder.store, holder)
    with pytest.raises(StoreRefused, match="LE001"):
        await holder.store.close_holder(holder.session)
    await holder.open()
    await holder.store.close_holder(holder.session)
    with pytest.raises(StoreRefused, match="LE001"):
        await holder.exchange()
    with pytest.raises(StoreRefused, match="LE006"):
        await holder.open()


# -- lossy failovers ------------------------------------------------------------------------------


def lose_grant(database: str, holder: ModelHolder, pool: int, amount: int) -> None:
    """An asynchronous standby took over, which had not heard of a grant."""
    at = f"pool_id = {pool}"
    with psycopg.connect(database) as connection:
        for statement in (
            f"UPDATE ledger.lease SET outstanding = outstanding - {amount},"
            f" granted_total = granted_total - {amount}"
            f" WHERE {at} AND holder_id = {holder.session.holder_id}",
            f"UPDATE ledger.pool SET available = available + {amount}, leased = leased - {amount}"
            f" WHERE {at}",
            "UPDATE ledger.cluster SET timeline = '0', synchronous_replication = false",
            "UPDATE ledger.holder SET timeline = NULL",
        ):
            connection.execute(statement.encode())


async def test_grants_wait_for_attestation_after_a_lossy_failover(
    database: str, holder: ModelHolder
) -> None:
    await holder.grant(1, 700, 700)
    lose_grant(database, holder, 1, 700)
    await holder.open()
    assert (await holder.grant(1, 1, 1)).granted == 0
    assert not await holder.store.end_learning()
    holder.free = {1: 700}
    assert await holder.attest() == 700
    assert await holder.attest() == 0
    assert await holder.store.end_learning()
    assert not await holder.store.end_learning()
    assert (await holder.grant(1, 1, 1)).outstanding == 701
    assert await holder.store.check() == []


async def test_a_new_holder_has_nothing_to_attest(
    database: str, store: PostgresStore, holder: ModelHolder
) -> None:
    lose_grant(database, holder, 1, 0)
    await ModelHolder(store).open()
    await holder.attest()
    assert await holder.store.end_learning()


async def test_who_holds_nothing_attests_that(database: str, holder: ModelHolder) -> None:
    lose_grant(database, holder, 1, 0)
    await holder.open()
    assert not await holder.store.end_learning()
    assert await holder.store.reattest(holder.session, {}) == 0
    assert await holder.store.end_learning()


async def test_a_pool_that_was_lost_as_well_is_left_out(holder: ModelHolder) -> None:
    held = {PoolId(99): 500, PoolId(1): 300}
    assert await holder.store.reattest(holder.session, held) == 300
    session = await holder.store.open_session(holder.session.holder_id, holder.journal_id)
    assert session.leases == {PoolId(1): 300}


async def granted_twice(database: str, store: LedgerStore, holder: ModelHolder) -> ModelHolder:
    """Another holder, and both hold the whole million of account 1."""
    other = ModelHolder(store)
    await other.open()
    await holder.grant(1, 1_000_000, 1_000_000)
    lose_grant(database, holder, 1, 1_000_000)
    await other.grant(1, 1_000_000, 1_000_000)
    assert await holder.attest() == 1_000_000
    await other.attest()
    assert scalar(database, "SELECT available FROM ledger.pool WHERE pool_id = 1") == -1_000_000
    assert await store.check() == []
    return other


async def test_what_was_granted_twice_and_spent_once_costs_nobody(
    database: str, store: PostgresStore, holder: ModelHolder
) -> None:
    other = await granted_twice(database, store, holder)
    holder.settle(1, 1_000_000, 900_000)
    other.free = {1: 0}
    for one in (holder, other):
        await one.exchange((1, 0, 0))
    assert scalar(database, "SELECT count(*) FROM ledger.transfer WHERE code = 12") == 0
    assert scalar(database, "SELECT available FROM ledger.pool WHERE pool_id = 1") == 0
    assert await store.check() == []


async def test_what_was_granted_twice_and_spent_twice_is_ours(
    database: str, store: PostgresStore, holder: ModelHolder
) -> None:
    other = await granted_twice(database, store, holder)
    for one, charge in ((holder, 1_000_000), (other, 400_000)):
        one.settle(1, charge, charge)
        await one.exchange()
        assert await store.check() == []
    assert scalar(database, "SELECT amount FROM ledger.transfer WHERE code = 12") == 400_000
    other.free = {1: 0}
    await other.exchange((1, 0, 0))
    left = "SELECT (available, overgranted)::text FROM ledger.pool WHERE pool_id = 1"
    assert scalar(database, left) == "(0,0)"
    assert await store.check() == []


async def test_what_is_paid_in_meanwhile_is_used_first(
    database: str, store: PostgresStore, holder: ModelHolder
) -> None:
    other = await granted_twice(database, store, holder)
    await store.credit_pool(PoolId(1), 150_000, 1, 4, "top-up")
    for one, charge in ((holder, 1_000_000), (other, 400_000)):
        one.settle(1, charge, charge)
        await one.exchange()
    assert scalar(database, "SELECT amount FROM ledger.transfer WHERE code = 12") == 250_000
    assert await store.check() == []


async def test_a_forced_debit_is_not_taken_for_a_failover(
    database: str, store: PostgresStore, holder: ModelHolder
) -> None:
    await holder.grant(1, 1_000_000, 1_000_000)
    await store.debit_pool(PoolId(1), 300_000, 7, 4, "dispute", forced=True)
    holder.settle(1, 900_000, 900_000)
    await holder.exchange()
    assert scalar(database, "SELECT funded - spent FROM ledger.pool WHERE pool_id = 1") == -200_000
    assert scalar(database, "SELECT count(*) FROM ledger.transfer WHERE code = 12") == 0
    assert await store.check() == []


# -- hints ----------------------------------------------------------------------------------------


@asynccontextmanager
async def listening(
    database: str, store: PostgresStore
) -> AsyncIterator[Callable[[], Awaitable[Hint]]]:
    """What `hints` yields, one call each, from here on."""
    hints = store.hints()
    sender, receiver = trio.open_memory_channel[Hint](10)

    async def forward() -> None:
        async for hint in hints:
            await sender.send(hint)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(forward)
        await somebody_listens(database)
        yield receiver.receive
        nursery.cancel_scope.cancel()


async def somebody_listens(database: str) -> None:
    """Return when a connection of this database listens and waits."""
    query = (
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
        " AND query LIKE 'LISTEN%' AND state = 'idle'"
    )
    with trio.fail_after(10):
        while scalar(database, query) == 0:
            await trio.lowlevel.checkpoint()


async def test_a_recall_is_heard(database: str, store: PostgresStore, holder: ModelHolder) -> None:
    poor = ModelHolder(store)
    await poor.open()
    await holder.grant(1, 1_000_000, 1_000_000)
    async with listening(database, store) as hint:
        await poor.grant(1, 1, 1)
        with trio.fail_after(10):
            assert await hint() == RecallHint(PoolId(1))


async def test_credit_and_changes_of_an_account_are_heard(
    database: str, store: PostgresStore, accounts: list[int]
) -> None:
    async with listening(database, store) as hint:
        with Directory(database) as directory, trio.fail_after(10):
            directory.credit("a1", 5, "gift")
            assert await hint() == CreditHint(2)
            directory.suspend("a2")
            assert await hint() == CreditHint(3)
            await store.credit_pool(PoolId(1), 5, 1, 4, "pi_1")
            assert await hint() == CreditHint(1)
            await store.credit_pool(PoolId(1), 5, 1, 4, "pi_1")  # nothing new
            new = directory.create_account("new", credit=1).account_id
            assert await hint() == CreditHint(new)


async def test_a_connection_for_hints_that_breaks_is_uncertain(
    database: str, store: PostgresStore
) -> None:
    broken = False

    async def listen() -> None:
        nonlocal broken
        with pytest.raises(StoreUncertain):
            async for _ in store.hints():
                pass
        broken = True

    async with trio.open_nursery() as nursery:
        nursery.start_soon(listen)
        await somebody_listens(database)
        with psycopg.connect(database, autocommit=True) as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'LISTEN%'"
            )
    assert broken


async def test_no_server_gives_no_hints() -> None:
    with pytest.raises(StoreUncertain):
        await anext(aiter(PostgresStore("host=/nowhere dbname=x").hints()))


# -- random histories -----------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(8))
async def test_random_histories_keep_every_invariant(
    database: str, store: PostgresStore, accounts: list[int], seed: int
) -> None:
    """Grants, charges, lost requests, lost replies, restarts and top-ups, in any order."""
    chance = random.Random(seed)
    holders = [ModelHolder(store, f"node{n}") for n in range(3)]
    for holder in holders:
        await holder.open()
    for step in range(80):
        holder, account = chance.choice(holders), chance.choice(accounts)
        match chance.randrange(8):
            case 0 | 1:
                await holder.grant(account, chance.randrange(20_000), chance.randrange(60_000))
            case 2 | 3:
                free = holder.free.get(account, 0)
                charge = chance.randrange(2 * free + 2)
                holder.settle(account, charge, chance.choice([charge, charge * 10 // 11, 7]))
            case 4:
                await holder.exchange((account, chance.randrange(5000), chance.randrange(60_000)))
            case 5:  # it happened, but nobody heard
                await store.exchange(holder.session, holder.unposted, holder.batch())
                await holder.open()
            case 6:  # it did not happen, or only the process died
                await holder.open()
            case _:
                await store.credit_pool(PoolId(account), chance.randrange(1, 9999), 1, 4, f"{step}")
        if step % 20 == 19:
            assert await store.check() == []
    for holder in holders:
        await holder.exchange()
        holder.free = dict.fromkeys(holder.free, 0)
        await holder.exchange(*((pool, 0, 0) for pool in holder.free))
    assert await store.check() == []
    assert scalar(database, "SELECT sum(leased)::bigint FROM ledger.pool") == 0
    assert scalar(database, "SELECT sum(charge)::bigint FROM ledger.usage_event") == sum(
        charged for holder in holders for charged in holder.charged.values()
    )


# -- connections ----------------------------------------------------------------------------------


async def test_a_killed_connection_is_uncertain_and_the_next_call_connects_again(
    database: str, holder: ModelHolder
) -> None:
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
    with pytest.raises(StoreUncertain):
        await holder.store.open_session(holder.session.holder_id, holder.journal_id)
    await holder.open()


async def test_no_server_is_uncertain() -> None:
    store = PostgresStore("host=/nowhere dbname=x")
    with pytest.raises(StoreUncertain):
        await store.ping()
    await store.aclose()


async def test_a_lock_that_does_not_come_is_uncertain(database: str, holder: ModelHolder) -> None:
    with psycopg.connect(database) as connection:
        connection.execute("SELECT FROM ledger.pool WHERE pool_id = 1 FOR UPDATE")
        with pytest.raises(StoreUncertain, match="55P03"):
            await holder.grant(1, 1, 1)
    assert (await holder.grant(1, 1, 1)).granted == 1


@pytest.mark.parametrize(
    ("failure", "code"),
    [
        ("ALTER DATABASE {} SET default_transaction_read_only = on", "25006"),  # a standby
        ("REVOKE EXECUTE ON ALL FUNCTIONS IN SCHEMA ledger FROM farebox_app", "42501"),
        ("ALTER FUNCTION ledger.exchange RENAME TO exchanged", "42883"),  # of another version
    ],
)
async def test_a_database_that_is_unfit_says_nothing_of_the_events(
    database: str, store: PostgresStore, holder: ModelHolder, failure: str, code: str
) -> None:
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(failure.format(connection.info.dbname).encode())
    await store.aclose()  # the next call connects anew
    with pytest.raises(StoreUncertain, match=code):
        await holder.store.exchange(holder.session, [event(1, 1)], [report(1, covered=110)])


async def test_the_lanes_do_not_wait_for_each_other(database: str, holder: ModelHolder) -> None:
    async with trio.open_nursery() as nursery:
        with psycopg.connect(database) as connection:
            connection.execute("SELECT FROM ledger.pool WHERE pool_id = 1 FOR UPDATE")
            nursery.start_soon(holder.store.exchange, holder.session, [], [report(1)])
            assert (await holder.grant(2, 1, 1)).granted == 1


async def test_an_abandoned_call_leaves_the_store_usable(
    database: str, holder: ModelHolder
) -> None:
    with psycopg.connect(database) as connection:
        connection.execute("SELECT FROM ledger.pool WHERE pool_id = 1 FOR UPDATE")
        with trio.move_on_after(0.05) as scope:
            await holder.grant(1, 1, 1)
        assert scope.cancelled_caught
        assert (await holder.grant(2, 1, 1)).granted == 1  # on a new connection
    await holder.open()  # waits for the abandoned statement, and fences it
    assert await holder.store.check() == []


async def test_maintenance_makes_the_partitions_that_are_missing(
    store: PostgresStore, database: str
) -> None:
    last = scalar(
        database,
        """
        SELECT max(inhrelid::regclass::text) FROM pg_inherits
         WHERE inhparent = 'ledger.usage_event'::regclass
           AND inhrelid::regclass::text ~ '[0-9]$'
        """,
    )
    with psycopg.connect(database) as connection:
        connection.execute(f"DROP TABLE {last}".encode())
    for _ in range(2):
        await store.maintain()
        assert scalar(database, f"SELECT to_regclass('{last}') IS NOT NULL")


async def test_a_server_that_goes_away_comes_back(postgres_server: TestServer) -> None:
    with postgres_server.database() as database:
        store = PostgresStore(database)
        await store.ping()
        assert await store.register_holder(uuid.uuid4().bytes, "n") == HolderId(1)
        await store.aclose()
        await store.ping()
        await store.aclose()
