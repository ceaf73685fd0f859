"""Answers as Anthropic's clients read them, from whatever provider they come."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.canonical import (
    Blob,
    Close,
    Delta,
    Event,
    Finish,
    FinishReason,
    Meta,
    Open,
    Start,
    Usage,
    Used,
)
from adapters.errors import UpstreamUnavailable
from adapters.stream import Composer
from tests.adapters.anthropic.wiring import (
    ENVELOPES,
    events_in,
    prompt_of,
    understood,
    whole,
    writer,
    written,
)

START = Start("chatcmpl-1", "gpt")
END = Finish("end")
USED = Used(Usage(input_tokens=30, cached_input_tokens=10, cache_write_tokens=5, output_tokens=9))


def text(index: int, *texts: str) -> list[Event]:
    return [Open(index, "text"), *(Delta(index, each) for each in texts), Close(index)]


def thinking(index: int, *texts: str, signature: str = "") -> list[Event]:
    signed = [Meta(index, signature, "reasoning")] if signature else []
    deltas = (Delta(index, each) for each in texts)
    return [Open(index, "thinking"), *deltas, *signed, Close(index)]


def call(index: int, *arguments: str, name: str = "f", signature: str = "") -> list[Event]:
    signed = [Meta(index, signature, "call")] if signature else []
    deltas = (Delta(index, each) for each in arguments)
    return [Open(index, "call", f"call_{index}", name), *signed, *deltas, Close(index)]


def check(stream: bytes) -> list[dict[str, object]]:
    """The grammar that strict readers go by."""
    events = events_in(stream)
    assert [each["type"] for each in events].count("message_start") == 1
    assert events[0]["type"] == "message_start"
    assert [each["type"] for each in events[-2:]] == ["message_delta", "message_stop"]
    opened, kind, allowed = -1, None, {"text": {"text_delta"}, "tool_use": {"input_json_delta"}}
    allowed["thinking"] = {"thinking_delta", "signature_delta"}
    for each in events[1:-2]:
        if each["type"] == "content_block_start":
            assert kind is None, "blocks overlap"
            assert each["index"] == opened + 1
            opened += 1
            block = each["content_block"]
            assert isinstance(block, dict)
            kind = block["type"]
        elif each["type"] == "content_block_delta":
            assert each["index"] == opened
            delta = each["delta"]
            assert isinstance(delta, dict)
            assert kind is not None
            assert delta["type"] in allowed[kind]
        else:
            assert each["type"] == "content_block_stop"
            assert each["index"] == opened
            assert kind is not None
            kind = None
    return events


def both(events: Sequence[Event]) -> list[dict[str, object]]:
    """The content of the stream as the SDK has it, which is that of the plain answer."""
    stream = written(events)
    check(stream)
    message = understood(stream)
    plain = whole(events)
    content = [each.model_dump(exclude_none=True) for each in message.content]
    expected = json.loads(json.dumps(plain["content"]))
    for one, other in zip(content, expected, strict=True):
        assert {key: one[key] for key in other} == other
    assert message.stop_reason == plain["stop_reason"]
    assert message.model == plain["model"] == "m"
    return expected  # type: ignore[no-any-return] # a list of blocks


def seal(value: str, kind: str) -> str:
    return ENVELOPES.seal(Blob("other", "other-model", kind, value))  # type: ignore[arg-type] # a kind


def composed(*steps: tuple[str, ...]) -> list[Event]:
    """What a reader's findings become."""
    composer = Composer()
    for name, *arguments in steps:
        getattr(composer, name)(*arguments)
    return composer.take()


# -- edge cases -----------------------------------------------------------------------------------


def test_edge_01_name_and_arguments_in_one_fragment_after_text() -> None:
    events = composed(
        ("run", "text", "Let me see."),
        ("open", "0", "call", "c1", "read"),
        ("delta", "0", '{"path":"/a"}'),
        ("reason", "tool_calls"),
        ("finish",),
    )
    assert both(events) == [
        {"type": "text", "text": "Let me see."},
        {"type": "tool_use", "id": "c1", "name": "read", "input": {"path": "/a"}},
    ]


