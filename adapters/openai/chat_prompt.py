"""A chat request read as a whole, for a provider of another protocol.

The body is decoded into one struct, so that whatever is malformed is refused by the path of the
member. Members fall into three groups: what has a place in the prompt; pure hints that are left
out without a word (`_HINTS`); and whatever else came, which is left out and reported.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import get_args

import msgspec

from adapters.canonical import (
    Effort,
    OutputFormat,
    Prompt,
    Reasoning,
    Sampling,
)
from adapters.codec import Request
from adapters.envelope import Envelopes
from adapters.errors import InvalidRequest, RequestNotExpressible
from adapters.openai import responses_prompt
from adapters.openai.body import Fields
from adapters.openai.chat_tools import Choice, Declared, Named, ToolMember, read_choice, read_tools
from adapters.openai.chat_turns import Message, read_turns

_EFFORTS = frozenset(get_args(Effort)) - {""}
_HINTS = frozenset(
    {"store", "prediction", "moderation", "prompt_cache_options", "prompt_cache_retention"}
    | {"include_reasoning"}
)
_READ_ELSEWHERE = frozenset(
    {"model", "stream", "stream_options", "n", "max_tokens", "max_completion_tokens"}
    | {"max_output_tokens"}
)
_OF_CHAT_ALONE = frozenset({"stream_options", "max_tokens", "max_completion_tokens", "n"})
_SAFE_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,63}")  # in a header, too
_PATH = re.compile(r" - at `\$\.?(.*)`$")


class JSONSchema(msgspec.Struct, gc=False):
    name: str = ""
    description: str | None = None
    schema: dict[str, object] | None = None
    strict: bool | None = None


class ResponseFormat(msgspec.Struct, gc=False):
    type: str = "text"
    json_schema: JSONSchema | None = None


class ReasoningOptions(msgspec.Struct, gc=False):
    """`reasoning`, as OpenRouter has it."""

    effort: str | None = None
    max_tokens: int | None = None
    exclude: bool | None = None
    enabled: bool | None = None


class ThinkingOptions(msgspec.Struct, gc=False):
    """`thinking`, as several compatible servers have it after Anthropic's."""

    type: str = ""
    budget_tokens: int | None = None


class Body(msgspec.Struct):
    """The members that are read here. Null is the same as absent."""

    messages: list[Message]
    tools: list[ToolMember] | None = None
    tool_choice: str | Choice | None = None
    functions: list[Declared] | None = None
    function_call: str | Named | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    reasoning_effort: str | None = None
    reasoning: ReasoningOptions | None = None
    thinking: ThinkingOptions | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    stop: str | list[str] | None = None
    verbosity: str | None = None
    safety_identifier: str | None = None
    user: str | None = None
    prompt_cache_key: str | None = None
    metadata: dict[str, object] | None = None
    service_tier: str | None = None
    modalities: list[str] | None = None
    audio: object = None
    web_search_options: object = None


_KNOWN = frozenset(Body.__struct_fields__) | _HINTS | _READ_ELSEWHERE
_decode_body = msgspec.json.Decoder(Body).decode
_encode = msgspec.json.encode


def read_prompt(request: Request, envelopes: Envelopes) -> Prompt:
    """The whole of a chat request.

    Raises InvalidRequest naming the member, RequestNotExpressible for what has no place in any
    other protocol.
    """
    if request.foreign and "messages" not in request.fields:
        return responses_prompt.read_prompt(_of_responses(request.fields), envelopes)
    body = _decoded(request.fields)
    tools, hosted = read_tools(body.tools or (), body.functions or ())
    modalities = frozenset(body.modalities or ()) - {"text", "audio"}
    if modalities:
        raise RequestNotExpressible(
            f"modalities: {min(modalities)!r} has no place at this model's provider.",
            param="modalities",
        )
    return Prompt(
        turns=read_turns(body.messages, envelopes),
        tools=tools,
        hosted_tools=hosted,
        tool_choice=read_choice(body.tool_choice, body.function_call),
        parallel=_parallel(body),
        format=_format(body.response_format),
        reasoning=_reasoning(body),
        sampling=_sampling(body),
        stop=(body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ()),
        verbosity=body.verbosity or "",
        end_user=body.safety_identifier or body.user or "",
        cache_key=body.prompt_cache_key or "",
        metadata=_texts(body.metadata or {}),
        service_tier=body.service_tier or "",
        choices=request.choices,
        audio_output=body.audio is not None or "audio" in (body.modalities or ()),
        web_search=body.web_search_options is not None,
        dropped=_unknown(request.fields),
    )


