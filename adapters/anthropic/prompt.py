"""A whole Messages request as a prompt, for providers of another protocol.

Refused is what would change what is asked: conversations that only Anthropic remembers, servers
and containers that only it reaches. Hints to its own machinery are left out silently, what nobody
else has a place for is left out by name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TypeVar

import msgspec

from adapters.anthropic.blocks import BlockReader, CacheControl, cache_of
from adapters.canonical import (
    Document,
    Effort,
    HostedTool,
    Image,
    OutputFormat,
    Prompt,
    Reasoning,
    Sampling,
    Text,
    Tool,
    ToolChoice,
    ToolResult,
    Turn,
)
from adapters.codec import Request
from adapters.envelope import Envelopes
from adapters.errors import InvalidRequest, RequestNotExpressible
from adapters.openai.body import Fields, text_of
from adapters.raw import UNREADABLE

T = TypeVar("T")

# Claude Code's first system block: it varies, so it would spoil every cache but Anthropic's.
_BILLING = "x-anthropic-billing-header:"

_READ = frozenset(
    {"model", "messages", "max_tokens", "stream", "system", "tools", "tool_choice", "thinking"}
    | {"output_config", "temperature", "top_p", "top_k", "stop_sequences", "metadata"}
    | {"service_tier", "cache_control"}
)
_HINTS = frozenset(
    {"context_management", "diagnostics", "speed", "inference_geo", "tags", "betas"}
    | {"user_profile_id", "workspace_id", "fallback_credit_token", "billing_policy"}
)
_REFUSED: Mapping[str, str] = {
    "thread": "only Anthropic keeps threads; send the whole conversation without it",
    "container": "only Anthropic runs containers",
    "mcp_servers": "only Anthropic calls MCP servers by itself",
    "compaction": "only Anthropic compacts conversations by itself",
    "safeguards": "safeguards are known to Anthropic alone",
}
_THREAD_DETAILS = {"error_code": "thread_unsupported_request", "unsupported": ["thread"]}
_EFFORTS: tuple[Effort, ...] = ("low", "medium", "high", "xhigh", "max")
_TIERS = {"auto": "auto", "standard_only": "default"}
_VERSION_DIGITS = 8


class _OutputFormat(msgspec.Struct):
    type: str = ""
    schema: dict[str, object] | None = None


class _OutputConfig(msgspec.Struct):
    effort: str | None = None
    format: _OutputFormat | None = None


class _Message(msgspec.Struct):
    role: str
    content: msgspec.Raw
    output_config: _OutputConfig | None = None


class _Tool(msgspec.Struct):
    name: str = ""
    type: str | None = None
    description: str | None = None
    input_schema: dict[str, object] | None = None
    strict: bool | None = None
    cache_control: CacheControl | None = None


class _Choice(msgspec.Struct):
    type: str
    name: str = ""
    disable_parallel_tool_use: bool | None = None


class _Thinking(msgspec.Struct):
    type: str
    budget_tokens: int | None = None
    display: str | None = None


class _Sampling(msgspec.Struct):
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None


_messages_decoder = msgspec.json.Decoder(list[_Message])
_tools_decoder = msgspec.json.Decoder(list[_Tool] | None)
_choice_decoder = msgspec.json.Decoder(_Choice | None)
_thinking_decoder = msgspec.json.Decoder(_Thinking | None)
_output_config_decoder = msgspec.json.Decoder(_OutputConfig | None)
_sampling_decoder = msgspec.json.Decoder(_Sampling)
_stops_decoder = msgspec.json.Decoder(list[str] | None)
_cache_decoder = msgspec.json.Decoder(CacheControl | None)


def read_prompt(request: Request, envelopes: Envelopes) -> Prompt:
    """The whole of a request. Raises InvalidRequest, or RequestNotExpressible."""
    fields = request.fields
    _refuse_what_only_anthropic_has(fields)
    dropped = {
        name: None
        for name in fields
        if name not in _READ and name not in _HINTS and name not in _REFUSED
    }
    reader = BlockReader(envelopes, dropped)
    messages = _decoded(_messages_decoder, fields, "messages") or []
    config = _decoded(_output_config_decoder, fields, "output_config") or _OutputConfig()
    efforts = [each.output_config.effort for each in messages if each.output_config]
    turns = [*_system(fields, reader), *_turns(messages, reader)]
    tools, hosted = _tools(fields)
    choice = _decoded(_choice_decoder, fields, "tool_choice")
    return Prompt(
        turns=tuple(_marked(turns, fields)),
        tools=tuple(tools),
        hosted_tools=tuple(HostedTool(type=kind) for kind in dict.fromkeys(hosted.values())),
        tool_choice=_tool_choice(choice, hosted),
        parallel=_parallel(choice),
        format=_format(config.format),
        reasoning=_reasoning(fields, [config.effort, *efforts]),
        sampling=_sampling(fields),
        stop=tuple(_decoded(_stops_decoder, fields, "stop_sequences") or ()),
        end_user=request.user_id,
        cache_key=request.conversation_id,
        service_tier=_TIERS.get(text_of(fields, "service_tier") or "", ""),
        dropped=tuple(dropped),
    )


def _refuse_what_only_anthropic_has(fields: Fields) -> None:
    for name, why in _REFUSED.items():
        if bytes(fields.get(name, b"null")) not in (b"null", b"[]"):
            details = _THREAD_DETAILS if name == "thread" else None
            raise RequestNotExpressible(f"{name}: {why}.", param=name, details=details)
    if bytes(fields.get("max_tokens", b"")) == b"0":
        raise RequestNotExpressible(
            "max_tokens: only Anthropic's cache can be warmed without an answer.",
            param="max_tokens",
        )


# -- conversation ---------------------------------------------------------------------------------


def _system(fields: Fields, reader: BlockReader) -> Iterator[Turn]:
    raw = fields.get("system")
    if raw is None or bytes(raw) == b"null":
        return
    texts = [text for text in reader.texts(raw, "system") if not text.text.startswith(_BILLING)]
    if texts:
        yield Turn(role="system", parts=tuple(texts))


def _turns(messages: list[_Message], reader: BlockReader) -> Iterator[Turn]:
    for number, message in enumerate(messages):
        where = f"messages.{number}.content"
        if message.role == "user":
            yield Turn(role="user", parts=reader.parts(message.content, where))
        elif message.role == "assistant":
            yield Turn(role="assistant", parts=reader.parts(message.content, where))
        elif message.role == "system":
            yield Turn(role="system", parts=tuple(reader.texts(message.content, where)))
        else:
            raise InvalidRequest(
                f"messages.{number}.role must be user, assistant or system.", param="messages"
            )


def _marked(turns: list[Turn], fields: Fields) -> list[Turn]:
    """The turns; the last part that can be cached is marked where the whole request is."""
    cache = cache_of(_decoded(_cache_decoder, fields, "cache_control"))
    if not cache or not turns or not turns[-1].parts:
        return turns
    *others, part = turns[-1].parts
    if isinstance(part, Text | Image | Document | ToolResult):
        part = msgspec.structs.replace(part, cache=cache)
    return [*turns[:-1], msgspec.structs.replace(turns[-1], parts=(*others, part))]


# -- tools ----------------------------------------------------------------------------------------


def _tools(fields: Fields) -> tuple[list[Tool], dict[str, str]]:
    """Functions; and by its name the type of every tool that Anthropic itself describes or runs."""
    tools: list[Tool] = []
    hosted: dict[str, str] = {}
    for number, tool in enumerate(_decoded(_tools_decoder, fields, "tools") or ()):
        if tool.type not in (None, "custom"):
            kind = _undated(str(tool.type))
            hosted[tool.name or kind] = kind
            continue
        if not tool.name:
            raise InvalidRequest(f"tools.{number}.name is required.", param="tools")
        tools.append(
            Tool(
                name=tool.name,
                description=tool.description or "",
                schema=tool.input_schema,
                strict=tool.strict,
                cache=cache_of(tool.cache_control),
            )
        )
    return tools, hosted


def _undated(kind: str) -> str:
    """`web_search_20250305` as `web_search`."""
    name, _, version = kind.rpartition("_")
    return name if len(version) == _VERSION_DIGITS and version.isdigit() else kind


def _tool_choice(choice: _Choice | None, hosted: Mapping[str, str]) -> ToolChoice | None:
    if choice is None:
        return None
    if choice.type == "tool":
        if choice.name in hosted:
            return ToolChoice(mode="hosted", names=(hosted[choice.name],))
        return ToolChoice(mode="named", names=(choice.name,))
    if choice.type == "auto":
        return ToolChoice(mode="auto")
    if choice.type == "any":
        return ToolChoice(mode="any")
    if choice.type == "none":
        return ToolChoice(mode="none")
    raise InvalidRequest("tool_choice.type must be auto, any, tool or none.", param="tool_choice")


def _parallel(choice: _Choice | None) -> bool | None:
    disabled = None if choice is None else choice.disable_parallel_tool_use
    return None if disabled is None else not disabled


# -- how to answer --------------------------------------------------------------------------------


def _reasoning(fields: Fields, efforts: list[str | None]) -> Reasoning | None:
    """How much to think: the last effort that was named, and what `thinking` says."""
    thinking = _decoded(_thinking_decoder, fields, "thinking")
    effort = _effort(next((each for each in reversed(efforts) if each), ""))
    if thinking is None:
        return Reasoning(effort=effort) if effort else None
    if thinking.type in ("disabled", "between_tools"):
        return Reasoning(effort="none")
    show = None if thinking.display is None else thinking.display != "omitted"
    if thinking.type == "enabled":
        if thinking.budget_tokens is None:
            raise InvalidRequest("thinking.budget_tokens is required.", param="thinking")
        return Reasoning(effort=effort, budget=thinking.budget_tokens, show=_shown(show))
    if thinking.type == "adaptive":
        return Reasoning(effort=effort, adaptive=True, show=show)
    raise InvalidRequest(
        "thinking.type must be adaptive, enabled, disabled or between_tools.", param="thinking"
    )


def _shown(show: bool | None) -> bool:
    """Thinking by a budget is shown unless the client declines."""
    return show is not False


def _effort(text: str) -> Effort:
    if not text:
        return ""
    effort: Effort | None = next((each for each in _EFFORTS if each == text), None)
    if effort is None:
        raise InvalidRequest(
            f"output_config.effort must be one of {', '.join(_EFFORTS)}.", param="output_config"
        )
    return effort


def _format(wanted: _OutputFormat | None) -> OutputFormat | None:
    if wanted is None:
        return None
    if wanted.type != "json_schema" or wanted.schema is None:
        raise InvalidRequest(
            "output_config.format must be {type: json_schema, schema}.", param="output_config"
        )
    return OutputFormat(kind="schema", schema=wanted.schema)


def _sampling(fields: Fields) -> Sampling:
    wanted = {name: fields[name] for name in ("temperature", "top_p", "top_k") if name in fields}
    if not wanted:
        return Sampling()
    try:
        read = _sampling_decoder.decode(msgspec.json.encode(wanted))
    except UNREADABLE as error:
        raise InvalidRequest(f"{', '.join(wanted)}: {error}.", param=next(iter(wanted))) from None
    return Sampling(temperature=read.temperature, top_p=read.top_p, top_k=read.top_k)


def _decoded(decoder: msgspec.json.Decoder[T], fields: Fields, name: str) -> T | None:
    """A member, None where it is absent. Raises InvalidRequest naming it and the place in it."""
    raw = fields.get(name)
    if raw is None:
        return None
    try:
        return decoder.decode(raw)
    except UNREADABLE as error:
        raise InvalidRequest(f"{name}: {error}.", param=name) from None
