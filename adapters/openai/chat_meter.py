"""What a chat answer has produced so far: text, usage, and which choices have finished.

Our own count, for answers without the provider's: a token for every four bytes of text, and at
least one for every delta that carried text. Text is content, refusal, reasoning, and the names
and arguments of tool calls, as UTF-8, over all choices.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from adapters.canonical import Usage
from adapters.codec import Counted, Expected
from adapters.estimate import counted_tokens
from adapters.openai import wire
from adapters.stream import completed, completed_output

_WITHHELD = "content_filter"  # an answer without text that is an answer all the same


class ChatMeter:
    """Reads the chunks of one stream, or one plain answer."""

    __slots__ = (
        "_closed",
        "_finished",
        "_open",
        "_pieces",
        "_service_tier",
        "_text_bytes",
        "_usage",
        "_usage_is_whole",
        "_withheld",
        "deltas",
    )

    def __init__(self, pieces: Mapping[str, int]) -> None:
        self.deltas = 0  # that carried something the caller would miss
        self._text_bytes = 0
        self._pieces = pieces
        self._service_tier = ""
        self._usage: Usage | None = None
        self._usage_is_whole = False  # it came when all choices had finished
        self._open: set[int] = set()  # choices that have begun and not finished
        self._finished = False  # some choice has
        self._withheld = False  # by a content filter
        self._closed = False

    @property
    def finished(self) -> bool:
        """Whether every choice that began has said why it ended."""
        return self._finished and not self._open

    @property
    def empty(self) -> bool:
        """Whether there is no output: no text, and no tokens spent without any."""
        spent = self._usage is not None and self._usage.output_tokens > 0
        return not (self.deltas or spent or self._withheld)

    def read(self, answer: wire.Answer) -> None:
        """Add one chunk, or a whole answer."""
        for choice in answer.choices or ():
            message = choice.delta if choice.delta is not None else choice.message
            if message is not None:
                produced = _produced_bytes(message)
                if produced or message.audio:
                    self.deltas += 1
                    self._text_bytes += produced
            if choice.finish_reason is None:
                self._open.add(choice.index)
            else:
                self._finished = True
                self._open.discard(choice.index)
                self._withheld = self._withheld or choice.finish_reason == _WITHHELD
        if answer.service_tier is not None and isinstance(answer.service_tier, str):
            self._service_tier = answer.service_tier
        if answer.usage:
            self._read_usage(answer.usage)

    def add(self, text_bytes: int) -> None:
        """Add a chunk with so much text that says nothing else that is new."""
        self.deltas += 1
        self._text_bytes += text_bytes

    @property
    def open_choices(self) -> tuple[int, ...]:
        """Those that have begun and not finished."""
        return tuple(sorted(self._open))

    def has_room(self, answer: wire.Answer, output_tokens: int) -> bool:
        """Whether a chunk would keep the output at `output_tokens` or less.

        What says nothing, or says why it ends, has room at any time.
        """
        deltas, text_bytes = self.deltas, self._text_bytes
        for choice in answer.choices or ():
            if choice.finish_reason is not None:
                return True
            if choice.delta is not None and (produced := _produced_bytes(choice.delta)):
                deltas += 1
                text_bytes += produced
        if deltas == self.deltas:
            return True
        told = 0 if self._usage is None else self._usage.output_tokens
        return max(told, deltas, counted_tokens(text_bytes)) <= output_tokens

    def read_on(self, answer: wire.Answer) -> None:
        """A chunk that no client gets, of which nothing but the figures count."""
        for choice in answer.choices or ():
            choice.delta = choice.message = None
        self.read(answer)

    def close(self) -> None:
        """The answer is complete: whatever usage came is all of it."""
        self._closed = True

    @property
    def output_tokens(self) -> int:
        """The output to settle with."""
        told = 0 if self._usage is None else self._usage.output_tokens
        said = max(self.deltas, counted_tokens(self._text_bytes))
        return completed_output(told, said, whole=self._closed or self._usage_is_whole)

    def counted(self, expected: Expected) -> Counted:
        """What to settle with."""
        usage, estimated = completed(self._usage or Usage(), self.output_tokens, expected)
        if self._service_tier or self._pieces:
            tier, pieces = self._service_tier, self._pieces
            usage = msgspec.structs.replace(usage, service_tier=tier, pieces=pieces)
        return Counted(usage, estimated)

    def _read_usage(self, raw: msgspec.Raw) -> None:
        """The last usage counts: they are running totals, never parts."""
        usage = wire.read_usage(raw)
        if usage is not None:
            self._usage = usage
            self._usage_is_whole = self.finished


def piece_bytes(chunk: wire.Answer) -> int | None:
    """How much text is in a chunk that is nothing but a piece of an answer; None: it is more."""
    if chunk.error or not chunk.choices or len(chunk.choices) > 1:
        return None
    if chunk.usage and bytes(chunk.usage) != b"null":
        return None
    choice = chunk.choices[0]
    if choice.delta is None or choice.delta.audio or choice.finish_reason is not None:
        return None
    return _produced_bytes(choice.delta)


def _produced_bytes(message: wire.Message) -> int:
    """The text of one message or delta, in bytes."""
    produced = 0
    if message.content:
        produced += _text_bytes(message.content)
    if message.reasoning_content:
        produced += _text_bytes(message.reasoning_content)
    elif message.reasoning:
        produced += _text_bytes(message.reasoning)
    if message.refusal:
        produced += _text_bytes(message.refusal)
    if message.tool_calls:
        for call in message.tool_calls:
            produced += _call_bytes(call.function) + _call_bytes(call.custom)
    if message.function_call is not None:
        produced += _call_bytes(message.function_call)
    return produced


def _text_bytes(text: object) -> int:
    if isinstance(text, str):
        return len(text) if text.isascii() else len(text.encode())
    return len(msgspec.json.encode(text))  # parts, as some servers send them: counted as JSON


def _call_bytes(function: wire.Function | None) -> int:
    if function is None:
        return 0
    texts = (function.name, function.arguments, function.input)
    return sum(_text_bytes(text) for text in texts if text)
