"""Whether a JSON value that arrives in pieces is complete, without parsing it.

Only quotes, escapes and brackets count, so each piece is looked at once and nothing is kept.
"""

from __future__ import annotations

import re

_MARKS = re.compile(r'\\.?|["{}\[\]]', re.DOTALL)
_OPENING = ("{", "[")
_CLOSING = ("}", "]")


class Nesting:
    """How deep inside objects, lists and strings one value is."""

    __slots__ = ("_begun", "_depth", "_escaped", "_string")

    def __init__(self) -> None:
        self._begun = False
        self._depth = 0
        self._string = False  # inside one
        self._escaped = False  # the next character belongs to an escape

    @property
    def complete(self) -> bool:
        """Whether an object, list or string began, and nothing is open any more."""
        return self._begun and self._depth <= 0 and not self._string

    def feed(self, piece: str) -> None:
        """Look at a piece, which is not empty."""
        mark = ""
        for mark in _MARKS.findall(piece, 1 if self._escaped else 0):
            if self._string:
                self._string = mark != '"'
            elif mark == '"':
                self._begun = self._string = True
            elif mark in _OPENING:
                self._begun = True
                self._depth += 1
            elif mark in _CLOSING:
                self._depth -= 1
        self._escaped = mark == "\\"