def _of_responses(fields: Fields) -> Fields:
    """The members of a Responses body that came as a chat request, without what it took from
    that."""
    return {name: raw for name, raw in fields.items() if name not in _OF_CHAT_ALONE}


def _decoded(fields: Fields) -> Body:
    try:
        return _decode_body(_encode(fields))
    except msgspec.ValidationError as error:
        said = str(error)
        found = _PATH.search(said)
        path = found[1] if found is not None else None
        reason = said[: found.start()] if found is not None else said
        raise InvalidRequest(f"{path or 'The request body'}: {reason}.", param=path) from None
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise InvalidRequest("The request body is not valid JSON.") from None


def _unknown(fields: Fields) -> tuple[str, ...]:
    """The members that nobody else knows; a null says nothing."""
    return tuple(
        name
        for name, raw in fields.items()
        if name not in _KNOWN and bytes(raw) != b"null" and _SAFE_NAME.fullmatch(name)
    )


def _parallel(body: Body) -> bool | None:
    """Whether calls may be made at once. Anthropic's choice of a tool has that inside; an answer in
    the form of the first days holds only one."""
    if isinstance(body.tool_choice, Choice) and body.tool_choice.disable_parallel_tool_use:
        return False
    if body.functions and body.tools is None:
        return False
    return body.parallel_tool_calls


def _format(given: ResponseFormat | None) -> OutputFormat | None:
    if given is None:
        return None
    schema = given.json_schema
    match given.type:
        case "text":
            return OutputFormat(kind="text")
        case "json_object":
            return OutputFormat(kind="json")
        case "json_schema" if schema is not None and schema.schema is not None:
            return OutputFormat(
                kind="schema",
                schema=schema.schema,
                name=schema.name,
                description=schema.description or "",
                strict=schema.strict,
            )
        case "json_schema":
            field = "response_format.json_schema"
            raise InvalidRequest(f"{field} needs a schema.", param=field)
        case _:
            raise InvalidRequest(
                "response_format.type must be text, json_object or json_schema.",
                param="response_format.type",
            )


def _reasoning(body: Body) -> Reasoning | None:
    """What is explicit goes before a word, and OpenAI's own word before those of others."""
    options = body.reasoning or ReasoningOptions()
    thinking = body.thinking or ThinkingOptions()
    effort = body.reasoning_effort or options.effort or ""
    if effort and effort not in _EFFORTS:
        field = "reasoning_effort" if body.reasoning_effort else "reasoning.effort"
        raise InvalidRequest(f"{field}: {effort!r} is no effort that is known.", param=field)
    if not effort and (options.enabled is False or thinking.type == "disabled"):
        effort = "none"
    found = Reasoning(
        effort=effort,  # type: ignore[arg-type] # it is among them
        budget=options.max_tokens if options.max_tokens is not None else thinking.budget_tokens,
        adaptive=thinking.type == "adaptive",
        show=None if body.reasoning is None else not options.exclude,
    )
    return None if found == _NO_REASONING else found


_NO_REASONING = Reasoning()


def _sampling(body: Body) -> Sampling:
    return Sampling(
        temperature=body.temperature,
        top_p=body.top_p,
        top_k=body.top_k,
        seed=body.seed,
        presence_penalty=body.presence_penalty,
        frequency_penalty=body.frequency_penalty,
        logit_bias=body.logit_bias or None,
        logprobs=bool(body.logprobs),
        top_logprobs=body.top_logprobs,
    )


def _texts(metadata: Mapping[str, object]) -> dict[str, str]:
    return {name: value for name, value in metadata.items() if isinstance(value, str)}
