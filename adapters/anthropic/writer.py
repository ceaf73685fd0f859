"""Canonical events as a stream of the Messages API, and as a message in one piece.

SDKs act on the smallest things: a block's index is the number of blocks before it, a signature
comes whole and right before the end of its block, an empty text block is never begun. So a block
opens with its first content; by then it is known whether a signature belongs to the call or the
text itself, which has no place for one: an empty thinking block right before it carries it.
"""

from __future__ import annotations

from collections.abc import Mapping
from secrets import token_hex

import msgspec

from adapters.anthropic import wire
from adapters.anthropic.refusal import AnthropicRefusals
from adapters.canonical import (
    Blob,
    Close,
    Delta,
    Event,
    Finish,
    FinishReason,
    Meta,
    Open,
    Start,
    Usage,
    Used,
)
from adapters.codec import Made, Request
from adapters.envelope import Envelopes
from adapters.errors import APIError
from adapters.estimate import counted_tokens
from adapters.raw import UNREADABLE

_REFUSALS = AnthropicRefusals()
_STOP_REASONS: Mapping[FinishReason, str] = {
    "end": "end_turn",
    "stop_sequence": "stop_sequence",
    "tool_calls": "tool_use",
    "length": "max_tokens",
    "context_window": "model_context_window_exceeded",
    "content_filter": "refusal",
    "refusal": "refusal",
    "pause": "pause_turn",
}
_CALLS = ("call", "free_call")
_ON_ITS_BLOCK = ("call", "text")  # kinds of signatures that are not about thinking

# (delta's type, member) by the kind of block; whatever is not listed is text.
_TEXT_DELTA = b'{"type":"text_delta","text":'
_DELTAS = {
    "thinking": b'{"type":"thinking_delta","thinking":',
    "call": b'{"type":"input_json_delta","partial_json":',
    "free_call": b'{"type":"input_json_delta","partial_json":',
}

_encode = msgspec.json.encode
_decode_object = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


