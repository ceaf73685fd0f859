"""Chat answers on their way through: relayed as bytes, read once beside that.

Every event of a stream is read for what it costs and whether it ends or breaks the answer; its
bytes go on as they came, apart from three things the client must not notice: the upstream's name
of the model, usage that only we asked for, and the end of the stream, which waits until the money
is settled.

Our own count, for answers without the provider's: a token for every four bytes of text, and at
least one for every event that carried text. Text is content, refusal, reasoning, and the names
and arguments of tool calls, as UTF-8, over all choices.
"""

from __future__ import annotations

import msgspec

from adapters import sse
from adapters.canonical import Usage
from adapters.codec import Counted, UpstreamFailure
from adapters.errors import UpstreamProtocolViolation
from adapters.estimate import counted_tokens
from adapters.openai import wire
from adapters.openai.failure import read_error_object

_DONE = b"[DONE]"
_WITHHELD = "content_filter"  # an answer without text that is an answer all the same
_NULL_USAGE = b',"usage":null'
_MODEL_SPELLINGS = (b'"model":', b'"model": ')

_decode_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_encode = msgspec.json.encode


class ChatStreamRelay:
    """One streamed chat completion, passing from an upstream to a client.

    `shown_model` is the id that the client asked for; usage passes where `show_usage`.
    """

    __slots__ = (
        "_done",
        "_final_usage",
        "_finished",
        "_meter",
        "_model_member",
        "_open",
        "_show_usage",
        "_shown_member",
        "_shown_model",
        "_splitter",
        "_upstream_model",
        "_usage",
        "_withheld",
        "failure",
    )

    terminal = sse.event(_DONE)

    def __init__(self, shown_model: str, show_usage: bool) -> None:
        self.failure: UpstreamFailure | None = None
        self._splitter = sse.Splitter()
        self._meter = _Meter()
        self._usage: Usage | None = None
        self._final_usage = False  # it came when the answer was finished, so it is the whole
        self._done = False
        self._open: set[int] = set()  # choices that have begun and not finished
        self._finished = False  # some choice has finished
        self._withheld = False  # by a content filter
        self._shown_model = shown_model
        self._shown_member = b'"model":' + _encode(shown_model)
        self._upstream_model: object = shown_model  # learnt from the events
        self._model_member = b""
        self._show_usage = show_usage

    @property
    def has_content(self) -> bool:
        """A role alone, or an empty delta, is not content yet."""
        return self._meter.events > 0

    @property
    def ended(self) -> bool:
        return self._done or self.failure is not None

    def feed(self, data: bytes) -> bytes:
        if self.ended:
            return b""
        try:
            events = self._splitter.feed(data)
        except UpstreamProtocolViolation as violation:
            self.failure = UpstreamFailure("protocol", str(violation))
            return b""
        return b"".join([self._pass(event) for event in events])

    def close(self) -> bytes:
        rest = self._splitter.close()
        if self.ended:
            return b""
        out = self._pass(sse.terminated(rest)) if sse.data_of(rest) else b""
        if not self.ended and self._finished and not self._open:
            self._end()
        elif not self.ended:
            self.failure = UpstreamFailure("truncated", "The stream ended before the answer did.")
        return out

    def counted(self, input_text_bytes: int) -> Counted:
        """The provider's usage, exact where it closed the answer.

        Usage that came before the end may be a placeholder: output is then at least our count.
        """
        if self._usage is None:
            return Counted(self._meter.usage(input_text_bytes), estimated=True)
        if self._final_usage or self._usage.output_tokens >= self._meter.tokens:
            return Counted(self._usage, estimated=False)
        usage = msgspec.structs.replace(self._usage, output_tokens=self._meter.tokens)
        return Counted(usage, estimated=True)

    def _pass(self, event: bytes) -> bytes:
        """Read one event; return what the client sees of it."""
        if self.ended:
            return b""
        data = sse.data_of(event)
        if not data:
            return event  # a comment, or blank lines
        if data.startswith(_DONE):
            self._end()
            return b""
        try:
            chunk = wire.read_answer(data)
        except UpstreamProtocolViolation as violation:
            self.failure = UpstreamFailure("protocol", str(violation))
            return b""
        if chunk.error and (failure := read_error_object(chunk.error)) is not None:
            self.failure = failure
            return b""
        choices = chunk.choices
        if choices:
            self._read_choices(choices)
        if chunk.usage:
            self._read_usage(chunk)
            if not self._show_usage:
                if not choices and self._usage is not None:
                    return b""
                event = _without_usage(event, data)
        if chunk.model != self._shown_model and isinstance(chunk.model, str):
            event = self._rename(event, chunk.model)
        return event

    def _end(self) -> None:
        """The upstream's last word: the answer is complete, unless it is none."""
        self._done = self._final_usage = True
        if not self._withheld and not _produced(self._meter, self._usage):
            self.failure = UpstreamFailure("empty", "The answer is empty.")

    def _read_choices(self, choices: list[wire.Choice]) -> None:
        for choice in choices:
            if choice.delta is not None:
                self._meter.add(choice.delta)
            if choice.finish_reason is None:
                self._open.add(choice.index)
            else:
                self._finished = True
                self._open.discard(choice.index)
                self._withheld = self._withheld or choice.finish_reason == _WITHHELD

    def _read_usage(self, chunk: wire.Answer) -> None:
        """The last usage counts; they are running totals, never parts."""
        usage = wire.read_usage(chunk.usage, chunk.service_tier)
        if usage is not None:
            self._usage = usage
            self._final_usage = self._finished and not self._open

    def _rename(self, event: bytes, upstream_model: str) -> bytes:
        """The event under the name of the model that the client knows."""
        if upstream_model != self._upstream_model:
            self._upstream_model = upstream_model
            self._model_member = _spelling(event, _encode(upstream_model))
        at = event.find(self._model_member)
        if at > 0 and event.find(b"{", 0, at) == event.rfind(b"{", 0, at):
            # Only the object itself has been opened before it: the member is at the top level.
            return event[:at] + self._shown_member + event[at + len(self._model_member) :]
        members = _decode_members(sse.data_of(event))
        members["model"] = msgspec.Raw(_encode(self._shown_model))
        return sse.with_data(event, _encode(members))


