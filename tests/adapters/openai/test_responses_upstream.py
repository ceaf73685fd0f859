"""Prompts as Responses bodies, and bodies of this protocol on their way to its providers."""

from __future__ import annotations

import json
from collections.abc import Mapping

import pytest
from msgspec.structs import replace

from adapters.canonical import (
    Audio,
    Blob,
    Document,
    Grammar,
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
from adapters.codec import Ask, Target
from adapters.envelope import Envelopes
from adapters.errors import RequestNotExpressible
from adapters.openai.responses_downstream import ResponsesDownstream
from adapters.openai.responses_scan import TOOL_CALLS_DEFAULT
from adapters.openai.responses_upstream import ResponsesUpstream
from adapters.passing import PassingCall
from tests.fakes.bodies import whole

Json = dict[str, object]

PROVIDER = Provider("oai", "openai-responses", "https://a.example/v1")
TARGET = Target(PROVIDER, "gpt-6-2026-10-01", 1000, stream=True)
ENVELOPES = Envelopes(b"k" * 32, "account")
CODEC = ResponsesUpstream()
OWN = Blob("oai", "gpt-6", "reasoning", "enc")
FOREIGN = Blob("anthropic", "claude-x", "thinking", "sig")


def prompt(*turns: Turn, **members: object) -> Prompt:
    return replace(Prompt(turns=turns or (user(Text(text="hi")),)), **members)


def user(*parts: Part) -> Turn:
    return Turn(role="user", parts=parts)


def assistant(*parts: Part) -> Turn:
    return Turn(role="assistant", parts=parts)


def system(*texts: str) -> Turn:
    return Turn(role="system", parts=tuple(Text(text=text) for text in texts))


def body(
    given: Prompt, target: Target = TARGET, expected_losses: tuple[str, ...] = ()
) -> dict[str, object]:
    encoded = CODEC.encode(given, target)
    assert encoded.path == "/responses"
    assert encoded.dropped == expected_losses
    found = json.loads(encoded.body)
    assert isinstance(found, dict)
    return found


def items(*turns: Turn) -> list[Json]:
    found = body(prompt(*turns))["input"]
    assert isinstance(found, list)
    return found


# -- what is always so ----------------------------------------------------------------------------


def test_nothing_is_kept_and_reasoning_comes_back() -> None:
    found = body(prompt())
    assert found == {
        "model": "gpt-6-2026-10-01",
        "input": [
            {
                "type": "message",
                "role": "user",
                "content": [{"type": "input_text", "text": "hi"}],
            }
        ],
        "max_output_tokens": 1000,
        "include": ["reasoning.encrypted_content"],
        "store": False,
        "stream": True,
    }
    assert not CODEC.encode(prompt(), TARGET).stops_itself


def test_output_cap_has_a_least_value() -> None:
    found = body(prompt(), replace(TARGET, output_cap=3), ("clamped:max_output_tokens",))
    assert found["max_output_tokens"] == 16
    assert "max_output_tokens" not in body(prompt(), replace(TARGET, output_cap=None))


def test_models_without_reasoning_are_not_asked_for_it() -> None:
    given = prompt(reasoning=Reasoning(effort="high", show=True))
    found = body(given, replace(TARGET, model="gpt-4o-mini"), ("reasoning",))
    assert "reasoning" not in found
    assert "include" not in found
    assert body(given)["reasoning"] == {"effort": "high", "summary": "auto"}


def test_budget_becomes_an_effort() -> None:
    given = prompt(reasoning=Reasoning(budget=8192))
    assert body(given)["reasoning"] == {"effort": "medium"}


# -- history --------------------------------------------------------------------------------------


def test_system_texts() -> None:
    question = user(Text(text="hi"))
    assert body(prompt(system("A"), system("B"), question))["instructions"] == "A\n\nB"
    later = items(question, assistant(Text(text="yes")), system("C"), question)
    assert later[2]["role"] == "developer"
    alone = body(prompt(system("A")))
    assert "instructions" not in alone
    assert len(alone["input"]) == 1  # type: ignore[arg-type]


def test_cache_marks_for_models_that_take_them() -> None:
    given = prompt(
        Turn(role="system", parts=(Text(text="A", cache="5m"),)),
        user(Text(text="hi", cache="1h")),
    )
    found = body(given)
    assert "instructions" not in found
    assert [item["content"][0]["prompt_cache_breakpoint"] for item in found["input"]] == [  # type: ignore[attr-defined]
        {"mode": "explicit", "ttl": "30m"},
        {"mode": "explicit", "ttl": "12h"},
    ]
    old = body(given, replace(TARGET, model="gpt-5.1"))
    assert old["instructions"] == "A"
    assert "prompt_cache_breakpoint" not in json.dumps(old)


def test_one_turn_becomes_items_in_its_order() -> None:
    found = items(
        user(Text(text="go")),
        assistant(
            Thinking(text="Hm", blob=OWN),
            Text(text="Looking."),
            Refusal(text="But not there."),
            ToolCall(id="c1", name="f", arguments='{"a": 1}'),
            ToolCall(id="c2", name="p", arguments="*** Begin", free=True),
        ),
        user(
            ToolResult(call_id="c1", content=(Text(text="1"),)),
            ToolResult(call_id="c2", content=(Text(text="bad"),), error=True),
            Text(text="and?"),
        ),
    )
    assert [item["type"] for item in found] == [
        "message",
        "reasoning",
        "message",
        "function_call",
        "custom_tool_call",
        "function_call_output",
        "custom_tool_call_output",
        "message",
    ]
    assert found[1] == {
        "type": "reasoning",
        "summary": [{"type": "summary_text", "text": "Hm"}],
        "encrypted_content": "enc",
    }
    assert found[2]["content"] == [
        {"type": "output_text", "text": "Looking."},
        {"type": "refusal", "refusal": "But not there."},
    ]
    assert found[3]["arguments"] == '{"a": 1}'
    assert found[4]["input"] == "*** Begin"
    assert found[6]["output"] == "Error: bad"


@pytest.mark.parametrize(
    "blob",
    [
        None,
        FOREIGN,
        Blob("oai", "gpt-5", "reasoning", "enc"),
        Blob("oai", "gpt-6", "thinking", "enc"),
    ],
)
def test_reasoning_of_others_is_left_out(blob: Blob | None) -> None:
    question = user(Text(text="a"))
    found = items(question, assistant(Thinking(text="Hm", blob=blob), Text(text="b")), question)
    assert "reasoning" not in [item["type"] for item in found]


def test_edge_58_ids_of_other_servers_are_made_safe() -> None:
    found = items(
        user(Text(text="a")),
        assistant(ToolCall(id="functions.Bash:0", name="Bash", arguments="")),
        user(ToolResult(call_id="functions.Bash:0", content=())),
    )
    assert found[1]["call_id"] == found[2]["call_id"]
    assert set(str(found[1]["call_id"])) <= set("abcdefghijklmnopqrstuvwxyz0123456789_")
    assert found[1]["arguments"] == "{}"


def test_media() -> None:
    (message,) = items(
        user(
            Image(media_type="image/png", data="AAAA", detail="low"),
            Image(url="https://a.example/x.png"),
            Image(file_id="file-1"),
            Document(media_type="application/pdf", data="AAAA", name="a.pdf"),
            Document(url="https://a.example/x.pdf"),
            Document(text="words", name="notes"),
            Document(file_id="file-2"),
            Audio(media_type="audio/mpeg", data="AAAA"),
        )
    )
    assert message["content"] == [
        {"type": "input_image", "detail": "low", "image_url": "data:image/png;base64,AAAA"},
        {"type": "input_image", "detail": "auto", "image_url": "https://a.example/x.png"},
        {"type": "input_image", "detail": "auto", "file_id": "file-1"},
        {
            "type": "input_file",
            "filename": "a.pdf",
            "file_data": "data:application/pdf;base64,AAAA",
        },
        {"type": "input_file", "file_url": "https://a.example/x.pdf"},
        {"type": "input_text", "text": "notes\n\nwords"},
        {"type": "input_file", "file_id": "file-2"},
        {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "mp3"}},
    ]


