"""Responses answers, however orderly their servers are, as canonical events."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters import sse
from adapters.canonical import (
    Citation,
    Close,
    Delta,
    Event,
    Finish,
    Logprob,
    Meta,
    Open,
    Start,
    Usage,
    Used,
)
from adapters.codec import FailureKind
from adapters.openai.responses_reader import ResponsesReader

Json = dict[str, object]

USAGE: Json = {
    "input_tokens": 10,
    "input_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 3},
    "output_tokens": 5,
    "output_tokens_details": {"reasoning_tokens": 2},
    "total_tokens": 15,
}
COUNTED = Usage(
    input_tokens=10,
    cached_input_tokens=4,
    cache_write_tokens=3,
    output_tokens=5,
    reasoning_tokens=2,
    service_tier="default",
)


def response(status: str = "completed", *output: Json, **members: object) -> Json:
    return {
        "id": "resp_1",
        "object": "response",
        "model": "gpt-x",
        "status": status,
        "error": None,
        "output": list(output),
        "usage": USAGE if status in ("completed", "incomplete") else None,
        "service_tier": "default",
        **members,
    }


def event(kind: str, **members: object) -> Json:
    return {"type": f"response.{kind}", **members}


def text_part(text: str, **members: object) -> Json:
    return {"type": "output_text", "text": text, "annotations": [], **members}


def message(*parts: Json, id: str = "msg_1") -> Json:  # noqa: A002
    return {"type": "message", "id": id, "role": "assistant", "content": list(parts)}


def call(arguments: str, at: int = 1, name: str = "look") -> Json:
    return {
        "type": "function_call",
        "id": f"fc_{at}",
        "call_id": f"call_{at}",
        "name": name,
        "arguments": arguments,
    }


def thought(*summary: str, encrypted: str | None = "enc") -> Json:
    return {
        "type": "reasoning",
        "id": "rs_1",
        "summary": [{"type": "summary_text", "text": text} for text in summary],
        "encrypted_content": encrypted,
    }


def added(index: int, item: Json) -> Json:
    return event("output_item.added", output_index=index, item=item)


def done(index: int, item: Json) -> Json:
    return event("output_item.done", output_index=index, item=item)


def text(index: int, piece: str, place: int = 0) -> Json:
    return event("output_text.delta", output_index=index, content_index=place, delta=piece)


def arguments(index: int, piece: str) -> Json:
    return event("function_call_arguments.delta", output_index=index, delta=piece)


CREATED = event("created", response=response("in_progress"))
COMPLETED = event("completed", response=response())


def read(*events: Json) -> tuple[list[Event], ResponsesReader]:
    reader = ResponsesReader()
    for each in events:
        reader.read(json.dumps(each).encode())
    reader.close()
    return reader.composer.take(), reader


def blocks(events: Sequence[Event]) -> list[tuple[str, ...]]:
    """Each block as its kind, its name and its text."""
    found: list[tuple[str, ...]] = []
    for each in events:
        if isinstance(each, Open):
            found.append((each.kind, each.id, each.name, ""))
        elif isinstance(each, Delta):
            *head, before = found[-1]
            found[-1] = (*head, before + each.text)
    return found


FULL = (
    CREATED,
    event("in_progress", response=response("in_progress")),
    added(0, thought(encrypted="partial")),
    event("reasoning_summary_part.added", output_index=0, summary_index=0),
    event("reasoning_summary_text.delta", output_index=0, summary_index=0, delta="Hm"),
    event("reasoning_summary_text.done", output_index=0, summary_index=0, text="Hm"),
    event("reasoning_summary_text.delta", output_index=0, summary_index=1, delta="Ah"),
    done(0, thought("Hm", "Ah")),
    added(1, message()),
    event("content_part.added", output_index=1, content_index=0, part=text_part("")),
    text(1, "Hel"),
    text(1, "lo"),
    event("output_text.done", output_index=1, content_index=0, text="Hello"),
    event("content_part.done", output_index=1, content_index=0, part=text_part("Hello")),
    done(1, message(text_part("Hello"))),
    added(2, call("")),
    arguments(2, '{"a"'),
    arguments(2, ":1}"),
    event("function_call_arguments.done", output_index=2, arguments='{"a":1}'),
    done(2, call('{"a":1}')),
    event(
        "completed",
        response=response(
            "completed", thought("Hm", "Ah"), message(text_part("Hello")), call('{"a":1}')
        ),
    ),
)
EXPECTED: list[Event] = [
    Start("resp_1", "gpt-x"),
    Open(0, "thinking"),
    Delta(0, "Hm"),
    Delta(0, "\n\nAh"),
    Meta(0, signature="enc", kind="reasoning"),
    Close(0),
    Open(1, "text"),
    Delta(1, "Hel"),
    Delta(1, "lo"),
    Close(1),
    Open(2, "call", "call_1", "look"),
    Delta(2, '{"a"'),
    Delta(2, ":1}"),
    Close(2),
    Used(COUNTED),
    Finish("tool_calls"),
]


def test_an_orderly_stream() -> None:
    assert read(*FULL)[0] == EXPECTED


def test_whole_answer_means_the_same_as_its_stream() -> None:
    reader = ResponsesReader()
    last = FULL[-1]["response"]
    reader.plain(json.dumps(last).encode())
    events = reader.composer.take()
    assert blocks(events) == blocks(EXPECTED)
    assert events[-2:] == EXPECTED[-2:]


def test_edge_22_terminal_without_output_is_rebuilt_from_items() -> None:
    events, _ = read(*FULL[:-1], COMPLETED)
    assert events == EXPECTED


def test_edge_23_stream_instead_of_a_whole_answer() -> None:
    reader = ResponsesReader()
    body = b"".join(sse.event(json.dumps(each).encode()) for each in (*FULL[:-1], COMPLETED))
    reader.plain(body)
    assert reader.composer.take() == EXPECTED
    reader = ResponsesReader()
    reader.plain(body[: len(body) // 2])
    assert reader.composer.failure is not None


def test_edge_24_arguments_that_come_only_when_done_are_told_once() -> None:
    finished = event("function_call_arguments.done", output_index=0, arguments='{"a":1}')
    for events in (
        [added(0, call("")), finished, done(0, call('{"a":1}'))],
        [added(0, call("")), done(0, call('{"a":1}'))],
        [done(0, call('{"a":1}'))],
        [added(0, call("")), arguments(0, '{"a"'), finished],
        [added(0, call("")), finished],
        [],
    ):
        terminal = event("completed", response=response("completed", call('{"a":1}')))
        found, _ = read(CREATED, *events, terminal)
        assert blocks(found) == [("call", "call_1", "look", '{"a":1}')]
        assert found[-1] == Finish("tool_calls")


def test_edge_31_parallel_calls_that_interleave_stay_apart() -> None:
    events, _ = read(
        CREATED,
        added(0, call("", 1)),
        added(1, call("", 2, "other")),
        arguments(0, "{"),
        arguments(1, "["),
        arguments(0, "}"),
        arguments(1, "]"),
        done(1, call("[]", 2, "other")),
        done(0, call("{}", 1)),
        COMPLETED,
    )
    assert blocks(events) == [("call", "call_1", "look", "{}"), ("call", "call_2", "other", "[]")]


def test_only_done_events() -> None:
    events, _ = read(done(0, thought("Hm")), done(1, message(text_part("Hi"))), COMPLETED)
    assert blocks(events) == [("thinking", "", "", "Hm"), ("text", "", "", "Hi")]


def test_only_deltas() -> None:
    events, _ = read(text(0, "a"), text(0, "b"), COMPLETED)
    assert blocks(events) == [("text", "", "", "ab")]


def test_items_of_the_terminal_event_count_where_they_are_new() -> None:
    """Ids may differ there, and indexes may have had gaps."""
    terminal = event(
        "completed",
        response=response(
            "completed", message(text_part("Hi"), id="msg_other"), call("{}", 1), call("{}", 2)
        ),
    )
    events, _ = read(done(0, message(text_part("Hi"))), done(5, call("{}", 1)), terminal)
    assert [block[:2] for block in blocks(events)] == [
        ("text", ""),
        ("call", "call_1"),
        ("call", "call_2"),
    ]


def test_what_comes_for_a_closed_block_is_ignored() -> None:
    events, reader = read(
        done(0, message(text_part("Hi"))),
        text(0, " again"),
        event("output_text.done", output_index=0, content_index=0, text="Hi there"),
        done(0, message(text_part("Hi there"))),
        arguments(7, "{}"),
        COMPLETED,
    )
    assert reader.composer.failure is None
    assert blocks(events) == [("text", "", "", "Hi")]


def test_free_form_and_search_calls() -> None:
    patch: Json = {
        "type": "custom_tool_call",
        "id": "c",
        "call_id": "c1",
        "name": "patch",
        "input": "",
    }
    search: Json = {
        "type": "tool_search_call",
        "id": "t",
        "call_id": "t1",
        "execution": "client",
        "arguments": {"query": "x"},
    }
    events, _ = read(
        added(0, patch),
        event("custom_tool_call_input.delta", output_index=0, delta="*** "),
        event("custom_tool_call_input.done", output_index=0, input="*** End"),
        done(0, {**patch, "input": "*** End"}),
        added(1, {**search, "arguments": {}}),
        done(1, search),
        COMPLETED,
    )
    found = blocks(events)
    assert found[0] == ("free_call", "c1", "patch", "*** End")
    assert found[1][:3] == ("call", "t1", "tool_search")
    assert json.loads(found[1][3]) == {"query": "x"}


def test_text_of_reasoning_is_read_in_one_form() -> None:
    both = {**thought("short"), "content": [{"type": "reasoning_text", "text": "long"}]}
    events, _ = read(
        event("reasoning_text.delta", output_index=0, content_index=0, delta="lo"),
        event("reasoning_text.done", output_index=0, content_index=0, text="long"),
        event("reasoning_summary_text.delta", output_index=0, summary_index=0, delta="short"),
        done(0, both),
        COMPLETED,
    )
    assert blocks(events) == [("thinking", "", "", "long")]


def test_reasoning_without_words_is_a_block_for_its_signature() -> None:
    events, _ = read(done(0, thought()), COMPLETED)
    assert Meta(0, signature="enc", kind="reasoning") in events
    events, _ = read(done(0, thought(encrypted=None)), COMPLETED)
    assert blocks(events) == []


def test_refusal() -> None:
    events, _ = read(
        event("refusal.delta", output_index=0, content_index=0, delta="No"),
        event("refusal.done", output_index=0, content_index=0, refusal="No."),
        done(0, message({"type": "refusal", "refusal": "No."})),
        COMPLETED,
    )
    assert blocks(events) == [("refusal", "", "", "No.")]
    assert events[-1] == Finish("refusal")


def test_citations_and_logprobs_once_each() -> None:
    cited = {"type": "url_citation", "url": "https://a.example", "title": "A"}
    likely = [{"token": "H", "logprob": -1, "top_logprobs": [{"token": "J", "logprob": -2}]}]
    part = text_part("Hi", annotations=[cited], logprobs=likely)
    streamed, _ = read(
        event("output_text.delta", output_index=0, content_index=0, delta="Hi", logprobs=likely),
        event("output_text.annotation.added", output_index=0, content_index=0, annotation=cited),
        event("content_part.done", output_index=0, content_index=0, part=part),
        done(0, message(part)),
        COMPLETED,
    )
    whole, _ = read(event("completed", response=response("completed", message(part))))
    for events in (streamed, whole):
        facts = [each for each in events if isinstance(each, Meta)]
        assert {fact.citation for fact in facts} == {None, Citation("https://a.example", "A")}
        assert [fact.logprobs for fact in facts if fact.logprobs] == [
            (Logprob("H", -1.0, (("J", -2.0),)),)
        ]


def test_nice_to_have_of_another_form_breaks_nothing() -> None:
    events, _ = read(
        event("output_text.delta", output_index=0, content_index=0, delta="Hi", logprobs={"a": 1}),
        event("output_text.annotation.added", output_index=0, annotation="page 3"),
        done(1, {"type": "computer_call", "action": ["click"]}),
        event("completed", response=response(tool_usage="none")),
    )
    assert blocks(events) == [("text", "", "", "Hi")]
    assert events[-1] == Finish("end")


def test_tools_of_the_provider_are_counted_not_told() -> None:
    items: list[Json] = [
        {"type": "web_search_call", "id": "w1", "action": {"type": "search", "query": "x"}},
        {"type": "web_search_call", "id": "w2", "action": {"type": "open_page"}},
        {"type": "image_generation_call", "id": "i", "result": "AAAA"},
        {"type": "mcp_call", "id": "m", "name": "x", "arguments": "{}"},
    ]
    unreported = event("completed", response=response("completed", *items))
    events, _ = read(*[done(at, item) for at, item in enumerate(items)], unreported)
    assert blocks(events) == []
    used = next(each for each in events if isinstance(each, Used))
    assert used.usage.pieces == {"web_search": 1, "image": 1}
    reported = response("completed", *items, tool_usage={"web_search": {"num_requests": 3}})
    events, _ = read(event("completed", response=reported))
    used = next(each for each in events if isinstance(each, Used))
    assert used.usage.pieces == {"web_search": 3, "image": 1}


def test_events_of_other_families_pass_unread() -> None:
    events, _ = read(
        CREATED,
        event("queued", response=response("queued")),
        {"type": "keepalive", "sequence_number": 3},
        event("web_search_call.searching", output_index=0),
        event("image_generation_call.partial_image", output_index=0, partial_image_b64="AA"),
        event("code_interpreter_call_code.delta", output_index=0, delta="x = 1"),
        event("mcp_call_arguments.delta", output_index=0, delta="{}"),
        event("compaction.compacting"),
        event("something.new", delta="?"),
        {"no": "type"},
        text(1, "Hi"),
        COMPLETED,
    )
    assert blocks(events) == [("text", "", "", "Hi")]


# -- the end --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("details", "reason"),
    [
        ({"reason": "max_output_tokens"}, "length"),
        ({"reason": "content_filter"}, "content_filter"),
        ({"reason": "steered"}, "end"),
        (None, "end"),
    ],
)
def test_incomplete(details: object, reason: str) -> None:
    last = response("incomplete", message(text_part("Hi")), incomplete_details=details)
    events, _ = read(event("incomplete", response=last))
    assert events[-1].reason == reason  # type: ignore[union-attr]
    reader = ResponsesReader()
    reader.plain(json.dumps(last).encode())
    assert reader.composer.take()[-1] == events[-1]


def test_usage_of_long_cache_writes() -> None:
    details = {
        "cached_tokens": 0,
        "cache_write_tokens": 9,
        "cache_write_tokens_details": {"ttl_30m_tokens": 3, "ttl_12h_tokens": 6},
    }
    usage = {"input_tokens": 10.0, "input_tokens_details": details, "output_tokens": 1}
    events, _ = read(event("completed", response=response(usage=usage)))
    used = next(each for each in events if isinstance(each, Used))
    assert (used.usage.cache_write_tokens, used.usage.cache_write_1h_tokens) == (3, 6)


@pytest.mark.parametrize(
    "usage",
    [None, "much", {}, {"input_tokens": -1}, {"input_tokens": 2**41}, {"input_tokens": [1]}],
)
def test_usage_that_cannot_be_believed_is_none(usage: object) -> None:
    events, _ = read(text(0, "Hi"), event("completed", response=response(usage=usage)))
    assert not any(isinstance(each, Used) for each in events)
    assert events[-1] == Finish("end")


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("server_error", "server_error"),
        ("rate_limit_exceeded", "rate_limited"),
        ("context_length_exceeded", "context_length"),
        ("insufficient_quota", "quota"),
        ("invalid_prompt", "bad_request"),
        ("bio_policy", "content_filter"),
        ("invalid_image_url", "bad_request"),
        ("image_content_policy_violation", "content_filter"),
        ("vector_store_timeout", "server_error"),
    ],
)
def test_failures_by_code(code: str, kind: FailureKind) -> None:
    error = {"code": code, "message": "It broke."}
    flat: Json = {"type": "error", "sequence_number": 1, **error, "param": None}
    nested: Json = {"type": "error", "error": {"type": "x", **error}}
    failed = event("failed", response=response("failed", error=error))
    for last in (flat, nested, failed):
        _, reader = read(CREATED, text(0, "Hi"), last, COMPLETED)
        assert reader.composer.failure is not None
        assert (reader.composer.failure.kind, reader.composer.failure.message) == (
            kind,
            "It broke.",
        )
    plain = ResponsesReader()
    plain.plain(json.dumps(response("failed", error=error)).encode())
    assert plain.composer.failure is not None
    assert plain.composer.failure.kind == kind


def test_failure_without_a_reason() -> None:
    _, reader = read(CREATED, event("failed", response=response("failed")))
    assert reader.composer.failure is not None
    assert reader.composer.failure.kind == "server_error"


def test_stream_that_breaks_off_is_truncated() -> None:
    _, reader = read(*FULL[:-1])
    assert reader.composer.failure is not None
    assert reader.composer.failure.kind == "truncated"


@pytest.mark.parametrize("status", ["queued", "in_progress", "cancelled"])
def test_whole_answer_that_is_none(status: str) -> None:
    reader = ResponsesReader()
    reader.plain(json.dumps(response(status)).encode())
    assert reader.composer.failure is not None


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b"{}", b'{"output":7}', b'{"output":[7]}'])
def test_bytes_that_are_no_response(body: bytes) -> None:
    reader = ResponsesReader()
    reader.plain(body)
    assert reader.composer.failure is not None
    assert reader.composer.failure.kind == "protocol"


@pytest.mark.parametrize("data", [b"nonsense", b"[]", b'{"type":"response.completed"}', b"\xff"])
def test_events_that_are_none(data: bytes) -> None:
    reader = ResponsesReader()
    reader.read(data)
    reader.close()
    assert reader.composer.ended


def test_character_cut_in_halves_comes_whole() -> None:
    reader = ResponsesReader()
    for half in (rb"a\ud83d", rb"\ude00b"):
        reader.read(
            b'{"type":"response.output_text.delta","output_index":0,"content_index":0,"delta":"'
            + half
            + b'"}'
        )
    reader.read(json.dumps(COMPLETED).encode())
    assert blocks(reader.composer.take()) == [("text", "", "", "a😀b")]


@given(
    st.sampled_from(FULL),
    st.sampled_from(["item", "response", "delta", "part", "output_index", "text", "arguments"]),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=4),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["type", "content", "summary", "output", "usage", "error"]),
                inner | st.sampled_from(["message", "reasoning", "function_call"]),
                max_size=3,
            )
        ),
        max_leaves=8,
    ),
)
def test_odd_values_are_read_or_reported(odd: Json, name: str, value: object) -> None:
    _, reader = read(CREATED, {**odd, name: value}, *FULL)
    assert reader.composer.ended


# -- any order ------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 20_000), max_size=8))
def test_how_a_stream_is_cut_changes_nothing(cuts: list[int]) -> None:
    stream = b"".join(sse.event(json.dumps(each).encode()) for each in FULL)
    edges = [0, *sorted(cut for cut in cuts if cut < len(stream)), len(stream)]
    assert _events(stream, edges) == EXPECTED


def test_byte_by_byte() -> None:
    stream = b"".join(sse.event(json.dumps(each).encode()) for each in FULL)
    assert _events(stream, list(range(len(stream) + 1))) == EXPECTED


def _events(stream: bytes, edges: Sequence[int]) -> list[Event]:
    splitter, reader = sse.Splitter(), ResponsesReader()
    for begin, end in pairwise(edges):
        for raw in splitter.feed(stream[begin:end]):
            reader.read(sse.data_of(raw))
    reader.close()
    return reader.composer.take()


@given(st.lists(st.sampled_from(FULL), max_size=30))
def test_no_order_of_events_breaks_the_reader(events: list[Json]) -> None:
    _, reader = read(*events)
    assert reader.composer.ended


@pytest.mark.parametrize("odd", [{"a": 1}, [], 3, None])
def test_an_item_of_an_odd_type_is_passed_over(odd: object) -> None:
    reader = ResponsesReader(passing=True)
    reader.plain(json.dumps(response("completed", {"type": odd})).encode())
    reader.close()
    assert reader.composer.failure is None
