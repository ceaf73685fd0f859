"""Chat answers on their way through: relayed as bytes, read once beside that.

Every event of a stream is read for what it costs and whether it ends or breaks the answer, or known
by the form of the one before it (`chat_form`). Its bytes go on as they came, apart from three
things the client must not notice: the upstream's name of the model, usage that only we asked for,
and the end of the stream, which waits until the money is settled. A stream that is cut at a limit
ends in chunks of ours, made after the last that passed.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from secrets import token_hex

import msgspec

from adapters import sse
from adapters.canonical import Usage
from adapters.codec import EMPTY_ANSWER, Counted, Expected, UpstreamFailure
from adapters.errors import APIError, UpstreamProtocolViolation
from adapters.limited import LimitedStream
from adapters.openai import wire
from adapters.openai.chat_form import Form, form_of
from adapters.openai.chat_meter import ChatMeter, piece_bytes
from adapters.openai.failure import read_error_object
from adapters.openai.refusal import OpenAIRefusals
from adapters.stream import completed

_DONE = b"[DONE]"
_USAGE = b'"usage"'
_NULL_USAGE = b',"usage":null'
_NOT_OF_AN_END = ("choices", "usage", "obfuscation")
_VAIN_FORMS_MAX = 4  # forms that no event after them had; who is so changeable has none
_MODEL_SPELLINGS = (b'"model":', b'"model": ')

_decode_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_encode = msgspec.json.encode
_REFUSALS = OpenAIRefusals()


class ChatStreamRelay(LimitedStream):
    """One streamed chat completion, passing from an upstream to a client.

    `shown_model` is the id that the client asked for; usage passes where `show_usage`; `pieces`
    are billed whatever the answer. `limited`: it may be given a limit while it runs.
    """

    __slots__ = (
        "_ending",
        "_form",
        "_form_deltas",
        "_last",
        "_meter",
        "_model_member",
        "_said_last",
        "_show_usage",
        "_shown_member",
        "_shown_model",
        "_upstream_model",
        "_vain_forms",
    )

    def __init__(
        self,
        shown_model: str,
        show_usage: bool,
        pieces: Mapping[str, int],
        *,
        limited: bool = False,
    ) -> None:
        self._meter = ChatMeter(pieces)
        super().__init__(self._meter, limited=limited)
        self._show_usage = show_usage
        self._shown_model = shown_model
        self._shown_member = b'"model":' + _encode(shown_model)
        self._upstream_model = ""  # learnt from the events, with its spelling in them
        self._model_member = b""
        self._form: Form | None = None  # of the event that passed last
        self._form_deltas = 0  # that had come when it was made
        self._vain_forms = 0
        self._last = b""  # chunk that passed, of a stream that may be cut
        self._ending = b""  # of one that was
        self._said_last = False  # behind the cut

    @property
    def terminal(self) -> bytes:
        if self.cut and not self._ending:
            self._ending = self._cut_off(self.counted(self._expected).usage)
        return self._ending + sse.event(_DONE)

    @property
    def has_content(self) -> bool:
        """A role alone, or an empty delta, is not content yet."""
        return self._meter.deltas > 0

    def error_event(self, error: APIError, request_id: str) -> bytes:
        return _REFUSALS.error_event(error, request_id)

    def _pass(self, raw: bytes) -> bytes:
        if self.ended or self.full:
            self._keep_back(raw)
            return b""
        if self._form is not None and self._limit is None:
            filled = self._form.fill(raw)
            if filled is not None:
                shown, text_bytes = filled
                self._meter.add(text_bytes)
                if self._limited:
                    self._last = sse.data_of(raw)
                return shown
        return self._read(raw)

    def _read(self, raw: bytes) -> bytes:
        """The same of an event that has to be read."""
        data = sse.data_of(raw)
        if not data:
            return raw  # a comment, or blank lines
        if data.startswith(_DONE):
            self._end()
            return b""
        try:
            chunk = wire.read_answer(data)
        except UpstreamProtocolViolation as violation:
            self._fail(UpstreamFailure("protocol", str(violation)))
            return b""
        if chunk.error and (failure := read_error_object(chunk.error)) is not None:
            self._fail(failure)
            return b""
        if self._limited:
            if self._limit is not None and not self._meter.has_room(chunk, self._limit):
                return self._wait(raw)
            self._last = data
        self._meter.read(chunk)
        self._learn(raw, chunk)
        return self._shown(raw, chunk)

    def _shown(self, raw: bytes, chunk: wire.Answer) -> bytes:
        """An event as the client sees it."""
        if chunk.usage and not self._show_usage:
            if not chunk.choices and bytes(chunk.usage) != b"null":
                return b""  # nothing but the usage that we asked for
            raw = _without_usage(raw)
        if chunk.model != self._shown_model and isinstance(chunk.model, str):
            raw = self._renamed(raw, chunk.model)
        return raw

    def _learn(self, raw: bytes, chunk: wire.Answer) -> None:
        """Of which form the next events may be. One before it, if any, is over."""
        if self._form is not None and self._form_deltas + 1 >= self._meter.deltas:
            self._vain_forms += 1
        self._form = None
        if self._vain_forms < _VAIN_FORMS_MAX and piece_bytes(chunk):
            self._form_deltas = self._meter.deltas
            self._form = form_of(raw, _piece_bytes_of, lambda sample: self._shown(sample, chunk))

    def _end(self) -> None:
        """The upstream's last word: the answer is complete, unless it is none."""
        self.ended = True
        self._meter.close()
        if self._meter.empty:
            self.failure = EMPTY_ANSWER

    def _read_on(self, raw: bytes) -> None:
        data = sse.data_of(raw)
        if data.startswith(_DONE):
            self._said_last = True
            self._meter.close()
        elif data:
            with suppress(UpstreamProtocolViolation):
                self._meter.read_on(wire.read_answer(data))

    def _break_off(self) -> None:
        if self._meter.finished:
            self._end()
        else:
            self._fail(UpstreamFailure("truncated", "The stream ended before the answer did."))

    @property
    def _complete(self) -> bool:
        return self._said_last

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
    """One chat completion in one piece, read and with the client's name of the model.

    What was said in it is only looked at where its provider has not counted it.
    """

    __slots__ = ("_meter", "_usage", "body", "failure")

    def __init__(self, shown_model: str, body: bytes, pieces: Mapping[str, int]) -> None:
        self.body = b""
        self.failure: UpstreamFailure | None = None
        self._usage = Usage(pieces=pieces)
        self._meter: ChatMeter | None = None  # of our own count
        try:
            answer = wire.read_answer(body)
        except UpstreamProtocolViolation as violation:
            self.failure = UpstreamFailure("protocol", str(violation))
            return
        if answer.error and (failure := read_error_object(answer.error)) is not None:
            self.failure = failure
            return
        tier = answer.service_tier
        usage = wire.read_usage(answer.usage, tier if isinstance(tier, str) else "", pieces)
        if usage is not None and usage.output_tokens:
            self._usage = usage
        else:
            self._meter = meter = ChatMeter(pieces)
            meter.read(answer)
            meter.close()
            if meter.empty:
                self.failure = EMPTY_ANSWER
                return
        self.body = with_model(body, shown_model)

    def counted(self, expected: Expected) -> Counted:
        if self._meter is not None:
            return self._meter.counted(expected)
        return Counted(*completed(self._usage, self._usage.output_tokens, expected))


def with_model(answer: bytes, model: str) -> bytes:
    """A JSON object under another name of its model; every other byte of a value stays."""
    members = _members(answer)
    if members is None:
        return answer
    if "model" in members:
        members["model"] = msgspec.Raw(_encode(model))
    return _encode(members)


def _piece_bytes_of(raw: bytes) -> int | None:
    """`piece_bytes` of a raw event."""
    try:
        return piece_bytes(wire.read_answer(sse.data_of(raw)))
    except UpstreamProtocolViolation:
        return None


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
