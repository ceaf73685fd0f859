"""Anthropic's answers as canonical events; and as bytes, where the client speaks Anthropic, too."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.anthropic.reader import MessagesReader
from adapters.anthropic.upstream import MessagesUpstream
from adapters.canonical import (
    Citation,
    Close,
    Delta,
    Event,
    Finish,
    Meta,
    Open,
    Start,
    Usage,
    Used,
)
from adapters.codec import StreamRelay
from adapters.errors import UpstreamOverloaded
from adapters.passing import PassingStream
from adapters.stream import Meter, nothing_expected
from tests.adapters.anthropic.wiring import (
    ENVELOPES,
    block,
    decoded,
    message_end,
    message_start,
    relayed,
    stream_of,
    target,
    text_block,
    understood,
)

CACHED = {
    "cache_read_input_tokens": 100,
    "cache_creation_input_tokens": 50,
    "cache_creation": {"ephemeral_5m_input_tokens": 20, "ephemeral_1h_input_tokens": 30},
    "service_tier": "standard",
}
WHOLE_USAGE = Usage(
    input_tokens=160,
    cached_input_tokens=100,
    cache_write_tokens=20,
    cache_write_1h_tokens=30,
    output_tokens=7,
    reasoning_tokens=3,
)
STREAM = stream_of(
    message_start(**CACHED),
    {"type": "ping"},
    *block(
        0,
        {"type": "thinking", "thinking": "", "signature": ""},
        {"type": "thinking_delta", "thinking": "Hm, 日本."},
        {"type": "signature_delta", "signature": "SIG=="},
    ),
    *block(1, {"type": "redacted_thinking", "data": "RED=="}),
    *block(2, {"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": {}}),
    *text_block(3, "Hé", "llo 🌍"),
    *block(
        4,
        {"type": "tool_use", "id": "toolu_1", "name": "f", "input": {}},
        {"type": "input_json_delta", "partial_json": ""},
        {"type": "input_json_delta", "partial_json": '{"a": '},
        {"type": "input_json_delta", "partial_json": "1}"},
    ),
    {"type": "something_new", "index": 9},
    *message_end("tool_use", output_tokens_details={"thinking_tokens": 3}),
)
MESSAGE = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": "claude-x",
    "content": [
        {"type": "thinking", "thinking": "Hm, 日本.", "signature": "SIG=="},
        {"type": "redacted_thinking", "data": "RED=="},
        {"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": {}},
        {"type": "text", "text": "Héllo 🌍"},
        {"type": "tool_use", "id": "toolu_1", "name": "f", "input": {"a": 1}},
    ],
    "stop_reason": "tool_use",
    "stop_sequence": None,
    "usage": {
        "input_tokens": 10,
        "output_tokens": 7,
        **CACHED,
        "output_tokens_details": {"thinking_tokens": 3},
    },
}


def passing(model: str = "m") -> PassingStream:
    request = decoded(stream=True, model=model)
    return MessagesUpstream().passing(request, target(), ENVELOPES).stream()


def read(stream: bytes) -> list[Event]:
    """The canonical events of a stream."""
    reader = MessagesReader()
    for raw in stream.split(b"\n\n"):
        if raw:
            reader.read(raw.split(b"data: ", 1)[1])
    reader.close()
    return reader.composer.take()


def single_bytes(data: bytes) -> Iterable[bytes]:
    return (data[at : at + 1] for at in range(len(data)))


# -- events ---------------------------------------------------------------------------------------


def test_a_stream_as_events() -> None:
    first = Usage(
        input_tokens=160,
        cached_input_tokens=100,
        cache_write_tokens=20,
        cache_write_1h_tokens=30,
        output_tokens=1,
    )
    assert read(STREAM) == [
        Start("msg_1", "claude-x", first),
        Open(0, "thinking"),
        Delta(0, "Hm, 日本."),
        Meta(0, "SIG=="),
        Close(0),
        Open(1, "thinking"),
        Meta(1, "RED==", "redacted"),
        Close(1),
        Open(2, "text"),
        Delta(2, "Hé"),
        Delta(2, "llo 🌍"),
        Close(2),
        Open(3, "call", "toolu_1", "f"),
        Delta(3, '{"a": '),
        Delta(3, "1}"),
        Close(3),
        Used(WHOLE_USAGE),
        Finish("tool_calls"),
    ]


def test_a_plain_answer_says_the_same() -> None:
    reader = MessagesReader()
    reader.plain(json.dumps(MESSAGE).encode())
    plain = [each for each in reader.composer.take() if not isinstance(each, Start | Delta)]
    streamed = [each for each in read(STREAM) if not isinstance(each, Start | Delta)]
    assert plain == streamed


def test_whole_input_at_the_start_of_a_call_counts_unless_deltas_come() -> None:
    given_input = {"type": "tool_use", "id": "t", "name": "f", "input": {"id": 9}}
    delta = {"type": "input_json_delta", "partial_json": '{"id":8}'}
    for deltas, arguments in (((), '{"id": 9}'), ((delta,), '{"id":8}')):
        events = read(stream_of(message_start(), *block(0, given_input, *deltas), *message_end()))
        assert [each.text for each in events if isinstance(each, Delta)] == [arguments]


def test_citations_have_an_address() -> None:
    citation = {"type": "web_search_result_location", "url": "https://a.b", "title": "A"}
    cited = {"type": "citations_delta", "citation": citation}
    page = {"type": "citations_delta", "citation": {"type": "page_location", "title": "B"}}
    delta = {"type": "text_delta", "text": "x"}
    kind = {"type": "text", "text": ""}
    events = read(stream_of(message_start(), *block(0, kind, delta, cited, page), *message_end()))
    metas = [each for each in events if isinstance(each, Meta)]
    assert metas == [Meta(0, citation=Citation("https://a.b", "A"))]


@pytest.mark.parametrize(
    ("reason", "finish"),
    [
        ("end_turn", "end"),
        ("max_tokens", "length"),
        ("stop_sequence", "stop_sequence"),
        ("refusal", "refusal"),
        ("pause_turn", "pause"),
        ("model_context_window_exceeded", "context_window"),
        ("something_new", "end"),
    ],
)
def test_reasons_to_stop(reason: str, finish: str) -> None:
    last = read(stream_of(message_start(), *text_block(0, "x"), *message_end(reason)))[-1]
    assert isinstance(last, Finish)
    assert last.reason == finish


def test_a_refusal_says_why() -> None:
    delta = {
        "stop_reason": "refusal",
        "stop_sequence": None,
        "stop_details": {"type": "refusal", "category": "bio", "explanation": "Too risky."},
    }
    end = {"type": "message_delta", "delta": delta, "usage": {}}
    assert read(stream_of(message_start(), end, {"type": "message_stop"}))[-1] == Finish(
        "refusal", "", "Too risky."
    )


def test_half_characters_are_joined() -> None:
    delta = (
        b'{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"\\ud83c"}}'
    )
    first = b"event: content_block_delta\ndata: %b\n\n" % delta
    second = first.replace(b"ud83c", b"udf0d")
    begin = stream_of(message_start(), block(0, {"type": "text", "text": ""})[0])
    end = stream_of(block(0, {})[-1], *message_end())
    texts = [each.text for each in read(begin + first + second + end) if isinstance(each, Delta)]
    assert "".join(texts) == "🌍"


# -- usage ----------------------------------------------------------------------------------------


def test_edge_84_cache_tokens_are_told_apart_for_their_prices() -> None:
    used = [each.usage for each in read(STREAM) if isinstance(each, Used)][-1]
    assert (used.cached_input_tokens, used.cache_write_tokens) == (100, 20)
    assert used.cache_write_1h_tokens == 30


def test_edge_85_cache_reads_are_not_counted_twice() -> None:
    used = [each.usage for each in read(STREAM) if isinstance(each, Used)][-1]
    cached = used.cached_input_tokens + used.cache_write_tokens + used.cache_write_1h_tokens
    assert used.input_tokens - cached == 10


def test_the_end_replaces_what_it_says_again() -> None:
    end = message_end(input_tokens=12, cache_read_input_tokens=None)
    used = read(stream_of(message_start(**CACHED), *text_block(0, "x"), *end))[-2]
    assert used == Used(
        Usage(
            input_tokens=162,
            cached_input_tokens=100,
            cache_write_tokens=20,
            cache_write_1h_tokens=30,
            output_tokens=7,
        )
    )


def test_searches_and_speed_have_their_prices() -> None:
    end = message_end(server_tool_use={"web_search_requests": 2})
    used = read(stream_of(message_start(speed="fast"), *text_block(0, "x"), *end))[-2]
    assert isinstance(used, Used)
    assert used.usage.pieces == {"web_search": 2}
    assert used.usage.service_tier == "fast"


@pytest.mark.parametrize("count", [-1, 2**50, "many", [1]])
def test_usage_that_cannot_be_believed_is_none(count: object) -> None:
    events = read(
        stream_of(message_start(), *text_block(0, "x"), *message_end(output_tokens=count))
    )
    assert not any(isinstance(each, Used) for each in events)


# -- what goes wrong ------------------------------------------------------------------------------


def error(kind: str, message: str = "Broken.") -> dict[str, object]:
    return {"type": "error", "error": {"type": kind, "message": message}}


def test_edge_86_overloaded_before_any_content_lets_another_serve() -> None:
    relay = passing()
    relay.feed(stream_of(message_start(), error("overloaded_error", "Overloaded")))
    assert relay.failure is not None
    assert (relay.failure.kind, relay.failure.status) == ("overloaded", 529)
    assert relay.failure.client_error() is None
    assert not relay.has_content


@pytest.mark.parametrize(
    ("word", "kind"),
    [
        ("api_error", "server_error"),
        ("overloaded_error", "overloaded"),
        ("rate_limit_error", "rate_limited"),
        ("timeout_error", "timeout"),
        ("invalid_request_error", "bad_request"),
        ("unheard_of", "server_error"),
    ],
)
def test_errors_inside_a_stream(word: str, kind: str) -> None:
    reader = MessagesReader()
    reader.read(json.dumps(error(word)).encode())
    assert reader.composer.failure is not None
    assert reader.composer.failure.kind == kind


def test_an_error_instead_of_an_answer() -> None:
    reader = MessagesReader()
    reader.plain(json.dumps(error("overloaded_error")).encode())
    assert reader.composer.failure is not None
    assert reader.composer.failure.kind == "overloaded"


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"{}", b'"x"', b"\xff", b'{"content":1}'])
def test_what_is_no_message_is_a_failure(body: bytes) -> None:
    reader = MessagesReader()
    reader.plain(body)
    assert reader.composer.failure is not None
    assert reader.composer.failure.kind == "protocol"


@pytest.mark.parametrize("data", [b"{", b"[]", b"7", b"\xff", b'{"type":"x","index":"a"}'])
def test_what_is_no_event_is_a_failure(data: bytes) -> None:
    reader = MessagesReader()
    reader.read(data)
    assert reader.composer.failure is not None


def test_a_stream_that_breaks_off_is_truncated() -> None:
    reader = MessagesReader()
    reader.read(json.dumps(message_start()).encode())
    reader.close()
    assert reader.composer.failure is not None
    assert reader.composer.failure.kind == "truncated"


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=9),
        lambda leaf: (
            st.lists(leaf, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    [
                        "type",
                        "index",
                        "message",
                        "content_block",
                        "delta",
                        "usage",
                        "error",
                        "text",
                        "content",
                        "input",
                        "stop_reason",
                    ]
                ),
                leaf
                | st.sampled_from(
                    [
                        "message_start",
                        "content_block_start",
                        "content_block_delta",
                        "content_block_stop",
                        "message_delta",
                        "message_stop",
                        "error",
                        "text",
                        "tool_use",
                        "text_delta",
                    ]
                ),
                max_size=5,
            )
        ),
        max_leaves=12,
    )
)
def test_any_json_is_read_without_raising(value: object) -> None:
    data = json.dumps(value).encode()
    reader = MessagesReader()
    reader.read(data)
    reader.close()
    MessagesReader().plain(data)


# -- passing on -----------------------------------------------------------------------------------


def expected() -> bytes:
    return STREAM.replace(b'"model": "claude-x"', b'"model":"m"')


def comparable(stream: bytes) -> list[object]:
    return [
        json.loads(raw.split(b"data: ", 1)[1]) for raw in stream.split(b"\n\n") if b"data: " in raw
    ]


def test_a_stream_passes_under_the_clients_name_of_the_model() -> None:
    relay = passing()
    out = relayed(relay, [STREAM])
    assert relay.failure is None
    assert comparable(out) == comparable(expected())
    _, _, rest = STREAM.partition(b"\n\n")
    assert out.endswith(rest), "only the first event is touched"
    assert understood(out).model == "m"
    assert relay.counted(nothing_expected).usage == WHOLE_USAGE


def test_how_a_stream_is_cut_changes_nothing() -> None:
    whole_stream = relayed(passing(), [STREAM])
    assert relayed(passing(), single_bytes(STREAM)) == whole_stream
    drawn = random.Random(7)
    for _ in range(50):
        cuts = sorted(drawn.sample(range(1, len(STREAM)), 6))
        pieces = [STREAM[a:b] for a, b in zip([0, *cuts], [*cuts, len(STREAM)], strict=True)]
        assert relayed(passing(), pieces) == whole_stream


@pytest.mark.parametrize("newline", [b"\r\n", b"\r"])
def test_other_line_ends(newline: bytes) -> None:
    relay = passing()
    out = relayed(relay, single_bytes(STREAM.replace(b"\n", newline)))
    assert relay.failure is None
    assert understood(out.replace(newline, b"\n")).stop_reason == "tool_use"


def test_the_end_waits_for_the_money() -> None:
    relay = passing()
    out = relay.feed(STREAM)
    assert b"message_delta" not in out
    assert relay.ended
    assert relay.terminal.count(b"event: ") == 2


def test_events_get_their_names_and_the_stream_its_last_event() -> None:
    events = [message_start(), *text_block(0, "Hi"), message_end()[0]]
    nameless = b"".join(b"data: %b\n\n" % json.dumps(each).encode() for each in events)
    relay = passing()
    out = relayed(relay, [nameless])
    assert relay.failure is None
    message = understood(out)
    assert (message.model, message.stop_reason) == ("m", "end_turn")


def test_a_broken_stream_is_told_as_an_error_event() -> None:
    relay = passing()
    begin = stream_of(message_start(), *text_block(0, "Hi"))
    assert relay.feed(begin)
    relay.close()
    assert relay.failure is not None
    assert relay.failure.kind == "truncated"
    told = relay.error_event(UpstreamOverloaded("Overloaded."), "req_1")
    assert told.startswith(b"event: error\n")
    assert b"overloaded_error" in told


def test_output_of_a_cut_stream_is_counted() -> None:
    relay: StreamRelay = passing()
    relay.feed(stream_of(message_start(), *text_block(0, "x" * 400)))
    relay.close()
    counted = relay.counted(nothing_expected)
    assert counted.estimated
    assert (counted.usage.input_tokens, counted.usage.output_tokens) == (10, 100)


def test_a_plain_answer_passes_under_the_clients_name() -> None:
    call = MessagesUpstream().passing(decoded(), target(stream=False), ENVELOPES)
    body = json.dumps({**MESSAGE, "new_member": {"x": 12345678901234567890}}).encode()
    relay = call.plain(body)
    assert relay.failure is None
    assert json.loads(relay.body) == {**json.loads(body), "model": "m"}
    assert relay.counted(nothing_expected).usage == WHOLE_USAGE


def test_an_empty_answer_is_a_failure() -> None:
    call = MessagesUpstream().passing(decoded(), target(stream=False), ENVELOPES)
    empty = {**MESSAGE, "content": [], "usage": {"input_tokens": 1, "output_tokens": 0}}
    relay = call.plain(json.dumps({**empty, "stop_reason": "end_turn"}).encode())
    assert relay.failure is not None
    assert relay.failure.kind == "empty"


def test_reading_a_meter_needs_no_bytes() -> None:
    meter = Meter({})
    for event in read(STREAM):
        meter.read(event)
    assert meter.counted(nothing_expected).usage == WHOLE_USAGE
