"""Prompts as Google gets them, by what each of its models can take."""

from __future__ import annotations

import json
from typing import cast

import pytest

from adapters.canonical import (
    Audio,
    Blob,
    BlobKind,
    Document,
    Effort,
    HostedTool,
    Image,
    OutputFormat,
    Part,
    Prompt,
    Reasoning,
    Refusal,
    Sampling,
    Text,
    Thinking,
    Tool,
    ToolCall,
    ToolChoice,
    ToolResult,
    Turn,
)
from adapters.catalogue import Provider
from adapters.codec import Encoded, Target
from adapters.errors import RequestNotExpressible
from adapters.gemini.signature import SKIP_VALIDATION
from adapters.gemini.upstream import GeminiUpstream

Json = dict[str, object]
NEW, OLD, OLDEST = "gemini-3.5-flash", "gemini-2.5-flash", "gemini-2.0-flash"


def target(model: str = NEW, *, stream: bool = False, cap: int | None = 100) -> Target:
    provider = Provider("google", "gemini", "https://generativelanguage.googleapis.com")
    return Target(provider, model, cap, stream)


def encoded(prompt: Prompt, model: str = NEW) -> Encoded:
    return GeminiUpstream().encode(prompt, target(model))


def body_of(prompt: Prompt, model: str = NEW) -> Json:
    return cast("Json", json.loads(encoded(prompt, model).body))


def user(*parts: Part | str) -> Turn:
    return Turn(role="user", parts=_parts(parts))


def assistant(*parts: Part | str) -> Turn:
    return Turn(role="assistant", parts=_parts(parts))


def system(*parts: Part | str) -> Turn:
    return Turn(role="system", parts=_parts(parts))


def _parts(parts: tuple[Part | str, ...]) -> tuple[Part, ...]:
    return tuple(Text(text=part) if isinstance(part, str) else part for part in parts)


def call(id_: str, name: str = "f", **rest: object) -> ToolCall:
    return ToolCall(**{"id": id_, "name": name, "arguments": '{"n":1}', **rest})  # type: ignore[arg-type] # of a table


def result(id_: str, *content: Text | Image | Document, error: bool = False) -> ToolResult:
    return ToolResult(call_id=id_, content=content or (Text(text="ok"),), error=error)


def asked(*turns: Turn, **rest: object) -> Prompt:
    return Prompt(**{"turns": turns or (user("hi"),), **rest})  # type: ignore[arg-type] # of a table


def contents(*turns: Turn, model: str = NEW) -> list[Json]:
    return cast("list[Json]", body_of(asked(*turns), model)["contents"])


def config(prompt: Prompt, model: str = NEW) -> Json:
    return cast("Json", body_of(prompt, model)["generationConfig"])


F = Tool(name="f", description="d", schema={"type": "object", "properties": {"a": {}}})


# -- the conversation -----------------------------------------------------------------------------


def test_path_and_cap() -> None:
    plain, stream = (
        GeminiUpstream().encode(asked(), target("gemini-x y", stream=streams))
        for streams in (False, True)
    )
    assert plain.path == "/v1beta/models/gemini-x%20y:generateContent"
    assert stream.path == "/v1beta/models/gemini-x%20y:streamGenerateContent?alt=sse"
    assert json.loads(plain.body)["generationConfig"] == {"maxOutputTokens": 100}


def test_instructions_stand_apart_and_later_ones_are_tagged() -> None:
    found = encoded(asked(system("a", "b"), user("hi"), system("c"), user("d")))
    body = json.loads(found.body)
    assert body["systemInstruction"] == {"parts": [{"text": "a"}, {"text": "b"}]}
    assert body["contents"] == [
        {
            "role": "user",
            "parts": [{"text": "hi"}, {"text": "<system>\nc\n</system>"}, {"text": "d"}],
        }
    ]
    assert found.dropped == ("approx:system",)


def test_the_first_content_is_the_users() -> None:
    found = encoded(asked(assistant("hello"), user("hi")))
    assert json.loads(found.body)["contents"][0] == {"role": "user", "parts": [{"text": "."}]}
    assert "approx:messages" in found.dropped
    assert json.loads(encoded(asked(system("x"))).body)["contents"][0]["role"] == "user"


def test_a_prefill_is_reported() -> None:
    assert encoded(asked(user("hi"), assistant("He"))).dropped == ("approx:prefill",)


