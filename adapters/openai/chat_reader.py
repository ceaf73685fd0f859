"""A chat completion, streamed or whole, read into canonical events.

Compatible servers agree on the documents' happy path and on little else, so everything that varies
is looked at here: reasoning under two names, indexes of calls that are missing or all 0, ids that
come late, twice or never, arguments as an object, usage anywhere, reasons to stop of their own, and
streams without their end mark. Nothing in the protocol says that a call is over; the composer
waits for its arguments to be complete JSON.
"""

from __future__ import annotations

import json
from collections.abc import Hashable, Iterable, Mapping
from typing import Literal

import msgspec

from adapters.canonical import Citation, FinishReason, Logprob
from adapters.codec import FailureKind
from adapters.openai.failure import read_error_object
from adapters.openai.wire import read_usage
from adapters.stream import Composer, State

_DONE = b"[DONE]"
_ABSENT = msgspec.Raw()

_REASONS: Mapping[str, FinishReason] = {
    "stop": "end",
    "length": "length",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
    "content_filter": "content_filter",
    "max_tokens": "length",
    "model_length": "context_window",  # Mistral
    "stop_sequence": "stop_sequence",  # TGI
    "refusal": "refusal",
}
# Reasons that say the answer is none, whatever came before.
_FAILURES: Mapping[str, FailureKind] = {
    "error": "server_error",  # OpenRouter
    "abort": "truncated",  # vLLM, SGLang
    "insufficient_system_resource": "overloaded",  # DeepSeek
    "malformed_function_call": "protocol",  # Google
}


class _Function(msgspec.Struct, gc=False):
    name: object = None
    arguments: object = None
    input: object = None


class _ToolCall(msgspec.Struct, gc=False):
    index: object = None
    id: object = None
    function: _Function | None = None
    custom: _Function | None = None
    extra_content: object = None


class _Message(msgspec.Struct, gc=False):
    content: object = None
    reasoning_content: object = None
    reasoning: object = None
    refusal: object = None
    tool_calls: list[_ToolCall] | None = None
    function_call: _Function | None = None
    annotations: object = None


class _TopLogprob(msgspec.Struct, gc=False):
    token: str
    logprob: float


class _TokenLogprob(msgspec.Struct, gc=False):
    token: str
    logprob: float
    top_logprobs: list[_TopLogprob] | None = None


class _Logprobs(msgspec.Struct, gc=False):
    content: list[_TokenLogprob] | None = None


class _Choice(msgspec.Struct, gc=False):
    """`stop_reason` is the stop sequence that was met, where a server says so."""

    index: object = 0
    delta: _Message | None = None
    message: _Message | None = None
    finish_reason: object = None
    stop_reason: object = None
    logprobs: object = None


class _Chunk(msgspec.Struct, gc=False):
    """One chunk, or the whole completion."""

    id: object = None
    model: object = None
    choices: list[_Choice] | None = None
    usage: msgspec.Raw = _ABSENT
    error: msgspec.Raw = _ABSENT
    service_tier: object = None


_decode_chunk = msgspec.json.Decoder(_Chunk).decode
_UNREADABLE = (msgspec.MsgspecError, ValueError, RecursionError)


class _Call:
    """One call of the answer; it waits for its name before it is opened."""

    __slots__ = ("held", "id", "key", "kind", "name", "opened", "whole")

    def __init__(self, key: int, kind: Literal["call", "free_call"]) -> None:
        self.key = key
        self.kind = kind
        self.id = ""
        self.name = ""
        self.opened = False
        self.held: list[str] = []
        self.whole = False  # all of its arguments came in one piece


