"""How long the answers of each model have been of late: what an adaptive reservation starts with.

Kept for each model is a histogram of the output tokens of streams that ended by themselves, with no
cap of the client's: only those tell how long an answer becomes that nobody limits. Its buckets grow
by an eighth of an octave, so that its quantiles err by less than a tenth, upwards. Once it has seen
enough, all its counts are halved: what is older counts for less and less.

It lives in the worker's memory and is worth nothing to anybody else. After a start nothing is
known, and reservations begin with the least.
"""

from __future__ import annotations

from math import log2

START_TOKENS_MIN = 1024

_STEPS = 8  # buckets in an octave
_BUCKETS = 28 * _STEPS  # up to 2^28 tokens, more than any answer has
_SEEN_MAX = 2000


class _Histogram:
    """Output tokens of one model."""

    __slots__ = ("_counts", "_highest", "_seen")

    def __init__(self) -> None:
        self._counts = [0] * _BUCKETS
        self._highest = 0  # no bucket above it has any
        self._seen = 0

    def add(self, tokens: int) -> None:
        bucket = min(_bucket(tokens), _BUCKETS - 1)
        self._counts[bucket] += 1
        self._highest = max(self._highest, bucket)
        self._seen += 1
        if self._seen >= _SEEN_MAX:
            self._age()

    def quantile(self, percent: int) -> int:
        """At most this long were `percent` of all answers; 0 where none was seen."""
        above = self._seen * (100 - percent) // 100  # how many may be longer
        for bucket in range(self._highest, -1, -1):
            if self._counts[bucket] > above:
                return _tokens(bucket)
            above -= self._counts[bucket]
        return 0

    def _age(self) -> None:
        self._counts = [count // 2 for count in self._counts]
        self._highest = max(bucket for bucket, count in enumerate(self._counts) if count)
        self._seen = sum(self._counts)


class Outputs:
    """The recent answers of each model, by its id in the catalogue."""

    __slots__ = ("_histograms",)

    def __init__(self) -> None:
        self._histograms: dict[str, _Histogram] = {}

    def add(self, model: str, tokens: int) -> None:
        """A stream of `model` has ended by itself after `tokens` of output."""
        histogram = self._histograms.get(model)
        if histogram is None:
            histogram = self._histograms[model] = _Histogram()
        histogram.add(tokens)

    def start(self, model: str) -> int:
        """The output tokens that a reservation for `model` begins with."""
        histogram = self._histograms.get(model)
        return max(START_TOKENS_MIN, 0 if histogram is None else histogram.quantile(99))


def _bucket(tokens: int) -> int:
    """The first bucket whose tokens are as many, or more."""
    bucket = max(0, int(log2(max(tokens, 1)) * _STEPS) - 1)
    while _tokens(bucket) < tokens:
        bucket += 1
    return bucket


def _tokens(bucket: int) -> int:
    """The most tokens of a bucket."""
    return int(2 ** (bucket / _STEPS))
