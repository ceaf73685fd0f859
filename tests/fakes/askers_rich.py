"""Requests that use much of their protocol at once, and more than any provider would take."""

from __future__ import annotations

from adapters.catalogue import Protocol
from tests.fakes.askers import PNG

Json = dict[str, object]

SCHEMA: Json = {
    "type": "object",
    "properties": {
        "a": {"$ref": "#/$defs/x"},
        "b": {"anyOf": [{"type": "string"}, {"type": "null"}]},
        "c": {"type": ["string", "null"], "enum": ["a", None]},
        "d": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"n": {"const": 3}},
                "patternProperties": {"^x": {}},
            },
            "minItems": 1,
        },
    },
    "required": ["a"],
    "$defs": {"x": {"type": "object", "properties": {"y": {"$ref": "#/$defs/x"}}}},
    "additionalProperties": False,
}
CHAT: Json = {
    "model": "m",
    "messages": [
        {"role": "system", "content": "s"},
        {
            "role": "developer",
            "content": [
                {"type": "text", "text": "d", "cache_control": {"type": "ephemeral", "ttl": "1h"}}
            ],
        },
        {
            "role": "user",
            "name": "bob",
            "content": [
                {"type": "text", "text": "hi"},
                {
                    "type": "image_url",
                    "image_url": {"url": "data:image/png;base64," + PNG, "detail": "high"},
                },
                {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
                {
                    "type": "file",
                    "file": {
                        "file_data": "data:application/pdf;base64,JVBERi0=",
                        "filename": "x.pdf",
                    },
                },
            ],
        },
        {
            "role": "assistant",
            "content": None,
            "refusal": None,
            "reasoning_content": "r",
            "reasoning_details": [
                {"type": "reasoning.encrypted", "data": "x", "format": "y", "index": 0, "id": "i"}
            ],
            "tool_calls": [
                {
                    "id": "c1",
                    "type": "function",
                    "function": {"name": "f", "arguments": '{"a":1}'},
                    "extra_content": {"google": {"thought_signature": "s"}},
                },
                {"id": "c2", "type": "custom", "custom": {"name": "g", "input": "raw"}},
            ],
        },
        {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "ok"}]},
        {"role": "tool", "tool_call_id": "c2", "content": "ok2"},
        {"role": "function", "name": "f", "content": "x"},
        {
            "role": "assistant",
            "audio": {"id": "a"},
            "function_call": {"name": "f", "arguments": "{}"},
        },
        {"role": "user", "content": "go"},
    ],
    "tools": [
        {
            "type": "function",
            "function": {"name": "f", "description": "d", "parameters": SCHEMA, "strict": True},
        },
        {
            "type": "custom",
            "custom": {
                "name": "g",
                "format": {"type": "grammar", "grammar": {"syntax": "lark", "definition": "x"}},
            },
        },
    ],
    "functions": [{"name": "h", "parameters": {}}],
    "function_call": {"name": "h"},
    "tool_choice": {
        "type": "allowed_tools",
        "allowed_tools": {
            "mode": "auto",
            "tools": [{"type": "function", "function": {"name": "f"}}],
        },
    },
    "parallel_tool_calls": True,
    "response_format": {
        "type": "json_schema",
        "json_schema": {"name": "x", "schema": SCHEMA, "strict": True},
    },
    "reasoning_effort": "low",
    "temperature": 1,
    "top_p": 0.5,
    "seed": 1,
    "stop": ["a", "b"],
    "presence_penalty": 0.1,
    "frequency_penalty": 0.1,
    "logit_bias": {"1": 1},
    "logprobs": True,
    "top_logprobs": 3,
    "max_completion_tokens": 100,
    "stream": True,
    "stream_options": {"include_usage": True},
    "user": "u",
    "metadata": {"a": "b", "conversation_id": "x"},
    "store": True,
    "service_tier": "auto",
    "verbosity": "low",
    "prediction": {"type": "content", "content": "p"},
    "modalities": ["text"],
    "web_search_options": {"x": 1},
    "prompt_cache_key": "k",
    "top_k": 3,
    "thinking": {"type": "enabled", "budget_tokens": 1024},
    "reasoning": {"effort": "low", "max_tokens": 1000},
    "extra": {"x": [1]},
}
CHAT_OF_OTHERS: Json = {
    "model": "m",
    "messages": [
        {
            "role": "user",
            "content": [
                {
                    "type": "tool_result",
                    "tool_use_id": "x",
                    "content": [
                        {"type": "text", "text": "t"},
                        {
                            "type": "image",
                            "source": {"type": "base64", "media_type": "image/png", "data": PNG},
                        },
                    ],
                }
            ],
        },
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "a", "signature": "s"},
                {"type": "tool_use", "id": "x", "name": "f", "input": {}},
            ],
        },
        {"role": "user", "content": "a"},
    ],
    "tools": [{"name": "f", "description": "d", "input_schema": SCHEMA}],
    "tool_choice": {"type": "tool", "name": "f"},
    "system": "x",
}
RESPONSES: Json = {
    "model": "m",
    "instructions": "i",
    "input": [
        {
            "type": "message",
            "role": "user",
            "content": [
                {"type": "input_text", "text": "hi"},
                {
                    "type": "input_image",
                    "image_url": "data:image/png;base64," + PNG,
                    "detail": "auto",
                },
                {
                    "type": "input_file",
                    "filename": "a.pdf",
                    "file_data": "data:application/pdf;base64,JVBERi0=",
                },
                {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
            ],
        },
        {"role": "developer", "content": "d"},
        {
            "type": "reasoning",
            "id": "rs_1",
            "summary": [{"type": "summary_text", "text": "s"}],
            "content": [{"type": "reasoning_text", "text": "t"}],
            "encrypted_content": "abc",
        },
        {
            "type": "message",
            "role": "assistant",
            "id": "m1",
            "status": "completed",
            "content": [
                {
                    "type": "output_text",
                    "text": "x",
                    "annotations": [
                        {
                            "type": "url_citation",
                            "url": "u",
                            "title": "t",
                            "start_index": 0,
                            "end_index": 1,
                        }
                    ],
                    "logprobs": [],
                },
                {"type": "refusal", "refusal": "no"},
            ],
        },
        {
            "type": "function_call",
            "id": "fc",
            "call_id": "c1",
            "name": "f",
            "namespace": "ns",
            "arguments": "{}",
        },
        {
            "type": "function_call_output",
            "call_id": "c1",
            "output": [{"type": "input_text", "text": "o"}],
        },
        {"type": "custom_tool_call", "call_id": "c2", "name": "g", "input": "raw"},
        {"type": "custom_tool_call_output", "call_id": "c2", "output": "x"},
        {
            "type": "local_shell_call",
            "call_id": "c3",
            "action": {"type": "exec", "command": ["ls"], "env": {}},
        },
        {"type": "local_shell_call_output", "call_id": "c3", "output": "x"},
        {
            "type": "tool_search_call",
            "call_id": "c4",
            "arguments": {"query": "x"},
            "execution": "client",
        },
        {
            "type": "tool_search_output",
            "call_id": "c4",
            "tools": [{"type": "function", "name": "z", "parameters": {}}],
            "execution": "client",
        },
        {"type": "web_search_call", "id": "w", "action": {"type": "search", "query": "q"}},
        {"type": "item_reference", "id": "x"},
        {"type": "compaction", "encrypted_content": "y"},
        {"type": "image_generation_call", "id": "i", "result": "AAAA"},
        {
            "type": "apply_patch_call",
            "call_id": "c5",
            "operation": {"type": "create_file", "path": "x", "diff": "y"},
        },
        {"type": "apply_patch_call_output", "call_id": "c5", "output": "x", "status": "completed"},
        {
            "type": "computer_call_output",
            "call_id": "c6",
            "output": {"type": "computer_screenshot", "image_url": "https://x"},
        },
    ],
    "tools": [
        {"type": "function", "name": "f", "description": "d", "parameters": SCHEMA, "strict": True},
        {
            "type": "custom",
            "name": "g",
            "format": {"type": "grammar", "syntax": "regex", "definition": "x"},
        },
        {
            "type": "namespace",
            "name": "ns",
            "description": "d",
            "tools": [{"type": "function", "name": "f", "parameters": {}}],
        },
        {"type": "local_shell"},
        {"type": "web_search"},
        {"type": "tool_search", "execution": "client", "description": "x", "parameters": {}},
        {"type": "apply_patch"},
    ],
    "tool_choice": {
        "type": "allowed_tools",
        "mode": "required",
        "tools": [{"type": "function", "name": "f"}, {"type": "web_search"}],
    },
    "text": {
        "format": {"type": "json_schema", "name": "p", "schema": SCHEMA, "strict": True},
        "verbosity": "low",
    },
    "reasoning": {"effort": "high", "summary": "auto"},
    "include": ["reasoning.encrypted_content", "message.output_text.logprobs"],
    "max_output_tokens": 10,
    "max_tool_calls": 2,
    "parallel_tool_calls": False,
    "temperature": 1,
    "top_p": 1,
    "top_logprobs": 2,
    "truncation": "auto",
    "stream": True,
    "stream_options": {"include_obfuscation": False},
    "metadata": {"user_id": "x"},
    "prompt_cache_key": "x",
    "prompt_cache_retention": "24h",
    "safety_identifier": "x",
    "user": "u",
    "service_tier": "flex",
    "store": True,
    "background": False,
    "stop": ["x"],
    "previous_response_id": None,
    "context_management": [{"type": "compaction"}],
}
MESSAGES: Json = {
    "model": "m",
    "max_tokens": 2000,
    "system": [{"type": "text", "text": "s", "cache_control": {"type": "ephemeral", "ttl": "1h"}}],
    "messages": [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "hi"},
                {
                    "type": "image",
                    "source": {"type": "base64", "media_type": "image/png", "data": PNG},
                },
                {
                    "type": "document",
                    "source": {
                        "type": "base64",
                        "media_type": "application/pdf",
                        "data": "JVBERi0=",
                    },
                    "title": "t",
                    "context": "c",
                    "citations": {"enabled": True},
                },
                {
                    "type": "document",
                    "source": {"type": "text", "media_type": "text/plain", "data": "x"},
                },
                {
                    "type": "search_result",
                    "source": "s",
                    "title": "t",
                    "content": [{"type": "text", "text": "x"}],
                },
            ],
        },
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "t", "signature": "sig"},
                {"type": "redacted_thinking", "data": "d"},
                {
                    "type": "text",
                    "text": "x",
                    "citations": [{"type": "web_search_result_location", "url": "u", "title": "t"}],
                },
                {"type": "tool_use", "id": "t1", "name": "f", "input": {"a": 1}},
                {
                    "type": "server_tool_use",
                    "id": "s1",
                    "name": "web_search",
                    "input": {"query": "q"},
                },
                {
                    "type": "web_search_tool_result",
                    "tool_use_id": "s1",
                    "content": [
                        {
                            "type": "web_search_result",
                            "url": "u",
                            "title": "t",
                            "encrypted_content": "x",
                        }
                    ],
                },
            ],
        },
        {
            "role": "user",
            "content": [
                {
                    "type": "tool_result",
                    "tool_use_id": "t1",
                    "content": [
                        {"type": "text", "text": "r"},
                        {
                            "type": "image",
                            "source": {"type": "base64", "media_type": "image/png", "data": PNG},
                        },
                    ],
                    "is_error": True,
                }
            ],
        },
        {"role": "system", "content": "mid"},
        {"role": "assistant", "content": "pre"},
    ],
    "tools": [
        {
            "name": "f",
            "description": "d",
            "input_schema": SCHEMA,
            "cache_control": {"type": "ephemeral"},
            "strict": True,
        },
        {"type": "web_search_20250305", "name": "web_search", "max_uses": 3},
        {"type": "bash_20250124", "name": "bash"},
        {"type": "text_editor_20250728", "name": "str_replace_based_edit_tool"},
    ],
    "tool_choice": {"type": "any", "disable_parallel_tool_use": True},
    "thinking": {"type": "enabled", "budget_tokens": 1024},
    "output_config": {"effort": "high", "format": {"type": "json_schema", "schema": SCHEMA}},
    "temperature": 1,
    "top_p": 0.9,
    "top_k": 5,
    "stop_sequences": ["x", " "],
    "stream": True,
    "metadata": {"user_id": '{"account_uuid":"x"}'},
    "service_tier": "auto",
    "mcp_servers": [],
    "context_management": {"edits": []},
    "container": None,
    "speed": "fast",
}
GENERATE: Json = {
    "contents": [
        {
            "role": "user",
            "parts": [{"text": "hi"}, {"inlineData": {"mimeType": "a/b", "data": "AA"}}],
        },
        {
            "role": "model",
            "parts": [
                {"text": "t", "thought": True, "thoughtSignature": "ZmIxLg=="},
                {"functionCall": {"id": "a", "name": "f", "args": {"x": 1}}},
                {"executableCode": {"language": "PYTHON", "code": "1"}},
            ],
        },
        {
            "role": "user",
            "parts": [
                {"functionResponse": {"id": "a", "name": "f", "response": {"output": "x"}}},
                {"fileData": {"mimeType": "image/png", "fileUri": "gs://x"}},
            ],
        },
    ],
    "systemInstruction": {"parts": [{"text": "s"}]},
    "tools": [{"functionDeclarations": [{"name": "f", "parameters": {"type": "OBJECT"}}]}],
    "toolConfig": {"functionCallingConfig": {"mode": "ANY", "allowedFunctionNames": ["f"]}},
    "generationConfig": {
        "temperature": 1,
        "topK": 2,
        "stopSequences": ["a"],
        "responseFormat": [{"text": {"mimeType": "x", "schema": {}}}],
        "responseSchema": {"type": "STRING"},
        "responseModalities": ["TEXT"],
        "thinkingConfig": {"thinkingLevel": "LOW", "thinkingBudget": 1},
    },
}


