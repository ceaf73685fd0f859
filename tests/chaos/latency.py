"""What is added to the time to a first word: all of a client's wait but what its provider took.

The provider that served says when it was asked and when it spoke. Its own time is what the client
would have waited for without a gateway; the rest is the gateway's, attempts that failed before it
included. So the figure compares nothing with another time of the run, when the machine was less
busy or the provider in another mood, and it is never negative: all moments are of one clock.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

from farebox.sandbox import Performance
from tests.chaos.oracle import Told


def added(told: Iterable[Told], performances: Iterable[Performance]) -> Iterator[float]:
    """The seconds that were added to each answer that began."""
    by_nonce: dict[str, list[Performance]] = defaultdict(list)
    for performance in performances:
        by_nonce[performance.nonce].append(performance)
    for each in told:
        if each.first_content is not None:
            own = _own_seconds(each.first_content, by_nonce[each.nonce])
            if own is not None:
                yield each.first_content - each.begun - own


def _own_seconds(first_content: float, performances: Iterable[Performance]) -> float | None:
    """How long the provider whose word came took to say it. Of two that spoke, the gateway has left
    the one that lost the race; who spoke later than the client heard a word was not heard."""
    spoke = [
        (each.end != "left", each.spoke, each.spoke - each.began)
        for each in performances
        if each.spoke is not None and each.spoke <= first_content
    ]
    return max(spoke)[-1] if spoke else None


def percentile(values: Sequence[float], percent: int) -> float:
    """The value that so many percent of all stay below; 0 where there are none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, len(ordered) * percent // 100)] if ordered else 0.0
