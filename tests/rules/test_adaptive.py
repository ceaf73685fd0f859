"""`billing.reserve = "adaptive"`: less is held, more streams fit, nobody spends what is not there.

Whole workers in memory and in virtual time, in front of providers that say one word a token and
what they said at the end; at last a real gateway and the official SDK.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import cast

import openai
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from adapters.catalogue import Model, Protocol, Provider
from ledger.store import EventStatus
from proxy.outputs import Outputs
from proxy.transport import Transport
from tests.fakes import provider
from tests.fakes.gateway import ACCOUNT, Answer, World, model_of, principal_of, running
from tests.fakes.process import LOOPBACK, serving
from tests.fakes.provider import STREAM_END, STREAM_HEAD, ScriptedProvider
from tests.fakes.readers import STREAMS

BUDGET = 2**40 + 1
CAP = 16_384
WORD = "word"  # four bytes: one token, by any count
TOKEN_NUSD = 2_200  # of output, with margin
LENGTHS = {
    "openai": "length",
    "openai-responses": "max_output_tokens",
    "gemini": "MAX_TOKENS",
}
PATHS = {
    "openai": "/v1/chat/completions",
    "openai-responses": "/v1/responses",
    "gemini": "/v1beta/models/gpt:streamGenerateContent?alt=sse",
}
PROTOCOLS: tuple[Protocol, ...] = ("openai", "openai-responses", "anthropic", "gemini")

Json = dict[str, object]


# -- providers ------------------------------------------------------------------------------------


def framed(kind: str, data: object) -> bytes:
    """One event in one HTTP chunk, named where `kind` is."""
    name = f"event: {kind}\n" if kind else ""
    text = data if isinstance(data, str) else json.dumps(data, separators=(",", ":"))
    event = f"{name}data: {text}\n\n".encode()
    return b"%x\r\n%b\r\n" % (len(event), event)


def chat(tokens: int) -> list[bytes]:
    words = [provider.delta(WORD) for _ in range(tokens)]
    return [
        *words,
        provider.delta(finish="stop"),
        provider.usage_chunk(10, tokens),
        provider.chunk("[DONE]"),
    ]


def responses(tokens: int) -> list[bytes]:
    response: Json = {"id": "resp_1", "object": "response", "model": "m", "created_at": 1}
    begun = {**response, "status": "in_progress", "output": [], "usage": None}
    part: Json = {"type": "output_text", "text": "", "annotations": []}
    item: Json = {"id": "msg_1", "type": "message", "role": "assistant", "status": "in_progress"}
    place: Json = {"item_id": "msg_1", "output_index": 0, "content_index": 0}
    text = WORD * tokens
    whole_part = {**part, "text": text}
    whole_item = {**item, "status": "completed", "content": [whole_part]}
    usage = {
        "input_tokens": 10,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 10 + tokens,
    }
    done = {**response, "status": "completed", "output": [whole_item], "usage": usage}
    events: list[tuple[str, Json]] = [
        ("response.created", {"response": begun}),
        ("response.output_item.added", {"output_index": 0, "item": {**item, "content": []}}),
        ("response.content_part.added", {**place, "part": part}),
        *[("response.output_text.delta", {**place, "delta": WORD}) for _ in range(tokens)],
        ("response.output_text.done", {**place, "text": text}),
        ("response.content_part.done", {**place, "part": whole_part}),
        ("response.output_item.done", {"output_index": 0, "item": whole_item}),
        ("response.completed", {"response": done}),
    ]
    return [
        framed(kind, {"type": kind, "sequence_number": number, **members})
        for number, (kind, members) in enumerate(events)
    ]


def messages(tokens: int) -> list[bytes]:
    message: Json = {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "m",
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": {"input_tokens": 10, "output_tokens": 1},
    }
    delta = {"type": "text_delta", "text": WORD}
    events: list[Json] = [
        {"type": "message_start", "message": message},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        *[{"type": "content_block_delta", "index": 0, "delta": delta} for _ in range(tokens)],
        {"type": "content_block_stop", "index": 0},
        {
            "type": "message_delta",
            "delta": {"stop_reason": "end_turn", "stop_sequence": None},
            "usage": {"output_tokens": tokens},
        },
        {"type": "message_stop"},
    ]
    return [framed(str(event["type"]), event) for event in events]


def gemini(tokens: int) -> list[bytes]:
    def said(count: int, **more: object) -> bytes:
        candidate = {"content": {"parts": [{"text": WORD}], "role": "model"}, "index": 0, **more}
        usage = {
            "promptTokenCount": 10,
            "candidatesTokenCount": count,
            "totalTokenCount": 10 + count,
        }
        return framed("", {"candidates": [candidate], "usageMetadata": usage, "modelVersion": "m"})

    return [*map(said, range(1, tokens)), said(tokens, finishReason="STOP")]


STREAMED: Mapping[str, Callable[[int], list[bytes]]] = {
    "openai": chat,
    "openai-responses": responses,
    "anthropic": messages,
    "gemini": gemini,
}


@dataclass
class Talker:
    """A provider that says as many words as its turn wants, and its caller allows.

    `gap` is the pause before each `burst` events of a stream.
    """

    protocol: Protocol
    tokens: int
    gap: float = 0.0
    burst: int = 1
    caps: list[int] = field(default_factory=list)

    async def __call__(self, transport: Transport) -> None:
        reading = ScriptedProvider()
        while (body := await reading._read(transport)) is not None:
            cap = cap_of(body)
            self.caps.append(cap)
            tokens = min(self.tokens, cap)
            try:
                if "stream" in body or self.protocol == "gemini":
                    await self._stream(transport, STREAMED[self.protocol](tokens))
                else:
                    (whole,) = provider.completion(WORD * tokens, output_tokens=tokens)
                    assert isinstance(whole, bytes)
                    await transport.send(whole)
            except OSError:
                return

    async def _stream(self, transport: Transport, events: Sequence[bytes]) -> None:
        await transport.send(STREAM_HEAD)
        for at in range(0, len(events), self.burst):
            if self.gap:
                await trio.sleep(self.gap)
            await transport.send(b"".join(events[at : at + self.burst]))
        await transport.send(STREAM_END)


def cap_of(body: Json) -> int:
    """The output cap that a provider was asked to keep to."""
    config = cast("Json", body.get("generationConfig", {}))
    for members, name in (
        (body, "max_tokens"),
        (body, "max_completion_tokens"),
        (body, "max_output_tokens"),
        (config, "maxOutputTokens"),
    ):
        if name in members:
            return int(str(members[name]))
    raise AssertionError("nothing may be sent without a cap")


def long_model(protocol: Protocol = "openai") -> Model:
    """A model whose cap costs far more than its usual answers."""
    upstream = Provider("p", protocol, "http://p/v1", api_keys=("provider-key",))
    return model_of("gpt", upstream, default_max_output_tokens=CAP, context_window=200_000)


def adaptive(world: World) -> Outputs:
    """Have the worker reserve adaptively."""
    world.gateway.outputs = Outputs()
    return world.gateway.outputs


def asked(surface: str = "openai", *, stream: bool = True, **more: object) -> tuple[str, Json]:
    """A request that sets no cap, in the words of a surface."""
    match surface:
        case "openai":
            hello: Json = {"messages": [{"role": "user", "content": "Hi"}]}
            if stream:
                hello |= {"stream": True, "stream_options": {"include_usage": True}}
            return PATHS[surface], {"model": "gpt", **hello, **more}
        case "openai-responses":
            return PATHS[surface], {"model": "gpt", "input": "Hi", "stream": stream, **more}
        case _:
            turn = {"role": "user", "parts": [{"text": "Hi"}]}
            return PATHS[surface], {"contents": [turn], **more}


async def call(world: World, surface: str = "openai", **more: object) -> Answer:
    """Ask without a cap, as one client among others."""
    path, body = asked(surface, **more)  # type: ignore[arg-type] # keyword options
    return await world.connect().call(path, body)


def charge_of(answer_tokens: int, input_tokens: int = 10) -> int:
    """The charge for an answer of so many tokens."""
    return -(-(input_tokens * 1_000 + answer_tokens * 2_000) * 11 // 10)


# -- streams that grow ----------------------------------------------------------------------------


@pytest.mark.parametrize("burst", [1, 50, 2000])
async def test_a_stream_that_outgrows_its_reservation_is_charged_exactly(
    autojump_clock: MockClock, burst: int
) -> None:
    talker = Talker("openai", 6000, gap=0.01, burst=burst)
    async with running({"p": talker}, models=[long_model()]) as world:
        adaptive(world)
        answer = await call(world)
        assert answer.status == 200
        meaning = STREAMS["openai"](answer.body)
        assert (meaning.finish, meaning.text) == ("stop", WORD * 6000)
        assert talker.caps == [CAP], "the cap sent upstream is the whole one"
        (event,) = await world.flushed()
        assert event.charge == charge_of(6000)
        assert event.status == EventStatus.SETTLED
        assert event.reserved >= event.charge
        assert event.reserved < charge_of(CAP)
        await world.assert_books_are_clean()


async def test_what_a_model_usually_says_is_what_its_streams_begin_with(
    autojump_clock: MockClock,
) -> None:
    async with running({"p": Talker("openai", 3000)}, models=[long_model()]) as world:
        outputs = adaptive(world)
        assert outputs.start("gpt") == 1024
        await call(world)
        assert 3000 <= outputs.start("gpt") < 3300
        await call(world, max_tokens=50)  # what a client limits tells nothing
        assert 3000 <= outputs.start("gpt") < 3300
        await world.assert_books_are_clean()


async def test_a_request_with_a_cap_of_its_own_holds_all_of_it(autojump_clock: MockClock) -> None:
    async with running({"p": Talker("openai", 100)}, models=[long_model()]) as world:
        adaptive(world)
        await call(world, max_tokens=5000)
        (event,) = await world.flushed()
        assert event.reserved >= charge_of(5000)


async def test_a_dollar_holds_more_streams_at_once(autojump_clock: MockClock) -> None:
    """The figures in the documents: how many streams are admitted before the first has ended."""

    async def admitted(*, small: bool) -> int:
        talker = Talker("openai", 900, gap=1.0)
        async with running({"p": talker}, models=[long_model()], credit=10**9) as world:
            if small:
                adaptive(world)

            async def caller() -> None:
                await call(world)

            async with trio.open_nursery() as nursery:
                for _ in range(500):
                    nursery.start_soon(caller)
                await trio.sleep(30)
                nursery.cancel_scope.cancel()
            return len(talker.caps)

    assert await admitted(small=False) == 27
    assert await admitted(small=True) == 413


# -- growth that is refused -----------------------------------------------------------------------


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("surface", LENGTHS)
async def test_a_stream_that_may_not_grow_ends_at_what_is_held(
    autojump_clock: MockClock, surface: str, protocol: Protocol
) -> None:
    """Whatever the client and the provider speak: a whole answer, cut at its length, and paid."""
    credit = charge_of(1500, 400)
    talker = Talker(protocol, 5000, gap=0.01)
    async with running({"p": talker}, models=[long_model(protocol)], credit=credit) as world:
        adaptive(world)
        answer = await call(world, surface)
        assert answer.status == 200
        meaning = STREAMS[surface](answer.body)
        assert meaning.finish == LENGTHS[surface]
        assert meaning.model == "gpt"
        said = len(meaning.text) // len(WORD)
        assert 1024 < said < 1700, "it went on with all that was there"
        (event,) = await world.flushed()
        assert event.status in (EventStatus.ESTIMATED, EventStatus.SETTLED)
        assert event.charge == charge_of(said, event.input_tokens)
        assert meaning.usage == (event.input_tokens, 0, said)
        assert event.charge <= event.reserved <= credit
        assert json.loads(world.log[-1] if world.log else b"{}").get("code", "") == ""
        await world.assert_books_are_clean()
        assert 0 <= world.balance() < 64 * TOKEN_NUSD + charge_of(0, 400)
        assert world.gateway.outputs is not None
        assert world.gateway.outputs.start("gpt") == 1024, "a cut answer tells nothing"
        sample = world.gateway.metrics.registry.get_sample_value
        assert sample("farebox_streams_short_of_credit_total", {"model": "gpt"}) == 1


@pytest.mark.parametrize("protocol", ["openai-responses", "openai"])
async def test_a_response_that_was_cut_is_kept_as_it_was_told(
    autojump_clock: MockClock, protocol: Protocol
) -> None:
    talker = Talker(protocol, 5000, gap=0.01)
    models = [long_model(protocol)]
    async with running({"p": talker}, models=models, credit=charge_of(1500, 400)) as world:
        adaptive(world)
        answer = await call(world, "openai-responses")
        told = json.loads(answer.body.rstrip().rpartition(b"data: ")[2])["response"]
        assert told["status"] == "incomplete"
        path = f"{PATHS['openai-responses']}/{told['id']}"
        kept = await world.connect().call(path, method="GET")
        assert kept.json == told


async def test_an_answer_that_was_cut_is_the_same_when_it_is_asked_for_again(
    autojump_clock: MockClock,
) -> None:
    talker = Talker("openai", 5000, gap=0.01)
    async with running({"p": talker}, models=[long_model()], credit=charge_of(1500, 400)) as world:
        adaptive(world)
        path, body = asked()
        headers = {"idempotency-key": "one"}
        first = await world.connect().call(path, body, headers=headers)
        again = await world.connect().call(path, body, headers=headers)
        assert first.body == again.body
        assert STREAMS["openai"](again.body).finish == "length"
        assert len(talker.caps) == len(await world.flushed()) == 1


async def test_an_array_of_chunks_that_was_cut_is_an_array(autojump_clock: MockClock) -> None:
    talker = Talker("gemini", 5000, gap=0.01)
    models = [long_model("gemini")]
    async with running({"p": talker}, models=models, credit=charge_of(1500, 400)) as world:
        adaptive(world)
        path, body = asked("gemini")
        answer = await world.connect().call(path.removesuffix("?alt=sse"), body)
        chunks = json.loads(answer.body)
        assert chunks[-1]["candidates"][0]["finishReason"] == "MAX_TOKENS"
        assert "finishReason" not in chunks[-2]["candidates"][0]


async def test_every_choice_ends_where_the_stream_is_cut(autojump_clock: MockClock) -> None:
    def said(index: int) -> bytes:
        choice = {"index": index, "delta": {"content": WORD}, "finish_reason": None}
        return provider.chunk({"id": "c", "object": "o", "created": 1, "choices": [choice]})

    words = [said(number % 2) for number in range(5000)]
    upstream = ScriptedProvider([STREAM_HEAD, *words, None])
    async with running(
        {"p": upstream}, models=[long_model()], credit=charge_of(2500, 400)
    ) as world:
        adaptive(world)
        answer = await call(world, n=2)
        chunks = [
            json.loads(line.removeprefix(b"data: "))
            for line in answer.body.split(b"\n\n")
            if line and b"[DONE]" not in line
        ]
        ends = [
            (choice["index"], choice["finish_reason"])
            for chunk in chunks
            for choice in chunk["choices"]
            if choice["finish_reason"]
        ]
        assert ends == [(0, "length"), (1, "length")]
        assert answer.body.endswith(b"data: [DONE]\n\n")
        (event,) = await world.flushed()
        assert event.output_tokens == sum(len(chunk["choices"]) for chunk in chunks) - len(ends)
        await world.assert_books_are_clean()


async def test_a_client_that_leaves_while_its_stream_waits_for_more(
    autojump_clock: MockClock,
) -> None:
    talker = Talker("openai", 5000, burst=10**6)
    async with running({"p": talker}, models=[long_model()]) as world:
        adaptive(world)
        client = world.connect()
        await client.send(*asked())
        await client.event()
        client.transport.close()
        await trio.sleep(5)
        (event,) = await world.flushed()
        assert event.charge <= event.reserved
        await world.assert_books_are_clean()


async def test_what_a_provider_says_behind_the_cut_is_not_charged(
    autojump_clock: MockClock,
) -> None:
    """All of a long answer is there at once, with its figures, when it has to be cut."""
    credit = charge_of(1500, 200)
    talker = Talker("openai", 5000, burst=10**6)
    async with running({"p": talker}, models=[long_model()], credit=credit) as world:
        adaptive(world)
        meaning = STREAMS["openai"]((await call(world)).body)
        assert meaning.finish == "length"
        (event,) = await world.flushed()
        assert event.charge <= event.reserved <= credit
        assert event.output_tokens == len(meaning.text) // len(WORD)
        assert event.input_tokens == 10
        await world.assert_books_are_clean()


async def test_two_streams_share_the_last_cents(autojump_clock: MockClock) -> None:
    credit = 2 * charge_of(1500, 200)
    talker = Talker("openai", 5000, gap=0.01)
    async with running({"p": talker}, models=[long_model()], credit=credit) as world:
        adaptive(world)
        answers: list[Answer] = []

        async def caller() -> None:
            answers.append(await call(world))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(caller)
            nursery.start_soon(caller)
        meanings = [STREAMS["openai"](answer.body) for answer in answers]
        assert [meaning.finish for meaning in meanings] == ["length", "length"]
        events = await world.flushed()
        assert sum(event.charge for event in events) <= credit
        assert sum(len(meaning.text) // len(WORD) for meaning in meanings) > 2700
        await world.assert_books_are_clean()


async def test_a_budget_refuses_what_the_account_has(autojump_clock: MockClock) -> None:
    budget = charge_of(1500, 200)
    talker = Talker("openai", 5000, gap=0.01)
    caller = principal_of(pools=(ACCOUNT, BUDGET))
    async with running({"p": talker}, models=[long_model()], principal=caller) as world:
        world.store.add_budget(BUDGET, ACCOUNT, budget)
        adaptive(world)
        meaning = STREAMS["openai"]((await call(world)).body)
        assert meaning.finish == "length"
        (event,) = await world.flushed()
        assert charge_of(1024) < event.charge <= budget
        await world.assert_books_are_clean()
        assert world.balance() == 10**10 - event.charge


# -- what is affordable ---------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [True, False])
async def test_the_cap_is_lowered_to_what_is_left(autojump_clock: MockClock, stream: bool) -> None:
    credit = charge_of(300, 100)
    talker = Talker("openai", 5000)
    async with running({"p": talker}, models=[long_model()], credit=credit) as world:
        refused = await call(world, stream=stream)
        assert refused.status == 402, "the whole cap does not fit"
        assert 250 < int(str(refused.error["affordable_output_tokens"])) < 400
        adaptive(world)
        answer = await call(world, stream=stream)
        assert answer.status == 200
        (cap,) = talker.caps
        assert 250 < cap < 400
        (event,) = await world.flushed()
        assert event.charge == charge_of(cap)
        assert event.charge <= event.reserved <= credit
        await world.assert_books_are_clean()


@pytest.mark.parametrize("stream", [True, False])
async def test_there_is_a_least_that_is_worth_asking_for(
    autojump_clock: MockClock, stream: bool
) -> None:
    caps = []
    statuses = []
    for tokens in range(0, 200, 10):
        talker = Talker("openai", 5000)
        async with running(
            {"p": talker}, models=[long_model()], credit=charge_of(tokens, 100)
        ) as world:
            adaptive(world)
            answer = await call(world, stream=stream)
            statuses.append(answer.status)
            caps += talker.caps
            await world.assert_books_are_clean()
            if answer.status == 402:
                assert answer.headers["x-should-retry"] == "false"
                assert int(str(answer.error["affordable_output_tokens"])) < 64
    assert statuses == sorted(statuses, reverse=True)
    assert {402, 200} == set(statuses)
    assert 64 <= min(caps) < 64 + 10


async def test_a_clients_cap_is_never_lowered(autojump_clock: MockClock) -> None:
    talker = Talker("openai", 5000)
    async with running({"p": talker}, models=[long_model()], credit=charge_of(300, 100)) as world:
        adaptive(world)
        answer = await call(world, max_tokens=1000)
        assert answer.status == 402
        assert not talker.caps
        fits = int(str(answer.error["affordable_output_tokens"]))
        answer = await call(world, max_tokens=fits)
        assert answer.status == 200
        assert talker.caps == [fits]


async def test_what_is_affordable_is_the_cap_of_each_answer(autojump_clock: MockClock) -> None:
    talker = Talker("openai", 5000)
    async with running({"p": talker}, models=[long_model()], credit=charge_of(600, 100)) as world:
        refused = await call(world, stream=False, n=2)
        assert refused.status == 402
        fits = int(str(refused.error["affordable_output_tokens"]))
        assert 250 < fits < 350
        assert (await call(world, stream=False, n=2, max_tokens=fits + 1)).status == 402
        adaptive(world)
        assert (await call(world, stream=False, n=2)).status == 200
        assert talker.caps == [fits]


async def test_account_and_budget_may_each_have_less(autojump_clock: MockClock) -> None:
    """Each says only what it has itself: the cap is lowered for one, then for the other."""
    caller = principal_of(pools=(ACCOUNT, BUDGET))
    for account, budget in ((400, 200), (200, 400)):
        talker = Talker("openai", 5000)
        async with running(
            {"p": talker},
            models=[long_model()],
            principal=caller,
            credit=charge_of(account, 100),
        ) as world:
            world.store.add_budget(BUDGET, ACCOUNT, charge_of(budget, 100))
            adaptive(world)
            answer = await call(world)
            assert answer.status == 200
            assert 150 < talker.caps[0] < 300
            await world.assert_books_are_clean()


# -- whatever happens -----------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    credit=st.integers(0, charge_of(6000)),
    budget=st.none() | st.integers(0, charge_of(6000)),
    lengths=st.lists(st.integers(1, 4000), min_size=1, max_size=6),
    streams=st.booleans(),
    gap=st.sampled_from([0.0, 0.001, 0.1]),
    burst=st.sampled_from([1, 7, 300, 10**6]),
)
def test_nobody_spends_more_than_there_is(
    credit: int, budget: int | None, lengths: list[int], streams: bool, gap: float, burst: int
) -> None:
    async def main() -> None:
        talkers = iter(lengths)

        async def serve(transport: Transport) -> None:
            await Talker("openai", next(talkers, 500), gap, burst)(transport)

        pools = (ACCOUNT,) if budget is None else (ACCOUNT, BUDGET)
        async with running(
            {"p": serve},
            models=[long_model()],
            credit=credit,
            principal=principal_of(pools=pools),
        ) as world:
            if budget is not None:
                world.store.add_budget(BUDGET, ACCOUNT, budget)
            adaptive(world)

            async def caller() -> None:
                answer = await call(world, stream=streams)
                assert answer.status in (200, 402)
                if answer.status == 200 and streams:
                    assert STREAMS["openai"](answer.body).finish in ("stop", "length")

            async with trio.open_nursery() as nursery:
                for _ in lengths:
                    nursery.start_soon(caller)
            events = await world.flushed()
            assert sum(event.charge for event in events) <= credit
            assert all(event.charge <= event.reserved for event in events)
            if budget is not None:
                assert sum(event.charge for event in events) <= budget
            await world.assert_books_are_clean()

    trio.run(main, clock=MockClock(autojump_threshold=0))


# -- for real -------------------------------------------------------------------------------------


def test_the_official_sdk_sees_nothing_of_it(tmp_path: Path) -> None:
    config = LOOPBACK + '\n[billing]\nreserve = "adaptive"\n'
    with serving(tmp_path, config) as gateway:
        key = gateway.new_key("acme", "1.00")
        with openai.OpenAI(base_url=f"{gateway.base_url}/v1", api_key=key, max_retries=0) as client:
            answer = client.chat.completions.create(
                model="sandbox-long",
                messages=[{"role": "user", "content": "Count."}],
                stream=True,
                stream_options={"include_usage": True},
            )
            chunks = list(answer)
        reasons = [choice.finish_reason for chunk in chunks for choice in chunk.choices]
        assert reasons[-1] == "stop"
        usage = chunks[-1].usage
        assert usage is not None
        assert gateway.stop() == 0
        (record,) = gateway.records("usage", "export", "acme", "--format", "jsonl")
        account = gateway.record("account", "show", "acme")
        gateway.run("ledger", "verify")
        assert record["output_tokens"] == usage.completion_tokens
        assert record["billing_status"] == "charged"
        charge = Decimal(str(record["charge_usd"]))
        assert 0 < charge <= Decimal(str(record["reserved_usd"]))
        assert Decimal(str(account["charged_usd"])) == charge
        assert account["reserved_usd"] == "0"
        gateway.start()  # `serving` ends what it began