def _taken(body: Json, turns: str, *without: str, refused: frozenset[str] = frozenset()) -> Json:
    """A body as every provider takes it: without members and types of parts that some refuse."""
    kept = {name: value for name, value in body.items() if name not in without}
    kept[turns] = [
        _kept(turn, refused) for turn in _listed(body[turns]) if _is_taken(turn, refused)
    ]
    return kept


def _kept(turn: Json, refused: frozenset[str]) -> Json:
    inner = "parts" if "parts" in turn else "content"
    if not isinstance(turn.get(inner), list):
        return turn
    return {**turn, inner: [part for part in _listed(turn[inner]) if _is_taken(part, refused)]}


def _is_taken(part: Json, refused: frozenset[str]) -> bool:
    return part.get("type") not in refused and not part.keys() & refused


def _listed(value: object) -> list[Json]:
    assert isinstance(value, list)
    return value


CHAT_TAKEN = _taken(
    CHAT,
    "messages",
    *("logit_bias", "logprobs", "top_logprobs", "modalities"),
    refused=frozenset({"audio", "input_audio"}),
)
RESPONSES_TAKEN = _taken(
    RESPONSES,
    "input",
    *("context_management", "previous_response_id", "top_logprobs", "include"),
    refused=frozenset({"item_reference", "compaction", "computer_call_output", "input_audio"}),
)
MESSAGES_TAKEN = _taken(
    {**MESSAGES, "messages": _listed(MESSAGES["messages"])[:-1]}, "messages", "output_config"
)
GENERATE_TAKEN = _taken(
    GENERATE, "contents", "generationConfig", refused=frozenset({"fileData", "inlineData"})
)
SMALL: Json = {"model": "m", "messages": [{"role": "user", "content": "x"}], "max_tokens": 5}

