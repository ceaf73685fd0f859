"""The tools a chat request declares, and how the model may choose among them.

Three dialects arrive here: Chat Completions' own (`{"type": "function", "function": {…}}`), the
flat one of Responses, and Anthropic's with `input_schema`. Cursor sends all of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import msgspec

from adapters.canonical import Grammar, HostedTool, Tool, ToolChoice
from adapters.errors import InvalidRequest
from adapters.openai.chat_marks import CacheControl, CacheMark, cache_of

_MODES = {"auto": "auto", "required": "any", "any": "any", "none": "none"}


class GrammarSyntax(msgspec.Struct, gc=False):
    syntax: str = ""
    definition: str = ""


class Format(msgspec.Struct, gc=False):
    """A free-form tool's input; Responses has the grammar's members right here."""

    type: str = "text"
    grammar: GrammarSyntax | None = None
    syntax: str = ""
    definition: str = ""


class Declared(msgspec.Struct, gc=False):
    """A function or a free-form tool, under either of its members or flat."""

    name: str = ""
    description: str | None = None
    parameters: dict[str, object] | None = None
    input_schema: dict[str, object] | None = None
    strict: bool | None = None
    format: Format | None = None


class ToolMember(Declared, gc=False):
    """One of `tools`."""

    type: str | None = None
    function: Declared | None = None
    custom: Declared | None = None
    cache_control: CacheControl | None = None
    prompt_cache_breakpoint: CacheMark | None = None


class Named(msgspec.Struct, gc=False):
    name: str = ""


class Allowed(msgspec.Struct, gc=False):
    mode: str = "auto"
    tools: list[Choice] = []


class Choice(msgspec.Struct, gc=False):
    """`tool_choice` as an object, or one of the tools it allows."""

    type: str = ""
    name: str = ""
    function: Named | None = None
    custom: Named | None = None
    allowed_tools: Allowed | None = None
    mode: str = "auto"
    tools: list[Choice] = []
    disable_parallel_tool_use: bool | None = None


class ReadTools(NamedTuple):
    """The tools of a request, and those that the provider itself would run."""

    tools: tuple[Tool, ...]
    hosted: tuple[HostedTool, ...]


def read_tools(members: Sequence[ToolMember], functions: Sequence[Declared]) -> ReadTools:
    """The tools of `tools` and of its predecessor `functions`. Raises InvalidRequest."""
    tools: list[Tool] = []
    hosted: list[HostedTool] = []
    for number, member in enumerate(members):
        tool = _tool(member, f"tools[{number}]")
        if isinstance(tool, Tool):
            tools.append(tool)
        else:
            hosted.append(tool)
    tools += [_function(each, f"functions[{at}]") for at, each in enumerate(functions)]
    return ReadTools(tuple(tools), tuple(hosted))


def _tool(member: ToolMember, at: str) -> Tool | HostedTool:
    cache = cache_of(member.cache_control, member.prompt_cache_breakpoint)
    if member.function is not None:
        tool = _function(member.function, at)
    elif member.custom is not None:
        tool = _free(member.custom, at)
    elif member.input_schema is None and member.type == "custom":
        tool = _free(member, at)
    elif member.type in (None, "function", "custom"):
        tool = _function(member, at)
    else:
        return HostedTool(type=member.type)
    return msgspec.structs.replace(tool, cache=cache) if cache else tool


def _function(declared: Declared, at: str) -> Tool:
    schema = declared.parameters if declared.parameters is not None else declared.input_schema
    return Tool(
        name=_name(declared, at),
        description=declared.description or "",
        schema=schema,
        strict=declared.strict,
    )


def _free(declared: Declared, at: str) -> Tool:
    return Tool(
        name=_name(declared, at),
        description=declared.description or "",
        free=True,
        grammar=_grammar(declared.format),
    )


def _name(declared: Declared, at: str) -> str:
    if not declared.name:
        raise InvalidRequest(f"{at}: a tool needs a name.", param=at)
    return declared.name


def _grammar(given: Format | None) -> Grammar | None:
    if given is None or given.type != "grammar":
        return None
    if given.grammar is not None:
        return Grammar(given.grammar.syntax, given.grammar.definition)
    return Grammar(given.syntax, given.definition)


def read_choice(given: str | Choice | None, legacy: str | Named | None) -> ToolChoice | None:
    """The choice of `tool_choice`, else of its predecessor `function_call`.

    Raises InvalidRequest.
    """
    if isinstance(given, str):
        return _mode(given, "tool_choice")
    if given is not None:
        return _choice(given)
    if isinstance(legacy, str):
        return _mode(legacy, "function_call")
    return None if legacy is None else ToolChoice(mode="named", names=(legacy.name,))


def _choice(given: Choice) -> ToolChoice:
    if given.type in _MODES:  # as Anthropic has it
        return _mode(given.type, "tool_choice.type")
    if given.type == "allowed_tools":
        allowed = given.allowed_tools or Allowed(given.mode, given.tools)
        choice = _mode(allowed.mode, "tool_choice.allowed_tools.mode")
        return msgspec.structs.replace(choice, names=tuple(_names(allowed.tools)))
    names = tuple(_names([given]))
    if names and names[0]:
        return ToolChoice(mode="named", names=names)
    if given.type in ("", "function", "custom", "tool"):
        raise InvalidRequest("tool_choice: the tool to choose needs a name.", param="tool_choice")
    return ToolChoice(mode="hosted", names=(given.type,))


def _mode(word: str, field: str) -> ToolChoice:
    match _MODES.get(word):
        case "auto" | "any" | "none" as mode:
            return ToolChoice(mode=mode)
        case _:
            raise InvalidRequest(f"{field} must be none, auto or required.", param=field)


def _names(choices: Iterable[Choice]) -> list[str]:
    return [(each.function or each.custom or each).name for each in choices]
