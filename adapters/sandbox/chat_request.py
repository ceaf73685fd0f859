"""What Chat Completions are asked, read as strictly as OpenAI reads it.

The gateway passes on what it does not need, so that something behind it has to mind. Members of
messages that OpenAI does not know are let through: the sandbox also stands for servers that are
compatible with it, and have such members.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from adapters.sandbox.asked import Asked, Said, Speaker, Tool, name_of, prompt_tokens
from adapters.sandbox.models import family_of
from adapters.sandbox.openai_words import (
    WORDING,
    check_json_is_asked,
    check_model,
    check_strict,
    chosen,
    image_url,
    read_object,
    refused,
)
from adapters.sandbox.pictures import picture_tokens
from adapters.sandbox.script import Json
from adapters.sandbox.shapes import (
    Path,
    Read,
    Shapes,
    a_string,
    an_integer,
    an_object,
    objects,
    strings,
)

_CAPS = ("max_tokens", "max_completion_tokens")
_TOOL_NAME = "[a-zA-Z0-9_-]{1,64}"
_REASONING_FAMILY = re.compile(r"o\d|gpt-[5-9]")
_SPEAKERS: dict[str, Speaker] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "result",
    "function": "result",
}


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """What is asked, and what only Chat Completions have: `n` equal choices."""

    asked: Asked
    n: int
    include_usage: bool
    obfuscated: bool
    service_tier: str


def read_chat(body: bytes) -> ChatRequest:
    """Read the body of `POST /v1/chat/completions`. Raises Refused."""
    given = read_object(body)
    check_model(given)
    fields = an_object(_REQUEST((), given))
    _check_combinations(fields)
    _check_family(fields)
    messages = objects(fields["messages"])
    _check_calls(messages)
    _check_schemas(fields)
    said = [_said(message) for message in messages]
    if an_object(fields.get("response_format")).get("type") == "json_object":
        check_json_is_asked(
            [each.text for each in said],
            "'messages' must contain the word 'json' in some form, to use 'response_format' of "
            "type 'json_object'.",
            "messages",
        )
    options = an_object(fields.get("stream_options"))
    stop = fields.get("stop") or ()
    asked = Asked(
        model=a_string(fields["model"]),
        name=name_of(body),
        said=said,
        messages=len(messages),
        prompt_tokens=prompt_tokens(said, len(messages))
        + sum(picture_tokens(objects(message.get("content"))) for message in messages),
        stream=fields.get("stream") is True,
        cap=next((an_integer(fields[name]) for name in _CAPS if name in fields), None),
        stop=(stop,) if isinstance(stop, str) else strings(stop),
        tools=list(_tools(fields)),
        parallel=fields.get("parallel_tool_calls") is not False,
        shape=_schema_of(an_object(fields.get("response_format"))),
    )
    return ChatRequest(
        asked,
        n=an_integer(fields.get("n")) or 1,
        include_usage=options.get("include_usage") is True,
        obfuscated=options.get("include_obfuscation") is True,
        service_tier=a_string(fields.get("service_tier")),
    )


def _said(message: Json) -> Said:
    content = message.get("content")
    texts = [content] if isinstance(content, str) else list(_texts(content))
    return Said(_SPEAKERS[a_string(message["role"])], "".join(texts))


def _texts(content: object) -> Iterator[str]:
    for part in objects(content):
        if isinstance(text := part.get("text"), str):
            yield text


def _tools(fields: Json) -> Iterator[Tool]:
    allowed, names = chosen(fields.get("tool_choice"))
    for tool in objects(fields.get("tools")) if allowed else ():
        kind = a_string(tool["type"])
        described = an_object(tool[kind])
        name = a_string(described["name"])
        if names is None or name in names:
            parameters = an_object(described.get("parameters")) or None
            yield Tool(name, parameters, free=kind == "custom")


def _schema_of(wanted: Json) -> Json | None:
    described = an_object(wanted.get("json_schema"))
    return an_object(described["schema"]) if "schema" in described else None


# -- rules across fields --------------------------------------------------------------------------


def _check_combinations(fields: Json) -> None:
    if fields.keys() >= set(_CAPS):
        raise refused(
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
        if name in fields and fields.get(needed) is not True:
            raise refused(
                400,
                f"The '{name}' parameter is only allowed when '{needed}' is enabled.",
                param=name,
            )
    for name in ("tool_choice", "parallel_tool_calls"):
        if name in fields and "tools" not in fields:
            raise refused(400, f"'{name}' is only allowed when 'tools' are specified.", param=name)


def _check_family(fields: Json) -> None:
    """What OpenAI's reasoning models do not take."""
    if _REASONING_FAMILY.match(family_of(a_string(fields["model"]))) is None:
        return
    if "max_tokens" in fields:
        raise refused(
            400,
            "Unsupported parameter: 'max_tokens' is not supported with this model. Use "
            "'max_completion_tokens' instead.",
            param="max_tokens",
            code="unsupported_parameter",
        )
    if "stop" in fields:
        raise refused(
            400,
            "Unsupported parameter: 'stop' is not supported with this model.",
            param="stop",
            code="unsupported_parameter",
        )
    if fields.get("temperature", 1) != 1:
        raise refused(
            400,
            f"Unsupported value: 'temperature' does not support {fields['temperature']} with this "
            "model. Only the default (1) value is supported.",
            param="temperature",
            code="unsupported_value",
        )


