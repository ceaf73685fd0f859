"""Messages requests as prompts for providers of other protocols."""

from __future__ import annotations

import json
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.anthropic.downstream import MessagesDownstream
from adapters.anthropic.refusal import AnthropicRefusals
from adapters.canonical import (
    Blob,
    Document,
    HostedTool,
    Image,
    OutputFormat,
    Reasoning,
    Sampling,
    Text,
    Thinking,
    Tool,
    ToolCall,
    ToolChoice,
    ToolResult,
    Turn,
)
from adapters.errors import InvalidRequest, RequestNotExpressible
from tests.adapters.anthropic.wiring import ENVELOPES, decoded, prompt_of

PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR4nGNgYPgPAAEDAQAIicLsAAAAAElFTkSuQmCC"
SEALED = ENVELOPES.seal(Blob("p", "f", "reasoning", "v"))
CALL_SEALED = ENVELOPES.seal(Blob("p", "f", "call", "v"))


def parts_of(*blocks: Mapping[str, object], role: str = "user") -> tuple[object, ...]:
    """What the blocks of one message become."""
    return prompt_of(messages=[{"role": role, "content": list(blocks)}]).turns[0].parts


# -- conversation ---------------------------------------------------------------------------------


def test_a_small_request() -> None:
    prompt = prompt_of(system="Be brief.")
    assert prompt.turns == (
        Turn(role="system", parts=(Text(text="Be brief."),)),
        Turn(role="user", parts=(Text(text="Hi"),)),
    )
    assert prompt.dropped == ()


def test_claude_codes_request() -> None:
    system = [
        {"type": "text", "text": "x-anthropic-billing-header: cc_version=2.1; cch=1234;"},
        {"type": "text", "text": "You are Claude.", "cache_control": {"type": "ephemeral"}},
    ]
    turn = {"type": "text", "text": "Turn", "cache_control": {"type": "ephemeral", "ttl": "1h"}}
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
        {"role": "system", "content": [turn], "output_config": {"effort": "xhigh"}},
    ]
    tools = [
        {"name": "Bash", "description": "Runs.", "input_schema": {"type": "object"}},
        {"name": "Later", "input_schema": {"type": "object"}, "defer_loading": True},
    ]
    user_id = {"device_id": "d", "account_uuid": "acc", "session_id": "ses"}
    prompt = prompt_of(
        system=system,
        messages=messages,
        tools=tools,
        thinking={"type": "adaptive", "display": "omitted"},
        output_config={"effort": "high"},
        context_management={"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        metadata={"user_id": json.dumps(user_id)},
        max_tokens=32000,
        stream=True,
    )
    assert prompt.turns[0].parts == (Text(text="You are Claude.", cache="5m"),)
    assert prompt.turns[2] == Turn(role="system", parts=(Text(text="Turn", cache="1h"),))
    assert [tool.name for tool in prompt.tools] == ["Bash", "Later"]
    assert prompt.reasoning == Reasoning(effort="xhigh", adaptive=True, show=False)
    assert (prompt.end_user, prompt.cache_key) == ("acc", "ses")
    assert prompt.dropped == ()


def test_calls_and_results() -> None:
    use = {"type": "tool_use", "id": "t", "name": "f", "input": {"id": 12345678901234567890}}
    (call,) = parts_of(use, role="assistant")
    assert call == ToolCall(id="t", name="f", arguments='{"id": 12345678901234567890}')
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}}
    found = {"type": "tool_reference", "tool_name": "g"}
    result = {"type": "tool_result", "tool_use_id": "t", "is_error": True}
    (answer,) = parts_of({**result, "content": [{"type": "text", "text": "a"}, image, found]})
    assert answer == ToolResult(
        call_id="t",
        content=(
            Text(text="a"),
            Image(media_type="image/png", data=PNG),
            Text(text="Tool found: g"),
        ),
        error=True,
    )
    assert parts_of({**result, "content": "x", "is_error": None})[0] == ToolResult(
        call_id="t", content=(Text(text="x"),)
    )
    assert parts_of(result)[0] == ToolResult(call_id="t", content=(), error=True)


def test_media() -> None:
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/jpeg", "data": PNG}}
    sources: list[dict[str, object]] = [
        {"type": "base64", "media_type": "application/pdf", "data": "JVBERi0xLjQ="},
        {"type": "text", "media_type": "text/plain", "data": "Hello"},
        {"type": "url", "url": "https://a.b/c.pdf"},
        {"type": "file", "file_id": "file_1"},
    ]
    documents = [{"type": "document", "source": source, "title": "T"} for source in sources]
    assert parts_of(image, *documents) == (
        Image(media_type="image/png", data=PNG),
        Document(media_type="application/pdf", data="JVBERi0xLjQ=", name="T"),
        Document(media_type="text/plain", text="Hello", name="T"),
        Document(url="https://a.b/c.pdf", name="T"),
        Document(file_id="file_1", name="T"),
    )


