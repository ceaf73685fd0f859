"""What a turn of the event loop has to say leaves together, at the end of the turn.

A send to a process that sleeps on another core costs three times a send to one that is awake: the
core has to be woken, which in a virtual machine leaves it for a moment. Where many requests share a
turn, their peers have gone to sleep again between any two sends. So the first send of a turn goes
at once, which is all of them where requests are few; those that follow wait for the end of the
turn, before trio waits for anything, and go one after the other: to peers that are awake, through
code that is still in the cache. `docs/decisions/0024-sends-that-wait-for-each-other.md` has the
figures.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

import trio

HELD_BYTES_MAX = 16_384  # for one peer; an empty send buffer takes it whole


class Held(Protocol):
    """Somebody with bytes that wait for the end of the turn."""

    def flush(self) -> None:
        """Send them now. Never raises: what goes wrong is for the next send, or the peer's end."""
        ...


class Outbox(trio.abc.Instrument):
    """Who has bytes that wait. `sent`: somebody has sent already in this turn, so others wait."""

    def __init__(self) -> None:
        self.sent = False
        self._held: list[Held] = []
        self._token: trio.lowlevel.TrioToken | None = None  # while turns have an end

    def hold(self, held: Held) -> None:
        """Have it flushed at the end of this turn; at once where nobody tells that end."""
        if self._token is not None:
            self._held.append(held)
        else:
            held.flush()

    def finish(self, push: Callable[[], Awaitable[None]]) -> None:
        """Have a task do what cannot be done at once. `push` never raises."""
        if self._token is None:
            trio.lowlevel.spawn_system_task(push)
        else:  # the end of a turn is no task's, and trio does not look for new ones after it
            self._token.run_sync_soon(trio.lowlevel.spawn_system_task, push)

    def before_io_wait(self, timeout: float) -> None:
        """The end of a turn, as trio calls it."""
        self.sent = False
        if self._held:
            held, self._held = self._held, []
            for one in held:
                one.flush()

    @contextmanager
    def open(self) -> Iterator[None]:
        """Have turns end with it, for the time of the block."""
        trio.lowlevel.add_instrument(self)
        self._token = trio.lowlevel.current_trio_token()
        try:
            yield
        finally:
            self.before_io_wait(0)
            self._token = None
            trio.lowlevel.remove_instrument(self)
