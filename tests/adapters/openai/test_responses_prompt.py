"""Responses bodies as prompts: every item has its meaning, is named as lost, or is refused."""

from __future__ import annotations

import json
from base64 import b64encode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.canonical import (
    Audio,
    Blob,
    Document,
    Grammar,
    HostedTool,
    Image,
    OutputFormat,
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
from adapters.envelope import Envelopes
from adapters.errors import InvalidRequest, RequestNotExpressible
from adapters.openai.body import read_fields
from adapters.openai.responses_prompt import read_prompt

ENVELOPES = Envelopes(b"k" * 32, "account")
PNG = b64encode(b"\x89PNG\r\n\x1a\n0000").decode()


def prompt(**members: object) -> Prompt:
    body = {"model": "m", "input": "hi", **members}
    return read_prompt(read_fields(json.dumps(body).encode()), ENVELOPES)


def turns(*items: object) -> tuple[Turn, ...]:
    return prompt(input=list(items)).turns


def user(*parts: object) -> object:
    return {"role": "user", "content": list(parts)}


def call(name: str = "f", **members: object) -> dict[str, object]:
    return {
        "type": "function_call",
        "call_id": "c1",
        "name": name,
        "arguments": '{"a":1}',
        **members,
    }


def reasoning(blob: Blob | None, *summary: str) -> object:
    return {
        "type": "reasoning",
        "id": "rs_1",
        "summary": [{"type": "summary_text", "text": text} for text in summary],
        "content": None,
        "encrypted_content": None if blob is None else ENVELOPES.seal(blob),
    }


# -- items ----------------------------------------------------------------------------------------


def test_text_and_instructions() -> None:
    found = prompt(instructions="Be brief.").turns
    assert found == (
        Turn(role="system", parts=(Text(text="Be brief."),)),
        Turn(role="user", parts=(Text(text="hi"),)),
    )


def test_messages_of_every_form() -> None:
    found = turns(
        {"role": "developer", "content": "rules"},
        {"type": "message", "role": "user", "content": "easy", "id": "msg_1"},
        user({"type": "input_text", "text": "parts"}),
        {
            "type": "message",
            "id": "msg_2",
            "role": "assistant",
            "status": "completed",
            "phase": "commentary",
            "content": [
                {"type": "output_text", "text": "said", "annotations": [], "logprobs": []},
                {"type": "refusal", "refusal": "no"},
            ],
        },
    )
    assert [turn.role for turn in found] == ["system", "user", "user", "assistant"]
    assert found[3].parts == (Text(text="said"), Refusal(text="no"))


def test_one_answer_is_one_turn() -> None:
    blob = Blob("p", "f", "thinking", "sig")
    found = turns(
        user({"type": "input_text", "text": "go"}),
        reasoning(blob, "Hm.", "Well."),
        {"role": "assistant", "content": "Looking."},
        call(),
        {"type": "function_call_output", "call_id": "c1", "output": "42"},
        {"type": "function_call_output", "call_id": "c2", "output": ""},
    )
    assert found[1] == Turn(
        role="assistant",
        parts=(
            Thinking(text="Hm.\n\nWell.", blob=blob),
            Text(text="Looking."),
            ToolCall(id="c1", name="f", arguments='{"a":1}'),
        ),
    )
    assert found[2].role == "user"
    assert [type(part) for part in found[2].parts] == [ToolResult, ToolResult]


def test_native_reasoning_loses_what_nobody_else_can_read() -> None:
    item: dict[str, object] = {"type": "reasoning", "summary": [], "encrypted_content": "gAAAA"}
    assert turns(item) == ()
    item = {
        "type": "reasoning",
        "summary": [],
        "content": [{"type": "reasoning_text", "text": "t"}],
    }
    assert turns(item)[0].parts == (Thinking(text="t"),)


def test_signature_of_a_call_returns_to_it() -> None:
    blob = Blob("g", "f", "call", "sig")
    found = turns(reasoning(blob), call(), call(call_id="c2"))
    assert found[0].parts == (
        ToolCall(id="c1", name="f", arguments='{"a":1}', blob=blob),
        ToolCall(id="c2", name="f", arguments='{"a":1}'),
    )


def test_signature_of_a_call_may_come_with_the_thought_before_it() -> None:
    blob = Blob("g", "f", "call", "sig")
    found = turns(reasoning(blob, "Hm."), call())
    assert found[0].parts == (
        Thinking(text="Hm."),
        ToolCall(id="c1", name="f", arguments='{"a":1}', blob=blob),
    )


def test_signature_of_a_text_returns_before_it() -> None:
    blob = Blob("g", "f", "text", "sig")
    found = turns({"role": "assistant", "content": "Hi"}, reasoning(blob))
    assert found[0].parts == (Thinking(blob=blob), Text(text="Hi"))


def test_calls_of_every_kind() -> None:
    found = turns(
        call(namespace="crm"),
        {"type": "custom_tool_call", "call_id": "c2", "name": "patch", "input": "*** Begin"},
        {"type": "custom_tool_call_output", "call_id": "c2", "output": "ok"},
    )
    assert found[0].parts == (
        ToolCall(id="c1", name="f", arguments='{"a":1}', namespace="crm"),
        ToolCall(id="c2", name="patch", arguments="*** Begin", free=True),
    )
    assert found[1].parts == (ToolResult(call_id="c2", content=(Text(text="ok"),)),)


def test_result_may_name_its_tool_instead_of_the_call() -> None:
    found = turns(
        call(),
        call(call_id="c2"),
        {"type": "function_call_output", "name": "f", "output": "1"},
        {"type": "function_call_output", "name": "f", "output": "2"},
    )
    assert [part.call_id for part in found[1].parts if isinstance(part, ToolResult)] == ["c1", "c2"]
    with pytest.raises(InvalidRequest) as refusal:
        turns({"type": "function_call_output", "name": "g", "output": "1"})
    assert refusal.value.param == "input[0].call_id"


def test_result_with_media() -> None:
    found = turns(
        call(),
        {
            "type": "function_call_output",
            "call_id": "c1",
            "output": [
                {"type": "input_text", "text": "see"},
                {"type": "input_image", "image_url": f"data:image/jpeg;base64,{PNG}"},
            ],
        },
    )
    result = found[1].parts[0]
    assert isinstance(result, ToolResult)
    # The bytes know better than the client.
    assert result.content == (Text(text="see"), Image(media_type="image/png", data=PNG))


def test_media() -> None:
    found = turns(
        user(
            {"type": "input_image", "image_url": "https://a.example/x.png", "detail": "low"},
            {"type": "input_image", "file_id": "file-1"},
            {"type": "input_file", "file_url": "https://a.example/x.pdf"},
            {"type": "input_file", "file_data": b64encode(b"%PDF-1").decode(), "filename": "a"},
            {"type": "input_file", "file_data": "data:text/plain;base64,aGk=", "filename": "b"},
            {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
        )
    )
    assert found[0].parts == (
        Image(url="https://a.example/x.png", detail="low"),
        Image(file_id="file-1"),
        Document(url="https://a.example/x.pdf"),
        Document(media_type="application/pdf", data=b64encode(b"%PDF-1").decode(), name="a"),
        Document(media_type="text/plain", text="hi", name="b"),
        Audio(media_type="audio/wav", data="AAAA"),
    )


def test_cache_marks() -> None:
    mark = {"mode": "explicit", "ttl": "12h"}
    found = turns(user({"type": "input_text", "text": "x", "prompt_cache_breakpoint": mark}))
    assert found[0].parts == (Text(text="x", cache="12h"),)
    mark = {"mode": "explicit"}
    found = turns(user({"type": "input_text", "text": "x", "prompt_cache_breakpoint": mark}))
    assert found[0].parts == (Text(text="x", cache="30m"),)


def test_search_of_tools_is_a_call_and_its_result_adds_tools() -> None:
    found = prompt(
        input=[
            {
                "type": "tool_search_call",
                "call_id": "s1",
                "execution": "client",
                "arguments": {"query": "crm"},
            },
            {
                "type": "tool_search_output",
                "call_id": "s1",
                "execution": "client",
                "tools": [
                    {
                        "type": "namespace",
                        "name": "crm",
                        "description": "",
                        "tools": [{"type": "function", "name": "find", "description": "Finds."}],
                    }
                ],
            },
        ],
        tools=[{"type": "tool_search", "execution": "client", "parameters": {"type": "object"}}],
    )
    assert found.tools[0].search
    assert found.tools[1] == Tool(name="find", description="Finds.", namespace="crm")
    search, result = found.turns[0].parts[0], found.turns[1].parts[0]
    assert isinstance(search, ToolCall)
    assert isinstance(result, ToolResult)
    assert search.search
    assert json.loads(search.arguments) == {"query": "crm"}
    assert result.content == (Text(text="crm.find: Finds."),)


def test_additional_tools_are_tools_of_the_request() -> None:
    item: dict[str, object] = {
        "type": "additional_tools",
        "role": "developer",
        "tools": [{"type": "function", "name": "late"}],
    }
    found = prompt(input=[item], tools=[{"type": "function", "name": "early"}])
    assert [tool.name for tool in found.tools] == ["early", "late"]
    assert found.dropped == ("approx:additional_tools",)


def test_configuration_update_counts_from_there_on() -> None:
    found = prompt(
        input=[
            {"type": "configuration_update", "reasoning": {"effort": "low"}},
            {
                "type": "configuration_update",
                "reasoning": {"effort": "high"},
                "text": {"format": {"type": "json_object"}},
            },
        ],
        reasoning={"effort": "medium", "summary": "auto"},
    )
    assert found.reasoning == Reasoning(effort="high", show=True)
    assert found.format == OutputFormat(kind="json")


@pytest.mark.parametrize(
    "kind",
    [
        "file_search_call",
        "web_search_call",
        "computer_call",
        "computer_call_output",
        "image_generation_call",
        "code_interpreter_call",
        "local_shell_call",
        "shell_call_output",
        "apply_patch_call",
        "mcp_list_tools",
        "mcp_approval_response",
        "mcp_call",
        "program",
        "program_output",
        "something_new",
    ],
)
def test_items_of_the_providers_tools_are_dropped_by_name(kind: str) -> None:
    item: dict[str, object] = {
        "type": kind,
        "id": "x",
        "call_id": None,
        "action": {"type": "search"},
        "tools": [],
    }
    found = prompt(input=[item, {"role": "user", "content": "go"}])
    assert found.dropped == (kind,)
    assert len(found.turns) == 1


def test_name_that_fits_no_header_is_not_reported_as_it_is() -> None:
    assert prompt(input=[{"type": "evil\r\nheader"}]).dropped == ("input",)


@pytest.mark.parametrize("kind", ["item_reference", "compaction", "compaction_trigger"])
def test_items_that_would_leave_a_gap_are_refused(kind: str) -> None:
    with pytest.raises(RequestNotExpressible) as refusal:
        turns({"type": kind, "id": "x"})
    assert refusal.value.param == "input[0]"


@pytest.mark.parametrize(
    ("items", "param"),
    [
        ([{"role": "robot", "content": "x"}], "input[0].role"),
        ([{"role": "user", "content": 7}], "input[0].content"),
        ([user({"type": "input_text"})], "input[0].content[0].text"),
        ([user({"type": "input_image"})], "input[0].content[0].image_url"),
        ([user({"type": "input_image", "image_url": "data:image/png;base64,"})], None),
        ([user({"type": "input_file"})], "input[0].content[0].file_data"),
        ([user({"type": "input_audio"})], "input[0].content[0].input_audio"),
        ([{"type": "function_call", "call_id": "c"}], "input[0].name"),
        ([{"type": "function_call", "name": "f"}], "input[0].call_id"),
        ([7], "input[0]"),
        ([{"type": "function_call", "name": ["f"]}], "input[0]"),
    ],
)
def test_malformed_items_are_refused_by_place(items: list[object], param: str | None) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        prompt(input=items)
    assert refusal.value.param == (param or "input[0].content[0].image_url")


# -- tools ----------------------------------------------------------------------------------------


def test_edge_71_grammar_survives_inside_a_namespace() -> None:
    form = {"type": "grammar", "syntax": "lark", "definition": "start: WORD"}
    found = prompt(
        tools=[
            {
                "type": "namespace",
                "name": "edit",
                "description": "Editing.",
                "tools": [{"type": "custom", "name": "patch", "format": form}],
            }
        ]
    )
    assert found.tools == (
        Tool(name="patch", namespace="edit", free=True, grammar=Grammar("lark", "start: WORD")),
    )


def test_functions_and_hosted_tools() -> None:
    schema = {"type": "object", "properties": {}}
    found = prompt(
        tools=[
            {
                "type": "function",
                "name": "f",
                "description": "F.",
                "parameters": schema,
                "strict": True,
                "defer_loading": True,
            },
            {"type": "function", "name": "g", "parameters": None, "strict": None},
            {"type": "web_search", "external_web_access": False},
            {"type": "tool_search"},
        ]
    )
    assert found.tools == (
        Tool(name="f", description="F.", schema=schema, strict=True),
        Tool(name="g"),
    )
    assert found.hosted_tools == (HostedTool(type="web_search"), HostedTool(type="tool_search"))


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        (None, None),
        ("auto", ToolChoice(mode="auto")),
        ("none", ToolChoice(mode="none")),
        ("required", ToolChoice(mode="any")),
        ({"type": "function", "name": "f"}, ToolChoice(mode="named", names=("f",))),
        ({"type": "custom", "name": "p"}, ToolChoice(mode="named", names=("p",))),
        (
            {
                "type": "allowed_tools",
                "mode": "required",
                "tools": [{"type": "function", "name": "f"}, {"type": "web_search"}],
            },
            ToolChoice(mode="any", names=("f",)),
        ),
        (
            {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "web_search"}]},
            ToolChoice(mode="none"),
        ),
        (
            {"type": "allowed_tools", "mode": "required", "tools": [{"type": "web_search"}]},
            ToolChoice(mode="hosted", names=("web_search",)),
        ),
        ({"type": "web_search"}, ToolChoice(mode="hosted", names=("web_search",))),
        (
            {"type": "mcp", "server_label": "s", "name": "x"},
            ToolChoice(mode="hosted", names=("mcp",)),
        ),
    ],
)
def test_choices(choice: object, expected: ToolChoice | None) -> None:
    assert prompt(tool_choice=choice).tool_choice == expected