class MessagesWriter:
    """Writes one answer. Its parts are kept only where it is asked for in one piece."""

    __slots__ = (
        "_bytes",
        "_content",
        "_delta_head",
        "_end",
        "_envelopes",
        "_id",
        "_index",
        "_keep",
        "_made",
        "_model",
        "_open",
        "_pieces",
        "_sealed",
        "_started",
        "_usage",
    )

    def __init__(self, request: Request, envelopes: Envelopes, made: Made) -> None:
        self._model = request.model
        self._keep = not request.stream
        self._envelopes = envelopes
        self._made = made
        self._id = ""
        self._usage: Usage | None = None
        self._bytes = 0  # of text written, for a count of our own
        self._index = 0  # of the next block, or of the one that has begun
        self._open: Open | None = None
        self._started = False  # the open block has begun on the wire
        self._sealed: list[str] = []  # signatures for the open block
        self._delta_head = b""
        self._content: list[dict[str, object]] = []
        self._pieces: list[str] = []
        self._end: dict[str, object] = {}

    def write(self, event: Event) -> bytes:
        kind = type(event)
        if kind is Delta:
            return self._delta(event.text)  # type: ignore[union-attr] # it is a Delta
        if isinstance(event, Open):
            self._open, self._started = event, False
            return b""
        if isinstance(event, Close):
            return self._close()
        if isinstance(event, Meta):
            if event.signature:
                self._sign(event)
        elif isinstance(event, Used):
            self._usage = event.usage
        elif isinstance(event, Start):
            return self._start(event)
        elif isinstance(event, Finish):
            return self._finish(event)
        return b""

    def whole(self) -> bytes:
        return _encode({**self._head(), "content": self._content, **self._end})

    def error_event(self, error: APIError, request_id: str) -> bytes:
        return _REFUSALS.error_event(error, request_id)

    # -- the message ------------------------------------------------------------------------------

    def _start(self, event: Start) -> bytes:
        given = event.id or token_hex(12)
        self._id = given if given.startswith("msg_") else f"msg_{given}"
        self._usage = event.usage
        message = {
            **self._head(),
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "stop_details": None,
            "usage": wire.usage_members(self._counted()),
        }
        return wire.event("message_start", {"type": "message_start", "message": message})

    def _head(self) -> dict[str, object]:
        return {"id": self._id, "type": "message", "role": "assistant", "model": self._model}

    def _finish(self, event: Finish) -> bytes:
        reason = _STOP_REASONS[event.reason]
        refused = {"type": "refusal", "category": None, "explanation": event.detail or None}
        delta: dict[str, object] = {
            "stop_reason": reason,
            "stop_sequence": event.stop_sequence or None,
            "stop_details": refused if reason == "refusal" else None,
        }
        usage = wire.usage_members(self._counted())
        self._end = {**delta, "usage": usage}
        members = {"type": "message_delta", "delta": delta, "usage": usage}
        return wire.event("message_delta", members) + wire.MESSAGE_STOP

    def _counted(self) -> Usage:
        """The provider's usage, else our own estimate of it."""
        if self._usage is not None:
            return self._usage
        return Usage(
            input_tokens=self._made.input_tokens, output_tokens=counted_tokens(self._bytes)
        )

    # -- its blocks -------------------------------------------------------------------------------

    def _delta(self, text: str) -> bytes:
        begun = b"" if self._started else self._begin()
        if self._keep:
            self._pieces.append(text)
        piece = _encode(text)
        self._bytes += len(piece) - 2
        return begun + self._delta_head + piece + b"}}\n\n"

    def _sign(self, meta: Meta) -> None:
        made = self._made
        blob = Blob(made.provider, made.family, meta.kind, meta.signature)
        if meta.kind in _ON_ITS_BLOCK and self._started and self._open_kind in _CALLS:
            return  # it would be taken for the next call's
        self._sealed.append(self._envelopes.seal(blob))

    @property
    def _open_kind(self) -> str:
        return "" if self._open is None else self._open.kind

    def _begin(self) -> bytes:
        """The open block begins on the wire, behind the signatures that are not its own."""
        assert self._open is not None, "the grammar says so"
        kind = self._open_kind
        carried = b"" if kind == "thinking" else self._carry()
        self._started = True
        self._delta_head = (
            b'event: content_block_delta\ndata: {"type":"content_block_delta","index":%d,"delta":%b'
            % (self._index, _DELTAS.get(kind, _TEXT_DELTA))
        )
        return carried + self._block_start(_block(self._open))

    def _carry(self) -> bytes:
        """Signatures of a call or a text, each in a thinking block of its own."""
        out = b""
        for sealed in self._sealed:
            out += self._block_start({"type": "thinking", "thinking": "", "signature": ""})
            out += self._signature(sealed) + self._block_stop()
            if self._keep:
                self._content.append({"type": "thinking", "thinking": "", "signature": sealed})
        self._sealed.clear()
        return out

    def _close(self) -> bytes:
        assert self._open is not None, "the grammar says so"
        kind = self._open_kind
        if not self._started and kind not in _CALLS and not self._sealed:
            self._open = None
            return b""  # nothing was in it
        out = b""
        if not self._started and (kind in _CALLS or kind == "thinking"):
            out = self._begin()
        if self._started:
            out += self._end_block(kind)
        # What signs a text may come only with its last piece.
        out += self._carry()
        self._open, self._started = None, False
        return out

    def _end_block(self, kind: str) -> bytes:
        sealed = self._sealed[-1] if kind == "thinking" and self._sealed else ""
        if kind == "thinking":
            self._sealed.clear()
        if self._keep:
            assert self._open is not None, "it is about to be closed"
            self._content.append(_complete(self._open, "".join(self._pieces), sealed))
            self._pieces.clear()
        signed = self._signature(sealed) if sealed else b""
        return signed + self._block_stop()

    def _block_start(self, block: Mapping[str, object]) -> bytes:
        members = {"type": "content_block_start", "index": self._index, "content_block": block}
        return wire.event("content_block_start", members)

    def _signature(self, sealed: str) -> bytes:
        delta = {"type": "signature_delta", "signature": sealed}
        members = {"type": "content_block_delta", "index": self._index, "delta": delta}
        return wire.event("content_block_delta", members)

    def _block_stop(self) -> bytes:
        index = self._index
        self._index += 1
        return wire.event("content_block_stop", {"type": "content_block_stop", "index": index})


def _block(block: Open) -> dict[str, object]:
    """A block as it begins."""
    if block.kind in _CALLS:
        return {"type": "tool_use", "id": block.id, "name": block.name, "input": {}}
    if block.kind == "thinking":
        return {"type": "thinking", "thinking": "", "signature": ""}
    return {"type": "text", "text": ""}


def _complete(block: Open, text: str, sealed: str) -> dict[str, object]:
    """A block with all that came for it."""
    if block.kind in _CALLS:
        return {**_block(block), "input": _input(text)}
    if block.kind == "thinking":
        return {"type": "thinking", "thinking": text, "signature": sealed}
    return {"type": "text", "text": text}


def _input(arguments: str) -> object:
    """The arguments of a call as an object; what was cut or is none is kept as text in one."""
    if not arguments.strip():
        return {}
    try:
        _decode_object(arguments)
    except UNREADABLE:
        return {"_raw": arguments}
    return msgspec.Raw(arguments.encode())
