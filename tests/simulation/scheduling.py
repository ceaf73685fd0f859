"""trio made to repeat itself: one seed, one order of tasks, and processes that can stand still.

trio shuffles its tasks on purpose, and its clock jumps over the time that a thread takes. Here
both are decided by a seed: `deterministic` switches on trio's own ordering and gives it our
generator, `virtual_threads` runs what would go to a thread in the task that waits for it, in two
halves of virtual time. `Scheduler` sees every step of every task: it counts them, stops a task
whose process is paused until it goes on, and lets the world look at itself after a step.

A third of all steps are the ends of sleeps, and a cancel scope with its deadline costs more than
what most steps do. So `VirtualClock` wakes sleepers itself; and as it knows that there is no world
outside to wait for, it needs no idle turn of trio's loop to find out, as `MockClock` does.

This is the only file that touches trio's private names; test_determinism.py fails if one vanishes.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar, TypeVarTuple

import outcome
import trio
from trio._core import _run, _traps

from tests.simulation.process import Process, process_of

T = TypeVar("T")
Arguments = TypeVarTuple("Arguments")

STEPS_MAX = 500_000  # of one world; the longest has some ten thousand
STUCK_MAX = 10  # turns of an ending loop, in which trio wakes itself


@contextmanager
def deterministic(generator: random.Random) -> Iterator[None]:
    """For one call of `trio.run`: the order of its tasks comes from `generator`."""
    before = _run._ALLOW_DETERMINISTIC_SCHEDULING, _run._r
    _run._ALLOW_DETERMINISTIC_SCHEDULING = True  # type: ignore[misc]  # Final, with a switch
    _run._r = generator
    try:
        yield
    finally:
        _run._ALLOW_DETERMINISTIC_SCHEDULING, _run._r = before  # type: ignore[misc]


class NothingHappens(Exception):
    """Every task waits for another one: nothing would ever happen again."""


@dataclass(slots=True)
class _Sleeper:
    """A task that sleeps, unless it has been cancelled meanwhile."""

    task: trio.lowlevel.Task | None


class VirtualClock(trio.abc.Clock):
    """Time leaps to the next deadline or alarm as soon as nobody has anything to do."""

    def __init__(self) -> None:
        self._now = 0.0
        self._alarms: list[tuple[float, int, _Sleeper]] = []  # by time, then first come first
        self._numbers = itertools.count()
        self._stuck = 0

    def start_clock(self) -> None:
        """Nothing to start."""

    def current_time(self) -> float:
        return self._now

    def deadline_to_sleep_time(self, deadline: float) -> float:
        """trio asks when nothing is left to do; time is over then at once."""
        alarms = self._alarms
        while alarms and alarms[0][2].task is None:
            heapq.heappop(alarms)
        until = min(deadline, alarms[0][0]) if alarms else deadline
        if until == math.inf:
            self._stuck += 1
            if self._stuck > STUCK_MAX:
                raise NothingHappens
            return 0.0
        self._stuck = 0
        self._now = max(self._now, until)
        while alarms and alarms[0][0] <= self._now:
            task = heapq.heappop(alarms)[2].task
            if task is not None:
                trio.lowlevel.reschedule(task)
        return 0.0

    async def sleep(self, seconds: float) -> None:
        """`trio.sleep`, without a scope of its own."""
        if seconds <= 0:
            await trio.lowlevel.checkpoint()
            return
        sleeper = _Sleeper(trio.lowlevel.current_task())
        heapq.heappush(self._alarms, (self._now + seconds, next(self._numbers), sleeper))

        def abort(_raise_cancel: object) -> trio.lowlevel.Abort:
            sleeper.task = None
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)


@contextmanager
def virtual_sleep(clock: VirtualClock) -> Iterator[None]:
    """For one call of `trio.run` with this clock: `trio.sleep` is the clock's."""
    real = trio.sleep
    trio.sleep = clock.sleep
    try:
        yield
    finally:
        trio.sleep = real


@contextmanager
def virtual_threads(seconds: Callable[[], float]) -> Iterator[None]:
    """`trio.to_thread.run_sync` without threads: the work happens in the middle of `seconds()`."""

    async def run_sync(
        work: Callable[[*Arguments], T],
        *arguments: *Arguments,
        limiter: trio.CapacityLimiter | None = None,
    ) -> T:
        with trio.CancelScope(shield=True):  # a thread cannot be cancelled
            await trio.sleep(seconds() / 2)
            result = outcome.capture(work, *arguments)
            await trio.sleep(seconds() / 2)
        return result.unwrap()

    real = trio.to_thread.run_sync
    trio.to_thread.run_sync = run_sync  # type: ignore[assignment]  # as much of it as is used
    try:
        yield
    finally:
        trio.to_thread.run_sync = real


class _Hooks(dict[str, Callable[[trio.lowlevel.Task], None]]):
    """In place of trio's instruments: what is wrong in one of ours is never just logged."""

    def call(self, name: str, *arguments: trio.lowlevel.Task) -> None:
        self[name](*arguments)


class Scheduler:
    """Every step of every task passes here.

    `after_step` is told of those of watched processes, and of number `interruption` and the last.
    """

    def __init__(self, after_step: Callable[[Process | None], None]) -> None:
        self.steps = 0
        self.interruption = 0
        self._after_step = after_step
        self._hooks = _Hooks(after_task_step=self._stepped)
        self._frozen: list[tuple[Process, Callable[[], None]]] = []

    def watch(self) -> None:
        """From now on, in this run of trio."""
        _run.GLOBAL_RUN_CONTEXT.runner.instruments = self._hooks  # type: ignore[assignment]  # as much of it as trio asks

    def freeze(self) -> None:
        """Some process has been paused: from now on look before every step."""
        self._hooks["before_task_step"] = self._steps

    def thaw(self) -> None:
        """Let the tasks of processes that are not paused any more go on where they stopped."""
        frozen, self._frozen = self._frozen, []
        for process, go_on in frozen:
            if process.paused:
                self._frozen.append((process, go_on))
            else:
                go_on()

    def _stepped(self, task: trio.lowlevel.Task) -> None:
        self.steps += 1
        process = process_of(task)
        noted = self.steps in (self.interruption, STEPS_MAX)
        if noted or (process is not None and process.after_step is not None):
            self._after_step(process)

    def _steps(self, task: trio.lowlevel.Task) -> None:
        process = process_of(task)
        if process is not None and process.paused:
            send, value = task._next_send_fn, task._next_send

            def go_on() -> None:
                trio.lowlevel.reschedule(task)
                task._next_send_fn, task._next_send = send, value

            self._frozen.append((process, go_on))
            task._next_send_fn = _stand_still


def _stand_still(_: object) -> _traps.WaitTaskRescheduled:
    """In place of a task's next step: nothing wakes it but `thaw`."""
    return _traps.WaitTaskRescheduled(lambda _raise_cancel: trio.lowlevel.Abort.FAILED)
