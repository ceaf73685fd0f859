"""The slot for signatures in Gemini's parts: bytes, written as base64.

Google's Python SDK decodes what it gets and encodes it again in the URL-safe alphabet, so what
comes back is looked at as bytes, in either alphabet and with or without padding.

A provider that signs its thoughts wants them back with the signature. Where the client does not
want to see them, they travel in the same slot, behind the envelope.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from typing import NamedTuple

from adapters.canonical import Thinking
from adapters.envelope import Envelopes, is_sealed

SKIP_VALIDATION = "skip_thought_signature_validator"
"""What Google takes in place of a signature for a call that it did not make."""

_PREFIX = "ZmIx"  # how all envelopes begin in base64
_SEPARATOR = "\n"  # in no envelope
_URL_SAFE = str.maketrans("-_", "+/")


class Sealed(NamedTuple):
    """What is in a slot: an envelope, and the thought that it signs where that is nowhere else."""

    envelope: str
    thought: str


def encoded(sealed: Sealed) -> str:
    """An envelope for the slot."""
    text = _SEPARATOR.join(sealed) if sealed.thought else sealed.envelope
    return b64encode(text.encode()).decode()


def sealed_in(value: str) -> Sealed | None:
    """What was put into a slot here, unchecked; None where something else is in it."""
    if not value.startswith(_PREFIX):
        return None
    plain = value.translate(_URL_SAFE).rstrip("=")
    try:
        text = b64decode(plain + "=" * (-len(plain) % 4), validate=True).decode()
    except ValueError:
        return None
    envelope, _, thought = text.partition(_SEPARATOR)
    return Sealed(envelope, thought) if is_sealed(envelope) else None


def signed_thought(value: str, envelopes: Envelopes) -> Thinking | None:
    """What was sealed into a slot here for this account; None for anything else."""
    sealed = sealed_in(value)
    blob = envelopes.open(sealed.envelope) if sealed is not None else None
    if sealed is None or blob is None:
        return None
    return Thinking(text=sealed.thought, blob=blob)
