"""JSON values that were not decoded, and what decoding one may raise.

Much of a body is only measured, or passed on as it came; it is looked at here by its bytes.
"""

from __future__ import annotations

import msgspec

# What reading a value of somebody else's may raise, whatever its type: no more, and no less.
UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)

_decode_items = msgspec.json.Decoder(list[msgspec.Raw]).decode


def size_of(raw: msgspec.Raw | bytes) -> int:
    """How many bytes a value has."""
    return len(memoryview(raw))


def begins(raw: msgspec.Raw, opening: bytes) -> bool:
    """Whether a value begins with this byte: its type."""
    return bytes(memoryview(raw)[:1]) == opening


def count_items(raw: msgspec.Raw | None) -> int:
    """How many items a list has; 0 for what is none."""
    try:
        return 0 if raw is None else len(_decode_items(raw))
    except UNREADABLE:
        return 0
