"""What a client hears when no upstream has served, from how each of them failed it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.errors import UpstreamUnavailable
from proxy.health import State, UpstreamState
from proxy.refusal import refusal, shut_by
from proxy.verdicts import VERDICTS, Outcome

READY = UpstreamState(
    name="p/m",
    provider="p",
    state=State.READY,
    by="p/m",
    until=0.0,
    failures=0,
    cause=None,
    in_flight=0,
    limit=0,
)
# What is the request's own fault is told before anybody is refused.
OUTCOMES = st.sampled_from([each for each in sorted(VERDICTS) if VERDICTS[each].elsewhere])

# how the attempts ended, what shut the others, status, whether `retry_after` and `should_retry`
# say something
TOLD: dict[str, tuple[Sequence[Outcome], Sequence[Outcome], int, bool, bool | None]] = {
    "nobody knows the model": (["model_not_found"], ["model_not_found"], 404, False, None),
    "one knows the model, but is full": (["model_not_found"], ["busy"], 502, False, None),
    "all refuse us": (["auth", "tls"], ["quota"], 502, False, False),
    "all have refused us before": ([], ["auth", "model_not_found"], 503, True, False),
    "one refuses us, one is full": ([], ["auth", "busy"], 503, True, None),
    "all are shut": ([], ["server_error", "connect"], 503, True, None),
    "all are overloaded": (["overloaded", "rate_limited", "busy"], ["connect"], 503, True, None),
    "the last failed": (["idle_timeout", "overloaded", "reset"], [], 502, False, None),
    "the last was overloaded": (["server_error", "overloaded"], [], 502, False, None),
    "the last said nothing": (["overloaded", "idle_timeout"], [], 504, False, False),
    "the last could not be reached in time": (["connect_timeout"], ["busy"], 504, False, None),
    "the last says that it was too slow": (["timeout"], [], 504, False, None),
}


@pytest.mark.parametrize("name", TOLD)
def test_of_different_failures_one_thing_is_told(name: str) -> None:
    outcomes, shut, status, is_told_when, should_retry = TOLD[name]
    error = refusal(outcomes, shut, [7.0, 3.0])
    assert (error.status, error.should_retry) == (status, should_retry)
    assert error.retry_after == (3.0 if is_told_when else None)


def test_where_nobody_named_a_time_it_is_a_second() -> None:
    assert refusal(["overloaded"], [], []).retry_after == 1.0


def test_the_last_attempt_is_named() -> None:
    error = refusal(["dns", "reset"], [], [])
    assert isinstance(error, UpstreamUnavailable)
    assert "(2 attempts, the last: reset)" in error.message


@pytest.mark.parametrize(
    ("state", "cause", "told"),
    [
        (State.OPEN, "auth", "auth"),
        (State.OPEN, None, "busy"),  # what opened it is not known
        (State.RESTING, "rate_limited", "busy"),
        (State.FULL, "overloaded", "busy"),
        (State.PROBE, "server_error", "busy"),
    ],
)
def test_only_what_is_open_says_why_it_is_shut(
    state: State, cause: Outcome | None, told: Outcome
) -> None:
    assert shut_by(dataclasses.replace(READY, state=state, cause=cause)) == told


@given(st.lists(OUTCOMES), st.lists(OUTCOMES), st.lists(st.floats(0, 100)))
def test_whoever_is_told_when_is_told_to_come_back(
    outcomes: list[Outcome], shut: list[Outcome], waits: list[float]
) -> None:
    """Only overload has a time, the earliest one; and whether the model is known is said only where
    all upstreams say so."""
    if not (outcomes or shut):
        return
    error = refusal(outcomes, shut, waits)
    assert error.status in (404, 502, 503, 504)
    assert error.retry_after == (min(waits, default=1.0) if error.status == 503 else None)
    unknown = {*outcomes, *shut} == {"model_not_found"}
    assert (error.status == 404) == unknown
