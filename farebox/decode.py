"""Untyped TOML to frozen settings structs, strictly, with every problem in one plain sentence.

msgspec stops at the first error; an operator wants all of them at once. So tables are walked
here, key by key, and msgspec converts the values. A sentence starts with the path of the key and
names the value that was found, but never a secret: where any text may stand, what was read from
elsewhere, and what is as long as a key, only the kind of it is told.
"""

from __future__ import annotations

import difflib
import json
import math
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar, cast

import msgspec

from adapters.failures import scrub

_T = TypeVar("_T", bound=msgspec.Struct)


class Problems:
    """Sentences by path, in order. Only the first problem of a path is kept: others follow it.

    `homes` say of keys which tables know them; `meant` of unknown ones, by their paths, what is
    meant as a rule. `unspeakable` are texts that no sentence may name.
    """

    def __init__(
        self, homes: Mapping[str, Sequence[str]] = {}, meant: Mapping[str, str] = {}
    ) -> None:
        self._by_path: dict[str, str] = {}
        self._homes = homes
        self._meant = meant
        self.unspeakable: set[str] = set()

    def add(self, path: str, sentence: str) -> None:
        self._by_path.setdefault(path, sentence)

    def add_unknown(self, path: str, key: str, known: Iterable[str]) -> None:
        """A key that its table does not know. The same word in another table goes before one that
        is only like it: a header was forgotten, or the key stands below the wrong one."""
        home = " or ".join(self._homes.get(key, ())[:_HOMES_MAX])
        hint = self._meant.get(path, "") or (f"; it belongs in {home}" if home else "")
        self.add(path, f"unknown key{hint or nearest(key, known) or _nearest_at_all(key, known)}")

    def __iter__(self) -> typing.Iterator[str]:
        return (f"{path}: {sentence}" for path, sentence in self._by_path.items())

    def __bool__(self) -> bool:
        return bool(self._by_path)


def nearest(word: str, known: Iterable[str]) -> str:
    """`; did you mean "x"?` where something known is close to `word`, else nothing."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f'; did you mean "{close[0]}"?' if close else ""


def _nearest_at_all(word: str, known: Iterable[str]) -> str:
    """The nearest of what is known, where nothing is close."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.0)
    return f'; the nearest that is known here is "{close[0]}"' if close else ""


def homes(cls: type[msgspec.Struct]) -> dict[str, list[str]]:
    """For each key in the tables of a file, and in theirs, the headers of those that know it.

    Outer tables go first. What a key at the top of the file names is not told.
    """
    found: dict[str, list[str]] = {}
    waiting: list[tuple[type[msgspec.Struct], str, str]] = [(cls, "", "")]
    for outer, path, header in waiting:
        for field in msgspec.structs.fields(outer):
            if header:
                found.setdefault(field.name, []).append(header)
            below = f"{path}.{field.name}" if path else field.name
            item = typing.get_args(field.type)
            if (inner := _struct(field.type)) is not None:
                waiting.append((inner, below, f"[{below}]"))
            elif typing.get_origin(field.type) is tuple and (inner := _struct(item[0])):
                waiting.append((inner, below, f"[[{below}]]"))
            elif typing.get_origin(field.type) is dict and (inner := _struct(item[1])):
                waiting.append((inner, f"{below}.NAME", f"[{below}.NAME]"))
    return found


def table(cls: type[_T], raw: object, path: str, problems: Problems) -> _T | None:
    """Decode one table into `cls`, with the default for each key that has a problem.

    None where that leaves a required key without a value.
    """
    if not isinstance(raw, dict):
        problems.add(path, f"expected a table, found {_kind(raw)}")
        return None
    fields = {field.name: field for field in msgspec.structs.fields(cls)}
    for key in raw:
        if key not in fields:
            problems.add_unknown(_join(path, key), key, fields)
    values: dict[str, object] = {}
    for name, field in fields.items():
        if name in raw:
            values[name] = _value(field.type, raw[name], _join(path, name), problems)
        elif field.required:
            problems.add(_join(path, name), f"missing; write {_expected(field.type)}")
    good = {name: value for name, value in values.items() if value is not _BAD}
    if any(field.required and field.name not in good for field in fields.values()):
        return None
    return cls(**good)


def map_strings(
    raw: object, path: str, change: Callable[[str, str], str], *, spare: frozenset[str]
) -> object:
    """A copy of a TOML document in which every string is `change(string, path)`.

    Paths in `spare` are left as they are.
    """
    if path in spare:
        return raw
    if isinstance(raw, str):
        return change(raw, path)
    if isinstance(raw, dict):
        return {
            key: map_strings(value, _join(path, key), change, spare=spare)
            for key, value in raw.items()
        }
    if isinstance(raw, list):
        return [
            map_strings(value, f"{path}[{_label(value, index)}]", change, spare=spare)
            for index, value in enumerate(raw)
        ]
    return raw


_BAD = object()
_NUMBER_MAX = 10**15  # no quantity has more, and what counts with it has room for 64 bits
_HOMES_MAX = 2  # more would not help
_NAMED_CHARACTERS_MAX = 32  # keys and passwords of machines are longer


