"""`Idempotency-Key`: sent twice, made once, charged once, whatever dies in between.

A whole worker between a scripted provider and a client in memory, in virtual time. Prices as in
test_exchange: 10 input and 5 output tokens are charged 22,000 nano-dollars.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence

import h11
import pytest
import trio
from trio.testing import MockClock

from adapters.errors import Overloaded
from ledger.journal import JournalFailed
from ledger.limits import LimitRef
from ledger.memory import MemoryStore
from ledger.records import Record
from ledger.store import EventStatus
from proxy import idempotency
from proxy.answers import Answer, Asked, Earlier
from proxy.settings import ServerSettings
from tests.fakes import provider
from tests.fakes.gateway import (
    ACCOUNT,
    Client,
    World,
    model_of,
    principal_of,
    providers_of,
    running,
)
from tests.fakes.gateway import Answer as Heard
from tests.fakes.journal import MemoryJournal
from tests.fakes.provider import STREAM_HEAD, ChoosingProvider, Script, ScriptedProvider, delta
from tests.fakes.responses import MemoryAnswers

CHAT = "/v1/chat/completions"
ASK: dict[str, object] = {"model": "gpt", "messages": [{"role": "user", "content": "Hi"}]}
ASK_STREAM = ASK | {"stream": True}
SURFACES: Mapping[str, tuple[str, dict[str, object]]] = {
    "chat": (CHAT, ASK),
    "responses": ("/v1/responses", {"model": "gpt", "input": "Hi"}),
    "messages": ("/v1/messages", ASK | {"max_tokens": 50}),
    "gemini": (
        "/v1beta/models/gpt:generateContent",
        {"contents": [{"role": "user", "parts": [{"text": "Hi"}]}]},
    ),
}
KEYED = {"idempotency-key": "order 66/a"}
CHARGE = 22_000
WALL = 1_800_000_000.0
STALE_SECONDS = ServerSettings().max_request_seconds + idempotency.STALE_MARGIN_SECONDS

on_every_surface = pytest.mark.parametrize("surface", SURFACES)


def code_of(answer: Heard) -> str:
    """The stable code of an error, in whichever envelope."""
    error = answer.error
    details = error.get("details")
    if isinstance(details, dict):
        return str(details["error_code"])
    if isinstance(details, list):
        return str(details[0]["reason"])
    return str(error["code"])


def at_wall(world: World, seconds: float) -> None:
    """Let so many seconds have passed on every wall clock."""
    world.gateway.wall = world.gateway.answers.wall = lambda: WALL + seconds


async def charges(world: World) -> list[int]:
    """Everything that was charged, once all of it is in the books."""
    return [event.charge for event in await world.flushed() if event.charge]


# -- a retry --------------------------------------------------------------------------------------


@on_every_surface
@pytest.mark.parametrize("streaming", [False, True])
async def test_a_retry_gets_the_same_answer_and_is_charged_nothing(
    surface: str, streaming: bool
) -> None:
    script = provider.stream("Hel", "lo") if streaming else provider.completion("Hello")
    upstream = ScriptedProvider(script, provider.completion("Another"))
    path, body = SURFACES[surface]
    if streaming and surface == "gemini":
        path = path.replace("generateContent", "streamGenerateContent?alt=sse")
    elif streaming:
        body = body | {"stream": True}
    async with running({"p": upstream}) as world:
        client = world.connect()
        first = await client.call(path, body, headers=KEYED)
        again = await world.connect().call(path, body, headers=KEYED)
        assert (first.status, again.status) == (200, 200)
        assert b"Hel" in first.body
        assert again.body == first.body
        kept = {
            name: value
            for name, value in first.headers.items()
            if name not in ("date", "transfer-encoding", "content-length", "x-farebox-balance-usd")
        }
        assert kept["x-request-id"]
        assert kept["x-farebox-model"] == "gpt"
        assert ("x-farebox-cost-usd" in kept) is not streaming
        assert again.headers.items() >= (kept | {"idempotent-replayed": "true"}).items()
        assert "idempotent-replayed" not in first.headers
        assert upstream.calls == 1
        assert await charges(world) == [CHARGE]
        assert (await client.call(path, body, headers=KEYED)).body == first.body
        assert world.gateway.answers.recorded_bytes == 0
        await world.assert_books_are_clean()


async def test_the_price_that_is_kept_is_the_one_that_was_charged() -> None:
    body = provider.completion_body("x" * 400, 0, 0)
    del body["usage"]
    async with running({"p": ScriptedProvider(provider.reply(200, body))}) as world:
        first = await world.connect().call(CHAT, ASK, headers=KEYED)
        again = await world.connect().call(CHAT, ASK, headers=KEYED)
        for name in ("x-farebox-cost-usd", "x-farebox-estimated"):
            assert again.headers[name] == first.headers[name]
        assert "x-farebox-balance-usd" not in again.headers


async def test_a_replay_counts_for_no_limit() -> None:
    limits = (LimitRef("account:7", "rpm", 1),)
    async with running({"p": ScriptedProvider(provider.completion())}, limits=limits) as world:
        client = world.connect()
        statuses = [(await client.call(CHAT, ASK, headers=KEYED)).status for _ in range(5)]
        assert statuses == [200] * 5
        again = await client.call(CHAT, ASK, headers=KEYED)
        assert not [name for name in again.headers if name.startswith("x-ratelimit")]
        assert (await client.call(CHAT, ASK)).status == 429


async def test_embeddings_are_kept_as_well() -> None:
    body = {
        "object": "list",
        "model": "upstream-model",
        "data": [{"object": "embedding", "index": 0, "embedding": [0.5]}],
        "usage": {"prompt_tokens": 10, "total_tokens": 10},
    }
    upstream = ScriptedProvider(provider.reply(200, body))
    models = [model_of("emb", *providers_of("p"), kind="embedding")]
    async with running({"p": upstream}, models=models) as world:
        ask = {"model": "emb", "input": "Hi"}
        first = await world.connect().call("/v1/embeddings", ask, headers=KEYED)
        again = await world.connect().call("/v1/embeddings", ask, headers=KEYED)
        assert (first.status, again.body) == (200, first.body)
        assert upstream.calls == 1


async def test_a_day_later_the_key_is_new() -> None:
    upstream = ScriptedProvider(provider.completion())
    async with running({"p": upstream}) as world:
        await world.connect().call(CHAT, ASK, headers=KEYED)
        at_wall(world, idempotency.KEPT_SECONDS)
        again = await world.connect().call(CHAT, ASK, headers=KEYED)
        assert "idempotent-replayed" not in again.headers
        assert upstream.calls == 2


async def test_what_asks_no_model_ignores_the_header() -> None:
    async with running({"p": ScriptedProvider(provider.completion())}) as world:
        client = world.connect()
        odd = {"idempotency-key": "x" * 300}
        assert (await client.call("/v1/models", method="GET", headers=odd)).status == 200
        counted = await client.call("/v1/messages/count_tokens", ASK, headers=odd)
        assert counted.status == 200


async def test_a_kept_response_and_its_replay_agree() -> None:
    upstream = ScriptedProvider(provider.completion("Hello"))
    async with running({"p": upstream}) as world:
        client = world.connect()
        path, body = SURFACES["responses"]
        await client.call(path, body, headers=KEYED)
        again = await client.call(path, body, headers=KEYED)
        kept = await client.call(f"/v1/responses/{again.json['id']}", method="GET")
        assert kept.body == again.body


# -- refusals -------------------------------------------------------------------------------------


@on_every_surface
@pytest.mark.parametrize("key", ["", "x" * 256, "tab\there"])
async def test_a_key_that_cannot_be_one_is_a_400(surface: str, key: str) -> None:
    upstream = ScriptedProvider(provider.completion())
    path, body = SURFACES[surface]
    async with running({"p": upstream}) as world:
        client = world.connect()
        answer = await client.call(path, body, headers={"idempotency-key": key})
        assert (answer.status, code_of(answer)) == (400, "invalid_request")
        assert "Idempotency-Key" in str(answer.error["message"])
        assert upstream.calls == 0
        assert (await client.call(path, body, headers=KEYED)).status == 200


@on_every_surface
async def test_while_it_runs_a_retry_is_a_409(surface: str, autojump_clock: MockClock) -> None:
    upstream = ScriptedProvider([10.0, *provider.completion()])
    path, body = SURFACES[surface]
    async with running({"p": upstream}) as world:
        first = world.connect()
        await first.send(path, body, headers=KEYED)
        await trio.sleep(5)
        early = await world.connect().call(path, body, headers=KEYED)
        assert (early.status, code_of(early)) == (409, "idempotency_key_in_use")
        assert int(early.headers["retry-after"]) >= 1
        assert early.headers["x-should-retry"] == "true"
        done = await first.receive()
        assert (await world.connect().call(path, body, headers=KEYED)).body == done.body
        assert upstream.calls == 1
        assert await charges(world) == [CHARGE]


@on_every_surface
async def test_another_request_with_the_same_key_is_a_422(surface: str) -> None:
    upstream = ScriptedProvider(provider.completion())
    path, body = SURFACES[surface]
    async with running({"p": upstream}) as world:
        client = world.connect()
        await client.call(path, body, headers=KEYED)
        for other in ({**body, "user": "x"}, json.dumps(body, indent=1).encode()):
            answer = await client.call(path, other, headers=KEYED)
            assert (answer.status, code_of(answer)) == (422, "idempotency_key_reused")
            assert answer.headers["x-should-retry"] == "false"
        assert upstream.calls == 1
        assert await charges(world) == [CHARGE]


async def test_another_project_s_key_is_refused_and_told_nothing() -> None:
    upstream = ScriptedProvider(provider.completion("secret"))
    answers = MemoryAnswers()
    async with running({"p": upstream}, answers=answers) as world:
        await world.connect().call(CHAT, ASK, headers=KEYED)
    other = principal_of(project_id=2)
    async with running({"p": upstream}, answers=answers, principal=other) as world:
        answer = await world.connect().call(CHAT, ASK, headers=KEYED)
        assert (answer.status, code_of(answer)) == (422, "idempotency_key_reused")
        assert b"secret" not in answer.body
        assert upstream.calls == 1
    stranger = principal_of(project_id=3, account_id=8, pools=(ACCOUNT,))
    async with running({"p": upstream}, answers=answers, principal=stranger) as world:
        answer = await world.connect().call(CHAT, ASK, headers=KEYED)
        assert "idempotent-replayed" not in answer.headers
        assert code_of(answer) != "idempotency_key_reused" if answer.status != 200 else True


# -- failures give the key back -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("script", "body", "status"),
    [
        (provider.error(500, "broken"), ASK, 502),
        (provider.error(400, "no such thing"), ASK, 400),
        (provider.error(429, "slow down"), ASK, 503),
        ([STREAM_HEAD, None], ASK_STREAM, 502),
        (provider.completion(), ASK | {"model": "nope"}, 404),
    ],
)
async def test_what_fails_uncharged_may_be_tried_again(
    script: Script, body: dict[str, object], status: int, autojump_clock: MockClock
) -> None:
    answers = MemoryAnswers()
    failing = True
    upstream = ChoosingProvider(lambda _at, _asked: script if failing else provider.completion())
    async with running({"p": upstream}, answers=answers) as world:
        client = world.connect()
        assert (await client.call(CHAT, body, headers=KEYED)).status == status
        assert len(answers) == 0
        failing = False
        assert (await client.call(CHAT, ASK, headers=KEYED)).status == 200
        await world.assert_books_are_clean()


@pytest.mark.parametrize(
    ("options", "status"),
    [({"credit": 1000}, 402), ({"limits": (LimitRef("account:7", "tpm", 1),)}, 429)],
)
async def test_what_is_not_reserved_holds_no_key(options: dict[str, object], status: int) -> None:
    answers = MemoryAnswers()
    upstream = ScriptedProvider(provider.completion())
    async with running({"p": upstream}, answers=answers, **options) as world:  # type: ignore[arg-type] # keyword options
        assert (await world.connect().call(CHAT, ASK, headers=KEYED)).status == status
        assert len(answers) == 0


async def test_without_the_database_nothing_is_begun() -> None:
    answers = MemoryAnswers()
    answers.away = True
    upstream = ScriptedProvider(provider.completion())
    async with running({"p": upstream}, answers=answers) as world:
        client = world.connect()
        answer = await client.call(CHAT, ASK, headers=KEYED)
        assert (answer.status, code_of(answer)) == (503, "overloaded")
        assert (await client.call(CHAT, ASK)).status == 200
        assert upstream.calls == 1


async def test_a_database_that_is_slow_is_not_waited_for_for_ever(
    autojump_clock: MockClock,
) -> None:
    answers = MemoryAnswers()
    answers.seconds = 60
    async with running({"p": ScriptedProvider(provider.completion())}, answers=answers) as world:
        answer = await world.connect().call(CHAT, ASK, headers=KEYED)
        assert answer.status == 503
        assert trio.current_time() < 10


@pytest.mark.parametrize("streaming", [False, True])
async def test_an_answer_that_cannot_be_kept_is_not_charged(
    streaming: bool, autojump_clock: MockClock
) -> None:
    script = provider.stream("Hel", "lo", gap=1) if streaming else [1.0, *provider.completion()]
    answers = MemoryAnswers()
    async with running({"p": ScriptedProvider(script)}, answers=answers) as world:
        client = world.connect()
        await client.send(CHAT, ASK | {"stream": streaming}, headers=KEYED)
        await trio.sleep(0.5)
        answers.away = True
        answer = await client.receive()
        if streaming:
            assert b"[DONE]" not in answer.body
            assert b'"overloaded"' in answer.body
        else:
            assert (answer.status, code_of(answer)) == (503, "overloaded")
        answers.away = False
        early = await world.connect().call(CHAT, ASK | {"stream": streaming}, headers=KEYED)
        assert early.status == 409
        at_wall(world, STALE_SECONDS)
        again = await world.connect().call(CHAT, ASK | {"stream": streaming}, headers=KEYED)
        assert again.status == 200
        free, charged = await world.flushed()
        assert (free.charge, free.status) == (0, EventStatus.FREE)
        assert free.cost > 0  # somebody has to pay the provider
        assert charged.charge == CHARGE
        await world.assert_books_are_clean()


# -- what is charged is kept ----------------------------------------------------------------------


async def test_a_broken_stream_is_kept_as_it_was(autojump_clock: MockClock) -> None:
    upstream = ScriptedProvider([STREAM_HEAD, delta("Hel"), 1.0, delta("lo"), None])
    async with running({"p": upstream}) as world:
        first = await world.connect().call(CHAT, ASK_STREAM, headers=KEYED)
        assert b"upstream_unavailable" in first.body
        again = await world.connect().call(CHAT, ASK_STREAM, headers=KEYED)
        assert again.body == first.body
        assert upstream.calls == 1
        assert len(await charges(world)) == 1
        await world.assert_books_are_clean()


async def test_what_the_deadline_cuts_is_charged_and_kept(autojump_clock: MockClock) -> None:
    upstream = ScriptedProvider([STREAM_HEAD, delta("Hello"), 1000.0])
    settings = ServerSettings(max_request_seconds=30)
    async with running({"p": upstream}, settings=settings) as world:
        first = await world.connect().call(CHAT, ASK_STREAM, headers=KEYED)
        assert b"upstream_timeout" in first.body
        again = await world.connect().call(CHAT, ASK_STREAM, headers=KEYED)
        assert b'"content":"Hello"' in again.body
        assert b"upstream_timeout" in again.body
        assert b"\n:" in first.body
        assert b"\n:" not in again.body  # signs of life are not part of it
        assert upstream.calls == 1
        assert len(await charges(world)) == 1
        await world.assert_books_are_clean()


async def test_a_cancelled_response_is_kept_as_it_was(autojump_clock: MockClock) -> None:
    upstream = ScriptedProvider([STREAM_HEAD, delta("Hello"), 100.0])
    path, body = SURFACES["responses"]
    answers = MemoryAnswers()
    async with running({"p": upstream}, answers=answers) as world:
        client = world.connect()
        await client.send(path, body | {"stream": True}, headers=KEYED)
        assert isinstance(await client.event(), h11.Response)
        begun = await client.event()
        assert isinstance(begun, h11.Data)
        name = json.loads(bytes(begun.data).split(b"data: ")[1].split(b"\n")[0])["response"]["id"]
        stopped = await world.connect().call(f"/v1/responses/{name}/cancel")
        assert stopped.json["status"] == "cancelled"
        # Deleting it deletes the answer; so it is not there before the answer is.
        assert (await world.connect().call(f"/v1/responses/{name}", method="GET")).status == 404
        heard = bytes(begun.data)
        while isinstance(event := await client.event(), h11.Data):
            heard += event.data
        kept = await world.connect().call(f"/v1/responses/{name}", method="GET")
        assert kept.json == stopped.json
        assert answers.response_of(ACCOUNT, KEYED["idempotency-key"]) == name
        again = await world.connect().call(path, body | {"stream": True}, headers=KEYED)
        assert again.body == heard
        assert upstream.calls == 1
        assert len(await charges(world)) == 1


@pytest.mark.parametrize("streaming", [False, True])
async def test_what_is_too_large_to_keep_is_served_and_refused_later(
    streaming: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(idempotency, "ANSWER_BYTES_MAX", 100)
    script = provider.stream("Hello") if streaming else provider.completion("Hello")
    upstream = ScriptedProvider(script)
    async with running({"p": upstream}) as world:
        client = world.connect()
        first = await client.call(CHAT, ASK | {"stream": streaming}, headers=KEYED)
        assert b"Hello" in first.body
        again = await client.call(CHAT, ASK | {"stream": streaming}, headers=KEYED)
        assert (again.status, code_of(again)) == (409, "idempotent_answer_lost")
        assert first.headers["x-request-id"] in str(again.error["message"])
        assert again.error["request_id"] == first.headers["x-request-id"]
        assert again.headers["x-should-retry"] == "false"
        assert await charges(world) == [CHARGE]
        assert world.gateway.answers.recorded_bytes == 0


async def test_a_full_worker_serves_without_keeping(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running({"p": ScriptedProvider(provider.completion())}) as world:
        client = world.connect()
        kept = await client.call(CHAT, ASK, headers=KEYED)
        world.gateway.answers.recorded_bytes = idempotency.RECORDED_BYTES_MAX
        other = {"idempotency-key": "other"}
        assert (await client.call(CHAT, ASK, headers=other)).status == 200
        assert (await client.call(CHAT, ASK, headers=other)).status == 409
        assert (await client.call(CHAT, ASK, headers=KEYED)).status == 503
        world.gateway.answers.recorded_bytes = 0
        assert (await client.call(CHAT, ASK, headers=KEYED)).body == kept.body


# -- a client that leaves -------------------------------------------------------------------------


@pytest.mark.parametrize("leaves_after", [1.0, 5.0])
async def test_a_client_that_leaves_does_not_stop_it(
    leaves_after: float, autojump_clock: MockClock
) -> None:
    upstream = ScriptedProvider(provider.stream("a", "b", "c", gap=3))
    async with running({"p": upstream}) as world:
        client = world.connect()
        await client.send(CHAT, ASK_STREAM, headers=KEYED)
        await trio.sleep(leaves_after)
        client.transport.close()
        await trio.sleep(20)
        assert upstream.cancelled == 0
        again = await world.connect().call(CHAT, ASK_STREAM, headers=KEYED)
        assert again.headers["idempotent-replayed"] == "true"
        assert again.body.count(b'"content":') == 3
        assert again.body.endswith(b"data: [DONE]\n\n")
        assert upstream.calls == 1
        assert await charges(world) == [CHARGE]
        await world.assert_books_are_clean()
    statuses = [json.loads(line)["status"] for part in world.log for line in part.splitlines()]
    assert statuses == [499, 200]


async def test_without_a_key_a_client_that_leaves_stops_it(autojump_clock: MockClock) -> None:
    upstream = ScriptedProvider(provider.stream("a", "b", "c", gap=3))
    async with running({"p": upstream}) as world:
        client = world.connect()
        await client.send(CHAT, ASK_STREAM)
        await trio.sleep(1)
        client.transport.close()
        await trio.sleep(20)
        assert upstream.cancelled == 1


async def test_unheard_the_deadline_still_holds(autojump_clock: MockClock) -> None:
    upstream = ScriptedProvider([1000.0, *provider.completion()])
    answers = MemoryAnswers()
    settings = ServerSettings(max_request_seconds=30)
    async with running({"p": upstream}, settings=settings, answers=answers) as world:
        client = world.connect()
        await client.send(CHAT, ASK, headers=KEYED)
        await trio.sleep(1)
        client.transport.close()
        await trio.sleep(30)
        assert len(answers) == 0
        await world.assert_books_are_clean()


async def test_a_draining_gateway_still_finishes_it(autojump_clock: MockClock) -> None:
    answers = MemoryAnswers()
    upstream = ScriptedProvider(provider.stream("a", "b", "c", gap=3))
    async with running({"p": upstream}, answers=answers) as world:
        client = world.connect()
        await client.send(CHAT, ASK_STREAM, headers=KEYED)
        await trio.sleep(1)
        client.transport.close()
        world.gateway.drain()
        await trio.sleep(20)
        again = await world.connect().call(CHAT, ASK_STREAM, headers=KEYED)
        assert again.headers["idempotent-replayed"] == "true"
        assert await charges(world) == [CHARGE]


async def test_after_it_a_connection_is_watched_again(autojump_clock: MockClock) -> None:
    upstream = ScriptedProvider(provider.completion(), [50.0, *provider.completion()])
    async with running({"p": upstream}) as world:
        client = world.connect()
        for headers in (KEYED, KEYED, {"idempotency-key": "x" * 300}):
            await client.call(CHAT, ASK, headers=headers)
        await client.send(CHAT, ASK)
        await trio.sleep(1)
        client.transport.close()
        await trio.sleep(1)
        assert world.server.statistics().open_reservations == 0


# -- stale rows -----------------------------------------------------------------------------------


async def claimed(answers: MemoryAnswers, upstream: ScriptedProvider) -> bytes:
    """A row whose request dies while it runs; the request's id."""
    held: list[Asked] = []

    class Watched(MemoryAnswers):
        async def claim(self, asked: Asked, now: float) -> Earlier | None:
            held.append(asked)
            return await answers.claim(asked, now)

        async def forget(self, asked: Asked) -> None:
            """It is dead."""

    async with running({"p": upstream}, answers=Watched()) as world:
        await world.connect().send(CHAT, ASK, headers=KEYED)
        await trio.sleep(0.1)
        world.nursery.cancel_scope.cancel()
    return held[0].request_id