def test_results_come_first_and_in_the_order_of_the_calls() -> None:
    found = contents(
        user("go"),
        assistant("calling", call("a"), call("b", "g")),
        user("by the way", result("b"), result("a", Text(text="no"), error=True)),
    )
    assert found[1]["parts"] == [
        {"text": "calling"},
        {
            "functionCall": {"id": "a", "name": "f", "args": {"n": 1}},
            "thoughtSignature": SKIP_VALIDATION,
        },
        {"functionCall": {"id": "b", "name": "g", "args": {"n": 1}}},
    ]
    assert found[2]["parts"] == [
        {"functionResponse": {"id": "a", "name": "f", "response": {"error": "no"}}},
        {"functionResponse": {"id": "b", "name": "g", "response": {"output": "ok"}}},
        {"text": "by the way"},
    ]


def test_older_models_get_no_ids() -> None:
    found = contents(user("go"), assistant(call("a")), user(result("a")), model=OLD)
    assert found[1]["parts"] == [{"functionCall": {"name": "f", "args": {"n": 1}}}]
    assert found[2]["parts"] == [{"functionResponse": {"name": "f", "response": {"output": "ok"}}}]


def test_edge_66_results_are_text_whatever_is_in_them() -> None:
    text = '{"$ref": "#/x"}'
    found = contents(user("go"), assistant(call("a")), user(result("a", Text(text=text))))
    parts = cast("list[Json]", found[2]["parts"])
    assert cast("Json", parts[0]["functionResponse"])["response"] == {"output": text}


def test_names_are_safe_and_the_same_everywhere() -> None:
    odd = Tool(name="9 lives", namespace="cat")
    prompt = asked(
        user("go"),
        assistant(call("a", "9 lives", namespace="cat")),
        user(result("a")),
        tools=(odd,),
        tool_choice=ToolChoice(mode="named", names=("9 lives",)),
    )
    found = encoded(prompt)
    body = json.loads(found.body)
    wire = body["tools"][0]["functionDeclarations"][0]["name"]
    assert wire == "cat__9_lives"
    assert body["contents"][1]["parts"][0]["functionCall"]["name"] == wire
    assert body["contents"][2]["parts"][0]["functionResponse"]["name"] == wire
    assert body["toolConfig"]["functionCallingConfig"]["allowedFunctionNames"] == [wire]
    assert found.names is not None
    assert found.names.tool(wire) is odd


def test_broken_arguments_are_kept_as_text() -> None:
    found = contents(user("go"), assistant(call("a", arguments='{"n"')), user(result("a")))
    parts = cast("list[Json]", found[1]["parts"])
    assert cast("Json", parts[0]["functionCall"])["args"] == {"_raw": '{"n"'}


def test_media() -> None:
    [content] = contents(
        user(
            Image(media_type="image/png", data="AAAA", detail="low"),
            Audio(media_type="audio/wav", data="AAAA"),
            Document(media_type="application/pdf", data="AAAA", name="a.pdf"),
            Document(text="note", name="a.txt"),
            Image(url="https://generativelanguage.googleapis.com/v1beta/files/1"),
            Refusal(text="no"),
        )
    )
    assert content["parts"] == [
        {
            "inlineData": {"mimeType": "image/png", "data": "AAAA"},
            "mediaResolution": {"level": "MEDIA_RESOLUTION_LOW"},
        },
        {"inlineData": {"mimeType": "audio/wav", "data": "AAAA"}},
        {"inlineData": {"mimeType": "application/pdf", "data": "AAAA"}},
        {"text": "a.txt\n\nnote"},
        {"fileData": {"fileUri": "https://generativelanguage.googleapis.com/v1beta/files/1"}},
        {"text": "no"},
    ]


@pytest.mark.parametrize(
    ("part", "param"),
    [
        (Image(url="https://example.com/a.png"), "image_url"),
        (Document(url="https://example.com/a.pdf"), "file_url"),
        (Document(file_id="file-1"), "file_id"),
    ],
)
def test_what_google_cannot_reach_is_refused(part: Part, param: str) -> None:
    with pytest.raises(RequestNotExpressible) as refused:
        encoded(asked(user(part)))
    assert refused.value.param == param
    assert "google" in refused.value.message


