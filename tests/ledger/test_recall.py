"""Two lease holders, one nearly empty pool: nobody is refused for credit that only lies elsewhere.

Real servers over one `MemoryStore`, on virtual time. `delay` is what a call to the store takes.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
import trio
from hypothesis import example, given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from ledger.client import InsufficientCredit, Ledger, Reservation
from ledger.engine import EngineSettings
from ledger.link import LocalLink
from ledger.memory import MemoryStore
from ledger.pool import EXHAUSTED_SECONDS, SCARCE_SECONDS, HolderPool, Sizing
from ledger.server import LedgerServer, LedgerSettings
from ledger.store import EventStatus, PoolId
from tests.fakes.faulty_store import FaultyStore
from tests.fakes.journal import MemoryJournal
from tests.fakes.ledger import (
    ACCOUNT,
    BUDGET,
    PRICE,
    PROVIDER,
    funded_store,
    output,
    request,
    top_up,
)

DELAYS = [(0.001, 0.001), (0.03, 0.03), (0.001, 0.05)]
"""Seconds that a call of each node takes: an idle database, a busy one, and one far from a node."""
TOLD_SECONDS = 0.35
"""Within which a node tells the database what was given back there: an exchange every 0.25 s."""


@contextlib.asynccontextmanager
async def nodes(
    books: MemoryStore, delays: tuple[float, ...] = DELAYS[0]
) -> AsyncIterator[list[Ledger]]:
    """A node for each delay; at the block's end they drain, and the books have to be in order."""
    servers = []
    async with trio.open_nursery() as services:
        for number, delay in enumerate(delays):
            store = FaultyStore(books)
            store.delay = delay
            server = LedgerServer(
                store,
                MemoryJournal(journal_id=bytes([number + 1]) * 16),
                MemoryJournal().state,
                clock=trio.current_time,
                wall_clock=lambda: 1_000_000,
                jitter=lambda: 1.0,
                settings=LedgerSettings(engine=EngineSettings(sizing=Sizing(lease_max=10**12))),
            )
            await services.start(server.run)
            servers.append(server)
        await trio.sleep(1)  # sessions are open, hints are followed
        yield [Ledger([LocalLink(server)]) for server in servers]
        for server in servers:
            assert await server.drain()
    assert await books.check() == []
    assert all(pool.leased == 0 for pool in books.pools.values())


def settle(reservation: Reservation, charge: int) -> None:
    reservation.settle(
        price=PRICE,
        provider_id=PROVIDER,
        quantities={"output": charge},
        tokens=output(charge),
        status=EventStatus.SETTLED,
        ttfb_ms=1,
        duration_ms=2,
    )


async def refusal(ledger: Ledger, amount: int) -> InsufficientCredit:
    with pytest.raises(InsufficientCredit) as caught:
        await ledger.reserve(request(amount))
    return caught.value


@pytest.mark.parametrize("delays", DELAYS)
async def test_what_another_node_holds_idle_is_had(
    autojump_clock: MockClock, delays: tuple[float, ...]
) -> None:
    books = await funded_store(1_000)
    async with nodes(books, delays) as (here, there):
        (await there.reserve(request(600))).void()
        (await here.reserve(request(1_000))).void()


@pytest.mark.parametrize("delays", DELAYS)
async def test_what_became_idle_without_an_event_is_had(
    autojump_clock: MockClock, delays: tuple[float, ...]
) -> None:
    """The store was told that all of the lease is bound, and it is not any more."""
    books = await funded_store(1_000)
    async with nodes(books, delays) as (here, there):
        long = await there.reserve(request(1_000))
        await trio.sleep(2 * SCARCE_SECONDS)  # it is told, and the shortage forgotten
        long.void()
        await trio.sleep(1)
        (await here.reserve(request(1_000))).void()


@pytest.mark.parametrize("delays", DELAYS)
async def test_of_two_nodes_that_wait_with_half_each_one_is_served(
    autojump_clock: MockClock, delays: tuple[float, ...]
) -> None:
    books = await funded_store(1_000)
    async with nodes(books, delays) as (here, there):
        async with trio.open_nursery() as callers:
            for ledger in (here, there):
                callers.start_soon(_hold_and_void, ledger, 500)
        outcomes: list[bool] = []

        async def use(ledger: Ledger) -> None:
            try:
                settle(await ledger.reserve(request(800)), 800)
            except InsufficientCredit:
                outcomes.append(False)
            else:
                outcomes.append(True)

        async with trio.open_nursery() as callers:
            callers.start_soon(use, here)
            callers.start_soon(use, there)
        assert sorted(outcomes) == [False, True]


