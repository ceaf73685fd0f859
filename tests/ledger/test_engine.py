"""The engine: who gets credit, what a settlement does, what survives lost messages."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import msgspec
import pytest

from ledger.engine import Engine, EngineSettings
from ledger.errors import (
    AccountSuspended,
    InsufficientCredit,
    LedgerDivergence,
    LedgerError,
    LedgerUnavailable,
    RateLimited,
    ReservationClosed,
)
from ledger.limits import LimitRef
from ledger.memory import MemoryStore
from ledger.messages import OpenReservation
from ledger.money import AMOUNT_MAX
from ledger.pool import Sizing
from ledger.reservation import Hold, Waiter
from ledger.store import Ask, EventStatus, PoolId, PoolReport, PoolStatus, UsageEvent
from tests.fakes.holder import JOURNAL_ID, WORKER, Holder, Lost, finish, in_vain, posted_balance
from tests.fakes.ledger import ACCOUNT, BUDGET, funded_store, request, top_up

BALANCE = 1_000
SECOND = ACCOUNT + 1
SLOT = LimitRef("key", "concurrent", 1)


@pytest.fixture
def store() -> MemoryStore:
    return finish(funded_store(BALANCE))


@pytest.fixture
def holder(store: MemoryStore) -> Holder:
    return Holder(store)


def events(store: MemoryStore) -> list[UsageEvent]:
    return [event for _, event in store.events]


def settled_up(holder: Holder) -> None:
    """Everything posted, everything given back, and the books in order."""
    holder.engine.check()
    holder.drain()
    assert not finish(holder.store.check())
    assert all(pool.leased == 0 for pool in holder.store.pools.values())


def refusal(holder: Holder, amount: int, pools: tuple[int, ...] = (ACCOUNT,)) -> LedgerError:
    with pytest.raises(LedgerError) as caught:
        holder.hold(request(amount, pools=pools))
    return caught.value


# -- reserving and settling -----------------------------------------------------------------------


def test_the_first_reservation_waits_for_a_grant_and_the_rest_is_charged(holder: Holder) -> None:
    waiter = holder.reserve(request(100))
    assert isinstance(waiter, Waiter)
    assert holder.grant() == [waiter]
    hold = waiter.outcome
    assert isinstance(hold, Hold)
    holder.settle(hold, 60)
    assert posted_balance(holder.engine, ACCOUNT) == BALANCE - 60
    assert isinstance(holder.reserve(request(40)), Hold)  # what was not used is free again


@pytest.mark.parametrize(
    ("reserved", "charge", "covered", "short"),
    [(100, 0, 0, 0), (100, 100, 100, 0), (100, 150, 150, 0), (100, 950, 250, 700)],
)
def test_a_charge_takes_the_reservation_then_free_credit_and_the_rest_is_short(
    store: MemoryStore, reserved: int, charge: int, covered: int, short: int
) -> None:
    holder = Holder(store, settings=EngineSettings(sizing=Sizing(lease_max=0)))
    first = holder.hold(request(150))
    hold = holder.hold(request(reserved))
    holder.void(first)  # leaves 150 free
    holder.settle(hold, charge)
    holder.exchange()
    assert (events(store)[0].covered, events(store)[0].short) == ((covered,), (short,))
    settled_up(holder)
    assert store.pools[ACCOUNT].available == BALANCE - charge


def test_what_nobody_has_is_the_operators_loss(holder: Holder, store: MemoryStore) -> None:
    hold = holder.hold(request(BALANCE))
    holder.settle(hold, BALANCE + 300)
    settled_up(holder)
    assert store.pools[ACCOUNT].available == 0
    assert [t.amount for t in store.transfers if t.code == 40] == [300]
    assert holder.engine.statistics(holder.now).overrun_nusd == 300


def test_a_second_settlement_changes_nothing(holder: Holder, store: MemoryStore) -> None:
    hold = holder.hold(request(100))
    holder.settle(hold, 60)
    holder.settle(hold, 99)
    holder.void(hold)
    settled_up(holder)
    assert [event.charge for event in events(store)] == [60]


def test_a_settlement_after_void_is_refused_and_counted(holder: Holder) -> None:
    hold = holder.hold(request(100))
    holder.void(hold)
    with pytest.raises(ReservationClosed):
        holder.settle(hold, 60)
    with pytest.raises(ReservationClosed):
        holder.attempt(hold, 5)
    assert holder.engine.statistics(holder.now).refused_settlements == 2
    settled_up(holder)


def test_every_contacted_provider_leaves_one_event(holder: Holder, store: MemoryStore) -> None:
    hold = holder.hold(request(100))
    holder.attempt(hold, 4)
    holder.attempt(hold, 0)
    holder.settle(hold, 60)
    failed = holder.hold(request(100))
    holder.void(failed, EventStatus.FAILED, cost=7)
    never_sent = holder.hold(request(100))
    holder.void(never_sent)
    settled_up(holder)
    assert [(e.status, e.charge, e.cost) for e in events(store)] == [
        (EventStatus.FAILED, 0, 4),
        (EventStatus.FAILED, 0, 0),
        (EventStatus.SETTLED, 60, 60),
        (EventStatus.FAILED, 0, 7),
    ]
    assert sum(t.amount for t in store.transfers if t.code == 32) == 11


def test_a_repeated_attempt_leaves_one_event(holder: Holder) -> None:
    hold = holder.hold(request(100))
    for ordinal in (1, 1, 2, 1, 2):
        holder.engine.attempt(holder.now, hold, ordinal, in_vain(EventStatus.FAILED, 5))
    assert holder.engine.pending_events == 2


def test_a_free_request_needs_no_lease(store: MemoryStore) -> None:
    holder = Holder(store)
    hold = holder.reserve(request(0))
    assert isinstance(hold, Hold)
    holder.settle(hold, 0, EventStatus.FREE)
    settled_up(holder)
    assert events(store)[0].status == EventStatus.FREE


def test_extending_binds_more_of_the_lease(holder: Holder) -> None:
    hold = holder.hold(request(100))
    waiter = holder.extend(hold, 50)
    assert isinstance(waiter, Waiter)
    holder.grant()
    assert waiter.outcome is hold
    assert hold.amount == 150
    holder.settle(hold, 150)
    assert posted_balance(holder.engine, ACCOUNT) == BALANCE - 150
    assert holder.extend(hold, 1) is False
    settled_up(holder)


def test_an_extension_waits_no_longer_than_its_reservation(holder: Holder) -> None:
    hold = holder.hold(request(100))
    waiter = holder.extend(hold, 50)
    assert isinstance(waiter, Waiter)
    holder.settle(hold, 10)
    assert isinstance(waiter.outcome, LedgerUnavailable)
    assert not holder.engine.thirsty
    settled_up(holder)


# -- several pools --------------------------------------------------------------------------------


def test_a_budget_is_reserved_together_with_the_account(holder: Holder, store: MemoryStore) -> None:
    store.add_budget(BUDGET, ACCOUNT, 300)
    hold = holder.hold(request(200, pools=(ACCOUNT, BUDGET)))
    holder.settle(hold, 120)
    settled_up(holder)
    assert (store.pools[ACCOUNT].spent, store.pools[BUDGET].spent) == (120, 120)
    assert store.pools[BUDGET].available == 180


@pytest.mark.parametrize(
    ("amount", "limit", "kind"), [(400, 300, "budget"), (1_100, 3_000, "account")]
)
def test_a_refusal_names_the_pool_and_nothing_stays_held(
    holder: Holder, store: MemoryStore, amount: int, limit: int, kind: str
) -> None:
    store.add_budget(BUDGET, ACCOUNT, limit)
    error = refusal(holder, amount, (ACCOUNT, BUDGET))
    assert isinstance(error, InsufficientCredit)
    assert error.kind == kind
    assert error.required == amount
    assert error.available == (limit if kind == "budget" else BALANCE)
    assert holder.engine.statistics(holder.now).reserved_nusd == 0
    settled_up(holder)


def test_an_overrun_is_split_for_each_pool_by_itself(holder: Holder, store: MemoryStore) -> None:
    store.add_budget(BUDGET, ACCOUNT, 110)
    hold = holder.hold(request(100, pools=(ACCOUNT, BUDGET)))
    other = holder.hold(request(200))
    holder.void(other)
    holder.settle(hold, 150)
    settled_up(holder)
    assert events(store)[0].short[0] == 0
    assert events(store)[0].short[1] == 150 - events(store)[0].covered[1] > 0
    assert store.pools[BUDGET].spent == 150


# -- shortage -------------------------------------------------------------------------------------


def test_a_customer_can_spend_to_the_last_nano_dollar(holder: Holder, store: MemoryStore) -> None:
    for _ in range(BALANCE // 10):
        hold = holder.hold(request(10))
        holder.settle(hold, 10)
        holder.now += 0.3
        holder.exchange()
    error = refusal(holder, 1)
    assert isinstance(error, InsufficientCredit)
    assert (error.balance, error.available, error.reserved) == (0, 0, 0)
    settled_up(holder)
    assert store.pools[ACCOUNT].spent == BALANCE


def test_an_exhausted_pool_is_not_asked_again_for_a_second(holder: Holder) -> None:
    assert isinstance(refusal(holder, 2_000), InsufficientCredit)
    with pytest.raises(InsufficientCredit):
        holder.reserve(request(2_000))  # at once, without asking
    assert isinstance(holder.reserve(request(300)), Waiter)  # a smaller one may fit
    holder.grant()
    holder.now += 1
    assert isinstance(holder.reserve(request(2_000)), Waiter)


def test_a_top_up_clears_the_memory_of_exhaustion(holder: Holder, store: MemoryStore) -> None:
    refusal(holder, 2_000)
    finish(top_up(store, 5_000, "more"))
    holder.engine.credit_hint(ACCOUNT)
    assert holder.hold(request(2_000)).amount == 2_000


def test_those_who_fit_are_served_although_others_are_refused(holder: Holder) -> None:
    large = holder.reserve(request(900))
    small = holder.reserve(request(100))
    middle = holder.reserve(request(300))
    assert isinstance(large, Waiter)
    assert isinstance(small, Waiter)
    assert isinstance(middle, Waiter)
    for _ in range(3):
        holder.grant()
    assert isinstance(small.outcome, Hold)
    assert isinstance(middle.outcome, Hold)
    assert isinstance(large.outcome, InsufficientCredit)
    assert large.outcome.required == 900


def test_an_unknown_account_has_no_credit(holder: Holder) -> None:
    waiter = holder.reserve(request(10, account=99))
    assert isinstance(waiter, Waiter)
    asks, _ = holder.engine.lanes.next_asks(holder.now)
    holder.granted(asks, [])
    assert isinstance(waiter.outcome, InsufficientCredit)
    assert waiter.outcome.balance == 0


def test_a_suspended_account_gets_nothing_and_gives_its_credit_back(
    holder: Holder, store: MemoryStore
) -> None:
    running = holder.hold(request(100))
    holder.exchange()
    store.pools[ACCOUNT].status = PoolStatus.SUSPENDED
    holder.settle(running, 50)
    holder.exchange()  # brings the news
    holder.exchange()  # gives the credit back
    assert isinstance(refusal(holder, 10), AccountSuspended)
    assert store.pools[ACCOUNT].leased == 0
    store.pools[ACCOUNT].status = PoolStatus.OPEN
    holder.now += 1.1
    holder.void(holder.hold(request(10)))
    settled_up(holder)


def test_free_credit_of_a_suspended_account_is_not_spent(
    holder: Holder, store: MemoryStore
) -> None:
    running = holder.hold(request(50))
    holder.void(holder.hold(request(100)))
    store.pools[ACCOUNT].status = PoolStatus.SUSPENDED
    holder.settle(running, 50)
    holder.exchange()  # brings the news
    pool = holder.engine.book.find_pool(ACCOUNT)
    assert pool is not None
    assert pool.free >= 10
    with pytest.raises(AccountSuspended):
        holder.reserve(request(10))


def test_a_node_leases_no_more_than_its_exposure() -> None:
    store = finish(funded_store(10**6))
    holder = Holder(store, settings=EngineSettings(exposure_max=1_000))
    holder.hold(request(900))
    assert isinstance(refusal(holder, 200), LedgerUnavailable)
    assert store.pools[ACCOUNT].leased <= 1_000


def test_the_last_of_the_exposure_is_for_who_has_little() -> None:
    store = finish(funded_store(10**6))
    finish(top_up(store, 10**6, "second", account=SECOND, new=True))
    holder = Holder(store, settings=EngineSettings(exposure_max=1_000))
    assert isinstance(refusal(holder, 901), LedgerUnavailable)
    holder.hold(request(900))
    assert isinstance(refusal(holder, 1), LedgerUnavailable)
    for _ in range(10):
        holder.hold(request(1, account=SECOND))
    assert isinstance(holder.reserve(request(1, account=SECOND)), Waiter)
    (waiter,) = holder.grant()
    assert isinstance(waiter.outcome, LedgerUnavailable)
    assert store.pools[ACCOUNT].leased + store.pools[SECOND].leased <= 1_000


def test_what_others_lease_without_need_makes_room() -> None:
    store = finish(funded_store(10**6))
    finish(top_up(store, 10**6, "second", account=SECOND, new=True))
    holder = Holder(store, settings=EngineSettings(exposure_max=1_000))
    holder.void(holder.hold(request(600)))  # what was leased for it is kept for a while
    waiter = holder.reserve(request(600, account=SECOND))
    assert holder.grant() == []
    assert holder.engine.lanes.exchange_wanted
    holder.exchange()
    assert holder.grant() == [waiter]
    assert isinstance(waiter, Waiter)
    assert isinstance(waiter.outcome, Hold)
    assert store.pools[ACCOUNT].leased == 0
    third = holder.reserve(request(600))
    assert holder.grant() == []  # perhaps somebody gives back …
    holder.now += 0.4
    assert holder.grant() == [third]  # … but not for ever
    assert isinstance(third, Waiter)
    assert isinstance(third.outcome, LedgerUnavailable)


def test_who_has_too_little_is_told_so_although_the_node_has_no_more_to_lease() -> None:
    store = finish(funded_store(10**6))
    finish(top_up(store, 500, "second", account=SECOND, new=True))
    holder = Holder(store, settings=EngineSettings(exposure_max=1_000))
    holder.hold(request(900))
    assert isinstance(holder.reserve(request(600, account=SECOND)), Waiter)
    (waiter,) = holder.grant()
    assert isinstance(waiter.outcome, InsufficientCredit)
    assert waiter.outcome.available == 500


def test_wishes_of_many_are_no_more_than_the_store_can_read() -> None:
    holder = Holder(finish(funded_store(1_000)))
    for number in range(3):
        wish = request(AMOUNT_MAX, pools=(ACCOUNT, BUDGET))
        assert isinstance(holder.engine.reserve(holder.now, 100 + number, wish), Waiter)
    asks, _ = holder.engine.lanes.next_asks(holder.now)
    assert {ask.pool_id: ask.want for ask in asks} == {ACCOUNT: 0, BUDGET: AMOUNT_MAX}


def test_credit_recalled_by_another_holder_goes_back(holder: Holder, store: MemoryStore) -> None:
    holder.void(holder.hold(request(600)))
    other = finish(store.register_holder(b"o" * 16, "other"))
    session = finish(store.open_session(other, b"o" * 16))
    (reply,) = finish(store.grant_lease(session, [Ask(PoolId(ACCOUNT), 900, 900)]))
    assert (reply.granted, reply.recalled) == (0, 1)
    for _ in range(2):
        holder.now += 5
        holder.exchange()
    (reply,) = finish(store.grant_lease(session, [Ask(PoolId(ACCOUNT), 900, 900)]))
    assert reply.granted == 900


def test_a_customer_is_not_refused_while_another_holder_gives_back(
    holder: Holder, store: MemoryStore
) -> None:
    other = finish(store.register_holder(b"o" * 16, "other"))
    session = finish(store.open_session(other, b"o" * 16))
    finish(store.grant_lease(session, [Ask(PoolId(ACCOUNT), 800, 800)]))
    waiter = holder.reserve(request(900))
    assert isinstance(waiter, Waiter)
    assert holder.grant() == []  # what the other one does not use is recalled
    finish(store.exchange(session, [], [PoolReport(PoolId(ACCOUNT), 0, 0, True, 0, 0, 0, 0)]))
    assert holder.grant() == []  # not before its time
    holder.now += 0.02
    assert holder.grant() == [waiter]
    assert isinstance(waiter.outcome, Hold)


def test_who_waits_gives_back_what_is_recalled_even_so(holder: Holder, store: MemoryStore) -> None:
    holder.void(holder.hold(request(400)))
    other = finish(store.register_holder(b"o" * 16, "other"))
    session = finish(store.open_session(other, b"o" * 16))
    finish(store.grant_lease(session, [Ask(PoolId(ACCOUNT), 500, 500)]))
    assert isinstance(holder.reserve(request(800)), Waiter)
    holder.grant()  # waits for what the other one has
    finish(store.grant_lease(session, [Ask(PoolId(ACCOUNT), 900, 900)]))  # which waits for ours
    for _ in range(2):
        holder.now += 5
        holder.exchange()
    assert store.leases[ACCOUNT, holder.holder_id].outstanding == 0


def test_who_waits_for_several_pools_at_once_stays_within_the_exposure() -> None:
    store = finish(funded_store(10**6))
    finish(top_up(store, 10**6, "second", account=SECOND, new=True))
    holder = Holder(store, settings=EngineSettings(exposure_max=1_000))
    waiters = [holder.reserve(request(600, account=account)) for account in (ACCOUNT, SECOND)]
    holder.grant()
    holder.now += 0.4  # nobody has given anything back
    holder.grant()
    outcomes = [waiter.outcome for waiter in waiters if isinstance(waiter, Waiter)]
    assert [type(outcome) for outcome in outcomes] == [Hold, LedgerUnavailable]


# -- how much is leased ---------------------------------------------------------------------------


def test_an_active_pool_is_filled_ahead_of_need() -> None:
    store = finish(funded_store(10**9))
    holder = Holder(store)
    for _ in range(100):
        outcome = holder.hold(request(1_000))
        holder.settle(outcome, 1_000)
        holder.now += 0.25
        holder.exchange()
    # 4,000 a second: at least half of 15 s of it, at most twice of it plus a reservation.
    leased = store.pools[ACCOUNT].leased
    assert 15_000 <= leased <= 140_000
    for _ in range(8):
        holder.now += 5
        holder.exchange()
    assert store.pools[ACCOUNT].leased == 0


def test_a_lease_never_aims_above_its_maximum() -> None:
    store = finish(funded_store(10**12))
    sizing = Sizing(lease_max=5_000)
    holder = Holder(store, settings=EngineSettings(sizing=sizing))
    for _ in range(20):
        holder.settle(holder.hold(request(4_000)), 4_000)
        holder.now += 0.25
        holder.exchange()
    assert store.pools[ACCOUNT].leased <= 10_000


def test_unused_pools_are_forgotten(holder: Holder) -> None:
    holder.settle(holder.hold(request(10)), 10)
    for _ in range(3):
        holder.now += 1_000
        holder.exchange()
    assert holder.engine.statistics(holder.now).pools == 0


def test_a_long_request_keeps_its_pool(holder: Holder, store: MemoryStore) -> None:
    hold = holder.hold(request(100))
    for _ in range(250):
        holder.now += 5
        holder.exchange()
    holder.settle(hold, 60)
    settled_up(holder)
    assert store.pools[ACCOUNT].spent == 60


# -- admission ------------------------------------------------------------------------------------


def test_limits_are_consumed_only_by_what_is_admitted(holder: Holder) -> None:
    slot = LimitRef("key", "concurrent", 1)
    with pytest.raises(InsufficientCredit):
        holder.hold(request(2_000, limits=(slot,)))
    with pytest.raises(InsufficientCredit):
        holder.hold(request(2_000, limits=(slot,)))  # from the negative cache
    hold = holder.hold(request(100, limits=(slot,)))
    with pytest.raises(RateLimited) as caught:
        holder.reserve(request(1, limits=(slot,)))
    assert caught.value.limit == slot
    holder.settle(hold, 1)
    assert holder.hold(request(1, limits=(slot,))).amount == 1


def test_an_implausible_count_of_tokens_is_no_debt(holder: Holder) -> None:
    minute = LimitRef("key", "tpm", 100)
    hold = holder.hold(request(10, tokens=10, limits=(minute,)))
    holder.settle(hold, 5_000, EventStatus.REVIEW)
    assert holder.hold(request(10, tokens=90, limits=(minute,))).open


def test_a_lease_is_spent_without_the_store_until_it_is_too_old(holder: Holder) -> None:
    holder.void(holder.hold(request(500)))
    holder.engine.lanes.session_lost(holder.now)
    holder.now += 299
    running = holder.reserve(request(10))
    assert isinstance(running, Hold)
    with pytest.raises(LedgerUnavailable):
        holder.reserve(request(900))  # the lease is not enough, and nobody can be asked
    holder.now += 2
    with pytest.raises(LedgerUnavailable):
        holder.reserve(request(10))
    holder.settle(running, 5)  # settling always works
    holder.reopen()
    holder.void(holder.hold(request(10)))
    settled_up(holder)


def test_before_the_first_session_callers_wait_a_moment(store: MemoryStore) -> None:
    holder = Holder(store, open_=False)
    waiter = holder.reserve(request(100))
    assert isinstance(waiter, Waiter)
    holder.now += 0.5
    with pytest.raises(LedgerUnavailable):
        holder.reserve(request(100))
    holder.open()
    assert holder.grant() == [waiter]


def test_a_woken_machine_admits_nothing_on_its_old_lease(holder: Holder) -> None:
    holder.void(holder.hold(request(500)))
    holder.now += 3_600
    with pytest.raises(LedgerUnavailable):
        holder.reserve(request(10))
    holder.engine.lanes.session_lost(holder.now)
    with pytest.raises(LedgerUnavailable):
        holder.reserve(request(10))


@pytest.mark.parametrize("how", ["draining", "events", "waiters", "halted"])
def test_admission_ends_when(how: str, store: MemoryStore) -> None:
    settings = EngineSettings(events_max=1, waiters_max=1)
    holder = Holder(store, settings=settings)
    hold = holder.hold(request(100))
    amount = 1
    match how:
        case "draining":
            holder.engine.drain()
        case "events":
            holder.settle(hold, 50)
        case "waiters":
            amount = 900
            holder.reserve(request(amount))
        case _:
            holder.engine.book.halted = "for a test"
    with pytest.raises(LedgerUnavailable):
        holder.reserve(request(amount))


def test_a_caller_who_leaves_holds_nothing(holder: Holder) -> None:
    slot = LimitRef("key", "concurrent", 1)
    for granted in (False, True):
        waiter = holder.reserve(request(100, limits=(slot,)))
        assert isinstance(waiter, Waiter)
        if granted:
            holder.grant()
        holder.cancel(waiter)
        holder.write()
        statistics = holder.engine.statistics(holder.now)
        assert (statistics.waiting, statistics.open_reservations) == (0, 0)
    assert not holder.journal.open
    assert holder.hold(request(100, limits=(slot,))).amount == 100


def test_what_could_not_be_journalled_never_was(holder: Holder) -> None:
    slot = LimitRef("key", "concurrent", 1)
    holder.void(holder.hold(request(500)))
    hold = holder.engine.reserve(holder.now, 1, request(100, limits=(slot,)))
    assert isinstance(hold, Hold)
    holder.engine.take_records()
    holder.engine.undo(holder.now, hold)
    assert not holder.engine.take_records()
    holder.engine.void(holder.now, hold, None)
    assert not holder.engine.take_records()
    waiter = holder.engine.reserve(holder.now, 1, request(700, limits=(slot,)))
    assert isinstance(waiter, Waiter)
    asks, _ = holder.engine.lanes.next_asks(holder.now)
    decided = holder.granted(asks, holder.ask(asks))
    holder.engine.take_records()
    holder.engine.revoke(holder.now, decided, "the disk is full")
    assert isinstance(waiter.outcome, LedgerUnavailable)
    assert not holder.engine.take_records()
    assert holder.hold(request(100, limits=(slot,))).amount == 100
    assert holder.engine.statistics(holder.now).reserved_nusd == 100


def test_an_extension_that_could_not_be_journalled_never_was(holder: Holder) -> None:
    hold = holder.hold(request(100))
    waiter = holder.extend(hold, 50)
    assert isinstance(waiter, Waiter)
    asks, _ = holder.engine.lanes.next_asks(holder.now)
    decided = holder.granted(asks, holder.ask(asks))
    holder.engine.take_records()
    holder.engine.revoke(holder.now, decided, "the disk is full")
    assert hold.amount == 100
    holder.engine.check()
    holder.void(hold)
    settled_up(holder)


# -- workers --------------------------------------------------------------------------------------


def restarted(holder: Holder, *, alive: Sequence[int]) -> Engine:
    """The ledger died and came back, and these workers outlived it."""
    holder.engine = Engine(holder.journal.copy(), now=holder.now, occurred_at=1, alive=alive)
    holder.write()
    holder.open()
    return holder.engine


def attest(holder: Holder, *holds: Hold, limits: tuple[LimitRef, ...] = ()) -> None:
    """The worker introduces itself, with what it still has."""
    known = [OpenReservation(hold.id, limits, hold.request.tokens) for hold in holds]
    holder.engine.attest(holder.now, WORKER, known, 1)
    holder.write()


@pytest.mark.parametrize("limits", [(), (SLOT,)])
def test_a_worker_keeps_what_it_knows_and_the_rest_is_voided(
    holder: Holder, store: MemoryStore, limits: tuple[LimitRef, ...]
) -> None:
    known = holder.hold(request(100, limits=limits))
    holder.hold(request(200))  # its worker has forgotten it
    attest(holder, known, limits=limits)
    assert list(holder.engine.book.open) == [known.id]
    holder.settle(known, 60)
    settled_up(holder)
    assert [(e.status, e.charge) for e in events(store)] == [
        (EventStatus.ORPHANED, 0),
        (EventStatus.SETTLED, 60),
    ]


def test_what_a_living_worker_has_open_survives_a_restart(
    holder: Holder, store: MemoryStore
) -> None:
    hold = holder.hold(request(100))
    holder.extend(hold, 50)
    holder.grant()
    holder.attempt(hold, 5)
    engine = restarted(holder, alive=[WORKER])
    again = engine.find(hold.id)
    assert again is not None
    assert again.amount == 150
    engine.attempt(holder.now, again, 1, in_vain(EventStatus.FAILED, 5))  # said again
    holder.settle(again, 150)
    settled_up(holder)
    assert [(e.cost, e.charge) for e in events(store)] == [(5, 0), (150, 150)]


def test_after_a_restart_open_requests_have_their_slots_again_and_once(holder: Holder) -> None:
    hold = holder.hold(request(100, limits=(SLOT,)))
    engine = restarted(holder, alive=[WORKER])
    attest(holder, hold, limits=(SLOT,))
    attest(holder, hold, limits=(SLOT,))  # the link broke
    with pytest.raises(RateLimited):
        holder.reserve(request(1, limits=(SLOT,)))
    again = engine.find(hold.id)
    assert again is not None
    holder.settle(again, 10)
    assert holder.hold(request(1, limits=(SLOT,))).open


def test_a_worker_that_ends_leaves_nothing_bound(holder: Holder) -> None:
    hold = holder.hold(request(100, limits=(SLOT,)))
    waiter = holder.extend(hold, 50)
    assert isinstance(waiter, Waiter)
    assert waiter in holder.engine.worker_gone(holder.now, WORKER, 1)
    assert not holder.engine.thirsty
    assert not hold.open
    settled_up(holder)


# -- lost messages and restarts -------------------------------------------------------------------


def test_free_credit_that_the_store_does_not_know_of_is_simply_gone(
    holder: Holder, store: MemoryStore
) -> None:
    bound = holder.hold(request(100))
    holder.void(holder.hold(request(200)))
    store.leases[ACCOUNT, holder.holder_id].outstanding = 100
    store.pools[ACCOUNT].leased = 100
    store.pools[ACCOUNT].available = BALANCE - 100
    holder.reopen()
    assert isinstance(holder.reserve(request(1)), Waiter)
    holder.grant()
    assert bound.open


def test_what_the_store_has_applied_is_not_attested_again(holder: Holder) -> None:
    holder.settle(holder.hold(request(100)), 100)
    running = holder.hold(request(50))
    exchange = holder.next_exchange()
    assert exchange is not None
    holder.send(exchange)  # the answer is lost, and the store fails over
    session = finish(holder.store.open_session(holder.holder_id, JOURNAL_ID))
    lanes = holder.engine.lanes
    assert lanes.missing(session) == {}
    without = dataclasses.replace(session, leases={})
    assert lanes.missing(without) == {ACCOUNT: running.amount}


def test_a_lease_is_valid_from_the_question_on_not_from_the_answer(holder: Holder) -> None:
    holder.void(holder.hold(request(500)))
    holder.now += 5
    sent_at, exchange = holder.now, holder.next_exchange()
    assert exchange is not None
    holder.now += 10  # the answer takes its time
    holder.engine.lanes.exchanged(holder.now, sent_at, holder.send(exchange))
    assert holder.engine.lanes.valid_until == sent_at + 300


@pytest.mark.parametrize("lost", ["request", "reply"])
def test_a_lost_exchange_charges_once(holder: Holder, store: MemoryStore, lost: Lost) -> None:
    hold = holder.hold(request(100))
    holder.settle(hold, 60)
    holder.exchange(lost)
    holder.engine.check()
    assert posted_balance(holder.engine, ACCOUNT) == BALANCE - 60
    settled_up(holder)
    assert [event.charge for event in events(store)] == [60]


@pytest.mark.parametrize("lost", ["request", "reply"])
def test_a_lost_grant_is_not_lost_credit(holder: Holder, store: MemoryStore, lost: Lost) -> None:
    waiter = holder.reserve(request(100))
    assert isinstance(waiter, Waiter)
    assert holder.grant(lost) == []
    assert holder.grant() == [waiter]
    assert isinstance(waiter.outcome, Hold)
    holder.void(waiter.outcome)
    settled_up(holder)
    assert store.pools[ACCOUNT].available == BALANCE


def test_work_goes_on_while_an_exchange_is_under_way(holder: Holder, store: MemoryStore) -> None:
    first, second = holder.hold(request(100)), holder.hold(request(100))
    holder.settle(first, 60)
    exchange = holder.next_exchange()
    assert exchange is not None
    replies = holder.send(exchange)
    holder.settle(second, 120)
    third = holder.reserve(request(10))
    holder.acknowledge(replies)
    holder.engine.check()
    assert posted_balance(holder.engine, ACCOUNT) == BALANCE - 180
    if isinstance(third, Hold):
        holder.void(third)
    settled_up(holder)


def test_a_posting_and_a_grant_of_one_pool_may_cross(holder: Holder, store: MemoryStore) -> None:
    holder.settle(holder.hold(request(100)), 100)
    waiter = holder.reserve(request(200))
    assert isinstance(waiter, Waiter)
    asks, _ = holder.engine.lanes.next_asks(holder.now)
    exchange = holder.next_exchange()
    assert exchange is not None
    assert [report.sync for report in exchange.reports] == [False]
    granted, posted = holder.ask(asks), holder.send(exchange)
    holder.acknowledge(posted)
    holder.granted(asks, granted)
    holder.write()
    assert isinstance(waiter.outcome, Hold)
    assert posted_balance(holder.engine, ACCOUNT) == BALANCE - 100
    holder.settle(waiter.outcome, 200)
    assert posted_balance(holder.engine, ACCOUNT) == BALANCE - 300
    settled_up(holder)


def test_a_restart_voids_what_was_open_and_posts_what_was_settled(
    holder: Holder, store: MemoryStore
) -> None:
    holder.settle(holder.hold(request(100)), 60)
    lost = holder.hold(request(200))
    assert holder.extend(lost, 0) is True
    holder.restart()
    holder.engine.check()
    assert holder.engine.open_reservations == 0
    assert not holder.journal.open  # so a second restart does not void it again
    settled_up(holder)
    assert [(e.status, e.charge, e.reserved) for e in events(store)] == [
        (EventStatus.SETTLED, 60, 100),
        (EventStatus.ORPHANED, 0, 200),
    ]
    assert store.pools[ACCOUNT].available == BALANCE - 60


def test_a_store_ahead_of_the_journal_is_followed(holder: Holder, store: MemoryStore) -> None:
    before = holder.journal.copy()
    holder.settle(holder.hold(request(100)), 60)
    holder.exchange()
    holder.journal = before  # the disk forgot
    holder.restart()
    holder.settle(holder.hold(request(100)), 30)
    settled_up(holder)
    assert [event.charge for event in events(store)] == [60, 30]


# -- disagreement and poison ----------------------------------------------------------------------


def test_a_store_that_forgot_acknowledged_events_ends_admission(
    holder: Holder, store: MemoryStore
) -> None:
    holder.settle(holder.hold(request(100)), 60)
    holder.exchange()
    store.holder_rows[holder.holder_id].applied_seq = 0
    with pytest.raises(LedgerDivergence):
        holder.reopen()
    with pytest.raises(LedgerUnavailable, match="the books disagree"):
        holder.reserve(request(1))


@pytest.mark.parametrize("wrong", ["outstanding", "spent_total", "missing"])
def test_an_answer_that_does_not_add_up_ends_admission(holder: Holder, wrong: str) -> None:
    for _ in range(2):
        holder.settle(holder.hold(request(100)), 60)
        exchange = holder.next_exchange()
        assert exchange is not None
        replies = holder.send(exchange)
        if exchange.first_seq == 1:
            holder.acknowledge(replies)
    if wrong == "missing":
        replies = []
    else:
        replies = [
            msgspec.structs.replace(reply, **{wrong: getattr(reply, wrong) + 1})
            for reply in replies
        ]
    with pytest.raises(LedgerDivergence):
        holder.acknowledge(replies)
    assert holder.engine.book.halted


def test_a_lease_smaller_than_what_is_bound_ends_admission(
    holder: Holder, store: MemoryStore
) -> None:
    holder.hold(request(100))
    store.leases[ACCOUNT, holder.holder_id].outstanding = 50
    with pytest.raises(LedgerDivergence):
        holder.reopen()


@pytest.mark.parametrize("bad", [1, 2, 4, 9])
def test_one_bad_event_is_found_and_put_aside(holder: Holder, store: MemoryStore, bad: int) -> None:
    for _ in range(9):
        holder.settle(holder.hold(request(20)), 10)
    refusals = 0
    while holder.engine.pending_events:
        exchange = holder.next_exchange()
        assert exchange is not None
        if all(event.seq != bad for event in exchange.events):
            holder.acknowledge(holder.send(exchange))
            continue
        refusals += 1
        assert refusals <= 10
        event = holder.engine.lanes.refused("22P02")
        if event is not None:
            assert event.seq == bad
            assert holder.session is not None
            finish(store.quarantine(holder.session, event, "bad"))
            holder.engine.lanes.quarantined(event)
            holder.engine.check()
        holder.reopen()
    assert list(store.quarantine_rows) == [(holder.holder_id, bad)]
    settled_up(holder)
    assert [event.seq for event in events(store)] == list(range(1, 10))
    assert store.pools[ACCOUNT].spent == 80
    assert posted_balance(holder.engine, ACCOUNT) == BALANCE - 80
    assert holder.engine.statistics(holder.now + 1).oldest_event_seconds == 0


def test_a_single_refusal_blames_nobody(holder: Holder) -> None:
    holder.settle(holder.hold(request(20)), 10)
    assert holder.next_exchange()
    assert holder.engine.lanes.refused("22P02") is None
    holder.reopen()
    assert holder.exchange()
    settled_up(holder)


def test_a_violated_constraint_is_a_disagreement(holder: Holder) -> None:
    holder.settle(holder.hold(request(20)), 10)
    assert holder.next_exchange()
    with pytest.raises(LedgerDivergence):
        holder.engine.lanes.refused("23514")


def test_a_report_refused_without_events_is_a_disagreement(holder: Holder) -> None:
    for attempt in range(2):
        holder.now += 5
        assert holder.next_exchange()
        if attempt:
            with pytest.raises(LedgerDivergence):
                holder.engine.lanes.refused("LE004")
        else:
            assert holder.engine.lanes.refused("LE004") is None
            holder.reopen()


def test_a_silent_holder_still_sends_heartbeats(holder: Holder) -> None:
    assert holder.exchange() is None
    holder.now += 5
    exchange = holder.exchange()
    assert exchange is not None
    assert not exchange.events


def test_what_is_not_bound_any_more_is_told_at_once(holder: Holder) -> None:
    hold = holder.hold(request(100))
    holder.exchange()
    while holder.exchange() is not None:  # until there is nothing to tell: no news, no surplus
        pass
    holder.void(hold)
    exchange = holder.exchange()
    assert exchange is not None, "others may ask it back, once the store knows"
    (report,) = exchange.reports
    assert (report.pool_id, report.pending, report.covered) == (ACCOUNT, 0, 0)


# -- details that only show when they are wrong ----------------------------------------------------


def test_a_pool_is_asked_for_once_at_a_time(holder: Holder) -> None:
    holder.reserve(request(100))
    first, _ = holder.engine.lanes.next_asks(holder.now)
    again, _ = holder.engine.lanes.next_asks(holder.now)
    assert (len(first), again) == (1, [])


def test_who_comes_after_the_question_is_not_refused_by_its_answer(holder: Holder) -> None:
    large = holder.reserve(request(2_000))
    asks, _ = holder.engine.lanes.next_asks(holder.now)
    small = holder.reserve(request(10))
    decided = holder.granted(asks, holder.ask(asks))
    assert decided == [large]
    assert holder.grant() == [small]


def test_what_is_wanted_ahead_stays_within_the_exposure() -> None:
    store = finish(funded_store(10**6))
    holder = Holder(store, settings=EngineSettings(exposure_max=500))
    holder.hold(request(300))
    holder.hold(request(150))
    assert store.pools[ACCOUNT].leased <= 500


def test_batches_are_whole_again_after_a_false_alarm(holder: Holder) -> None:
    for _ in range(4):
        holder.settle(holder.hold(request(10)), 10)
    for _ in range(2):
        assert holder.next_exchange()
        assert holder.engine.lanes.refused("22P02") is None
        holder.reopen()
    sizes = []
    for _ in range(4):
        holder.settle(holder.hold(request(10)), 10)
        exchange = holder.exchange()
        assert exchange is not None
        sizes.append(len(exchange.events))
    assert sizes == [2, 1, 1, 4]


def test_a_scarce_pool_keeps_nothing_for_later(holder: Holder, store: MemoryStore) -> None:
    holder.void(holder.hold(request(600)))
    holder.void(holder.hold(request(700)))  # the store has less than a comfortable answer
    holder.exchange()
    assert store.pools[ACCOUNT].leased == 0


def test_a_store_that_grants_to_nobody_is_not_the_customers_fault(
    holder: Holder, store: MemoryStore
) -> None:
    store.grants_enabled = False  # after a failover, until every holder has reported
    assert isinstance(refusal(holder, 10), LedgerUnavailable)
    store.grants_enabled = True
    assert holder.hold(request(10)).amount == 10
