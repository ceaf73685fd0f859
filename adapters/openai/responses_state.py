"""Responses that are kept: what a request says of earlier ones, and the bodies about them.

Providers keep answers for their own clients only, so Farebox keeps items itself and sends the whole
history every time. All here is pure: what is kept, where and for how long is the data plane's
business, which resolves `previous_response_id` and `item_reference` before a request is priced,
passed on or translated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from secrets import token_hex
from urllib.parse import parse_qs

import msgspec

from adapters import sse
from adapters.codec import Request
from adapters.errors import InvalidRequest, NotFound
from adapters.openai.body import Fields, count_of, flag_of, text_of
from adapters.openai.responses_scan import scanned
from adapters.raw import UNREADABLE

ITEMS_DEFAULT, ITEMS_MAX = 20, 100
_DIGITS = 10  # no limit has as many

_TOKENS_MAX = 2**31 - 1
_FALSE = msgspec.Raw(b"false")
_PREFIXES = {
    "message": "msg",
    "reasoning": "rs",
    "function_call": "fc",
    "function_call_output": "fco",
    "custom_tool_call": "ctc",
    "custom_tool_call_output": "ctco",
}
_OTHER_PREFIX = "item"

Members = dict[str, msgspec.Raw]


class _Item(msgspec.Struct, gc=False):
    type: str | None = None
    id: str | None = None
    role: object = None


class _Response(msgspec.Struct, gc=False):
    output: list[msgspec.Raw] | None = None


class _Event(msgspec.Struct, gc=False):
    response: msgspec.Raw = msgspec.Raw()


_decode_input = msgspec.json.Decoder(str | list[msgspec.Raw] | None).decode
_decode_item = msgspec.json.Decoder(_Item).decode
_decode_members = msgspec.json.Decoder(Members).decode
_decode_response = msgspec.json.Decoder(_Response).decode
_decode_event = msgspec.json.Decoder(_Event).decode
_encode = msgspec.json.encode


# -- what a request says --------------------------------------------------------------------------


def stored_wish(fields: Fields) -> bool:
    """Whether the answer is to be kept: yes, unless the client says no."""
    raw = fields.get("store")
    return raw is None or bytes(raw) == b"null" or flag_of(fields, "store")


def previous(fields: Fields) -> str:
    """The id of the answer that the request goes on from; empty where it begins anew."""
    return text_of(fields, "previous_response_id") or ""


def references(fields: Fields) -> list[str]:
    """The ids of items that the request only names."""
    return [item.id or "" for _, item in _items_of(fields) if _is_reference(item)]


def input_items(request: Request) -> list[msgspec.Raw]:
    """The request's own input as items, each with an id: those of the client, else new ones."""
    return [_identified(raw, item) for raw, item in _items_of(request.fields)]


# -- the request with what it refers to -----------------------------------------------------------


def with_history(request: Request, items: Sequence[msgspec.Raw]) -> Request:
    """The request after `items`, which are the input and the output of all that came before.

    It refers to nothing any more, and the provider is not to keep it.
    """
    own = [raw for raw, _ in _items_of(request.fields)]
    fields = {**request.fields, "input": msgspec.Raw(_encode([*items, *own])), "store": _FALSE}
    fields.pop("previous_response_id", None)
    return _rebuilt(request, fields)


def with_references(request: Request, items_by_id: Mapping[str, msgspec.Raw]) -> Request:
    """The request with the items that it only names. Raises NotFound for one that is not there."""
    items: list[msgspec.Raw] = []
    for at, (raw, item) in enumerate(_items_of(request.fields)):
        if _is_reference(item):
            found = items_by_id.get(item.id or "")
            if found is None:
                raise NotFound(f"Item {item.id!r} was not found.", param=f"input[{at}].id")
            items.append(found)
        else:
            items.append(raw)
    fields = {**request.fields, "input": msgspec.Raw(_encode(items)), "store": _FALSE}
    return _rebuilt(request, fields)


def _rebuilt(request: Request, fields: Fields) -> Request:
    size = sum(len(_encode(name)) + len(memoryview(raw)) + 2 for name, raw in fields.items()) + 1
    return msgspec.structs.replace(
        request,
        fields=fields,
        body_bytes=size,
        scan=scanned(fields, count_of(fields, "max_tool_calls", _TOKENS_MAX)),
    )


# -- what is kept ---------------------------------------------------------------------------------


def final_response(body: bytes) -> bytes | None:
    """The response in the last events of a stream; None where `body` is no stream, or has none."""
    if not body.startswith((b"event:", b"data:", b":")):
        return None
    splitter = sse.Splitter()
    for event in reversed([*splitter.feed(body), splitter.close()]):
        try:
            found = _decode_event(sse.data_of(event)).response
        except UNREADABLE:
            continue
        if found:
            return bytes(found)
    return None