@pytest.mark.parametrize(
    ("members", "param"),
    [
        ({"tools": "x"}, "tools"),
        ({"tools": [{"name": "f"}]}, "tools[0].type"),
        ({"tools": [{"type": "function"}]}, "tools[0].name"),
        ({"tools": [{"type": "function", "name": "f", "parameters": []}]}, "tools"),
        ({"tools": [{"type": "namespace", "tools": []}]}, "tools[0].name"),
        ({"tool_choice": "maybe"}, "tool_choice"),
        ({"tool_choice": {"type": "function"}}, "tool_choice.name"),
        ({"tool_choice": 7}, "tool_choice"),
        ({"text": {"format": {"type": "yaml"}}}, "text.format.type"),
        ({"text": {"format": {"type": "json_schema"}}}, "text.format.schema"),
        ({"text": 7}, "text"),
        ({"reasoning": {"effort": "huge"}}, "reasoning.effort"),
        ({"temperature": "hot"}, "temperature"),
        ({"include": "x"}, "include"),
        ({"metadata": {"a": 1}}, "metadata"),
        ({"parallel_tool_calls": 2}, "parallel_tool_calls"),
    ],
)
def test_malformed_parameters_are_refused_by_name(members: dict[str, object], param: str) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        prompt(**members)
    assert refusal.value.param == param


