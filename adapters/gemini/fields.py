"""Members of Google's objects under one name, however they are spelled.

Google reads every member as `maxOutputTokens` and as `max_output_tokens`, at every level, and its
own SDKs mix both in one body. Both spellings of one member in one object are refused as a key that
stands twice is: which of them counts is anybody's guess.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import TypeVar

import msgspec

from adapters.errors import InvalidRequest
from adapters.openai.body import Fields, read_members
from adapters.raw import UNREADABLE

T = TypeVar("T")

_UNDERSCORE = re.compile(r"_+([a-zA-Z0-9])")
_decode_items = msgspec.json.Decoder(list[msgspec.Raw]).decode
_decode_str = msgspec.json.Decoder(str).decode
_decode_bool = msgspec.json.Decoder(bool).decode
_decode_int = msgspec.json.Decoder(int).decode
_decode_float = msgspec.json.Decoder(float).decode
_decode_texts = msgspec.json.Decoder(list[str]).decode
_decode_object = msgspec.json.Decoder(dict[str, object]).decode
_NULL = b"null"


def camel(key: str) -> str:
    """The name that stands for both spellings: `max_output_tokens` is `maxOutputTokens`."""
    return key if "_" not in key else _UNDERSCORE.sub(lambda found: found[1].upper(), key)


def named(fields: Fields, where: str = "") -> Fields:
    """Members under the names of `camel`; those that are null are left out.

    Raises InvalidRequest where two spellings of one name are there.
    """
    found: Fields = {}
    for key, raw in fields.items():
        name = camel(key)
        if name in found:
            raise InvalidRequest(
                f"{path(where, name)} stands twice in the request, in two spellings.",
                param=path(where, name),
            )
        found[name] = raw
    return {name: raw for name, raw in found.items() if bytes(memoryview(raw)[:4]) != _NULL}


def spelled(fields: Mapping[str, msgspec.Raw], name: str) -> str:
    """The key under which `name` stands in `fields`; `name` itself where it does not."""
    return next((key for key in fields if camel(key) == name), name)


def members(raw: msgspec.Raw, where: str) -> Fields:
    """The members of an object, as of `named`. Raises InvalidRequest naming `where`."""
    return named(raw_members(raw, where), where)


def raw_members(raw: msgspec.Raw, where: str) -> Fields:
    """The members of an object under the keys they came with. Raises as `members` does."""
    try:
        return read_members(raw)
    except InvalidRequest as error:
        if error.param is None:
            raise InvalidRequest(f"{where} must be an object.", param=where) from None
        key = path(where, error.param)
        raise InvalidRequest(f"{key} stands twice in the request.", param=key) from None


def items(raw: msgspec.Raw | None, where: str) -> list[msgspec.Raw]:
    """The items of a list; none where it is absent."""
    return [] if raw is None else _read(raw, where, _decode_items, "a list")


def text(fields: Fields, name: str, where: str = "") -> str:
    """A member that must be a string; empty where it is absent."""
    raw = fields.get(name)
    return "" if raw is None else _read(raw, path(where, name), _decode_str, "a string")


def flag(fields: Fields, name: str, where: str = "") -> bool | None:
    """A member that must be true or false; None where it is absent."""
    raw = fields.get(name)
    return None if raw is None else _read(raw, path(where, name), _decode_bool, "true or false")


def whole(fields: Fields, name: str, where: str = "") -> int | None:
    """A member that must be a whole number; None where it is absent."""
    raw = fields.get(name)
    return None if raw is None else _read(raw, path(where, name), _decode_int, "a whole number")


def number(fields: Fields, name: str, where: str = "") -> float | None:
    """A member that must be a number; None where it is absent."""
    raw = fields.get(name)
    return None if raw is None else _read(raw, path(where, name), _decode_float, "a number")


def texts(fields: Fields, name: str, where: str = "") -> tuple[str, ...]:
    """A member that must be a list of strings; empty where it is absent."""
    raw = fields.get(name)
    if raw is None:
        return ()
    return tuple(_read(raw, path(where, name), _decode_texts, "a list of strings"))


def mapping(fields: Fields, name: str, where: str = "") -> dict[str, object] | None:
    """A member that must be an object, wholly decoded; None where it is absent."""
    raw = fields.get(name)
    return None if raw is None else _read(raw, path(where, name), _decode_object, "an object")


def count(fields: Fields, name: str, where: str, most: int) -> int | None:
    """A member that must be a whole number from 1 to `most`; None where it is absent."""
    found = whole(fields, name, where)
    if found is not None and not 1 <= found <= most:
        limit = "at least 1" if found < 1 else f"at most {most}"
        raise InvalidRequest(f"{path(where, name)} must be {limit}.", param=path(where, name))
    return found


def path(where: str, name: str) -> str:
    """What an error calls a member: `generationConfig.topK`."""
    return f"{where}.{name}" if where else name


def _read(raw: msgspec.Raw, where: str, decode: Callable[[msgspec.Raw], T], expected: str) -> T:
    try:
        return decode(raw)
    except UNREADABLE:
        raise InvalidRequest(f"{where} must be {expected}.", param=where) from None
