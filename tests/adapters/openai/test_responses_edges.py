"""Responses clients at other providers, and other clients at Responses providers, end to end."""

from __future__ import annotations

import json
from collections.abc import Sequence

import msgspec
import pytest

from adapters import sse
from adapters.anthropic.upstream import MessagesUpstream
from adapters.catalogue import Protocol, Provider
from adapters.codec import Ask, DownstreamCodec, Target, UpstreamCodec
from adapters.envelope import Envelopes
from adapters.errors import UpstreamUnavailable
from adapters.gemini.upstream import GeminiUpstream
from adapters.openai.chat_downstream import ChatDownstream
from adapters.openai.chat_upstream import ChatUpstream
from adapters.openai.responses_downstream import ResponsesDownstream
from adapters.openai.responses_upstream import ResponsesUpstream
from adapters.translate import TranslatedStream, Translation

Json = dict[str, object]

ENVELOPES = Envelopes(b"k" * 32, "account")
UPSTREAMS: dict[Protocol, UpstreamCodec] = {
    "openai": ChatUpstream(),
    "openai-responses": ResponsesUpstream(),
    "anthropic": MessagesUpstream(),
    "gemini": GeminiUpstream(),
}
MODELS = {
    "openai": "some-model",
    "openai-responses": "gpt-6",
    "anthropic": "claude-opus-4-8",
    "gemini": "gemini-3.5-pro",
}
GRAMMAR = {"type": "grammar", "syntax": "lark", "definition": "start: PATCH"}
PATCH_TOOL: Json = {
    "type": "custom",
    "name": "apply_patch",
    "description": "Edits.",
    "format": GRAMMAR,
}
LOOK_TOOL: Json = {
    "type": "function",
    "name": "look",
    "parameters": {"type": "object", "properties": {}},
}
PATCH = '*** Begin Patch\n+"é"\n*** End'


def translated(
    protocol: Protocol, codec: DownstreamCodec | None = None, **members: object
) -> Translation:
    """A request at a provider of another protocol."""
    codec = codec or ResponsesDownstream()
    own = {"input": "hi"} if isinstance(codec, ResponsesDownstream) else {}
    body = {"model": "mine", "stream": True, **own, **members}
    request = codec.decode(json.dumps(body).encode(), Ask())
    provider = Provider("p", protocol, "https://a.example")
    target = Target(provider, MODELS[protocol], 1000, stream=True)
    prompt = codec.prompt(request, ENVELOPES)
    return Translation(codec, UPSTREAMS[protocol], request, prompt, target, ENVELOPES, 1)


def sent(call: Translation) -> Json:
    found = json.loads(call.body)
    assert isinstance(found, dict)
    return found


def chunk(finish: str | None = None, **delta: object) -> Json:
    """A chunk of a Chat Completions stream."""
    return {
        "id": "chatcmpl-0123456789abcdef",
        "model": "theirs",
        "choices": [{"index": 0, "delta": delta, "finish_reason": finish}],
    }


def called(name: str, arguments: str, at: int = 0, call_id: str = "call_1") -> Json:
    function = {"name": name, "arguments": arguments}
    return chunk(
        tool_calls=[{"index": at, "id": call_id, "type": "function", "function": function}]
    )


def more(arguments: str, at: int = 0) -> Json:
    return chunk(tool_calls=[{"index": at, "function": {"arguments": arguments}}])


def played(call: Translation, events: Sequence[Json], *, done: bool = True) -> TranslatedStream:
    """The stream after the upstream's events; `shown` has what came out of them."""
    relay = call.stream()
    data = b"".join(sse.event(json.dumps(event).encode()) for event in events)
    OUT[relay] = relay.feed(data + (sse.event(b"[DONE]") if done else b"")) + relay.close()
    return relay


OUT: dict[TranslatedStream, bytes] = {}