def test_result_with_media() -> None:
    image = Image(media_type="image/png", data="AAAA")
    found = items(
        user(Text(text="a")),
        assistant(ToolCall(id="c1", name="f", arguments="{}")),
        user(ToolResult(call_id="c1", content=(Text(text="see"), image))),
    )
    output = found[2]["output"]
    assert isinstance(output, list)
    assert [part["type"] for part in output] == ["input_text", "input_image"]


@pytest.mark.parametrize(
    ("part", "param"),
    [
        (Image(file_id="file_011C"), "file_id"),
        (Document(file_id="files/abc"), "file_id"),
        (Document(media_type="video/mp4", data="AAAA"), "input"),
        (Audio(media_type="audio/flac", data="AAAA"), "input_audio"),
    ],
)
def test_media_that_is_refused(part: Part, param: str) -> None:
    with pytest.raises(RequestNotExpressible) as refusal:
        items(user(part))
    assert refusal.value.param == param


def test_prefill_is_reported() -> None:
    body(prompt(user(Text(text="a")), assistant(Text(text="b"))), TARGET, ("approx:prefill",))


# -- tools ----------------------------------------------------------------------------------------

SCHEMA: Mapping[str, object] = {"type": "object", "properties": {"a": {"type": "string"}}}


def test_tools_of_every_form() -> None:
    given = prompt(
        tools=(
            Tool(name="f", description="F.", schema=SCHEMA),
            Tool(name="g"),
            Tool(name="h", namespace="crm", free=True, grammar=Grammar("lark", "start: A")),
            Tool(name="tool_search", search=True),
        ),
        parallel=False,
        tool_choice=ToolChoice(mode="any"),
    )
    found = body(given)
    assert found["tools"] == [
        {
            "type": "function",
            "name": "f",
            "description": "F.",
            "parameters": SCHEMA,
            "strict": False,
        },
        {
            "type": "function",
            "name": "g",
            "parameters": {"type": "object", "properties": {}},
            "strict": False,
        },
        {
            "type": "custom",
            "name": "crm__h",
            "format": {"type": "grammar", "syntax": "lark", "definition": "start: A"},
        },
        {
            "type": "function",
            "name": "tool_search",
            "parameters": {"type": "object", "properties": {}},
            "strict": False,
        },
    ]
    assert (found["tool_choice"], found["parallel_tool_calls"]) == ("required", False)
    names = CODEC.encode(given, TARGET).names
    assert names is not None
    restored = names.tool("crm__h")
    assert restored is not None
    assert (restored.namespace, restored.name, restored.free) == ("crm", "h", True)


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        (ToolChoice(mode="auto"), "auto"),
        (ToolChoice(mode="none"), "none"),
        (ToolChoice(mode="named", names=("f",)), {"type": "function", "name": "f"}),
        (ToolChoice(mode="named", names=("p",)), {"type": "custom", "name": "ns__p"}),
        (
            ToolChoice(mode="any", names=("f", "p")),
            {
                "type": "allowed_tools",
                "mode": "required",
                "tools": [
                    {"type": "function", "name": "f"},
                    {"type": "custom", "name": "ns__p"},
                ],
            },
        ),
    ],
)
def test_choices(choice: ToolChoice, expected: object) -> None:
    tools = (Tool(name="f"), Tool(name="p", free=True, namespace="ns"))
    assert body(prompt(tools=tools, tool_choice=choice))["tool_choice"] == expected


