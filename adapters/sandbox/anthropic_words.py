"""How Anthropic refuses."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from adapters.sandbox.behaviours import Unshapeable
from adapters.sandbox.models import Model, find
from adapters.sandbox.script import Json, Refused, encode, moved, page
from adapters.sandbox.shapes import Path

REQUEST_ID = "req_sandbox"
HEADERS = [("request-id", REQUEST_ID)]

_TYPES: Mapping[int, str] = {
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    503: "api_error",
    504: "timeout_error",
    529: "overloaded_error",
}
_WANTED: Mapping[str, str] = {
    "a string": "string",
    "a boolean": "boolean",
    "an integer": "integer",
    "a decimal": "number",
    "an object": "dictionary",
    "an array": "list",
}


def error_object(type: str, message: str, code: str | None = None) -> Json:  # noqa: A002
    """Anthropic's error envelope."""
    details = {"details": {"error_code": code}} if code else {}
    return {
        "type": "error",
        "error": {"type": type, "message": message, **details},
        "request_id": REQUEST_ID,
    }


def refused(
    message: str,
    status: int = 400,
    headers: Sequence[tuple[str, str]] = (),
    code: str | None = None,
) -> Refused:
    """A refusal in Anthropic's envelope."""
    kind = _TYPES.get(status, "invalid_request_error")
    return Refused(status, encode(error_object(kind, message, code)), [*HEADERS, *headers])


def check_headers(headers: Mapping[bytes, bytes]) -> None:
    """Any key will do, in either header; and there has to be a version."""
    bearer = headers.get(b"authorization", b"").strip().lower().removeprefix(b"bearer")
    if not headers.get(b"x-api-key", b"").strip() and not bearer.strip():
        raise refused("x-api-key header is required", 401)
    version = headers.get(b"anthropic-version")
    if version is None:
        raise refused("anthropic-version: header is required")
    if version not in (b"2023-06-01", b"2026-10-21"):
        raise refused(f'anthropic-version: "{version.decode("latin-1")}" is not a valid version')


def found_model(name: str) -> Model:
    """The model of that name, if it writes messages."""
    model = find(name)
    if model is None or model.kind != "chat":
        raise refused(f"model: {name}", 404)
    return model


def unshapeable(error: Unshapeable) -> Refused:
    """No value has the shape that a schema describes."""
    where = f"tools: {error.tool}" if error.tool else "output_config.format.schema"
    return refused(f"{where}: Invalid schema: {error}")


def trouble(model: Model, name: str) -> Refused:
    """What a failing model answers."""
    kind = model.refuses
    assert kind is not None
    match kind:
        case 413 | 502:
            return page(kind, "Request Entity Too Large" if kind == 413 else "Bad Gateway")
        case 404:
            return refused(f"model: {name}", 404)
        case 429:
            hint = model.hint.headers if model.hint is not None else ()
            return refused(_MESSAGES[429], 429, hint)
        case "redirect":
            return moved()
        case "no_page":
            return page(404, "Not Found")
        case "no_reference":
            return refused("File not found: file_sandbox", 404)
        case "no_credit":
            return refused(
                "Your credit balance is too low to access the Anthropic API. Please go to Plans & "
                "Billing to upgrade or purchase credits."
            )
        case "context":
            return refused("prompt is too long: 9000 tokens > 8192 maximum")
        case "content":
            return refused("Output blocked by content filtering policy")
        case _:
            return refused(_MESSAGES[kind], kind)


_MESSAGES: Mapping[int, str] = {
    400: "`temperature` is deprecated for this model.",
    401: "invalid x-api-key",
    402: "There is an issue with your billing or payment information.",
    403: "Your API key does not have permission to use the specified resource.",
    408: "Request timed out",
    409: "Another request is changing this resource.",
    415: "Unsupported media type",
    422: "Unprocessable entity: none of the messages is the user's.",
    425: "Too early",
    429: "This request would exceed your organization's rate limit of 3 requests per minute "
    "(org: 00000000-0000-4000-8000-000000000000, model: sandbox-error-429). For details, refer "
    "to: https://docs.claude.com/en/api/rate-limits.",
    500: "Internal server error",
    503: "Service temporarily unavailable",
    504: "The request took too long to process.",
    529: "Overloaded",
}


class AnthropicWording:
    """Anthropic's sentences about single fields, which are pydantic's."""

    def unknown(self, at: Path, name: str) -> Refused:
        """The object at `at` has a member that nobody knows."""
        return refused(f"{spelled((*at, name))}: Extra inputs are not permitted")

    def missing(self, at: Path) -> Refused:
        """There has to be something at `at`."""
        return refused(f"{spelled(at)}: Field required")

    def wrong_type(self, at: Path, wanted: str, value: object) -> Refused:
        """`wanted` is a phrase such as `a string`."""
        return refused(f"{spelled(at)}: Input should be a valid {_WANTED.get(wanted, wanted)}")

    def not_offered(self, at: Path, values: Sequence[str], value: object) -> Refused:
        """A string that is none of `values`."""
        *most, last = (f"'{each}'" for each in values)
        offered = f"{', '.join(most)} or {last}" if most else last
        return refused(f"{spelled(at)}: Input should be {offered}")

    def out_of_range(
        self, at: Path, *, value: float, whole: bool, least: bool, limit: float
    ) -> Refused:
        """A number below the least or above the most that is allowed."""
        side = "greater" if least else "less"
        return refused(f"{spelled(at)}: Input should be {side} than or equal to {limit}")

    def wrong_length(self, at: Path, *, length: int, least: bool, limit: int) -> Refused:
        """An array that is too short or too long."""
        side = "least" if least else "most"
        return refused(
            f"{spelled(at)}: List should have at {side} {limit} item{'s' * (limit != 1)} after "
            f"validation, not {length}"
        )

    def mismatch(self, at: Path, pattern: str) -> Refused:
        """A string that does not match."""
        return refused(f"{spelled(at)}: String should match pattern {json.dumps(pattern)}")

    def within(self, at: Path, kind: str) -> Path:
        """Anthropic names the kind of a union."""
        return (*at, kind)


WORDING = AnthropicWording()


def spelled(at: Path) -> str:
    """A path as Anthropic writes it: `messages.0.content`."""
    return ".".join(map(str, at))
