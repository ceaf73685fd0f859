"""How Gemini's API refuses."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence

from adapters.sandbox.behaviours import Unshapeable
from adapters.sandbox.models import Hint, Model, find
from adapters.sandbox.script import Json, Refused, encode, moved, page
from adapters.sandbox.shapes import Path

_STATUS: Mapping[int, str] = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    408: "DEADLINE_EXCEEDED",
    402: "FAILED_PRECONDITION",
    409: "ABORTED",
    415: "INVALID_ARGUMENT",
    422: "INVALID_ARGUMENT",
    425: "ABORTED",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
    529: "UNAVAILABLE",
}
_MESSAGES: Mapping[int, str] = {
    400: "API key expired. Please renew the API key.",
    401: "Request had invalid authentication credentials. Expected OAuth 2 access token, login "
    "cookie or other valid authentication credential.",
    402: "Billing is not enabled for project sandbox.",
    403: "Permission denied on resource project sandbox.",
    408: "Deadline expired before operation could complete.",
    409: "The operation was aborted.",
    415: "Unsupported media type.",
    422: "Unprocessable entity: none of the contents is the user's.",
    425: "Too early.",
    429: "You exceeded your current quota, please check your plan and billing details. For more "
    "information on this error, head to: https://ai.google.dev/gemini-api/docs/rate-limits.",
    500: "An internal error has occurred. Please retry or report in "
    "https://developers.generativeai.google/guide/troubleshooting",
    503: "The model is overloaded. Please try again later.",
    504: "The request timed out. Please try again.",
    529: "The model is overloaded. Please try again later.",
}
_TYPES: Mapping[str, str] = {
    "a string": "TYPE_STRING",
    "a boolean": "TYPE_BOOL",
    "an integer": "TYPE_INT32",
    "a decimal": "TYPE_FLOAT",
}
_QUOTA: Json = {
    "@type": "type.googleapis.com/google.rpc.QuotaFailure",
    "violations": [{"quotaId": "GenerateRequestsPerMinutePerProjectPerModel"}],
}


def error_object(status: int, message: str = "", details: Sequence[Json] = ()) -> Json:
    """Google's error envelope."""
    error: Json = {
        "code": status,
        "message": message or _MESSAGES[status],
        "status": _STATUS[status],
    }
    return {"error": {**error, "details": details} if details else error}


def refused(message: str, status: int = 400, details: Sequence[Json] = ()) -> Refused:
    """A refusal in Google's envelope."""
    return Refused(status, encode(error_object(status, message, details)))


def violated(at: Path, message: str) -> Refused:
    """A field that its service refuses, in the words that come from its own checks."""
    return refused(f"* GenerateContentRequest.{spelled(at)}: {message}\n")


def unreadable(at: Path, message: str) -> Refused:
    """A body that is no message of Google's."""
    violation: Json = {"description": message, **({"field": spelled(at)} if at else {})}
    details: Json = {
        "@type": "type.googleapis.com/google.rpc.BadRequest",
        "fieldViolations": [violation],
    }
    return refused(message, details=[details])


def check_key(headers: Mapping[bytes, bytes], query: Mapping[str, str]) -> None:
    """Any key will do, but there has to be one."""
    if not headers.get(b"x-goog-api-key", b"").strip() and not query.get("key"):
        raise refused(
            "Method doesn't allow unregistered callers (callers without established identity). "
            "Please use API Key or other form of API consumer identity to call this API.",
            403,
        )


def found_model(name: str, method: str = "generateContent") -> Model:
    """The model of that name, if it can do that."""
    model = find(name)
    wanted = "embedding" if method.endswith(("embedContent", "EmbedContents")) else "chat"
    if model is None or (method and model.kind != wanted):
        supported = f", or is not supported for {method}" if method else ""
        raise refused(
            f"models/{name} is not found for API version v1beta{supported}. Call ListModels to "
            "see the list of available models and their supported methods.",
            404,
        )
    return model


def unshapeable(error: Unshapeable) -> Refused:
    """No value has the shape that a schema describes."""
    where = f"function {error.tool}" if error.tool else "the response schema"
    return refused(f"The schema of {where} cannot be used: {error}.")


