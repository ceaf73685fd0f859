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

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Protocol

import trio


class Held(Protocol):
    """Somebody with bytes that wait for the end of the turn."""

    def flush(self) -> None:
        """Send them now. Never raises."""
        ...


class Cork(trio.abc.Instrument):
    """Who has bytes that wait, as TCP_CORK of tcp(7) does for one connection. `turns`: they have an
    end now. `sent`: somebody has sent already in this one, so others may wait."""

    def __init__(self) -> None:
        self.turns = self.sent = False
        self._held: list[Held] = []

    def hold(self, held: Held) -> None:
        """Have it flushed at the end of this turn."""
        self._held.append(held)

    def before_io_wait(self, timeout: float) -> None:
        """The end of a turn, as trio calls it."""
        self.sent = False
        if self._held:
            held, self._held = self._held, []
            try:
                for one in held:
                    one.flush()
            except BaseException:  # trio will not call it again
                self.turns = False
                raise

    @contextmanager
    def open(self) -> Iterator[None]:
        """Have turns end with it, for the time of the block."""
        trio.lowlevel.add_instrument(self)
        self.turns = True
        try:
            yield
        finally:
            self.turns = False
            with suppress(KeyError):  # trio has done it where the hook failed
                trio.lowlevel.remove_instrument(self)
            self.before_io_wait(0)
