"""A prompt as the body of a Gemini request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from adapters import effort, freeform, history, json_schema
from adapters.canonical import OutputFormat, Prompt, Reasoning, Tool, ToolChoice
from adapters.codec import Target
from adapters.gemini.contents import Contents
from adapters.gemini.traits import Traits, traits_of
from adapters.losses import Losses
from adapters.names import GEMINI_NAMES, ToolNames

STOPS_MAX = 5

_SEED_MAX = 2**31 - 1
_TIERS: Mapping[str, str] = {"flex": "FLEX", "priority": "PRIORITY", "default": "STANDARD"}

Body = dict[str, object]


class EncodedBody(NamedTuple):
    """The body, and the names under which it declares the tools."""

    body: Body
    names: ToolNames


def encode_body(prompt: Prompt, target: Target, losses: Losses) -> EncodedBody:
    """The request. Raises RequestNotExpressible."""
    _refuse_unknown(prompt, losses)
    traits = traits_of(target.model)
    instructions, turns = history.split_system(prompt.turns)
    turns = history.arranged(history.system_as_user(turns, losses), losses)
    tools, choice = history.tools_of(prompt)
    names = ToolNames(GEMINI_NAMES, tools, turns)
    if prompt.format is not None and prompt.format.kind != "text" and tools:
        tools, choice = _beside_format(tools, choice, traits, losses)
    body: Body = {"contents": Contents(names, target, traits, losses).written(turns)}
    if instructions:
        body["systemInstruction"] = {"parts": [{"text": each.text} for each in instructions]}
    body |= _tools(tools, choice, names, traits, losses)
    if config := _config(prompt, target, traits, losses):
        body["generationConfig"] = config
    if (tier := _TIERS.get(prompt.service_tier)) is not None:
        body["serviceTier"] = tier
    _drop_unknown(prompt, tools, losses)
    return EncodedBody(body, names)


def _refuse_unknown(prompt: Prompt, losses: Losses) -> None:
    """What may not be left out."""
    if prompt.choices > 1:
        losses.refuse("n", "gives one answer to a request of another protocol")
    if prompt.sampling.logit_bias:
        losses.refuse("logit_bias", "cannot weigh tokens")
    if prompt.audio_output:
        losses.refuse("modalities", "answers with nothing but text here")
    if prompt.tool_choice is not None and prompt.tool_choice.mode == "hosted":
        losses.refuse("tool_choice", "does not have this tool")


def _drop_unknown(prompt: Prompt, tools: Sequence[Tool], losses: Losses) -> None:
    for hosted in prompt.hosted_tools:
        losses.drop(f"tool:{hosted.type}")
    if prompt.web_search:
        losses.drop("web_search_options")
    if prompt.parallel is False and tools:
        losses.drop("parallel_tool_calls")


# -- tools ----------------------------------------------------------------------------------------


def _beside_format(
    tools: tuple[Tool, ...], choice: ToolChoice | None, traits: Traits, losses: Losses
) -> tuple[tuple[Tool, ...], ToolChoice | None]:
    """Older models take tools or a format; tools that may not be called need no declaration."""
    if traits.tools_with_format:
        return tools, choice
    if choice is None or choice.mode != "none":
        losses.refuse("response_format", "cannot have a format beside tools at this model")
    return (), None


def _tools(
    tools: tuple[Tool, ...],
    choice: ToolChoice | None,
    names: ToolNames,
    traits: Traits,
    losses: Losses,
) -> Body:
    if not tools:
        return {}
    if choice is not None and choice.mode == "auto" and choice.names:
        # Only a choice that forces a call can name what may be called.
        allowed = frozenset(choice.names)
        tools = tuple(tool for tool in tools if tool.name in allowed) or tools
    declared = [_declaration(tool, names, traits, losses) for tool in tools]
    found: Body = {"tools": [{"functionDeclarations": declared}]}
    if calling := _calling(tools, choice, names, traits, losses):
        found["toolConfig"] = {"functionCallingConfig": calling}
    return found


def _declaration(tool: Tool, names: ToolNames, traits: Traits, losses: Losses) -> Body:
    declaration: Body = {"name": names.wire(tool.name, tool.namespace)}
    if description := freeform.description(tool) if tool.free else tool.description:
        declaration["description"] = description
    schema = freeform.parameters(tool) if tool.free else tool.schema
    if traits.json_schema:
        key, written = "parametersJsonSchema", json_schema.for_gemini(schema)
    else:
        key, written = "parameters", json_schema.for_gemini_openapi(schema, losses)
    if written:  # an object without properties is refused by some models
        declaration[key] = written
    return declaration


def _calling(
    tools: tuple[Tool, ...],
    choice: ToolChoice | None,
    names: ToolNames,
    traits: Traits,
    losses: Losses,
) -> Body:
    strict = any(tool.strict for tool in tools)
    if strict:
        losses.approximate("strict")
    if choice is None or choice.mode == "auto":
        return {"mode": "VALIDATED"} if strict and traits.validates else _auto(choice)
    if choice.mode == "none":
        return {"mode": "NONE"}
    calling: Body = {"mode": "ANY"}
    namespaces = {tool.name: tool.namespace for tool in tools}
    if choice.names:
        calling["allowedFunctionNames"] = [
            names.wire(name, namespaces.get(name, "")) for name in choice.names
        ]
    return calling


def _auto(choice: ToolChoice | None) -> Body:
    return {} if choice is None else {"mode": "AUTO"}


# -- generationConfig -----------------------------------------------------------------------------


def _config(prompt: Prompt, target: Target, traits: Traits, losses: Losses) -> Body:
    sampling = prompt.sampling
    seed = sampling.seed
    if seed is not None and not -_SEED_MAX <= seed <= _SEED_MAX:
        losses.approximate("seed")
        seed %= _SEED_MAX
    config: Body = {
        "maxOutputTokens": target.output_cap,
        "temperature": sampling.temperature,
        "topP": sampling.top_p,
        "topK": sampling.top_k,
        "seed": seed,
        "presencePenalty": sampling.presence_penalty,
        "frequencyPenalty": sampling.frequency_penalty,
        "responseLogprobs": True if sampling.logprobs else None,
        "logprobs": sampling.top_logprobs or None if sampling.logprobs else None,
        "stopSequences": [stop for stop in prompt.stop if stop][:STOPS_MAX] or None,
        "thinkingConfig": _thinking(prompt.reasoning, traits, losses) or None,
    }
    given = {name: value for name, value in config.items() if value is not None}
    return given | _format(prompt.format, traits, losses)


def _format(wanted: OutputFormat | None, traits: Traits, losses: Losses) -> Body:
    if wanted is None or wanted.kind == "text":
        return {}
    found: Body = {"responseMimeType": "application/json"}
    if wanted.kind == "schema" and traits.json_schema:
        schema = json_schema.for_gemini(wanted.schema)
        return {**found, "responseJsonSchema": schema} if schema else found
    if wanted.kind == "schema":
        schema = json_schema.for_gemini_openapi(wanted.schema, losses)
        return {**found, "responseSchema": schema} if schema else found
    return found


def _thinking(reasoning: Reasoning | None, traits: Traits, losses: Losses) -> Body:
    if reasoning is None:
        return {}
    if not traits.levels and traits.budget is None:
        if effort.effort_of(reasoning) not in ("", "none"):
            losses.drop("reasoning_effort")
        return {}
    found: Body = {} if reasoning.show is None else {"includeThoughts": reasoning.show}
    if traits.budget is not None:
        budget = _budget(reasoning, traits, traits.budget, losses)
        return found if budget is None else {**found, "thinkingBudget": budget}
    wanted = effort.effort_of(reasoning)
    if wanted == "max" and "xhigh" in traits.levels:
        wanted = "xhigh"  # as much as there is
    level = effort.nearest(wanted, traits.levels, losses)
    return {**found, "thinkingLevel": level.upper()} if level else found


def _budget(
    reasoning: Reasoning, traits: Traits, limits: tuple[int, int], losses: Losses
) -> int | None:
    budget = effort.gemini_budget_of(reasoning)
    if budget is None or (budget == 0 and traits.can_rest):
        return budget
    least, most = limits
    allowed = min(max(budget, least), most)
    if allowed != budget:
        losses.approximate("effort")
    return allowed
