"""Tokens without a tokenizer: counts for answers that came without usage."""

from __future__ import annotations

_BYTES_PER_TOKEN = 4


def counted_tokens(text_bytes: int) -> int:
    """Our count for text whose provider does not say: four bytes a token, rounded up.

    Good enough for English; other languages and code have fewer bytes a token, where it errs in
    the customer's favour.
    """
    return -(-text_bytes // _BYTES_PER_TOKEN)
