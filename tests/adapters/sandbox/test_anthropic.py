"""The sandbox as Anthropic: as strict, and with the same streams."""

from __future__ import annotations

import base64
import json

import pytest

from adapters import sandbox
from tests.fakes.sandbox import (
    ANTHROPIC,
    HELLO,
    Json,
    Played,
    an_object,
    ask,
    messages,
    objects,
)

PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n...").decode()
SCHEMA: Json = {"type": "object", "properties": {"city": {"type": "string"}}}
TOOLS: list[Json] = [
    {"name": "weather", "input_schema": SCHEMA},
    {"name": "time", "input_schema": {"type": "object"}},
]
USE: Json = {"type": "tool_use", "id": "t1", "name": "weather", "input": {}}
OTHER: Json = {"type": "tool_use", "id": "t2", "name": "time", "input": {}}
RESULT: Json = {"type": "tool_result", "tool_use_id": "t1", "content": "Rain"}
OPUS = "claude-opus-4-8-sandbox"
SONNET = "claude-sonnet-4-5-sandbox"


def error(played: Played) -> tuple[int, str, str]:
    assert played.json["type"] == "error"
    assert played.headers["request-id"] == played.json["request_id"]
    found = an_object(played.json["error"])
    return played.status, str(found["type"]), str(found["message"])


def text(content: object) -> Json:
    return {"type": "text", "text": content}


def user(*content: object) -> Json:
    return {"role": "user", "content": list(content)}


def assistant(*content: object) -> Json:
    return {"role": "assistant", "content": list(content)}


def accumulated(events: list[Json]) -> Json:
    """The message that a strict reader makes of a stream: one open block at a time, dense."""
    first, *rest = events
    assert first["type"] == "message_start"
    message = an_object(first["message"])
    blocks = message["content"]
    assert isinstance(blocks, list)
    pieces: list[str] | None = None
    for event in rest:
        match event["type"]:
            case "content_block_start":
                assert pieces is None
                assert event["index"] == len(blocks)
                blocks.append(an_object(event["content_block"]))
                pieces = []
            case "content_block_delta":
                assert pieces is not None
                assert event["index"] == len(blocks) - 1
                kind, value = an_object(event["delta"]).values()
                if kind == "signature_delta":
                    blocks[-1]["signature"] = value
                else:
                    pieces.append(str(value))
            case "content_block_stop":
                assert pieces is not None
                assert event["index"] == len(blocks) - 1
                whole, pieces = "".join(pieces), None
                if blocks[-1]["type"] == "tool_use":
                    blocks[-1]["input"] = json.loads(whole)
                elif blocks[-1]["type"] in ("text", "thinking"):
                    blocks[-1][blocks[-1]["type"]] = whole
            case "message_delta":
                message |= an_object(event["delta"])
                message["usage"] = {**an_object(message["usage"]), **an_object(event["usage"])}
    assert rest[-1]["type"] == "message_stop"
    return message


THINKING: Json = {"type": "enabled", "budget_tokens": 1024}
ANSWERING = [name for name, model in sandbox.MODELS.items() if not model.refuses]
WELL = [
    name for name in ANSWERING if not sandbox.MODELS[name].breaks and name != "sandbox-embedding"
]


@pytest.mark.parametrize("model", WELL)
@pytest.mark.parametrize("fields", [{}, {"thinking": THINKING, "tools": TOOLS}])
def test_a_stream_says_what_the_plain_answer_says(model: str, fields: Json) -> None:
    played = messages(model, stream=True, **fields)
    assert played.status == 200, played.body
    message = accumulated(played.named)
    whole = messages(model, **fields).json
    for varying in ("id", "content"):  # ids are of the request, and signatures of the id
        message.pop(varying)
    content = objects(whole.pop("content"))
    assert all(
        block["type"] in ("text", "thinking", "tool_use", "redacted_thinking") for block in content
    )
    assert message == {name: value for name, value in whole.items() if name != "id"}


def test_a_stream_has_the_events_of_the_real_one() -> None:
    kinds = [event["type"] for event in messages("sandbox-tools", tools=TOOLS, stream=True).named]
    assert kinds[:4] == ["message_start", "content_block_start", "ping", "content_block_delta"]
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]


def test_thinking_comes_first_and_is_signed() -> None:
    for stream in (True, False):
        played = messages("sandbox-reasoning", thinking={"type": "adaptive"}, stream=stream)
        answer = accumulated(played.named) if stream else played.json
        thought, said = objects(answer["content"])
        assert str(thought["thinking"]).startswith("1 2 3")
        assert thought["signature"]
        assert said["type"] == "text"
        details = an_object(an_object(answer["usage"])["output_tokens_details"])
        assert details == {"thinking_tokens": 64}


