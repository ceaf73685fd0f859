"""Chat requests as prompts: each member has its place, its silence, its report or its refusal."""

from __future__ import annotations

import json

import pytest

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
from adapters.codec import Ask
from adapters.envelope import Envelopes
from adapters.errors import InvalidRequest, RequestNotExpressible
from adapters.openai.chat_downstream import ChatDownstream

Json = dict[str, object]

ENVELOPES = Envelopes(b"p" * 32, "account")
PNG = "iVBORw0KGgoAAAAN"
BLOB = Blob("a", "claude", "thinking", "s")
SEALED = ENVELOPES.seal(BLOB)


def prompt(*messages: Json, **members: object) -> Prompt:
    asked = list(messages) or [{"role": "user", "content": "hi"}]
    body = {"model": "m", "messages": asked, **members}
    codec = ChatDownstream()
    return codec.prompt(codec.decode(json.dumps(body).encode(), Ask()), ENVELOPES)


def parts(*content: Json, role: str = "user") -> tuple[Part, ...]:
    (turn,) = prompt({"role": role, "content": list(content)}).turns
    return turn.parts


# -- messages -------------------------------------------------------------------------------------


def test_roles() -> None:
    found = prompt(
        {"role": "system", "content": "S"},
        {"role": "developer", "content": [{"type": "text", "text": "D"}], "name": "d"},
        {"role": "user", "content": "U", "name": "u"},
        {"role": "assistant", "content": "A", "refusal": "no"},
        {"role": "tool", "tool_call_id": "c", "content": "R"},
    )
    assert found.turns == (
        Turn(role="system", parts=(Text(text="S"),)),
        Turn(role="system", parts=(Text(text="D"),), name="d"),
        Turn(role="user", parts=(Text(text="U"),), name="u"),
        Turn(role="assistant", parts=(Text(text="A"), Refusal(text="no"))),
        Turn(role="user", parts=(ToolResult(call_id="c", content=(Text(text="R"),)),)),
    )


@pytest.mark.parametrize(
    ("given", "part"),
    [
        ({"type": "text", "text": "x"}, Text(text="x")),
        (
            {"type": "text", "text": "x", "prompt_cache_breakpoint": {"ttl": "12h"}},
            Text(text="x", cache="12h"),
        ),
        (
            {"type": "text", "text": "x", "prompt_cache_breakpoint": {"mode": "explicit"}},
            Text(text="x", cache="30m"),
        ),
        (
            {"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}},
            Text(text="x", cache="5m"),
        ),
        (
            {"type": "image_url", "image_url": {"url": "https://x/y", "detail": "low"}},
            Image(url="https://x/y", detail="low"),
        ),
        (
            {"type": "image_url", "image_url": f"data:image/jpeg;base64,{PNG}"},
            Image(media_type="image/png", data=PNG),
        ),
        (
            {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "mp3"}},
            Audio(media_type="audio/mp3", data="AAAA"),
        ),
        ({"type": "file", "file": {"file_id": "f"}}, Document(file_id="f")),
        (
            {
                "type": "file",
                "file": {"file_data": "data:application/pdf;base64,JVBERi0x", "filename": "a.pdf"},
            },
            Document(media_type="application/pdf", data="JVBERi0x", name="a.pdf"),
        ),
        (
            {"type": "video_url", "video_url": {"url": "https://x/v"}},
            Document(media_type="video/mp4", url="https://x/v"),
        ),
        (
            {"type": "image", "source": {"type": "base64", "media_type": "", "data": PNG}},
            Image(media_type="image/png", data=PNG),
        ),
        (
            {"type": "document", "source": {"type": "text", "data": "words"}},
            Document(media_type="text/plain", text="words"),
        ),
    ],
)
def test_parts(given: Json, part: Part) -> None:
    assert parts(given) == (part,)


