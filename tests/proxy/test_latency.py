"""Quantiles that err upwards and by little, means of the last minute, and what is forgotten."""

from __future__ import annotations

from math import ceil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.histogram import Histogram
from proxy.latency import SAMPLES_MIN, Latencies, Latency

# -- histograms -----------------------------------------------------------------------------------


@given(
    st.lists(st.floats(1, 2**20), min_size=1, max_size=400),
    st.integers(1, 99),
)
def test_a_quantile_errs_upwards_and_by_less_than_a_tenth(
    values: list[float], percent: int
) -> None:
    histogram = Histogram(octaves=20, seen_max=1000)
    for value in values:
        histogram.add(value)
    exact = sorted(values)[ceil(len(values) * percent / 100) - 1]
    assert exact * (1 - 1e-9) <= histogram.quantile(percent) <= exact * 1.1


def test_nothing_seen_is_a_quantile_of_nothing() -> None:
    assert Histogram(octaves=4, seen_max=10).quantile(50) == 0


@pytest.mark.parametrize(("value", "counted"), [(0, 1), (0.001, 1), (1, 1), (1e9, 16)])
def test_what_is_out_of_bounds_counts_as_the_nearest(value: float, counted: float) -> None:
    histogram = Histogram(octaves=4, seen_max=10)
    histogram.add(value)
    assert histogram.quantile(50) == counted


def test_counts_are_halved_and_may_all_vanish() -> None:
    histogram = Histogram(octaves=20, seen_max=4)
    for value in (1, 10, 100, 1000):
        histogram.add(value)
    assert (histogram.seen, histogram.quantile(99)) == (0, 0)
    for _ in range(1000):
        histogram.add(10)
        assert histogram.seen < 4


# -- latencies ------------------------------------------------------------------------------------


def filled(values: list[float], now: float = 0) -> Latency:
    latency = Latency()
    for value in values:
        latency.add(value, now)
    return latency


def test_a_quantile_takes_fifty_answers() -> None:
    latency = filled([0.2] * (SAMPLES_MIN - 1))
    assert latency.quantile(95) is None
    latency.add(0.2, 0)
    assert latency.quantile(95) == pytest.approx(0.2, rel=0.1)


def test_a_quantile_is_of_the_slow_ones() -> None:
    latency = filled([0.2] * 90 + [3.0] * 10)
    assert latency.quantile(50) == pytest.approx(0.2, rel=0.1)
    assert latency.quantile(95) == pytest.approx(3.0, rel=0.1)


def test_a_quantile_follows() -> None:
    latency = filled([5.0] * 900)
    for _ in range(3000):
        latency.add(0.1, 0)
    assert latency.quantile(95) == pytest.approx(0.1, rel=0.1)


def test_a_mean_takes_ten_answers_of_the_last_minute() -> None:
    latency = filled([1.0] * 9, now=900)
    assert latency.mean(900) is None
    latency.add(2.0, 900)
    assert latency.mean(900) == pytest.approx(1.1)
    assert latency.mean(959) == pytest.approx(1.1)
    assert latency.mean(960) is None


def test_a_mean_is_of_two_windows() -> None:
    latency = filled([1.0] * 10, now=0)
    for _ in range(10):
        latency.add(3.0, 30)
    assert latency.mean(59) == pytest.approx(2.0)
    assert latency.mean(60) == pytest.approx(3.0)


def test_what_lasted_is_a_whole_window_with_twenty_answers() -> None:
    latency = filled([4.0] * 20, now=0)
    assert latency.whole_mean(29.9) is None
    assert latency.whole_mean(30) == pytest.approx(4.0)
    assert latency.whole_mean(60) is None
    assert filled([4.0] * 19).whole_mean(30) is None


def test_windows_go_on_from_any_moment() -> None:
    latency = filled([1.0] * 20, now=1_000_000.5)
    latency.add(1.0, 1_000_031)
    assert latency.whole_mean(1_000_031) == pytest.approx(1.0)


@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0, 60)), max_size=200))
def test_a_mean_is_between_the_least_and_the_most(steps: list[tuple[float, float]]) -> None:
    latency, now = Latency(), 0.0
    for seconds, pause in steps:
        now += pause
        latency.add(seconds, now)
        if (mean := latency.mean(now)) is not None:
            values = [value for value, _ in steps]
            assert min(values) - 1e-9 <= mean <= max(values) + 1e-9


def test_streams_and_plain_answers_are_kept_apart() -> None:
    latencies = Latencies()
    latencies.of("p/m", streamed=True).add(1.0, 0)
    assert latencies.of("p/m", streamed=True) is latencies.of("p/m", streamed=True)
    assert latencies.of("p/m", streamed=True) is not latencies.of("p/m", streamed=False)
    assert latencies.of("q/m", streamed=True) is not latencies.of("p/m", streamed=True)