BODIES: dict[Protocol, tuple[Json, ...]] = {
    "openai": (CHAT, CHAT_TAKEN, CHAT_OF_OTHERS, RESPONSES_TAKEN),
    "openai-responses": (RESPONSES, RESPONSES_TAKEN),
    "anthropic": (MESSAGES, MESSAGES_TAKEN),
    "gemini": (GENERATE, GENERATE_TAKEN),
}

# What every provider takes, with all that its answer may refer to.
PLAIN: dict[Protocol, Json] = {
    "openai": {
        "model": "m",
        "messages": [{"role": "user", "content": "x"}],
        "tools": [
            {"type": "function", "function": {"name": "f", "parameters": {}}},
            {"type": "custom", "custom": {"name": "g"}},
        ],
        "stop": ["zz", "h"],
    },
    "openai-responses": {
        "model": "m",
        "input": "x",
        "tools": [
            {"type": "function", "name": "f", "parameters": {}},
            {"type": "custom", "name": "g"},
        ],
    },
    "anthropic": {
        "model": "m",
        "max_tokens": 5,
        "messages": [{"role": "user", "content": "x"}],
        "stop_sequences": ["zz", "h"],
        "tools": [{"name": "f", "input_schema": {}}],
    },
    "gemini": {
        "contents": [{"parts": [{"text": "x"}]}],
        "generationConfig": {
            "stopSequences": ["zz", "h"],
            "thinkingConfig": {"includeThoughts": True},
        },
        "tools": [{"functionDeclarations": [{"name": "f"}]}],
    },
}
