"""What model families take differs: sampling, ways to think, forced tools, signatures.

A client that knows nothing of it makes a tool round trip on each: thinking, warm, forced to call
or free to. Where it speaks the provider's own protocol it asks for what that family takes.
"""

from __future__ import annotations

import pytest
from anthropic import Anthropic
from anthropic.types import (
    MessageParam,
    ThinkingConfigParam,
    ToolChoiceParam,
    ToolParam,
    ToolResultBlockParam,
)
from google.genai import Client, types
from openai import OpenAI
from openai.types.chat import ChatCompletionFunctionToolParam, ChatCompletionMessageParam
from openai.types.responses import FunctionToolParam, ResponseInputParam

from tests.sdk.conftest import FAMILIES
from tests.sdk.shapes import QUESTION, TOOLS

RESULT = "rain, 7 degrees"

pytestmark = pytest.mark.parametrize("model", FAMILIES)
forced = pytest.mark.parametrize("must_call", [True, False], ids=["forced", "free"])


@forced
def test_chat(openai_client: OpenAI, model: str, must_call: bool) -> None:
    tools: list[ChatCompletionFunctionToolParam] = [
        {"type": "function", "function": {"name": name, "parameters": schema}}
        for name, schema in TOOLS.items()
    ]
    talk: list[ChatCompletionMessageParam] = [{"role": "user", "content": QUESTION}]
    passes = FAMILIES[model] == "chat"  # what its own provider refuses, it refuses here
    first = openai_client.chat.completions.create(
        model=model,
        messages=talk,
        tools=tools,
        tool_choice="required" if must_call else "auto",
        max_completion_tokens=3000,
        extra_body={} if passes else {"reasoning_effort": "high", "temperature": 0.5},
    )
    message = first.choices[0].message
    talk.append(message.model_dump(exclude_none=True))  # type: ignore[arg-type]
    talk += [
        {"role": "tool", "tool_call_id": call.id, "content": RESULT}
        for call in message.tool_calls or ()
    ]
    after = openai_client.chat.completions.create(
        model=model,
        messages=talk,
        tools=tools,
        max_completion_tokens=3000,
        extra_body={} if passes else {"reasoning_effort": "high", "temperature": 0.5},
    )
    assert RESULT in (after.choices[0].message.content or "")


@forced
def test_responses(openai_client: OpenAI, model: str, must_call: bool) -> None:
    tools: list[FunctionToolParam] = [
        {"type": "function", "name": name, "parameters": schema, "strict": True}
        for name, schema in TOOLS.items()
    ]
    thinks = model.startswith(("claude", "gemini", "gpt-5"))
    talk: ResponseInputParam = [{"role": "user", "content": QUESTION}]
    first = openai_client.responses.create(
        model=model,
        input=talk,
        tools=tools,
        tool_choice="required" if must_call else "auto",
        reasoning={"effort": "high", "summary": "auto"} if thinks else {},
        include=["reasoning.encrypted_content"] if thinks else [],
        max_output_tokens=3000,
        store=False,
    )
    talk += list(first.output)  # type: ignore[arg-type] # as OpenAI's own examples do
    talk += [
        {"type": "function_call_output", "call_id": item.call_id, "output": RESULT}
        for item in first.output
        if item.type == "function_call"
    ]
    after = openai_client.responses.create(
        model=model,
        input=talk,
        tools=tools,
        reasoning={"effort": "high", "summary": "auto"} if thinks else {},
        max_output_tokens=3000,
        store=False,
    )
    assert RESULT in after.output_text


@forced
def test_messages(anthropic_client: Anthropic, model: str, must_call: bool) -> None:
    tools: list[ToolParam] = [
        {"name": name, "input_schema": schema} for name, schema in TOOLS.items()
    ]
    manual = model.startswith(("claude-opus-4-1", "claude-sonnet-4-5"))
    thinking: ThinkingConfigParam = {"type": "adaptive"}
    choice: ToolChoiceParam = {"type": "any"} if must_call else {"type": "auto"}
    if manual:  # these take no other thinking, and no forced call with it
        thinking = {"type": "enabled", "budget_tokens": 2000}
        choice = {"type": "auto"}
    talk: list[MessageParam] = [{"role": "user", "content": QUESTION}]
    first = anthropic_client.messages.create(
        model=model,
        max_tokens=3000,
        messages=talk,
        tools=tools,
        tool_choice=choice,
        thinking=thinking,
    )
    results: list[ToolResultBlockParam] = [
        {"type": "tool_result", "tool_use_id": block.id, "content": RESULT}
        for block in first.content
        if block.type == "tool_use"
    ]
    talk += [
        {"role": "assistant", "content": first.content},
        {"role": "user", "content": results},
    ]
    after = anthropic_client.messages.create(
        model=model,
        max_tokens=3000,
        messages=talk,
        tools=tools,
        thinking=thinking,
    )
    assert RESULT in "".join(block.text for block in after.content if block.type == "text")


@forced
def test_gemini(gemini_client: Client, model: str, must_call: bool) -> None:
    mode = types.FunctionCallingConfigMode
    older = model.startswith("gemini-2.0")  # no JSON Schema, no thinking
    declared = [
        types.FunctionDeclaration(name=name, description=name)
        if older
        else types.FunctionDeclaration(name=name, description=name, parameters_json_schema=schema)
        for name, schema in TOOLS.items()
    ]

    def config(choice: types.FunctionCallingConfigMode) -> types.GenerateContentConfig:
        return types.GenerateContentConfig(
            tools=[types.Tool(function_declarations=declared)],
            tool_config=types.ToolConfig(
                function_calling_config=types.FunctionCallingConfig(mode=choice)
            ),
            automatic_function_calling=types.AutomaticFunctionCallingConfig(disable=True),
            thinking_config=None
            if older
            else types.ThinkingConfig(include_thoughts=True, thinking_budget=2000),
            temperature=0.5,
            max_output_tokens=3000,
        )

    chat = gemini_client.chats.create(model=model)
    first = chat.send_message(QUESTION, config(mode.ANY if must_call else mode.AUTO))
    results = [
        types.Part.from_function_response(name=call.name or "", response={"result": RESULT})
        for call in first.function_calls or ()
    ]
    assert len(results) == len(TOOLS)
    after = chat.send_message([*results], config(mode.AUTO))
    assert RESULT in (after.text or "")
