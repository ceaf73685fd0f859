"""Deadlines pass exactly when they should, however often they moved before."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from proxy.deadlines import NEVER, Alarm, Deadlines


@pytest.fixture
async def deadlines(nursery: trio.Nursery) -> Deadlines:
    watched = Deadlines()
    nursery.start_soon(watched.run)
    return watched


async def test_it_passes_on_time(deadlines: Deadlines, autojump_clock: MockClock) -> None:
    started = trio.current_time()
    with deadlines.new() as deadline:
        deadline.after(5)
        await trio.sleep_forever()
    assert deadline.expired
    assert trio.current_time() - started == pytest.approx(5)


async def test_a_deadline_that_moves_on_does_not_pass(
    deadlines: Deadlines, autojump_clock: MockClock
) -> None:
    started = trio.current_time()
    with deadlines.new() as deadline:
        for _ in range(10):
            deadline.after(5)
            await trio.sleep(4)
        await trio.sleep_forever()
    assert trio.current_time() - started == pytest.approx(9 * 4 + 5)


async def test_the_earliest_of_several_passes_first(
    deadlines: Deadlines, autojump_clock: MockClock
) -> None:
    passed: list[float] = []

    async def wait(seconds: float) -> None:
        with deadlines.new() as deadline:
            deadline.after(60)
            deadline.after(seconds)
            await trio.sleep_forever()
        passed.append(seconds)

    async with trio.open_nursery() as waiters:
        for seconds in (7, 3, 5, 1):
            waiters.start_soon(wait, seconds)
    assert passed == [1, 3, 5, 7]


async def test_none_is_left_behind(deadlines: Deadlines, autojump_clock: MockClock) -> None:
    with deadlines.new() as deadline:
        deadline.after(5)
        deadline.at = NEVER
        await trio.sleep(100)
    assert not deadline.expired
    assert not deadlines.active


async def test_another_reason_is_not_a_passed_deadline(
    deadlines: Deadlines, autojump_clock: MockClock
) -> None:
    with deadlines.new() as deadline:
        deadline.after(5)
        deadline.scope.cancel()
        await trio.sleep_forever()
    assert deadline.scope.cancelled_caught
    assert not deadline.expired


async def test_an_alarm_rings_once_and_on_time(
    deadlines: Deadlines, autojump_clock: MockClock
) -> None:
    rung: list[float] = []
    alarm = Alarm(deadlines, lambda: rung.append(trio.current_time()))
    alarm.start()
    began = trio.current_time()
    alarm.after(5)
    await trio.sleep(4)
    alarm.after(5)
    await trio.sleep(30)
    assert rung == [pytest.approx(began + 9)]
    assert alarm.expired
    assert not deadlines.active


async def test_an_alarm_that_was_stopped_is_silent(
    deadlines: Deadlines, autojump_clock: MockClock
) -> None:
    rung: list[bool] = []
    alarm = Alarm(deadlines, lambda: rung.append(True))
    alarm.start()
    alarm.after(5)
    alarm.stop()
    await trio.sleep(10)
    assert not rung
    assert not alarm.expired
