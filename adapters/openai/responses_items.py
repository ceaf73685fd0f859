"""Output items on their way to a Responses client: each with all the events of its life.

An item is announced (`response.output_item.added`), grows by deltas, and is finished: only then its
status is certain, and `done` is the whole of it. The ids in all its events are the same, which SDKs
insist on. A delta is the hot path: its event is written around the text by hand.
"""

from __future__ import annotations

from secrets import token_hex
from typing import Literal, NamedTuple

import msgspec

from adapters.canonical import BlockKind, Citation, Logprob, Open
from adapters.openai.responses_wire import event
from adapters.raw import UNREADABLE

Status = Literal["completed", "incomplete"]
Place = dict[str, object]  # where in the answer an event belongs

_encode = msgspec.json.encode
_decode_value = msgspec.json.Decoder().decode


class Lines:
    """The events of one stream, numbered; and how many items it has."""

    __slots__ = ("items", "sequence")

    def __init__(self) -> None:
        self.items = 0
        self.sequence = 0

    def event(self, kind: str, members: Place) -> bytes:
        """The next event."""
        number = self.sequence
        self.sequence = number + 1
        return event(kind, {"sequence_number": number, **members})

    def next_index(self) -> int:
        """The output index of the next item."""
        self.items += 1
        return self.items - 1


class _Deltas:
    """One text that grows, and its delta events."""

    __slots__ = ("_after", "_before", "_lines", "_pieces", "_place", "characters")

    def __init__(self, lines: Lines, kind: str, place: Place, after: bytes = b"") -> None:
        name = kind.encode()
        self.characters = 0
        self._lines = lines
        self._before = b'event: %b\ndata: {"type":"%b","sequence_number":' % (name, name)
        self._place = b',%b,"delta":' % _encode(place)[1:-1]
        self._after = after + b"}\n\n"
        self._pieces: list[str] = []

    def add(self, text: str) -> bytes:
        self._pieces.append(text)
        self.characters += len(text)
        lines = self._lines
        number = lines.sequence
        lines.sequence = number + 1
        return b"%b%d%b%b%b" % (self._before, number, self._place, _encode(text), self._after)

    def whole(self) -> str:
        return "".join(self._pieces)


# -- messages -------------------------------------------------------------------------------------


class _PartForm(NamedTuple):
    """How a part of a message is called, in its events and in itself."""

    type: str
    family: str  # of its events
    member: str  # that has the text
    after_delta: bytes


_OUTPUT_TEXT = _PartForm("output_text", "response.output_text", "text", b',"logprobs":[]')
_REFUSAL = _PartForm("refusal", "response.refusal", "refusal", b"")
_FORMS: dict[BlockKind, _PartForm] = {"text": _OUTPUT_TEXT, "refusal": _REFUSAL}


class _Part:
    """One text or refusal of a message."""

    __slots__ = ("_annotations", "_deltas", "_form", "_lines", "_logprobs", "_place")

    def __init__(self, lines: Lines, form: _PartForm, place: Place) -> None:
        self._lines = lines
        self._form = form
        self._place = place
        self._deltas = _Deltas(lines, f"{form.family}.delta", place, form.after_delta)
        self._annotations: list[object] = []
        self._logprobs: list[object] = []

    def opened(self) -> bytes:
        return self._lines.event(
            "response.content_part.added", {**self._place, "part": self._whole("")}
        )

    def delta(self, text: str) -> bytes:
        return self._deltas.add(text)

    def cite(self, citation: Citation) -> bytes:
        """What the text up to here is based on."""
        if self._form is not _OUTPUT_TEXT:
            return b""
        annotation = {
            "type": "url_citation",
            "url": citation.url,
            "title": citation.title,
            "start_index": 0,
            "end_index": self._deltas.characters,
        }
        self._annotations.append(annotation)
        place = {**self._place, "annotation_index": len(self._annotations) - 1}
        return self._lines.event(
            "response.output_text.annotation.added", {**place, "annotation": annotation}
        )

    def likely(self, logprobs: tuple[Logprob, ...]) -> None:
        """Probabilities of tokens whose deltas have gone out: they are told at the end."""
        self._logprobs += [_written_logprob(each) for each in logprobs]

    def closed(self) -> tuple[bytes, msgspec.Raw]:
        """The events of its end, and the part."""
        text = msgspec.Raw(_encode(self._deltas.whole()))
        part = msgspec.Raw(_encode(self._whole(text)))
        members = {**self._place, self._form.member: text}
        if self._form is _OUTPUT_TEXT:
            members["logprobs"] = self._logprobs
        out = self._lines.event(f"{self._form.family}.done", members)
        out += self._lines.event("response.content_part.done", {**self._place, "part": part})
        return out, part

    def _whole(self, text: object) -> Place:
        part = {"type": self._form.type, self._form.member: text}
        if self._form is _OUTPUT_TEXT:
            part |= {"annotations": self._annotations, "logprobs": self._logprobs}
        return part


