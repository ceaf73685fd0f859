"""Why an OpenAI-compatible upstream refused or broke: its error answers, read as facts.

Servers of this protocol agree on little more than "some JSON with a message in it", so the object
is found in its several wrappings and the kind is told by code first, then by status, and for a
context overflow (what coding clients compact on) by its wording. Messages are scrubbed: no
credentials, no account names, no addresses' secrets, and a bounded length.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import msgspec

from adapters.codec import FailureKind, UpstreamFailure

MESSAGE_CHARACTERS_MAX = 1000

# Not `server_error`: OpenAI says it of every 5xx, where the status knows better.
_KIND_BY_CODE: Mapping[str, FailureKind] = {
    "context_length_exceeded": "context_length",
    "exceed_context_size_error": "context_length",  # llama.cpp
    "string_above_max_length": "context_length",
    "content_filter": "content_filter",
    "content_policy_violation": "content_filter",
    "model_not_found": "not_found",
    "insufficient_quota": "quota",
    "billing_hard_limit_reached": "quota",
    "invalid_api_key": "auth",
    "rate_limit_exceeded": "rate_limited",
    "server_is_overloaded": "overloaded",
    "overloaded_error": "overloaded",
}
_KIND_BY_STATUS: Mapping[int, FailureKind] = {
    400: "bad_request",
    401: "auth",
    402: "quota",
    403: "auth",
    404: "not_found",
    408: "timeout",
    409: "server_error",  # a conflict inside the provider: nothing the client can mend
    413: "too_large",
    415: "bad_request",
    422: "bad_request",
    429: "rate_limited",
    503: "overloaded",
    504: "timeout",
    529: "overloaded",
}
_CONTEXT_WORDS = re.compile(
    r"maximum context length|context[ _]?(?:length|window|size)|prompt is too long"
    r"|too many (?:input )?tokens",
    re.IGNORECASE,
)
_NUMBER = re.compile(rb"[0-9]{1,9}(?:\.[0-9]{1,9})?")

_SECRETS: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"(https?://)[^\s/@?#]*@"), r"\1"),  # user and password
    (re.compile(r"(https?://[^\s?#'\")>]*)[?#][^\s'\")>]*"), r"\1"),  # query and fragment
    (re.compile(r"\b(Bearer|Basic)\s+\S+", re.IGNORECASE), r"\1 [removed]"),
    (re.compile(r"\b(?:sk|pk|rk|gsk|xai|nvapi|hf|r8|key|fw|csk)[-_][\w*.-]{6,}"), "[removed]"),
    (re.compile(r"\b(?:org|proj|user|acct)[-_]\w{6,}"), "[removed]"),
    (re.compile(r"\bAIza[\w-]{10,}"), "[removed]"),
    (re.compile(r"(?=[\w*+/-]*\d)(?=[\w*+/-]*[A-Za-z])[\w*+/-]{32,}"), "[removed]"),
    (re.compile(r"[\x00-\x1f\x7f]+"), " "),
)


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
        return UpstreamFailure(kind, "", status, retry_after=_retry_after(headers))
    return _facts(error, status, _retry_after(headers))


def read_error_object(raw: msgspec.Raw) -> UpstreamFailure | None:
    """An `error` member inside an answer that began well; None where it is null."""
    error = _find(bytes(raw))
    if error is None:
        return None
    status = error.code if isinstance(error.code, int) and 400 <= error.code <= 599 else 500
    return _facts(error, status, None)


def scrub(message: str) -> str:
    """A provider's message without what is none of the client's business."""
    for pattern, stand_in in _SECRETS:
        message = pattern.sub(stand_in, message)
    message = message.strip()
    if len(message) > MESSAGE_CHARACTERS_MAX:
        message = message[: MESSAGE_CHARACTERS_MAX - 1] + "…"
    return message


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


def _facts(error: _Error, status: int, retry_after: float | None) -> UpstreamFailure:
    text = error.message if isinstance(error.message, str) else error.detail
    # Secrets may not survive by being cut in half, hence the room for the patterns to match.
    message = scrub(text[: 4 * MESSAGE_CHARACTERS_MAX]) if isinstance(text, str) else ""
    return UpstreamFailure(
        kind=_kind(status, error, message),
        message=message,
        status=status,
        param=error.param if isinstance(error.param, str) else None,
        retry_after=retry_after,
    )


def _kind(status: int, error: _Error | None, message: str) -> FailureKind:
    for word in (error.code, error.type) if error is not None else ():
        if isinstance(word, str) and word in _KIND_BY_CODE:
            return _KIND_BY_CODE[word]
    kind = _KIND_BY_STATUS.get(status) or (
        # A redirect, or a success that is none, says nothing of the request.
        "bad_request" if 400 <= status < 500 else "server_error"
    )
    if kind == "bad_request" and _CONTEXT_WORDS.search(message):
        return "context_length"
    return kind


def _retry_after(headers: Mapping[bytes, bytes]) -> float | None:
    """Seconds from `retry-after-ms` or `retry-after`; a date is no hint, clocks differ."""
    for name, per_second in ((b"retry-after-ms", 1000), (b"retry-after", 1)):
        match = _NUMBER.fullmatch(headers.get(name, b"").strip())
        if match is not None:
            return float(match[0]) / per_second
    return None
