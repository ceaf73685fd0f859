"""Signed reasoning on its way through clients that know nothing of it.

A provider's signature is only good at that provider. Handed to a client of another protocol it
travels sealed in whatever opaque slot that protocol has, and comes back with the conversation;
nothing is kept here. The seal says where it is from and binds it to the account, so that nobody
can make a provider look at a blob of their own making under our key, or replay another's.

Form: `fb1.` + base64url of a JSON list [provider, family, kind, value] + `.` + base64url of 16
bytes of keyed BLAKE2b over account and payload. Safe in JSON, headers, and tool ids.
"""

from __future__ import annotations

import hashlib
import hmac
from base64 import b64decode, urlsafe_b64encode

import msgspec

from adapters.canonical import Blob

_PREFIX = "fb1."
# A body without any of these holds no envelope: as it is, and in base64 (Gemini's slot is bytes).
MARKS = (_PREFIX.encode(), b"ZmIxL")
_PERSON = b"fb envelope"
_MAC_BYTES = 16
_VALUE_CHARACTERS_MAX = 4 * 1024 * 1024


class Envelopes:
    """Seals and opens for one account. `secret` is the deployment's, 32 bytes."""

    __slots__ = ("_account", "_secret")

    def __init__(self, secret: bytes, account: str | int) -> None:
        self._secret = secret
        self._account = account

    def seal(self, blob: Blob) -> str:
        """A signature for a client of another protocol."""
        payload = urlsafe_b64encode(
            msgspec.json.encode([blob.provider, blob.family, blob.kind, blob.value])
        ).rstrip(b"=")
        return f"{_PREFIX}{payload.decode()}.{self._mac(payload)}"

    def open(self, text: str) -> Blob | None:
        """What was sealed here for this account; None for anything else."""
        if not is_sealed(text) or len(text) > _VALUE_CHARACTERS_MAX:
            return None
        payload, dot, mac = text[len(_PREFIX) :].partition(".")
        if not dot or not payload.isascii() or not mac.isascii():
            return None
        if not hmac.compare_digest(mac, self._mac(payload.encode())):
            return None
        provider, family, kind, value = msgspec.json.decode(_bytes_of(payload))
        return Blob(provider, family, kind, value)

    def _mac(self, payload: bytes) -> str:
        digest = hashlib.blake2b(
            f"{self._account}\0".encode() + payload,
            key=self._secret,
            digest_size=_MAC_BYTES,
            person=_PERSON,
        )
        return urlsafe_b64encode(digest.digest()).rstrip(b"=").decode()


def is_sealed(text: str) -> bool:
    """Whether a value looks like one of ours: no provider of its own would know it."""
    return text.startswith(_PREFIX)


def _bytes_of(payload: str) -> bytes:
    return b64decode(payload + "=" * (-len(payload) % 4), altchars=b"-_", validate=True)
