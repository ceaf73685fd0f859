"""Our refusals in OpenAI's envelope: `{"error": {message, type, param, code}}`.

`code` is the stable word of the error; `type` is the constant `farebox_error`, save for a 402. An
error of ours (`InternalError`) tells a fixed sentence and the request id, whatever it says inside.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import msgspec

from adapters import sse
from adapters.codec import Headers
from adapters.errors import (
    APIError,
    ContextLengthExceeded,
    InsufficientBalance,
    InternalError,
)

RETRY_AFTER_SECONDS_MAX = 60  # some SDKs sleep for whatever they are told
_RETRY_AFTER_STATUS = (429, 503)

_OUR_FAULT: Mapping[str, str] = {
    "ledger_unavailable": "Whether this call can be paid for is not known now. Try again shortly.",
    "overloaded": "The gateway is overloaded. Try again shortly.",
}
_INTERNAL = "Something went wrong in the gateway."


class OpenAIRefusals:
    """The refusing half of each OpenAI downstream codec."""

    def error_body(self, error: APIError, request_id: str) -> bytes:
        return msgspec.json.encode({"error": _error_object(error, request_id)})

    def error_headers(self, error: APIError) -> Headers:
        """`retry-after` on every 429 and 503, in whole seconds; `x-should-retry` where decided."""
        headers = []
        if error.status in _RETRY_AFTER_STATUS:
            seconds = min(max(1, math.ceil(error.retry_after or 1)), RETRY_AFTER_SECONDS_MAX)
            headers.append(("retry-after", str(seconds)))
        if error.should_retry is not None:
            headers.append(("x-should-retry", "true" if error.should_retry else "false"))
        return headers

    def error_event(self, error: APIError, request_id: str) -> bytes:
        return sse.event(self.error_body(error, request_id))


def _error_object(error: APIError, request_id: str) -> dict[str, object]:
    if isinstance(error, InsufficientBalance):
        return {
            "message": error.message,
            "type": error.code,
            "param": None,
            "code": "insufficient_credit",
            # JSON numbers written from decimal strings, so that no float touches them.
            "balance_usd": msgspec.Raw(error.balance_usd),
            "reserved_usd": msgspec.Raw(error.reserved_usd),
            "required_usd": msgspec.Raw(error.required_usd),
            "affordable_output_tokens": error.affordable_output_tokens,
        }
    return {
        **error.details,
        "message": _message(error, request_id),
        "type": "farebox_error",
        "param": error.param,
        "code": _code(error),
    }


def _message(error: APIError, request_id: str) -> str:
    if not isinstance(error, InternalError) and type(error) is not APIError:
        return error.message
    return f"{_OUR_FAULT.get(error.code, _INTERNAL)} The request id is {request_id}."


def _code(error: APIError) -> str:
    if isinstance(error, ContextLengthExceeded):
        return "context_length_exceeded"
    return error.code
