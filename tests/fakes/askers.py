"""The same request as a client of each protocol writes it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace

from adapters.catalogue import Protocol

Json = dict[str, object]

PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk" + (
    "+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
WEATHER: Json = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
CLOCK: Json = {
    "type": "object",
    "properties": {"zone": {"type": "string"}},
    "required": ["zone"],
    "additionalProperties": False,
}
PERSON: Json = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


@dataclass(frozen=True)
class Ask:
    """What is asked. `result` answers a call of `get_weather` made in an earlier turn."""

    model: str
    text: str = "What is the weather like in Oslo?"
    stream: bool = False
    tools: Mapping[str, Json] | None = None
    schema: Json | None = None
    cap: int = 1000
    image: bool = False
    thinking: bool = False
    result: str = ""

    def streamed(self) -> Ask:
        """The same, streamed."""
        return replace(self, stream=True)


def body_of(surface: Protocol, ask: Ask) -> tuple[str, bytes]:
    """(path with query, body)."""
    path, body = _WRITERS[surface](ask)
    return path, json.dumps(body).encode()


def _chat(ask: Ask) -> tuple[str, Json]:
    content: object = ask.text
    if ask.image:
        content = [
            {"type": "text", "text": ask.text},
            {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}},
        ]
    messages: list[Json] = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": content},
    ]
    if ask.result:
        call = {"name": "get_weather", "arguments": '{"city":"Oslo","days":1}'}
        messages += [
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"id": "call_1", "type": "function", "function": call}],
            },
            {"role": "tool", "tool_call_id": "call_1", "content": ask.result},
        ]
    body: Json = {"model": ask.model, "messages": messages, "max_completion_tokens": ask.cap}
    if ask.tools:
        body["tools"] = [
            {
                "type": "function",
                "function": {"name": name, "description": name, "parameters": schema},
            }
            for name, schema in ask.tools.items()
        ]
    if ask.schema:
        described = {"name": "person", "schema": ask.schema, "strict": True}
        body["response_format"] = {"type": "json_schema", "json_schema": described}
    if ask.thinking:
        body["reasoning_effort"] = "medium"
    if ask.stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    return "/v1/chat/completions", body


def _responses(ask: Ask) -> tuple[str, Json]:
    content: list[Json] = [{"type": "input_text", "text": ask.text}]
    if ask.image:
        url = f"data:image/png;base64,{PNG}"
        content.append({"type": "input_image", "image_url": url, "detail": "auto"})
    items: list[Json] = [{"type": "message", "role": "user", "content": content}]
    if ask.result:
        items += [
            {
                "type": "function_call",
                "id": "fc_1",
                "call_id": "call_1",
                "name": "get_weather",
                "arguments": '{"city":"Oslo","days":1}',
            },
            {"type": "function_call_output", "call_id": "call_1", "output": ask.result},
        ]
    body: Json = {
        "model": ask.model,
        "instructions": "Be brief.",
        "input": items,
        "max_output_tokens": ask.cap,
        "store": False,
    }
    if ask.tools:
        body["tools"] = [
            {"type": "function", "name": name, "description": name, "parameters": schema}
            | {"strict": False}
            for name, schema in ask.tools.items()
        ]
    if ask.schema:
        form = {"type": "json_schema", "name": "person", "schema": ask.schema, "strict": True}
        body["text"] = {"format": form}
    if ask.thinking:
        body |= {
            "reasoning": {"effort": "medium", "summary": "auto"},
            "include": ["reasoning.encrypted_content"],
        }
    if ask.stream:
        body["stream"] = True
    return "/v1/responses", body


def _messages(ask: Ask) -> tuple[str, Json]:
    content: list[Json] = [{"type": "text", "text": ask.text}]
    if ask.image:
        source = {"type": "base64", "media_type": "image/png", "data": PNG}
        content.append({"type": "image", "source": source})
    messages: list[Json] = [{"role": "user", "content": content}]
    if ask.result:
        call = {"type": "tool_use", "id": "call_1", "name": "get_weather"}
        result = {"type": "tool_result", "tool_use_id": "call_1", "content": ask.result}
        messages += [
            {"role": "assistant", "content": [call | {"input": {"city": "Oslo", "days": 1}}]},
            {"role": "user", "content": [result]},
        ]
    body: Json = {
        "model": ask.model,
        "system": "Be brief.",
        "messages": messages,
        "max_tokens": ask.cap,
    }
    if ask.tools:
        body["tools"] = [
            {"name": name, "description": name, "input_schema": schema}
            for name, schema in ask.tools.items()
        ]
    if ask.schema:
        body["output_config"] = {"format": {"type": "json_schema", "schema": ask.schema}}
    if ask.thinking:
        body["thinking"] = {"type": "adaptive", "display": "summarized"}
    if ask.stream:
        body["stream"] = True
    return "/v1/messages", body


def _gemini(ask: Ask) -> tuple[str, Json]:
    parts: list[Json] = [{"text": ask.text}]
    if ask.image:
        parts.append({"inlineData": {"mimeType": "image/png", "data": PNG}})
    contents: list[Json] = [{"role": "user", "parts": parts}]
    if ask.result:
        call = {"name": "get_weather", "args": {"city": "Oslo", "days": 1}}
        response = {"name": "get_weather", "response": {"output": ask.result}}
        contents += [
            {"role": "model", "parts": [{"functionCall": call}]},
            {"role": "user", "parts": [{"functionResponse": response}]},
        ]
    generation: Json = {"maxOutputTokens": ask.cap}
    if ask.schema:
        generation |= {
            "responseMimeType": "application/json",
            "responseJsonSchema": ask.schema,
        }
    if ask.thinking:
        generation["thinkingConfig"] = {"includeThoughts": True, "thinkingLevel": "MEDIUM"}
    body: Json = {
        "contents": contents,
        "systemInstruction": {"parts": [{"text": "Be brief."}]},
        "generationConfig": generation,
    }
    if ask.tools:
        declarations = [
            {"name": name, "description": name, "parametersJsonSchema": schema}
            for name, schema in ask.tools.items()
        ]
        body["tools"] = [{"functionDeclarations": declarations}]
    verb = "streamGenerateContent?alt=sse" if ask.stream else "generateContent"
    return f"/v1beta/models/{ask.model}:{verb}", body


_WRITERS = {
    "openai": _chat,
    "openai-responses": _responses,
    "anthropic": _messages,
    "gemini": _gemini,
}