async def _hold_and_void(ledger: Ledger, amount: int) -> None:
    (await ledger.reserve(request(amount))).void()


@pytest.mark.parametrize("delays", DELAYS)
async def test_a_large_request_is_decided_among_many_small_ones(
    autojump_clock: MockClock, delays: tuple[float, ...]
) -> None:
    """Small ones that fit come all the time: the large one is refused, not kept waiting."""
    books = await funded_store(10_000_000)
    async with nodes(books, delays) as (here, there):
        done = trio.Event()
        served = 0

        async def small(ledger: Ledger) -> None:
            nonlocal served
            while not done.is_set():
                settle(await ledger.reserve(request(500)), 1)
                served += 1
                await trio.sleep(0.005)

        async with trio.open_nursery() as callers:
            held = [await ledger.reserve(request(4_500_000)) for ledger in (here, there)]
            for ledger in (here, there):
                for _ in range(8):
                    callers.start_soon(small, ledger)
            await trio.sleep(1)
            before = served
            for _ in range(4):
                assert (await refusal(here, 2_000_000)).required == 2_000_000
                await trio.sleep(0.3)
            assert served > before
            done.set()
        for reservation in held:
            reservation.void()


@pytest.mark.parametrize("delays", DELAYS)
async def test_the_last_of_it_can_be_spent_at_any_node(
    autojump_clock: MockClock, delays: tuple[float, ...]
) -> None:
    books = await funded_store(10_000)
    async with nodes(books, delays) as ledgers:
        spent = 0
        for number in range(40):
            charge = 10_000 // 40
            settle(await ledgers[number % 2].reserve(request(10_000 - spent)), charge)
            spent += charge
        assert spent == 10_000
        for ledger in ledgers:
            assert (await refusal(ledger, 1)).available == 0


@pytest.mark.parametrize("delays", DELAYS)
async def test_what_was_given_back_a_moment_ago_is_had_elsewhere(
    autojump_clock: MockClock, delays: tuple[float, ...]
) -> None:
    """One request after the other, each for all that is left, at either node in turn."""
    books = await funded_store(10_000)
    async with nodes(books, delays) as ledgers:
        settle(await ledgers[0].reserve(request(10_000)), 1)
        for number in range(1, 20):
            settle(await ledgers[number % 2].reserve(request(10_000 - number)), 1)
            await trio.sleep(0.01)


@pytest.mark.parametrize("delays", DELAYS)
async def test_who_was_refused_is_served_when_another_node_is_done(
    autojump_clock: MockClock, delays: tuple[float, ...]
) -> None:
    books = await funded_store(10_000)
    async with nodes(books, delays) as (here, there):
        own = await here.reserve(request(1_000))
        held = await there.reserve(request(9_000))
        await refusal(here, 5_000)
        settle(held, 1_000)
        await trio.sleep(0.2)
        (await here.reserve(request(8_000))).void()
        own.void()


def test_what_the_store_said_since_counts() -> None:
    """A refusal is remembered, but not against what an exchange has told meanwhile."""
    pool = HolderPool(ACCOUNT, 0.0)
    pool.exhausted(0.0, 500)
    assert pool.knows_exhausted(0.5, 600)
    assert not pool.knows_exhausted(0.5, 400)
    pool.available = 600
    assert not pool.knows_exhausted(0.5, 600)
    assert pool.knows_exhausted(0.5, 601)
    pool.balance = 600
    assert pool.knows_exhausted(0.5, 601)
    pool.balance = 700
    assert not pool.knows_exhausted(0.5, 601), "another holder has 100, which may come back"


@pytest.mark.parametrize("delays", DELAYS)
async def test_of_a_budget_too(autojump_clock: MockClock, delays: tuple[float, ...]) -> None:
    books = await funded_store(10**9)
    books.add_budget(BUDGET, ACCOUNT, 1_000)
    async with nodes(books, delays) as (here, there):
        both = request(600, pools=(ACCOUNT, BUDGET))
        (await there.reserve(both)).void()
        settle(await here.reserve(both), 600)
        with pytest.raises(InsufficientCredit) as caught:
            await there.reserve(both)
        assert (caught.value.kind, caught.value.available) == ("budget", 400)


