"""Figures are shortened, and still true."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from console.pages import words


@pytest.mark.parametrize(
    ("amount", "shown"),
    [
        ("0", "$0.00"),
        ("1234567.891", "$1,234,567.89"),
        ("-2.5", "-$2.50"),
        ("0.5", "$0.50"),
        ("0.012345", "$0.0123"),
        ("0.00001", "$0.00001"),
        ("0.000000004", "$0.000000004"),
        ("0.99999", "$1.00"),
        (1_500_000_000, "$1.50"),
        (1, "$0.000000001"),
    ],
)
def test_amounts(amount: str | int, shown: str) -> None:
    assert words.usd(amount) == shown


@given(st.integers(-(10**18), 10**18))
def test_an_amount_is_shown_to_half_a_cent_or_half_a_hundredth(nano: int) -> None:
    exact = Decimal(nano) / 10**9
    shown = Decimal(words.usd(nano).replace("$", "").replace(",", ""))
    assert abs(shown - exact) <= max(min(Decimal("0.005"), abs(exact) / 100), Decimal(0))


@pytest.mark.parametrize(
    ("number", "shown"),
    [
        (0, "0"),
        (999_999, "999,999"),
        (1_000_000, "1 M"),
        (48_249_000, "48.2 M"),
        (999_400_000, "999 M"),
        (999_700_000, "1 B"),
        (10**9, "1 B"),
        (1_234 * 10**12, "1,230 T"),
    ],
)
def test_numbers(number: int, shown: str) -> None:
    assert words.count(number) == shown


@pytest.mark.parametrize(
    ("milliseconds", "shown"),
    [(None, "–"), (0, "0 ms"), (412, "412 ms"), (1200, "1.2 s"), (240_000, "4 min")],
)
def test_durations(milliseconds: int | None, shown: str) -> None:
    assert words.lasted(milliseconds) == shown


@pytest.mark.parametrize(
    ("part", "whole", "shown"),
    [(0, 0, "0 %"), (0, 9, "0 %"), (1, 97, "1.0 %"), (1, 3, "33 %"), (9, 9, "100 %")],
)
def test_shares(part: int, whole: int, shown: str) -> None:
    assert words.share(part, whole) == shown