@pytest.mark.parametrize("charged", [False, True])
async def test_a_stale_row_is_taken_over_only_uncharged(
    charged: bool, autojump_clock: MockClock
) -> None:
    answers = MemoryAnswers(lambda request_id: charged)
    slow, upstream = ScriptedProvider([100.0]), ScriptedProvider(provider.completion())
    await claimed(answers, slow)
    async with running({"p": upstream}, answers=answers) as world:
        client = world.connect()
        assert (await client.call(CHAT, ASK, headers=KEYED)).status == 409
        at_wall(world, STALE_SECONDS - 1)
        assert (await client.call(CHAT, ASK, headers=KEYED)).status == 409
        at_wall(world, STALE_SECONDS)
        answer = await client.call(CHAT, ASK, headers=KEYED)
        if charged:
            assert (answer.status, code_of(answer)) == (409, "idempotent_answer_lost")
            assert upstream.calls == 0
        else:
            assert answer.status == 200
        assert (await client.call(CHAT, ASK | {"user": "x"}, headers=KEYED)).status == 422


async def test_who_slept_and_lost_its_key_is_not_charged(autojump_clock: MockClock) -> None:
    """A gateway that was stopped for an hour goes on where it was; meanwhile a retry was served."""
    upstream = ScriptedProvider(provider.stream("a", "b", gap=10), provider.stream("c"))
    async with running({"p": upstream}) as world:
        sleeper = world.connect()
        await sleeper.send(CHAT, ASK_STREAM, headers=KEYED)
        await trio.sleep(15)
        at_wall(world, STALE_SECONDS)
        retry = await world.connect().call(CHAT, ASK_STREAM, headers=KEYED)
        assert retry.status == 200
        cut = await sleeper.receive()
        assert b"[DONE]" not in cut.body
        assert await charges(world) == [CHARGE]
        again = await world.connect().call(CHAT, ASK_STREAM, headers=KEYED)
        assert again.body == retry.body
        await world.assert_books_are_clean()


