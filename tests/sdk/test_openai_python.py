"""The official `openai` package against a real gateway: nothing but its base URL and key differ."""

from __future__ import annotations

from collections.abc import Iterator

import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from openai.types.chat import ChatCompletionMessageParam
from pydantic import BaseModel

from tests.fakes.process import GatewayProcess

ASK: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Hello, gateway!"}]


@pytest.fixture
def client(gateway: GatewayProcess, key: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{gateway.base_url}/v1", api_key=key, max_retries=0) as opened:
        yield opened


def test_a_chat_completion(client: OpenAI) -> None:
    answer = client.chat.completions.create(model="sandbox", messages=ASK)
    assert answer.model == "sandbox"
    assert answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.total_tokens > 0


def test_the_answer_says_what_it_cost(client: OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(model="sandbox", messages=ASK)
    assert float(raw.headers["x-farebox-cost-usd"]) > 0
    assert raw.headers["x-farebox-model"] == "sandbox"
    assert raw.request_id == raw.headers["x-request-id"]


def test_a_stream_has_no_usage_chunk_unless_asked(client: OpenAI) -> None:
    with client.chat.completions.create(model="sandbox", messages=ASK, stream=True) as stream:
        chunks = list(stream)
    assert all(chunk.choices for chunk in chunks)
    assert all(chunk.usage is None for chunk in chunks)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks)


def test_a_stream_with_usage(client: OpenAI) -> None:
    with client.chat.completions.create(
        model="sandbox", messages=ASK, stream=True, stream_options={"include_usage": True}
    ) as stream:
        chunks = list(stream)
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_the_stream_helper_accumulates(client: OpenAI) -> None:
    with client.chat.completions.stream(model="sandbox", messages=ASK) as stream:
        for _ in stream:
            pass
        whole = stream.get_final_completion()
    assert whole.choices[0].message.content


def test_tool_calls_survive(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model="sandbox-tools",
        messages=ASK,
        tools=[
            {
                "type": "function",
                "function": {
                    "name": "weather",
                    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
                },
            }
        ],
    )
    calls = answer.choices[0].message.tool_calls
    assert calls
    assert calls[0].type == "function"
    assert answer.choices[0].finish_reason == "tool_calls"


class City(BaseModel):  # type: ignore[explicit-any] # pydantic's own
    name: str
    population: int


def test_parse_gives_a_typed_answer(client: OpenAI) -> None:
    answer = client.chat.completions.parse(model="sandbox-json", messages=ASK, response_format=City)
    assert isinstance(answer.choices[0].message.parsed, City)


def test_embeddings(client: OpenAI) -> None:
    answer = client.embeddings.create(model="sandbox-embedding", input=["one", "two"])
    assert [entry.index for entry in answer.data] == [0, 1]
    assert all(isinstance(value, float) for value in answer.data[0].embedding)
    assert answer.usage.total_tokens > 0


def test_the_model_list_has_prices(client: OpenAI) -> None:
    models = {model.id: model for model in client.models.list()}
    assert "sandbox" in models
    assert models["sandbox"].model_extra is not None
    assert models["sandbox"].model_extra["pricing"]["input"]
    assert client.models.retrieve("sandbox").id == "sandbox"


@pytest.mark.parametrize(
    ("model", "error"),
    [
        ("sandbox-error-400", openai.BadRequestError),
        ("sandbox-context-overflow", openai.BadRequestError),
        ("no-such-model", openai.NotFoundError),
        ("sandbox-error-429", openai.InternalServerError),
        ("sandbox-error-500", openai.InternalServerError),
        ("sandbox-error-503", openai.InternalServerError),
        ("sandbox-error-401", openai.InternalServerError),
    ],
)
def test_upstream_errors_raise_the_right_class(
    client: OpenAI, model: str, error: type[openai.APIStatusError]
) -> None:
    with pytest.raises(error) as raised:
        client.chat.completions.create(model=model, messages=ASK)
    assert raised.value.request_id
    assert raised.value.type == "farebox_error"


def test_context_overflow_has_the_code_that_clients_know(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        client.chat.completions.create(model="sandbox-context-overflow", messages=ASK)
    assert raised.value.code == "context_length_exceeded"


def test_400_names_the_field(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        client.chat.completions.create(model="sandbox", messages=ASK, max_tokens=-1)
    assert raised.value.param == "max_tokens"


def test_401(gateway: GatewayProcess) -> None:
    with (
        OpenAI(
            base_url=f"{gateway.base_url}/v1", api_key="sk_farebox_wrong", max_retries=0
        ) as client,
        pytest.raises(openai.AuthenticationError) as raised,
    ):
        client.models.list()
    assert raised.value.code == "invalid_api_key"


def test_402_says_what_would_fit(gateway: GatewayProcess) -> None:
    poor = gateway.new_key("poor", "0.000001")
    with (  # retries stay on: a 402 must not be retried
        OpenAI(base_url=f"{gateway.base_url}/v1", api_key=poor) as client,
        pytest.raises(openai.APIStatusError) as raised,
    ):
        client.chat.completions.create(model="sandbox", messages=ASK)
    assert raised.value.status_code == 402
    assert raised.value.type == "insufficient_prepaid_balance"
    assert raised.value.code == "insufficient_credit"
    assert isinstance(raised.value.body, dict)
    assert raised.value.body["balance_usd"] == 0.000001
    assert raised.value.response.headers["x-should-retry"] == "false"


def test_413(client: OpenAI) -> None:
    with pytest.raises(openai.APIStatusError) as raised:
        client.chat.completions.create(
            model="sandbox", messages=[{"role": "user", "content": "x" * 300_000}]
        )
    assert raised.value.status_code == 413


def test_429_after_the_limit(gateway: GatewayProcess) -> None:
    slow = gateway.new_key("slow", "10.00", "--tier", "slow")
    with OpenAI(base_url=f"{gateway.base_url}/v1", api_key=slow, max_retries=0) as client:
        client.chat.completions.create(model="sandbox", messages=ASK)
        with pytest.raises(openai.RateLimitError) as raised:
            client.chat.completions.create(model="sandbox", messages=ASK)
    assert raised.value.code == "rate_limit_exceeded"
    assert int(raised.value.response.headers["retry-after"]) >= 1


@pytest.mark.parametrize("model", ["sandbox-cut-40", "sandbox-error-in-stream"])
def test_a_broken_stream_raises(client: OpenAI, model: str) -> None:
    def read() -> None:
        with client.chat.completions.create(model=model, messages=ASK, stream=True) as stream:
            for _ in stream:
                pass

    with pytest.raises(openai.APIError):
        read()


async def test_the_async_client_works_on_trio(gateway: GatewayProcess, key: str) -> None:
    async with AsyncOpenAI(base_url=f"{gateway.base_url}/v1", api_key=key) as client:
        answer = await client.chat.completions.create(model="sandbox", messages=ASK)
        assert answer.choices[0].message.content
        stream = await client.chat.completions.create(model="sandbox", messages=ASK, stream=True)
        said = [chunk.choices[0].delta.content or "" async for chunk in stream]
        assert "".join(said)
        found = [model.id async for model in client.models.list()]
        assert "sandbox" in found
