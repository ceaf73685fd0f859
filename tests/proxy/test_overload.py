"""What a worker without memory says to whom, and that every byte is given back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import trio
from trio.testing import MockClock

from ledger.store import EventStatus
from proxy.memory import HELD_BYTES_MIN, LARGE_BYTES
from tests.fakes import provider
from tests.fakes.gateway import KEY, Answer, World, running
from tests.fakes.provider import STREAM_HEAD, ScriptedProvider, delta

CHAT = "/v1/chat/completions"
ASK = {"model": "gpt", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 10}
CALM = HELD_BYTES_MIN // 4 * 3
LARGE = ASK | {"user": "x" * LARGE_BYTES}


@contextmanager
def held(world: World, size: int) -> Iterator[None]:
    """Others hold so many bytes; afterwards they are all that is held."""
    others = world.gateway.memory.share()
    others.take(size)
    try:
        yield
        assert world.gateway.memory.held_bytes == size
        assert world.gateway.load.exchanges == 0
    finally:
        others.close()


async def call(world: World, body: object, *, chunked: bool = False) -> Answer:
    """One call over a connection of its own."""
    client = world.connect()
    if not chunked:
        return await client.call(CHAT, body)
    data = json.dumps(body).encode()
    head = (
        f"POST {CHAT} HTTP/1.1\r\nhost: gateway\r\nauthorization: Bearer {KEY}\r\n"
        f"connection: close\r\ntransfer-encoding: chunked\r\n\r\n{len(data):x}\r\n"
    )
    told = b""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.transport.send, head.encode() + data + b"\r\n0\r\n\r\n")
        while part := await client.transport.receive():
            told += part
        nursery.cancel_scope.cancel()
    lines, _, answer = told.partition(b"\r\n\r\n")
    status, *fields = lines.decode().split("\r\n")
    return Answer(int(status.split()[1]), dict(each.split(": ", 1) for each in fields), answer)


def assert_refused(answer: Answer) -> None:
    assert (answer.status, answer.error["code"]) == (503, "overloaded")
    assert int(answer.headers["retry-after"]) >= 1


@pytest.mark.parametrize(
    ("others", "body", "served"),
    [
        (CALM, LARGE, True),
        (CALM + 1, ASK, True),
        (CALM + 1, LARGE, False),
        (HELD_BYTES_MIN + 1, ASK, False),
    ],
    ids=["large in calm", "small in need", "large in need", "anything beyond"],
)
async def test_a_request_is_refused_by_its_declared_length(
    others: int, body: object, served: bool, autojump_clock: MockClock
) -> None:
    upstream = ScriptedProvider(provider.completion())
    async with running({"p": upstream}) as world:
        with held(world, others):
            answer = await call(world, body)
            if served:
                assert answer.status == 200
            else:
                assert_refused(answer)
                assert upstream.calls == 0
        assert (await call(world, body)).status == 200


async def test_it_is_refused_before_it_is_read(autojump_clock: MockClock) -> None:
    async with running({}) as world:
        with held(world, CALM + 1):
            client = world.connect()
            await client.transport.send(
                f"POST {CHAT} HTTP/1.1\r\nhost: gateway\r\nauthorization: Bearer {KEY}\r\n"
                f"content-length: {LARGE_BYTES + 1}\r\nexpect: 100-continue\r\n\r\n".encode()
            )
            assert (await client.transport.receive()).startswith(b"HTTP/1.1 503 ")
            client.transport.close()
            await trio.sleep(5)


async def test_a_body_in_chunks_is_refused_once_it_is_large(autojump_clock: MockClock) -> None:
    upstream = ScriptedProvider(provider.completion())
    async with running({"p": upstream}) as world:
        with held(world, CALM + 1):
            assert (await call(world, ASK, chunked=True)).status == 200
            assert_refused(await call(world, LARGE, chunked=True))
            await trio.sleep(5)
        assert (await call(world, LARGE, chunked=True)).status == 200
        assert upstream.calls == 2


async def test_an_answer_beyond_the_bound_is_given_up(autojump_clock: MockClock) -> None:
    upstream = ScriptedProvider(provider.completion("x" * LARGE_BYTES))
    async with running({"p": upstream}) as world:
        with held(world, HELD_BYTES_MIN - LARGE_BYTES // 2):
            answer = await call(world, ASK)
            assert (answer.status, answer.error["code"]) == (503, "upstream_unavailable")
        assert (await call(world, ASK)).status == 200
        given_up, whole = await world.flushed()
        assert (given_up.charge, given_up.status) == (0, EventStatus.FAILED)
        assert whole.charge > 0
        await world.assert_books_are_clean()


async def test_words_before_content_are_held_within_the_bound(autojump_clock: MockClock) -> None:
    opening = delta("", x="x" * LARGE_BYTES)
    upstream = ScriptedProvider([STREAM_HEAD, opening, delta("x"), 1.0])
    async with running({"p": upstream}) as world:
        with held(world, HELD_BYTES_MIN - LARGE_BYTES // 2):
            answer = await call(world, ASK | {"stream": True})
            assert (answer.status, answer.error["code"]) == (503, "upstream_unavailable")
        await world.assert_books_are_clean()
