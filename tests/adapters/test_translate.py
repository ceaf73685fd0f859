"""adapters.translate: from a reader to a writer, streamed and whole, with fakes on both sides."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import pytest

from adapters.canonical import Event, Finish, Prompt, Text, Tool, Turn, Usage, Used
from adapters.catalogue import Provider
from adapters.codec import Encoded, Made, Request, Scan, Target, UpstreamFailure
from adapters.envelope import Envelopes
from adapters.errors import APIError, InternalError, RequestNotExpressible
from adapters.names import OPENAI_NAMES, ToolNames
from adapters.stream import nothing_expected
from adapters.translate import TranslatedStream, Translation
from tests.fakes.answers import FakeReader, sse
from tests.fakes.expected import text_of


class FakeWriter:
    """Writes an event as a line with its name and text."""

    def __init__(self, made: Made) -> None:
        self.made = made
        self.events: list[Event] = []

    def write(self, event: Event) -> bytes:
        self.events.append(event)
        return f"{event!r}\n".encode()

    def whole(self) -> bytes:
        assert isinstance(self.events[-1], Finish)
        return msgspec.json.encode([type(event).__name__ for event in self.events])

    def error_event(self, error: APIError, request_id: str) -> bytes:
        return f"{error} {request_id}\n".encode()


class FakeDownstream:
    writers: list[FakeWriter]

    def __init__(self) -> None:
        self.writers = []

    def writer(
        self, request: Request, prompt: Prompt, envelopes: Envelopes, made: Made
    ) -> FakeWriter:
        self.writers.append(FakeWriter(made))
        return self.writers[-1]


class FakeUpstream:
    def __init__(self, stops_itself: bool, names: ToolNames | None, body: bytes) -> None:
        self.stops_itself = stops_itself
        self.names = names
        self.body = body

    def encode(self, prompt: Prompt, target: Target) -> Encoded:
        return Encoded(
            "path",
            self.body,
            FakeReader,
            (("a", "b"),),
            ("seed", "n"),
            self.stops_itself,
            self.names,
        )

    def read_error(
        self, status: int, headers: Mapping[bytes, bytes], body: bytes
    ) -> UpstreamFailure:
        return UpstreamFailure("overloaded", body.decode(), status)


class Setting:
    """A translation, and what its writer got."""

    def __init__(
        self,
        *,
        stop: tuple[str, ...] = (),
        stops_itself: bool = False,
        tool: Tool | None = None,
        body: bytes = b"body",
    ) -> None:
        self.downstream = FakeDownstream()
        names = ToolNames(OPENAI_NAMES, [tool]) if tool is not None else None
        prompt = Prompt(
            turns=(Turn(role="user", parts=(Text(text="hi"),)),),
            stop=stop,
            dropped=("user", "seed"),
        )
        provider = Provider(name="acme", protocol="openai", base_url="https://acme.test/v1")
        self.call = Translation(
            self.downstream,  # type: ignore[arg-type] # a part of a codec
            FakeUpstream(stops_itself, names, body),  # type: ignore[arg-type] # the same
            Request(fields={}, body_bytes=0, model="m", scan=Scan(text_bytes=40)),
            prompt,
            Target(provider, "model-2026-01-01", 100, True),
            Envelopes(bytes(32), "account"),
        )

    @property
    def written(self) -> list[Event]:
        return self.downstream.writers[-1].events


def ended(relay: TranslatedStream) -> bool:
    return relay.ended


def test_the_request_is_what_was_encoded_with_all_that_was_lost() -> None:
    call = Setting().call
    assert (call.path, call.body, dict(call.headers)) == ("path", b"body", {"a": "b"})
    assert call.dropped == ("user", "seed", "n")
    assert call.read_error(529, {}, b"busy") == UpstreamFailure("overloaded", "busy", 529)


def test_a_stream_is_complete_before_its_terminal_goes_out() -> None:
    setting = Setting()
    relay = setting.call.stream()
    out = relay.feed(sse("start"))
    assert b"Start" in out
    before = relay.has_content
    assert before is False
    out = relay.feed(sse("say hello"))
    assert b"hello" in out
    assert relay.has_content
    assert relay.feed(sse("reason", "used 7", "done", "say late")).count(b"\n") == 2
    assert relay.ended
    assert relay.failure is None
    assert b"Finish" in relay.terminal
    assert relay.counted(text_of(40)).usage == Usage(input_tokens=100, output_tokens=7)
    assert relay.feed(sse("say late")) == relay.close() == b""
    assert b"req_1" in relay.error_event(InternalError("no"), "req_1")


def test_byte_by_byte_is_the_same() -> None:
    data = sse("start", "say hé", "reason", "done")
    whole, pieces = Setting().call.stream(), Setting().call.stream()
    assert b"".join(pieces.feed(data[at : at + 1]) for at in range(len(data))) == whole.feed(data)
    assert pieces.terminal == whole.terminal


def test_the_last_event_needs_no_blank_line() -> None:
    relay = Setting().call.stream()
    relay.feed(sse("say a", "reason"))
    relay.feed(b"data: done")
    relay.close()
    assert relay.ended
    assert relay.failure is None


@pytest.mark.parametrize(
    ("lines", "kind"),
    [
        (["say a"], "truncated"),
        (["start"], "truncated"),
        ([], "truncated"),
        (["reason"], "empty"),
        (["say a", "break"], "server_error"),
    ],
)
def test_a_stream_that_breaks_is_a_failure_whoever_notices(lines: list[str], kind: str) -> None:
    relay = Setting().call.stream()
    relay.feed(sse(*lines))
    relay.close()
    assert relay.ended
    assert relay.failure is not None
    assert relay.failure.kind == kind
    assert relay.terminal == b""


def test_an_end_without_the_last_word_but_with_a_reason_is_an_end() -> None:
    relay = Setting().call.stream()
    relay.feed(sse("say a", "reason"))
    relay.close()
    assert relay.failure is None
    assert relay.terminal


def test_events_without_end_are_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    relay = Setting().call.stream()
    relay._splitter._event_bytes_max = 10
    assert relay.feed(b"data: " + b"x" * 20) == b""
    assert relay.ended
    assert relay.failure is not None
    assert relay.failure.kind == "protocol"


def test_a_stream_that_is_cut_at_a_stop_sequence_is_complete() -> None:
    setting = Setting(stop=("STOP",))
    relay = setting.call.stream()
    relay.feed(sse("say abcST"))
    assert not ended(relay)
    relay.feed(sse("say OPxyz", "say more"))
    assert relay.ended
    assert relay.failure is None
    assert b"stop_sequence" in relay.terminal
    # No usage will come any more: the client gets what is counted.
    assert setting.written[-2:] == [
        Used(Usage(input_tokens=10, output_tokens=3)),
        Finish("stop_sequence", "STOP"),
    ]
    assert relay.counted(text_of(40)).usage == Usage(input_tokens=10, output_tokens=3)
    assert relay.counted(text_of(40)).estimated


def test_an_answer_in_one_piece_keeps_its_usage_where_it_is_cut() -> None:
    setting = Setting(stop=("STOP",))
    relay = setting.call.plain(b"say abcSTOPxyz\nused 9\nreason\ndone")
    assert relay.failure is None
    assert relay.body == b'["Start","Open","Delta","Close","Used","Finish"]'
    assert setting.written[-2] == Used(Usage(input_tokens=100, output_tokens=9))
    assert relay.counted(nothing_expected).usage == Usage(input_tokens=100, output_tokens=9)
    assert not relay.counted(nothing_expected).estimated


def test_a_provider_that_stops_itself_is_not_searched() -> None:
    setting = Setting(stop=("STOP",), stops_itself=True)
    assert setting.call.plain(b"say abcSTOPxyz\nreason\ndone").failure is None
    assert "STOPxyz" in repr(setting.written)


@pytest.mark.parametrize(
    ("body", "kind"),
    [(b"say a", "truncated"), (b"reason\ndone", "empty"), (b"say a\nbreak", "server_error")],
)
def test_an_answer_in_one_piece_that_is_none(body: bytes, kind: str) -> None:
    relay = Setting().call.plain(body)
    assert relay.failure is not None
    assert relay.failure.kind == kind
    assert relay.body == b""


def test_calls_come_back_under_the_clients_names() -> None:
    setting = Setting(tool=Tool(name="patch", namespace="edit", free=True))
    body = b'call edit__patch\narguments {"input": "x"}\nreason\ndone'
    assert setting.call.plain(body).failure is None
    assert "name='patch', namespace='edit'" in repr(setting.written)
    assert setting.written[-1] == Finish("tool_calls")


def test_the_writer_knows_where_the_answer_was_made() -> None:
    setting = Setting()
    setting.call.stream()
    made = setting.downstream.writers[-1].made
    assert (made.provider, made.family, made.input_tokens) == ("acme", "model", 10)


def test_only_so_many_stop_sequences_are_looked_for() -> None:
    many = tuple(f"stop {n}" for n in range(65))
    Setting(stop=many[:64])
    Setting(stop=many, stops_itself=True)
    for refusable in (many, ("x" * 1001,)):
        with pytest.raises(RequestNotExpressible) as refused:
            Setting(stop=refusable)
        assert refused.value.param == "stop"


def test_what_grows_beyond_what_was_reserved_is_not_sent() -> None:
    Setting(body=b"x" * 16_000)
    with pytest.raises(RequestNotExpressible):
        Setting(body=b"x" * 100_000)