class Message:
    """A run of texts and refusals, a part for each block.

    `phase` may be set before it is finished: whether it is a commentary or the final answer.
    """

    __slots__ = ("_id", "_index", "_lines", "_part", "_parts", "done", "phase")

    def __init__(self, lines: Lines) -> None:
        self.done: msgspec.Raw | None = None
        self.phase = ""
        self._lines = lines
        self._id = f"msg_{token_hex(24)}"
        self._index = -1
        self._part: _Part | None = None
        self._parts: list[msgspec.Raw] = []

    @property
    def part(self) -> _Part | None:
        """The part that is open."""
        return self._part

    def open(self, kind: BlockKind) -> bytes:
        """A block begins, and with the first one the item."""
        out = b""
        if self._index < 0:
            self._index = self._lines.next_index()
            out = self._lines.event(
                "response.output_item.added",
                {"output_index": self._index, "item": self._whole("in_progress")},
            )
        place: Place = {
            "item_id": self._id,
            "output_index": self._index,
            "content_index": len(self._parts),
        }
        self._part = _Part(self._lines, _FORMS[kind], place)
        return out + self._part.opened()

    def delta(self, text: str) -> bytes:
        assert self._part is not None, "a block is open"
        return self._part.delta(text)

    def close(self) -> bytes:
        assert self._part is not None, "a block is open"
        out, part = self._part.closed()
        self._parts.append(part)
        self._part = None
        return out

    def finish(self, status: Status) -> bytes:
        self.done = msgspec.Raw(_encode(self._whole(status)))
        return self._lines.event(
            "response.output_item.done", {"output_index": self._index, "item": self.done}
        )

    def _whole(self, status: str) -> Place:
        item: Place = {
            "id": self._id,
            "type": "message",
            "status": status,
            "role": "assistant",
            "content": self._parts,
        }
        return {**item, "phase": self.phase} if self.phase else item


def _written_logprob(logprob: Logprob) -> object:
    top = [_written_token(token, value) for token, value in logprob.top]
    return {**_written_token(logprob.token, logprob.logprob), "top_logprobs": top}


def _written_token(token: str, logprob: float) -> Place:
    return {"token": token, "logprob": logprob, "bytes": list(token.encode(errors="replace"))}


# -- reasoning ------------------------------------------------------------------------------------


class Reasoning:
    """What the model thought, as a summary of one part, and its signature under `sealed`.

    Nothing comes of it where there is neither.
    """

    __slots__ = ("_deltas", "_id", "_index", "_lines", "_summary", "done", "sealed")

    def __init__(self, lines: Lines, sealed: str = "") -> None:
        self.done: msgspec.Raw | None = None
        self.sealed = sealed
        self._lines = lines
        self._id = f"rs_{token_hex(24)}"
        self._index = -1
        self._deltas: _Deltas | None = None
        self._summary: list[object] = []

    def delta(self, text: str) -> bytes:
        if self._deltas is not None:
            return self._deltas.add(text)
        out = self._announced()
        kind = "response.reasoning_summary_text.delta"
        self._deltas = _Deltas(self._lines, kind, self._place)
        part = {"type": "summary_text", "text": ""}
        out += self._lines.event(
            "response.reasoning_summary_part.added", {**self._place, "part": part}
        )
        return out + self._deltas.add(text)

    def close(self) -> bytes:
        if self._deltas is None:
            return b""
        text = msgspec.Raw(_encode(self._deltas.whole()))
        part = {"type": "summary_text", "text": text}
        self._summary = [part]
        return self._lines.event(
            "response.reasoning_summary_text.done", {**self._place, "text": text}
        ) + self._lines.event("response.reasoning_summary_part.done", {**self._place, "part": part})

    def finish(self, status: Status) -> bytes:
        """Reasoning has no status: OpenAI does not take one back."""
        if not self._summary and not self.sealed:
            return b""
        out = self._announced()
        self.done = msgspec.Raw(_encode(self._whole(self.sealed or None)))
        return out + self._lines.event(
            "response.output_item.done", {"output_index": self._index, "item": self.done}
        )

    def _announced(self) -> bytes:
        if self._index >= 0:
            return b""
        self._index = self._lines.next_index()
        return self._lines.event(
            "response.output_item.added", {"output_index": self._index, "item": self._whole(None)}
        )

    def _whole(self, sealed: str | None) -> Place:
        return {
            "id": self._id,
            "type": "reasoning",
            "summary": self._summary,
            "encrypted_content": sealed,
        }

    @property
    def _place(self) -> Place:
        return {"item_id": self._id, "output_index": self._index, "summary_index": 0}