def trouble(model: Model, name: str) -> Refused:
    """What a failing model answers; an improper prompt is no failure here, but an answer."""
    kind = model.refuses
    assert kind is not None
    match kind:
        case 413 | 502:
            return page(kind, "Request Entity Too Large" if kind == 413 else "Bad Gateway")
        case 404:
            return refused(f"models/{name} is not found for API version v1beta.", 404)
        case 429:
            return _asked_too_much(model.hint)
        case "redirect":
            return moved()
        case "no_page":
            return page(404, "Error 404 (Not Found)!!1")
        case "no_reference":
            return refused("CachedContent not found (or permission denied)", 403)
        case "no_credit":
            return refused(_MESSAGES[429], 429, [_QUOTA])
        case "context":
            return refused(
                "The input token count (9000) exceeds the maximum number of tokens allowed (8192)."
            )
        case "content":
            return refused("The prompt was blocked.")
        case _:
            return refused(_MESSAGES[kind], kind)


def _asked_too_much(hint: Hint | None) -> Refused:
    """Google tells when to come back in words and in a detail. Without a time to wait the quota
    is that of a day; hence another wording where there is none."""
    if hint is None:
        return refused("Resource has been exhausted (e.g. check quota).", 429)
    retry: Json = {
        "@type": "type.googleapis.com/google.rpc.RetryInfo",
        "retryDelay": f"{hint.seconds:g}s",
    }
    message = f"{_MESSAGES[429]}\nPlease retry in {hint.seconds:g}s."
    return refused(message, 429, [_QUOTA, retry])


class GeminiWording:
    """Google's sentences about single fields."""

    def unknown(self, at: Path, name: str) -> Refused:
        """The object at `at` has a member that nobody knows."""
        where = f" at '{spelled(at)}'" if at else ""
        return unreadable(
            at, f'Invalid JSON payload received. Unknown name "{name}"{where}: Cannot find field.'
        )

    def missing(self, at: Path) -> Refused:
        """There has to be something at `at`."""
        return violated(at, f"{spelled(at[-1:])} is not specified")

    def wrong_type(self, at: Path, wanted: str, value: object) -> Refused:
        """`wanted` is a phrase such as `a string`."""
        where = spelled(at)
        if isinstance(value, list):
            return unreadable(
                at[:-1],
                f'Invalid JSON payload received. Unknown name "{at[-1] if at else ""}" at '
                f"'{spelled(at[:-1])}': Proto field is not repeating, cannot start list.",
            )
        kind = _TYPES.get(wanted, "TYPE_MESSAGE")
        return unreadable(at, f"Invalid value at '{where}' ({kind}), {json.dumps(value)}")

    def not_offered(self, at: Path, values: Sequence[str], value: object) -> Refused:
        """A string that is none of `values`."""
        return unreadable(
            at,
            f"Invalid value at '{spelled(at)}' (type.googleapis.com/google.ai.generativelanguage."
            f"v1beta.{str(at[-1]).capitalize()}), {json.dumps(value)}",
        )

    def out_of_range(
        self, at: Path, *, value: float, whole: bool, least: bool, limit: float
    ) -> Refused:
        """A number below the least or above the most that is allowed."""
        side = "at least" if least else "at most"
        return violated(at, f"must be {side} {limit}, but is {value}.")

    def wrong_length(self, at: Path, *, length: int, least: bool, limit: int) -> Refused:
        """An array that is too short or too long."""
        if least:
            return violated(at, f"{'.'.join(map(str, at[-3::2]))} must not be empty.")
        return violated(at, f"the number of elements must not exceed {limit}, but is {length}.")

    def mismatch(self, at: Path, pattern: str) -> Refused:
        """A string that does not match: only functions' names have to."""
        return violated(
            at,
            "Invalid function name. Must start with a letter or an underscore. Must be "
            "alphanumeric (a-z, A-Z, 0-9), underscores (_), dots (.), colons (:), or dashes (-), "
            "with a maximum length of 128.",
        )

    def within(self, at: Path, kind: str) -> Path:
        """Google does not name the kind of a union."""
        return at


WORDING = GeminiWording()
_HUMP = re.compile(r"(?<=[a-z0-9])([A-Z])")
_GAP = re.compile(r"_([a-z0-9])")


def spelled(at: Path) -> str:
    """A path as Google writes it: `contents[0].inline_data`."""
    out = ""
    for step in at:
        name = step if isinstance(step, int) else _HUMP.sub(r"_\1", step).lower()
        out += f"[{name}]" if isinstance(name, int) else f".{name}" if out else name
    return out


def camel(name: str) -> str:
    """A member's name in the one of Google's two spellings that is used here."""
    return _GAP.sub(lambda found: found[1].upper(), name)
