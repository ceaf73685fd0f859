"""Money: the rounding rule, its consequences for the postings, and the written form."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger.money import (
    AMOUNT_MAX,
    ChargeFormula,
    Price,
    UnpricedUnit,
    cost_and_charge,
    format_usd,
    parse_usd,
)

UNITS = ["input", "cached", "output", "image"]
prices = st.builds(
    Price,
    price_id=st.just(1),
    components=st.fixed_dictionaries({unit: st.integers(0, 10**12) for unit in UNITS}),
    margin_bps=st.integers(0, 20_000),
)
quantities = st.dictionaries(st.sampled_from(UNITS), st.integers(0, 10**9))


@given(prices, quantities)
def test_each_amount_is_rounded_once_from_the_exact_sum(price: Price, used: dict[str, int]) -> None:
    cost, charge = cost_and_charge(price, used)
    exact_cost = Fraction(sum(n * price.components[unit] for unit, n in used.items()), 10**6)
    exact_charge = exact_cost * (10_000 + price.margin_bps) / 10_000
    assert cost - Fraction(1, 2) <= exact_cost < cost + Fraction(1, 2)
    assert 0 <= charge - exact_charge < 1


@given(prices, quantities)
def test_the_margin_is_never_negative(price: Price, used: dict[str, int]) -> None:
    cost, charge = cost_and_charge(price, used)
    assert 0 <= cost <= charge


@given(prices, quantities, st.sampled_from(UNITS), st.integers(0, 10**6))
def test_more_of_anything_never_costs_less(
    price: Price, used: dict[str, int], unit: str, more: int
) -> None:
    cost, charge = cost_and_charge(price, used)
    cost_more, charge_more = cost_and_charge(price, {**used, unit: used.get(unit, 0) + more})
    assert cost_more >= cost
    assert charge_more >= charge


@given(
    prices,
    st.sampled_from(UNITS),
    st.sampled_from(UNITS),
    st.tuples(st.integers(0, 10**9), st.integers(0, 10**9)),
    quantities,
    quantities,
)
def test_a_formula_charges_the_same_to_the_nano_dollar(
    price: Price,
    first: str,
    second: str,
    used: tuple[int, int],
    once: dict[str, int],
    more: dict[str, int],
) -> None:
    together = (
        Counter(once) + Counter(more) + Counter({first: used[0]}) + Counter({second: used[1]})
    )
    formula = ChargeFormula(price, first, second, once)
    assert formula.charge(*used, more) == cost_and_charge(price, together)[1]


@pytest.mark.parametrize("unit", ["", "first", "second"])
def test_a_formula_knows_no_unit_without_a_price(unit: str) -> None:
    price = Price(9, {"input": 1}, 0)
    units = {"first": "input", "second": "input", unit: "image"}
    with pytest.raises(UnpricedUnit, match="price 9 has no component for 'image'"):
        ChargeFormula(price, units["first"], units["second"], {} if unit else {"image": 1})
    with pytest.raises(UnpricedUnit, match="price 9 has no component for 'image'"):
        ChargeFormula(price, "input", "input", {}).charge(1, 1, {"image": 1})


@pytest.mark.parametrize(
    ("quantity", "unit_price", "margin_bps", "expected"),
    [
        (0, 10**9, 1000, (0, 0)),
        (1, 499_999, 0, (0, 1)),  # the cost rounds half up, the charge always up
        (1, 500_000, 0, (1, 1)),
        (1_000_000, 2_500_000, 1000, (2_500_000, 2_750_000)),
        (3, 2_500_000, 1000, (8, 9)),  # 7.5 and 8.25 nano-dollars
        (10**9, 10**12, 1000, (10**15, 11 * 10**14)),
    ],
)
def test_examples(
    quantity: int, unit_price: int, margin_bps: int, expected: tuple[int, int]
) -> None:
    price = Price(1, {"output": unit_price}, margin_bps)
    assert cost_and_charge(price, {"output": quantity}) == expected


def test_a_unit_without_a_price_is_an_error_and_never_free() -> None:
    price = Price(9, {"input": 1}, 0)
    with pytest.raises(UnpricedUnit, match="price 9 has no component for 'image'"):
        cost_and_charge(price, {"image": 1})
    assert cost_and_charge(price, {"image": 0}) == (0, 0)


def test_a_negative_quantity_is_an_error() -> None:
    with pytest.raises(ValueError, match="the quantity of input is negative"):
        cost_and_charge(Price(1, {"input": 1}, 0), {"input": -1})


@given(st.integers(-AMOUNT_MAX, AMOUNT_MAX))
def test_what_is_written_is_read_back(amount: int) -> None:
    text = format_usd(amount)
    assert parse_usd(text) == amount
    assert Fraction(text) == Fraction(amount, 10**9)
    assert "e" not in text.lower()


@pytest.mark.parametrize(
    ("amount", "text"),
    [
        (0, "0"),
        (12_500_000_000, "12.5"),
        (-1, "-0.000000001"),
        (10_000_000_000, "10"),
        (-2_000_000_000, "-2"),
        (1_000_000_010, "1.00000001"),
    ],
)
def test_written_form(amount: int, text: str) -> None:
    assert format_usd(amount) == text


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "not an amount"),
        ("$5", "not an amount"),
        ("1e3", "not an amount"),
        (".5", "not an amount"),
        ("5.", "not an amount"),
        ("+5", "not an amount"),
        ("1,000", "not an amount"),
        (" 5", "not an amount"),
        ("5\n", "not an amount"),
        ("٣", "not an amount"),
        ("NaN", "not an amount"),
        ("0.0000000001", "more than nine decimals"),
        ("4000000000.000000001", "too large"),
        ("9" * 5000, "too large"),
    ],
)
def test_what_is_no_amount_is_refused_with_a_sentence(text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        parse_usd(text)


def test_leading_zeros_do_not_make_an_amount_large() -> None:
    assert parse_usd("000000000000001.50") == 1_500_000_000
