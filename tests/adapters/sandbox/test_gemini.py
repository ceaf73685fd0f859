"""The sandbox as Gemini: as strict, and with the same streams."""

from __future__ import annotations

import json

import pytest

from adapters import sandbox
from tests.fakes.sandbox import AUTHORIZED, GEMINI, Json, Played, an_object, ask, generate, objects

HELLO: Json = {"role": "user", "parts": [{"text": "Hello, gateway!"}]}
OBJECT: Json = {"type": "OBJECT", "properties": {"city": {"type": "STRING"}}}
WEATHER: Json = {"name": "weather", "parameters": OBJECT}
TIME: Json = {"name": "time"}
TOOLS: list[Json] = [{"functionDeclarations": [WEATHER, TIME]}]
CALL: Json = {"functionCall": {"name": "weather", "args": {}}}
RESPONSE: Json = {"functionResponse": {"name": "weather", "response": {"output": "Rain"}}}
GEMINI_3 = "gemini-3.5-flash-sandbox"
GEMINI_25 = "gemini-2.5-pro-sandbox"
WELL = [
    name
    for name, model in sandbox.MODELS.items()
    if not (model.refuses or model.breaks) and model.kind == "chat"
]


def error(played: Played) -> tuple[int, str, str]:
    assert next(iter(played.json)) == "error"
    found = an_object(played.json["error"])
    assert found["code"] == played.status
    return played.status, str(found["status"]), str(found["message"])


def chunks(played: Played) -> list[Json]:
    """The events of a stream, which has neither names nor an end mark."""
    assert played.headers["content-type"] == "text/event-stream"
    *events, rest = played.body.split(b"\r\n\r\n")
    assert rest == b""
    assert all(event.startswith(b"data: {") for event in events)
    return [an_object(json.loads(event[6:])) for event in events]


def candidate(answer: Json) -> Json:
    return objects(answer["candidates"])[0]


def parts(answer: Json) -> list[Json]:
    return objects(an_object(candidate(answer)["content"]).get("parts", []))


def user(*found: object) -> Json:
    return {"role": "user", "parts": list(found)}


def model(*found: object) -> Json:
    return {"role": "model", "parts": list(found)}


def config(**fields: object) -> Json:
    return {"generationConfig": fields}


@pytest.mark.parametrize("name", WELL)
@pytest.mark.parametrize(
    "fields", [{}, {"tools": TOOLS, **config(thinkingConfig={"includeThoughts": True})}]
)
def test_a_stream_says_what_the_plain_answer_says(name: str, fields: Json) -> None:
    whole = generate(name, **fields).json
    found = chunks(generate(name, stream=True, **fields))
    for thought in (True, False):
        texts = [
            "".join(
                str(part["text"])
                for answer in answers
                for part in parts(answer)
                if "text" in part and bool(part.get("thought")) is thought
            )
            for answers in ([whole], found)
        ]
        assert texts[0] == texts[1]
    calls = [
        part["functionCall"] for answer in found for part in parts(answer) if "functionCall" in part
    ]
    assert calls == [part["functionCall"] for part in parts(whole) if "functionCall" in part]
    assert candidate(found[-1])["finishReason"] == candidate(whole)["finishReason"]
    assert found[-1].get("usageMetadata") == whole.get("usageMetadata")


def test_without_events_a_stream_is_one_array() -> None:
    body = json.dumps({"contents": [HELLO]}).encode()
    played = ask("/v1/models/sandbox:streamGenerateContent", GEMINI, body)
    assert played.headers["content-type"] == "application/json"
    assert len(objects(json.loads(played.body))) > 10


def test_usage_keeps_thoughts_apart() -> None:
    usage = an_object(generate("sandbox-reasoning").json["usageMetadata"])
    assert usage["thoughtsTokenCount"] == 64
    assert usage["totalTokenCount"] == 8 + 64 + int(str(usage["candidatesTokenCount"]))
    cached = an_object(generate("sandbox-cached").json["usageMetadata"])
    assert (cached["promptTokenCount"], cached["cachedContentTokenCount"]) == (8, 4)


def test_refusals_filters_and_blocked_prompts() -> None:
    for name in ("sandbox-refusal", "sandbox-filtered"):
        assert candidate(generate(name).json)["finishReason"] == "SAFETY"
    for answer in (
        generate("sandbox-content-filter").json,
        *chunks(generate("sandbox-content-filter", stream=True)),
    ):
        assert "candidates" not in answer
        assert answer["promptFeedback"] == {"blockReason": "PROHIBITED_CONTENT"}


def test_several_candidates() -> None:
    answer = generate("sandbox", **config(candidateCount=2)).json
    assert [each["index"] for each in objects(answer["candidates"])] == [0, 1]