def test_edge_02_arguments_of_a_thinking_model_are_never_lost() -> None:
    events = [START, *thinking(0, "Hm."), *call(1, '{"a":1}', signature="sig"), END]
    content = both(events)
    assert content[-1] == {"type": "tool_use", "id": "call_1", "name": "f", "input": {"a": 1}}


def test_edge_03_reasoning_first_is_a_thinking_block() -> None:
    events = composed(
        ("run", "thinking", "Hm."), ("run", "text", "Yes."), ("reason", "end"), ("finish",)
    )
    assert [each["type"] for each in both(events)] == ["thinking", "text"]


def test_edge_04_one_message_start_for_a_repeated_first_chunk() -> None:
    events = composed(
        ("start", "a"), ("start", "a"), ("run", "text", "Hi"), ("reason", "end"), ("finish",)
    )
    check(written(events))


def test_edge_05_one_stop_for_each_block() -> None:
    stream = written([START, *text(0, "a"), *call(1, "{}"), *call(2), END])
    types = [each["type"] for each in check(stream)]
    assert types.count("content_block_stop") == types.count("content_block_start") == 3


def test_edge_06_a_stop_with_a_call_is_tool_use() -> None:
    events = composed(
        ("open", "0", "call", "c", "f"), ("delta", "0", "{}"), ("reason", "end"), ("finish",)
    )
    both(events)
    assert understood(written(events)).stop_reason == "tool_use"


def test_edge_07_no_empty_text_before_a_call() -> None:
    events = [START, Open(0, "text"), Close(0), *call(1, "{}"), Finish("tool_calls")]
    assert [each["type"] for each in both(events)] == ["tool_use"]


def test_edge_08_text_is_a_text_delta() -> None:
    stream = written([START, *text(0, "Hi"), END])
    deltas = [each["delta"] for each in check(stream) if each["type"] == "content_block_delta"]
    assert deltas == [{"type": "text_delta", "text": "Hi"}]


def test_edge_09_every_delta_is_for_the_open_block() -> None:
    check(written([START, *thinking(0, "a", signature="s"), *text(1, "b"), *call(2, "{}"), END]))


def test_edge_10_text_keeps_index_0_and_calls_follow() -> None:
    composer = Composer()
    composer.open("text", "text")
    composer.delta("text", "a")
    composer.open(0, "call", "c", "f")
    composer.delta(0, "{")
    composer.delta("text", "b")
    composer.delta(0, "}")
    composer.reason("tool_calls")
    composer.finish()
    content = both(composer.take())
    assert content[0] == {"type": "text", "text": "ab"}
    assert content[1]["input"] == {}


def test_edge_11_three_calls_one_without_arguments() -> None:
    content = both([START, *call(0, '{"a":', "1}"), *call(1), *call(2, '{"b":2}'), END])
    assert [each["input"] for each in content] == [{"a": 1}, {}, {"b": 2}]


@pytest.mark.parametrize("finish_first", [True, False])
def test_edge_12_text_and_a_call_end_in_tool_use(finish_first: bool) -> None:
    composer = Composer()
    composer.run("text", "Hi")
    composer.close_all()
    composer.open(0, "call", "c", "f")
    if finish_first:
        composer.reason("end")
    composer.delta(0, "{}")
    composer.reason("tool_calls")
    composer.finish()
    assert understood(written(composer.take())).stop_reason == "tool_use"


