"""Responses between two ends of the same protocol: bytes pass, and are read beside that."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters import sse
from adapters.catalogue import Provider
from adapters.codec import Ask, Target
from adapters.envelope import Envelopes
from adapters.errors import UpstreamUnavailable
from adapters.openai.responses_downstream import ResponsesDownstream
from adapters.openai.responses_upstream import ResponsesUpstream
from adapters.passing import PassingCall, PassingStream
from adapters.stream import nothing_expected

Json = dict[str, object]

USAGE: Json = {"input_tokens": 10, "output_tokens": 5, "total_tokens": 15}


def passing() -> PassingCall:
    request = ResponsesDownstream().decode(b'{"model":"mine","input":"hi","stream":true}', Ask())
    provider = Provider("oai", "openai-responses", "https://a.example/v1")
    target = Target(provider, "theirs", 100, stream=True)
    return ResponsesUpstream().passing(request, target, Envelopes(b"k" * 32, "a"))


def frame(kind: str, number: int, model: str = "theirs", /, **members: object) -> bytes:
    """An event as OpenAI writes it; with the model's name where it carries a response."""
    body: Json = {"type": f"response.{kind}", "sequence_number": number, **members}
    if kind in ("created", "in_progress", "completed", "failed"):
        status = "in_progress" if kind in ("created", "in_progress") else kind
        usage = USAGE if kind == "completed" else None
        body["response"] = {
            "id": "resp_1",
            "object": "response",
            "status": status,
            "model": model,
            "unknown": [1.50, None],
            "output": [],
            "usage": usage,
        }
    data = json.dumps(body, separators=(",", ":")).encode()
    return b"event: response.%b\ndata: %b\n\n" % (kind.encode(), data)


def stream(model: str) -> list[bytes]:
    place = {"item_id": "msg_1", "output_index": 0, "content_index": 0}
    return [
        frame("created", 0, model),
        b": comment\n\n",
        frame("in_progress", 1, model),
        frame("something.new", 2, anything='"response": "theirs"'),
        frame("output_text.delta", 3, **place, delta='{"model":"theirs","response":'),
        frame("output_text.delta", 4, **place, delta="é"),
        frame("completed", 5, model),
    ]


THEIRS, MINE = stream("theirs"), stream("mine")


def run(data: bytes, *cuts: int) -> tuple[bytes, PassingStream]:
    relay = passing().stream()
    edges = [0, *sorted(cut for cut in cuts if cut < len(data)), len(data)]
    out = b"".join([relay.feed(data[begin:end]) for begin, end in pairwise(edges)])
    return out + relay.close(), relay


def test_only_the_name_of_the_model_changes() -> None:
    out, relay = run(b"".join(THEIRS))
    assert relay.failure is None
    assert out == b"".join(MINE[:-1])
    assert relay.terminal == MINE[-1]
    assert relay.counted(nothing_expected).usage.output_tokens == 5
    assert relay.has_content


@given(st.lists(st.integers(0, 2000), max_size=6))
def test_however_it_is_cut(cuts: list[int]) -> None:
    out, relay = run(b"".join(THEIRS), *cuts)
    assert out + relay.terminal == b"".join(MINE)


def test_byte_by_byte() -> None:
    data = b"".join(THEIRS)
    out, relay = run(data, *range(len(data)))
    assert out + relay.terminal == b"".join(MINE)


def test_lifecycle_event_without_a_model_passes() -> None:
    raw = sse.event(b'{"type":"response.created","sequence_number":0,"response":{"id":"x"}}')
    assert passing().stream().feed(raw) == raw


def failed(tail: bytes) -> list[Json]:
    splitter = sse.Splitter()
    return [json.loads(sse.data_of(raw)) for raw in splitter.feed(tail)]


@pytest.mark.parametrize("ending", [b"", b"data: nonsense\n\n"])
def test_failure_goes_on_where_the_stream_was(ending: bytes) -> None:
    _, relay = run(b"".join(THEIRS[:-2]) + ending)
    assert relay.failure is not None
    assert relay.terminal == b""
    error, last = failed(relay.error_event(UpstreamUnavailable("Gone."), "req"))
    assert (error["type"], error["sequence_number"]) == ("error", 4)
    assert (last["type"], last["sequence_number"]) == ("response.failed", 5)
    response = last["response"]
    assert isinstance(response, dict)
    assert (response["id"], response["model"], response["status"]) == ("resp_1", "mine", "failed")
    assert response["error"] == {"code": "upstream_unavailable", "message": "Gone."}


def test_edge_25_upstream_error_is_told_in_our_words() -> None:
    upstream = sse.event(b'{"type":"error","code":"server_error","message":"boom"}')
    out, relay = run(b"".join(THEIRS[:4]) + upstream)
    assert b"boom" not in out
    assert relay.failure is not None
    assert relay.failure.message == "boom"
    kinds = [event["type"] for event in failed(relay.error_event(UpstreamUnavailable("x"), "r"))]
    assert kinds == ["error", "response.failed"]


def test_failure_before_anything() -> None:
    relay = passing().stream()
    kinds = [event["type"] for event in failed(relay.error_event(UpstreamUnavailable("x"), "r"))]
    assert kinds == ["response.created", "error", "response.failed"]


def test_answer_without_anything_in_it_is_none() -> None:
    nothing = frame("created", 0) + frame("completed", 1).replace(
        b'"output_tokens":5', b'"output_tokens":0'
    )
    _, relay = run(nothing)
    assert relay.failure is not None
    assert relay.failure.kind == "empty"


def test_what_a_tool_of_the_provider_does_is_content() -> None:
    """Its events are not held back until the model speaks."""
    item = {"type": "web_search_call", "id": "ws_1", "status": "in_progress"}
    relay = passing().stream()
    seen = []
    for event in (frame("created", 0), frame("output_item.added", 1, output_index=0, item=item)):
        relay.feed(event)
        seen.append(relay.has_content)
    assert seen == [False, True]
    drawn = {"id": "r", "status": "completed", "output": [{"type": "image_generation_call"}]}
    assert passing().plain(json.dumps(drawn).encode()).failure is None


def test_plain_answer() -> None:
    part = '{"type":"output_text","text":"Hi","annotations":[ ]}'
    body = (
        '{"id":"resp_1", "model":"theirs","status":"completed","x":1.50,"output":[{"type":'
        f'"message","content":[{part}]}}],"usage":{{"input_tokens":3,"output_tokens":2}}}}'
    ).encode()
    relay = passing().plain(body)
    assert relay.failure is None
    assert relay.body == body.replace(b"theirs", b"mine").replace(b'", "', b'","')
    assert relay.counted(nothing_expected).usage.input_tokens == 3


def test_plain_answer_that_came_as_a_stream() -> None:
    relay = passing().plain(b"".join(THEIRS))
    assert relay.failure is None
    response = json.loads(relay.body)
    assert (response["id"], response["model"]) == ("resp_1", "mine")


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'{"error":{"message":"no"}}'])
def test_plain_answer_that_is_none(body: bytes) -> None:
    relay = passing().plain(body)
    assert relay.failure is not None
    assert relay.body == b""
