"""Two attempts at once: who wins, what the loser leaves behind, and what it costs whom.

A whole worker between scripted providers and clients in memory. Time is virtual and the dice show
1, so that moments are exact: the usual answer of every upstream has begun after `USUAL_SECONDS`,
which is therefore when a second attempt begins.
"""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from adapters.catalogue import Model
from ledger.store import EventStatus
from proxy.budget import Budget
from proxy.outputs import Outputs
from proxy.settings import ServerSettings
from proxy.turn import ATTEMPTS_MAX
from tests.fakes import provider
from tests.fakes.gateway import World, model_of, providers_of, running
from tests.fakes.provider import STREAM_HEAD
from tests.fakes.scenes import (
    CHARGE,
    CHAT,
    Act,
    Event,
    Got,
    Upstream,
    always_one,
    ask,
    assert_nothing_is_held,
    booked,
    broken,
    cost_of_losers,
    failed,
    fails,
    logged,
    metric,
    moment,
    moments,
    question,
    says,
    told,
)

PATIENCE = 60  # samples, of which a quantile needs 50
USUAL_SECONDS = 2.048  # as the histogram rounds it
COST = 20_000  # of a whole answer
STREAMED = pytest.mark.parametrize("streamed", [False, True], ids=["plain", "stream"])

SETTLED, CANCELLED = EventStatus.SETTLED, EventStatus.CANCELLED
FAILED = EventStatus.FAILED


@asynccontextmanager
async def scene(
    usual_seconds: float = 2.0, percentile: int = 95, **hosts: Upstream
) -> AsyncIterator[World]:
    """A gateway with a hedged `gpt` at these hosts, which usually take so long."""
    models = [hedged(*hosts, percentile=percentile)]
    async with running(hosts, models=models, dice=always_one) as world:
        know(world, usual_seconds)
        yield world


def hedged(*names: str, percentile: int = 95, **options: object) -> Model:
    """The model."""
    providers = providers_of(*names, idle_seconds=30.0, connect_seconds=5.0)
    return model_of("gpt", *providers, hedge_after_percentile=percentile, **options)


def know(world: World, seconds: float, samples: int = PATIENCE) -> None:
    """Let the worker have seen so many answers that took so long, of every upstream."""
    for candidate in world.gateway.snapshot.routes["gpt"].candidates:
        for streamed in (False, True):
            latency = world.gateway.latencies.of(candidate.upstream.name, streamed=streamed)
            for _ in range(samples):
                latency.add(seconds, trio.current_time())


def hedges(world: World) -> dict[str, float]:
    """How many second attempts there were, by what came of them."""
    counted = {
        came: metric(world, "farebox_hedges_total", model="gpt", outcome=came)
        for came in ("won", "lost", "failed")
    }
    return {came: number for came, number in counted.items() if number}


# -- when -----------------------------------------------------------------------------------------


@STREAMED
async def test_a_second_attempt_begins_when_the_usual_time_is_over(
    streamed: bool, autojump_clock: MockClock
) -> None:
    p, q = Upstream(says("p", after=20.0)), Upstream(says("q", after=1.0))
    async with scene(p=p, q=q) as world:
        got = await ask(world, streamed=streamed)
        assert (got.status, got.text) == (200, "q")
        assert got.at == moment(USUAL_SECONDS + 1.0)
        assert (p.asked_at, q.asked_at) == (moments(0.0), moments(USUAL_SECONDS))
        assert p.left_at == moments(got.at), "the loser is let go at once"
        assert await booked(world) == [("p", CANCELLED, 0), ("q", SETTLED, CHARGE)]
        (cost,) = await cost_of_losers(world)
        assert cost > 0
        assert hedges(world) == {"won": 1}
        await assert_nothing_is_held(world)


@STREAMED
async def test_the_first_attempt_may_still_win(streamed: bool, autojump_clock: MockClock) -> None:
    p, q = Upstream(says("p", after=2.5)), Upstream(says("q", after=10.0))
    async with scene(p=p, q=q) as world:
        got = await ask(world, streamed=streamed)
        assert (got.text, got.at) == ("p", moment(2.5))
        assert q.asked_at == moments(USUAL_SECONDS)
        assert q.left_at == moments(2.5)
        assert await booked(world) == [("p", SETTLED, CHARGE), ("q", CANCELLED, 0)]
        (cost,) = await cost_of_losers(world)
        assert cost > 0
        assert hedges(world) == {"lost": 1}
        (line,) = await logged(world)
        assert (line["upstream"], line["attempts"]) == ("p/upstream-model", 2)
        await assert_nothing_is_held(world)