def output_items(body: bytes) -> list[msgspec.Raw]:
    """The items of a whole response, each with an id."""
    try:
        items = _decode_response(body).output or []
        return [_identified(raw, _decode_item(raw)) for raw in items]
    except UNREADABLE:
        return []


def response_id(body: bytes) -> str:
    """The id of a whole response; empty where it has none."""
    try:
        return _decode_item(body).id or ""
    except UNREADABLE:
        return ""


def cancelled(body: bytes) -> bytes:
    """A response that was running, as one that was stopped."""
    return _encode({**_decode_members(body), "status": "cancelled"})


# -- the answers about it -------------------------------------------------------------------------


def listing(items: Sequence[msgspec.Raw], query: str) -> bytes:
    """A page of items, given in the order they came in.

    Raises InvalidRequest for a `limit`, `order` or `after` that is none.
    """
    asked = parse_qs(query)
    ordered = [(_decode_item(raw).id or "", raw) for raw in items]
    if _order(asked) == "desc":
        ordered.reverse()
    ordered = ordered[_begin(asked, [item_id for item_id, _ in ordered]) :]
    limit = _limit(asked)
    page = ordered[:limit]
    return _encode(
        {
            "object": "list",
            "data": [raw for _, raw in page],
            "first_id": page[0][0] if page else "",
            "last_id": page[-1][0] if page else "",
            "has_more": len(ordered) > limit,
        }
    )


def deleted(id: str) -> bytes:  # noqa: A002
    """The answer to a deletion."""
    return _encode({"id": id, "object": "response", "deleted": True})


def _order(asked: Mapping[str, list[str]]) -> str:
    order = asked.get("order", ["desc"])[-1]
    if order not in ("asc", "desc"):
        raise InvalidRequest("order must be asc or desc.", param="order")
    return order


def _limit(asked: Mapping[str, list[str]]) -> int:
    text = asked.get("limit", [str(ITEMS_DEFAULT)])[-1]
    number = text.isascii() and text.isdigit() and len(text) < _DIGITS
    if not number or not 1 <= int(text) <= ITEMS_MAX:
        raise InvalidRequest(f"limit must be a number from 1 to {ITEMS_MAX}.", param="limit")
    return int(text)


def _begin(asked: Mapping[str, list[str]], ids: Sequence[str]) -> int:
    if "after" not in asked:
        return 0
    after = asked["after"][-1]
    if after not in ids:
        raise InvalidRequest(f"There is no item {after!r}.", param="after")
    return ids.index(after) + 1


# -- items ----------------------------------------------------------------------------------------


def _items_of(fields: Fields) -> list[tuple[msgspec.Raw, _Item]]:
    """The input, item by item; one text is a message of the user's. Raises InvalidRequest."""
    try:
        given = _decode_input(fields.get("input", b"null"))
        if isinstance(given, str):
            given = [_user_message(given)]
        return [(raw, _decode_item(raw)) for raw in given or ()]
    except UNREADABLE as error:
        raise InvalidRequest(
            f"input must be a string, or a list of items: {error}.", param="input"
        ) from None


def _is_reference(item: _Item) -> bool:
    """Its type may be left out."""
    return item.type == "item_reference" or (item.type is None and item.role is None)


def _user_message(text: str) -> msgspec.Raw:
    return msgspec.Raw(
        _encode(
            {
                "type": "message",
                "role": "user",
                "content": [{"type": "input_text", "text": text}],
            }
        )
    )


def _identified(raw: msgspec.Raw, item: _Item) -> msgspec.Raw:
    """An item as lists show it: with a type and an id, and a message's content as parts."""
    if item.id and item.type not in (None, "message"):
        return raw
    members = _decode_members(raw)
    kind = item.type or "message"
    shown: Members = {"type": msgspec.Raw(_encode(kind)), **members}
    shown["type"] = msgspec.Raw(_encode(kind))
    if not item.id:
        prefix = _PREFIXES.get(kind, _OTHER_PREFIX)
        shown["id"] = msgspec.Raw(_encode(f"{prefix}_{token_hex(24)}"))
    content = members.get("content")
    if kind == "message" and content is not None and bytes(memoryview(content)[:1]) == b'"':
        of_model = bytes(members.get("role", b"")) == b'"assistant"'
        part = {"type": msgspec.Raw(b'"output_text"' if of_model else b'"input_text"')}
        part["text"] = content
        if of_model:
            part["annotations"] = msgspec.Raw(b"[]")
        shown["content"] = msgspec.Raw(_encode([part]))
    return msgspec.Raw(_encode(shown))
