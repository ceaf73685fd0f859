"""The official `anthropic` package: Claude's tools, thinking and shapes from every provider."""

from __future__ import annotations

import pytest
from anthropic import Anthropic, AsyncAnthropic, beta_tool
from anthropic.types import Message, MessageParam, TextBlock, ToolParam, ToolResultBlockParam

from tests.fakes.process import GatewayProcess
from tests.sdk.conftest import Named
from tests.sdk.shapes import ANSWER, PNG, QUESTION, SYSTEM, TOOLS, City

ASK: list[MessageParam] = [{"role": "user", "content": QUESTION}]
FUNCTIONS: list[ToolParam] = [
    {"name": name, "description": name, "input_schema": schema} for name, schema in TOOLS.items()
]
RESULT = "rain, 7 degrees"


def text_of(message: Message) -> str:
    return "".join(block.text for block in message.content if isinstance(block, TextBlock))


def continued(message: Message) -> list[MessageParam]:
    """The conversation as an agent goes on: the blocks come back as they were, signatures too."""
    results: list[ToolResultBlockParam] = [
        {"type": "tool_result", "tool_use_id": block.id, "content": RESULT}
        for block in message.content
        if block.type == "tool_use"
    ]
    return [
        *ASK,
        {"role": "assistant", "content": message.content},
        {"role": "user", "content": results},
    ]


def test_a_message(anthropic_client: Anthropic, named: Named) -> None:
    message = anthropic_client.messages.create(
        model=named("sandbox"), max_tokens=1000, system=SYSTEM, messages=ASK
    )
    assert message.id.startswith("msg_")
    assert message.model == named("sandbox")
    assert message.stop_reason == "end_turn"
    assert text_of(message).startswith(ANSWER)
    assert message.usage.input_tokens > 0
    assert message.usage.output_tokens > 0
    assert message._request_id


def test_the_stream_helper_gives_what_create_gives(
    anthropic_client: Anthropic, named: Named
) -> None:
    model = named("sandbox")
    plain = anthropic_client.messages.create(model=model, max_tokens=1000, messages=ASK)
    with anthropic_client.messages.stream(model=model, max_tokens=1000, messages=ASK) as stream:
        said = list(stream.text_stream)
        whole = stream.get_final_message()
    assert len(said) > 1
    assert "".join(said) == text_of(whole) == text_of(plain)
    assert whole.stop_reason == "end_turn"
    assert whole.usage.input_tokens == plain.usage.input_tokens
    assert whole.usage.output_tokens == plain.usage.output_tokens


def test_cached_tokens_are_told_apart(anthropic_client: Anthropic, named: Named) -> None:
    with anthropic_client.messages.stream(
        model=named("sandbox-cached"), max_tokens=1000, messages=ASK
    ) as stream:
        usage = stream.get_final_message().usage
    assert usage.cache_read_input_tokens
    assert usage.input_tokens > 0


def test_the_stream_helper_accumulates_parallel_calls(
    anthropic_client: Anthropic, named: Named
) -> None:
    with anthropic_client.messages.stream(
        model=named("sandbox-parallel-tools"), max_tokens=1000, messages=ASK, tools=FUNCTIONS
    ) as stream:
        whole = stream.get_final_message()
    calls = [block for block in whole.content if block.type == "tool_use"]
    assert [call.name for call in calls] == ["get_weather", "get_time"]
    assert [sorted(call.input) for call in calls] == [["city", "days"], ["zone"]]
    assert len({call.id for call in calls}) == 2
    assert whole.stop_reason == "tool_use"
    assert [block.type for block in whole.content] == ["tool_use", "tool_use"]


@pytest.mark.parametrize("behaviour", ["sandbox-tools", "sandbox-reasoning-tools"])
def test_a_tool_round_trip(anthropic_client: Anthropic, named: Named, behaviour: str) -> None:
    model = named(behaviour)
    first = anthropic_client.messages.create(
        model=model, max_tokens=1000, messages=ASK, tools=FUNCTIONS
    )
    assert first.stop_reason == "tool_use"
    after = anthropic_client.messages.create(
        model=model, max_tokens=1000, messages=continued(first), tools=FUNCTIONS
    )
    assert RESULT in text_of(after)


