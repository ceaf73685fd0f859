"""Everything that an upstream can do to a request, and what becomes of the request: as a table.

A row says what the upstream `p` does. Each is played with `p` alone and with a second upstream `q`
behind it that is well, and for plain and for streamed answers. What is compared is everything that
anybody could see: what the client got and at which moment, the moments at which each upstream was
asked, what the books say of each attempt, what is remembered of `p`, and that nothing is held.

Time is virtual and the dice always show 1, so that no pause is shortened: moments are exact. Where
nobody else is left, an upstream is asked again after 0.5 and after 1 more second, or when it said.
"""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

import h11
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from adapters import sse
from ledger.store import EventStatus
from proxy.health import State
from proxy.settings import ServerSettings
from proxy.turn import ASKED_MAX, ATTEMPTS_MAX, WAITS_SECONDS_MAX
from tests.fakes import provider
from tests.fakes.gateway import Client, World, model_of, providers_of, running
from tests.fakes.network import NEVER, Trouble, bad_certificate, refused, tls_broken, unknown_host
from tests.fakes.provider import (
    HANG,
    RESET,
    SILENCE,
    STREAM_END,
    STREAM_HEAD,
    Asked,
    ChoosingProvider,
    Script,
    ScriptedProvider,
    chunk,
    delta,
)

CHAT = "/v1/chat/completions"
QUESTION: dict[str, object] = {"model": "gpt", "messages": [{"role": "user", "content": "Hi"}]}
CHARGE = 22_000  # 10 input and 5 output tokens, with margin
CONNECT_SECONDS = 5.0
FIRST_BYTE_SECONDS = 30.0
IDLE_SECONDS = 10.0
KEEP_ALIVE_SECONDS = 15.0
PRECISION_SECONDS = 0.05
FOR_EVER = 50

FAILED, SETTLED = EventStatus.FAILED, EventStatus.SETTLED
CANCELLED, UNKNOWN = EventStatus.CANCELLED, EventStatus.UNKNOWN


# -- what an upstream does ------------------------------------------------------------------------


@dataclass(frozen=True)
class Act:
    """One answer, as it is where it was asked for plainly and where it was to be streamed."""

    plain: Script
    stream: Script


def both(script: Script) -> Act:
    """The same, however it was asked."""
    return Act(script, script)


def status(number: int, code: str | None = None, **headers: str) -> Act:
    """An error with that status."""
    return both(provider.error(number, "no", code, **headers))


WORDS = tuple(f"w{number} " for number in range(10))


def broken_stream(upto: int, *then: bytes | float | None, gap: float = 0.0) -> Script:
    """The beginning of a stream of ten words, `gap` seconds apart, and what comes instead of the
    rest."""
    steps: list[bytes | float | None] = [STREAM_HEAD]
    for word in WORDS[:upto]:
        steps += [delta(word), gap] if gap else [delta(word)]
    return [*steps, *then]


BROKEN: Script = [RESET]
WELL = Act(provider.completion("Hello"), provider.stream("Hello"))
PING = b"8\r\n: ping\n\n\r\n"
COMPLETION = provider.completion("Hello")
BUSY: object = {"error": {"message": "busy", "type": "overloaded_error", "code": "overloaded"}}
E500 = status(500)


class Upstream(ChoosingProvider):
    """Acts in turn, one act a request, and the last one for ever after."""

    def __init__(self, *acts: Act) -> None:
        super().__init__(self._choose_act)
        self._acts = list(acts)
        self.played: list[Script] = []

    def _choose_act(self, now: float, asked: Asked) -> Script:
        act = self._acts.pop(0) if len(self._acts) > 1 else self._acts[0]
        self.played.append(act.stream if asked.get("stream") else act.plain)
        return self.played[-1]


# -- what comes of it -----------------------------------------------------------------------------

