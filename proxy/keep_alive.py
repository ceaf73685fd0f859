"""Signs of life for clients whose upstream is silent: many give up after a minute of nothing.

Each surface has a form that its SDKs skip (a comment, a `ping` event), or none at all. A `Pulse`
belongs to one streamed exchange and beats while that waits for its upstream; one service task
looks at all of them every second. The first beat may come before the upstream has said anything:
then the head of the answer goes out with it, and a failure after that is told in the stream.

A beat is sent without waiting: where the client's socket has no room, it has not read what it was
sent before, and needs no more. So no beat can overlap a send of the exchange, or block.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Self

import trio

from proxy.deadlines import NEVER

SECONDS = 15.0  # of silence before each beat; the shortest idle limit of a client known is 60
_LOOK_SECONDS = 1.0


class Pulse:
    """The keep-alives of one exchange; enter it for the time of its stream.

    `beat` sends one, without waiting. `since` is when the exchange began to wait.
    """

    __slots__ = ("_all", "beat", "since")

    def __init__(self, pulses: set[Pulse], beat: Callable[[], None]) -> None:
        self.since = trio.current_time()
        self.beat = beat
        self._all = pulses

    def stop(self) -> None:
        """The exchange has something of its own to send."""
        self.since = NEVER

    def __enter__(self) -> Self:
        self._all.add(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._all.discard(self)


class KeepAlives:
    """All pulses of a worker."""

    def __init__(self) -> None:
        self.active: set[Pulse] = set()

    def pulse(self, beat: Callable[[], None]) -> Pulse:
        """A pulse that has begun to wait now."""
        return Pulse(self.active, beat)

    async def run(self) -> None:
        """Beat until cancelled."""
        while True:
            await trio.sleep(_LOOK_SECONDS)
            now = trio.current_time()
            for pulse in [pulse for pulse in self.active if pulse.since + SECONDS <= now]:
                pulse.since = now
                pulse.beat()
