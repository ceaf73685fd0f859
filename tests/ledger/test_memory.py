"""The books in memory refuse what the database would refuse, and notice when they do not add up."""

from __future__ import annotations

import dataclasses

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from ledger.memory import PROMOTIONS, Batch, MemoryStore, grant_amount
from ledger.memory import Holder as HolderRow
from ledger.store import (
    Ask,
    CreditHint,
    EventStatus,
    Hint,
    HolderState,
    PoolGrant,
    PoolId,
    PoolReport,
    RecallHint,
    Session,
    StoreRefused,
    UsageEvent,
    emptied,
)
from tests.fakes.holder import JOURNAL_ID, Holder, finish
from tests.fakes.ledger import ACCOUNT, BUDGET, PROVIDER, funded_store, request, top_up

POOL = PoolId(ACCOUNT)


@pytest.fixture
def store() -> MemoryStore:
    return finish(funded_store(1_000))


@pytest.fixture
def session(store: MemoryStore) -> Session:
    return finish(store.open_session(finish(store.register_holder(JOURNAL_ID, "n")), JOURNAL_ID))


def event(
    seq: int, charge: int, *, cost: int | None = None, provider: int = PROVIDER
) -> UsageEvent:
    return UsageEvent(
        seq=seq,
        occurred_at=1,
        request_id=bytes(16),
        account_id=ACCOUNT,
        key_id=1,
        model_id=1,
        provider_id=provider,
        price_id=1,
        endpoint=1,
        status=int(EventStatus.SETTLED),
        reserved=charge,
        cost=charge if cost is None else cost,
        charge=charge,
        input_tokens=0,
        cached_input_tokens=0,
        output_tokens=charge,
        reasoning_tokens=0,
        ttfb_ms=1,
        duration_ms=1,
        units={},
        pools=(ACCOUNT,),
        covered=(charge,),
        short=(0,),
    )


def report(
    covered: int = 0,
    *,
    short: int = 0,
    sync: bool = False,
    held: int = 0,
    need: int = 0,
    want: int = 0,
) -> PoolReport:
    return PoolReport(POOL, covered, short, sync, held, 0, need, want)


def lease(store: MemoryStore, session: Session, amount: int) -> PoolGrant:
    (reply,) = finish(store.grant_lease(session, [Ask(POOL, amount, amount)]))
    return reply


@pytest.mark.parametrize(
    ("cap", "need", "want", "granted"),
    [
        (1000, 10, 100, 100),  # rich: what is wanted
        (1000, 10, 800, 250),  # a quarter of what is left
        (1000, 400, 800, 400),  # or exactly what is needed
        (1000, 1000, 2000, 1000),
        (1000, 1001, 2000, 0),
        (1000, 0, 100, 100),
        (1000, 10, 0, 0),
        (0, 0, 10, 0),
        (-5, 0, 10, 0),
    ],
)
def test_grant_policy(cap: int, need: int, want: int, granted: int) -> None:
    assert grant_amount(cap, need, want) == granted


def test_an_exchange_posts_returns_and_grants_at_once(store: MemoryStore, session: Session) -> None:
    assert lease(store, session, 500).available == 500
    (reply,) = finish(
        store.exchange(session, [event(1, 60, cost=50)], [report(60, sync=True, held=140, want=40)])
    )
    assert reply == PoolGrant(POOL, 40, 180, 60, 760, 940, 1)
    assert sorted((t.code, t.amount) for t in store.transfers if t.last_seq) == [(30, 50), (31, 10)]
    assert not finish(store.check())


def test_a_shortfall_is_collected_and_the_rest_absorbed(
    store: MemoryStore, session: Session
) -> None:
    lease(store, session, 900)
    (reply,) = finish(store.exchange(session, [event(1, 1_100)], [report(900, short=200)]))
    assert (reply.balance, reply.available, reply.outstanding) == (0, 0, 0)
    assert [t.amount for t in store.transfers if t.code == 40] == [100]
    assert not finish(store.check())


def test_an_overrun_of_a_budget_is_only_recorded(store: MemoryStore, session: Session) -> None:
    store.add_budget(BUDGET, ACCOUNT, 100)
    lease(store, session, 150)
    reports = [report(150), PoolReport(PoolId(BUDGET), 0, 150, False, 0, 0, 0, 0)]
    replies = finish(store.exchange(session, [event(1, 150)], reports))
    assert [(r.balance, r.available) for r in replies] == [(850, 850), (-50, -50)]
    assert not finish(store.check())


