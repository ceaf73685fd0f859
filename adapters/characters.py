"""Characters that were cut in halves.

JSON writes a character beyond U+FFFF as two escapes, a surrogate pair; some servers cut their
deltas between the two. Half a character cannot be encoded, so none may leave: the first half waits
for the second, and becomes U+FFFD where that never comes.
"""

from __future__ import annotations

import json
import re
from typing import TypeVar

import msgspec

T = TypeVar("T")

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"

_SURROGATE = re.compile("[\ud800-\udfff]")
_ESCAPED_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_FIRST_HALF, _LAST_FIRST_HALF = "\ud800", "\udbff"


def joined(half: str, piece: str) -> tuple[str, str]:
    """The text of a half that waited and the piece behind it, and the half that waits now.

    At the end of the text, `REPLACEMENT` stands for a half that still waits.
    """
    text = half + piece
    if text and _FIRST_HALF <= text[-1] <= _LAST_FIRST_HALF:
        return whole(text[:-1]), text[-1]
    return whole(text), ""


def whole(text: str) -> str:
    """`text` with its halves joined, and lonely ones replaced."""
    if text.isascii() or _SURROGATE.search(text) is None:
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def decode(decoder: msgspec.json.Decoder[T], data: bytes) -> T:
    """What `decoder` reads, also where strings in it hold half a character, which it refuses.

    Raises msgspec.MsgspecError. A type with raw members cannot be read with halves.
    """
    try:
        return decoder.decode(data)
    except msgspec.DecodeError:
        if _ESCAPED_SURROGATE.search(data) is None:
            raise
        return _decoded_with_halves(decoder.type, data)


def _decoded_with_halves(type: type[T], data: bytes) -> T:  # noqa: A002
    try:
        value: object = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise msgspec.DecodeError(str(error)) from None
    try:
        return msgspec.convert(value, type)
    except UnicodeEncodeError as error:  # a half where the type has a raw member
        raise msgspec.DecodeError(str(error)) from None
