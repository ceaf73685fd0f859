"""adapters.effort: words and budgets, both ways, and the nearest that a model knows."""

from __future__ import annotations

import pytest

from adapters.canonical import Effort, Reasoning
from adapters.effort import budget_of, effort_of, gemini_budget_of, nearest
from adapters.losses import Losses


@pytest.mark.parametrize(
    ("budget", "effort"),
    [
        (-1, ""),
        (0, "none"),
        (1, "minimal"),
        (1024, "minimal"),
        (1025, "low"),
        (4096, "low"),
        (12288, "medium"),
        (24576, "high"),
        (24577, "xhigh"),
        (10**9, "xhigh"),
    ],
)
def test_a_budget_in_words(budget: int, effort: str) -> None:
    assert effort_of(Reasoning(budget=budget)) == effort


def test_a_budget_goes_before_a_word() -> None:
    both = Reasoning(effort="max", budget=1024)
    assert effort_of(both) == "minimal"
    assert budget_of(both) == gemini_budget_of(both) == 1024


def test_an_open_budget_leaves_the_word() -> None:
    both = Reasoning(effort="high", budget=-1)
    assert effort_of(both) == "high"
    assert budget_of(both) == 16384
    assert gemini_budget_of(both) == 24576


def test_nothing_said_is_nothing() -> None:
    assert effort_of(Reasoning()) == ""
    assert budget_of(Reasoning()) is gemini_budget_of(Reasoning()) is None


@pytest.mark.parametrize(
    ("effort", "anthropic", "gemini"),
    [
        ("none", 0, 0),
        ("minimal", 1024, 512),
        ("low", 2048, 2048),
        ("medium", 8192, 8192),
        ("high", 16384, 24576),
        ("xhigh", 32768, 32768),
        ("max", 32768, 32768),
    ],
)
def test_words_as_budgets(effort: Effort, anthropic: int, gemini: int) -> None:
    assert budget_of(Reasoning(effort=effort)) == anthropic
    assert gemini_budget_of(Reasoning(effort=effort)) == gemini


@pytest.mark.parametrize(
    ("effort", "found", "reported"),
    [
        ("", "", ()),
        ("low", "low", ()),
        ("max", "high", ("approx:effort",)),
        ("medium", "low", ("approx:effort",)),
        ("none", "low", ("approx:effort",)),
    ],
)
def test_the_nearest_is_lower_if_there_is_one(
    effort: Effort, found: Effort, reported: tuple[str, ...]
) -> None:
    losses = Losses("p")
    assert nearest(effort, ("low", "high"), losses) == found
    assert losses.names == reported


def test_where_nothing_is_allowed_nothing_is_sent() -> None:
    losses = Losses("p")
    assert nearest("high", (), losses) == ""
    assert losses.names == ("approx:effort",)
