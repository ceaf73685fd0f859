"""Deadlines that move with every byte and hardly ever pass.

trio keeps the deadline of each scope in a heap, which makes moving one cost as much as parsing a
few headers. Here moving one is an assignment: a single task sleeps until the earliest moment at
which any of them could pass, looks again, and cancels those whose time has come. A deadline is
therefore exact, and one that has moved on meanwhile costs at most one look.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from types import TracebackType
from typing import Self

import trio

NEVER = math.inf


class Alarm:
    """A moment at which `ring` is called, unless it moves on before; between `start` and `stop`.

    `expired`: it has been. Cheaper than a scope where there is something that ends the wait of
    whoever is too late, like closing what it waits for.
    """

    __slots__ = ("_at", "_deadlines", "expired", "ring")

    def __init__(self, deadlines: Deadlines, ring: Callable[[], None]) -> None:
        self.expired = False
        self.ring = ring
        self._at = NEVER
        self._deadlines = deadlines

    def start(self) -> None:
        """From now on it may ring."""
        self._deadlines.active.add(self)

    def stop(self) -> None:
        """It will not ring any more."""
        self._deadlines.active.discard(self)

    @property
    def at(self) -> float:
        """The moment, on trio's clock."""
        return self._at

    @at.setter
    def at(self, moment: float) -> None:
        self._at = moment
        if moment < self._deadlines.wakes_at:
            self._deadlines.wake_at(moment)

    def after(self, seconds: float) -> None:
        """Let it ring so many seconds from now."""
        self.at = trio.current_time() + seconds


class Deadline(Alarm):
    """A scope that is cancelled when `at` passes; enter it like a scope.

    `expired` tells a passed deadline from any other reason for which the scope was cancelled.
    """

    __slots__ = ("scope",)

    def __init__(self, deadlines: Deadlines) -> None:
        self.scope = trio.CancelScope()
        super().__init__(deadlines, self.scope.cancel)

    def __enter__(self) -> Self:
        self.start()
        self.scope.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        self.stop()
        return bool(self.scope.__exit__(kind, error, trace))


class Deadlines:
    """All deadlines of a worker."""

    def __init__(self) -> None:
        self.active: set[Alarm] = set()
        self.wakes_at = NEVER
        self._sleep = trio.CancelScope()

    def new(self) -> Deadline:
        """A deadline that does not pass until it is given a moment."""
        return Deadline(self)

    def wake_at(self, moment: float) -> None:
        """Look again at `moment`, which is earlier than was planned."""
        self.wakes_at = self._sleep.deadline = moment

    async def run(self) -> None:
        """Watch over them until cancelled."""
        while True:
            now = trio.current_time()
            for alarm in [alarm for alarm in self.active if alarm.at <= now]:
                alarm.expired = True
                alarm.stop()
                alarm.ring()
            self.wakes_at = min((alarm.at for alarm in self.active), default=NEVER)
            with trio.CancelScope(deadline=self.wakes_at) as self._sleep:
                await trio.sleep_forever()