def test_media_in_results() -> None:
    image = Image(media_type="image/png", data="AAAA")
    turns = (user("go"), assistant(call("a")), user(result("a", Text(text="see"), image), "so?"))
    inline = {"inlineData": {"mimeType": "image/png", "data": "AAAA"}}
    newer = cast("list[Json]", contents(*turns)[2]["parts"])
    assert cast("Json", newer[0]["functionResponse"])["parts"] == [inline]
    older = cast("list[Json]", contents(*turns, model=OLD)[2]["parts"])
    assert older[1:] == [inline, {"text": "so?"}]


# -- signatures -----------------------------------------------------------------------------------


def blob(kind: BlobKind, value: str = "c2ln", family: str = NEW) -> Blob:
    return Blob("google", family, kind, value)


def model_parts(*parts: Part | str, model: str = NEW) -> list[Json]:
    calls = [part for part in parts if isinstance(part, ToolCall)]
    turns = (user("go"), assistant(*parts), user(*[result(each.id) for each in calls], "next"))
    return cast("list[Json]", contents(*turns, model=model)[1]["parts"])


def test_edge_42_44_the_signature_of_a_call_stands_beside_it() -> None:
    [part] = model_parts(call("a", blob=blob("call")))
    assert part["thoughtSignature"] == "c2ln"
    assert set(cast("Json", part["functionCall"])) == {"id", "name", "args"}


def test_a_thought_before_a_call_may_carry_its_signature() -> None:
    [part] = model_parts(Thinking(blob=blob("call")), call("a"))
    assert part["thoughtSignature"] == "c2ln"


def test_thoughts_and_text_keep_their_signatures() -> None:
    assert model_parts(
        Thinking(text="hm", blob=blob("thinking")), "said", Thinking(blob=blob("text"))
    ) == [
        {"text": "hm", "thought": True, "thoughtSignature": "c2ln"},
        {"text": "said"},
        {"text": "", "thoughtSignature": "c2ln"},
    ]


def test_foreign_thoughts_are_left_out() -> None:
    assert model_parts(
        Thinking(text="hm"), Thinking(text="hm", blob=Blob("claude", "c", "thinking", "x")), "said"
    ) == [{"text": "said"}]


def test_edge_43_calls_of_the_current_turn_get_a_stand_in() -> None:
    prompt = asked(
        user("one"), assistant(call("a")), user(result("a")), assistant("done"),
        user("two"), assistant(call("b"), call("c")), user(result("b"), result("c")),
        assistant(call("d", blob=blob("call", family="gemini-2.5-pro"))), user(result("d")),
    )  # fmt: skip
    found = encoded(prompt)
    signed = [
        part["functionCall"]["id"]
        for content in json.loads(found.body)["contents"]
        for part in content["parts"]
        if part.get("thoughtSignature") == SKIP_VALIDATION
    ]
    assert signed == ["b", "d"]
    assert found.dropped == ("degraded:thought_signature",)
    assert encoded(prompt, OLD).dropped == ()


# -- tools ----------------------------------------------------------------------------------------


def declaration(tool: Tool, model: str = NEW) -> Json:
    tools = cast("list[Json]", body_of(asked(tools=(tool,)), model)["tools"])
    return cast("list[Json]", tools[0]["functionDeclarations"])[0]


def test_declarations() -> None:
    assert declaration(F) == {
        "name": "f",
        "description": "d",
        "parametersJsonSchema": {"type": "object", "properties": {"a": {}}},
    }
    assert declaration(Tool(name="g", schema={"type": "object", "properties": {}})) == {"name": "g"}
    free = declaration(Tool(name="h", free=True))
    assert "input" in json.dumps(free["parametersJsonSchema"])


NESTED = {
    "60_exclusive_minimum": {"type": "integer", "exclusiveMinimum": 0},
    "61_pattern_properties": {"type": "object", "patternProperties": {"^x": {"type": "string"}}},
    "62_multiple_of": {"type": "array", "items": {"type": "number", "multipleOf": 0.5}},
    "63_unique_items": {
        "type": "array",
        "uniqueItems": True,
        "items": {"type": "string"},
        "unevaluatedItems": False,
    },
    "64_additional_properties": {
        "type": "object",
        "properties": {"z": {"type": "string"}},
        "additionalProperties": False,
    },
}
FORBIDDEN = ("exclusiveMinimum", "patternProperties", "multipleOf", "uniqueItems", "unevaluated")