@pytest.mark.parametrize("thinking", [None, {"type": "disabled"}])
def test_no_thinking_where_it_was_not_asked_for(thinking: Json | None) -> None:
    fields: Json = {"thinking": thinking} if thinking else {}
    (said,) = objects(messages("sandbox-reasoning", **fields).json["content"])
    assert said["type"] == "text"


def test_thoughts_can_be_omitted_or_redacted() -> None:
    omitted = messages(OPUS + "-reasoning", thinking={"type": "adaptive"}).json
    thought = objects(omitted["content"])[0]
    assert thought["thinking"] == ""
    assert thought["signature"]
    redacted = messages("sandbox-redacted", thinking={"type": "adaptive"}).json
    assert objects(redacted["content"])[0].keys() == {"type", "data"}


@pytest.mark.parametrize("model", ["sandbox-reasoning-tools", "sandbox-redacted", OPUS + "-tools"])
@pytest.mark.parametrize("display", ["omitted", "summarized"])
def test_what_it_wrote_can_be_said_back(model: str, display: str) -> None:
    fields: Json = {"tools": TOOLS, "thinking": {"type": "adaptive", "display": display}}
    content = objects(messages(model, **fields).json["content"])
    results = [
        {"type": "tool_result", "tool_use_id": block["id"], "content": "x"}
        for block in content
        if block["type"] == "tool_use"
    ]
    history = [*HELLO, assistant(*content), user(*results, text("Go on"))]
    again = messages(model, messages=history, **fields)
    assert again.status == 200, again.body
    thoughts = [block for block in content if "thinking" in str(block["type"])]
    for block in thoughts:
        block["signature" if "signature" in block else "data"] = base64.b64encode(
            b"x" * 44
        ).decode()
    refused = messages(model, messages=history, **fields)
    assert (refused.status == 400) is bool(thoughts)
    assert not thoughts or "Invalid `" in error(refused)[2]


def test_reads_and_writes_of_the_cache_are_not_input() -> None:
    usage = an_object(messages("sandbox-cached").json["usage"])
    assert usage["input_tokens"] == 2
    assert usage["cache_read_input_tokens"] == 4
    assert usage["cache_creation_input_tokens"] == 2


def test_refusals_and_filters() -> None:
    for model in ("sandbox-refusal", "sandbox-filtered"):
        answer = messages(model).json
        assert answer["stop_reason"] == "refusal"
        assert an_object(answer["stop_details"])["type"] == "refusal"


def test_stop_sequences_and_caps() -> None:
    stopped = messages("sandbox-long", stop_sequences=[" 4"]).json
    assert (stopped["stop_reason"], stopped["stop_sequence"]) == ("stop_sequence", " 4")
    capped = messages("sandbox-long", max_tokens=3).json
    assert capped["stop_reason"] == "max_tokens"
    assert objects(capped["content"]) == [text("1 2 3")]


def test_parallel_calls_and_one_at_a_time() -> None:
    both = objects(messages("sandbox-parallel-tools", tools=TOOLS).json["content"])
    assert [block["name"] for block in both] == ["weather", "time"]
    assert both[0]["input"] == {"city": "sandbox"}
    choice = {"type": "auto", "disable_parallel_tool_use": True}
    one = messages("sandbox-parallel-tools", tools=TOOLS, tool_choice=choice).json
    assert len(objects(one["content"])) == 1


def test_json_of_the_shape() -> None:
    wanted = {
        "format": {"type": "json_schema", "schema": {**SCHEMA, "additionalProperties": False}}
    }
    (block,) = objects(messages("sandbox-json", output_config=wanted).json["content"])
    assert json.loads(str(block["text"])) == {"city": "sandbox"}


@pytest.mark.parametrize(
    ("model", "events", "kind"),
    [
        ("sandbox-error-first", 1, "api_error"),
        ("sandbox-overloaded-first", 2, "overloaded_error"),
        ("sandbox-error-in-stream", 4, "api_error"),
    ],
)
def test_errors_in_the_stream(model: str, events: int, kind: str) -> None:
    found = messages(model, stream=True).named
    assert len(found) >= events
    assert found[-1]["type"] == "error"
    assert an_object(found[-1]["error"])["type"] == kind
    assert messages(model).json["type"] == "error"


