"""A bound on the connections to one provider, and a queue for its places.

A connection has a *place* from before it is opened until it is closed, idle or not. At most
`limit` places are taken. Idle connections form a stack: the last one that was used is the least
likely to have been closed by the other side. Who finds no place waits for one in the order of
coming, for as long as it wants to, but no more of them than there are places: a longer queue would
only end in deadlines.

Invariants, which hold at every await:

1. 0 ≤ idle ≤ taken ≤ limit, and waiting ≤ limit;
2. where somebody waits, every place is taken and nothing is idle.

A place that becomes free is therefore not put back for whoever is quickest, but handed to the first
in the queue, by the one who frees it. That keeps the order, and it keeps places from getting lost:
a waiter that is cancelled when it has just been given one hands it on.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

import trio

T = TypeVar("T")


class PoolFull(Exception):
    """Every place is taken, and none became free in time."""


@dataclass(frozen=True, slots=True)
class PoolStatistics:
    """What a pool holds at a moment."""

    limit: int
    taken: int
    idle: int
    waiting: int


class _Waiter(Generic[T]):
    """One in the queue. `served`: it was given a place, with `found` on it."""

    __slots__ = ("found", "served", "woken")

    def __init__(self) -> None:
        self.woken = trio.Event()
        self.served = False
        self.found: T | None = None

    def serve(self, found: T | None) -> None:
        self.served = True
        self.found = found
        self.woken.set()


class Pool(Generic[T]):
    """At most `limit` things of a kind, in use or idle."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._taken = 0
        self._idle: deque[T] = deque()  # the oldest on the left
        self._waiters: OrderedDict[_Waiter[T], None] = OrderedDict()

    def take_idle(self) -> T | None:
        """What became idle last, with its place."""
        return self._idle.pop() if self._idle else None

    async def place(self, queue_seconds: float) -> T | None:
        """A place; with it whatever lies idle on it, which is the caller's from now on.

        Waits only where every place is in use. Raises PoolFull.
        """
        if self._idle:
            return self._idle.pop()
        if self._taken < self._limit:
            self._taken += 1
            return None
        if queue_seconds <= 0 or len(self._waiters) >= self._limit:
            raise PoolFull
        return await self._queued(queue_seconds)

    async def _queued(self, queue_seconds: float) -> T | None:
        waiter: _Waiter[T] = _Waiter()
        self._waiters[waiter] = None
        try:
            with trio.move_on_after(queue_seconds):
                await waiter.woken.wait()
        except BaseException:
            self._leave(waiter)
            raise
        if waiter.served:  # be it at the last moment
            return waiter.found
        del self._waiters[waiter]
        raise PoolFull

    def _leave(self, waiter: _Waiter[T]) -> None:
        if not waiter.served:
            del self._waiters[waiter]
        elif waiter.found is None:
            self.free()
        else:
            self.give_back(waiter.found)

    def give_back(self, thing: T) -> None:
        """It is idle now: somebody else may use it."""
        if self._waiters:
            self._first().serve(thing)
        else:
            self._idle.append(thing)

    def free(self) -> None:
        """A place has nothing on it any more."""
        if self._waiters:
            self._first().serve(None)
        else:
            self._taken -= 1

    def _first(self) -> _Waiter[T]:
        return self._waiters.popitem(last=False)[0]

    def oldest(self, wanted: Callable[[T], bool]) -> Iterator[T]:
        """Take idle ones, with their places, the oldest first, as long as they are wanted."""
        while self._idle and wanted(self._idle[0]):
            yield self._idle.popleft()

    def statistics(self) -> PoolStatistics:
        """What it holds now."""
        return PoolStatistics(self._limit, self._taken, len(self._idle), len(self._waiters))
