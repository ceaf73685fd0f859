"""Canonical events as a Gemini client gets them: chunks of a stream, or one answer.

A chunk looks like a whole answer. Text goes out as it comes, a call when it is complete, and the
last chunk has the reason and the figures. Nothing may stand between chunks: Google's own SDKs
raise at comments, at named events and at `[DONE]`.

Signatures of other providers travel sealed in `thoughtSignature`: on the thought they belong to,
where the client wants to see thoughts, else (and then with the thought) on the next part. What is
left at the end goes out on
an empty text part, as Google does it.
"""

from __future__ import annotations

import msgspec

from adapters import freeform
from adapters.canonical import (
    Blob,
    BlockKind,
    Citation,
    Close,
    Delta,
    Event,
    Finish,
    Logprob,
    Meta,
    Open,
    Prompt,
    Start,
    Usage,
    Used,
)
from adapters.characters import whole
from adapters.codec import Made, Request
from adapters.envelope import Envelopes
from adapters.errors import APIError
from adapters.estimate import counted_tokens
from adapters.gemini.framing import framing
from adapters.gemini.refusal import GeminiRefusals
from adapters.gemini.signature import Sealed, encoded
from adapters.gemini.wire import FINISH_REASONS, usage_metadata
from adapters.raw import UNREADABLE

Part = dict[str, object]

_encode = msgspec.json.encode
_decode_object = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_REFUSALS = GeminiRefusals()
_CALLS = ("call", "free_call")
# Older SDKs take these for the end of a line.
_LINE_ENDS = (
    (b"\xe2\x80\xa8", b"\\u2028"),
    (b"\xe2\x80\xa9", b"\\u2029"),
    (b"\xc2\x85", b"\\u0085"),
)


