"""Request bodies: read strictly where we look, kept as sent where we do not.

A body becomes a dict of raw members in their order. Re-encoded it has every byte of every value
again, and each key once: parsers take the last of two equal keys, so a body that names a cheap
model and then a dear one has to be refused here, before anyone prices it.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable
from typing import NamedTuple

import msgspec

from adapters.errors import InvalidRequest

Fields = dict[str, msgspec.Raw]

_ABSENT = msgspec.Raw()
_UNEXPECTED = (msgspec.MsgspecError, UnicodeDecodeError)
_NOT_UTF8 = "The request body is not valid UTF-8."
_CHECKED_BYTES = 65_536
_UTF8Decoder = codecs.getincrementaldecoder("utf-8")


class _Metadata(msgspec.Struct):
    conversation_id: object = None
    user_id: object = None


_decode_metadata = msgspec.json.Decoder(_Metadata | None).decode
_decode_fields = msgspec.json.Decoder(Fields).decode
_decode_key = msgspec.json.Decoder(str).decode
_decode_text: Callable[[msgspec.Raw], str | None] = msgspec.json.Decoder(str | None).decode
_decode_flag: Callable[[msgspec.Raw], bool | None] = msgspec.json.Decoder(bool | None).decode
_decode_count: Callable[[msgspec.Raw], int | None] = msgspec.json.Decoder(int | None).decode
_encode = msgspec.json.encode
_OPENING = re.compile(rb"[ \t\r\n]*\{[ \t\r\n]*")
_KEY = re.compile(rb'("(?:[^"\\]|\\.)*")[ \t\r\n]*:[ \t\r\n]*', re.DOTALL)
_FIRST_ITEM = re.compile(rb"\[[ \t\r\n]*(.)")
_AFTER_VALUE = re.compile(rb"[ \t\r\n]*([,}])[ \t\r\n]*")


def read_fields(body: bytes) -> Fields:
    """The members of a JSON object. Raises InvalidRequest where `body` is not a proper one."""
    fields = _decoded(body)
    if not body.isascii():
        _check_encoding(body)  # values that are only skipped were not looked at
    if fields and not (_is_compact(body, fields) or _is_spaced(body, fields)):
        _refuse_duplicates(body, fields)
    return fields


def read_members(value: msgspec.Raw) -> Fields:
    """The same for a value in a body that was read."""
    fields = _decoded(value)
    if fields and not _are_all(len(value), fields):
        _refuse_duplicates(bytes(value), fields)
    return fields


def _decoded(body: bytes | msgspec.Raw) -> Fields:
    try:
        return _decode_fields(body)
    except RecursionError:
        raise InvalidRequest("The request body is nested too deeply.") from None
    except UnicodeDecodeError:
        raise InvalidRequest(_NOT_UTF8) from None
    except msgspec.MsgspecError as error:
        raise InvalidRequest(_why_not_an_object(bytes(body), error)) from None


def _check_encoding(body: bytes) -> None:
    """Whether it is UTF-8, a piece at a time: as a whole it would be twice in memory, or more."""
    decoder = _UTF8Decoder()
    with memoryview(body) as view:
        try:
            for at in range(0, len(body), _CHECKED_BYTES):
                decoder.decode(view[at : at + _CHECKED_BYTES])
            decoder.decode(b"", final=True)
        except UnicodeDecodeError:
            raise InvalidRequest(_NOT_UTF8) from None


def _why_not_an_object(body: bytes, error: msgspec.MsgspecError) -> str:
    if not body.strip():
        return "The request body is empty; send a JSON object."
    if body.startswith(b"\xef\xbb\xbf"):
        return "The request body begins with a byte order mark; send plain UTF-8."
    if isinstance(error, msgspec.ValidationError):
        return "The request body must be a JSON object."
    return f"The request body is not valid JSON: {error}."


def _is_compact(body: bytes, fields: Fields) -> bool:
    """Whether members that were read are the whole body, written as SDKs write it.

    Then none of them was overridden by a later one of the same name. What is large is not written
    once more to see that.
    """
    if len(body) <= _CHECKED_BYTES:
        return _encode(fields) == body
    return _are_all(len(body), fields)


def _are_all(size: int, fields: Fields) -> bool:
    """Whether members with their colons and commas, and without any space, have that size."""
    key_bytes = len("".join(fields).encode())
    return size == key_bytes + sum(map(len, fields.values())) + 4 * len(fields) + 1


def _is_spaced(body: bytes, fields: Fields) -> bool:
    """The same for a small body with a space behind each colon and comma, as Python writes it."""
    if len(body) > _CHECKED_BYTES:
        return False
    members = [b'"%b": %b' % (key.encode(), value) for key, value in fields.items()]
    return body == b"{%b}" % b", ".join(members)


def _refuse_duplicates(body: bytes, fields: Fields) -> None:
    """Walk over the members: each must be new, and its value the one that was read last."""
    opening = _OPENING.match(body)
    assert opening is not None, "it was read as an object"
    at, seen = opening.end(), set[str]()
    while True:
        name = _KEY.match(body, at)
        assert name is not None, "it was read as an object"
        key, at = _decode_key(name[1]), name.end()
        value = memoryview(fields[key])
        after = _AFTER_VALUE.match(body, at + len(value))
        if key in seen or after is None or not body.startswith(value, at):
            raise InvalidRequest(f"The key {key!r} stands twice in the request body.", param=key)
        if after[1] == b"}":
            return
        seen.add(key)
        at = after.end()


def refuse_other_spellings(fields: Fields, names: frozenset[str]) -> None:
    """Refuse members that a parser without regard to case would read as one of `names`.

    Go's is one: `N` would be a second `n` to a provider written in it, and not to us.
    """
    keys = "".join(fields)
    if keys == keys.casefold():  # as nearly always: then each of them is what it folds to
        return
    for key in fields:
        if key not in names and key.casefold() in names:
            raise InvalidRequest(f"Write {key!r} as {key.casefold()!r}.", param=key)


def refuse_other_models(fields: Fields, name: str) -> None:
    """Refuse a list of models to fall back to at the provider.

    It would serve, and bill, what nobody has priced here, and what the key may not be allowed.
    """
    if bytes(memoryview(fields.get(name, _ABSENT))) not in (b"", b"null", b"[]"):
        raise InvalidRequest(
            f"{name} is not offered here: a request is priced by one model, named in model.",
            param=name,
        )


def text_of(fields: Fields, name: str) -> str | None:
    """A member that must be a string; None where it is absent or null."""
    raw = fields.get(name)
    if raw is None:
        return None
    try:
        return _decode_text(raw)
    except _UNEXPECTED:
        raise _other_than(name, "a string") from None


def model_of(fields: Fields) -> str:
    """The model that is asked; a request without one is refused."""
    model = text_of(fields, "model")
    if not model:
        raise InvalidRequest("model is required.", param="model")
    return model


class Metadata(NamedTuple):
    """What Farebox reads of `metadata`; values of other types are not for us."""

    conversation_id: str = ""
    user_id: str = ""


_NO_METADATA = Metadata()


def metadata_of(fields: Fields) -> Metadata:
    """`metadata`, where it is an object or absent."""
    if "metadata" not in fields:
        return _NO_METADATA
    try:
        given = _decode_metadata(fields["metadata"]) or _Metadata()
    except _UNEXPECTED:
        raise _other_than("metadata", "an object") from None
    return Metadata(_text(given.conversation_id), _text(given.user_id))


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def flag_of(fields: Fields, name: str) -> bool:
    """A member that must be true or false; absent and null are false."""
    raw = fields.get(name)
    if raw is None:
        return False
    try:
        return _decode_flag(raw) or False
    except _UNEXPECTED:
        raise _other_than(name, "true or false") from None


def count_of(fields: Fields, name: str, most: int) -> int | None:
    """A member that must be a whole number from 1 to `most`; None where absent or null."""
    raw = fields.get(name)
    if raw is None:
        return None
    try:
        count = _decode_count(raw)
    except _UNEXPECTED:
        raise _other_than(name, "a whole number") from None
    if count is not None and not 1 <= count <= most:
        limit = "at least 1" if count < 1 else f"at most {most}"
        raise InvalidRequest(f"{name} must be {limit}.", param=name)
    return count


def _other_than(name: str, expected: str) -> InvalidRequest:
    return InvalidRequest(f"{name} must be {expected}.", param=name)


def require_items(fields: Fields, name: str, item: bytes, expected: str) -> None:
    """Refuse a member that is not a list with something in it.

    `item` is the byte that each element begins with; only the first element is looked at, the
    rest is for the provider to judge.
    """
    raw = fields.get(name)
    if raw is None:
        raise InvalidRequest(f"{name} is required.", param=name)
    first = _FIRST_ITEM.match(memoryview(raw))
    if first is None or first[1] not in (item, b"]"):
        raise InvalidRequest(f"{name} must be {expected}.", param=name)
    if first[1] == b"]":
        raise InvalidRequest(f"{name} must not be empty.", param=name)
