"""Anthropic's answers on their way to an Anthropic client, under the client's name of the model.

A stream that is cut ends its open block, and says why in a `message_delta`, as the provider does.
"""

from __future__ import annotations

import re

import msgspec

from adapters import sse
from adapters.anthropic import wire
from adapters.anthropic.refusal import AnthropicRefusals
from adapters.canonical import Usage
from adapters.errors import APIError
from adapters.raw import UNREADABLE

_REFUSALS = AnthropicRefusals()
_EVENT_LINE = re.compile(rb"(?:\A|[\r\n])event:")
_STOP = b'"message_stop"'
_BLOCK = b'"content_block_'
_BLOCK_STOP = "content_block_stop"

_decode_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_encode = msgspec.json.encode


class _Block(msgspec.Struct):
    """An event of a block."""

    type: str
    index: int


_decode_block = msgspec.json.Decoder(_Block).decode


class MessagesManner:
    """Implements `passing.Manner`: the model's name stands only in the first event."""

    __slots__ = ("_last", "_shown_model", "_started", "_stopped")

    def __init__(self, shown_model: str) -> None:
        self._shown_model = shown_model
        self._started = False
        self._stopped = False
        self._last = b""  # event of a block

    def shown(self, raw: bytes, payload: bytes) -> bytes:
        if not payload:
            return raw
        if not self._started and wire.MESSAGE_START in payload:
            self._started = True
            raw = _renamed_start(raw, payload, self._shown_model)
        if _STOP in payload:
            self._stopped = self._stopped or _type_of(payload) == _STOP
        return raw if raw.startswith(b"event:") else _named(raw, payload)

    def end(self) -> bytes:
        """SDKs want the last event, even of servers that leave it out."""
        return b"" if self._stopped else wire.MESSAGE_STOP

    def remember(self, payload: bytes) -> None:
        if _BLOCK in payload:
            self._last = payload

    def cut(self, usage: Usage) -> bytes:
        members = {
            "type": "message_delta",
            "delta": {"stop_reason": "max_tokens", "stop_sequence": None},
            "usage": wire.usage_members(usage),
        }
        return self._block_stop() + wire.event("message_delta", members)

    def _block_stop(self) -> bytes:
        """The end of the block that is open, if one is."""
        try:
            last = _decode_block(self._last)
        except UNREADABLE:
            return b""
        if last.type == _BLOCK_STOP:
            return b""
        return wire.event(_BLOCK_STOP, {"type": _BLOCK_STOP, "index": last.index})

    def error_event(self, error: APIError, request_id: str) -> bytes:
        return _REFUSALS.error_event(error, request_id)


def renamed(message: bytes, model: str) -> bytes:
    """A message under another name of its model; every other byte of a value stays."""
    try:
        members = _decode_members(message)
    except UNREADABLE:
        return message  # a key of it is no proper text: of no use to anybody, and no reason to fail
    if "model" in members:
        members["model"] = msgspec.Raw(_encode(model))
    return _encode(members)


def _renamed_start(raw: bytes, payload: bytes, model: str) -> bytes:
    try:
        members = _decode_members(payload)
    except UNREADABLE:
        return raw
    if "message" not in members:
        return raw
    members["message"] = msgspec.Raw(renamed(bytes(members["message"]), model))
    return sse.with_data(raw, _encode(members))


def _named(raw: bytes, payload: bytes) -> bytes:
    """An event with its name, without which SDKs skip it."""
    if _EVENT_LINE.search(raw) is not None:
        return raw
    name = _type_of(payload).strip(b'"')
    return b"event: %b\n%b" % (name, raw) if name else raw


def _type_of(payload: bytes) -> bytes:
    """The type of an event as JSON; empty where it has none."""
    try:
        return bytes(_decode_members(payload).get("type", b""))
    except UNREADABLE:
        return b""
