"""Characters that were cut in halves.

JSON writes a character beyond U+FFFF as two escapes, a surrogate pair; some servers cut their
deltas between the two. Half a character cannot be encoded, so nothing may leave with one: `Joiner`
holds the first half back until the second comes, and puts U+FFFD where it never does.
"""

from __future__ import annotations

import re

_SURROGATE = re.compile("[\ud800-\udfff]")
_HIGH, _HIGH_LAST = "\ud800", "\udbff"
REPLACEMENT = "�"


class Joiner:
    """One text that arrives in pieces. What comes out can always be encoded."""

    __slots__ = ("_half",)

    def __init__(self) -> None:
        self._half = ""  # a first half that waits

    def feed(self, piece: str) -> str:
        """What can be let out after `piece`; sometimes nothing."""
        if piece.isascii() and not self._half:
            return piece
        text = self._half + piece
        self._half = ""
        if text and _HIGH <= text[-1] <= _HIGH_LAST:
            text, self._half = text[:-1], text[-1]
        return whole(text)

    def close(self) -> str:
        """What stands for a half that was left alone."""
        left, self._half = self._half, ""
        return REPLACEMENT if left else ""


def whole(text: str) -> str:
    """`text` with its halves joined, and lonely ones replaced."""
    if text.isascii() or _SURROGATE.search(text) is None:
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
