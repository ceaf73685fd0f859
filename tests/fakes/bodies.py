"""A request's body as its provider reads it."""

from __future__ import annotations

from adapters.pieces import Body


def whole(body: Body) -> bytes:
    """All its pieces together."""
    return body if isinstance(body, bytes) else b"".join(body)
