"""What both sides of the Responses API share: its events, its response object, and its usage."""

from __future__ import annotations

import re
from collections.abc import Mapping

import msgspec

from adapters.canonical import Usage

_TOKENS_MAX = 2**40  # more than any window; beyond it a figure is an error, not a count
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F][0-9a-fA-F]{2}")

_encode = msgspec.json.encode


def event(kind: str, members: Mapping[str, object]) -> bytes:
    """An event of a stream, named as SDKs want it."""
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), _encode({"type": kind, **members}))


def response_object(id: str, model: str, created: int) -> dict[str, object]:  # noqa: A002
    """A response that has just begun, with every member that SDKs look for."""
    return {
        "id": id,
        "object": "response",
        "created_at": created,
        "status": "in_progress",
        "background": False,
        "error": None,
        "incomplete_details": None,
        "instructions": None,
        "max_output_tokens": None,
        "max_tool_calls": None,
        "metadata": {},
        "model": model,
        "output": [],
        "parallel_tool_calls": True,
        "previous_response_id": None,
        "prompt_cache_key": None,
        "reasoning": {"effort": None, "summary": None},
        "safety_identifier": None,
        "service_tier": "default",
        "store": True,
        "temperature": None,
        "text": {"format": {"type": "text"}},
        "tool_choice": "auto",
        "tools": [],
        "top_logprobs": None,
        "top_p": None,
        "truncation": "disabled",
        "usage": None,
        "user": None,
    }


def without_halves(data: bytes) -> bytes:
    """JSON in which no text can have half a character, as servers write them that cut text by
    UTF-16 units."""
    return _SURROGATE.sub(b"?", data)


# -- usage ----------------------------------------------------------------------------------------


class _Writes(msgspec.Struct, gc=False):
    ttl_12h_tokens: int | None = None


class _InputDetails(msgspec.Struct, gc=False):
    cached_tokens: int | None = None
    cache_write_tokens: int | None = None
    cache_write_tokens_details: _Writes | None = None
    audio_tokens: int | None = None


class _OutputDetails(msgspec.Struct, gc=False):
    reasoning_tokens: int | None = None
    audio_tokens: int | None = None


class _Usage(msgspec.Struct, gc=False):
    input_tokens: int | None = None
    output_tokens: int | None = None
    input_tokens_details: _InputDetails | None = None
    output_tokens_details: _OutputDetails | None = None


# Not strict: some servers write counts as 12.0.
_decode_usage = msgspec.json.Decoder(_Usage | None, strict=False).decode


def read_usage(raw: msgspec.Raw, pieces: Mapping[str, int], service_tier: str) -> Usage | None:
    """The usage object of a response; None where there is none that can be believed."""
    try:
        usage = _decode_usage(raw) if raw else None
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
    if usage is None or usage.input_tokens is None:
        return None
    inputs = usage.input_tokens_details or _InputDetails()
    outputs = usage.output_tokens_details or _OutputDetails()
    written = inputs.cache_write_tokens or 0
    long = (inputs.cache_write_tokens_details or _Writes()).ttl_12h_tokens or 0
    counts = (
        usage.input_tokens,
        inputs.cached_tokens or 0,
        max(written - long, 0),
        long,
        inputs.audio_tokens or 0,
        usage.output_tokens or 0,
        outputs.reasoning_tokens or 0,
        outputs.audio_tokens or 0,
    )
    if min(counts) < 0 or max(counts) > _TOKENS_MAX:
        return None
    return Usage(
        input_tokens=counts[0],
        cached_input_tokens=counts[1],
        cache_write_tokens=counts[2],
        cache_write_1h_tokens=counts[3],
        audio_input_tokens=counts[4],
        output_tokens=counts[5],
        reasoning_tokens=counts[6],
        audio_output_tokens=counts[7],
        pieces=pieces,
        service_tier=service_tier,
    )


def written_usage(usage: Usage) -> dict[str, object]:
    """Usage as clients read it; both objects of details are always there."""
    written = usage.cache_write_tokens + usage.cache_write_1h_tokens
    inputs: dict[str, object] = {
        "cached_tokens": usage.cached_input_tokens,
        "cache_write_tokens": written,
    }
    if usage.cache_write_1h_tokens:
        inputs["cache_write_tokens_details"] = {
            "ttl_30m_tokens": usage.cache_write_tokens,
            "ttl_12h_tokens": usage.cache_write_1h_tokens,
        }
    return {
        "input_tokens": usage.input_tokens,
        "input_tokens_details": inputs,
        "output_tokens": usage.output_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.input_tokens + usage.output_tokens,
    }