@pytest.mark.parametrize(
    ("events", "reports", "code"),
    [
        ([event(2, 0)], [], "LE002"),
        ([event(1, 0), event(3, 0)], [], "LE003"),
        ([event(1, 10)], [report(9)], "LE003"),
        ([event(1, 10)], [], "LE003"),
        ([], [report(), report()], "LE004"),
        ([], [PoolReport(PoolId(99), 0, 0, True, 0, 0, 0, 0)], "LE004"),
        ([event(1, 101)], [report(101)], "23514"),
        ([event(1, 10, provider=99)], [report(10)], "23502"),
    ],
)
def test_what_the_books_refuse_changes_nothing(
    store: MemoryStore,
    session: Session,
    events: list[UsageEvent],
    reports: list[PoolReport],
    code: str,
) -> None:
    lease(store, session, 100)
    store.pools[ACCOUNT].available -= 900  # nothing else to fall back on
    store.pools[ACCOUNT].funded -= 900
    before = dataclasses.replace(store.pools[ACCOUNT])
    with pytest.raises(StoreRefused) as refusal:
        finish(store.exchange(session, events, reports))
    assert refusal.value.code == code
    assert store.pools[ACCOUNT] == before
    assert not store.events
    assert not store.batches


def test_a_superseded_session_may_do_nothing(store: MemoryStore, session: Session) -> None:
    finish(store.open_session(session.holder_id, JOURNAL_ID))
    for call in (
        store.exchange(session, [], []),
        store.grant_lease(session, []),
        store.quarantine(session, event(1, 1), "bad"),
    ):
        with pytest.raises(StoreRefused, match="LE001"):
            finish(call)


def test_a_session_needs_the_journal_that_registered(store: MemoryStore, session: Session) -> None:
    with pytest.raises(StoreRefused, match="LE006"):
        finish(store.open_session(session.holder_id, b"x" * 16))
    assert finish(store.register_holder(JOURNAL_ID, "again")) == session.holder_id


def test_an_unknown_pool_spoils_the_whole_grant(store: MemoryStore, session: Session) -> None:
    with pytest.raises(StoreRefused, match="LE004"):
        finish(store.grant_lease(session, [Ask(POOL, 1, 1), Ask(PoolId(99), 1, 1)]))


def test_suspended_expired_and_learning_grant_nothing(store: MemoryStore, session: Session) -> None:
    store.pools[ACCOUNT].status = 2
    assert lease(store, session, 10).granted == 0
    store.pools[ACCOUNT].status = 1
    store.pools[ACCOUNT].expired = True
    assert lease(store, session, 10).granted == 0
    store.pools[ACCOUNT].expired = False
    store.grants_enabled = False
    assert lease(store, session, 10).granted == 0


def test_a_credit_limit_is_spendable(store: MemoryStore, session: Session) -> None:
    store.pools[ACCOUNT].credit_limit = 500
    assert lease(store, session, 1_500).granted == 1_500
    assert not finish(store.check())


def test_payments_count_once(store: MemoryStore) -> None:
    assert finish(store.credit_pool(POOL, 10, 1, PROMOTIONS, "pay 1"))
    assert not finish(store.credit_pool(POOL, 10, 1, PROMOTIONS, "pay 1"))
    assert finish(store.debit_pool(POOL, 10, 3, PROMOTIONS, "refund 1"))
    assert not finish(store.debit_pool(POOL, 10, 3, PROMOTIONS, "refund 1"))
    assert store.pools[ACCOUNT].available == 1_000
    assert not finish(store.check())


def test_only_a_forced_debit_goes_below_zero(store: MemoryStore) -> None:
    with pytest.raises(StoreRefused, match="LE007"):
        finish(store.debit_pool(POOL, 1_001, 7, PROMOTIONS, "dispute"))
    assert finish(store.debit_pool(POOL, 1_001, 7, PROMOTIONS, "dispute", forced=True))
    assert store.pools[ACCOUNT].available == -1
    assert not finish(store.check())


def test_a_budget_cannot_be_paid_into(store: MemoryStore) -> None:
    store.add_budget(BUDGET, ACCOUNT, 100)
    with pytest.raises(StoreRefused, match="LE004"):
        finish(store.credit_pool(PoolId(BUDGET), 10, 1, PROMOTIONS, "pay"))


