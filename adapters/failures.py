"""What the error answers of all providers have in common: statuses, wordings, when to come back.

Messages are scrubbed before anyone sees them: no credentials, no account names, no addresses'
secrets, and a bounded length.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from adapters.codec import FailureKind

MESSAGE_CHARACTERS_MAX = 1000

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


def scrub(message: object) -> str:
    """A provider's message without what is none of the client's business; empty for no text."""
    if not isinstance(message, str):
        return ""
    # Secrets may not survive by being cut in half, hence the room for the patterns to match.
    message = message[: 4 * MESSAGE_CHARACTERS_MAX]
    for pattern, stand_in in _SECRETS:
        message = pattern.sub(stand_in, message)
    message = message.strip()
    if len(message) > MESSAGE_CHARACTERS_MAX:
        message = message[: MESSAGE_CHARACTERS_MAX - 1] + "…"
    return message


def kind_of(status: int, message: str) -> FailureKind:
    """The kind of an HTTP answer other than 200, by its status and its wording."""
    kind = _KIND_BY_STATUS.get(status) or (
        # A redirect, or a success that is none, says nothing of the request.
        "bad_request" if 400 <= status < 500 else "server_error"
    )
    if kind == "bad_request" and _CONTEXT_WORDS.search(message):
        return "context_length"
    return kind


def status_in(code: object) -> int:
    """The HTTP status that an error inside an answer names; 500 where it names none."""
    return code if isinstance(code, int) and 400 <= code <= 599 else 500


def retry_after(headers: Mapping[bytes, bytes]) -> float | None:
    """Seconds from `retry-after-ms` or `retry-after`; a date is no hint, clocks differ."""
    for name, per_second in ((b"retry-after-ms", 1000), (b"retry-after", 1)):
        match = _NUMBER.fullmatch(headers.get(name, b"").strip())
        if match is not None:
            return float(match[0]) / per_second
    return None
