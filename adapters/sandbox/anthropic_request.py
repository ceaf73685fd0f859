"""What Anthropic's Messages are asked, read as strictly as Anthropic reads it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from adapters.sandbox.anthropic_history import check_cache_marks, check_messages, check_system
from adapters.sandbox.anthropic_rules import Rules, rules_of
from adapters.sandbox.anthropic_words import WORDING, refused
from adapters.sandbox.asked import Asked, Said, Tool, name_of, prompt_tokens
from adapters.sandbox.script import Json
from adapters.sandbox.shapes import (
    Path,
    Read,
    Shapes,
    a_string,
    an_integer,
    an_object,
    decoded,
    objects,
    strings,
)

_BETA_FIELDS: Mapping[str, bytes] = {
    "context_management": b"context-management-",
    "mcp_servers": b"mcp-client-",
    "thread": b"message-threads-",
}
_BETA_IN_MESSAGES = ("output_config", b"per-turn-control-")
_SAMPLING = ("temperature", "top_p", "top_k")
_LEAST_THINKING_BUDGET = 1024


@dataclass(frozen=True, slots=True)
class MessagesRequest:
    """What is asked, and whether thoughts are shown."""

    asked: Asked
    shows_thoughts: bool


def read_messages(headers: Mapping[bytes, bytes], body: bytes) -> MessagesRequest:
    """Read the body of `POST /v1/messages`. Raises Refused."""
    fields, rules = _read(headers, body, _MESSAGES)
    thinking = an_object(fields.get("thinking"))
    kind = a_string(thinking.get("type"))
    _check_thinking(fields, thinking, rules)
    asked = replace(
        _asked(fields, body),
        cap=an_integer(fields["max_tokens"]),
        must_reason=kind == "enabled",
        may_reason=kind in ("adaptive", "between_tools") or (not kind and rules.thinks_unasked),
    )
    display = a_string(thinking.get("display"))
    return MessagesRequest(asked, display == "summarized" or (not display and rules.shows_thoughts))


def read_count(headers: Mapping[bytes, bytes], body: bytes) -> Asked:
    """Read the body of `POST /v1/messages/count_tokens`. Raises Refused."""
    fields, _ = _read(headers, body, _COUNT)
    return _asked(fields, body)


def _read(headers: Mapping[bytes, bytes], body: bytes, shape: Read) -> tuple[Json, Rules]:
    given = decoded(body)
    if given is None:
        raise refused("The request body is not valid JSON: it has to be an object")
    betas = headers.get(b"anthropic-beta", b"")
    for name, beta in _BETA_FIELDS.items():
        if name in given and beta not in betas:
            raise WORDING.unknown((), name)
    version = headers.get(b"anthropic-version", b"")
    fields = an_object(shape((), given))
    name, beta = _BETA_IN_MESSAGES
    for index, message in enumerate(objects(fields["messages"])):
        if name in message and beta not in betas:
            raise WORDING.unknown(("messages", index), name)
    if "thread" in fields:
        raise refused("thread: threads are not supported here", code="thread_unsupported_request")
    rules = rules_of(a_string(fields["model"]))
    _check_sampling(fields, rules, version)
    _check_effort(fields, rules)
    _check_tools(fields)
    _check_format(fields)
    check_system(fields.get("system"))
    check_messages(fields, rules, version)
    check_cache_marks(fields)
    return fields, rules


def _asked(fields: Json, body: bytes) -> Asked:
    messages = objects(fields["messages"])
    system = list(_texts(fields.get("system")))
    said = [Said("system", "".join(system))] if system else []
    for message in messages:
        said += _said(message)
    count = len(messages) + bool(system)
    choice = an_object(fields.get("tool_choice"))
    wanted = an_object(an_object(fields.get("output_config")).get("format"))
    return Asked(
        model=a_string(fields["model"]),
        name=name_of(body),
        said=said,
        messages=count,
        prompt_tokens=prompt_tokens(said, count),
        stream=fields.get("stream") is True,
        stop=strings(fields.get("stop_sequences")),
        tools=list(_tools(objects(fields.get("tools")), choice)),
        parallel=choice.get("disable_parallel_tool_use") is not True,
        shape=an_object(wanted["schema"]) if wanted else None,
    )


def _said(message: Json) -> Iterator[Said]:
    """A message's results each, then its own text."""
    content = message["content"]
    for block in objects(content):
        if block["type"] == "tool_result":
            yield Said("result", "".join(_texts(block.get("content"))))
    speaker = a_string(message["role"])
    text = "".join(_texts(content))
    if speaker == "assistant":
        yield Said("assistant", text)
    elif speaker == "system":
        yield Said("system", text)
    elif text or not _has_results(content):
        yield Said("user", text)


def _has_results(content: object) -> bool:
    return any(block["type"] == "tool_result" for block in objects(content))


