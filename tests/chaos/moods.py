"""The weather at three providers: who is unwell, in which way, and from when to when.

Drawn from a seed before anything runs, so that a seed repeats the plan. Most of the time at least
one provider is well, and the gateway is held to serve; now and then all are unwell at once, and it
is held to say so.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

WELL = ""
UNWELL = (
    "sandbox-error-500",
    "sandbox-error-503",
    "sandbox-error-503-once",
    "sandbox-error-429-exact",
    "sandbox-overloaded-first",
    "sandbox-reset-first",
    "sandbox-silent",
    "sandbox-hung",
    "sandbox-slow-first",
    "sandbox-malformed-first",
    "sandbox-cut-40",
    "sandbox-cut-60",
    "sandbox-reset-40",
    "sandbox-stall",
    "sandbox-malformed",
    "sandbox-error-in-stream",
    "sandbox-unended",
)
MOOD_SECONDS = (2.0, 10.0)
ALL_UNWELL_PROBABILITY = 0.1
_WELL_PROBABILITY = 0.6


@dataclass(frozen=True, slots=True)
class Change:
    """At `at` seconds, `provider` is in another mood."""

    at: float
    provider: int
    mood: str


def plan(seed: int, seconds: float, providers: int) -> list[Change]:
    """Every change of mood, in order. All are well to begin with, and at the end."""
    dice = random.Random(seed)
    moods = [WELL] * providers
    until = [dice.uniform(*MOOD_SECONDS) for _ in moods]
    changes = []
    while (at := min(until)) < seconds:
        provider = until.index(at)
        others_are_unwell = WELL not in moods[:provider] + moods[provider + 1 :]
        stays_well = dice.random() < _WELL_PROBABILITY
        if others_are_unwell:
            stays_well = dice.random() >= ALL_UNWELL_PROBABILITY
        moods[provider] = WELL if stays_well else dice.choice(UNWELL)
        until[provider] = at + dice.uniform(*MOOD_SECONDS)
        changes.append(Change(at, provider, moods[provider]))
    return [*changes, *(Change(seconds, each, WELL) for each in range(providers))]
