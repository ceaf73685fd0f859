"""The gateway's relays of OpenAI's surfaces read each of the sandbox's models as it is meant."""

from __future__ import annotations

import json

import pytest

from adapters.canonical import Usage
from adapters.catalogue import Provider
from adapters.codec import Ask, FailureKind, PlainRelay, StreamRelay, Target
from adapters.envelope import Envelopes
from adapters.openai.chat_downstream import ChatDownstream
from adapters.openai.chat_upstream import ChatUpstream
from adapters.openai.embeddings import EmbeddingsDownstream, EmbeddingsUpstream
from adapters.stream import nothing_expected
from tests.fakes.bodies import whole
from tests.fakes.expected import text_of
from tests.fakes.sandbox import HELLO, Played, chat, post

PROVIDER = Provider("sandbox", "openai", "http://127.0.0.1")
ENVELOPES = Envelopes(b"s" * 32, "account")


def relayed_stream(model: str) -> tuple[StreamRelay, bytes, str]:
    """What the client of a gateway sees of a streamed answer; the body closes unless it hangs."""
    played, relay = asked(model, stream=True)
    out = b"".join([relay.feed(part) for part in played.parts])
    if played.end != "hang":
        out += relay.close()
    return relay, out, played.end


def asked(model: str, *, stream: bool) -> tuple[Played, StreamRelay]:
    body = json.dumps({"model": model, "messages": HELLO, "stream": stream}).encode()
    request = ChatDownstream().decode(body, Ask())
    call = ChatUpstream().passing(request, Target(PROVIDER, model, 100, stream), ENVELOPES)
    played = post("/v1/chat/completions", whole(call.body))
    assert played.status == 200, played.body
    return played, call.stream()


def relayed_plain(model: str) -> PlainRelay:
    body = json.dumps({"model": model, "messages": HELLO}).encode()
    request = ChatDownstream().decode(body, Ask())
    call = ChatUpstream().passing(request, Target(PROVIDER, model, 100, stream=False), ENVELOPES)
    return call.plain(post("/v1/chat/completions", whole(call.body)).body)


WELL = ["sandbox", "sandbox-long", "sandbox-slow", "sandbox-usage-on-finish", "sandbox-cached"]


@pytest.mark.parametrize("model", [*WELL, "sandbox-reasoning", "sandbox-json", "sandbox-tools"])
def test_relays_count_what_the_sandbox_says_it_used(model: str) -> None:
    stream, out, _ = relayed_stream(model)
    plain = relayed_plain(model)
    assert stream.failure is None
    assert plain.failure is None
    assert stream.ended
    assert stream.terminal == b"data: [DONE]\n\n"
    assert b'"usage"' not in out
    assert stream.counted(nothing_expected) == plain.counted(nothing_expected)
    assert not stream.counted(nothing_expected).estimated
    assert stream.counted(nothing_expected).usage.output_tokens <= 100


def test_relays_read_the_details_of_usage() -> None:
    assert relayed_plain("sandbox-cached").counted(nothing_expected).usage == Usage(
        input_tokens=8, cached_input_tokens=4, output_tokens=30
    )
    assert relayed_plain("sandbox-reasoning").counted(nothing_expected).usage.reasoning_tokens == 64


def test_relays_count_for_themselves_where_the_sandbox_says_nothing() -> None:
    stream, _, _ = relayed_stream("sandbox-no-usage")
    assert stream.failure is None
    counted = stream.counted(text_of(60))
    assert counted.estimated
    assert counted.usage.input_tokens == 15
    assert counted.usage.output_tokens >= 30