@STREAMED
async def test_an_answer_in_the_usual_time_is_asked_for_once(
    streamed: bool, autojump_clock: MockClock
) -> None:
    p, q = Upstream(says("p", after=2.0)), Upstream(says("q"))
    async with scene(p=p, q=q) as world:
        assert (await ask(world, streamed=streamed)).text == "p"
        assert q.calls == 0
        assert hedges(world) == {}
        await assert_nothing_is_held(world)


async def test_without_enough_answers_there_is_no_usual_time(autojump_clock: MockClock) -> None:
    p, q = Upstream(says("p", after=20.0)), Upstream(says("q"))
    async with running({"p": p, "q": q}, models=[hedged("p", "q")]) as world:
        know(world, 2.0, samples=49)
        assert (await ask(world, streamed=False)).text == "p"
        assert q.calls == 0


async def test_plain_and_streamed_answers_have_usual_times_of_their_own(
    autojump_clock: MockClock,
) -> None:
    p, q = Upstream(says("p", after=20.0)), Upstream(says("q"))
    async with running({"p": p, "q": q}, models=[hedged("p", "q")]) as world:
        for _ in range(PATIENCE):
            world.gateway.latencies.of("p/upstream-model", streamed=True).add(2.0, 0.0)
        assert (await ask(world, streamed=False)).text == "p"
        assert (await ask(world, streamed=True)).text == "q"


async def test_the_usual_time_is_learnt_from_answers(autojump_clock: MockClock) -> None:
    p, q = Upstream(*[says("p", after=0.5)] * 50, says("p", after=20.0)), Upstream(says("q"))
    async with running({"p": p, "q": q}, models=[hedged("p", "q")]) as world:
        for _ in range(50):
            assert (await ask(world, streamed=True)).text == "p"
        got = await ask(world, streamed=True)
        assert got.text == "q"
        assert 0.5 <= got.at < 0.6


@STREAMED
async def test_a_sole_upstream_is_asked_beside_itself(
    streamed: bool, autojump_clock: MockClock
) -> None:
    p = Upstream(says("first", after=20.0), says("second", after=1.0))
    async with scene(p=p) as world:
        got = await ask(world, streamed=streamed)
        assert (got.text, got.at) == ("second", moment(USUAL_SECONDS + 1.0))
        assert p.asked_at == moments(0.0, USUAL_SECONDS)
        assert p.left_at == moments(got.at)
        assert await booked(world) == [("p", SETTLED, CHARGE), ("p", CANCELLED, 0)]
        await assert_nothing_is_held(world)


async def test_no_second_attempt_beyond_the_budget(autojump_clock: MockClock) -> None:
    p, q = Upstream(says("p", after=3.0)), Upstream(says("q"))
    async with scene(p=p, q=q) as world:
        world.gateway.means = dataclasses.replace(world.gateway.means, budget=Budget(0.0))
        assert (await ask(world, streamed=True)).text == "p"
        assert q.calls == 0
        assert hedges(world) == {}


async def test_second_attempts_are_a_fraction_of_what_is_asked(autojump_clock: MockClock) -> None:
    """However slow the first upstream becomes."""
    p, q = Upstream(says("p", after=20.0)), Upstream(says("q"))
    async with scene(p=p, q=q) as world:
        async with trio.open_nursery() as nursery:
            for _ in range(100):
                nursery.start_soon(lambda: ask(world, streamed=True))
        assert p.calls == 100
        assert q.calls == 26  # ten, and a fifth of what the last ten seconds weigh
        await assert_nothing_is_held(world)


async def test_the_slow_upstream_s_traffic_pays_for_second_attempts(
    autojump_clock: MockClock,
) -> None:
    """Not that of whoever is asked instead, who may have none of its own: as many requests as are
    slow have a second attempt, as long as they are few among all."""
    p, q = Upstream(*[*[says("p")] * 9, says("p", after=20.0)] * 40), Upstream(says("q"))
    async with scene(p=p, q=q) as world:
        async with trio.open_nursery() as nursery:
            for _ in range(400):
                nursery.start_soon(lambda: ask(world, streamed=True))
                await trio.sleep(0.025)
        assert q.calls == 40
        assert hedges(world) == {"won": 40}


