"""What the sandbox provider is asked, read as strictly as OpenAI reads it.

The gateway passes on what it does not need, so that something behind it has to mind. Whatever
OpenAI refuses is refused here, with its status, its wording and its error object; each parameter
has its check in a table, and what is in no table is an unknown parameter.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import msgspec

Json = dict[str, object]
Check = Callable[[str, object], None]

DIMENSIONS = 256
DIMENSIONS_MAX = 2048
INPUTS_MAX = 2048

_TOKENS_PER_MESSAGE = 4
_BYTES_PER_TOKEN = 4
_TOOL_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_CAPS = ("max_tokens", "max_completion_tokens")
_ROLES = ("system", "assistant", "user", "function", "tool", "developer")
_PARTS = ("text", "image_url", "input_audio", "file", "refusal")
_FORMATS = ("json_object", "json_schema", "text")


class Refused(Exception):
    """A refusal in OpenAI's words, or with `page` an HTML page of what stands before OpenAI.

    `headers` are those of the whole answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str = "invalid_request_error",  # noqa: A002 - the member's name
        param: str | None = None,
        code: str | None = None,
        headers: Sequence[tuple[str, str]] = (),
        page: bool = False,
    ) -> None:
        super().__init__(message)
        error = {"message": message, "type": type, "param": param, "code": code}
        self.status = status
        self.headers = [("content-type", "text/html" if page else "application/json"), *headers]
        self.body = (
            b"<html><head><title>%d %b</title></head></html>" % (status, message.encode())
            if page
            else msgspec.json.encode({"error": error})
        )


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """What the scripts go by. `cap` is the most tokens of each of `n` answers, None without."""

    model: str
    messages: Sequence[Json]
    prompt_tokens: int
    stream: bool
    include_usage: bool
    cap: int | None
    n: int
    stop: tuple[str, ...]
    service_tier: str
    fields: Json

    @property
    def last_text(self) -> str:
        """The text of the last message."""
        return "".join(_texts(self.messages[-1].get("content")))


@dataclass(frozen=True, slots=True)
class EmbeddingsRequest:
    """`inputs` are what tells the vectors apart, as bytes."""

    model: str
    inputs: tuple[bytes, ...]
    prompt_tokens: int
    dimensions: int
    base64: bool


def read_chat(body: bytes) -> ChatRequest:
    """Read the body of `POST /v1/chat/completions`. Raises Refused."""
    fields = _read_object(body)
    model = _model_of(fields)
    messages = _messages_of(fields)
    _check_parameters(fields, _CHAT)
    _check_combinations(fields)
    stream = fields.get("stream") is True
    options = fields.get("stream_options")
    stop = fields.get("stop") or ()
    cap = next((fields[name] for name in _CAPS if fields.get(name) is not None), None)
    n = fields.get("n")
    return ChatRequest(
        model=model,
        messages=messages,
        prompt_tokens=_prompt_tokens(messages),
        stream=stream,
        include_usage=isinstance(options, dict) and options.get("include_usage") is True,
        cap=cap if isinstance(cap, int) else None,
        n=n if isinstance(n, int) else 1,
        stop=(stop,) if isinstance(stop, str) else tuple(_strings(stop)),
        service_tier=str(fields.get("service_tier") or ""),
        fields=fields,
    )


def read_embeddings(body: bytes) -> EmbeddingsRequest:
    """Read the body of `POST /v1/embeddings`. Raises Refused."""
    fields = _read_object(body)
    model = _model_of(fields)
    _check_parameters(fields, _EMBEDDINGS)
    inputs, tokens = _inputs_of(fields)
    dimensions = fields.get("dimensions")
    return EmbeddingsRequest(
        model=model,
        inputs=inputs,
        prompt_tokens=tokens,
        dimensions=dimensions if isinstance(dimensions, int) else DIMENSIONS,
        base64=fields.get("encoding_format") == "base64",
    )


