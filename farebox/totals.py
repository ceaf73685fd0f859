"""What several processes counted, as one: the figures behind `/metrics`.

Each child reports what its registry holds; the supervisor adds the reports up.

Rules
- Counters and histograms are summed by name and labels, and what a process that has ended counted
  stays counted: a scrape never sees a counter go back.
- Gauges say how things are now, so they go with their process. They are summed, but for those of
  which there is one whatever the number of processes (`_MAXIMA`).
- A `…_created` sample is the moment since which is counted: the earliest one holds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Sequence

import msgspec
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

_MAXIMA = frozenset(
    {
        "farebox_build_info",
        "farebox_circuit_state",
        "farebox_ledger_oldest_event_seconds",
        "farebox_ledger_oldest_reservation_seconds",
        "farebox_ledger_workers",  # each is known to every ledger
        "farebox_upstream_in_flight",  # of the node, and known to every worker
        "farebox_upstream_limit",
        "farebox_upstream_state",
    }
)
_GAUGE = "gauge"

Combine = Callable[[float, float], float]


class Sample(msgspec.Struct, frozen=True, array_like=True):
    """One figure, as it stands in a line of `/metrics`."""

    name: str
    labels: dict[str, str]
    value: float


class Family(msgspec.Struct, frozen=True, array_like=True):
    """A metric with all its samples. `kind` is Prometheus's word for it."""

    name: str
    kind: str
    documentation: str
    samples: tuple[Sample, ...]


Report = Sequence[Family]


def report_of(registry: CollectorRegistry) -> list[Family]:
    """What a registry holds now. Takes milliseconds: call it in a thread."""
    return [
        Family(
            metric.name,
            metric.type,
            metric.documentation,
            tuple(
                Sample(each.name, each.labels, float(each.value))
                for each in metric.samples
                if math.isfinite(each.value)  # no sum is left of what is not
            ),
        )
        for metric in registry.collect()
    ]


def merged(reports: Iterable[Report]) -> list[Family]:
    """One report of several, by the rules above. The order of the first ones is kept."""
    heads: dict[str, Family] = {}
    sums: dict[str, dict[tuple[str, tuple[tuple[str, str], ...]], float]] = {}
    for family in (family for report in reports for family in report):
        heads.setdefault(family.name, family)
        values = sums.setdefault(family.name, {})
        for sample in family.samples:
            key = sample.name, tuple(sample.labels.items())
            before = values.get(key)
            combine = _rule(family, sample)
            values[key] = sample.value if before is None else combine(before, sample.value)
    return [
        Family(
            name,
            head.kind,
            head.documentation,
            tuple(Sample(of, dict(labels), value) for (of, labels), value in sums[name].items()),
        )
        for name, head in heads.items()
    ]


def _rule(family: Family, sample: Sample) -> Combine:
    if family.name in _MAXIMA:
        return max
    if family.kind != _GAUGE and sample.name.endswith("_created"):
        return min
    return _add


def _add(one: float, other: float) -> float:
    return one + other


def counted(report: Report) -> list[Family]:
    """What of a report outlives its process."""
    return [family for family in report if family.kind != _GAUGE]


class Totals:
    """The latest report of each living process, and what the dead ones counted."""

    def __init__(self) -> None:
        self._latest: dict[Hashable, Report] = {}
        self._retired: Report = ()

    def update(self, process: Hashable, report: Report) -> None:
        """This is how things stand at `process`."""
        self._latest[process] = report

    def retire(self, process: Hashable) -> None:
        """`process` is no more. Harmless where it never reported."""
        if (last := self._latest.pop(process, None)) is not None:
            self._retired = merged([self._retired, counted(last)])

    def report(self) -> list[Family]:
        """All of them as one."""
        return merged([self._retired, *self._latest.values()])


class _Prepared(Collector):
    def __init__(self, report: Report) -> None:
        self._report = report

    def collect(self) -> Iterable[Metric]:
        for family in self._report:
            metric = Metric(family.name, family.documentation, family.kind)
            for sample in family.samples:
                metric.add_sample(sample.name, sample.labels, sample.value)
            yield metric


def text_of(report: Report) -> bytes:
    """A report in Prometheus's text format. Takes milliseconds: call it in a thread."""
    registry = CollectorRegistry()
    registry.register(_Prepared(report))
    return generate_latest(registry)


def value_of(report: Report, name: str) -> float:
    """The sum of a sample over all its labels; 0 where there is none."""
    return sum(
        sample.value for family in report for sample in family.samples if sample.name == name
    )
