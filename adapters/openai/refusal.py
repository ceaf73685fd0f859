"""Our refusals in OpenAI's envelope: `{"error": {message, type, param, code}}`.

`code` is the stable word of the error; `type` is the constant `farebox_error`, save for a 402.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from adapters import sse
from adapters.codec import Headers
from adapters.errors import APIError, ContextLengthExceeded, InsufficientBalance
from adapters.limits import Left, openai_headers
from adapters.refusals import balance_of, message_of, retry_headers


class OpenAIRefusals:
    """The refusing half of each OpenAI downstream codec."""

    def error_body(self, error: APIError, request_id: str) -> bytes:
        return msgspec.json.encode({"error": _error_object(error, request_id)})

    def error_headers(self, error: APIError) -> Headers:
        return retry_headers(error)

    def limit_headers(self, limits: Sequence[Left], now: float) -> Headers:
        return openai_headers(limits)

    def error_event(self, error: APIError, request_id: str) -> bytes:
        return sse.event(self.error_body(error, request_id))


def _error_object(error: APIError, request_id: str) -> dict[str, object]:
    if isinstance(error, InsufficientBalance):
        return {
            "message": error.message,
            "type": error.code,
            "param": None,
            "code": "insufficient_credit",
            **balance_of(error),
        }
    return {
        **error.details,
        "message": message_of(error, request_id),
        "type": "farebox_error",
        "param": error.param,
        "code": _code(error),
    }


def _code(error: APIError) -> str:
    if isinstance(error, ContextLengthExceeded):
        return "context_length_exceeded"
    return error.code