def test_json_of_the_shape_in_either_kind_of_schema() -> None:
    for name in ("responseSchema", "responseJsonSchema", "response_json_schema"):
        fields = config(**{"responseMimeType": "application/json", name: OBJECT})
        assert json.loads(str(parts(generate("sandbox-json", **fields).json)[0]["text"])) == {
            "city": "sandbox"
        }


@pytest.mark.parametrize("name", ["sandbox-parallel-tools", GEMINI_3 + "-reasoning-tools"])
def test_what_it_wrote_can_be_said_back(name: str) -> None:
    answer = generate(name, tools=TOOLS).json
    said = parts(answer)
    calls = [an_object(part["functionCall"]) for part in said]
    assert [call["name"] for call in calls] == ["weather", "time"]
    results = [
        {"functionResponse": {"name": call["name"], "response": {"output": "x"}}} for call in calls
    ]
    history: list[Json] = [HELLO, model(*said), user(*results)]
    assert generate(name, tools=TOOLS, contents=history).status == 200
    if "thoughtSignature" not in said[0]:
        return
    url_safe = str(said[0]["thoughtSignature"]).translate(str.maketrans("+/", "-_"))
    said[0]["thoughtSignature"] = url_safe
    assert generate(name, tools=TOOLS, contents=history).status == 200
    del said[0]["thoughtSignature"]
    assert "missing a thought_signature" in error(generate(name, tools=TOOLS, contents=history))[2]
    for bypass in ("skip_thought_signature_validator", "context_engineering_is_the_way_to_go"):
        said[0]["thoughtSignature"] = bypass
        assert generate(name, tools=TOOLS, contents=history).status == 200
    said[0]["thoughtSignature"] = "bm8="
    refused = generate(name, tools=TOOLS, contents=history)
    assert error(refused)[2] == "Thought signature is not valid."


@pytest.mark.parametrize("name", ["sandbox-reasoning-tools", GEMINI_3 + "-reasoning-tools"])
def test_a_stream_can_be_said_back_chunk_by_chunk(name: str) -> None:
    """As the JavaScript SDK does, which forgets the turn if any chunk is without parts."""
    fields = {"tools": TOOLS, **config(thinkingConfig={"includeThoughts": True})}
    said = [
        an_object(candidate(chunk)["content"])
        for chunk in chunks(generate(name, stream=True, **fields))
    ]
    assert all(objects(content["parts"]) for content in said)
    results = [
        {"functionResponse": {"name": name, "response": {"output": "x"}}}
        for name in ("weather", "time")
    ]
    again = generate(name, contents=[HELLO, *said, user(*results)], **fields)
    assert again.status == 200, again.body


def test_old_turns_need_no_signature() -> None:
    history = [HELLO, model(CALL), user(RESPONSE), model({"text": "Rain"}), HELLO]
    assert generate(GEMINI_3, tools=TOOLS, contents=history).status == 200
    refused = generate(GEMINI_3, tools=TOOLS, contents=[HELLO, model(CALL), user(RESPONSE)])
    assert "missing a thought_signature" in error(refused)[2]


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("sandbox-error-first", 500),
        ("sandbox-overloaded-first", 503),
        ("sandbox-error-in-stream", 500),
    ],
)
def test_errors_in_the_stream(name: str, code: int) -> None:
    last = chunks(generate(name, stream=True))[-1]
    assert next(iter(last)) == "error"
    assert an_object(last["error"])["code"] == code


def test_the_other_accidents() -> None:
    assert generate("sandbox-cut-40", stream=True).end == "cut"
    assert generate("sandbox-stall", stream=True).end == "hang"
    with pytest.raises(json.JSONDecodeError):
        chunks(generate("sandbox-malformed", stream=True))


@pytest.mark.parametrize(
    ("name", "code", "status"),
    [
        ("sandbox-error-400", 400, "INVALID_ARGUMENT"),
        ("sandbox-error-401", 401, "UNAUTHENTICATED"),
        ("sandbox-error-403", 403, "PERMISSION_DENIED"),
        ("sandbox-error-404", 404, "NOT_FOUND"),
        ("sandbox-error-429", 429, "RESOURCE_EXHAUSTED"),
        ("sandbox-error-500", 500, "INTERNAL"),
        ("sandbox-error-503", 503, "UNAVAILABLE"),
        ("sandbox-context-overflow", 400, "INVALID_ARGUMENT"),
        ("nope", 404, "NOT_FOUND"),
        ("sandbox-embedding", 404, "NOT_FOUND"),
    ],
)
def test_errors_in_its_own_envelope(name: str, code: int, status: str) -> None:
    assert error(generate(name))[:2] == (code, status)


def test_the_details_of_errors() -> None:
    details = objects(an_object(generate("sandbox-error-429").json["error"])["details"])
    assert details[1]["retryDelay"] == "1s"
    assert "exceeds the maximum number of tokens" in error(generate("sandbox-context-overflow"))[2]


