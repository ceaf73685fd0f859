"""Retry budgets: extra attempts are a small fraction of what an upstream is asked."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from proxy.budget import FLOOR_PER_SECOND, WINDOW_SECONDS, Budget

FLOOR = round(FLOOR_PER_SECOND * WINDOW_SECONDS)


def extra_attempts(budget: Budget, upstream: str, now: float, wanted: int) -> int:
    """How many of so many extra attempts are allowed at one moment."""
    made = 0
    for _ in range(wanted):
        if budget.allows(upstream, now):
            budget.spend(upstream, now)
            made += 1
    return made


def test_a_quiet_gateway_may_try_again() -> None:
    assert extra_attempts(Budget(0.2), "p/m", 100.0, 1000) == FLOOR


def test_extra_attempts_are_a_fraction_of_the_first_ones() -> None:
    budget = Budget(0.2)
    for _ in range(1000):
        budget.asked("p/m", 100.0)
    assert extra_attempts(budget, "p/m", 100.0, 1000) == 200 + FLOOR


def test_each_upstream_has_a_budget_of_its_own() -> None:
    budget = Budget(0.2)
    extra_attempts(budget, "p/m", 100.0, 1000)
    assert budget.allows("q/m", 100.0)


def test_what_was_spent_comes_back_within_the_window() -> None:
    budget = Budget(0.2)
    extra_attempts(budget, "p/m", 100.0, 1000)
    assert not budget.allows("p/m", 100.5)
    assert extra_attempts(budget, "p/m", 100.0 + WINDOW_SECONDS, 1000) == 6  # 10 − 10/e


def test_what_was_not_spent_is_not_saved_up() -> None:
    budget = Budget(0.2)
    for _ in range(10_000):
        budget.asked("p/m", 100.0)
    assert extra_attempts(budget, "p/m", 100.0 + 10 * WINDOW_SECONDS, 1000) == FLOOR


def test_a_fraction_of_nothing_allows_none() -> None:
    budget = Budget(0.0)
    budget.asked("p/m", 100.0)
    assert not budget.allows("p/m", 100.0)


@given(
    st.floats(0.05, 1.0),
    st.lists(st.tuples(st.floats(0.0, 2.0), st.integers(0, 20)), min_size=1, max_size=60),
)
def test_extra_attempts_never_outgrow_what_was_asked(
    fraction: float, steps: list[tuple[float, int]]
) -> None:
    """Whatever the rhythm: no more than the fraction of all first attempts, and the floor of the
    time that has passed."""
    budget = Budget(fraction)
    now, first, extra = 100.0, 0, 0
    began = now
    for seconds, requests in steps:
        now += seconds
        for _ in range(requests):
            budget.asked("p/m", now)
        first += requests
        extra += extra_attempts(budget, "p/m", now, 50)
        floor = FLOOR_PER_SECOND * (now - began + WINDOW_SECONDS)
        assert extra <= fraction * first + floor + 0.001