# -- crashes --------------------------------------------------------------------------------------


class Killed(Exception):
    """The process is dead: what it still does has no effect."""


class Life:
    """Steps of a process that can be seen from outside; it dies at one of them."""

    def __init__(self, dies_at: int | None) -> None:
        self.steps = 0
        self.dead = False
        self.on_death: Callable[[], None] = lambda: None
        self._dies_at = dies_at

    def step(self) -> None:
        if self.dead:
            raise Killed
        self.steps += 1
        if self.steps == self._dies_at:
            self.die()
            raise Killed

    def die(self) -> None:
        self.dead = True
        self.on_death()


class MortalAnswers(MemoryAnswers):
    """The store as a mortal process reaches it: it can die before and after each call."""

    def __init__(self, life: Life, behind: MemoryAnswers) -> None:
        super().__init__()
        self._life = life
        self._behind = behind

    @contextlib.contextmanager
    def _living(self) -> Iterator[None]:
        try:
            self._life.step()
            yield
            self._life.step()
        except Killed as killed:
            raise Overloaded("This process is dead.") from killed

    async def claim(self, asked: Asked, now: float) -> Earlier | None:
        with self._living():
            return await self._behind.claim(asked, now)
        raise AssertionError

    async def keep(self, asked: Asked, answer: Answer | None, response_id: str) -> bool:
        with self._living():
            return await self._behind.keep(asked, answer, response_id)
        raise AssertionError

    async def forget(self, asked: Asked) -> None:
        with self._living():
            await self._behind.forget(asked)