def shown(relay: TranslatedStream) -> list[Json]:
    splitter = sse.Splitter()
    raws = splitter.feed(OUT[relay] + relay.terminal)
    return [json.loads(data) for raw in raws if (data := sse.data_of(raw)) != b"[DONE]"]


def kinds(events: Sequence[Json]) -> list[str]:
    return [str(event["type"]).removeprefix("response.") for event in events]


def final(events: Sequence[Json]) -> Json:
    response = events[-1]["response"]
    assert isinstance(response, dict)
    return response


# -- answers --------------------------------------------------------------------------------------


def test_edge_17_and_18_text_of_a_chat_provider() -> None:
    relay = played(
        translated("openai"),
        [chunk(role="assistant"), chunk(content="Hel"), chunk(content="lo"), chunk("stop")],
    )
    assert relay.failure is None
    events = shown(relay)
    assert kinds(events) == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]
    response = final(events)
    assert response["id"] == "resp_chatcmpl-0123456789abcdef"
    assert response["output"][0]["content"][0]["text"] == "Hello"  # type: ignore[index]


def test_edge_20_call_of_a_chat_provider() -> None:
    call = translated("openai", tools=[LOOK_TOOL])
    relay = played(call, [called("look", ""), more('{"a"'), more(":1}"), chunk("tool_calls")])
    items = [event for event in shown(relay) if "item_id" in event]
    assert {item["item_id"] for item in items} == {"fc_call_1"}
    assert items[-1]["arguments"] == '{"a":1}'


def test_edge_26_lost_connection_is_a_failure() -> None:
    relay = played(translated("openai"), [chunk(content="Hel")], done=False)
    assert relay.failure is not None
    assert relay.failure.kind == "truncated"
    tail = relay.error_event(UpstreamUnavailable("Gone."), "req")
    assert tail.count(b"event: response.failed\n") == 1
    assert b"response.completed" not in OUT[relay] + relay.terminal


def test_edge_31_chat_client_gets_an_index_for_each_parallel_call() -> None:
    codec = ChatDownstream()
    tool = {"type": "function", "function": {"name": "look"}}
    call = translated(
        "openai-responses", codec, messages=[{"role": "user", "content": "hi"}], tools=[tool]
    )
    items = [
        {"type": "function_call", "id": f"fc_{at}", "call_id": f"call_{at}", "name": "look"}
        for at in range(3)
    ]
    response: Json = {"id": "resp_1", "model": "gpt-6", "status": "in_progress", "output": []}
    events: list[Json] = [{"type": "response.created", "response": response}]
    events += [
        {"type": "response.output_item.added", "output_index": at, "item": item}
        for at, item in enumerate(items)
    ]
    events += [
        {
            "type": "response.output_item.done",
            "output_index": at,
            "item": {**item, "arguments": f'{{"a":{at}}}'},
        }
        for at, item in enumerate(items)
    ]
    events.append({"type": "response.completed", "response": {**response, "status": "completed"}})
    relay = played(call, events, done=False)
    assert relay.failure is None
    found: dict[object, str] = {}
    for event in shown(relay):
        for choice in event["choices"]:  # type: ignore[attr-defined]
            for fragment in choice["delta"].get("tool_calls") or ():
                arguments = fragment["function"].get("arguments", "")
                found[fragment["index"]] = found.get(fragment["index"], "") + arguments
    assert found == {0: '{"a":0}', 1: '{"a":1}', 2: '{"a":2}'}


# -- free-form tools ------------------------------------------------------------------------------


