"""How long upstreams have taken of late to say something: when to hedge, and whom to prefer.

Counted are the seconds from asking an upstream to the first content of its answer, which for a
plain answer is all of it. Streams and plain answers are therefore kept apart. Two questions are
asked, and they need different memories:

- A hedge asks for a *quantile*, which takes many values: a histogram that forgets by halves.
- Balancing asks for a *mean* of the last minute or half, which has to follow an upstream that slows
  down, and to forget one that nobody asks any more, so that it is tried again: two windows of time,
  one that fills and the one before it.

Whoever gives an answer up because another upstream was faster adds what it had waited for. Without
these the slowest would never be counted, and every hedge would make the next one earlier.

It lives in the worker's memory. Moments are of any clock that never goes back.
"""

from __future__ import annotations

from proxy.histogram import Histogram

SAMPLES_MIN = 50  # fewer say nothing of a quantile

_UNIT_SECONDS = 0.001  # what is below is not told apart
_OCTAVES = 21  # up to 35 minutes
_SEEN_MAX = 1000
_WINDOW_SECONDS = 30.0
_MEAN_SAMPLES_MIN = 10
_WINDOW_SAMPLES_MIN = 20


class Latency:
    """The seconds to first content of one upstream, streamed or plain."""

    __slots__ = ("_before", "_begun", "_histogram", "_now")

    def __init__(self) -> None:
        self._histogram = Histogram(_OCTAVES, _SEEN_MAX)
        self._begun = 0.0  # the window that fills
        self._now = (0, 0.0)  # how many values in it, and their sum
        self._before = (0, 0.0)  # of the window before

    def add(self, seconds: float, now: float) -> None:
        """An answer has begun, or was given up, after so long."""
        self._histogram.add(seconds / _UNIT_SECONDS)
        self._turn(now)
        samples, total = self._now
        self._now = samples + 1, total + seconds

    def quantile(self, percent: int) -> float | None:
        """The seconds after which `percent` of all answers had begun; None where too few did."""
        if self._histogram.seen < SAMPLES_MIN:
            return None
        return self._histogram.quantile(percent) * _UNIT_SECONDS

    def mean(self, now: float) -> float | None:
        """The mean of this window and the one before; None where there were too few answers."""
        self._turn(now)
        samples = self._now[0] + self._before[0]
        if samples < _MEAN_SAMPLES_MIN:
            return None
        return (self._now[1] + self._before[1]) / samples

    def whole_mean(self, now: float) -> float | None:
        """The mean of the last whole window: what has lasted, not what has just happened."""
        self._turn(now)
        samples, total = self._before
        return total / samples if samples >= _WINDOW_SAMPLES_MIN else None

    def _turn(self, now: float) -> None:
        """Begin a new window where the time of the last one is over."""
        age = now - self._begun
        if age < _WINDOW_SECONDS:
            return
        self._before = self._now if age < 2 * _WINDOW_SECONDS else (0, 0.0)
        self._now = (0, 0.0)
        self._begun = now - age % _WINDOW_SECONDS


class Latencies:
    """Of every upstream, by its name and whether answers are streamed."""

    __slots__ = ("_known",)

    def __init__(self) -> None:
        self._known: dict[tuple[str, bool], Latency] = {}

    def of(self, upstream: str, *, streamed: bool) -> Latency:
        """The latency of an upstream; nothing is known of one that was not asked yet."""
        key = upstream, streamed
        latency = self._known.get(key)
        if latency is None:
            latency = self._known[key] = Latency()
        return latency
