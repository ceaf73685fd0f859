"""The most that a request is charged: closed forms that say what the price rows themselves say."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters import pricing
from adapters.catalogue import PriceSchedule
from adapters.estimate import Bound
from ledger.money import Price, cost_and_charge
from proxy.ceilings import Ceilings, Tariff

TIERS = ("", "default", "auto", "flex", "priority", "fast", "unheard")

amounts = st.decimals(0, 999, places=4).map(lambda amount: format(amount, "f"))
rows = st.fixed_dictionaries(
    {"input": amounts, "output": amounts},
    optional=dict.fromkeys(
        ["cached_input", "cache_write_1h", "audio_input", "reasoning", "request", "web_search"],
        amounts,
    ),
)


@st.composite
def tariffs(draw: st.DrawFn) -> Tariff:
    schedule = pricing.build_schedule(
        {
            **draw(rows),
            "above": [{"input_tokens": 1000, **draw(rows)}],
            "service_tier": draw(
                st.dictionaries(
                    st.sampled_from(["flex", "priority"]), st.sampled_from(["0.5", "2"])
                )
            ),
        }
    )
    assert schedule is not None
    return tariff_of(schedule, draw(st.integers(0, 20_000)))


def tariff_of(schedule: PriceSchedule, margin_bps: int) -> Tariff:
    return Tariff(
        schedule,
        {
            rates: Price(number, dict(rates.components), margin_bps)
            for number, rates in enumerate(schedule.variants.values())
        },
    )


def charges(tariff: Tariff, bound: Bound, tier: str, output_tokens: int) -> list[int]:
    """What each row takes that may apply."""
    found = pricing.ceilings(tariff.schedule, tier, audio=bound.audio, long_cache=bound.long_cache)
    return [
        cost_and_charge(
            tariff.prices[row.rates],
            {
                row.input_unit: bound.input_tokens,
                row.output_unit: output_tokens + bound.predicted_tokens,
                "request": 1,
                **bound.pieces,
            },
        )[1]
        for row in found
        if not row.above or row.above < bound.input_tokens
    ]


bounds = st.builds(
    Bound,
    input_tokens=st.integers(0, 3000),
    text_bytes=st.just(0),
    predicted_tokens=st.integers(0, 100),
    audio=st.booleans(),
    pieces=st.sampled_from([{}, {"web_search": 3}]),
    long_cache=st.booleans(),
)


@given(
    st.lists(tariffs(), min_size=1, max_size=3),
    st.lists(st.tuples(bounds, st.sampled_from(TIERS), st.integers(0, 10**6)), max_size=5),
)
def test_the_amount_is_what_the_dearest_row_takes(
    several: list[Tariff], asked: list[tuple[Bound, str, int]]
) -> None:
    ceilings = Ceilings(several)
    for bound, tier, output_tokens in asked:
        every = [charge for each in several for charge in charges(each, bound, tier, output_tokens)]
        assert ceilings.amount(bound, tier, output_tokens) == max(every)


@pytest.mark.parametrize("count", [1, 100])
def test_words_that_mean_no_tier_are_not_remembered(count: int) -> None:
    schedule = pricing.build_schedule({"input": "1", "output": "2"})
    assert schedule is not None
    ceilings = Ceilings([tariff_of(schedule, 0)])
    bound = Bound(1_000_000, 0)
    for number in range(count):
        assert ceilings.amount(bound, f"tier{number}", 1_000_000) == 3 * 10**9
    assert len(ceilings) == 1