def _check_schemas(fields: Json) -> None:
    for index, tool in enumerate(objects(fields.get("tools"))):
        function = an_object(tool.get("function"))
        if function.get("strict") is True:
            check_strict(
                function.get("parameters"),
                f"function '{function['name']}'",
                f"tools[{index}].function.parameters",
                "invalid_function_parameters",
            )
    described = an_object(an_object(fields.get("response_format")).get("json_schema"))
    if described.get("strict") is True:
        check_strict(
            described.get("schema"),
            f"response_format '{described['name']}'",
            "response_format",
            "invalid_json_schema",
        )


def _check_calls(messages: Sequence[Json]) -> None:
    """Calls are answered at once and only once asked, each by its id."""
    open_calls: list[str] = []
    answerable: set[str] = set()
    for index, message in enumerate(messages):
        if message["role"] == "tool":
            if message["tool_call_id"] not in answerable:
                raise refused(
                    400,
                    "Invalid parameter: messages with role 'tool' must be a response to a "
                    "preceeding message with 'tool_calls'.",
                    param=f"messages[{index}].role",
                )
            open_calls = [each for each in open_calls if each != message["tool_call_id"]]
            continue
        _check_answered(open_calls, index)
        open_calls = [a_string(call["id"]) for call in objects(message.get("tool_calls"))]
        answerable = set(open_calls)
    _check_answered(open_calls, len(messages))


def _check_answered(open_calls: Sequence[str], index: int) -> None:
    if open_calls:
        raise refused(
            400,
            "An assistant message with 'tool_calls' must be followed by tool messages responding "
            "to each 'tool_call_id'. The following tool_call_ids did not have response messages: "
            f"{', '.join(open_calls)}",
            param=f"messages[{index - 1}].role",
        )


# -- shapes ---------------------------------------------------------------------------------------

_are = Shapes(WORDING)
_CONTENT = "one of a string or array of objects"


_PART: Mapping[str, Read] = {
    "text": _are.string,
    "image_url": _are.members({"url": image_url, "detail": _are.string}, required=["url"]),
}


def _part(kind: str) -> Read:
    return _are.members({kind: _PART.get(kind, _are.anything)}, required=[kind], lenient=True)


_PARTS = _are.array(
    _are.tagged(
        {kind: _part(kind) for kind in ("text", "image_url", "input_audio", "file", "refusal")}
    ),
    least=1,
)
_CALL = _are.tagged(
    {
        kind: _are.members(
            {
                "id": _are.text(least=1),
                kind: _are.members(
                    {"name": _are.text(_TOOL_NAME), text: _are.string}, required=["name", text]
                ),
            },
            required=["id", kind],
            lenient=True,
        )
        for kind, text in (("function", "arguments"), ("custom", "input"))
    }
)
_MESSAGE = _are.members(
    {
        "role": _are.one_of(*_SPEAKERS),
        "content": _are.either(_CONTENT, {str: _are.string, list: _PARTS}),
        "name": _are.string,
        "tool_call_id": _are.string,
        "tool_calls": _are.array(_CALL, least=1),
    },
    required=["role"],
    lenient=True,
)