def _texts(content: object) -> Iterator[str]:
    if isinstance(content, str):
        yield content
    for block in objects(content):
        if block.get("type") == "text":
            yield a_string(block["text"])


def _tools(tools: Sequence[Json], choice: Json) -> Iterator[Tool]:
    if choice.get("type") == "none":
        return
    wanted = choice.get("name")
    for tool in tools:
        if tool.get("type", "custom") == "custom" and wanted in (None, tool["name"]):
            yield Tool(a_string(tool["name"]), an_object(tool["input_schema"]))


# -- rules across fields --------------------------------------------------------------------------


def _check_sampling(fields: Json, rules: Rules, version: bytes) -> None:
    given = [name for name in _SAMPLING if name in fields]
    if given and version == b"2026-10-21":
        raise WORDING.unknown((), given[0])
    if given and not rules.sampling:
        raise refused(f"`{given[0]}` is deprecated for this model.")
    if rules.one_of_sampling and {"temperature", "top_p"} <= fields.keys():
        raise refused(
            "`temperature` and `top_p` cannot both be specified for this model. Please use only "
            "one."
        )
    if any(not stop.strip() for stop in strings(fields.get("stop_sequences"))):
        raise refused("stop_sequences: each stop sequence must contain non-whitespace")


def _check_effort(fields: Json, rules: Rules) -> None:
    if "effort" in an_object(fields.get("output_config")) and not rules.effort:
        raise refused("This model does not support the effort parameter.")


def _check_thinking(fields: Json, thinking: Json, rules: Rules) -> None:
    kind = thinking.get("type")
    if kind == "disabled" and not rules.can_disable:
        raise refused('"thinking.type.disabled" is not supported for this model.')
    if kind in ("adaptive", "between_tools") and not rules.adaptive:
        raise refused("adaptive thinking is not supported on this model")
    if kind != "enabled":
        return
    if not rules.manual:
        raise refused(
            '"thinking.type.enabled" is not supported for this model. Use '
            '"thinking.type.adaptive" and "output_config.effort" to control thinking behavior.'
        )
    if (an_integer(thinking["budget_tokens"]) or 0) >= (an_integer(fields["max_tokens"]) or 0):
        raise refused(
            "`max_tokens` must be greater than `thinking.budget_tokens`. Please consult our "
            "documentation at https://docs.claude.com/en/docs/build-with-claude/extended-thinking"
            "#max-tokens-and-context-window-size"
        )
    if (fault := _thinking_conflict(fields)) is not None:
        raise refused(
            f"{fault} Please consult our documentation at https://docs.claude.com/en/docs/"
            "build-with-claude/extended-thinking#important-considerations-when-using-extended-"
            "thinking"
        )


def _thinking_conflict(fields: Json) -> str | None:
    if fields.get("temperature", 1) != 1:
        return "`temperature` may only be set to 1 when thinking is enabled."
    if "top_k" in fields:
        return "`top_k` must be unset when thinking is enabled."
    if isinstance(top_p := fields.get("top_p"), int | float) and top_p < 0.95:
        return "`top_p` must be greater than or equal to 0.95 or unset when thinking is enabled."
    if an_object(fields.get("tool_choice")).get("type") in ("any", "tool"):
        return "Thinking may not be enabled when tool_choice forces tool use."
    if objects(fields["messages"])[-1]["role"] == "assistant":
        return "Prefilling assistant responses is not supported when thinking is enabled."
    return None


def _check_tools(fields: Json) -> None:
    tools = objects(fields.get("tools"))
    names = [a_string(tool.get("name")) for tool in tools]
    if len(set(names)) < len(names):
        raise refused("tools: Tool names must be unique.")
    choice = an_object(fields.get("tool_choice"))
    if choice and not tools:
        raise refused("tool_choice: tool_choice may only be specified while providing tools")
    if choice.get("type") == "tool" and choice["name"] not in names:
        raise refused(f"Tool '{choice['name']}' not found in provided tools")
    for index, tool in enumerate(tools):
        if tool.get("strict") is True:
            _check_strict(tool["input_schema"], f"tools.{index}.custom")


def _check_format(fields: Json) -> None:
    wanted = an_object(an_object(fields.get("output_config")).get("format"))
    if wanted:
        _check_strict(wanted["schema"], "output_config.format.schema")


_UNSUPPORTED_WHEN_STRICT: Mapping[str, Sequence[str]] = {
    "integer": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
    "number": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
    "string": ("minLength", "maxLength"),
    "array": ("maxItems", "uniqueItems", "contains"),
    "object": ("patternProperties", "propertyNames", "minProperties", "maxProperties"),
}


