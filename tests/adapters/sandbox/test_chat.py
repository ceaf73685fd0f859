"""The sandbox as OpenAI's Chat Completions: as strict, and with the same streams."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters import sandbox
from tests.fakes.sandbox import (
    AUTHORIZED,
    HELLO,
    Json,
    Played,
    an_object,
    chat,
    objects,
    play,
    post,
)

TEXT_MODELS = ["sandbox", "sandbox-long", "sandbox-slow", "sandbox-no-usage", "sandbox-cached"]
TOOLS: list[Json] = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    }
]

CALLED: list[Json] = [
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"id": "c", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
        ],
    },
    {"role": "tool", "tool_call_id": "c", "content": "Rain"},
]


def first_choice(answer: Json) -> Json:
    choices = answer["choices"]
    assert isinstance(choices, list)
    choice = choices[0]
    assert isinstance(choice, dict)
    return choice


def text_of(played: Played) -> str:
    """The text of the first choice, streamed or plain."""
    if not played.headers["content-type"].startswith("text/event-stream"):
        return str(an_object(first_choice(played.json)["message"])["content"])
    chunks = [chunk for chunk in played.chunks if chunk["choices"]]
    choices = [first_choice(chunk) for chunk in chunks]
    deltas = [an_object(choice["delta"]) for choice in choices if choice["index"] == 0]
    return "".join(str(delta.get("content", "")) for delta in deltas)


def deltas(played: Played) -> list[Json]:
    """The deltas with content."""
    found = [an_object(first_choice(chunk)["delta"]) for chunk in played.chunks if chunk["choices"]]
    return [delta for delta in found if delta.get("content")]


# -- strictness -----------------------------------------------------------------------------------

REFUSED: list[tuple[Json, str | None, str | None]] = [
    ({"model": None}, None, None),
    ({"model": ""}, None, None),
    ({"model": 1}, "model", "invalid_type"),
    ({"messages": None}, "messages", "missing_required_parameter"),
    ({"messages": []}, "messages", "empty_array"),
    ({"messages": "Hello"}, "messages", "invalid_type"),
    ({"messages": ["Hello"]}, "messages[0]", "invalid_type"),
    ({"messages": [{"content": "x"}]}, "messages[0].role", "missing_required_parameter"),
    ({"messages": [{"role": "boss", "content": "x"}]}, "messages[0].role", "invalid_value"),
    ({"messages": [{"role": "user"}]}, "messages[0].content", "invalid_type"),
    ({"messages": [{"role": "user", "content": 1}]}, "messages[0].content", "invalid_type"),
    ({"messages": [{"role": "user", "content": []}]}, "messages[0].content", "empty_array"),
    (
        {"messages": [{"role": "user", "content": [{"text": "x"}]}]},
        "messages[0].content[0].type",
        "missing_required_parameter",
    ),
    (
        {"messages": [{"role": "user", "content": [{"type": "video"}]}]},
        "messages[0].content[0].type",
        "invalid_value",
    ),
    (
        {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
        "messages[0].content[0].text",
        "missing_required_parameter",
    ),
    (
        {"messages": [{"role": "tool", "content": "x"}]},
        "messages[0].tool_call_id",
        "missing_required_parameter",
    ),
    ({"max_tokens": 0}, "max_tokens", "integer_below_min_value"),
    ({"max_tokens": -1}, "max_tokens", "integer_below_min_value"),
    ({"max_tokens": 1.5}, "max_tokens", "invalid_type"),
    ({"max_tokens": True}, "max_tokens", "invalid_type"),
    ({"max_completion_tokens": 0}, "max_completion_tokens", "integer_below_min_value"),
    (
        {"max_tokens": 5, "max_completion_tokens": 5},
        "max_tokens",
        "invalid_parameter_combination",
    ),
    ({"stream": "yes"}, "stream", "invalid_type"),
    ({"stream_options": {"include_usage": True}}, "stream_options", None),
    ({"stream": True, "stream_options": True}, "stream_options", "invalid_type"),
    (
        {"stream": True, "stream_options": {"include_usage": 1}},
        "stream_options.include_usage",
        "invalid_type",
    ),
    ({"n": 0}, "n", "integer_below_min_value"),
    ({"n": 129}, "n", "integer_above_max_value"),
    ({"n": "2"}, "n", "invalid_type"),
    ({"temperature": 2.5}, "temperature", "decimal_above_max_value"),
    ({"temperature": -1}, "temperature", "decimal_below_min_value"),
    ({"temperature": "hot"}, "temperature", "invalid_type"),
    ({"top_p": 1.1}, "top_p", "decimal_above_max_value"),
    ({"top_logprobs": 2}, "top_logprobs", None),
    ({"stop": 1}, "stop", "invalid_type"),
    ({"stop": [1]}, "stop[0]", "invalid_type"),
    ({"stop": list("abcde")}, "stop", "array_above_max_length"),
    ({"user": 1}, "user", "invalid_type"),
    ({"metadata": {"a": "b"}}, "metadata", None),
    ({"service_tier": "gold"}, "service_tier", "invalid_value"),
    ({"tools": []}, "tools", "empty_array"),
    ({"tools": [{}]}, "tools[0].type", "missing_required_parameter"),
    ({"tools": [{"type": "function"}]}, "tools[0].function", "missing_required_parameter"),
    (
        {"tools": [{"type": "function", "function": {}}]},
        "tools[0].function.name",
        "missing_required_parameter",
    ),
    (
        {"tools": [{"type": "function", "function": {"name": "a b"}}]},
        "tools[0].function.name",
        "invalid_value",
    ),
    (
        {"tools": [{"type": "function", "function": {"name": "a", "parameters": []}}]},
        "tools[0].function.parameters",
        "invalid_type",
    ),
    ({"tool_choice": "auto"}, "tool_choice", None),
    ({"tools": TOOLS, "tool_choice": "maybe"}, "tool_choice", "invalid_value"),
    ({"response_format": {}}, "response_format.type", "missing_required_parameter"),
    ({"response_format": {"type": "xml"}}, "response_format.type", "invalid_value"),
    (
        {"response_format": {"type": "json_schema"}},
        "response_format.json_schema",
        "missing_required_parameter",
    ),
    (
        {"response_format": {"type": "json_schema", "json_schema": {}}},
        "response_format.json_schema.name",
        "missing_required_parameter",
    ),
    ({"top_k": 5}, "top_k", "unknown_parameter"),
]


@pytest.mark.parametrize(("change", "param", "code"), REFUSED, ids=[str(c[0]) for c in REFUSED])
def test_refuses_what_openai_refuses(change: Json, param: str | None, code: str | None) -> None:
    played = chat(**{"model": "sandbox", **change})  # type: ignore[arg-type]  # also no model
    assert played.status == 400
    error = an_object(played.json["error"])
    assert list(error) == ["message", "type", "param", "code"]
    assert error["message"]
    assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", param, code)


@pytest.mark.parametrize(
    "fields",
    [
        {"max_tokens": None, "n": None, "stop": None, "tools": None, "stream_options": None},
        {"temperature": 0, "top_p": 1, "frequency_penalty": -2, "seed": -7, "logit_bias": {"1": 1}},
        {"logprobs": True, "top_logprobs": 0},
        {"store": True, "metadata": {"a": "b"}},
        {"messages": [{"role": "assistant", "content": None}, *HELLO]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}]},
        {"messages": [*HELLO, *CALLED]},
        {"response_format": {"type": "text"}},
        {"reasoning_effort": "low", "verbosity": "low", "user": "u", "service_tier": "flex"},
    ],
)
def test_takes_what_openai_takes(fields: Json) -> None:
    assert chat("sandbox", **fields).status == 200


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'"x"', b"null", b'{"model": "\xff"}'])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/embeddings"])
def test_a_body_that_is_no_object_is_refused(path: str, body: bytes) -> None:
    played = post(path, body)
    assert played.status == 400
    assert "could not parse" in str(an_object(played.json["error"])["message"])


@pytest.mark.parametrize("headers", [{}, {b"authorization": b"Bearer "}, {b"authorization": b"x"}])
def test_without_a_key_nothing_is_served(headers: dict[bytes, bytes]) -> None:
    for method, path in (("GET", "/v1/models"), ("POST", "/v1/chat/completions")):
        assert play(sandbox.respond(method, path, headers, b"{}")).status == 401


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/nothing", 404),
        ("POST", "/v1/completions", 404),
        ("GET", "/v1/chat/completions", 405),
        ("DELETE", "/v1/models", 405),
        ("GET", "/v1/models/nope", 404),
        ("GET", "/v1/models/sandbox", 200),
    ],
)
def test_paths(method: str, path: str, status: int) -> None:
    assert play(sandbox.respond(method, path, AUTHORIZED, b"")).status == status


def test_unknown_models_and_models_of_another_kind() -> None:
    missing = chat("gpt-nope")
    assert missing.status == 404
    assert an_object(missing.json["error"])["code"] == "model_not_found"
    assert chat("sandbox-embedding").status == 404
    assert post("/v1/embeddings", b'{"model": "sandbox", "input": "x"}').status == 403


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["type", "role", "content", "function", "name", "$ref", "items", "text"]
            ),
            inner,
            max_size=3,
        )
    ),
    max_leaves=8,
)


@settings(deadline=None)
@given(
    model=st.sampled_from(list(sandbox.MODELS)),
    fields=st.dictionaries(
        st.sampled_from(
            ["messages", "tools", "tool_choice", "response_format", "n", "stop", "stream", "input"]
        ),
        json_values,
        max_size=3,
    ),
)
def test_whatever_is_asked_gets_a_script(model: str, fields: Json) -> None:
    body = json.dumps({"model": model, "messages": HELLO, **fields}).encode()
    for path in ("/v1/chat/completions", "/v1/embeddings"):
        assert 200 <= post(path, body).status < 600


@settings(deadline=None)
@given(schema=json_values)
def test_whatever_schema_is_given_gets_a_script(schema: object) -> None:
    described = {"name": "shape", "schema": schema}
    wanted = {"type": "json_schema", "json_schema": described}
    assert chat("sandbox-json", response_format=wanted).status in (200, 400)


# -- answers --------------------------------------------------------------------------------------


def test_the_list_has_every_model_with_a_sentence() -> None:
    listed = play(sandbox.respond("GET", "/v1/models", AUTHORIZED, b"")).json
    entries = {entry["id"]: entry for entry in objects(listed["data"])}
    assert list(entries) == list(sandbox.MODELS)
    for name, model in sandbox.MODELS.items():
        assert model.description.endswith(".")
        assert entries[name]["object"] == "model"
        assert entries[name]["description"] == model.description
    kinds = {name for name, model in sandbox.MODELS.items() if model.kind != "chat"}
    assert kinds == {"sandbox-embedding"}


def test_a_plain_answer() -> None:
    answer = chat("sandbox").json
    assert answer["object"] == "chat.completion"
    assert answer["model"] == "sandbox"
    assert answer["created"] == sandbox.CREATED
    assert answer["system_fingerprint"] == sandbox.FINGERPRINT
    assert str(answer["id"]).startswith("chatcmpl-")
    choice = first_choice(answer)
    assert choice["finish_reason"] == "stop"
    text = str(an_object(choice["message"])["content"])
    assert "not a model" in text
    assert "Hello, gateway!" in text
    assert (
        an_object(answer["usage"])
        | {
            "prompt_tokens": 8,  # 15 bytes / 4, and 4 for the message
            "completion_tokens": len(text.split()),
            "total_tokens": 8 + len(text.split()),
        }
        == answer["usage"]
    )


@pytest.mark.parametrize("model", TEXT_MODELS)
def test_a_stream_says_what_the_plain_answer_says(model: str) -> None:
    assert text_of(chat(model, stream=True)) == text_of(chat(model))


@pytest.mark.parametrize("model", TEXT_MODELS)
def test_every_chunk_is_complete(model: str) -> None:
    chunks = chat(model, stream=True).chunks
    for name in ("id", "created", "model", "system_fingerprint"):
        assert len({chunk[name] for chunk in chunks}) == 1
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert all("usage" not in chunk for chunk in chunks)
    assert an_object(first_choice(chunks[0])["delta"])["role"] == "assistant"
    reasons = [first_choice(chunk)["finish_reason"] for chunk in chunks]
    assert reasons == [None] * (len(chunks) - 1) + ["stop"]


def test_usage_comes_last_where_it_was_asked_for() -> None:
    *others, last = chat("sandbox", stream=True, stream_options={"include_usage": True}).chunks
    assert all(chunk["usage"] is None for chunk in others)
    assert last["choices"] == []
    assert last["usage"] == chat("sandbox").json["usage"]


@pytest.mark.parametrize("asked", [True, False])
def test_usage_beside_the_finish_reason(asked: bool) -> None:
    played = chat("sandbox-usage-on-finish", stream=True, stream_options={"include_usage": asked})
    *others, last = played.chunks
    assert all("usage" not in chunk for chunk in others)
    assert first_choice(last)["finish_reason"] == "stop"
    assert an_object(last["usage"])["completion_tokens"] == len(deltas(played))


def test_no_usage_at_all() -> None:
    assert "usage" not in chat("sandbox-no-usage").json
    options = {"include_usage": True}
    chunks = chat("sandbox-no-usage", stream=True, stream_options=options).chunks
    assert all("usage" not in chunk for chunk in chunks)


def test_the_same_request_gets_the_same_bytes() -> None:
    assert chat("sandbox", stream=True).body == chat("sandbox", stream=True).body
    other = chat("sandbox", user="u").json
    assert other["id"] != chat("sandbox").json["id"]


def test_long_and_slow() -> None:
    long = chat("sandbox-long", stream=True)
    assert len(deltas(long)) == 500
    assert long.pauses == []
    slow = chat("sandbox-slow", stream=True)
    assert len(deltas(slow)) == 20
    assert slow.pauses == [0.3] + [0.05] * 19
    assert chat("sandbox-slow").pauses == [pytest.approx(sum(slow.pauses))]


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
@pytest.mark.parametrize("stream", [True, False])
def test_caps_are_honoured(name: str, stream: bool) -> None:
    played = chat("sandbox-long", **{name: 3}, stream=stream)
    assert text_of(played) == "1 2 3"
    answer = played.chunks[-1] if stream else played.json
    assert first_choice(answer)["finish_reason"] == "length"
    exact = chat("sandbox-long", **{name: 500})
    assert first_choice(exact.json)["finish_reason"] == "stop"


def test_reasoning_counts_against_the_cap() -> None:
    usage = an_object(chat("sandbox-reasoning").json["usage"])
    assert an_object(usage["completion_tokens_details"])["reasoning_tokens"] == 64
    capped = chat("sandbox-reasoning", max_completion_tokens=10).json
    assert first_choice(capped)["finish_reason"] == "length"
    assert an_object(capped["usage"])["completion_tokens"] == 10


@pytest.mark.parametrize("stop", [" 4", ["nothing", " 4"]])
def test_stop_sequences_end_the_text_before_them(stop: object) -> None:
    for stream in (True, False):
        assert text_of(chat("sandbox-long", stop=stop, stream=stream)) == "1 2 3"


def test_several_choices() -> None:
    answer = chat("sandbox", n=3).json
    choices = objects(answer["choices"])
    assert [choice["index"] for choice in choices] == [0, 1, 2]
    one = an_object(chat("sandbox").json["usage"])
    usage = an_object(answer["usage"])
    assert usage["completion_tokens"] == 3 * int(str(one["completion_tokens"]))
    streamed = chat("sandbox", n=3, stream=True).chunks
    reasons = [first_choice(chunk) for chunk in streamed if first_choice(chunk)["finish_reason"]]
    assert [choice["index"] for choice in reasons] == [0, 1, 2]


def test_cached_is_half_of_the_prompt() -> None:
    usage = an_object(chat("sandbox-cached").json["usage"])
    assert an_object(usage["prompt_tokens_details"])["cached_tokens"] == 4


# -- tools and JSON -------------------------------------------------------------------------------


def test_the_first_function_is_called() -> None:
    choice = first_choice(chat("sandbox-tools", tools=TOOLS).json)
    assert choice["finish_reason"] == "tool_calls"
    message = an_object(choice["message"])
    assert message["content"] is None
    (call,) = objects(message["tool_calls"])
    function = an_object(call["function"])
    assert function["name"] == "weather"
    assert json.loads(str(function["arguments"])) == {"city": "sandbox"}


def test_a_call_is_streamed_in_fragments() -> None:
    chunks = chat("sandbox-tools", tools=TOOLS, stream=True).chunks
    found = [an_object(first_choice(chunk)["delta"]).get("tool_calls") for chunk in chunks]
    first, *rest = [objects(calls)[0] for calls in found if calls]
    assert {"index", "id", "type", "function"} == first.keys()
    assert an_object(first["function"]) == {"name": "weather", "arguments": ""}
    assert len(rest) > 1
    arguments = "".join(str(an_object(call["function"])["arguments"]) for call in rest)
    assert json.loads(arguments) == {"city": "sandbox"}


def test_the_chosen_function_is_called() -> None:
    other: Json = {"type": "function", "function": {"name": "other"}}
    choice: Json = {"type": "function", "function": {"name": "other"}}
    answer = chat("sandbox-tools", tools=[*TOOLS, other], tool_choice=choice).json
    (call,) = objects(an_object(first_choice(answer)["message"])["tool_calls"])
    assert call["function"] == {"name": "other", "arguments": "{}"}


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"tools": TOOLS, "tool_choice": "none"},
        {
            "tools": TOOLS,
            "messages": [*HELLO, *CALLED],
        },
    ],
)
def test_agents_come_to_an_end(fields: Json) -> None:
    assert first_choice(chat("sandbox-tools", **fields).json)["finish_reason"] == "stop"


def test_json_has_the_shape_that_was_asked_for() -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer", "minimum": 7}}}
    wanted = {"type": "json_schema", "json_schema": {"name": "shape", "schema": schema}}
    for stream in (True, False):
        played = chat("sandbox-json", response_format=wanted, stream=stream)
        assert json.loads(text_of(played)) == {"n": 7}
    fields: Json = {"response_format": {"type": "json_object"}}
    assert chat("sandbox-json", **fields).status == 400  # nobody has said JSON
    fields["messages"] = [{"role": "user", "content": "JSON, please"}]
    assert json.loads(text_of(chat("sandbox-json", **fields)))


def test_a_schema_that_nothing_fits_is_refused() -> None:
    schema = {"type": "object", "properties": {"me": {"$ref": "#"}}, "required": ["me"]}
    wanted = {"type": "json_schema", "json_schema": {"name": "endless", "schema": schema}}
    refused = chat("sandbox-json", response_format=wanted)
    assert refused.status == 400
    assert an_object(refused.json["error"])["code"] == "invalid_json_schema"
