"""What the clients of the chaos run ask, so that the right answer is known word for word.

Each question asks `sandbox-echo-slow` for so many words, each of which has the question's own nonce
and its place. A word too few, a word twice, or a word of somebody else's answer cannot be taken for
right, whoever wrote it and however often it was tried.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from typing import Literal

Surface = Literal["chat", "messages"]

MODEL = "m"
WORDS = (30, 200)
# One in five speaks the protocol of the last group's provider, the others that of the first's.
_SURFACES: tuple[Surface, ...] = ("chat", "chat", "chat", "chat", "messages")


@dataclass(frozen=True, slots=True)
class Question:
    """One request, and the only text that answers it."""

    nonce: str
    surface: Surface
    words: int

    @property
    def expected(self) -> str:
        return " ".join(f"{self.nonce}-{number}" for number in range(1, self.words + 1))

    @property
    def path(self) -> str:
        return "/v1/chat/completions" if self.surface == "chat" else "/v1/messages"

    def body(self) -> bytes:
        """The request, streamed."""
        fields: dict[str, object] = {
            "model": MODEL,
            "stream": True,
            "max_tokens": 1000,
            "messages": [{"role": "user", "content": f"echo {self.words} {self.nonce}"}],
        }
        if self.surface == "chat":
            fields["stream_options"] = {"include_usage": True}
        return json.dumps(fields).encode()


def question(dice: random.Random) -> Question:
    """The next one."""
    return Question(f"{dice.getrandbits(48):012x}", dice.choice(_SURFACES), dice.randint(*WORDS))