def test_the_other_accidents() -> None:
    assert messages("sandbox-cut-40", stream=True).end == "cut"
    assert messages("sandbox-stall", stream=True).end == "hang"
    with pytest.raises(json.JSONDecodeError):
        _ = messages("sandbox-malformed", stream=True).named


STATUSES = [
    ("sandbox-error-400", 400, "invalid_request_error"),
    ("sandbox-error-401", 401, "authentication_error"),
    ("sandbox-error-403", 403, "permission_error"),
    ("sandbox-error-404", 404, "not_found_error"),
    ("sandbox-error-429", 429, "rate_limit_error"),
    ("sandbox-error-500", 500, "api_error"),
    ("sandbox-error-529", 529, "overloaded_error"),
    ("sandbox-content-filter", 400, "invalid_request_error"),
    ("nope", 404, "not_found_error"),
    ("sandbox-embedding", 404, "not_found_error"),
]


@pytest.mark.parametrize(("model", "status", "kind"), STATUSES)
def test_errors_in_its_own_envelope(model: str, status: int, kind: str) -> None:
    assert error(messages(model))[:2] == (status, kind)


def test_too_long_prompts() -> None:
    _, _, why = error(messages("sandbox-context-overflow"))
    assert why == "prompt is too long: 9000 tokens > 8192 maximum"