def test_calls_in_all_forms() -> None:
    function = {"name": "f", "arguments": '{"n":12345678901234567890}'}
    calls: list[Json] = [
        {"id": "a", "type": "function", "function": function},
        {"id": "b", "type": "custom", "custom": {"name": "g", "input": "raw"}},
        {"type": "function", "function": {"name": "h", "arguments": {"x": 1.50}}},
    ]
    (turn,) = prompt({"role": "assistant", "content": None, "tool_calls": calls}).turns
    assert turn.parts == (
        ToolCall(id="a", name="f", arguments='{"n":12345678901234567890}'),
        ToolCall(id="b", name="g", arguments="raw", free=True),
        ToolCall(id="call_0_2", name="h", arguments='{"x": 1.5}'),
    )


def test_functions_of_the_first_days() -> None:
    found = prompt(
        {"role": "assistant", "function_call": {"name": "f", "arguments": "{}"}},
        {"role": "function", "name": "f", "content": "R"},
        functions=[{"name": "f", "parameters": {}}],
        function_call="auto",
    )
    call, result = found.turns[0].parts[0], found.turns[1].parts[0]
    assert isinstance(call, ToolCall)
    assert isinstance(result, ToolResult)
    assert (call.id, result.name) == (result.call_id, "f")
    assert found.tools == (Tool(name="f", schema={}),)
    assert (found.tool_choice, found.parallel) == (ToolChoice(mode="auto"), False)


# -- reasoning in the history ---------------------------------------------------------------------


def said(**members: object) -> tuple[Part, ...]:
    (turn,) = prompt({"role": "assistant", "content": "A", **members}).turns
    return turn.parts


def test_reasoning_without_a_signature_is_text() -> None:
    assert said(reasoning_content="hm") == (Thinking(text="hm"), Text(text="A"))
    assert said(reasoning="hm") == (Thinking(text="hm"), Text(text="A"))


def test_details_with_our_signature_are_the_reasoning() -> None:
    details = [
        {"type": "reasoning.text", "text": "one", "signature": SEALED},
        {"type": "reasoning.encrypted", "data": SEALED},
        {"type": "reasoning.encrypted", "data": "theirs"},
        "odd",
    ]
    assert said(reasoning_content="one", reasoning_details=details) == (
        Thinking(text="one", blob=BLOB),
        Thinking(blob=BLOB),
        Text(text="A"),
    )


@pytest.mark.parametrize("odd", ["x", {}, [5], [{"data": 5}], [{"data": "fb1.x.y"}]])
def test_details_that_mean_nothing_here_are_left_out(odd: object) -> None:
    assert said(reasoning_details=odd) == (Text(text="A"),)


def test_signatures_of_calls() -> None:
    blob = Blob("g", "gemini", "call", "s")
    call = {"id": "c", "function": {"name": "f", "arguments": "{}"}}
    for extra in (
        {"google": {"thought_signature": ENVELOPES.seal(blob)}},
        {"farebox": {"sig": ENVELOPES.seal(blob)}, "google": {"thought_signature": "theirs"}},
    ):
        assert said(tool_calls=[{**call, "extra_content": extra}])[-1] == ToolCall(
            id="c", name="f", arguments="{}", blob=blob
        )
    assert said(tool_calls=[{**call, "extra_content": 5}])[-1] == ToolCall(
        id="c", name="f", arguments="{}"
    )


def test_anthropics_thoughts() -> None:
    found = parts(
        {"type": "thinking", "thinking": "hm", "signature": SEALED},
        {"type": "thinking", "thinking": "hm", "signature": "native"},
        {"type": "redacted_thinking", "data": "native"},
        {"type": "redacted_thinking", "data": SEALED},
        role="assistant",
    )
    assert found == (Thinking(text="hm", blob=BLOB), Thinking(text="hm"), Thinking(blob=BLOB))


# -- tools ----------------------------------------------------------------------------------------

GRAMMAR = {"syntax": "lark", "definition": "start: X"}


