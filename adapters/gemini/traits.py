"""What a Gemini model can take, by its name.

Names say the generation (`gemini-2.5-flash-lite`) or that it is the newest (`gemini-flash-latest`);
a name that says neither is taken for the newest, too.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from adapters.canonical import Effort

_VERSION = re.compile(r"gemini-([0-9]{1,2})(?:\.([0-9]{1,2}))?")
_NEWEST = (99, 0)
_ALL: Sequence[Effort] = ("minimal", "low", "medium", "high", "xhigh")


@dataclass(frozen=True, slots=True)
class Traits:
    """`levels` are the efforts of a model that thinks by level, `budget` the least and the most
    tokens of one that thinks by budget; a model with neither does not think. `can_rest`: its
    thinking can be off.
    """

    levels: Sequence[Effort] = ()
    budget: tuple[int, int] | None = None
    can_rest: bool = False
    json_schema: bool = True  # takes JSON Schema, not only the subset of OpenAPI's
    tools_with_format: bool = True
    wants_signatures: bool = True  # on calls of the current turn
    call_ids: bool = True
    media_in_results: bool = True
    part_resolution: bool = True
    validates: bool = True  # knows the calling mode VALIDATED


@lru_cache(maxsize=256)
def traits_of(model: str) -> Traits:
    """The traits of a model."""
    model = model.rpartition("/")[2].lower()
    if model.startswith("gemma"):
        return _older(budget=None)
    match = _VERSION.search(model)
    version = (int(match[1]), int(match[2] or 0)) if match is not None else _NEWEST
    if version >= (3, 0):
        return Traits(levels=_levels(version, is_pro="pro" in model))
    if version >= (2, 5):
        return _thinking_by_budget(model)
    return _older(budget=None, json_schema=False)


def _levels(version: tuple[int, int], *, is_pro: bool) -> Sequence[Effort]:
    levels = _ALL if version >= (3, 5) else _ALL[:-1]
    if not is_pro:
        return levels
    return ("low", "high") if version == (3, 0) else levels[1:]


def _thinking_by_budget(model: str) -> Traits:
    if "pro" in model:
        return _older(budget=(128, 32768))
    if "lite" in model:
        return _older(budget=(512, 24576), can_rest=True)
    return _older(budget=(1, 24576), can_rest=True)


def _older(
    *, budget: tuple[int, int] | None, can_rest: bool = False, json_schema: bool = True
) -> Traits:
    return Traits(
        budget=budget,
        can_rest=can_rest,
        json_schema=json_schema,
        tools_with_format=False,
        wants_signatures=False,
        call_ids=False,
        media_in_results=False,
        part_resolution=False,
        validates=False,
    )