def test_tools_of_other_providers_are_dropped_or_refused() -> None:
    given = prompt(hosted_tools=(HostedTool(type="web_fetch"),), web_search=True)
    found = body(given, TARGET, ("tool:web_fetch", "web_search_options"))
    assert "tools" not in found
    forced = prompt(
        hosted_tools=(HostedTool(type="web_fetch"),),
        tool_choice=ToolChoice(mode="hosted", names=("web_fetch",)),
    )
    with pytest.raises(RequestNotExpressible):
        body(forced)


# -- parameters -----------------------------------------------------------------------------------


def test_parameters() -> None:
    found = body(
        prompt(
            sampling=Sampling(temperature=0.5, top_p=0.9, logprobs=True, top_logprobs=2),
            format=OutputFormat(kind="schema", schema=SCHEMA, description="D."),
            verbosity="low",
            end_user="x" * 100,
            cache_key="session",
            metadata={"a": "b"},
            service_tier="flex",
        ),
        replace(TARGET, model="some-model"),
    )
    assert (found["temperature"], found["top_p"], found["top_logprobs"]) == (0.5, 0.9, 2)
    assert found["include"] == ["reasoning.encrypted_content", "message.output_text.logprobs"]
    assert found["text"] == {
        "format": {
            "type": "json_schema",
            "name": "response",
            "schema": SCHEMA,
            "strict": False,
            "description": "D.",
        },
        "verbosity": "low",
    }
    assert len(str(found["safety_identifier"])) == 32
    assert (found["prompt_cache_key"], found["service_tier"]) == ("session", "flex")
    assert found["metadata"] == {"a": "b"}
    assert body(prompt(format=OutputFormat(kind="json")))["text"] == {
        "format": {"type": "json_object"}
    }


def test_what_has_no_place_is_reported() -> None:
    sampling = Sampling(top_k=1, seed=2, presence_penalty=0.1, frequency_penalty=0.2)
    expected = ("top_k", "seed", "presence_penalty", "frequency_penalty")
    body(prompt(sampling=sampling, service_tier="standard_only"), TARGET, expected)


def test_reasoning_models_get_no_sampling_and_an_effort_they_know() -> None:
    given = prompt(
        sampling=Sampling(temperature=1.0, top_p=0.95), reasoning=Reasoning(effort="max")
    )
    target = replace(TARGET, model="gpt-5.1")
    found = body(given, target, ("approx:effort", "temperature", "top_p"))
    assert found["reasoning"] == {"effort": "high"}
    assert not {"temperature", "top_p"} & found.keys()


