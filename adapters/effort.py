"""How much to think: words in some protocols, token budgets in others.

The tables are those of docs/protocols.md. A budget that a client named goes before a word.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from adapters.canonical import Effort, Reasoning
from adapters.losses import Losses

_LADDER: Sequence[Effort] = ("none", "minimal", "low", "medium", "high", "xhigh", "max")
_MOST_OF: Sequence[tuple[int, Effort]] = (
    (0, "none"),
    (1024, "minimal"),
    (4096, "low"),
    (12288, "medium"),
    (24576, "high"),
)
_BUDGETS: Mapping[Effort, int] = {
    "none": 0,
    "minimal": 1024,
    "low": 2048,
    "medium": 8192,
    "high": 16384,
    "xhigh": 32768,
    "max": 32768,
}
_GEMINI_BUDGETS: Mapping[Effort, int] = {
    "none": 0,
    "minimal": 512,
    "low": 2048,
    "medium": 8192,
    "high": 24576,
    "xhigh": 32768,
    "max": 32768,
}


def effort_of(reasoning: Reasoning) -> Effort:
    """The effort in words; empty where the client left it to the model."""
    budget = reasoning.budget
    if budget is None or budget < 0:
        return reasoning.effort
    return next((effort for most, effort in _MOST_OF if budget <= most), "xhigh")


def budget_of(reasoning: Reasoning) -> int | None:
    """The budget for an Anthropic model that thinks by budget, 0 for no thinking; None where the
    client left it to the model."""
    return _budget(reasoning, _BUDGETS)


def gemini_budget_of(reasoning: Reasoning) -> int | None:
    """The same for a Gemini model that thinks by budget."""
    return _budget(reasoning, _GEMINI_BUDGETS)


def _budget(reasoning: Reasoning, budgets: Mapping[Effort, int]) -> int | None:
    budget = reasoning.budget
    if budget is None or budget < 0:
        return budgets.get(reasoning.effort)
    return budget


def nearest(effort: Effort, allowed: Sequence[Effort], losses: Losses) -> Effort:
    """The next lower of the `allowed` efforts, else the next higher; a change is reported."""
    if not effort or effort in allowed:
        return effort
    wanted = _LADDER.index(effort)
    lower = [one for one in _LADDER[:wanted] if one in allowed]
    higher = [one for one in _LADDER[wanted:] if one in allowed]
    losses.approximate("effort")
    if lower:
        return lower[-1]
    return higher[0] if higher else ""