def test_documents_of_blocks_and_their_context() -> None:
    source = {"type": "content", "content": [{"type": "text", "text": "one"}]}
    document = {"type": "document", "source": source, "title": "T", "context": "C"}
    assert parts_of(document) == (Text(text="T"), Text(text="C"), Text(text="one"))
    nested = {"type": "document", "source": {"type": "content", "content": [document]}}
    cited = {**document, "citations": {"enabled": True}}
    prompt = prompt_of(messages=[{"role": "user", "content": [cited, nested]}])
    assert prompt.dropped == ("citations", "document")


def test_what_anthropic_alone_renders_is_text() -> None:
    found = {
        "type": "search_result",
        "source": "https://a.b",
        "title": "A",
        "content": [{"type": "text", "text": "Found."}],
    }
    tab = {"tab_id": "1", "title": "A", "url": "https://a.b", "active": True}
    state = {"type": "browser_state", "tabs": [tab]}
    citation = {"type": "web_search_result_location", "url": "https://a.b", "title": "A"}
    cited = {"type": "text", "text": "So.", "citations": [citation, citation]}
    assert parts_of(found, state, cited) == (
        Text(text="[A](https://a.b)\nFound."),
        Text(text="Tab 1: [A](https://a.b) (active)"),
        Text(text="So. [A](https://a.b)"),
    )


def test_what_anthropic_ran_is_left_out_by_name() -> None:
    blocks = [
        {"type": "server_tool_use", "id": "s", "name": "web_search", "input": {}},
        {"type": "web_search_tool_result", "tool_use_id": "s", "content": []},
        {"type": "container_upload", "file_id": "f"},
        {"type": "something_new"},
        {"type": "text", "text": "x"},
    ]
    prompt = prompt_of(messages=[{"role": "assistant", "content": blocks}])
    assert prompt.turns[0].parts == (Text(text="x"),)
    assert prompt.dropped == (
        "server_tool_use",
        "web_search_tool_result",
        "container_upload",
        "something_new",
    )


# -- reasoning ------------------------------------------------------------------------------------


def test_sealed_reasoning_is_opened_and_native_signatures_are_not_kept() -> None:
    blocks = [
        {"type": "thinking", "thinking": "a", "signature": SEALED},
        {"type": "thinking", "thinking": "b", "signature": "EqQBCgIYAhIM"},
        {"type": "thinking", "thinking": "c", "signature": ""},
        {"type": "thinking", "thinking": "", "signature": "EqQBCgIYAhIM"},
        {"type": "redacted_thinking", "data": "EqQBCgIYAhIM"},
        {"type": "redacted_thinking", "data": SEALED},
    ]
    blob = Blob("p", "f", "reasoning", "v")
    assert parts_of(*blocks, role="assistant") == (
        Thinking(text="a", blob=blob),
        Thinking(text="b"),
        Thinking(text="c"),
        Thinking(text="", blob=blob),
    )


def test_a_calls_signature_goes_to_the_call_behind_it() -> None:
    use = {"type": "tool_use", "id": "t", "name": "f", "input": {}}
    signature = {"type": "thinking", "thinking": "", "signature": CALL_SEALED}
    first, second = parts_of(signature, use, {**use, "id": "u"}, role="assistant")
    assert first == ToolCall(id="t", name="f", arguments="{}", blob=Blob("p", "f", "call", "v"))
    assert second == ToolCall(id="u", name="f", arguments="{}")


@pytest.mark.parametrize(
    ("members", "reasoning"),
    [
        ({}, None),
        ({"thinking": {"type": "disabled"}}, Reasoning(effort="none")),
        (
            {"thinking": {"type": "between_tools"}, "output_config": {"effort": "max"}},
            Reasoning(effort="none"),
        ),
        (
            {"thinking": {"type": "enabled", "budget_tokens": 31999}},
            Reasoning(budget=31999, show=True),
        ),
        ({"thinking": {"type": "adaptive"}}, Reasoning(adaptive=True)),
        (
            {"thinking": {"type": "adaptive", "display": "summarized"}},
            Reasoning(adaptive=True, show=True),
        ),
        ({"output_config": {"effort": "low"}}, Reasoning(effort="low")),
    ],
)
def test_how_much_to_think(members: dict[str, object], reasoning: Reasoning | None) -> None:
    assert prompt_of(**members).reasoning == reasoning


# -- tools ----------------------------------------------------------------------------------------


def test_tools_and_those_that_anthropic_has() -> None:
    own = {"type": "custom", "name": "f", "input_schema": {"type": "object"}, "strict": True}
    search = {"type": "web_search_20250305", "name": "web_search", "max_uses": 3}
    prompt = prompt_of(
        tools=[{**own, "cache_control": {"type": "ephemeral"}}, search],
        tool_choice={"type": "auto", "disable_parallel_tool_use": True},
    )
    assert prompt.tools == (Tool(name="f", schema={"type": "object"}, strict=True, cache="5m"),)
    assert prompt.hosted_tools == (HostedTool(type="web_search"),)
    assert prompt.tool_choice == ToolChoice(mode="auto")
    assert prompt.parallel is False


