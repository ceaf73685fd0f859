"""Chat answers on their way: the client's bytes do not depend on how the upstream's arrived."""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters import sse
from adapters.canonical import Usage
from adapters.codec import FailureKind
from adapters.openai.chat_relay import ChatPlainRelay, ChatStreamRelay
from adapters.stream import nothing_expected
from tests.fakes.expected import text_of

Json = dict[str, object]

USAGE: Json = {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}
DONE = b"data: [DONE]\n\n"


def chunk(delta: Json | None = None, finish: str | None = None, **members: object) -> bytes:
    """A chunk's event, as OpenAI writes it."""
    choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": finish}]
    body: Json = {"id": "c", "model": "theirs", "choices": choices, **members}
    return sse.event(json.dumps(body, separators=(",", ":")).encode())


def relay(*, show_usage: bool = False, shown: str = "mine") -> ChatStreamRelay:
    return ChatStreamRelay(shown, show_usage, {})


def run(stream: bytes, *cuts: int, show_usage: bool = False) -> tuple[bytes, ChatStreamRelay]:
    """What the client sees of a stream that arrives in pieces and then ends."""
    reader = relay(show_usage=show_usage)
    edges = [0, *sorted(cut for cut in cuts if cut <= len(stream)), len(stream)]
    out = b"".join([reader.feed(stream[begin:end]) for begin, end in pairwise(edges)])
    return out + (b"" if reader.ended else reader.close()), reader


# -- golden: what an upstream sent, and what the client sees --------------------------------------


@dataclass(frozen=True)
class Golden:
    upstream: bytes
    client: bytes
    client_with_usage: bytes
    failure: FailureKind | None = None


ROLE = chunk({"role": "assistant", "content": ""})
WORD = chunk({"content": "wörd"})
STOP = chunk({}, "stop")
AZURE = b'data: {"choices":[],"prompt_filter_results":[{"prompt_index":0}]}\n\n'


def shown(*events: bytes) -> bytes:
    """The events under the client's name of the model."""
    return b"".join(events).replace(b'"model":"theirs"', b'"model":"mine"')


GOLDEN = {
    "openai": Golden(
        chunk({"role": "assistant"}, usage=None)
        + chunk({"content": "a"}, usage=None)
        + chunk({}, "stop", usage=None)
        + chunk(usage=USAGE)
        + DONE,
        shown(chunk({"role": "assistant"}), chunk({"content": "a"}), chunk({}, "stop")),
        shown(
            chunk({"role": "assistant"}, usage=None),
            chunk({"content": "a"}, usage=None),
            chunk({}, "stop", usage=None),
            chunk(usage=USAGE),
        ),
    ),
    "usage beside the finish reason": Golden(
        WORD + chunk({}, "stop", usage=USAGE) + DONE,
        shown(WORD, STOP),
        shown(WORD, chunk({}, "stop", usage=USAGE)),
    ),
    "comments, CRLF and no space": Golden(
        b": processing\r\n\r\n" + WORD.replace(b"data: ", b"data:").replace(b"\n", b"\r\n") + STOP,
        b": processing\r\n\r\n"
        + shown(WORD.replace(b"data: ", b"data:").replace(b"\n", b"\r\n"), STOP),
        b": processing\r\n\r\n"
        + shown(WORD.replace(b"data: ", b"data:").replace(b"\n", b"\r\n"), STOP),
    ),
    "no [DONE], and the last blank line missing": Golden(
        ROLE + WORD + STOP.rstrip(b"\n"), shown(ROLE, WORD, STOP), shown(ROLE, WORD, STOP)
    ),
    "a first chunk of another kind": Golden(
        AZURE + WORD + STOP + DONE, AZURE + shown(WORD, STOP), AZURE + shown(WORD, STOP)
    ),
    "truncated": Golden(ROLE + WORD, shown(ROLE, WORD), shown(ROLE, WORD), "truncated"),
    "cut inside an event": Golden(
        ROLE + WORD + STOP[:20], shown(ROLE, WORD), shown(ROLE, WORD), "protocol"
    ),
    "malformed": Golden(
        WORD + b'data: {"choices":[{\n\n' + STOP + DONE, shown(WORD), shown(WORD), "protocol"
    ),
    "error after content": Golden(
        WORD + b'data: {"error":{"message":"boom"}}\n\n' + STOP + DONE,
        shown(WORD),
        shown(WORD),
        "server_error",
    ),
    "error before content": Golden(
        b'data: {"error":{"message":"slow down","code":429}}\n\n', b"", b"", "rate_limited"
    ),
    "empty": Golden(ROLE + STOP + DONE, shown(ROLE, STOP), shown(ROLE, STOP), "empty"),
    "nothing": Golden(b"", b"", b"", "truncated"),
    "after the end": Golden(WORD + STOP + DONE + WORD, shown(WORD, STOP), shown(WORD, STOP)),
}