def test_a_thinking_round_trip(anthropic_client: Anthropic, named: Named) -> None:
    model = named("sandbox-reasoning-tools")
    with anthropic_client.messages.stream(
        model=model,
        max_tokens=4000,
        messages=ASK,
        tools=FUNCTIONS,
        thinking={"type": "adaptive", "display": "summarized"},
    ) as stream:
        thought = "".join(event.thinking for event in stream if event.type == "thinking")
        first = stream.get_final_message()
    assert thought.startswith("1 2 3")
    assert first.content[0].type == "thinking"
    if named("") != "chat-":  # the only protocol without signatures
        assert any(block.signature for block in first.content if block.type == "thinking")
    after = anthropic_client.messages.create(
        model=model,
        max_tokens=4000,
        messages=continued(first),
        tools=FUNCTIONS,
        thinking={"type": "adaptive", "display": "summarized"},
    )
    assert RESULT in text_of(after)


def test_the_tool_runner_comes_to_an_end(anthropic_client: Anthropic, named: Named) -> None:
    asked_for: list[str] = []

    @beta_tool
    def get_weather(city: str) -> str:
        """The weather.

        Args:
            city: where
        """
        asked_for.append(city)
        return RESULT

    runner = anthropic_client.beta.messages.tool_runner(
        model=named("sandbox-tools"),
        max_tokens=1000,
        tools=[get_weather],
        messages=[{"role": "user", "content": QUESTION}],
    )
    last = runner.until_done()
    assert len(asked_for) == 1
    assert RESULT in "".join(block.text for block in last.content if block.type == "text")


def test_parse_gives_a_typed_answer(anthropic_client: Anthropic, named: Named) -> None:
    message = anthropic_client.messages.parse(
        model=named("sandbox-json"), max_tokens=1000, messages=ASK, output_format=City
    )
    assert isinstance(message.parsed_output, City)
    with anthropic_client.messages.stream(
        model=named("sandbox-json"), max_tokens=1000, messages=ASK, output_format=City
    ) as stream:
        assert stream.get_final_message().parsed_output == message.parsed_output


def test_tokens_are_counted(anthropic_client: Anthropic, named: Named) -> None:
    counted = anthropic_client.messages.count_tokens(
        model=named("sandbox"), messages=ASK, system=SYSTEM, tools=FUNCTIONS
    )
    assert counted.input_tokens > 0


def test_the_cap_and_the_stop_hold(anthropic_client: Anthropic, named: Named) -> None:
    short = anthropic_client.messages.create(
        model=named("sandbox-long"), max_tokens=20, messages=ASK
    )
    assert short.stop_reason == "max_tokens"
    stopped = anthropic_client.messages.create(
        model=named("sandbox-long"), max_tokens=1000, messages=ASK, stop_sequences=[" 17"]
    )
    assert text_of(stopped).endswith("16")
    assert stopped.stop_reason in ("stop_sequence", "end_turn")


def test_a_refusal_is_told(anthropic_client: Anthropic, named: Named) -> None:
    message = anthropic_client.messages.create(
        model=named("sandbox-refusal"), max_tokens=1000, messages=ASK
    )
    assert message.stop_reason == "refusal"


def test_images_and_cache_marks_are_taken(anthropic_client: Anthropic, named: Named) -> None:
    message = anthropic_client.messages.create(
        model=named("sandbox"),
        max_tokens=1000,
        system=[{"type": "text", "text": SYSTEM, "cache_control": {"type": "ephemeral"}}],
        messages=[
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": QUESTION},
                    {
                        "type": "image",
                        "source": {"type": "base64", "media_type": "image/png", "data": PNG},
                    },
                ],
            }
        ],
    )
    assert text_of(message)


def test_the_surface_has_a_folder_of_its_own(gateway: GatewayProcess, key: str) -> None:
    with Anthropic(base_url=f"{gateway.base_url}/anthropic", api_key=key) as client:
        assert client.messages.create(model="gemini-sandbox", max_tokens=100, messages=ASK).content


async def test_the_async_client_works_on_trio(
    gateway: GatewayProcess, key: str, named: Named
) -> None:
    async with (
        AsyncAnthropic(base_url=gateway.base_url, api_key=key) as client,
        client.messages.stream(model=named("sandbox"), max_tokens=1000, messages=ASK) as stream,
    ):
        whole = await stream.get_final_message()
    assert text_of(whole).startswith(ANSWER)