class MortalJournal(MemoryJournal):
    """Its `state` is what the next process finds."""

    def __init__(self, life: Life) -> None:
        super().__init__()
        self._life = life

    def append(self, records: Sequence[Record]) -> int:
        try:
            self._life.step()
            position = super().append(records)
            self._life.step()
        except Killed as killed:
            raise JournalFailed("this process is dead") from killed
        return position


async def live_until(
    life: Life, seconds: float, upstream: ScriptedProvider, answers: MemoryAnswers, ask: object
) -> tuple[MemoryStore, MemoryJournal]:
    """One process that serves one request with a key and dies; the books and what is on disk."""
    journal = MortalJournal(life)
    mortal = MortalAnswers(life, answers)
    try:
        async with running({"p": upstream}, answers=mortal, journal=journal) as world:
            books = world.store
            life.on_death = world.nursery.cancel_scope.cancel
            client = world.connect()

            async def call(client: Client) -> None:
                with contextlib.suppress(h11.RemoteProtocolError, OSError):
                    await client.call(CHAT, ask, headers=KEYED)

            world.nursery.start_soon(call, client)
            await trio.sleep(seconds)
            life.die()
    except* JournalFailed:
        assert life.dead
    return books, MemoryJournal(journal.state)


async def survive(dies_at: int | None, seconds: float, script: Script, ask: object) -> Life:
    """Die, start again, and let the client insist: one answer is the most that it pays for."""
    life = Life(dies_at)
    upstream = ScriptedProvider(script)
    answers = MemoryAnswers()
    books, journal = await live_until(life, seconds, upstream, answers, ask)
    answers.charged = lambda request_id: any(
        event.request_id == request_id and event.charge for _, event in books.events
    )
    async with running({"p": upstream}, answers=answers, books=books, journal=journal) as world:
        early = await world.connect().call(CHAT, ask, headers=KEYED)
        assert early.status in (200, 409)
        at_wall(world, STALE_SECONDS)
        late = await world.connect().call(CHAT, ask, headers=KEYED)
        assert late.status == 200
        assert (await world.connect().call(CHAT, ask, headers=KEYED)).body == late.body
        assert sum(await charges(world)) in (0, CHARGE)
        await world.assert_books_are_clean()
    return life


@pytest.mark.parametrize("streaming", [False, True])
async def test_dying_at_any_step_charges_no_key_twice(
    streaming: bool, autojump_clock: MockClock
) -> None:
    script = provider.stream("a", "b", gap=1) if streaming else [1.0, *provider.completion()]
    ask = ASK | {"stream": streaming}
    whole = await survive(None, 10.0, script, ask)
    assert whole.steps >= 6  # claimed, reserved, kept, settled: before and after each
    for step in range(1, whole.steps + 1):
        await survive(step, 10.0, script, ask)


@pytest.mark.parametrize("seconds", [0.0, 0.5, 1.0, 1.5, 2.0, 2.5])
async def test_dying_at_any_time_charges_no_key_twice(
    seconds: float, autojump_clock: MockClock
) -> None:
    await survive(None, seconds, provider.stream("a", "b", gap=1), ASK_STREAM)
