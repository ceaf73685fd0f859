"""What a quantity has been of late: a histogram that forgets.

Its buckets grow by an eighth of an octave, so that its quantiles err by less than a tenth, upwards.
Once it has seen enough, all its counts are halved: what is older counts for less and less.
"""

from __future__ import annotations

from math import ceil, log2

_STEPS = 8  # buckets in an octave


class Histogram:
    """Values from 1 to 2 ** `octaves`; what is outside counts as the nearest of them.

    All counts are halved when there are `seen_max` of them.
    """

    __slots__ = ("_counts", "_highest", "_seen_max", "seen")

    def __init__(self, octaves: int, seen_max: int) -> None:
        self.seen = 0
        self._counts = [0] * (octaves * _STEPS + 1)
        self._highest = 0  # no bucket above it has any
        self._seen_max = seen_max

    def add(self, value: float) -> None:
        """Count one more."""
        bucket = min(_bucket(value), len(self._counts) - 1)
        self._counts[bucket] += 1
        self._highest = max(self._highest, bucket)
        self.seen += 1
        if self.seen >= self._seen_max:
            self._age()

    def quantile(self, percent: int) -> float:
        """At most this much were `percent` of all values; 0 where none was seen."""
        above = self.seen * (100 - percent) // 100  # how many may be more
        for bucket in range(self._highest, -1, -1):
            if self._counts[bucket] > above:
                return float(2 ** (bucket / _STEPS))
            above -= self._counts[bucket]
        return 0.0

    def _age(self) -> None:
        self._counts = [count // 2 for count in self._counts]
        self._highest = max((n for n, count in enumerate(self._counts) if count), default=0)
        self.seen = sum(self._counts)


def _bucket(value: float) -> int:
    """The first bucket whose values are as large, or larger."""
    return ceil(log2(value) * _STEPS) if value > 1 else 0
