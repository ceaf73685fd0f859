"""What both sides of the Messages API share: its events as they are read and written, its usage.

Members that are not named here are skipped by the decoder. Leaves whose type differs between
compatible servers are `object` and looked at where they are used, so that an oddity never breaks
an answer. Counts that cannot be believed are rather not seen than wrong.
"""

from __future__ import annotations

import re
from typing import TypeVar

import msgspec

from adapters.canonical import Usage
from adapters.characters import decode
from adapters.errors import UpstreamProtocolViolation
from adapters.raw import UNREADABLE

T = TypeVar("T")

PING = b'event: ping\ndata: {"type":"ping"}\n\n'
MESSAGE_STOP = b'event: message_stop\ndata: {"type":"message_stop"}\n\n'
MESSAGE_START = b'"message_start"'

_TOKENS_MAX = 2**40  # more than any window; beyond it a figure is an error, not a count

_encode = msgspec.json.encode
_ABSENT = msgspec.Raw()


def event(name: str, members: object) -> bytes:
    """An event of a stream: without its name SDKs skip it."""
    return b"event: %b\ndata: %b\n\n" % (name.encode(), _encode(members))


# -- answers --------------------------------------------------------------------------------------


class Block(msgspec.Struct, gc=False):
    """A content block, or the beginning of one."""

    type: object = None
    text: object = None
    thinking: object = None
    signature: object = None
    data: object = None
    id: object = None
    name: object = None
    input: msgspec.Raw = _ABSENT
    citations: msgspec.Raw = _ABSENT


class Delta(msgspec.Struct, gc=False):
    """More of a block; in a `message_delta`, how the message ends."""

    type: object = None
    text: object = None
    partial_json: object = None
    thinking: object = None
    signature: object = None
    citation: msgspec.Raw = _ABSENT
    stop_reason: object = None
    stop_sequence: object = None
    stop_details: msgspec.Raw = _ABSENT


class Message(msgspec.Struct, gc=False):
    """A whole answer; its head in a `message_start`. `error` stands where it is none."""

    type: object = None
    id: object = None
    model: object = None
    content: list[Block] | None = None
    stop_reason: object = None
    stop_sequence: object = None
    stop_details: msgspec.Raw = _ABSENT
    usage: msgspec.Raw = _ABSENT
    error: msgspec.Raw = _ABSENT


class Event(msgspec.Struct, gc=False):
    """Any event of a stream."""

    type: object = None
    index: int = -1
    message: Message | None = None
    content_block: Block | None = None
    delta: Delta | None = None
    usage: msgspec.Raw = _ABSENT
    error: msgspec.Raw = _ABSENT


class Citation(msgspec.Struct, gc=False):
    url: object = None
    title: object = None


class StopDetails(msgspec.Struct, gc=False):
    explanation: object = None


_event_decoder = msgspec.json.Decoder(Event)
_message_decoder = msgspec.json.Decoder(Message)
_decode_citation = msgspec.json.Decoder(Citation).decode
_decode_citations = msgspec.json.Decoder(list[Citation] | None).decode
_decode_stop_details = msgspec.json.Decoder(StopDetails | None).decode
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F][0-9a-fA-F]{2}")


def read_event(data: bytes) -> Event:
    """The payload of one event. Raises UpstreamProtocolViolation."""
    return _read(_event_decoder, data, "The event is none of a message.")


def read_message(data: bytes) -> Message:
    """An answer in one piece. Raises UpstreamProtocolViolation."""
    return _read(_message_decoder, data, "The answer is not a message.")


def _read(decoder: msgspec.json.Decoder[T], data: bytes, complaint: str) -> T:
    """Halves of a character can be put together again in text; elsewhere they get a stand-in."""
    try:
        return decode(decoder, data)
    except UNREADABLE:
        pass
    try:
        return decoder.decode(_SURROGATE.sub(b"?", data))
    except UNREADABLE:
        raise UpstreamProtocolViolation(complaint) from None


def read_citations(raw: msgspec.Raw) -> list[Citation]:
    """One citation, or the list of them; what is neither is none."""
    if not raw:
        return []
    try:
        if bytes(memoryview(raw)[:1]) == b"{":
            return [_decode_citation(raw)]
        return _decode_citations(raw) or []
    except UNREADABLE:
        return []