async def test_what_the_provider_may_do_is_not_asked_for_twice(autojump_clock: MockClock) -> None:
    p, q = Upstream(says("p", after=5.0)), Upstream(says("q"))
    async with scene(p=p, q=q) as world:
        got = await ask(world, streamed=True, tools=[{"type": "mcp", "server_label": "x"}])
        assert got.text == "p"
        assert q.calls == 0


async def test_there_is_one_second_attempt_a_request(autojump_clock: MockClock) -> None:
    """Also where it goes on with upstreams that could not be asked before."""
    p, q = Upstream(fails(500, after=4.0)), Upstream(fails(500, after=1.0))
    r, s = Upstream(says("r", after=10.0)), Upstream(says("s"))
    async with scene(p=p, q=q, r=r, s=s) as world:
        for candidate in world.gateway.snapshot.routes["gpt"].candidates[2:]:
            health, upstream = world.gateway.means.health, candidate.upstream
            health.failed(upstream, "rate_limited", trio.current_time(), hint=6.0)
        await ask(world, streamed=True)
        assert q.asked_at[0] == moment(USUAL_SECONDS)
        assert sum(hedges(world).values()) == 1
        assert s.calls == 0
        await assert_nothing_is_held(world)


# -- when something fails -------------------------------------------------------------------------


@STREAMED
async def test_a_failure_before_that_starts_the_next_at_once(
    streamed: bool, autojump_clock: MockClock
) -> None:
    p, q = Upstream(fails(500, after=1.0)), Upstream(says("q", after=0.5))
    async with scene(p=p, q=q) as world:
        got = await ask(world, streamed=streamed)
        assert (got.text, got.at) == ("q", moment(1.5))
        assert await booked(world) == [("p", FAILED, 0), ("q", SETTLED, CHARGE)]
        assert hedges(world) == {}
        await assert_nothing_is_held(world)


@STREAMED
async def test_a_second_attempt_that_fails_leaves_the_first_one_alone(
    streamed: bool, autojump_clock: MockClock
) -> None:
    p, q = Upstream(says("p", after=10.0)), Upstream(fails(500))
    async with scene(p=p, q=q) as world:
        got = await ask(world, streamed=streamed)
        assert (got.text, got.at) == ("p", moment(10.0))
        assert p.asked_at == moments(0.0), "who still runs is not asked again"
        assert q.asked_at == moments(USUAL_SECONDS)
        assert await booked(world) == [("p", SETTLED, CHARGE), ("q", FAILED, 0)]
        assert hedges(world) == {"failed": 1}
        await assert_nothing_is_held(world)


@STREAMED
async def test_a_first_attempt_that_fails_leaves_the_second_one_alone(
    streamed: bool, autojump_clock: MockClock
) -> None:
    p, q = Upstream(fails(500, after=3.0)), Upstream(says("q", after=5.0))
    async with scene(p=p, q=q) as world:
        got = await ask(world, streamed=streamed)
        assert (got.text, got.at) == ("q", moment(USUAL_SECONDS + 5.0))
        assert p.asked_at == moments(0.0), "nobody is asked again while somebody is left"
        assert await booked(world) == [("p", FAILED, 0), ("q", SETTLED, CHARGE)]
        await assert_nothing_is_held(world)


async def test_a_failure_in_a_race_starts_the_next_beside_the_other(
    autojump_clock: MockClock,
) -> None:
    p, q = Upstream(fails(500, after=3.0)), Upstream(says("q", after=20.0))
    r = Upstream(says("r", after=1.0))
    async with scene(p=p, q=q, r=r) as world:
        got = await ask(world, streamed=True)
        assert (got.text, got.at) == ("r", moment(4.0))
        assert q.left_at == moments(4.0)
        assert await booked(world) == [
            ("p", FAILED, 0),
            ("q", CANCELLED, 0),
            ("r", SETTLED, CHARGE),
        ]
        await assert_nothing_is_held(world)