def test_edge_13_a_broken_stream_ends_in_an_error_event() -> None:
    out = writer()
    begun: list[Event] = [START, Open(0, "text"), Delta(0, "Hal")]
    stream = b"".join([out.write(event) for event in begun])
    stream += out.error_event(UpstreamUnavailable("The upstream broke off."), "req_1")
    events = events_in(stream)
    assert events[-1] == {
        "type": "error",
        "error": {
            "type": "api_error",
            "message": "The upstream broke off.",
            "details": {"error_code": "upstream_unavailable"},
        },
        "request_id": "req_1",
    }
    assert "message_stop" not in [each["type"] for each in events]


def test_edge_15_types_of_blocks_and_deltas_match() -> None:
    kinds = [*text(0, "a"), *thinking(1, "b"), *call(2, "{}"), *text(3, "c"), *thinking(4, "d")]
    check(written([START, *kinds, END]))


def test_edge_16_a_signature_is_a_delta_of_its_own() -> None:
    events = check(written([START, *thinking(0, "Hm.", signature="enc"), *text(1, "Yes."), END]))
    deltas = [each["delta"] for each in events if each["type"] == "content_block_delta"]
    assert deltas[:2] == [
        {"type": "thinking_delta", "thinking": "Hm."},
        {"type": "signature_delta", "signature": seal("enc", "reasoning")},
    ]


def test_edge_90_a_complete_answer_ends_in_message_stop() -> None:
    stream = written([START, *text(0, "Hi"), USED, END])
    assert stream.endswith(b'event: message_stop\ndata: {"type":"message_stop"}\n\n')


# -- signatures -----------------------------------------------------------------------------------


def test_a_calls_signature_stands_in_a_block_before_it() -> None:
    content = both([START, *call(0, '{"a":1}', signature="sig"), *call(1, "{}"), END])
    assert [each["type"] for each in content] == ["thinking", "tool_use", "tool_use"]
    assert content[0]["signature"] == seal("sig", "call")
    blob = ENVELOPES.open(str(content[0]["signature"]))
    assert blob == Blob("other", "other-model", "call", "sig")


def test_a_texts_signature_before_and_behind_it() -> None:
    before: list[Event] = [Open(0, "text"), Meta(0, "sig", "text"), Delta(0, "Hi"), Close(0)]
    behind: list[Event] = [Open(0, "text"), Delta(0, "Hi"), Meta(0, "sig", "text"), Close(0)]
    alone: list[Event] = [Open(0, "text"), Meta(0, "sig", "text"), Close(0)]
    shapes = [[each["type"] for each in both([START, *b, END])] for b in (before, behind, alone)]
    assert shapes == [["thinking", "text"], ["text", "thinking"], ["thinking"]]


def test_reasoning_without_text_keeps_its_signature() -> None:
    (block,) = both([START, *thinking(0, signature="enc"), END])
    assert block == {"type": "thinking", "thinking": "", "signature": seal("enc", "reasoning")}


def test_reasoning_with_neither_is_no_block() -> None:
    assert both([START, *thinking(0), *text(1, "Hi"), END]) == [{"type": "text", "text": "Hi"}]


def test_a_conversation_brings_signatures_back() -> None:
    content = both([START, *thinking(0, "Hm", signature="r"), *call(1, "{}", signature="c"), END])
    prompt = prompt_of(
        messages=[{"role": "user", "content": "Hi"}, {"role": "assistant", "content": content}]
    )
    first, second = prompt.turns[1].parts
    assert first.blob == Blob("other", "other-model", "reasoning", "r")  # type: ignore[union-attr] # it is Thinking
    assert second.blob == Blob("other", "other-model", "call", "c")  # type: ignore[union-attr] # it is a ToolCall


# -- the message ----------------------------------------------------------------------------------


def test_usage_is_an_estimate_first_and_true_at_the_end() -> None:
    events = check(written([START, *text(0, "Hi"), USED, END]))
    begun = events[0]["message"]
    assert isinstance(begun, dict)
    assert begun["usage"]["input_tokens"] == 11
    assert events[-2]["usage"] == {
        "input_tokens": 15,
        "cache_creation_input_tokens": 5,
        "cache_read_input_tokens": 10,
        "output_tokens": 9,
    }
    usage = understood(written([START, *text(0, "Hi"), USED, END])).usage
    assert (usage.input_tokens, usage.cache_read_input_tokens, usage.output_tokens) == (15, 10, 9)