# -- parameters -----------------------------------------------------------------------------------


def test_edge_78_format_and_effort_stand_side_by_side() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string"}}}
    form = {"type": "json_schema", "name": "answer", "schema": schema, "strict": True}
    found = prompt(
        text={"format": form, "verbosity": "low"}, reasoning={"effort": "high", "summary": None}
    )
    assert found.format == OutputFormat(kind="schema", schema=schema, name="answer", strict=True)
    assert found.verbosity == "low"
    assert found.reasoning == Reasoning(effort="high")


def test_sampling() -> None:
    found = prompt(
        temperature=0.2, top_p=1, top_logprobs=3, include=["message.output_text.logprobs"]
    )
    assert found.sampling == Sampling(temperature=0.2, top_p=1.0, logprobs=True, top_logprobs=3)


def test_what_makes_no_difference_is_left_out_in_silence() -> None:
    found = prompt(
        client_metadata={"x": "y"},
        truncation="auto",
        max_tool_calls=3,
        store=False,
        stream_options={"include_obfuscation": False},
        prompt_cache_options={"mode": "implicit"},
        moderation={"model": "m"},
        include=["reasoning.encrypted_content"],
        background=False,
        conversation=None,
        previous_response_id=None,
        context_management=[],
        reasoning=None,
        text=None,
        tools=None,
        tool_choice=None,
        metadata=None,
        user=None,
    )
    assert found.dropped == ()


