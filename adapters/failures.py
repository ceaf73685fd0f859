"""What the error answers of all providers have in common: statuses, wordings, when to come back.

Messages are scrubbed before anyone sees them: no credentials, no account names, no addresses'
secrets, and a bounded length.

What a message says may take an upstream out of rotation for everybody, and messages repeat what
the client sent: names of fields, models, files. So a wording counts only in the provider's own
words (`own_words`), and what is not certainly the operator's to mend is taken for the request's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from adapters.codec import FailureKind

MESSAGE_CHARACTERS_MAX = 1000

_NOT_FOUND = 404
_KIND_BY_STATUS: Mapping[int, FailureKind] = {
    400: "bad_request",
    401: "auth",
    402: "quota",
    403: "forbidden",
    408: "timeout",
    409: "conflict",
    413: "too_large",
    415: "bad_request",
    422: "bad_request",
    425: "conflict",  # too early (RFC 8470): the same request may be said again
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
# Of a key, not of what a key may do: that is another provider's or model's, not everybody's.
_KEY_WORDS = re.compile(
    r"(?:incorrect|invalid|expired|missing|unknown) api[ _-]?key"
    r"|(?:this|your|the)? ?(?:api[ _-]?key|oauth token|access token)"
    r" (?:provided )?(?:is|was|has been)? ?"
    r"(?:not valid|invalid|expired|not found|revoked|disabled|deactivated|reported as leaked)"
    r"|method doesn't allow unregistered callers",
    re.IGNORECASE,
)
_MODEL_WORDS = re.compile(
    r"\b(?:models?|deployments?|endpoints?|routes?|url|path)\b"
    r"|^(?:404 )?(?:resource |page )?not found\W*$",
    re.IGNORECASE,
)
_NOT_OWN = re.compile(r"[:\"`]|(?<!\w)'")  # an apostrophe is no quotation mark
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


def words_of(message: object) -> str:
    """A provider's message as it came, to be understood and not to be shown; "" for no text."""
    return message[: 4 * MESSAGE_CHARACTERS_MAX].strip() if isinstance(message, str) else ""


def scrub(message: object) -> str:
    """A provider's message without what is none of the client's business; empty for no text."""
    # Secrets may not survive by being cut in half, hence the room for the patterns to match.
    message = words_of(message)
    for pattern, stand_in in _SECRETS:
        message = pattern.sub(stand_in, message)
    message = message.strip()
    if len(message) > MESSAGE_CHARACTERS_MAX:
        message = message[: MESSAGE_CHARACTERS_MAX - 1] + "…"
    return message


def own_words(message: str) -> str:
    """A message's words up to the first that may be the client's: a quotation, or behind a
    colon."""
    return _NOT_OWN.split(message, maxsplit=1)[0]


def blames_the_key(message: str) -> bool:
    """Whether it says that the credential itself is no good."""
    return _KEY_WORDS.match(own_words(message)) is not None


def missing(message: str) -> FailureKind:
    """What a 404 is about: the model or the path, which our catalogue names, or something else.

    One that says nothing comes from what stands in front of a provider that is not there.
    """
    if not message or _MODEL_WORDS.search(own_words(message)):
        return "model_not_found"
    return "not_found"


def kind_of(status: int, message: str) -> FailureKind:
    """The kind of an HTTP answer other than 200, by its status and its wording."""
    if status == _NOT_FOUND:
        return missing(message)
    kind = _KIND_BY_STATUS.get(status) or (
        # A redirect, or a success that is none, says nothing of the request.
        "bad_request" if 400 <= status < 500 else "server_error"
    )
    if kind == "bad_request" and _CONTEXT_WORDS.search(message):
        return "context_length"
    return "auth" if kind == "forbidden" and blames_the_key(message) else kind


def status_in(code: object) -> int:
    """The HTTP status that an error inside an answer names; 500 where it names none."""
    return code if isinstance(code, int) and 400 <= code <= 599 else 500


def retry_after(headers: Mapping[bytes, bytes]) -> float | None:
    """Seconds from `retry-after-ms` or `retry-after`.

    A date (RFC 9110 §10.2.3) is taken by the answer's own `date`, since clocks differ. The
    `x-ratelimit-reset-…` of OpenAI and Anthropic are no hints: they tell when a limit is whole
    again, which is long after the moment at which it lets the next request in.
    """
    for name, per_second in ((b"retry-after-ms", 1000), (b"retry-after", 1)):
        match = _NUMBER.fullmatch(headers.get(name, b"").strip())
        if match is not None:
            return float(match[0]) / per_second
    then, now = _moment(headers.get(b"retry-after")), _moment(headers.get(b"date"))
    if then is None or now is None:
        return None
    return max(0.0, (then - now).total_seconds())


def _moment(date: bytes | None) -> datetime | None:
    if date is None:
        return None
    try:
        found = parsedate_to_datetime(date.decode("latin-1"))
    except (ValueError, TypeError, OverflowError):
        return None
    return found.replace(tzinfo=UTC) if found.tzinfo is None else found
