"""How OpenAI refuses, on Chat Completions, Responses and Embeddings alike."""

from __future__ import annotations

import re
from base64 import b64decode
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

from adapters.sandbox.behaviours import Unshapeable
from adapters.sandbox.models import Model, Trouble, find
from adapters.sandbox.script import Json, Refused, encode, moved, page
from adapters.sandbox.shapes import Path, a_string, an_object, decoded

SERVER_ERROR_MESSAGE = "The server had an error while processing your request. Sorry about that!"
OVERLOADED_MESSAGE = (
    "The server is currently overloaded with other requests. Sorry about that! You can retry your "
    "request."
)


def error_object(
    message: str,
    type: str = "invalid_request_error",  # noqa: A002 - the member's name
    param: str | None = None,
    code: str | None = None,
) -> Json:
    """OpenAI's error envelope."""
    return {"error": {"message": message, "type": type, "param": param, "code": code}}


def refused(
    status: int,
    message: str,
    *,
    type: str = "invalid_request_error",  # noqa: A002 - the member's name
    param: str | None = None,
    code: str | None = None,
    headers: Sequence[tuple[str, str]] = (),
) -> Refused:
    """A refusal in OpenAI's envelope."""
    return Refused(status, encode(error_object(message, type, param, code)), headers)


def check_authorization(headers: Mapping[bytes, bytes]) -> None:
    """Any key will do, but there has to be one."""
    scheme, _, key = headers.get(b"authorization", b"").strip().partition(b" ")
    if scheme.lower() != b"bearer" or not key.strip():
        raise refused(
            401,
            "You didn't provide an API key. You need to provide your API key in an Authorization "
            "header using Bearer auth (i.e. Authorization: Bearer YOUR_KEY).",
        )


def read_object(body: bytes) -> Json:
    """The JSON object of a body."""
    found = decoded(body)
    if found is None:
        raise refused(400, "We could not parse the JSON body of your request.")
    return found


def check_model(fields: Json) -> None:
    """There has to be a model's name."""
    model = fields.get("model")
    if model is None or model == "":
        raise refused(400, "you must provide a model parameter")
    if not isinstance(model, str):
        raise WORDING.wrong_type(("model",), "a string", model)


def found_model(name: str) -> Model:
    """The model of that name."""
    model = find(name)
    if model is None:
        raise refused(
            404,
            f"The model `{name}` does not exist or you do not have access to it.",
            code="model_not_found",
        )
    return model


def unshapeable(error: Unshapeable) -> Refused:
    """No value has the shape that a schema describes."""
    where = f"function '{error.tool}'" if error.tool else "response_format"
    return refused(400, f"Invalid schema for {where}: {error}.", code="invalid_json_schema")


# -- what does not fit ----------------------------------------------------------------------------


class OpenAIWording:
    """OpenAI's sentences about single parameters."""

    def unknown(self, at: Path, name: str) -> Refused:
        """The object at `at` has a member that nobody knows."""
        param = spelled((*at, name))
        return refused(400, f"Unknown parameter: '{param}'.", param=param, code="unknown_parameter")

    def missing(self, at: Path) -> Refused:
        """There has to be something at `at`."""
        param = spelled(at)
        return refused(
            400,
            f"Missing required parameter: '{param}'.",
            param=param,
            code="missing_required_parameter",
        )

    def wrong_type(self, at: Path, wanted: str, value: object) -> Refused:
        """`wanted` is a phrase such as `a string`."""
        param = spelled(at)
        return refused(
            400,
            f"Invalid type for '{param}': expected {wanted}, but got {_type_name(value)} instead.",
            param=param,
            code="invalid_type",
        )

    def not_offered(self, at: Path, values: Sequence[str], value: object) -> Refused:
        """A string that is none of `values`."""
        *most, last = (f"'{each}'" for each in values)
        offered = f"{', '.join(most)}, and {last}" if most else last
        return refused(
            400,
            f"Invalid value: '{value}'. Supported values are: {offered}.",
            param=spelled(at),
            code="invalid_value",
        )

    def out_of_range(
        self, at: Path, *, value: float, whole: bool, least: bool, limit: float
    ) -> Refused:
        """A number below the least or above the most that is allowed."""
        kind = "integer" if whole else "decimal"
        side, short, sign = ("below minimum", "min", ">=") if least else _ABOVE
        return refused(
            400,
            f"Invalid '{spelled(at)}': {kind} {side} value. Expected a value {sign} {limit}, but "
            f"got {value} instead.",
            param=spelled(at),
            code=f"{kind}_{side.split()[0]}_{short}_value",
        )

    def wrong_length(self, at: Path, *, length: int, least: bool, limit: int) -> Refused:
        """An array that is too short or too long."""
        empty = least and length == 0
        side, bound = ("short", "minimum") if least else ("long", "maximum")
        fault = "empty array" if empty else f"array too {side}"
        got = "empty array" if empty else f"array with length {length}"
        code = "array_below_min_length" if least else "array_above_max_length"
        return refused(
            400,
            f"Invalid '{spelled(at)}': {fault}. Expected an array with {bound} length {limit}, "
            f"but got an {got} instead.",
            param=spelled(at),
            code="empty_array" if empty else code,
        )

    def mismatch(self, at: Path, pattern: str) -> Refused:
        """A string that does not match."""
        return refused(
            400,
            f"Invalid '{spelled(at)}': string does not match pattern. Expected a string that "
            f"matches the pattern '{pattern}'.",
            param=spelled(at),
            code="invalid_value",
        )

    def within(self, at: Path, kind: str) -> Path:
        """OpenAI does not name the kind of a union."""
        return at


