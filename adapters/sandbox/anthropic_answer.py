"""Answers as Anthropic's messages and the events of their streams."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from adapters.sandbox.answer import Answer, Call, Finish, Part, Refusal, Text, Thought, joined
from adapters.sandbox.anthropic_request import MessagesRequest, read_count, read_messages
from adapters.sandbox.anthropic_words import (
    HEADERS,
    error_object,
    found_model,
    refused,
    trouble,
    unshapeable,
)
from adapters.sandbox.behaviours import Unshapeable
from adapters.sandbox.models import MODELS, Circumstances, Model
from adapters.sandbox.performance import perform
from adapters.sandbox.script import Action, Json, encode, json_answer
from adapters.sandbox.shapes import decoded
from adapters.sandbox.signing import sign

_STOP_REASON: Mapping[Finish, str] = {
    "end": "end_turn",
    "calls": "tool_use",
    "length": "max_tokens",
    "stop": "stop_sequence",
    "filter": "refusal",
}
_CREATED_AT = "2026-01-01T00:00:00Z"
_INPUT_TOKENS_MAX = 200_000
_OUTPUT_TOKENS_MAX = 64_000
_LISTED_DEFAULT = 20


def message(
    headers: Mapping[bytes, bytes], body: bytes, circumstances: Circumstances
) -> Iterable[Action]:
    """Serve `POST /v1/messages`. Raises Refused."""
    request = read_messages(headers, body)
    name = request.asked.model
    model = found_model(name).under(circumstances)
    if model.refuses is not None:
        raise trouble(model, name)
    try:
        answer = model.answer(request.asked)
    except Unshapeable as error:
        raise unshapeable(error) from None
    rendering = MessageRendering(request, model, answer)
    return perform(rendering, model, answer, stream=request.asked.stream)


def count_tokens(
    headers: Mapping[bytes, bytes], body: bytes, circumstances: Circumstances
) -> Iterable[Action]:
    """Serve `POST /v1/messages/count_tokens`. Raises Refused."""
    asked = read_count(headers, body)
    model = found_model(asked.model).under(circumstances)
    if model.refuses is not None:
        raise trouble(model, asked.model)
    return json_answer({"input_tokens": asked.prompt_tokens}, HEADERS)


def list_models(query: Mapping[str, str]) -> Iterable[Action]:
    """Serve `GET /v1/models`, by pages."""
    names = [name for name, model in MODELS.items() if model.kind == "chat"]
    after, before = query.get("after_id"), query.get("before_id")
    limit = query.get("limit", str(_LISTED_DEFAULT))
    if not limit.isdecimal() or not 1 <= int(limit) <= 1000:
        raise refused("limit: Input should be between 1 and 1000")
    for cursor in filter(None, (after, before)):
        if cursor not in names:
            raise refused(f"Invalid cursor: {cursor}")
    if after:
        names = names[names.index(after) + 1 :]
    if before:
        names = names[: names.index(before)]
    listed = names[-int(limit) :] if before else names[: int(limit)]
    return json_answer(
        {
            "data": [_listed(name) for name in listed],
            "has_more": len(names) > len(listed),
            "first_id": listed[0] if listed else None,
            "last_id": listed[-1] if listed else None,
        },
        HEADERS,
    )


def show_model(name: str) -> Iterable[Action]:
    """Serve `GET /v1/models/{name}`. Raises Refused."""
    found_model(name)
    return json_answer(_listed(name), HEADERS)


def _listed(name: str) -> Json:
    return {
        "type": "model",
        "id": name,
        "display_name": name.replace("-", " ").capitalize(),
        "created_at": _CREATED_AT,
        "max_input_tokens": _INPUT_TOKENS_MAX,
        "max_tokens": _OUTPUT_TOKENS_MAX,
        "lifecycle": "active",
    }


class MessageRendering:
    """One message. A block is sent as soon as it begins, and its deltas as they come."""

    stream_type = "text/event-stream; charset=utf-8"
    headers: Sequence[tuple[str, str]] = HEADERS

    def __init__(self, request: MessagesRequest, model: Model, answer: Answer) -> None:
        self._asked = request.asked
        self._shows_thoughts = request.shows_thoughts
        self._model = model
        self._answer = answer
        self._index = 0

    def whole(self) -> bytes:
        """The message."""
        blocks = [self._whole_block(part, at) for at, part in enumerate(self._answer.parts)]
        message = self._message(blocks)
        message |= {**self._stop(), "usage": self._usage(self._answer.tokens)}
        return encode(message)

    def failed(self) -> bytes:
        """An error object."""
        return encode(_error(overloaded=False))

    def opening(self) -> Iterator[bytes]:
        """The message without its content; it counts one token already."""
        started = {**self._message([]), "stop_reason": None, "stop_sequence": None}
        started["usage"] = self._usage(min(1, self._answer.tokens))
        yield _event("message_start", {"message": started})

    def begun(self, part: Part) -> Iterator[bytes]:
        """A block without its content; behind the first one a sign of life."""
        block = self._empty_block(part, self._index)
        yield _event("content_block_start", {"index": self._index, "content_block": block})
        if self._index == 0:
            yield _event("ping", {})
        if isinstance(part, Call):
            yield self._delta({"type": "input_json_delta", "partial_json": ""})

    def piece(self, part: Part, piece: str) -> Iterator[bytes]:
        """One delta, but nothing of what is not shown."""
        match part:
            case Text() | Refusal():
                yield self._delta({"type": "text_delta", "text": piece})
            case Call():
                yield self._delta({"type": "input_json_delta", "partial_json": piece})
            case Thought(hidden=hidden):
                if self._shows_thoughts and not hidden:
                    yield self._delta({"type": "thinking_delta", "thinking": piece})

    def ended(self, part: Part) -> Iterator[bytes]:
        """The signature of a thought, and the end of the block."""
        if isinstance(part, Thought) and not part.hidden:
            yield self._delta({"type": "signature_delta", "signature": self._signature(part)})
        yield _event("content_block_stop", {"index": self._index})
        self._index += 1

    def closing(self) -> Iterator[bytes]:
        """Why it ended, and what it used."""
        usage = self._usage(self._answer.tokens)
        del usage["cache_creation"], usage["service_tier"]
        yield _event("message_delta", {"delta": self._stop(), "usage": usage})
        yield _event("message_stop", {})

    def error(self, *, overloaded: bool) -> Iterator[bytes]:
        """An error event."""
        yield _event("error", _error(overloaded=overloaded))

    def broken(self) -> bytes:
        """Half an event."""
        return b'event: content_block_delta\ndata: {"type":"content_block_del\n\n'

    def _message(self, blocks: Sequence[Json]) -> Json:
        return {
            "id": f"msg_{self._asked.name}",
            "type": "message",
            "role": "assistant",
            "model": self._asked.model,
            "content": blocks,
        }

    def _stop(self) -> Json:
        answer = self._answer
        refuses = any(isinstance(part, Refusal) for part in answer.parts)
        reason = "refusal" if refuses else _STOP_REASON[answer.finish]
        stop: Json = {"stop_reason": reason, "stop_sequence": answer.stopped_by or None}
        if reason == "refusal":
            stop["stop_details"] = {"type": "refusal", "category": None, "explanation": None}
        return stop

    def _empty_block(self, part: Part, index: int) -> Json:
        match part:
            case Thought(hidden=True):
                return {"type": "redacted_thinking", "data": self._redacted()}
            case Thought():
                return {"type": "thinking", "thinking": "", "signature": ""}
            case Call(tool):
                name = f"toolu_{self._asked.name}_{index}"
                return {"type": "tool_use", "id": name, "name": tool.name, "input": {}}
            case Text() | Refusal():
                return {"type": "text", "text": ""}

    def _whole_block(self, part: Part, index: int) -> Json:
        block = self._empty_block(part, index)
        match part:
            case Thought(hidden=False):
                block |= {"thinking": self._shown(part), "signature": self._signature(part)}
            case Call():
                block["input"] = decoded(joined(part).encode()) or {}
            case Text() | Refusal():
                block["text"] = joined(part)
            case _:
                pass
        return block

    def _shown(self, part: Thought) -> str:
        return joined(part) if self._shows_thoughts else ""

    def _signature(self, part: Thought) -> str:
        """It holds for the thought as it was shown."""
        return sign(self._asked.name, "anthropic", self._asked.model, self._shown(part))

    def _redacted(self) -> str:
        return sign(self._asked.name, "anthropic-redacted", self._asked.model)

    def _delta(self, delta: Json) -> bytes:
        return _event("content_block_delta", {"index": self._index, "delta": delta})

    def _usage(self, output_tokens: int) -> Json:
        """Reads and writes of the cache are not part of the input tokens here."""
        prompt = self._asked.prompt_tokens
        read, written = (prompt // 2, prompt // 4) if self._model.caches else (0, 0)
        return {
            "input_tokens": prompt - read - written,
            "cache_creation_input_tokens": written,
            "cache_read_input_tokens": read,
            "cache_creation": {
                "ephemeral_5m_input_tokens": written,
                "ephemeral_1h_input_tokens": 0,
            },
            "output_tokens": output_tokens,
            "output_tokens_details": {
                "thinking_tokens": min(output_tokens, self._answer.thought_tokens)
            },
            "service_tier": "standard",
        }


def _event(name: str, members: Mapping[str, object]) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (name.encode(), encode({"type": name, **members}))


def _error(*, overloaded: bool) -> Json:
    if overloaded:
        return error_object("overloaded_error", "Overloaded")
    return error_object("api_error", "Internal server error")