def _check_strict(given: object, where: str) -> None:
    """What structured outputs demand of a schema, at every level."""
    schema = an_object(given)
    for kind in (
        strings(schema["type"])
        if isinstance(schema.get("type"), list)
        else [a_string(schema.get("type"))]
    ):
        for name in _UNSUPPORTED_WHEN_STRICT.get(kind, ()):
            if name in schema:
                raise refused(f"{where}: For '{kind}' type, property '{name}' is not supported")
        if kind == "object" and schema.get("additionalProperties") is not False:
            raise refused(
                f"{where}: For 'object' type, 'additionalProperties' must be explicitly set to "
                "false"
            )
    for name in ("oneOf", "not", "if"):
        if name in schema:
            raise refused(f"{where}: Schema type '{name}' is not supported")
    inner = [
        *an_object(schema.get("properties")).values(),
        *an_object(schema.get("$defs")).values(),
    ]
    inner += [schema["items"]] if "items" in schema else []
    for name in ("anyOf", "allOf"):
        inner += objects(schema.get(name))
    for each in inner:
        _check_strict(each, where)


# -- shapes ---------------------------------------------------------------------------------------

_are = Shapes(WORDING)
_CACHE = _are.members(
    {"type": _are.one_of("ephemeral"), "ttl": _are.one_of("5m", "1h")}, required=["type"]
)
_ID = "[a-zA-Z0-9_-]+"


def _block(fields: Mapping[str, Read], required: Sequence[str], *, cached: bool = True) -> Read:
    marks = {"cache_control": _CACHE} if cached else {}
    return _are.members({"type": _are.string, **marks, **fields}, required)


_SERVER_BLOCK = _are.mapping
_TEXT = _block({"text": _are.string, "citations": _are.anything}, ["text"])
_BASE64_IMAGE = _block(
    {
        "media_type": _are.one_of("image/jpeg", "image/png", "image/gif", "image/webp"),
        "data": _are.string,
    },
    ["media_type", "data"],
    cached=False,
)
_URL = _block({"url": _are.string}, ["url"], cached=False)
_FILE = _block({"file_id": _are.string}, ["file_id"], cached=False)
_IMAGE = _block(
    {
        "source": _are.tagged({"base64": _BASE64_IMAGE, "url": _URL, "file": _FILE}),
        "transformations": _are.anything,
    },
    ["source"],
)
_DOCUMENT = _block(
    {
        "source": _are.tagged(
            {
                "base64": _block(
                    {"media_type": _are.one_of("application/pdf"), "data": _are.string},
                    ["media_type", "data"],
                    cached=False,
                ),
                "text": _block(
                    {"media_type": _are.one_of("text/plain"), "data": _are.string},
                    ["media_type", "data"],
                    cached=False,
                ),
                "content": _block({"content": _are.anything}, ["content"], cached=False),
                "url": _URL,
                "file": _FILE,
            }
        ),
        "title": _are.string,
        "context": _are.string,
        "citations": _are.anything,
    },
    ["source"],
)
_SEARCH_RESULT = _block(
    {
        "source": _are.string,
        "title": _are.string,
        "content": _are.array(_TEXT),
        "citations": _are.anything,
    },
    ["source", "title", "content"],
)
_TOOL_USE = _block(
    {
        "id": _are.text(_ID),
        "name": _are.text("[a-zA-Z0-9_-]{1,128}"),
        "input": _are.mapping,
        "caller": _are.anything,
        "toolset_name": _are.string,
    },
    ["id", "name", "input"],
)
_TOOL_RESULT = _block(
    {
        "tool_use_id": _are.text(_ID),
        "content": _are.either(
            "list",
            {
                str: _are.string,
                list: _are.array(
                    _are.tagged(
                        {
                            "text": _TEXT,
                            "image": _IMAGE,
                            "document": _DOCUMENT,
                            "search_result": _SEARCH_RESULT,
                            "tool_reference": _SERVER_BLOCK,
                            "browser_state": _SERVER_BLOCK,
                        }
                    )
                ),
            },
        ),
        "is_error": _are.boolean,
    },
    ["tool_use_id"],
)
_BLOCKS = _are.array(
    _are.tagged(
        {
            "text": _TEXT,
            "image": _IMAGE,
            "document": _DOCUMENT,
            "search_result": _SEARCH_RESULT,
            "thinking": _block(
                {"thinking": _are.string, "signature": _are.string},
                ["thinking", "signature"],
                cached=False,
            ),
            "redacted_thinking": _block({"data": _are.string}, ["data"], cached=False),
            "tool_use": _TOOL_USE,
            "tool_result": _TOOL_RESULT,
            "server_tool_use": _SERVER_BLOCK,
            "web_search_tool_result": _SERVER_BLOCK,
            "web_fetch_tool_result": _SERVER_BLOCK,
            "code_execution_tool_result": _SERVER_BLOCK,
            "tool_search_tool_result": _SERVER_BLOCK,
            "container_upload": _SERVER_BLOCK,
        }
    )
)
_EFFORT = _are.one_of("low", "medium", "high", "xhigh", "max")
_MESSAGE = _are.members(
    {
        "role": _are.one_of("user", "assistant", "system"),
        "content": _are.either("list", {str: _are.string, list: _BLOCKS}),
        "output_config": _are.members({"effort": _EFFORT}),
    },
    required=["role", "content"],
)
_SCHEMA_UNIONS = ("oneOf", "allOf", "anyOf")


