"""Upstreams that act by script, and everything that anybody can see of requests to them.

For whole workers in virtual time (`tests.fakes.gateway.running`): what the client has and when,
what the books and the log say, and that nothing is held when all is over.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

import pytest
import trio

from ledger.store import EventStatus
from tests.fakes import provider
from tests.fakes.gateway import KEY, Answer, World
from tests.fakes.provider import STREAM_HEAD, Asked, ChoosingProvider, Script, Step

CHAT = "/v1/chat/completions"
CHARGE = 22_000
"""Nano-dollars for the whole answer that `says` gives: 10 input and 5 output tokens."""

PRECISION_SECONDS = 0.01

Event = tuple[str, EventStatus, int]
"""Provider, status and charge of an event in the books."""


@dataclass(frozen=True)
class Act:
    """One answer, as it is where it was asked for plainly and where it was to be streamed."""

    plain: Script
    stream: Script


def says(word: str, after: float = 0.0) -> Act:
    """A whole answer of which nothing comes before `after` seconds; the head of a stream does."""
    return Act(
        [after, *provider.completion(word)],
        [STREAM_HEAD, after, *provider.stream(word)[1:]],
    )


def fails(status: int, after: float = 0.0, **headers: str) -> Act:
    """A refusal after so long."""
    script: list[Step] = [after, *provider.error(status, "no", **headers)]
    return Act(script, script)


def broken(after: float = 0.0) -> Act:
    """A connection that ends in the middle of an answer, before its first content."""
    plain: list[Step] = [after, *provider.cut(provider.completion("x"), 50)]
    return Act(plain, [STREAM_HEAD, after, None])


class Upstream(ChoosingProvider):
    """Acts in turn, one act a request, and the last one for ever after."""

    def __init__(self, *acts: Act) -> None:
        super().__init__(self._choose_act)
        self._acts = list(acts)

    def _choose_act(self, now: float, asked: Asked) -> Script:
        act = self._acts.pop(0) if len(self._acts) > 1 else self._acts[0]
        return act.stream if asked.get("stream") else act.plain


def always_one() -> float:
    """The dice."""
    return 1.0


# -- what everybody sees --------------------------------------------------------------------------


@dataclass(frozen=True)
class Got:
    """What the client has, and when it had all of it."""

    status: int
    text: str
    code: str
    at: float


async def ask(world: World, *, streamed: bool, key: str = KEY, **fields: object) -> Got:
    """One request from a client of its own."""
    began = trio.current_time()
    answer = await world.connect().call(CHAT, question(streamed=streamed, **fields), key=key)
    return Got(answer.status, *told(answer), round(trio.current_time() - began, 3))


def question(*, streamed: bool, **fields: object) -> dict[str, object]:
    """The body of a request."""
    messages = [{"role": "user", "content": "Hi"}]
    return {"model": "gpt", "messages": messages, "stream": streamed, **fields}


def told(answer: Answer) -> tuple[str, str]:
    """The text of an answer, and the code of its error."""
    bodies = [answer.body]
    if answer.headers["content-type"].startswith("text/event-stream"):
        parts = [part for part in answer.body.split(b"\n\n") if part.startswith(b"data: {")]
        bodies = [part.removeprefix(b"data: ") for part in parts]
    text, code = "", ""
    for body in map(json.loads, bodies):
        code += body.get("error", {}).get("code", "")
        for choice in body.get("choices", ()):
            text += (choice.get("delta") or choice.get("message") or {}).get("content") or ""
    return text, code


async def booked(world: World) -> list[Event]:
    """What the books have of each attempt: provider, status and charge; providers are numbered in
    the order of the model's."""
    names = {
        each.provider_id: each.upstream.provider.name
        for each in world.gateway.snapshot.routes["gpt"].candidates
    }
    events = await world.flushed()
    return sorted(
        (names[each.provider_id], EventStatus(each.status), each.charge) for each in events
    )


async def cost_of_losers(world: World) -> list[int]:
    """What the operator most probably pays for those that nobody was charged for."""
    return [event.cost for event in await world.flushed() if event.status != EventStatus.SETTLED]


async def logged(world: World, requests: int = 1) -> list[dict[str, object]]:
    """What the log says of so many requests."""
    while sum(lines.count(b"\n") for lines in world.log) < requests:  # noqa: ASYNC110 - by a thread
        await trio.sleep(1.0)
    return [json.loads(line) for lines in world.log for line in lines.splitlines()]


def failed(line: dict[str, object]) -> list[tuple[str, str, int]]:
    """The attempts without an answer that a log line names: upstream, outcome, milliseconds."""
    found = line.get("failed", [])
    assert isinstance(found, list)
    return [(each["upstream"], each["outcome"], each["duration_ms"]) for each in found]


def metric(world: World, name: str, **labels: str) -> float:
    """0 where nothing was counted."""
    return world.gateway.metrics.registry.get_sample_value(name, labels) or 0.0


async def assert_nothing_is_held(world: World) -> None:
    """No place at an upstream or in a pool, no byte, no exchange, no reservation."""
    await trio.sleep(1.0)
    for candidate in world.gateway.snapshot.routes["gpt"].candidates:
        assert world.gateway.means.health.in_flight(candidate.upstream) == 0
    for _, pool in world.gateway.upstreams.statistics():
        assert (pool.taken, pool.waiting) == (pool.idle, 0)
    assert world.gateway.load.exchanges == 0
    assert world.gateway.memory.held_bytes == 0
    await world.assert_books_are_clean()


def moments(*expected: float) -> list[object]:
    """Equal to moments that are as good as these."""
    return [moment(each) for each in expected]


def moment(seconds: float) -> object:
    """Equal to one."""
    return pytest.approx(seconds, abs=PRECISION_SECONDS)
