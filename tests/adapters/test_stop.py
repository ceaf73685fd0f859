"""adapters.stop: an answer is cut at its first stop sequence, wherever the pieces are cut."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.canonical import Close, Delta, Event, Finish, Meta, Open, Start, Usage, Used
from adapters.stop import StopScanner

END: list[Event] = [Close(0), Used(Usage()), Finish("end")]


def answer(pieces: list[str]) -> list[Event]:
    return [Start(), Open(0, "text"), *[Delta(0, piece) for piece in pieces if piece], *END]


def text_of(events: list[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, Delta))


def scanned(stops: list[str], events: list[Event]) -> list[Event]:
    """What comes out of a stream: one event after the other."""
    scanner = StopScanner(stops)
    return [out for event in events for out in scanner.pass_on([event])]


@given(
    st.text("ab", max_size=30),
    st.lists(st.text("ab", min_size=1, max_size=5), min_size=1, max_size=3),
    st.lists(st.integers(0, 30), max_size=10),
)
def test_the_cut_is_where_the_first_sequence_is_complete(
    text: str, stops: list[str], cuts: list[int]
) -> None:
    places = [0, *sorted(cut for cut in cuts if cut < len(text)), len(text)]
    out = scanned(stops, answer([text[begin:end] for begin, end in pairwise(places)]))
    ends = [end for end in range(len(text) + 1) if text[:end].endswith(tuple(stops))]
    if not ends:
        assert text_of(out) == text
        assert out[-3:] == END
        return
    stop = max((stop for stop in stops if text[: ends[0]].endswith(stop)), key=len)
    assert text_of(out) == text[: ends[0] - len(stop)]
    assert out[-2:] == [Close(0), Finish("stop_sequence", stop)]


def test_only_what_may_be_a_beginning_is_held_back() -> None:
    scanner = StopScanner(["STOP"])
    assert scanner.pass_on([Start(), Open(0, "text"), Delta(0, "abST")])[2:] == [Delta(0, "ab")]
    assert scanner.pass_on([Delta(0, "x")]) == [Delta(0, "STx")]
    assert scanner.pass_on([Delta(0, "STO"), Meta(0, "sig"), Close(0)]) == [
        Meta(0, "sig"),
        Delta(0, "STO"),
        Close(0),
    ]


def test_a_sequence_does_not_reach_over_two_blocks() -> None:
    events: list[Event] = [Open(0, "text"), Delta(0, "ST"), Close(0)]
    events += [Open(1, "text"), Delta(1, "OP"), Close(1)]
    assert scanned(["STOP"], events) == events


@pytest.mark.parametrize("kind", ["thinking", "call", "free_call", "refusal"])
def test_only_text_is_searched(kind: str) -> None:
    events: list[Event] = [Open(0, kind), Delta(0, "STOP"), Close(0)]  # type: ignore[arg-type]
    assert scanned(["STOP"], events) == events


def test_nothing_follows_a_stop() -> None:
    scanner = StopScanner(["STOP"])
    out = scanner.pass_on([*answer(["STOPmore"]), Open(1, "text")])
    assert out == [Start(), Open(0, "text"), Close(0), Finish("stop_sequence", "STOP")]
    assert scanner.stopped
    assert scanner.pass_on([Used(Usage()), Finish("end")]) == []


def test_calls_before_a_stop_are_to_be_served() -> None:
    events: list[Event] = [Open(0, "call", "i", "f"), Close(0), Open(1, "text"), Delta(1, "aSTOP")]
    assert scanned(["STOP"], events)[-1] == Finish("tool_calls")


def test_no_sequence_is_no_search() -> None:
    assert scanned([], answer(["a"])) == scanned([""], answer(["a"])) == answer(["a"])


def test_long_sequences_take_no_long_time() -> None:
    stop = "ab" * 50_000 + "c"
    assert text_of(scanned([stop], answer(["ab" * 500] * 120))) == "ab" * 60_000