class GeminiWriter:
    """One answer for one client. Implements `codec.Writer`."""

    __slots__ = (
        "_after_text",
        "_before_text",
        "_body",
        "_citations",
        "_envelopes",
        "_framing",
        "_id",
        "_logprobs",
        "_made",
        "_model",
        "_open",
        "_parts",
        "_pieces",
        "_shows_thoughts",
        "_signatures",
        "_signs_thought",
        "_streams",
        "_text_characters",
        "_usage",
    )

    def __init__(self, request: Request, prompt: Prompt, envelopes: Envelopes, made: Made) -> None:
        self._envelopes = envelopes
        self._framing = framing(request.array)
        self._streams = request.stream
        self._shows_thoughts = prompt.reasoning is not None and prompt.reasoning.show is True
        self._made = made
        self._model = request.model
        self._id = ""
        # What stands around the text in a chunk that has nothing else.
        self._before_text = b'{"candidates":[{"content":{"parts":[{"text":'
        self._after_text = b""
        self._open = Open(-1, "text")
        self._pieces: list[str] = []  # of the open block, where it goes out whole
        self._parts: list[Part] = []  # of an answer in one piece
        self._signatures: list[Sealed] = []  # that wait for their part
        self._signs_thought = False  # the last one, which came with the open block
        self._citations: list[Citation] = []
        self._logprobs: list[Logprob] = []  # of an answer in one piece
        self._text_characters = 0
        self._usage: Usage | None = None
        self._body = b""

    def write(self, event: Event) -> bytes:
        kind = type(event)
        if kind is Delta:
            return self._delta(event.text)  # type: ignore[union-attr] # it is a Delta
        if isinstance(event, Start):
            self._start(event)
        elif isinstance(event, Open):
            self._open = event
            self._signs_thought = False
        elif isinstance(event, Meta):
            return self._meta(event)
        elif isinstance(event, Close):
            return self._close()
        elif isinstance(event, Used):
            self._usage = event.usage
        elif isinstance(event, Finish):
            return self._finish(event)
        return b""

    def whole(self) -> bytes:
        return self._body

    def error_event(self, error: APIError, request_id: str) -> bytes:
        return self._framing.item(_REFUSALS.error_body(error, request_id)) + self._framing.end()

    # -- events -----------------------------------------------------------------------------------

    def _start(self, event: Start) -> None:
        self._id = event.id
        self._usage = event.usage
        self._after_text = b'}],"role":"model"},"index":0}],' + _encode(self._names())[1:]

    def _delta(self, text: str) -> bytes:
        self._text_characters += len(text)
        kind = self._open.kind
        if kind in _CALLS or not self._streams or self._hides(kind):
            self._pieces.append(text)
            return b""
        if kind == "thinking" or self._signatures:
            return self._emit(self._signed(self._text(text)))
        return self._item(self._before_text + _encode(text) + self._after_text)

    def _meta(self, event: Meta) -> bytes:
        if event.signature:
            blob = Blob(self._made.provider, self._made.family, event.kind, event.signature)
            self._signatures.append(Sealed(self._envelopes.seal(blob), ""))
            self._signs_thought = event.kind == "thinking"
        if event.citation is not None:
            self._citations.append(event.citation)
        if event.logprobs and not self._streams:
            self._logprobs += event.logprobs
        elif event.logprobs:
            return self._chunk([{"text": ""}], {"logprobsResult": _logprobs(event.logprobs)})
        return b""

    def _close(self) -> bytes:
        """What of the block has not gone out; signatures of hidden thoughts wait on."""
        kind, text = self._open.kind, "".join(self._pieces)
        self._pieces.clear()
        if kind in _CALLS:
            return self._emit(self._signed(self._call(text)))
        if self._hides(kind):
            if self._signs_thought:
                self._signatures[-1] = self._signatures[-1]._replace(thought=text)
            return b""
        if not text and not self._signatures:
            return b""
        return self._emit(self._signed(self._text(text)))

    def _finish(self, event: Finish) -> bytes:
        parts = self._parts
        if self._signatures or self._streams:
            parts = parts + self._signed({"text": ""})
        rest: dict[str, object] = {"finishReason": FINISH_REASONS[event.reason]}
        if event.detail:
            rest["finishMessage"] = event.detail
        if self._citations:
            chunks = [{"web": {"uri": each.url, "title": each.title}} for each in self._citations]
            rest["groundingMetadata"] = {"groundingChunks": chunks}
        if self._logprobs:
            rest["logprobsResult"] = _logprobs(self._logprobs)
        answer = self._answer(parts, rest)
        answer["usageMetadata"] = usage_metadata(self._usage or self._estimated())
        if self._streams:
            return self._item(_encode(answer)) + self._framing.end()
        self._body = _encode(answer)
        return b""

    # -- parts ------------------------------------------------------------------------------------

    def _hides(self, kind: BlockKind) -> bool:
        return kind == "thinking" and not self._shows_thoughts

    def _text(self, text: str) -> Part:
        return {"text": text, "thought": True} if self._open.kind == "thinking" else {"text": text}

    def _call(self, text: str) -> Part:
        opened = self._open
        if opened.kind == "free_call":
            text = freeform.arguments(text)
        return {"functionCall": {"id": opened.id, "name": opened.name, "args": _arguments(text)}}

    def _signed(self, part: Part) -> list[Part]:
        """The part with the signature that waits; a part holds but one, so each before it comes
        on an empty thought."""
        waiting, self._signatures = self._signatures, []
        if not waiting:
            return [part]
        *before, last = waiting
        parts: list[Part] = [
            {"text": "", "thought": True, "thoughtSignature": encoded(each)} for each in before
        ]
        return [*parts, {**part, "thoughtSignature": encoded(last)}]

    # -- chunks -----------------------------------------------------------------------------------

    def _emit(self, parts: list[Part]) -> bytes:
        if self._streams:
            return self._chunk(parts, {})
        self._parts += parts
        return b""

    def _chunk(self, parts: list[Part], rest: dict[str, object]) -> bytes:
        return self._item(_encode(self._answer(parts, rest)))

    def _answer(self, parts: list[Part], rest: dict[str, object]) -> dict[str, object]:
        candidate = {"content": {"parts": parts, "role": "model"}, "index": 0, **rest}
        return {"candidates": [candidate], **self._names()}

    def _names(self) -> dict[str, str]:
        return {"modelVersion": self._model, "responseId": self._id}

    def _item(self, payload: bytes) -> bytes:
        if not payload.isascii():
            for line_end, escape in _LINE_ENDS:
                payload = payload.replace(line_end, escape)
        return self._framing.item(payload)

    def _estimated(self) -> Usage:
        """Clients want figures, also of providers that give none."""
        return Usage(
            input_tokens=self._made.input_tokens,
            output_tokens=counted_tokens(self._text_characters),
        )


def _arguments(text: str) -> object:
    """The arguments as an object, on one line and with every number spelled as it was."""
    raw = whole(text).encode()
    try:
        _decode_object(raw or b"{}")
        return msgspec.Raw(msgspec.json.format(raw or b"{}", indent=-1))
    except UNREADABLE:
        return {"_raw": text}


def _logprobs(logprobs: tuple[Logprob, ...] | list[Logprob]) -> dict[str, object]:
    return {
        "chosenCandidates": [_token(each.token, each.logprob) for each in logprobs],
        "topCandidates": [
            {"candidates": [_token(token, logprob) for token, logprob in each.top]}
            for each in logprobs
        ],
    }


def _token(token: str, logprob: float) -> dict[str, object]:
    return {"token": token, "logProbability": logprob}