def read_explanation(raw: msgspec.Raw) -> str:
    """Why a model refused, in its own words; often empty."""
    try:
        details = _decode_stop_details(raw) if raw else None
    except UNREADABLE:
        return ""
    return text_in(details.explanation) if details is not None else ""


def text_in(value: object) -> str:
    """A leaf that should be text; empty where it is not."""
    return value if isinstance(value, str) else ""


# -- usage ----------------------------------------------------------------------------------------


class _Written(msgspec.Struct, gc=False):
    ephemeral_5m_input_tokens: int | None = None
    ephemeral_1h_input_tokens: int | None = None


class _OutputDetails(msgspec.Struct, gc=False):
    thinking_tokens: int | None = None


class _ServerTools(msgspec.Struct, gc=False):
    web_search_requests: int | None = None


class _Usage(msgspec.Struct, gc=False):
    """As on the wire: `input_tokens` are those that no cache had a part in."""

    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_read_input_tokens: int | None = None
    cache_creation_input_tokens: int | None = None
    cache_creation: _Written | None = None
    output_tokens_details: _OutputDetails | None = None
    server_tool_use: _ServerTools | None = None
    service_tier: str | None = None
    speed: str | None = None


# Not strict: some servers write counts as 12.0.
_decode_usage = msgspec.json.Decoder(_Usage | None, strict=False).decode
_STANDARD = "standard"
_FAST = "fast"


class UsageCount:
    """The usage of one message: said at its start, and again, for some members, at its end.

    A member that is said again replaces what was said before; the split of what was written to
    the cache is only said once.
    """

    __slots__ = ("_said",)

    def __init__(self) -> None:
        self._said = _Usage()

    def read(self, raw: msgspec.Raw) -> Usage | None:
        """All that is known with this usage object; None where it tells nothing to be believed."""
        try:
            usage = _decode_usage(raw) if raw else None
        except UNREADABLE:
            return None
        if usage is None:
            return None
        merged = msgspec.structs.replace(
            self._said,
            **{
                name: value
                for name, value in msgspec.structs.asdict(usage).items()
                if value is not None
            },
        )
        canonical = _canonical(merged)
        if canonical is not None:
            self._said = merged
        return canonical


def _canonical(usage: _Usage) -> Usage | None:
    written = usage.cache_creation or _Written()
    long = written.ephemeral_1h_input_tokens or 0
    short = written.ephemeral_5m_input_tokens or 0
    counts = (
        usage.input_tokens or 0,
        usage.cache_read_input_tokens or 0,
        max((usage.cache_creation_input_tokens or 0) - long, short),
        long,
        usage.output_tokens or 0,
        (usage.output_tokens_details or _OutputDetails()).thinking_tokens or 0,
        (usage.server_tool_use or _ServerTools()).web_search_requests or 0,
    )
    nothing_said = usage.input_tokens is None and usage.output_tokens is None
    if nothing_said or min(counts) < 0 or max(counts) > _TOKENS_MAX:
        return None
    uncached, cached, short, long, output, thinking, searches = counts
    tier = usage.service_tier or ""
    return Usage(
        input_tokens=uncached + cached + short + long,
        cached_input_tokens=cached,
        cache_write_tokens=short,
        cache_write_1h_tokens=long,
        output_tokens=output,
        reasoning_tokens=thinking,
        pieces={"web_search": searches} if searches else {},
        service_tier=_FAST if usage.speed == _FAST else "" if tier == _STANDARD else tier,
    )


def usage_members(usage: Usage) -> dict[str, object]:
    """A usage object as clients read it, at the start of a message and at its end."""
    written = usage.cache_write_tokens + usage.cache_write_1h_tokens
    members: dict[str, object] = {
        "input_tokens": max(usage.input_tokens - usage.cached_input_tokens - written, 0),
        "cache_creation_input_tokens": written,
        "cache_read_input_tokens": usage.cached_input_tokens,
        "output_tokens": usage.output_tokens,
    }
    if usage.reasoning_tokens:
        members["output_tokens_details"] = {"thinking_tokens": usage.reasoning_tokens}
    return members
