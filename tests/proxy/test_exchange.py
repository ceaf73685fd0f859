"""The life of a request: what the client hears, what the provider gets, what the books keep.

A whole worker between a scripted provider and a client in memory, in virtual time. Prices are 1
and 2 dollars a million tokens with a margin of a tenth: 10 input and 5 output tokens are charged
10 × 1,100 + 5 × 2,200 = 22,000 nano-dollars.
"""

from __future__ import annotations

import json
import time
import uuid
from typing import cast

import h11
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from ledger.fleet import NODES, FleetLimiter
from ledger.limits import LimitRef
from ledger.store import EventStatus
from proxy.gateway import wall_seconds
from proxy.settings import ServerSettings
from tests.fakes import provider
from tests.fakes.gateway import (
    ACCOUNT,
    KEY,
    World,
    model_of,
    principal_of,
    providers_of,
    running,
)
from tests.fakes.network import BUFFER_BYTES
from tests.fakes.provider import STREAM_HEAD, Script, ScriptedProvider, chunk, delta
from tests.fakes.scenes import metric

CHAT = "/v1/chat/completions"
ASK = {"model": "gpt", "messages": [{"role": "user", "content": "Hi"}]}
ASK_STREAM = ASK | {"stream": True}
CHARGE = 22_000
CREDIT = 10**10


def events_of(body: bytes) -> list[dict[str, object] | str]:
    """The data of a stream's events; `[DONE]` as it is."""
    parts = [part for part in body.decode().split("\n\n") if part.startswith("data: ")]
    found = [part.removeprefix("data: ") for part in parts]
    return [data if data == "[DONE]" else json.loads(data) for data in found]


def text_of(body: bytes) -> str:
    """What a stream says."""
    said = ""
    for event in events_of(body):
        if isinstance(event, dict) and isinstance(choices := event.get("choices"), list):
            said += "".join(choice["delta"].get("content") or "" for choice in choices)
    return said


# -- answers --------------------------------------------------------------------------------------


async def test_a_plain_answer_is_relayed_charged_and_explained() -> None:
    upstream = ScriptedProvider(provider.completion(system_fingerprint="kept"))
    async with running({"p": upstream}) as world:
        answer = await world.connect().call(CHAT, ASK | {"unknown": {"kept": 1.10}})
        assert answer.status == 200
        assert answer.json["system_fingerprint"] == "kept"
        assert answer.json["model"] == "gpt"
        assert answer.headers["x-farebox-model"] == "gpt"
        assert answer.headers["x-farebox-cost-usd"] == "0.000022"
        assert answer.headers["x-farebox-balance-usd"] == "9.999978"
        assert answer.headers["x-request-id"] == answer.headers["request-id"]
        sent = upstream.bodies[0]
        assert sent["model"] == "upstream-model"
        assert sent["unknown"] == {"kept": 1.10}
        assert sent["max_tokens"] == 100
        assert "authorization: Bearer provider-key" in upstream.heads[0]
        assert KEY not in upstream.heads[0]
        (event,) = await world.flushed()
        assert (event.charge, event.cost) == (CHARGE, 20_000)
        assert event.status == EventStatus.SETTLED
        assert (event.input_tokens, event.output_tokens) == (10, 5)
        assert world.balance() == CREDIT - CHARGE
        await world.assert_books_are_clean()


async def test_a_stream_is_relayed_as_it_arrives(autojump_clock: MockClock) -> None:
    upstream = ScriptedProvider(provider.stream("Hel", "lo", "!", gap=10))
    async with running({"p": upstream}) as world:
        client = world.connect()
        await client.send(CHAT, ASK_STREAM)
        head = await client.event()
        assert isinstance(head, h11.Response)
        assert trio.current_time() == pytest.approx(10, abs=0.01)  # committed at first content
        times = []
        body = b""
        while isinstance(event := await client.event(), h11.Data):
            times.append(trio.current_time())
            body += event.data
        assert text_of(body) == "Hello!"
        assert times[:3] == pytest.approx([10, 20, 30], abs=0.01)
        assert events_of(body)[-1] == "[DONE]"
        assert upstream.bodies[0]["stream_options"] == {"include_usage": True}
        (event_,) = await world.flushed()
        assert event_.charge == CHARGE
        await world.assert_books_are_clean()