def test_without_the_providers_usage_the_estimate_stays() -> None:
    events = check(written([START, *text(0, "x" * 40), END]))
    usage = events[-2]["usage"]
    assert isinstance(usage, dict)
    assert (usage["input_tokens"], usage["output_tokens"]) == (11, 10)


@pytest.mark.parametrize(
    ("reason", "said"),
    [
        ("end", "end_turn"),
        ("stop_sequence", "stop_sequence"),
        ("tool_calls", "tool_use"),
        ("length", "max_tokens"),
        ("context_window", "model_context_window_exceeded"),
        ("content_filter", "refusal"),
        ("refusal", "refusal"),
        ("pause", "pause_turn"),
    ],
)
def test_reasons_to_stop(reason: FinishReason, said: str) -> None:
    events: list[Event] = [
        START,
        *text(0, "Hi"),
        Finish(reason, "END" if said == "stop_sequence" else ""),
    ]
    both(events)
    message = understood(written(events))
    assert message.stop_reason == said
    assert message.stop_sequence == ("END" if said == "stop_sequence" else None)


def test_a_refusal_says_why() -> None:
    events: list[Event] = [
        START,
        Open(0, "refusal"),
        Delta(0, "No."),
        Close(0),
        Finish("refusal", "", "policy"),
    ]
    assert both(events) == [{"type": "text", "text": "No."}]
    assert whole(events)["stop_details"] == {
        "type": "refusal",
        "category": None,
        "explanation": "policy",
    }


def test_ids_begin_as_anthropics() -> None:
    assert whole([START, END])["id"] == "msg_chatcmpl-1"
    assert whole([Start("msg_9"), END])["id"] == "msg_9"
    assert str(whole([Start(), END])["id"]).startswith("msg_")


def test_broken_arguments_stay_readable_in_a_plain_answer() -> None:
    (block,) = whole([START, *call(0, '{"a":'), Finish("length")])["content"]  # type: ignore[misc] # it is a list
    assert block["input"] == {"_raw": '{"a":'}  # type: ignore[has-type] # it is a dict


def test_big_numbers_keep_their_digits() -> None:
    out = writer(stream=False)
    for event in [START, *call(0, '{"id":12345678901234567890123}'), END]:
        out.write(event)
    assert b'"input":{"id":12345678901234567890123}' in out.whole()


# -- any answer -----------------------------------------------------------------------------------

PIECES = st.lists(
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8), max_size=4
)
BLOCKS = st.one_of(
    st.tuples(st.just("text"), PIECES, st.sampled_from(["", "text"])),
    st.tuples(st.just("thinking"), PIECES, st.sampled_from(["", "thinking", "reasoning"])),
    st.tuples(st.just("call"), st.just(['{"a":', '"b"}']), st.sampled_from(["", "call"])),
    st.tuples(st.just("refusal"), PIECES, st.just("")),
)


@given(st.lists(BLOCKS, max_size=5), st.booleans())
def test_any_answer_follows_the_grammar(
    blocks: list[tuple[str, list[str], str]], signature_first: bool
) -> None:
    events: list[Event] = [START]
    for index, (kind, pieces, signed) in enumerate(blocks):
        metas = [Meta(index, "sig", signed)] if signed else []  # type: ignore[arg-type] # a kind
        deltas = [Delta(index, piece) for piece in pieces]
        inside: list[Event] = [*metas, *deltas] if signature_first else [*deltas, *metas]
        events += [Open(index, kind, f"c{index}", "f"), *inside, Close(index)]  # type: ignore[arg-type] # a kind
    check(written([*events, USED, END]))