@STREAMED
async def test_where_both_fail_both_are_asked_again(
    streamed: bool, autojump_clock: MockClock
) -> None:
    p, q = Upstream(fails(500, after=3.0)), Upstream(fails(503, after=2.0))
    async with scene(p=p, q=q) as world:
        got = await ask(world, streamed=streamed)
        assert (got.status, got.code) == (502, "upstream_unavailable")
        assert p.asked_at == moments(0.0, 4.048)
        assert q.calls == 2
        assert {event[1] for event in await booked(world)} == {FAILED}
        (line,) = await logged(world)
        assert line["attempts"] == 4
        assert [outcome for _, outcome, _ in failed(line)] == [
            "server_error",
            "overloaded",
            "server_error",
            "overloaded",
        ]
        await assert_nothing_is_held(world)


@pytest.mark.parametrize("first_at_fault", [True, False], ids=["the first", "the second"])
@STREAMED
async def test_a_fault_of_the_request_ends_both(
    first_at_fault: bool, streamed: bool, autojump_clock: MockClock
) -> None:
    at_fault, slow = Upstream(fails(400, after=3.0)), Upstream(says("slow", after=20.0))
    p, q = (at_fault, slow) if first_at_fault else (slow, at_fault)
    async with scene(p=p, q=q) as world:
        got = await ask(world, streamed=streamed)
        assert (got.status, got.code) == (400, "invalid_request")
        assert got.at == moment(3.0 if first_at_fault else USUAL_SECONDS + 3.0)
        assert slow.left_at == moments(got.at)
        assert at_fault.calls == slow.calls == 1
        assert {status for _, status, _ in await booked(world)} == {FAILED, CANCELLED}
        await assert_nothing_is_held(world)


async def test_no_second_attempt_where_a_provider_has_asked_for_less(
    autojump_clock: MockClock,
) -> None:
    p, q = Upstream(fails(429, after=1.0, retry_after="30")), Upstream(says("q", after=10.0))
    r = Upstream(says("r"))
    async with scene(p=p, q=q, r=r) as world:
        assert (await ask(world, streamed=True)).text == "q"
        assert r.calls == 0


# -- when somebody leaves, or time is up ----------------------------------------------------------


@STREAMED
async def test_a_client_that_leaves_ends_both(streamed: bool, autojump_clock: MockClock) -> None:
    p, q = Upstream(says("p", after=20.0)), Upstream(says("q", after=20.0))
    async with scene(p=p, q=q) as world:
        client = world.connect()
        await client.send(CHAT, question(streamed=streamed))
        await trio.sleep(5.0)
        client.transport.close()
        await trio.sleep(0.1)
        assert p.left_at == q.left_at == moments(5.0)
        assert await booked(world) == [("p", CANCELLED, 0), ("q", CANCELLED, 0)]
        assert all(cost > 0 for cost in await cost_of_losers(world))
        (line,) = await logged(world)
        assert line["status"] == 499
        await assert_nothing_is_held(world)


@STREAMED
async def test_the_deadline_of_the_request_ends_both(
    streamed: bool, autojump_clock: MockClock
) -> None:
    p, q = Upstream(says("p", after=20.0)), Upstream(says("q", after=20.0))
    async with scene(p=p, q=q) as world:
        world.gateway.settings = ServerSettings(max_request_seconds=8)
        got = await ask(world, streamed=streamed)
        assert (got.status, got.code, got.at) == (504, "upstream_timeout", moment(8.0))
        assert p.left_at == q.left_at == moments(8.0)
        assert await booked(world) == [("p", CANCELLED, 0), ("q", CANCELLED, 0)]
        await assert_nothing_is_held(world)


async def test_clients_that_leave_do_not_bring_the_moment_forward(
    autojump_clock: MockClock,
) -> None:
    """Else whoever asks and hangs up, again and again, would have all others asked twice."""
    p, q = Upstream(says("p", after=1.5)), Upstream(says("q"))
    async with scene(p=p, q=q) as world:
        for _ in range(200):
            client = world.connect()
            await client.send(CHAT, question(streamed=True))
            await trio.sleep(0.01)
            client.transport.close()
        await trio.sleep(1.0)
        assert (await ask(world, streamed=True)).text == "p"
        assert q.calls == 0


