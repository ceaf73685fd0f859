"""JSON values that were not decoded, and what decoding one may raise.

Much of a body is only measured, or passed on as it came; it is looked at here by its bytes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import msgspec

# What reading a value of somebody else's may raise, whatever its type: no more, and no less.
UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)

_decode_items = msgspec.json.Decoder(list[msgspec.Raw]).decode
# 0-9, A-Z, _ and a-z. Encoders escape what is unsafe in HTML, and what is not ASCII.
_HIDDEN = re.compile(rb"\\u00(?:3[0-9]|4[1-9a-f]|5[0-9af]|6[1-9a-f]|7[0-9a])", re.IGNORECASE)


def hides_words(raw: msgspec.Raw | bytes) -> bool:
    """Whether a word in a value may be written so that no search for its bytes finds it.

    No encoder escapes a letter: it is the wish of somebody who expects to be searched.
    """
    return _HIDDEN.search(memoryview(raw)) is not None


def kept(members: Mapping[str, msgspec.Raw]) -> dict[str, msgspec.Raw]:
    """The same members, without the body that they were read from: a value is a view of it."""
    return {name: raw.copy() for name, raw in members.items()}


def begins(raw: msgspec.Raw, opening: bytes) -> bool:
    """Whether a value begins with this byte: its type."""
    return bytes(memoryview(raw)[:1]) == opening


def count_items(raw: msgspec.Raw | None) -> int:
    """How many items a list has; 0 for what is none."""
    try:
        return 0 if raw is None else len(_decode_items(raw))
    except UNREADABLE:
        return 0