def _message(at: Path, value: object) -> object:
    message = an_object(_MESSAGE(at, value))
    if message["role"] == "tool" and "tool_call_id" not in message:
        raise WORDING.missing((*at, "tool_call_id"))
    if "content" not in message and message["role"] not in ("assistant", "function"):
        raise WORDING.wrong_type((*at, "content"), _CONTENT, None)
    return message


_FUNCTION = _are.members(
    {
        "name": _are.text(_TOOL_NAME),
        "description": _are.string,
        "parameters": _are.mapping,
        "strict": _are.boolean,
    },
    required=["name"],
)
_CUSTOM = _are.members(
    {"name": _are.text(_TOOL_NAME), "description": _are.string, "format": _are.mapping},
    required=["name"],
)
_TOOL = _are.tagged(
    {
        "function": _are.members(
            {"type": _are.string, "function": _FUNCTION}, required=["function"]
        ),
        "custom": _are.members({"type": _are.string, "custom": _CUSTOM}, required=["custom"]),
    }
)
_FORMAT = _are.tagged(
    {
        "json_object": _are.members({"type": _are.string}),
        "json_schema": _are.members(
            {
                "type": _are.string,
                "json_schema": _are.members(
                    {
                        "name": _are.text(_TOOL_NAME),
                        "description": _are.string,
                        "schema": _are.mapping,
                        "strict": _are.boolean,
                    },
                    required=["name"],
                ),
            },
            required=["json_schema"],
        ),
        "text": _are.members({"type": _are.string}),
    }
)
_REQUEST = _are.members(
    {
        "audio": _are.mapping,
        "frequency_penalty": _are.number(-2, 2),
        "function_call": _are.anything,
        "functions": _are.array(_are.mapping),
        "logit_bias": _are.mapping,
        "logprobs": _are.boolean,
        "max_completion_tokens": _are.integer(1),
        "max_tokens": _are.integer(1),
        "messages": _are.array(_message, least=1),
        "metadata": _are.mapping,
        "modalities": _are.array(_are.string),
        "model": _are.string,
        "moderation": _are.mapping,
        "n": _are.integer(1, 128),
        "parallel_tool_calls": _are.boolean,
        "prediction": _are.mapping,
        "presence_penalty": _are.number(-2, 2),
        "prompt_cache_key": _are.string,
        "prompt_cache_options": _are.mapping,
        "prompt_cache_retention": _are.one_of("in_memory", "24h"),
        "reasoning_effort": _are.one_of("none", "minimal", "low", "medium", "high", "xhigh", "max"),
        "response_format": _FORMAT,
        "safety_identifier": _are.string,
        "seed": _are.integer(),
        "service_tier": _are.one_of("auto", "default", "flex", "scale", "priority", "fast"),
        "stop": _are.either(
            "one of a string or array of strings",
            {str: _are.string, list: _are.array(_are.string, most=4)},
        ),
        "store": _are.boolean,
        "stream": _are.boolean,
        "stream_options": _are.members(
            {"include_usage": _are.boolean, "include_obfuscation": _are.boolean}
        ),
        "temperature": _are.number(0, 2),
        "tool_choice": _are.either(
            "one of a string or an object",
            {str: _are.one_of("none", "auto", "required"), dict: _are.mapping},
        ),
        "tools": _are.array(_TOOL, least=1),
        "top_logprobs": _are.integer(0, 20),
        "top_p": _are.number(0, 1),
        "user": _are.string,
        "verbosity": _are.one_of("low", "medium", "high"),
        "web_search_options": _are.mapping,
    },
    required=["messages"],
)