@pytest.mark.parametrize("name", NESTED)
def test_edge_60_to_64_keywords_that_google_refuses_are_handled(name: str) -> None:
    schema: Json = {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "type": "object",
        "properties": {"deep": {"type": "array", "items": NESTED[name]}},
        "additionalProperties": False,
    }
    tool = Tool(name="f", schema=schema)
    old = json.dumps(declaration(tool, OLDEST)["parameters"])
    assert not any(word in old for word in (*FORBIDDEN, "additionalProperties", "$schema"))
    new = json.dumps(declaration(tool)["parametersJsonSchema"])
    assert "$schema" not in new
    assert "deep" in new


def test_edge_65_a_reference_in_items_is_resolved() -> None:
    schema: Json = {
        "type": "object",
        "properties": {"a": {"type": "array", "items": {"$ref": "#/$defs/x"}}},
        "$defs": {"x": {"type": "object", "properties": {"name": {"type": "string"}}}},
    }
    old = declaration(Tool(name="f", schema=schema), OLDEST)["parameters"]
    assert "$ref" not in json.dumps(old)
    assert "name" in json.dumps(old)
    new = json.dumps(declaration(Tool(name="f", schema=schema))["parametersJsonSchema"])
    assert "#/$defs/x" in new


def calling(choice: ToolChoice | None, tools: tuple[Tool, ...] = (F, Tool(name="g"))) -> object:
    body = body_of(asked(tools=tools, tool_choice=choice))
    return cast("Json", body.get("toolConfig", {})).get("functionCallingConfig")


@pytest.mark.parametrize(
    ("choice", "config"),
    [
        (None, None),
        (ToolChoice(mode="auto"), {"mode": "AUTO"}),
        (ToolChoice(mode="any"), {"mode": "ANY"}),
        (ToolChoice(mode="none"), {"mode": "NONE"}),
        (
            ToolChoice(mode="named", names=("f",)),
            {"mode": "ANY", "allowedFunctionNames": ["f"]},
        ),
        (
            ToolChoice(mode="any", names=("f", "g")),
            {"mode": "ANY", "allowedFunctionNames": ["f", "g"]},
        ),
    ],
)
def test_choices(choice: ToolChoice | None, config: object) -> None:
    assert calling(choice) == config


def test_a_restricted_auto_declares_only_the_subset() -> None:
    choice = ToolChoice(mode="auto", names=("g",))
    body = body_of(asked(tools=(F, Tool(name="g")), tool_choice=choice))
    tools = cast("list[Json]", body["tools"])
    assert tools[0]["functionDeclarations"] == [{"name": "g"}]


def test_strict_tools_are_validated() -> None:
    found = encoded(asked(tools=(Tool(name="f", strict=True),)))
    assert json.loads(found.body)["toolConfig"] == {"functionCallingConfig": {"mode": "VALIDATED"}}
    assert found.dropped == ("approx:strict",)


def test_tools_of_other_providers_are_left_out_unless_they_were_forced() -> None:
    hosted = (HostedTool(type="web_search"),)
    found = encoded(asked(tools=(F,), hosted_tools=hosted, parallel=False))
    assert found.dropped == ("tool:web_search", "parallel_tool_calls")
    with pytest.raises(RequestNotExpressible):
        encoded(asked(hosted_tools=hosted, tool_choice=ToolChoice(mode="hosted")))


# -- generationConfig -----------------------------------------------------------------------------


def test_sampling() -> None:
    sampling = Sampling(
        temperature=0.5, top_p=0.9, top_k=40, seed=7, presence_penalty=0.1,
        frequency_penalty=0.2, logprobs=True, top_logprobs=3,
    )  # fmt: skip
    assert config(asked(sampling=sampling, stop=("a", ""))) == {
        "maxOutputTokens": 100, "temperature": 0.5, "topP": 0.9, "topK": 40, "seed": 7,
        "presencePenalty": 0.1, "frequencyPenalty": 0.2, "responseLogprobs": True,
        "logprobs": 3, "stopSequences": ["a"],
    }  # fmt: skip


def test_a_seed_beyond_googles_range_is_folded() -> None:
    found = encoded(asked(sampling=Sampling(seed=2**63)))
    assert abs(json.loads(found.body)["generationConfig"]["seed"]) < 2**31
    assert found.dropped == ("approx:seed",)


def test_stops_beyond_the_fifth_are_looked_for_here() -> None:
    stops = tuple("abcdef")
    found = encoded(asked(stop=stops))
    assert json.loads(found.body)["generationConfig"]["stopSequences"] == list("abcde")
    assert not found.stops_itself
    assert encoded(asked(stop=stops[:5])).stops_itself


SCHEMA = OutputFormat(
    kind="schema", schema={"type": "object", "properties": {"a": {"type": "string"}}}
)


