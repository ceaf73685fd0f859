"""Chat requests of nothing but text, as most are: all that is read of one, read at once.

What has anything else in it (media, tools, members that nobody here knows), and what is to be
refused, is not of this form; `chat_downstream` reads it member by member, and alike
(`tests/adapters/test_chat_downstream.py`).
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from adapters.raw import UNREADABLE

TOKENS_MAX = 2**31 - 1
TEXT_BYTES_MAX = 16_384
"""How long a body may be to be read so: its text is copied."""

_ABSENT = msgspec.Raw()
_Cap = Annotated[int, msgspec.Meta(ge=1, le=TOKENS_MAX)] | None


class StreamOptions(msgspec.Struct):
    """Of these, one is for us."""

    include_usage: bool | None = None


class _Message(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    """One that is nothing but text, whoever says it."""

    role: object = None
    content: str | None = None
    name: str | None = None
    refusal: str | None = None
    tool_call_id: str | None = None


class TextBody(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    """A body with no more than may stand beside text where neither price nor route depends on
    anything but the model. What is `Raw` is for the provider to judge."""

    model: Annotated[str, msgspec.Meta(min_length=1)]
    messages: Annotated[list[_Message], msgspec.Meta(min_length=1)]
    max_completion_tokens: _Cap = None
    max_tokens: _Cap = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None
    temperature: msgspec.Raw = _ABSENT
    top_p: msgspec.Raw = _ABSENT
    stop: msgspec.Raw = _ABSENT
    seed: msgspec.Raw = _ABSENT
    presence_penalty: msgspec.Raw = _ABSENT
    frequency_penalty: msgspec.Raw = _ABSENT
    logit_bias: msgspec.Raw = _ABSENT
    logprobs: msgspec.Raw = _ABSENT
    top_logprobs: msgspec.Raw = _ABSENT
    response_format: msgspec.Raw = _ABSENT
    reasoning_effort: msgspec.Raw = _ABSENT
    verbosity: msgspec.Raw = _ABSENT


NAMES = frozenset(TextBody.__struct_fields__)
"""The members that such a body may have."""

_decode = msgspec.json.Decoder(TextBody).decode


def read_text(body: bytes) -> TextBody | None:
    """A body that is a proper JSON object, each key once; None where it is not of this form, or
    contradicts itself."""
    if len(body) > TEXT_BYTES_MAX:
        return None
    try:
        text = _decode(body)
    except UNREADABLE:
        return None
    cap, other = text.max_completion_tokens, text.max_tokens
    if (cap and other and cap != other) or (text.stream_options and not text.stream):
        return None
    return text
