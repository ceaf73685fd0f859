"""The official `openai` package, Responses: its strict helpers and its stored answers, whatever
the provider speaks.
"""

from __future__ import annotations

import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from openai.types.responses import (
    FunctionToolParam,
    Response,
    ResponseInputItemParam,
    ResponseInputParam,
)

from tests.fakes.process import GatewayProcess
from tests.sdk.conftest import Named
from tests.sdk.shapes import ANSWER, PNG, QUESTION, SYSTEM, TOOLS, City

FUNCTIONS: list[FunctionToolParam] = [
    {
        "type": "function",
        "name": name,
        "description": name,
        "parameters": parameters,
        "strict": True,
    }
    for name, parameters in TOOLS.items()
]
RESULT = "rain, 7 degrees"


def asked() -> ResponseInputParam:
    return [{"type": "message", "role": "user", "content": QUESTION}]


def results(answer: Response) -> list[ResponseInputItemParam]:
    """What an agent answers the calls with."""
    return [
        {"type": "function_call_output", "call_id": item.call_id, "output": RESULT}
        for item in answer.output
        if item.type == "function_call"
    ]


def history(answer: Response) -> list[ResponseInputItemParam]:
    """The items of an answer as the next input, for clients that store nothing."""
    return list(answer.output)  # type: ignore[arg-type] # as OpenAI's own examples do


def test_a_response(openai_client: OpenAI, named: Named) -> None:
    answer = openai_client.responses.create(
        model=named("sandbox"), input=QUESTION, instructions=SYSTEM
    )
    assert answer.id.startswith("resp_")
    assert answer.model == named("sandbox")
    assert answer.status == "completed"
    assert answer.output_text.startswith(ANSWER)
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens
    assert answer.usage.output_tokens > 0


def test_the_stream_helper_gives_what_create_gives(openai_client: OpenAI, named: Named) -> None:
    model = named("sandbox")
    plain = openai_client.responses.create(model=model, input=QUESTION)
    with openai_client.responses.stream(model=model, input=QUESTION) as stream:
        events = list(stream)
        whole = stream.get_final_response()
    said = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(said) == whole.output_text == plain.output_text
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert whole.usage is not None
    assert plain.usage is not None
    assert whole.usage.output_tokens == plain.usage.output_tokens


def test_the_stream_helper_accumulates_parallel_calls(openai_client: OpenAI, named: Named) -> None:
    with openai_client.responses.stream(
        model=named("sandbox-parallel-tools"), input=QUESTION, tools=FUNCTIONS
    ) as stream:
        whole = stream.get_final_response()
    calls = [item for item in whole.output if item.type == "function_call"]
    assert [call.name for call in calls] == ["get_weather", "get_time"]
    parsed = [call.parsed_arguments for call in calls]
    assert [sorted(each) for each in parsed if isinstance(each, dict)] == [
        ["city", "days"],
        ["zone"],
    ]


def test_parse_gives_a_typed_answer(openai_client: OpenAI, named: Named) -> None:
    answer = openai_client.responses.parse(
        model=named("sandbox-json"), input=QUESTION, text_format=City
    )
    assert isinstance(answer.output_parsed, City)
    with openai_client.responses.stream(
        model=named("sandbox-json"), input=QUESTION, text_format=City
    ) as stream:
        assert stream.get_final_response().output_parsed == answer.output_parsed


@pytest.mark.parametrize("behaviour", ["sandbox-tools", "sandbox-reasoning-tools"])
def test_a_tool_round_trip_without_storage(
    openai_client: OpenAI, named: Named, behaviour: str
) -> None:
    model = named(behaviour)
    with openai_client.responses.stream(
        model=model,
        input=asked(),
        tools=FUNCTIONS,
        store=False,
        include=["reasoning.encrypted_content"],
        reasoning={"effort": "medium", "summary": "auto"},
    ) as stream:
        first = stream.get_final_response()
    thoughts = [item for item in first.output if item.type == "reasoning"]
    if "reasoning" in behaviour and named("") != "chat-":
        assert any(thought.encrypted_content for thought in thoughts)
    after = openai_client.responses.create(
        model=model,
        input=[*asked(), *history(first), *results(first)],
        tools=FUNCTIONS,
        store=False,
    )
    assert RESULT in after.output_text


def test_a_tool_round_trip_by_previous_response(openai_client: OpenAI, named: Named) -> None:
    model = named("sandbox-reasoning-tools")
    first = openai_client.responses.create(model=model, input=QUESTION, tools=FUNCTIONS)
    after = openai_client.responses.create(
        model=model, input=results(first), previous_response_id=first.id, tools=FUNCTIONS
    )
    assert RESULT in after.output_text
    assert after.previous_response_id == first.id
    last = openai_client.responses.create(
        model=model, input="And tomorrow?", previous_response_id=after.id, tools=FUNCTIONS
    )
    assert last.output