@pytest.mark.parametrize(
    ("given", "tool"),
    [
        (
            {"type": "function", "function": {"name": "f", "description": "d", "strict": True}},
            Tool(name="f", description="d", strict=True),
        ),
        ({"type": "function", "name": "f", "parameters": {}}, Tool(name="f", schema={})),
        ({"name": "f", "input_schema": {}}, Tool(name="f", schema={})),
        ({"type": "custom", "name": "f", "input_schema": {}}, Tool(name="f", schema={})),
        (
            {
                "type": "custom",
                "custom": {"name": "f", "format": {"type": "grammar", "grammar": GRAMMAR}},
            },
            Tool(name="f", free=True, grammar=Grammar("lark", "start: X")),
        ),
        (
            {"type": "custom", "name": "f", "format": {"type": "grammar", **GRAMMAR}},
            Tool(name="f", free=True, grammar=Grammar("lark", "start: X")),
        ),
        ({"name": "f", "cache_control": {"ttl": "1h"}}, Tool(name="f", cache="1h")),
    ],
)
def test_tools(given: Json, tool: Tool) -> None:
    assert prompt(tools=[given]).tools == (tool,)


def test_tools_of_the_provider() -> None:
    found = prompt(tools=[{"type": "web_search"}, {"name": "f"}])
    assert found.hosted_tools == (HostedTool(type="web_search"),)
    assert found.tools == (Tool(name="f"),)


@pytest.mark.parametrize(
    ("given", "choice"),
    [
        ("auto", ToolChoice(mode="auto")),
        ("required", ToolChoice(mode="any")),
        ("none", ToolChoice(mode="none")),
        (
            {"type": "function", "function": {"name": "f"}},
            ToolChoice(mode="named", names=("f",)),
        ),
        ({"type": "custom", "custom": {"name": "f"}}, ToolChoice(mode="named", names=("f",))),
        ({"type": "tool", "name": "f"}, ToolChoice(mode="named", names=("f",))),
        ({"type": "any"}, ToolChoice(mode="any")),
        ({"type": "web_search"}, ToolChoice(mode="hosted", names=("web_search",))),
        (
            {
                "type": "allowed_tools",
                "allowed_tools": {
                    "mode": "required",
                    "tools": [{"type": "function", "function": {"name": "f"}}],
                },
            },
            ToolChoice(mode="any", names=("f",)),
        ),
    ],
)
def test_choices(given: object, choice: ToolChoice) -> None:
    assert prompt(tool_choice=given).tool_choice == choice


# -- parameters -----------------------------------------------------------------------------------


def test_parameters_have_their_places() -> None:
    found = prompt(
        temperature=0,
        top_p=0.5,
        top_k=4,
        seed=1,
        presence_penalty=1,
        frequency_penalty=-1,
        logit_bias={"5": 1},
        logprobs=True,
        top_logprobs=2,
        stop="END",
        verbosity="low",
        user="u",
        safety_identifier="s",
        prompt_cache_key="k",
        metadata={"a": "b", "c": 5},
        service_tier="flex",
        n=3,
        parallel_tool_calls=False,
        modalities=["text", "audio"],
        web_search_options={},
    )
    assert found.sampling == Sampling(
        temperature=0,
        top_p=0.5,
        top_k=4,
        seed=1,
        presence_penalty=1,
        frequency_penalty=-1,
        logit_bias={"5": 1},
        logprobs=True,
        top_logprobs=2,
    )
    assert (found.stop, found.verbosity, found.end_user) == (("END",), "low", "s")
    assert (found.cache_key, found.metadata, found.service_tier) == ("k", {"a": "b"}, "flex")
    assert (found.choices, found.parallel) == (3, False)
    assert found.audio_output
    assert found.web_search
    assert found.dropped == ()


