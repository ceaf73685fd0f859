"""Framing: however a stream is cut into reads, the same raw events come out."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters import sse
from adapters.errors import UpstreamProtocolViolation

# What can go wrong at a cut: line ends of every kind, half a byte order mark, half a character.
LINES = [b"data: x", b"data:", b"event: e", b": note", b"{}", b" "]
ENDS = [b"\n", b"\r", b"\r\n", b"\n\n", b"\r\n\r\n"]
ODDITIES = [b"\xef\xbb\xbf", b"\xef", "ü\u2028".encode()]

streams = st.lists(st.sampled_from(LINES + ENDS + ODDITIES), max_size=12).map(b"".join)


def split(data: bytes, *cuts: int) -> tuple[list[bytes], bytes]:
    """The events of a stream that arrives in pieces, and what is left at its end."""
    splitter = sse.Splitter()
    edges = [0, *sorted(cut for cut in cuts if cut <= len(data)), len(data)]
    pieces = [data[begin:end] for begin, end in pairwise(edges)]
    events = [event for piece in pieces for event in splitter.feed(piece)]
    return events, splitter.close()


@given(stream=streams, cuts=st.lists(st.integers(0, 60), max_size=6))
def test_any_split_gives_the_same_events(stream: bytes, cuts: list[int]) -> None:
    # A CR at the end of a read ends its line only once the next byte is known, so a stream that
    # ends with one is settled by `close`; the terminator makes both readings alike.
    stream += b"data: end\n\n"
    assert split(stream, *cuts) == split(stream)
    assert split(stream, *range(len(stream))) == split(stream)


@given(stream=streams, cuts=st.lists(st.integers(0, 60), max_size=6))
def test_payloads_are_those_of_the_events(stream: bytes, cuts: list[int]) -> None:
    whole, alone = sse.Splitter(), sse.Splitter()
    for begin, end in pairwise([0, *sorted(cuts), len(stream)]):
        events = whole.feed(stream[begin:end])
        expected = [payload for event in events if (payload := sse.data_of(event))]
        assert alone.payloads(stream[begin:end]) == expected
        assert alone.waiting_bytes == whole.waiting_bytes
    assert alone.close() == whole.close()


@pytest.mark.parametrize("end", [b"\n\n", b"\r\n\r\n"])
def test_payloads_of_ordinary_events(end: bytes) -> None:
    splitter = sse.Splitter()
    named = b"event: e" + end[: len(end) // 2] + b"data: 2" + end
    assert splitter.payloads(b"data: 1" + end) == [b"1"]
    assert splitter.payloads(named + b": note" + end + b"data: 3" + end + b"da") == [b"2", b"3"]
    assert splitter.payloads(b"ta: 4" + end) == [b"4"]
    with pytest.raises(UpstreamProtocolViolation):
        sse.Splitter(20).payloads(b"data: " + b"x" * 30 + end)


@given(stream=streams)
def test_no_byte_is_lost(stream: bytes) -> None:
    events, rest = split(stream, *range(len(stream)))
    assert b"".join(events) + rest == stream.removeprefix(b"\xef\xbb\xbf")


@given(lines=st.lists(st.sampled_from([b"a", b'{"x":1}', b""]), min_size=1, max_size=4))
@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_every_line_end_separates(end: bytes, lines: list[bytes]) -> None:
    event = b"".join(b"data: " + line + end for line in lines) + end
    events, rest = split(event * 3 + b"data: last\n\n")
    assert events == [event] * 3 + [b"data: last\n\n"]
    assert rest == b""
    assert sse.data_of(event) == b"\n".join(lines)


def test_a_byte_order_mark_is_dropped_even_in_halves() -> None:
    splitter = sse.Splitter()
    assert splitter.feed(b"\xef") == []
    assert splitter.feed(b"\xbb") == []
    assert splitter.feed(b"\xbfdata: 1\n\n") == [b"data: 1\n\n"]
    assert splitter.feed(b"\xef\xbb\xbfdata: 2\n\n") == [b"\xef\xbb\xbfdata: 2\n\n"]


def test_other_separators_end_no_line() -> None:
    event = 'data: {"x":"a\u2028b\u2029c\x0bd\x85e"}\n\n'.encode()
    assert split(event) == ([event], b"")
    assert sse.data_of(event) == event[6:-2]


def test_what_is_left_at_the_end() -> None:
    splitter = sse.Splitter()
    assert splitter.feed(b"data: 1\n\ndata: 2\n") == [b"data: 1\n\n"]
    assert splitter.close() == b"data: 2\n"
    assert splitter.close() == b""


@pytest.mark.parametrize("end", [b"", b"\n\n", b"\r\n\r\n"])
@pytest.mark.parametrize("step", [1, 7, 1000])
def test_a_large_event_is_refused_before_it_is_kept(end: bytes, step: int) -> None:
    stream = b"data: small\n\n" * 20 + b"data: " + b"x" * 60 + end

    def read() -> None:
        splitter = sse.Splitter(event_bytes_max=50)
        for at in range(0, len(stream), step):
            splitter.feed(stream[at : at + step])

    with pytest.raises(UpstreamProtocolViolation, match="larger than 50"):
        read()


@pytest.mark.parametrize(
    ("event", "data"),
    [
        (b"data: x\n\n", b"x"),
        (b"data:x\n\n", b"x"),
        (b"data:  x\n\n", b" x"),
        (b"data: a\ndata: b\n\n", b"a\nb"),
        (b"event: e\r\nid: 1\r\ndata: x\r\n\r\n", b"x"),
        (b": data: x\n\n", b""),
        (b"datax: y\n\n", b""),
        (b"data\n\n", b""),
        (b"\n\n", b""),
    ],
)
def test_the_payload_of_an_event(event: bytes, data: bytes) -> None:
    assert sse.data_of(event) == data


def test_another_payload_keeps_the_other_fields() -> None:
    event = b": note\nevent: e\ndata: a\ndata: b\nid: 1\n\n"
    changed = sse.with_data(event, b"new")
    assert changed == b": note\nevent: e\nid: 1\ndata: new\n\n"
    assert sse.data_of(changed) == b"new"


@pytest.mark.parametrize("event", [b"data: x", b"data: x\n", b"data: x\r\n", b"data: x\n\n"])
def test_an_event_gets_its_blank_line(event: bytes) -> None:
    assert sse.terminated(event) == b"data: x\n\n" == sse.event(b"x")