def test_what_is_not_known_is_reported() -> None:
    found = prompt(brand_new=1, reasoning={"mode": "pro"})
    assert found.dropped == ("brand_new", "reasoning.mode")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("conversation", "conv_1"),
        ("prompt", {"id": "p"}),
        ("context_management", [{"type": "compaction"}]),
        ("previous_response_id", "resp_1"),
    ],
)
def test_what_only_one_provider_holds_is_refused(name: str, value: object) -> None:
    with pytest.raises(RequestNotExpressible) as refusal:
        prompt(**{name: value})
    assert refusal.value.param == name


def test_a_request_of_codex() -> None:
    found = prompt(
        input=[
            {"type": "message", "role": "developer", "id": "msg_a", "content": "You are Codex."},
            {
                "type": "message",
                "role": "user",
                "id": "msg_b",
                "content": [{"type": "input_text", "text": "Fix it."}],
            },
            {"type": "reasoning", "summary": [], "content": None, "encrypted_content": None},
            call(id="fc_1"),
            {"type": "function_call_output", "id": "fco_1", "call_id": "c1", "output": "done"},
        ],
        tools=[
            {"type": "function", "name": "exec", "strict": False, "parameters": {}},
            {"type": "custom", "name": "apply_patch", "format": {"type": "text"}},
            {"type": "web_search", "external_web_access": False},
        ],
        tool_choice="auto",
        parallel_tool_calls=True,
        reasoning={"effort": "medium", "summary": "auto"},
        store=False,
        include=["reasoning.encrypted_content"],
        prompt_cache_key="session",
        client_metadata={"x": "y"},
    )
    assert [turn.role for turn in found.turns] == ["system", "user", "assistant", "user"]
    assert [tool.name for tool in found.tools] == ["exec", "apply_patch"]
    assert (found.parallel, found.cache_key, found.dropped) == (True, "session", ())
    assert found.reasoning == Reasoning(effort="medium", show=True)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from(["", "x", "function"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["type", "role", "content", "text", "call_id", "name", "output", "tools", "id"]
            ),
            inner
            | st.sampled_from(["message", "function_call", "reasoning", "user", "input_text"]),
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(JSON, JSON, JSON)
def test_any_body_is_read_or_refused(items: object, tools: object, choice: object) -> None:
    try:
        prompt(input=items, tools=tools, tool_choice=choice)
    except InvalidRequest as refusal:
        assert refusal.param  # noqa: PT017


def test_a_long_history_of_calls_takes_linear_time() -> None:
    """What takes a time in proportion to its square takes minutes here."""
    n = 20_000
    calls = [call(call_id=f"c{at}") for at in range(n)]
    outputs = [
        {"type": "function_call_output", "call_id": f"c{at}", "output": str(at)}
        for at in reversed(range(n))
    ]
    unnamed = [{"type": "function_call_output", "name": "f", "output": str(at)} for at in range(n)]
    tools = [
        {"type": "additional_tools", "tools": [{"type": "function", "name": f"t{at}"}]}
        for at in range(2_000)
    ]
    for results in (outputs, unnamed):
        read = turns(*calls, *results, *tools)
        found = {
            part.call_id: part.content
            for turn in read
            for part in turn.parts
            if isinstance(part, ToolResult)
        }
        assert len(found) == n
        assert found["c7"] == (Text(text="7"),)
