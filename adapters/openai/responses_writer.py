"""Canonical events as the Responses API streams them, or as one response object.

Every answer has the full life cycle, whatever its provider sent of it: created, in progress, each
item added and done, and one terminal event with the complete output. What ends an item waits for
the next block or the end of the answer, since only then it is known whether the item is whole:
agents run the calls of items that are.

Texts and refusals that follow each other are parts of one message; any other block is an item.
"""

from __future__ import annotations

from collections.abc import Mapping
from secrets import token_hex
from typing import TYPE_CHECKING

import msgspec

from adapters.canonical import (
    Blob,
    Close,
    Delta,
    Event,
    Finish,
    FinishReason,
    Meta,
    Open,
    Start,
    Usage,
    Used,
)
from adapters.errors import APIError
from adapters.estimate import counted_tokens
from adapters.openai.responses_failed import failure_events
from adapters.openai.responses_items import Call, Item, Lines, Message, Reasoning, Status
from adapters.openai.responses_wire import response_object, written_usage
from adapters.raw import kept

if TYPE_CHECKING:
    from adapters.codec import Made, Request
    from adapters.envelope import Envelopes

# Members of the request that the response repeats.
_ECHOED = (
    "instructions",
    "max_output_tokens",
    "max_tool_calls",
    "metadata",
    "parallel_tool_calls",
    "previous_response_id",
    "prompt_cache_key",
    "reasoning",
    "safety_identifier",
    "store",
    "temperature",
    "text",
    "tool_choice",
    "tools",
    "top_logprobs",
    "top_p",
    "truncation",
    "user",
)
_INCOMPLETE: Mapping[FinishReason, str] = {
    "length": "max_output_tokens",
    "context_window": "max_output_tokens",
    "content_filter": "content_filter",
}
_PHASE = b'"phase"'
_DECLINED = "The model declined to answer."
_ID_CHARACTERS_MIN = 16  # of an id that is hardly used twice