@pytest.mark.parametrize("asked", [False, True])
async def test_usage_reaches_only_clients_that_asked(asked: bool) -> None:
    upstream = ScriptedProvider(provider.stream("Hello"))
    async with running({"p": upstream}) as world:
        options = {"stream_options": {"include_usage": True}} if asked else {}
        answer = await world.connect().call(CHAT, ASK_STREAM | options)
        with_usage = [e for e in events_of(answer.body) if isinstance(e, dict) and e.get("usage")]
        assert len(with_usage) == (1 if asked else 0)
        assert all(e["model"] == "gpt" for e in events_of(answer.body) if isinstance(e, dict))


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("name", ["c 1", "a\nb", "a\r\nset-cookie: b", "名", "x" * 513, "a\x00b"])
async def test_a_conversation_s_id_is_echoed_where_it_fits_a_header(
    name: str, streaming: bool
) -> None:
    script = provider.stream("Hello") if streaming else provider.completion()
    async with running({"p": ScriptedProvider(script)}) as world:
        named = ASK | {"stream": streaming, "metadata": {"conversation_id": name}}
        answer = await world.connect().call(CHAT, named)
        assert answer.status == 200
        assert "set-cookie" not in answer.headers
        echoed = answer.headers.get("x-farebox-conversation-id")
        assert echoed == (name if name == "c 1" else None)
        await world.assert_books_are_clean()


async def test_one_connection_carries_many_requests() -> None:
    upstream = ScriptedProvider(provider.completion(), provider.stream("a"), provider.completion())
    async with running({"p": upstream}) as world:
        client = world.connect()
        statuses = [
            (await client.call(CHAT, ask)).status for ask in (ASK, ASK_STREAM, {"bad": 1}, ASK)
        ]
        assert statuses == [200, 200, 400, 200]
        assert world.network.dialled == ["p"]


@pytest.mark.parametrize("long", ["", "x" * 600], ids=["served", "refused by its head"])
async def test_a_request_id_is_of_the_moment_when_the_request_came(long: str) -> None:
    """However long its connection has waited for it: receipts are looked for around that moment."""
    upstream = ScriptedProvider(provider.completion(), provider.completion())
    async with running({"p": upstream}, settings=ServerSettings(max_head_bytes=512)) as world:
        world.gateway.wall = wall_seconds
        client = world.connect()
        assert (await client.call(CHAT, ASK)).status == 200
        await wait_all_tasks_blocked()
        waits = _milliseconds()
        while (asked := _milliseconds()) == waits:
            pass
        answer = await client.call(CHAT, ASK, headers={"x-long": long})
        assert answer.status == (431 if long else 200)
        assert asked <= uuid.UUID(answer.headers["x-request-id"]).int >> 80 <= _milliseconds()


def _milliseconds() -> int:
    return time.time_ns() // 1_000_000


async def test_a_virtual_model_means_the_reference() -> None:
    async with running({"p": ScriptedProvider(provider.completion())}) as world:
        answer = await world.connect().call(CHAT, ASK | {"model": "farebox/auto"})
        assert answer.headers["x-farebox-model"] == "gpt"
        assert answer.headers["x-farebox-route"] == "reference"


async def test_an_answer_without_usage_is_counted_and_says_so() -> None:
    body = provider.completion_body("x" * 400, 0, 0)
    del body["usage"]
    async with running({"p": ScriptedProvider(provider.reply(200, body))}) as world:
        answer = await world.connect().call(CHAT, ASK)
        assert answer.headers["x-farebox-estimated"] == "true"
        (event,) = await world.flushed()
        assert event.status == EventStatus.ESTIMATED
        assert event.output_tokens == 100


async def test_models_are_listed_with_their_prices() -> None:
    async with running({"p": ScriptedProvider(provider.completion())}) as world:
        client = world.connect()
        listed = await client.call("/v1/models", method="GET")
        assert isinstance(listed.json["data"], list)
        assert listed.json["data"][0]["pricing"]["output"] == "2.00"
        one = await client.call("/v1/models/gpt", method="GET")
        assert one.json["id"] == "gpt"
        assert (await client.call("/v1/models/nope", method="GET")).status == 404


