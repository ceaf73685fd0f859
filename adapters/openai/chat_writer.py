"""Canonical events as a chat completion: chunk by chunk, or as one object.

The accumulators of OpenAI's SDKs decide what a chunk may look like. They concatenate whatever
string comes twice, so role, ids, types and names come once; lists of objects are merged by `index`,
so every entry has one; calls count from 0 without gaps; nothing follows the usage.

Reasoning is `reasoning_content`, as compatible servers have it. Its signatures are sealed into two
places, since clients differ in what they send back: an entry of `reasoning_details` for each
signed thought, and `extra_content` of the call that follows it.
"""

from __future__ import annotations

from collections.abc import Mapping
from secrets import token_hex

import msgspec

from adapters import sse
from adapters.canonical import (
    Blob,
    BlockKind,
    Citation,
    Close,
    Delta,
    Event,
    Finish,
    FinishReason,
    Logprob,
    Meta,
    Open,
    Prompt,
    Start,
    Usage,
    Used,
)
from adapters.codec import Made, Request
from adapters.envelope import Envelopes
from adapters.errors import APIError
from adapters.estimate import counted_tokens
from adapters.openai import wire
from adapters.openai.chat_whole import Json, WholeMessage
from adapters.openai.refusal import OpenAIRefusals

_FINISH_REASONS: Mapping[FinishReason, str] = {
    "end": "stop",
    "stop_sequence": "stop",
    "pause": "stop",
    "tool_calls": "tool_calls",
    "length": "length",
    "context_window": "length",
    "content_filter": "content_filter",
    "refusal": "content_filter",
}
_MEMBERS: Mapping[BlockKind, str] = {
    "text": "content",
    "thinking": "reasoning_content",
    "refusal": "refusal",
}
_DONE = sse.event(b"[DONE]")
_REFUSALS = OpenAIRefusals()
_encode = msgspec.json.encode


class _Call:
    """The open call. What opens it waits for what comes next: some clients read a signature in the
    first fragment only."""

    __slots__ = ("argument", "extra", "first", "index", "kind", "said")

    def __init__(self, index: int, event: Open) -> None:
        self.index = index
        self.kind = "custom" if event.kind == "free_call" else "function"
        self.argument = "input" if event.kind == "free_call" else "arguments"
        self.extra: Json | None = None  # that is to go out
        self.said = False  # some of its arguments went out
        self.first: Json | None = {
            "id": event.id,
            "type": self.kind,
            self.kind: {"name": event.name},
        }

    @property
    def grows(self) -> bool:
        """Whether nothing but more arguments has to go out."""
        return self.first is None and self.extra is None

    def fragment(self, text: str) -> Json:
        """The next fragment, with all that has to go out."""
        first, self.first = self.first or {self.kind: {}}, None
        inner = first[self.kind]
        assert isinstance(inner, dict), "it was made so"
        first = {"index": self.index, **first, self.kind: {**inner, self.argument: text}}
        if self.extra is not None:
            first["extra_content"], self.extra = self.extra, None
        self.said = self.said or text != ""
        return first


