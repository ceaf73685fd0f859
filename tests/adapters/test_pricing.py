"""Prices: exact integers of what was configured, and an upper bound of what may be billed."""

from __future__ import annotations

from decimal import Decimal, localcontext

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.canonical import Usage
from adapters.catalogue import PriceSchedule, Rates
from adapters.estimate import Bound
from adapters.pricing import (
    INPUT_UNITS,
    OUTPUT_UNITS,
    PIECE_UNITS,
    Ceiling,
    asked_tier,
    build_schedule,
    ceilings,
    quantities,
    variant,
)

TOKEN_UNITS = (*INPUT_UNITS, *OUTPUT_UNITS)
DETAILS = tuple(unit for unit in TOKEN_UNITS if unit not in ("input", "output"))
SIMPLE = {"input": "2.50", "output": "10"}

Price = dict[str, object]


def schedule_of(price: Price) -> PriceSchedule:
    schedule = build_schedule(price)
    assert schedule is not None
    return schedule


def rates_of(price: Price, input_tokens: int = 1, tier: str = "") -> dict[str, int]:
    return dict(variant(schedule_of(price), input_tokens, tier).components)


def cost(rates: Rates, amounts: dict[str, int]) -> int:
    """In nano-dollars × 10^6, so that nothing is rounded."""
    price = dict(rates.components)
    return sum(price[unit] * count for unit, count in amounts.items())


# -- exactness ------------------------------------------------------------------------------------

amounts = st.decimals(0, 999_999, places=6).map(lambda amount: format(amount, "f"))
piece_amounts = st.decimals(0, 999, places=4).map(lambda amount: format(amount, "f"))
multipliers = st.sampled_from(["0.5", "1", "1.75", "2", "0"])
counts = st.integers(0, 10**7)
price_rows = st.fixed_dictionaries(
    {"input": amounts, "output": amounts},
    optional=dict.fromkeys(DETAILS, amounts) | dict.fromkeys(PIECE_UNITS, piece_amounts),
)


@given(
    row=price_rows,
    multiplier=multipliers,
    amount=st.dictionaries(st.sampled_from([*TOKEN_UNITS, *PIECE_UNITS]), counts),
)
def test_integers_cost_exactly_what_decimals_cost(
    row: dict[str, str], multiplier: str, amount: dict[str, int]
) -> None:
    schedule = schedule_of({**row, "service_tier": {"flex": multiplier}})
    with localcontext(prec=100):
        exact = Decimal(0)
        for unit, count in amount.items():
            fallback = "input" if unit in INPUT_UNITS else "output"
            dollars = row.get(unit, "0" if unit in PIECE_UNITS else row[fallback])
            per = 1 if unit in PIECE_UNITS else 10**6
            exact += count * Decimal(dollars) * Decimal(multiplier) / per
        assert Decimal(cost(variant(schedule, 1, "flex"), amount)) == exact * 10**15


def test_what_is_absent_costs_what_its_total_costs() -> None:
    rates = rates_of({**SIMPLE, "cached_input": "1.25", "web_search": "0.01"})
    assert rates["input"] == rates["cache_write"] == rates["audio_input"] == 2_500_000_000
    assert rates["cached_input"] == 1_250_000_000
    assert rates["output"] == rates["reasoning"] == 10_000_000_000
    assert rates["web_search"] == 10_000_000 * 10**6
    assert rates["image"] == 0
    assert set(rates) == {*TOKEN_UNITS, *PIECE_UNITS}


# -- long context and service tiers ---------------------------------------------------------------

LONG: Price = {
    **SIMPLE,
    "cached_input": "0.25",
    "web_search": "0.01",
    "above": [{"input_tokens": 200_000, "input": "5"}, {"input_tokens": 400_000, "output": "40"}],
}


@pytest.mark.parametrize(
    ("input_tokens", "rate"),
    [(1, 2.5), (200_000, 2.5), (200_001, 5), (400_000, 5), (400_001, 2.5)],
)
def test_a_tier_begins_above_its_threshold(input_tokens: int, rate: float) -> None:
    assert rates_of(LONG, input_tokens)["input"] == int(rate * 10**9)


