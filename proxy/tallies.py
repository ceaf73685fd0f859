"""Counters and histograms as plain numbers, put into Prometheus's words at each scrape.

prometheus_client takes a lock for every increment, and several for every observation: a dozen of
them were two hundredths of what a request costs. A worker counts in one thread. So a counter is an
integer here and a histogram a list of them, and the library sees both only when it collects.

A scrape is rendered in another thread, while this one goes on counting. Every number is read whole;
of two of them one may be a request older than the other, which no scrape can tell.
"""

from __future__ import annotations

import itertools
import math
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Generic, TypeVar

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

_T = TypeVar("_T")


class Tally:
    """One counter: what its `value` is `since` a moment."""

    __slots__ = ("since", "value")

    def __init__(self) -> None:
        self.value = 0
        self.since = time.time_ns() / 1e9

    def inc(self, amount: int = 1) -> None:
        """Count one more, or so many."""
        self.value += amount


class Spread:
    """One histogram: how many values were at most as large as each of its bounds, and no smaller
    one."""

    __slots__ = ("_bounds", "counts", "since", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.counts = [0] * len(bounds)
        self.total = 0.0
        self.since = time.time_ns() / 1e9
        self._bounds = bounds

    def observe(self, value: float) -> None:
        """Count a value."""
        self.counts[bisect_left(self._bounds, value)] += 1
        self.total += value


class _Family(Collector, Generic[_T]):
    """One metric: something for every combination of label values that was ever asked for.

    Each is made once, by `make`, and kept.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        name: str,
        documentation: str,
        labels: Sequence[str],
        make: Callable[[], _T],
    ) -> None:
        self._name = name
        self._documentation = documentation
        self._labels = labels
        self._make = make
        self._known: dict[tuple[str, ...], _T] = {}
        registry.register(self)

    def __call__(self, *labels: str) -> _T:
        known = self._known.get(labels)
        if known is None:
            known = self._known[labels] = self._make()
        return known


class Tallies(_Family[Tally]):
    """A counter. What is counted in parts is shown as wholes, of which each has so many `parts`."""

    def __init__(
        self,
        registry: CollectorRegistry,
        name: str,
        documentation: str,
        *labels: str,
        parts: int = 1,
    ) -> None:
        super().__init__(registry, name, documentation, labels, Tally)
        self._parts = parts

    def collect(self) -> Iterable[Metric]:
        """What was counted so far."""
        family = CounterMetricFamily(self._name, self._documentation, labels=self._labels)
        for labels, tally in list(self._known.items()):
            family.add_metric(labels, tally.value / self._parts, tally.since)
        return [family]


class Spreads(_Family[Spread]):
    """A histogram with these upper bounds, and one without any."""

    def __init__(
        self,
        registry: CollectorRegistry,
        name: str,
        documentation: str,
        *labels: str,
        bounds: Sequence[float],
    ) -> None:
        self._bounds = (*map(float, bounds), math.inf)
        super().__init__(registry, name, documentation, labels, partial(Spread, self._bounds))

    def collect(self) -> Iterable[Metric]:
        """What was counted so far."""
        family = HistogramMetricFamily(self._name, self._documentation, labels=self._labels)
        bounds = [*map(str, self._bounds[:-1]), "+Inf"]
        for labels, spread in list(self._known.items()):
            at_most = itertools.accumulate(spread.counts.copy())
            family.add_metric(labels, list(zip(bounds, at_most, strict=True)), spread.total)
            named = dict(zip(self._labels, labels, strict=True))
            family.add_sample(f"{self._name}_created", named, spread.since)
        return [family]