# -- calls ----------------------------------------------------------------------------------------


class _CallForm(NamedTuple):
    """How a kind of call is called; without `events` it is only announced and done."""

    type: str
    prefix: str  # of its ids
    events: str
    member: str  # that has the arguments


_FUNCTION = _CallForm("function_call", "fc", "response.function_call_arguments", "arguments")
_CUSTOM = _CallForm("custom_tool_call", "ctc", "response.custom_tool_call_input", "input")
_SEARCH = _CallForm("tool_search_call", "tsc", "", "arguments")


class Call:
    """A call of one of the client's tools.

    It is announced with its first argument, so that a signature which belongs to it can still be
    told before it: `announced` says whether that is too late.
    """

    __slots__ = ("_arguments", "_block", "_form", "_id", "_index", "_lines", "_pieces", "done")

    def __init__(self, lines: Lines, block: Open) -> None:
        self.done: msgspec.Raw | None = None
        self._lines = lines
        self._block = block
        self._form = _form_of(block)
        self._id = f"{self._form.prefix}_{block.id}"
        self._index = -1
        self._arguments: _Deltas | None = None
        self._pieces: list[str] = []  # of what has no events

    @property
    def announced(self) -> bool:
        return self._index >= 0

    def delta(self, text: str) -> bytes:
        if self._arguments is not None:
            return self._arguments.add(text)
        if self._form is _SEARCH:
            self._pieces.append(text)
            return b""
        out = self._announce()
        self._arguments = _Deltas(self._lines, f"{self._form.events}.delta", self._place)
        return out + self._arguments.add(text)

    def close(self) -> bytes:
        """A call without arguments has an empty object of them: clients parse it."""
        if self._form is _FUNCTION and self._arguments is None:
            return self.delta("{}")
        return self._announce()

    def finish(self, status: Status) -> bytes:
        arguments = self._whole_arguments()
        out = b""
        if self._form.events:
            members = {**self._place, "name": self._block.name, self._form.member: arguments}
            out = self._lines.event(f"{self._form.events}.done", members)
        self.done = msgspec.Raw(_encode(self._whole(status, arguments)))
        return out + self._lines.event(
            "response.output_item.done", {"output_index": self._index, "item": self.done}
        )

    def _announce(self) -> bytes:
        if self.announced:
            return b""
        self._index = self._lines.next_index()
        empty: object = {} if self._form is _SEARCH else ""
        return self._lines.event(
            "response.output_item.added",
            {"output_index": self._index, "item": self._whole("in_progress", empty)},
        )

    def _whole_arguments(self) -> object:
        if self._arguments is not None:
            return msgspec.Raw(_encode(self._arguments.whole()))
        return _object_of("".join(self._pieces)) if self._form is _SEARCH else ""

    def _whole(self, status: str, arguments: object) -> Place:
        item: Place = {
            "id": self._id,
            "type": self._form.type,
            "status": status,
            "call_id": self._block.id,
        }
        if self._form is _SEARCH:
            item["execution"] = "client"
        else:
            item["name"] = self._block.name
        if self._block.namespace:
            item["namespace"] = self._block.namespace
        return {**item, self._form.member: arguments}

    @property
    def _place(self) -> Place:
        return {"item_id": self._id, "output_index": self._index}


def _form_of(block: Open) -> _CallForm:
    if block.search:
        return _SEARCH
    return _CUSTOM if block.kind == "free_call" else _FUNCTION


def _object_of(text: str) -> object:
    """Arguments that go out as JSON rather than as text of it."""
    try:
        return _decode_value(text.encode(errors="replace")) if text else {}
    except UNREADABLE:
        return text


Item = Message | Reasoning | Call
