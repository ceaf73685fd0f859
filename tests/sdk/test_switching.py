"""A conversation goes on at another model: the first thinks and calls tools, the next one gets the
results and the question after, whoever signed the thoughts, and then the first one goes on again.
"""

from __future__ import annotations

from itertools import permutations

import pytest
from anthropic import Anthropic
from anthropic.types import MessageParam, ToolParam, ToolResultBlockParam
from google.genai import Client, types
from openai import OpenAI
from openai.types.chat import ChatCompletionFunctionToolParam, ChatCompletionMessageParam
from openai.types.responses import FunctionToolParam, ResponseInputParam

from tests.fakes.process import SPEAKERS
from tests.sdk.shapes import QUESTION, TOOLS

RESULT = "rain, 7 degrees"
MORE = "And tomorrow?"

Turns = tuple[str, str, str]


def models(first: str, second: str) -> Turns:
    """Who thinks and calls, who gets the results, and who gets the next question."""
    return tuple(f"{name}-sandbox-reasoning-tools" for name in (first, second, first))  # type: ignore[return-value]


pytestmark = pytest.mark.parametrize(
    "turns",
    [models(first.name, second.name) for first, second in permutations(SPEAKERS, 2)],
    ids=["-".join((first.name, second.name)) for first, second in permutations(SPEAKERS, 2)],
)


def test_chat(openai_client: OpenAI, turns: Turns) -> None:
    tools: list[ChatCompletionFunctionToolParam] = [
        {"type": "function", "function": {"name": name, "parameters": schema}}
        for name, schema in TOOLS.items()
    ]
    talk: list[ChatCompletionMessageParam] = [{"role": "user", "content": QUESTION}]
    for model in turns:
        answer = openai_client.chat.completions.create(model=model, messages=talk, tools=tools)
        message = answer.choices[0].message
        talk.append(message.model_dump(exclude_none=True))  # type: ignore[arg-type]
        if message.tool_calls:
            talk += [
                {"role": "tool", "tool_call_id": call.id, "content": RESULT}
                for call in message.tool_calls
            ]
        else:
            assert RESULT in (message.content or "")
            talk.append({"role": "user", "content": MORE})
    assert [turn["role"] for turn in talk] == [
        *("user", "assistant", "tool", "tool"),
        *("assistant", "user"),
        *("assistant", "tool", "tool"),
    ]


def test_responses(openai_client: OpenAI, turns: Turns) -> None:
    tools: list[FunctionToolParam] = [
        {"type": "function", "name": name, "parameters": schema, "strict": True}
        for name, schema in TOOLS.items()
    ]
    talk: ResponseInputParam = [{"role": "user", "content": QUESTION}]
    calls = []
    for model in turns:
        answer = openai_client.responses.create(
            model=model,
            input=talk,
            tools=tools,
            reasoning={"effort": "medium", "summary": "auto"},
            include=["reasoning.encrypted_content"],
            store=False,
        )
        talk += list(answer.output)  # type: ignore[arg-type] # as OpenAI's own examples do
        called = [item for item in answer.output if item.type == "function_call"]
        calls.append(len(called))
        if called:
            talk += [
                {"type": "function_call_output", "call_id": call.call_id, "output": RESULT}
                for call in called
            ]
        else:
            assert RESULT in answer.output_text
            talk.append({"role": "user", "content": MORE})
    assert calls == [2, 0, 2]


def test_stored_responses(openai_client: OpenAI, turns: Turns) -> None:
    tools: list[FunctionToolParam] = [
        {"type": "function", "name": name, "parameters": schema, "strict": True}
        for name, schema in TOOLS.items()
    ]
    first, second, third = turns
    asked = openai_client.responses.create(model=first, input=QUESTION, tools=tools)
    results: ResponseInputParam = [
        {"type": "function_call_output", "call_id": item.call_id, "output": RESULT}
        for item in asked.output
        if item.type == "function_call"
    ]
    told = openai_client.responses.create(
        model=second, input=results, previous_response_id=asked.id, tools=tools
    )
    assert RESULT in told.output_text
    again = openai_client.responses.create(
        model=third, input=MORE, previous_response_id=told.id, tools=tools
    )
    assert [item.type for item in again.output if item.type == "function_call"]


def test_messages(anthropic_client: Anthropic, turns: Turns) -> None:
    tools: list[ToolParam] = [
        {"name": name, "input_schema": schema} for name, schema in TOOLS.items()
    ]
    talk: list[MessageParam] = [{"role": "user", "content": QUESTION}]
    calls = []
    for model in turns:
        with anthropic_client.messages.stream(
            model=model,
            max_tokens=4000,
            messages=talk,
            tools=tools,
            thinking={"type": "adaptive", "display": "summarized"},
        ) as stream:
            message = stream.get_final_message()
        talk.append({"role": "assistant", "content": message.content})
        results: list[ToolResultBlockParam] = [
            {"type": "tool_result", "tool_use_id": block.id, "content": RESULT}
            for block in message.content
            if block.type == "tool_use"
        ]
        calls.append(len(results))
        if not results:
            said = "".join(block.text for block in message.content if block.type == "text")
            assert RESULT in said
        talk.append({"role": "user", "content": results or MORE})
    assert calls == [2, 0, 2]


def test_gemini(gemini_client: Client, turns: Turns) -> None:
    config = types.GenerateContentConfig(
        tools=[
            types.Tool(
                function_declarations=[
                    types.FunctionDeclaration(
                        name=name, description=name, parameters_json_schema=schema
                    )
                    for name, schema in TOOLS.items()
                ]
            )
        ],
        automatic_function_calling=types.AutomaticFunctionCallingConfig(disable=True),
        thinking_config=types.ThinkingConfig(include_thoughts=True),
    )
    talk = [types.Content(role="user", parts=[types.Part(text=QUESTION)])]
    calls = []
    for model in turns:
        answer = gemini_client.models.generate_content(model=model, contents=[*talk], config=config)
        assert answer.candidates
        assert answer.candidates[0].content
        talk.append(answer.candidates[0].content)
        results = [
            types.Part.from_function_response(name=call.name or "", response={"result": RESULT})
            for call in answer.function_calls or ()
        ]
        calls.append(len(results))
        if not results:
            assert RESULT in (answer.text or "")
        talk.append(types.Content(role="user", parts=results or [types.Part(text=MORE)]))
    assert calls == [2, 0, 2]
