"""Limits: all or nothing, never more than limit + burst, forgotten when idle."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ledger.limits import WINDOW_SECONDS, Denied, Limiter, LimitKind, LimitRef, LimitState

RPM = LimitRef("key", "rpm", 3)
TPM = LimitRef("key", "tpm", 100)
SLOTS = LimitRef("key", "concurrent", 2)


def denied(outcome: tuple[LimitState, ...] | Denied) -> Denied:
    assert isinstance(outcome, Denied)
    return outcome


def admitted(outcome: tuple[LimitState, ...] | Denied) -> tuple[LimitState, ...]:
    assert not isinstance(outcome, Denied)
    return outcome


def test_a_full_minute_may_come_at_once_and_then_refills_evenly() -> None:
    limiter = Limiter()
    for left in (2, 1, 0):
        assert admitted(limiter.admit(0, [RPM], 0))[0].remaining == left
    refusal = denied(limiter.admit(0, [RPM], 0))
    assert (refusal.limit, refusal.retry_after, refusal.never_fits) == (RPM, 20, False)
    admitted(limiter.admit(20, [RPM], 0))
    denied(limiter.admit(20, [RPM], 0))


def test_states_say_what_is_left_and_when_all_of_it_is_back() -> None:
    states = admitted(Limiter().admit(0, [RPM, TPM, SLOTS], 25))
    assert states == (
        LimitState("rpm", 3, 2, 20.0),
        LimitState("tpm", 100, 75, 15.0),
        LimitState("concurrent", 2, 1, 0.0),
    )


def test_one_refusal_consumes_nothing_anywhere() -> None:
    limiter = Limiter()
    admitted(limiter.admit(0, [SLOTS], 0))
    admitted(limiter.admit(0, [SLOTS], 0))
    refusal = denied(limiter.admit(0, [RPM, TPM, SLOTS], 60))
    assert refusal.limit == SLOTS
    assert [state.remaining for state in refusal.states] == [3, 100, 0]
    assert admitted(limiter.admit(0, [RPM, TPM], 100))[1].remaining == 0


def test_the_longest_wait_is_reported() -> None:
    limiter = Limiter()
    for _ in range(3):
        admitted(limiter.admit(0, [RPM, TPM], 30))
    assert denied(limiter.admit(0, [RPM, TPM], 100)).limit == TPM


@pytest.mark.parametrize("kind", ["tpm", "rpm", "concurrent"])
def test_what_is_larger_than_the_limit_never_fits(kind: LimitKind) -> None:
    ref = LimitRef("key", kind, 100 if kind == "tpm" else 0)
    assert denied(Limiter().admit(0, [ref], 101)).never_fits


def test_tokens_not_used_are_given_back() -> None:
    limiter = Limiter()
    admitted(limiter.admit(0, [TPM], 100))
    limiter.settle([TPM], 100, 40)
    assert admitted(limiter.admit(0, [TPM], 60))[0].remaining == 0


def test_tokens_used_beyond_the_estimate_are_a_debt() -> None:
    limiter = Limiter()
    admitted(limiter.admit(0, [TPM], 10))
    limiter.settle([TPM], 10, 150)
    refusal = denied(limiter.admit(0, [TPM], 10))
    assert refusal.retry_after == pytest.approx(36)
    assert refusal.states[0].remaining == 0


def test_a_slot_is_free_when_its_request_ends() -> None:
    limiter = Limiter()
    for _ in range(2):
        admitted(limiter.admit(0, [SLOTS], 0))
    denied(limiter.admit(0, [SLOTS], 0))
    limiter.settle([SLOTS], 0, 0)
    admitted(limiter.admit(0, [SLOTS], 0))


def test_undo_leaves_no_trace() -> None:
    limiter = Limiter()
    before = admitted(limiter.admit(0, [RPM, TPM, SLOTS], 10))
    admitted(limiter.admit(0, [RPM, TPM, SLOTS], 10))
    limiter.undo([RPM, TPM, SLOTS], 10)
    assert denied(limiter.admit(0, [RPM, TPM, SLOTS], 1000)).states == before


def test_a_changed_limit_keeps_what_was_used() -> None:
    limiter = Limiter()
    admitted(limiter.admit(0, [TPM], 100))
    raised = LimitRef("key", "tpm", 200)
    denied(limiter.admit(0, [raised], 1))
    admitted(limiter.admit(30, [raised], 100))


def test_idle_scopes_are_forgotten() -> None:
    limiter = Limiter()
    for second in range(20_000):
        admitted(limiter.admit(second, [LimitRef(f"key {second}", "rpm", 60)], 0))
    assert len(limiter) <= 2048


@settings(max_examples=200)
@given(
    st.integers(1, 50),
    st.lists(st.tuples(st.floats(0, 30), st.integers(0, 40)), min_size=1, max_size=60),
)
def test_no_window_sees_more_than_limit_and_burst(
    limit: int, arrivals: list[tuple[float, int]]
) -> None:
    limiter, ref = Limiter(), LimitRef("key", "tpm", limit)
    now = 0.0
    taken: list[tuple[float, int]] = []
    for pause, weight in arrivals:
        now += pause
        if not isinstance(limiter.admit(now, [ref], weight), Denied):
            taken.append((now, weight))
    for start, _ in taken:
        window = sum(w for at, w in taken if start <= at < start + WINDOW_SECONDS)
        assert window <= 2 * limit


@given(st.integers(1, 20), st.lists(st.booleans(), max_size=100))
def test_never_more_open_than_slots(limit: int, steps: list[bool]) -> None:
    limiter, ref = Limiter(), LimitRef("key", "concurrent", limit)
    running = 0
    for starts in steps:
        if starts:
            running += not isinstance(limiter.admit(0, [ref], 0), Denied)
        elif running:
            limiter.settle([ref], 0, 0)
            running -= 1
        assert running <= limit
    assert len(limiter) == (running > 0)
