"""Why a Gemini upstream refused or broke: its error answers, read as facts.

The kind is told by Google's canonical status first: a wrong key is a 400 there, and so is a prompt
that is too long; a file or a cached prompt that the request names and that is not there may be a
404, a 403 or a failed precondition. Google's OpenAI-compatible endpoint, and some servers in front,
wrap the error in a list.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import msgspec

from adapters.codec import FailureKind, UpstreamFailure
from adapters.failures import (
    blames_the_key,
    kind_of,
    missing,
    own_words,
    retry_after,
    scrub,
    status_in,
    words_of,
)

_KIND_BY_STATUS: Mapping[str, FailureKind] = {
    "UNAUTHENTICATED": "auth",
    "PERMISSION_DENIED": "forbidden",
    "FAILED_PRECONDITION": "forbidden",
    "NOT_FOUND": "not_found",
    "RESOURCE_EXHAUSTED": "rate_limited",
    "UNAVAILABLE": "overloaded",
    "DEADLINE_EXCEEDED": "timeout",
    "INTERNAL": "server_error",
    "UNKNOWN": "server_error",
    "ABORTED": "conflict",
    "CANCELLED": "server_error",
}
_KIND_BY_REASON: Mapping[str, FailureKind] = {
    "API_KEY_INVALID": "auth",
    "API_KEY_EXPIRED": "auth",
    "API_KEY_SERVICE_BLOCKED": "auth",
    "CONSUMER_INVALID": "auth",
    "CONSUMER_SUSPENDED": "auth",
    "SERVICE_DISABLED": "auth",
    "BILLING_DISABLED": "quota",
}
# Of a project without billing, and of a gateway in a country that Google does not serve.
_BILLING_WORDS = re.compile(r"\bbilling\b", re.IGNORECASE)
_PLACE_WORDS = re.compile(r"\buser location\b", re.IGNORECASE)
_NAMED_WORDS = re.compile(r"\bfile\b|\bcached ?content\b", re.IGNORECASE)
_REFERRING: frozenset[FailureKind] = frozenset(("forbidden", "not_found", "model_not_found"))
_CONTEXT_WORDS = re.compile(
    r"(?:input )?token count.{0,40}exceeds the maximum|exceeds the maximum number of tokens",
    re.IGNORECASE,
)
_USED_UP = "exceeded your current quota"
_DELAY = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)s")


class _Detail(msgspec.Struct, rename="camel"):
    reason: object = None
    retry_delay: object = None
    field_violations: object = None


class _Error(msgspec.Struct):
    code: object = None
    message: object = None
    status: object = None
    details: object = None


class _Body(msgspec.Struct):
    error: _Error | str | None = None


_decode_body = msgspec.json.Decoder(_Body | list[_Body] | str | None).decode
_decode_error = msgspec.json.Decoder(_Error | str | None).decode


def read_failure(status: int, headers: Mapping[bytes, bytes], body: bytes) -> UpstreamFailure:
    """An HTTP answer other than 200, as facts. The body may be anything."""
    error = _find(body)
    hint = retry_after(headers)
    if error is None:
        return UpstreamFailure(kind_of(status, ""), "", status, retry_after=hint)
    return _facts(error, status, hint)


def read_error_object(raw: bytes) -> UpstreamFailure | None:
    """An `error` member inside an answer that began well; None where it is null."""
    try:
        error: _Error | str | None = _decode_error(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        error = _Error()
    if error is None:
        return None
    if isinstance(error, str):
        error = _Error(message=error)
    return _facts(error, status_in(error.code), None)


def find_failure(body: bytes) -> UpstreamFailure | None:
    """An error that stands where an answer was expected; None where it is none."""
    error = _find(body)
    if error is None:
        return None
    return _facts(error, status_in(error.code), None)


def _find(body: bytes) -> _Error | None:
    try:
        found: _Body | list[_Body] | str | None = _decode_body(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    if isinstance(found, list):
        found = next((each for each in found if each.error is not None), None)
    error = found.error if isinstance(found, _Body) else found
    return _Error(message=error) if isinstance(error, str) else error


def _facts(error: _Error, status: int, hint: float | None) -> UpstreamFailure:
    details = _details(error.details)
    words = words_of(error.message)
    delay = next((found for each in details if (found := _seconds(each.retry_delay))), None)
    return UpstreamFailure(
        kind=_kind(error, status, words, details, delay),
        message=scrub(words),
        status=status,
        param=_param(details),
        retry_after=hint if hint is not None else delay,
    )


def _kind(
    error: _Error, status: int, message: str, details: list[_Detail], delay: float | None
) -> FailureKind:
    for each in details:
        if isinstance(each.reason, str) and each.reason in _KIND_BY_REASON:
            return _KIND_BY_REASON[each.reason]
    if blames_the_key(message):
        return "auth"
    word = error.status if isinstance(error.status, str) else ""
    kind = _KIND_BY_STATUS.get(word) or kind_of(status, message)
    if kind in _REFERRING and _NAMED_WORDS.search(own_words(message)):
        return "bad_request"  # something that the request names is not there, not the model
    if kind == "not_found":
        return missing(message)
    if kind == "forbidden" and _BILLING_WORDS.search(own_words(message)):
        return "quota"
    if kind == "forbidden" and _PLACE_WORDS.search(own_words(message)):
        return "auth"
    if kind == "bad_request" and _CONTEXT_WORDS.search(message):
        return "context_length"
    if kind == "rate_limited" and delay is None and _USED_UP in message:
        return "quota"  # said of every limit, but without a time to wait for it is used up
    return kind


def _details(raw: object) -> list[_Detail]:
    found = raw if isinstance(raw, list) else []
    return [msgspec.convert(each, _Detail) for each in found if isinstance(each, dict)]


def _param(details: list[_Detail]) -> str | None:
    for each in details:
        violations = each.field_violations
        if isinstance(violations, list) and violations and isinstance(violations[0], dict):
            field = violations[0].get("field")
            return field if isinstance(field, str) and field else None
    return None


def _seconds(delay: object) -> float | None:
    """A `google.protobuf.Duration` in JSON: `34.5s`."""
    match = _DELAY.fullmatch(delay) if isinstance(delay, str) else None
    return float(match[1]) if match is not None else None