def test_edge_67_free_form_tool_is_a_function_elsewhere() -> None:
    history = [
        {"role": "user", "content": "go"},
        {"type": "custom_tool_call", "call_id": "c0", "name": "apply_patch", "input": PATCH},
        {"type": "custom_tool_call_output", "call_id": "c0", "output": "ok"},
    ]
    call = translated("openai", tools=[PATCH_TOOL], input=history)
    body = sent(call)
    function = body["tools"][0]["function"]  # type: ignore[index]
    assert function["parameters"]["required"] == ["input"]
    assert GRAMMAR["definition"] in json.dumps(function)
    earlier = body["messages"][1]["tool_calls"][0]["function"]  # type: ignore[index]
    assert json.loads(earlier["arguments"]) == {"input": PATCH}

    relay = played(call, [called("apply_patch", json.dumps({"input": PATCH})), chunk("tool_calls")])
    item = final(shown(relay))["output"][0]  # type: ignore[index]
    assert (item["type"], item["name"], item["input"]) == (
        "custom_tool_call",
        "apply_patch",
        PATCH,
    )


def test_edge_68_free_form_call_streams_as_raw_text() -> None:
    arguments = json.dumps({"input": PATCH})
    pieces = [arguments[at : at + 3] for at in range(0, len(arguments), 3)]
    call = translated("openai", tools=[PATCH_TOOL])
    relay = played(
        call, [called("apply_patch", ""), *[more(piece) for piece in pieces], chunk("tool_calls")]
    )
    events = shown(relay)
    deltas = [event["delta"] for event in events if "input.delta" in str(event["type"])]
    assert len(deltas) > 1
    assert "".join(map(str, deltas)) == PATCH
    done = next(event for event in events if "input.done" in str(event["type"]))
    assert done["input"] == PATCH
    assert final(events)["output"][0]["input"] == PATCH  # type: ignore[index]


def test_edge_69_free_form_tool_has_an_object_schema_at_anthropic() -> None:
    tool = sent(translated("anthropic", tools=[PATCH_TOOL]))["tools"][0]  # type: ignore[index]
    assert tool["input_schema"]["type"] == "object"
    assert tool["input_schema"]["properties"]["input"]["type"] == "string"
    assert tool["input_schema"]["required"] == ["input"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ('{"input":"text"}', "text"),
        ('{"patch":"text"}', "text"),
        ('{"input":{"a":1}}', '{"input":{"a":1}}'),
        ('"text"', "text"),
    ],
)
def test_edge_70_free_form_call_is_always_a_string(arguments: str, expected: str) -> None:
    call = translated("openai", tools=[PATCH_TOOL])
    relay = played(call, [called("apply_patch", arguments), chunk("tool_calls")])
    item = final(shown(relay))["output"][0]  # type: ignore[index]
    assert item["input"] == expected


def test_edge_71_free_form_tool_in_a_namespace() -> None:
    group = {"type": "namespace", "name": "edit", "description": "E.", "tools": [PATCH_TOOL]}
    call = translated("openai", tools=[group])
    function = sent(call)["tools"][0]["function"]  # type: ignore[index]
    assert function["name"] == "edit__apply_patch"
    assert GRAMMAR["definition"] in json.dumps(function)
    relay = played(call, [called("edit__apply_patch", '{"input":"x"}'), chunk("tool_calls")])
    item = final(shown(relay))["output"][0]  # type: ignore[index]
    assert (item["type"], item["namespace"], item["name"]) == (
        "custom_tool_call",
        "edit",
        "apply_patch",
    )


@pytest.mark.parametrize("protocol", ["openai", "anthropic", "gemini"])
def test_edge_72_hosted_tools_are_dropped_and_the_others_work(protocol: Protocol) -> None:
    search = {"type": "tool_search", "execution": "client", "parameters": {"type": "object"}}
    tools = [LOOK_TOOL, {"type": "web_search", "external_web_access": False}, search]
    call = translated(protocol, tools=tools)
    assert "tool:web_search" in call.dropped
    declared = json.dumps(sent(call)["tools"])
    assert "look" in declared
    assert "tool_search" in declared
    assert "web_search" not in declared


