"""Our refusals in Anthropic's envelope: an `error` of `type`, `message` and `details`.

`error.type` is Anthropic's word for the status, the stable word of the error is `error_code` in
`details`. A 402 has a type of its own and the figures that every surface's has. Claude Code makes
room in its conversation when a message begins with "prompt is too long".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from adapters.anthropic import wire
from adapters.codec import Headers
from adapters.errors import APIError, ContextLengthExceeded, InsufficientBalance
from adapters.limits import Left, anthropic_headers
from adapters.refusals import balance_of, message_of, retry_headers

_TOO_LONG = "prompt is too long"
_TYPE_BY_STATUS: Mapping[int, str] = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}


class AnthropicRefusals:
    """The refusing half of each Anthropic downstream codec."""

    def error_body(self, error: APIError, request_id: str) -> bytes:
        return msgspec.json.encode(_envelope(error, request_id))

    def error_headers(self, error: APIError) -> Headers:
        return retry_headers(error)

    def limit_headers(self, limits: Sequence[Left], now: float) -> Headers:
        return anthropic_headers(limits, now)

    def error_event(self, error: APIError, request_id: str) -> bytes:
        return wire.event("error", _envelope(error, request_id))


def _envelope(error: APIError, request_id: str) -> dict[str, object]:
    return {"type": "error", "error": _error_object(error, request_id), "request_id": request_id}


def _error_object(error: APIError, request_id: str) -> dict[str, object]:
    told: dict[str, object] = {
        "type": _type(error),
        "message": _message(error, request_id),
        "details": {"error_code": error.code, **error.details},
    }
    if isinstance(error, InsufficientBalance):
        told |= balance_of(error)
    return told


def _type(error: APIError) -> str:
    if isinstance(error, InsufficientBalance):
        return error.code
    otherwise = "invalid_request_error" if error.status < 500 else "api_error"
    return _TYPE_BY_STATUS.get(error.status, otherwise)


def _message(error: APIError, request_id: str) -> str:
    message = message_of(error, request_id)
    if isinstance(error, ContextLengthExceeded) and not message.lower().startswith(_TOO_LONG):
        return f"{_TOO_LONG}: {message}"
    return message