def _input_schema(at: Path, value: object) -> object:
    schema = an_object(_are.mapping(at, value))
    if "type" not in schema:
        raise WORDING.missing((*at, "type"))
    if schema["type"] != "object":
        raise WORDING.not_offered((*at, "type"), ["object"], schema["type"])
    if any(name in schema for name in _SCHEMA_UNIONS):
        raise refused(
            f"{'.'.join(map(str, at))}: input_schema does not support oneOf, allOf, or anyOf at "
            "the top level"
        )
    return schema


_CUSTOM_TOOL = _are.members(
    {
        "type": _are.string,
        "name": _are.text("[a-zA-Z0-9_-]{1,128}"),
        "description": _are.string,
        "input_schema": _input_schema,
        "strict": _are.boolean,
        "cache_control": _CACHE,
        "defer_loading": _are.boolean,
        "eager_input_streaming": _are.boolean,
        "input_examples": _are.array(_are.mapping),
        "allowed_callers": _are.array(_are.string),
    },
    required=["name", "input_schema"],
)
_SERVER_TOOL = re.compile(
    r"(bash|text_editor|memory|computer|browser\w*|web_search|web_fetch|code_execution|"
    r"tool_search_tool\w*)_\d{8}|mcp_toolset"
)


def _tool(at: Path, value: object) -> object:
    tool = an_object(_are.mapping(at, value))
    kind = tool.get("type") or "custom"
    if _SERVER_TOOL.fullmatch(str(kind)):
        return tool
    return _are.tagged({"custom": _CUSTOM_TOOL}, default="custom")(at, value)


def _choice(*names: str, required: Sequence[str] = ()) -> Read:
    fields: Mapping[str, Read] = {"name": _are.string, "disable_parallel_tool_use": _are.boolean}
    taken = {name: fields[name] for name in names}
    return _are.members({"type": _are.string, **taken}, required)


_DISPLAY = _are.one_of("summarized", "omitted", "updates")
_THINKING = _are.tagged(
    {
        "enabled": _are.members(
            {
                "type": _are.string,
                "budget_tokens": _are.integer(_LEAST_THINKING_BUDGET),
                "display": _DISPLAY,
            },
            required=["budget_tokens"],
        ),
        "adaptive": _are.members({"type": _are.string, "display": _DISPLAY}),
        "between_tools": _are.members({"type": _are.string, "display": _DISPLAY}),
        "disabled": _are.members({"type": _are.string}),
    }
)
_FORMAT = _are.tagged(
    {
        "json_schema": _are.members(
            {"type": _are.string, "schema": _are.mapping}, required=["schema"]
        )
    }
)


def _messages(at: Path, value: object) -> object:
    if value == []:
        raise refused("messages: at least one message is required")
    return _are.array(_MESSAGE)(at, value)


_COUNTED: Mapping[str, Read] = {
    "model": _are.string,
    "messages": _messages,
    "system": _are.either(
        "list", {str: _are.string, list: _are.array(_are.tagged({"text": _TEXT}))}
    ),
    "thinking": _THINKING,
    "output_config": _are.members({"effort": _EFFORT, "format": _FORMAT}),
    "tools": _are.array(_tool),
    "tool_choice": _are.tagged(
        {
            "auto": _choice("disable_parallel_tool_use"),
            "any": _choice("disable_parallel_tool_use"),
            "tool": _choice("name", "disable_parallel_tool_use", required=["name"]),
            "none": _choice(),
        }
    ),
    "cache_control": _CACHE,
    "context_management": _are.mapping,
    "mcp_servers": _are.array(_are.mapping),
    "thread": _are.mapping,
}
_COUNT = _are.members(_COUNTED, required=["model", "messages"])
_MESSAGES = _are.members(
    {
        **_COUNTED,
        "max_tokens": _are.integer(0),
        "stop_sequences": _are.array(_are.string),
        "stream": _are.boolean,
        "temperature": _are.number(0, 1),
        "top_p": _are.number(0, 1),
        "top_k": _are.integer(0),
        "container": _are.anything,
        "inference_geo": _are.string,
        "speed": _are.one_of("standard", "fast"),
        "service_tier": _are.one_of("auto", "standard_only"),
        "metadata": _are.members({"user_id": _are.string}),
        "diagnostics": _are.mapping,
    },
    required=["model", "max_tokens", "messages"],
)