@pytest.mark.parametrize(
    ("members", "param"),
    [
        ({"choices": 2}, "n"),
        ({"audio_output": True}, "modalities"),
        ({"sampling": Sampling(logit_bias={"1": 2.0})}, "logit_bias"),
    ],
)
def test_what_would_change_the_answer_is_refused(members: Json, param: str) -> None:
    with pytest.raises(RequestNotExpressible) as refusal:
        body(prompt(**members))
    assert refusal.value.param == param


# -- counting -------------------------------------------------------------------------------------


def test_counting() -> None:
    call = CODEC.counting(prompt(system("A"), user(Text(text="hi")), cache_key="x"), TARGET)
    assert call is not None
    assert call.path == "/responses/input_tokens"
    assert json.loads(call.body).keys() == {"model", "instructions", "input"}
    assert call.read(b'{"object":"response.input_tokens","input_tokens":12}') == 12
    for nothing in (b"", b"{}", b'{"input_tokens":-1}', b'{"input_tokens":"x"}'):
        assert call.read(nothing) is None


def test_counting_passing() -> None:
    request = ResponsesDownstream().decode(
        b'{"model":"m","input":"hi","stream":true,"tools":[ ],"store":true}', Ask()
    )
    call = CODEC.counting_passing(request, TARGET)
    assert call is not None
    assert call.body == b'{"model":"gpt-6-2026-10-01","input":"hi","tools":[ ]}'


# -- passing --------------------------------------------------------------------------------------


def passed(target: Target = TARGET, /, **members: object) -> PassingCall:
    given = json.dumps({"model": "m", "input": "hi", **members}).encode()
    return CODEC.passing(ResponsesDownstream().decode(given, Ask()), target, ENVELOPES)


def sent(**members: object) -> Json:
    found = json.loads(whole(passed(**members).body))
    assert isinstance(found, dict)
    return found


def test_body_goes_as_it_came() -> None:
    given = (
        b'{ "model":"m", "input":[{"type":"reasoning","id":"rs_1","encrypted_content":"gAAA"},'
        b'{"role":"user","content":"\\u00e9 1.50"}],"unknown":{"b":1.50,"a":[ ]},"store":true}'
    )
    call = CODEC.passing(ResponsesDownstream().decode(given, Ask()), TARGET, ENVELOPES)
    assert call.body == (
        b'{"model":"gpt-6-2026-10-01",'
        b'"input":[{"type":"reasoning","id":"rs_1","encrypted_content":"gAAA"},'
        b'{"role":"user","content":"\\u00e9 1.50"}],"unknown":{"b":1.50,"a":[ ]},"store":false,'
        b'"max_output_tokens":1000}'
    )
    assert (call.path, call.dropped, call.headers) == ("/responses", (), ())


def test_tool_calls_are_limited_to_what_was_reserved() -> None:
    assert sent(tools=[{"type": "web_search"}])["max_tool_calls"] == TOOL_CALLS_DEFAULT
    assert sent(tools=[{"type": "web_search"}], max_tool_calls=2)["max_tool_calls"] == 2
    assert "max_tool_calls" not in sent(tools=[{"type": "function", "name": "f"}])


def test_sealed_reasoning_goes_only_to_its_maker() -> None:
    question = {"role": "user", "content": "go"}
    given = [
        {"type": "reasoning", "summary": [], "encrypted_content": ENVELOPES.seal(FOREIGN)},
        {"type": "reasoning", "summary": [], "encrypted_content": ENVELOPES.seal(OWN)},
        {"type": "reasoning", "summary": [], "encrypted_content": "fb1.forged.mac"},
        {"type": "reasoning", "summary": [], "encrypted_content": "gAAA"},
        question,
    ]
    assert sent(input=given)["input"] == [
        {"type": "reasoning", "summary": [], "encrypted_content": "enc"},
        {"type": "reasoning", "summary": [], "encrypted_content": "gAAA"},
        question,
    ]


def test_reasoning_that_is_only_an_id_is_left_out() -> None:
    """Nothing is stored at the provider, where all our callers are one."""
    given: list[Json] = [
        {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": None},
        {"type": "reasoning", "id": "rs_2", "summary": [], "content": [{"text": "t"}]},
        {"role": "user", "content": "reasoning"},
    ]
    assert sent(input=given, store=False)["input"] == given[1:]
    assert sent(input=given)["input"] == given[1:]
    assert sent(input=given)["store"] is False


def test_errors_are_read() -> None:
    error = b'{"error":{"message":"Too long","code":"context_length_exceeded"}}'
    assert CODEC.read_error(400, {}, error).kind == "context_length"
    assert passed().read_error(503, {}, b"").kind == "overloaded"