def test_a_stored_response_can_be_had_again_until_it_is_deleted(
    openai_client: OpenAI, named: Named
) -> None:
    with openai_client.responses.stream(model=named("sandbox"), input=QUESTION) as stream:
        made = stream.get_final_response()
    again = openai_client.responses.retrieve(made.id)
    assert again.output_text == made.output_text
    assert again.status == "completed"
    (item,) = openai_client.responses.input_items.list(made.id)
    assert item.type == "message"
    openai_client.responses.delete(made.id)
    with pytest.raises(openai.NotFoundError):
        openai_client.responses.retrieve(made.id)


def test_a_stored_response_is_its_projects_alone(
    gateway: GatewayProcess, openai_client: OpenAI
) -> None:
    made = openai_client.responses.create(model="messages-sandbox", input=QUESTION)
    other = gateway.new_key("another-project")
    with (
        OpenAI(base_url=f"{gateway.base_url}/v1", api_key=other, max_retries=0) as client,
        pytest.raises(openai.NotFoundError),
    ):
        client.responses.retrieve(made.id)


def test_nothing_is_stored_where_that_is_asked(openai_client: OpenAI, named: Named) -> None:
    made = openai_client.responses.create(model=named("sandbox"), input="Forget me.", store=False)
    with pytest.raises(openai.NotFoundError):
        openai_client.responses.retrieve(made.id)


def test_input_tokens_are_counted(openai_client: OpenAI, named: Named) -> None:
    counted = openai_client.responses.input_tokens.count(model=named("sandbox"), input=QUESTION)
    assert counted.object == "response.input_tokens"
    assert counted.input_tokens > 0


def test_a_free_form_tool_round_trip(openai_client: OpenAI, named: Named) -> None:
    model = named("sandbox-tools")
    with openai_client.responses.stream(
        model=model,
        input=asked(),
        tools=[{"type": "custom", "name": "apply_patch", "description": "Applies a patch."}],
        store=False,
    ) as stream:
        events = list(stream)
        first = stream.get_final_response()
    (call,) = (item for item in first.output if item.type == "custom_tool_call")
    assert call.name == "apply_patch"
    assert call.input
    assert not call.input.startswith("{")
    pieces = [
        event.delta for event in events if event.type == "response.custom_tool_call_input.delta"
    ]
    assert "".join(pieces) == call.input
    result: ResponseInputItemParam = {
        "type": "custom_tool_call_output",
        "call_id": call.call_id,
        "output": RESULT,
    }
    after = openai_client.responses.create(
        model=model, input=[*asked(), *history(first), result], store=False
    )
    assert RESULT in after.output_text


def test_an_answer_that_was_cut_by_its_cap(openai_client: OpenAI, named: Named) -> None:
    answer = openai_client.responses.create(
        model=named("sandbox-long"), input=QUESTION, max_output_tokens=20
    )
    assert answer.status == "incomplete"
    assert answer.incomplete_details is not None
    assert answer.incomplete_details.reason == "max_output_tokens"


def test_reasoning_comes_as_a_summary(openai_client: OpenAI, named: Named) -> None:
    with openai_client.responses.stream(
        model=named("sandbox-reasoning"),
        input=QUESTION,
        reasoning={"effort": "medium", "summary": "auto"},
    ) as stream:
        whole = stream.get_final_response()
    assert whole.output_text.startswith(ANSWER)
    assert whole.usage is not None
    assert whole.usage.output_tokens_details.reasoning_tokens > 0
    thoughts = [item for item in whole.output if item.type == "reasoning"]
    assert "1 2 3" in "".join(part.text for item in thoughts for part in item.summary)


def test_an_image_is_taken(openai_client: OpenAI, named: Named) -> None:
    answer = openai_client.responses.create(
        model=named("sandbox"),
        input=[
            {
                "role": "user",
                "content": [
                    {"type": "input_text", "text": QUESTION},
                    {
                        "type": "input_image",
                        "image_url": f"data:image/png;base64,{PNG}",
                        "detail": "auto",
                    },
                ],
            }
        ],
    )
    assert answer.output_text


async def test_the_async_client_works_on_trio(
    gateway: GatewayProcess, key: str, named: Named
) -> None:
    async with (
        AsyncOpenAI(base_url=f"{gateway.base_url}/v1", api_key=key) as client,
        client.responses.stream(model=named("sandbox"), input=QUESTION) as stream,
    ):
        whole = await stream.get_final_response()
    assert whole.output_text.startswith(ANSWER)
