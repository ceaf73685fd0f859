"""What Anthropic's model families allow. A sandbox model without a family allows it all."""

from __future__ import annotations

import re
from dataclasses import dataclass

from adapters.sandbox.models import family_of

_VERSION = re.compile(r"claude-(?:(?P<line>[a-z]+)-)?(?P<major>\d+)(?:-(?P<minor>\d{1,2})(?!\d))?")
_NEVER_WITHOUT_THINKING = ("fable", "mythos")


@dataclass(frozen=True, slots=True)
class Rules:
    """`manual` thinking has a budget, `adaptive` has none. `thinks_unasked`: also where the request
    does not say; `shows_thoughts`: where it does not say what to display."""

    manual: bool = True
    adaptive: bool = True
    can_disable: bool = True
    thinks_unasked: bool = False
    shows_thoughts: bool = True
    effort: bool = True
    sampling: bool = True
    one_of_sampling: bool = False
    prefill: bool = True
    later_system: bool = True


def rules_of(model: str) -> Rules:
    """The rules of the family that a model's name begins with."""
    found = _VERSION.match(family_of(model))
    if found is None:
        return Rules()
    version = (int(found["major"]), int(found["minor"] or 0))
    before_adaptive, adaptive_only = version < (4, 6), version >= (4, 7)
    strictest = found["line"] in _NEVER_WITHOUT_THINKING
    return Rules(
        manual=not adaptive_only,
        adaptive=not before_adaptive,
        can_disable=not strictest,
        thinks_unasked=strictest or (found["line"] == "sonnet" and version >= (5, 0)),
        shows_thoughts=not adaptive_only,
        effort=version >= (4, 5),
        sampling=not adaptive_only,
        one_of_sampling=before_adaptive,
        prefill=before_adaptive,
        later_system=not before_adaptive,
    )
