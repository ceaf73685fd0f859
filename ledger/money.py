"""Money: integer nano-dollars, and the only place that multiplies, rounds, parses and formats.

A price is integer nano-dollars per 1,000,000 units of a component, so quantity × price is exact
(its unit is 10⁻¹⁵ USD). Each request rounds exactly twice, both times from that exact sum: the
cost half up, the charge up. The margin is their difference and never rounds by itself; hence
0 ≤ cost ≤ charge, and the customer never pays a whole nano-dollar more than the exact value.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

NanoUsd = int

NANO_PER_USD = 1_000_000_000
AMOUNT_MAX = 4_000_000_000_000_000_000
"""No single amount is larger: two of them still add up inside a signed 64-bit column."""

_DECIMAL = re.compile(r"(-?)([0-9]+)(?:\.([0-9]+))?", re.ASCII)
_UNITS_PER_PRICE = 1_000_000
_BASIS_POINTS = 10_000
_UNITS_AND_POINTS = _UNITS_PER_PRICE * _BASIS_POINTS


class UnpricedUnit(KeyError):
    """A quantity has no price: the request must fail rather than be free."""

    def __init__(self, unit: str, price_id: int) -> None:
        super().__init__(unit)
        self.unit = unit
        self.price_id = price_id

    def __str__(self) -> str:
        return f"price {self.price_id} has no component for {self.unit!r}"


@dataclass(frozen=True, slots=True)
class Price:
    """One immutable price row: nano-dollars per 1,000,000 units of each component."""

    price_id: int
    components: Mapping[str, int]
    margin_bps: int


def cost_and_charge(price: Price, quantities: Mapping[str, int]) -> tuple[NanoUsd, NanoUsd]:
    """What the provider is owed and what the customer pays for `quantities`.

    Raises UnpricedUnit for a unit without a component and ValueError for a negative quantity; a
    quantity of 0 needs no component.
    """
    exact = _exact(price, quantities)
    cost = (exact + _UNITS_PER_PRICE // 2) // _UNITS_PER_PRICE
    charge = -(-exact * (_BASIS_POINTS + price.margin_bps) // _UNITS_AND_POINTS)
    return cost, charge


class ChargeFormula:
    """The charge at one price as a function of two quantities: `cost_and_charge`, multiplied out.

    For what is asked with every request. `once` are quantities that are always there.
    """

    __slots__ = ("_fixed", "_margin", "_per_first", "_per_second", "_price")

    def __init__(self, price: Price, first: str, second: str, once: Mapping[str, int]) -> None:
        self._price = price
        self._margin = _BASIS_POINTS + price.margin_bps
        self._per_first = _exact(price, {first: 1}) * self._margin
        self._per_second = _exact(price, {second: 1}) * self._margin
        self._fixed = _exact(price, once) * self._margin

    def charge(self, first: int, second: int, more: Mapping[str, int]) -> NanoUsd:
        """What the customer pays for so much of both, which is not negative, and for `more`.

        Raises as `cost_and_charge` does, of `more`.
        """
        exact = self._per_first * first + self._per_second * second + self._fixed
        if more:
            exact += _exact(self._price, more) * self._margin
        return -(-exact // _UNITS_AND_POINTS)


def _exact(price: Price, quantities: Mapping[str, int]) -> int:
    """What `quantities` cost before anything is rounded, in 10⁻¹⁵ USD."""
    components, exact = price.components, 0
    for unit, quantity in quantities.items():  # `sum` and `map` take longer for a few
        if quantity < 0:
            raise ValueError(f"the quantity of {unit} is negative: {quantity}")
        try:
            exact += quantity * components[unit]
        except KeyError:
            if quantity:
                raise UnpricedUnit(unit, price.price_id) from None
    return exact


def parse_usd(text: str) -> NanoUsd:
    """Nano-dollars of a plain decimal such as `12.5`; ValueError says what is wrong with it."""
    match = _DECIMAL.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not an amount in dollars; write it like 12.50")
    sign, whole, fraction = match.group(1), match.group(2), match.group(3) or ""
    if len(fraction) > 9:
        raise ValueError(
            f"{text!r} has more than nine decimals; a nano-dollar is the smallest unit"
        )
    # The length is tested first: int() of an endless digit string is slow, then refused.
    if len(whole.lstrip("0")) > 10:
        raise ValueError(f"{text!r} is too large; the limit is {format_usd(AMOUNT_MAX)} dollars")
    amount = int(whole) * NANO_PER_USD + int(fraction.ljust(9, "0"))
    if amount > AMOUNT_MAX:
        raise ValueError(f"{text!r} is too large; the limit is {format_usd(AMOUNT_MAX)} dollars")
    return -amount if sign else amount


@lru_cache(maxsize=256)  # what a request costs is told to its client, and in the log
def format_usd(amount: NanoUsd) -> str:
    """The exact decimal string of an amount: `0`, `12.5`, `-0.000000001`; never an exponent."""
    if amount < 0:
        return f"-{format_usd(-amount)}"
    whole, fraction = divmod(amount, NANO_PER_USD)
    return f"{whole}.{fraction:09}".rstrip("0").rstrip(".")