REFUSED: list[tuple[Json, str]] = [
    ({"max_tokens": None}, "max_tokens: Field required"),
    ({"max_tokens": -1}, "greater than or equal to 0"),
    ({"messages": []}, "at least one message is required"),
    ({"foo": 1}, "foo: Extra inputs are not permitted"),
    ({"n": 1}, "n: Extra inputs are not permitted"),
    ({"messages": [{**HELLO[0], "output_config": {"effort": "low"}}]}, "messages.0.output_config"),
    ({"context_management": {}}, "context_management: Extra inputs are not permitted"),
    ({"messages": [{"role": "boss", "content": "x"}]}, "messages.0.role: Input should be"),
    ({"messages": [assistant(text("x"))]}, 'first message must use the "user" role'),
    ({"messages": [user()]}, "must have non-empty content"),
    ({"messages": [user(text(""))]}, "text content blocks must be non-empty"),
    ({"messages": [user(text(" "))]}, "must contain non-whitespace text"),
    ({"system": [text("")]}, "system: text content blocks must be non-empty"),
    ({"messages": [user({"type": "video"})]}, "messages.0.content.0.type"),
    ({"messages": [user({**text("x"), "foo": 1})]}, "messages.0.content.0.text.foo: Extra inputs"),
    ({"messages": [user(USE)], "tools": TOOLS}, "can only be in `assistant` messages"),
    (
        {"messages": [*HELLO, assistant(USE), user(text("x"))], "tools": TOOLS},
        "were found without `tool_result` blocks immediately after: t1.",
    ),
    (
        {"messages": [*HELLO, assistant(USE), user(text("x"), RESULT)], "tools": TOOLS},
        "were found without `tool_result` blocks immediately after: t1.",
    ),
    (
        {"messages": [*HELLO, assistant(USE, OTHER), user(RESULT)], "tools": TOOLS},
        "immediately after: t2.",
    ),
    ({"messages": [*HELLO, assistant(USE)], "tools": TOOLS}, "immediately after: t1."),
    ({"messages": [*HELLO, user(RESULT)], "tools": TOOLS}, "unexpected `tool_use_id` found"),
    (
        {"messages": [*HELLO, assistant(USE), user(RESULT, RESULT)], "tools": TOOLS},
        "must have a single result",
    ),
    ({"messages": [*HELLO, assistant(USE, USE), user(RESULT)], "tools": TOOLS}, "must be unique"),
    ({"messages": [*HELLO, assistant(USE), user(RESULT)]}, "must define tools"),
    (
        {"messages": [*HELLO, assistant({**USE, "id": "functions.Bash:0"}), user(RESULT)]},
        "tool_use.id: String should match pattern",
    ),
    (
        {"messages": [*HELLO, assistant({**USE, "input": "{}"}), user(RESULT)]},
        "tool_use.input: Input should be a valid dictionary",
    ),
    (
        {
            "messages": [
                *HELLO,
                assistant({"type": "thinking", "thinking": "x", "signature": "eA=="}),
            ]
        },
        "Invalid `signature` in `thinking` block",
    ),
    ({"messages": [*HELLO, assistant(text("x "))]}, "cannot end with trailing whitespace"),
    (
        {
            "messages": [
                user(
                    {
                        "type": "image",
                        "source": {"type": "base64", "media_type": "image/bmp", "data": PNG},
                    }
                )
            ]
        },
        "image.source.base64.media_type: Input should be 'image/jpeg'",
    ),
    (
        {
            "messages": [
                user(
                    {
                        "type": "image",
                        "source": {"type": "base64", "media_type": "image/gif", "data": PNG},
                    }
                )
            ]
        },
        "appears to be a image/png image",
    ),
    ({"tools": [{"name": "a"}]}, "tools.0.custom.input_schema: Field required"),
    ({"tools": [{"name": "a", "input_schema": {}}]}, "input_schema.type: Field required"),
    (
        {"tools": [{"name": "a", "input_schema": {"type": "array"}}]},
        "tools.0.custom.input_schema.type: Input should be 'object'",
    ),
    (
        {"tools": [{"name": "a", "input_schema": {"type": "object", "anyOf": []}}]},
        "does not support oneOf, allOf, or anyOf at the top level",
    ),
    ({"tools": [{"name": "a.b", "input_schema": SCHEMA}]}, "String should match pattern"),
    ({"tools": [TOOLS[0], TOOLS[0]]}, "Tool names must be unique"),
    ({"tools": [{**TOOLS[0], "strict": True}]}, "'additionalProperties' must be explicitly"),
    (
        {"tools": [{"type": "function", "function": {"name": "a"}}]},
        "tools.0.type: Input should be 'custom'",
    ),
    ({"tool_choice": {"type": "auto"}}, "only be specified while providing tools"),
    ({"tools": TOOLS, "tool_choice": "auto"}, "tool_choice: Input should be a valid dictionary"),
    ({"tools": TOOLS, "tool_choice": {"type": "tool", "name": "x"}}, "Tool 'x' not found"),
    ({"tools": TOOLS, "tool_choice": {"type": "required"}}, "tool_choice.type: Input should be"),
    ({"stop_sequences": [" "]}, "each stop sequence must contain non-whitespace"),
    ({"temperature": 1.5}, "temperature: Input should be less than or equal to 1"),
    ({"thinking": {"type": "enabled"}}, "thinking.enabled.budget_tokens: Field required"),
    (
        {"thinking": {"type": "enabled", "budget_tokens": 512}},
        "thinking.enabled.budget_tokens: Input should be greater than or equal to 1024",
    ),
    (
        {"thinking": {"type": "enabled", "budget_tokens": 4096}},
        "`max_tokens` must be greater than `thinking.budget_tokens`",
    ),
    ({"thinking": THINKING, "temperature": 0.5}, "`temperature` may only be set to 1"),
    ({"thinking": THINKING, "top_k": 5}, "`top_k` must be unset"),
    (
        {"thinking": THINKING, "tools": TOOLS, "tool_choice": {"type": "any"}},
        "Thinking may not be enabled when tool_choice forces tool use.",
    ),
    (
        {"thinking": THINKING, "tools": TOOLS, "messages": [*HELLO, assistant(USE), user(RESULT)]},
        "Expected `thinking` or `redacted_thinking`, but found `tool_use`",
    ),
    (
        {"system": [{**text("x"), "cache_control": {"type": "ephemeral"}}] * 5},
        "A maximum of 4 blocks with cache_control may be provided. Found 5.",
    ),
    ({"output_config": {"format": {"type": "json_object"}}}, "output_config.format.type"),
    (
        {
            "output_config": {
                "format": {
                    "type": "json_schema",
                    "schema": {"type": "array", "items": {"type": "integer", "minimum": 1}},
                }
            }
        },
        "For 'integer' type, property 'minimum' is not supported",
    ),
    ({"model": OPUS, "temperature": 1}, "`temperature` is deprecated for this model."),
    ({"model": OPUS, "thinking": THINKING}, '"thinking.type.enabled" is not supported'),
    ({"model": OPUS, "messages": [*HELLO, assistant(text("x"))]}, "does not support assistant"),
    ({"model": SONNET, "temperature": 1, "top_p": 1}, "cannot both be specified"),
    ({"model": SONNET, "thinking": {"type": "adaptive"}}, "adaptive thinking is not supported"),
    ({"model": "claude-sonnet-4-sandbox", "output_config": {"effort": "low"}}, "effort parameter"),
    (
        {"model": SONNET, "messages": [*HELLO, {"role": "system", "content": "x"}]},
        "messages.1.role",
    ),
    ({"model": "claude-fable-5-sandbox", "thinking": {"type": "disabled"}}, "is not supported"),
]