def test_a_quarantined_event_keeps_its_place(store: MemoryStore, session: Session) -> None:
    finish(store.quarantine(session, event(1, 60), "bad"))
    assert store.events == [(session.holder_id, emptied(event(1, 60)))]
    finish(store.exchange(session, [event(2, 0)], []))
    assert not finish(store.check())


@pytest.mark.parametrize("check", ["C1", "C2", "C3", "C4", "C5", "C6", "C8"])
def test_a_change_by_hand_is_noticed(store: MemoryStore, check: str) -> None:
    holder = Holder(store)
    holder.settle(holder.hold(request(100)), 60)
    holder.drain()
    assert not finish(store.check())
    pool = store.pools[ACCOUNT]
    match check:
        case "C1":
            pool.leased += 1
        case "C2":
            pool.available = -1
        case "C3":
            pool.funded += 1
        case "C4":
            store.holder_rows[holder.holder_id].applied_seq += 1
        case "C5":
            store.events.clear()
        case "C6":
            store.transfers[:] = [t for t in store.transfers if t.code != 30]
        case _:
            pool.spent += 1
    assert check in {violation.check for violation in finish(store.check())}


def test_a_gap_between_batches_is_noticed(store: MemoryStore) -> None:
    store.holder_rows[1] = HolderRow(JOURNAL_ID, applied_seq=2)
    store.batches.append(Batch(1, 2, 2, 0, 0))
    assert "C4" in {violation.check for violation in finish(store.check())}


# -- failovers and hints --------------------------------------------------------------------------


def test_a_standby_that_takes_over_knows_what_it_was_told(
    store: MemoryStore, session: Session
) -> None:
    standby = store.copy()
    lease(store, session, 600)
    store.synchronous_replication = False
    store.fail_over(standby)
    assert store.pools[ACCOUNT].available == 1_000
    again = finish(store.open_session(session.holder_id, JOURNAL_ID))
    assert (again.epoch, dict(again.leases)) == (session.epoch + 1, {})
    assert again.timeline != session.timeline
    assert lease(store, again, 1).granted == 0
    assert not finish(store.end_learning())
    assert finish(store.reattest(again, {POOL: 600, PoolId(99): 5})) == 600
    assert finish(store.end_learning())
    assert lease(store, again, 1).outstanding == 601
    assert not finish(store.check())


def test_what_was_granted_and_spent_twice_is_ours(store: MemoryStore, session: Session) -> None:
    standby = store.copy()
    lease(store, session, 1_000)
    store.fail_over(standby)  # which nobody knows to be lossy
    other = finish(store.register_holder(b"o" * 16, "other"))
    second = finish(store.open_session(other, b"o" * 16))
    lease(store, second, 1_000)
    first = finish(store.open_session(session.holder_id, JOURNAL_ID))
    assert finish(store.reattest(first, {POOL: 1_000})) == 1_000
    assert store.pools[ACCOUNT].available == -1_000
    assert not finish(store.check())

    finish(store.exchange(first, [event(1, 1_000)], [report(1_000)]))
    finish(store.exchange(second, [event(1, 300)], [report(300, sync=True)]))
    assert [t.amount for t in store.transfers if t.code == 12] == [300]
    pool = store.pools[ACCOUNT]
    assert (pool.funded, pool.spent, pool.available, pool.overgranted) == (1_300, 1_300, 0, 0)
    assert not finish(store.check())


def test_what_a_dead_holder_still_has_is_noticed(store: MemoryStore, session: Session) -> None:
    lease(store, session, 600)
    store.holder_rows[session.holder_id].state = HolderState.RECLAIMED
    assert [violation.check for violation in finish(store.check())] == ["C7"]


async def test_hints_are_heard_from_when_one_listens(autojump_clock: MockClock) -> None:
    store = await funded_store(1_000)
    session = await store.open_session(await store.register_holder(JOURNAL_ID, "n"), JOURNAL_ID)
    other = await store.open_session(await store.register_holder(b"o" * 16, "o"), b"o" * 16)
    await store.grant_lease(session, [Ask(POOL, 1_000, 1_000)])
    heard, receiver = trio.open_memory_channel[Hint](9)

    async def listen() -> None:
        async for hint in store.hints():
            await heard.send(hint)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(listen)
        await wait_all_tasks_blocked()
        await store.grant_lease(other, [Ask(POOL, 1, 1)])
        await top_up(store, 5, "more")
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert receiver.receive_nowait() == RecallHint(POOL)
    assert receiver.receive_nowait() == CreditHint(ACCOUNT)
    await top_up(store, 5, "nobody listens any more")
