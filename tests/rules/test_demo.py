"""Conversations with a real model behind the gateway, through every surface: real tokens, streamed,
counted and billed as the model's server counts them.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import pytest
from anthropic import Anthropic
from anthropic.types import Message, MessageParam
from google.genai import Client, types
from openai import OpenAI
from openai.types.chat import ChatCompletionMessageParam

from tests.fakes.process import LOOPBACK, GatewayProcess, serving

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("xllamacpp") is None, reason="the demo's model is not installed"
)

MODEL = "smollm2-135m-instruct"
FIRST = "What is the capital of France? Answer in one word."
SECOND = "Now tell me a long story about Italy."
CAP = 16
SHAPED_CAP = 48
PLACE: dict[str, object] = {
    "type": "object",
    "properties": {"city": {"type": "string", "enum": ["Bergen", "Oslo", "Rome"]}},
    "required": ["city"],
    "additionalProperties": False,
}

Counted = tuple[int, int]
"""Tokens of the prompt and of the answer, as a client was told."""


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    """`make demo`."""
    directory: Path = tmp_path_factory.mktemp("demo")
    with serving(directory, LOOPBACK, "--demo") as process:
        yield process


@pytest.fixture
def openai_client(gateway: GatewayProcess) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{gateway.base_url}/v1", api_key=gateway.key, max_retries=0) as client:
        yield client


@pytest.fixture
def anthropic_client(gateway: GatewayProcess) -> Iterator[Anthropic]:
    with Anthropic(base_url=gateway.base_url, api_key=gateway.key, max_retries=0) as client:
        yield client


@pytest.fixture
def gemini_client(gateway: GatewayProcess) -> Iterator[Client]:
    options = types.HttpOptions(base_url=gateway.base_url)
    with Client(api_key=gateway.key, http_options=options) as client:
        yield client


def billed(gateway: GatewayProcess, *counted: Counted) -> None:
    """The last requests were charged for what their clients were told, and the books add up."""
    records = gateway.records("usage", "export", "demo", "--format", "jsonl")
    last = sorted(records, key=lambda record: str(record["time"]))[-len(counted) :]
    assert [record["billing_status"] for record in last] == ["charged"] * len(counted)
    assert [(record["input_tokens"], record["output_tokens"]) for record in last] == list(counted)
    charged = sum(Decimal(str(record["charge_usd"])) for record in records)
    account = gateway.record("account", "show", "demo")
    assert Decimal(str(account["charged_usd"])) == charged
    assert charged > 0


def test_chat(gateway: GatewayProcess, openai_client: OpenAI) -> None:
    assert MODEL in [model.id for model in openai_client.models.list()]
    talk: list[ChatCompletionMessageParam] = [{"role": "user", "content": FIRST}]
    first = openai_client.chat.completions.create(model=MODEL, messages=talk, max_tokens=CAP)
    said = first.choices[0].message.content
    assert said
    talk += [{"role": "assistant", "content": said}, {"role": "user", "content": SECOND}]
    with openai_client.chat.completions.create(
        model=MODEL,
        messages=talk,
        max_tokens=CAP,
        stream=True,
        stream_options={"include_usage": True},
    ) as stream:
        *chunks, last = list(stream)
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks]
    assert len(pieces) > 1
    assert "".join(pieces)
    assert first.usage is not None
    assert last.usage is not None
    billed(
        gateway,
        (first.usage.prompt_tokens, first.usage.completion_tokens),
        (last.usage.prompt_tokens, last.usage.completion_tokens),
    )


def test_responses(gateway: GatewayProcess, openai_client: OpenAI) -> None:
    first = openai_client.responses.create(model=MODEL, input=FIRST, max_output_tokens=CAP)
    assert first.output_text
    with openai_client.responses.stream(
        model=MODEL, input=SECOND, previous_response_id=first.id, max_output_tokens=CAP
    ) as stream:
        events = list(stream)
    pieces = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert len(pieces) > 1
    last = events[-1]
    assert last.type in ("response.completed", "response.incomplete")  # a small model may go on
    assert "".join(pieces) == last.response.output_text
    assert first.usage is not None
    assert last.response.usage is not None
    assert last.response.usage.input_tokens > first.usage.input_tokens
    billed(
        gateway,
        (first.usage.input_tokens, first.usage.output_tokens),
        (last.response.usage.input_tokens, last.response.usage.output_tokens),
    )


def test_messages(gateway: GatewayProcess, anthropic_client: Anthropic) -> None:
    talk: list[MessageParam] = [{"role": "user", "content": FIRST}]
    first = anthropic_client.messages.create(model=MODEL, messages=talk, max_tokens=CAP)
    talk += [
        {"role": "assistant", "content": first.content},
        {"role": "user", "content": SECOND},
    ]
    with anthropic_client.messages.stream(model=MODEL, messages=talk, max_tokens=CAP) as stream:
        pieces = list(stream.text_stream)
        whole = stream.get_final_message()
    assert len(pieces) > 1
    assert whole.stop_reason in ("end_turn", "max_tokens")
    billed(gateway, _anthropic_count(first), _anthropic_count(whole))


def _anthropic_count(message: Message) -> Counted:
    usage = message.usage
    cached = (usage.cache_read_input_tokens or 0) + (usage.cache_creation_input_tokens or 0)
    return usage.input_tokens + cached, usage.output_tokens


def test_gemini(gateway: GatewayProcess, gemini_client: Client) -> None:
    chat = gemini_client.chats.create(
        model=MODEL, config=types.GenerateContentConfig(max_output_tokens=CAP)
    )
    first = chat.send_message(FIRST)
    assert first.text
    chunks = list(chat.send_message_stream(SECOND))
    assert len(chunks) > 1
    assert "".join(chunk.text or "" for chunk in chunks)
    billed(gateway, _gemini_count(first), _gemini_count(chunks[-1]))


def _gemini_count(answer: types.GenerateContentResponse) -> Counted:
    usage = answer.usage_metadata
    assert usage is not None
    return usage.prompt_token_count or 0, usage.candidates_token_count or 0


def test_a_shape_is_kept_from_every_surface(
    openai_client: OpenAI, anthropic_client: Anthropic, gemini_client: Client
) -> None:
    """The model is too small to call tools, but its server holds it to a schema, which has to
    arrive there for that."""
    text = "Which city is the capital of Norway?"
    chat = openai_client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": text}],
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "place", "schema": PLACE, "strict": True},
        },
        max_tokens=SHAPED_CAP,
    )
    response = openai_client.responses.create(
        model=MODEL,
        input=text,
        text={"format": {"type": "json_schema", "name": "place", "schema": PLACE, "strict": True}},
        max_output_tokens=SHAPED_CAP,
    )
    message = anthropic_client.messages.create(
        model=MODEL,
        messages=[{"role": "user", "content": text}],
        output_config={"format": {"type": "json_schema", "schema": PLACE}},
        max_tokens=SHAPED_CAP,
    )
    content = gemini_client.models.generate_content(
        model=MODEL,
        contents=text,
        config=types.GenerateContentConfig(
            response_mime_type="application/json",
            response_json_schema=PLACE,
            max_output_tokens=SHAPED_CAP,
        ),
    )
    (block,) = message.content
    assert block.type == "text"
    for said in (
        chat.choices[0].message.content,
        response.output_text,
        block.text,
        content.text,
    ):
        assert json.loads(said or "")["city"] in ("Bergen", "Oslo", "Rome")


def test_the_books_are_in_order_afterwards(gateway: GatewayProcess) -> None:
    assert gateway.stop() == 0
    gateway.run("ledger", "verify")
    gateway.start()