# -- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "body", "options", "status", "code"),
    [
        (CHAT, b"{", {}, 400, "invalid_request"),
        (CHAT, b"", {}, 400, "invalid_request"),
        (CHAT, b"[" * 100_000, {}, 400, "invalid_request"),
        (CHAT, b'{"model": "gpt", "messages": "\xff"}', {}, 400, "invalid_request"),
        (CHAT, b'{"model": "gpt", "model": "gpt-2", "messages": [1]}', {}, 400, "invalid_request"),
        (CHAT, {"model": "gpt"}, {}, 400, "invalid_request"),
        (CHAT, ASK | {"max_tokens": "many"}, {}, 400, "invalid_request"),
        (CHAT, ASK, {"key": None}, 401, "invalid_api_key"),
        (CHAT, ASK, {"key": "sk_farebox_other"}, 401, "invalid_api_key"),
        (CHAT, ASK, {"headers": {"x-api-key": "another"}}, 401, "invalid_api_key"),
        (CHAT, ASK | {"model": "nope"}, {}, 404, "model_not_available"),
        ("/v1/nothing", ASK, {}, 404, "not_found"),
        (CHAT, None, {"method": "GET"}, 405, "not_found"),
        (CHAT, ASK, {"headers": {"content-encoding": "gzip"}}, 415, "invalid_request"),
        ("/v1/embeddings", {"model": "gpt", "input": "x"}, {}, 400, "invalid_request"),
    ],
)
async def test_bad_requests_are_refused_in_the_envelope(
    path: str, body: object, options: dict[str, object], status: int, code: str
) -> None:
    upstream = ScriptedProvider(provider.completion())
    async with running({"p": upstream}) as world:
        client = world.connect()
        answer = await client.call(path, body, **options)  # type: ignore[arg-type] # keyword options
        assert answer.status == status
        assert answer.error["code"] == code
        assert answer.error["type"] == "farebox_error"
        assert answer.headers["x-request-id"]
        assert upstream.calls == 0
        assert (await client.call(CHAT, ASK)).status == 200  # the connection is in a known state
        await world.assert_books_are_clean()


@pytest.mark.parametrize(
    ("settings", "headers", "body", "status"),
    [
        ({"max_head_bytes": 512}, {"x-long": "x" * 600}, ASK, 431),
        ({"max_body_bytes": 64}, {}, ASK | {"user": "x" * 64}, 413),
    ],
)
async def test_what_is_too_large_is_refused(
    settings: dict[str, int], headers: dict[str, str], body: object, status: int
) -> None:
    upstream = ScriptedProvider(provider.completion())
    config = ServerSettings(**settings)  # type: ignore[arg-type] # keyword options
    async with running({"p": upstream}, settings=config) as world:
        answer = await world.connect().call(CHAT, body, headers=headers)
        assert answer.status == status
        assert upstream.calls == 0


@pytest.mark.parametrize(
    ("sent", "seconds"),
    [
        (b"POST /v1/chat/completions HTTP/1.1\r\nhost: g", 10),
        (
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: g\r\nauthorization: Bearer "
            + KEY.encode()
            + b"\r\ncontent-length: 9\r\n\r\n{",
            30,
        ),
    ],
)
async def test_slow_requests_are_refused_in_time(
    sent: bytes, seconds: float, autojump_clock: MockClock
) -> None:
    async with running({"p": ScriptedProvider(provider.completion())}) as world:
        client = world.connect()
        started = trio.current_time()
        await client.transport.send(sent)
        answer = b""
        while part := await client.transport.receive():
            answer += part
            assert trio.current_time() - started == pytest.approx(seconds)
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b'"code":"invalid_request"' in answer
        await world.assert_books_are_clean()


async def test_an_insufficient_balance_is_known_before_anything_is_sent() -> None:
    upstream = ScriptedProvider(provider.completion())
    async with running({"p": upstream}, credit=1_000_000) as world:
        answer = await world.connect().call(CHAT, ASK | {"max_tokens": 1000})
        assert answer.status == 402
        assert answer.error["type"] == "insufficient_prepaid_balance"
        assert answer.error["code"] == "insufficient_credit"
        assert answer.error["balance_usd"] == 0.001
        assert answer.error["reserved_usd"] == 0
        assert answer.headers["x-should-retry"] == "false"
        assert upstream.calls == 0
        affordable = answer.error["affordable_output_tokens"]
        assert isinstance(affordable, int)
        again = await world.connect().call(CHAT, ASK | {"max_tokens": affordable})
        assert again.status == 200
        more = await world.connect().call(CHAT, ASK | {"max_tokens": affordable + 20})
        assert more.status == 402
        await world.assert_books_are_clean()


async def test_a_budget_that_does_not_cover_a_request_is_named() -> None:
    budget = 2**40
    caller = principal_of(pools=(ACCOUNT, budget))
    async with running({"p": ScriptedProvider(provider.completion())}, principal=caller) as world:
        world.store.add_budget(budget, ACCOUNT, 1_000_000)
        answer = await world.connect().call(CHAT, ASK | {"max_tokens": 1000})
        assert answer.status == 402
        assert str(answer.error["message"]).startswith("The budget of this key or project")
        assert "Raise it, or ask for at most" in str(answer.error["message"])


