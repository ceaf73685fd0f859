"""Why an Anthropic upstream refused or broke: its error answers, read as facts.

The kind is told by Anthropic's word for it, which is all there is inside a stream, then by status
and wording. An exhausted account is a 400 there, and must not look like the client's mistake; nor
the client's mistake like an exhausted account, whatever the field is called that it got wrong.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import msgspec

from adapters.codec import FailureKind, UpstreamFailure
from adapters.failures import blames_the_key, kind_of, missing, retry_after, scrub, words_of
from adapters.raw import UNREADABLE

# Not `invalid_request_error`: its wording tells more.
_KIND_BY_TYPE: Mapping[str, FailureKind] = {
    "authentication_error": "auth",
    "permission_error": "forbidden",
    "billing_error": "quota",
    "not_found_error": "not_found",
    "request_too_large": "too_large",
    "rate_limit_error": "rate_limited",
    "timeout_error": "timeout",
    "overloaded_error": "overloaded",
}
_STATUS_BY_TYPE: Mapping[str, int] = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "billing_error": 402,
    "permission_error": 403,
    "not_found_error": 404,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "timeout_error": 504,
    "overloaded_error": 529,
}
# What SDKs go on from by themselves, once they are told.
_TOLD_CODES = frozenset(("thread_not_found", "thread_unsupported_request"))
# What it says of a field has the field's name in front of a colon.
_NO_CREDIT = re.compile(r"[^:]*credit balance is too low[^:]*", re.IGNORECASE)

_ABSENT = msgspec.Raw()


class _Details(msgspec.Struct):
    error_code: object = None


class _Error(msgspec.Struct):
    type: object = None
    message: object = None
    details: msgspec.Raw = _ABSENT


class _Envelope(msgspec.Struct):
    """`message` stands alone where something in front of the provider answered."""

    error: _Error | str | None = None
    message: object = None


_decode_envelope = msgspec.json.Decoder(_Envelope | None).decode
_decode_details = msgspec.json.Decoder(_Details | None).decode
_decode_error = msgspec.json.Decoder(_Error | str | None).decode


def read_failure(status: int, headers: Mapping[bytes, bytes], body: bytes) -> UpstreamFailure:
    """An HTTP answer other than 200, as facts. The body may be anything."""
    try:
        envelope = _decode_envelope(body) or _Envelope()
    except UNREADABLE:
        envelope = _Envelope()
    found = envelope.error if envelope.error is not None else _Error(message=envelope.message)
    return _facts(found, status, retry_after(headers))


def read_error_object(raw: msgspec.Raw) -> UpstreamFailure:
    """The `error` member of an event, or of an answer that began well."""
    try:
        found = _decode_error(raw) if raw else None
    except UNREADABLE:
        found = None
    error = _Error() if found is None else found
    word = error.type if isinstance(error, _Error) else None
    status = _STATUS_BY_TYPE.get(word, 500) if isinstance(word, str) else 500
    return _facts(error, status, None)


def _facts(error: _Error | str, status: int, retry_seconds: float | None) -> UpstreamFailure:
    if isinstance(error, str):
        error = _Error(message=error)
    words = words_of(error.message)
    details = _details(error.details)
    kind = _kind(error.type, status, words)
    return UpstreamFailure(
        kind="not_found" if kind == "model_not_found" and details else kind,
        message=scrub(words),
        status=status,
        retry_after=retry_seconds,
        details=details,
    )


def _details(raw: msgspec.Raw) -> dict[str, object]:
    try:
        code = (_decode_details(raw) or _Details()).error_code if raw else None
    except UNREADABLE:
        return {}
    return {"error_code": code} if isinstance(code, str) and code in _TOLD_CODES else {}


def _kind(word: object, status: int, message: str) -> FailureKind:
    known = _KIND_BY_TYPE.get(word) if isinstance(word, str) else None
    if known == "not_found":
        return missing(message)
    if known == "forbidden":
        return "auth" if blames_the_key(message) else known
    kind = known or kind_of(status, message)
    return "quota" if kind == "bad_request" and _NO_CREDIT.fullmatch(message) else kind
