"""What the scripts go by: a request, whatever its protocol.

The countable rule of the prompt: the bytes of its texts divided by four and rounded up, and four
for each message (Responses: item), of which the system's instructions are one. Pictures are counted
by OpenAI alone, which tells the figure last (`pictures`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from adapters.sandbox.script import Json

_TOKENS_PER_MESSAGE = 4
_BYTES_PER_TOKEN = 4

Speaker = Literal["system", "user", "assistant", "result"]


@dataclass(frozen=True, slots=True)
class Said:
    """One speaker's words. Neighbours of one speaker are one turn."""

    speaker: Speaker
    text: str = ""


@dataclass(frozen=True, slots=True)
class Tool:
    """Something that can be called: with arguments of a shape, or `free` with any text."""

    name: str
    parameters: Json | None = None
    free: bool = False
    namespace: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One request.

    `tools` are those that may be called, all at once where `parallel`; `shape` is what the answer
    has to look like. `name` tells requests apart, for ids. A model that reasons does so where it
    `may_reason`, and any model where it `must_reason`.
    """

    model: str
    name: str
    said: Sequence[Said]
    messages: int
    prompt_tokens: int
    stream: bool = False
    cap: int | None = None
    stop: Sequence[str] = ()
    tools: Sequence[Tool] = ()
    parallel: bool = True
    shape: Json | None = None
    must_reason: bool = False
    may_reason: bool = True

    @property
    def last_text(self) -> str:
        """What was said last."""
        return self.said[-1].text if self.said else ""

    @property
    def brings_results(self) -> bool:
        """Whether the last turn has the results of calls."""
        for each in reversed(self.said):
            if each.speaker == "result":
                return True
            if each.speaker == "assistant":
                break
        return False


def text_tokens(texts: Iterable[str]) -> int:
    """The bytes of `texts` in tokens."""
    return -(-sum(len(text.encode()) for text in texts) // _BYTES_PER_TOKEN)


def prompt_tokens(said: Iterable[Said], messages: int) -> int:
    """What the prompt counts."""
    return text_tokens(each.text for each in said) + _TOKENS_PER_MESSAGE * messages


def name_of(body: bytes) -> str:
    """The part of ids that tells answers apart: the same request has the same."""
    return hashlib.sha256(body).hexdigest()[:24]
