"""What is shown of plain numbers is what prometheus_client's own counters would show."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import prometheus_client
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from farebox.totals import Family, Sample, report_of
from proxy.tallies import Spreads, Tallies

BOUNDS = (0.001, 0.25, 1, 30)
LABELS = st.tuples(st.sampled_from(("a", "b")), st.sampled_from(("", 'quoted "\\\n')))
VALUES = st.one_of(st.sampled_from(BOUNDS), st.floats(0, 1e6, allow_nan=False))
NAMES = ("one", "two")


def shown(registry: CollectorRegistry) -> list[Family]:
    """A report; of the moments since which is counted, only that there are some."""
    return [
        msgspec.structs.replace(family, samples=tuple(map(_timeless, family.samples)))
        for family in report_of(registry)
    ]


def _timeless(sample: Sample) -> Sample:
    if sample.name.endswith("_created"):
        return msgspec.structs.replace(sample, value=float(sample.value > 0))
    return sample


@given(st.lists(st.tuples(LABELS, st.integers(0, 2**40))))
def test_counters(counted: Sequence[tuple[tuple[str, str], int]]) -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    tallies = Tallies(ours, "some_total", "Some", *NAMES)
    counter = prometheus_client.Counter("some_total", "Some", NAMES, registry=theirs)
    for labels, amount in counted:
        tallies(*labels).inc(amount)
        counter.labels(*labels).inc(amount)
    assert shown(ours) == shown(theirs)


@given(st.lists(st.tuples(LABELS, VALUES)))
@example([(("a", ""), 0.25), (("a", ""), 0.2500001), (("b", ""), 31.0)])
def test_histograms(seen: Sequence[tuple[tuple[str, str], float]]) -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    spreads = Spreads(ours, "some_seconds", "Some", *NAMES, bounds=BOUNDS)
    histogram = prometheus_client.Histogram(
        "some_seconds", "Some", NAMES, buckets=BOUNDS, registry=theirs
    )
    for labels, value in seen:
        spreads(*labels).observe(value)
        histogram.labels(*labels).observe(value)
    assert shown(ours) == shown(theirs)


def test_what_has_no_labels_is_there_from_the_start() -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    Tallies(ours, "some_total", "Some")()
    Spreads(ours, "some_seconds", "Some", bounds=BOUNDS)()
    prometheus_client.Counter("some_total", "Some", registry=theirs)
    prometheus_client.Histogram("some_seconds", "Some", buckets=BOUNDS, registry=theirs)
    assert shown(ours) == shown(theirs)


@given(st.lists(st.integers(0, 10**12), min_size=1))
def test_parts_are_added_exactly_and_shown_as_wholes(amounts: Sequence[int]) -> None:
    registry = CollectorRegistry()
    tally = Tallies(registry, "some_usd_total", "Dollars", parts=10**9)()
    for amount in amounts:
        tally.inc(amount)
    assert registry.get_sample_value("some_usd_total") == sum(amounts) / 10**9


@pytest.mark.parametrize("labels", [("a", "b"), ("b", "a")])
def test_what_was_made_for_some_labels_is_kept(labels: tuple[str, str]) -> None:
    tallies = Tallies(CollectorRegistry(), "some_total", "Some", *NAMES)
    assert tallies(*labels) is tallies(*labels)
    assert tallies(*labels) is not tallies("b", "b")