def check_authorization(headers: Mapping[bytes, bytes]) -> None:
    """Any key will do, but there has to be one."""
    scheme, _, key = headers.get(b"authorization", b"").strip().partition(b" ")
    if scheme.lower() != b"bearer" or not key.strip():
        raise Refused(
            401,
            "You didn't provide an API key. You need to provide your API key in an Authorization "
            "header using Bearer auth (i.e. Authorization: Bearer YOUR_KEY).",
        )


# -- the body -------------------------------------------------------------------------------------


def _read_object(body: bytes) -> Json:
    try:
        decoded: object = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        decoded = None
    if not isinstance(decoded, dict):
        raise Refused(400, "We could not parse the JSON body of your request.")
    return decoded


def _model_of(fields: Json) -> str:
    model = fields.get("model")
    if model is None or model == "":
        raise Refused(400, "you must provide a model parameter")
    if not isinstance(model, str):
        raise _wrong_type("model", "a string", model)
    return model


def _check_parameters(fields: Json, checks: Mapping[str, Check]) -> None:
    for name, value in fields.items():
        check = checks.get(name)
        if check is None:
            raise Refused(
                400, f"Unknown parameter: '{name}'.", param=name, code="unknown_parameter"
            )
        if value is not None:
            check(name, value)


def _check_combinations(fields: Json) -> None:
    given = {name for name, value in fields.items() if value is not None}
    if given >= set(_CAPS):
        raise Refused(
            400,
            "Setting 'max_tokens' and 'max_completion_tokens' at the same time is not supported.",
            param="max_tokens",
            code="invalid_parameter_combination",
        )
    for name, needed in (
        ("stream_options", "stream"),
        ("top_logprobs", "logprobs"),
        ("metadata", "store"),
    ):
        if name in given and fields.get(needed) is not True:
            raise Refused(
                400,
                f"The '{name}' parameter is only allowed when '{needed}' is enabled.",
                param=name,
            )
    for name in ("tool_choice", "parallel_tool_calls"):
        if name in given and "tools" not in given:
            raise Refused(400, f"'{name}' is only allowed when 'tools' are specified.", param=name)


# -- messages -------------------------------------------------------------------------------------


def _messages_of(fields: Json) -> Sequence[Json]:
    messages = fields.get("messages")
    if messages is None:
        raise _missing("messages")
    found = _objects("messages", messages)
    for at, message in enumerate(found):
        _check_message(f"messages[{at}]", message)
    return found


def _check_message(at: str, message: Json) -> None:
    role = message.get("role")
    if role is None:
        raise _missing(f"{at}.role")
    _one_of(*_ROLES)(f"{at}.role", role)
    if role == "tool" and not isinstance(message.get("tool_call_id"), str):
        raise _missing(f"{at}.tool_call_id")
    content = message.get("content")
    if isinstance(content, list):
        for index, part in enumerate(_objects(f"{at}.content", content)):
            _check_part(f"{at}.content[{index}]", part)
    elif content is None:
        if role not in ("assistant", "function"):
            raise _wrong_type(f"{at}.content", "one of a string or array of objects", content)
    elif not isinstance(content, str):
        raise _wrong_type(f"{at}.content", "one of a string or array of objects", content)


def _check_part(at: str, part: Json) -> None:
    kind = part.get("type")
    if kind is None:
        raise _missing(f"{at}.type")
    _one_of(*_PARTS)(f"{at}.type", kind)
    if part.get(str(kind)) is None:
        raise _missing(f"{at}.{kind}")
    if kind == "text":
        _string(f"{at}.text", part["text"])


def _prompt_tokens(messages: Sequence[Json]) -> int:
    texts = (text for message in messages for text in _texts(message.get("content")))
    return _tokens(sum(len(text.encode()) for text in texts)) + _TOKENS_PER_MESSAGE * len(messages)


