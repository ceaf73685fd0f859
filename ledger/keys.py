"""API keys: how they look, how they are made, and the only form in which they are kept.

`sk_<brand>_<36 random characters><6 characters of checksum>`, in base 62 (digits, then upper, then
lower case), so that a double click selects all of it. The checksum is the CRC-32 of all before it:
whoever scans for leaked secrets can tell a real key from a string like it without asking anybody.
"""

from __future__ import annotations

import hashlib
import secrets
import string
import zlib

ALPHABET = string.digits + string.ascii_uppercase + string.ascii_lowercase
RANDOM_CHARACTERS = 36  # 214 bits
CHECKSUM_CHARACTERS = 6  # 62**6 > 2**32


def mint(brand: str) -> str:
    """A new key. It is shown once: only its `keyed_hash` may be stored."""
    body = "".join(secrets.choice(ALPHABET) for _ in range(RANDOM_CHARACTERS))
    start = f"sk_{brand}_{body}"
    return start + _checksum(start)


def of_session(brand: str, secret: bytes, token: str, project_id: int) -> str:
    """The key of a console session in a project: whoever has the session's token and our secret
    finds it again, so that it is kept nowhere. A copy of the database alone tells nothing of it."""
    text = f"{project_id} {token}".encode("utf-8", "surrogatepass")
    digest = hashlib.blake2b(text, key=secret, person=b"session key").digest()
    number = int.from_bytes(digest, "big")
    characters = []
    for _ in range(RANDOM_CHARACTERS):
        number, digit = divmod(number, len(ALPHABET))
        characters.append(ALPHABET[digit])
    start = f"sk_{brand}_{''.join(characters)}"
    return start + _checksum(start)


def is_minted(text: str) -> bool:
    """Whether it has the checksum of a key, of whatever brand."""
    start, checksum = text[:-CHECKSUM_CHARACTERS], text[-CHECKSUM_CHARACTERS:]
    return start.startswith("sk_") and _checksum(start) == checksum


def keyed_hash(secret: bytes, key: str) -> bytes:
    """The 32 bytes under which a key is stored and found (keyed BLAKE2b, RFC 7693).

    A copy of the database alone lets nobody test guesses, and a changed secret ends every key.
    """
    return hashlib.blake2b(key.encode(), key=secret, digest_size=32).digest()


def secret_mark(secret: bytes) -> bytes:
    """32 bytes that tell whether two secrets are the same, and nothing else of them."""
    return hashlib.blake2b(key=secret, person=b"secret mark", digest_size=32).digest()


def _checksum(text: str) -> str:
    number = zlib.crc32(text.encode())
    digits = []
    for _ in range(CHECKSUM_CHARACTERS):
        number, digit = divmod(number, len(ALPHABET))
        digits.append(ALPHABET[digit])
    return "".join(reversed(digits))
