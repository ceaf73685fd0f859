"""What one request learns of an upstream spares the others the same, and nothing more than that."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest
import trio
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from trio.testing import MockClock, wait_all_tasks_blocked

from adapters.catalogue import Provider, Upstream
from proxy.circuit import (
    FAILURES,
    LIMIT,
    LIMIT_MIN,
    OPENINGS,
    RESTS_UNTIL,
    UNEASY,
    UNPAIRED,
    UNTIL,
    WORDS,
)
from proxy.health import Alarm, Change, Health, Notice, Place, State
from proxy.shared_rows import Rows
from proxy.verdicts import VERDICTS, Outcome, Says

READY, PROBE, OPEN = State.READY, State.PROBE, State.OPEN
A, B, C = 1, 2, 3  # accounts


def upstream(
    model: str = "gpt", provider: str = "p", *, failures: int = 5, seconds: float = 5
) -> Upstream:
    made = Provider(provider, "openai", "http://p", failures_to_open=failures, open_seconds=seconds)
    return Upstream(made, model, None)


P = upstream()


def new(told: list[Notice] | None = None, rows: Rows | None = None) -> Health:
    """Without chance."""
    notices: list[Notice] = [] if told is None else told
    return Health(rows, dice=lambda: 1.0, told=notices.append)


def asked(health: Health, at: Upstream, now: float, account: int = 0) -> Place:
    place = health.enter(at, now, account=account)
    assert place is not None
    return place


def fail(
    health: Health,
    now: float,
    *,
    times: int = 1,
    outcome: Outcome = "server_error",
    at: Upstream = P,
) -> None:
    for _ in range(times):
        place = asked(health, at, now)
        health.failed(at, outcome, now)
        place.close()


def answer(health: Health, now: float, *, at: Upstream = P, account: int = 0) -> None:
    with_place = asked(health, at, now, account)
    health.spoke(at)
    health.served(at, now, account=account)
    with_place.close()


# -- the circuit ----------------------------------------------------------------------------------


def test_a_healthy_upstream_may_be_asked() -> None:
    health = new()
    assert health.look(P, 3.0) == (READY, 3.0)
    place = asked(health, P, 3.0)
    assert not place.probe
    assert health.in_flight(P) == 1
    place.close()
    place.close()
    assert health.in_flight(P) == 0


def test_failures_in_a_row_open_it_for_a_while() -> None:
    health = new()
    fail(health, 1.0, times=4)
    assert health.look(P, 1.0) == (READY, 1.0)
    fail(health, 2.0)
    assert health.look(P, 2.0) == (OPEN, 7.0)
    assert health.enter(P, 6.999999) is None
    assert health.look(P, 7.0) == (PROBE, 7.0)


def test_pauses_double_up_to_a_minute_until_there_is_a_whole_answer() -> None:
    health = new()
    fail(health, 0.0, times=5)
    now, pauses = 0.0, []
    for _ in range(6):
        _, until = health.look(P, now)
        pauses.append(until - now)
        now = until
        fail(health, now)
    assert pauses == [5, 10, 20, 40, 60, 60]
    now = health.look(P, now)[1]
    place = asked(health, P, now)
    health.spoke(P)
    assert health.look(P, now) == (READY, now)
    health.failed(P, "truncated", now)  # cut after its first content: not well yet
    place.close()
    fail(health, now, times=4)
    assert health.look(P, now) == (OPEN, now + 60)
    now += 60
    answer(health, now)
    fail(health, now, times=5)
    assert health.look(P, now) == (OPEN, now + 5)


def test_chance_shortens_a_pause_by_a_fifth_at_most() -> None:
    for seed in range(50):
        health = Health(dice=random.Random(seed).random)
        fail(health, 100.0, times=5)
        assert 104 <= health.look(P, 100.0)[1] <= 105


def test_one_at_a_time_finds_out() -> None:
    health = new()
    fail(health, 0.0, times=5)
    probe = asked(health, P, 5.0)
    assert probe.probe
    assert health.look(P, 5.5) == (OPEN, 6.5)
    assert health.enter(P, 5.5) is None
    health.spoke(P)
    assert health.look(P, 6.0) == (READY, 6.0)
    assert not asked(health, P, 6.0).probe


def test_a_probe_that_comes_to_nothing_is_given_back() -> None:
    health = new()
    fail(health, 0.0, times=5)
    asked(health, P, 5.0).close()  # cancelled
    assert health.look(P, 5.1) == (PROBE, 5.1)
    fail(health, 5.1, outcome="busy")
    fail(health, 5.2, outcome="empty")
    assert health.look(P, 5.3) == (PROBE, 5.3)


@pytest.mark.parametrize("closed_first", [False, True])
@pytest.mark.parametrize("well", [False, True])
def test_the_order_of_outcome_and_end_does_not_matter(closed_first: bool, well: bool) -> None:
    health = new()
    fail(health, 0.0, times=5)
    place = asked(health, P, 5.0)
    if closed_first:
        place.close()
    if well:
        health.served(P, 5.0)
    else:
        health.failed(P, "server_error", 5.0)
    place.close()
    assert health.look(P, 5.0) == ((READY, 5.0) if well else (OPEN, 15.0))
    if not well:
        assert asked(health, P, 15.0).probe


def test_what_is_said_late_is_not_heard() -> None:
    """Attempts from before an opening end after it: it stays as it is."""
    health = new()
    late = [asked(health, P, 0.0) for _ in range(20)]
    fail(health, 1.0, times=5)
    for place in late:
        health.failed(P, "first_byte_timeout", 4.0)
        health.spoke(P)
        health.served(P, 4.0)
        place.close()
    assert health.look(P, 4.0) == (OPEN, 6.0)
    health.failed(P, "first_byte_timeout", 6.5)
    health.served(P, 6.5)
    assert health.look(P, 6.5) == (PROBE, 6.5)


def test_twenty_five_failures_at_once_are_one_opening() -> None:
    told: list[Notice] = []
    health = new(told)
    places = [asked(health, P, 0.0) for _ in range(25)]
    for place in places:
        health.failed(P, "server_error", 0.0)
        place.close()
    assert health.look(P, 0.0) == (OPEN, 5.0)
    answer(health, 5.0)
    assert health.look(P, 5.0) == (READY, 5.0)
    assert told == [
        Change("p/gpt", "opened", "server_error", failures=5, seconds=5),
        Change("p/gpt", "closed"),
    ]


def test_a_second_of_failures_a_request_is_out_after_five_and_back_with_one_probe() -> None:
    """One request a second; the provider fails for 25 s: asked five times, then by probes alone."""
    health = new()
    seen: list[int] = []
    for second in range(60):
        place = health.enter(P, second)
        if place is None:
            continue
        seen.append(second)
        if second < 25:
            health.failed(P, "server_error", second)
        else:
            health.served(P, second)
        place.close()
    assert seen == [0, 1, 2, 3, 4, 9, 19, *range(39, 60)]


def test_first_content_does_not_break_a_run_but_a_whole_answer_does() -> None:
    health = new()
    for _ in range(4):
        health.spoke(P)
        fail(health, 0.0, outcome="truncated")
    health.spoke(P)
    answer(health, 0.0)
    fail(health, 0.0, times=4)
    assert health.look(P, 0.0)[0] is READY
    fail(health, 0.0)
    assert health.look(P, 0.0)[0] is OPEN


@pytest.mark.parametrize("outcome", [o for o, v in VERDICTS.items() if v.says is Says.ALIVE])
def test_who_refuses_a_request_is_alive(outcome: Outcome) -> None:
    """But it breaks no run of failures: what looks at requests may be well where what answers them
    is not, and a client that sends nonsense would have nobody find out."""
    health = new()
    fail(health, 0.0, times=4)
    health.failed(P, outcome, 0.0)
    assert health.look(P, 0.0)[0] is READY
    fail(health, 0.0)
    assert health.look(P, 0.0)[0] is OPEN
    fail(health, 5.0, outcome=outcome)
    assert health.look(P, 5.0)[0] is READY


def test_what_fails_half_of_the_time_is_found_out_too() -> None:
    health = new()
    for number in range(11):  # twenty attempts since the first failure, and one
        answer(health, number / 10)
        fail(health, number / 10)
        assert (health.look(P, number / 10)[0] is OPEN) == (number == 10)


def test_what_fails_now_and_then_is_not() -> None:
    health = new()
    for number in range(1000):
        answer(health, number / 10)
        answer(health, number / 10)
        fail(health, number / 10)
        assert health.look(P, number / 10)[0] is READY


def test_failures_of_long_ago_do_not_count_as_often() -> None:
    health = new()
    for number in range(100):
        answer(health, number * 1.1)
        fail(health, number * 1.1)
        assert health.look(P, number * 1.1)[0] is READY


# -- providers ------------------------------------------------------------------------------------


def test_models_of_a_provider_that_is_away_need_no_failures_of_their_own() -> None:
    health = new()
    models = [upstream(f"m{number}") for number in range(30)]
    for model in models[:5]:
        fail(health, 0.0, at=model, outcome="connect")
    assert {health.look(model, 0.0) for model in models} == {(OPEN, 5.0)}
    assert health.look(upstream("m0", "q"), 0.0)[0] is READY
    probe = asked(health, models[7], 5.0)
    assert health.enter(models[8], 5.0) is None
    health.failed(models[7], "server_error", 5.0)  # it can be reached
    probe.close()
    assert {health.look(model, 5.0)[0] for model in models} == {READY}


def test_one_model_that_fails_leaves_the_others_alone() -> None:
    health = new()
    fail(health, 0.0, times=5)
    assert health.look(upstream("other"), 0.0)[0] is READY


def test_a_probe_of_both_takes_both() -> None:
    health = new()
    fail(health, 0.0, times=5)
    fail(health, 0.0, times=5, outcome="dns", at=upstream("other"))
    probe = asked(health, P, 5.0)
    assert health.enter(upstream("other"), 5.0) is None
    health.served(P, 5.0)
    probe.close()
    assert health.look(P, 5.0)[0] is READY
    assert health.look(upstream("other"), 5.0)[0] is READY


@pytest.mark.parametrize("outcome", [o for o, v in VERDICTS.items() if v.says is Says.OUT])
def test_what_an_operator_has_to_mend_is_out_at_once(outcome: Outcome) -> None:
    told: list[Notice] = []
    health = new(told)
    whole = VERDICTS[outcome].scope == "provider"
    fail(health, 3.0, outcome=outcome)
    assert health.look(P, 3.0) == (OPEN, 63.0)
    assert health.look(upstream("other"), 3.0)[0] is (OPEN if whole else READY)
    assert Change("p" if whole else "p/gpt", "opened", outcome, seconds=60) in told
    fail(health, 63.0, outcome=outcome)
    assert health.look(P, 63.0) == (OPEN, 123.0)


def test_a_minute_has_one_alarm_a_provider() -> None:
    told: list[Notice] = []
    health = new(told)
    for now in (0.0, 1.0, 59.0, 60.0, 61.0, 130.0):
        health.failed(P, "tls", now)
        health.failed(upstream("other"), "forbidden", now)
    health.failed(upstream("gpt", "q"), "auth", 61.0)
    alarms = [each for each in told if isinstance(each, Alarm)]
    assert len(alarms) == 13
    assert [each.provider for each in alarms if each.loud] == ["p", "p", "p", "q"]


# -- rests ----------------------------------------------------------------------------------------


def test_a_hint_is_obeyed_and_is_no_failure() -> None:
    told: list[Notice] = []
    health = new(told)
    for _ in range(10):
        health.failed(P, "rate_limited", 1.0, hint=2.0)
    assert health.look(P, 1.0) == (State.RESTING, 3.0)
    assert health.enter(P, 2.9) is None
    assert health.look(P, 3.0)[0] is READY
    assert [each.what for each in told if isinstance(each, Change)] == ["resting"]


def test_a_rest_is_a_minute_at_most_and_never_cut_short() -> None:
    health = new()
    health.failed(P, "rate_limited", 0.0, hint=120.0)
    health.failed(P, "rate_limited", 0.0, hint=1.0)
    assert health.look(P, 0.0) == (State.RESTING, 60.0)


@pytest.mark.parametrize("hint", [0.0, -1.0, math.nan])
def test_a_hint_that_names_no_time_is_none(hint: float) -> None:
    health = new()
    health.failed(P, "rate_limited", 1.0, hint=hint)
    assert health.look(P, 1.0) == (READY, 1.0)


def test_overload_with_a_hint_is_both() -> None:
    health = new()
    for _ in range(5):
        health.failed(P, "overloaded", 0.0, hint=30.0)
    assert health.look(P, 0.0) == (OPEN, 5.0)
    assert health.look(P, 5.0) == (State.RESTING, 30.0)
    assert health.look(P, 30.0) == (PROBE, 30.0)


# -- accounts -------------------------------------------------------------------------------------


def test_one_account_does_not_close_an_upstream_for_the_others() -> None:
    """A thousand requests that make it fail, while another account has an answer now and then."""
    health = new()
    for number in range(1000):
        now = number / 100
        health.failed(P, "server_error", now, account=A)
        if number % 100 == 0:
            answer(health, now, account=B)
        assert health.look(P, now) == (READY, now)


def test_not_even_with_answers_of_its_own_and_a_failure_of_somebody_else() -> None:
    health = new()
    answer(health, 0.0, account=B)
    for number in range(1000):
        now = number / 200
        health.failed(P, "server_error", now, account=A)
        if number == 500:
            answer(health, now, account=A)
        if number in (400, 900):
            health.failed(P, "server_error", now, account=C)
        assert health.look(P, now)[0] is READY


def test_two_accounts_that_fail_count_in_full() -> None:
    health = new()
    answer(health, 0.0, account=C)
    for account in (A, B, A, B, A):
        assert health.look(P, 1.0)[0] is READY
        health.failed(P, "server_error", 1.0, account=account)
    assert health.look(P, 1.0)[0] is OPEN


def test_an_account_that_is_alone_counts_in_full() -> None:
    health = new()
    answer(health, 0.0, account=A)
    for _ in range(5):
        health.failed(P, "server_error", 1.0, account=A)
    assert health.look(P, 1.0)[0] is OPEN


def test_others_protect_for_ten_seconds() -> None:
    health = new()
    answer(health, 0.0, account=B)
    for _ in range(5):
        health.failed(P, "server_error", 9.99, account=A)
    assert health.look(P, 9.99)[0] is READY
    health.failed(P, "server_error", 10.0, account=A)
    assert health.look(P, 10.0)[0] is OPEN


def closed_by_a() -> Health:
    """One account has failed five times, and nobody else has been heard of late."""
    health = new()
    for _ in range(5):
        health.failed(P, "server_error", 0.0, account=A)
    return health


def test_what_one_account_alone_has_closed_is_closed_for_it_alone() -> None:
    """Otherwise a customer whose requests nobody can serve would have it closed for all who ask
    now and then."""
    health = closed_by_a()
    assert health.look(P, 1.0) == health.look(P, 1.0, account=A) == (OPEN, 5.0)
    assert health.enter(P, 1.0, account=A) is None
    assert health.look(P, 1.0, account=B) == (READY, 1.0)
    places = [asked(health, P, 1.0, account) for account in (B, C, B)]
    assert not any(place.probe for place in places)
    health.spoke(P, account=B)
    health.served(P, 1.0, account=B)
    assert health.look(P, 1.0, account=A) == (OPEN, 5.0), (
        "their answers say nothing of its requests"
    )
    assert asked(health, P, 5.0, A).probe
    health.failed(P, "server_error", 5.0, account=A)
    assert health.look(P, 5.0, account=A) == (OPEN, 15.0)
    assert health.look(P, 5.0, account=B) == (READY, 5.0)


def test_it_finds_out_itself_that_it_is_served_again() -> None:
    health = closed_by_a()
    answer(health, 5.0, account=A)
    assert health.look(P, 5.0, account=A) == (READY, 5.0)


def test_where_the_others_fail_as_well_it_is_closed_for_all() -> None:
    health = closed_by_a()
    for number in range(4):
        health.failed(P, "server_error", 1.0, account=B if number % 2 else C)
    answer(health, 1.0, account=B)
    for _ in range(4):
        health.failed(P, "server_error", 1.0, account=C)
    assert health.look(P, 1.0, account=B) == (READY, 1.0)
    health.failed(P, "server_error", 1.0, account=B)
    for account in (A, B, C):
        assert health.look(P, 1.0, account=account) == (OPEN, 6.0)
    place = asked(health, P, 6.0, account=B)
    assert place.probe
    health.spoke(P, account=B)
    for account in (A, B, C):
        assert health.look(P, 6.0, account=account) == (READY, 6.0)


def test_what_several_accounts_have_closed_is_closed_for_all() -> None:
    health = new()
    for account in (A, A, A, A, B):
        health.failed(P, "server_error", 0.0, account=account)
    for account in (A, B, C):
        assert health.look(P, 0.0, account=account) == (OPEN, 5.0)


@pytest.mark.parametrize("outcome", ["auth", "model_not_found", "connect", "tls"])
def test_what_is_nobody_s_doing_is_told_to_all(outcome: Outcome) -> None:
    health = new()
    for _ in range(5):
        health.failed(P, outcome, 0.0, account=A)
    assert health.look(P, 0.0, account=B)[0] is OPEN


@pytest.mark.parametrize("seconds", [1, 9, 11, 15, 61, 200])
def test_an_attack_does_not_shut_out_who_asks_seldom(seconds: int) -> None:
    health = new()
    for tick in range(20 * 3600):
        now = tick / 20
        if (place := health.enter(P, now, account=A)) is not None:
            health.failed(P, "server_error", now, account=A)
            place.close()
        if tick % (20 * seconds) == 10:
            answer(health, now, account=B)


@pytest.mark.parametrize("seed", range(5))
def test_an_attack_costs_the_others_next_to_nothing(seed: int) -> None:
    """For an hour an account asks twenty times a second what nobody can serve; two others ask
    every second, and one answer in a hundred fails for no reason of theirs."""
    health = new()
    dice = random.Random(seed)
    passed_over = asked_for = 0
    for tick in range(3600 * 20):
        now = tick / 20
        if (place := health.enter(P, now, account=A)) is not None:
            health.failed(P, "server_error", now, account=A)
            place.close()
        if tick % 20 in (5, 15):
            account = B if tick % 20 == 5 else C
            asked_for += 1
            place = health.enter(P, now, account=account)
            if place is None:
                passed_over += 1
                continue
            if dice.random() < 0.01:
                health.failed(P, "server_error", now, account=account)
            else:
                health.served(P, now, account=account)
            place.close()
    assert passed_over < 0.005 * asked_for


def test_one_account_alone_does_not_limit_the_others() -> None:
    """What is too much may be its own requests: large ones at the end of a quota, say."""
    health = new()
    health.serve([P])
    places = [asked(health, P, 0.0) for _ in range(20)]
    for number in range(100):
        now = number / 5
        health.served(P, now, account=B)
        health.failed(P, "rate_limited", now, account=A)
    assert health.states(20.0)[0].limit == 0
    health.failed(P, "rate_limited", 20.0, account=B)
    assert health.states(20.0)[0].limit == 15, "somebody else as well"
    for place in places:
        place.close()


def test_an_account_that_is_alone_is_limited() -> None:
    health = new()
    health.serve([P])
    places = [asked(health, P, 0.0, A) for _ in range(20)]
    health.served(P, 0.0, account=A)
    health.failed(P, "overloaded", 0.0, account=A)
    assert health.states(0.0)[0].limit == 15
    for place in places:
        place.close()


# -- the limit ------------------------------------------------------------------------------------


def limited(health: Health, *, at: Upstream = P) -> list[Place]:
    """Four in flight, which is all that may be."""
    places = [asked(health, at, 0.0) for _ in range(4)]
    health.failed(at, "rate_limited", 0.0)
    return places


def test_overload_cuts_what_may_be_in_flight() -> None:
    health = new()
    places = [asked(health, P, 0.0) for _ in range(20)]
    health.failed(P, "rate_limited", 1.0)
    health.failed(P, "rate_limited", 1.9)  # the same overload
    assert health.look(P, 1.9)[0] is State.FULL
    assert health.enter(P, 1.9) is None
    for place in places[:6]:
        place.close()
    asked(health, P, 1.9)  # the fifteenth
    assert health.enter(P, 1.9) is None
    health.served(P, 1.95, account=A)
    health.failed(P, "rate_limited", 2.0)
    assert health.states(2.0) == []
    health.serve([P])
    (state,) = health.states(2.0)
    assert (state.limit, state.in_flight, state.state) == (11, 15, State.FULL)


def test_overload_with_next_to_nothing_in_flight_is_no_matter_of_places() -> None:
    health = new()
    health.serve([P])
    places = [asked(health, P, 0.0) for _ in range(3)]
    health.failed(P, "rate_limited", 0.0)
    health.failed(P, "connect_timeout", 0.0)
    assert health.states(0.0)[0].limit == 0
    assert places


def test_a_limit_is_never_below_four_and_forgotten_after_a_minute() -> None:
    health = new()
    health.serve([P])
    for place in limited(health):
        place.close()
    for times in range(5):
        health.failed(P, "rate_limited", 5.0 * times)
    assert health.states(20.0)[0].limit == 4
    places = [asked(health, P, 79.9) for _ in range(4)]
    assert health.enter(P, 79.9) is None
    places += [asked(health, P, 80.0) for _ in range(20)]
    assert health.states(80.0)[0].limit == 0
    assert health.in_flight(P) == 24


def test_who_refuses_everybody_is_away_and_not_limited_to_the_least() -> None:
    """A burst of refusals costs a part; with answers in between it tells what can be done."""
    for answered, limits in ((False, [75, 56]), (True, [75, 56, 42, 31, 23, 17, 12])):
        health = new()
        health.serve([P])
        kept = [asked(health, P, 0.0) for _ in range(100)]
        seen = []
        for half in range(14):
            now = half / 2
            if answered:
                health.served(P, now, account=A)
            health.failed(P, "rate_limited", now, account=A)
            seen.append(health.states(now)[0].limit)
        assert sorted({*seen}, reverse=True) == limits
        assert kept


def test_a_limit_grows_only_while_it_is_used() -> None:
    health = new()
    health.serve([P])
    for place in limited(health):
        place.close()
    for _ in range(100):
        answer(health, 1.0)
    assert health.states(1.0)[0].limit == 4
    kept = [asked(health, P, 1.0) for _ in range(3)]
    for number in range(1, 6):
        answer(health, 1.0)
        assert health.states(1.0)[0].limit == (4 if number < 4 else 5)
    assert kept


def test_after_ten_quiet_seconds_a_limit_doubles_with_each_round() -> None:
    """An upstream that had little to do when it was unwell, and now has all of it."""
    health = new()
    health.serve([P])
    kept = limited(health)
    for _ in range(3):
        limit = health.states(10.1)[0].limit
        while health.in_flight(P) < limit:
            kept.append(asked(health, P, 10.1))
        for _ in range(limit):
            health.served(P, 10.1)
            kept.append(asked(health, P, 10.1))  # there is room for one more now
        assert health.states(10.1)[0].limit == 2 * limit
    assert kept


def test_at_its_most_a_limit_is_none() -> None:
    at = replace(P, provider=replace(P.provider, max_connections=5))
    health = new()
    health.serve([at])
    for place in limited(health, at=at):
        place.close()
    kept = [asked(health, at, 1.0) for _ in range(3)]
    for _ in range(4):
        answer(health, 1.0, at=at)
    assert health.states(1.0)[0].limit == 0
    assert kept


async def test_the_limit_finds_what_a_provider_can_do(autojump_clock: MockClock) -> None:
    """It refuses above twenty at once; sixty callers always have something to ask.

    Whom it refuses is served elsewhere, as by a fallback.
    """
    health = new()
    health.serve([P])
    dice = random.Random(4)
    busy = refused = served = 0
    limits: list[int] = []

    async def ask() -> None:
        nonlocal busy, refused, served
        while True:
            await health.room(P)
            place = health.enter(P, trio.current_time())
            if place is None:
                continue
            busy += 1
            if refused_now := busy > 20:
                await trio.sleep(0.02)
                busy -= 1
                refused += 1
                health.failed(P, "rate_limited", trio.current_time(), account=A)
            else:
                await trio.sleep(dice.uniform(0.5, 3))
                busy -= 1
                served += 1
                health.served(P, trio.current_time(), account=A)
            place.close()
            if refused_now:
                await trio.sleep(dice.uniform(0.5, 3))

    with trio.move_on_after(300):
        async with trio.open_nursery() as nursery:
            for _ in range(60):
                nursery.start_soon(ask)
            await trio.sleep(30)
            while True:
                limits.append(health.states(trio.current_time())[0].limit)
                await trio.sleep(1)
    assert refused < 0.05 * served
    assert 15 <= sum(limits) / len(limits) <= 25
    assert 15 <= limits[-1] <= 25
    assert served > 0.8 * 20 * 300 / 1.75


# -- the queue ------------------------------------------------------------------------------------


async def test_who_waits_for_room_is_served_in_turn(autojump_clock: MockClock) -> None:
    health = new()
    places = limited(health)
    order: list[int] = []

    async def wait(number: int) -> None:
        await health.room(P)
        order.append(number)
        places.append(asked(health, P, trio.current_time()))

    async with trio.open_nursery() as nursery:
        for number in range(4):
            nursery.start_soon(wait, number)
            await wait_all_tasks_blocked()
        assert health.look(P, 0.0) == (State.FULL, math.inf)
        for served in range(1, 5):
            places.pop(0).close()
            assert health.enter(P, trio.current_time()) is None, "somebody waits for it"
            await wait_all_tasks_blocked()
            assert order == list(range(served))
    assert health.in_flight(P) == 4


async def test_who_leaves_the_queue_holds_up_nobody(autojump_clock: MockClock) -> None:
    health = new()
    places = limited(health)
    async with trio.open_nursery() as nursery:
        leaving = trio.CancelScope()

        async def leave() -> None:
            with leaving:
                await health.room(P)

        nursery.start_soon(leave)
        await wait_all_tasks_blocked()
        nursery.start_soon(health.room, P)
        await wait_all_tasks_blocked()
        leaving.cancel()
        places[0].close()
    assert health.look(P, 0.0)[0] is READY


async def test_who_waits_sees_an_opening_soon(autojump_clock: MockClock) -> None:
    health = new()
    limited(health)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(health.room, P)
        await trio.sleep(1)
        for _ in range(5):
            health.failed(P, "server_error", trio.current_time())
    assert trio.current_time() <= 1.25


async def test_room_is_there_at_once_where_there_is_no_limit(autojump_clock: MockClock) -> None:
    health = new()
    await health.room(P)
    assert trio.current_time() == 0


async def test_what_waiting_takes_is_told_from_the_answers_before(
    autojump_clock: MockClock,
) -> None:
    health = new()
    limited(health)
    assert health.look(P, 0.0) == (State.FULL, 0.0)
    for second in (1.0, 3.0, 5.0):
        health.served(P, second)
    assert health.look(P, 5.0) == (State.FULL, 7.0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(health.room, P)
        await wait_all_tasks_blocked()
        assert health.look(P, 5.0) == (State.FULL, 9.0)
        nursery.cancel_scope.cancel()


# -- names ----------------------------------------------------------------------------------------


def test_a_reload_forgets_nothing() -> None:
    health = new()
    health.serve([P])
    fail(health, 0.0, times=5)
    running = asked(health, upstream("other"), 0.0)
    health.serve([upstream(), upstream("other")])
    assert health.look(upstream(), 1.0) == (OPEN, 5.0)
    assert health.in_flight(upstream("other")) == 1
    running.close()
    assert health.in_flight(upstream("other")) == 0
    health.serve([upstream("third")])
    assert [each.name for each in health.states(1.0)] == ["p/third"]


def test_a_name_without_a_row_is_looked_after_all_the_same() -> None:
    health = new(rows=Rows.private(WORDS, rows=2))
    for model in ("a", "b", "c"):
        fail(health, 0.0, times=5, at=upstream(model))
        assert health.look(upstream(model), 0.0) == (OPEN, 5.0)


def test_states_say_whose_circuit_it_is() -> None:
    health = new()
    models = [upstream(model) for model in ("a", "b", "c")] + [upstream("d", "q")]
    health.serve(models)
    fail(health, 0.0, times=5, at=models[0])
    health.failed(models[1], "rate_limited", 0.0, hint=7.0)
    found = {each.name: each for each in health.states(1.0)}
    assert (found["p/a"].state, found["p/a"].by, found["p/a"].until) == (OPEN, "p/a", 5.0)
    assert (found["p/a"].failures, found["p/a"].cause) == (5, "server_error")
    assert (found["p/b"].state, found["p/b"].until) == (State.RESTING, 7.0)
    assert (found["p/c"].state, found["p/c"].cause) == (READY, None)
    fail(health, 1.0, times=5, at=models[2], outcome="connect")
    found = {each.name: each for each in health.states(6.0)}
    assert (found["p/c"].state, found["p/c"].by) == (PROBE, "p")
    assert found["q/d"].state is READY


# -- all of it, against a model -------------------------------------------------------------------


ENDS: tuple[Outcome | None, ...] = (None, "server_error", "connect", "bad_request", "auth", "busy")


class Circuits(RuleBasedStateMachine):
    """Two models of one provider and whatever may happen to them, against a few plain numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.health = new()
        self.now = 0.0
        self.models = (upstream("a", failures=3), upstream("b", failures=3))
        self.places: list[tuple[int, Place]] = []
        self.model = {name: Plain() for name in ("a", "b", "")}

    def both(self, number: int) -> tuple[Plain, Plain]:
        return self.model["ab"[number]], self.model[""]

    @rule(seconds=st.sampled_from([0.25, 1.0, 5.0, 61.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(number=st.integers(0, 1))
    def enter(self, number: int) -> None:
        expected = max(each.admits(self.now) for each in self.both(number))
        place = self.health.enter(self.models[number], self.now)
        assert (place is not None) == (expected < 2)
        if place is not None:
            assert place.probe == (expected == 1)
            for each in self.both(number):
                each.enter(place)
            self.places.append((number, place))

    @rule(
        index=st.integers(0, 100),
        outcome=st.sampled_from(ENDS),
    )
    def end(self, index: int, outcome: Outcome | None) -> None:
        if not self.places:
            return
        number, place = self.places.pop(index % len(self.places))
        at, (own, provider) = self.models[number], self.both(number)
        if outcome is None:
            self.health.served(at, self.now)
            own.alive(whole=True)
            provider.alive(whole=True)
        else:
            self.health.failed(at, outcome, self.now)
            verdict = VERDICTS[outcome]
            about = provider if verdict.scope == "provider" else own
            if about is own and verdict.says is not Says.NOTHING:
                provider.alive(whole=False)
            if verdict.says is Says.FAILURE:
                about.fail(self.now)
            elif verdict.says is Says.OUT:
                about.out(self.now)
            elif verdict.says is Says.ALIVE and about.until:
                about.alive(whole=False)
        place.close()
        own.leave(place)
        provider.leave(place)

    @rule(index=st.integers(0, 100))
    def speak(self, index: int) -> None:
        if self.places:
            number, _ = self.places[index % len(self.places)]
            self.health.spoke(self.models[number])
            for each in self.both(number):
                if each.until:
                    each.alive(whole=False)

    @invariant()
    def as_the_model_says(self) -> None:
        for number, at in enumerate(self.models):
            own, provider = self.both(number)
            state, _ = self.health.look(at, self.now)
            expected = max(own.admits(self.now), provider.admits(self.now))
            assert state is (READY, PROBE, OPEN)[expected]
            assert self.health.in_flight(at) == sum(1 for each, _ in self.places if each == number)


class Plain:
    """A circuit as it would be told in a few sentences."""

    def __init__(self) -> None:
        self.failures = 0
        self.openings = 0
        self.until = 0.0
        self.prober: Place | None = None
        self.probed = 0.0

    def admits(self, now: float) -> int:
        """0: yes. 1: as a probe. 2: no."""
        if not self.until:
            return 0
        return 2 if now < self.until or self.prober is not None else 1

    def enter(self, place: Place) -> None:
        if self.until:
            self.prober, self.probed = place, self.until

    def leave(self, place: Place) -> None:
        if self.prober is place:
            self.prober = None

    def alive(self, *, whole: bool) -> None:
        if self.until and self.until != self.probed:
            return
        if self.until:
            self.until, self.prober = 0.0, None
        self.failures = 0
        self.openings = 0 if whole else self.openings

    def fail(self, now: float) -> None:
        if self.until and self.until != self.probed:
            return
        self.failures += 1
        if self.until or self.failures >= 3:
            self.until = now + min(5 * 2**self.openings, 60)
            self.openings += 1
            self.prober = None

    def out(self, now: float) -> None:
        if self.until <= now:
            self.prober = None
        self.until = max(self.until, now + 60)


# Fewer steps than it takes to fail often, if not in a row, which the plain circuits do not know of.
TestCircuits = Circuits.TestCase
TestCircuits.settings = hypothesis_settings(max_examples=100, stateful_step_count=39, deadline=None)


class Anything(RuleBasedStateMachine):
    """Whatever happens to an upstream, these hold."""

    def __init__(self) -> None:
        super().__init__()
        rows = Rows.private(WORDS, rows=8)
        self.health = new(rows=rows)
        self.health.serve([P])
        self.words = rows.row(P.name).words
        self.now = 0.0
        self.places: list[Place] = []

    @rule(seconds=st.floats(0, 70))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(account=st.integers(0, 3), times=st.integers(1, 30))
    def enter(self, account: int, times: int) -> None:
        for _ in range(times):
            state, _ = self.health.look(P, self.now, account=account)
            place = self.health.enter(P, self.now, account=account)
            if place is None:
                assert state is not READY
            else:
                assert (state is PROBE) == place.probe
                assert state in (READY, PROBE)
                self.places.append(place)

    @rule(times=st.integers(1, 30))
    def close(self, times: int) -> None:
        for place in self.places[:times]:
            place.close()
        del self.places[:times]

    @rule(account=st.integers(0, 3), times=st.integers(1, 30))
    def serve(self, account: int, times: int) -> None:
        for _ in range(times):
            self.health.served(P, self.now, account=account)

    @rule(account=st.integers(0, 3))
    def speak(self, account: int) -> None:
        self.health.spoke(P, account=account)

    @rule(
        outcome=st.sampled_from(sorted(VERDICTS)),
        hint=st.none() | st.floats(),
        account=st.integers(0, 3),
        times=st.integers(1, 30),
    )
    def fail(self, outcome: Outcome, hint: float | None, account: int, times: int) -> None:
        for _ in range(times):
            self.health.failed(P, outcome, self.now, hint=hint, account=account)

    @invariant()
    def places_are_counted(self) -> None:
        assert self.health.in_flight(P) == len(self.places)

    @invariant()
    def who_is_at_ease_has_nothing(self) -> None:
        """What a healthy upstream is not asked is not there."""
        troubles = (FAILURES, UNTIL, OPENINGS, RESTS_UNTIL, LIMIT)
        assert self.words[UNEASY] == any(self.words[each] for each in troubles)

    @invariant()
    def bounds_hold(self) -> None:
        assert self.words[LIMIT] == 0 or LIMIT_MIN <= self.words[LIMIT] < P.provider.max_connections
        assert 0 <= self.words[UNPAIRED] <= self.words[FAILURES]
        state, until = self.health.look(P, self.now)
        if state in (OPEN, State.RESTING):
            assert self.now < until <= self.now + 60.001
        elif state is not State.FULL:
            assert until == self.now


TestAnything = Anything.TestCase
TestAnything.settings = hypothesis_settings(max_examples=60, stateful_step_count=40, deadline=None)
