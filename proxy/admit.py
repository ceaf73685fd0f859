"""Whether to take a request on at all, decided before its body is read.

Only overload is judged here. What a caller is allowed (credit, rpm, tpm, concurrency) is decided
later, by the ledger in one call.
"""

from __future__ import annotations

from types import TracebackType

import trio

from adapters.errors import Overloaded

_LAG_SECONDS_MAX = 0.25
_PROBE_SECONDS = 0.1


class Load:
    """How busy this worker is: open exchanges, and how late the event loop runs its timers."""

    def __init__(self, *, exchanges_max: int) -> None:
        self.exchanges = 0
        self.lag_seconds = 0.0
        self._exchanges_max = exchanges_max

    def admit(self) -> Permit:
        """A permit for one exchange, given back on leaving it. Raises Overloaded."""
        if self.exchanges >= self._exchanges_max:
            raise Overloaded("The gateway is at its limit of open requests.", retry_after=1)
        if self.lag_seconds > _LAG_SECONDS_MAX:
            raise Overloaded("The gateway is overloaded.", retry_after=1)
        return Permit(self)

    async def run(self) -> None:
        """Measure the lag until cancelled."""
        while True:
            due = trio.current_time() + _PROBE_SECONDS
            await trio.sleep_until(due)
            self.lag_seconds = trio.current_time() - due


class Permit:
    """One admitted exchange."""

    __slots__ = ("_load",)

    def __init__(self, load: Load) -> None:
        self._load = load

    def __enter__(self) -> None:
        self._load.exchanges += 1

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._load.exchanges -= 1
