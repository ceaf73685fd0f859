"""Readers of JSON as strict as a provider's: tables of fields, put together from small checks.

A reader takes a value and where it stands, and returns it without what is null, with its members'
names spelled one way. What does not fit is refused in the words of the protocol, its `Wording`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Protocol

import msgspec

from adapters.sandbox.script import Json, Refused

Path = tuple[str | int, ...]
Read = Callable[[Path, object], object]


class Wording(Protocol):
    """How a protocol refuses what does not fit."""

    def unknown(self, at: Path, name: str) -> Refused:
        """The object at `at` has a member that nobody knows."""
        ...

    def missing(self, at: Path) -> Refused:
        """There has to be something at `at`."""
        ...

    def wrong_type(self, at: Path, wanted: str, value: object) -> Refused:
        """`wanted` is a phrase such as `a string`."""
        ...

    def not_offered(self, at: Path, values: Sequence[str], value: object) -> Refused:
        """A string that is none of `values`."""
        ...

    def out_of_range(
        self, at: Path, *, value: float, whole: bool, least: bool, limit: float
    ) -> Refused:
        """A number, a `whole` one, below the least (`least`) or above the most allowed."""
        ...

    def wrong_length(self, at: Path, *, length: int, least: bool, limit: int) -> Refused:
        """An array or a string that is too short (`least`) or too long."""
        ...

    def mismatch(self, at: Path, pattern: str) -> Refused:
        """A string that does not match."""
        ...

    def within(self, at: Path, kind: str) -> Path:
        """Where the members of one kind of a union are said to stand."""
        ...


class Shapes:
    """Makes readers that refuse in one protocol's words."""

    def __init__(self, wording: Wording, spelled: Callable[[str], str] = str) -> None:
        self._wording = wording
        self._spelled = spelled

    def anything(self, at: Path, value: object) -> object:
        """Whatever it is."""
        return value

    def string(self, at: Path, value: object) -> object:
        """Any string."""
        if not isinstance(value, str):
            raise self._wording.wrong_type(at, "a string", value)
        return value

    def boolean(self, at: Path, value: object) -> object:
        """true or false."""
        if not isinstance(value, bool):
            raise self._wording.wrong_type(at, "a boolean", value)
        return value

    def mapping(self, at: Path, value: object) -> object:
        """An object with any members, left as they are."""
        if not isinstance(value, dict):
            raise self._wording.wrong_type(at, "an object", value)
        return value

    def text(self, pattern: str = "", least: int = 0) -> Read:
        """A string that matches as a whole, and of a least length."""
        matches = re.compile(pattern or "(?s:.*)").fullmatch

        def read(at: Path, value: object) -> object:
            if not isinstance(value, str):
                raise self._wording.wrong_type(at, "a string", value)
            if len(value) < least:
                raise self._wording.wrong_length(at, length=len(value), least=True, limit=least)
            if matches(value) is None:
                raise self._wording.mismatch(at, f"^{pattern}$")
            return value

        return read

    def one_of(self, *values: str) -> Read:
        """One of some strings."""

        def read(at: Path, value: object) -> object:
            if not isinstance(value, str):
                raise self._wording.wrong_type(at, "a string", value)
            if value not in values:
                raise self._wording.not_offered(at, values, value)
            return value

        return read

    def integer(self, least: int | None = None, most: int | None = None) -> Read:
        """A whole number."""

        def read(at: Path, value: object) -> object:
            if not isinstance(value, int) or isinstance(value, bool):
                raise self._wording.wrong_type(at, "an integer", value)
            self._check_range(at, value, least, most, whole=True)
            return value

        return read

    def number(self, least: float | None = None, most: float | None = None) -> Read:
        """A number."""

        def read(at: Path, value: object) -> object:
            if not isinstance(value, int | float) or isinstance(value, bool):
                raise self._wording.wrong_type(at, "a decimal", value)
            self._check_range(at, value, least, most, whole=False)
            return value

        return read

    def array(self, each: Read, least: int = 0, most: int | None = None) -> Read:
        """A list."""

        def read(at: Path, value: object) -> object:
            if not isinstance(value, list):
                raise self._wording.wrong_type(at, "an array", value)
            if len(value) < least:
                raise self._wording.wrong_length(at, length=len(value), least=True, limit=least)
            if most is not None and len(value) > most:
                raise self._wording.wrong_length(at, length=len(value), least=False, limit=most)
            return [each((*at, index), item) for index, item in enumerate(value)]

        return read

    def members(
        self, fields: Mapping[str, Read], required: Sequence[str] = (), *, lenient: bool = False
    ) -> Read:
        """An object with these members; with `lenient` others are left as they are."""

        def read(at: Path, value: object) -> object:
            if not isinstance(value, dict):
                raise self._wording.wrong_type(at, "an object", value)
            given = {name: each for name, each in value.items() if each is not None}
            spelled = {self._spelled(name): each for name, each in given.items()}
            for name in required:
                if name not in spelled:
                    raise self._wording.missing((*at, name))
            for original in value:
                if not lenient and self._spelled(original) not in fields:
                    raise self._wording.unknown(at, original)
            return {
                name: fields[name]((*at, name), each) if name in fields else each
                for name, each in spelled.items()
            }

        return read

    def tagged(self, kinds: Mapping[str, Read], tag: str = "type", default: str = "") -> Read:
        """One of several objects, told apart by a member."""

        def read(at: Path, value: object) -> object:
            if not isinstance(value, dict):
                raise self._wording.wrong_type(at, "an object", value)
            kind = value.get(tag)
            if kind is None and not default:
                raise self._wording.missing((*at, tag))
            kind = default if kind is None else self.string((*at, tag), kind)
            found = kinds.get(str(kind))
            if found is None:
                raise self._wording.not_offered((*at, tag), list(kinds), kind)
            return found(self._wording.within(at, str(kind)), value)

        return read

    def either(self, wanted: str, kinds: Mapping[type, Read]) -> Read:
        """A value of one of several types."""

        def read(at: Path, value: object) -> object:
            found = kinds.get(type(value))
            if found is None:
                raise self._wording.wrong_type(at, wanted, value)
            return found(at, value)

        return read

    def _check_range(
        self, at: Path, value: float, least: float | None, most: float | None, *, whole: bool
    ) -> None:
        refuse = partial(self._wording.out_of_range, at, value=value, whole=whole)
        if least is not None and value < least:
            raise refuse(least=True, limit=least)
        if most is not None and value > most:
            raise refuse(least=False, limit=most)


def decoded(body: bytes) -> Json | None:
    """The JSON object that a body is; None where it is none."""
    try:
        found: object = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def an_object(value: object) -> Json:
    """A value as an object; empty where it is none."""
    return value if isinstance(value, dict) else {}


def objects(value: object) -> list[Json]:
    """The objects of a list; empty where it is none."""
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []


def strings(value: object) -> list[str]:
    """The strings of a list; empty where it is none."""
    return [each for each in value if isinstance(each, str)] if isinstance(value, list) else []


def a_string(value: object) -> str:
    """A value as a string; empty where it is none."""
    return value if isinstance(value, str) else ""


def an_integer(value: object) -> int | None:
    """A value as an integer; None where it is none."""
    return value if isinstance(value, int) and not isinstance(value, bool) else None