async def test_one_connection_is_nobody_s_for_good() -> None:
    """What was found out about the heads of its last requests says nothing of whom they are from
    now, and what its next ones are for."""
    upstream = ScriptedProvider(*[provider.completion()] * 4)
    async with running({"p": upstream}) as world:
        client = world.connect()
        ring, caller = world.gateway.keyring, principal_of()
        for _ in range(2):
            assert (await client.call(CHAT, ASK)).status == 200
        ring.update([(ring.hash_of(KEY), principal_of(suspended=True))])
        assert (await client.call(CHAT, ASK)).status == 403
        ring.update([(ring.hash_of(KEY), principal_of(expires_at=world.gateway.wall()))])
        assert (await client.call(CHAT, ASK)).status == 401
        ring.update([(ring.hash_of(KEY), caller)])
        assert (await client.call(CHAT, ASK)).status == 200
        ring.update([], removed=[caller.key_id])
        assert (await client.call(CHAT, ASK)).status == 401
        ring.update([(ring.hash_of(KEY), caller)])
        assert (await client.call(f"{CHAT}s", ASK)).status == 404
        assert (await client.call(CHAT, ASK, key="nobody's")).status == 401
        assert (await client.call("/v1/models", method="GET")).status == 200
        assert (await client.call(CHAT, ASK)).status == 200
        assert len(upstream.bodies) == 4


async def test_a_suspended_account_is_refused() -> None:
    caller = principal_of(suspended=True)
    async with running({"p": ScriptedProvider()}, principal=caller) as world:
        answer = await world.connect().call(CHAT, ASK)
        assert (answer.status, answer.error["code"]) == (403, "account_suspended")


async def test_a_restricted_key_is_refused_other_models() -> None:
    caller = principal_of(models=frozenset({"other"}))
    async with running({"p": ScriptedProvider()}, principal=caller) as world:
        answer = await world.connect().call(CHAT, ASK)
        assert (answer.status, answer.error["code"]) == (403, "permission_denied")


async def test_an_expired_key_is_refused() -> None:
    caller = principal_of(expires_at=1_700_000_000)
    async with running({"p": ScriptedProvider()}, principal=caller) as world:
        assert (await world.connect().call(CHAT, ASK)).status == 401


@pytest.mark.parametrize(
    ("limit", "first", "second"),
    [
        (LimitRef("a", "rpm", 1), ASK, ASK),
        (LimitRef("a", "tpm", 400), ASK | {"max_tokens": 200}, ASK | {"max_tokens": 350}),
    ],
)
async def test_limits_say_what_they_are_and_when_to_retry(
    limit: LimitRef, first: object, second: object, autojump_clock: MockClock
) -> None:
    upstream = ScriptedProvider(provider.completion())
    async with running({"p": upstream}, limits=(limit,)) as world:
        client = world.connect()
        assert (await client.call(CHAT, first)).status == 200
        refused = await client.call(CHAT, second)
        assert refused.status == 429
        assert refused.error["code"] == "rate_limit_exceeded"
        assert limit.kind in str(refused.error["message"])
        assert str(limit.limit) in str(refused.error["message"])
        assert int(refused.headers["retry-after"]) >= 1
        unit = "requests" if limit.kind == "rpm" else "tokens"
        assert refused.headers[f"x-ratelimit-limit-{unit}"] == str(limit.limit)
        assert upstream.calls == 1


async def test_concurrency_is_limited_and_freed(autojump_clock: MockClock) -> None:
    upstream = ScriptedProvider(provider.stream("a", "b", gap=5))
    async with running({"p": upstream}, limits=(LimitRef("a", "concurrent", 1),)) as world:
        first = world.connect()
        await first.send(CHAT, ASK_STREAM)
        await first.event()
        refused = await world.connect().call(CHAT, ASK)
        assert (refused.status, refused.error["code"]) == (429, "rate_limit_exceeded")
        while isinstance(await first.event(), h11.Data):
            pass
        assert (await world.connect().call(CHAT, ASK_STREAM)).status == 200


