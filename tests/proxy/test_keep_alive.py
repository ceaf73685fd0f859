"""Signs of life while an upstream is silent: in each surface's own form, before a stream and in it.

Prices and amounts as in test_exchange.py.
"""

from __future__ import annotations

import h11
import pytest
import trio
from trio.testing import MockClock

from proxy.keep_alive import SECONDS
from tests.fakes import provider
from tests.fakes.gateway import Client, running
from tests.fakes.provider import STREAM_END, STREAM_HEAD, ScriptedProvider, Step, chunk, delta

CHAT = ("/v1/chat/completions", {"model": "gpt", "messages": [{"role": "user", "content": "Hi"}]})
RESPONSES = ("/v1/responses", {"model": "gpt", "input": "Hi"})
MESSAGES = ("/v1/messages", CHAT[1] | {"max_tokens": 50})
GEMINI = (
    "/v1beta/models/gpt:streamGenerateContent?alt=sse",
    {"contents": [{"role": "user", "parts": [{"text": "Hi"}]}]},
)
BEATS = {
    CHAT[0]: b": keep-alive\n\n",
    RESPONSES[0]: b": keep-alive\n\n",
    MESSAGES[0]: b'event: ping\ndata: {"type":"ping"}\n\n',
}
END: list[Step] = [delta(finish="stop"), chunk({"choices": [], "usage": provider.usage(10, 5)})]
END += [chunk("[DONE]"), STREAM_END]


async def arrivals(client: Client) -> list[tuple[float, bytes]]:
    """When the parts of a stream came, from its head on."""
    assert isinstance(await client.event(), h11.Response)
    came = [(trio.current_time(), b"")]
    while isinstance(event := await client.event(), h11.Data):
        came.append((trio.current_time(), bytes(event.data)))
    return came


@pytest.mark.parametrize("surface", [CHAT, RESPONSES, MESSAGES], ids=lambda s: s[0])
async def test_a_silent_upstream_is_bridged_from_the_start(
    surface: tuple[str, dict[str, object]], autojump_clock: MockClock
) -> None:
    path, body = surface
    script = [SECONDS * 2.5, STREAM_HEAD, delta("Hello"), *END]
    async with running({"p": ScriptedProvider(script)}) as world:
        client = world.connect()
        await client.send(path, body | {"stream": True})
        came = await arrivals(client)
        assert came[0][0] == pytest.approx(SECONDS, abs=1.1)
        beats = [at for at, data in came if data == BEATS[path]]
        assert beats == pytest.approx([SECONDS, 2 * SECONDS], abs=2.1)
        assert b"Hello" in b"".join(data for _, data in came)
        (event,) = await world.flushed()
        assert event.charge == 22_000
        await world.assert_books_are_clean()


@pytest.mark.parametrize("header", ["user-agent", "originator"])
async def test_codex_counts_events_only(header: str, autojump_clock: MockClock) -> None:
    script = [STREAM_HEAD, delta("Hel"), SECONDS * 1.5, delta("lo"), *END]
    async with running({"p": ScriptedProvider(script)}) as world:
        client = world.connect()
        body = RESPONSES[1] | {"stream": True}
        await client.send(RESPONSES[0], body, headers={header: "codex_exec/0.169.0"})
        came = b"".join(data for _, data in await arrivals(client))
        assert b'\n\nevent: keepalive\ndata: {"type":"keepalive"}\n\n' in came


async def test_gemini_s_readers_know_no_sign_of_life(autojump_clock: MockClock) -> None:
    script = [SECONDS * 2.5, STREAM_HEAD, delta("Hello"), SECONDS * 2.5, delta("!"), *END]
    async with running({"p": ScriptedProvider(script)}) as world:
        client = world.connect()
        await client.send(*GEMINI)
        came = await arrivals(client)
        assert came[0][0] == pytest.approx(SECONDS * 2.5, abs=0.1)
        assert all(data.startswith(b"data: {") for _, data in came[1:])


@pytest.mark.parametrize("surface", [CHAT, RESPONSES, MESSAGES], ids=lambda s: s[0])
async def test_a_pause_in_the_middle_is_bridged(
    surface: tuple[str, dict[str, object]], autojump_clock: MockClock
) -> None:
    path, body = surface
    script = [STREAM_HEAD, delta("Hel"), SECONDS * 2.5, delta("lo"), *END]
    async with running({"p": ScriptedProvider(script)}) as world:
        client = world.connect()
        await client.send(path, body | {"stream": True})
        came = await arrivals(client)
        between = [at for at, _ in came if SECONDS <= at < SECONDS * 2.5]
        assert between == pytest.approx([SECONDS, 2 * SECONDS], abs=2.1)


async def test_another_upstream_may_still_serve_after_a_sign_of_life(
    autojump_clock: MockClock,
) -> None:
    slow = ScriptedProvider([SECONDS * 2, *provider.error(500, "broken")])
    async with running({"p": slow, "q": ScriptedProvider(provider.stream("Hello"))}) as world:
        answer = await world.connect().call(CHAT[0], CHAT[1] | {"stream": True})
        assert answer.status == 200
        assert answer.body.startswith(BEATS[CHAT[0]])
        assert answer.body.endswith(b"data: [DONE]\n\n")


async def test_a_failure_after_a_sign_of_life_is_told_in_the_stream(
    autojump_clock: MockClock,
) -> None:
    slow = ScriptedProvider([SECONDS * 2, *provider.error(500, "broken")])
    async with running({"p": slow}) as world:
        answer = await world.connect().call(CHAT[0], CHAT[1] | {"stream": True})
        assert answer.status == 200
        assert b'"upstream_unavailable"' in answer.body
        assert b"[DONE]" not in answer.body
        assert world.balance() == 10**10
        await world.assert_books_are_clean()


async def test_plain_answers_have_none(autojump_clock: MockClock) -> None:
    async with running({"p": ScriptedProvider([60.0, *provider.completion()])}) as world:
        answer = await world.connect().call(*CHAT)
        assert answer.status == 200
        assert answer.json["choices"]
