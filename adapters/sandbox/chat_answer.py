"""Answers as Chat Completions and their chunks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from adapters import sse
from adapters.sandbox.answer import Answer, Call, Finish, Part, Refusal, Text, Thought, joined
from adapters.sandbox.behaviours import Unshapeable
from adapters.sandbox.chat_request import ChatRequest, read_chat
from adapters.sandbox.models import Circumstances, Model
from adapters.sandbox.openai_words import (
    OVERLOADED_MESSAGE,
    SERVER_ERROR_MESSAGE,
    error_object,
    found_model,
    refused,
    trouble,
    unshapeable,
)
from adapters.sandbox.performance import perform
from adapters.sandbox.script import Action, Json, encode

CREATED = 1_767_225_600  # 2026-01-01: a constant, since there is no clock
FINGERPRINT = "fp_sandbox"

_FINISH: dict[Finish, str] = {
    "end": "stop",
    "calls": "tool_calls",
    "length": "length",
    "stop": "stop",
    "filter": "content_filter",
}


def complete(body: bytes, circumstances: Circumstances) -> Iterable[Action]:
    """Serve `POST /v1/chat/completions`. Raises Refused."""
    request = read_chat(body)
    model = found_model(request.asked.model).under(circumstances)
    if model.kind != "chat":
        raise refused(
            404,
            "This is not a chat model and thus not supported in the v1/chat/completions endpoint.",
            param="model",
        )
    if model.refuses is not None:
        raise trouble(model, request.asked.model)
    try:
        answer = model.answer(request.asked)
    except Unshapeable as error:
        raise unshapeable(error) from None
    rendering = ChatRendering(request, model, answer)
    return perform(rendering, model, answer, stream=request.asked.stream)


class ChatRendering:
    """One answer; its choices are equal."""

    stream_type = "text/event-stream; charset=utf-8"
    headers: Sequence[tuple[str, str]] = ()

    def __init__(self, request: ChatRequest, model: Model, answer: Answer) -> None:
        self._request = request
        self._asked = request.asked
        self._model = model
        self._answer = answer
        self._calls = 0

    def whole(self) -> bytes:
        """The completion."""
        usage = {} if self._model.usage == "never" else {"usage": self._usage()}
        choices = [self._choice(index) for index in range(self._request.n)]
        return encode({**self._envelope("chat.completion"), "choices": choices, **usage})

    def failed(self) -> bytes:
        """An error object."""
        return encode(error_object(SERVER_ERROR_MESSAGE, "server_error"))

    def opening(self) -> Iterator[bytes]:
        """The role."""
        calls = self._answer.calls and not any(isinstance(p, Text) for p in self._answer.parts)
        content = None if calls else ""
        return self._deltas({"role": "assistant", "content": content, "refusal": None})

    def begun(self, part: Part) -> Iterator[bytes]:
        """What is called, with nothing of its arguments yet."""
        if isinstance(part, Call):
            for index in range(self._request.n):
                call = {"index": self._calls, **self._call(part, self._calls, index, "")}
                yield self._delta(index, {"tool_calls": [call]})

    def piece(self, part: Part, piece: str) -> Iterator[bytes]:
        """A delta for every choice in turn."""
        match part:
            case Text():
                return self._deltas({"content": piece})
            case Thought(hidden=hidden):
                return iter(()) if hidden else self._deltas({"reasoning_content": piece})
            case Refusal():
                return self._deltas({"refusal": piece})
            case Call(tool):
                kind, text = ("custom", "input") if tool.free else ("function", "arguments")
                call = {"index": self._calls, kind: {text: piece}}
                return self._deltas({"tool_calls": [call]})

    def ended(self, part: Part) -> Iterator[bytes]:
        """Nothing is sent: only the next call has another index."""
        self._calls += isinstance(part, Call)
        return iter(())

    def closing(self) -> Iterator[bytes]:
        """The finish reasons, usage where it was asked for, and the end."""
        for index in range(self._request.n):
            yield self._delta(index, {}, _FINISH[self._answer.finish])
        if self._counts_in_chunks:
            yield self._chunk({"choices": [], "usage": self._usage()})
        yield sse.event(b"[DONE]")

    def error(self, *, overloaded: bool) -> Iterator[bytes]:
        """An error object as an event."""
        message = OVERLOADED_MESSAGE if overloaded else SERVER_ERROR_MESSAGE
        code = "server_is_overloaded" if overloaded else None
        yield sse.event(encode(error_object(message, "server_error", code=code)))

    def broken(self) -> bytes:
        """Half a chunk."""
        return sse.event(b'{"id":"chatcmpl-sandbox","choices":[{"index":0,"del')

    @property
    def _counts_in_chunks(self) -> bool:
        return self._request.include_usage and self._model.usage == "asked"

    def _deltas(self, delta: Json) -> Iterator[bytes]:
        return (self._delta(index, delta) for index in range(self._request.n))

    def _delta(self, index: int, delta: Json, finish_reason: str | None = None) -> bytes:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        members: Json = {"choices": [choice]}
        if self._counts_in_chunks:
            members["usage"] = None
        elif finish_reason and index == self._request.n - 1 and self._model.usage == "on_finish":
            members["usage"] = self._usage()
        if self._request.obfuscated:
            members["obfuscation"] = self._asked.name[: 8 + len(encode(delta)) % 8]
        return self._chunk(members)

    def _chunk(self, members: Json) -> bytes:
        return sse.event(encode({**self._envelope("chat.completion.chunk"), **members}))

    def _choice(self, index: int) -> Json:
        texts = [joined(part) for part in self._answer.parts if isinstance(part, Text)]
        refusals = [joined(part) for part in self._answer.parts if isinstance(part, Refusal)]
        thoughts = [
            joined(part)
            for part in self._answer.parts
            if isinstance(part, Thought) and not part.hidden
        ]
        calls = [
            self._call(call, at, index, joined(call)) for at, call in enumerate(self._answer.calls)
        ]
        only_others = not texts and bool(calls or refusals)
        message: Json = {
            "role": "assistant",
            "content": None if only_others else "".join(texts),
            "refusal": "".join(refusals) or None,
        }
        if thoughts:
            message["reasoning_content"] = "".join(thoughts)
        if calls:
            message["tool_calls"] = calls
        return {
            "index": index,
            "message": message,
            "logprobs": None,
            "finish_reason": _FINISH[self._answer.finish],
        }

    def _call(self, call: Call, at: int, index: int, text: str) -> Json:
        kind, member = ("custom", "input") if call.tool.free else ("function", "arguments")
        return {
            "id": f"call_{self._asked.name}_{index}_{at}",
            "type": kind,
            kind: {"name": call.tool.name, member: text},
        }

    def _envelope(self, kind: str) -> Json:
        asked = self._request.service_tier
        tier = {"service_tier": "default" if asked == "auto" else asked} if asked else {}
        return {
            "id": f"chatcmpl-{self._asked.name}",
            "object": kind,
            "created": CREATED,
            "model": self._asked.model,
            "system_fingerprint": FINGERPRINT,
            **tier,
        }

    def _usage(self) -> Json:
        prompt = self._asked.prompt_tokens
        reasoned = self._answer.thought_tokens * self._request.n
        completion = self._answer.tokens * self._request.n
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "prompt_tokens_details": {
                "cached_tokens": prompt // 2 if self._model.caches else 0,
                "audio_tokens": 0,
            },
            "completion_tokens_details": {
                "reasoning_tokens": reasoned,
                "audio_tokens": 0,
                "accepted_prediction_tokens": 0,
                "rejected_prediction_tokens": 0,
            },
        }
