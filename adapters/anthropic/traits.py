"""What is known of the models by their names: what each takes, and what it answers with a 400.

Claude's versions decide; the name says class and version in any order, with dots or dashes, and
with whatever a reseller puts around it. A Claude without a version that we can read is taken for a
new one. Other names are those of servers that speak the protocol for models of their own: they
know its older form.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Literal, NamedTuple

from adapters.canonical import Effort

OLD_VERSION = "2023-06-01"
NEW_VERSION = "2026-10-21"

_LOW: tuple[Effort, ...] = ("low", "medium", "high")
_MAX: tuple[Effort, ...] = (*_LOW, "max")
_XHIGH: tuple[Effort, ...] = (*_LOW, "xhigh", "max")


class Traits(NamedTuple):
    """One model. `thinking` is how it is told to think: not at all, by a budget, or by an effort
    while it decides for itself; `always_thinks`: even if told not to. Of `temperature_and_top_p`
    some take only one. `system_turns`: instructions in the middle of a conversation."""

    thinking: Literal["", "manual", "adaptive"] = "adaptive"
    efforts: tuple[Effort, ...] = _XHIGH
    always_thinks: bool = False
    sampling: bool = False
    temperature_and_top_p: bool = False
    prefill: bool = False
    system_turns: bool = True
    structured: bool = True

    @property
    def version(self) -> str:
        """The protocol's version for what we write ourselves."""
        return OLD_VERSION if self.sampling else NEW_VERSION


class _Since(NamedTuple):
    """What a version brought; later rows build on earlier ones."""

    version: tuple[int, int]
    traits: Traits


_OTHERS = Traits(
    thinking="manual",
    efforts=(),
    sampling=True,
    temperature_and_top_p=True,
    prefill=True,
    system_turns=False,
    structured=True,
)
_FIRST = _OTHERS._replace(thinking="", temperature_and_top_p=False, structured=False)
_MANUAL = _FIRST._replace(thinking="manual")
_STRUCTURED = _MANUAL._replace(structured=True)
_BOTH = _STRUCTURED._replace(
    thinking="adaptive", efforts=_MAX, prefill=False, temperature_and_top_p=True
)
_ADAPTIVE = _BOTH._replace(efforts=_XHIGH, sampling=False)
_NEWEST = _ADAPTIVE._replace(system_turns=True)
_ALWAYS_THINKS = _NEWEST._replace(always_thinks=True)

_HISTORY = (
    _Since((0, 0), _FIRST),
    _Since((3, 7), _MANUAL),
    _Since((4, 5), _STRUCTURED),
    _Since((4, 6), _BOTH),
    _Since((4, 7), _ADAPTIVE),
    _Since((4, 8), _NEWEST),
)
_ALWAYS_THINKING_CLASSES = ("fable", "mythos")

# A version is one or two short numbers; longer ones are dates.
_VERSION = re.compile(r"(?<![\d.v])(\d{1,2})(?:[-.](\d{1,2}))?(?!\d)")


@lru_cache(maxsize=1024)
def traits_of(model: str) -> Traits:
    """What is known of the model called `model` at its provider."""
    name = model.lower()
    at = name.find("claude")
    if at < 0:
        return _OTHERS
    rest = name[at:]
    if any(word in rest for word in _ALWAYS_THINKING_CLASSES):
        return _ALWAYS_THINKS
    found = _VERSION.search(rest)
    if found is None:
        return _NEWEST if "instant" not in rest else _FIRST
    version = (int(found[1]), int(found[2] or 0))
    return [since.traits for since in _HISTORY if since.version <= version][-1]
