"""What becomes of requests whose upstreams fail: whom they are sent to, and what everybody is told.

Whole workers between scripted upstreams and clients in memory, in virtual time. What single
failures lead to is in `test_scenarios`; here many things are true at once: groups, several keys,
other customers, surfaces with a state of their own, and upstreams that mean harm.
"""

from __future__ import annotations

import dataclasses
import json
import random
from collections import Counter
from collections.abc import Sequence

import h11
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from adapters.catalogue import Model, Provider, Upstream
from adapters.pricing import build_schedule
from ledger.keys import keyed_hash
from ledger.store import EventStatus
from proxy.budget import Budget
from proxy.health import State
from proxy.settings import ServerSettings
from tests.fakes import provider, scenes
from tests.fakes.gateway import (
    ACCOUNT,
    KEY,
    PRICE,
    SECRET,
    World,
    model_of,
    principal_of,
    providers_of,
    running,
)
from tests.fakes.provider import (
    HANG,
    SILENCE,
    STREAM_HEAD,
    Asked,
    ChoosingProvider,
    Script,
    ScriptedProvider,
    Step,
    chunk,
    delta,
)
from tests.fakes.scenes import (
    CHARGE,
    CHAT,
    Act,
    always_one,
    ask,
    assert_nothing_is_held,
    booked,
    broken,
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

SETTLED, CANCELLED = EventStatus.SETTLED, EventStatus.CANCELLED
FAILED, UNKNOWN = EventStatus.FAILED, EventStatus.UNKNOWN
STREAMED = pytest.mark.parametrize("streamed", [False, True], ids=["plain", "stream"])
OTHER_KEY, OTHER_ACCOUNT = "sk_farebox_other", 8


def grouped(*groups: Sequence[tuple[Provider, int]], **options: object) -> Model:
    """`gpt` at groups of providers with their weights."""
    schedule = build_schedule(PRICE)
    return Model(
        "gpt",
        tuple(
            tuple(Upstream(each, "upstream-model", schedule, weight) for each, weight in group)
            for group in groups
        ),
        default_max_output_tokens=100,
        context_window=10_000,
        **options,  # type: ignore[arg-type] # keyword options
    )


async def another_customer(world: World) -> None:
    """Somebody else, with an account and a key of their own."""
    world.store.add_account(OTHER_ACCOUNT)
    await world.store.credit_pool(OTHER_ACCOUNT, 10**10, 6, 7, "opening")  # type: ignore[arg-type] # a pool id
    theirs = principal_of(
        key_id=2, account_id=OTHER_ACCOUNT, account="other", project_id=2, pools=(OTHER_ACCOUNT,)
    )
    world.gateway.keyring.update(
        [(keyed_hash(SECRET, KEY), principal_of()), (keyed_hash(SECRET, OTHER_KEY), theirs)]
    )


def state_of(world: World, name: str) -> State:
    """What is remembered of an upstream."""
    (upstream,) = [
        each.upstream
        for each in world.gateway.snapshot.routes["gpt"].candidates
        if each.upstream.provider.name == name
    ]
    state, _ = world.gateway.means.health.look(upstream, trio.current_time())
    return state


# -- groups ---------------------------------------------------------------------------------------


async def test_equals_share_by_weight_and_the_next_group_is_for_when_they_fail(
    autojump_clock: MockClock,
) -> None:
    hosts = {name: scenes.Upstream(says(name)) for name in "pqr"}
    p, q, r = providers_of("p", "q", "r")
    models = [grouped([(p, 3), (q, 1)], [(r, 1)])]
    dice = random.Random(5).random
    async with running(hosts, models=models, dice=dice) as world:
        for _ in range(200):
            assert (await ask(world, streamed=False)).status == 200
        assert 0.65 < hosts["p"].calls / 200 < 0.85
        assert hosts["p"].calls + hosts["q"].calls == 200
        assert hosts["r"].calls == 0


async def test_an_equal_is_asked_before_the_next_group(autojump_clock: MockClock) -> None:
    hosts = {
        "p": scenes.Upstream(fails(500)),
        "q": scenes.Upstream(fails(500)),
        "r": scenes.Upstream(says("r")),
    }
    p, q, r = providers_of("p", "q", "r")
    async with running(hosts, models=[grouped([(p, 1), (q, 1)], [(r, 1)])]) as world:
        assert (await ask(world, streamed=True)).text == "r"
        assert hosts["p"].calls == hosts["q"].calls == 1
        (line,) = await logged(world)
        assert line["attempts"] == 3
        assert {each[:2] for each in failed(line)} == {
            ("p/upstream-model", "server_error"),
            ("q/upstream-model", "server_error"),
        }


async def test_a_conversation_stays_where_it_was_and_comes_back(autojump_clock: MockClock) -> None:
    """While its upstream is away it is served elsewhere, always at the same place."""
    hosts = {name: scenes.Upstream(says(name)) for name in "pqr"}
    models = [grouped([(each, 1) for each in providers_of(*hosts)])]
    dice = random.Random(5).random
    async with running(hosts, models=models, dice=dice) as world:

        async def served_by(conversation: str) -> str:
            headers = {"x-farebox-conversation-id": conversation}
            body = question(streamed=False)
            return told(await world.connect().call(CHAT, body, headers=headers))[0]

        names = [f"conversation {number}" for number in range(60)]
        homes = {name: await served_by(name) for name in names}
        assert {await served_by(name) == homes[name] for name in names} == {True}
        assert min(Counter(homes.values()).values()) > 10
        for candidate in world.gateway.snapshot.routes["gpt"].candidates:
            if candidate.upstream.provider.name == "p":
                now = trio.current_time()
                world.gateway.means.health.failed(candidate.upstream, "auth", now)
        meanwhile = {name: await served_by(name) for name in names}
        assert "p" not in meanwhile.values()
        assert all(meanwhile[name] == home for name, home in homes.items() if home != "p")
        assert {await served_by(name) == meanwhile[name] for name in names} == {True}
        await trio.sleep(61.0)
        assert {await served_by(name) == homes[name] for name in names} == {True}


# -- circuits and budgets -------------------------------------------------------------------------


async def test_one_request_finds_out_whether_an_upstream_is_back(
    autojump_clock: MockClock,
) -> None:
    hosts = {
        "p": scenes.Upstream(*[fails(500)] * 5, says("p", after=1.0)),
        "q": scenes.Upstream(says("q")),
    }
    async with running(hosts, dice=always_one) as world:
        for _ in range(5):
            assert (await ask(world, streamed=True)).text == "q"
        assert state_of(world, "p") is State.OPEN
        assert (await ask(world, streamed=True)).text == "q"
        assert hosts["p"].calls == 5
        await trio.sleep(5.1)
        texts: list[str] = []

        async def one() -> None:
            texts.append((await ask(world, streamed=True)).text)

        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(one)
        assert Counter(texts) == {"q": 9, "p": 1}
        assert state_of(world, "p") is State.READY
        assert (await ask(world, streamed=True)).text == "p"
        await assert_nothing_is_held(world)


async def test_a_probe_whose_client_leaves_is_given_back(autojump_clock: MockClock) -> None:
    hosts = {
        "p": scenes.Upstream(*[fails(500)] * 5, says("p", after=5.0), says("p")),
        "q": scenes.Upstream(says("q")),
    }
    async with running(hosts, dice=always_one) as world:
        for _ in range(5):
            await ask(world, streamed=True)
        await trio.sleep(5.1)
        client = world.connect()
        await client.send(CHAT, question(streamed=True))
        await trio.sleep(1.0)
        assert (await ask(world, streamed=True)).text == "q", "somebody else finds out"
        client.transport.close()
        await trio.sleep(0.1)
        assert (await ask(world, streamed=True)).text == "p"
        await assert_nothing_is_held(world)


async def test_an_upstream_is_asked_again_for_a_fraction_of_its_requests(
    autojump_clock: MockClock,
) -> None:
    p = scenes.Upstream(fails(409))
    async with running({"p": p}, dice=always_one) as world:
        metrics = world.gateway.metrics
        budget = Budget(0.2, metrics.retry_budget_denied.inc)
        world.gateway.means = dataclasses.replace(world.gateway.means, budget=budget)
        async with trio.open_nursery() as nursery:
            for _ in range(100):
                nursery.start_soon(lambda: ask(world, streamed=False))
        assert 100 + 20 <= p.calls <= 100 + 20 + 10
        denied = metric(world, "farebox_retry_budget_denied_total")
        assert 70 <= denied <= 100
        await assert_nothing_is_held(world)


# -- several keys ---------------------------------------------------------------------------------


@STREAMED
async def test_a_refused_key_is_an_attempt_of_its_own(
    streamed: bool, autojump_clock: MockClock
) -> None:
    p = scenes.Upstream(fails(401), says("p"))
    (one,) = providers_of("p")
    models = [model_of("gpt", dataclasses.replace(one, api_keys=("k1", "k2")))]
    async with running({"p": p}, models=models) as world:
        assert (await ask(world, streamed=streamed)).text == "p"
        (line,) = await logged(world)
        assert (line["attempts"], line["upstream"]) == (2, "p/upstream-model")
        assert failed(line) == [("p/upstream-model", "auth", 0)]
        assert [head.partition("Bearer ")[2][:2] for head in p.heads] == ["k1", "k2"]
        assert await booked(world) == [("p", SETTLED, CHARGE)]
        name = "farebox_upstream_attempts_total"
        assert metric(world, name, provider="p", outcome="auth") == 1
        assert metric(world, name, provider="p", outcome="ok") == 1
        assert state_of(world, "p") is State.READY
        await assert_nothing_is_held(world)


async def test_only_where_all_keys_are_refused_the_provider_is_left_alone(
    autojump_clock: MockClock,
) -> None:
    p, q = scenes.Upstream(fails(401)), scenes.Upstream(says("q"))
    one, two = providers_of("p", "q")
    models = [model_of("gpt", dataclasses.replace(one, api_keys=("k1", "k2")), two)]
    async with running({"p": p, "q": q}, models=models) as world:
        assert (await ask(world, streamed=False)).text == "q"
        assert state_of(world, "p") is State.OPEN
        (line,) = await logged(world)
        assert line["attempts"] == 3
        assert failed(line) == [("p/upstream-model", "auth", 0)] * 2


# -- what is told ---------------------------------------------------------------------------------


@STREAMED
async def test_headers_and_log_tell_of_a_fallback(
    streamed: bool, autojump_clock: MockClock
) -> None:
    hosts = {
        "p": scenes.Upstream(fails(503, after=1.0)),
        "q": scenes.Upstream(broken(after=2.0)),
        "r": scenes.Upstream(says("r")),
    }
    async with running(hosts) as world:
        answer = await world.connect().call(CHAT, question(streamed=streamed))
        assert told(answer) == ("r", "")
        assert answer.headers["x-farebox-model"] == "gpt"
        if not streamed:
            assert answer.headers["x-farebox-cost-usd"] == "0.000022"
        (line,) = await logged(world)
        assert line["upstream"] == "r/upstream-model"
        assert line["attempts"] == 3
        assert failed(line) == [
            ("p/upstream-model", "overloaded", 1000),
            ("q/upstream-model", "truncated", 2000),
        ]
        labels = {"surface": "openai", "model": "gpt", "provider": "r", "status": "200"}
        assert metric(world, "farebox_requests_total", **labels) == 1
        assert await booked(world) == [("p", FAILED, 0), ("q", FAILED, 0), ("r", SETTLED, CHARGE)]


@pytest.mark.parametrize(
    ("last", "outcome"),
    [
        (None, "truncated"),
        (b"no size of a chunk\r\n", "protocol"),
        (chunk("{no event"), "protocol"),
        (HANG, "idle_timeout"),
    ],
)
async def test_the_log_tells_how_a_stream_broke(
    last: Step, outcome: str, autojump_clock: MockClock
) -> None:
    """The client has read of it already: it is told that there is no more."""
    hosts = {"p": ScriptedProvider([STREAM_HEAD, delta("p"), 1.0, last])}
    async with running(hosts) as world:
        answer = await world.connect().call(CHAT, question(streamed=True))
        slow = outcome == "idle_timeout"
        assert told(answer) == ("p", "upstream_timeout" if slow else "upstream_unavailable")
        (line,) = await logged(world)
        ((upstream, logged_as, _),) = failed(line)
        assert (upstream, logged_as) == ("p/upstream-model", outcome)


async def test_waiting_for_an_upstream_that_asked_for_patience_has_signs_of_life(
    autojump_clock: MockClock,
) -> None:
    """The head goes out with the first of them; what fails then is told in the stream."""
    p = scenes.Upstream(fails(429, after=9.0, retry_after="8"), fails(400))
    async with running({"p": p}, dice=always_one) as world:
        client = world.connect()
        await client.send(CHAT, question(streamed=True))
        head = await client.event()
        assert isinstance(head, h11.Response)
        assert head.status_code == 200
        assert 14.9 <= trio.current_time() <= 16.1
        body = b""
        while isinstance(event := await client.event(), h11.Data):
            body += event.data
        assert trio.current_time() == moment(17.0)
        assert p.asked_at == moments(0.0, 17.0)
        assert b'"invalid_request"' in body
        assert b"[DONE]" not in body
        assert await booked(world) == [("p", FAILED, 0), ("p", FAILED, 0)]
        await assert_nothing_is_held(world)


async def test_a_pause_in_which_the_client_leaves_is_none_of_our_time(
    autojump_clock: MockClock,
) -> None:
    p = scenes.Upstream(fails(429, retry_after="8"))
    async with running({"p": p}, dice=always_one) as world:
        client = world.connect()
        await client.send(CHAT, question(streamed=False))
        await trio.sleep(3.0)
        client.transport.close()
        await trio.sleep(1.0)
        assert metric(world, "farebox_overhead_seconds_count") == 1
        assert metric(world, "farebox_overhead_seconds_sum") < 0.1


@pytest.mark.parametrize(("seconds", "status", "at"), [(2, 200, 2.0), (5, 503, 0.0)])
async def test_a_hint_is_obeyed_as_far_as_the_request_has_time(
    seconds: int, status: int, at: float, autojump_clock: MockClock
) -> None:
    p = scenes.Upstream(fails(429, retry_after=str(seconds)), says("p"))
    config = ServerSettings(max_request_seconds=4)
    async with running({"p": p}, settings=config, dice=always_one) as world:
        answer = await world.connect().call(CHAT, question(streamed=False))
        assert (answer.status, trio.current_time()) == (status, moment(at))
        assert answer.headers.get("retry-after") == (None if status == 200 else "5")
        await assert_nothing_is_held(world)


# -- surfaces with a state ------------------------------------------------------------------------


@STREAMED
async def test_a_kept_answer_is_the_one_of_the_upstream_that_served(
    streamed: bool, autojump_clock: MockClock
) -> None:
    hosts = {"p": scenes.Upstream(fails(500, after=1.0)), "q": scenes.Upstream(says("q"))}
    async with running(hosts) as world:
        headers, body = {"idempotency-key": "once"}, question(streamed=streamed)
        first = await world.connect().call(CHAT, body, headers=headers)
        again = await world.connect().call(CHAT, body, headers=headers)
        assert told(first) == ("q", "")
        assert again.body == first.body
        assert hosts["p"].calls == hosts["q"].calls == 1
        assert await booked(world) == [("p", FAILED, 0), ("q", SETTLED, CHARGE)]
        await assert_nothing_is_held(world)


@STREAMED
async def test_a_kept_response_is_the_one_of_the_upstream_that_served(
    streamed: bool, autojump_clock: MockClock
) -> None:
    hosts = {"p": scenes.Upstream(fails(500)), "q": scenes.Upstream(says("q"))}
    async with running(hosts) as world:
        body = {"model": "gpt", "input": "Hi", "stream": streamed, "store": True}
        answer = await world.connect().call("/v1/responses", body)
        assert answer.status == 200
        whole = answer.json if not streamed else _last_response(answer.body)
        kept = await world.connect().call(f"/v1/responses/{whole['id']}", method="GET")
        assert kept.json == whole
        follow_up = body | {"previous_response_id": whole["id"], "stream": False}
        assert (await world.connect().call("/v1/responses", follow_up)).status == 200
        assert hosts["p"].calls == hosts["q"].calls == 2
        await assert_nothing_is_held(world)


def _last_response(body: bytes) -> dict[str, object]:
    (last,) = [
        json.loads(line.removeprefix(b"data: "))
        for line in body.splitlines()
        if line.startswith(b'data: {"type":"response.completed"')
    ]
    response = last["response"]
    assert isinstance(response, dict)
    return response


async def test_embeddings_fall_back_like_answers(autojump_clock: MockClock) -> None:
    vector = {"object": "embedding", "index": 0, "embedding": [0.5, 0.25]}
    usage = {"prompt_tokens": 4, "total_tokens": 4}
    whole = {"object": "list", "data": [vector], "model": "m", "usage": usage}
    p = ScriptedProvider(provider.error(500, "no"))
    q = ScriptedProvider(provider.reply(200, whole))
    models = [model_of("gpt", *providers_of("p", "q"), kind="embedding")]
    async with running({"p": p, "q": q}, models=models) as world:
        answer = await world.connect().call("/v1/embeddings", {"model": "gpt", "input": "Hi"})
        assert answer.status == 200
        assert (p.calls, q.calls) == (1, 1)
        assert await booked(world) == [("p", FAILED, 0), ("q", SETTLED, 4 * 1100)]
        await assert_nothing_is_held(world)


# -- customers that mean harm ---------------------------------------------------------------------

TOO_LARGE = provider.error(
    429,
    "Request too large for upstream-model in organization org-1 on tokens per min (TPM): "
    "Limit 30000, Requested 30601. The input or output tokens must be reduced.",
    "rate_limit_exceeded",
    retry_after="30",
)


@pytest.mark.parametrize(
    "poisoned",
    [fails(500), fails(403), fails(504), Act(SILENCE, SILENCE), Act(TOO_LARGE, TOO_LARGE)],
    ids=["500", "403", "504", "silence", "429"],
)
@pytest.mark.parametrize("pause_seconds", [1.0, 15.0])
async def test_nobody_s_requests_take_an_upstream_away_from_others(
    pause_seconds: float, poisoned: Act, autojump_clock: MockClock
) -> None:
    """One customer has requests that nobody could serve, several a second; another one has plain
    ones, be it seldom, and notices nothing."""
    well = says("p")

    def choose(now: float, asked: Asked) -> Script:
        act = poisoned if "poison" in str(asked["messages"]) else well
        return act.stream if asked.get("stream") else act.plain

    p = ChoosingProvider(choose)
    models = [model_of("gpt", *providers_of("p", first_byte_seconds=20.0))]
    async with running({"p": p}, models=models, dice=always_one) as world:
        await another_customer(world)
        results: list[str] = []

        async def ask_for_poison() -> None:
            messages = [{"role": "user", "content": "poison"}]
            await ask(world, streamed=False, messages=messages)

        async def poison() -> None:
            while True:
                world.nursery.start_soon(ask_for_poison)
                await trio.sleep(0.2)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(poison)
            while trio.current_time() < 60.0:
                await trio.sleep(pause_seconds)
                got = await ask(world, streamed=True, key=OTHER_KEY)
                results.append(got.text or got.code)
            nursery.cancel_scope.cancel()
        await trio.sleep(40.0)
        assert set(results) == {"p"}
        poison_asked = sum("poison" in str(body["messages"]) for body in p.bodies)
        assert poison_asked <= 300 * 1.2 + 2 * 60, "what is asked again is bounded"
        charges = [event.charge for event in await world.flushed() if event.account_id == ACCOUNT]
        assert not any(charges)
        await assert_nothing_is_held(world)


@pytest.mark.parametrize("status", [429, 503, 529])
async def test_what_is_too_much_of_one_customer_limits_no_other(
    status: int, autojump_clock: MockClock
) -> None:
    """Twenty streams of somebody else go on beside it."""
    refusal, well = fails(status, after=0.5), says("p", after=3.0)

    def choose(now: float, asked: Asked) -> Script:
        return refusal.plain if "poison" in str(asked["messages"]) else well.stream

    p = ChoosingProvider(choose)
    async with running({"p": p}, dice=always_one) as world:
        await another_customer(world)
        results: list[str] = []

        async def ask_for_poison() -> None:
            messages = [{"role": "user", "content": "poison"}]
            await ask(world, streamed=False, messages=messages)

        async def poison() -> None:
            while True:
                world.nursery.start_soon(ask_for_poison)
                await trio.sleep(0.2)

        async def go_on() -> None:
            for _ in range(10):
                got = await ask(world, streamed=True, key=OTHER_KEY)
                results.append(got.text or got.code)

        async with trio.open_nursery() as nursery:
            async with trio.open_nursery() as others:
                for _ in range(20):
                    others.start_soon(go_on)
                await trio.sleep(3.5)  # somebody has been served
                nursery.start_soon(poison)
            nursery.cancel_scope.cancel()
        await trio.sleep(20.0)
        assert Counter(results) == {"p": 200}
        await assert_nothing_is_held(world)


@pytest.mark.parametrize("tool", ["mcp", "code_interpreter", "web_search"])
@pytest.mark.parametrize(
    "act",
    [fails(500), fails(409), fails(429, retry_after="1"), broken()],
    ids=["500", "409", "429", "broken"],
)
async def test_what_may_have_been_done_there_is_not_asked_for_twice(
    act: Act, tool: str, autojump_clock: MockClock
) -> None:
    p, q = scenes.Upstream(act), scenes.Upstream(act)
    one, two = providers_of("p", "q")
    models = [model_of("gpt", *(dataclasses.replace(each, responses=True) for each in (one, two)))]
    async with running({"p": p, "q": q}, models=models, dice=always_one) as world:
        body = {"model": "gpt", "input": "Hi", "tools": [{"type": tool, "server_label": "x"}]}
        answer = await world.connect().call("/v1/responses", body)
        assert answer.status >= 500
        assert (p.calls, q.calls) == (1, 1)


@pytest.mark.parametrize("tools", [False, True])
async def test_nor_over_a_connection_that_breaks_under_it(
    tools: bool, autojump_clock: MockClock
) -> None:
    """A kept connection may have been closed before the request was there. Who may say it once more
    does so; who may not takes a new one."""
    p = scenes.Upstream(says("p"), Act([0.5, None], [0.5, None]), says("p"))
    models = [model_of("gpt", *providers_of("p"))]
    async with running({"p": p}, models=models, dice=always_one) as world:
        assert (await ask(world, streamed=False)).text == "p"
        hosted = [{"type": "mcp", "server_label": "x"}] if tools else []
        got = await ask(world, streamed=False, tools=hosted)
        assert world.network.dialled == ["p", "p"]
        assert p.calls == (2 if tools else 3)
        assert got.status == (502 if tools else 200)
        await assert_nothing_is_held(world)


# -- upstreams that mean harm ---------------------------------------------------------------------


def dripping(head: bytes, drop: bytes, seconds: float) -> Script:
    """Next to nothing, again and again."""
    steps: list[Step] = [seconds, drop]
    return [head, *steps * 200]


PLAIN_HEAD = b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n"
ERROR_HEAD = b"HTTP/1.1 500 No\r\ncontent-length: 60000\r\n\r\n"
STARTS = delta(None, padding="x" * 2**20)


@pytest.mark.parametrize(
    ("script", "streamed"),
    [
        (dripping(PLAIN_HEAD, b" ", 9.0), False),
        (dripping(STREAM_HEAD, b"1\r\n:\r\n", 9.0), True),
        (dripping(STREAM_HEAD, chunk(""), 9.0), True),
    ],
    ids=["plain", "comment", "empty events"],
)
async def test_an_upstream_that_drips_is_bounded_by_the_request_s_deadline(
    script: Script, streamed: bool, autojump_clock: MockClock
) -> None:
    p = ScriptedProvider(script)
    models = [model_of("gpt", *providers_of("p", idle_seconds=10.0))]
    config = ServerSettings(max_request_seconds=100)
    async with running({"p": p}, models=models, settings=config) as world:
        got = await ask(world, streamed=streamed)
        assert (got.code, got.at) == ("upstream_timeout", moment(100.0))
        assert await booked(world) == [("p", CANCELLED, 0)]
        assert p.left_at == moments(100.0)
        await assert_nothing_is_held(world)


def headed(*lines: bytes) -> bytes:
    """A head of these lines."""
    return b"\r\n".join(lines) + b"\r\n\r\n"


OK = b"HTTP/1.1 200 OK"
LARGE = b"10000\r\n" + b"x" * 65536 + b"\r\n"
HARM: dict[str, Script] = {
    "a refusal that drips": dripping(ERROR_HEAD, b"x", 4.0),
    "a refusal without an end": [ERROR_HEAD, HANG],
    "a refusal of any size": [
        headed(b"HTTP/1.1 500 No", b"transfer-encoding: chunked"),
        *[LARGE] * 400,
    ],
    "interim answers": [headed(b"HTTP/1.1 100 Continue"), 1.0] * 100,
    "interim answers in a row": [headed(b"HTTP/1.1 103 Early Hints") * 2000] * 5,
    "a switch of protocols": [headed(b"HTTP/1.1 101 Switching", b"upgrade: x"), HANG],
    "a head without an end": [OK + b"\r\n", *[b"x: " + b"y" * 4000 + b"\r\n"] * 100, HANG],
    "a length of any length": [headed(OK, b"content-length: " + b"9" * 5000), HANG],
    "a negative length": [headed(OK, b"content-length: -1"), HANG],
    "two lengths": [headed(OK, b"content-length: 1", b"content-length: 2"), HANG],
    "a length that is no number": [headed(OK, b"content-length: 0x10"), HANG],
    "no HTTP": [b"SSH-2.0-OpenSSH_9.6\r\n", HANG],
    "a chunk without an end": [STREAM_HEAD, b"f" * 5000, HANG],
    "events before content": [STREAM_HEAD, *[STARTS] * 40, HANG],
    "nul bytes": [STREAM_HEAD, b"4\r\n\0\0\0\0\r\n" * 100, None],
    "an empty answer": [headed(OK, b"content-length: 0")],
    "no content": [headed(b"HTTP/1.1 204 No Content")],
    "a redirect": [headed(b"HTTP/1.1 302 Found", b"location: http://q/", b"content-length: 0")],
    "a status of its own": [headed(b"HTTP/1.1 999 What", b"content-length: 0")],
}


@STREAMED
@pytest.mark.parametrize("harm", HARM)
async def test_another_upstream_serves_whatever_one_does(
    harm: str, streamed: bool, autojump_clock: MockClock
) -> None:
    """Within the time that it has for a head, and for the next byte."""
    p, q = ScriptedProvider(HARM[harm]), scenes.Upstream(says("q"))
    models = [model_of("gpt", *providers_of("p", "q", first_byte_seconds=30.0, idle_seconds=30.0))]
    async with running({"p": p, "q": q}, models=models) as world:
        got = await ask(world, streamed=streamed)
        assert got.text == "q"
        assert got.at <= (5.5 if "refusal" in harm else 30.5)
        assert (p.calls, q.calls) == (1, 1)
        assert [event for event in await booked(world) if event[2]] == [("q", SETTLED, CHARGE)]
        await assert_nothing_is_held(world)


HINTS = {
    "0": 0.0,
    "00": 0.0,
    "-1": None,
    "+1": None,
    "nan": None,
    "inf": None,
    "1e308": None,
    "1e5": None,
    "1_0": None,
    "0x1": None,
    "١": None,
    "": None,
    "1;2": None,
    "999999999": 60.0,
    "9" * 400: None,
    "Fri, 31 Dec 9999 23:59:59 GMT": None,
    "Fri, 31 Dec 99999 23:59:59 GMT": None,
}


@pytest.mark.parametrize("hint", HINTS, ids=lambda hint: hint[:12])
async def test_no_hint_is_too_odd_to_be_survived(hint: str, autojump_clock: MockClock) -> None:
    raw = provider.reply(429, {"error": {"message": "slow"}})[0]
    assert isinstance(raw, bytes)
    line = b"\r\nretry-after: " + hint.encode() + b"\r\n\r\n"
    p = ScriptedProvider([raw.replace(b"\r\n\r\n", line, 1)])
    async with running({"p": p}, dice=always_one) as world:
        answer = await world.connect().call(CHAT, question(streamed=False))
        assert (answer.status, answer.error["code"]) in [
            (503, "upstream_unavailable"),
            (502, "upstream_unavailable"),
        ]
        assert 1 <= int(answer.headers["retry-after"]) <= 60
        assert trio.current_time() <= 1.6
        assert p.calls <= 3
        if HINTS[hint] is not None:
            assert trio.current_time() == moment(0.0)
        await trio.sleep(61.0)
        assert state_of(world, "p") is State.READY
        await assert_nothing_is_held(world)


# -- whatever happens -----------------------------------------------------------------------------

delays = st.sampled_from([0.0, 0.4, 3.0])
acts = st.one_of(
    st.builds(says, st.just("well"), delays),
    st.builds(fails, st.sampled_from([400, 401, 409, 429, 500, 503, 504]), delays),
    st.builds(lambda after: fails(429, after, retry_after="2"), delays),
    st.builds(broken, delays),
)


@given(
    st.lists(st.lists(acts, min_size=1, max_size=3), min_size=1, max_size=3),
    st.booleans(),
    st.sampled_from([0, 95]),
    st.floats(0, 12),
)
@settings(max_examples=60, deadline=None)
def test_whoever_leaves_whenever_leaves_nothing(
    scripts: list[list[Act]], streamed: bool, percentile: int, seconds: float
) -> None:
    async def play() -> None:
        hosts = {name: scenes.Upstream(*each) for name, each in zip("pqr", scripts, strict=False)}
        models = [model_of("gpt", *providers_of(*hosts), hedge_after_percentile=percentile)]
        async with running(hosts, models=models, dice=always_one) as world:
            for candidate in world.gateway.snapshot.routes["gpt"].candidates:
                latency = world.gateway.latencies.of(candidate.upstream.name, streamed=streamed)
                for _ in range(60):
                    latency.add(1.0, trio.current_time())
            client = world.connect()
            with trio.move_on_after(seconds):
                await client.call(CHAT, question(streamed=streamed))
            client.transport.close()
            await assert_nothing_is_held(world)
            charged = [event for event in await booked(world) if event[2]]
            assert len(charged) <= 1

    trio.run(play, clock=MockClock(autojump_threshold=0))
