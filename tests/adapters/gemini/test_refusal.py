"""Our errors as Google's SDKs read them."""

from __future__ import annotations

import json

import pytest

from adapters import errors
from adapters.gemini.refusal import GeminiRefusals

REFUSALS = GeminiRefusals()


def body_of(error: errors.APIError) -> dict[str, object]:
    body = json.loads(REFUSALS.error_body(error, "req_1"))
    assert list(body) == ["error"]
    found = body["error"]
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errors.InvalidRequest("no"), "INVALID_ARGUMENT"),
        (errors.InvalidAPIKey("no"), "UNAUTHENTICATED"),
        (errors.PermissionDenied("no"), "PERMISSION_DENIED"),
        (errors.ModelNotAvailable("no"), "NOT_FOUND"),
        (errors.RequestTooLarge("no"), "INVALID_ARGUMENT"),
        (errors.RateLimited("no"), "RESOURCE_EXHAUSTED"),
        (errors.UpstreamUnavailable("no"), "UNAVAILABLE"),
        (errors.UpstreamTimeout("no"), "DEADLINE_EXCEEDED"),
        (errors.InternalError("no"), "INTERNAL"),
    ],
)
def test_the_status_is_a_number_and_googles_word(error: errors.APIError, status: str) -> None:
    found = body_of(error)
    assert (found["code"], found["status"]) == (error.status, status)
    assert found["details"][0] == {  # type: ignore[index] # it is a list
        "@type": "type.googleapis.com/google.rpc.ErrorInfo",
        "reason": error.code,
        "domain": "farebox",
    }


def test_the_field_at_fault_is_a_violation() -> None:
    found = body_of(errors.InvalidRequest("contents is required.", param="contents"))
    assert found["details"][1] == {  # type: ignore[index] # it is a list
        "@type": "type.googleapis.com/google.rpc.BadRequest",
        "fieldViolations": [{"field": "contents", "description": "contents is required."}],
    }


def test_when_to_retry_is_told_twice() -> None:
    error = errors.RateLimited("slow down", retry_after=12.2)
    assert ("retry-after", "13") in REFUSALS.error_headers(error)
    assert body_of(error)["details"][-1] == {  # type: ignore[index] # it is a list
        "@type": "type.googleapis.com/google.rpc.RetryInfo",
        "retryDelay": "13s",
    }


def test_a_402_has_exact_amounts() -> None:
    error = errors.InsufficientBalance(
        "Add credit.",
        balance_usd="0.100000000000000001",
        reserved_usd="0",
        required_usd="0.2",
        affordable_output_tokens=7,
    )
    assert b'"balance_usd":0.100000000000000001' in REFUSALS.error_body(error, "req_1")
    found = body_of(error)
    assert found["type"] == "insufficient_prepaid_balance"
    assert found["code"] == 402
    assert found["affordable_output_tokens"] == 7
    assert ("x-should-retry", "false") in REFUSALS.error_headers(error)


def test_our_own_faults_tell_only_the_request_id() -> None:
    message = body_of(errors.InternalError("SELECT secret"))["message"]
    assert isinstance(message, str)
    assert "secret" not in message
    assert "req_1" in message


def test_edge_77_a_stream_error_begins_with_error_and_has_a_numeric_code() -> None:
    event = REFUSALS.error_event(errors.UpstreamOverloaded("busy"), "req_1")
    assert event.startswith(b'data: {"error":{')
    assert event.endswith(b"\n\n")
    assert json.loads(event[6:])["error"]["code"] == 503