async def test_a_second_attempt_that_lost_says_nothing_of_its_upstream(
    autojump_clock: MockClock,
) -> None:
    """It was given up after moments, by no means because its answer was there."""
    p, q = Upstream(says("p", after=2.1)), Upstream(says("q", after=2.0))
    async with scene(p=p, q=q) as world:
        latency = world.gateway.latencies.of("q/upstream-model", streamed=True)
        before = latency.mean(trio.current_time())
        assert (await ask(world, streamed=True)).text == "p"
        assert q.calls == 1
        assert latency.mean(trio.current_time()) == before


async def test_a_first_attempt_that_lost_counts_as_slow(autojump_clock: MockClock) -> None:
    p, q = Upstream(says("p", after=20.0)), Upstream(says("q", after=4.0))
    async with scene(p=p, q=q) as world:
        latency = world.gateway.latencies.of("p/upstream-model", streamed=True)
        before = latency.mean(trio.current_time())
        assert before is not None
        assert (await ask(world, streamed=True)).text == "q"
        after = latency.mean(trio.current_time())
        assert after is not None
        assert after > before


# -- in the same moment ---------------------------------------------------------------------------


@STREAMED
async def test_two_answers_in_the_same_moment_are_one(
    streamed: bool, autojump_clock: MockClock
) -> None:
    """One is charged and told; the other one is a loser like any other, at its full cost."""
    p, q = Upstream(says("p", after=5.0)), Upstream(says("q", after=5.0 - USUAL_SECONDS))
    async with scene(p=p, q=q) as world:
        got = await ask(world, streamed=streamed)
        assert got.at == moment(5.0)
        loser = "q" if got.text == "p" else "p"
        assert await booked(world) == sorted([(got.text, SETTLED, CHARGE), (loser, CANCELLED, 0)])
        (cost,) = await cost_of_losers(world)
        assert cost >= COST / 2
        (line,) = await logged(world)
        assert line["upstream"] == f"{got.text}/upstream-model"
        seen = {"surface": "openai", "model": "gpt", "provider": got.text, "status": "200"}
        assert metric(world, "farebox_requests_total", **seen) == 1
        await assert_nothing_is_held(world)


@STREAMED
@pytest.mark.parametrize("q_fails", [True, False])
async def test_a_client_that_leaves_in_the_moment_of_the_answer(
    streamed: bool, q_fails: bool, autojump_clock: MockClock
) -> None:
    second = fails(500, after=2.0) if q_fails else says("q", after=3.0)
    p, q = Upstream(says("p", after=5.0)), Upstream(second)
    async with scene(p=p, q=q) as world:
        client = world.connect()
        await client.send(CHAT, question(streamed=streamed))
        await trio.sleep(5.0)
        client.transport.close()
        await assert_nothing_is_held(world)
        assert len([event for event in await booked(world) if event[2]]) <= 1


# -- what is held and told ------------------------------------------------------------------------


async def test_two_attempts_share_one_growing_reservation(autojump_clock: MockClock) -> None:
    """What was set aside is for one answer; the winner grows it, whatever the loser had."""
    words = ["word"] * 3000
    long = Act(provider.completion("x"), provider.stream(*words, output_tokens=3000))
    slow = Act(long.plain, [STREAM_HEAD, 3.0, *long.stream[1:]])
    p, q = Upstream(slow), Upstream(slow)
    models = [hedged("p", "q", default_max_output_tokens=16_384)]
    async with running({"p": p, "q": q}, models=models, dice=always_one) as world:
        know(world, 2.0)
        world.gateway.outputs = Outputs()
        got = await ask(world, streamed=True)
        assert got.text == "".join(words)
        assert got.code == ""
        (paid,) = [event for event in await world.flushed() if event.status == SETTLED]
        assert paid.output_tokens == 3000
        assert paid.reserved >= paid.charge
        await assert_nothing_is_held(world)


async def test_a_loser_s_cost_is_shown_to_operators(autojump_clock: MockClock) -> None:
    p, q = Upstream(says("p", after=20.0)), Upstream(says("q"))
    async with scene(p=p, q=q) as world:
        await ask(world, streamed=True)
        (cost,) = await cost_of_losers(world)
        await logged(world)
        unbilled = metric(world, "farebox_unbilled_provider_cost_usd_total", provider="p")
        assert unbilled == pytest.approx(cost / 1e9)


