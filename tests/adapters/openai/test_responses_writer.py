"""Responses streams as clients get them: the whole life cycle, and what SDKs make of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from typing import get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai import omit
from openai._models import construct_type
from openai.lib.streaming.responses._responses import ResponseStreamState
from openai.types.responses import ParsedResponse, Response
from openai.types.responses import ResponseStreamEvent as SdkEvent

from adapters import sse
from adapters.canonical import (
    Blob,
    BlockKind,
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
from adapters.codec import Ask, Made
from adapters.envelope import Envelopes
from adapters.errors import ContextLengthExceeded, UpstreamUnavailable
from adapters.openai.responses_downstream import ResponsesDownstream
from adapters.openai.responses_reader import ResponsesReader
from adapters.openai.responses_writer import ResponsesWriter
from adapters.stream import Composer

Json = dict[str, object]

ENVELOPES = Envelopes(b"k" * 32, "account")
MADE = Made("anthropic", "claude-x", input_tokens=40, created=1_700_000_000)
USAGE = Usage(
    input_tokens=100,
    cached_input_tokens=30,
    cache_write_tokens=5,
    output_tokens=20,
    reasoning_tokens=7,
    service_tier="priority",
)
# All that the public schema knows, and so all that the strict SDK lets through.
PUBLISHED = {
    get_args(event.model_fields["type"].annotation)[0] for event in get_args(get_args(SdkEvent)[0])
}


def writer(**fields: object) -> ResponsesWriter:
    body = json.dumps({"model": "mine", "input": "hi", "stream": True, **fields}).encode()
    codec = ResponsesDownstream()
    request = codec.decode(body, Ask())
    return codec.writer(request, codec.prompt(request, ENVELOPES), ENVELOPES, MADE)


def written(events: Sequence[Event], **fields: object) -> tuple[list[Json], ResponsesWriter]:
    """The events that a client reads."""
    made = writer(**fields)
    return read(b"".join([made.write(event) for event in events])), made


def read(stream: bytes) -> list[Json]:
    """Every event, after a look at its frame."""
    splitter = sse.Splitter()
    events = []
    for raw in splitter.feed(stream):
        name, data, *rest = raw.decode().split("\n")
        assert rest == ["", ""]
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        events.append(event)
    assert splitter.close() == b""
    return events


def accumulated(events: Sequence[Json]) -> ParsedResponse[object]:
    """What `client.responses.stream()` makes of it."""
    state: ResponseStreamState[object] = ResponseStreamState(input_tools=omit, text_format=omit)
    for event in events:
        state.handle_event(construct_type(type_=SdkEvent, value=event))  # type: ignore[arg-type]
    assert state._completed_response is not None
    return state._completed_response


def types(events: Sequence[Json]) -> list[object]:
    return [str(event["type"]).removeprefix("response.") for event in events]


def of(kind: str, events: Sequence[Json]) -> list[Json]:
    return [event for event in events if event["type"] == f"response.{kind}"]


def text_block(index: int, *pieces: str) -> list[Event]:
    return [Open(index, "text"), *[Delta(index, piece) for piece in pieces], Close(index)]


def call_block(index: int, *pieces: str, kind: BlockKind = "call") -> list[Event]:
    opening = Open(index, kind, "call_1", "look")
    return [opening, *[Delta(index, piece) for piece in pieces], Close(index)]


START = Start("msg_01ABCDEFGHIJKLMNOPQR", "theirs")
END: list[Event] = [Used(USAGE), Finish("end")]
THOUGHT: list[Event] = [
    Open(0, "thinking"),
    Delta(0, "Let me "),
    Delta(0, "see."),
    Meta(0, signature="s1g", kind="thinking"),
    Close(0),
]


# -- the life cycle -------------------------------------------------------------------------------


def test_edge_17_text_has_the_full_life_cycle() -> None:
    events, _ = written([START, *text_block(0, "Hel", "lo"), *END])
    assert types(events) == [
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
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert all(event["output_index"] == 0 for event in events[2:9])
    assert all(event["content_index"] == 0 for event in events[3:8])
    assert len({event["item_id"] for event in events[3:8]}) == 1
    assert accumulated(events).output_text == "Hello"


def test_edge_18_completed_has_the_accumulated_output() -> None:
    events, made = written([START, *text_block(0, "Hello"), *END])
    response = events[-1]["response"]
    assert isinstance(response, dict)
    assert response["id"] == "resp_msg_01ABCDEFGHIJKLMNOPQR"
    assert (response["object"], response["model"]) == ("response", "mine")
    assert response["status"] == "completed"
    assert response["output"][0]["content"][0]["text"] == "Hello"
    assert json.loads(made.whole()) == response


def test_edge_19_life_cycle_events_wrap_the_response() -> None:
    events, _ = written([START, *text_block(0, "x"), *END])
    for event in (events[0], events[1], events[-1]):
        assert event.keys() == {"type", "sequence_number", "response"}
    created = events[0]["response"]
    assert isinstance(created, dict)
    assert (created["status"], created["output"], created["usage"]) == ("in_progress", [], None)
    assert created["created_at"] == MADE.created


def test_edge_20_a_call_keeps_its_item_id() -> None:
    events, _ = written([START, *call_block(0, '{"a":', "1}"), *END])
    assert types(events)[2:-1] == [
        "output_item.added",
        "function_call_arguments.delta",
        "function_call_arguments.delta",
        "function_call_arguments.done",
        "output_item.done",
    ]
    added, done = of("output_item.added", events)[0]["item"], events[-2]["item"]
    assert isinstance(added, dict)
    assert isinstance(done, dict)
    assert added["arguments"] == ""
    assert done["arguments"] == '{"a":1}'
    ids = {event["item_id"] for event in events[3:6]} | {added["id"], done["id"]}
    assert ids == {"fc_call_1"}
    assert (done["call_id"], done["name"], done["status"]) == ("call_1", "look", "completed")


def test_edge_21_reasoning_then_text_are_two_items() -> None:
    events, _ = written([START, *THOUGHT, *text_block(1, "Yes."), *END])
    assert types(events)[2:9] == [
        "output_item.added",
        "reasoning_summary_part.added",
        "reasoning_summary_text.delta",
        "reasoning_summary_text.delta",
        "reasoning_summary_text.done",
        "reasoning_summary_part.done",
        "output_item.done",
    ]
    reasoning = events[2:9]
    item = reasoning[-1]["item"]
    assert isinstance(item, dict)
    assert {event["item_id"] for event in reasoning[1:-1]} == {item["id"]}
    assert all(event["summary_index"] == 0 for event in reasoning[1:-1])
    assert item["summary"] == [{"type": "summary_text", "text": "Let me see."}]
    message = of("output_item.added", events)[1]
    assert message["output_index"] == 1
    assert [item.type for item in accumulated(events).output] == ["reasoning", "message"]


def test_signature_comes_sealed_with_the_item_that_is_done() -> None:
    events, _ = written([START, *THOUGHT, *call_block(1, "{}"), *END])
    item = of("output_item.done", events)[0]["item"]
    assert isinstance(item, dict)
    blob = ENVELOPES.open(item["encrypted_content"])
    assert blob == Blob("anthropic", "claude-x", "thinking", "s1g")
    added = of("output_item.added", events)[0]["item"]
    assert isinstance(added, dict)
    assert added["encrypted_content"] is None


def test_redacted_reasoning_is_an_item_without_words() -> None:
    redacted: list[Event] = [
        Open(0, "thinking"),
        Meta(0, signature="blob", kind="redacted"),
        Close(0),
    ]
    events, _ = written([START, *redacted, *text_block(1, "x"), *END])
    assert types(events)[2:4] == ["output_item.added", "output_item.done"]
    item = events[3]["item"]
    assert isinstance(item, dict)
    assert item["summary"] == []
    assert ENVELOPES.open(item["encrypted_content"]) is not None


def test_reasoning_with_nothing_in_it_is_no_item() -> None:
    events, _ = written([START, Open(0, "thinking"), Close(0), *text_block(1, "x"), *END])
    assert [event["output_index"] for event in of("output_item.added", events)] == [0]


def test_signature_of_a_call_goes_before_it() -> None:
    signed: list[Event] = [
        Open(0, "call", "call_1", "look"),
        Meta(0, signature="sig", kind="call"),
        Delta(0, "{}"),
        Close(0),
    ]
    events, _ = written([START, *signed, *END])
    assert [item.type for item in accumulated(events).output] == ["reasoning", "function_call"]


def test_signature_of_a_call_joins_the_thought_before_it() -> None:
    blocks: list[Event] = [
        Open(0, "thinking"),
        Delta(0, "Hm."),
        Close(0),
        Open(1, "call", "call_1", "look"),
        Meta(1, signature="sig", kind="call"),
        Delta(1, "{}"),
        Close(1),
    ]
    events, _ = written([START, *blocks, *END])
    reasoning = accumulated(events).output[0]
    assert reasoning.type == "reasoning"
    assert [part.text for part in reasoning.summary] == ["Hm."]
    assert ENVELOPES.open(reasoning.encrypted_content or "") is not None
    assert [event["sequence_number"] for event in events] == list(range(len(events)))


def test_signature_of_a_text_comes_behind_its_message() -> None:
    signed: list[Event] = [
        Open(0, "text"),
        Delta(0, "Hi"),
        Meta(0, signature="sig", kind="text"),
        Close(0),
    ]
    events, _ = written([START, *signed, *END])
    assert [item.type for item in accumulated(events).output] == ["message", "reasoning"]


def test_texts_that_follow_each_other_are_parts_of_one_message() -> None:
    events, _ = written([START, *text_block(0, "a"), *text_block(1, "b"), *END])
    assert len(of("output_item.added", events)) == 1
    assert [event["content_index"] for event in of("content_part.added", events)] == [0, 1]
    assert accumulated(events).output_text == "ab"


def test_text_after_a_call_is_a_new_message() -> None:
    blocks = [*text_block(0, "a"), *call_block(1, "{}"), *text_block(2, "b")]
    events, _ = written([START, *blocks, *END])
    assert [event["output_index"] for event in of("output_item.done", events)] == [0, 1, 2]


def test_call_without_arguments_has_an_empty_object() -> None:
    events, _ = written([START, *call_block(0), *END])
    assert of("function_call_arguments.done", events)[0]["arguments"] == "{}"
    assert of("function_call_arguments.delta", events)[0]["delta"] == "{}"


def test_edge_68_free_form_call_streams_raw_text() -> None:
    patch = '*** Begin\n"é"'
    events, made = written([START, *call_block(0, patch[:5], patch[5:], kind="free_call"), *END])
    assert types(events)[3:6] == [
        "custom_tool_call_input.delta",
        "custom_tool_call_input.delta",
        "custom_tool_call_input.done",
    ]
    assert events[5]["input"] == patch
    item = json.loads(made.whole())["output"][0]
    assert (item["type"], item["input"], item["id"]) == ("custom_tool_call", patch, "ctc_call_1")


def test_namespace_and_search_calls_have_their_own_form() -> None:
    blocks: list[Event] = [
        Open(0, "call", "a", "find", namespace="crm"),
        Delta(0, "{}"),
        Close(0),
        Open(1, "call", "b", "tool_search", search=True),
        Delta(1, '{"query":'),
        Delta(1, '"x"}'),
        Close(1),
    ]
    events, made = written([START, *blocks, *END])
    first, second = json.loads(made.whole())["output"]
    assert (first["name"], first["namespace"]) == ("find", "crm")
    assert (second["type"], second["execution"]) == ("tool_search_call", "client")
    assert second["arguments"] == {"query": "x"}
    assert second["call_id"] == "b"
    assert types(events)[-3:-1] == ["output_item.added", "output_item.done"]


def test_search_with_broken_arguments_gives_them_as_text() -> None:
    blocks: list[Event] = [Open(0, "call", "b", "s", search=True), Delta(0, "{oops"), Close(0)]
    _, made = written([START, *blocks, *END])
    assert json.loads(made.whole())["output"][0]["arguments"] == "{oops"


def test_phases_for_clients_that_know_them() -> None:
    blocks = [*text_block(0, "Looking."), *call_block(1, "{}"), *text_block(2, "Done.")]
    message = {"role": "assistant", "content": "x", "phase": "commentary"}
    _, made = written([START, *blocks, *END], input=[{"role": "user", "content": "a"}, message])
    output = json.loads(made.whole())["output"]
    assert [item.get("phase") for item in output] == ["commentary", None, "final_answer"]
    _, made = written([START, *blocks, *END])
    assert all("phase" not in item for item in json.loads(made.whole())["output"])


def test_logprobs_and_citations() -> None:
    blocks: list[Event] = [
        Open(0, "text"),
        Delta(0, "Hé"),
        Meta(0, logprobs=(Logprob("Hé", -0.5, (("Ha", -1.5),)),)),
        Meta(0, citation=Citation("https://a.example", "A")),
        Close(0),
    ]
    events, made = written([START, *blocks, *END])
    annotation = of("output_text.annotation.added", events)[0]
    assert annotation["annotation_index"] == 0
    part = json.loads(made.whole())["output"][0]["content"][0]
    assert part["annotations"] == [
        {
            "type": "url_citation",
            "url": "https://a.example",
            "title": "A",
            "start_index": 0,
            "end_index": 2,
        }
    ]
    token = part["logprobs"][0]
    assert token["bytes"] == list("Hé".encode())
    assert token["top_logprobs"][0]["token"] == "Ha"
    assert of("output_text.done", events)[0]["logprobs"] == part["logprobs"]


# -- the end --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reason", "status", "detail"),
    [
        ("end", "completed", None),
        ("stop_sequence", "completed", None),
        ("pause", "completed", None),
        ("length", "incomplete", "max_output_tokens"),
        ("context_window", "incomplete", "max_output_tokens"),
        ("content_filter", "incomplete", "content_filter"),
    ],
)
def test_reason_decides_the_last_event(
    reason: FinishReason, status: str, detail: str | None
) -> None:
    events, _ = written([START, *text_block(0, "x"), Used(USAGE), Finish(reason)])
    assert types(events)[-1] == status
    response = events[-1]["response"]
    assert isinstance(response, dict)
    assert response["status"] == status
    expected = None if detail is None else {"reason": detail}
    assert response["incomplete_details"] == expected


def test_call_that_was_cut_off_is_incomplete() -> None:
    """Agents run calls whose item is done, so a half one must not look whole."""
    events, _ = written([START, *call_block(0, '{"a":'), Finish("length")])
    item = of("output_item.done", events)[0]["item"]
    assert isinstance(item, dict)
    assert item["status"] == "incomplete"


def test_refusal_is_a_part() -> None:
    refusal: list[Event] = [Open(0, "refusal"), Delta(0, "No."), Close(0)]
    events, made = written([START, *refusal, Finish("refusal")])
    assert types(events)[3:6] == ["content_part.added", "refusal.delta", "refusal.done"]
    part = json.loads(made.whole())["output"][0]["content"][0]
    assert part == {"type": "refusal", "refusal": "No."}
    assert types(events)[-1] == "completed"


def test_refusal_that_is_only_a_reason_becomes_a_message() -> None:
    _, made = written([START, Finish("refusal", detail="Not this.")])
    assert json.loads(made.whole())["output"][0]["content"][0]["refusal"] == "Not this."


def test_usage_has_all_its_details() -> None:
    _, made = written([START, *text_block(0, "x"), *END])
    response = json.loads(made.whole())
    assert response["usage"] == {
        "input_tokens": 100,
        "input_tokens_details": {"cached_tokens": 30, "cache_write_tokens": 5},
        "output_tokens": 20,
        "output_tokens_details": {"reasoning_tokens": 7},
        "total_tokens": 120,
    }
    assert response["service_tier"] == "priority"


def test_usage_is_estimated_where_the_provider_says_nothing() -> None:
    _, made = written([START, *text_block(0, "some words"), Finish("end")])
    usage = json.loads(made.whole())["usage"]
    assert usage["input_tokens"] == MADE.input_tokens
    assert usage["output_tokens"] > 0


def test_response_repeats_the_parameters() -> None:
    tools = [{"type": "function", "name": "look", "parameters": {"type": "object"}}]
    _, made = written(
        [START, *text_block(0, "x"), *END],
        tools=tools,
        temperature=0.5,
        metadata={"a": "b"},
        instructions="Be brief.",
        store=False,
        user=None,
    )
    response = json.loads(made.whole())
    assert response["tools"] == tools
    assert (response["temperature"], response["store"]) == (0.5, False)
    assert response["instructions"] == "Be brief."
    assert response["metadata"] == {"a": "b"}
    assert (response["tool_choice"], response["parallel_tool_calls"]) == ("auto", True)
    Response.model_validate(response)


def test_short_ids_are_made_unique() -> None:
    ids = {
        json.loads(made.whole())["id"]
        for _ in range(2)
        for _, made in [written([Start("chatcmpl-1"), *text_block(0, "x"), *END])]
    }
    assert len(ids) == 2
    assert all(response_id.startswith("resp_chatcmpl-1") for response_id in ids)
    _, made = written([Start("resp_1"), *text_block(0, "x"), *END])
    assert json.loads(made.whole())["id"] == "resp_1"


# -- failures -------------------------------------------------------------------------------------


def test_edge_25_and_26_failure_is_told_to_every_kind_of_reader() -> None:
    made = writer()
    head = b"".join([made.write(event) for event in [START, *text_block(0, "Hel")]])
    tail = made.error_event(UpstreamUnavailable("The upstream is gone."), "req")
    events = read(head + tail)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    error, failed = events[-2:]
    assert error["type"] == "error"
    assert (error["message"], error["code"]) == ("The upstream is gone.", "upstream_unavailable")
    nested = error["error"]
    assert isinstance(nested, dict)
    assert nested["message"] == "The upstream is gone."
    response = failed["response"]
    assert isinstance(response, dict)
    assert failed["type"] == "response.failed"
    assert response["status"] == "failed"
    assert response["error"] == {
        "code": "upstream_unavailable",
        "message": "The upstream is gone.",
    }
    first = events[0]["response"]
    assert isinstance(first, dict)
    assert response["id"] == first["id"]


def test_failure_before_anything_begins_with_a_response() -> None:
    error = ContextLengthExceeded("Too long.")
    for stream in (
        writer().error_event(error, "req"),
        ResponsesDownstream().error_event(error, "req"),
    ):
        events = read(stream)
        assert types(events)[0] == "created"
        assert types(events)[-2:] == ["error", "failed"]
        assert [event["sequence_number"] for event in events] == list(range(len(events)))
        response = events[-1]["response"]
        assert isinstance(response, dict)
        assert response["error"]["code"] == "context_length_exceeded"


# -- every answer ---------------------------------------------------------------------------------

PIECES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)
BLOCKS = st.lists(
    st.tuples(
        st.sampled_from(["text", "thinking", "refusal", "call", "free_call"]),
        st.lists(PIECES, max_size=3),
        st.booleans(),
    ),
    max_size=6,
)


@given(BLOCKS, st.sampled_from(["end", "length", "refusal", "content_filter"]))
def test_edge_88_any_answer_is_a_stream_that_sdks_understand(
    blocks: list[tuple[str, list[str], bool]], reason: FinishReason
) -> None:
    composer = Composer()
    composer.start("id", "theirs")
    for at, (kind, pieces, signed) in enumerate(blocks):
        composer.open(at, kind, f"call_{at}", "look")  # type: ignore[arg-type]
        if signed:
            composer.meta(at, signature="s", kind="call" if "call" in kind else "thinking")
        for piece in pieces:
            composer.delta(at, piece)
        composer.close(at)
    composer.used(USAGE)
    composer.reason(reason)
    composer.finish()
    events, made = written(composer.take())

    assert {event["type"] for event in events} <= PUBLISHED
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    done = [event["item"] for event in of("output_item.done", events)]
    final = events[-1]["response"]
    assert isinstance(final, dict)
    assert final["output"] == done
    assert json.loads(made.whole()) == final
    added = [event["output_index"] for event in of("output_item.added", events)]
    assert added == list(range(len(done)))
    if final["status"] == "completed":
        response = accumulated(events)
        texts = [piece for kind, pieces, _ in blocks if kind == "text" for piece in pieces]
        assert response.output_text == "".join(texts)


@given(BLOCKS)
def test_what_is_written_is_read_again(blocks: list[tuple[str, list[str], bool]]) -> None:
    """The writer's stream and its whole body mean to our reader what was written."""
    composer = Composer()
    composer.start("resp_1")
    expected = []
    for at, (kind, pieces, signed) in enumerate(blocks):
        composer.open(at, kind, f"call_{at}", "look")  # type: ignore[arg-type]
        for piece in pieces:
            composer.delta(at, piece)
        if signed and kind == "thinking":
            composer.meta(at, signature="s")
        composer.close(at)
        said = "".join(pieces) or ("{}" if kind == "call" else "")
        if said or kind == "free_call" or (signed and kind == "thinking"):
            expected.append((kind, said))
    composer.used(USAGE)
    composer.reason("end")
    composer.finish()
    made = writer()
    stream = b"".join([made.write(event) for event in composer.take()])
    streamed, whole = ResponsesReader(), ResponsesReader()
    for raw in sse.Splitter().feed(stream):
        streamed.read(sse.data_of(raw))
    whole.plain(made.whole())
    for reader in (streamed, whole):
        found: list[tuple[str, str]] = []
        for event in reader.composer.take():
            if isinstance(event, Open):
                found.append((event.kind, ""))
            elif isinstance(event, Delta):
                found[-1] = (found[-1][0], found[-1][1] + event.text)
            elif isinstance(event, Used):
                assert event.usage == USAGE
        assert found == expected


def test_events_of_one_item_do_not_overlap_with_the_next() -> None:
    events, _ = written([START, *THOUGHT, *text_block(1, "a"), *call_block(2, "{}"), *END])
    indexes = [event["output_index"] for event in events if "output_index" in event]
    assert all(isinstance(index, int) for index in indexes)
    assert all(later >= earlier for earlier, later in pairwise(map(int, map(str, indexes))))


def test_frames_are_compact_json() -> None:
    made = writer()
    out = made.write(START) + made.write(Open(0, "text")) + made.write(Delta(0, "a\nb\u2028"))
    for raw in sse.Splitter().feed(out):
        assert msgspec.json.decode(sse.data_of(raw))
