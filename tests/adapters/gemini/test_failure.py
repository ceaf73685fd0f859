"""Google's error answers, read as facts."""

from __future__ import annotations

import json

import pytest

from adapters.codec import FailureKind, UpstreamFailure
from adapters.gemini.failure import read_error_object, read_failure

TYPES = "type.googleapis.com/google.rpc."


def read(status: int, error: object, **headers: str) -> UpstreamFailure:
    pairs = {name.replace("_", "-").encode(): value.encode() for name, value in headers.items()}
    return read_failure(status, pairs, json.dumps({"error": error}).encode())


@pytest.mark.parametrize(
    ("status", "error", "kind"),
    [
        (400, {"status": "INVALID_ARGUMENT", "message": "bad"}, "bad_request"),
        (400, {"status": "INVALID_ARGUMENT", "message": "API key not valid."}, "auth"),
        (400, {"status": "INVALID_ARGUMENT", "details": [{"reason": "API_KEY_INVALID"}]}, "auth"),
        (400, {"status": "FAILED_PRECONDITION", "message": "User location is not sup"}, "auth"),
        (
            400,
            {
                "status": "INVALID_ARGUMENT",
                "message": "The input token count (1200000) exceeds the maximum number of tokens"
                " allowed (1048576).",
            },
            "context_length",
        ),
        (400, {"status": "FAILED_PRECONDITION", "message": "Enable billing, please."}, "quota"),
        (
            400,
            {"status": "FAILED_PRECONDITION", "message": "The File x is not in an ACTIVE state"},
            "bad_request",
        ),
        (400, {"status": "FAILED_PRECONDITION"}, "forbidden"),
        (403, {"status": "PERMISSION_DENIED"}, "forbidden"),
        (403, {"status": "PERMISSION_DENIED", "message": "API key expired."}, "auth"),
        (403, {"message": "CachedContent not found (or permission denied)"}, "bad_request"),
        (403, {"details": [{"reason": "BILLING_DISABLED"}]}, "quota"),
        (404, {"status": "NOT_FOUND", "message": "models/x is not found"}, "model_not_found"),
        (
            404,  # a name as long as a secret
            {"message": "models/gemini-2.5-flash-preview-native-audio-12-2025 is not found for"},
            "model_not_found",
        ),
        (404, {"status": "NOT_FOUND", "message": "Requested entity was not found."}, "not_found"),
        (404, {"status": "NOT_FOUND"}, "model_not_found"),
        (409, {"status": "ABORTED"}, "conflict"),
        (429, {"status": "RESOURCE_EXHAUSTED", "message": "slow down"}, "rate_limited"),
        (
            429,
            {"status": "RESOURCE_EXHAUSTED", "message": "You exceeded your current quota, please"},
            "quota",
        ),
        (500, {"status": "INTERNAL"}, "server_error"),
        (503, {"status": "UNAVAILABLE"}, "overloaded"),
        (504, {"status": "DEADLINE_EXCEEDED"}, "timeout"),
        (502, {}, "server_error"),
    ],
)
def test_the_canonical_status_tells_the_kind(
    status: int, error: dict[str, object], kind: FailureKind
) -> None:
    failure = read(status, error)
    assert (failure.kind, failure.status) == (kind, status)


def test_when_to_come_back_stands_in_the_details() -> None:
    error = {
        "status": "RESOURCE_EXHAUSTED",
        "message": "You exceeded your current quota, please check your plan.",
        "details": [{"@type": f"{TYPES}RetryInfo", "retryDelay": "34.5s"}],
    }
    failure = read(429, error)
    assert (failure.kind, failure.retry_after) == ("rate_limited", 34.5)
    assert read(429, error, retry_after="7").retry_after == 7


def test_the_field_at_fault_is_named() -> None:
    details = [{"@type": f"{TYPES}BadRequest", "fieldViolations": [{"field": "contents[0]"}]}]
    assert read(400, {"message": "no", "details": details}).param == "contents[0]"


def test_edge_48_an_error_in_a_list_is_read() -> None:
    body = json.dumps([{"error": {"code": 429, "message": "m", "status": "RESOURCE_EXHAUSTED"}}])
    failure = read_failure(429, {}, body.encode())
    assert (failure.kind, failure.message) == ("rate_limited", "m")


def test_secrets_are_scrubbed() -> None:
    assert "AIza" not in read(400, {"message": "key AIzaSyD1234567890abcdef is bad"}).message


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b"null", b"\xff", b'{"error":5}', b"[5]"])
def test_a_body_without_an_error_leaves_the_status(body: bytes) -> None:
    assert read_failure(503, {}, body) == UpstreamFailure("overloaded", "", 503)


def test_an_error_inside_an_answer_has_its_code() -> None:
    failure = read_error_object(b'{"code":503,"message":"busy","status":"UNAVAILABLE"}')
    assert failure == UpstreamFailure("overloaded", "busy", 503)
    assert read_error_object(b"null") is None
    broken = read_error_object(b"[1]")
    assert broken is not None
    assert broken.kind == "server_error"
