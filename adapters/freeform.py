"""Free-form tools for providers that know only functions.

A free-form tool takes raw text, often code or a patch. A provider without such tools gets a
function with one string, `input`, that holds it; its JSON arguments become the raw text again as
they stream. A model may also answer with something else than `{"input": "…"}`: then nothing comes
out before the end, where all of it is there to choose from.
"""

from __future__ import annotations

import re

import msgspec

from adapters.canonical import Grammar, Tool
from adapters.characters import REPLACEMENT, joined, whole

_KEY = "input"
_HEAD = '{"input":"'
_GAPS = frozenset((0, 1, _HEAD.index(":"), len(_HEAD) - 1))  # where white space may stand
_WHITE_SPACE = " \t\r\n"

_TOKEN = re.compile(r'([^"\\]+)|\\u([0-9a-fA-F]{4})|\\([^u])|(")', re.DOTALL)
_CUT_ESCAPE = re.compile(r"\\(?:u[0-9a-fA-F]{0,3})?")
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", '"': '"', "\\": "\\", "/": "/"}

_decode = msgspec.json.Decoder().decode
_UNREADABLE = (msgspec.MsgspecError, UnicodeError, RecursionError)


class Unwrapper:
    """The raw text in the JSON arguments of one call, as they arrive."""

    __slots__ = ("_half", "_matched", "_other", "_pieces", "_rest", "_value")

    def __init__(self) -> None:
        self._matched = 0  # how much of `_HEAD` was seen
        self._value = False  # inside the string that is wanted
        self._other = False  # the arguments are something else: wait for all of them
        self._pieces: list[str] = []  # all of them, until the value begins
        self._rest = ""  # an escape that is not complete
        self._half = ""  # of a character

    def feed(self, piece: str) -> str:
        """The raw text that `piece` adds."""
        if self._value:
            return self._unescaped(piece)
        if self._matched == len(_HEAD):
            return ""  # behind the value
        self._pieces.append(piece)
        if self._other:
            return ""
        begin = self._match(piece)
        return "" if begin is None else self._unescaped(piece[begin:])

    def close(self) -> str:
        """What is left to add when the arguments are complete, or were cut."""
        if self._matched == len(_HEAD):
            return REPLACEMENT if self._half else ""
        return whole(_fallback("".join(self._pieces))) if self._other else ""

    def _match(self, piece: str) -> int | None:
        """Compare with the head; where the value begins in `piece`, if it does."""
        for at, character in enumerate(piece):
            if character == _HEAD[self._matched]:
                self._matched += 1
                if self._matched == len(_HEAD):
                    self._value = True
                    self._pieces.clear()
                    return at + 1
            elif character not in _WHITE_SPACE or self._matched not in _GAPS:
                self._other = True
                break
        return None

    def _unescaped(self, piece: str) -> str:
        text = self._rest + piece
        self._rest = ""
        out: list[str] = []
        at = 0
        while at < len(text):
            token = _TOKEN.match(text, at)
            if token is None:
                if _CUT_ESCAPE.fullmatch(text, at):
                    self._rest = text[at:]
                    break
                out.append("\\")  # no escape: the model wrote a bare backslash
                at += 1
                continue
            at = token.end()
            plain, code, escape, _ = token.groups()
            if plain is not None:
                out.append(plain)
            elif code is not None:
                out.append(chr(int(code, 16)))
            elif escape is not None:
                out.append(_ESCAPES.get(escape, "\\" + escape))
            else:
                self._value = False
                break
        raw, self._half = joined(self._half, "".join(out))
        return raw


def _fallback(text: str) -> str:
    """The raw text in arguments of another form: their only string, else all of them."""
    try:
        value = _decode(text.encode())
    except _UNREADABLE:
        return text
    if isinstance(value, dict):
        if not value:
            return ""
        wanted = value.get(_KEY)
        strings = [item for item in value.values() if isinstance(item, str)]
        if isinstance(wanted, str):
            return wanted
        return strings[0] if len(strings) == len(value) == 1 else text
    return value if isinstance(value, str) else text


def parameters(tool: Tool) -> dict[str, object]:
    """The JSON Schema of a free-form tool as a function."""
    text: dict[str, object] = {"type": "string"}
    if tool.grammar is not None:
        text["description"] = _grammar_in_words(tool.grammar)
    return {
        "type": "object",
        "properties": {_KEY: text},
        "required": [_KEY],
        "additionalProperties": False,
    }


def description(tool: Tool) -> str:
    """The description of a free-form tool as a function."""
    note = f"Put the raw text into `{_KEY}`: it is not parsed, and needs no further quoting."
    return f"{tool.description}\n\n{note}" if tool.description else note


def arguments(text: str) -> str:
    """The JSON arguments that stand for a free-form call in the history."""
    return msgspec.json.encode({_KEY: whole(text)}).decode()


def _grammar_in_words(grammar: Grammar) -> str:
    return f"Must match this {grammar.syntax} grammar:\n{grammar.definition}"
