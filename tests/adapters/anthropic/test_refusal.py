"""Our errors as Anthropic's SDKs read them, and Anthropic's as we read them."""

from __future__ import annotations

import json

import anthropic
import httpx2
import pytest

from adapters import errors
from adapters.anthropic.failure import read_failure
from adapters.anthropic.refusal import AnthropicRefusals

REFUSALS = AnthropicRefusals()
NO_CREDIT = errors.InsufficientBalance(
    "Top up.",
    balance_usd="0.10",
    reserved_usd="0.05",
    required_usd="1.234567890123",
    affordable_output_tokens=12,
)


def raised(error: errors.APIError) -> anthropic.APIStatusError:
    """The exception of the official SDK."""
    head = {**dict(REFUSALS.error_headers(error)), "x-should-retry": "false"}

    def answer(request: httpx2.Request) -> httpx2.Response:
        content = REFUSALS.error_body(error, "req_1")
        return httpx2.Response(error.status, headers=head, content=content)

    http = httpx2.Client(transport=httpx2.MockTransport(answer))
    with (
        anthropic.Anthropic(api_key="k", http_client=http) as client,
        pytest.raises(anthropic.APIStatusError) as caught,
    ):
        client.messages.create(model="m", max_tokens=1, messages=[{"role": "user", "content": "x"}])
    return caught.value


@pytest.mark.parametrize(
    ("error", "kind", "word"),
    [
        (errors.InvalidRequest("no"), anthropic.BadRequestError, "invalid_request_error"),
        (errors.InvalidAPIKey("no"), anthropic.AuthenticationError, "authentication_error"),
        (errors.PermissionDenied("no"), anthropic.PermissionDeniedError, "permission_error"),
        (errors.ModelNotAvailable("no"), anthropic.NotFoundError, "not_found_error"),
        (errors.RequestTooLarge("no"), anthropic.APIStatusError, "request_too_large"),
        (errors.RateLimited("no"), anthropic.RateLimitError, "rate_limit_error"),
        (errors.RequestTimeout("no"), anthropic.APIStatusError, "invalid_request_error"),
        (errors.UpstreamUnavailable("no"), anthropic.InternalServerError, "api_error"),
        (errors.UpstreamOverloaded("no"), anthropic.InternalServerError, "overloaded_error"),
        (errors.UpstreamTimeout("no"), anthropic.InternalServerError, "timeout_error"),
        (errors.InternalError("no"), anthropic.InternalServerError, "api_error"),
        (NO_CREDIT, anthropic.APIStatusError, "insufficient_prepaid_balance"),
    ],
)
def test_the_sdk_raises_its_own_classes(
    error: errors.APIError, kind: type[Exception], word: str
) -> None:
    found = raised(error)
    assert isinstance(found, kind)
    body = found.body
    assert isinstance(body, dict)
    assert body["type"] == "error"
    assert body["error"]["type"] == word
    assert body["error"]["details"]["error_code"] == error.code
    assert body["request_id"] == "req_1"


def test_a_402_has_its_figures() -> None:
    body = REFUSALS.error_body(NO_CREDIT, "req_1")
    assert json.loads(body)["error"] == {
        "type": "insufficient_prepaid_balance",
        "message": "Top up.",
        "details": {"error_code": "insufficient_prepaid_balance"},
        "balance_usd": 0.10,
        "reserved_usd": 0.05,
        "required_usd": 1.234567890123,
        "affordable_output_tokens": 12,
    }
    assert b'"required_usd":1.234567890123' in body
    assert ("x-should-retry", "false") in REFUSALS.error_headers(NO_CREDIT)


def test_claude_code_knows_an_overflow_by_its_first_words() -> None:
    for said in ("prompt is too long: 9 tokens > 8 maximum", "maximum context length is 8"):
        body = json.loads(REFUSALS.error_body(errors.ContextLengthExceeded(said), "r"))
        assert body["error"]["message"].startswith("prompt is too long: ")
        assert body["error"]["message"].count("prompt is too long") == 1


