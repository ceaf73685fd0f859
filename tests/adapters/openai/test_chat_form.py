"""Chunks that are known by their form mean what they would mean if each were read."""

from __future__ import annotations

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from adapters import sse
from adapters.canonical import Usage
from adapters.openai import wire
from adapters.openai.chat_relay import ChatStreamRelay

TEXTS = st.one_of(
    st.text(max_size=8),
    st.text(alphabet='a \\"\n\x00\x1f\x7fé🎈{}[]:,', max_size=8),
    st.sampled_from(["", "what-it-says", '"model":"theirs"', ',"usage":null', "{", "\ud83d"]),
)
DELTAS = st.one_of(
    st.builds(lambda text: {"content": text}, TEXTS),
    st.builds(lambda text: {"content": text, "role": "assistant"}, TEXTS),
    st.builds(lambda text: {"content": None, "reasoning_content": text}, TEXTS),
    st.builds(lambda a, b: {"reasoning": a, "reasoning_content": b}, TEXTS, TEXTS),
    st.builds(lambda text: {"refusal": text, "content": "x"}, TEXTS),
    st.builds(lambda text: {"tool_calls": [{"index": 0, "function": {"arguments": text}}]}, TEXTS),
    st.builds(lambda text: {"audio": {"content": text}}, TEXTS),
)
PADDING = st.one_of(st.none(), st.text(alphabet='abc"\\\x01é', max_size=6))


class Reader(ChatStreamRelay):
    """A relay that reads every chunk."""

    def _learn(self, raw: bytes, chunk: wire.Answer) -> None:
        pass


def chunk(
    delta: object, index: int, finish: object, padding: str | None, ascii_only: bool, spaced: bool
) -> bytes:
    """One event of an OpenAI-like server."""
    members = {
        "id": "chatcmpl-1",
        "model": "theirs",
        "choices": [{"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}],
        "usage": None,
    }
    if padding is not None:
        members["obfuscation"] = padding
    separators = (", ", ": ") if spaced else (",", ":")
    text = json.dumps(members, separators=separators, ensure_ascii=ascii_only)
    return sse.event(text.encode(errors="surrogatepass"))


CHUNKS = st.builds(
    chunk,
    DELTAS,
    st.sampled_from([0, 0, 0, 1]),
    st.sampled_from([None, None, None, "stop"]),
    PADDING,
    st.booleans(),
    st.booleans(),
)
ALIKE = st.builds(
    lambda texts, paddings, spaced: [
        chunk({"content": text}, 0, None, padding, ascii_only=False, spaced=spaced)
        for text, padding in zip(texts, paddings, strict=False)
    ],
    st.lists(TEXTS, min_size=2, max_size=6),
    st.one_of(st.lists(PADDING, min_size=6, max_size=6), st.just([None] * 6)),
    st.booleans(),
)
STREAMS = st.one_of(ALIKE, st.lists(CHUNKS, max_size=8), st.lists(st.one_of(CHUNKS, ALIKE)))


def meaning(shown: bytes) -> list[object]:
    """What a client makes of it."""
    events = sse.Splitter().feed(shown)
    return [json.loads(sse.data_of(raw)) for raw in events]


def expected() -> Usage:
    return Usage(input_tokens=5)


@given(STREAMS, st.booleans(), st.sampled_from(["mine", "theirs"]), st.booleans())
@example([chunk({"content": "a"}, 0, None, None, True, False)] * 3, False, "mine", True)
def test_a_form_means_what_its_chunks_say(
    stream: list[bytes | list[bytes]], show_usage: bool, shown_model: str, at_once: bool
) -> None:
    raw = [b"".join(events) if isinstance(events, list) else events for events in stream]
    pieces = [b"".join(raw)] if at_once else raw
    formed = ChatStreamRelay(shown_model, show_usage, {})
    read = Reader(shown_model, show_usage, {})
    for piece in pieces:
        assert meaning(formed.feed(piece)) == meaning(read.feed(piece))
        assert formed.failure == read.failure
        assert formed.output_tokens == read.output_tokens
    end = sse.event(b"[DONE]")
    formed.feed(end)
    read.feed(end)
    assert formed.counted(expected) == read.counted(expected)
    assert formed.failure == read.failure


@given(st.binary(max_size=6), st.binary(max_size=4))
def test_what_is_no_json_has_no_form(text: bytes, padding: bytes) -> None:
    first = chunk({"content": "a"}, 0, None, "b", ascii_only=True, spaced=False)
    second = first.replace(b'"a"', b'"%b"' % text).replace(b'"b"', b'"%b"' % padding)
    formed, read = ChatStreamRelay("mine", False, {}), Reader("mine", False, {})
    formed.feed(first)
    read.feed(first)
    assert formed.feed(second) == read.feed(second)
    assert (formed.failure, formed.output_tokens) == (read.failure, read.output_tokens)


@pytest.mark.parametrize("padding", [None, "Xy", ""])
def test_chunks_of_one_form_are_read_once(
    padding: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = ["Hello", " \n", '"quoted"', " wörld", "🎈", " and so on"]
    stream = [chunk({"content": text}, 0, None, padding, True, False) for text in texts]
    relay = ChatStreamRelay("mine", False, {})
    assert relay.feed(stream[0])
    monkeypatch.setattr(wire, "read_answer", None)
    shown = b"".join(map(relay.feed, stream[1:]))
    assert shown.count(b'"model":"mine"') == len(texts) - 1
    assert b'"usage"' not in shown
    assert relay.output_tokens == -(-len("".join(texts).encode()) // 4)


def test_who_is_changeable_is_read_each_time() -> None:
    """Two choices in turns never have the form of the one before."""
    relay = ChatStreamRelay("mine", False, {})
    for number in range(20):
        relay.feed(chunk({"content": "a"}, number % 2, None, None, True, False))
    assert relay._form is None
    assert relay.output_tokens == 20
