"""What a client may be told when a call fails (contract §4).

One tree for all surfaces: an error carries facts (status, stable code, whose fault, when to try
again) and each surface's codec renders them in its own SDK's envelope. Facts are attributes,
never text to be parsed. What cannot happen is an assertion, not an error of this tree.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

Fault = Literal["client", "upstream", "ours"]


class APIError(Exception):
    """A refusal or failure that the caller hears of.

    `param` names the request field at fault, `retry_after` is in seconds (None: no hint),
    `should_retry` is sent as `x-should-retry` where it is not None, `details` is added to the
    error object as it is, and `headers` to the answer.
    """

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal_error"
    fault: ClassVar[Fault] = "ours"

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        retry_after: float | None = None,
        should_retry: bool | None = None,
        details: Mapping[str, object] | None = None,
        headers: Sequence[tuple[str, str]] = (),
    ) -> None:
        super().__init__(message)
        self.headers = headers
        self.message = message
        self.param = param
        self.retry_after = retry_after
        self.should_retry = should_retry
        self.details = details or {}


# -- the client's fault ---------------------------------------------------------------------------


class RequestError(APIError):
    """The caller can mend it."""

    fault: ClassVar[Fault] = "client"


class InvalidRequest(RequestError):
    status, code = 400, "invalid_request"


class ContextLengthExceeded(InvalidRequest):
    """A 400 that coding clients recognise by OpenAI's code and wording."""


class RequestNotExpressible(InvalidRequest):
    """A field that the provider's protocol has no place for, and that may not be left out.

    Another upstream of the model may know it.
    """


class RequestTimeout(RequestError):
    """Head or body did not arrive in time."""

    status, code = 408, "invalid_request"


class Cancelled(RequestError):
    """The caller stopped the response through another request: it left, in a way."""

    status, code = 499, "client_disconnected"


class UnsupportedEncoding(RequestError):
    status, code = 415, "invalid_request"


class HeadTooLarge(RequestError):
    status, code = 431, "invalid_request"


class RequestTooLarge(RequestError):
    status, code = 413, "request_too_large"


class InvalidAPIKey(RequestError):
    status, code = 401, "invalid_api_key"


class InsufficientBalance(RequestError):
    """402: the reservation does not fit. Amounts are exact decimal strings in USD.

    The figures are rendered as JSON numbers in the error object, written from these strings so
    that no float touches them.
    """

    status, code = 402, "insufficient_prepaid_balance"

    def __init__(
        self,
        message: str,
        *,
        balance_usd: str,
        reserved_usd: str,
        required_usd: str,
        affordable_output_tokens: int,
    ) -> None:
        super().__init__(message, should_retry=False)
        self.balance_usd = balance_usd
        self.reserved_usd = reserved_usd
        self.required_usd = required_usd
        self.affordable_output_tokens = affordable_output_tokens


class PermissionDenied(RequestError):
    status, code = 403, "permission_denied"


class AccountSuspended(RequestError):
    status, code = 403, "account_suspended"


class NotFound(RequestError):
    status, code = 404, "not_found"


class MethodNotAllowed(RequestError):
    status, code = 405, "not_found"


class ModelNotAvailable(RequestError):
    status, code = 404, "model_not_available"


class IdempotencyKeyInUse(RequestError):
    """The same request is still running; its answer can be had later."""

    status, code = 409, "idempotency_key_in_use"


class IdempotentAnswerLost(RequestError):
    """The same request was answered and charged before, but the answer is not here."""

    status, code = 409, "idempotent_answer_lost"


class IdempotencyKeyReused(RequestError):
    """Another request came with the same key."""

    status, code = 422, "idempotency_key_reused"


class RateLimited(RequestError):
    status, code = 429, "rate_limit_exceeded"


# -- the upstream's fault -------------------------------------------------------------------------


class UpstreamError(APIError):
    """No upstream of the model served."""

    status, code = 502, "upstream_unavailable"
    fault: ClassVar[Fault] = "upstream"


class UpstreamUnavailable(UpstreamError):
    """Every upstream failed (502)."""


class UpstreamOverloaded(UpstreamError):
    """Every upstream is overloaded or resting, or its circuit is open (503)."""

    status = 503


class UpstreamTimeout(UpstreamError):
    status, code = 504, "upstream_timeout"


# -- our fault ------------------------------------------------------------------------------------


class InternalError(APIError):
    """Only the request id reaches the client."""


class LedgerUnavailable(InternalError):
    """The ledger cannot know now whether the request may be paid for."""

    status, code = 503, "ledger_unavailable"


class Overloaded(InternalError):
    """We shed load ourselves."""

    status, code = 503, "overloaded"


# -- codecs ---------------------------------------------------------------------------------------


class CodecError(Exception):
    """What an adapter raises when it cannot read or write."""


class UpstreamProtocolViolation(CodecError):
    """The upstream sent something its protocol does not allow."""
