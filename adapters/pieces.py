"""A request's body on its way to a provider, without a copy of what is large in it.

Images and long prompts stay where they were read: a member that is larger than a socket takes at
once is a piece of its own, between those that are written anew. Joined, the pieces are the bytes
that encoding all members would make.
"""

from __future__ import annotations

import msgspec

PIECE_BYTES = 65_536
"""A member of more is not copied."""

Body = bytes | tuple[bytes | memoryview, ...]
"""As one, or in the order in which its pieces are sent."""

_NULL = msgspec.Raw(b"null")
_AFTER_LARGE = len(b"null}")
_encode = msgspec.json.encode


def encoded(fields: dict[str, msgspec.Raw], body_bytes: int) -> Body:
    """A JSON object with these members; `body_bytes` is about how large they are."""
    if body_bytes <= PIECE_BYTES:
        return _encode(fields)
    pieces: list[bytes | memoryview] = []
    opening, small = b"{", dict[str, msgspec.Raw]()
    for name, raw in fields.items():
        if len(raw) <= PIECE_BYTES:
            small[name] = raw
            continue
        small[name] = _NULL
        pieces += (opening + _encode(small)[1:-_AFTER_LARGE], memoryview(raw))
        opening, small = b",", {}
    if not pieces:
        return _encode(fields)
    pieces.append(opening + _encode(small)[1:] if small else b"}")
    return tuple(pieces)


def length_of(body: Body) -> int:
    """How many bytes are sent."""
    return len(body) if isinstance(body, bytes) else sum(map(len, body))
