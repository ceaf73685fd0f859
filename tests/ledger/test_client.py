"""Client, server, journal and store together, on virtual time."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

import pytest
import trio
from trio.testing import MockClock

from ledger import messages
from ledger.client import (
    InsufficientCredit,
    Ledger,
    LedgerUnavailable,
    Listener,
    Reservation,
    ReservationClosed,
    Settled,
    TokenCounts,
    bill,
)
from ledger.engine import EngineSettings
from ledger.errors import LedgerDivergence
from ledger.journal import JournalFailed, RecoveredState
from ledger.limits import LimitRef
from ledger.link import LocalLink
from ledger.memory import MemoryStore
from ledger.messages import Hello, Message, Reply, Reserve, Reserved, Void
from ledger.money import AMOUNT_MAX, Price, UnpricedUnit
from ledger.reservation import Settlement, reservation_id
from ledger.server import LedgerServer, LedgerSettings
from ledger.store import Ask, EventStatus, PoolGrant, Session
from tests.fakes.faulty_store import Fault, FaultyStore
from tests.fakes.holder import WORKER, posted_balance
from tests.fakes.journal import MemoryJournal
from tests.fakes.ledger import ACCOUNT, PRICE, PROVIDER, funded_store, output, request, top_up

BALANCE = 1_000_000


@dataclass
class Node:
    """One running lease holder and everything around it."""

    books: MemoryStore
    store: FaultyStore
    journal: MemoryJournal
    server: LedgerServer
    ledger: Ledger
    scope: trio.CancelScope


@contextlib.asynccontextmanager
async def running(
    books: MemoryStore,
    *,
    journal: MemoryJournal | None = None,
    recovered: RecoveredState | None = None,
    settings: LedgerSettings | None = None,
    away: bool = False,
) -> AsyncIterator[Node]:
    """A node until the block ends; it is then cancelled, as a worker that stops would be."""
    store = FaultyStore(books)
    store.away = away
    journal = journal or MemoryJournal()
    server = LedgerServer(
        store,
        journal,
        recovered or RecoveredState(),
        settings=settings,
        clock=trio.current_time,
        wall_clock=lambda: 1_000_000,
        jitter=lambda: 1.0,
    )
    async with trio.open_nursery() as services:
        await services.start(server.run)
        yield Node(
            books, store, journal, server, Ledger([LocalLink(server)]), services.cancel_scope
        )
        services.cancel_scope.cancel()


def settle(reservation: Reservation, charge: int) -> Settled:
    return reservation.settle(
        price=PRICE,
        provider_id=PROVIDER,
        quantities={"output": charge},
        tokens=output(charge),
        status=EventStatus.SETTLED,
        ttfb_ms=1,
        duration_ms=2,
    )


async def in_order(books: MemoryStore, charges: list[int]) -> None:
    """What was charged is on the books once, in order, and all credit is back."""
    assert [event.charge for _, event in books.events] == charges
    assert not await books.check()
    assert books.pools[ACCOUNT].leased == 0


# -- reserving and waiting ------------------------------------------------------------------------


async def test_the_first_request_waits_for_a_grant_the_next_does_not(
    autojump_clock: MockClock,
) -> None:
    books = await funded_store(BALANCE)
    async with running(books) as node:
        started = trio.current_time()
        first = await node.ledger.reserve(request(100))
        assert 0.002 <= trio.current_time() - started <= 0.01
        settle(first, 40)
        with trio.CancelScope() as scope:
            scope.cancel()  # a checkpoint would notice
            second = await node.ledger.reserve(request(50))
        assert not scope.cancelled_caught
        assert posted_balance(node.server.engine, ACCOUNT) == BALANCE - 40
        second.void()
    await in_order(books, [40])


async def test_those_who_wait_share_one_grant(autojump_clock: MockClock) -> None:
    books = await funded_store(BALANCE)
    async with running(books) as node:
        async with trio.open_nursery() as callers:
            for _ in range(20):
                callers.start_soon(_use, node.ledger, 100)
        assert node.store.calls.count("grant_lease") == 1
    await in_order(books, [100] * 20)


async def _use(ledger: Ledger, amount: int) -> None:
    settle(await ledger.reserve(request(amount)), amount)


async def test_a_grant_that_does_not_come_is_unavailable(autojump_clock: MockClock) -> None:
    books = await funded_store(BALANCE)
    async with running(books) as node:
        await trio.sleep(1)
        node.store.faults.append("hang")
        started = trio.current_time()
        with pytest.raises(LedgerUnavailable) as refusal:
            await node.ledger.reserve(request(100))
        assert trio.current_time() - started == pytest.approx(0.5)
        assert refusal.value.retry_after > 0
        statistics = node.server.statistics()
        assert (statistics.waiting, statistics.open_reservations) == (0, 0)
    await in_order(books, [])


@pytest.mark.parametrize("seconds", [0.0, 0.001, 0.002, 0.003, 0.004])
async def test_a_caller_cancelled_at_any_time_holds_nothing(
    seconds: float, autojump_clock: MockClock
) -> None:
    books = await funded_store(BALANCE)
    slot = LimitRef("key", "concurrent", 1)
    async with running(books) as node:
        await trio.sleep(1)
        with trio.move_on_after(seconds) as scope:
            reservation = await node.ledger.reserve(request(100, limits=(slot,)))
            reservation.void()
        assert seconds == 0.003 or scope.cancelled_caught == (seconds < 0.003)
        statistics = node.server.statistics()
        assert (statistics.waiting, statistics.open_reservations) == (0, 0)
        assert statistics.reserved_nusd == 0
        (await node.ledger.reserve(request(100, limits=(slot,)))).void()
    assert not node.journal.state.open
    await in_order(books, [])


async def test_a_caller_cancelled_just_as_it_is_granted_holds_nothing(
    autojump_clock: MockClock,
) -> None:
    books = await funded_store(BALANCE)
    async with running(books) as node:
        await trio.sleep(1)
        with trio.CancelScope() as scope:
            node.store.store = _CancellingStore(books, scope)
            await node.ledger.reserve(request(100))
        assert scope.cancelled_caught
        assert node.server.statistics().open_reservations == 0
        assert not node.journal.state.open
    await in_order(books, [])


class _CancellingStore(FaultyStore):
    """Cancels a scope right after it has granted."""

    def __init__(self, store: MemoryStore, scope: trio.CancelScope) -> None:
        super().__init__(store)
        self.delay = 0
        self.scope = scope

    async def grant_lease(self, session: Session, asks: Sequence[Ask]) -> list[PoolGrant]:
        replies = await super().grant_lease(session, asks)
        self.scope.cancel()
        return replies


async def test_402_says_what_would_have_fitted(autojump_clock: MockClock) -> None:
    books = await funded_store(100)
    async with running(books) as node:
        held = await node.ledger.reserve(request(30))
        with pytest.raises(InsufficientCredit) as refusal:
            await node.ledger.reserve(request(80))
        error = refusal.value
        assert (error.kind, error.balance, error.reserved) == ("account", 100, 30)
        assert (error.required, error.available) == (80, 70)
        fitting = await node.ledger.reserve(request(70))
        settle(fitting, 70)
        settle(held, 30)
        await top_up(books, 500, "more")
        node.ledger.credit_hint(ACCOUNT)
        settle(await node.ledger.reserve(request(80)), 80)
    await in_order(books, [70, 30, 80])


async def test_an_unknown_account_does_not_spoil_the_grant_of_others(
    autojump_clock: MockClock,
) -> None:
    books = await funded_store(BALANCE)

    async def refused(ledger: Ledger) -> None:
        with pytest.raises(InsufficientCredit):
            await ledger.reserve(request(10, account=99))

    async with running(books) as node:
        async with trio.open_nursery() as callers:
            callers.start_soon(refused, node.ledger)
            callers.start_soon(_use, node.ledger, 10)
        assert node.server.statistics().sessions == 1
    await in_order(books, [10])


async def test_an_extension_waits_for_its_grant(autojump_clock: MockClock) -> None:
    books = await funded_store(1_000)
    async with running(books) as node:
        reservation = await node.ledger.reserve(request(100))
        assert await reservation.extend(200)
        assert reservation.amount == 300
        assert not await reservation.extend(5_000)
        node.store.faults.append("hang")
        assert not await reservation.extend(600)
        settle(reservation, 250)
        assert not await reservation.extend(1)
    await in_order(books, [250])


# -- ending ---------------------------------------------------------------------------------------


async def test_an_extension_that_takes_too_long_is_not_made_later(
    autojump_clock: MockClock,
) -> None:
    books = await funded_store(BALANCE)
    async with running(books) as node:
        reservation = await node.ledger.reserve(request(100))
        node.store.delay = 1
        assert not await reservation.extend(50_000)
        await trio.sleep(5)
        assert node.server.statistics().reserved_nusd == reservation.amount == 100
        settle(reservation, 30)
    await in_order(books, [30])


async def test_failed_attempts_and_voids_leave_their_events(autojump_clock: MockClock) -> None:
    books = await funded_store(BALANCE)
    async with running(books) as node:
        reservation = await node.ledger.reserve(request(100))
        reservation.attempt(provider_id=PROVIDER, price_id=1, status=EventStatus.FAILED, cost=3)
        still_open = reservation.open
        settle(reservation, 50)
        assert (still_open, reservation.open) == (True, False)
        reservation.void()
        cut = await node.ledger.reserve(request(100))
        cut.void(status=EventStatus.CANCELLED, provider_id=PROVIDER, duration_ms=9)
        with pytest.raises(ReservationClosed):
            settle(cut, 1)
    await in_order(books, [0, 50, 0])
    assert [event.status for _, event in books.events] == [5, 1, 3]


async def test_a_unit_without_a_price_leaves_the_reservation_open(
    autojump_clock: MockClock,
) -> None:
    books = await funded_store(BALANCE)
    async with running(books) as node:
        reservation = await node.ledger.reserve(request(100))
        with pytest.raises(UnpricedUnit):
            reservation.settle(
                price=PRICE,
                provider_id=PROVIDER,
                quantities={"image": 1},
                tokens=TokenCounts(),
                status=EventStatus.SETTLED,
                ttfb_ms=0,
                duration_ms=0,
            )
        assert reservation.open
        reservation.void()
    await in_order(books, [])


@pytest.mark.parametrize(
    ("quantities", "status", "expected"),
    [
        ({"output": 100}, EventStatus.SETTLED, (100, 100, EventStatus.SETTLED)),
        ({"output": 300}, EventStatus.SETTLED, (300, 300, EventStatus.SETTLED)),
        ({"output": 301}, EventStatus.SETTLED, (301, 100, EventStatus.REVIEW)),
        ({"output": -1}, EventStatus.SETTLED, (0, 0, EventStatus.REVIEW)),
        ({"output": 50, "input": -9}, EventStatus.ESTIMATED, (50, 50, EventStatus.REVIEW)),
        ({"output": 70}, EventStatus.FREE, (70, 0, EventStatus.FREE)),
        ({"output": 10**19}, EventStatus.SETTLED, (AMOUNT_MAX, 100, EventStatus.REVIEW)),
    ],
)
def test_implausible_usage_costs_at_most_the_reservation(
    quantities: dict[str, int], status: EventStatus, expected: tuple[int, int, EventStatus]
) -> None:
    price = Price(1, {"output": 1_000_000, "input": 1_000_000}, 0)
    assert bill(price, quantities, 100, status) == expected


async def test_an_absurd_count_fits_into_the_history(autojump_clock: MockClock) -> None:
    books = await funded_store(BALANCE)
    async with running(books) as node:
        reservation = await node.ledger.reserve(request(100))
        reservation.settle(
            price=PRICE,
            provider_id=PROVIDER,
            quantities={"output": 1},
            tokens=TokenCounts(input=2**70, output=-5, units={"image": 2**40}),
            status=EventStatus.SETTLED,
            ttfb_ms=0,
            duration_ms=0,
        )
    ((_, event),) = books.events
    assert (event.input_tokens, event.output_tokens) == (2**31 - 1, 0)
    assert event.units == {"image": 2**31 - 1}


async def test_what_cannot_travel_is_not_asked_for(autojump_clock: MockClock) -> None:
    books = await funded_store(BALANCE)
    async with running(books) as node:
        with pytest.raises(ValueError, match="nano-dollars"):
            await node.ledger.reserve(request(AMOUNT_MAX + 1))
        with pytest.raises(ValueError, match="tokens"):
            await node.ledger.reserve(request(1, tokens=2**65))
        reservation = await node.ledger.reserve(request(10))
        assert not await reservation.extend(2**70)
        reservation.void()
    await in_order(books, [])


async def test_who_leaves_after_the_end_leaves_nothing_to_write(autojump_clock: MockClock) -> None:
    books = await funded_store(BALANCE)
    async with running(books) as node:
        await node.ledger.reserve(request(10))
        await node.server.drain(1)
    written = len(node.journal.records)
    for worker in node.server.workers:
        node.server.leave(worker.instance)
    assert len(node.journal.records) == written


# -- the store away -------------------------------------------------------------------------------


async def test_thirty_seconds_without_the_store_lose_nothing(autojump_clock: MockClock) -> None:
    books = await funded_store(BALANCE)
    charges = []
    async with running(books) as node:
        for _ in range(40):  # enough to be given credit ahead of need
            settle(await node.ledger.reserve(request(1_000)), 1_000)
            charges.append(1_000)
            await trio.sleep(0.1)
        node.store.away = True
        for _ in range(300):
            with contextlib.suppress(LedgerUnavailable):
                settle(await node.ledger.reserve(request(100)), 100)
                charges.append(100)
            await trio.sleep(0.1)
        ready_while_away = node.server.ready
        started = trio.current_time()
        with pytest.raises(LedgerUnavailable):
            await node.ledger.reserve(request(BALANCE))
        assert trio.current_time() == started  # nobody waits for a store that is long gone
        assert node.server.statistics().pending_events > 20
        node.store.away = False
        await trio.sleep(3)
        assert (ready_while_away, node.server.ready) == (False, True)
        assert node.server.statistics().pending_events == 0
    await in_order(books, charges)
    assert books.pools[ACCOUNT].available == BALANCE - sum(charges)


async def test_without_the_store_from_the_start_callers_are_told_to_come_back(
    autojump_clock: MockClock,
) -> None:
    books = await funded_store(BALANCE)
    async with running(books, away=True) as node:
        assert posted_balance(node.server.engine, ACCOUNT) is None
        for _ in range(3):
            with pytest.raises(LedgerUnavailable):
                await node.ledger.reserve(request(100))
        await trio.sleep(60)
        node.store.away = False
        await trio.sleep(3)
        settle(await node.ledger.reserve(request(100)), 100)
    await in_order(books, [100])


@pytest.mark.parametrize("fault", ["before", "after", "hang"])
@pytest.mark.parametrize("call", [0, 1, 2, 3, 4])
async def test_any_single_fault_charges_everything_once(
    fault: Fault, call: int, autojump_clock: MockClock
) -> None:
    books = await funded_store(BALANCE)
    settings = LedgerSettings(store_seconds=1.0)
    charges = []
    async with running(books, settings=settings) as node:
        node.store.faults.extend(["none" for _ in range(call)])
        node.store.faults.append(fault)
        for charge in range(1, 40):
            with contextlib.suppress(LedgerUnavailable):
                settle(await node.ledger.reserve(request(100)), charge)
                charges.append(charge)
            await trio.sleep(0.1)
    assert len(charges) > 20
    await in_order(books, charges)


async def test_a_poisoned_event_is_put_aside_and_the_others_are_posted(
    autojump_clock: MockClock,
) -> None:
    books = await funded_store(BALANCE)
    async with running(books) as node:
        node.store.poison = {4}
        for _ in range(9):
            settle(await node.ledger.reserve(request(10)), 10)
        await trio.sleep(20)
        assert node.server.statistics().quarantined == 1
        assert node.server.statistics().pending_events == 0
        assert posted_balance(node.server.engine, ACCOUNT) == BALANCE - 80
    await in_order(books, [10, 10, 10, 0, 10, 10, 10, 10, 10])


@pytest.mark.parametrize("code", ["LE001", "LE002", "55P03", "57014", "40P01"])
async def test_a_refusal_that_is_not_about_the_batch_blames_no_event(
    code: str, autojump_clock: MockClock
) -> None:
    books = await funded_store(BALANCE)
    async with running(books) as node:
        reservation = await node.ledger.reserve(request(100))
        node.store.refusals += [code] * 4
        settle(reservation, 60)
        await trio.sleep(30)
        assert not node.store.refusals
        assert not books.quarantine_rows
    await in_order(books, [60])


async def test_books_that_disagree_stop_admission_but_not_settlements(
    autojump_clock: MockClock,
) -> None:
    books = await funded_store(BALANCE)
    async with running(books) as node:
        reservation = await node.ledger.reserve(request(100))
        await trio.sleep(6)
        for lease in books.leases.values():
            lease.outstanding = 50  # somebody edited the table
        node.store.faults.append("before")  # makes it look again
        await trio.sleep(6)
        assert node.server.statistics().halted
        assert not node.server.ready
        with pytest.raises(LedgerUnavailable, match="the books disagree"):
            await node.ledger.reserve(request(1))
        settle(reservation, 70)
        assert node.journal.state.events[-1].charge == 70
        assert not await node.server.drain(1)


async def test_nothing_is_answered_out_of_books_that_disagree(autojump_clock: MockClock) -> None:
    books = await funded_store(BALANCE)
    async with running(books) as node:
        settle(await node.ledger.reserve(request(100)), 70)
        pool = node.server.engine.book.find_pool(ACCOUNT)
        assert pool is not None
        pool.free += 1  # out of nothing
        told = len(node.journal.state.open), len(node.journal.state.events)
        with pytest.raises(LedgerDivergence, match="free"):
            await node.ledger.reserve(request(10))
        assert told == (len(node.journal.state.open), len(node.journal.state.events))
        assert node.server.statistics().halted
        with pytest.raises(LedgerUnavailable, match="the books disagree"):
            await node.ledger.reserve(request(1))


# -- the journal ----------------------------------------------------------------------------------


class Witness:
    """A worker that notes what the journal knew at the moment when each answer came."""

    def __init__(self, journal: MemoryJournal) -> None:
        self.answers: list[tuple[type[messages.Reply], list[int], int]] = []
        self._journal = journal

    def send(self, replies: Sequence[messages.Reply]) -> None:
        state = self._journal.state
        for reply in replies:
            self.answers.append((type(reply), list(state.open), len(state.events)))


async def test_a_reservation_said_again_is_answered_again_and_made_once(
    autojump_clock: MockClock,
) -> None:
    books = await funded_store(BALANCE)
    async with running(books) as node:
        (await node.ledger.reserve(request(1_000))).void()
        witness = Witness(node.journal)
        assert node.server.join(witness, messages.Hello(WORKER, 0, 0, []))
        again = messages.Reserve(reservation_id(WORKER, 1), request(100))
        node.server.handle(witness, [again])
        node.server.handle(witness, [again, again])
        assert [answer for answer, _, _ in witness.answers] == [messages.Reserved] * 3
        assert node.server.statistics().reserved_nusd == 100
        node.server.handle(witness, [messages.Void(again.reservation_id, None)] * 2)
        assert node.server.statistics().reserved_nusd == 0
    await in_order(books, [])


async def test_whatever_is_answered_is_in_the_journal(autojump_clock: MockClock) -> None:
    books = await funded_store(BALANCE)
    async with running(books) as node:
        witness = Witness(node.journal)
        assert node.server.join(witness, messages.Hello(WORKER, 0, 0, []))
        first, second = reservation_id(WORKER, 1), reservation_id(WORKER, 2)
        node.server.handle(witness, [messages.Reserve(first, request(100))])
        await trio.sleep(1)  # that needed a grant
        settlement = Settlement(
            status=EventStatus.SETTLED, provider_id=PROVIDER, cost=60, charge=60
        )
        node.server.handle(witness, [messages.Settle(first, settlement)])
        node.server.handle(witness, [messages.Reserve(second, request(10))])
        node.server.handle(witness, [messages.Void(second, None)])
        assert witness.answers == [
            (messages.Reserved, [first], 0),
            (messages.Closed, [], 1),
            (messages.Reserved, [second], 1),
            (messages.Closed, [], 1),
        ]
    await in_order(books, [60])


async def test_nothing_is_posted_before_it_is_durable(autojump_clock: MockClock) -> None:
    books = await funded_store(BALANCE)
    async with running(books) as node:
        node.journal.sync_seconds = 2
        settle(await node.ledger.reserve(request(100)), 60)
        await trio.sleep(1.5)
        assert not books.events
        settle(await node.ledger.reserve(request(100)), 70)
        await trio.sleep(1)
        assert [event.charge for _, event in books.events] == [60]
    await in_order(books, [60, 70])


async def test_a_full_journal_refuses_and_leaves_nothing_held(autojump_clock: MockClock) -> None:
    books = await funded_store(BALANCE)
    async with running(books) as node:
        (await node.ledger.reserve(request(1_000))).void()
        node.journal.full = True
        with pytest.raises(LedgerUnavailable, match="the journal is full"):
            await node.ledger.reserve(request(10))
        node.journal.headroom_seen = True  # it was wrong
        with pytest.raises(LedgerUnavailable, match="the disk is full"):
            await node.ledger.reserve(request(10))
        with pytest.raises(LedgerUnavailable, match="the disk is full"):
            await node.ledger.reserve(request(5_000))  # by a grant
        assert node.server.statistics().open_reservations == 0
        node.journal.full = False
        settle(await node.ledger.reserve(request(10)), 10)
    await in_order(books, [10])


async def test_no_more_is_admitted_than_the_journal_can_settle(autojump_clock: MockClock) -> None:
    books = await funded_store(BALANCE)
    async with running(books) as node:
        node.journal.room = 2
        first, second = [await node.ledger.reserve(request(100)) for _ in range(2)]
        with pytest.raises(LedgerUnavailable, match="the journal is full"):
            await node.ledger.reserve(request(100))
        settle(first, 10)
        settle(await node.ledger.reserve(request(100)), 20)
        node.journal.room = 1
        assert not await second.extend(50)
        settle(second, 30)
    await in_order(books, [10, 20, 30])


@pytest.mark.parametrize("trouble", ["failed", "full"])
async def test_what_a_lost_journal_was_not_told_is_neither_confirmed_nor_posted(
    autojump_clock: MockClock, trouble: str
) -> None:
    books = await funded_store(BALANCE)
    with pytest.RaisesGroup(JournalFailed):
        async with running(books) as node:
            reservation = await node.ledger.reserve(request(100))
            survived = node.journal.state.copy()
            setattr(node.journal, trouble, True)
            settle(reservation, 60)
            assert reservation.balance is None  # nobody has confirmed it
            await trio.sleep(5)
            raise AssertionError("the service has ended by now")
    assert not books.events
    async with running(books, journal=MemoryJournal(survived), recovered=survived) as node:
        await trio.sleep(2)
        settle(await node.ledger.reserve(request(100)), 80)
    await in_order(books, [0, 80])


async def test_a_journal_lost_during_a_flush_ends_the_service(autojump_clock: MockClock) -> None:
    books = await funded_store(BALANCE)
    with pytest.RaisesGroup(JournalFailed):
        async with running(books) as node:
            settle(await node.ledger.reserve(request(100)), 60)
            survived = node.journal.state.copy()
            node.store.delay = 1
            await trio.sleep(0.5)  # the exchange is under way
            node.journal.failed = True
            await trio.sleep(20)
            raise AssertionError("the service has ended by now")
    async with running(books, journal=MemoryJournal(survived), recovered=survived):
        await trio.sleep(2)
    await in_order(books, [60])


@pytest.mark.parametrize("power_cut", [False, True])
async def test_after_a_crash_settled_is_posted_and_open_is_voided(
    power_cut: bool, autojump_clock: MockClock
) -> None:
    books = await funded_store(BALANCE)
    async with running(books) as node:
        settle(await node.ledger.reserve(request(100)), 60)
        await trio.sleep(1)
        settle(await node.ledger.reserve(request(100)), 70)
        await node.ledger.reserve(request(100))
        survived = (node.journal.durable if power_cut else node.journal.state).copy()
        # The machine stops here: what the dying process still does reaches nobody.
        node.store.away = True
        node.journal.failed = True
        node.server._drain_tried = True  # no farewell
        node.scope.cancel()
    journal = MemoryJournal(survived)
    async with running(books, journal=journal, recovered=survived) as node:
        await trio.sleep(2)
        settle(await node.ledger.reserve(request(100)), 80)
    await in_order(books, [60, 80] if power_cut else [60, 70, 0, 80])


async def test_a_reservation_said_again_while_it_waits_is_made_once(
    autojump_clock: MockClock,
) -> None:
    books = await funded_store(BALANCE)
    async with running(books) as node:
        heard: list[Reply] = []
        peer = _Ear(heard)
        assert node.server.join(peer, Hello(3, 0, 0, []))
        number = reservation_id(3, 1)
        for _ in range(2):  # a link broke in between
            node.server.handle(peer, [Reserve(number, request(100))])
        await trio.sleep(1)
        assert [type(reply) for reply in heard] == [Reserved]
        node.server.handle(peer, [Void(number, None)])
        await trio.sleep(1)
        node.server.engine.check()
        assert node.server.statistics().open_reservations == 0
    await in_order(books, [])


class _Ear:
    """A worker that only listens."""

    def __init__(self, heard: list[Reply]) -> None:
        self._heard = heard

    def send(self, replies: Sequence[Reply]) -> None:
        self._heard += replies


# -- draining -------------------------------------------------------------------------------------


async def test_draining_posts_everything_and_gives_all_credit_back(
    autojump_clock: MockClock,
) -> None:
    books = await funded_store(BALANCE)
    async with running(books) as node:
        settle(await node.ledger.reserve(request(100)), 60)
        assert await node.server.drain()
        assert node.journal.closed
        with pytest.raises(LedgerUnavailable, match="draining"):
            await node.ledger.reserve(request(10))
        await in_order(books, [60])


async def test_draining_gives_up_after_its_time_and_the_journal_keeps_the_rest(
    autojump_clock: MockClock,
) -> None:
    books = await funded_store(BALANCE)
    async with running(books) as node:
        settle(await node.ledger.reserve(request(100)), 60)
        node.store.away = True
        started = trio.current_time()
        assert not await node.server.drain(3)
        assert trio.current_time() - started == pytest.approx(3)
    assert trio.current_time() - started < 4
    assert [event.charge for event in node.journal.state.events] == [60]


async def test_flushes_are_observed(autojump_clock: MockClock) -> None:
    books = await funded_store(BALANCE)
    seen: list[tuple[float, int]] = []
    async with running(books) as node:
        node.server.observers.append(lambda seconds, events: seen.append((seconds, events)))
        settle(await node.ledger.reserve(request(100)), 60)
        await trio.sleep(1)
        seconds, events = seen[0]
        assert seconds == pytest.approx(0.001)
        assert events == 1
        assert node.server.statistics().flushes == len(seen)


async def test_a_flush_waits_for_what_was_settled_while_another_was_under_way(
    autojump_clock: MockClock,
) -> None:
    books = await funded_store(BALANCE)
    async with running(books) as node:
        first, second = [await node.ledger.reserve(request(100)) for _ in range(2)]
        node.store.delay = 0.5
        settle(first, 60)
        await trio.sleep(0.4)  # it is on its way
        settle(second, 70)
        await node.ledger.flush()
        assert [event.charge for _, event in books.events] == [60, 70]
        node.store.away = True
        settle(await node.ledger.reserve(request(10)), 10)
        with pytest.raises(LedgerUnavailable, match="in time"):
            await node.ledger.flush()
        node.store.away = False
    await in_order(books, [60, 70, 10])


async def test_many_events_are_flushed_at_once(autojump_clock: MockClock) -> None:
    books = await funded_store(BALANCE)
    settings = LedgerSettings(flush_seconds=60, flush_events=10, engine=EngineSettings(batch_max=4))
    async with running(books, settings=settings) as node:
        for _ in range(10):
            settle(await node.ledger.reserve(request(10)), 10)
        await trio.sleep(1)
        assert node.server.statistics().applied_seq >= 4
    await in_order(books, [10] * 10)


class HandMade:
    """A link whose other end is the test."""

    instance = 5
    sweeps = False

    def __init__(self) -> None:
        self.said: list[Message] = []

    def attach(self, listener: Listener) -> None:
        self.hear = listener.hear

    def post(self, message: Message) -> None:
        self.said.append(message)


async def test_who_waits_for_the_journal_is_not_woken_by_anything_else(
    autojump_clock: MockClock,
) -> None:
    link, journalled_at = HandMade(), -1.0
    ledger = Ledger([link])

    async def caller() -> None:
        nonlocal journalled_at
        reservation = await ledger.reserve(request(100))
        reservation.ask_for(300)
        settle(reservation, 100)
        assert await reservation.journalled() == 7
        journalled_at = trio.current_time()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(caller)
        await trio.sleep(0.1)
        (reserve,) = link.said
        assert isinstance(reserve, Reserve)
        number, began = reserve.reservation_id, trio.current_time()
        replies: list[Reply] = [
            Reserved(number, 100, ()),
            messages.Extended(number, 300, 300),
            Reserved(number, 300, ()),
            messages.Closed(number, 7),
            messages.Closed(number, 8),
        ]
        for seconds, reply in enumerate(replies):
            await trio.sleep_until(began + seconds)
            link.hear([reply])
    assert journalled_at == began + 3
