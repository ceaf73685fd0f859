"""How a Claude model is told to think: by a budget or by an effort, where it can be told at all.

A budget is at least 1024 tokens and below the cap, which is what was reserved and cannot grow.
With a budget, models refuse a forced choice of tool, the beginning of an answer, a temperature of
their own, and a turn of tool calls whose reasoning has got lost: there, thinking is given up.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from adapters.anthropic.traits import Traits
from adapters.canonical import Effort, Reasoning
from adapters.effort import budget_of, effort_of, nearest
from adapters.losses import Losses

BUDGET_MIN = 1024

_BUDGET_DEFAULT = 8192  # where thinking is wanted, and nothing is said of how much
_FIELD = "reasoning_effort"


class Obstacles(NamedTuple):
    """What of a request a model that thinks by a budget would refuse."""

    forced_choice: bool
    prefill: bool
    lost_reasoning: bool


class Plan(NamedTuple):
    """The members `thinking` and `output_config.effort`; both may be empty."""

    thinking: Mapping[str, object] | None = None
    effort: Effort = ""

    @property
    def thinks(self) -> bool:
        """Whether the model is asked to think."""
        return self.thinking is not None and self.thinking["type"] != "disabled"


_DISABLED = Plan({"type": "disabled"})
_NOTHING = Plan()


def plan(
    reasoning: Reasoning | None, traits: Traits, cap: int, obstacles: Obstacles, losses: Losses
) -> Plan:
    """What to send for `reasoning` to a model of these `traits`, within a cap of output tokens."""
    if reasoning is None or reasoning == _UNSAID:
        return _NOTHING
    if not traits.thinking:
        if _wants(reasoning):
            losses.drop(_FIELD)
        return _NOTHING
    if traits.thinking == "manual":
        return _manual(reasoning, traits, cap, obstacles, losses)
    return _adaptive(reasoning, traits, losses)


_UNSAID = Reasoning()


def fitting_budget(wanted: int, cap: int) -> int:
    """A budget that leaves some of the cap, which is above the least budget, to the answer."""
    return min(wanted, max(BUDGET_MIN, cap - cap // 4))


def _wants(reasoning: Reasoning) -> bool:
    return effort_of(reasoning) != "none" and reasoning != Reasoning(show=False)


def _adaptive(reasoning: Reasoning, traits: Traits, losses: Losses) -> Plan:
    effort = effort_of(reasoning)
    if effort == "none":
        if not traits.always_thinks:
            return _DISABLED
        losses.approximate("effort")
        return Plan(None, "low")
    if effort and traits.efforts:
        effort = nearest(effort, traits.efforts, losses)
    thinking: dict[str, object] = {"type": "adaptive"}
    if reasoning.show is not None:
        thinking["display"] = "summarized" if reasoning.show else "omitted"
    return Plan(thinking, effort)


def _manual(
    reasoning: Reasoning, traits: Traits, cap: int, obstacles: Obstacles, losses: Losses
) -> Plan:
    budget = budget_of(reasoning)
    if budget == 0 or not _wants(reasoning):
        return _NOTHING  # these think only if they are asked to
    if obstacles.forced_choice or obstacles.prefill:
        losses.drop(_FIELD)
        return _NOTHING
    if obstacles.lost_reasoning:
        losses.degrade("reasoning")
        return _NOTHING
    if cap <= BUDGET_MIN:
        losses.drop(_FIELD)
        return _NOTHING
    wanted = max(_BUDGET_DEFAULT if budget is None else budget, BUDGET_MIN)
    fitting = fitting_budget(wanted, cap)
    if fitting < wanted:
        losses.clamp(_FIELD)
    return Plan({"type": "enabled", "budget_tokens": fitting})