class ChatReader:
    """Reads one answer of a single choice. Implements `codec.Reader`."""

    __slots__ = ("_by_index", "_calls", "_last", "_refused", "_service_tier", "_text", "composer")

    def __init__(self) -> None:
        self.composer = Composer()
        self._calls = 0
        self._by_index: dict[object, _Call] = {}
        self._last: _Call | None = None
        self._text: Hashable = None  # the key of the last run of text
        self._refused = False
        self._service_tier = ""

    def read(self, data: bytes) -> None:
        if data.startswith(_DONE):
            self.composer.reason("refusal" if self._refused else "end")
            self.composer.finish()
            return
        self._chunk(data)

    def plain(self, body: bytes) -> None:
        self._chunk(body)
        self.composer.reason("end")
        self.composer.finish()

    def close(self) -> None:
        self.composer.finish()

    def _chunk(self, data: bytes) -> None:
        composer = self.composer
        chunk = _read_chunk(data)
        if chunk is None:
            composer.fail("protocol", "The answer is not a chat completion.")
            return
        if chunk.error and (failure := read_error_object(chunk.error)) is not None:
            composer.fail(failure.kind, failure.message, failure)
            return
        if composer.state is State.IDLE:
            composer.start(_string(chunk.id), _string(chunk.model))
        if isinstance(chunk.service_tier, str):
            self._service_tier = chunk.service_tier
        for choice in chunk.choices or ():
            if choice.index == 0 or choice.index is None:
                self._choice(choice)
        if chunk.usage and (usage := read_usage(chunk.usage)) is not None:
            if self._service_tier:
                usage = msgspec.structs.replace(usage, service_tier=self._service_tier)
            composer.used(usage)

    def _choice(self, choice: _Choice) -> None:
        message = choice.delta if choice.delta is not None else choice.message
        if message is not None:
            self._message(message)
        if choice.logprobs is not None and self._text is not None:
            self._logprobs(choice.logprobs)
        reason = choice.finish_reason
        if isinstance(reason, str) and reason:  # some say "" in every chunk
            self._finish_reason(reason, choice.stop_reason)

    def _message(self, message: _Message) -> None:
        """Reasoning goes first where a chunk has both: it came first."""
        composer = self.composer
        thought = message.reasoning_content or message.reasoning
        if thought and isinstance(thought, str):
            composer.run("thinking", thought)
        content = message.content
        if content:
            if isinstance(content, str):
                self._run_text(content)
            else:
                self._parts(content)
        if message.refusal and isinstance(message.refusal, str):
            self._refused = True
            composer.run("refusal", message.refusal)
        if message.tool_calls:
            for call in message.tool_calls:
                self._tool_call(call)
        if message.function_call is not None:
            self._tool_call(_ToolCall(index="function_call", function=message.function_call))
        if message.annotations:
            self._annotations(message.annotations)

    def _run_text(self, text: str) -> None:
        if text:
            self._text = self.composer.run("text", text)

    def _parts(self, content: object) -> None:
        """Content as a list of parts, as Mistral has it where a model thinks."""
        for part in _objects(content):
            thought = part.get("thinking")
            if thought is not None:
                for each in _objects(thought):
                    self.composer.run("thinking", _string(each.get("text")))
            elif isinstance(part.get("text"), str):
                self._run_text(_string(part["text"]))

    def _finish_reason(self, reason: str, stop: object) -> None:
        composer = self.composer
        failure = _FAILURES.get(reason.rpartition(": ")[2].lower())
        if failure is not None:
            composer.fail(failure, f"The answer ended with the reason {reason!r}.")
            return
        found = _REASONS.get(reason, "end")
        if found == "end" and self._refused:
            found = "refusal"
        elif found == "end" and isinstance(stop, str) and stop:
            composer.reason("stop_sequence", stop)
        composer.reason(found)

    # -- calls ------------------------------------------------------------------------------------

    def _tool_call(self, given: _ToolCall) -> None:
        function = given.function if given.custom is None else given.custom
        if function is None:
            function = _Function()
        name = _string(function.name)
        call = self._find(given, name)
        call.id = call.id or _string(given.id)
        call.name = call.name or name
        if call.name and not call.opened:
            self.composer.open(call.key, call.kind, call.id, call.name, implicit=True)
            call.opened = True
            self._arguments(call, "".join(call.held))
        if call.opened and (signature := _signature(given.extra_content)):
            self.composer.meta(call.key, signature=signature, kind="call")
        text = _arguments(function)
        if text:
            call.whole = bool(name) and text.startswith("{") and text.endswith("}")
            self._arguments(call, text)

    def _arguments(self, call: _Call, text: str) -> None:
        if call.opened:
            self.composer.delta(call.key, text)
        else:
            call.held.append(text)

    def _find(self, given: _ToolCall, name: str) -> _Call:
        """The call that a fragment belongs to. A new one begins with an index or an id that was
        not seen, if it has a name; some servers give every fragment an id of its own."""
        known = self._last
        if given.index is not None and isinstance(given.index, int | str):
            known = self._by_index.get(given.index)
        if known is not None and not self._is_another(known, _string(given.id), name):
            return known
        self._calls += 1
        call = _Call(self._calls, "call" if given.custom is None else "free_call")
        self._last = call
        if isinstance(given.index, int | str):
            self._by_index[given.index] = call
        return call

    def _is_another(self, known: _Call, call_id: str, name: str) -> bool:
        if not name or not known.name:
            return False
        if call_id and known.id:
            return call_id != known.id
        return known.whole

    # -- beside the text --------------------------------------------------------------------------

    def _logprobs(self, given: object) -> None:
        try:
            logprobs = msgspec.convert(given, _Logprobs)
        except _UNREADABLE:
            return
        if not logprobs.content or not self.composer.knows(self._text):
            return
        read = tuple(
            Logprob(
                each.token,
                each.logprob,
                tuple((top.token, top.logprob) for top in each.top_logprobs or ()),
            )
            for each in logprobs.content
        )
        self.composer.meta(self._text, logprobs=read)

    def _annotations(self, annotations: object) -> None:
        for annotation in _objects(annotations):
            cited = annotation.get("url_citation")
            if not isinstance(cited, dict) or not self.composer.knows(self._text):
                continue
            if url := _string(cited.get("url")):
                citation = Citation(url, _string(cited.get("title")))
                self.composer.meta(self._text, citation=citation)


def _read_chunk(data: bytes) -> _Chunk | None:
    """A chunk; None where it is none. Half characters, which only Python's own parser reads, are
    put together by the composer."""
    try:
        return _decode_chunk(data)
    except _UNREADABLE:
        pass
    try:
        return _converted(json.loads(data))
    except _UNREADABLE:
        return None


def _converted(value: object) -> _Chunk:
    """Raw members are encoded again: what is in them is numbers and names."""
    if isinstance(value, dict):
        value = {
            **value,
            **{
                name: msgspec.Raw(json.dumps(value[name]).encode())
                for name in ("usage", "error")
                if name in value
            },
        }
    return msgspec.convert(value, _Chunk)


def _string(value: object) -> str:
    return value if isinstance(value, str) else ""


def _objects(value: object) -> Iterable[dict[str, object]]:
    return (each for each in value if isinstance(each, dict)) if isinstance(value, list) else ()


def _arguments(function: _Function) -> str:
    """A piece of arguments; an object, as some servers send it, is all of them."""
    given = function.arguments if function.arguments is not None else function.input
    if given is None or isinstance(given, str):
        return given or ""
    return json.dumps(given, ensure_ascii=False, separators=(",", ":"))


def _signature(extra: object) -> str:
    """Google's signature of a call, where its compatible endpoint has it."""
    google = extra.get("google") if isinstance(extra, dict) else None
    return _string(google.get("thought_signature")) if isinstance(google, dict) else ""
