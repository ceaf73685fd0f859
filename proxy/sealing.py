"""Sealing what has to be kept, so that it is worth nothing without the project's key.

Each project has a random 256-bit key. It is stored wrapped: sealed under a key that is derived from
the deployment's secret. Content is compressed, then sealed with AES-256-GCM under a random 96-bit
nonce (fit for 2^32 contents of a project), and bound to its context: what it is and whose. Sealed
bytes are nonce, ciphertext, tag.
"""

from __future__ import annotations

import hashlib
import os
import zlib

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

_KEY_BYTES = 32
_NONCE_BYTES = 12
_SECRET_ID_BYTES = 8
_WRAPPING = b"fb project keys"
_FINGERPRINT = b"fb secret id"
_COMPRESSION = 1  # halves JSON and more, at ten times the speed of the thorough levels


class Unreadable(Exception):
    """Sealed under another key or for another context, or damaged."""


class ProjectKey:
    """Seals and opens the content of one project."""

    __slots__ = ("_cipher",)

    def __init__(self, key: bytes) -> None:
        self._cipher = AESGCM(key)

    def seal(self, content: bytes, context: bytes) -> bytes:
        """Only the same key and context open it again."""
        return _encrypt(self._cipher, zlib.compress(content, _COMPRESSION), context)

    def open(self, sealed: bytes, context: bytes) -> bytes:
        """What was sealed. Raises Unreadable."""
        return zlib.decompress(_decrypt(self._cipher, sealed, context))


class Wrapping:
    """The deployment's secret, as the guard of project keys.

    `secret_id` tells secrets apart and nothing about them.
    """

    __slots__ = ("_cipher", "secret_id")

    def __init__(self, secret: bytes) -> None:
        self._cipher = AESGCM(_derived(secret, _WRAPPING, _KEY_BYTES))
        self.secret_id = _derived(secret, _FINGERPRINT, _SECRET_ID_BYTES)

    def new_key(self, project_id: int) -> bytes:
        """A key for a project, wrapped."""
        return _encrypt(self._cipher, os.urandom(_KEY_BYTES), _project(project_id))

    def unwrap(self, wrapped: bytes, project_id: int) -> ProjectKey:
        """The project's key. Raises Unreadable."""
        return ProjectKey(_decrypt(self._cipher, wrapped, _project(project_id)))


def _derived(secret: bytes, purpose: bytes, size: int) -> bytes:
    return hashlib.blake2b(key=secret, person=purpose, digest_size=size).digest()


def _project(project_id: int) -> bytes:
    return b"project %d" % project_id


def _encrypt(cipher: AESGCM, content: bytes, context: bytes) -> bytes:
    nonce = os.urandom(_NONCE_BYTES)
    return nonce + cipher.encrypt(nonce, content, context)


def _decrypt(cipher: AESGCM, sealed: bytes, context: bytes) -> bytes:
    try:
        return cipher.decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], context)
    except (InvalidTag, ValueError):  # ValueError: too short for a nonce
        raise Unreadable("this is not sealed with this key for this use") from None