_ABOVE = ("above maximum", "max", "<=")
WORDING = OpenAIWording()


def spelled(at: Path) -> str:
    """A path as OpenAI writes it: `messages[0].content`."""
    out = ""
    for step in at:
        out += f"[{step}]" if isinstance(step, int) else f".{step}" if out else step
    return out


def _type_name(value: object) -> str:
    names = {
        type(None): "null",
        bool: "a boolean",
        int: "an integer",
        float: "a decimal",
        str: "a string",
        list: "an array",
    }
    return names.get(type(value), "an object")


# -- troubles -------------------------------------------------------------------------------------


def trouble(model: Model, name: str) -> Refused:
    """What a failing model answers on Chat Completions and Embeddings."""
    if model.refuses == 404:
        return refused(
            404,
            f"The model `{name}` does not exist or you do not have access to it.",
            code="model_not_found",
        )
    assert model.refuses is not None
    found = _TROUBLES[model.refuses]()
    if model.hint is not None and model.refuses in _HINTED:
        found.headers += model.hint.headers
    return found


_HINTED = (429, 503)


_TROUBLES: Mapping[Trouble, Callable[[], Refused]] = {
    400: partial(
        refused,
        400,
        "Unsupported value: 'temperature' does not support 0.5 with this model. Only the default "
        "(1) value is supported.",
        param="temperature",
        code="unsupported_value",
    ),
    401: partial(
        refused,
        401,
        "Incorrect API key provided: sk-sandb****************0000. You can find your API key at "
        "https://platform.openai.com/account/api-keys.",
        code="invalid_api_key",
    ),
    402: partial(
        refused, 402, "Insufficient Balance", type="unknown_error", code="invalid_request_error"
    ),
    403: partial(
        refused,
        403,
        "Country, region, or territory not supported",
        type="request_forbidden",
        code="unsupported_country_region_territory",
    ),
    408: partial(refused, 408, "Request timed out.", type="timeout"),
    409: partial(refused, 409, "Another request is changing this resource.", type="conflict"),
    413: partial(page, 413, "Request Entity Too Large"),
    415: partial(refused, 415, "Unsupported media type."),
    422: partial(refused, 422, "Unprocessable entity: none of the messages is the user's."),
    425: partial(refused, 425, "Too early: the connection is not established.", type="too_early"),
    429: partial(
        refused,
        429,
        "Rate limit reached for sandbox-error-429 in organization org-sandbox0000 on requests per "
        "min (RPM): Limit 3, Used 3, Requested 1. Please try again in 1s. Visit "
        "https://platform.openai.com/account/rate-limits to learn more.",
        type="requests",
        code="rate_limit_exceeded",
    ),
    500: partial(refused, 500, SERVER_ERROR_MESSAGE, type="server_error"),
    502: partial(page, 502, "Bad Gateway"),
    503: partial(
        refused,
        503,
        OVERLOADED_MESSAGE,
        type="server_error",
    ),
    504: partial(page, 504, "Gateway Time-out"),
    529: partial(refused, 529, "Overloaded", type="overloaded_error"),
    "no_credit": partial(
        refused,
        429,
        "You exceeded your current quota, please check your plan and billing details. For more "
        "information on this error, read the docs: "
        "https://platform.openai.com/docs/guides/error-codes/api-errors.",
        type="insufficient_quota",
        code="insufficient_quota",
    ),
    "no_page": partial(page, 404, "Not Found"),
    "no_reference": partial(
        refused,
        404,
        "Previous response with id 'resp_sandbox' not found.",
        param="previous_response_id",
        code="previous_response_not_found",
    ),
    "redirect": moved,
    "context": partial(
        refused,
        400,
        "This model's maximum context length is 8192 tokens. However, your messages "
        "resulted in 9000 tokens. Please reduce the length of the messages.",
        param="messages",
        code="context_length_exceeded",
    ),
    "content": partial(
        refused,
        400,
        "The response was filtered due to the prompt triggering our content management "
        "policy. Please modify your prompt and retry.",
        param="prompt",
        code="content_filter",
    ),
}


