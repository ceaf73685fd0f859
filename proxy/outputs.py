"""How long the answers of each model have been of late: what an adaptive reservation starts with.

Kept for each model is a histogram of the output tokens of streams that ended by themselves, with no
cap of the client's: only those tell how long an answer becomes that nobody limits.

It lives in the worker's memory and is worth nothing to anybody else. After a start nothing is
known, and reservations begin with the least.
"""

from __future__ import annotations

from proxy.histogram import Histogram

START_TOKENS_MIN = 1024

_OCTAVES = 28  # up to 2^28 tokens, more than any answer has
_SEEN_MAX = 2000


class Outputs:
    """The recent answers of each model, by its id in the catalogue."""

    __slots__ = ("_histograms",)

    def __init__(self) -> None:
        self._histograms: dict[str, Histogram] = {}

    def add(self, model: str, tokens: int) -> None:
        """A stream of `model` has ended by itself after `tokens` of output."""
        histogram = self._histograms.get(model)
        if histogram is None:
            histogram = self._histograms[model] = Histogram(_OCTAVES, _SEEN_MAX)
        histogram.add(tokens)

    def start(self, model: str) -> int:
        """The output tokens that a reservation for `model` begins with."""
        histogram = self._histograms.get(model)
        return max(START_TOKENS_MIN, 0 if histogram is None else int(histogram.quantile(99)))
