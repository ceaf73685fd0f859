"""The official `openai` package, Chat Completions: nothing but its base URL and key differ, and
every provider answers alike.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

import pytest
from openai import AsyncOpenAI, OpenAI
from openai.types.chat import (
    ChatCompletion,
    ChatCompletionFunctionToolParam,
    ChatCompletionMessageParam,
)

from tests.fakes.process import GatewayProcess
from tests.sdk.conftest import Named
from tests.sdk.shapes import ANSWER, PNG, QUESTION, SYSTEM, TOOLS, City

ASK: list[ChatCompletionMessageParam] = [
    {"role": "system", "content": SYSTEM},
    {"role": "user", "content": QUESTION},
]
FUNCTIONS: list[ChatCompletionFunctionToolParam] = [
    {"type": "function", "function": {"name": name, "description": name, "parameters": parameters}}
    for name, parameters in TOOLS.items()
]
STRICT: list[ChatCompletionFunctionToolParam] = [
    {"type": "function", "function": {**tool["function"], "strict": True}} for tool in FUNCTIONS
]


def continued(answer: ChatCompletion) -> list[ChatCompletionMessageParam]:
    """The conversation as an agent goes on: what was answered comes back as it was."""
    message = answer.choices[0].message
    results: Iterable[ChatCompletionMessageParam] = (
        {"role": "tool", "tool_call_id": call.id, "content": "rain, 7 degrees"}
        for call in message.tool_calls or ()
    )
    parsed = {"tool_calls": {"__all__": {"function": {"parsed_arguments"}}}}
    back: ChatCompletionMessageParam = message.model_dump(exclude_none=True, exclude=parsed)  # type: ignore[assignment]
    return [*ASK, back, *results]


def test_a_chat_completion(openai_client: OpenAI, named: Named) -> None:
    answer = openai_client.chat.completions.create(model=named("sandbox"), messages=ASK)
    (choice,) = answer.choices
    assert answer.model == named("sandbox")
    assert (choice.message.content or "").startswith(ANSWER)
    assert choice.finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.usage.completion_tokens > 0


def test_the_answer_says_what_it_cost(openai_client: OpenAI, named: Named) -> None:
    raw = openai_client.chat.completions.with_raw_response.create(
        model=named("sandbox-cached"), messages=ASK
    )
    usage = raw.parse().usage
    assert usage is not None
    assert usage.prompt_tokens_details is not None
    cached = usage.prompt_tokens_details.cached_tokens or 0
    written = usage.prompt_tokens_details.cache_write_tokens or 0
    assert cached > 0
    rest = usage.prompt_tokens - cached - written
    cost = rest + 0.1 * cached + 1.25 * written + 4 * usage.completion_tokens
    assert float(raw.headers["x-farebox-cost-usd"]) == pytest.approx(1.1e-6 * cost, abs=2e-9)
    assert raw.headers["x-farebox-model"] == named("sandbox-cached")
    assert raw.request_id == raw.headers["x-request-id"]


def test_a_stream_has_no_usage_chunk_unless_asked(openai_client: OpenAI, named: Named) -> None:
    with openai_client.chat.completions.create(
        model=named("sandbox"), messages=ASK, stream=True
    ) as stream:
        chunks = list(stream)
    assert all(chunk.choices for chunk in chunks)
    assert all(chunk.usage is None for chunk in chunks)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks).startswith(ANSWER)


def test_a_stream_with_usage(openai_client: OpenAI, named: Named) -> None:
    with openai_client.chat.completions.create(
        model=named("sandbox"), messages=ASK, stream=True, stream_options={"include_usage": True}
    ) as stream:
        chunks = list(stream)
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.prompt_tokens > 0
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_the_stream_helper_gives_what_create_gives(openai_client: OpenAI, named: Named) -> None:
    plain = openai_client.chat.completions.create(model=named("sandbox"), messages=ASK)
    with openai_client.chat.completions.stream(model=named("sandbox"), messages=ASK) as stream:
        said = [event.delta for event in stream if event.type == "content.delta"]
        whole = stream.get_final_completion()
    assert "".join(said) == whole.choices[0].message.content == plain.choices[0].message.content
    assert whole.choices[0].finish_reason == "stop"


def test_the_stream_helper_accumulates_parallel_calls(openai_client: OpenAI, named: Named) -> None:
    with openai_client.chat.completions.stream(
        model=named("sandbox-parallel-tools"), messages=ASK, tools=STRICT
    ) as stream:
        done = [event for event in stream if event.type == "tool_calls.function.arguments.done"]
        whole = stream.get_final_completion()
    calls = whole.choices[0].message.tool_calls or []
    assert [call.function.name for call in calls] == ["get_weather", "get_time"]
    assert [event.index for event in done] == [0, 1]
    assert [sorted(json.loads(call.function.arguments)) for call in calls] == [
        ["city", "days"],
        ["zone"],
    ]
    assert len({call.id for call in calls}) == 2
    assert whole.choices[0].finish_reason == "tool_calls"


@pytest.mark.parametrize("behaviour", ["sandbox-tools", "sandbox-reasoning-tools"])
def test_a_tool_round_trip(openai_client: OpenAI, named: Named, behaviour: str) -> None:
    model = named(behaviour)
    answer = openai_client.chat.completions.create(model=model, messages=ASK, tools=FUNCTIONS)
    assert answer.choices[0].finish_reason == "tool_calls"
    messages = continued(answer)
    assert messages[-1]["role"] == "tool"
    after = openai_client.chat.completions.create(model=model, messages=messages, tools=FUNCTIONS)
    assert "rain, 7 degrees" in (after.choices[0].message.content or "")


def test_a_streamed_tool_round_trip(openai_client: OpenAI, named: Named) -> None:
    model = named("sandbox-reasoning-tools")
    with openai_client.chat.completions.stream(
        model=model, messages=ASK, tools=FUNCTIONS
    ) as stream:
        answer = stream.get_final_completion()
    after = openai_client.chat.completions.create(
        model=model, messages=continued(answer), tools=FUNCTIONS
    )
    assert "rain, 7 degrees" in (after.choices[0].message.content or "")


def test_a_free_form_tool_comes_back_as_text(openai_client: OpenAI, named: Named) -> None:
    answer = openai_client.chat.completions.create(
        model=named("sandbox-tools"),
        messages=ASK,
        tools=[{"type": "custom", "custom": {"name": "note", "description": "Keeps a note."}}],
    )
    (call,) = answer.choices[0].message.tool_calls or []
    assert call.type == "custom"
    assert call.custom.name == "note"
    assert call.custom.input
    assert not call.custom.input.startswith("{")


def test_a_tool_that_has_to_be_called(openai_client: OpenAI, named: Named) -> None:
    answer = openai_client.chat.completions.create(
        model=named("sandbox-tools"),
        messages=ASK,
        tools=FUNCTIONS,
        tool_choice={"type": "function", "function": {"name": "get_time"}},
    )
    (call,) = answer.choices[0].message.tool_calls or []
    assert call.type == "function"
    assert call.function.name == "get_time"


def test_parse_gives_a_typed_answer(openai_client: OpenAI, named: Named) -> None:
    answer = openai_client.chat.completions.parse(
        model=named("sandbox-json"), messages=ASK, response_format=City
    )
    assert isinstance(answer.choices[0].message.parsed, City)
    with openai_client.chat.completions.stream(
        model=named("sandbox-json"), messages=ASK, response_format=City
    ) as stream:
        streamed = stream.get_final_completion()
    assert streamed.choices[0].message.parsed == answer.choices[0].message.parsed


def test_reasoning_is_shown_where_that_is_asked(openai_client: OpenAI, named: Named) -> None:
    """OpenAI's own parameters cannot ask for it; OpenRouter's, which many clients send, can. A Chat
    provider shows it or does not, but takes no parameter for that."""
    asks = {} if named("") == "chat-" else {"reasoning": {"effort": "medium"}}
    with openai_client.chat.completions.stream(
        model=named("sandbox-reasoning"),
        messages=ASK,
        extra_body=asks,
    ) as stream:
        whole = stream.get_final_completion()
    message = whole.choices[0].message
    assert (message.content or "").startswith(ANSWER)
    assert whole.usage is None
    assert message.model_extra is not None
    assert str(message.model_extra.get("reasoning_content")).startswith("1 2 3")


def test_the_cap_and_the_stop_hold(openai_client: OpenAI, named: Named) -> None:
    short = openai_client.chat.completions.create(
        model=named("sandbox-long"), messages=ASK, max_completion_tokens=20
    )
    assert short.choices[0].finish_reason == "length"
    stopped = openai_client.chat.completions.create(
        model=named("sandbox-long"), messages=ASK, stop=[" 17"]
    )
    assert (stopped.choices[0].message.content or "").endswith("16")
    assert stopped.choices[0].finish_reason == "stop"


def test_refusals_and_filters_are_told(openai_client: OpenAI, named: Named) -> None:
    refused = openai_client.chat.completions.create(model=named("sandbox-refusal"), messages=ASK)
    (choice,) = refused.choices
    assert choice.message.refusal or choice.finish_reason == "content_filter"
    filtered = openai_client.chat.completions.create(model=named("sandbox-filtered"), messages=ASK)
    assert filtered.choices[0].finish_reason == "content_filter"


def test_an_image_is_taken(openai_client: OpenAI, named: Named) -> None:
    answer = openai_client.chat.completions.create(
        model=named("sandbox"),
        messages=[
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": QUESTION},
                    {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}},
                ],
            }
        ],
    )
    assert answer.choices[0].message.content


async def test_the_async_client_works_on_trio(
    gateway: GatewayProcess, key: str, named: Named
) -> None:
    model = named("sandbox")
    async with AsyncOpenAI(base_url=f"{gateway.base_url}/v1", api_key=key) as client:
        answer = await client.chat.completions.create(model=model, messages=ASK)
        assert answer.choices[0].message.content
        async with client.chat.completions.stream(model=model, messages=ASK) as stream:
            whole = await stream.get_final_completion()
        assert whole.choices[0].message.content == answer.choices[0].message.content