async def test_limit_headers_are_openai_s() -> None:
    upstream = ScriptedProvider(provider.completion())
    async with running({"p": upstream}, limits=(LimitRef("a", "rpm", 20),)) as world:
        answer = await world.connect().call(CHAT, ASK)
        assert answer.headers["x-ratelimit-limit-requests"] == "20"
        assert answer.headers["x-ratelimit-remaining-requests"] == "19"


async def test_a_models_own_limits_count_for_an_account_and_beside_those_of_its_tier() -> None:
    upstream = ScriptedProvider(provider.completion())
    (host,) = providers_of("p")
    models = [model_of("open", host), model_of("maker/tight", host, rpm=1)]
    async with running({"p": upstream}, models=models) as world:
        client = world.connect()
        assert (await client.call(CHAT, ASK | {"model": "maker/tight"})).status == 200
        assert (await client.call(CHAT, ASK | {"model": "maker/tight"})).status == 429
        assert (await client.call(CHAT, ASK | {"model": "open"})).status == 200
        await world.assert_books_are_clean()


async def test_a_fleet_decides_about_the_limits_of_tier_and_model_in_one_step(
    autojump_clock: MockClock,
) -> None:
    (host,) = providers_of("p")
    tier = LimitRef(f"account:{ACCOUNT}", "rpm", 60)
    models = [model_of("maker/tight", host, rpm=10)]
    upstream = ScriptedProvider(provider.completion())
    async with running({"p": upstream}, models=models, limits=(tier,)) as world:
        fleet = world.server.engine.limiter = FleetLimiter("node")
        answer = await world.connect().call(CHAT, ASK | {"model": "maker/tight"})
        assert answer.status == 503  # nobody decides
        (draw,) = [draw for draw in fleet.next_draws(0) if draw.tag != NODES]
        assert [ask.limit for ask in draw.rights] == [60, 10]


# -- upstreams that fail --------------------------------------------------------------------------

OVERFLOW = provider.error(400, "too long", "context_length_exceeded")
FAILURES: dict[str, tuple[Script, int, str]] = {
    "bad request": (provider.error(400, "no such field"), 400, "invalid_request"),
    "context overflow": (OVERFLOW, 400, "context_length_exceeded"),
    "our credential": (provider.error(401, "bad key sk-secret"), 502, "upstream_unavailable"),
    "rate limited": (provider.error(429, "slow", retry_after="7"), 503, "upstream_unavailable"),
    "server error": (provider.error(500, "boom at http://internal"), 502, "upstream_unavailable"),
    "overloaded": (provider.error(503, "busy"), 503, "upstream_unavailable"),
    "cut": ([STREAM_HEAD, None], 502, "upstream_unavailable"),
    "silence": ([1000.0], 504, "upstream_timeout"),
    "no JSON": (provider.reply(200, b"<html>"), 502, "upstream_unavailable"),
}


@pytest.mark.parametrize("name", FAILURES)
@pytest.mark.parametrize("streaming", [False, True])
async def test_a_failed_upstream_costs_nothing(
    name: str, streaming: bool, autojump_clock: MockClock
) -> None:
    script, status, code = FAILURES[name]
    async with running({"p": ScriptedProvider(script)}) as world:
        answer = await world.connect().call(CHAT, ASK_STREAM if streaming else ASK)
        if streaming and name == "silence":  # keep-alives have brought the head of the answer
            last = events_of(answer.body)[-1]
            assert isinstance(last, dict)
            assert last["error"]["code"] == code  # type: ignore[index] # the envelope
        else:
            assert (answer.status, answer.error["code"]) == (status, code)
        assert b"sk-secret" not in answer.body
        assert b"internal" not in answer.body
        if status == 503:
            assert int(answer.headers["retry-after"]) >= 1
        expected = EventStatus.UNKNOWN if name == "silence" else EventStatus.FAILED
        events = await world.flushed()
        assert {(event.charge, event.status) for event in events} == {(0, expected)}
        assert world.balance() == CREDIT
        await world.assert_books_are_clean()


@pytest.mark.parametrize("streaming", [False, True])
async def test_the_next_upstream_serves(streaming: bool, autojump_clock: MockClock) -> None:
    good = provider.stream("Hello") if streaming else provider.completion()
    first, second = ScriptedProvider(provider.error(500, "boom")), ScriptedProvider(good)
    async with running({"a": first, "b": second}) as world:
        answer = await world.connect().call(CHAT, ASK_STREAM if streaming else ASK)
        assert answer.status == 200
        events = await world.flushed()
        assert [(event.provider_id, event.charge) for event in events] == [(1, 0), (2, CHARGE)]
        assert len({event.request_id for event in events}) == 1
        await world.assert_books_are_clean()