def declared(**parameters: object) -> Json:
    return {"tools": [{"functionDeclarations": [{"name": "a", "parameters": parameters}]}]}


def calling(**fields: object) -> Json:
    return {"tools": TOOLS, "toolConfig": {"functionCallingConfig": fields}}


REFUSED: list[tuple[str, Json, str]] = [
    (
        "sandbox",
        {"foo": 1},
        'Invalid JSON payload received. Unknown name "foo": Cannot find field.',
    ),
    ("sandbox", {"contents": None}, "contents is not specified"),
    ("sandbox", {"contents": []}, "must not be empty"),
    ("sandbox", {"contents": [user()]}, "contents[0].parts: contents.parts must not be empty"),
    ("sandbox", {"contents": [user({})]}, "must have one initialized field"),
    ("sandbox", {"contents": [user({"text": "x", **CALL})]}, "(oneof)"),
    (
        "sandbox",
        {"contents": [user({"text": "x", "type": "text"})]},
        "Unknown name \"type\" at 'contents[0].parts[0]': Cannot find field.",
    ),
    ("sandbox", {"contents": [{"role": "assistant", "parts": [{"text": "x"}]}]}, "valid role"),
    ("sandbox", {"contents": [model({"text": "x"})]}, "First content should be with role 'user'"),
    (
        "sandbox",
        {"contents": [user({"inlineData": {"mimeType": "image/png", "data": "?"}})]},
        "Base64",
    ),
    ("sandbox", {"contents": [HELLO, user(RESPONSE)]}, "comes immediately after a function call"),
    ("sandbox", {"contents": [HELLO, model(CALL, CALL), user(RESPONSE)]}, "is equal to the number"),
    ("sandbox", {"contents": [HELLO, model(CALL), HELLO]}, "is equal to the number"),
    ("sandbox", {"contents": [HELLO, model(CALL)]}, "followed by a function response turn"),
    (
        "sandbox",
        {"contents": [HELLO, model({"functionCall": {"name": "time"}}), user(RESPONSE)]},
        "have the names of the function call parts",
    ),
    ("sandbox", {"contents": [user(CALL)]}, "only be in a turn with role 'model'"),
    ("sandbox", declared(type="OBJECT"), "should be non-empty for OBJECT type"),
    (
        "sandbox",
        declared(**OBJECT, additionalProperties=False),
        "Unknown name \"additionalProperties\" at 'tools[0].function_declarations[0].parameters'",
    ),
    (
        "sandbox",
        declared(type="object", properties={"a": {"type": "integer", "exclusiveMinimum": 1}}),
        "'tools[0].function_declarations[0].parameters.properties[0].value'",
    ),
    (
        "sandbox",
        declared(type="object", properties={"a": {"type": ["string", "null"]}}),
        "not repeating",
    ),
    ("sandbox", declared(type="object", properties={"a": {"type": "array"}}), "missing field"),
    (
        "sandbox",
        declared(type="object", properties={"a": {"type": "string", "format": "uri"}}),
        "only 'enum' and 'date-time'",
    ),
    ("sandbox", declared(**OBJECT, required=["b"]), "property is not defined"),
    (
        "sandbox",
        declared(type="object", properties={"a": {"type": "string", "enum": [1]}}),
        "TYPE_STRING",
    ),
    ("sandbox", {"tools": [{"functionDeclarations": [{"name": "1a"}]}]}, "Invalid function name"),
    ("sandbox", {"tools": [{"functionDeclarations": [TIME, TIME]}]}, "Duplicate function"),
    (
        "sandbox",
        {"tools": [{"functionDeclarations": [{**WEATHER, "parametersJsonSchema": {}}]}]},
        "mutually exclusive",
    ),
    ("sandbox", calling(mode="AUTO", allowedFunctionNames=["weather"]), "should only be set when"),
    ("sandbox", calling(mode="ANY", allowedFunctionNames=["x"]), "not among the declared"),
    ("sandbox", calling(mode="any"), "Invalid value at 'tool_config.function_calling_config.mode'"),
    ("sandbox", config(temperature=3), "generation_config.temperature"),
    ("sandbox", config(temperature="hot"), '(TYPE_FLOAT), "hot"'),
    ("sandbox", config(stopSequences=list("abcdef")), "must not exceed 5"),
    ("sandbox", config(responseSchema=OBJECT), "must be application/json"),
    ("sandbox", config(max_tokens=5), "Unknown name \"max_tokens\" at 'generation_config'"),
    (
        "sandbox",
        config(thinkingConfig={"thinkingBudget": 1, "thinkingLevel": "LOW"}),
        "only one of thinking budget and thinking level",
    ),
    (GEMINI_25, config(thinkingConfig={"thinkingLevel": "LOW"}), "level is not supported"),
    ("gemini-2.0-flash-sandbox", config(thinkingConfig={"thinkingBudget": 1}), "not supported"),
    (
        "gemini-2.0-flash-sandbox",
        config(responseMimeType="application/json", responseJsonSchema=OBJECT),
        "JSON schemas are not supported",
    ),
    (
        GEMINI_25,
        {"tools": TOOLS, **config(responseMimeType="application/json")},
        "Function calling with a response mime type",
    ),
]


