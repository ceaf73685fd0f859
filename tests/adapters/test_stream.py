"""adapters.stream: whatever a reader tells, what comes out obeys the grammar and loses nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters import stream
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
from adapters.codec import UpstreamFailure
from adapters.names import safe_id
from adapters.stream import GRAMMAR, Composer, Meter, State, nothing_expected
from tests.fakes.expected import text_of

EVENTS = (Start, Open, Delta, Meta, Close, Used, Finish)


def accepted(events: Iterable[Event]) -> State:
    """Walk over the events as the grammar and the rules on indexes have it."""
    state, index = State.IDLE, -1
    for event in events:
        following = GRAMMAR.get((state, type(event)))
        assert following is not None, f"{event} in state {state}"
        state = following
        if isinstance(event, Open):
            index += 1
        if isinstance(event, Open | Delta | Meta | Close):
            assert event.index == index
        if isinstance(event, Delta):
            assert event.text
            event.text.encode()
    return state


def texts(events: Iterable[Event]) -> list[str]:
    """The text of every block."""
    found: list[str] = []
    for event in events:
        if isinstance(event, Open):
            found.append("")
        elif isinstance(event, Delta):
            found[-1] += event.text
    return found


def shapes(events: Iterable[Event]) -> list[str]:
    """A short name for every event."""
    return [
        f"delta {event.text}" if isinstance(event, Delta) else type(event).__name__.lower()
        for event in events
    ]


def finish(composer: Composer) -> None:
    composer.reason("end")
    composer.finish()


def failed(composer: Composer) -> bool:
    return composer.failure is not None


# -- the grammar ----------------------------------------------------------------------------------


def test_the_grammar_is_what_writers_may_rely_on() -> None:
    allowed: dict[State, set[type]] = {
        State.IDLE: {Start},
        State.BETWEEN: {Open, Used, Finish},
        State.INSIDE: {Delta, Meta, Used, Close},
        State.ENDED: set(),
    }
    for state, event in product(State, EVENTS):
        assert ((state, event) in GRAMMAR) == (event in allowed[state])


@pytest.mark.parametrize(("state", "event"), list(GRAMMAR))
def test_every_step_of_the_grammar_can_be_taken(state: State, event: type) -> None:
    before: dict[State, Callable[[Composer], None]] = {
        State.IDLE: lambda composer: None,
        State.BETWEEN: lambda composer: composer.start(),
        State.INSIDE: lambda composer: composer.open("k", "text"),
    }
    step: dict[type, Callable[[Composer], None]] = {
        Start: lambda composer: composer.start(),
        Open: lambda composer: composer.open("k", "text"),
        Delta: lambda composer: composer.delta("k", "a"),
        Meta: lambda composer: composer.meta("k", signature="s"),
        Close: lambda composer: composer.close("k"),
        Used: lambda composer: composer.used(Usage()),
        Finish: finish,
    }
    composer = Composer()
    before[state](composer)
    assert composer.state is state
    composer.take()
    step[event](composer)
    assert [type(event) for event in composer.take()] == [event]
    assert composer.state is GRAMMAR[state, event]


KEYS = st.sampled_from(["a", "b", "c", 0, ("x", 1)])
KINDS = st.sampled_from(["text", "thinking", "call", "free_call", "refusal"])
PIECES = st.text(
    st.sampled_from([*'{}[]":\\ ab', "é", "😀", "\ud83d", "\ude00"]), max_size=6
) | st.sampled_from(['{"a":1}', '{"a":', "1}", "{}"])
STEPS = st.one_of(
    st.tuples(st.just("open"), KEYS, KINDS, st.booleans()),
    st.tuples(st.just("delta"), KEYS, PIECES),
    st.tuples(st.just("meta"), KEYS),
    st.tuples(st.just("close"), KEYS),
    st.tuples(st.just("run"), KINDS.filter(lambda kind: "call" not in kind), PIECES),
    st.tuples(st.just("close_all")),
    st.tuples(st.just("used")),
    st.tuples(st.just("start")),
    st.tuples(st.just("reason")),
    st.tuples(st.just("finish")),
    st.tuples(st.just("fail")),
)


@settings(max_examples=400, deadline=None)
@given(st.lists(STEPS, max_size=40), st.booleans(), st.booleans())
def test_any_sequence_of_calls_obeys_the_grammar(
    steps: list[tuple[object, ...]], ends: bool, careful: bool
) -> None:
    """`careful` readers ask before they go on with a block."""
    composer, said, events = Composer(), list[str](), list[Event]()
    for name, *arguments in [*steps, *([("reason",), ("finish",)] if ends else [])]:
        match name:
            case "open":
                key, kind, implicit = arguments
                composer.open(key, kind, name="f", implicit=bool(implicit))  # type: ignore[arg-type]
            case "delta" | "meta" | "close" if careful and not composer.knows(arguments[0]):
                continue
            case "delta":
                if composer.knows(arguments[0]):
                    said.append(str(arguments[1]))
                composer.delta(*arguments)  # type: ignore[arg-type]
            case "meta":
                composer.meta(arguments[0], signature="s")
            case "run":
                if not composer.ended:
                    said.append(str(arguments[1]))
                composer.run(*arguments)  # type: ignore[arg-type]
            case "used":
                composer.used(Usage())
            case "reason":
                composer.reason("end")
            case "fail":
                composer.fail("protocol", "no")
            case other:
                getattr(composer, str(other))(*arguments)
        if "d" in str(name):
            events += composer.take()
    events += composer.take()
    state = accepted(events)
    assert composer.ended == (composer.failure is not None or state is State.ENDED)
    if composer.failure is None and state is State.ENDED:
        assert len([event for event in events if isinstance(event, Finish)]) == 1
        sayable = [text for text in said if all(not "\ud7ff" < sign < "\ue000" for sign in text)]
        if len(sayable) == len(said):
            assert sorted("".join(texts(events))) == sorted("".join(said))
    elif composer.failure is not None:
        assert not any(isinstance(event, Finish) for event in events)
    ids = [event.id for event in events if isinstance(event, Open) and event.id]
    assert len(ids) == len(set(ids))


@given(
    st.permutations(range(4)),
    st.lists(st.tuples(st.integers(0, 3), st.text("ab", min_size=1)), max_size=30),
)
def test_interleaved_blocks_come_out_whole_and_in_order(
    closing: list[int], pieces: list[tuple[int, str]]
) -> None:
    composer = Composer()
    for key in range(4):
        composer.open(key, "text")
    for key, piece in pieces:
        composer.delta(key, piece)
    for key in closing:
        composer.close(key)
    composer.reason("end")
    composer.finish()
    events = composer.take()
    assert accepted(events) is State.ENDED
    assert texts(events) == ["".join(p for k, p in pieces if k == key) for key in range(4)]


# -- blocks that wait -----------------------------------------------------------------------------


def test_the_open_block_streams_while_others_wait() -> None:
    composer = Composer()
    composer.open("a", "text")
    composer.open("b", "call", "call_b", "f")
    composer.delta("b", "{")
    composer.meta("b", signature="sig", kind="call")
    composer.delta("a", "1")
    assert shapes(composer.take()) == ["start", "open", "delta 1"]
    composer.delta("b", "}")
    composer.close("b")
    assert not composer.knows("b")
    assert composer.take() == []
    composer.close("a")
    assert composer.take() == [
        Close(0),
        Open(1, "call", "call_b", "f"),
        Delta(1, "{"),
        Meta(1, "sig", "call"),
        Delta(1, "}"),
        Close(1),
    ]


def test_a_block_that_was_closed_takes_no_more_whether_it_waits_or_not() -> None:
    for earlier in ("a", "b"):
        composer = Composer()
        composer.open("a", "text")
        composer.open("b", "text")
        composer.close(earlier)
        composer.delta(earlier, "late")
        assert composer.failure is not None
        assert composer.failure.kind == "protocol"


def test_a_key_that_is_opened_again_begins_another_block() -> None:
    composer = Composer()
    for text in ("1", "2", "3"):
        composer.open("a", "text")
        composer.delta("a", text)
    composer.open("wait", "text")
    composer.open("a", "text")  # waits now, and was open
    composer.delta("a", "4")
    composer.open("a", "text")  # waits now, and waited
    composer.delta("a", "5")
    composer.close("wait")
    composer.reason("end")
    composer.finish()
    events = composer.take()
    assert accepted(events) is State.ENDED
    assert texts(events) == ["1", "2", "3", "", "4", "5"]


def test_thousands_of_waiting_blocks_need_no_deep_stack() -> None:
    composer = Composer()
    for key in range(5000):
        composer.open(key, "text")
        composer.close(key) if key else None
    composer.close(0)
    assert accepted(composer.take()) is State.BETWEEN


def test_what_waits_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "WAITING_BYTES_MAX", 10_000)
    composer = Composer()
    composer.open("a", "text")
    composer.open("b", "text")
    for _ in range(20):
        composer.delta("b", "x" * 100)
    assert not failed(composer)
    for _ in range(100):
        composer.delta("b", "x")
    assert failed(composer)
    assert accepted(composer.take()) is State.INSIDE


def test_the_bound_is_on_what_waits_not_on_what_has_waited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "WAITING_BYTES_MAX", 1000)
    composer = Composer()
    for key in range(0, 100, 2):
        composer.open(key, "text")
        composer.open(key + 1, "text")
        composer.delta(key + 1, "x" * 100)
        composer.meta(key + 1, signature="s", logprobs=(Logprob("x", -1.0),))
        composer.close(key)
        composer.close(key + 1)
    assert not failed(composer)
    assert composer._waiting_bytes == 0


# -- calls without an end -------------------------------------------------------------------------


def implicit(*calls: str) -> Composer:
    composer = Composer()
    for name in calls:
        composer.open(name, "call", f"call_{name}", name, implicit=True)
    return composer


def test_a_complete_call_ends_where_the_next_begins() -> None:
    composer = implicit("a")
    composer.delta("a", '{"x": "}"')
    composer.delta("a", "}")
    composer.open("b", "call", "call_b", "b", implicit=True)
    composer.delta("b", "{}")
    assert shapes(composer.take()) == [
        "start", "open", 'delta {"x": "}"', "delta }", "close", "open", "delta {}",
    ]  # fmt: skip
    composer.delta("a", " \n")  # some servers close with white space
    composer.delta("b", "\n")
    composer.meta("a", signature="late", kind="call")
    assert not failed(composer)
    composer.delta("a", "{")
    assert failed(composer)


def test_fragments_of_two_calls_may_interleave() -> None:
    composer = implicit("a", "b", "c")
    composer.delta("a", '{"x":')
    composer.delta("b", '{"y":')
    composer.delta("c", "{}")
    composer.delta("a", "1}")
    composer.delta("b", "2")
    assert shapes(composer.take())[-3:] == ["open", 'delta {"y":', "delta 2"]
    composer.delta("b", "}")
    assert shapes(composer.take()) == ["delta }", "close", "open", "delta {}"]
    composer.reason("tool_calls")
    composer.finish()
    assert shapes(composer.take()) == ["close", "finish"]


def test_a_call_without_arguments_holds_up_but_loses_nothing() -> None:
    composer = implicit("a", "b")
    composer.delta("b", '{"y": 1}')
    assert shapes(composer.take()) == ["start", "open"]
    composer.reason("tool_calls")
    composer.finish()
    events = composer.take()
    assert shapes(events) == ["close", "open", 'delta {"y": 1}', "close", "finish"]


def test_text_behind_an_incomplete_call_waits_for_it() -> None:
    composer = implicit("a")
    composer.delta("a", "{")
    composer.run("text", "hel")
    key = composer.run("text", "lo")
    composer.meta(key, logprobs=(Logprob("x", -1.0),))
    assert shapes(composer.take()) == ["start", "open", "delta {"]
    composer.delta("a", "}")
    assert shapes(composer.take()) == [
        "delta }", "close", "open", "delta hel", "delta lo", "meta",
    ]  # fmt: skip


def test_a_free_call_ends_where_anything_else_begins() -> None:
    composer = Composer()
    composer.open(0, "free_call", "c0", "patch", implicit=True)
    composer.delta(0, "{ not json")
    composer.run("text", "so")
    assert shapes(composer.take()) == [
        "start",
        "open",
        "delta { not json",
        "close",
        "open",
        "delta so",
    ]


def test_a_run_ends_where_a_call_begins() -> None:
    composer = Composer()
    composer.run("thinking", "hm")
    composer.run("text", "a")
    composer.run("text", "b")
    composer.open(0, "call", "c0", "f", implicit=True)
    assert composer.open_key == 0
    assert composer.open_kind == "call"
    assert shapes(composer.take()) == [
        "start", "open", "delta hm", "close", "open", "delta a", "delta b", "close", "open",
    ]  # fmt: skip


def test_a_run_ends_blocks_that_were_opened_explicitly() -> None:
    composer = Composer()
    composer.open("a", "thinking")
    composer.open("b", "call", "c", "f")
    composer.run("text", "x")
    assert shapes(composer.take()) == ["start", "open", "close", "open", "close", "open", "delta x"]


# -- halves of characters -------------------------------------------------------------------------


def test_halves_of_a_character_are_joined() -> None:
    composer = Composer()
    composer.open("a", "text")
    composer.open("b", "text")
    for key in ("a", "b"):
        composer.delta(key, "x\ud83d")
        composer.delta(key, "\ude00y")
        composer.delta(key, "\ude00")
        composer.delta(key, "z\ud83d")
        composer.close(key)
    events = composer.take()
    assert texts(events) == ["x😀y\ufffdz\ufffd"] * 2
    assert accepted(events) is State.BETWEEN


def test_no_half_of_a_character_gets_out_of_any_event() -> None:
    half = "\ud83d"
    composer = Composer()
    composer.start(half, half)
    composer.open("a", "call", half, half)
    composer.meta(
        "a",
        signature=half,
        citation=Citation(half, half),
        logprobs=(Logprob(half, 0.0, ((half, 0.0),)),),
    )
    composer.reason("end", half, half)
    composer.finish()
    repr(composer.take()).encode()
    assert "\\ud83d" not in ascii(composer.take())


# -- the end --------------------------------------------------------------------------------------


def test_an_end_without_a_reason_is_a_failure() -> None:
    composer = Composer()
    composer.run("text", "x")
    composer.finish()
    assert composer.failure is not None
    assert composer.failure.kind == "truncated"
    assert composer.ended
    assert composer.open_key is None
    assert shapes(composer.take()) == ["start", "open", "delta x"]


def test_a_failure_is_the_last_word() -> None:
    composer = Composer()
    composer.open("a", "text")
    failure = UpstreamFailure("overloaded", "busy", 529)
    composer.fail("protocol", "ignored", failure)
    composer.fail("server_error", "later")
    composer.delta("a", "x")
    composer.run("text", "x")
    composer.open("b", "text")
    composer.used(Usage())
    composer.reason("end")
    composer.finish()
    assert composer.failure is failure
    assert shapes(composer.take()) == ["start", "open"]


def test_the_first_reason_stays() -> None:
    composer = Composer()
    composer.reason("length")
    composer.reason("end")
    composer.finish()
    composer.run("text", "late")
    assert composer.take() == [Start(), Finish("length")]


def test_edge_04_start_comes_once() -> None:
    composer = Composer()
    composer.start("a", "m")
    composer.start("b", "n")
    assert composer.take() == [Start("a", "m")]


@pytest.mark.parametrize("reason", ["end", "stop_sequence", "pause"])
def test_edge_06_a_call_makes_tool_calls_of_a_plain_end(reason: str) -> None:
    composer = implicit("a")
    composer.reason(reason)  # type: ignore[arg-type]
    composer.finish()
    assert composer.take()[-1] == Finish("tool_calls")


def test_no_call_makes_a_plain_end_of_tool_calls() -> None:
    composer = Composer()
    composer.reason("tool_calls")
    composer.finish()
    assert composer.take()[-1] == Finish("end")


def test_ids_of_calls_are_made_where_they_are_missing_or_stand_twice() -> None:
    composer = Composer()
    composer.start("answer")
    for key, given_id in enumerate(("", "", "same", "same", "functions.Bash:0", "same")):
        composer.open(key, "call", given_id, "f")
    composer.close_all()
    ids = [event.id for event in composer.take() if isinstance(event, Open)]
    assert len(set(ids)) == 6
    assert ids[2] == "same"
    assert all(safe_id(one) == one for one in ids)


# -- the meter ------------------------------------------------------------------------------------


def read(*events: Event, pieces: dict[str, int] | None = None) -> Meter:
    meter = Meter(pieces or {})
    for event in events:
        meter.read(event)
    return meter


def test_the_meter_counts_what_no_provider_counted() -> None:
    meter = read(Start(), Open(0, "call", "id", "name"), Delta(0, "é" * 10), Close(0))
    counted = meter.counted(text_of(9))
    assert counted.estimated
    assert counted.usage == Usage(input_tokens=3, output_tokens=6)
    assert meter.has_content


def test_the_meter_believes_the_provider_at_the_end_only() -> None:
    cut = read(Start(usage=Usage(input_tokens=7, output_tokens=1)), *[Delta(0, "x")] * 5)
    assert cut.counted(nothing_expected).usage == Usage(input_tokens=7, output_tokens=5)
    assert cut.counted(nothing_expected).estimated
    done = read(
        *[Delta(0, "x")] * 5, Used(Usage(input_tokens=7, output_tokens=2)), Finish("end"),
        pieces={"request": 1},
    )  # fmt: skip
    assert done.counted(nothing_expected).usage == Usage(
        input_tokens=7, output_tokens=2, pieces={"request": 1}
    )
    assert not done.counted(nothing_expected).estimated


@pytest.mark.parametrize(
    ("events", "empty"),
    [
        ((Start(), Finish("end")), True),
        ((Start(), Open(0, "text"), Close(0), Finish("end")), True),
        ((Start(), Finish("content_filter")), False),
        ((Start(), Used(Usage(output_tokens=1)), Finish("end")), False),
        ((Start(), Used(Usage(input_tokens=1)), Finish("end")), True),
        ((Start(), Open(0, "call", "i", "f"), Close(0), Finish("tool_calls")), False),
    ],
)
def test_an_answer_with_nothing_in_it_is_empty(events: tuple[Event, ...], empty: bool) -> None:
    assert read(*events).empty is empty


def test_half_a_character_does_not_stop_the_meter() -> None:
    assert (
        read(Open(0, "call", "i", "\ud83d"), Delta(0, "\ud83d"))
        .counted(nothing_expected)
        .usage.output_tokens
    )


@pytest.mark.parametrize("told", [Usage(), Usage(input_tokens=0, output_tokens=9)])
def test_a_provider_that_counts_nothing_does_not_serve_for_nothing(told: Usage) -> None:
    meter = Meter({})
    for event in (Start(), Open(0, "text"), Delta(0, "x" * 40), Close(0), Used(told)):
        meter.read(event)
    meter.read(Finish("end"))
    counted = meter.counted(text_of(400))
    assert counted.estimated
    assert counted.usage.input_tokens == 100
    assert counted.usage.output_tokens == (told.output_tokens or 10)