class ChatPlainRelay:
    """One chat completion in one piece, read and with the client's name of the model."""

    __slots__ = ("_meter", "_usage", "body", "failure")

    def __init__(self, shown_model: str, body: bytes) -> None:
        self.body = b""
        self.failure: UpstreamFailure | None = None
        self._meter = _Meter()
        self._usage: Usage | None = None
        try:
            answer = wire.read_answer(body)
        except UpstreamProtocolViolation as violation:
            self.failure = UpstreamFailure("protocol", str(violation))
            return
        if answer.error and (failure := read_error_object(answer.error)) is not None:
            self.failure = failure
            return
        for choice in answer.choices or ():
            if choice.message is not None:
                self._meter.add(choice.message)
        self._usage = wire.read_usage(answer.usage, answer.service_tier)
        withheld = any(choice.finish_reason == _WITHHELD for choice in answer.choices or ())
        if not withheld and not _produced(self._meter, self._usage):
            self.failure = UpstreamFailure("empty", "The answer is empty.")
            return
        self.body = with_model(body, shown_model)

    def counted(self, input_text_bytes: int) -> Counted:
        if self._usage is not None:
            return Counted(self._usage, estimated=False)
        return Counted(self._meter.usage(input_text_bytes), estimated=True)


class _Meter:
    """Counts what was produced, for answers whose provider does not say."""

    __slots__ = ("bytes", "events")

    def __init__(self) -> None:
        self.events = 0  # messages or deltas that carried something
        self.bytes = 0

    @property
    def tokens(self) -> int:
        return max(self.events, counted_tokens(self.bytes))

    def usage(self, input_text_bytes: int) -> Usage:
        return Usage(input_tokens=counted_tokens(input_text_bytes), output_tokens=self.tokens)

    def add(self, message: wire.Message) -> None:
        """Count one delta or message."""
        content = message.content
        if isinstance(content, str):
            produced = len(content) if content.isascii() else len(content.encode())
        else:
            produced = _json_bytes(content)
        produced += _text_bytes(message.reasoning_content) or _text_bytes(message.reasoning)
        produced += _text_bytes(message.refusal)
        if message.tool_calls:
            for call in message.tool_calls:
                produced += _call_bytes(call.function) + _call_bytes(call.custom)
        produced += _call_bytes(message.function_call)
        if produced or message.audio:
            self.events += 1
            self.bytes += produced


def _produced(meter: _Meter, usage: Usage | None) -> bool:
    """Whether there is output: text, or tokens spent without any (hidden reasoning)."""
    return meter.events > 0 or (usage is not None and usage.output_tokens > 0)


def _text_bytes(text: object) -> int:
    return len(text.encode()) if isinstance(text, str) else 0


def _call_bytes(function: wire.Function | None) -> int:
    if function is None:
        return 0
    return sum(map(_text_bytes, (function.name, function.arguments, function.input)))


def _json_bytes(content: object) -> int:
    """Content in parts, as some compatible servers send it: counted as JSON."""
    return len(_encode(content)) if content else 0


def _spelling(event: bytes, model: bytes) -> bytes:
    """How this upstream writes the member that names its model."""
    for name in _MODEL_SPELLINGS:
        if name + model in event:
            return name + model
    return _MODEL_SPELLINGS[0] + model


def _without_usage(event: bytes, data: bytes) -> bytes:
    """The event without its `usage` member; not re-encoded where that is null, as it mostly is."""
    at = event.find(_NULL_USAGE)
    if at > 0 and at == event.rfind(_NULL_USAGE):
        return event[:at] + event[at + len(_NULL_USAGE) :]
    members = _decode_members(data)
    members.pop("usage", None)
    return sse.with_data(event, _encode(members))


def with_model(body: bytes, model: str) -> bytes:
    """An answer under another name of its model; every other byte of a value stays."""
    members = _decode_members(body)
    if "model" in members:
        members["model"] = msgspec.Raw(_encode(model))
    return _encode(members)
