"""What is read of OpenAI's messages: only what routing, limits and prices need.

Members that are not named here are skipped by the decoder and pass as the bytes they were. Leaves
whose type differs between compatible servers are `object` and looked at where they are used, so
that an oddity never breaks a relayed answer. What is money is read by `read_usage`, which rather
sees no usage than a wrong one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated

import msgspec

from adapters.canonical import Usage
from adapters.errors import UpstreamProtocolViolation
from adapters.raw import UNREADABLE

_TOKENS_MAX = 2**40  # more than any window; beyond it a figure is an error, not a count


class Function(msgspec.Struct, gc=False):
    """A function call, or the piece of one; `input` is a custom tool's argument."""

    name: object = None
    arguments: object = None
    input: object = None


class ToolCall(msgspec.Struct, gc=False):
    function: Function | None = None
    custom: Function | None = None


class Message(msgspec.Struct, gc=False):
    """An assistant message, or a delta of one. `reasoning*` are compatible servers' spellings."""

    content: object = None
    reasoning_content: object = None
    reasoning: object = None
    refusal: object = None
    tool_calls: list[ToolCall] | None = None
    function_call: Function | None = None
    audio: object = None


class Choice(msgspec.Struct, gc=False):
    """`delta` in streams, `message` in plain answers."""

    index: int = 0
    delta: Message | None = None
    message: Message | None = None
    finish_reason: object = None


class Answer(msgspec.Struct, gc=False):
    """A chat completion, or one chunk of it. `usage` and `error` are empty where absent."""

    model: object = None
    choices: list[Choice] | None = None
    usage: msgspec.Raw = msgspec.Raw()
    error: msgspec.Raw = msgspec.Raw()
    service_tier: object = None


class Embeddings(msgspec.Struct, gc=False):
    """An answer to an embeddings request: whether there is any, and what it cost."""

    data: list[msgspec.Raw] | None = None
    usage: msgspec.Raw = msgspec.Raw()
    error: msgspec.Raw = msgspec.Raw()


_Count = Annotated[int, msgspec.Meta(ge=0, le=_TOKENS_MAX)]


class _InputDetails(msgspec.Struct, gc=False):
    cached_tokens: _Count | None = None
    cache_write_tokens: _Count | None = None
    audio_tokens: _Count | None = None


class _OutputDetails(msgspec.Struct, gc=False):
    reasoning_tokens: _Count | None = None
    audio_tokens: _Count | None = None


class _Usage(msgspec.Struct, gc=False):
    """Two spellings of cached input stand beside the details: DeepSeek's and Moonshot's."""

    prompt_tokens: _Count | None = None
    completion_tokens: _Count | None = None
    total_tokens: _Count | None = None
    prompt_tokens_details: _InputDetails | None = None
    completion_tokens_details: _OutputDetails | None = None
    prompt_cache_hit_tokens: _Count | None = None
    cached_tokens: _Count | None = None


_decode_answer = msgspec.json.Decoder(Answer).decode
_decode_embeddings = msgspec.json.Decoder(Embeddings).decode
# Not strict: some servers write counts as 12.0.
_decode_usage = msgspec.json.Decoder(_Usage | None, strict=False).decode
_NO_INPUT_DETAILS = _InputDetails()
_NO_OUTPUT_DETAILS = _OutputDetails()
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F][0-9a-fA-F]{2}")


def read_answer(data: bytes) -> Answer:
    """A chat completion or a chunk of one. Raises UpstreamProtocolViolation.

    Servers that cut text by UTF-16 units send the halves of a pair in two chunks. That is no
    proper text, yet clients put it together again, so it is read with stand-ins.
    """
    try:
        return _decode_answer(data)
    except UNREADABLE:
        pass
    try:
        return _decode_answer(_SURROGATE.sub(b"?", data))
    except UNREADABLE:
        raise UpstreamProtocolViolation("The answer is not a chat completion.") from None


def read_embeddings(data: bytes) -> Embeddings:
    """An answer to an embeddings request. Raises UpstreamProtocolViolation."""
    try:
        return _decode_embeddings(data)
    except UNREADABLE:
        raise UpstreamProtocolViolation("The answer is not a list of embeddings.") from None


def read_usage(
    raw: msgspec.Raw, service_tier: str = "", pieces: Mapping[str, int] = {}
) -> Usage | None:
    """The usage object of an answer; None where there is none that can be believed.

    Some servers leave reasoning out of `completion_tokens`; their total gives them away and is
    then what counts. `service_tier` and `pieces` stand elsewhere in the answer.
    """
    if not raw:
        return None
    try:
        usage = _decode_usage(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
    if usage is None or usage.prompt_tokens is None:
        return None
    prompt = usage.prompt_tokens
    inputs = usage.prompt_tokens_details or _NO_INPUT_DETAILS
    outputs = usage.completion_tokens_details or _NO_OUTPUT_DETAILS
    return Usage(
        input_tokens=prompt,
        cached_input_tokens=(
            inputs.cached_tokens or usage.prompt_cache_hit_tokens or usage.cached_tokens or 0
        ),
        cache_write_tokens=inputs.cache_write_tokens or 0,
        audio_input_tokens=inputs.audio_tokens or 0,
        output_tokens=max(usage.completion_tokens or 0, (usage.total_tokens or 0) - prompt),
        reasoning_tokens=outputs.reasoning_tokens or 0,
        audio_output_tokens=outputs.audio_tokens or 0,
        pieces=pieces,
        service_tier=service_tier,
    )


def written_usage(usage: Usage) -> dict[str, object]:
    """The usage object as clients read it."""
    written = usage.cache_write_tokens + usage.cache_write_1h_tokens
    return {
        "prompt_tokens": usage.input_tokens,
        "completion_tokens": usage.output_tokens,
        "total_tokens": usage.input_tokens + usage.output_tokens,
        "prompt_tokens_details": {
            "cached_tokens": usage.cached_input_tokens,
            "cache_write_tokens": written,
            "audio_tokens": usage.audio_input_tokens,
        },
        "completion_tokens_details": {
            "reasoning_tokens": usage.reasoning_tokens,
            "audio_tokens": usage.audio_output_tokens,
        },
    }