@pytest.mark.parametrize("golden", GOLDEN.values(), ids=GOLDEN)
@pytest.mark.parametrize("show_usage", [False, True])
@given(cuts=st.lists(st.integers(0, 600), max_size=8))
def test_whole_byte_by_byte_and_in_any_pieces(
    golden: Golden, show_usage: bool, cuts: list[int]
) -> None:
    expected = golden.client_with_usage if show_usage else golden.client
    everywhere = range(len(golden.upstream))
    for at in ((), cuts, everywhere):
        out, reader = run(golden.upstream, *at, show_usage=show_usage)
        assert out == expected
        assert reader.ended
        assert (reader.failure.kind if reader.failure else None) == golden.failure


# -- the end --------------------------------------------------------------------------------------


def test_the_terminal_is_held_back() -> None:
    reader = relay()
    assert b"[DONE]" not in reader.feed(WORD + STOP)
    before = reader.ended
    assert reader.feed(DONE) == b""
    assert (before, reader.ended) == (False, True)
    assert reader.failure is None
    assert reader.terminal == DONE
    assert reader.feed(WORD) == b""


def test_every_choice_has_to_finish() -> None:
    first = chunk({"content": "a"}) + chunk({"content": "b"}).replace(b'"index":0', b'"index":1')
    assert run(first + STOP)[1].failure is not None
    both = first + STOP + STOP.replace(b'"index":0', b'"index":1')
    assert run(both)[1].failure is None


def test_an_answer_withheld_by_a_filter_is_an_answer() -> None:
    assert run(chunk({}, "content_filter") + DONE)[1].failure is None


def test_an_answer_with_tokens_but_no_text_is_an_answer() -> None:
    assert run(STOP + chunk(usage=USAGE) + DONE)[1].failure is None


@pytest.mark.parametrize(
    ("delta", "has_content"),
    [
        ({"role": "assistant"}, False),
        ({"content": ""}, False),
        ({"content": None, "tool_calls": []}, False),
        ({"content": "x"}, True),
        ({"refusal": "no"}, True),
        ({"reasoning_content": "hm"}, True),
        ({"reasoning": "hm"}, True),
        ({"tool_calls": [{"index": 0, "function": {"name": "f", "arguments": ""}}]}, True),
        ({"function_call": {"arguments": "{"}}, True),
        ({"audio": {"data": "AAAA"}}, True),
    ],
)
def test_what_counts_as_content(delta: Json, has_content: bool) -> None:
    reader = relay()
    reader.feed(chunk(delta))
    assert reader.has_content is has_content


# -- names of models ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("theirs", "mine"),
    [
        (b'{"model":"theirs","choices":[]}', b'{"model":"mine","choices":[]}'),
        (b'{"model": "theirs", "choices": []}', b'{"model":"mine", "choices": []}'),
        (b'{"model" : "theirs"}', b'{"model":"mine"}'),
        (
            b'{"id":"a","x":{"model":"theirs"},"model":"theirs"}',
            b'{"id":"a","x":{"model":"theirs"},"model":"mine"}',
        ),
        (
            b'{"x":"\\"model\\":\\"theirs\\"","model":"theirs"}',
            b'{"x":"\\"model\\":\\"theirs\\"","model":"mine"}',
        ),
        (b'{"model":"mine"}', b'{"model":"mine"}'),
        (b'{"model":null}', b'{"model":null}'),
        (b'{"id":"a"}', b'{"id":"a"}'),
    ],
)
def test_the_model_is_renamed_at_the_top_level_only(theirs: bytes, mine: bytes) -> None:
    assert relay().feed(sse.event(theirs)) == sse.event(mine)


def test_the_model_may_change_between_chunks() -> None:
    reader = relay(shown='a"ü')
    for name in (b"one", b"two", b"one"):
        out = reader.feed(sse.event(b'{"model":"%b"}' % name))
        assert json.loads(sse.data_of(out)) == {"model": 'a"ü'}


# -- usage ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("theirs", "mine"),
    [
        (
            b'{"usage":null,"choices":[{"delta":{}}]}',
            b'{"choices":[{"delta":{}}]}',
        ),
        (
            b'{"choices":[{"delta":{}}],"usage":{"prompt_tokens":1}}',
            b'{"choices":[{"delta":{}}]}',
        ),
        (
            b'{"choices":[{"delta":{"x":{"a":1,"usage":null}}}],"usage":null}',
            b'{"choices":[{"delta":{"x":{"a":1,"usage":null}}}]}',
        ),
        (
            b'{"choices":[{"delta":{"content":",\\"usage\\":null"}}],"usage":null}',
            b'{"choices":[{"delta":{"content":",\\"usage\\":null"}}]}',
        ),
    ],
)
def test_usage_members_are_taken_out(theirs: bytes, mine: bytes) -> None:
    assert relay().feed(sse.event(theirs)) == sse.event(mine)
    assert relay(show_usage=True).feed(sse.event(theirs)) == sse.event(theirs)


@pytest.mark.parametrize("usage", [b'"usage":{"prompt_tokens":1}', b'"usage": null'])
def test_a_null_usage_inside_is_never_taken_for_ours(usage: bytes) -> None:
    choices = b'"choices":[{"delta":{"a":1,"usage":null}}]'
    for theirs in (choices + b"," + usage, usage + b"," + choices):
        out = relay().feed(sse.event(b"{%b}" % theirs))
        assert out == sse.event(b"{%b}" % choices)


