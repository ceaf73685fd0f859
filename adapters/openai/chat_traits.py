"""What models behind OpenAI's protocols take and refuse, by their names.

They have members that only some of the models know, and no way to ask. Where a client of the
protocol itself sends them, the provider may answer with a 400; a client of another protocol
cannot know of it, so a translation leaves out what the model is not known to take.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from adapters.canonical import Effort
from adapters.codec import Target


class Traits(NamedTuple):
    """`efforts` are those that the model knows; `sampling`: it takes temperature, penalties and
    stop sequences. `breakpoints`: marks in the prompt for its cache. `reasoning`: it wants the
    reasoning of earlier turns as text."""

    efforts: Sequence[Effort] = ()
    sampling: bool = True
    verbosity: bool = False
    breakpoints: bool = False
    reasoning: bool = False


_LOW_TO_HIGH: Sequence[Effort] = ("low", "medium", "high")
_GPT_5: Sequence[Effort] = ("minimal", *_LOW_TO_HIGH)
_GPT_5_1: Sequence[Effort] = ("none", *_LOW_TO_HIGH)
_GPT_5_2: Sequence[Effort] = (*_GPT_5_1, "xhigh")
_GPT_5_6: Sequence[Effort] = (*_GPT_5_2, "max")
_ON_OR_OFF: Sequence[Effort] = ("none", "high")

# The first pattern that is found in a name counts.
_TRAITS: Sequence[tuple[re.Pattern[str], Traits]] = tuple(
    (re.compile(pattern), traits)
    for pattern, traits in (
        (r"^gpt-5\S*-chat", Traits()),
        (r"^gpt-5(?:-|$)", Traits(_GPT_5, sampling=False, verbosity=True)),
        (r"^gpt-5\.1\b", Traits(_GPT_5_1, sampling=False, verbosity=True)),
        (r"^gpt-5\.[2-5]\b", Traits(_GPT_5_2, sampling=False, verbosity=True)),
        (
            r"^gpt-(?:5\.|[6-9]|\d\d)",
            Traits(_GPT_5_6, sampling=False, verbosity=True, breakpoints=True),
        ),
        (r"^o1-(?:mini|preview)", Traits(sampling=False)),
        (r"^(?:o\d|codex)", Traits(_LOW_TO_HIGH, sampling=False)),
        (r"^gpt-oss", Traits(_LOW_TO_HIGH, reasoning=True)),
        (r"^grok-3-mini", Traits(("low", "high"))),
        (r"^gemini-(?:2\.5|[3-9])", Traits(_GPT_5)),
        (r"^(?:magistral|mistral-(?:medium|small)-[3-9])", Traits(_ON_OR_OFF)),
        (r"deepseek|kimi|glm|minimax|mimo", Traits(reasoning=True)),
    )
)
_UNKNOWN = Traits()


def cap_field(target: Target) -> str:
    """The name under which a cap is obeyed: compatible servers know the older one, and OpenAI's
    reasoning models refuse that wherever they are reached."""
    if not traits_of(target.model).sampling:
        return "max_completion_tokens"
    return target.provider.output_cap_field


@lru_cache(maxsize=1024)
def traits_of(model: str) -> Traits:
    """The traits of a provider's model; those of none in particular where it is not known."""
    name = model.rpartition("/")[2].lower()
    return next((traits for pattern, traits in _TRAITS if pattern.search(name)), _UNKNOWN)
