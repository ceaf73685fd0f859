"""Anthropic's answers, streamed or whole, told to a composer.

What we do not know is skipped: events, deltas, and blocks of tools that the provider ran itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec

from adapters.anthropic import wire
from adapters.anthropic.failure import read_error_object
from adapters.canonical import Citation, FinishReason
from adapters.errors import UpstreamProtocolViolation
from adapters.stream import Composer

_REASONS: Mapping[str, FinishReason] = {
    "end_turn": "end",
    "stop_sequence": "stop_sequence",
    "tool_use": "tool_calls",
    "max_tokens": "length",
    "model_context_window_exceeded": "context_window",
    "refusal": "refusal",
    "pause_turn": "pause",
}
_EMPTY_INPUTS = (b"", b"{}", b"null", b'""')

_encode = msgspec.json.encode
_text_in = wire.text_in


class MessagesReader:
    """Reads one answer. Implements `codec.Reader`."""

    __slots__ = ("_inputs", "_skipped", "_usage", "composer")

    def __init__(self) -> None:
        self.composer = Composer()
        self._usage = wire.UsageCount()
        self._inputs: dict[int, str] = {}  # of calls that began with all of it
        self._skipped: set[int] = set()

    def read(self, data: bytes) -> None:
        try:
            event = wire.read_event(data)
        except UpstreamProtocolViolation as violation:
            self.composer.fail("protocol", str(violation))
            return
        handle = _HANDLERS.get(event.type) if isinstance(event.type, str) else None
        if handle is not None:
            handle(self, event)

    def plain(self, body: bytes) -> None:
        try:
            message = wire.read_message(body)
        except UpstreamProtocolViolation as violation:
            self.composer.fail("protocol", str(violation))
            return
        if message.type == "error" or (message.error and message.content is None):
            self._fail(message.error)
            return
        if message.content is None:
            self.composer.fail("protocol", "The answer is not a message.")
            return
        self._start(message)
        for index, block in enumerate(message.content):
            self._open(index, block)
            self._close(index)
        self._used(message.usage)
        self._reason(message.stop_reason, message.stop_sequence, message.stop_details)
        self._finish()

    def close(self) -> None:
        """The stream ended: whole where the answer had said why it ends."""
        self.composer.finish()

    # -- events -----------------------------------------------------------------------------------

    def _message_start(self, event: wire.Event) -> None:
        if event.message is not None:
            self._start(event.message)

    def _block_start(self, event: wire.Event) -> None:
        if event.content_block is not None:
            self._open(event.index, event.content_block)

    def _block_delta(self, event: wire.Event) -> None:
        delta, index = event.delta, event.index
        if delta is None or index in self._skipped:
            return
        composer = self.composer
        kind = delta.type
        if kind == "text_delta":
            composer.delta(index, _text_in(delta.text))
        elif kind == "input_json_delta":
            if delta.partial_json:
                self._inputs.pop(index, None)
            composer.delta(index, _text_in(delta.partial_json))
        elif kind == "thinking_delta":
            composer.delta(index, _text_in(delta.thinking))
        elif kind == "signature_delta":
            if signature := _text_in(delta.signature):
                composer.meta(index, signature=signature)
        elif kind == "citations_delta":
            self._cite(index, delta.citation)

    def _block_stop(self, event: wire.Event) -> None:
        self._close(event.index)

    def _message_delta(self, event: wire.Event) -> None:
        self._used(event.usage)
        if event.delta is not None:
            delta = event.delta
            self._reason(delta.stop_reason, delta.stop_sequence, delta.stop_details)

    def _message_stop(self, event: wire.Event) -> None:
        self._finish()

    def _error(self, event: wire.Event) -> None:
        self._fail(event.error)

    # -- what both forms have ---------------------------------------------------------------------

    def _start(self, message: wire.Message) -> None:
        usage = self._usage.read(message.usage)
        self.composer.start(_text_in(message.id), _text_in(message.model), usage)

    def _open(self, index: int, block: wire.Block) -> None:
        composer = self.composer
        if block.type == "text":
            composer.open(index, "text")
            composer.delta(index, _text_in(block.text))
            self._cite(index, block.citations)
        elif block.type == "thinking":
            composer.open(index, "thinking")
            composer.delta(index, _text_in(block.thinking))
            if signature := _text_in(block.signature):
                composer.meta(index, signature=signature)
        elif block.type == "redacted_thinking":
            composer.open(index, "thinking")
            composer.meta(index, signature=_text_in(block.data), kind="redacted")
        elif block.type == "tool_use":
            composer.open(index, "call", _text_in(block.id), _text_in(block.name))
            if bytes(block.input) not in _EMPTY_INPUTS:
                self._inputs[index] = bytes(block.input).decode(errors="replace")
        else:
            self._skipped.add(index)

    def _close(self, index: int) -> None:
        arguments = self._inputs.pop(index, "")
        if arguments:
            self.composer.delta(index, arguments)
        self.composer.close(index)

    def _cite(self, index: int, raw: msgspec.Raw) -> None:
        for citation in wire.read_citations(raw):
            if url := _text_in(citation.url):
                self.composer.meta(index, citation=Citation(url, _text_in(citation.title)))

    def _used(self, raw: msgspec.Raw) -> None:
        usage = self._usage.read(raw)
        if usage is not None:
            self.composer.used(usage)

    def _reason(self, reason: object, sequence: object, details: msgspec.Raw) -> None:
        """A reason that we do not know is an end all the same; none is none."""
        if isinstance(reason, str):
            self.composer.reason(
                _REASONS.get(reason, "end"), _text_in(sequence), wire.read_explanation(details)
            )

    def _finish(self) -> None:
        """The last word was said: an end, also without a reason for it (the first one stays)."""
        self.composer.reason("end")
        self.composer.finish()

    def _fail(self, raw: msgspec.Raw) -> None:
        failure = read_error_object(raw)
        self.composer.fail(failure.kind, failure.message, failure)


_HANDLERS: Mapping[str, Callable[[MessagesReader, wire.Event], None]] = {
    "message_start": MessagesReader._message_start,
    "content_block_start": MessagesReader._block_start,
    "content_block_delta": MessagesReader._block_delta,
    "content_block_stop": MessagesReader._block_stop,
    "message_delta": MessagesReader._message_delta,
    "message_stop": MessagesReader._message_stop,
    "error": MessagesReader._error,
}