@pytest.mark.parametrize(
    ("model", "failure", "has_content"),
    [
        ("sandbox-cut-40", "truncated", True),
        ("sandbox-cut-60", "truncated", True),
        ("sandbox-cut-first", "truncated", False),
        ("sandbox-unended", "truncated", True),
        ("sandbox-malformed", "protocol", True),
        ("sandbox-malformed-first", "protocol", False),
        ("sandbox-empty", "empty", False),
        ("sandbox-error-in-stream", "server_error", True),
        ("sandbox-error-first", "server_error", False),
        ("sandbox-overloaded-first", "overloaded", False),
    ],
)
def test_relays_notice_how_a_stream_breaks(
    model: str, failure: FailureKind, has_content: bool
) -> None:
    relay, out, _ = relayed_stream(model)
    assert relay.ended
    assert relay.failure is not None
    assert relay.failure.kind == failure
    assert relay.has_content is has_content
    assert b"[DONE]" not in out
    assert b'"error"' not in out


@pytest.mark.parametrize(("model", "share"), [("sandbox-cut-40", 40), ("sandbox-cut-60", 60)])
def test_what_a_cut_stream_produced_is_counted(model: str, share: int) -> None:
    relay, _, end = relayed_stream(model)
    assert end == "cut"
    counted = relay.counted(nothing_expected)
    assert counted.estimated
    assert counted.usage.output_tokens >= 30 * share // 100


def test_a_stalled_stream_has_not_ended() -> None:
    relay, out, end = relayed_stream("sandbox-stall")
    assert end == "hang"
    assert not relay.ended
    assert relay.has_content
    assert b'"1"' in out
    assert b'" 2"' in out
    assert b'" 3"' not in out


@pytest.mark.parametrize(
    ("model", "failure"),
    [
        ("sandbox-cut-40", "protocol"),  # where a server took the part for the whole
        ("sandbox-stall", "protocol"),
        ("sandbox-unended", "protocol"),
        ("sandbox-malformed", "protocol"),
        ("sandbox-empty", "empty"),
        ("sandbox-error-in-stream", "server_error"),
        ("sandbox-error-first", "server_error"),
    ],
)
def test_relays_notice_how_a_plain_answer_breaks(model: str, failure: FailureKind) -> None:
    relay = relayed_plain(model)
    assert relay.failure is not None
    assert relay.failure.kind == failure
    assert relay.body == b""


ERRORS: list[tuple[str, int, FailureKind, float | None]] = [
    ("sandbox-error-400", 400, "bad_request", None),
    ("sandbox-error-401", 401, "auth", None),
    ("sandbox-error-403", 403, "forbidden", None),
    ("sandbox-error-404", 404, "model_not_found", None),
    ("sandbox-error-408", 408, "timeout", None),
    ("sandbox-error-409", 409, "conflict", None),
    ("sandbox-error-413", 413, "too_large", None),
    ("sandbox-error-422", 422, "bad_request", None),
    ("sandbox-error-429", 429, "rate_limited", 1),
    ("sandbox-error-500", 500, "server_error", None),
    ("sandbox-error-502", 502, "server_error", None),
    ("sandbox-error-503", 503, "overloaded", 1),
    ("sandbox-error-529", 529, "overloaded", None),
    ("sandbox-context-overflow", 400, "context_length", None),
    ("sandbox-content-filter", 400, "content_filter", None),
]


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(("model", "status", "kind", "retry_after"), ERRORS)
def test_error_answers_are_read_as_facts(
    model: str, status: int, kind: FailureKind, retry_after: float | None, stream: bool
) -> None:
    played = chat(model, stream=stream)
    assert played.status == status
    headers = {name.encode(): value.encode() for name, value in played.headers.items()}
    failure = ChatUpstream().read_error(played.status, headers, played.body)
    assert (failure.status, failure.kind, failure.retry_after) == (status, kind, retry_after)
    assert "org-" not in failure.message
    assert "sk-" not in failure.message


def test_embeddings_go_through_the_gateway() -> None:
    body = b'{"model":"mine","input":["one","two"]}'
    request = EmbeddingsDownstream().decode(body, Ask())
    target = Target(PROVIDER, "sandbox-embedding", None, stream=False)
    call = EmbeddingsUpstream().passing_embedding(request, target)
    relay = call.plain(post("/v1/embeddings", whole(call.body)).body)
    assert relay.failure is None
    assert relay.counted(nothing_expected).usage == Usage(input_tokens=2)
    assert json.loads(relay.body)["model"] == "mine"
