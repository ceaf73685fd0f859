"""Overload: what is refused, when, and that everything is given back, at exact virtual times."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import MockClock

from adapters.errors import Overloaded
from proxy.admit import Load
from proxy.memory import HELD_BYTES_MIN, LARGE_BYTES, Memory


@asynccontextmanager
async def watched() -> AsyncIterator[Load]:
    """A load whose lag is being watched."""
    load = Load(exchanges_max=2)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(load.run)
        await trio.testing.wait_all_tasks_blocked()
        yield load
        nursery.cancel_scope.cancel()


async def late(clock: MockClock, seconds: float, times: int) -> None:
    """So many timers in a row that are so late: the loop does something else meanwhile."""
    for _ in range(times):
        await trio.sleep(0.099)
        clock.jump(0.001 + seconds)
        await trio.testing.wait_all_tasks_blocked()


def admit(load: Load) -> None:
    with load.admit(Memory(HELD_BYTES_MIN), 0):
        pass


@pytest.mark.parametrize("pause", [0.3, 3.0])
async def test_a_single_pause_refuses_nobody(pause: float, autojump_clock: MockClock) -> None:
    async with watched() as load:
        await late(autojump_clock, pause, 1)
        for _ in range(10):
            admit(load)
            await trio.sleep(0.1)


async def test_a_loop_that_is_never_on_time_refuses_after_half_a_second(
    autojump_clock: MockClock,
) -> None:
    async with watched() as load:
        await late(autojump_clock, 0.15, 2)  # at 0.25 s and 0.5 s
        admit(load)
        await late(autojump_clock, 0.15, 1)  # at 0.75 s: late for half a second
        with pytest.raises(Overloaded) as refused:
            admit(load)
        assert refused.value.retry_after == 1
        await late(autojump_clock, 0.0, 1)  # on time once
        admit(load)


async def test_a_loop_that_is_always_a_little_late_serves(autojump_clock: MockClock) -> None:
    async with watched() as load:
        await late(autojump_clock, 0.09, 50)
        admit(load)


async def test_what_is_late_now_and_then_serves(autojump_clock: MockClock) -> None:
    async with watched() as load:
        for _ in range(20):
            await late(autojump_clock, 0.3, 1)
            await late(autojump_clock, 0.05, 1)
            admit(load)


def test_open_exchanges_are_bounded() -> None:
    load, memory = Load(exchanges_max=2), Memory(HELD_BYTES_MIN)
    with load.admit(memory, 0), load.admit(memory, None):
        with pytest.raises(Overloaded):
            load.admit(memory, 0)
        assert load.exchanges == 2
    assert load.exchanges == 0


def test_a_permit_holds_a_declared_body_before_it_is_read() -> None:
    load, memory = Load(exchanges_max=2), Memory(HELD_BYTES_MIN)
    with load.admit(memory, 5):
        assert memory.held_bytes == 5
    assert memory.held_bytes == 0


def test_a_body_in_chunks_is_refused_where_it_becomes_too_large() -> None:
    load, memory = Load(exchanges_max=2), Memory(HELD_BYTES_MIN)
    other = memory.share()
    other.take(HELD_BYTES_MIN // 4 * 3)
    with load.admit(memory, None) as permit:
        permit.chunk(LARGE_BYTES)
        with pytest.raises(Overloaded):
            permit.chunk(1)
    assert memory.held_bytes == other.held_bytes
    assert load.exchanges == 0