async def test_an_upstream_that_cannot_be_reached_leaves_no_event() -> None:
    refused = ConnectionRefusedError("refused")
    async with running({"a": refused, "b": ScriptedProvider(provider.completion())}) as world:
        assert (await world.connect().call(CHAT, ASK)).status == 200
        (event,) = await world.flushed()
        assert event.provider_id == 2


@pytest.mark.parametrize("streamed", [False, True])
async def test_how_slowly_a_client_reads_is_none_of_our_time(
    streamed: bool, autojump_clock: MockClock
) -> None:
    text = "x" * (3 * BUFFER_BYTES)
    said = provider.stream(text) if streamed else provider.completion(text)
    async with running({"p": ScriptedProvider(said)}) as world:
        client = world.connect()
        await client.send(CHAT, ASK | {"stream": streamed})
        await trio.sleep(10.0)
        await client.receive()
        await wait_all_tasks_blocked()
        labels = {"surface": "openai", "model": "gpt"}
        assert metric(world, "farebox_request_duration_seconds_sum", **labels) >= 10
        assert metric(world, "farebox_overhead_seconds_sum") < 0.1


async def overhead_of(world: World, request: bytes) -> float:
    """What is counted as our time of a request whose client hears all that there is."""
    client = world.connect()
    await client.transport.send(request)
    with trio.move_on_after(1000.0):
        while await client.transport.receive():
            pass
    await trio.sleep(10.0)
    assert metric(world, "farebox_overhead_seconds_count") == 1
    return metric(world, "farebox_overhead_seconds_sum")


def head_of(key: str, length: int) -> bytes:
    fields = f"host: x\r\nauthorization: Bearer {key}\r\ncontent-length: {length}\r\n\r\n"
    return f"POST {CHAT} HTTP/1.1\r\n{fields}".encode()


STREAM_BODY = json.dumps(ASK_STREAM).encode()
STREAM_CALL = head_of(KEY, len(STREAM_BODY)) + STREAM_BODY


@pytest.mark.parametrize(
    "said",
    [
        pytest.param([STREAM_HEAD, delta("a"), 1000.0], id="it falls silent"),
        pytest.param([*provider.stream("a")[:-1], 1000.0], id="its framing has no end"),
        pytest.param([STREAM_HEAD, 5.0, *provider.stream("a")[1:]], id="it takes its time"),
    ],
)
async def test_how_slow_an_upstream_is_is_none_of_our_time(
    said: Script, autojump_clock: MockClock
) -> None:
    async with running({"p": ScriptedProvider(said)}) as world:
        assert await overhead_of(world, STREAM_CALL) < 0.1


async def test_waiting_for_who_was_refused_is_none_of_our_time(autojump_clock: MockClock) -> None:
    async with running({"p": ScriptedProvider(provider.completion())}) as world:
        assert await overhead_of(world, head_of("nobody", 9_000_000) + b"some of it") < 0.1


async def test_figures_that_are_waited_for_are_none_of_our_time(autojump_clock: MockClock) -> None:
    """The client has left; the upstream may still say what its answer costs."""
    said: Script = [STREAM_HEAD, delta("a"), 1000.0]
    async with running({"p": ScriptedProvider(said)}) as world:
        client = world.connect()
        await client.transport.send(STREAM_CALL)
        await trio.sleep(1.0)
        client.transport.close()
        await trio.sleep(10.0)
        assert metric(world, "farebox_overhead_seconds_count") == 1
        assert metric(world, "farebox_overhead_seconds_sum") < 0.1


async def test_whole_answers_raise_a_limit_that_is_used(autojump_clock: MockClock) -> None:
    """One of 4, where four at a time is all that it can be used."""
    slow = ScriptedProvider([1.0, *provider.completion()])
    async with running({"p": slow}) as world:
        means, (candidate,) = world.gateway.means, world.gateway.snapshot.routes["gpt"].candidates
        upstream = candidate.upstream
        places = [means.health.enter(upstream, means.monotonic()) for _ in range(4)]
        means.health.failed(upstream, "overloaded", means.monotonic())
        for place in places:
            assert place is not None
            place.close()

        async def ask() -> None:
            assert (await world.connect().call(CHAT, ASK)).status == 200

        for _ in range(10):
            async with trio.open_nursery() as clients:
                for _ in range(4):
                    clients.start_soon(ask)
        means.health.serve([upstream])
        (state,) = means.health.states(means.monotonic())
        assert state.limit > 4
        await world.assert_books_are_clean()


