"""adapters.passing: events go on as they came, and are read beside that; with fakes."""

from __future__ import annotations

import pytest

from adapters.canonical import Usage
from adapters.errors import APIError, InternalError
from adapters.passing import PassingPlain, PassingStream
from adapters.stream import Meter, nothing_expected
from tests.fakes.answers import FakeReader, sse


class FakeManner:
    """Renames the model, and ends a stream with `bye`."""

    def shown(self, raw: bytes, payload: bytes) -> bytes:
        return raw.replace(b"upstream", b"ours") if payload else raw

    def end(self) -> bytes:
        return b"bye"

    def remember(self, payload: bytes) -> None:
        """Nothing is needed."""

    def cut(self, usage: Usage) -> bytes:
        return b"cut at %d " % usage.output_tokens

    def error_event(self, error: APIError, request_id: str) -> bytes:
        return f"{error} {request_id}".encode()


def passing() -> PassingStream:
    return PassingStream(FakeReader(), Meter({"request": 1}), FakeManner())


def test_events_pass_until_the_reason_and_are_held_from_there() -> None:
    relay = passing()
    assert relay.feed(sse("start")) == sse("start")
    before = relay.has_content
    assert before is False
    assert relay.feed(b": comment\n\n" + sse("say upstream")) == b": comment\n\n" + sse("say ours")
    assert relay.has_content
    assert relay.feed(sse("reason", "used 3")) == b""
    held_back = relay.ended
    assert held_back is False
    assert relay.feed(sse("done", "say late")) == b""
    assert relay.ended
    assert relay.failure is None
    assert relay.terminal == sse("reason", "used 3", "done") + b"bye"
    assert relay.counted(nothing_expected).usage == Usage(
        input_tokens=100, output_tokens=3, pieces={"request": 1}
    )
    assert relay.feed(sse("say late")) == relay.close() == b""
    assert relay.error_event(InternalError("no"), "req_1").endswith(b"req_1")


def test_byte_by_byte_is_the_same() -> None:
    data = sse("start", "say hé", ": x", "reason", "done")
    whole, pieces = passing(), passing()
    assert b"".join(pieces.feed(data[at : at + 1]) for at in range(len(data))) == whole.feed(data)
    assert pieces.terminal == whole.terminal


def test_a_last_event_without_its_blank_line_gets_one() -> None:
    relay = passing()
    relay.feed(sse("say a", "reason"))
    relay.feed(b"data: done")
    relay.close()
    assert relay.failure is None
    assert relay.terminal == sse("reason", "done") + b"bye"


@pytest.mark.parametrize(
    ("lines", "kind"),
    [
        (["say a"], "truncated"),
        ([], "truncated"),
        (["reason"], "empty"),
        (["say a", "break"], "server_error"),
    ],
)
def test_a_stream_that_breaks_is_a_failure_whoever_notices(lines: list[str], kind: str) -> None:
    relay = passing()
    relay.feed(sse(*lines))
    relay.close()
    assert relay.ended
    assert relay.failure is not None
    assert relay.failure.kind == kind


def test_what_broke_the_answer_is_not_shown() -> None:
    relay = passing()
    assert relay.feed(sse("say a", "break", "say b")) == sse("say a")


def test_an_end_without_the_last_word_but_with_a_reason_is_an_end() -> None:
    relay = passing()
    relay.feed(sse("say a", "reason"))
    relay.close()
    assert relay.ended
    assert relay.failure is None
    assert relay.terminal == sse("reason") + b"bye"


def test_a_stream_that_never_ends_after_its_reason_is_bounded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("adapters.sse.EVENT_BYTES_MAX", 1000)
    relay = passing()
    relay.feed(sse("say a", "reason"))
    relay.feed(sse("used 1") * 200)
    assert relay.failure is not None
    assert relay.failure.kind == "protocol"


def test_an_event_without_end_is_a_failure() -> None:
    relay = passing()
    relay._splitter._event_bytes_max = 10
    assert relay.feed(b"data: " + b"x" * 20) == b""
    assert relay.failure is not None
    assert relay.failure.kind == "protocol"
    assert relay.close() == b""


def test_an_answer_in_one_piece() -> None:
    relay = PassingPlain(FakeReader(), Meter({}), b"say a\nused 2\nreason\ndone", b"shown")
    assert relay.failure is None
    assert relay.body == b"shown"
    assert relay.counted(nothing_expected).usage == Usage(input_tokens=100, output_tokens=2)


@pytest.mark.parametrize(
    ("body", "kind"),
    [(b"say a", "truncated"), (b"reason\ndone", "empty"), (b"say a\nbreak", "server_error")],
)
def test_an_answer_in_one_piece_that_is_none(body: bytes, kind: str) -> None:
    relay = PassingPlain(FakeReader(), Meter({}), body, b"shown")
    assert relay.failure is not None
    assert relay.failure.kind == kind
    assert relay.body == b""
