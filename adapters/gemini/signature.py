"""The slot for signatures in Gemini's parts: bytes, written as base64.

Google's Python SDK decodes what it gets and encodes it again in the URL-safe alphabet, so what
comes back is looked at as bytes, in either alphabet and with or without padding.
"""

from __future__ import annotations

from base64 import b64decode, b64encode

from adapters.canonical import Blob
from adapters.envelope import Envelopes, is_sealed

SKIP_VALIDATION = "skip_thought_signature_validator"
"""What Google takes in place of a signature for a call that it did not make."""

_PREFIX = "ZmIx"  # how all envelopes begin in base64
_URL_SAFE = str.maketrans("-_", "+/")


def encoded(envelope: str) -> str:
    """An envelope for the slot."""
    return b64encode(envelope.encode()).decode()


def sealed_in(value: str) -> str:
    """The envelope in a slot; empty where something else is in it."""
    if not value.startswith(_PREFIX):
        return ""
    plain = value.translate(_URL_SAFE).rstrip("=")
    try:
        text = b64decode(plain + "=" * (-len(plain) % 4), validate=True).decode()
    except ValueError:
        return ""
    return text if is_sealed(text) else ""


def blob_in(value: str, envelopes: Envelopes) -> Blob | None:
    """What was sealed into a slot here for this account; None for anything else."""
    envelope = sealed_in(value)
    return envelopes.open(envelope) if envelope else None
