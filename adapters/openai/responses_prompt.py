"""A Responses body as a canonical prompt, for providers of another protocol.

`_FIELDS` says what becomes of each member: read, left out in silence (a hint, or something that
makes no difference elsewhere), or refused. What is in none of these is not known here; it is left
out and reported by name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TypeVar, get_args

import msgspec

from adapters.canonical import Effort, OutputFormat, Prompt, Reasoning, Sampling
from adapters.envelope import Envelopes
from adapters.errors import InvalidRequest, RequestNotExpressible
from adapters.openai.body import Fields, text_of
from adapters.openai.responses_input import Conversation
from adapters.openai.responses_scan import is_given
from adapters.openai.responses_tools import Declared, read_choice, read_tools

T = TypeVar("T")

_READ = frozenset(
    {
        "include",
        "input",
        "instructions",
        "max_output_tokens",
        "metadata",
        "model",
        "parallel_tool_calls",
        "prompt_cache_key",
        "reasoning",
        "safety_identifier",
        "service_tier",
        "stream",
        "temperature",
        "text",
        "tool_choice",
        "tools",
        "top_logprobs",
        "top_p",
        "user",
    }
)
_SILENT = frozenset(
    {
        "access_programs",
        "background",
        "client_metadata",
        "image",
        "max_tool_calls",
        "moderation",
        "personality",
        "prompt_cache_options",
        "prompt_cache_retention",
        "store",
        "stream_options",
        "truncation",
    }
)
_REFUSED: Mapping[str, str] = {
    "previous_response_id": "names an answer that is not kept here",
    "conversation": "is kept by OpenAI, and this model is not served there: send the items of it, "
    "or previous_response_id",
    "prompt": "is kept by OpenAI, and this model is not served there: send its text",
    "context_management": "is not offered by the provider of this model",
}
_SAFE_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,63}")
_EFFORTS: frozenset[Effort] = frozenset(effort for effort in get_args(Effort) if effort)
_LOGPROBS = "message.output_text.logprobs"
_ABSENT = msgspec.Raw()


class _Format(msgspec.Struct, gc=False):
    type: str
    name: str = ""
    schema: dict[str, object] | None = None
    strict: bool | None = None
    description: str | None = None


class _Text(msgspec.Struct, gc=False):
    format: _Format | None = None
    verbosity: str | None = None


class _Reasoning(msgspec.Struct, gc=False):
    effort: str | None = None
    summary: str | None = None
    generate_summary: str | None = None
    mode: str | None = None


_TEXT = msgspec.json.Decoder(_Text | None)
_REASONING = msgspec.json.Decoder(_Reasoning | None)
_INCLUDE = msgspec.json.Decoder(list[str] | None)
_METADATA = msgspec.json.Decoder(dict[str, str] | None)
_NUMBER = msgspec.json.Decoder(float | None)
_COUNT = msgspec.json.Decoder(int | None)
_FLAG = msgspec.json.Decoder(bool | None)
_FORMATS = {"text": "text", "json_object": "json", "json_schema": "schema"}


def read_prompt(fields: Fields, envelopes: Envelopes) -> Prompt:
    """The whole request. Raises InvalidRequest, RequestNotExpressible."""
    for name, why in _REFUSED.items():
        if is_given(fields, name):
            raise RequestNotExpressible(f"{name} {why}.", param=name)
    conversation = Conversation(envelopes)
    declared = read_tools(fields["tools"]) if "tools" in fields else Declared()
    conversation.tools += declared.tools
    conversation.hosted += declared.hosted
    conversation.read(fields.get("instructions", _ABSENT), "instructions", "system")
    conversation.read(fields.get("input", _ABSENT), "input", "user")
    reasoning, mode = _reasoning(fields, conversation.reasoning)
    format_, verbosity = _text(fields, conversation.text)
    return Prompt(
        turns=conversation.turns,
        tools=tuple(conversation.tools),
        hosted_tools=tuple(conversation.hosted),
        tool_choice=read_choice(fields["tool_choice"]) if "tool_choice" in fields else None,
        parallel=_value(fields, "parallel_tool_calls", _FLAG, "true or false"),
        format=format_,
        reasoning=reasoning,
        sampling=_sampling(fields),
        verbosity=verbosity,
        end_user=text_of(fields, "safety_identifier") or text_of(fields, "user") or "",
        cache_key=text_of(fields, "prompt_cache_key") or "",
        metadata=_value(fields, "metadata", _METADATA, "an object of strings") or {},
        service_tier=text_of(fields, "service_tier") or "",
        dropped=(*_unknown(fields), *mode, *conversation.dropped),
    )


def _unknown(fields: Fields) -> list[str]:
    known = _READ | _SILENT | _REFUSED.keys()
    return [
        name
        for name in fields
        if name not in known and is_given(fields, name) and _SAFE_NAME.fullmatch(name)
    ]


def _reasoning(fields: Fields, update: msgspec.Raw) -> tuple[Reasoning | None, tuple[str, ...]]:
    """How much to think, with what a later item changed; and what of it is left out."""
    asked = _value(fields, "reasoning", _REASONING, "an object") or _Reasoning()
    if update:
        changed = _decoded("input", update, _REASONING, "an object") or _Reasoning()
        asked.effort = changed.effort or asked.effort
    dropped = ("reasoning.mode",) if asked.mode not in (None, "standard") else ()
    show = True if asked.summary or asked.generate_summary else None
    if asked.effort is None and show is None:
        return None, dropped
    return Reasoning(effort=_effort(asked.effort), show=show), dropped


def _effort(word: str | None) -> Effort:
    if word is None:
        return ""
    for effort in _EFFORTS:
        if effort == word:
            return effort
    raise InvalidRequest(
        f"reasoning.effort must be one of {', '.join(sorted(_EFFORTS))}.", param="reasoning.effort"
    )


def _text(fields: Fields, update: msgspec.Raw) -> tuple[OutputFormat | None, str]:
    """The form of the answer, with what a later item changed, and its verbosity."""
    asked = _value(fields, "text", _TEXT, "an object") or _Text()
    if update:
        changed = _decoded("input", update, _TEXT, "an object") or _Text()
        asked.format = changed.format or asked.format
    return _format(asked.format), asked.verbosity or ""


def _format(asked: _Format | None) -> OutputFormat | None:
    if asked is None or asked.type == "text":
        return None
    if asked.type == "json_object":
        return OutputFormat(kind="json")
    if asked.type != "json_schema":
        raise InvalidRequest(
            "text.format.type must be text, json_object or json_schema.", param="text.format.type"
        )
    if asked.schema is None:
        raise InvalidRequest("text.format.schema is required.", param="text.format.schema")
    return OutputFormat(
        kind="schema",
        schema=asked.schema,
        name=asked.name,
        description=asked.description or "",
        strict=asked.strict,
    )


def _sampling(fields: Fields) -> Sampling:
    include = _value(fields, "include", _INCLUDE, "a list of strings") or []
    top_logprobs = _value(fields, "top_logprobs", _COUNT, "a whole number")
    return Sampling(
        temperature=_value(fields, "temperature", _NUMBER, "a number"),
        top_p=_value(fields, "top_p", _NUMBER, "a number"),
        logprobs=_LOGPROBS in include,
        top_logprobs=top_logprobs or None,
    )


def _value(
    fields: Fields, name: str, decoder: msgspec.json.Decoder[T | None], expected: str
) -> T | None:
    raw = fields.get(name)
    return None if raw is None else _decoded(name, raw, decoder, expected)


def _decoded(
    name: str, raw: msgspec.Raw, decoder: msgspec.json.Decoder[T | None], expected: str
) -> T | None:
    try:
        return decoder.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest(f"{name} must be {expected}: {error}.", param=name) from None
