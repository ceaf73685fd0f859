"""What a cut answer is charged, and what a lost attempt has probably cost.

Prices are 1 dollar a million tokens of input and 2 of output: 1,000 and 2,000 nano-dollars each.
"""

from __future__ import annotations

import json
from base64 import b64encode
from typing import cast

import h11
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from adapters.canonical import Usage
from adapters.codec import Ask
from adapters.openai.chat_downstream import ChatDownstream
from adapters.openai.chat_relay import ChatStreamRelay
from ledger.store import EventStatus
from proxy import settle
from proxy.need import Need
from proxy.route import Candidate, Route
from proxy.settle import Lost
from proxy.verdicts import VERDICTS
from tests.fakes.gateway import model_of, providers_of, running, snapshot_of
from tests.fakes.provider import STREAM_HEAD, ScriptedProvider, delta, usage_chunk

CHAT = "/v1/chat/completions"
PROVIDERS = providers_of("p")
ROUTE: Route = snapshot_of([model_of("gpt", *PROVIDERS)], PROVIDERS).routes["gpt"]
CANDIDATE: Candidate = ROUTE.candidates[0]
INPUT, OUTPUT = 1000, 2000
BEGUN: set[Lost] = {
    "cancelled",
    "first_byte_timeout",
    "idle_timeout",
    "truncated",
    "protocol",
    "empty",
}
OUTCOMES = sorted(cast("set[Lost]", {*VERDICTS, "cancelled"}))


def probable() -> Usage:
    return Usage(input_tokens=70)


def relay(*events: bytes) -> ChatStreamRelay:
    """A stream that has come so far, without the framing of its chunks."""
    reading = ChatStreamRelay("gpt", show_usage=False, pieces={})
    for event in events:
        reading.feed(event.partition(b"\r\n")[2].removesuffix(b"\r\n"))
    return reading


# -- lost attempts --------------------------------------------------------------------------------


@pytest.mark.parametrize("outcome", OUTCOMES)
def test_an_attempt_without_an_answer_costs_its_input_if_its_provider_had_begun(
    outcome: Lost,
) -> None:
    cost = settle.lost(CANDIDATE, outcome, probable)
    assert cost == (70 * INPUT if outcome in BEGUN else 0)


@pytest.mark.parametrize("outcome", OUTCOMES)
def test_what_was_said_is_counted_with_the_input_if_the_provider_had_begun(outcome: Lost) -> None:
    cost = settle.lost(CANDIDATE, outcome, probable, relay(delta("x" * 40)))
    assert cost == (70 * INPUT + 10 * OUTPUT if outcome in BEGUN else 0)


@pytest.mark.parametrize("outcome", OUTCOMES)
def test_what_the_provider_tells_goes_before_what_was_expected(outcome: Lost) -> None:
    said = relay(usage_chunk(input_tokens=33, output_tokens=2), delta("x"))
    assert settle.lost(CANDIDATE, outcome, probable, said) == 33 * INPUT + 2 * OUTPUT


def test_a_loser_is_priced_as_its_winner_was() -> None:
    usage = Usage(input_tokens=10, output_tokens=5)
    assert settle.cost_of(CANDIDATE, usage) == 10 * INPUT + 5 * OUTPUT


@given(st.sampled_from(OUTCOMES), st.integers(0, 4000), st.lists(st.integers(1, 200), max_size=5))
def test_no_loss_costs_more_than_was_reserved(outcome: Lost, text: int, words: list[int]) -> None:
    body = {"model": "gpt", "messages": [{"role": "user", "content": "x" * text}]}
    need = Need.of(ChatDownstream().decode(json.dumps(body).encode(), Ask()), ROUTE)
    said = relay(*[delta("y" * min(size, 80)) for size in words])
    cost = settle.lost(CANDIDATE, outcome, need.expected(CANDIDATE), said)
    assert 0 <= cost <= need.amount(ROUTE)


# -- cut answers ----------------------------------------------------------------------------------


def ask_about_a_picture(width: int, height: int) -> dict[str, object]:
    sides = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    head = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + sides + bytes(30_000)
    picture = {"url": "data:image/png;base64," + b64encode(head).decode()}
    parts = [{"type": "text", "text": "What is it?"}, {"type": "image_url", "image_url": picture}]
    return {"model": "gpt", "stream": True, "messages": [{"role": "user", "content": parts}]}


@pytest.mark.parametrize("who", ["client", "upstream"])
async def test_a_cut_answer_is_charged_for_the_picture_that_it_was_about(
    who: str, autojump_clock: MockClock
) -> None:
    script = [STREAM_HEAD, delta("x" * 40), None if who == "upstream" else 1000.0]
    async with running({"p": ScriptedProvider(script)}) as world:
        client = world.connect()
        await client.send(CHAT, ask_about_a_picture(1024, 1024))
        assert isinstance(await client.event(), h11.Response)
        if who == "client":
            client.transport.close()
        await trio.sleep(5)
        (event,) = await world.flushed()
        assert event.status == EventStatus.CANCELLED
        assert event.output_tokens == 10
        assert 630 < event.input_tokens < 700
        assert event.charge == (event.input_tokens * INPUT + 10 * OUTPUT) * 11 // 10
        await world.assert_books_are_clean()


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1), st.sampled_from([0, 8192, 10**6]))
def test_no_size_that_a_picture_claims_costs_more_than_was_reserved(
    width: int, height: int, window: int
) -> None:
    model = model_of("gpt", *PROVIDERS, context_window=window)
    route = snapshot_of([model], PROVIDERS).routes["gpt"]
    body = json.dumps(ask_about_a_picture(width, height)).encode()
    need = Need.of(ChatDownstream().decode(body, Ask()), route)
    said = relay(*[delta("y")] * 100)
    usage = said.counted(need.expected(route.candidates[0])).usage
    assert settle.cost_of(route.candidates[0], usage) <= need.amount(route)