async def test_the_request_s_own_fault_is_not_tried_again() -> None:
    second = ScriptedProvider(provider.completion())
    async with running({"a": ScriptedProvider(OVERFLOW), "b": second}) as world:
        assert (await world.connect().call(CHAT, ASK)).status == 400
        assert second.calls == 0


@pytest.mark.parametrize(
    ("broken", "code"),
    [
        (None, "upstream_unavailable"),
        (chunk("{nonsense"), "upstream_unavailable"),
        (1000.0, "upstream_timeout"),
        (provider.STREAM_END, "upstream_unavailable"),
    ],
)
async def test_a_stream_that_breaks_says_so_and_charges_what_came(
    broken: bytes | float | None, code: str, autojump_clock: MockClock
) -> None:
    script = [STREAM_HEAD, delta("x" * 40), broken, 1000.0]
    other = ScriptedProvider(provider.stream("never"))
    async with running({"p": ScriptedProvider(script), "q": other}) as world:
        answer = await world.connect().call(CHAT, ASK_STREAM)
        assert answer.status == 200
        events = events_of(answer.body)
        assert isinstance(events[-1], dict)
        assert cast("dict[str, object]", events[-1]["error"])["code"] == code
        assert "[DONE]" not in events
        assert other.calls == 0
        (event,) = await world.flushed()
        assert event.status == EventStatus.CANCELLED
        assert event.output_tokens == 10
        assert 0 < event.charge < CHARGE * 2
        await world.assert_books_are_clean()


# -- clients that leave ---------------------------------------------------------------------------


@pytest.mark.parametrize("script", [[1000.0], [STREAM_HEAD, 1000.0]])
async def test_a_client_that_leaves_before_content_pays_nothing(
    script: Script, autojump_clock: MockClock
) -> None:
    async with running({"p": ScriptedProvider(script)}) as world:
        client = world.connect()
        await client.send(CHAT, ASK_STREAM)
        await trio.sleep(1)
        client.transport.close()
        await trio.sleep(0.1)
        assert world.server.statistics().open_reservations == 0
        (event,) = await world.flushed()
        assert (event.charge, event.status) == (0, EventStatus.CANCELLED)
        assert world.balance() == CREDIT
        await world.assert_books_are_clean()


async def test_a_client_that_leaves_in_mid_stream_pays_for_what_came(
    autojump_clock: MockClock,
) -> None:
    upstream = ScriptedProvider([STREAM_HEAD, delta("x" * 40), 5.0, delta("y"), 1000.0])
    async with running({"p": upstream}) as world:
        client = world.connect()
        await client.send(CHAT, ASK_STREAM)
        await client.event()
        client.transport.close()
        await trio.sleep(1)
        (event,) = await world.flushed()
        assert event.status == EventStatus.CANCELLED
        assert event.output_tokens == 10
        assert event.charge > 0
        await trio.sleep(10)
        assert upstream.cancelled == 1  # the upstream was let go, not drained
        await world.assert_books_are_clean()


async def statuses(world: World) -> list[object]:
    """What the log says of each request."""
    while not world.log:  # noqa: ASYNC110 - a thread writes it
        await trio.sleep(1)
    return [json.loads(line)["status"] for lines in world.log for line in lines.splitlines()]


async def test_a_client_that_leaves_with_the_whole_answer_has_not_left_early(
    autojump_clock: MockClock,
) -> None:
    script = [*provider.stream("Hello")[:-1], 0.2, provider.STREAM_END]
    async with running({"p": ScriptedProvider(script)}) as world:
        client = world.connect()
        assert (await client.call(CHAT, ASK_STREAM)).status == 200
        client.transport.close()
        assert await statuses(world) == [200]


async def test_a_client_that_leaves_when_it_was_refused_was_refused(
    autojump_clock: MockClock,
) -> None:
    async with running({}) as world:
        client = world.connect()
        await client.transport.send(b"nonsense\r\n\r\n")
        assert b" 400 " in await client.transport.receive()
        client.transport.close()
        assert await statuses(world) == [400]


async def test_a_body_that_drips_is_cut_by_the_hard_limit(autojump_clock: MockClock) -> None:
    async with running({}, settings=ServerSettings(max_request_seconds=60)) as world:
        client = world.connect()
        started = trio.current_time()
        await client.transport.send(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 999\r\n"
            b"authorization: Bearer " + KEY.encode() + b"\r\n\r\n"
        )
        for _ in range(4):
            await trio.sleep(14)
            await client.transport.send(b" ")
        assert (await client.transport.receive()).startswith(b"HTTP/1.1 408 ")
        assert trio.current_time() - started == pytest.approx(60)
        assert world.gateway.load.exchanges == 0


