"""Whom a count is asked of, and what that says of upstreams; whole workers in virtual time."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import MockClock

from adapters.catalogue import Provider
from proxy.health import State
from proxy.verdicts import Outcome
from tests.fakes import provider
from tests.fakes.gateway import Answer, Handler, World, model_of, running
from tests.fakes.network import NEVER, refused
from tests.fakes.provider import SILENCE, ScriptedProvider
from tests.fakes.scenes import always_one, assert_nothing_is_held, moment

PATH = "/v1/messages/count_tokens"
QUESTION = {"model": "gpt", "messages": [{"role": "user", "content": "Hi"}]}


@asynccontextmanager
async def scene(**hosts: Handler | OSError) -> AsyncIterator[World]:
    """A gateway with `gpt` at these hosts, all of which have counters."""
    speaking = [
        Provider(name, "anthropic", f"http://{name}/v1", api_keys=("provider-key",))
        for name in hosts
    ]
    async with running(hosts, models=[model_of("gpt", *speaking)], dice=always_one) as world:
        yield world
        await assert_nothing_is_held(world)


async def count(world: World) -> Answer:
    answer = await world.connect().call(PATH, QUESTION)
    assert answer.status == 200
    return answer


def counts(tokens: int) -> ScriptedProvider:
    return ScriptedProvider(provider.reply(200, {"input_tokens": tokens}))


def fails(world: World, outcome: Outcome) -> None:
    """The first upstream has failed some request."""
    first = world.gateway.snapshot.routes["gpt"].candidates[0].upstream
    world.gateway.means.health.failed(first, outcome, trio.current_time(), hint=5.0)


def state_of_first(world: World) -> State:
    first = world.gateway.snapshot.routes["gpt"].candidates[0].upstream
    return world.gateway.means.health.look(first, trio.current_time())[0]


@pytest.mark.parametrize("outcome", ["auth", "rate_limited", "model_not_found"])
async def test_who_is_to_be_left_alone_is_not_asked(
    outcome: Outcome, autojump_clock: MockClock
) -> None:
    p, q = counts(1), counts(2)
    async with scene(p=p, q=q) as world:
        fails(world, outcome)
        assert (await count(world)).json == {"input_tokens": 2}
        assert p.calls == 0


async def test_a_count_does_not_find_out_who_is_back(autojump_clock: MockClock) -> None:
    p, q = counts(1), counts(2)
    async with scene(p=p, q=q) as world:
        fails(world, "auth")
        await trio.sleep(61.0)
        assert state_of_first(world) is State.PROBE
        assert (await count(world)).json == {"input_tokens": 2}
        assert state_of_first(world) is State.PROBE


async def test_a_provider_that_cannot_be_reached_is_told_of(autojump_clock: MockClock) -> None:
    q = counts(2)
    async with scene(p=refused(), q=q) as world:
        for _ in range(7):
            assert (await count(world)).json == {"input_tokens": 2}
        assert world.network.dialled.count("p") == 5
        assert state_of_first(world) is State.OPEN


@pytest.mark.parametrize("status", [401, 403, 404, 429, 500, 503])
async def test_what_a_counter_refuses_says_nothing_of_its_provider(
    status: int, autojump_clock: MockClock
) -> None:
    p, q = ScriptedProvider(provider.error(status, "no", retry_after="9")), counts(2)
    async with scene(p=p, q=q) as world:
        for _ in range(7):
            assert (await count(world)).json == {"input_tokens": 2}
        assert p.calls == 7
        assert state_of_first(world) is State.READY


async def test_nobody_waits_longer_for_a_count_than_it_is_worth(
    autojump_clock: MockClock,
) -> None:
    async with scene(p=ScriptedProvider(SILENCE), q=ScriptedProvider(SILENCE)) as world:
        answer = await count(world)
        assert answer.headers["x-farebox-estimated"] == "true"
        assert trio.current_time() == moment(10.0)


async def test_connecting_that_hangs_leaves_time_for_the_next(autojump_clock: MockClock) -> None:
    async with scene(p=counts(1), q=counts(2)) as world:
        world.network.trouble("p", [NEVER])
        assert (await count(world)).json == {"input_tokens": 2}
        assert trio.current_time() == moment(5.0)