@pytest.mark.parametrize(("change", "why"), REFUSED, ids=[case[1] for case in REFUSED])
def test_refuses_what_anthropic_refuses(change: Json, why: str) -> None:
    status, kind, message = error(messages(**{"model": "sandbox", **change}))  # type: ignore[arg-type]
    assert (status, kind) == (400, "invalid_request_error")
    assert why in message


@pytest.mark.parametrize(
    "fields",
    [
        {"system": "", "stop_sequences": ["x"], "temperature": 1, "top_p": 0.5, "top_k": 3},
        {"messages": [*HELLO, assistant(), *HELLO, *HELLO]},
        {"messages": [*HELLO, assistant(text("Once"))]},
        {"messages": [*HELLO, {"role": "system", "content": "Be short."}, *HELLO]},
        {"messages": [*HELLO, assistant(USE), user(RESULT, text("and?"))], "tools": TOOLS},
        {
            "messages": [
                user(
                    {
                        "type": "image",
                        "source": {"type": "base64", "media_type": "image/png", "data": PNG},
                    }
                )
            ]
        },
        {"messages": [user({"type": "document", "source": {"type": "url", "url": "https://x"}})]},
        {"tools": [{"type": "web_search_20250305", "name": "web_search"}, *TOOLS]},
        {"thinking": {"type": "adaptive"}, "output_config": {"effort": "high"}, "speed": "fast"},
        {"model": OPUS, "thinking": {"type": "adaptive", "display": "omitted"}},
        {"model": SONNET, "thinking": THINKING, "max_tokens": 2000},
        {
            "metadata": {"user_id": "u"},
            "service_tier": "auto",
            "cache_control": {"type": "ephemeral"},
        },
    ],
)
def test_takes_what_anthropic_takes(fields: Json) -> None:
    played = messages(**{"model": "sandbox", **fields})  # type: ignore[arg-type]
    assert played.status == 200, played.body


def test_headers_and_versions() -> None:
    body = json.dumps({"model": "sandbox", "max_tokens": 9, "messages": HELLO}).encode()
    version = {b"anthropic-version": b"2026-10-21"}
    assert ask("/v1/messages", version, body).status == 401
    assert ask("/v1/messages", {b"x-api-key": b"k"}, body).status == 400
    assert (
        ask("/messages?beta=true", {**version, b"authorization": b"Bearer k"}, body).status == 200
    )
    hot = json.dumps({"model": "sandbox", "max_tokens": 9, "messages": HELLO, "top_k": 1}).encode()
    refused = ask("/v1/messages", {**version, b"x-api-key": b"k"}, hot)
    assert error(refused)[2] == "top_k: Extra inputs are not permitted"


def test_beta_fields_need_their_header() -> None:
    fields: Json = {"context_management": {"edits": []}}
    body = json.dumps({"model": "sandbox", "max_tokens": 9, "messages": HELLO, **fields}).encode()
    betas = {**ANTHROPIC, b"anthropic-beta": b"x,context-management-2025-06-27"}
    assert ask("/v1/messages", betas, body).status == 200


def test_counting() -> None:
    body = json.dumps({"model": "sandbox", "messages": HELLO, "system": "Be short."}).encode()
    for path in ("/v1/messages/count_tokens", "/messages/count_tokens?beta=true"):
        assert ask(path, ANTHROPIC, body).json == {"input_tokens": 14}
    capped = json.dumps({"model": "sandbox", "messages": HELLO, "max_tokens": 9}).encode()
    assert ask("/v1/messages/count_tokens", ANTHROPIC, capped).status == 400


def test_the_list_of_models_has_pages() -> None:
    first = ask("/v1/models?limit=3", ANTHROPIC, b"", "GET").json
    assert first["has_more"] is True
    assert objects(first["data"])[0]["id"] == "sandbox"
    rest = ask(f"/v1/models?limit=1000&after_id={first['last_id']}", ANTHROPIC, b"", "GET").json
    assert rest["has_more"] is False
    assert len(objects(rest["data"])) == len(sandbox.MODELS) - 4  # and no embeddings
    assert ask("/v1/models/sandbox", ANTHROPIC, b"", "GET").json["type"] == "model"
    assert ask("/v1/models/nope", ANTHROPIC, b"", "GET").status == 404
    assert ask("/v1/models", ANTHROPIC, b"", "DELETE").status == 405
