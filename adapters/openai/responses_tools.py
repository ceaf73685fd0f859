"""Tools and the choice among them, as Responses clients declare them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal, NamedTuple

import msgspec

from adapters.canonical import Grammar, HostedTool, Tool, ToolChoice
from adapters.errors import InvalidRequest
from adapters.raw import UNREADABLE

SEARCH_NAME = "tool_search"

Mode = Literal["auto", "any", "none"]

_MODES: Mapping[str, Mode] = {"auto": "auto", "none": "none", "required": "any"}
_OWN = ("function", "custom")
_NO_TOOLS = "a list of tools, each an object with a type"


class Declared(NamedTuple):
    """The tools of the client's own, and those that only the provider can run."""

    tools: tuple[Tool, ...] = ()
    hosted: tuple[HostedTool, ...] = ()


class _Format(msgspec.Struct, gc=False):
    """Of a custom tool's input. Some clients nest the grammar as Chat Completions does."""

    type: object = None
    syntax: object = None
    definition: object = None
    grammar: _Format | None = None


class _Tool(msgspec.Struct, gc=False):
    type: str = ""
    name: str = ""
    description: str | None = None
    parameters: dict[str, object] | None = None
    strict: bool | None = None
    format: _Format | None = None
    execution: str | None = None
    tools: list[_Tool] | None = None


class _Named(msgspec.Struct, gc=False):
    """A choice, or one of the tools in it."""

    type: str = ""
    name: str | None = None
    mode: str | None = None
    tools: list[_Named] | None = None


_decode_tools = msgspec.json.Decoder(list[_Tool] | None).decode
_decode_choice = msgspec.json.Decoder(str | _Named | None).decode


def read_tools(raw: msgspec.Raw, param: str = "tools") -> Declared:
    """The tools of a list. Raises InvalidRequest naming `param`."""
    try:
        declared = _decode_tools(raw) or []
    except UNREADABLE as error:
        raise InvalidRequest(f"{param} must be {_NO_TOOLS}: {error}.", param=param) from None
    tools: list[Tool] = []
    hosted: list[HostedTool] = []
    for at, tool in enumerate(declared):
        where = f"{param}[{at}]"
        if tool.type in _OWN:
            tools.append(_own(tool, where))
        elif tool.type == "namespace":
            tools += _grouped(tool, where)
        elif tool.type == "tool_search" and tool.execution == "client":
            tools.append(_search(tool))
        elif tool.type:
            hosted.append(HostedTool(type=tool.type))
        else:
            raise InvalidRequest(f"{where}.type is required.", param=f"{where}.type")
    return Declared(tuple(tools), tuple(hosted))


def read_choice(raw: msgspec.Raw) -> ToolChoice | None:
    """The choice; None where it was left out. Raises InvalidRequest."""
    try:
        choice = _decode_choice(raw)
    except UNREADABLE:
        raise InvalidRequest(
            "tool_choice must be none, auto, required, or an object with a type.",
            param="tool_choice",
        ) from None
    if choice is None:
        return None
    if isinstance(choice, str):
        return ToolChoice(mode=_mode(choice))
    if choice.type == "allowed_tools":
        return _allowed(choice)
    if choice.type in _OWN:
        if not choice.name:
            raise InvalidRequest("tool_choice.name is required.", param="tool_choice.name")
        return ToolChoice(mode="named", names=(choice.name,))
    return ToolChoice(mode="hosted", names=(choice.type,))


def _allowed(choice: _Named) -> ToolChoice:
    """A choice among some of the tools; where none of those is the client's own, none is left."""
    mode = _mode(choice.mode or "auto")
    tools = choice.tools or []
    names = tuple(tool.name for tool in tools if tool.type in _OWN and tool.name)
    if names or not tools:
        return ToolChoice(mode=mode, names=names)
    if mode == "any":
        return ToolChoice(mode="hosted", names=tuple(tool.type for tool in tools))
    return ToolChoice(mode="none")


def _mode(word: str) -> Mode:
    if word not in _MODES:
        raise InvalidRequest(
            f"tool_choice must be none, auto or required, not {word!r}.", param="tool_choice"
        )
    return _MODES[word]


def _own(tool: _Tool, where: str, namespace: str = "") -> Tool:
    if not tool.name:
        raise InvalidRequest(f"{where}.name is required.", param=f"{where}.name")
    free = tool.type == "custom"
    return Tool(
        name=tool.name,
        description=tool.description or "",
        schema=tool.parameters,
        strict=tool.strict,
        free=free,
        grammar=_grammar(tool.format) if free else None,
        namespace=namespace,
    )


def _grouped(group: _Tool, where: str) -> Iterable[Tool]:
    if not group.name:
        raise InvalidRequest(f"{where}.name is required.", param=f"{where}.name")
    for at, tool in enumerate(group.tools or ()):
        yield _own(tool, f"{where}.tools[{at}]", group.name)


def _search(tool: _Tool) -> Tool:
    return Tool(
        name=SEARCH_NAME,
        description=tool.description or "Find further tools that may help with the task.",
        schema=tool.parameters,
        search=True,
    )


def _grammar(form: _Format | None) -> Grammar | None:
    found = form.grammar or form if form is not None else None
    if found is None or not isinstance(found.definition, str):
        return None
    return Grammar(found.syntax if isinstance(found.syntax, str) else "lark", found.definition)
