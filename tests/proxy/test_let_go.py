"""While an answer streams, nothing is held that is as large as what was asked.

What our own code has allocated since a request came is counted by `tracemalloc`: bytes are in no
list of the collector's, so no walk over objects would find those that something in C holds.
"""

from __future__ import annotations

import base64
import gc
import json
import threading
import tracemalloc
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager

import h11
import pytest
import trio
import trio.testing
from trio.testing import MockClock

from adapters.catalogue import Protocol, Provider
from tests.fakes.askers import PNG, Ask, body_of
from tests.fakes.gateway import Client, World, model_of, running
from tests.fakes.provider import HANG, STREAM_HEAD, ScriptedProvider, Step, chunk, delta

BODY_BYTES = 400_000
HELD_BYTES_MAX = 60_000  # of a stream, with all that its first request fills
THREAD_TRIES = 100
TEXT = "What is the weather like in Oslo? " * (BODY_BYTES // 34)
SURFACES: tuple[Protocol, ...] = ("openai", "openai-responses", "anthropic", "gemini")
RESPONSE = {"id": "resp_1", "object": "response", "model": "m", "status": "in_progress"}
MESSAGE = {"id": "msg_1", "type": "message", "role": "assistant", "model": "m", "content": []}
ITEM = {"id": "msg_1", "type": "message", "role": "assistant", "content": []}
PART = {"type": "output_text", "text": "", "annotations": []}
AT: Mapping[str, object] = {"item_id": "msg_1", "output_index": 0, "content_index": 0}


def events(*each: Mapping[str, object]) -> list[Step]:
    """A stream that names its events."""
    return [STREAM_HEAD, *(chunk(event) for event in each)]


BEGUN: Mapping[Protocol, list[Step]] = {
    "openai": [STREAM_HEAD, delta("Hello")],
    "openai-responses": events(
        {"type": "response.created", "response": {**RESPONSE, "output": []}},
        {"type": "response.output_item.added", "output_index": 0, "item": ITEM},
        {"type": "response.content_part.added", "part": PART, **AT},
        {"type": "response.output_text.delta", "delta": "Hello", **AT},
    ),
    "anthropic": events(
        {"type": "message_start", "message": {**MESSAGE, "usage": {"input_tokens": 9}}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {
            "type": "content_block_delta",
            "index": 0,
            "delta": {"type": "text_delta", "text": "Hello"},
        },
    ),
    "gemini": events({"candidates": [{"content": {"parts": [{"text": "Hello"}]}}]}),
}


@asynccontextmanager
async def serving(upstream: Protocol) -> AsyncIterator[World]:
    """A worker with one provider, that begins to answer and goes on for ever."""
    provider = Provider("p", upstream, "http://p/v1", api_keys=("k",))
    model = model_of("gpt", provider, context_window=1_000_000)
    host = ScriptedProvider([*BEGUN[upstream], HANG])
    async with running({"p": host}, models=[model]) as world:
        yield world


async def begun(
    world: World, surface: Protocol, ask: Ask, headers: Mapping[str, str] | None = None
) -> Client:
    """A client that has read the first words of its answer."""
    path, body = body_of(surface, ask.streamed())
    return await said_hello(world, path, body, headers)


async def said_hello(
    world: World, path: str, body: bytes, headers: Mapping[str, str] | None = None
) -> Client:
    client = world.connect()
    await client.send(path, body, headers=headers)
    head = await client.event()
    assert isinstance(head, h11.Response)
    assert head.status_code == 200
    came = b""
    while b"Hello" not in came:
        event = await client.event()
        assert isinstance(event, h11.Data)
        came += event.data
    await trio.testing.wait_all_tasks_blocked()
    return client


@contextmanager
def traced() -> Iterator[None]:
    """For the time of the block `held_bytes` counts from its beginning."""
    tracemalloc.start()
    try:
        yield
    finally:
        tracemalloc.stop()


def held_bytes() -> int:
    """What the product has allocated since tracing began, and not given back."""
    gc.collect()
    ours = [tracemalloc.Filter(True, f"*/{package}/*") for package in ("proxy", "adapters")]
    tests = tracemalloc.Filter(False, "*/tests/*")
    traces = tracemalloc.take_snapshot().filter_traces([*ours, tests]).traces
    return sum(trace.size for trace in traces)


def holds_little() -> bool:
    """Whether hardly anything is held, or will be: a thread that has made a request out of another
    lets go of both just after it has told so."""
    for _ in range(THREAD_TRIES):
        if held_bytes() < HELD_BYTES_MAX:
            return True
        threading.Event().wait(0.02)
    return False


@pytest.mark.parametrize("upstream", SURFACES)
@pytest.mark.parametrize("surface", SURFACES)
async def test_what_was_asked_is_let_go_of_when_the_answer_begins(
    surface: Protocol, upstream: Protocol, autojump_clock: MockClock
) -> None:
    async with serving(upstream) as world:
        with traced():
            await begun(world, surface, Ask("gpt", TEXT))
            assert holds_little()
            assert world.gateway.memory.held_bytes == 0
            assert world.gateway.load.exchanges == 1  # it is over only with its answer


@pytest.mark.parametrize("upstream", SURFACES)
async def test_media_is_let_go_of_as_well(upstream: Protocol, autojump_clock: MockClock) -> None:
    path, body = body_of("openai", Ask("gpt", image=True).streamed())
    larger = base64.b64encode(base64.b64decode(PNG) + bytes(BODY_BYTES))
    body = body.replace(PNG.encode(), larger)
    async with serving(upstream) as world:
        with traced():
            await said_hello(world, path, body)
            assert holds_little()
            assert world.gateway.memory.held_bytes == 0


@pytest.mark.parametrize("upstream", ["openai", "anthropic"])
async def test_it_is_not_held_for_a_retry_either(
    upstream: Protocol, autojump_clock: MockClock
) -> None:
    async with serving(upstream) as world:
        with traced():
            await begun(world, "openai", Ask("gpt", TEXT), {"idempotency-key": "one"})
            assert holds_little()
            assert world.gateway.memory.held_bytes == 0


@pytest.mark.parametrize("upstream", SURFACES)
async def test_what_is_kept_with_its_answer_is_held_and_counted_until_then(
    upstream: Protocol, autojump_clock: MockClock
) -> None:
    path, body = body_of("openai-responses", Ask("gpt", TEXT).streamed())
    body = json.dumps(json.loads(body) | {"store": True}).encode()
    async with serving(upstream) as world:
        with traced():
            client = await said_hello(world, path, body)
            # Once, but for the spare room that its encoder leaves behind what it has written.
            assert len(body) < held_bytes() < 3 / 2 * len(body) + HELD_BYTES_MAX
            assert world.gateway.memory.held_bytes == len(body)
            client.transport.close()
            await trio.sleep(1)
            assert world.gateway.memory.held_bytes == 0


@pytest.mark.parametrize("upstream", ["openai", "gemini"])  # that tell no figures at the beginning
@pytest.mark.parametrize("surface", SURFACES)
async def test_media_counts_in_a_stream_that_is_cut(
    surface: Protocol, upstream: Protocol, autojump_clock: MockClock
) -> None:
    charges = []
    for ask in (Ask("gpt"), Ask("gpt", image=True)):
        async with serving(upstream) as world:
            client = await begun(world, surface, ask)
            client.transport.close()
            await trio.sleep(1)
            (event,) = await world.flushed()
            charges.append(event.charge)
    assert 0 < charges[0] < charges[1]
