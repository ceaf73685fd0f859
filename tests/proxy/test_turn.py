"""Whom a request asks next: the rules of `Turn`, moment by moment, without any I/O."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.codec import FailureKind, UpstreamFailure
from adapters.errors import (
    APIError,
    ContextLengthExceeded,
    ModelNotAvailable,
    RequestNotExpressible,
    UpstreamOverloaded,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from proxy.budget import Budget
from proxy.health import Health, State
from proxy.route import Candidate
from proxy.turn import (
    ASKED_MAX,
    ATTEMPTS_MAX,
    WAITS_SECONDS_MAX,
    Ask,
    GiveUp,
    Means,
    Step,
    Turn,
    Wait,
    opening,
)
from proxy.verdicts import VERDICTS, Fault, Outcome
from tests.fakes.gateway import model_of, providers_of, snapshot_of

NOW = 1000.0
ENDS_AT = NOW + 600


def candidates(*names: str) -> Sequence[Candidate]:
    providers = providers_of(*names)
    return snapshot_of([model_of("gpt", *providers)], providers).routes["gpt"].candidates


def no_chance() -> float:
    return 1.0


class Script:
    """One turn over upstreams of these names; `dice` are 1: no pause is shortened."""

    def __init__(
        self,
        *names: str,
        means: Means | None = None,
        ends_at: float = ENDS_AT,
        repeatable: bool = True,
        account: int = 1,
    ) -> None:
        self.means = means or means_of()
        self.order = candidates(*names)
        self.turn = Turn(self.order, self.means, ends_at, account, not repeatable)

    def asks(self, now: float) -> Ask:
        step = self.turn.next(now)
        assert isinstance(step, Ask), step
        return step

    def asks_in_vain(self, now: float, outcome: Outcome, *, hint: float | None = None) -> str:
        """The provider that is asked, and fails at once."""
        ask = self.asks(now)
        fails(self.turn, ask, outcome, now, hint=hint)
        return ask.candidate.upstream.provider.name

    def waits(self, now: float) -> float:
        """Seconds."""
        step = self.turn.next(now)
        assert isinstance(step, Wait), step
        return round(step.until - now, 6)

    def gives_up(self, now: float) -> APIError:
        step = self.turn.next(now)
        assert isinstance(step, GiveUp), step
        return step.error


def means_of(fraction: float = 0.2) -> Means:
    return Means(Health(dice=no_chance), Budget(fraction), no_chance, lambda: NOW)


def fails(turn: Turn, ask: Ask, outcome: Outcome, now: float, *, hint: float | None = None) -> None:
    ask.place.close()
    kind: FailureKind = "server_error"
    if VERDICTS[outcome].fault is Fault.REQUEST:
        kind = outcome  # type: ignore[assignment]  # only providers say so
    turn.failed(ask, outcome, UpstreamFailure(kind, "No.", retry_after=hint), now)


def test_the_next_upstream_is_asked_without_a_pause() -> None:
    script = Script("p", "q")
    assert script.asks_in_vain(NOW, "server_error") == "p"
    ask = script.asks(NOW)
    assert (ask.candidate.upstream.provider.name, ask.why) == ("q", "fallback")


def test_a_failure_that_may_pass_is_asked_again_with_growing_pauses() -> None:
    script = Script("p")
    now = NOW
    for pause in (0.5, 1.0):
        assert script.asks_in_vain(now, "server_error") == "p"
        assert script.waits(now) == pause
        now += pause
    assert script.asks_in_vain(now, "server_error") == "p"
    error = script.gives_up(now)
    assert isinstance(error, UpstreamUnavailable)
    assert script.turn.attempts == ASKED_MAX
    assert "3 attempts, the last: server_error" in error.message


def test_two_upstreams_are_asked_twice_each() -> None:
    script = Script("p", "q")
    assert [script.asks_in_vain(NOW, "server_error") for _ in "pq"] == ["p", "q"]
    assert script.waits(NOW) == 0.5
    assert [script.asks_in_vain(NOW + 0.5, "overloaded") for _ in "pq"] == ["p", "q"]
    assert isinstance(script.gives_up(NOW + 0.5), UpstreamUnavailable)


def test_all_upstreams_are_asked_however_many_there_are() -> None:
    names = "abcdef"
    script = Script(*names)
    assert "".join(script.asks_in_vain(NOW, "server_error") for _ in names) == names
    script.gives_up(NOW)


def test_what_a_provider_asks_for_is_obeyed_to_the_moment() -> None:
    script = Script("p")
    script.asks_in_vain(NOW, "rate_limited", hint=1.5)
    assert script.waits(NOW) == 1.5
    assert script.waits(NOW + 1.4999) == pytest.approx(0.0001)
    script.asks(NOW + 1.5)


def test_a_hint_beyond_patience_ends_it_at_once() -> None:
    script = Script("p")
    script.asks_in_vain(NOW, "rate_limited", hint=120.0)
    error = script.gives_up(NOW)
    assert isinstance(error, UpstreamOverloaded)
    assert error.retry_after == 60


def test_a_hint_keeps_other_requests_away_as_well() -> None:
    means = means_of()
    Script("p", "q", means=means).asks_in_vain(NOW, "rate_limited", hint=2.0)
    other = Script("p", "q", means=means)
    assert other.asks_in_vain(NOW + 1.9, "empty") == "q"
    assert Script("p", "q", means=means).asks_in_vain(NOW + 2.0, "empty") == "p"


def test_a_sole_upstream_that_rests_is_waited_for() -> None:
    means = means_of()
    Script("p", means=means).asks_in_vain(NOW, "rate_limited", hint=3.0)
    assert Script("p", means=means).waits(NOW + 1) == 2.0


@pytest.mark.parametrize("outcome", ["context_length", "bad_request", "content_filter"])
def test_the_request_s_own_fault_ends_it(outcome: FailureKind) -> None:
    script = Script("p", "q")
    script.asks_in_vain(NOW, outcome)
    assert script.turn.is_over
    assert script.gives_up(NOW).status == 400


def test_words_of_the_request_s_fault_are_kept() -> None:
    script = Script("p", "q")
    script.asks_in_vain(NOW, "context_length")
    assert isinstance(script.gives_up(NOW), ContextLengthExceeded)


@pytest.mark.parametrize("outcome", ["first_byte_timeout", "tls", "auth", "empty", "busy"])
def test_what_lasts_is_not_repeated(outcome: Outcome) -> None:
    script = Script("p")
    script.asks_in_vain(NOW, outcome)
    script.gives_up(NOW)


@pytest.mark.parametrize(
    ("outcomes", "error"),
    [
        (["auth", "first_byte_timeout"], UpstreamTimeout),
        (["first_byte_timeout", "auth"], UpstreamUnavailable),
        (["model_not_found", "model_not_found"], ModelNotAvailable),
        (["connect", "model_not_found"], UpstreamUnavailable),
        (["busy", "busy"], UpstreamOverloaded),
        (["busy", "empty"], UpstreamUnavailable),
    ],
)
def test_what_the_client_hears(outcomes: list[Outcome], error: type[APIError]) -> None:
    script = Script("p", "q", means=means_of(fraction=0.0))
    for outcome in outcomes:
        script.asks_in_vain(NOW, outcome)
    assert type(script.gives_up(NOW)) is error


def test_an_open_circuit_is_passed_over_and_a_sole_one_refused() -> None:
    means = means_of()
    for _ in range(5):
        Script("p", means=means).asks_in_vain(NOW, "server_error")
    assert Script("p", "q", means=means).asks_in_vain(NOW, "empty") == "q"
    error = Script("p", means=means).gives_up(NOW + 1)
    assert isinstance(error, UpstreamOverloaded)
    assert error.retry_after == pytest.approx(4.0)
    assert error.should_retry is None


def test_one_request_probes_and_the_others_go_elsewhere() -> None:
    means = means_of()
    for _ in range(5):
        Script("p", means=means).asks_in_vain(NOW, "server_error")
    probe = Script("p", "q", means=means)
    ask = probe.asks(NOW + 5)
    assert (ask.candidate.upstream.provider.name, ask.place.probe) == ("p", True)
    assert Script("p", "q", means=means).asks_in_vain(NOW + 5, "empty") == "q"
    patient = Script("p", means=means)
    assert patient.waits(NOW + 5) == 1.0  # for what the probe finds out, within limits
    assert isinstance(patient.gives_up(NOW + 10), UpstreamOverloaded)
    means.health.served(ask.candidate.upstream, NOW + 5, account=1)
    ask.place.close()
    assert Script("p", "q", means=means).asks_in_vain(NOW + 5, "empty") == "p"


@pytest.mark.parametrize(("outcome", "times"), [("auth", 1), ("quota", 1), ("forbidden", 5)])
def test_nobody_waits_for_what_only_an_operator_ends(outcome: Outcome, times: int) -> None:
    means = means_of()
    for _ in range(times):
        script = Script("p", means=means)
        script.asks_in_vain(NOW, outcome)
        error = script.gives_up(NOW)
        assert (type(error), error.should_retry) == (UpstreamUnavailable, False)
    error = Script("p", means=means).gives_up(NOW)
    assert (type(error), error.should_retry) == (UpstreamOverloaded, False)


def test_a_model_that_nobody_knows_stays_unknown() -> None:
    means = means_of()
    Script("p", means=means).asks_in_vain(NOW, "model_not_found")
    assert isinstance(Script("p", means=means).gives_up(NOW + 1), ModelNotAvailable)


@pytest.mark.parametrize(
    ("outcome", "should_retry"),
    [("first_byte_timeout", False), ("idle_timeout", False), ("connect_timeout", None)],
)
def test_nobody_is_to_wait_twice_for_as_long_as_that(
    outcome: Outcome, should_retry: bool | None
) -> None:
    script = Script("p")
    script.asks_in_vain(NOW, outcome)
    error = script.gives_up(NOW)
    assert (type(error), error.should_retry) == (UpstreamTimeout, should_retry)


def test_a_used_up_budget_forbids_repeats_but_no_fallback() -> None:
    means = means_of()
    for _ in range(20):
        means.budget.spend("p/upstream-model", NOW)
    script = Script("p", "q", means=means)
    assert script.asks_in_vain(NOW, "server_error") == "p"
    assert script.asks_in_vain(NOW, "empty") == "q"
    script.gives_up(NOW)


def test_a_request_that_runs_tools_there_is_not_said_twice() -> None:
    script = Script("p", "q", repeatable=False)
    assert script.asks_in_vain(NOW, "server_error") == "p"
    assert script.asks_in_vain(NOW, "server_error") == "q"
    script.gives_up(NOW)


def test_nothing_is_begun_after_the_end() -> None:
    script = Script("p", ends_at=NOW + 0.4)
    script.asks_in_vain(NOW, "server_error")
    script.gives_up(NOW)


def test_a_protocol_without_words_is_no_attempt() -> None:
    script = Script("p", "q")
    first = RequestNotExpressible("no place for audio", param="messages")
    for error in (first, RequestNotExpressible("nor here")):
        ask = script.asks(NOW)
        ask.place.close()
        script.turn.passed_over(ask, error)
    assert script.gives_up(NOW) is first
    assert script.turn.attempts == 0


def test_who_may_queue_for_a_connection() -> None:
    script = Script("p", "q")
    ask = script.asks(NOW)
    assert not ask.alone
    fails(script.turn, ask, "busy", NOW)
    assert script.asks(NOW).alone


def test_a_full_upstream_is_waited_for_within_the_time_to_connect() -> None:
    means = means_of()
    upstream = candidates("p")[0].upstream
    places = [means.health.enter(upstream, NOW) for _ in range(8)]
    means.health.failed(upstream, "overloaded", NOW)
    assert means.health.look(upstream, NOW)[0] is State.FULL
    script = Script("p", means=means)
    step = script.turn.next(NOW)
    assert step == Wait(NOW + 5.0, upstream)
    error = script.gives_up(NOW + 5.0)
    assert isinstance(error, UpstreamOverloaded)
    for place in places:
        assert place is not None
        place.close()


def test_a_hedge_asks_the_other_upstream_once() -> None:
    script = Script("p", "q")
    slow = script.asks(NOW)
    hedge = script.turn.hedge(slow, NOW)
    assert hedge is not None
    assert (hedge.candidate.upstream.provider.name, hedge.why) == ("q", "hedge")
    assert script.turn.hedge(slow, NOW) is None


def test_a_hedge_may_ask_a_sole_upstream_twice() -> None:
    script = Script("p")
    assert script.turn.hedge(script.asks(NOW), NOW) is not None


def test_no_hedge_after_a_provider_asked_for_less() -> None:
    script = Script("p", "q", "r")
    script.asks_in_vain(NOW, "rate_limited", hint=1.0)
    assert script.turn.hedge(script.asks(NOW), NOW) is None


def test_a_hedge_is_within_the_budget() -> None:
    script = Script("p", "q", means=means_of(fraction=0.0))
    assert script.turn.hedge(script.asks(NOW), NOW) is None


@given(
    st.integers(1, 6),
    st.lists(
        st.tuples(st.sampled_from(sorted(VERDICTS)), st.none() | st.floats(0, 100)), max_size=40
    ),
    st.floats(0, 30),
)
def test_every_turn_ends_within_its_bounds(
    upstreams: int, outcomes: list[tuple[Outcome, float | None]], seconds: float
) -> None:
    """Whatever happens: so many attempts and so long a wait at most, nobody asked before the time
    it named or after its circuit opened, and no place is kept."""
    names = [f"p{number}" for number in range(upstreams)]
    script = Script(*names, ends_at=NOW + seconds)
    now, waited = NOW, 0.0
    asked: dict[str, int] = dict.fromkeys(names, 0)
    ready_at: dict[str, float] = {}
    left = list(outcomes)
    step: Step = script.turn.next(now)
    while not isinstance(step, GiveUp):
        if isinstance(step, Wait):
            assert step.until > now
            waited += step.until - now
            now = step.until
            assert now <= NOW + seconds
        else:
            name = step.candidate.upstream.provider.name
            asked[name] += 1
            assert now >= ready_at.get(name, 0.0)
            assert script.means.health.in_flight(step.candidate.upstream) == 1
            outcome, hint = left.pop() if left else ("first_byte_timeout", None)
            fails(script.turn, step, outcome, now, hint=hint)
            if hint is not None:
                ready_at[name] = now + min(hint, 60.0)
        step = script.turn.next(now)
    assert waited <= WAITS_SECONDS_MAX + 1e-6
    assert sum(asked.values()) == script.turn.attempts <= max(ATTEMPTS_MAX, upstreams)
    assert max(asked.values()) <= ASKED_MAX
    assert all(script.means.health.in_flight(each.upstream) == 0 for each in script.order)


@given(
    st.integers(1, 4),
    st.booleans(),
    st.lists(
        st.tuples(st.sampled_from(sorted(VERDICTS)), st.none() | st.floats(0, 100)), min_size=1
    ),
)
def test_a_turn_goes_on_from_its_opening_as_if_it_had_made_it(
    upstreams: int, repeatable: bool, outcomes: list[tuple[Outcome, float | None]]
) -> None:
    names = [f"p{number}" for number in range(upstreams)]

    def told(*, opened: bool) -> list[object]:
        script = Script(*names, repeatable=repeatable)
        now, left = NOW, list(outcomes)
        steps: list[object] = []
        step: Step
        if opened:
            first = opening(script.order, script.means, now, 1, once=not repeatable)
            assert first is not None, "all of them are well"
            script.turn.opened(first)
            step = first
        else:
            step = script.turn.next(now)
        while not isinstance(step, GiveUp):
            if isinstance(step, Wait):
                steps.append(step)
                now = step.until
            else:
                steps.append((step.number, step.why, step.alone, step.once, step.place.probe))
                outcome, hint = left.pop() if left else ("first_byte_timeout", None)
                fails(script.turn, step, outcome, now, hint=hint)
            step = script.turn.next(now)
        return [*steps, type(step.error), step.error.message, script.turn.attempts]

    assert told(opened=True) == told(opened=False)


def test_there_is_no_opening_where_the_best_upstream_is_left_alone() -> None:
    means = means_of()
    for _ in range(5):
        Script("p", means=means).asks_in_vain(NOW, "server_error")
    assert opening(candidates("p", "q"), means, NOW, 1, once=False) is None
    asked = opening(candidates("q", "p"), means, NOW, 1, once=False)
    assert asked is not None
    assert not asked.alone
