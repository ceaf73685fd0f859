"""The sandbox as OpenAI's Responses: as strict, and with the same streams."""

from __future__ import annotations

import json

import pytest

from adapters import sandbox
from tests.fakes.sandbox import AUTHORIZED, Json, Played, an_object, ask, objects, post, responses

HELLO: Json = {"role": "user", "content": "Hello, gateway!"}
SCHEMA: Json = {"type": "object", "properties": {"city": {"type": "string"}}}
STRICT: Json = {**SCHEMA, "required": ["city"], "additionalProperties": False}
FUNCTION: Json = {"type": "function", "name": "weather", "parameters": SCHEMA, "strict": False}
CUSTOM: Json = {"type": "custom", "name": "apply_patch"}
NAMESPACE: Json = {
    "type": "namespace",
    "name": "files",
    "tools": [{"type": "function", "name": "ls"}],
}
TOOLS: list[Json] = [FUNCTION, CUSTOM, NAMESPACE, {"type": "web_search"}]
CALL: Json = {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": "{}"}
OUTPUT: Json = {"type": "function_call_output", "call_id": "c1", "output": "Rain"}
WELL = [
    name
    for name, model in sandbox.MODELS.items()
    if not (model.refuses or model.breaks) and model.kind == "chat"
]


def error(played: Played) -> Json:
    return an_object(played.json["error"])


def accumulated(events: list[Json]) -> tuple[list[Json], Json]:
    """The items that a strict reader makes of a stream, and the response at its end."""
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    first, second, *rest, last = events
    assert first["type"] == "response.created"
    assert second["type"] == "response.in_progress"
    items: list[Json] = []
    pieces: list[str] = []
    current: Json | None = None
    for event in rest:
        kind = str(event["type"])
        if kind == "response.output_item.added":
            assert current is None
            assert event["output_index"] == len(items)
            current, pieces = an_object(event["item"]), []
            continue
        assert current is not None
        if kind == "response.output_item.done":
            done = an_object(event["item"])
            assert done["id"] == current["id"]
            items.append(done)
            current = None
            continue
        assert event["item_id"] == current["id"]
        assert event["output_index"] == len(items)
        if kind.endswith(".delta"):
            pieces.append(str(event["delta"]))
        for member in ("text", "refusal", "arguments", "input"):
            if kind.endswith(".done") and member in event:
                assert "".join(pieces) == event[member]
    return items, last


@pytest.mark.parametrize("model", WELL)
@pytest.mark.parametrize("fields", [{}, {"tools": TOOLS, "reasoning": {"summary": "auto"}}])
def test_a_stream_says_what_the_plain_answer_says(model: str, fields: Json) -> None:
    whole = responses(model, **fields).json
    items, last = accumulated(responses(model, stream=True, **fields).named)
    assert last["type"] == f"response.{whole['status']}"
    response = an_object(last["response"])
    assert response["output"] == items
    assert response["usage"] == whole["usage"]
    expected = objects(whole["output"])
    for item in [*items, *expected]:  # ids are of the request
        for name in ("id", "call_id", "encrypted_content"):
            item.pop(name, None)
    assert items == expected


def test_reasoning_is_always_encrypted_and_sometimes_shown() -> None:
    hidden = objects(responses("sandbox-reasoning").json["output"])[0]
    assert hidden["summary"] == []
    assert hidden["encrypted_content"]
    shown = objects(responses("sandbox-reasoning", reasoning={"summary": "auto"}).json["output"])[0]
    assert str(objects(shown["summary"])[0]["text"]).startswith("1 2 3")
    none = objects(responses("sandbox-reasoning", reasoning={"effort": "none"}).json["output"])
    assert none[0]["type"] == "message"
    usage = an_object(responses("sandbox-reasoning").json["usage"])
    assert usage["output_tokens_details"] == {"reasoning_tokens": 64}


def test_an_item_that_was_added_has_not_yet_its_encrypted_content() -> None:
    events = responses("sandbox-reasoning", stream=True).named
    added, done = (
        an_object(event["item"])
        for event in events
        if event.get("output_index") == 0 and "item" in event
    )
    assert str(done["encrypted_content"]).startswith(str(added["encrypted_content"]))
    assert added["encrypted_content"] != done["encrypted_content"]


def test_deltas_are_obfuscated_unless_they_must_not_be() -> None:
    def deltas(**fields: object) -> list[Json]:
        events = responses("sandbox", stream=True, **fields).named
        return [event for event in events if str(event["type"]).endswith(".delta")]

    assert all(delta["obfuscation"] for delta in deltas())
    plain = deltas(stream_options={"include_obfuscation": False})
    assert not any("obfuscation" in delta for delta in plain)


def test_every_kind_of_tool_is_called() -> None:
    function, custom, inner = objects(
        responses("sandbox-parallel-tools", tools=TOOLS).json["output"]
    )
    assert json.loads(str(function["arguments"])) == {"city": "sandbox"}
    assert (custom["type"], custom["input"]) == ("custom_tool_call", "sandbox input")
    assert (inner["namespace"], inner["name"]) == ("files", "ls")
    one = responses("sandbox-parallel-tools", tools=TOOLS, parallel_tool_calls=False).json
    assert len(objects(one["output"])) == 1


def test_what_it_wrote_can_be_said_back() -> None:
    output = objects(responses("sandbox-reasoning-tools", tools=TOOLS).json["output"])
    outputs = [
        {"type": f"{item['type']}_output", "call_id": item["call_id"], "output": "x"}
        for item in output
        if "call_id" in item
    ]
    history = [HELLO, *output, *outputs]
    again = responses("sandbox-reasoning-tools", tools=TOOLS, input=history)
    assert again.status == 200, again.body
    assert "input_transformations" not in again.json
    elsewhere = responses("sandbox-tools", tools=TOOLS, input=history).json
    (removed,) = objects(elsewhere["input_transformations"])
    assert removed["item_id"] == output[0]["id"]


def test_how_answers_end() -> None:
    capped = responses("sandbox-long", max_output_tokens=16).json
    assert capped["status"] == "incomplete"
    assert capped["incomplete_details"] == {"reason": "max_output_tokens"}
    filtered = responses("sandbox-filtered").json
    assert filtered["incomplete_details"] == {"reason": "content_filter"}
    (message,) = objects(responses("sandbox-refusal").json["output"])
    assert objects(message["content"])[0]["type"] == "refusal"
    assert responses("sandbox-no-usage").json["usage"] is None


def test_json_of_the_shape() -> None:
    wanted = {"format": {"type": "json_schema", "name": "n", "schema": STRICT, "strict": True}}
    (message,) = objects(responses("sandbox-json", text=wanted).json["output"])
    assert json.loads(str(objects(message["content"])[0]["text"])) == {"city": "sandbox"}


def test_errors_in_the_stream() -> None:
    (first,) = responses("sandbox-error-first", stream=True).named
    assert first["type"] == "error"
    assert first["message"] == an_object(first["error"])["message"]
    *_, failed = responses("sandbox-error-in-stream", stream=True).named
    assert failed["type"] == "response.failed"
    assert an_object(an_object(failed["response"])["error"])["code"] == "server_error"
    *_, overloaded = responses("sandbox-overloaded-first", stream=True).named
    assert overloaded["code"] == "server_is_overloaded"
    assert responses("sandbox-error-in-stream").json["status"] == "failed"
    assert responses("sandbox-cut-40", stream=True).end == "cut"
    assert responses("sandbox-stall", stream=True).end == "hang"
    with pytest.raises(json.JSONDecodeError):
        _ = responses("sandbox-malformed", stream=True).named


def user(*parts: object) -> Json:
    return {"role": "user", "content": list(parts)}


def with_input(*items: object) -> Json:
    return {"input": list(items)}


REFUSED: list[tuple[Json, str | None, str | None]] = [
    ({"input": None}, "input", "missing_required_parameter"),
    ({"stop": ["x"]}, "stop", "unknown_parameter"),
    ({"messages": []}, "messages", "unsupported_parameter"),
    ({"max_tokens": 20}, "max_tokens", "unsupported_parameter"),
    ({"max_output_tokens": 15}, "max_output_tokens", "integer_below_min_value"),
    ({"input": 1}, "input", "invalid_type"),
    (with_input({"role": "boss", "content": "x"}), "input[0].role", "invalid_value"),
    (with_input({"role": "user"}), "input[0].content", "missing_required_parameter"),
    (with_input({**HELLO, "name": "x"}), "input[0].name", "unknown_parameter"),
    (with_input({**HELLO, "id": "x"}), "input[0].id", "invalid_value"),
    (with_input({**CALL, "id": "call_1"}, OUTPUT), "input[0].id", "invalid_value"),
    (with_input({**CALL, "call_id": "x" * 65}), "input[0].call_id", "string_above_max_length"),
    (with_input({**CALL, "arguments": {}}), "input[0].arguments", "invalid_type"),
    (with_input(user({"type": "text", "text": "x"})), "input[0].content[0].type", "invalid_value"),
    (
        with_input({"role": "assistant", "content": [{"type": "input_text", "text": "x"}]}),
        "input[0].content[0].type",
        "invalid_value",
    ),
    (
        with_input(user({"type": "input_image", "image_url": "file:///etc/passwd"})),
        "input[0].content[0].image_url",
        "invalid_value",
    ),
    (
        with_input(user({"type": "input_image", "image_url": {"url": "https://x"}})),
        "input[0].content[0].image_url",
        "invalid_type",
    ),
    (with_input(HELLO, OUTPUT), "input", None),
    (with_input(HELLO, CALL), "input", None),
    (
        with_input(HELLO, {**CALL, "type": "custom_tool_call", "input": ""}),
        "input[1].arguments",
        "unknown_parameter",
    ),
    (
        with_input({"type": "reasoning", "id": "rs_1"}),
        "input[0].summary",
        "missing_required_parameter",
    ),
    (
        {"tools": [{"type": "function", "function": {"name": "x"}}]},
        "tools[0].name",
        "missing_required_parameter",
    ),
    (
        {"tools": [{**FUNCTION, "strict": True}]},
        "tools[0].parameters",
        "invalid_function_parameters",
    ),
    ({"tools": [FUNCTION], "tool_choice": {"type": "function", "name": "x"}}, "tool_choice", None),
    (
        {"text": {"format": {"type": "json_schema", "json_schema": {}}}},
        "text.format.name",
        "missing_required_parameter",
    ),
    (
        {
            "text": {
                "format": {"type": "json_schema", "name": "n", "schema": SCHEMA, "strict": True}
            }
        },
        "text.format.schema",
        "invalid_json_schema",
    ),
    ({"text": {"format": {"type": "json_object"}}}, "input", None),
    ({"include": ["everything"]}, "include[0]", "invalid_value"),
    ({"previous_response_id": "resp_1"}, "previous_response_id", "previous_response_not_found"),
    (
        {"stream_options": {"include_usage": True}},
        "stream_options.include_usage",
        "unknown_parameter",
    ),
    ({"model": "gpt-5.6-sandbox", "temperature": 1}, "temperature", "unsupported_parameter"),
    (
        {"model": "gpt-4o-sandbox", "reasoning": {"effort": "low"}},
        "reasoning.effort",
        "unsupported_parameter",
    ),
    ({"model": "sandbox-context-overflow"}, "input", "context_length_exceeded"),
    ({"model": "sandbox-content-filter"}, None, "invalid_prompt"),
]


@pytest.mark.parametrize(("change", "param", "code"), REFUSED, ids=[str(c[0]) for c in REFUSED])
def test_refuses_what_openai_refuses(change: Json, param: str | None, code: str | None) -> None:
    played = responses(**{"model": "sandbox", **change})  # type: ignore[arg-type]
    assert played.status == 400
    assert (error(played)["type"], error(played)["param"], error(played)["code"]) == (
        "invalid_request_error",
        param,
        code,
    )


@pytest.mark.parametrize(
    "fields",
    [
        {"instructions": "Be short.", "store": False, "include": ["reasoning.encrypted_content"]},
        with_input(
            {"type": "message", "id": "msg_1", **HELLO}, {"role": "developer", "content": "x"}
        ),
        with_input(
            {
                "type": "message",
                "id": "msg_1",
                "role": "assistant",
                "status": "completed",
                "content": [{"type": "output_text", "text": "x", "annotations": []}],
            },
            HELLO,
        ),
        with_input(HELLO, {**CALL, "id": "fc_1"}, HELLO, OUTPUT),
        with_input(
            user(
                {"type": "input_image", "image_url": "data:image/png;base64,aGk=", "detail": "low"}
            )
        ),
        with_input(HELLO, {"type": "web_search_call", "id": "ws_1"}),
        {
            "tools": TOOLS,
            "tool_choice": "auto",
            "parallel_tool_calls": True,
            "reasoning": {"summary": "auto"},
        },
        {"client_metadata": {}, "prompt_cache_key": "k", "text": {"verbosity": "low"}},
        {"model": "gpt-5.6-sandbox", "reasoning": {"effort": "high"}},
    ],
)
def test_takes_what_openai_takes(fields: Json) -> None:
    played = responses(**{"model": "sandbox", **fields})  # type: ignore[arg-type]
    assert played.status == 200, played.body


def test_nothing_is_kept() -> None:
    for item in (
        {"type": "item_reference", "id": "rs_1"},
        {"type": "reasoning", "id": "rs_1", "summary": []},
    ):
        assert responses("sandbox", input=[HELLO, item]).status == 404
    assert ask("/v1/responses/resp_1", AUTHORIZED, b"", "GET").status == 404


def test_counting() -> None:
    body = json.dumps({"model": "sandbox", "input": "Hello, gateway!"}).encode()
    assert post("/v1/responses/input_tokens", body).json["input_tokens"] == 8


def test_embedding_models_give_no_responses() -> None:
    assert responses("sandbox-embedding").status == 404
