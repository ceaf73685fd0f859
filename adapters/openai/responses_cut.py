"""The end of a Responses stream that is cut on its way through, at an output limit.

What ends such a stream says everything again: the text of the part that was open, the item around
it, and a response with all items. So what has passed is gathered while it passes, for streams that
may be cut: items as their `done` events have them, and of those that are open their beginnings and
the texts that followed.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from adapters.canonical import Usage
from adapters.openai.responses_answer import number, string
from adapters.openai.responses_wire import event, written_usage
from adapters.raw import UNREADABLE

_ABSENT = msgspec.Raw()
_ADDED = "response.output_item.added"
_DONE = "response.output_item.done"
_PARTS_ADDED = ("response.content_part.added", "response.reasoning_summary_part.added")
_PARTS_DONE = ("response.content_part.done", "response.reasoning_summary_part.done")
_DELTA = ".delta"

_Members = dict[str, object]


class _Event(msgspec.Struct, gc=False):
    type: object = None
    output_index: object = 0
    content_index: object = None
    summary_index: object = None
    delta: object = None
    item: msgspec.Raw = _ABSENT
    part: msgspec.Raw = _ABSENT


class _Texts(msgspec.Struct):
    """The member of an item that a kind of delta grows, and the kind of event that ends it."""

    list_: str  # of parts, "" where the text is the item's own
    member: str
    done: str


# By the kind of delta. The events of summaries count their parts in an index of their own.
_TEXTS: Mapping[str, _Texts] = {
    "response.output_text.delta": _Texts("content", "text", "response.output_text.done"),
    "response.refusal.delta": _Texts("content", "refusal", "response.refusal.done"),
    "response.reasoning_text.delta": _Texts("content", "text", "response.reasoning_text.done"),
    "response.reasoning_summary_text.delta": _Texts(
        "summary", "text", "response.reasoning_summary_text.done"
    ),
    "response.function_call_arguments.delta": _Texts(
        "", "arguments", "response.function_call_arguments.done"
    ),
    "response.custom_tool_call_input.delta": _Texts(
        "", "input", "response.custom_tool_call_input.done"
    ),
}

_decode_event = msgspec.json.Decoder(_Event).decode
_decode_members = msgspec.json.Decoder(_Members).decode


class _Part:
    """A part that has begun, or the text of an item that has no parts."""

    __slots__ = ("done", "members", "pieces", "place", "texts")

    def __init__(self, members: _Members, place: _Members) -> None:
        self.members = members
        self.place = place  # as its events name it
        self.pieces: list[str] = []
        self.texts: _Texts | None = None
        self.done = False

    def whole(self) -> _Members:
        """The part with all the text that came."""
        if self.texts is None or self.done:
            return self.members
        return {**self.members, self.texts.member: "".join(self.pieces)}


class _Item:
    """An item that is open."""

    __slots__ = ("members", "parts")

    def __init__(self, members: _Members) -> None:
        self.members = members
        self.parts: dict[tuple[str, int], _Part] = {}

    def part(self, list_: str, index: int) -> _Part:
        return self.parts.setdefault((list_, index), _Part({}, _place(list_, index)))

    def whole(self) -> _Members:
        """The item as far as it has come."""
        item = {**self.members, "status": "incomplete"}
        for (list_, _), part in sorted(self.parts.items(), key=lambda entry: entry[0]):
            if not list_:
                item.update(part.whole())
        for list_ in ("content", "summary"):
            parts = [
                part.whole()
                for (name, _), part in sorted(self.parts.items(), key=lambda entry: entry[0])
                if name == list_
            ]
            if parts:
                item[list_] = parts
        return item


class Gathered:
    """What has passed of one stream."""

    __slots__ = ("_done", "_open")

    def __init__(self) -> None:
        self._done: dict[int, msgspec.Raw] = {}
        self._open: dict[int, _Item] = {}

    def read(self, payload: bytes) -> None:
        """One event that passed. What cannot be read is of no use to the end, either."""
        try:
            self._read(_decode_event(payload))
        except UNREADABLE:
            return

    def end(self, sequence: int, response: Mapping[str, object], usage: Usage) -> bytes:
        """The events that end the stream; the first of them is number `sequence`."""
        told: list[tuple[str, _Members]] = []
        for index, item in sorted(self._open.items()):
            told += _ending(index, item)
        open_items = {index: item.whole() for index, item in self._open.items()}
        output = [each for _, each in sorted({**self._done, **open_items}.items())]
        whole = {
            **response,
            "status": "incomplete",
            "incomplete_details": {"reason": "max_output_tokens"},
            "output": output,
            "usage": written_usage(usage),
        }
        told.append(("response.incomplete", {"response": whole}))
        return b"".join(
            event(kind, {"sequence_number": at, **members})
            for at, (kind, members) in enumerate(told, sequence)
        )

    def _read(self, found: _Event) -> None:
        index, kind = number(found.output_index), string(found.type)
        if kind == _ADDED:
            self._open[index] = _Item(_decode_members(found.item))
        elif kind == _DONE:
            self._open.pop(index, None)
            self._done[index] = found.item.copy()
        elif (item := self._open.get(index)) is None:
            return
        elif kind in _PARTS_ADDED:
            _part_of(item, found).members = _decode_members(found.part)
        elif kind in _PARTS_DONE:
            part = _part_of(item, found)
            part.members, part.done = _decode_members(found.part), True
            part.pieces.clear()
        elif kind.endswith(_DELTA) and (texts := _TEXTS.get(kind)) is not None:
            part = item.part(texts.list_, _index_of(found))
            part.texts = texts
            part.pieces.append(string(found.delta))


def _part_of(item: _Item, found: _Event) -> _Part:
    list_ = "content" if found.summary_index is None else "summary"
    return item.part(list_, _index_of(found))


def _index_of(found: _Event) -> int:
    return number(found.content_index if found.summary_index is None else found.summary_index)


def _place(list_: str, index: int) -> _Members:
    if not list_:
        return {}
    return {"content_index" if list_ == "content" else "summary_index": index}


def _ending(index: int, item: _Item) -> list[tuple[str, _Members]]:
    """The events that complete an open item, text by text and part by part."""
    told: list[tuple[str, _Members]] = []
    where: _Members = {"item_id": item.members.get("id"), "output_index": index}
    for (list_, _), part in sorted(item.parts.items(), key=lambda entry: entry[0]):
        if part.done:
            continue
        place, whole = {**where, **part.place}, part.whole()
        if part.texts is not None:
            member = part.texts.member
            told.append((part.texts.done, {**place, member: whole[member]}))
        if list_ == "content":
            told.append(("response.content_part.done", {**place, "part": whole}))
        elif list_ == "summary":
            told.append(("response.reasoning_summary_part.done", {**place, "part": whole}))
    told.append((_DONE, {"output_index": index, "item": item.whole()}))
    return told
