"""Answers as OpenAI's responses and the events of their streams."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from adapters.sandbox.answer import Answer, Call, Part, Refusal, Text, Thought, joined
from adapters.sandbox.behaviours import Unshapeable
from adapters.sandbox.chat_answer import CREATED
from adapters.sandbox.models import Circumstances, Model
from adapters.sandbox.openai_words import (
    OVERLOADED_MESSAGE,
    SERVER_ERROR_MESSAGE,
    found_model,
    refused,
    trouble,
    unshapeable,
)
from adapters.sandbox.performance import perform
from adapters.sandbox.responses_request import ResponsesRequest, read_count, read_response
from adapters.sandbox.script import Action, Json, Refused, encode, json_answer
from adapters.sandbox.signing import sign

_INCOMPLETE: Mapping[str, str] = {"length": "max_output_tokens", "filter": "content_filter"}
_REPEATED: Mapping[str, object] = {
    "background": False,
    "instructions": None,
    "max_output_tokens": None,
    "max_tool_calls": None,
    "metadata": {},
    "parallel_tool_calls": True,
    "previous_response_id": None,
    "prompt_cache_key": None,
    "reasoning": {"effort": None, "summary": None},
    "safety_identifier": None,
    "service_tier": "default",
    "store": True,
    "temperature": 1,
    "text": {"format": {"type": "text"}, "verbosity": "medium"},
    "tool_choice": "auto",
    "tools": [],
    "top_logprobs": 0,
    "top_p": 1,
    "truncation": "disabled",
    "user": None,
}
_PARTIAL_CHARACTERS = 12  # of the encrypted content, when an item has only begun


def create(body: bytes, circumstances: Circumstances) -> Iterable[Action]:
    """Serve `POST /v1/responses`. Raises Refused."""
    request = read_response(body)
    name = request.asked.model
    model = _found(name, circumstances)
    try:
        answer = model.answer(request.asked)
    except Unshapeable as error:
        raise unshapeable(error) from None
    rendering = ResponseRendering(request, model, answer)
    return perform(rendering, model, answer, stream=request.asked.stream)


def count(body: bytes, circumstances: Circumstances) -> Iterable[Action]:
    """Serve `POST /v1/responses/input_tokens`. Raises Refused."""
    asked = read_count(body)
    _found(asked.model, circumstances)
    return json_answer({"object": "response.input_tokens", "input_tokens": asked.prompt_tokens})


def _found(name: str, circumstances: Circumstances) -> Model:
    model = found_model(name).under(circumstances)
    if model.kind != "chat":
        raise refused(
            404, f"The model `{name}` is not supported in the v1/responses endpoint.", param="model"
        )
    if model.refuses is not None:
        raise _trouble(model, name)
    return model


def _trouble(model: Model, name: str) -> Refused:
    if model.refuses == "context":
        return refused(
            400,
            "Your input exceeds the context window of this model. Please adjust your input and try "
            "again.",
            param="input",
            code="context_length_exceeded",
        )
    if model.refuses == "content":
        return refused(
            400,
            "Invalid prompt: your prompt was flagged as potentially violating our usage policy. "
            "Please try again with a different prompt.",
            code="invalid_prompt",
        )
    return trouble(model, name)


class ResponseRendering:
    """One response: an item for each part, and the events of its life."""

    stream_type = "text/event-stream; charset=utf-8"
    headers: Sequence[tuple[str, str]] = ()

    def __init__(self, request: ResponsesRequest, model: Model, answer: Answer) -> None:
        self._request = request
        self._asked = request.asked
        self._model = model
        self._answer = answer
        self._index = 0
        self._events = 0

    def whole(self) -> bytes:
        """The response."""
        return encode(self._ended())

    def failed(self) -> bytes:
        """A response that has failed."""
        return encode(self._failure())

    def opening(self) -> Iterator[bytes]:
        """It is there, and it is worked on."""
        begun = self._response("in_progress", [])
        yield self._event("response.created", {"response": begun})
        yield self._event("response.in_progress", {"response": begun})

    def begun(self, part: Part) -> Iterator[bytes]:
        """An item without its content, and the part of it that is filled next."""
        item = self._begun_item(part)
        yield self._event("response.output_item.added", {"output_index": self._index, "item": item})
        match part:
            case Text() | Refusal():
                yield self._within("content_part.added", part, {"part": _part(part, "")})
            case Thought() if self._shows(part):
                yield self._within("reasoning_summary_part.added", part, {"part": _summary("")})
            case _:
                pass

    def piece(self, part: Part, piece: str) -> Iterator[bytes]:
        """One delta, but nothing of what is not shown."""
        if isinstance(part, Thought) and not self._shows(part):
            return
        more: Json = {"delta": piece}
        if isinstance(part, Text):
            more["logprobs"] = []
        if self._request.obfuscated:
            more["obfuscation"] = self._asked.name[: 16 - len(piece.encode()) % 16]
        yield self._within(f"{_delta_name(part)}.delta", part, more)

    def ended(self, part: Part) -> Iterator[bytes]:
        """All of it once more."""
        text = joined(part)
        match part:
            case Text():
                yield self._within("output_text.done", part, {"text": text, "logprobs": []})
                yield self._within("content_part.done", part, {"part": _part(part, text)})
            case Refusal():
                yield self._within("refusal.done", part, {"refusal": text})
                yield self._within("content_part.done", part, {"part": _part(part, text)})
            case Call(tool) if tool.free:
                yield self._within("custom_tool_call_input.done", part, {"input": text})
            case Call(tool):
                done: Json = {"arguments": text, "name": tool.name}
                yield self._within("function_call_arguments.done", part, done)
            case Thought() if self._shows(part):
                yield self._within("reasoning_summary_text.done", part, {"text": text})
                yield self._within("reasoning_summary_part.done", part, {"part": _summary(text)})
            case _:
                pass
        item = self._item(part, self._index)
        yield self._event("response.output_item.done", {"output_index": self._index, "item": item})
        self._index += 1

    def closing(self) -> Iterator[bytes]:
        """The whole response."""
        response = self._ended()
        yield self._event(f"response.{response['status']}", {"response": response})

    def error(self, *, overloaded: bool) -> Iterator[bytes]:
        """An error event; a response that had begun fails instead, unless it is overloaded."""
        if self._events and not overloaded:
            yield self._event("response.failed", {"response": self._failure()})
            return
        error: Json = {
            "code": "server_is_overloaded" if overloaded else "server_error",
            "message": OVERLOADED_MESSAGE if overloaded else SERVER_ERROR_MESSAGE,
            "param": None,
        }
        yield self._event("error", {**error, "error": {"type": "server_error", **error}})

    def broken(self) -> bytes:
        """Half an event."""
        return b'event: response.output_text.delta\ndata: {"type":"response.output_te\n\n'

    # -- events ---------------------------------------------------------------------------------

    def _event(self, name: str, members: Json) -> bytes:
        number, self._events = self._events, self._events + 1
        data = encode({"type": name, "sequence_number": number, **members})
        return b"event: %b\ndata: %b\n\n" % (name.encode(), data)

    def _within(self, name: str, part: Part, members: Json) -> bytes:
        """An event of the item that is open."""
        place: Json = {"item_id": self._item_id(part, self._index), "output_index": self._index}
        if isinstance(part, Thought):
            place["summary_index"] = 0
        elif not isinstance(part, Call):
            place["content_index"] = 0
        return self._event(f"response.{name}", {**place, **members})

    # -- items ----------------------------------------------------------------------------------

    def _begun_item(self, part: Part) -> Json:
        item = self._item(part, self._index)
        match part:
            case Text() | Refusal():
                return {**item, "content": [], "status": "in_progress"}
            case Thought():
                partial = str(item["encrypted_content"])[:_PARTIAL_CHARACTERS]
                return {**item, "summary": [], "encrypted_content": partial}
            case Call(tool):
                return {**item, _text_member(tool.free): "", "status": "in_progress"}

    def _item(self, part: Part, index: int) -> Json:
        text, name = joined(part), self._item_id(part, index)
        cut = self._answer.finish == "length" and index == len(self._answer.parts) - 1
        status = "incomplete" if cut else "completed"
        match part:
            case Text() | Refusal():
                return {
                    "id": name,
                    "type": "message",
                    "status": status,
                    "role": "assistant",
                    "content": [_part(part, text)],
                }
            case Thought():
                return {
                    "id": name,
                    "type": "reasoning",
                    "summary": [_summary(text)] if self._shows(part) else [],
                    "encrypted_content": sign(name, "responses", self._asked.model),
                }
            case Call(tool):
                return {
                    "id": name,
                    "type": "custom_tool_call" if tool.free else "function_call",
                    "status": status,
                    "call_id": f"call_{self._asked.name}_{index}",
                    "name": tool.name,
                    **({"namespace": tool.namespace} if tool.namespace else {}),
                    _text_member(tool.free): text,
                }

    def _item_id(self, part: Part, index: int) -> str:
        match part:
            case Call(tool):
                prefix = "ctc" if tool.free else "fc"
            case Thought():
                prefix = "rs"
            case _:
                prefix = "msg"
        return f"{prefix}_{self._asked.name}{index}"

    def _shows(self, part: Thought) -> bool:
        return self._request.shows_thoughts and not part.hidden

    # -- the response ---------------------------------------------------------------------------

    def _ended(self) -> Json:
        items = [self._item(part, index) for index, part in enumerate(self._answer.parts)]
        reason = _INCOMPLETE.get(self._answer.finish)
        response = self._response("incomplete" if reason else "completed", items)
        if reason:
            response["incomplete_details"] = {"reason": reason}
        else:
            response["completed_at"] = CREATED
        if self._model.usage != "never":
            response["usage"] = self._usage()
        return response

    def _failure(self) -> Json:
        error = {"code": "server_error", "message": SERVER_ERROR_MESSAGE}
        return {**self._response("failed", []), "error": error}

    def _response(self, status: str, items: Sequence[Json]) -> Json:
        given = self._request.fields
        repeated = {name: given.get(name, value) for name, value in _REPEATED.items()}
        removed = [
            {"type": "reasoning_removed", "item_id": each, "reason": "model_mismatch"}
            for each in self._request.removed
        ]
        return {
            "id": f"resp_{self._asked.name}",
            "object": "response",
            "created_at": CREATED,
            "status": status,
            "model": self._asked.model,
            "output": items,
            "error": None,
            "incomplete_details": None,
            "usage": None,
            **repeated,
            **({"input_transformations": removed} if removed else {}),
        }

    def _usage(self) -> Json:
        prompt, output = self._asked.prompt_tokens, self._answer.tokens
        return {
            "input_tokens": prompt,
            "input_tokens_details": {
                "cached_tokens": prompt // 2 if self._model.caches else 0,
                "cache_write_tokens": 0,
            },
            "output_tokens": output,
            "output_tokens_details": {"reasoning_tokens": self._answer.thought_tokens},
            "total_tokens": prompt + output,
        }


def _text_member(free: bool) -> str:
    return "input" if free else "arguments"


def _delta_name(part: Part) -> str:
    match part:
        case Text():
            return "output_text"
        case Refusal():
            return "refusal"
        case Thought():
            return "reasoning_summary_text"
        case Call(tool):
            return "custom_tool_call_input" if tool.free else "function_call_arguments"


def _part(part: Text | Refusal, text: str) -> Json:
    if isinstance(part, Refusal):
        return {"type": "refusal", "refusal": text}
    return {"type": "output_text", "annotations": [], "logprobs": [], "text": text}


def _summary(text: str) -> Json:
    return {"type": "summary_text", "text": text}
