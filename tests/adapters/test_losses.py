"""adapters.losses: what was lost is named once, in order, in the words of the response header."""

from __future__ import annotations

import pytest

from adapters.errors import RequestNotExpressible
from adapters.losses import Losses, told


def test_losses_are_named_once_and_in_order() -> None:
    assert Losses("acme").names == ()
    losses = Losses("acme")
    losses.drop("seed")
    losses.clamp("temperature")
    losses.approximate("effort")
    losses.degrade("thought_signature")
    losses.drop("seed")
    assert losses.names == (
        "seed",
        "clamped:temperature",
        "approx:effort",
        "degraded:thought_signature",
    )


def test_a_refusal_names_field_and_provider() -> None:
    with pytest.raises(RequestNotExpressible) as refused:
        Losses("acme").refuse("n", "gives one answer at a time")
    assert refused.value.param == "n"
    assert str(refused.value) == "n: the provider acme gives one answer at a time."


def test_names_of_clients_fit_a_header() -> None:
    ours = ("seed", "approx:effort", "tool:web_search", "generationConfig.topK", "input[3]")
    assert told(ours) == ours
    odd = ("seed", "a\r\nset-cookie: x", "é", "a,b", "", "x" * 81)
    assert told(odd) == ("seed", "more")
    assert told(()) == ()
    many = told(f"field{n}" for n in range(10_000))
    assert many[-1] == "more"
    assert len(",".join(many)) < 4096
