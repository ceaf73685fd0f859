"""What is expected of a request's input, said outright."""

from __future__ import annotations

from adapters.canonical import Usage
from adapters.codec import Expected
from adapters.estimate import counted_tokens


def text_of(text_bytes: int) -> Expected:
    """So much text, and nothing else."""
    return lambda: Usage(input_tokens=counted_tokens(text_bytes))
