"""Compatible servers and their ways: whatever they send, the events obey the grammar."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.canonical import (
    Citation,
    Close,
    Delta,
    Event,
    Finish,
    FinishReason,
    Logprob,
    Meta,
    Open,
    Start,
    Usage,
    Used,
)
from adapters.codec import FailureKind
from adapters.openai.chat_reader import ChatReader

Json = dict[str, object]

DONE = b"[DONE]"


def chunk(finish: str | None = None, **delta: object) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return json.dumps({"id": "x", "model": "m", "choices": [choice]}).encode()


def fragment(arguments: object = None, name: str | None = None, **members: object) -> Json:
    return {**members, "function": {"name": name, "arguments": arguments}}


def read(*payloads: bytes, closed: bool = True) -> ChatReader:
    reader = ChatReader()
    for payload in payloads:
        reader.read(payload)
    if closed:
        reader.close()
    return reader


def events(*payloads: bytes) -> list[Event]:
    reader = read(*payloads)
    assert reader.composer.failure is None
    return reader.composer.take()


def blocks(*payloads: bytes) -> list[tuple[str, str, str, str]]:
    """Each block as (kind, id, name, text)."""
    found: list[tuple[str, str, str, str]] = []
    for event in events(*payloads):
        if isinstance(event, Open):
            found.append((event.kind, event.id, event.name, ""))
        elif isinstance(event, Delta):
            kind, call_id, name, text = found[event.index]
            found[event.index] = (kind, call_id, name, text + event.text)
    return found


def calls(*fragments: Json | list[Json]) -> list[tuple[str, str, str]]:
    """The calls that come of fragments, one chunk for each or for each list of them."""
    payloads = [chunk(tool_calls=each if isinstance(each, list) else [each]) for each in fragments]
    return [each[1:] for each in blocks(*payloads, chunk("stop"), DONE)]


STOP = chunk("stop")
OTHER_CHOICE = b'{"choices":[{"index":1,"delta":{"content":"b"}}]}'


def test_a_text() -> None:
    usage = b'{"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":2}}'
    assert events(chunk(role="assistant"), chunk(content="a"), STOP, usage, DONE) == [
        Start("x", "m"),
        Open(0, "text"),
        Delta(0, "a"),
        Used(Usage(input_tokens=5, output_tokens=2)),
        Close(0),
        Finish("end"),
    ]


# -- calls ----------------------------------------------------------------------------------------

WHOLE = '{"a":1}'


@pytest.mark.parametrize(
    "fragments",
    [
        [fragment(WHOLE, "f", index=0, id="c")],
        [fragment("", "f", index=0, id="c"), fragment('{"a"', index=0), fragment(":1}", index=0)],
        [fragment(None, "f", index=0, id="c"), fragment(WHOLE, index=0, id="")],
        [fragment('{"a"', "f", index=0, id="c"), fragment(":1}", index=0, id="c")],
        [fragment('{"a"', "f", index=0, id="c"), fragment(":1}", index=0, id="other")],
        [fragment({"a": 1}, "f", index=0, id="c")],
        [fragment('{"a"', "f", id="c"), fragment(":1}")],
        [fragment("", index=0, id="c"), fragment('{"a"', "f", index=0), fragment(":1}", index=0)],
        [fragment('{"a"', index=0, id="c"), fragment(":1}", "f", index=0)],
        [fragment('{"a"', "f", index="0", id="c"), fragment(":1}", index="0")],
    ],
)
def test_one_call_however_it_is_cut(fragments: list[Json]) -> None:
    assert calls(*fragments) == [("c", "f", WHOLE)]


@pytest.mark.parametrize(
    "fragments",
    [
        [[fragment(WHOLE, "f", index=0, id="c"), fragment("{}", "g", index=1, id="d")]],
        [fragment(WHOLE, "f", index=0, id="c"), fragment("{}", "g", index=0, id="d")],
        [[fragment(WHOLE, "f", id="c"), fragment("{}", "g", id="d")]],
        [fragment(WHOLE, "f", index=3, id="c"), fragment("{}", "g", index=7, id="d")],
        [
            fragment("", "f", index=0, id="c"),
            fragment("", "g", index=1, id="d"),
            fragment("{", index=1),
            fragment('{"a"', index=0),
            fragment("}", index=1),
            fragment(":1}", index=0),
        ],
    ],
    ids=["one chunk", "all of index 0", "no index", "gaps", "interleaved"],
)
def test_two_calls_however_they_are_told_apart(fragments: list[Json]) -> None:
    assert calls(*fragments) == [("c", "f", WHOLE), ("d", "g", "{}")]


def test_whole_calls_without_ids_are_several() -> None:
    found = calls(fragment(WHOLE, "f", index=0, id=""), fragment("{}", "f", index=0, id=""))
    assert [call[1:] for call in found] == [("f", WHOLE), ("f", "{}")]
    assert len({call[0] for call in found}) == 2


def test_the_first_form_of_calls() -> None:
    first = chunk(function_call={"name": "f", "arguments": '{"a"'})
    (call,) = blocks(first, chunk(function_call={"arguments": ":1}"}), chunk("function_call"))
    assert (call[0], *call[2:]) == ("call", "f", WHOLE)


def test_a_free_form_call() -> None:
    custom = {"index": 0, "id": "c", "type": "custom", "custom": {"name": "f", "input": "a "}}
    more = {"index": 0, "custom": {"input": "b"}}
    found = blocks(chunk(tool_calls=[custom]), chunk(tool_calls=[more]), STOP)
    assert found == [("free_call", "c", "f", "a b")]


def test_a_fragment_after_the_reason_still_counts() -> None:
    first = chunk(tool_calls=[fragment("{", "f", index=0, id="c")])
    late = chunk(tool_calls=[fragment("}", index=0)])
    assert blocks(first, chunk("tool_calls"), late, DONE) == [("call", "c", "f", "{}")]


def test_googles_signature_of_a_call_comes_before_its_arguments() -> None:
    extra = {"google": {"thought_signature": "s"}}
    signed = fragment(WHOLE, "f", index=0, id="c", extra_content=extra)
    found = events(chunk(tool_calls=[signed]), STOP)
    assert found[2] == Meta(0, "s", "call")


# -- text, reasoning, refusals --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("payloads", "expected"),
    [
        ([chunk(content="a", tool_calls=[])], [("text", "a")]),
        ([chunk(content="a", reasoning_content="r")], [("thinking", "r"), ("text", "a")]),
        ([chunk(reasoning="r"), chunk(content="a")], [("thinking", "r"), ("text", "a")]),
        ([chunk(content=None, reasoning_content=None), chunk(content="a")], [("text", "a")]),
        ([chunk(content="a"), STOP, chunk(content="b")], [("text", "ab")]),
        ([chunk(refusal="no")], [("refusal", "no")]),
        ([b'{"choices":[],"prompt_filter_results":[]}', chunk(content="a")], [("text", "a")]),
        ([b'{"choices":[{"message":{"content":"a"}}]}'], [("text", "a")]),
        (
            [
                chunk(content=[{"type": "thinking", "thinking": [{"type": "text", "text": "r"}]}]),
                chunk(content=[{"type": "text", "text": "a"}]),
            ],
            [("thinking", "r"), ("text", "a")],
        ),
        ([chunk(content="x\ud83d"), chunk(content="\ude00")], [("text", "x😀")]),
        (
            [b'{"choices":[{"index":1,"delta":{"content":"b"}}]}', chunk(content="a")],
            [("text", "a")],
        ),
    ],
)
def test_texts(payloads: list[bytes], expected: list[tuple[str, str]]) -> None:
    assert [(each[0], each[3]) for each in blocks(*payloads, STOP, DONE)] == expected


def test_logprobs_and_citations_belong_to_their_text() -> None:
    logprobs = {
        "content": [
            {"token": "a", "logprob": -1, "top_logprobs": [{"token": "b", "logprob": -2.5}]}
        ]
    }
    said = {"index": 0, "delta": {"content": "a"}, "logprobs": logprobs}
    cited = {"url_citation": {"url": "https://x", "title": "t"}}
    found = events(
        json.dumps({"choices": [said]}).encode(), chunk(annotations=[cited, {}, 5]), STOP, DONE
    )
    assert Meta(0, logprobs=(Logprob("a", -1, (("b", -2.5),)),)) in found
    assert Meta(0, citation=Citation("https://x", "t")) in found


# -- the end --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ("stop", "end"),
        ("length", "length"),
        ("content_filter", "content_filter"),
        ("model_length", "context_window"),
        ("eos_token", "end"),
        ("tool_calls", "end"),  # without any
    ],
)
def test_reasons(given: str, reason: FinishReason) -> None:
    assert events(chunk(content="a"), chunk(given), DONE)[-1] == Finish(reason)


def test_a_stop_with_calls_is_their_reason() -> None:
    one = chunk(tool_calls=[fragment("{}", "f", index=0, id="c")])
    assert events(one, STOP, DONE)[-1] == Finish("tool_calls")


def test_a_refusal_is_a_reason() -> None:
    assert events(chunk(refusal="no"), STOP, DONE)[-1] == Finish("refusal")


def test_the_stop_sequence_where_a_server_names_it() -> None:
    choice = {"index": 0, "delta": {}, "finish_reason": "stop", "stop_reason": "END"}
    last = json.dumps({"choices": [choice]}).encode()
    assert events(chunk(content="a"), last)[-1] == Finish("stop_sequence", "END")


@pytest.mark.parametrize("end", [[STOP], [STOP, DONE], [STOP, chunk("stop"), DONE], [DONE]])
def test_ends(end: list[bytes]) -> None:
    found = events(chunk("", content="a"), *end)
    assert [event for event in found if isinstance(event, Finish)] == [Finish("end")]


@pytest.mark.parametrize(
    ("payload", "kind"),
    [
        (b'{"error":{"message":"slow down","code":"rate_limit_exceeded"}}', "rate_limited"),
        (b'{"error":"boom","choices":[]}', "server_error"),
        (b"{", "protocol"),
        (b"[]", "protocol"),
        (b'{"choices":5}', "protocol"),
        (chunk("error"), "server_error"),
        (chunk("function_call_filter: MALFORMED_FUNCTION_CALL"), "protocol"),
        (chunk("insufficient_system_resource"), "overloaded"),
        (b'{"choices":[]}', "truncated"),
    ],
)
def test_failures(payload: bytes, kind: FailureKind) -> None:
    reader = read(chunk(content="a"), payload)
    assert reader.composer.failure is not None
    assert reader.composer.failure.kind == kind


# -- usage ----------------------------------------------------------------------------------------

USAGE: Json = {
    "prompt_tokens": 9,
    "completion_tokens": 7,
    "prompt_tokens_details": {"cached_tokens": 3, "cache_write_tokens": 2},
    "completion_tokens_details": {"reasoning_tokens": 4},
}


@pytest.mark.parametrize("place", ["beside the reason", "alone", "everywhere"])
def test_usage_at_any_place(place: str) -> None:
    def told(payload: bytes) -> bytes:
        return json.dumps({**json.loads(payload), "usage": USAGE, "service_tier": "flex"}).encode()

    said, last, alone = chunk(content="a"), STOP, b'{"choices":[]}'
    if place == "everywhere":
        said = told(said)
    if place != "alone":
        last = told(last)
    if place != "beside the reason":
        alone = told(alone)
    used = [event.usage for event in events(said, last, alone, DONE) if isinstance(event, Used)]
    assert used[-1] == Usage(
        input_tokens=9,
        cached_input_tokens=3,
        cache_write_tokens=2,
        output_tokens=7,
        reasoning_tokens=4,
        service_tier="flex",
    )


# -- whole answers, and anything at all -----------------------------------------------------------


def test_a_plain_answer_is_read_as_a_stream_is() -> None:
    message = {
        "role": "assistant",
        "reasoning_content": "r",
        "content": "a",
        "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": ""}}],
    }
    choice = {"index": 0, "message": message, "finish_reason": "tool_calls"}
    reader = ChatReader()
    reader.plain(json.dumps({"id": "x", "choices": [choice]}).encode())
    assert reader.composer.failure is None
    found = reader.composer.take()
    assert [event.kind for event in found if isinstance(event, Open)] == [
        "thinking",
        "text",
        "call",
    ]
    assert found[-1] == Finish("tool_calls")


MEMBERS = [
    "choices",
    "delta",
    "tool_calls",
    "function",
    "content",
    "usage",
    "error",
    "annotations",
    "logprobs",
    "extra_content",
    "index",
    "id",
    "name",
    "arguments",
    "finish_reason",
    "function_call",
    "reasoning",
]


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=3),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(MEMBERS),
                inner,
                max_size=4,
            )
        ),
        max_leaves=12,
    )
)
def test_nothing_raises(value: object) -> None:
    for payload in (value, {"choices": [{"index": 0, "delta": value}]}, {"choices": [value]}):
        reader = read(json.dumps(payload).encode(), closed=False)
        reader.read(STOP)
        reader.close()
        assert reader.composer.ended
