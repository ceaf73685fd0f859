"""trio made to repeat itself: one seed, one order of tasks, and processes that can stand still.

trio shuffles its tasks on purpose, and its clock jumps over the time that a thread takes. Here
both are decided by a seed: `deterministic` switches on trio's own ordering and gives it our
generator, `virtual_threads` runs what would go to a thread in the task that waits for it, in two
halves of virtual time. `Scheduler` sees every step of every task: it counts them, stops a task
whose process is paused until it goes on, and lets the world look at itself after a step.

This is the only file that touches trio's private names; test_determinism.py fails if one vanishes.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar, TypeVarTuple

import outcome
import trio
from trio._core import _run, _traps

from tests.simulation.process import Process

T = TypeVar("T")
Arguments = TypeVarTuple("Arguments")


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


class Scheduler(trio.abc.Instrument):
    """Every step of every task passes here. `process_of` says whose task it is, if anybody's."""

    def __init__(
        self,
        process_of: Callable[[trio.lowlevel.Task], Process | None],
        after_step: Callable[[Process | None], None],
    ) -> None:
        self.steps = 0
        self._process_of = process_of
        self._after_step = after_step
        self._frozen: list[tuple[Process, Callable[[], None]]] = []

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        process = self._process_of(task)
        if process is not None and process.paused:
            send, value = task._next_send_fn, task._next_send

            def go_on() -> None:
                trio.lowlevel.reschedule(task)
                task._next_send_fn, task._next_send = send, value

            self._frozen.append((process, go_on))
            task._next_send_fn = _stand_still

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        self.steps += 1
        self._after_step(self._process_of(task))

    def thaw(self) -> None:
        """Let the tasks of processes that are not paused any more go on where they stopped."""
        frozen, self._frozen = self._frozen, []
        for process, go_on in frozen:
            if process.paused:
                self._frozen.append((process, go_on))
            else:
                go_on()


def _stand_still(_: object) -> _traps.WaitTaskRescheduled:
    """In place of a task's next step: nothing wakes it but `thaw`."""
    return _traps.WaitTaskRescheduled(lambda _raise_cancel: trio.lowlevel.Abort.FAILED)
