"""Items of a Responses input that only name an earlier item (`item_reference`)."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from adapters.codec import Request
from adapters.openai.body import Fields, count_of
from adapters.openai.responses_scan import scanned

_ABSENT = msgspec.Raw()
_CALLS_MAX = 2**31 - 1


class _Item(msgspec.Struct, gc=False):
    type: object = None
    id: object = None
    role: object = None


_decode_items = msgspec.json.Decoder(list[msgspec.Raw]).decode
_decode_kinds = msgspec.json.Decoder(list[_Item]).decode
_encode = msgspec.json.encode
_UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


def references(fields: Fields) -> dict[int, str]:
    """Which items of the input name another one, by their place. Its type may be left out.

    An input that is no list of items has none: whoever reads it will say what is wrong.
    """
    items = fields.get("input", _ABSENT)
    if bytes(memoryview(items)[:1]) != b"[":
        return {}
    try:
        kinds = _decode_kinds(items)
    except _UNREADABLE:
        return {}
    return {place: str(item.id) for place, item in enumerate(kinds) if _is_reference(item)}


def with_items(request: Request, found: Mapping[str, msgspec.Raw]) -> Request:
    """The request with every reference replaced by the item it names."""
    named = references(request.fields)
    items = _decode_items(request.fields["input"])
    whole = [found[named[at]] if at in named else item for at, item in enumerate(items)]
    fields = {**request.fields, "input": msgspec.Raw(_encode(whole))}
    return msgspec.structs.replace(
        request,
        fields=fields,
        body_bytes=request.body_bytes + len(fields["input"]) - len(request.fields["input"]),
        scan=scanned(fields, count_of(fields, "max_tool_calls", _CALLS_MAX)),
    )


def _is_reference(item: _Item) -> bool:
    if item.type is None:
        return item.id is not None and item.role is None
    return item.type == "item_reference"
