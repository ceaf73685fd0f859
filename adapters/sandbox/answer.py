"""What a model writes: thoughts, text, calls and refusals, in pieces of a token each."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from adapters.sandbox.asked import Tool
from adapters.sandbox.script import encode

Finish = Literal["end", "calls", "length", "stop", "filter"]

_FRAGMENT = re.compile(r".{1,8}", re.DOTALL)
_WORD = re.compile(r"\s*\S+|\s+")


@dataclass(frozen=True, slots=True)
class Thought:
    """What was thought before; `hidden` where not even its reader may see it."""

    pieces: Sequence[str]
    hidden: bool = False


@dataclass(frozen=True, slots=True)
class Text:
    """What is said."""

    pieces: Sequence[str]


@dataclass(frozen=True, slots=True)
class Call:
    """A call of a tool; the pieces are of its arguments, or of the text that it takes."""

    tool: Tool
    pieces: Sequence[str]


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why nothing is said."""

    pieces: Sequence[str]


Part = Thought | Text | Call | Refusal


def joined(part: Part) -> str:
    """The whole of a part."""
    return "".join(part.pieces)


@dataclass(frozen=True, slots=True)
class Answer:
    """The parts in their order, and why they end there. `stopped_by` is the stop sequence."""

    parts: Sequence[Part] = field(default=())
    finish: Finish = "end"
    stopped_by: str = ""

    @property
    def tokens(self) -> int:
        """All pieces."""
        return sum(len(part.pieces) for part in self.parts)

    @property
    def thought_tokens(self) -> int:
        """The pieces of thoughts."""
        return sum(len(part.pieces) for part in self.parts if isinstance(part, Thought))

    @property
    def calls(self) -> Sequence[Call]:
        """The calls among the parts."""
        return [part for part in self.parts if isinstance(part, Call)]

    def within(self, cap: int) -> Answer:
        """As much of it as `cap` tokens allow."""
        if self.tokens <= cap:
            return self
        return Answer(tuple(_first(self.parts, cap)), "length")

    def until(self, stops: Sequence[str]) -> Answer:
        """What comes before the first of `stops` in a text; nothing else has stops."""
        for index, part in enumerate(self.parts):
            text = joined(part)
            found = [(text.find(stop), stop) for stop in stops if stop and stop in text]
            if found and isinstance(part, Text):
                at, stop = min(found)
                kept = (*self.parts[:index], Text(words(text[:at])))
                return Answer(tuple(each for each in kept if each.pieces), "stop", stop)
        return self


def _first(parts: Sequence[Part], cap: int) -> Iterator[Part]:
    for part in parts:
        if cap <= 0:
            return
        yield replace(part, pieces=part.pieces[:cap])
        cap -= len(part.pieces)


def words(text: str) -> Sequence[str]:
    """A text in pieces."""
    return _WORD.findall(text)


def fragments(value: object) -> Sequence[str]:
    """A value as JSON, in pieces."""
    return _FRAGMENT.findall(encode(value).decode())
