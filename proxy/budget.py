"""How much more an upstream is asked than its clients asked for.

A provider in trouble is not helped by every request that fails coming back three times: retries
then are most of its load, and keep it down. So an upstream is asked again, or asked twice at once
(a hedge), only while such extra attempts are a small fraction of what it was asked for the first
time. A few a second are always allowed, so that a quiet gateway may try again at all.

Both are counted with a weight that halves every few seconds, which is a window of about ten seconds
without a list of what happened in it. An attempt elsewhere is no extra one: each upstream sees that
request once.

After Finagle's retry budgets (twitter.github.io/finagle, "Retry Budget"): a fraction of requests
plus a floor, of the last ten seconds.
"""

from __future__ import annotations

from collections.abc import Callable
from math import exp

WINDOW_SECONDS = 10.0
FLOOR_PER_SECOND = 1.0

_SETTLES_SECONDS = 0.25  # two moments closer than this are one: decay is not worth computing


class _Tally:
    """Attempts at one upstream within the window: the first ones of requests, and extra ones."""

    __slots__ = ("at", "extra", "first")

    def __init__(self, now: float) -> None:
        self.first = 0.0
        self.extra = 0.0
        self.at = now

    def fade(self, now: float) -> None:
        """Let what was counted fade."""
        left = exp(-(now - self.at) / WINDOW_SECONDS)
        self.first *= left
        self.extra *= left
        self.at = now


def unheard() -> None:
    """For who does not count."""


class Budget:
    """The extra attempts of one worker. `fraction` of the first ones are allowed; `denied` is
    called for each that was not made for want of it."""

    __slots__ = ("_tallies", "denied", "fraction")

    def __init__(self, fraction: float, denied: Callable[[], object] = unheard) -> None:
        self.fraction = fraction
        self.denied = denied
        self._tallies: dict[str, _Tally] = {}

    def asked(self, upstream: str, now: float) -> None:
        """A request asks this upstream for the first time."""
        tally = self._tallies.get(upstream)
        if tally is None or now - tally.at > _SETTLES_SECONDS:
            tally = self._tally(upstream, now)
        tally.first += 1.0

    def allows(self, upstream: str, now: float) -> bool:
        """Whether there is room for an extra attempt."""
        tally = self._tally(upstream, now)
        floor = FLOOR_PER_SECOND * WINDOW_SECONDS if self.fraction else 0.0
        return tally.extra + 1.0 <= self.fraction * tally.first + floor

    def spend(self, upstream: str, now: float) -> None:
        """An extra attempt is made."""
        self._tally(upstream, now).extra += 1.0

    def _tally(self, upstream: str, now: float) -> _Tally:
        """What was counted, as it has faded until now."""
        tally = self._tallies.get(upstream)
        if tally is None:
            tally = self._tallies[upstream] = _Tally(now)
        if now - tally.at > _SETTLES_SECONDS:
            tally.fade(now)
        return tally