def test_our_own_errors_tell_only_the_request_id() -> None:
    body = json.loads(REFUSALS.error_body(errors.InternalError("a secret"), "req_7"))
    assert "secret" not in json.dumps(body)
    assert "req_7" in body["error"]["message"]


def test_edge_14_an_upstreams_failure_keeps_its_kind_in_a_stream() -> None:
    for error, word in (
        (errors.UpstreamUnavailable("no"), "api_error"),
        (errors.UpstreamOverloaded("no"), "overloaded_error"),
        (errors.UpstreamTimeout("no"), "timeout_error"),
        (errors.RateLimited("no"), "rate_limit_error"),
    ):
        name, data = REFUSALS.error_event(error, "req_1").decode().rstrip("\n").split("\n")
        assert name == "event: error"
        assert json.loads(data.removeprefix("data: "))["error"]["type"] == word


# -- what an upstream says ------------------------------------------------------------------------


def failure_body(word: str, message: str) -> bytes:
    return json.dumps({"type": "error", "error": {"type": word, "message": message}}).encode()


@pytest.mark.parametrize(
    ("status", "word", "message", "kind"),
    [
        (400, "invalid_request_error", "messages: bad", "bad_request"),
        (
            400,
            "invalid_request_error",
            "prompt is too long: 9 tokens > 8 maximum",
            "context_length",
        ),
        (400, "invalid_request_error", "Your credit balance is too low to access", "quota"),
        (401, "authentication_error", "invalid x-api-key", "auth"),
        (402, "billing_error", "pay", "quota"),
        (403, "permission_error", "no", "forbidden"),
        (403, "permission_error", "OAuth token has been revoked. Get another.", "auth"),
        (404, "not_found_error", "model: x", "model_not_found"),
        (404, "not_found_error", "Not Found", "model_not_found"),
        (404, "not_found_error", "File not found: file_model", "not_found"),
        (409, "invalid_request_error", "busy", "conflict"),
        (413, "request_too_large", "big", "too_large"),
        (429, "rate_limit_error", "slow", "rate_limited"),
        (500, "api_error", "oops", "server_error"),
        (529, "overloaded_error", "Overloaded", "overloaded"),
        (503, "", "x", "overloaded"),
    ],
)
def test_kinds_of_failures(status: int, word: str, message: str, kind: str) -> None:
    found = read_failure(status, {b"retry-after": b"7"}, failure_body(word, message))
    assert (found.kind, found.message, found.status) == (kind, message, status)
    assert found.retry_after == 7


def test_messages_are_scrubbed() -> None:
    found = read_failure(
        400, {}, failure_body("invalid_request_error", "key sk-ant-api03-abcdef is")
    )
    assert "abcdef" not in found.message


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b"null", b'{"error":"gone"}', b"\xff"])
def test_bodies_may_be_anything(body: bytes) -> None:
    assert read_failure(500, {}, body).kind == "server_error"


@pytest.mark.parametrize(
    ("status", "word", "code"),
    [
        (404, "not_found_error", "thread_not_found"),
        (400, "invalid_request_error", "thread_unsupported_request"),
    ],
)
def test_the_sdk_learns_what_became_of_its_thread(status: int, word: str, code: str) -> None:
    told = {"type": word, "message": "No thread.", "details": {"error_code": code, "id": "x"}}
    failure = read_failure(status, {}, json.dumps({"type": "error", "error": told}).encode())
    error = failure.client_error()
    assert error is not None
    found = raised(error)
    assert found.status_code == status
    body = found.body
    assert isinstance(body, dict)
    assert body["error"] == {"type": word, "message": "No thread.", "details": {"error_code": code}}


@pytest.mark.parametrize("details", [None, 7, [], {}, {"error_code": 7}, {"error_code": "other"}])
def test_other_details_are_the_providers_own(details: object) -> None:
    error = {"type": "not_found_error", "message": "model: x", "details": details}
    failure = read_failure(404, {}, json.dumps({"error": error}).encode())
    assert (failure.kind, failure.details) == ("model_not_found", {})
