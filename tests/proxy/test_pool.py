"""A pool's invariants under every order of coming, going, waiting, giving up and breaking."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from proxy.pool import Pool, PoolFull, PoolStatistics


@dataclass(frozen=True)
class Visit:
    """Comes, waits so long for a place, leaves after a while, whether it got one or not."""

    at: int
    queue_seconds: int
    stays: int
    leaves_at: int
    keeps: bool  # what it used is idle afterwards, and not closed


VISITS = st.lists(
    st.builds(
        Visit,
        at=st.integers(0, 6),
        queue_seconds=st.integers(0, 4),
        stays=st.integers(0, 4),
        leaves_at=st.integers(0, 12),
        keeps=st.booleans(),
    ),
    max_size=12,
)


class House:
    """A pool whose invariants are looked at whenever somebody does something to it."""

    def __init__(self, limit: int) -> None:
        self.pool: Pool[object] = Pool(limit)
        self.inside = 0
        self.came = 0
        self.entered: dict[int, float] = {}  # when, by the order of coming

    def check(self) -> None:
        now = self.pool.statistics()
        assert 0 <= now.idle <= now.taken <= now.limit
        assert now.waiting <= now.limit
        assert self.inside <= now.taken - now.idle
        if now.waiting:
            assert (now.taken, now.idle) == (now.limit, 0)

    async def come(self, visit: Visit) -> None:
        await trio.sleep(visit.at)
        number = self.came = self.came + 1
        with trio.move_on_at(visit.leaves_at):
            try:
                found = await self.pool.place(visit.queue_seconds)
            except PoolFull:
                return
            finally:
                self.check()
            self.entered[number] = trio.current_time()
            await self._stay(visit, found)

    async def _stay(self, visit: Visit, found: object | None) -> None:
        self.inside += 1
        self.check()
        try:
            await trio.sleep(visit.stays)
        finally:
            self.inside -= 1
            if visit.keeps:
                self.pool.give_back(found or object())
            else:
                self.pool.free()
            self.check()


@settings(deadline=None)
@given(visits=VISITS, limit=st.integers(1, 3))
def test_places_are_neither_lost_nor_doubled(visits: Sequence[Visit], limit: int) -> None:
    async def day() -> None:
        house = House(limit)
        async with trio.open_nursery() as nursery:
            for visit in visits:
                nursery.start_soon(house.come, visit)
        entered = [house.entered[number] for number in sorted(house.entered)]
        assert entered == sorted(entered)  # nobody overtakes
        evening = house.pool.statistics()
        assert evening.waiting == 0
        assert evening.taken == evening.idle
        for _ in house.pool.oldest(lambda _: True):
            house.pool.free()
        assert house.pool.statistics().taken == 0

    trio.run(day, clock=MockClock(autojump_threshold=0))


Freeing = Callable[[Pool[str]], None]


async def three_waiting(
    nursery: trio.Nursery, pool: Pool[str]
) -> tuple[list[trio.CancelScope], list[tuple[int, str | None]]]:
    """Three in the queue of a full pool, in a known order; what they get."""
    for _ in range(pool.statistics().limit):
        await pool.place(0)
    scopes = [trio.CancelScope() for _ in range(3)]
    got: list[tuple[int, str | None]] = []

    async def wait(number: int) -> None:
        with scopes[number]:
            got.append((number, await pool.place(100)))

    for number in range(3):
        nursery.start_soon(wait, number)
        await wait_all_tasks_blocked()
    return scopes, got


@pytest.mark.parametrize(
    ("free", "found"),
    [(lambda pool: pool.free(), None), (lambda pool: pool.give_back("idle"), "idle")],
    ids=["freed", "given back"],
)
async def test_a_waiter_cancelled_as_it_is_woken_hands_its_place_on(
    free: Freeing, found: str | None, nursery: trio.Nursery
) -> None:
    pool: Pool[str] = Pool(3)
    scopes, got = await three_waiting(nursery, pool)
    scopes[0].cancel()
    free(pool)  # to the first, which has not heard yet that it is cancelled
    await wait_all_tasks_blocked()
    assert got == [(1, found)]
    assert pool.statistics() == PoolStatistics(limit=3, taken=3, idle=0, waiting=1)
    scopes[2].cancel()
    free(pool)  # to the last, which has nobody to hand it to
    await wait_all_tasks_blocked()
    assert got == [(1, found)]
    idle = 0 if found is None else 1
    assert pool.statistics() == PoolStatistics(limit=3, taken=2 + idle, idle=idle, waiting=0)


async def test_a_waiter_cancelled_after_it_was_woken_has_its_place(nursery: trio.Nursery) -> None:
    pool: Pool[str] = Pool(3)
    scopes, got = await three_waiting(nursery, pool)
    pool.free()
    scopes[0].cancel()
    await wait_all_tasks_blocked()
    assert got == [(0, None)]


async def test_a_place_that_comes_at_the_last_moment_is_not_lost(
    autojump_clock: MockClock,
) -> None:
    for _ in range(20):  # trio wakes tasks of one moment in any order
        pool: Pool[str] = Pool(1)
        await pool.place(0)
        ends_at = trio.current_time() + 5

        async def let_go(pool: Pool[str], at: float) -> None:
            await trio.sleep_until(at)
            pool.free()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(let_go, pool, ends_at)
            try:
                await pool.place(ends_at - trio.current_time())
                taken = 1
            except PoolFull:
                taken = 0
        assert pool.statistics() == PoolStatistics(limit=1, taken=taken, idle=0, waiting=0)


async def test_nobody_passes_the_queue(nursery: trio.Nursery) -> None:
    pool: Pool[str] = Pool(3)
    _, got = await three_waiting(nursery, pool)
    for _ in range(3):
        pool.free()
        assert pool.take_idle() is None
        with pytest.raises(PoolFull):
            await pool.place(0)
        await wait_all_tasks_blocked()
    assert [number for number, _ in got] == [0, 1, 2]


async def test_what_was_used_last_is_used_first(nursery: trio.Nursery) -> None:
    pool: Pool[str] = Pool(3)
    for _ in range(3):
        await pool.place(0)
    for name in ("old", "middle", "new"):
        pool.give_back(name)
    assert pool.take_idle() == "new"
    assert list(pool.oldest(lambda name: name != "middle")) == ["old"]
    assert pool.take_idle() == "middle"
    assert pool.take_idle() is None
