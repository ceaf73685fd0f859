"""What callers with a valid key, or upstreams, may try: to pay less, to see more, to break it.

A whole worker between scripted providers and clients in memory, in virtual time.
"""

from __future__ import annotations

import json

import pytest
import trio

from adapters.catalogue import Protocol, Provider
from tests.fakes import provider
from tests.fakes.gateway import World, model_of, running
from tests.fakes.provider import ScriptedProvider

CHAT = "/v1/chat/completions"
RESPONSES = "/v1/responses"
MESSAGES = "/v1/messages"
HELLO = [{"role": "user", "content": "Hi"}]

Json = dict[str, object]


def speaking(name: str, protocol: Protocol) -> Provider:
    """A provider of that protocol."""
    return Provider(name, protocol, f"http://{name}/v1", api_keys=("provider-key",))


async def reserved(world: World, path: str, body: Json) -> float:
    """What was set aside for a request, in dollars, as its log line says."""
    answer = await world.connect().call(path, {"model": "gpt", **body})
    assert answer.status == 200, answer.body
    await trio.sleep(1)  # until the log was written
    line = json.loads(world.log[-1].splitlines()[-1])
    return float(line["reserved_usd"])


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