class ChatWriter:
    """Writes one answer. Implements `codec.Writer`."""

    __slots__ = (
        "_block",
        "_call",
        "_calls",
        "_characters",
        "_cited",
        "_delta_begin",
        "_delta_end",
        "_details",
        "_envelopes",
        "_finish",
        "_gap",
        "_head",
        "_hides_thinking",
        "_id",
        "_is_legacy",
        "_lengths",
        "_logprobs",
        "_made",
        "_model",
        "_sealed",
        "_signature",
        "_tail",
        "_tells_usage",
        "_text_begin",
        "_thought",
        "_usage",
        "_was_left",
        "_whole",
    )

    def __init__(self, request: Request, prompt: Prompt, envelopes: Envelopes, made: Made) -> None:
        reasoning = prompt.reasoning
        self._model = request.model
        self._tells_usage = request.include_usage
        self._envelopes = envelopes
        self._made = made
        self._whole = None if request.stream else WholeMessage()
        self._is_legacy = "functions" in request.fields and "tools" not in request.fields
        self._hides_thinking = reasoning is not None and reasoning.show is False
        self._id = ""
        self._head = b""
        self._tail = b""
        self._block: BlockKind | None = None
        self._was_left: dict[BlockKind, bool] = {}  # whether another kind came after one
        self._gap = ""  # that goes before more of the open block
        self._lengths: dict[BlockKind, int] = {}  # characters that were written, of closed blocks
        self._characters = 0  # the same, with the open block of its kind
        self._delta_begin = b""  # what stands around more of the open block
        self._delta_end = b""
        self._text_begin = 0  # of the open text, in characters of the whole
        self._thought: list[str] = []  # the open thought
        self._signature: Meta | None = None  # of the open block
        self._sealed = ""  # the signature of the thought before the next call
        self._call: _Call | None = None
        self._calls = 0
        self._details = 0
        self._cited = 0
        self._logprobs: list[Json] = []
        self._usage: Usage | None = None
        self._finish = "stop"

    # -- the interface ----------------------------------------------------------------------------

    def write(self, event: Event) -> bytes:
        match event:
            case Delta():
                return self._delta(event.text)
            case Open():
                return self._open(event)
            case Close():
                return self._close()
            case Meta():
                return self._meta(event)
            case Used():
                self._usage = event.usage
                return b""
            case Start():
                return self._start(event)
            case Finish():
                return self._end(event)

    def whole(self) -> bytes:
        assert self._whole is not None, "the answer was streamed"
        choice: Json = {
            "index": 0,
            "message": self._whole.built(legacy=self._is_legacy),
            "logprobs": {"content": self._logprobs, "refusal": None} if self._logprobs else None,
            "finish_reason": self._finish,
        }
        answer: Json = {
            "id": self._id,
            "object": "chat.completion",
            "created": self._made.created,
            "model": self._model,
            "choices": [choice],
            "usage": self._written_usage(),
        }
        if self._usage is not None and self._usage.service_tier:
            answer["service_tier"] = self._usage.service_tier
        return _encode(answer)

    def error_event(self, error: APIError, request_id: str) -> bytes:
        return _REFUSALS.error_event(error, request_id)

    # -- begin and end ----------------------------------------------------------------------------

    def _start(self, event: Start) -> bytes:
        self._usage = event.usage
        given = event.id.removeprefix("chatcmpl-") or token_hex(12)
        self._id = f"chatcmpl-{given}"
        facts = _encode(
            {
                "id": self._id,
                "object": "chat.completion.chunk",
                "created": self._made.created,
                "model": self._model,
            }
        )
        self._head = b"data: " + facts[:-1] + b',"choices":'
        self._tail = b',"usage":null}\n\n' if self._tells_usage else b"}\n\n"
        return self._chunk(b'{"role":"assistant"}')

    def _end(self, event: Finish) -> bytes:
        self._finish = _FINISH_REASONS[event.reason]
        if event.reason == "refusal" and "refusal" in self._lengths:
            self._finish = "stop"
        if self._is_legacy and event.reason == "tool_calls":
            self._finish = "function_call"
        out = self._chunk(b"{}", finish=_encode(self._finish))
        if self._whole is not None or not self._tells_usage:
            return out + _DONE
        usage = b'[],"usage":' + _encode(self._written_usage())
        return out + self._head + usage + b"}\n\n" + _DONE

    # -- blocks -----------------------------------------------------------------------------------

    def _open(self, event: Open) -> bytes:
        kind = event.kind
        self._block = kind
        if kind in ("call", "free_call"):
            self._call = call = _Call(self._calls, event)
            self._calls += 1
            begin = b'"tool_calls":[{"index":%d,"%b":{"%b":'
            self._around(begin % (call.index, call.kind.encode(), call.argument.encode()), b"}}]")
            if self._sealed:
                self._call.extra, self._sealed = _extra(self._sealed), ""
            return b""
        self._text_begin = self._characters = self._lengths.get(kind, 0)
        self._around(b'"%b":' % _MEMBERS[kind].encode(), b"")
        if kind == "thinking":
            self._thought.clear()
        # Two runs of a kind are one text for the client; something came between them.
        self._gap = "\n\n" if self._was_left.get(kind) else ""
        return b""

    def _delta(self, text: str) -> bytes:
        if self._call is not None:
            return self._arguments(self._call, text)
        if self._block == "thinking":
            self._thought.append(text)
            if self._hides_thinking:
                return b""
        if self._gap:
            text, self._gap = self._gap + text, ""
        self._characters += len(text)
        if self._whole is not None:
            self._whole.add({_MEMBERS[self._block or "text"]: text})
            return b""
        return self._delta_begin + _encode(text) + self._delta_end

    def _arguments(self, call: _Call, text: str) -> bytes:
        """More arguments of the open call."""
        if self._whole is None and not self._is_legacy and call.grows:
            return self._delta_begin + _encode(text) + self._delta_end
        return self._fragment(call, text)

    def _around(self, begin: bytes, end: bytes) -> None:
        """Prepare the chunks that bring more of the open block."""
        chunk = self._chunk(b"{%b\x00%b}" % (begin, end))
        self._delta_begin, _, self._delta_end = chunk.partition(b"\x00")

    def _close(self) -> bytes:
        out = b""
        if self._call is not None:
            if not self._call.said:  # clients parse arguments, and an empty text is no JSON
                nothing = "{}" if self._call.kind == "function" else ""
                out = self._fragment(self._call, nothing)
            self._call = None
        else:
            if self._characters and self._block is not None:
                self._lengths[self._block] = self._characters
            if self._signature is not None:
                out = self._detail(self._signature)
        self._signature = None
        self._was_left = {kind: kind != self._block for kind in self._lengths}
        self._block = None
        return out

    # -- facts ------------------------------------------------------------------------------------

    def _meta(self, event: Meta) -> bytes:
        if event.signature:
            return self._signed(event)
        if event.citation is not None:
            return self._citation(event.citation)
        return self._logprob(event.logprobs) if event.logprobs else b""

    def _signed(self, event: Meta) -> bytes:
        if self._call is None:
            self._signature = event
            return b""
        self._call.extra = _extra(self._seal(event))
        # Later fragments may bring it, too, but not every client looks there.
        return self._fragment(self._call, "") if self._call.first is None else b""

    def _detail(self, event: Meta) -> bytes:
        """A signed thought as it was, for clients that send it back."""
        sealed = self._seal(event)
        entry: Json = {"index": self._details, "format": "farebox"}
        if text := "".join(self._thought) if self._block == "thinking" else "":
            entry |= {"type": "reasoning.text", "text": text, "signature": sealed}
        else:
            entry |= {"type": "reasoning.encrypted", "data": sealed}
        if self._calls:
            entry["tool_calls_before"] = self._calls
        self._details += 1
        if self._block == "thinking":
            self._sealed = sealed
        return self._add({"reasoning_details": [entry]})

    def _seal(self, event: Meta) -> str:
        made = self._made
        return self._envelopes.seal(Blob(made.provider, made.family, event.kind, event.signature))

    def _citation(self, citation: Citation) -> bytes:
        cited: Json = {
            "url": citation.url,
            "title": citation.title,
            "start_index": self._text_begin,
            "end_index": self._characters,
        }
        entry = {"index": self._cited, "type": "url_citation", "url_citation": cited}
        self._cited += 1
        return self._add({"annotations": [entry]})

    def _logprob(self, logprobs: tuple[Logprob, ...]) -> bytes:
        written = [_written_logprob(each) for each in logprobs]
        if self._whole is not None:
            self._logprobs += written
            return b""
        return self._chunk(b"{}", logprobs=_encode({"content": written, "refusal": None}))

    # -- chunks -----------------------------------------------------------------------------------

    def _fragment(self, call: _Call, text: str) -> bytes:
        fragment = call.fragment(text)
        if not self._is_legacy:
            return self._add({"tool_calls": [fragment]})
        # The form of the first days has room for a single call.
        return self._add({"function_call": fragment["function"]}) if call.index == 0 else b""

    def _add(self, delta: Json) -> bytes:
        if self._whole is not None:
            self._whole.add(delta)
            return b""
        return self._chunk(_encode(delta))

    def _chunk(self, delta: bytes, finish: bytes = b"null", logprobs: bytes = b"null") -> bytes:
        return b'%b[{"index":0,"delta":%b,"logprobs":%b,"finish_reason":%b}]%b' % (
            self._head,
            delta,
            logprobs,
            finish,
            self._tail,
        )

    def _written_usage(self) -> Json:
        """The usage; our own count where the provider gave none."""
        usage = self._usage or Usage(
            input_tokens=self._made.input_tokens,
            output_tokens=counted_tokens(sum(self._lengths.values())),
        )
        return wire.written_usage(usage)


def _extra(sealed: str) -> Json:
    """A call's `extra_content`: ours, and where the AI SDK looks for what it sends back."""
    return {"farebox": {"sig": sealed}, "google": {"thought_signature": sealed}}


def _written_logprob(logprob: Logprob) -> Json:
    return {
        **_token(logprob.token, logprob.logprob),
        "top_logprobs": [_token(token, value) for token, value in logprob.top],
    }


def _token(token: str, logprob: float) -> Json:
    return {"token": token, "logprob": logprob, "bytes": list(token.encode())}
