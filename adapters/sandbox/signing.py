"""The sandbox's signatures: only it can check them, as with a real provider's.

They are keyed hashes of who signed what. The key is no secret: nothing but the sandbox asks.
"""

from __future__ import annotations

import hashlib
import hmac
from base64 import b64decode, b64encode

_KEY = b"farebox sandbox"
_NONCE_BYTES = 12
_URL_SAFE = str.maketrans("-_", "+/")


def sign(name: str, *what: str) -> str:
    """A signature of `what`; `name` makes it different from others of the same."""
    nonce = hashlib.sha256(name.encode()).digest()[:_NONCE_BYTES]
    return b64encode(nonce + _mac(nonce, what)).decode()


def is_signed(signature: str, *what: str) -> bool:
    """Whether `sign` made it for `what`; in either alphabet of base64, padded or not."""
    try:
        raw = b64decode(signature.translate(_URL_SAFE) + "=" * (-len(signature) % 4))
    except ValueError:
        return False
    nonce = raw[:_NONCE_BYTES]
    return hmac.compare_digest(raw[_NONCE_BYTES:], _mac(nonce, what))


def _mac(nonce: bytes, what: tuple[str, ...]) -> bytes:
    return hmac.new(_KEY, b"\0".join([nonce, *(each.encode() for each in what)]), "sha256").digest()