class ResponsesWriter:
    """Writes one answer. Implements `codec.Writer`."""

    __slots__ = (
        "_asked",
        "_declined",
        "_envelopes",
        "_item",
        "_late",
        "_lines",
        "_made",
        "_model",
        "_output",
        "_phases",
        "_response",
        "_started",
        "_thought",
        "_usage",
        "_whole",
    )

    def __init__(self, request: Request, envelopes: Envelopes, made: Made) -> None:
        self._model = request.model
        self._asked = kept({**_echo(request.fields), **request.echo})
        self._envelopes = envelopes
        self._made = made
        self._lines = Lines()
        self._response: dict[str, object] = {}
        self._phases = _PHASE in bytes(request.fields.get("input", b""))
        self._started = False
        self._item: Item | None = None  # not yet finished
        self._thought: Reasoning | None = None  # of which the signature may come with its call
        self._late: list[str] = []  # signatures that follow the item they belong to
        self._output: list[msgspec.Raw] = []
        self._declined = False
        self._usage: Usage | None = None
        self._whole = b""

    def write(self, event: Event) -> bytes:
        if type(event) is Delta:
            if self._thought is None:
                return self._begun().delta(event.text)
            return self._think() + self._begun().delta(event.text)
        if type(event) is Open:
            return self._open(event)
        if type(event) is Close:
            return self._think() + self._begun().close()
        if type(event) is Meta:
            return self._meta(event)
        if type(event) is Used:
            self._usage = event.usage
            return b""
        if type(event) is Start:
            return self._start(event)
        assert isinstance(event, Finish), "no other event"
        return self._finish(event)

    def whole(self) -> bytes:
        return self._whole

    def error_event(self, error: APIError, request_id: str) -> bytes:
        out = b"" if self._started else self._start(Start())
        response = {**self._response, "output": self._output}
        return out + failure_events(error, request_id, self._lines.sequence, response)

    # -- one event --------------------------------------------------------------------------------

    def _start(self, event: Start) -> bytes:
        self._started = True
        self._usage = event.usage
        base = response_object(_response_id(event.id), self._model, self._made.created)
        self._response = base | self._asked
        response = msgspec.Raw(msgspec.json.encode(self._response))
        return self._lines.event("response.created", {"response": response}) + self._lines.event(
            "response.in_progress", {"response": response}
        )

    def _open(self, block: Open) -> bytes:
        if block.kind in ("text", "refusal"):
            self._declined = self._declined or block.kind == "refusal"
            out = b""
            if not isinstance(self._item, Message):
                out = self._settle("completed", "commentary")
                self._item = Message(self._lines)
            return out + self._item.open(block.kind)
        if block.kind == "thinking":
            out = self._settle("completed", "commentary")
            self._item = Reasoning(self._lines)
            return out
        if isinstance(self._item, Reasoning) and not self._item.sealed:
            self._thought, self._item = self._item, Call(self._lines, block)
            return b""
        out = self._settle("completed", "commentary")
        self._item = Call(self._lines, block)
        return out

    def _meta(self, meta: Meta) -> bytes:
        out = b""
        item = self._item
        if meta.signature:
            blob = Blob(self._made.provider, self._made.family, meta.kind, meta.signature)
            out = self._sign(self._envelopes.seal(blob))
        if isinstance(item, Message) and item.part is not None:
            if meta.logprobs:
                item.part.likely(meta.logprobs)
            if meta.citation is not None:
                out += item.part.cite(meta.citation)
        return out

    def _sign(self, sealed: str) -> bytes:
        """A signature has no place but in reasoning: before the call it belongs to, or behind."""
        if isinstance(self._item, Reasoning):
            self._item.sealed = sealed
        elif isinstance(self._item, Call) and not self._item.announced:
            self._thought = self._thought or Reasoning(self._lines)
            self._thought.sealed = sealed
            return self._think()
        else:
            self._late.append(sealed)
        return b""

    def _finish(self, finish: Finish) -> bytes:
        reason = _INCOMPLETE.get(finish.reason)
        status = "completed" if reason is None else "incomplete"
        # A message may be cut by a filter and yet is all there is of it.
        cut = reason == "max_output_tokens"
        out = self._settle("incomplete" if cut else "completed", "final_answer")
        if finish.reason == "refusal" and not self._declined:
            out += self._decline(finish.detail or _DECLINED)
        usage = self._usage or self._estimate()
        response = {
            **self._response,
            "status": status,
            "incomplete_details": None if reason is None else {"reason": reason},
            "output": self._output,
            "service_tier": usage.service_tier or "default",
            "usage": written_usage(usage),
        }
        self._whole = msgspec.json.encode(response)
        return out + self._lines.event(f"response.{status}", {"response": msgspec.Raw(self._whole)})

    # -- inside -----------------------------------------------------------------------------------

    def _begun(self) -> Item:
        assert self._item is not None, "a block is open"
        return self._item

    def _think(self) -> bytes:
        """Finish the reasoning that waited for the signature of the call behind it."""
        if self._thought is None:
            return b""
        thought, self._thought = self._thought, None
        return self._told(thought, "completed")

    def _settle(self, status: Status, phase: str) -> bytes:
        """Finish the last item, if there is one. Only clients that told phases know the word."""
        if self._item is None:
            return b""
        item, self._item = self._item, None
        if self._phases and isinstance(item, Message):
            item.phase = phase
        out = self._told(item, status)
        for sealed in self._late:
            out += self._told(Reasoning(self._lines, sealed), "completed")
        self._late.clear()
        return out

    def _told(self, item: Item, status: Status) -> bytes:
        out = item.finish(status)
        if item.done is not None:
            self._output.append(item.done)
        return out

    def _decline(self, text: str) -> bytes:
        """A message that says so, where the model's refusal is only a reason to stop."""
        message = Message(self._lines)
        out = message.open("refusal") + message.delta(text) + message.close()
        return out + self._told(message, "completed")

    def _estimate(self) -> Usage:
        """What is told where the provider has said nothing."""
        written = sum(len(memoryview(item)) for item in self._output)
        return Usage(input_tokens=self._made.input_tokens, output_tokens=counted_tokens(written))


def _response_id(given: str) -> str:
    """An id that a client can ask for later, so it may not be used twice."""
    if given.startswith("resp_"):
        return given
    if len(given) < _ID_CHARACTERS_MIN:
        return f"resp_{given}{token_hex(24)}"
    return f"resp_{given}"


def _echo(fields: Mapping[str, msgspec.Raw]) -> Mapping[str, msgspec.Raw]:
    """The parameters that the client set, as it wrote them."""
    return {
        name: fields[name]
        for name in _ECHOED
        if name in fields and bytes(memoryview(fields[name])[:5]) != b"null"
    }
