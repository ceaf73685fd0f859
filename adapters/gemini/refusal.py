"""Our refusals in Google's envelope: `{"error": {code, message, status, details}}`.

`code` is the HTTP status as a number, `status` Google's word for it, and the stable word of the
error is the `reason` of the `ErrorInfo` in `details`. A 402 also carries the members that every
surface's has. In a stream the SDKs know an error by the first key of the event and its numeric
code, so `error` comes first and `code` is always one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from adapters import sse
from adapters.codec import Headers
from adapters.errors import APIError, InsufficientBalance
from adapters.limits import Left
from adapters.refusals import balance_of, message_of, retry_headers

_TYPES = "type.googleapis.com/google.rpc."
_DOMAIN = "farebox"
_CANONICAL: Mapping[int, str] = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    402: "RESOURCE_EXHAUSTED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    405: "NOT_FOUND",
    408: "DEADLINE_EXCEEDED",
    409: "ABORTED",
    413: "INVALID_ARGUMENT",
    415: "INVALID_ARGUMENT",
    422: "INVALID_ARGUMENT",
    429: "RESOURCE_EXHAUSTED",
    431: "INVALID_ARGUMENT",
    499: "CANCELLED",
    500: "INTERNAL",
    501: "UNIMPLEMENTED",
    502: "UNAVAILABLE",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}


class GeminiRefusals:
    """The refusing half of each Gemini downstream codec."""

    def error_body(self, error: APIError, request_id: str) -> bytes:
        return msgspec.json.encode({"error": _error_object(error, request_id)})

    def error_headers(self, error: APIError) -> Headers:
        """As on the OpenAI surface; Google's own SDKs read `RetryInfo` or nothing."""
        return retry_headers(error)

    def limit_headers(self, limits: Sequence[Left], now: float) -> Headers:
        """None: Google has no such headers."""
        return []

    def error_event(self, error: APIError, request_id: str) -> bytes:
        return sse.event(self.error_body(error, request_id))


def _error_object(error: APIError, request_id: str) -> dict[str, object]:
    status = _CANONICAL.get(error.status, "INTERNAL" if error.status >= 500 else "INVALID_ARGUMENT")
    found: dict[str, object] = {
        **error.details,
        "code": error.status,
        "message": message_of(error, request_id),
        "status": status,
        "details": _details(error),
    }
    if isinstance(error, InsufficientBalance):
        found |= {"type": error.code, **balance_of(error)}
    return found


def _details(error: APIError) -> list[dict[str, object]]:
    details: list[dict[str, object]] = [
        {"@type": f"{_TYPES}ErrorInfo", "reason": error.code, "domain": _DOMAIN}
    ]
    if error.param is not None:
        violation = {"field": error.param, "description": error.message}
        details.append({"@type": f"{_TYPES}BadRequest", "fieldViolations": [violation]})
    if (delay := dict(retry_headers(error)).get("retry-after")) is not None:
        details.append({"@type": f"{_TYPES}RetryInfo", "retryDelay": f"{delay}s"})
    return details