async def test_the_hard_limit_ends_a_stream_with_an_error(autojump_clock: MockClock) -> None:
    pulse: Script = [delta("x"), 10.0]
    script: Script = [STREAM_HEAD, *[step for _ in range(1000) for step in pulse]]
    endless = ScriptedProvider(script)
    settings = ServerSettings(max_request_seconds=60)
    async with running({"p": endless}, settings=settings) as world:
        started = trio.current_time()
        answer = await world.connect().call(CHAT, ASK_STREAM)
        assert trio.current_time() - started == pytest.approx(60)
        last = events_of(answer.body)[-1]
        assert isinstance(last, dict)
        assert "error" in last
        await world.assert_books_are_clean()


# -- the gateway's own state ----------------------------------------------------------------------


async def test_a_lost_ledger_is_never_a_guess(autojump_clock: MockClock) -> None:
    upstream = ScriptedProvider(provider.completion())
    async with running({"p": upstream}) as world:
        await world.server.drain()
        answer = await world.connect().call(CHAT, ASK)
        assert (answer.status, answer.error["code"]) == (503, "ledger_unavailable")
        assert int(answer.headers["retry-after"]) >= 1
        assert upstream.calls == 0


async def test_overload_is_refused_before_the_body_is_read() -> None:
    async with running({"p": ScriptedProvider(provider.completion())}) as world:
        world.gateway.load.lags = True
        answer = await world.connect().call(CHAT, ASK)
        assert (answer.status, answer.error["code"]) == (503, "overloaded")


async def test_draining_finishes_streams_and_closes_connections(
    autojump_clock: MockClock,
) -> None:
    upstream = ScriptedProvider(provider.stream("a", "b", gap=5))
    async with running({"p": upstream}) as world:
        idle, busy = world.connect(), world.connect()
        assert (await idle.call(CHAT, ASK_STREAM)).status == 200
        await busy.send(CHAT, ASK_STREAM)
        await busy.event()
        world.gateway.drain()
        assert await idle.transport.receive() == b""
        while isinstance(await busy.event(), h11.Data):
            pass
        assert await busy.transport.receive() == b""


async def test_a_log_line_names_the_key_by_id_only(autojump_clock: MockClock) -> None:
    async with running({"p": ScriptedProvider(provider.completion())}) as world:
        await world.connect().call(CHAT, ASK)
        while not world.log:  # noqa: ASYNC110 - a thread writes it
            await trio.sleep(1)
        (line,) = [json.loads(line) for lines in world.log for line in lines.splitlines()]
        assert line["key_id"] == 1
        assert line["charge_usd"] == "0.000022"
        assert KEY not in json.dumps(line)


async def test_a_bug_is_a_500_with_only_the_request_id(
    capsys: pytest.CaptureFixture[str],
) -> None:
    async with running({"p": ScriptedProvider(provider.completion())}) as world:
        world.gateway.metrics.attempt = None  # type: ignore[assignment] # a bug of ours
        answer = await world.connect().call(CHAT, ASK)
        assert (answer.status, answer.error["code"]) == (500, "internal_error")
        assert answer.headers["x-request-id"] in str(answer.error["message"])
        assert "TypeError" not in str(answer.body)
        assert "TypeError" in capsys.readouterr().err
        assert world.balance() == CREDIT
        await world.assert_books_are_clean()


@pytest.mark.parametrize("ask", [ASK, ASK_STREAM], ids=["plain", "stream"])
async def test_whatever_goes_wrong_in_a_settlement_nothing_stays_held(
    ask: dict[str, object], monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    def broken(*_arguments: object, **_options: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr("proxy.settle.post", broken)
    slot = LimitRef("account:7", "concurrent", 1)
    script = provider.stream("Hi") if ask is ASK_STREAM else provider.completion()
    async with running({"p": ScriptedProvider(script)}, limits=(slot,)) as world:
        client = world.connect()
        await client.send(CHAT, ask)
        await trio.sleep(1)
        assert world.server.statistics().open_reservations == 0
        client.transport.close()
        await world.assert_books_are_clean()
        (event,) = [event for _, event in world.store.events]
        assert (event.charge, event.status) == (0, EventStatus.UNKNOWN)
