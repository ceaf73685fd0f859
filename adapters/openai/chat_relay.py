"""Chat answers on their way through: relayed as bytes, read once beside that.

Every event of a stream is read for what it costs and whether it ends or breaks the answer; its
bytes go on as they came, apart from three things the client must not notice: the upstream's name
of the model, usage that only we asked for, and the end of the stream, which waits until the money
is settled. A stream that is cut at a limit ends in chunks of ours, made after the last that passed.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from secrets import token_hex

import msgspec

from adapters import sse
from adapters.canonical import Usage
from adapters.codec import EMPTY_ANSWER, Counted, FailureKind, UpstreamFailure
from adapters.errors import APIError, UpstreamProtocolViolation
from adapters.openai import wire
from adapters.openai.chat_meter import ChatMeter
from adapters.openai.failure import read_error_object
from adapters.openai.refusal import OpenAIRefusals
from adapters.stream import cut_at

_DONE = b"[DONE]"
_USAGE = b'"usage"'
_NULL_USAGE = b',"usage":null'
_NOT_OF_AN_END = ("choices", "usage", "obfuscation")
_MODEL_SPELLINGS = (b'"model":', b'"model": ')

_decode_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_encode = msgspec.json.encode
_REFUSALS = OpenAIRefusals()


class ChatStreamRelay:
    """One streamed chat completion, passing from an upstream to a client.

    `shown_model` is the id that the client asked for; usage passes where `show_usage`; `pieces`
    are billed whatever the answer. `limited`: it may be given a limit while it runs.
    """

    __slots__ = (
        "_complete",
        "_ending",
        "_input_text_bytes",
        "_last",
        "_limit",
        "_limited",
        "_meter",
        "_model_member",
        "_show_usage",
        "_shown_member",
        "_shown_model",
        "_splitter",
        "_upstream_model",
        "_waiting",
        "cut",
        "ended",
        "failure",
        "full",
    )

    def __init__(
        self,
        shown_model: str,
        show_usage: bool,
        pieces: Mapping[str, int],
        *,
        limited: bool = False,
    ) -> None:
        self.ended = False
        self.cut = False
        self.full = False
        self.failure: UpstreamFailure | None = None
        self._splitter = sse.Splitter()
        self._meter = ChatMeter(pieces)
        self._show_usage = show_usage
        self._shown_model = shown_model
        self._shown_member = b'"model":' + _encode(shown_model)
        self._upstream_model = ""  # learnt from the events, with its spelling in them
        self._model_member = b""
        self._limited = limited
        self._limit: int | None = None
        self._waiting: list[bytes] = []  # events without room
        self._input_text_bytes = 0
        self._last = b""  # chunk that passed, of a stream that may be cut
        self._ending = b""  # of one that was
        self._complete = False  # the upstream has said its last word, whoever heard it

    @property
    def waiting_bytes(self) -> int:
        return self._splitter.waiting_bytes

    def limit(self, output_tokens: int | None) -> bytes:
        assert self._limited, "the relay was made without"
        self._limit = output_tokens
        waiting, self._waiting, self.full = self._waiting, [], False
        return b"".join([self._pass(event) for event in waiting])

    def cut_short(self, input_text_bytes: int) -> None:
        self.full, self.cut, self.ended = False, True, True
        self._input_text_bytes = input_text_bytes
        for event in self._waiting:
            self._read_on(event)
        self._waiting.clear()

    @property
    def terminal(self) -> bytes:
        if self.cut and not self._ending:
            self._ending = self._cut_off(self.counted(self._input_text_bytes).usage)
        return self._ending + sse.event(_DONE)

    @property
    def has_content(self) -> bool:
        """A role alone, or an empty delta, is not content yet."""
        return self._meter.deltas > 0

    def feed(self, data: bytes) -> bytes:
        if self.ended:
            return b""
        try:
            events = self._splitter.feed(data)
        except UpstreamProtocolViolation as violation:
            self._fail("protocol", str(violation))
            return b""
        return b"".join([self._pass(event) for event in events])

    def close(self) -> bytes:
        rest = self._splitter.close()
        out = self._pass(sse.terminated(rest)) if sse.data_of(rest) else b""
        if self.ended or self.full:
            return out
        if self._meter.finished:
            self._end()
        else:
            self._fail("truncated", "The stream ended before the answer did.")
        return out

    def read_on(self, data: bytes) -> bool:
        if self.full:
            self.cut_short(0)
        if not self.cut:
            self.feed(data)
            return self.ended
        try:
            for event in self._splitter.feed(data):
                self._read_on(event)
        except UpstreamProtocolViolation:
            return True
        return self._complete

    def counted(self, input_text_bytes: int) -> Counted:
        counted = self._meter.counted(input_text_bytes)
        return cut_at(counted, self._limit) if self.cut and self._limit is not None else counted

    def error_event(self, error: APIError, request_id: str) -> bytes:
        return _REFUSALS.error_event(error, request_id)

    def _pass(self, event: bytes) -> bytes:
        """Read one event; return what the client sees of it."""
        if self.ended or self.full:
            self._keep_back(event)
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
            self._fail("protocol", str(violation))
            return b""
        if chunk.error and (failure := read_error_object(chunk.error)) is not None:
            self.failure, self.ended = failure, True
            return b""
        if self._limited:
            if self._limit is not None and not self._meter.has_room(chunk, self._limit):
                self.full = True
                self._waiting.append(event)
                return b""
            self._last = data
        self._meter.read(chunk)
        if chunk.usage and not self._show_usage:
            if not chunk.choices and bytes(chunk.usage) != b"null":
                return b""  # nothing but the usage that we asked for
            event = _without_usage(event)
        if chunk.model != self._shown_model and isinstance(chunk.model, str):
            event = self._renamed(event, chunk.model)
        return event

    def _end(self) -> None:
        """The upstream's last word: the answer is complete, unless it is none."""
        self.ended = True
        self._meter.close()
        if self._meter.empty:
            self.failure = EMPTY_ANSWER

    def _keep_back(self, event: bytes) -> None:
        if self.full:
            self._waiting.append(event)
        elif self.cut:
            self._read_on(event)

    def _read_on(self, event: bytes) -> None:
        """An event behind the cut, whatever it is worth."""
        data = sse.data_of(event)
        if data.startswith(_DONE):
            self._complete = True
            self._meter.close()
        elif data:
            with suppress(UpstreamProtocolViolation):
                self._meter.read_on(wire.read_answer(data))

    def _cut_off(self, usage: Usage) -> bytes:
        """The chunks that end every choice at its cap, in the words of the last that passed."""
        members = (_members(self._last) if self._last else None) or _first_words()
        members["model"] = msgspec.Raw(_encode(self._shown_model))
        for name in _NOT_OF_AN_END:
            members.pop(name, None)
        chunks = []
        for index in self._meter.open_choices or (0,):
            choice = {"index": index, "delta": {}, "logprobs": None, "finish_reason": "length"}
            chunks.append(sse.event(_encode({**members, "choices": [choice]})))
        if self._show_usage:
            chunks.append(
                sse.event(_encode({**members, "choices": [], "usage": wire.written_usage(usage)}))
            )
        return b"".join(chunks)

    def _fail(self, kind: FailureKind, message: str) -> None:
        self.failure, self.ended = UpstreamFailure(kind, message), True

    def _renamed(self, event: bytes, model: str) -> bytes:
        """The event under the name of the model that the client knows."""
        if model != self._upstream_model:
            self._upstream_model = model
            self._model_member = _spelling(event, _encode(model))
        at = event.find(self._model_member)
        if at > 0 and event.find(b"{", 0, at) == event.rfind(b"{", 0, at):
            # Only the object itself has been opened before it: the member is at the top level.
            return event[:at] + self._shown_member + event[at + len(self._model_member) :]
        return sse.with_data(event, with_model(sse.data_of(event), self._shown_model))


