"""Tokens that let somebody in: sessions, sign-in links, invitations.

256 random bits each, shown once, and kept only as a hash: a copy of the database opens nothing. The
hash needs no key and no salt, since nobody can guess what it is made of.
"""

from __future__ import annotations

import hashlib
import secrets

TOKEN_BYTES = 32


def mint() -> str:
    """A new token, of characters that may stand in a path or a cookie."""
    return secrets.token_urlsafe(TOKEN_BYTES)


def hash_of(token: str) -> bytes:
    """The 32 bytes under which a token is stored and found."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