def test_edge_77_a_format_has_its_type_and_its_schema() -> None:
    found = config(asked(format=SCHEMA))
    assert found["responseMimeType"] == "application/json"
    assert found["responseJsonSchema"] == SCHEMA.schema
    found = config(asked(format=OutputFormat(kind="json")))
    assert found["responseMimeType"] == "application/json"
    assert "responseMimeType" not in config(asked(format=OutputFormat(kind="text")))


def test_edge_79_older_models_get_the_older_schema() -> None:
    found = config(asked(format=SCHEMA), OLDEST)
    assert "responseJsonSchema" not in found
    assert found["responseSchema"] == {
        "type": "OBJECT",
        "properties": {"a": {"type": "STRING"}},
    }


def test_older_models_take_tools_or_a_format() -> None:
    prompt = asked(tools=(F,), format=SCHEMA)
    assert "tools" in body_of(prompt)
    with pytest.raises(RequestNotExpressible) as refused:
        encoded(prompt, OLD)
    assert refused.value.param == "response_format"
    unused = asked(tools=(F,), format=SCHEMA, tool_choice=ToolChoice(mode="none"))
    assert "tools" not in body_of(unused, OLD)


@pytest.mark.parametrize(
    ("model", "effort", "thinking", "dropped"),
    [
        ("gemini-3.5-flash", "xhigh", {"thinkingLevel": "XHIGH"}, ()),
        ("gemini-3.5-flash", "max", {"thinkingLevel": "XHIGH"}, ()),
        ("gemini-3.5-flash", "none", {"thinkingLevel": "MINIMAL"}, ("approx:effort",)),
        ("gemini-3.1-pro", "xhigh", {"thinkingLevel": "HIGH"}, ("approx:effort",)),
        ("gemini-3-pro-preview", "medium", {"thinkingLevel": "LOW"}, ("approx:effort",)),
        ("gemini-flash-latest", "minimal", {"thinkingLevel": "MINIMAL"}, ()),
        ("gemini-2.5-flash", "medium", {"thinkingBudget": 8192}, ()),
        ("gemini-2.5-flash", "none", {"thinkingBudget": 0}, ()),
        ("gemini-2.5-pro", "none", {"thinkingBudget": 128}, ("approx:effort",)),
        ("gemini-2.5-flash", "xhigh", {"thinkingBudget": 24576}, ("approx:effort",)),
        ("gemini-2.0-flash", "high", None, ("reasoning_effort",)),
    ],
)
def test_effort(model: str, effort: Effort, thinking: object, dropped: tuple[str, ...]) -> None:
    found = encoded(asked(reasoning=Reasoning(effort=effort)), model)
    assert json.loads(found.body)["generationConfig"].get("thinkingConfig") == thinking
    assert found.dropped == dropped


def test_thoughts_are_asked_for_where_they_are_wanted() -> None:
    found = config(asked(reasoning=Reasoning(budget=1024, show=True)))
    assert found["thinkingConfig"] == {"includeThoughts": True, "thinkingLevel": "MINIMAL"}
    found = config(asked(reasoning=Reasoning(budget=1024)), OLD)
    assert found["thinkingConfig"] == {"thinkingBudget": 1024}


def test_service_tiers() -> None:
    assert body_of(asked(service_tier="flex"))["serviceTier"] == "FLEX"
    assert "serviceTier" not in body_of(asked(service_tier="auto"))


@pytest.mark.parametrize(
    ("rest", "param"),
    [
        ({"choices": 2}, "n"),
        ({"sampling": Sampling(logit_bias={"1": 1.0})}, "logit_bias"),
        ({"audio_output": True}, "modalities"),
    ],
)
def test_what_would_change_the_answer_is_refused(rest: Json, param: str) -> None:
    with pytest.raises(RequestNotExpressible) as refused:
        encoded(asked(**rest))
    assert refused.value.param == param


def test_counting_asks_for_the_whole_request() -> None:
    ask = GeminiUpstream().counting(asked(tools=(F,)), target(cap=None))
    body = json.loads(ask.body)["generateContentRequest"]
    assert ask.path == "/v1beta/models/gemini-3.5-flash:countTokens"
    assert body["model"] == "models/gemini-3.5-flash"
    assert set(body) == {"model", "contents", "tools"}
    assert ask.read(b'{"totalTokens": 31}') == 31
    assert ask.read(b"<html>") is None