Event = tuple[str, EventStatus, int]
"""Provider, status and charge of an event in the books."""


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What everybody sees. `at` is when the client had everything that it got.

    `text` is what it was told before that; `code` of the error, empty where the answer is whole.
    `p` and `q` are the moments at which they were asked. Without `events` the books have what
    follows from that: one failed attempt for each request that an upstream got, but for the one
    that served, which is charged.
    """

    status: int = 200
    at: float = 0.0
    code: str = ""
    retry_after: str = ""
    text: str = "Hello"
    p: tuple[float, ...] = (0.0,)
    q: tuple[float, ...] = ()
    events: tuple[Event, ...] | None = None

    def booked(self, *, dialled: bool) -> tuple[Event, ...]:
        """What the books have to say; `dialled`: `p` was not even reached."""
        if self.events is not None:
            return self.events
        tried = ["p"] * (0 if dialled else len(self.p)) + ["q"] * len(self.q)
        if self.code:
            return tuple((name, FAILED, 0) for name in tried)
        return (*((name, FAILED, 0) for name in tried[:-1]), (tried[-1], SETTLED, CHARGE))


@dataclass(frozen=True, kw_only=True)
class Row:
    """What `p` does, and what is seen: alone, and with `q` behind it.

    `p` does `acts` once it is reached, which its first connections are not where there are
    `troubles`. `streamed_alone` and `streamed_pair` are for where a stream goes otherwise than a
    plain answer; `only` one of the two is played. `p` is in the state `alone_then` or `pair_then`
    when it is over.
    """

    name: str
    acts: Sequence[Act] = (WELL,)
    troubles: Sequence[Trouble] = ()
    alone: Seen | None = None
    pair: Seen | None = None
    streamed_alone: Seen | None = None
    streamed_pair: Seen | None = None
    only: str = ""
    alone_then: State = State.READY
    pair_then: State = State.READY

    def seen(self, arrangement: str, kind: str) -> Seen | None:
        if self.only and self.only != kind:
            return None
        plain, streamed = (
            (self.alone, self.streamed_alone)
            if arrangement == "alone"
            else (self.pair, self.streamed_pair)
        )
        return (streamed or plain) if kind == "stream" else plain


BY_Q = Seen(q=(0.0,))
DOWN = Seen(status=502, at=1.5, code="upstream_unavailable", text="", p=(0.0, 0.5, 1.5))
DOWN_AT_ONCE = Seen(status=502, code="upstream_unavailable", text="")
BUSY_FOR_EVER = Seen(
    status=503, at=1.5, code="upstream_unavailable", retry_after="1", text="", p=(0.0, 0.5, 1.5)
)
SECOND_TIME = Seen(at=0.5, p=(0.0, 0.5))
NOT_IN_TIME = Seen(status=504, code="upstream_timeout", text="")


def refusal(number: int, code: str) -> Seen:
    """What the client caused: told at once, and nobody else is asked."""
    return Seen(status=number, code=code, text="")


def broken(at: float, upto: int, charge: int, code: str = "upstream_unavailable") -> Seen:
    """A stream that was cut after `upto` words, for which the client pays."""
    text = "".join(WORDS[:upto])
    return Seen(at=at, code=code, text=text, events=(("p", CANCELLED, charge),))


def price(words: int) -> int:
    """What is charged for so many words of a stream that never came to its usage: the prompt as far
    as it can be told, and a token for each piece."""
    return 1100 * INPUT_TOKENS + 2200 * words


INPUT_TOKENS = 9

ROWS = (
    Row(
        name="429 with retry-after, then well",
        acts=(status(429, retry_after="2"), WELL),
        alone=Seen(at=2.0, p=(0.0, 2.0)),
        pair=BY_Q,
        pair_then=State.RESTING,
    ),
    Row(
        name="429 with retry-after-ms, then well",
        acts=(status(429, retry_after_ms="1500"), WELL),
        alone=Seen(at=1.5, p=(0.0, 1.5)),
        pair=BY_Q,
        pair_then=State.RESTING,
    ),
    Row(
        name="429 with retry-after for ever",
        acts=(status(429, retry_after="2"),),
        alone=Seen(
            status=503,
            at=4.0,
            code="upstream_unavailable",
            retry_after="2",
            text="",
            p=(0.0, 2.0, 4.0),
        ),
        alone_then=State.RESTING,
        pair=BY_Q,
        pair_then=State.RESTING,
    ),
    Row(
        name="429 with a long retry-after",
        acts=(status(429, retry_after="120"),),
        alone=Seen(status=503, code="upstream_unavailable", retry_after="60", text=""),
        alone_then=State.RESTING,
        pair=BY_Q,
        pair_then=State.RESTING,
    ),
    Row(name="one 500", acts=(E500, WELL), alone=SECOND_TIME, pair=BY_Q),
    Row(name="500 for ever", acts=(E500,), alone=DOWN, pair=BY_Q),
    Row(name="503 for ever", acts=(status(503),), alone=BUSY_FOR_EVER, pair=BY_Q),
    Row(name="529 for ever", acts=(status(529),), alone=BUSY_FOR_EVER, pair=BY_Q),
    Row(name="reset before an answer", acts=(both([RESET]), WELL), alone=SECOND_TIME, pair=BY_Q),
    Row(name="closed before an answer", acts=(both([None]), WELL), alone=SECOND_TIME, pair=BY_Q),
    Row(name="refused for ever", troubles=[refused()] * FOR_EVER, alone=DOWN, pair=BY_Q),
    Row(
        name="refused once",
        troubles=[refused()],
        alone=Seen(at=0.5, p=(0.0, 0.5), events=(("p", SETTLED, CHARGE),)),
        pair=BY_Q,
    ),
    Row(name="unknown host", troubles=[unknown_host()] * FOR_EVER, alone=DOWN, pair=BY_Q),
    Row(
        name="wrong certificate",
        troubles=[bad_certificate()] * FOR_EVER,
        alone=DOWN_AT_ONCE,
        pair=BY_Q,
    ),
    Row(name="no TLS", troubles=[tls_broken()] * FOR_EVER, alone=DOWN_AT_ONCE, pair=BY_Q),
    Row(
        name="connecting hangs",
        troubles=[NEVER] * FOR_EVER,
        alone=Seen(status=504, at=5.0, code="upstream_timeout", text=""),
        pair=Seen(at=5.0, q=(5.0,)),
    ),
    Row(
        name="no answer",
        acts=(both(SILENCE),),
        alone=Seen(
            status=504, at=30.0, code="upstream_timeout", text="", events=(("p", UNKNOWN, 0),)
        ),
        # Meanwhile a keep-alive has brought the head of the answer.
        streamed_alone=Seen(at=30.0, code="upstream_timeout", text="", events=(("p", UNKNOWN, 0),)),
        pair=Seen(at=30.0, q=(30.0,), events=(("p", UNKNOWN, 0), ("q", SETTLED, CHARGE))),
    ),
    Row(
        name="slow first token",
        acts=(both([STREAM_HEAD, *(5.0, PING) * 4, 5.0, *provider.stream("Hello")[1:]]),),
        only="stream",
        alone=Seen(at=25.0),
        pair=Seen(at=25.0),
    ),
    Row(
        name="stream cut after 40 %",
        acts=(both(broken_stream(4, None, gap=1.0)),),
        only="stream",
        alone=broken(4.0, 4, price(4)),
        pair=broken(4.0, 4, price(4)),
    ),
    Row(
        name="stream cut after 60 %",
        acts=(both(broken_stream(6, None, gap=1.0)),),
        only="stream",
        alone=broken(6.0, 6, price(6)),
        pair=broken(6.0, 6, price(6)),
    ),
    Row(
        name="plain answer cut after 40 %",
        acts=(both(provider.cut(COMPLETION, 40)), WELL),
        only="plain",
        alone=SECOND_TIME,
        pair=BY_Q,
    ),
    Row(
        name="plain answer cut after 60 %",
        acts=(both(provider.cut(COMPLETION, 60)), WELL),
        only="plain",
        alone=SECOND_TIME,
        pair=BY_Q,
    ),
    Row(
        name="stream that stalls",
        acts=(both(broken_stream(2, 1000.0, gap=1.0)),),
        only="stream",
        alone=broken(11.0, 2, price(2), "upstream_timeout"),
        pair=broken(11.0, 2, price(2), "upstream_timeout"),
    ),
    Row(
        name="plain answer that stalls",
        acts=(both([*provider.cut(COMPLETION, 40)[:-1], 1000.0]),),
        only="plain",
        alone=Seen(
            status=504, at=10.0, code="upstream_timeout", text="", events=(("p", UNKNOWN, 0),)
        ),
        pair=Seen(at=10.0, q=(10.0,), events=(("p", UNKNOWN, 0), ("q", SETTLED, CHARGE))),
    ),
    Row(
        name="malformed at once",
        acts=(
            Act(provider.reply(200, b"<html>"), [STREAM_HEAD, chunk("{nonsense"), STREAM_END]),
            WELL,
        ),
        alone=SECOND_TIME,
        pair=BY_Q,
    ),
    Row(
        name="malformed in the middle",
        acts=(both(broken_stream(5, chunk("{nonsense"), STREAM_END)),),
        only="stream",
        alone=broken(0.0, 5, price(5)),
        pair=broken(0.0, 5, price(5)),
    ),
    Row(
        name="no last event",
        acts=(both(broken_stream(10, STREAM_END)),),
        only="stream",
        alone=broken(0.0, 10, price(10)),
        pair=broken(0.0, 10, price(10)),
    ),
    Row(
        name="the head of a stream, and its end",
        acts=(both([STREAM_HEAD, None]), WELL),
        only="stream",
        alone=SECOND_TIME,
        pair=BY_Q,
    ),
    Row(
        name="context overflow",
        acts=(status(400, "context_length_exceeded"),),
        alone=refusal(400, "context_length_exceeded"),
        pair=refusal(400, "context_length_exceeded"),
    ),
    Row(
        name="content filter",
        acts=(status(400, "content_filter"),),
        alone=refusal(400, "invalid_request"),
        pair=refusal(400, "invalid_request"),
    ),
    Row(
        name="413",
        acts=(status(413),),
        alone=refusal(413, "request_too_large"),
        pair=refusal(413, "request_too_large"),
    ),
    *(
        Row(
            name=str(number),
            acts=(status(number),),
            alone=refusal(400, "invalid_request"),
            pair=refusal(400, "invalid_request"),
        )
        for number in (400, 415, 422)
    ),
    Row(
        name="401",
        acts=(status(401),),
        alone=DOWN_AT_ONCE,
        alone_then=State.OPEN,
        pair=BY_Q,
        pair_then=State.OPEN,
    ),
    Row(
        name="402",
        acts=(status(402),),
        alone=DOWN_AT_ONCE,
        alone_then=State.OPEN,
        pair=BY_Q,
        pair_then=State.OPEN,
    ),
    Row(
        name="a quota that is used up",
        acts=(status(429, "insufficient_quota"),),
        alone=DOWN_AT_ONCE,
        alone_then=State.OPEN,
        pair=BY_Q,
        pair_then=State.OPEN,
    ),
    Row(name="403", acts=(status(403),), alone=DOWN_AT_ONCE, pair=BY_Q),
    Row(
        name="404 of the model",
        acts=(status(404, "model_not_found"),),
        alone=refusal(404, "model_not_available"),
        alone_then=State.OPEN,
        pair=BY_Q,
        pair_then=State.OPEN,
    ),
    Row(
        name="overloaded inside a 200",
        acts=(Act(provider.reply(200, BUSY), [STREAM_HEAD, chunk(BUSY), STREAM_END]),),
        alone=BUSY_FOR_EVER,
        pair=BY_Q,
    ),
    Row(name="408", acts=(status(408),), alone=NOT_IN_TIME, pair=BY_Q),
    Row(name="504", acts=(status(504),), alone=NOT_IN_TIME, pair=BY_Q),
    Row(name="409, then well", acts=(status(409), WELL), alone=SECOND_TIME, pair=BY_Q),
    Row(name="425, then well", acts=(status(425), WELL), alone=SECOND_TIME, pair=BY_Q),
    Row(
        name="empty",
        acts=(
            Act(
                provider.completion(""),
                [STREAM_HEAD, delta(finish="stop"), chunk("[DONE]"), STREAM_END],
            ),
        ),
        only="stream",
        alone=DOWN_AT_ONCE,
        pair=BY_Q,
    ),
)

PLAYS = [
    pytest.param(row, arrangement, kind, id=f"{row.name}-{arrangement}-{kind}")
    for row in ROWS
    for arrangement in ("alone", "pair")
    for kind in ("plain", "stream")
    if row.seen(arrangement, kind) is not None
]


@pytest.mark.parametrize(("row", "arrangement", "kind"), PLAYS)
async def test_every_row(row: Row, arrangement: str, kind: str, autojump_clock: MockClock) -> None:
    seen = row.seen(arrangement, kind)
    assert seen is not None
    p, q = Upstream(*row.acts), Upstream(WELL)
    async with scene({"p": p} if arrangement == "alone" else {"p": p, "q": q}) as world:
        world.network.trouble("p", row.troubles)
        got = await ask(world, stream=kind == "stream")
        assert got.status == seen.status
        assert got.code == seen.code
        assert got.text == seen.text
        assert got.retry_after == seen.retry_after
        assert got.at == moment(seen.at)
        assert asked(world, row, p) == moments(seen.p)
        assert q.asked_at == moments(seen.q)
        assert await booked(world) == sorted(seen.booked(dialled=bool(row.troubles)))
        then = row.alone_then if arrangement == "alone" else row.pair_then
        assert state_of(world, "p") is then
        await assert_nothing_is_held(world)


# -- requests that follow each other --------------------------------------------------------------


async def test_a_rest_is_for_everybody_and_no_longer_than_was_asked(
    autojump_clock: MockClock,
) -> None:
    p, q = Upstream(status(429, retry_after="2"), WELL), Upstream(WELL)
    async with scene({"p": p, "q": q}) as world:
        for at in (0.0, 1.9, 2.1):
            await trio.sleep_until(at)
            assert (await ask(world, stream=False)).status == 200
        assert p.asked_at == moments([0.0, 2.1])
        assert q.asked_at == moments([0.0, 1.9])
        assert state_of(world, "p") is State.READY


@pytest.mark.parametrize(
    "act",
    [
        status(429, retry_after="120"),
        status(401),
        status(402),
        status(404, "model_not_found"),
    ],
    ids=["429 with a long retry-after", "401", "402", "404 of the model"],
)
async def test_what_will_not_pass_within_seconds_is_left_alone_for_a_minute(
    act: Act, autojump_clock: MockClock
) -> None:
    p, q = Upstream(act, WELL), Upstream(WELL)
    async with scene({"p": p, "q": q}) as world:
        for at in (0.0, 1.0, 59.0, 60.5):
            await trio.sleep_until(at)
            assert (await ask(world, stream=False)).status == 200
        assert p.asked_at == moments([0.0, 60.5])
        assert q.asked_at == moments([0.0, 1.0, 59.0])


async def test_of_two_keys_the_second_serves_at_once(autojump_clock: MockClock) -> None:
    p, q = Upstream(status(401), WELL), Upstream(WELL)
    async with scene({"p": p, "q": q}, api_keys=("first", "second")) as world:
        assert (await ask(world, stream=False)).at == moment(0.0)
        assert (len(p.heads), q.calls) == (2, 0)
        assert {"Bearer first" in head for head in p.heads} == {True, False}
        assert state_of(world, "p") is State.READY
        await assert_nothing_is_held(world)


@pytest.mark.parametrize("kind", ["plain", "stream"])
async def test_who_fails_five_times_in_a_row_is_left_alone(
    kind: str, autojump_clock: MockClock
) -> None:
    p, q = Upstream(E500), Upstream(WELL)
    async with scene({"p": p, "q": q}) as world:
        for number in range(7):
            await trio.sleep_until(number * 0.1)
            assert (await ask(world, stream=kind == "stream")).at == moment(0.0)
        assert p.asked_at == moments([0.0, 0.1, 0.2, 0.3, 0.4])
        assert state_of(world, "p") is State.OPEN


@pytest.mark.parametrize("kind", ["plain", "stream"])
async def test_a_whole_answer_ends_a_run_of_failures(kind: str, autojump_clock: MockClock) -> None:
    p, q = Upstream(*[E500] * 4, WELL, *[E500] * 4), Upstream(WELL)
    async with scene({"p": p, "q": q}) as world:
        for _ in range(9):
            assert (await ask(world, stream=kind == "stream")).at == moment(0.0)
        assert (p.calls, q.calls) == (9, 8)
        assert state_of(world, "p") is State.READY


async def test_who_breaks_every_stream_in_its_middle_is_found_out(
    autojump_clock: MockClock,
) -> None:
    """Its first words do not make up for it: only a whole answer does."""
    p, q = Upstream(both(broken_stream(6, None))), Upstream(WELL)
    async with scene({"p": p, "q": q}) as world:
        for _ in range(5):
            assert (await ask(world, stream=True)).code == "upstream_unavailable"
        assert state_of(world, "p") is State.OPEN
        assert (await ask(world, stream=True)).whole
        assert (p.calls, q.calls) == (5, 1)


async def test_a_client_that_leaves_says_nothing_of_an_upstream(autojump_clock: MockClock) -> None:
    p, q = Upstream(both(SILENCE)), Upstream(WELL)
    async with scene({"p": p, "q": q}) as world:
        for _ in range(10):
            with trio.move_on_after(1.0):
                await ask(world, stream=True)
        await assert_nothing_is_held(world)
        assert state_of(world, "p") is State.READY
        assert (p.calls, p.cancelled, q.calls) == (10, 10, 0)


async def test_nobody_to_ask_is_said_at_once_and_until_when(autojump_clock: MockClock) -> None:
    p = Upstream(E500)
    async with scene({"p": p}) as world:
        for _ in range(2):
            await ask(world, stream=False)  # three attempts, and then two
        assert (p.calls, state_of(world, "p")) == (5, State.OPEN)
        got = await ask(world, stream=False)
        assert (got.status, got.code, got.at) == (503, "upstream_unavailable", moment(0.0))
        assert 1 <= int(got.retry_after) <= 5
        assert p.calls == 5


async def test_failing_at_everything_costs_each_upstream_no_more_than_two(
    autojump_clock: MockClock,
) -> None:
    p, q = Upstream(E500), Upstream(status(503))
    async with scene({"p": p, "q": q}) as world:
        got = await ask(world, stream=False)
        assert (got.status, got.at) == (502, moment(0.5))
        assert (p.asked_at, q.asked_at) == (moments([0.0, 0.5]), moments([0.0, 0.5]))
        assert await booked(world) == [("p", FAILED, 0)] * 2 + [("q", FAILED, 0)] * 2
        await assert_nothing_is_held(world)


async def test_flapping_costs_no_request(autojump_clock: MockClock) -> None:
    """Up for five seconds, down for five, for a minute; and a request each half second."""

    def flaps(now: float, asked: Asked) -> Script:
        return (E500 if int(now / 5) % 2 else WELL).plain

    p, q = ChoosingProvider(flaps), Upstream(WELL)
    async with scene({"p": p, "q": q}) as world:
        for number in range(120):
            await trio.sleep_until(number * 0.5 + 0.01)
            got = await ask(world, stream=False)
            assert (got.status, got.at) == (200, moment(0.0))
        failed = [at for at in p.asked_at if int(at / 5) % 2]
        # Five failures open it from 7.0 to 12.0, and so on: a whole answer ends each opening.
        assert len(failed) == 30
        assert q.calls == 80
        assert [event for event in await booked(world) if event[1] is FAILED] == [
            ("p", FAILED, 0)
        ] * 30
        await assert_nothing_is_held(world)


async def test_who_is_down_is_probed_ever_more_seldom(autojump_clock: MockClock) -> None:
    """Five seconds, ten, twenty; the probe that succeeds brings it back for everybody."""

    def down(now: float, asked: Asked) -> Script:
        return (E500 if now < 25 else WELL).plain

    p, q = ChoosingProvider(down), Upstream(WELL)
    async with scene({"p": p, "q": q}) as world:
        for number in range(45):
            await trio.sleep_until(number + 0.01)
            assert (await ask(world, stream=False)).at == moment(0.0)
        expected = [0, 1, 2, 3, 4, 9.1, 19.2, 39.3]
        assert [at for at in p.asked_at if at < 39] == pytest.approx(expected[:-1], abs=1.1)
        assert len([at for at in p.asked_at if at >= 39]) >= 5
        assert p.calls + q.calls == 45 + 7
        assert state_of(world, "p") is State.READY


async def test_many_who_fail_at_once_open_it_once_and_one_probe_tries_it(
    autojump_clock: MockClock,
) -> None:
    p = Upstream(Act([0.1, *E500.plain], E500.stream))
    q = Upstream(WELL)
    async with scene({"p": p, "q": q}) as world:

        async def one() -> None:
            assert (await ask(world, stream=False)).status == 200

        for at in (0.0, 1.0, 5.2):
            await trio.sleep_until(at)
            async with trio.open_nursery() as nursery:
                for _ in range(25):
                    nursery.start_soon(one)
        assert p.asked_at == moments([0.0] * 25 + [5.2])
        assert q.calls == 75
        await assert_nothing_is_held(world)


async def test_the_budget_forbids_repeats_and_never_a_fallback(autojump_clock: MockClock) -> None:
    """Twenty requests at once at an upstream that fails them: one repeat for each of the last ten
    seconds, and one for each five requests, of which a little has faded when they are made."""
    p = Upstream(Act([0.1, *status(409).plain], E500.stream))
    async with scene({"p": p}) as world:

        async def one() -> None:
            assert (await ask(world, stream=False)).status == 502

        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(one)
        assert p.calls == 20 + 10 + 3
    p, q = Upstream(E500), Upstream(WELL)
    async with scene({"p": p, "q": q}, failures_to_open=1000) as world:
        for _ in range(15):  # fewer than tell that half of its answers are failures
            assert (await ask(world, stream=False)).at == moment(0.0)
        assert (p.calls, q.calls) == (15, 15)


async def test_a_request_that_is_over_time_waits_for_nobody(autojump_clock: MockClock) -> None:
    p = Upstream(status(429, retry_after="5"))
    async with scene({"p": p}, settings=ServerSettings(max_request_seconds=4)) as world:
        got = await ask(world, stream=False)
        assert (got.status, got.retry_after, got.at) == (503, "5", moment(0.0))
        await assert_nothing_is_held(world)


async def test_a_request_ends_on_time_whatever_its_upstream_does(autojump_clock: MockClock) -> None:
    p, q = Upstream(both(SILENCE)), Upstream(WELL)
    async with scene({"p": p, "q": q}, settings=ServerSettings(max_request_seconds=4)) as world:
        got = await ask(world, stream=False)
        assert (got.status, got.code, got.at) == (504, "upstream_timeout", moment(4.0))
        await assert_nothing_is_held(world)
        assert p.left_at == moments([4.0])
        assert q.calls == 0
        assert await booked(world) == [("p", CANCELLED, 0)]
        assert state_of(world, "p") is State.READY


# -- hedges ---------------------------------------------------------------------------------------

USUAL_SECONDS = 2.0


@asynccontextmanager
async def hedged(p: Upstream, q: Upstream) -> AsyncIterator[World]:
    """A model that is hedged, at an upstream of which it is known when it usually answers."""
    async with scene({"p": p, "q": q}, hedge_after_percentile=95) as world:
        for streamed in (False, True):
            for _ in range(100):
                world.gateway.latencies.of("p/upstream-model", streamed=streamed).add(
                    USUAL_SECONDS * 0.95, 0.0
                )
        yield world


def late(seconds: float, act: Act = WELL) -> Act:
    """The same after a while."""
    return Act([seconds, *act.plain], [seconds, *act.stream])


@pytest.mark.parametrize("kind", ["plain", "stream"])
async def test_a_hedge_that_wins_ends_the_first_attempt(
    kind: str, autojump_clock: MockClock
) -> None:
    p, q = Upstream(late(20.0)), Upstream(WELL)
    async with hedged(p, q) as world:
        got = await ask(world, stream=kind == "stream")
        assert (got.text, got.whole) == ("Hello", True)
        hedged_at = q.asked_at[0]
        assert USUAL_SECONDS * 0.9 <= hedged_at <= USUAL_SECONDS * 1.1
        assert got.at == moment(hedged_at)
        assert p.left_at == moments([hedged_at])
        assert await booked(world) == [("p", CANCELLED, 0), ("q", SETTLED, CHARGE)]
        (cost,) = [event.cost for event in await world.flushed() if not event.charge]
        assert cost > 0  # the provider bills what it was asked, and the books know
        assert state_of(world, "p") is State.READY
        await assert_nothing_is_held(world)


@pytest.mark.parametrize("kind", ["plain", "stream"])
async def test_a_hedge_that_loses_is_let_go(kind: str, autojump_clock: MockClock) -> None:
    p, q = Upstream(late(2.5)), Upstream(late(10.0))
    async with hedged(p, q) as world:
        got = await ask(world, stream=kind == "stream")
        assert (got.text, got.at) == ("Hello", moment(2.5))
        assert q.left_at == moments([2.5])
        assert await booked(world) == [("p", SETTLED, CHARGE), ("q", CANCELLED, 0)]
        await assert_nothing_is_held(world)


async def test_who_answers_in_time_is_not_hedged(autojump_clock: MockClock) -> None:
    p, q = Upstream(late(1.5)), Upstream(WELL)
    async with hedged(p, q) as world:
        assert (await ask(world, stream=True)).at == moment(1.5)
        assert q.calls == 0
        assert await booked(world) == [("p", SETTLED, CHARGE)]


async def test_a_hedge_that_fails_does_not_end_the_first_attempt(autojump_clock: MockClock) -> None:
    p, q = Upstream(late(3.0)), Upstream(E500)
    async with hedged(p, q) as world:
        got = await ask(world, stream=True)
        assert (got.text, got.at) == ("Hello", moment(3.0))
        assert p.asked_at == moments([0.0])  # and not once more beside itself
        assert q.calls == 1
        assert await booked(world) == [("p", SETTLED, CHARGE), ("q", FAILED, 0)]
        await assert_nothing_is_held(world)


async def test_a_request_at_fault_ends_both_attempts(autojump_clock: MockClock) -> None:
    p, q = Upstream(late(20.0)), Upstream(late(1.0, status(400)))
    async with hedged(p, q) as world:
        got = await ask(world, stream=True)
        assert (got.status, got.code) == (400, "invalid_request")
        assert got.at == moment(q.asked_at[0] + 1.0)
        assert p.left_at == moments([got.at])
        await assert_nothing_is_held(world)


async def test_a_race_that_both_lose_goes_on_as_any_other_request(
    autojump_clock: MockClock,
) -> None:
    p, q = Upstream(late(3.0, E500), WELL), Upstream(late(5.0, E500), WELL)
    async with hedged(p, q) as world:
        got = await ask(world, stream=True)
        assert (got.text, got.whole) == ("Hello", True)
        both_failed_at = q.asked_at[0] + 5.0
        assert p.asked_at == moments([0.0, both_failed_at])
        assert got.at == moment(both_failed_at)
        await assert_nothing_is_held(world)


async def test_a_client_that_leaves_a_race_leaves_nothing(autojump_clock: MockClock) -> None:
    p, q = Upstream(late(20.0)), Upstream(late(20.0))
    async with hedged(p, q) as world:
        with trio.move_on_after(4.0):
            await ask(world, stream=True)
        await assert_nothing_is_held(world)
        assert (p.left_at, q.left_at) == (moments([4.0]), moments([4.0]))
        assert await booked(world) == [("p", CANCELLED, 0), ("q", CANCELLED, 0)]


# -- anything at all ------------------------------------------------------------------------------

ACTS: Mapping[str, Act] = {
    "well": WELL,
    "slow": late(8.0),
    "429": status(429, retry_after="1"),
    "429 for long": status(429, retry_after="90"),
    "409": status(409),
    "500": E500,
    "503": status(503),
    "401": status(401),
    "400": status(400),
    "404": status(404, "model_not_found"),
    "reset": both(BROKEN),
    "silent": both(SILENCE),
    "malformed": Act(provider.reply(200, b"<html>"), [STREAM_HEAD, chunk("{x"), STREAM_END]),
    "cut": Act(provider.cut(COMPLETION, 50), broken_stream(3, None)),
    "stalled": Act([*provider.cut(COMPLETION, 50)[:-1], HANG], broken_stream(3, HANG)),
    "unended": Act(provider.cut(COMPLETION, 99), broken_stream(10, STREAM_END)),
}
HOSTS = ("p", "q", "r", "s")


@settings(max_examples=int(os.environ.get("SCENARIO_EXAMPLES", "150")), deadline=None)
@given(
    scripts=st.lists(
        st.lists(st.sampled_from(sorted(ACTS)), min_size=1, max_size=4), min_size=1, max_size=4
    ),
    streams=st.lists(st.booleans(), min_size=1, max_size=4),
    gap_seconds=st.sampled_from([0.0, 0.3, 7.0]),
    is_hedged=st.booleans(),
)
def test_whatever_upstreams_do_every_request_has_one_honest_end(
    scripts: list[list[str]], streams: list[bool], gap_seconds: float, is_hedged: bool
) -> None:
    """One after the other, at up to four upstreams that act by any scripts.

    An answer that looks whole is; nobody is asked more often than the rules say, or once an answer
    has begun; no more than one attempt is charged; nothing stays held.
    """

    async def play() -> None:
        hosts = {
            name: Upstream(*(ACTS[act] for act in acts))
            for name, acts in zip(HOSTS, scripts, strict=False)
        }
        percentile = 95 if is_hedged else 0
        async with scene(hosts, hedge_after_percentile=percentile) as world:
            for name in hosts if is_hedged else ():
                for streamed in (False, True):
                    known = world.gateway.latencies.of(f"{name}/upstream-model", streamed=streamed)
                    for _ in range(60):
                        known.add(USUAL_SECONDS, 0.0)
            for stream in streams:
                before = {name: upstream.calls for name, upstream in hosts.items()}
                began = trio.current_time()
                got = await ask(world, stream=stream)
                assert bool(got.code) != got.whole
                assert got.text == "Hello" if got.whole else "Hello" not in got.text
                if not got.text and got.status != 200:
                    assert got.status in (400, 404, 502, 503, 504)
                assert (got.status == 503) == bool(got.retry_after)
                # A kept connection that breaks under a request is replaced, and the request is sent
                # once more: to its upstream that is one attempt.
                counts = [
                    sum(script is not BROKEN for script in upstream.played[before[name] :])
                    for name, upstream in hosts.items()
                ]
                # Whom nobody has asked yet may be asked at any time: it sees the request once.
                assert sum(counts) <= ATTEMPTS_MAX + len(hosts) - 1
                assert max(counts) <= ASKED_MAX
                assert got.at <= WAITS_SECONDS_MAX + len(hosts) * (FIRST_BYTE_SECONDS + 20)
                if got.text:
                    first = began + (got.at if got.first_at is None else got.first_at)
                    late_asks = [
                        at for upstream in hosts.values() for at in upstream.asked_at if at > first
                    ]
                    assert not late_asks
                await trio.sleep(gap_seconds)
            by_request: dict[bytes, list[int]] = {}
            for event in await world.flushed():
                by_request.setdefault(bytes(event.request_id), []).append(event.charge)
            assert all(sum(charge > 0 for charge in each) <= 1 for each in by_request.values())
            await assert_nothing_is_held(world)

    trio.run(play, clock=MockClock(autojump_threshold=0))


# -- how it is watched ----------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Got:
    """What the client has. `first_at` is when the first text came."""

    status: int
    at: float
    first_at: float | None
    code: str
    retry_after: str
    text: str
    whole: bool


async def ask(world: World, *, stream: bool) -> Got:
    """One request from a client of its own."""
    client, began = world.connect(), trio.current_time()
    try:
        return await _got(client, began, stream=stream)
    finally:
        client.transport.close()


async def _got(client: Client, began: float, *, stream: bool) -> Got:
    await client.send(CHAT, QUESTION | {"stream": stream})
    head = await client.event()
    assert isinstance(head, h11.Response)
    splitter, payloads, first_at = sse.Splitter(), list[bytes](), None
    body = b""
    while isinstance(event := await client.event(), h11.Data):
        body += event.data
        payloads += filter(None, map(sse.data_of, splitter.feed(event.data)))
        if first_at is None and any(b'"content":"w' in each for each in payloads):
            first_at = trio.current_time() - began
    assert isinstance(event, h11.EndOfMessage), "HTTP's own end comes, whatever has happened"
    headers = {name.decode(): value.decode() for name, value in head.headers}
    if headers["content-type"] == "application/json":
        payloads = [body]
    whole = payloads[-1] == b"[DONE]" if stream else head.status_code == 200
    told = [json.loads(each) for each in payloads if each != b"[DONE]"]
    return Got(
        status=head.status_code,
        at=trio.current_time() - began,
        first_at=first_at,
        code="".join(each["error"]["code"] for each in told if "error" in each),
        retry_after=headers.get("retry-after", ""),
        text="".join(map(_text, told)),
        whole=whole,
    )


def _text(chunk: dict[str, object]) -> str:
    choices = chunk.get("choices")
    if not isinstance(choices, list):
        return ""
    said = [choice.get("delta") or choice.get("message") or {} for choice in choices]
    return "".join(each.get("content") or "" for each in said)


@asynccontextmanager
async def scene(
    hosts: Mapping[str, ScriptedProvider],
    *,
    settings: ServerSettings | None = None,
    hedge_after_percentile: int = 0,
    **options: object,
) -> AsyncIterator[World]:
    """A gateway with `gpt` at these hosts, in this order; `options` are the providers'."""
    times: dict[str, object] = {
        "connect_seconds": CONNECT_SECONDS,
        "first_byte_seconds": FIRST_BYTE_SECONDS,
        "idle_seconds": IDLE_SECONDS,
    }
    providers = [replace(each, **(times | options)) for each in providers_of(*hosts)]  # type: ignore[arg-type] # keyword options
    model = model_of("gpt", *providers, hedge_after_percentile=hedge_after_percentile)
    async with running(hosts, models=[model], settings=settings, dice=always_one) as world:
        yield world