@pytest.mark.parametrize("winner", ["p", "q"])
async def test_the_head_names_what_was_left_out_for_the_winner(
    winner: str, autojump_clock: MockClock
) -> None:
    """Not for the loser, whichever of them was asked last."""
    hosts = {"p": Upstream(says("p", after=20.0)), "q": Upstream(says("q", after=20.0))}
    hosts[winner] = Upstream(says(winner, after=4.0))
    providers = [
        each if each.name == winner else dataclasses.replace(each, protocol="anthropic")
        for each in providers_of("p", "q", idle_seconds=30.0)
    ]
    model = model_of("gpt", *providers, hedge_after_percentile=95)
    async with running(hosts, models=[model], dice=always_one) as world:
        know(world, 2.0)
        answer = await world.connect().call(CHAT, question(streamed=True, seed=1))
        assert told(answer) == (winner, "")
        assert "x-farebox-dropped" not in answer.headers
        assert all(host.calls == 1 for host in hosts.values())
        (line,) = await logged(world)
        assert (line["upstream"], "dropped" in line) == (f"{winner}/upstream-model", False)


# -- for whatever upstreams do --------------------------------------------------------------------

NEVER_SECONDS = 1000.0

delays = st.sampled_from([0.0, 0.4, 3.0, 8.0])
acts = st.one_of(
    st.builds(says, st.just("well"), delays),
    st.builds(fails, st.sampled_from([400, 401, 403, 404, 409, 429, 500, 503, 504]), delays),
    st.builds(lambda after: fails(429, after, retry_after="2"), delays),
    st.builds(broken, delays),
)
worlds = st.lists(st.lists(acts, min_size=1, max_size=3), min_size=1, max_size=3)


@dataclass(frozen=True)
class Seen:
    """Everything that anybody could see of some requests in a row."""

    got: list[Got]
    asked_at: list[list[float]]
    events: list[Event]
    lines: list[tuple[object, ...]]


async def play(
    scripts: list[list[Act]], *, streamed: bool, percentile: int, usual_seconds: float
) -> Seen:
    """Three requests, one after the other."""
    hosts = {name: Upstream(*each) for name, each in zip("pqr", scripts, strict=False)}
    model = hedged(*hosts, percentile=percentile)
    async with running(hosts, models=[model], dice=always_one) as world:
        know(world, usual_seconds)
        got = []
        for _ in range(3):
            got.append(await ask(world, streamed=streamed))
            await assert_nothing_is_held(world)
        events = await booked(world)
        seconds = sum(each.at for each in got)
        assert seconds < 3 * 60
        lines = await logged(world, 3)
    return Seen(
        got,
        [[round(at, 2) for at in host.asked_at] for host in hosts.values()],
        events,
        [(each["status"], each.get("attempts"), each.get("failed")) for each in lines],
    )


@given(worlds, st.booleans())
@settings(max_examples=40, deadline=None)
def test_where_no_second_attempt_begins_a_race_is_as_one_attempt(
    scripts: list[list[Act]], streamed: bool
) -> None:
    """Whether attempts are children of a nursery, or are awaited: nobody can tell."""

    def seen(percentile: int) -> Seen:
        return trio.run(
            lambda: play(
                scripts, streamed=streamed, percentile=percentile, usual_seconds=NEVER_SECONDS
            ),
            clock=MockClock(autojump_threshold=0),
        )

    raced, alone = seen(percentile=99), seen(percentile=0)
    assert raced == alone


@given(worlds, st.booleans())
@settings(max_examples=60, deadline=None)
def test_whatever_upstreams_do_a_race_has_one_end(scripts: list[list[Act]], streamed: bool) -> None:
    seen = trio.run(
        lambda: play(scripts, streamed=streamed, percentile=95, usual_seconds=1.0),
        clock=MockClock(autojump_threshold=0),
    )
    served = [each for each in seen.got if each.text == "well"]
    assert [event for event in seen.events if event[2]] == [
        event for event in seen.events if event[1] is SETTLED
    ]
    assert sum(event[1] is SETTLED for event in seen.events) == len(served)
    assert all(event[2] in (0, CHARGE) for event in seen.events)
    assert all(bool(each.text) != bool(each.code) for each in seen.got)
    assert sum(map(len, seen.asked_at)) <= 3 * ATTEMPTS_MAX