def test_the_providers_usage_is_what_counts() -> None:
    usage = {**USAGE, "prompt_tokens_details": {"cached_tokens": 3}}
    counted = run(WORD + STOP + chunk(usage=usage, service_tier="flex") + DONE)[1].counted(
        text_of(999)
    )
    assert not counted.estimated
    assert counted.usage == Usage(
        input_tokens=5, cached_input_tokens=3, output_tokens=2, service_tier="flex"
    )


def test_the_last_usage_counts() -> None:
    early = chunk({"content": "a"}, usage={"prompt_tokens": 5, "completion_tokens": 1})
    counted = run(early + STOP + chunk(usage=USAGE) + DONE)[1].counted(nothing_expected)
    assert counted.usage.output_tokens == 2


def test_without_usage_we_count_ourselves() -> None:
    counted = run(chunk({"content": "x" * 41}) + STOP + DONE)[1].counted(text_of(10))
    assert counted.estimated
    assert counted.usage == Usage(input_tokens=3, output_tokens=11)


def test_a_delta_is_at_least_a_token() -> None:
    assert run(WORD * 7)[1].counted(nothing_expected).usage.output_tokens == 9  # 7 × 5 bytes / 4
    assert run(chunk({"content": "x"}) * 7)[1].counted(nothing_expected).usage.output_tokens == 7


def test_usage_before_the_end_of_a_cut_answer_is_no_more_than_a_part() -> None:
    early = chunk({"content": "a"}, usage={"prompt_tokens": 5, "completion_tokens": 1})
    counted = run(early + chunk({"content": "b"}) * 9)[1].counted(nothing_expected)
    assert counted.estimated
    assert counted.usage == Usage(input_tokens=5, output_tokens=10)


def test_usage_after_every_choice_had_finished_is_whole_though_the_end_is_missing() -> None:
    counted = run(WORD * 9 + STOP + chunk(usage=USAGE))[1].counted(nothing_expected)
    assert not counted.estimated
    assert counted.usage.output_tokens == 2


@pytest.mark.parametrize(
    "usage",
    [None, 5, {}, {"prompt_tokens": "many"}, {"prompt_tokens": -1}, {"prompt_tokens": 2**50}],
)
def test_usage_that_cannot_be_believed_is_none(usage: object) -> None:
    assert run(WORD + STOP + chunk(usage=usage) + DONE)[1].counted(nothing_expected).estimated


# -- plain answers --------------------------------------------------------------------------------


def plain(body: bytes) -> ChatPlainRelay:
    return ChatPlainRelay("mine", body, {"web_search": 1})


def test_a_plain_answer_keeps_everything_but_the_name() -> None:
    body = (
        b'{"id":"a","model":"theirs","choices":[{"index":0,"message":{"content":"\\u00e9 x"},'
        b'"finish_reason":"stop"}],"usage":{"prompt_tokens":5,"completion_tokens":2},"x":1.50}'
    )
    read = plain(body)
    assert read.failure is None
    assert read.body == body.replace(b"theirs", b"mine")
    counted = read.counted(nothing_expected)
    assert not counted.estimated
    assert counted.usage == Usage(input_tokens=5, output_tokens=2, pieces={"web_search": 1})


@pytest.mark.parametrize(
    ("body", "failure"),
    [
        (b"", "protocol"),
        (b"<html>", "protocol"),
        (b'{"choices":[{"mess', "protocol"),
        (b"[]", "protocol"),
        (b"{}", "empty"),
        (b'{"choices":[{"message":{"content":""},"finish_reason":"stop"}]}', "empty"),
        (b'{"error":{"message":"boom"}}', "server_error"),
        (b'{"error":{"message":"boom","code":"rate_limit_exceeded"}}', "rate_limited"),
        (b'{"error":"boom"}', "server_error"),
    ],
)
def test_plain_answers_that_are_none(body: bytes, failure: FailureKind) -> None:
    read = plain(body)
    assert read.failure is not None
    assert read.failure.kind == failure
    assert read.body == b""


def test_a_key_that_is_no_text_passes_as_it_is() -> None:
    choice = b'"choices":[{"index":0,"delta":{"content":"x"},"message":{"content":"x"}}]'
    answer = b'{"\\ud800":1,"model":"theirs",' + choice + b',"usage":{"prompt_tokens":1}}'
    plain = ChatPlainRelay("mine", answer, {})
    assert (plain.failure, plain.body) == (None, answer)
    stream = ChatStreamRelay("mine", show_usage=False, pieces={})
    assert b'"content":"x"' in stream.feed(b"data: " + answer + b"\n\n")
    assert stream.failure is None


def test_an_error_that_is_null_is_none() -> None:
    body = b'{"error":null,"choices":[{"message":{"content":"x"},"finish_reason":"stop"}]}'
    assert plain(body).failure is None


@given(st.binary(max_size=80))
def test_nothing_raises(data: bytes) -> None:
    plain(data)
    run(data + b"\n\ndata: " + data + b"\n\n")
