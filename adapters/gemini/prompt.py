"""A whole Gemini request as a prompt, for providers of other protocols."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal

import msgspec

from adapters.canonical import (
    Effort,
    HostedTool,
    OutputFormat,
    Prompt,
    Reasoning,
    Sampling,
    Tool,
    ToolChoice,
    Turn,
)
from adapters.envelope import Envelopes
from adapters.errors import InvalidRequest, RequestNotExpressible
from adapters.gemini import fields
from adapters.gemini.turns import Turns
from adapters.gemini.wire import canonical_tier
from adapters.json_schema import from_openapi
from adapters.openai.body import Fields

_CONFIG = "generationConfig"
_CALLING = "toolConfig.functionCallingConfig"
# What only the provider that holds it can resolve.
_BY_REFERENCE = ("cachedContent", "continuationToken")
# Left out without a word: other providers have their own, or nothing depends on it.
_SILENT = frozenset({"model", "safetySettings", "labels"})
_READ = frozenset(
    {"contents", "systemInstruction", "tools", "toolConfig", "generationConfig", "serviceTier"}
)
_CONFIG_READ = frozenset(
    {
        *("temperature", "topP", "topK", "candidateCount", "maxOutputTokens", "stopSequences"),
        *("seed", "presencePenalty", "frequencyPenalty", "responseLogprobs", "logprobs"),
        *("responseMimeType", "responseSchema", "responseJsonSchema", "responseFormat"),
        *("responseModalities", "thinkingConfig", "speechConfig"),
    }
)
_JSON_TYPE = "application/json"
_OLD_SCHEMA = "ResponseJsonSchema"  # `_responseJsonSchema`, from before it was public
_SCHEMAS = ("responseJsonSchema", _OLD_SCHEMA, "responseSchema")
_LEVELS: Mapping[str, Effort] = {
    "MINIMAL": "minimal",
    "LOW": "low",
    "MEDIUM": "medium",
    "HIGH": "high",
    "XHIGH": "xhigh",
}
_MODES: Mapping[str, Literal["auto", "any", "none"]] = {
    "AUTO": "auto",
    "VALIDATED": "auto",
    "ANY": "any",
    "NONE": "none",
}


def read_prompt(members: Fields, envelopes: Envelopes) -> Prompt:
    """The prompt of a request's `members` (as of `fields.named`).

    Raises InvalidRequest where it is malformed, RequestNotExpressible for what only Google holds.
    """
    _refuse_references(members)
    reader = Turns(envelopes)
    turns: list[Turn] = []
    if "systemInstruction" in members:
        turns.append(reader.system(members["systemInstruction"]))
    turns += reader.read(members.get("contents", msgspec.Raw(b"[]")))
    dropped = dict(reader.dropped)
    tools, hosted = _tools(members, dropped)
    config = fields.members(members[_CONFIG], _CONFIG) if _CONFIG in members else {}
    dropped |= dict.fromkeys(_unknown(members, _READ | _SILENT))
    dropped |= dict.fromkeys(_unknown(config, _CONFIG_READ | {_OLD_SCHEMA}))
    return Prompt(
        turns=tuple(turns),
        tools=tools,
        hosted_tools=hosted,
        tool_choice=_tool_choice(members, dropped),
        format=_format(config, dropped),
        reasoning=_reasoning(config),
        sampling=_sampling(config),
        stop=fields.texts(config, "stopSequences", _CONFIG),
        service_tier=canonical_tier(fields.text(members, "serviceTier")),
        choices=fields.whole(config, "candidateCount", _CONFIG) or 1,
        audio_output=_wants_audio(config),
        dropped=tuple(dropped),
    )


def _refuse_references(members: Fields) -> None:
    for name in _BY_REFERENCE:
        if name in members:
            why = "what it names lies at Google, and another provider cannot read it"
            raise RequestNotExpressible(f"{name}: {why}.", param=name)


def _unknown(members: Fields, known: frozenset[str]) -> Iterator[str]:
    return (name for name in members if name not in known)


# -- tools ----------------------------------------------------------------------------------------


def _tools(
    members: Fields, dropped: dict[str, None]
) -> tuple[tuple[Tool, ...], tuple[HostedTool, ...]]:
    tools: list[Tool] = []
    hosted: list[HostedTool] = []
    for at, raw in enumerate(fields.items(members.get("tools"), "tools")):
        where = f"tools[{at}]"
        for name, value in fields.members(raw, where).items():
            if name != "functionDeclarations":
                hosted.append(HostedTool(type=name))
                continue
            inside = f"{where}.{name}"
            for number, declaration in enumerate(fields.items(value, inside)):
                tools.append(_tool(declaration, f"{inside}[{number}]", dropped))
    return tuple(tools), tuple(hosted)


def _tool(raw: msgspec.Raw, where: str, dropped: dict[str, None]) -> Tool:
    members = fields.members(raw, where)
    name = fields.text(members, "name", where)
    if not name:
        raise InvalidRequest(f"{where}.name is required.", param=f"{where}.name")
    if fields.text(members, "behavior", where).upper() == "NON_BLOCKING":
        dropped["behavior"] = None
    schema = fields.mapping(members, "parametersJsonSchema", where)
    if schema is None:
        schema = fields.mapping(members, "parameters", where)
    return Tool(
        name=name,
        description=fields.text(members, "description", where),
        schema=None if schema is None else from_openapi(schema),
    )


def _tool_choice(members: Fields, dropped: dict[str, None]) -> ToolChoice | None:
    if "toolConfig" not in members:
        return None
    config = fields.members(members["toolConfig"], "toolConfig")
    dropped |= dict.fromkeys(
        _unknown(config, frozenset({"functionCallingConfig", "includeServerSideToolInvocations"}))
    )
    if "functionCallingConfig" not in config:
        return None
    calling = fields.members(config["functionCallingConfig"], _CALLING)
    word = fields.text(calling, "mode", _CALLING).upper() or "AUTO"
    names = fields.texts(calling, "allowedFunctionNames", _CALLING)
    mode = _MODES.get(word)
    if mode is None:
        return None  # MODE_UNSPECIFIED
    if word == "VALIDATED":
        dropped["approx:toolConfig"] = None
    if mode == "any" and len(names) == 1:
        return ToolChoice(mode="named", names=names)
    return ToolChoice(mode=mode, names=() if mode == "none" else names)


# -- generationConfig -----------------------------------------------------------------------------


def _sampling(config: Fields) -> Sampling:
    top_k = fields.number(config, "topK", _CONFIG)
    return Sampling(
        temperature=fields.number(config, "temperature", _CONFIG),
        top_p=fields.number(config, "topP", _CONFIG),
        top_k=None if top_k is None else int(top_k),  # SDKs send 64.0
        seed=fields.whole(config, "seed", _CONFIG),
        presence_penalty=fields.number(config, "presencePenalty", _CONFIG),
        frequency_penalty=fields.number(config, "frequencyPenalty", _CONFIG),
        logprobs=fields.flag(config, "responseLogprobs", _CONFIG) or False,
        top_logprobs=fields.whole(config, "logprobs", _CONFIG),
    )


def _reasoning(config: Fields) -> Reasoning | None:
    if "thinkingConfig" not in config:
        return None
    where = f"{_CONFIG}.thinkingConfig"
    thinking = fields.members(config["thinkingConfig"], where)
    budget = fields.whole(thinking, "thinkingBudget", where)
    return Reasoning(
        effort=_LEVELS.get(fields.text(thinking, "thinkingLevel", where).upper(), ""),
        budget=None if budget is None or budget < 0 else budget,  # -1: as the model likes
        show=fields.flag(thinking, "includeThoughts", where),
    )


def _format(config: Fields, dropped: dict[str, None]) -> OutputFormat | None:
    if "responseFormat" in config:
        return _listed_format(config["responseFormat"], dropped)
    media_type = fields.text(config, "responseMimeType", _CONFIG)
    for name in _SCHEMAS:
        if (schema := fields.mapping(config, name, _CONFIG)) is not None:
            return OutputFormat(kind="schema", schema=from_openapi(schema))
    return _by_media_type(media_type, dropped)


def _listed_format(raw: msgspec.Raw, dropped: dict[str, None]) -> OutputFormat | None:
    """The newer form: a list of formats, of which text is the one that others know."""
    where = f"{_CONFIG}.responseFormat"
    for at, each in enumerate(fields.items(raw, where)):
        inside = f"{where}[{at}]"
        members = fields.members(each, inside)
        if members.keys() != {"text"}:
            raise RequestNotExpressible(
                f"{inside}: this model's provider answers with nothing but text.", param=where
            )
        form = fields.members(members["text"], f"{inside}.text")
        schema = fields.mapping(form, "schema", f"{inside}.text")
        if schema is not None:
            return OutputFormat(kind="schema", schema=from_openapi(schema))
        media_type = fields.text(form, "mimeType", f"{inside}.text")
        return _by_media_type(media_type, dropped)
    return None


def _by_media_type(media_type: str, dropped: dict[str, None]) -> OutputFormat | None:
    """Only JSON is known elsewhere; SDKs write its type as Google's enum, too."""
    if media_type.lower().replace("_", "/") == _JSON_TYPE:
        return OutputFormat(kind="json")
    if media_type not in ("", "text/plain", "TEXT_PLAIN"):
        dropped["responseMimeType"] = None
    return None


def _wants_audio(config: Fields) -> bool:
    wanted = {each.upper() for each in fields.texts(config, "responseModalities", _CONFIG)}
    if "IMAGE" in wanted or "VIDEO" in wanted:
        name = f"{_CONFIG}.responseModalities"
        raise RequestNotExpressible(
            f"{name}: this model's provider answers with nothing but text.", param=name
        )
    return "AUDIO" in wanted
