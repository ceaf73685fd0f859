"""Error answers of many servers, read as the same facts, without their secrets."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.codec import FailureKind, UpstreamFailure
from adapters.errors import ContextLengthExceeded, InvalidRequest, ModelNotAvailable, NotFound
from adapters.failures import MESSAGE_CHARACTERS_MAX, scrub
from adapters.openai.failure import read_failure

TOO_LARGE = (
    "Request too large for gpt-4o in organization org-1 on tokens per min (TPM): Limit 30000, "
    "Requested 30601. The input or output tokens must be reduced in order to run successfully."
)
ANY = "Rate limit reached"


def read(status: int, body: object = None, **headers: str) -> UpstreamFailure:
    pairs = {name.replace("_", "-").encode(): value.encode() for name, value in headers.items()}
    return read_failure(status, pairs, json.dumps(body).encode())


@pytest.mark.parametrize(
    "body",
    [
        {"error": {"message": "boom"}},
        {"error": "boom"},
        [{"error": {"message": "boom"}}],
        {"detail": "boom"},
        {"message": "boom"},
        {"error": {"error": {"message": "boom"}}},
        "boom",
    ],
)
def test_the_message_is_found_in_every_wrapping(body: object) -> None:
    assert read(500, body).message == "boom"


def test_something_missing_that_is_not_the_model_is_named() -> None:
    body = {"error": {"message": "Conversation 'c' not found.", "param": "conversation"}}
    refusal = read(404, body).client_error()
    assert type(refusal) is InvalidRequest
    assert (refusal.message, refusal.param) == ("Conversation 'c' not found.", "conversation")
    for param, error in ((None, NotFound), ("", NotFound), ("model", ModelNotAvailable)):
        unknown = read(404, {"error": {"message": "No.", "param": param}}).client_error()
        assert type(unknown) is error


@pytest.mark.parametrize("body", [b"", b"<html>502</html>", b"[]", b"5", b"null", b"\xff", b"{"])
def test_a_body_without_an_error_leaves_the_status(body: bytes) -> None:
    assert read_failure(502, {}, body) == UpstreamFailure("server_error", "", 502)


@pytest.mark.parametrize(
    ("status", "error", "kind"),
    [
        (400, {"code": "context_length_exceeded"}, "context_length"),
        (400, {"message": "prompt is too long: 9000 tokens"}, "context_length"),
        (400, {"type": "exceed_context_size_error"}, "context_length"),
        (429, {"code": "insufficient_quota"}, "quota"),
        (429, {"code": "rate_limit_exceeded", "message": TOO_LARGE}, "over_limit"),
        (429, {"code": "rate_limit_exceeded", "message": f"{ANY}: {TOO_LARGE}"}, "rate_limited"),
        (429, {"message": "maximum context length"}, "rate_limited"),
        (400, {"code": "model_not_found"}, "model_not_found"),
        (400, {"code": "model_decommissioned"}, "model_not_found"),
        (400, {"message": "Incorrect API key provided: xa***yz."}, "auth"),
        (403, {"message": "Your API key is invalid."}, "auth"),
        (403, {"message": "Your API key does not have permission to use this."}, "forbidden"),
        (404, {"message": "The model `gpt-9` does not exist"}, "model_not_found"),
        (404, {"message": "model 'llama9' not found, try pulling it first"}, "model_not_found"),
        (404, {"message": "Invalid URL (POST /v1/chat)"}, "model_not_found"),
        (404, {"message": "Resource not found"}, "model_not_found"),
        (404, {"message": "No endpoints found for x/y."}, "model_not_found"),
        (404, {"message": "Conversation 'model' not found."}, "not_found"),
        (402, {}, "quota"),
        (418, {}, "bad_request"),
        (503, {"type": "server_error"}, "overloaded"),
        (504, {}, "timeout"),
        (599, {}, "server_error"),
    ],
)
def test_the_code_tells_before_the_status(
    status: int, error: dict[str, object], kind: FailureKind
) -> None:
    assert read(status, {"error": error}).kind == kind


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry_after": "7"}, 7),
        ({"retry_after": " 1.5 "}, 1.5),
        ({"retry_after_ms": "250", "retry_after": "7"}, 0.25),
        ({"retry_after": "Wed, 21 Oct 2026 07:28:00 GMT"}, None),  # by whose clock?
        (
            {
                "retry_after": "Wed, 21 Oct 2026 07:28:00 GMT",
                "date": "Wed, 21 Oct 2026 07:27:15 GMT",
            },
            45,
        ),
        (
            {
                "retry_after": "Wed, 21 Oct 2026 07:28:00 GMT",
                "date": "Wed, 21 Oct 2026 07:28:15 GMT",
            },
            0,
        ),
        (
            {
                "retry_after": "Wed, 21 Oct 2026 07:28:00 -0000",
                "date": "Wed, 21 Oct 2026 09:27:30 +0200",
            },
            30,
        ),
        ({"retry_after": "soon", "date": "Wed, 21 Oct 2026 07:28:15 GMT"}, None),
        ({"retry_after": "Wed, 99 Oct 2026 07:28:00 GMT", "date": "x"}, None),
        ({"retry_after": "-1"}, None),
        ({}, None),
    ],
)
def test_when_to_try_again(headers: dict[str, str], seconds: float | None) -> None:
    assert read(429, None, **headers).retry_after == seconds


def test_what_the_client_is_told() -> None:
    bad = read(400, {"error": {"message": "No.", "param": "top_k"}}).client_error()
    assert isinstance(bad, InvalidRequest)
    assert (bad.message, bad.param) == ("No.", "top_k")
    too_long = read(400, {"error": {"code": "context_length_exceeded"}}).client_error()
    assert isinstance(too_long, ContextLengthExceeded)
    missing = read(404, {"error": {"message": "secret-deployment"}}).client_error()
    assert isinstance(missing, ModelNotAvailable)
    assert "secret" not in missing.message
    assert read(401, {"error": {"message": "Bad key"}}).client_error() is None


@pytest.mark.parametrize("status", [400, 413, 422])
def test_what_the_client_must_mend_is_not_tried_elsewhere(status: int) -> None:
    assert read(status).client_error() is not None
    assert read(500).client_error() is None


@pytest.mark.parametrize(
    ("text", "scrubbed"),
    [
        ("key sk-proj-abc***def0 is wrong", "key [removed] is wrong"),
        ("in organization org-abcdef012 on", "in organization [removed] on"),
        ("Authorization: Bearer abc.def", "Authorization: Bearer [removed]"),
        ("see https://u:p@host/path?sig=1#x now", "see https://host/path now"),
        ("a\x00b\nc", "a b c"),
        ("plain words, 12345 tokens", "plain words, 12345 tokens"),
    ],
)
def test_secrets_are_removed(text: str, scrubbed: str) -> None:
    assert scrub(text) == scrubbed


def test_messages_have_a_bounded_length() -> None:
    assert len(scrub("word " * 1000)) == MESSAGE_CHARACTERS_MAX


@pytest.mark.parametrize("status", [201, 204, 301, 307, 308])
def test_a_redirect_is_not_the_client_s_fault(status: int) -> None:
    failure = read(status, "Moved to https://api.example/v2")
    assert failure.client_error() is None


@given(st.integers(300, 599), st.binary(max_size=60))
def test_nothing_raises(status: int, body: bytes) -> None:
    read_failure(status, {b"retry-after": body}, body)