# -- rules of both surfaces ------------------------------------------------------------------------

_DATA_URL = re.compile(r"data:image/[\w.+-]+;base64,(?P<data>.+)", re.DOTALL)


def image_url(at: Path, value: object) -> object:
    """An image on the web, or in the URL itself."""
    if not isinstance(value, str):
        raise WORDING.wrong_type(at, "a string", value)
    if value.startswith(("https://", "http://")):
        return value
    found = _DATA_URL.fullmatch(value)
    try:
        b64decode(found["data"] if found else "?", validate=True)
    except ValueError:
        raise refused(
            400,
            f"Invalid '{spelled(at)}'. Expected a valid URL, but got a value with an invalid "
            "format.",
            param=spelled(at),
            code="invalid_value",
        ) from None
    return value


def check_json_is_asked(texts: Iterable[str], message: str, param: str) -> None:
    """Whoever wants any JSON has to say so in words, too."""
    if not any("json" in text.lower() for text in texts):
        raise refused(400, message, param=param)


# -- strict schemas -------------------------------------------------------------------------------

_UNSUPPORTED = ("oneOf", "allOf", "not", "if", "then", "else", "patternProperties")


def check_strict(schema: object, where: str, param: str, code: str) -> None:
    """What `strict: true` demands of a schema, at every level."""
    if (fault := _strict_fault(schema, ())) is not None:
        raise refused(400, f"Invalid schema for {where}: {fault}", param=param, code=code)


def _strict_fault(given: object, at: tuple[str, ...]) -> str | None:
    schema = an_object(given)
    context = f"In context=({', '.join(map(repr, at))}{',' if len(at) == 1 else ''})"
    for name in _UNSUPPORTED:
        if name in schema:
            return f"{context}, '{name}' is not permitted."
    properties = an_object(schema.get("properties"))
    if schema.get("type") == "object" or properties:
        if schema.get("additionalProperties") is not False:
            return f"{context}, 'additionalProperties' is required to be supplied and to be false."
        required = schema.get("required")
        listed = required if isinstance(required, list) else []
        extra = [each for each in listed if each not in properties]
        missing = [each for each in properties if each not in listed]
        if extra or missing:
            named = f"Missing '{missing[0]}'." if missing else f"Extra required key '{extra[0]}'."
            return (
                f"{context}, 'required' is required to be supplied and to be an array including "
                f"every key in properties. {named}"
            )
    for step, inner in _inner(schema):
        if (fault := _strict_fault(inner, (*at, *step))) is not None:
            return fault
    return None


def _inner(schema: Json) -> Sequence[tuple[tuple[str, ...], object]]:
    """The schemas inside a schema, and where they stand."""
    found: list[tuple[tuple[str, ...], object]] = []
    for name in ("properties", "$defs", "definitions"):
        found += [((name, key), each) for key, each in an_object(schema.get(name)).items()]
    if "items" in schema:
        found.append((("items",), schema["items"]))
    choices = schema.get("anyOf")
    for index, each in enumerate(choices if isinstance(choices, list) else ()):
        found.append((("anyOf", str(index)), each))
    return found


# -- tools and shapes, said in nearly the same way on both surfaces -------------------------------


def chosen(choice: object) -> tuple[bool, frozenset[str] | None]:
    """Whether tools may be called, and which where not all: what a `tool_choice` says."""
    if choice == "none":
        return False, None
    given = an_object(choice)
    kind = a_string(given.get("type"))
    if kind == "allowed_tools":
        listed = an_object(given.get(kind)) or given
        tools = listed.get("tools")
        names = [_name(tool) for tool in (tools if isinstance(tools, list) else ())]
        return True, frozenset(names)
    return True, frozenset([_name(given)]) if given else None


def _name(choice: object) -> str:
    given = an_object(choice)
    nested = an_object(given.get(a_string(given.get("type"))))
    return a_string(given.get("name")) or a_string(nested.get("name"))