def test_search_for_tools_comes_back_as_such() -> None:
    search = {"type": "tool_search", "execution": "client", "parameters": {"type": "object"}}
    call = translated("openai", tools=[search])
    relay = played(call, [called("tool_search", '{"query":"crm"}'), chunk("tool_calls")])
    item = final(shown(relay))["output"][0]  # type: ignore[index]
    assert (item["type"], item["call_id"], item["arguments"]) == (
        "tool_search_call",
        "call_1",
        {"query": "crm"},
    )


# -- parameters -----------------------------------------------------------------------------------


def test_edge_78_format_at_anthropic_stands_beside_the_effort() -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"type": "string"}},
        "required": ["a"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "name": "answer", "schema": schema, "strict": True}
    call = translated("anthropic", text={"format": form}, reasoning={"effort": "high"})
    output = sent(call)["output_config"]
    assert isinstance(output, dict)
    assert output["effort"] == "high"
    assert output["format"]["type"] == "json_schema"
    assert output["format"]["schema"]["properties"] == schema["properties"]
    assert "anthropic-beta" not in {name.lower() for name, _ in call.headers}


# -- reasoning ------------------------------------------------------------------------------------


def test_signed_thinking_survives_the_way_through_a_client() -> None:
    """The item that is done goes back unchanged, as agents send it, and opens at its maker."""
    call = translated("anthropic", tools=[LOOK_TOOL], reasoning={"effort": "high"})
    upstream: list[Json] = [
        {
            "type": "message_start",
            "message": {"id": "msg_1", "model": "m", "usage": {"input_tokens": 3}},
        },
        {
            "type": "content_block_start",
            "index": 0,
            "content_block": {"type": "thinking", "thinking": "", "signature": ""},
        },
        {
            "type": "content_block_delta",
            "index": 0,
            "delta": {"type": "thinking_delta", "thinking": "Hm."},
        },
        {
            "type": "content_block_delta",
            "index": 0,
            "delta": {"type": "signature_delta", "signature": "c2ln"},
        },
        {"type": "content_block_stop", "index": 0},
        {
            "type": "content_block_start",
            "index": 1,
            "content_block": {"type": "tool_use", "id": "toolu_1", "name": "look", "input": {}},
        },
        {"type": "content_block_stop", "index": 1},
        {
            "type": "message_delta",
            "delta": {"stop_reason": "tool_use"},
            "usage": {"output_tokens": 9},
        },
        {"type": "message_stop"},
    ]
    relay = played(call, upstream, done=False)
    assert relay.failure is None
    done = [event["item"] for event in shown(relay) if "item.done" in str(event["type"])]
    assert [item["type"] for item in done] == ["reasoning", "function_call"]  # type: ignore[index]
    again = translated(
        "anthropic",
        tools=[LOOK_TOOL],
        reasoning={"effort": "high"},
        input=[
            {"role": "user", "content": "hi"},
            *done,
            {"type": "function_call_output", "call_id": "toolu_1", "output": "1"},
        ],
    )
    turn = sent(again)["messages"][1]["content"]  # type: ignore[index]
    assert turn[0] == {"type": "thinking", "thinking": "Hm.", "signature": "c2ln"}
    assert turn[1]["type"] == "tool_use"


def test_plain_and_streamed_answers_are_the_same() -> None:
    call = translated("openai", tools=[LOOK_TOOL])
    streamed = final(
        shown(played(call, [chunk(content="Hi"), called("look", "{}"), chunk("tool_calls")]))
    )
    tool_call = {
        "id": "call_1",
        "type": "function",
        "function": {"name": "look", "arguments": "{}"},
    }
    message = {"role": "assistant", "content": "Hi", "tool_calls": [tool_call]}
    answer = {
        "id": "chatcmpl-0123456789abcdef",
        "model": "theirs",
        "choices": [{"index": 0, "message": message, "finish_reason": "tool_calls"}],
    }
    relay = call.plain(msgspec.json.encode(answer))
    assert relay.failure is None
    plain = json.loads(relay.body)
    for body in (plain, streamed):
        body["output"][0].pop("id")  # type: ignore[index]
    assert plain == streamed
