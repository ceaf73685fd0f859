"""Anthropic clients at providers of other protocols, whose streams are as odd as they come."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import pytest

from adapters import registry
from adapters.anthropic.downstream import MessagesDownstream
from adapters.catalogue import Protocol, Provider
from adapters.codec import StreamRelay, Target
from adapters.errors import UpstreamUnavailable
from adapters.translate import Translation
from tests.adapters.anthropic.wiring import ENVELOPES, decoded, events_in, relayed, understood

TOOLS = [{"name": name, "input_schema": {"type": "object"}} for name in ("f", "g", "h")]
Content = list[dict[str, object]]


def relay_from(protocol: Protocol, model: str = "x") -> StreamRelay:
    """The relay of an answer that comes from a provider of `protocol`."""
    request = decoded(stream=True, tools=TOOLS)
    codec = MessagesDownstream()
    prompt = codec.prompt(request, ENVELOPES)
    target = Target(Provider("p", protocol, "http://p"), model, 100, stream=True)
    upstream = registry.upstream_codec(protocol)
    return Translation(codec, upstream, request, prompt, target, ENVELOPES).stream()


def chat(*deltas: Mapping[str, object], finish: str | None = "stop") -> bytes:
    """A stream of Chat Completions."""
    chunks: list[dict[str, object]] = [{"index": 0, "delta": delta} for delta in deltas]
    if finish is not None:
        chunks.append({"index": 0, "delta": {}, "finish_reason": finish})
    bodies = [json.dumps({"id": "c1", "model": "x", "choices": [chunk]}) for chunk in chunks]
    ends = ["[DONE]"] if finish is not None else []
    return "".join(f"data: {body}\n\n" for body in [*bodies, *ends]).encode()


def tool(index: int, **function: str) -> dict[str, object]:
    """A fragment of a call."""
    head = {"id": f"call_{index}", "type": "function"} if "name" in function else {}
    return {"tool_calls": [{"index": index, **head, "function": function}]}


def gemini(*parts: Mapping[str, object]) -> bytes:
    """A stream of generateContent, one part an event."""
    last = len(parts) - 1
    events = [
        {
            "responseId": "r1",
            "candidates": [
                {
                    "content": {"role": "model", "parts": [part]},
                    **({"finishReason": "STOP"} if at == last else {}),
                }
            ],
        }
        for at, part in enumerate(parts)
    ]
    return "".join(f"data: {json.dumps(event)}\r\n\r\n" for event in events).encode()


def seen(protocol: Protocol, stream: bytes) -> tuple[Content, str | None]:
    """What the official SDK has in the end, however the stream was cut: blocks, reason to stop."""
    found = []
    for pieces in ([stream], [stream[at : at + 1] for at in range(len(stream))]):
        relay = relay_from(protocol)
        out = relayed(relay, pieces)
        assert relay.failure is None, relay.failure
        message = understood(out)
        content = [each.model_dump(exclude_none=True) for each in message.content]
        found.append((content, message.stop_reason))
    assert found[0] == found[1]
    return found[0]


def inputs(content: Content) -> list[object]:
    return [each["input"] for each in content if each["type"] == "tool_use"]


def types(content: Content) -> Sequence[object]:
    return [each["type"] for each in content]


def test_edge_01_chat_name_and_arguments_in_one_fragment() -> None:
    stream = chat({"content": "See."}, tool(0, name="f", arguments='{"a":1}'), finish="tool_calls")
    content, reason = seen("openai", stream)
    assert types(content) == ["text", "tool_use"]
    assert (inputs(content), reason) == ([{"a": 1}], "tool_use")


def test_edge_02_gemini_thoughts_and_a_call() -> None:
    call = {"functionCall": {"name": "f", "args": {"a": 1}}, "thoughtSignature": "c2ln"}
    content, reason = seen("gemini", gemini({"text": "Hm.", "thought": True}, call))
    assert types(content) == ["thinking", "thinking", "tool_use"]
    assert (inputs(content), reason) == ([{"a": 1}], "tool_use")
    blob = ENVELOPES.open(str(content[1]["signature"]))
    assert blob is not None
    assert (blob.kind, blob.value) == ("call", "c2ln")


def test_edge_03_chat_reasoning_first() -> None:
    stream = chat(
        {"role": "assistant", "content": ""}, {"reasoning_content": "Hm."}, {"content": "A"}
    )
    assert types(seen("openai", stream)[0]) == ["thinking", "text"]


def test_edge_04_chat_repeats_its_first_chunk() -> None:
    stream = chat({"role": "assistant"}, {"role": "assistant"}, {"content": "A"})
    out = relayed(relay_from("openai"), [stream])
    assert [each["type"] for each in events_in(out)].count("message_start") == 1


@pytest.mark.parametrize("finish", ["stop", "tool_calls"])
def test_edge_06_07_and_12_a_call_whatever_the_reason(finish: str) -> None:
    content, reason = seen("openai", chat({"content": None}, tool(0, name="f"), finish=finish))
    assert types(content) == ["tool_use"]
    assert reason == "tool_use"


def test_edge_08_chat_text_beside_an_empty_list_of_calls() -> None:
    content, reason = seen("openai", chat({"content": "A", "tool_calls": []}))
    assert content == [{"type": "text", "text": "A"}]
    assert reason == "end_turn"


def test_edge_10_and_11_chat_three_calls_one_without_arguments() -> None:
    stream = chat(
        {"content": "See."},
        tool(0, name="f", arguments=""),
        tool(0, arguments='{"a":1}'),
        tool(1, name="g"),
        tool(2, name="h", arguments='{"b":'),
        tool(2, arguments="2}"),
        finish="tool_calls",
    )
    content, _ = seen("openai", stream)
    assert types(content) == ["text", "tool_use", "tool_use", "tool_use"]
    assert inputs(content) == [{"a": 1}, {}, {"b": 2}]


def test_edge_13_chat_dies_in_the_middle() -> None:
    relay = relay_from("openai")
    out = relay.feed(chat({"content": "Hal"}, finish=None)) + relay.close()
    assert relay.failure is not None
    assert relay.failure.kind == "truncated"
    out += relay.error_event(UpstreamUnavailable("The upstream broke off."), "req_1")
    events = [each["type"] for each in events_in(out)]
    assert events[-1] == "error"
    assert "message_stop" not in events


def test_edge_14_responses_fails() -> None:
    failed = {
        "type": "response.failed",
        "sequence_number": 1,
        "response": {
            "id": "resp_1",
            "status": "failed",
            "error": {"code": "server_error", "message": "Oops."},
        },
    }
    relay = relay_from("openai-responses")
    relay.feed(f"event: response.failed\ndata: {json.dumps(failed)}\n\n".encode())
    assert relay.failure is not None
    assert relay.failure.kind == "server_error"
    told = relay.error_event(UpstreamUnavailable(relay.failure.message), "req_1")
    error = events_in(told)[0]["error"]
    assert isinstance(error, dict)
    assert (error["type"], error["message"]) == ("api_error", "Oops.")