@pytest.mark.parametrize(
    ("members", "reasoning"),
    [
        ({"reasoning_effort": "high"}, Reasoning(effort="high")),
        ({"reasoning": {"max_tokens": 500}}, Reasoning(budget=500, show=True)),
        (
            {"reasoning": {"effort": "low", "exclude": True}},
            Reasoning(effort="low", show=False),
        ),
        ({"reasoning": {"enabled": False}}, Reasoning(effort="none", show=True)),
        ({"thinking": {"type": "disabled"}}, Reasoning(effort="none")),
        ({"thinking": {"type": "enabled", "budget_tokens": 9}}, Reasoning(budget=9)),
        ({"thinking": {"type": "adaptive"}}, Reasoning(adaptive=True)),
        ({"reasoning_effort": None}, None),
    ],
)
def test_reasoning(members: Json, reasoning: Reasoning | None) -> None:
    assert prompt(**members).reasoning == reasoning


@pytest.mark.parametrize(
    ("given", "form"),
    [
        ({"type": "text"}, OutputFormat(kind="text")),
        ({"type": "json_object"}, OutputFormat(kind="json")),
        (
            {"type": "json_schema", "json_schema": {"name": "n", "schema": {}, "strict": True}},
            OutputFormat(kind="schema", schema={}, name="n", strict=True),
        ),
    ],
)
def test_formats(given: Json, form: OutputFormat) -> None:
    assert prompt(response_format=given).format == form


def test_hints_are_silent_and_the_unknown_is_reported() -> None:
    found = prompt(
        store=True,
        prediction={"type": "content", "content": "x"},
        prompt_cache_retention="24h",
        transforms=[],
        min_p=0.1,
        nothing=None,
        **{"bad\r\nname": 1},
    )
    assert found.dropped == ("transforms", "min_p")


# -- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"role": "robot", "content": "x"}, "messages[0].role"),
        ({"content": "x"}, "messages[0]"),
        ({"role": "user", "content": 5}, "messages[0].content"),
        ({"role": "user", "content": [{"text": "x"}]}, "messages[0].content[0]"),
        (
            {"role": "user", "content": [{"type": "text", "text": 5}]},
            "messages[0].content[0].text",
        ),
        ({"role": "user", "content": [{"type": "image_url"}]}, "messages[0].content[0].image_url"),
        (
            {
                "role": "user",
                "content": [{"type": "image_url", "image_url": "data:image/png;base64,"}],
            },
            "messages[0].content[0].image_url",
        ),
        ({"role": "tool", "content": "x"}, "messages[0].tool_call_id"),
        ({"role": "assistant", "tool_calls": [{"id": "c"}]}, "messages[0].tool_calls[0].function"),
    ],
)
def test_bad_messages_are_refused_by_their_place(message: Json, param: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        prompt(message)
    assert refused.value.param == param


@pytest.mark.parametrize(
    ("members", "param"),
    [
        ({"temperature": "hot"}, "temperature"),
        ({"stop": [5]}, "stop[0]"),
        ({"tools": [{"type": "function", "function": {}}]}, "tools[0]"),
        ({"tools": [5]}, "tools[0]"),
        ({"tool_choice": "maybe"}, "tool_choice"),
        ({"tool_choice": {"type": "function"}}, "tool_choice"),
        ({"reasoning_effort": "huge"}, "reasoning_effort"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
    ],
)
def test_bad_parameters_are_refused_by_name(members: Json, param: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        prompt(**members)
    assert refused.value.param == param


@pytest.mark.parametrize(
    ("message", "members"),
    [
        ({"role": "assistant", "audio": {"id": "a"}}, {}),
        ({"role": "user", "content": [{"type": "hologram"}]}, {}),
        ({"role": "system", "content": [{"type": "image_url", "image_url": "https://x"}]}, {}),
        ({"role": "user", "content": "x"}, {"modalities": ["text", "image"]}),
    ],
)
def test_what_no_other_protocol_has_is_refused(message: Json, members: Json) -> None:
    with pytest.raises(RequestNotExpressible):
        prompt(message, **members)