class ChatPlainRelay:
    """One chat completion in one piece, read and with the client's name of the model."""

    __slots__ = ("_meter", "body", "failure")

    def __init__(self, shown_model: str, body: bytes, pieces: Mapping[str, int]) -> None:
        self.body = b""
        self.failure: UpstreamFailure | None = None
        self._meter = ChatMeter(pieces)
        try:
            answer = wire.read_answer(body)
        except UpstreamProtocolViolation as violation:
            self.failure = UpstreamFailure("protocol", str(violation))
            return
        if answer.error and (failure := read_error_object(answer.error)) is not None:
            self.failure = failure
            return
        self._meter.read(answer)
        self._meter.close()
        if self._meter.empty:
            self.failure = EMPTY_ANSWER
            return
        self.body = with_model(body, shown_model)

    def counted(self, input_text_bytes: int) -> Counted:
        return self._meter.counted(input_text_bytes)


def with_model(answer: bytes, model: str) -> bytes:
    """A JSON object under another name of its model; every other byte of a value stays."""
    members = _members(answer)
    if members is None:
        return answer
    if "model" in members:
        members["model"] = msgspec.Raw(_encode(model))
    return _encode(members)


def _members(data: bytes) -> dict[str, msgspec.Raw] | None:
    """The members of an answer that was read; None where a key of it is no proper text.

    Such a key is of no use to anybody, and no reason to take an answer from the client.
    """
    try:
        return _decode_members(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def _first_words() -> dict[str, msgspec.Raw]:
    """The members of a chunk where none has passed."""
    members: dict[str, object] = {
        "id": f"chatcmpl-{token_hex(12)}",
        "object": "chat.completion.chunk",
        "created": 0,
    }
    return {name: msgspec.Raw(_encode(value)) for name, value in members.items()}


def _spelling(event: bytes, model: bytes) -> bytes:
    """How this upstream writes the member that names its model."""
    for name in _MODEL_SPELLINGS:
        if name + model in event:
            return name + model
    return _MODEL_SPELLINGS[0] + model


def _without_usage(event: bytes) -> bytes:
    """The event without its `usage` member; not re-encoded where that is null, as it mostly is."""
    at = event.find(_NULL_USAGE)
    if at > 0 and event.count(_USAGE) == 1:  # no other one, further inside
        return event[:at] + event[at + len(_NULL_USAGE) :]
    members = _members(sse.data_of(event))
    if members is None:
        return event
    members.pop("usage", None)
    return sse.with_data(event, _encode(members))