def always_one() -> float:
    """The dice."""
    return 1.0


def moment(seconds: float) -> object:
    """Equal to a moment that is as good as this one."""
    return pytest.approx(seconds, abs=PRECISION_SECONDS)


def moments(expected: Sequence[float]) -> list[object]:
    """Equal to a list of such."""
    return [moment(each) for each in expected]


def asked(world: World, row: Row, p: Upstream) -> list[float]:
    """When `p` was asked, or a connection to it was wanted in vain."""
    dials = zip(world.network.dialled, world.network.dialled_at, strict=True)
    in_vain = [at for name, at in dials if name == "p"][: len(row.troubles)]
    return sorted([*in_vain, *p.asked_at])


async def booked(world: World) -> list[Event]:
    """What the books say of each attempt; providers are numbered in their order."""
    return sorted(
        ("?pq"[event.provider_id], EventStatus(event.status), event.charge)
        for event in await world.flushed()
    )


def state_of(world: World, provider_name: str) -> State:
    """What is remembered of an upstream."""
    route = world.gateway.snapshot.routes["gpt"]
    (upstream,) = [
        each.upstream for each in route.candidates if each.upstream.provider.name == provider_name
    ]
    state, _ = world.gateway.means.health.look(upstream, trio.current_time())
    return state


async def assert_nothing_is_held(world: World) -> None:
    """No place at an upstream, no reservation, no exchange; the books are sound."""
    await trio.sleep(1.0)  # what was let go has gone
    for candidate in world.gateway.snapshot.routes["gpt"].candidates:
        assert world.gateway.means.health.in_flight(candidate.upstream) == 0
    assert world.gateway.load.exchanges == 0
    await world.assert_books_are_clean()