def _tokens(text_bytes: int) -> int:
    return -(-text_bytes // _BYTES_PER_TOKEN)


def _texts(content: object) -> Iterator[str]:
    """The texts of a message's content: itself, or its parts'."""
    if isinstance(content, str):
        yield content
    elif isinstance(content, list):
        for part in content:
            if isinstance(part, dict) and isinstance(part.get("text"), str):
                yield part["text"]


# -- inputs of embeddings -------------------------------------------------------------------------


def _inputs_of(fields: Json) -> tuple[tuple[bytes, ...], int]:
    """What to embed, and how many tokens that is: a list of numbers is one text in tokens."""
    given = fields.get("input")
    if given is None:
        raise _missing("input")
    several = given if isinstance(given, list) and not _is_tokens(given) else [given]
    if not several or len(several) > INPUTS_MAX:
        raise Refused(400, "'$.input' is invalid.", param="input")
    tokens = sum(_input_tokens(each) for each in several)
    return tuple(msgspec.json.encode(each) for each in several), tokens


def _input_tokens(given: object) -> int:
    if isinstance(given, str) and given:
        return _tokens(len(given.encode()))
    if isinstance(given, list) and given and _is_tokens(given):
        return len(given)
    raise Refused(400, "'$.input' is invalid.", param="input")


def _is_tokens(given: Sequence[object]) -> bool:
    return bool(given) and all(type(token) is int and token >= 0 for token in given)


# -- checks of one parameter ----------------------------------------------------------------------


def _missing(param: str) -> Refused:
    return Refused(
        400,
        f"Missing required parameter: '{param}'.",
        param=param,
        code="missing_required_parameter",
    )


def _wrong_type(param: str, expected: str, value: object) -> Refused:
    return Refused(
        400,
        f"Invalid type for '{param}': expected {expected}, but got {_type_name(value)} instead.",
        param=param,
        code="invalid_type",
    )


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


def _string(name: str, value: object) -> None:
    if not isinstance(value, str):
        raise _wrong_type(name, "a string", value)


def _boolean(name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise _wrong_type(name, "a boolean", value)


def _object(name: str, value: object) -> None:
    if not isinstance(value, dict):
        raise _wrong_type(name, "an object", value)


def _strings(value: object) -> list[str]:
    return [each for each in value if isinstance(each, str)] if isinstance(value, list) else []


def _objects(name: str, value: object) -> list[Json]:
    """A list of one or more objects."""
    if not isinstance(value, list):
        raise _wrong_type(name, "an array of objects", value)
    if not value:
        raise Refused(
            400,
            f"Invalid '{name}': empty array. Expected an array with minimum length 1, but got an "
            "empty array instead.",
            param=name,
            code="empty_array",
        )
    for at, each in enumerate(value):
        _object(f"{name}[{at}]", each)
    return value


def _list(name: str, value: object) -> None:
    if not isinstance(value, list):
        raise _wrong_type(name, "an array", value)


def _one_of(*values: str) -> Check:
    def check(name: str, value: object) -> None:
        _string(name, value)
        if value not in values:
            *most, last = (f"'{each}'" for each in values)
            raise Refused(
                400,
                f"Invalid value: '{value}'. Supported values are: {', '.join(most)}, and {last}.",
                param=name,
                code="invalid_value",
            )

    return check


def _integer(least: int | None = None, most: int | None = None) -> Check:
    def check(name: str, value: object) -> None:
        if not isinstance(value, int) or isinstance(value, bool):
            raise _wrong_type(name, "an integer", value)
        _check_range(name, value, least, most, "integer")

    return check


def _number(least: int, most: int) -> Check:
    def check(name: str, value: object) -> None:
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise _wrong_type(name, "a decimal", value)
        _check_range(name, value, least, most, "decimal")

    return check


def _check_range(name: str, value: float, least: int | None, most: int | None, kind: str) -> None:
    for beyond, side, limit, sign in (
        (least is not None and value < least, "below minimum", least, ">="),
        (most is not None and value > most, "above maximum", most, "<="),
    ):
        if beyond:
            raise Refused(
                400,
                f"Invalid '{name}': {kind} {side} value. Expected a value {sign} {limit}, but "
                f"got {value} instead.",
                param=name,
                code=f"{kind}_{side.replace(' minimum', '_min').replace(' maximum', '_max')}_value",
            )


def _stop(name: str, value: object) -> None:
    """A string, or up to four of them."""
    if isinstance(value, str):
        return
    if not isinstance(value, list) or len(_strings(value)) != len(value):
        raise _wrong_type(name, "one of a string or array of strings", value)
    if len(value) > 4:
        raise Refused(
            400,
            f"Invalid '{name}': array too long. Expected an array with maximum length 4, but got "
            f"an array with length {len(value)} instead.",
            param=name,
            code="array_above_max_length",
        )


def _tools(name: str, value: object) -> None:
    for at, tool in enumerate(_objects(name, value)):
        kind = tool.get("type")
        if kind is None:
            raise _missing(f"{name}[{at}].type")
        _one_of("function", "custom")(f"{name}[{at}].type", kind)
        _check_function(f"{name}[{at}].{kind}", tool.get(str(kind)))


def _check_function(at: str, function: object) -> None:
    if function is None:
        raise _missing(at)
    _object(at, function)
    assert isinstance(function, dict)
    if function.get("name") is None:
        raise _missing(f"{at}.name")
    _string(f"{at}.name", function["name"])
    if _TOOL_NAME.fullmatch(function["name"]) is None:
        raise Refused(
            400,
            f"Invalid '{at}.name': string does not match pattern. Expected a string that matches "
            "the pattern '^[a-zA-Z0-9_-]+$'.",
            param=f"{at}.name",
            code="invalid_value",
        )
    if function.get("parameters") is not None:
        _object(f"{at}.parameters", function["parameters"])


def _tool_choice(name: str, value: object) -> None:
    if isinstance(value, str):
        _one_of("none", "auto", "required")(name, value)
    else:
        _object(name, value)


def _stream_options(name: str, value: object) -> None:
    _object(name, value)
    assert isinstance(value, dict)
    if value.get("include_usage") is not None:
        _boolean(f"{name}.include_usage", value["include_usage"])


def _response_format(name: str, value: object) -> None:
    _object(name, value)
    assert isinstance(value, dict)
    kind = value.get("type")
    if kind is None:
        raise _missing(f"{name}.type")
    _one_of(*_FORMATS)(f"{name}.type", kind)
    if kind != "json_schema":
        return
    described = value.get("json_schema")
    if described is None:
        raise _missing(f"{name}.json_schema")
    _object(f"{name}.json_schema", described)
    if described.get("name") is None:
        raise _missing(f"{name}.json_schema.name")
    if described.get("schema") is not None:
        _object(f"{name}.json_schema.schema", described["schema"])


def _checked_already(name: str, value: object) -> None:
    """Whatever it is, it was read before."""


_CHAT: Mapping[str, Check] = {
    "audio": _object,
    "frequency_penalty": _number(-2, 2),
    "function_call": _checked_already,
    "functions": _list,
    "logit_bias": _object,
    "logprobs": _boolean,
    "max_completion_tokens": _integer(1),
    "max_tokens": _integer(1),
    "messages": _checked_already,
    "metadata": _object,
    "modalities": _list,
    "model": _checked_already,
    "n": _integer(1, 128),
    "parallel_tool_calls": _boolean,
    "prediction": _object,
    "presence_penalty": _number(-2, 2),
    "prompt_cache_key": _string,
    "prompt_cache_retention": _one_of("in_memory", "24h"),
    "reasoning_effort": _one_of("none", "minimal", "low", "medium", "high", "xhigh"),
    "response_format": _response_format,
    "safety_identifier": _string,
    "seed": _integer(),
    "service_tier": _one_of("auto", "default", "flex", "scale", "priority"),
    "stop": _stop,
    "store": _boolean,
    "stream": _boolean,
    "stream_options": _stream_options,
    "temperature": _number(0, 2),
    "tool_choice": _tool_choice,
    "tools": _tools,
    "top_logprobs": _integer(0, 20),
    "top_p": _number(0, 1),
    "user": _string,
    "verbosity": _one_of("low", "medium", "high"),
    "web_search_options": _object,
}
_EMBEDDINGS: Mapping[str, Check] = {
    "dimensions": _integer(1, DIMENSIONS_MAX),
    "encoding_format": _one_of("float", "base64"),
    "input": _checked_already,
    "model": _checked_already,
    "user": _string,
}