def _value(hint: object, raw: object, path: str, problems: Problems) -> object:
    """One key's value. Tables may stand alone, in a list, or by name; the rest is msgspec's."""
    if (cls := _struct(hint)) is not None:
        return table(cls, raw, path, problems) or _BAD
    item = typing.get_args(hint)
    if typing.get_origin(hint) is tuple and (cls := _struct(item[0])) is not None:
        if not isinstance(raw, list):
            problems.add(path, f"expected a list of tables, found {_kind(raw)}")
            return _BAD
        rows = (
            table(cls, row, f"{path}[{_label(row, index)}]", problems)
            for index, row in enumerate(raw)
        )
        return tuple(row for row in rows if row is not None)
    if typing.get_origin(hint) is dict and (cls := _struct(item[1])) is not None:
        if not isinstance(raw, dict):
            problems.add(path, f"expected a table of tables, found {_kind(raw)}")
            return _BAD
        named = {key: table(cls, row, _join(path, key), problems) for key, row in raw.items()}
        return {key: row for key, row in named.items() if row is not None}
    if isinstance(raw, int) and raw > _NUMBER_MAX:
        problems.add(path, f"expected {_expected(hint)}, found one above 10^15")
        return _BAD
    try:
        return cast("object", msgspec.convert(raw, type=hint))
    except msgspec.ValidationError as error:
        _, inside, _ = str(error).partition("`$")
        found = "something else in it" if inside else _found(hint, raw, problems)
        problems.add(path, f"expected {_expected(hint)}, found {found}")
        return _BAD


def _struct(hint: object) -> type[msgspec.Struct] | None:
    """The struct that `hint` stands for: itself, or as `Struct | None`."""
    for option in _options(hint):
        if isinstance(option, type) and issubclass(option, msgspec.Struct):
            return option
    return None


def _options(hint: object) -> tuple[object, ...]:
    """The members of a union without None; a hint that is no union is its own only member."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return tuple(option for option in typing.get_args(hint) if option is not types.NoneType)
    return (hint,)


_PLAIN: Mapping[object, str] = {
    str: "text in quotes",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
}


def _expected(hint: object) -> str:
    """What may be written where `hint` is wanted, in words."""
    return " or ".join(_expected_one(option) for option in _options(hint))


def _expected_one(hint: object) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        meta = next(note for note in arguments[1:] if isinstance(note, msgspec.Meta))
        return meta.description or _expected(arguments[0])
    if origin is typing.Literal:
        words = [f'"{word}"' for word in arguments if word]
        return f"one of {', '.join(words)}"
    if origin is tuple:
        return f"a list of {_expected(arguments[0])}"
    if origin is dict:
        return f"a table of {_expected(arguments[1])}"
    return _PLAIN.get(hint, "another type")


def _found(hint: object, raw: object, problems: Problems) -> str:
    """A TOML value as it is written, or its kind where it may be a secret."""
    if raw == "":
        return '""'
    if _takes_any_text(hint):
        return _kind(raw)
    if isinstance(raw, str) and (raw in problems.unspeakable or scrub(raw) != raw):
        return _kind(raw)  # a key that was pasted to the wrong place
    if not isinstance(raw, str | int | float):
        return _kind(raw)
    written = str(raw) if isinstance(raw, float) else json.dumps(raw, ensure_ascii=False)
    return written if len(written) <= _NAMED_CHARACTERS_MAX else _kind(raw)


def _takes_any_text(hint: object) -> bool:
    """Whether every text is right there, as keys, passwords and URLs are; also by name."""
    return any(_takes_any_text_one(option) for option in _options(hint))


def _takes_any_text_one(hint: object) -> bool:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        patterns = [note.pattern for note in arguments[1:] if isinstance(note, msgspec.Meta)]
        return not any(patterns) and _takes_any_text(arguments[0])
    if origin is dict:
        return _takes_any_text(arguments[1])
    return hint is str


def _kind(raw: object) -> str:
    """The kind of a TOML value, in words."""
    if isinstance(raw, bool):
        return "true or false"
    if isinstance(raw, float) and not math.isfinite(raw):
        return "no finite number"
    if isinstance(raw, int | float):
        if raw < 0:
            return "a negative number"
        return "a number" if isinstance(raw, int) else "a number with a fraction"
    if isinstance(raw, str):
        return "other text"
    if isinstance(raw, list):
        return "a list"
    if isinstance(raw, dict):
        return "a table"
    return "a date or time"


def _label(row: object, index: int) -> str:
    """How a row of an array of tables is called: by what identifies it, else by its place."""
    if isinstance(row, dict):
        for key in ("id", "name", "preset"):
            if isinstance(name := row.get(key), str):
                return f'"{name}"'
    return str(index)


def _join(path: str, key: str) -> str:
    """`path.key`, with the key quoted where TOML wants it quoted."""
    bare = key.replace("-", "").replace("_", "")
    word = key if bare.isalnum() and bare.isascii() else f'"{key}"'
    return f"{path}.{word}" if path else word
