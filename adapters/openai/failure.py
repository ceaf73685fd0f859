"""Why an OpenAI-compatible upstream refused or broke: its error answers, read as facts.

Servers of this protocol agree on little more than "some JSON with a message in it", so the object
is found in its several wrappings and the kind is told by code first, then by status, and for a
context overflow (what coding clients compact on) by its wording.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from adapters.codec import FailureKind, UpstreamFailure
from adapters.failures import blames_the_key, kind_of, retry_after, scrub, status_in, words_of

# Not `server_error`: OpenAI says it of every 5xx, where the status knows better.
_KIND_BY_CODE: Mapping[str, FailureKind] = {
    "context_length_exceeded": "context_length",
    "exceed_context_size_error": "context_length",  # llama.cpp
    "string_above_max_length": "context_length",
    "content_filter": "content_filter",
    "content_policy_violation": "content_filter",
    "model_not_found": "model_not_found",
    "model_decommissioned": "model_not_found",  # Groq, with status 400
    "DeploymentNotFound": "model_not_found",  # Azure
    "insufficient_quota": "quota",
    "billing_hard_limit_reached": "quota",
    "billing_not_active": "quota",
    "invalid_api_key": "auth",
    "rate_limit_exceeded": "rate_limited",
    "server_is_overloaded": "overloaded",
    "overloaded_error": "overloaded",
}

_BAD_REQUEST = 400
_NOT_FOUND = 404
_RATE_LIMITED = 429
# OpenAI, of a request with more tokens than the limit of a minute: no waiting will help it, and
# what it says of one request may not keep those of all other customers away.
_OVER_LIMIT_WORDS = "Request too large for "


class _Error(msgspec.Struct):
    """An error object; `detail` is where FastAPI servers put the message."""

    message: object = None
    type: object = None
    code: object = None
    param: object = None
    detail: object = None
    error: msgspec.Raw = msgspec.Raw()


_decode_error = msgspec.json.Decoder(_Error | list[_Error] | str | None).decode


def read_failure(status: int, headers: Mapping[bytes, bytes], body: bytes) -> UpstreamFailure:
    """An HTTP answer other than 200, as facts. The body may be anything."""
    error = _find(body)
    if error is None:
        kind = _kind(status, None, "")
        return UpstreamFailure(kind, "", status, retry_after=retry_after(headers))
    return _facts(error, status, retry_after(headers))


def read_error_object(raw: msgspec.Raw) -> UpstreamFailure | None:
    """An `error` member inside an answer that began well; None where it is null."""
    error = _find(bytes(raw))
    if error is None:
        return None
    return _facts(error, status_in(error.code), None)


def _find(body: bytes) -> _Error | None:
    """The innermost error object of a body; None where there is none."""
    try:
        found: _Error | list[_Error] | str | None = _decode_error(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    if isinstance(found, list):  # Google's compatible endpoint wraps errors in a list
        found = found[0] if found else None
    if isinstance(found, str):
        return _Error(message=found)
    if found is not None and found.error:
        return _find(bytes(found.error)) or found
    return found


def _facts(error: _Error, status: int, retry_seconds: float | None) -> UpstreamFailure:
    words = words_of(error.message if isinstance(error.message, str) else error.detail)
    return UpstreamFailure(
        kind=_kind(status, error, words),
        message=scrub(words),
        status=status,
        param=error.param if isinstance(error.param, str) else None,
        retry_after=retry_seconds,
    )


def _kind(status: int, error: _Error | None, message: str) -> FailureKind:
    if status == _RATE_LIMITED and message.startswith(_OVER_LIMIT_WORDS):
        return "over_limit"
    for word in (error.code, error.type) if error is not None else ():
        if isinstance(word, str) and word in _KIND_BY_CODE:
            return _KIND_BY_CODE[word]
    names = error is not None and error.param not in (None, "", "model")
    if names and status == _NOT_FOUND:
        return "bad_request"  # something that the request names is not there, not the model
    if status == _NOT_FOUND and error is not None and error.param == "model":
        return "model_not_found"
    if not names and status == _BAD_REQUEST and blames_the_key(message):
        return "auth"  # xAI
    return kind_of(status, message)
