"""Whether to take a request on at all, decided before its body is read.

Only overload is judged here: too many open exchanges, too many bytes held, an event loop that
cannot keep up. What a caller is allowed (credit, rpm, tpm, concurrency) is decided later, by the
ledger in one call. Nothing that runs is ever cut for overload.

How late the loop runs its timers says how long every step of every exchange waits. A single long
step makes one timer late and is no reason to refuse anybody; a loop that is never on time is. So it
is overloaded while the smallest lag of the last half second is above a bound, which is CoDel's rule
for a queue (RFC 8289 §3.2): bursts pass, a standing queue does not.
"""

from __future__ import annotations

from types import TracebackType
from typing import Self

import trio

from adapters.errors import Overloaded
from proxy.deadlines import NEVER
from proxy.memory import Memory, Share

LAG_SECONDS_MAX = 0.1
STANDING_SECONDS = 0.5
_PROBE_SECONDS = 0.1
_RETRY_AFTER_SECONDS = 1


class Load:
    """How busy this worker is: open exchanges, and whether the event loop keeps up."""

    def __init__(self, *, exchanges_max: int) -> None:
        self.exchanges = 0
        self.lags = False
        self._exchanges_max = exchanges_max

    def admit(self, memory: Memory, body_bytes: int | None) -> Permit:
        """A permit for one exchange, to be entered at once. Raises Overloaded.

        `body_bytes` is the declared length of its body; None: it comes in chunks.
        """
        if self.exchanges >= self._exchanges_max:
            raise _overloaded("The gateway is at its limit of open requests.")
        if self.lags:
            raise _overloaded("The gateway is overloaded.")
        declared = body_bytes or 0
        if not memory.allows(declared):
            raise _no_room()
        self.exchanges += 1
        memory.held_bytes += declared
        return Permit(memory, declared, load=self)

    async def run(self) -> None:
        """Watch the lag until cancelled."""
        late_since = NEVER
        while True:
            due = trio.current_time() + _PROBE_SECONDS
            await trio.sleep_until(due)
            now = trio.current_time()
            late_since = min(late_since, now) if now - due > LAG_SECONDS_MAX else NEVER
            self.lags = now - late_since >= STANDING_SECONDS


class Permit(Share, kw_only=True):
    """One admitted exchange, with its body's bytes: both are given back on leaving it."""

    load: Load

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.load.exchanges -= 1
        self.close()

    def chunk(self, size: int) -> None:
        """So many more bytes of a body without a declared length. Raises Overloaded."""
        self.take(size)
        if not self.memory.allows(self.held_bytes):
            raise _no_room()


def _no_room() -> Overloaded:
    return _overloaded("The gateway holds too many bytes of other requests: try again shortly.")


def _overloaded(message: str) -> Overloaded:
    return Overloaded(message, retry_after=_RETRY_AFTER_SECONDS)