@pytest.mark.parametrize(
    ("choice", "read"),
    [
        ({"type": "any"}, ToolChoice(mode="any")),
        ({"type": "none"}, ToolChoice(mode="none")),
        ({"type": "tool", "name": "f"}, ToolChoice(mode="named", names=("f",))),
        ({"type": "tool", "name": "ws"}, ToolChoice(mode="hosted", names=("web_search",))),
    ],
)
def test_choices(choice: dict[str, object], read: ToolChoice) -> None:
    tools = [{"name": "f", "input_schema": {}}, {"type": "web_search_20260209", "name": "ws"}]
    assert prompt_of(tools=tools, tool_choice=choice).tool_choice == read


# -- other members --------------------------------------------------------------------------------


def test_small_things() -> None:
    schema = {"type": "object"}
    prompt = prompt_of(
        temperature=1,
        top_p=0.5,
        top_k=4,
        stop_sequences=["a", "b"],
        service_tier="standard_only",
        metadata={"user_id": "u1"},
        output_config={"format": {"type": "json_schema", "schema": schema}},
        cache_control={"type": "ephemeral", "ttl": "1h"},
        inference_geo="eu",
        speed="fast",
        something_new=1,
    )
    assert prompt.sampling == Sampling(temperature=1, top_p=0.5, top_k=4)
    assert prompt.stop == ("a", "b")
    assert prompt.service_tier == "default"
    assert prompt.end_user == "u1"
    assert prompt.format == OutputFormat(kind="schema", schema=schema)
    assert prompt.turns[-1].parts == (Text(text="Hi", cache="1h"),)
    assert prompt.dropped == ("something_new",)


@pytest.mark.parametrize(
    "member",
    [
        {"container": "c"},
        {"mcp_servers": [{"type": "url"}]},
        {"compaction": {"type": "auto"}},
        {"thread": {"type": "create"}},
        {"safeguards": {"a": 1}},
        {"max_tokens": 0},
    ],
)
def test_what_only_anthropic_does_is_refused(member: dict[str, object]) -> None:
    (name,) = member
    with pytest.raises(RequestNotExpressible) as caught:
        prompt_of(**member)
    assert caught.value.param == name
    assert name in caught.value.message
    prompt_of(**{name: None if name != "max_tokens" else 1})


def test_the_sdk_learns_to_go_on_without_threads() -> None:
    with pytest.raises(RequestNotExpressible) as caught:
        prompt_of(thread={"type": "continue", "previous_message_id": "msg_1"})
    body = json.loads(AnthropicRefusals().error_body(caught.value, "req_1"))
    assert body["error"]["details"]["error_code"] == "thread_unsupported_request"


@pytest.mark.parametrize(
    ("members", "param"),
    [
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages"),
        ({"messages": [{"role": "user", "content": 7}]}, "messages"),
        ({"messages": [{"role": "user", "content": [{"text": "x"}]}]}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "tool_result"}]}]}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "messages"),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "image", "source": {"type": "base64"}}]}
                ]
            },
            "messages",
        ),
        (
            {
                "messages": [
                    {
                        "role": "assistant",
                        "content": [{"type": "tool_use", "id": "a", "name": "f", "input": []}],
                    }
                ]
            },
            "messages",
        ),
        ({"system": 7}, "system"),
        ({"tools": {}}, "tools"),
        ({"tools": [{"input_schema": {}}]}, "tools"),
        ({"tool_choice": {"type": "maybe"}}, "tool_choice"),
        ({"thinking": {"type": "enabled"}}, "thinking"),
        ({"thinking": {"type": "deep"}}, "thinking"),
        ({"output_config": {"effort": "huge"}}, "output_config"),
        ({"output_config": {"format": {"type": "xml"}}}, "output_config"),
        ({"temperature": "hot"}, "temperature"),
        ({"stop_sequences": "x"}, "stop_sequences"),
    ],
)
def test_malformed_requests_name_the_member(members: dict[str, object], param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        prompt_of(**members)
    assert caught.value.param == param


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=5),
    lambda leaf: (
        st.lists(leaf, max_size=3)
        | st.dictionaries(
            st.sampled_from(["type", "text", "source", "content", "id", "name", "input", "data"]),
            leaf
            | st.sampled_from(["text", "image", "document", "tool_use", "tool_result", "base64"]),
            max_size=5,
        )
    ),
    max_leaves=10,
)


@given(
    st.fixed_dictionaries(
        {
            "messages": st.lists(
                st.fixed_dictionaries({"role": st.just("user"), "content": JSON}), min_size=1
            )
        },
        optional={"system": JSON, "tools": JSON, "thinking": JSON, "output_config": JSON},
    )
)
def test_whatever_is_sent_is_read_or_refused(members: dict[str, object]) -> None:
    try:
        request = decoded(**members)
        MessagesDownstream().prompt(request, ENVELOPES)
    except InvalidRequest:
        pass


def test_a_body_is_read_with_its_headers() -> None:
    headers = {b"x-claude-code-session-id": b"s-1"}
    request = decoded(headers)
    assert MessagesDownstream().prompt(request, ENVELOPES).cache_key == "s-1"