async def test_credit_is_usable_at_once_at_every_node(autojump_clock: MockClock) -> None:
    books = await funded_store(100)
    async with nodes(books) as ledgers:
        for ledger in ledgers:
            await refusal(ledger, 500)
        await top_up(books, 900, "more")
        await trio.sleep(0.01)  # the notification
        for ledger in ledgers:
            (await ledger.reserve(request(1_000))).void()


@pytest.mark.parametrize("delays", DELAYS)
async def test_a_refusal_is_explained_by_its_figures(
    autojump_clock: MockClock, delays: tuple[float, ...]
) -> None:
    books = await funded_store(1_000)
    async with nodes(books, delays) as (here, there):
        held = await there.reserve(request(700))
        own = await here.reserve(request(100))
        for _ in range(2):  # asked, and remembered
            why = await refusal(here, 400)
            assert (why.balance, why.reserved, why.available) == (1_000, 800, 200)
        (await here.reserve(request(why.available))).void()
        settle(held, 650)
        own.void()
        await trio.sleep(1.5)
        why = await refusal(here, 400)
        assert (why.balance, why.reserved, why.available) == (350, 0, 350)
        assert books.pools[PoolId(ACCOUNT)].spent == 650


# -- whatever happened before ---------------------------------------------------------------------


@dataclass(frozen=True)
class Step:
    """A request at a node for a share of what is left (in percent), some time after the last."""

    node: int
    percent: int
    charge_percent: int  # of what it reserves; none: it stays open for a while
    seconds: float


STEPS = st.lists(
    st.builds(
        Step,
        st.integers(0, 1),
        st.sampled_from([1, 10, 25, 50, 90, 100, 101, 150]),
        st.sampled_from([0, 1, 50, 100, -1]),
        st.sampled_from([0.0, 0.001, 0.005, 0.02, 0.3, 1.0, 12.0]),
    ),
    max_size=25,
)


@settings(max_examples=150, deadline=None)
@given(STEPS, st.sampled_from(DELAYS))
@example(  # node 1 asks for credit that was given back at this very moment
    [
        Step(0, 1, 100, 0.0),
        Step(0, 1, -1, 0.0),
        Step(0, 1, -1, 0.0),
        Step(1, 1, -1, 12.0),
        Step(1, 100, 0, 0.0),
    ],
    (0.001, 0.001),
)
def test_a_request_is_served_exactly_if_it_fits(
    steps: list[Step], delays: tuple[float, ...]
) -> None:
    """One after the other, at any node: nobody is refused what is there, nobody gets more.

    What was given back at the other node is there as soon as that has told the database.
    """
    trio.run(_served_exactly_if_it_fits, steps, delays, clock=MockClock(autojump_threshold=0))


async def _served_exactly_if_it_fits(steps: list[Step], delays: tuple[float, ...]) -> None:
    left = 100_000
    books = await funded_store(left)
    async with nodes(books, delays) as ledgers:
        held: list[tuple[int, Reservation, int]] = []
        spent: list[tuple[float, int]] = []  # when, and what was left before
        freed: list[tuple[float, int, int]] = []  # when, where and how much
        for step in steps:
            await trio.sleep(step.seconds)
            amount = max(left * step.percent // 100, 1)
            if amount > left:
                why = await refusal(ledgers[step.node], amount)
                # What the other node has spent since may be unknown for as long as one remembers.
                since = trio.current_time() - EXHAUSTED_SECONDS
                assert why.available <= max([left, *(was for at, was in spent if at >= since)])
                assert why.required > why.balance - why.reserved
                continue
            now = trio.current_time()
            untold = sum(
                freed_amount
                for at, node, freed_amount in freed
                if node != step.node and now - at < TOLD_SECONDS
            )
            try:
                reservation = await ledgers[step.node].reserve(request(amount))
            except InsufficientCredit:
                assert amount > left - untold
                continue
            if step.charge_percent < 0:
                held.append((step.node, reservation, amount))
                spent.append((trio.current_time(), left))
                left -= amount
            else:
                charge = amount * step.charge_percent // 100
                settle(reservation, charge)
                spent.append((trio.current_time(), left))
                freed.append((trio.current_time(), step.node, amount - charge))
                left -= charge
            if len(held) > 2:
                node, reservation, amount = held.pop(0)
                reservation.void()
                freed.append((trio.current_time(), node, amount))
                left += amount
        for _, reservation, _ in held:
            reservation.void()
