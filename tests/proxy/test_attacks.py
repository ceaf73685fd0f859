"""What callers with a valid key, or upstreams, may try: to pay less, to see more, to break it.

A whole worker between scripted providers and clients in memory, in virtual time.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable
from unittest.mock import patch

import pytest
import trio
from msgspec.msgpack import Decoder, Encoder
from trio.testing import MockClock

from adapters.catalogue import Model, Protocol, Provider, Upstream
from adapters.codec import Call
from adapters.pricing import build_schedule
from ledger.keys import keyed_hash
from ledger.messages import Message, Reserve
from ledger.pool import BUDGET_POOL_MIN
from ledger.server import Peer
from ledger.store import EventStatus
from proxy.calls import Calls
from proxy.route import Candidate
from tests.fakes import provider
from tests.fakes.gateway import (
    ACCOUNT,
    KEY,
    SECRET,
    Handler,
    World,
    model_of,
    principal_of,
    running,
)
from tests.fakes.provider import STREAM_END, STREAM_HEAD, ScriptedProvider, Step, chunk, delta
from tests.fakes.scenes import logged

CHAT = "/v1/chat/completions"
RESPONSES = "/v1/responses"
MESSAGES = "/v1/messages"
OTHER_KEY = "sk_farebox_other"
BUDGET = BUDGET_POOL_MIN + 1
HELLO = [{"role": "user", "content": "Hi"}]

Json = dict[str, object]


def speaking(name: str, protocol: Protocol) -> Provider:
    """A provider of that protocol."""
    return Provider(name, protocol, f"http://{name}/v1", api_keys=("provider-key",))


async def reserved(world: World, path: str, body: Json) -> float:
    """What was set aside for a request, in dollars, as its log line says."""
    before = sum(lines.count(b"\n") for lines in world.log)
    answer = await world.connect().call(path, {"model": "gpt", **body})
    assert answer.status == 200, answer.body
    *_, line = await logged(world, before + 1)
    return float(str(line["reserved_usd"]))


# -- paying less ----------------------------------------------------------------------------------


async def test_a_cap_that_the_provider_raises_is_held_as_it_was_raised() -> None:
    reply = provider.reply(200, {"id": "r", "status": "completed", "output": MESSAGE})
    caps: list[tuple[Protocol, int]] = [("openai-responses", 16), ("openai", 10)]
    for protocol, tokens in caps:
        upstream = ScriptedProvider(reply if tokens == 16 else provider.completion("x"))
        models = [model_of("gpt", speaking("p", protocol))]
        async with running({"p": upstream}, models=models) as world:
            held = await reserved(world, MESSAGES, {"messages": HELLO, "max_tokens": 10})
            more = await reserved(world, MESSAGES, {"messages": HELLO, "max_tokens": 17})
            sent = upstream.bodies[0]
            assert sent.get("max_output_tokens", sent.get("max_tokens")) == tokens
        a_token = 2.0 / 1e6 * 1.1
        assert more - held == pytest.approx((17 - tokens) * a_token, rel=0.01)


MESSAGE = [
    {
        "type": "message",
        "id": "m",
        "role": "assistant",
        "status": "completed",
        "content": [{"type": "output_text", "text": "x", "annotations": []}],
    }
]


async def test_tools_that_are_left_out_set_nothing_aside() -> None:
    search = {"type": "web_search_20250305", "name": "web_search", "max_uses": 50}
    body: Json = {"messages": HELLO, "max_tokens": 10, "tools": [search]}
    models = [model_of("gpt", speaking("p", "openai"), context_window=100_000)]
    async with running({"p": ScriptedProvider(provider.completion("x"))}, models=models) as world:
        assert await reserved(world, MESSAGES, body) < 0.01


async def test_an_upstream_that_counts_nothing_is_counted() -> None:
    """Neither a lie nor an omission makes an answer free."""
    answer = provider.completion_body("word " * 100, 0, 0)
    async with running({"p": ScriptedProvider(provider.reply(200, answer))}) as world:
        client = world.connect()
        got = await client.call(CHAT, {"model": "gpt", "messages": HELLO})
        assert got.headers["x-farebox-estimated"] == "true"
        assert float(got.headers["x-farebox-cost-usd"]) >= 125 * 2.0 / 1e6
        await world.assert_books_are_clean()


@pytest.mark.parametrize("tokens", [-5, 2**62, 10**30, 1.5, "many", None, True, [1]])
async def test_figures_that_are_none_are_not_charged(tokens: object) -> None:
    answer = provider.completion_body("word", 1, 1)
    answer["usage"] = {"prompt_tokens": tokens, "completion_tokens": tokens, "total_tokens": tokens}
    async with running({"p": ScriptedProvider(provider.reply(200, answer))}) as world:
        got = await world.connect().call(CHAT, {"model": "gpt", "messages": HELLO})
        assert got.status == 200
        assert float(got.headers["x-farebox-cost-usd"]) < 0.001
        await world.assert_books_are_clean()


async def test_leaving_right_before_the_figures_does_not_save_them(
    autojump_clock: MockClock,
) -> None:
    """What a model has thought is told at the end only, and nowhere else."""
    usage = provider.usage(10, 90)
    script: list[Step] = [STREAM_HEAD, delta("all of it"), 0.1, delta(finish="stop")]
    script += [chunk({"choices": [], "usage": usage}), chunk("[DONE]"), STREAM_END]
    async with running({"p": ScriptedProvider(script)}) as world:
        client = world.connect()
        await client.send(CHAT, {"model": "gpt", "messages": HELLO, "stream": True})
        await client.event()
        client.transport.close()
        await trio.sleep(1)
        (event,) = await world.flushed()
        assert event.status == EventStatus.CANCELLED
        assert event.output_tokens == 90
        await world.assert_books_are_clean()


@pytest.mark.parametrize(("pause", "tokens"), [(0.1, 90), (60.0, 1)])
async def test_a_stop_sequence_does_not_cut_off_the_figures(
    pause: float, tokens: int, autojump_clock: MockClock
) -> None:
    text = {"type": "response.output_text.delta", "output_index": 0, "content_index": 0}
    figures = {"input_tokens": 10, "output_tokens": 90}
    done = {"id": "r", "status": "completed", "output": MESSAGE, "usage": figures}
    script: list[Step] = [STREAM_HEAD, chunk({**text, "delta": "yes<END>"}), pause]
    script += [chunk({**text, "delta": "no" * 500})]
    script += [chunk({"type": "response.completed", "response": done}), STREAM_END]
    models = [model_of("gpt", speaking("p", "openai-responses"))]
    async with running({"p": ScriptedProvider(script)}, models=models) as world:
        body = {"model": "gpt", "messages": HELLO, "stream": True, "stop": "<END>"}
        answer = await world.connect().call(CHAT, body)
        assert answer.body.endswith(b"data: [DONE]\n\n")
        assert b"no" not in answer.body
        (event,) = await world.flushed()
        assert event.output_tokens == pytest.approx(tokens, abs=1)
        await world.assert_books_are_clean()


# -- more than can be counted ---------------------------------------------------------------------


@pytest.mark.parametrize("pools", [(ACCOUNT,), (ACCOUNT, BUDGET)], ids=["balance", "budget"])
async def test_no_wish_is_too_large_to_be_told_to_the_ledger(pools: tuple[int, ...]) -> None:
    """What cannot be said to it would end the link, for everybody who shares the worker."""
    dear = build_schedule({"input": "150.00", "output": "600.00"})
    upstream = Upstream(speaking("p", "openai-responses"), "upstream-model", dear)
    model = Model("gpt", ((upstream,),), prices=dear)
    principal = principal_of(pools=pools)
    async with running({}, models=[model], principal=principal) as world:
        world.store.add_budget(BUDGET, ACCOUNT, 10**9)
        heard = listen_in(world)
        for calls in (2**31 - 1, 10**7, 10**3):
            body = {"model": "gpt", "input": "Hi", "max_tool_calls": calls}
            refused = await world.connect().call(
                RESPONSES, {**body, "tools": [{"type": "web_search"}]}
            )
            assert refused.status in (402, 503), refused.body
        travelled = Decoder(list[Message]).decode(Encoder().encode(heard))
        asked = [each.request for each in travelled if isinstance(each, Reserve)]
        assert len(asked) >= 3
        await world.assert_books_are_clean()


def listen_in(world: World) -> list[Message]:
    """Everything that the worker says to its ledger from now on."""
    heard: list[Message] = []
    handle = world.server.handle

    def handled(peer: Peer, said: Iterable[Message]) -> None:
        messages = list(said)
        heard.extend(messages)
        handle(peer, messages)

    world.server.handle = handled  # type: ignore[method-assign] # heard on the way
    return heard


# -- breaking it ----------------------------------------------------------------------------------


async def test_names_of_fields_cannot_break_the_head() -> None:
    odd = {"a\r\nx-evil: 1": 1, "é\u2028": 2, "x" * 70_000: 3, **{f"k{n}": n for n in range(9000)}}
    text = {"type": "text", "text": "Hi"}
    bodies: list[tuple[str, Json]] = [
        (CHAT, {"model": "gpt", "messages": HELLO, **odd}),
        (RESPONSES, {"model": "gpt", "input": "Hi", "tools": [{"type": name} for name in odd]}),
        (
            MESSAGES,
            {
                "model": "gpt",
                "max_tokens": 9,
                "messages": [
                    {"role": "user", "content": [text, *({"type": name} for name in odd)]}
                ],
                "tools": [{"type": name, "name": name} for name in odd],
                **odd,
            },
        ),
        (
            "/v1beta/models/gpt:generateContent",
            {"contents": [{"parts": [{"text": "Hi", **odd}]}], **odd},
        ),
    ]
    protocols: list[Protocol] = ["openai", "anthropic"]
    for protocol in protocols:
        models = [model_of("gpt", speaking("p", protocol), context_window=10**6)]
        upstream = ScriptedProvider(
            provider.completion("x")
            if protocol == "openai"
            else provider.reply(200, {"content": [{"type": "text", "text": "x"}]})
        )
        async with running({"p": upstream}, models=models, credit=10**13) as world:
            for path, body in bodies:
                got = await world.connect().call(path, body)
                assert got.status in (200, 400), (path, got.body[:200])
                assert "x-evil" not in got.headers
                assert len(got.headers.get("x-farebox-dropped", "")) < 4096
                assert got.headers.get("x-farebox-dropped", "").isascii()
            await world.assert_books_are_clean()


@pytest.mark.parametrize("path", [CHAT, RESPONSES, MESSAGES])
async def test_no_depth_is_the_workers_fault(path: str) -> None:
    """Also such as can be read, but not be written from where the stack is deeper."""
    models = [model_of("gpt", *(speaking(name, name) for name in SPOKEN))]
    hosts: dict[str, Handler | OSError] = {
        name: ScriptedProvider(provider.completion("x")) for name in SPOKEN
    }
    async with running(hosts, models=models) as world:
        for depth in (*range(100, 1000, 50), *range(900, 1000, 5)):
            deep = b'{"a":' * depth + b"1" + b"}" * depth
            body = json.dumps(
                {
                    "model": "gpt",
                    "max_tokens": 9,
                    **({"input": "Hi"} if path == RESPONSES else {"messages": HELLO}),
                    "tools": [
                        {
                            "type": "custom" if path == MESSAGES else "function",
                            "name": "f",
                            "input_schema": "DEEP",
                            "parameters": "DEEP",
                            "function": {"name": "f", "parameters": "DEEP"},
                        }
                    ],
                }
            )
            got = await world.connect().call(path, body.encode().replace(b'"DEEP"', deep))
            assert got.status in (200, 400), (depth, got.body[:300])
        await world.assert_books_are_clean()


SPOKEN: tuple[Protocol, ...] = ("anthropic", "gemini", "openai-responses", "openai")


async def test_a_stream_of_nothing_does_not_fill_the_memory(autojump_clock: MockClock) -> None:
    nothing = b"%x\r\n%b\r\n" % (2**20, b": " + b"x" * (2**20 - 4) + b"\n\n")
    upstream = ScriptedProvider([STREAM_HEAD, *[nothing] * 20, 1000.0])
    async with running({"p": upstream}) as world:
        body = {"model": "gpt", "messages": HELLO, "stream": True}
        assert (await world.connect().call(CHAT, body)).status == 502
        await world.assert_books_are_clean()


async def test_an_item_that_is_named_again_and_again_does_not_fill_the_memory() -> None:
    async with running({"p": ScriptedProvider(provider.completion("x"))}) as world:
        client = world.connect()
        item = {"type": "message", "role": "user", "id": "msg_big", "content": "x" * 10**6}
        first = await client.call(RESPONSES, {"model": "gpt", "input": [item]})
        assert first.status == 200
        reference = {"type": "item_reference", "id": "msg_big"}
        bomb = await client.call(RESPONSES, {"model": "gpt", "input": [reference] * 10_000})
        assert bomb.status == 413


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        ("/v1/models?limit=", {"anthropic-version": "2023-06-01"}),
        ("/v1beta/models?pageSize=", {}),
        ("/v1/responses/resp_1/input_items?limit=", {}),
    ],
)
async def test_no_number_is_too_long_to_be_refused(path: str, headers: dict[str, str]) -> None:
    async with running({"p": ScriptedProvider(provider.completion("x"))}) as world:
        for number in ("9" * 6000, "00001" + "9" * 6000, "1" * 9 + "x"):
            got = await world.connect().call(path + number, headers=headers, method="GET")
            assert got.status in (400, 404), got.body[:200]


# -- what is others' ------------------------------------------------------------------------------


async def test_what_belongs_to_another_project_is_as_unknown_as_what_never_was() -> None:
    upstream = ScriptedProvider(provider.completion("secret"))
    async with running({"p": upstream}) as world:
        client = world.connect()
        kept = (await client.call(RESPONSES, {"model": "gpt", "input": "Hi"})).json
        items = kept["output"]
        assert isinstance(items, list)
        facts = (keyed_hash(SECRET, OTHER_KEY), principal_of(key_id=2, project_id=2))
        world.gateway.keyring.update([(keyed_hash(SECRET, KEY), principal_of()), facts])
        for previous, item in ((kept["id"], items[0]["id"]), ("resp_none", "msg_none")):
            answers = [
                await client.call(path, body, key=OTHER_KEY, method=method)
                for path, body, method in (
                    (f"{RESPONSES}/{previous}", None, "GET"),
                    (f"{RESPONSES}/{previous}", None, "DELETE"),
                    (f"{RESPONSES}/{previous}/input_items", None, "GET"),
                    (f"{RESPONSES}/{previous}/cancel", None, "POST"),
                    (
                        RESPONSES,
                        {"model": "gpt", "input": "Hi", "previous_response_id": previous},
                        "POST",
                    ),
                    (
                        RESPONSES,
                        {"model": "gpt", "input": [{"type": "item_reference", "id": item}]},
                        "POST",
                    ),
                )
            ]
            assert [answer.status for answer in answers] == [404] * len(answers)
        assert upstream.calls == 1
        assert (await client.call(f"{RESPONSES}/{kept['id']}", method="GET")).status == 200


async def test_no_header_of_the_caller_reaches_a_provider() -> None:
    for protocol, forwarded in (("openai", False), ("anthropic", True)):
        upstream = ScriptedProvider(
            provider.completion("x")
            if protocol == "openai"
            else provider.reply(200, {"content": [{"type": "text", "text": "x"}]})
        )
        speaks: Protocol = "anthropic" if forwarded else "openai"
        models = [model_of("gpt", speaking("p", speaks))]
        async with running({"p": upstream}, models=models) as world:
            body: Json = {"model": "gpt", "max_tokens": 9, "messages": HELLO}
            headers = {
                "anthropic-version": "2023-06-01",
                "anthropic-beta": "files-api-2025-04-14",
                "anthropic-api-key": "mine",
                "cookie": "session=mine",
                "x-forwarded-for": "10.0.0.1",
                "openai-organization": "mine",
                "openai-project": "mine",
                "x-goog-user-project": "mine",
            }
            assert (await world.connect().call(MESSAGES, body, headers=headers)).status == 200
            head = upstream.heads[0].lower()
            assert ("anthropic-beta" in head) is forwarded
            assert "mine" not in head
            assert "10.0.0.1" not in head
            assert KEY not in head


async def test_a_long_conversation_is_translated_beside_the_loop() -> None:
    upstream = ScriptedProvider(provider.completion("x"))
    models = [model_of("gpt", speaking("p", "openai"), context_window=10**6)]
    async with running({"p": upstream}, models=models, credit=10**12) as world:
        turns = [{"role": role, "content": "Hi"} for role in ("user", "assistant")] * 5000
        body: Json = {"model": "gpt", "max_tokens": 9, "messages": [*turns, *HELLO]}
        threads: set[int] = set()
        at = Calls.at

        def watched(self: Calls, candidate: Candidate, cap: int | None) -> Call:
            threads.add(threading.get_ident())
            return at(self, candidate, cap)

        with patch.object(Calls, "at", watched):
            assert (await world.connect().call(MESSAGES, body)).status == 200
            assert threading.get_ident() not in threads
            assert (await world.connect().call(CHAT, body)).status == 200
            assert threading.get_ident() in threads  # nothing to translate
        messages = upstream.bodies[0]["messages"]
        assert isinstance(messages, list)
        assert len(messages) == 10_001
