"""What our refusals have in common on every surface, whatever envelope they go out in.

An error of ours (`InternalError`) tells a fixed sentence and the request id, whatever it says
inside. A 402 carries its figures, and every 429 and 503 says when to come back.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import msgspec

from adapters.codec import Headers
from adapters.errors import APIError, InsufficientBalance, InternalError

RETRY_AFTER_SECONDS_MAX = 60  # some SDKs sleep for whatever they are told
_RETRY_AFTER_STATUS = (429, 503)

_OUR_FAULT: Mapping[str, str] = {
    "ledger_unavailable": "Whether this call can be paid for is not known now. Try again shortly.",
    "overloaded": "The gateway is overloaded. Try again shortly.",
}
_INTERNAL = "Something went wrong in the gateway."


def retry_headers(error: APIError) -> Headers:
    """`retry-after` on every 429 and 503, in whole seconds; `x-should-retry` where decided."""
    headers = []
    if error.status in _RETRY_AFTER_STATUS:
        seconds = min(max(1, math.ceil(error.retry_after or 1)), RETRY_AFTER_SECONDS_MAX)
        headers.append(("retry-after", str(seconds)))
    if error.should_retry is not None:
        headers.append(("x-should-retry", "true" if error.should_retry else "false"))
    return headers


def message_of(error: APIError, request_id: str) -> str:
    """What the caller is told in words."""
    if not isinstance(error, InternalError) and type(error) is not APIError:
        return error.message
    return f"{_OUR_FAULT.get(error.code, _INTERNAL)} The request id is {request_id}."


def balance_of(error: InsufficientBalance) -> dict[str, object]:
    """The figures of a 402, which every surface carries inside `error`.

    JSON numbers written from decimal strings, so that no float touches them.
    """
    return {
        "balance_usd": msgspec.Raw(error.balance_usd),
        "reserved_usd": msgspec.Raw(error.reserved_usd),
        "required_usd": msgspec.Raw(error.required_usd),
        "affordable_output_tokens": error.affordable_output_tokens,
    }
