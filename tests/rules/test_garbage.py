"""What an exchange leaves behind is freed by its reference counts; none of it needs a collector.

The collector is kept from looking at old objects while anybody is served (`farebox.interpreter`),
so a cycle of references for each request would be a leak for hours.
"""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from types import CoroutineType, FrameType

import pytest
import trio
from trio.testing import MockClock

from proxy.settings import ServerSettings
from tests.fakes import provider
from tests.fakes.gateway import Client, World, running
from tests.fakes.provider import RESET, SILENCE, STREAM_HEAD, Script, ScriptedProvider, delta

CHAT = "/v1/chat/completions"
ASK = {"model": "gpt", "messages": [{"role": "user", "content": "Hi"}]}
ASK_STREAM = ASK | {"stream": True}
TIMES = 8
SECONDS = 1.0
OURS = ("adapters", "ledger", "proxy")


@contextmanager
def collected(found: list[str]) -> Iterator[None]:
    """Add to `found` what only the collector could free: things of ours, and frames."""
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        yield
        gc.collect()
        found += [_name(thing) for thing in gc.garbage if _counts(thing)]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


def _counts(thing: object) -> bool:
    frame = isinstance(thing, FrameType | CoroutineType)
    return frame or type(thing).__module__.split(".")[0] in OURS


def _name(thing: object) -> str:
    return thing.f_code.co_qualname if isinstance(thing, FrameType) else repr(type(thing))


async def plain(client: Client) -> None:
    assert (await client.call(CHAT, ASK)).status == 200


async def stream(client: Client) -> None:
    assert (await client.call(CHAT, ASK_STREAM)).status == 200


async def refused(client: Client) -> None:
    assert (await client.call(CHAT, ASK, key="sk_unknown")).status == 401


async def misunderstood(client: Client) -> None:
    assert (await client.call(CHAT, b"no JSON")).status == 400


async def failed(client: Client) -> None:
    assert (await client.call(CHAT, ASK)).status >= 500  # the circuit opens at some time


async def broken(client: Client) -> None:
    assert b'"error"' in (await client.call(CHAT, ASK_STREAM)).body


async def left(client: Client) -> None:
    await client.send(CHAT, ASK_STREAM)
    await client.event()
    client.transport.close()
    await trio.sleep(SECONDS)


async def idle(client: Client) -> None:
    await plain(client)
    await trio.sleep(ServerSettings().keep_alive_seconds + SECONDS)


Exchange = Callable[[Client], Awaitable[None]]
CASES: dict[str, tuple[Exchange, Script]] = {
    "plain": (plain, provider.completion()),
    "stream": (stream, provider.stream("Hello")),
    "refused": (refused, provider.completion()),
    "misunderstood": (misunderstood, provider.completion()),
    "failed": (failed, provider.reply(500, {})),
    "broken": (broken, [STREAM_HEAD, delta("x"), RESET]),
    "silent": (failed, SILENCE),
    "left": (left, [STREAM_HEAD, delta("x"), 1000.0]),
    "idle": (idle, provider.completion()),
}


@pytest.mark.parametrize("case", CASES)
async def test_no_exchange_leaves_cycles(case: str, autojump_clock: MockClock) -> None:
    exchange, script = CASES[case]

    async def serve(world: World) -> None:
        for _ in range(TIMES):
            client = world.connect()
            await exchange(client)
            client.transport.close()
            await trio.sleep(SECONDS)

    found: list[str] = []
    async with running({"p": ScriptedProvider(script)}) as world:
        await serve(world)  # what is made once
        with collected(found):
            await serve(world)
    assert not Counter(found)
