"""Whatever is asked, in whatever protocol, gets an answer: the sandbox never raises."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters import sandbox
from tests.fakes.sandbox import ANTHROPIC, AUTHORIZED, GEMINI, HELLO, Json, ask

KEYS = [
    "type", "role", "content", "function", "name", "$ref", "items", "text", "parts", "input", "id",
    "tool_use_id", "call_id", "functionCall", "functionResponse", "thoughtSignature", "thinking",
    "signature", "source", "schema", "format", "properties", "enum", "budget_tokens",
]  # fmt: skip
KINDS = [
    "user", "assistant", "model", "tool", "text", "image", "tool_use", "tool_result", "thinking",
    "function_call", "function_call_output", "reasoning", "message", "custom", "json_schema",
    "enabled", "object", "OBJECT",
]  # fmt: skip
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.sampled_from(KINDS),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4)
    ),
    max_leaves=12,
)
FIELDS = [
    "messages", "input", "contents", "tools", "tool_choice", "response_format", "stream", "system",
    "text", "thinking", "generationConfig", "systemInstruction", "toolConfig", "output_config",
    "reasoning", "stop_sequences", "max_tokens", "requests", "content", "instructions",
]  # fmt: skip
ROUTES = [
    ("/v1/chat/completions", AUTHORIZED, {"messages": HELLO}),
    ("/v1/embeddings", AUTHORIZED, {"input": "x"}),
    ("/v1/responses", AUTHORIZED, {"input": "x"}),
    ("/v1/responses/input_tokens", AUTHORIZED, {"input": "x"}),
    ("/v1/messages", ANTHROPIC, {"max_tokens": 9, "messages": HELLO}),
    ("/v1/messages/count_tokens", ANTHROPIC, {"messages": HELLO}),
    *(
        (f"/v1beta/models/MODEL:{action}", GEMINI, {"contents": [{"parts": [{"text": "x"}]}]})
        for action in (
            "generateContent",
            "streamGenerateContent?alt=sse",
            "streamGenerateContent",
            "countTokens",
            "embedContent",
            "batchEmbedContents",
            "unheardOf",
        )
    ),
]


@pytest.mark.parametrize(("path", "headers", "body"), ROUTES, ids=[route[0] for route in ROUTES])
@settings(deadline=None, max_examples=60)
@given(
    model=st.sampled_from([*sandbox.MODELS, "claude-opus-4-8-sandbox", "gemini-3-sandbox-tools"]),
    fields=st.dictionaries(st.sampled_from(FIELDS), values, max_size=3),
)
def test_whatever_is_asked_gets_a_script(
    path: str, headers: dict[bytes, bytes], body: Json, model: str, fields: Json
) -> None:
    named = {} if "MODEL" in path else {"model": model}
    whole = json.dumps({**named, **body, **fields}).encode()
    assert 200 <= ask(path.replace("MODEL", model), headers, whole).status < 600


@pytest.mark.parametrize(("path", "headers", "body"), ROUTES, ids=[route[0] for route in ROUTES])
@settings(deadline=None, max_examples=20)
@given(raw=st.binary(max_size=30) | st.sampled_from([b"[]", b"null", b"{", b"{}"]))
def test_bodies_that_are_nothing(
    path: str, headers: dict[bytes, bytes], body: Json, raw: bytes
) -> None:
    assert ask(path.replace("MODEL", "sandbox"), headers, raw).status >= 400


@given(target=st.text(max_size=40))
def test_targets_that_are_nothing(target: str) -> None:
    for headers in (AUTHORIZED, ANTHROPIC, GEMINI):
        assert ask(f"/v1/{target}", headers, b"", "GET").status in (200, 400, 401, 403, 404, 405)