def test_what_a_tier_leaves_out() -> None:
    """Input, output and pieces go on at the first price, details follow the tier's totals."""
    rates = rates_of(LONG, 200_001)
    assert rates["output"] == 10 * 10**9
    assert rates["cached_input"] == 5 * 10**9
    assert rates["web_search"] == 10**13
    assert rates_of(LONG, 400_001)["reasoning"] == 40 * 10**9


TIERS: Price = {**SIMPLE, "service_tier": {"flex": "0.5", "priority": "2"}}


@pytest.mark.parametrize(
    ("served", "rate"),
    [("", 2.5), ("default", 2.5), ("unheard", 2.5), ("flex", 1.25), ("priority", 5), ("fast", 5)],
)
def test_what_was_served_is_billed(served: str, rate: float) -> None:
    assert rates_of(TIERS, 1, served)["input"] == int(rate * 10**9)


def test_tiers_multiply_each_other() -> None:
    both = {**LONG, "service_tier": {"flex": "0.5"}}
    assert rates_of(both, 200_001, "flex")["input"] == int(2.5 * 10**9)


# -- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize("price", [{}, {"input": "1"}, {"output": "1"}])
def test_half_a_price_is_none(price: Price) -> None:
    assert build_schedule(price) is None


def test_embeddings_need_no_output_price() -> None:
    schedule = build_schedule({"input": "0.02"}, "embedding")
    assert schedule is not None
    assert dict(variant(schedule, 1, "").components)["output"] == 0


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"input": 2.5}, "input must be a decimal string"),
        ({"input": "-1"}, "input must be a decimal string"),
        ({"input": "1e3"}, "input must be a decimal string"),
        ({"input": "NaN"}, "input must be a decimal string"),
        ({"input": ""}, "input must be a decimal string"),
        ({"output": None}, "output must be a decimal string"),
        ({"inptu": "1"}, "inptu is not a priced unit"),
        ({"input": "0.0000000001"}, "finer than a nano-dollar"),
        ({"above": "x"}, "above must be a list"),
        ({"above": [5]}, "above must be a list"),
        ({"above": [{"input": "1"}]}, "above.input_tokens"),
        ({"above": [{"input_tokens": 0}]}, "above.input_tokens"),
        ({"above": [{"input_tokens": 5}, {"input_tokens": 5}]}, "two tiers"),
        ({"above": [{"input_tokens": 5, "input": 1}]}, "above.input must be"),
        ({"above": [{"input_tokens": 5, "inptu": "1"}]}, "above.inptu"),
        ({"service_tier": []}, "service_tier must be a table"),
        ({"service_tier": {"flex": 0.5}}, "service_tier.flex must be"),
        (
            {"input": "0.000000001", "service_tier": {"flex": "0.5"}},
            "input at service tier flex is finer",
        ),
    ],
)
def test_what_is_no_exact_price_is_refused(change: Price, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        build_schedule({**SIMPLE, **change})


# -- quantities -----------------------------------------------------------------------------------


def test_totals_become_disjoint_parts() -> None:
    usage = Usage(
        input_tokens=100,
        cached_input_tokens=30,
        cache_write_tokens=20,
        audio_input_tokens=5,
        output_tokens=50,
        reasoning_tokens=40,
        pieces={"web_search": 2, "unheard": 9},
    )
    assert quantities(usage) == {
        "input": 45,
        "cached_input": 30,
        "cache_write": 20,
        "audio_input": 5,
        "output": 10,
        "reasoning": 40,
        "request": 1,
        "web_search": 2,
    }


def test_details_that_exceed_their_total_leave_nothing_below_zero() -> None:
    found = quantities(Usage(input_tokens=10, cached_input_tokens=30, output_tokens=0))
    assert found == {"cached_input": 30, "request": 1}


# -- the bound ------------------------------------------------------------------------------------


def most(row: Ceiling, bound: Bound, output_tokens: int) -> dict[str, int]:
    """What of each unit is held by one row."""
    return {
        row.input_unit: bound.input_tokens,
        row.output_unit: output_tokens + bound.predicted_tokens,
        "request": 1,
        **bound.pieces,
    }


def dearest(
    schedule: PriceSchedule, bound: Bound, output_tokens: int, tier: str
) -> list[tuple[Rates, dict[str, int]]]:
    """What may be billed at most, by each row that may apply."""
    rows = ceilings(schedule, tier, audio=bound.audio, long_cache=bound.long_cache)
    return [
        (row.rates, most(row, bound, output_tokens))
        for row in rows
        if not row.above or row.above < bound.input_tokens
    ]


@st.composite
def usages_within(draw: st.DrawFn, bound: Bound, output_tokens: int) -> Usage:
    """Some usage of no more than was reserved for."""
    inputs = draw(st.integers(0, bound.input_tokens))
    cached = draw(st.integers(0, inputs))
    written = draw(st.integers(0, inputs - cached))
    kept = draw(st.integers(0, inputs - cached - written)) if bound.long_cache else 0
    rest = inputs - cached - written - kept
    outputs = draw(st.integers(0, output_tokens + bound.predicted_tokens))
    reasoned = draw(st.integers(0, outputs))
    return Usage(
        input_tokens=inputs,
        cached_input_tokens=cached,
        cache_write_tokens=written,
        cache_write_1h_tokens=kept,
        audio_input_tokens=draw(st.integers(0, rest)) if bound.audio else 0,
        output_tokens=outputs,
        reasoning_tokens=reasoned,
        audio_output_tokens=draw(st.integers(0, outputs - reasoned)) if bound.audio else 0,
        pieces=bound.pieces,
    )


@given(data=st.data(), row=price_rows, above=price_rows, multiplier=multipliers)
def test_no_usage_within_the_bound_costs_more_than_the_dearest(
    data: st.DataObject, row: dict[str, str], above: dict[str, str], multiplier: str
) -> None:
    schedule = schedule_of(
        {
            **row,
            "above": [{"input_tokens": 1000, **above}],
            "service_tier": {"flex": multiplier, "priority": "2"},
        }
    )
    bound = Bound(
        input_tokens=data.draw(st.integers(0, 3000)),
        text_bytes=0,
        predicted_tokens=data.draw(st.integers(0, 100)),
        audio=data.draw(st.booleans()),
        pieces=data.draw(st.sampled_from([{}, {"web_search": 1}])),
        long_cache=data.draw(st.booleans()),
    )
    output_tokens = data.draw(st.integers(0, 1000))
    usage = data.draw(usages_within(bound, output_tokens))
    asked, served = data.draw(
        st.sampled_from(
            [
                ("", ""),
                ("default", "default"),
                ("flex", "flex"),
                ("flex", "default"),
                ("priority", "priority"),
                ("fast", "priority"),
                ("auto", "priority"),
                ("auto", "flex"),
                ("auto", ""),
            ]
        )
    )
    held = max(cost(*each) for each in dearest(schedule, bound, output_tokens, asked))
    billed = cost(variant(schedule, usage.input_tokens, served), quantities(usage))
    assert billed <= held


def test_the_dearest_is_not_looser_than_it_has_to_be() -> None:
    bound = Bound(input_tokens=1000, text_bytes=0)
    (only,) = dearest(schedule_of(LONG), bound, 10, "")
    assert cost(*only) == 1000 * 2_500_000_000 + 10 * 10_000_000_000
    assert len(dearest(schedule_of(TIERS), bound, 10, "")) == 1
    assert len(dearest(schedule_of(TIERS), bound, 10, "flex")) == 2
    assert len(dearest(schedule_of(TIERS), bound, 10, "auto")) == 3


@pytest.mark.parametrize("tier", ["", "default", "auto", "flex", "priority", "fast", "unheard"])
@pytest.mark.parametrize("price", [SIMPLE, LONG, TIERS])
def test_words_for_the_same_tier_are_one(price: Price, tier: str) -> None:
    schedule = schedule_of(price)
    word = asked_tier(schedule, tier)
    assert word in ("", "auto", "flex", "priority")
    assert ceilings(schedule, word, audio=True, long_cache=True) == ceilings(
        schedule, tier, audio=True, long_cache=True
    )