@pytest.mark.parametrize(("name", "change", "why"), REFUSED, ids=[case[2] for case in REFUSED])
def test_refuses_what_gemini_refuses(name: str, change: Json, why: str) -> None:
    code, status, message = error(generate(name, **change))
    assert (code, status) == (400, "INVALID_ARGUMENT")
    assert why in message


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("sandbox", {"generationConfig": {}, "safetySettings": []}),
        ("sandbox", {"contents": [{"parts": [{"text": "x"}]}, HELLO]}),
        ("sandbox", {"systemInstruction": {"role": "user", "parts": [{"text": "x"}]}}),
        (
            "sandbox",
            {"system_instruction": {"parts": [{"text": "x"}]}, "tools": [{"googleSearch": {}}]},
        ),
        ("sandbox", config(thinking_config={"include_thoughts": True, "thinking_budget": 1024})),
        (
            "sandbox",
            {
                "tools": [
                    {
                        "function_declarations": [
                            {"name": "a", "parameters_json_schema": {"oneOf": []}}
                        ]
                    }
                ]
            },
        ),
        (
            "sandbox",
            {"contents": [user({"inline_data": {"mime_type": "image/png", "data": "aGk="}})]},
        ),
        ("sandbox", {"contents": [HELLO, model(CALL), user(RESPONSE, {"text": "and?"})]}),
        ("sandbox", declared(**OBJECT, property_ordering=["city"], required=["city"])),
        (GEMINI_3, config(thinkingConfig={"thinkingLevel": "HIGH"}, topK=64, topP=0.95)),
        (GEMINI_3, {"tools": TOOLS, **config(responseMimeType="application/json")}),
        (GEMINI_25, config(thinkingConfig={"thinkingBudget": -1})),
    ],
)
def test_takes_what_gemini_takes(name: str, fields: Json) -> None:
    played = generate(name, **fields)
    assert played.status == 200, played.body


def test_keys() -> None:
    body = json.dumps({"contents": [HELLO]}).encode()
    path = "/v1beta/models/sandbox:generateContent"
    assert error(ask(path, {}, body))[:2] == (403, "PERMISSION_DENIED")
    assert ask(path, AUTHORIZED, body).status == 403
    assert ask(path + "?key=sandbox", {}, body).status == 200


def test_counting() -> None:
    inner = {"contents": [HELLO]}
    for body in (inner, {"generateContentRequest": {"model": "models/sandbox", **inner}}):
        played = ask("/v1/models/sandbox:countTokens", GEMINI, json.dumps(body).encode())
        assert played.json["totalTokens"] == 8


def test_embeddings() -> None:
    content = {"parts": [{"text": "one"}]}
    single = {"content": content, "outputDimensionality": 8}
    path = "/v1beta/models/sandbox-embedding:"
    one = ask(path + "embedContent", GEMINI, json.dumps(single).encode()).json
    requests = [{"model": "models/sandbox-embedding", **single}] * 2
    body = json.dumps({"requests": requests}).encode()
    batch = ask(path + "batchEmbedContents", GEMINI, body).json
    assert objects(batch["embeddings"]) == [one["embedding"]] * 2
    assert batch["usageMetadata"] == {"promptTokenCount": 2}
    unnamed = json.dumps({"requests": [single]}).encode()
    assert ask(path + "batchEmbedContents", GEMINI, unnamed).status == 400
    wrong = path.replace("sandbox-embedding", "sandbox") + "embedContent"
    assert ask(wrong, GEMINI, json.dumps(single).encode()).status == 404


def test_the_list_of_models_has_pages() -> None:
    for path in ("/v1beta/models", "/v1/models"):
        first = ask(f"{path}?pageSize=3", GEMINI, b"", "GET").json
        token = first["nextPageToken"]
        rest = ask(f"{path}?pageSize=1000&pageToken={token}", GEMINI, b"", "GET").json
        names = [model["name"] for page in (first, rest) for model in objects(page["models"])]
        assert names == [f"models/{name}" for name in sandbox.MODELS]
        assert "nextPageToken" not in rest
    assert ask("/v1/models/sandbox", GEMINI, b"", "GET").json["name"] == "models/sandbox"
    assert ask("/v1beta/models/nope", GEMINI, b"", "GET").status == 404
    assert ask("/v1beta/nothing", GEMINI, b"", "GET").status == 404
