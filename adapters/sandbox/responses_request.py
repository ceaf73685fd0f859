"""What OpenAI's Responses are asked, read as strictly as OpenAI reads it.

The sandbox keeps nothing, so whatever refers to something that was kept is not found.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from adapters.sandbox.asked import Asked, Said, Tool, name_of, prompt_tokens
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
    spelled,
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
)
from adapters.sandbox.signing import is_signed

_TOOL_NAME = "[a-zA-Z0-9_-]{1,64}"
_CALL_ID_MAX = 64
_REASONING_FAMILY = re.compile(r"o\d|gpt-[5-9]")
_MOVED: Mapping[str, str] = {
    "messages": "input",
    "max_tokens": "max_output_tokens",
    "max_completion_tokens": "max_output_tokens",
    "response_format": "text.format",
    "reasoning_effort": "reasoning.effort",
}
_CALLS = ("function_call", "custom_tool_call")
_OUTPUTS: Mapping[str, str] = {
    "function_call_output": "function_call",
    "custom_tool_call_output": "custom_tool_call",
}


@dataclass(frozen=True, slots=True)
class ResponsesRequest:
    """What is asked. `fields` are what answers repeat; `removed` are the ids of reasoning items
    that another provider, or nobody, has encrypted."""

    asked: Asked
    fields: Json
    shows_thoughts: bool
    obfuscated: bool
    removed: Sequence[str]


def read_response(body: bytes) -> ResponsesRequest:
    """Read the body of `POST /v1/responses`. Raises Refused."""
    fields, removed = _read(body, _RESPONSE)
    reasoning, options = an_object(fields.get("reasoning")), an_object(fields.get("stream_options"))
    return ResponsesRequest(
        _asked(fields, body),
        fields,
        shows_thoughts="summary" in reasoning,
        obfuscated=options.get("include_obfuscation") is not False,
        removed=removed,
    )


def read_count(body: bytes) -> Asked:
    """Read the body of `POST /v1/responses/input_tokens`. Raises Refused."""
    fields, _ = _read(body, _COUNT)
    return _asked(fields, body)


def _read(body: bytes, shape: Read) -> tuple[Json, Sequence[str]]:
    given = read_object(body)
    check_model(given)
    for name, place in _MOVED.items():
        if name in given:
            raise refused(
                400,
                f"Unsupported parameter: '{name}'. In the Responses API, this parameter has moved "
                f"to '{place}'. Try again with the new parameter. See the API documentation for "
                "more information: https://platform.openai.com/docs/api-reference/responses/create",
                param=name,
                code="unsupported_parameter",
            )
    fields = an_object(shape((), given))
    _check_kept(fields)
    _check_family(fields)
    _check_tools(fields)
    _check_format(fields)
    items = _items(fields)
    removed = _check_reasoning(items, a_string(fields["model"]))
    _check_pairs(items)
    return fields, removed


def _items(fields: Json) -> Sequence[Json]:
    given = fields.get("input")
    if isinstance(given, str):
        return [{"type": "message", "role": "user", "content": given}]
    return objects(given)


def _asked(fields: Json, body: bytes) -> Asked:
    items = _items(fields)
    instructions = a_string(fields.get("instructions"))
    said = [Said("system", instructions)] if instructions else []
    said += [_said(item) for item in items]
    count = len(items) + bool(instructions)
    wanted = an_object(an_object(fields.get("text")).get("format"))
    return Asked(
        model=a_string(fields["model"]),
        name=name_of(body),
        said=said,
        messages=count,
        prompt_tokens=prompt_tokens(said, count)
        + sum(picture_tokens(objects(item.get("content"))) for item in items),
        stream=fields.get("stream") is True,
        cap=an_integer(fields.get("max_output_tokens")),
        tools=list(_tools(fields)),
        parallel=fields.get("parallel_tool_calls") is not False,
        shape=an_object(wanted["schema"]) if wanted.get("type") == "json_schema" else None,
        may_reason=an_object(fields.get("reasoning")).get("effort") != "none",
    )


def _said(item: Json) -> Said:
    kind = a_string(item["type"])
    if kind in _OUTPUTS:
        return Said("result", _text(item.get("output")))
    if kind != "message":
        return Said("assistant")
    role, text = item["role"], _text(item["content"])
    if role == "user":
        return Said("user", text)
    return Said("assistant" if role == "assistant" else "system", text)


def _text(content: object) -> str:
    if isinstance(content, str):
        return content
    return "".join(a_string(part.get("text")) for part in objects(content))


# -- tools ----------------------------------------------------------------------------------------


def _tools(fields: Json) -> Iterator[Tool]:
    allowed, names = chosen(fields.get("tool_choice"))
    for tool in _all_tools(objects(fields.get("tools"))) if allowed else ():
        if names is None or tool.name in names:
            yield tool


def _all_tools(tools: Sequence[Json], namespace: str = "") -> Iterator[Tool]:
    for tool in tools:
        match tool["type"]:
            case "function":
                parameters = an_object(tool.get("parameters")) or None
                yield Tool(a_string(tool["name"]), parameters, namespace=namespace)
            case "custom":
                yield Tool(a_string(tool["name"]), free=True, namespace=namespace)
            case "namespace":
                yield from _all_tools(objects(tool["tools"]), a_string(tool["name"]))


def _check_tools(fields: Json) -> None:
    tools = objects(fields.get("tools"))
    for index, tool in enumerate(tools):
        if tool.get("strict") is True:
            check_strict(
                tool.get("parameters"),
                f"function '{tool['name']}'",
                f"tools[{index}].parameters",
                "invalid_function_parameters",
            )
    choice = fields.get("tool_choice")
    _, names = chosen(choice)
    if choice == "required" and not tools:
        raise refused(
            400,
            "Tool choice 'required' must be specified with 'tools' parameter.",
            param="tool_choice",
        )
    known = {tool.name for tool in _all_tools(tools)}
    kind = an_object(choice).get("type")
    for name in names or ():
        if kind in ("function", "custom") and name not in known:
            raise refused(
                400, f"Tool choice '{kind}' not found in 'tools' parameter.", param="tool_choice"
            )


def _check_format(fields: Json) -> None:
    wanted = an_object(an_object(fields.get("text")).get("format"))
    if wanted.get("strict") is True:
        check_strict(
            wanted["schema"],
            f"response_format '{wanted['name']}'",
            "text.format.schema",
            "invalid_json_schema",
        )
    if wanted.get("type") == "json_object":
        texts = [_said(item).text for item in _items(fields)]
        check_json_is_asked(
            [a_string(fields.get("instructions")), *texts],
            "Response input messages must contain the word 'json' in some form to use "
            "'text.format' of type 'json_object'.",
            "input",
        )


# -- what was kept, what was made elsewhere -------------------------------------------------------


def _check_kept(fields: Json) -> None:
    if not {"input", "prompt", "previous_response_id", "conversation"} & fields.keys():
        raise refused(
            400,
            "One of \"input\" or \"previous_response_id\" or 'prompt' or 'conversation' must be "
            "provided.",
            param="input",
            code="missing_required_parameter",
        )
    previous = fields.get("previous_response_id")
    if previous is not None:
        raise refused(
            400,
            f"Previous response with id '{previous}' not found.",
            param="previous_response_id",
            code="previous_response_not_found",
        )
    for name in ("prompt", "conversation", "background"):
        if fields.get(name):
            raise refused(404, f"The {name} was not found.", param=name)
    for item in _items(fields):
        if item["type"] == "item_reference":
            raise _not_kept(item)


def _not_kept(item: Json) -> Exception:
    return refused(
        404,
        f"Item with id '{item.get('id')}' not found. Items are not persisted when `store` is set "
        "to false. Try again with `store` set to true, or remove this item from your input.",
        param="input",
    )


def _check_family(fields: Json) -> None:
    """What reasoning models do not take, and what the others do not."""
    family = family_of(a_string(fields["model"]))
    reasons = _REASONING_FAMILY.match(family) is not None
    unsupported: list[str] = [
        name for name in ("temperature", "top_p") if reasons and name in fields
    ]
    if family and not reasons and "effort" in an_object(fields.get("reasoning")):
        unsupported.append("reasoning.effort")
    if unsupported:
        raise refused(
            400,
            f"Unsupported parameter: '{unsupported[0]}' is not supported with this model.",
            param=unsupported[0],
            code="unsupported_parameter",
        )


def _check_reasoning(items: Sequence[Json], model: str) -> Sequence[str]:
    """Reasoning that is kept here goes before what it led to; the ids of what is not kept."""
    removed = []
    for index, item in enumerate(items):
        if item["type"] != "reasoning":
            continue
        encrypted = item.get("encrypted_content")
        if encrypted is None:
            raise _not_kept(item)
        if not is_signed(a_string(encrypted), "responses", model):
            removed.append(a_string(item.get("id")))
            continue
        after = items[index + 1] if index + 1 < len(items) else {}
        if after.get("type") not in ("reasoning", *_CALLS) and after.get("role") != "assistant":
            raise refused(
                400,
                f"Item '{item.get('id')}' of type 'reasoning' was provided without its required "
                "following item.",
                param="input",
            )
    return removed


def _check_pairs(items: Sequence[Json]) -> None:
    """Calls have outputs, and outputs come after their calls."""
    calls: dict[str, str] = {}
    answered: set[str] = set()
    for item in items:
        kind = a_string(item["type"])
        call_id = a_string(item.get("call_id"))
        if kind in _CALLS:
            calls[call_id] = kind
        elif kind in _OUTPUTS:
            if calls.get(call_id) != _OUTPUTS[kind]:
                what = _OUTPUTS[kind].replace("_", " ")
                raise refused(
                    400,
                    f"No tool call found for {what} output with call_id {call_id}.",
                    param="input",
                )
            answered.add(call_id)
    for call_id, kind in calls.items():
        if call_id not in answered:
            raise refused(
                400,
                f"No tool output found for {kind.replace('_', ' ')} {call_id}.",
                param="input",
            )


# -- shapes ---------------------------------------------------------------------------------------

_are = Shapes(WORDING)
_BREAKPOINT: Mapping[str, Read] = {"type": _are.string, "prompt_cache_breakpoint": _are.mapping}


def _identified(prefix: str) -> Read:
    def read(at: Path, value: object) -> object:
        name = a_string(_are.string(at, value))
        if not name.startswith(prefix):
            raise refused(
                400,
                f"Invalid '{spelled(at)}': '{name}'. Expected an ID that begins with '{prefix}'.",
                param=spelled(at),
                code="invalid_value",
            )
        return name

    return read


def _call_id(at: Path, value: object) -> object:
    name = a_string(_are.text(least=1)(at, value))
    if len(name) > _CALL_ID_MAX:
        raise refused(
            400,
            f"Invalid '{spelled(at)}': string too long. Expected a string with maximum length "
            f"{_CALL_ID_MAX}, but got a string with length {len(name)} instead.",
            param=spelled(at),
            code="string_above_max_length",
        )
    return name


_INPUT_PARTS: Mapping[str, Read] = {
    "input_text": _are.members({**_BREAKPOINT, "text": _are.string}, required=["text"]),
    "input_image": _are.members(
        {
            **_BREAKPOINT,
            "image_url": image_url,
            "file_id": _are.string,
            "detail": _are.one_of("auto", "low", "high", "original"),
        }
    ),
    "input_file": _are.members(
        {
            **_BREAKPOINT,
            "file_data": _are.string,
            "file_id": _are.string,
            "file_url": _are.string,
            "filename": _are.string,
            "detail": _are.string,
        }
    ),
    "input_audio": _are.members(
        {**_BREAKPOINT, "input_audio": _are.mapping, "data": _are.string, "format": _are.string}
    ),
}
_OUTPUT_PARTS: Mapping[str, Read] = {
    "output_text": _are.members(
        {
            "type": _are.string,
            "text": _are.string,
            "annotations": _are.array(_are.mapping),
            "logprobs": _are.anything,
        },
        required=["text"],
    ),
    "refusal": _are.members({"type": _are.string, "refusal": _are.string}, required=["refusal"]),
}
_CONTENT = "one of an array of objects or string"
_STATUS = _are.one_of("in_progress", "completed", "incomplete")


def _content(parts: Mapping[str, Read]) -> Read:
    return _are.either(_CONTENT, {str: _are.string, list: _are.array(_are.tagged(parts))})


def _message(parts: Mapping[str, Read]) -> Read:
    return _are.members(
        {
            "type": _are.string,
            "role": _are.string,
            "content": _content(parts),
            "id": _identified("msg"),
            "status": _STATUS,
            "phase": _are.one_of("commentary", "final_answer"),
        },
        required=["content"],
    )


_MESSAGE = _are.tagged(
    {
        "user": _message(_INPUT_PARTS),
        "assistant": _message(_OUTPUT_PARTS),
        "system": _message(_INPUT_PARTS),
        "developer": _message(_INPUT_PARTS),
    },
    tag="role",
)
_CALL_FIELDS: Mapping[str, Read] = {
    "type": _are.string,
    "call_id": _call_id,
    "name": _are.text(_TOOL_NAME),
    "namespace": _are.string,
    "status": _STATUS,
    "caller": _are.anything,
}
_OUTPUT_FIELDS: Mapping[str, Read] = {
    "type": _are.string,
    "id": _are.string,
    "call_id": _call_id,
    "name": _are.string,
    "output": _content(_INPUT_PARTS),
    "status": _STATUS,
    "caller": _are.anything,
}
_OTHER_ITEMS = (
    "compaction",
    "compaction_trigger",
    "configuration_update",
    "additional_tools",
    "tool_search_call",
    "tool_search_output",
    "program",
    "program_output",
    "file_search_call",
    "web_search_call",
    "computer_call",
    "computer_call_output",
    "image_generation_call",
    "code_interpreter_call",
    "local_shell_call",
    "local_shell_call_output",
    "shell_call",
    "shell_call_output",
    "apply_patch_call",
    "apply_patch_call_output",
    "mcp_list_tools",
    "mcp_approval_request",
    "mcp_approval_response",
    "mcp_call",
)
_ITEM_KINDS: Mapping[str, Read] = {
    "message": _MESSAGE,
    "reasoning": _are.members(
        {
            "type": _are.string,
            "id": _identified("rs"),
            "summary": _are.array(
                _are.members({"type": _are.string, "text": _are.string}, required=["text"])
            ),
            "content": _are.array(_are.mapping),
            "encrypted_content": _are.string,
            "status": _STATUS,
        },
        required=["summary"],
    ),
    "function_call": _are.members(
        {**_CALL_FIELDS, "id": _identified("fc"), "arguments": _are.string},
        required=["call_id", "name", "arguments"],
    ),
    "custom_tool_call": _are.members(
        {**_CALL_FIELDS, "id": _identified("ctc"), "input": _are.string},
        required=["call_id", "name", "input"],
    ),
    "function_call_output": _are.members(_OUTPUT_FIELDS, required=["call_id", "output"]),
    "custom_tool_call_output": _are.members(_OUTPUT_FIELDS, required=["call_id", "output"]),
    "item_reference": _are.members({"type": _are.string, "id": _are.string}, required=["id"]),
    **dict.fromkeys(_OTHER_ITEMS, _are.mapping),
}
_TAGGED_ITEM = _are.tagged(_ITEM_KINDS, default="message")


def _item(at: Path, value: object) -> object:
    """Messages may leave out their type."""
    return {"type": "message", **an_object(_TAGGED_ITEM(at, value))}


_NAMED: Mapping[str, Read] = {
    "type": _are.string,
    "name": _are.text(_TOOL_NAME),
    "description": _are.string,
    "defer_loading": _are.boolean,
    "async": _are.boolean,
}
_CALLABLE: Mapping[str, Read] = {
    "function": _are.members(
        {
            **_NAMED,
            "parameters": _are.mapping,
            "strict": _are.boolean,
            "allowed_callers": _are.array(_are.string),
            "output_schema": _are.mapping,
        },
        required=["name"],
    ),
    "custom": _are.members({**_NAMED, "format": _are.mapping}, required=["name"]),
}
_HOSTED = (
    "tool_search",
    "file_search",
    "computer",
    "computer_use_preview",
    "web_search",
    "web_search_preview",
    "mcp",
    "code_interpreter",
    "programmatic_tool_calling",
    "image_generation",
    "local_shell",
    "shell",
    "apply_patch",
)
_TOOL = _are.tagged(
    {
        **_CALLABLE,
        "namespace": _are.members(
            {**_NAMED, "tools": _are.array(_are.tagged(_CALLABLE))}, required=["name", "tools"]
        ),
        **dict.fromkeys(_HOSTED, _are.mapping),
    }
)
_FORMAT = _are.tagged(
    {
        "text": _are.members({"type": _are.string}),
        "json_object": _are.members({"type": _are.string}),
        "json_schema": _are.members(
            {
                "type": _are.string,
                "name": _are.text(_TOOL_NAME),
                "schema": _are.mapping,
                "strict": _are.boolean,
                "description": _are.string,
            },
            required=["name", "schema"],
        ),
    }
)
_COUNTED: Mapping[str, Read] = {
    "model": _are.string,
    "input": _are.either(_CONTENT, {str: _are.string, list: _are.array(_item)}),
    "instructions": _are.string,
    "tools": _are.array(_TOOL),
    "tool_choice": _are.either(
        "one of a string or an object",
        {str: _are.one_of("none", "auto", "required"), dict: _are.mapping},
    ),
    "parallel_tool_calls": _are.boolean,
    "text": _are.members({"format": _FORMAT, "verbosity": _are.one_of("low", "medium", "high")}),
    "reasoning": _are.members(
        {
            "effort": _are.one_of("none", "minimal", "low", "medium", "high", "xhigh", "max"),
            "summary": _are.one_of("auto", "concise", "detailed"),
            "generate_summary": _are.one_of("auto", "concise", "detailed"),
            "context": _are.one_of("auto", "current_turn", "all_turns"),
            "mode": _are.one_of("standard", "pro"),
        }
    ),
    "truncation": _are.one_of("auto", "disabled"),
    "previous_response_id": _are.string,
    "conversation": _are.anything,
}
_COUNT = _are.members({**_COUNTED, "personality": _are.string})
_RESPONSE = _are.members(
    {
        **_COUNTED,
        "access_programs": _are.mapping,
        "background": _are.boolean,
        "client_metadata": _are.mapping,
        "context_management": _are.array(_are.mapping),
        "image": _are.mapping,
        "include": _are.array(
            _are.one_of(
                "file_search_call.results",
                "web_search_call.results",
                "web_search_call.action.sources",
                "message.input_image.image_url",
                "computer_call_output.output.image_url",
                "code_interpreter_call.outputs",
                "reasoning.encrypted_content",
                "message.output_text.logprobs",
            )
        ),
        "max_output_tokens": _are.integer(16),
        "max_tool_calls": _are.integer(1),
        "metadata": _are.mapping,
        "moderation": _are.mapping,
        "prompt": _are.mapping,
        "prompt_cache_key": _are.string,
        "prompt_cache_options": _are.mapping,
        "prompt_cache_retention": _are.one_of("in_memory", "24h"),
        "safety_identifier": _are.string,
        "service_tier": _are.one_of(
            "auto", "default", "flex", "scale", "priority", "fast", "ultrafast"
        ),
        "store": _are.boolean,
        "stream": _are.boolean,
        "stream_options": _are.members({"include_obfuscation": _are.boolean}),
        "temperature": _are.number(0, 2),
        "top_logprobs": _are.integer(0, 20),
        "top_p": _are.number(0, 1),
        "user": _are.string,
    }
)
