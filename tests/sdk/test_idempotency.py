"""`Idempotency-Key` from the official packages: what is sent again is answered again, not made."""

from __future__ import annotations

import threading
import uuid

import anthropic
import openai
import pytest
from anthropic import Anthropic
from anthropic.types import MessageParam
from openai import OpenAI
from openai.types.chat import ChatCompletionChunk, ChatCompletionMessageParam

from tests.fakes.process import GatewayProcess
from tests.sdk.conftest import openai_client_of
from tests.sdk.shapes import QUESTION

ASK: list[ChatCompletionMessageParam] = [{"role": "user", "content": QUESTION}]
MESSAGES: list[MessageParam] = [{"role": "user", "content": QUESTION}]
TRIES = 500
PAUSE_SECONDS = 0.05
RETRIES = 2  # the package's own default


@pytest.fixture
def keyed() -> dict[str, str]:
    """A key of its own for each test."""
    return {"Idempotency-Key": str(uuid.uuid4())}


def test_a_chat_completion_sent_twice(gateway: GatewayProcess, keyed: dict[str, str]) -> None:
    """By an account that has no other calls: it is charged one answer's price."""
    with openai_client_of(gateway, gateway.new_key("twice"), RETRIES) as client:
        create = client.chat.completions.with_raw_response.create
        first = create(model="messages-sandbox", messages=ASK, extra_headers=keyed)
        again = create(model="messages-sandbox", messages=ASK, extra_headers=keyed)
        client.get("/usage", cast_to=object)  # for which everything is posted
    assert again.headers["idempotent-replayed"] == "true"
    assert again.headers["x-request-id"] == first.headers["x-request-id"]
    assert again.headers["x-farebox-cost-usd"] == first.headers["x-farebox-cost-usd"]
    assert again.parse() == first.parse()
    charged = float(str(gateway.record("account", "show", "twice")["charged_usd"]))
    assert charged == pytest.approx(float(first.headers["x-farebox-cost-usd"]), abs=1e-9)


def test_a_chat_stream_sent_twice(openai_client: OpenAI, keyed: dict[str, str]) -> None:
    chunks = []
    for _ in range(2):
        with openai_client.chat.completions.create(
            model="gemini-sandbox", messages=ASK, stream=True, extra_headers=keyed
        ) as stream:
            replayed = stream.response.headers.get("idempotent-replayed")
            chunks.append(list(stream))
    assert chunks[0] == chunks[1]
    assert replayed == "true"


def test_a_response_sent_twice_is_one_response(
    openai_client: OpenAI, keyed: dict[str, str]
) -> None:
    create = openai_client.responses.create
    first = create(model="chat-sandbox", input=QUESTION, extra_headers=keyed)
    again = create(model="chat-sandbox", input=QUESTION, extra_headers=keyed)
    assert again == first
    assert openai_client.responses.retrieve(first.id).output_text == first.output_text
    openai_client.responses.delete(first.id)
    with pytest.raises(openai.ConflictError, match=str(first._request_id)):
        create(model="chat-sandbox", input=QUESTION, extra_headers=keyed)


def test_a_message_sent_twice(anthropic_client: Anthropic, keyed: dict[str, str]) -> None:
    create = anthropic_client.messages.with_raw_response.create
    answers = [
        create(model="chat-sandbox", max_tokens=100, messages=MESSAGES, extra_headers=keyed)
        for _ in range(2)
    ]
    assert answers[0].parse() == answers[1].parse()
    assert [answer.headers.get("idempotent-replayed") for answer in answers] == [None, "true"]


def test_a_message_stream_sent_twice(anthropic_client: Anthropic, keyed: dict[str, str]) -> None:
    messages = []
    for _ in range(2):
        with anthropic_client.messages.stream(
            model="responses-sandbox", max_tokens=100, messages=MESSAGES, extra_headers=keyed
        ) as stream:
            replayed = stream.response.headers.get("idempotent-replayed")
            messages.append(stream.get_final_message())
    assert messages[0] == messages[1]
    assert replayed == "true"


def test_another_body_raises_what_the_packages_call_unprocessable(
    openai_client: OpenAI, anthropic_client: Anthropic, keyed: dict[str, str]
) -> None:
    openai_client.chat.completions.create(model="chat-sandbox", messages=ASK, extra_headers=keyed)
    with pytest.raises(openai.UnprocessableEntityError) as refused:
        openai_client.chat.completions.create(
            model="chat-sandbox", messages=ASK, user="x", extra_headers=keyed
        )
    assert refused.value.code == "idempotency_key_reused"
    with pytest.raises(anthropic.UnprocessableEntityError, match="idempotency_key_reused"):
        anthropic_client.messages.create(
            model="chat-sandbox", max_tokens=100, messages=MESSAGES, extra_headers=keyed
        )


def test_who_left_gets_the_whole_answer_later(openai_client: OpenAI, keyed: dict[str, str]) -> None:
    """The package hangs up after the first chunk; the answer is made to its end all the same."""
    create = openai_client.chat.completions.create
    with create(
        model="chat-sandbox-slow", messages=ASK, stream=True, extra_headers=keyed
    ) as stream:
        first = next(iter(stream))
    chunks: list[ChatCompletionChunk] = []
    refusals: list[openai.ConflictError] = []
    while not chunks and len(refusals) < TRIES:
        try:
            with create(
                model="chat-sandbox-slow", messages=ASK, stream=True, extra_headers=keyed
            ) as stream:
                assert stream.response.headers["idempotent-replayed"] == "true"
                chunks = list(stream)
        except openai.ConflictError as running:
            refusals.append(running)
            threading.Event().wait(PAUSE_SECONDS)
    assert {refused.code for refused in refusals} <= {"idempotency_key_in_use"}
    assert all(int(refused.response.headers["retry-after"]) >= 1 for refused in refusals)
    assert chunks[0] == first
    assert chunks[-1].choices[0].finish_reason == "stop"
