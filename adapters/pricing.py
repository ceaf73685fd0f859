"""Prices as exact integers, which of them applies, and usage as priced quantities.

A configured price is dollars per million tokens (pieces: a piece) as decimal strings. It is
expanded once into rows of integer nano-dollars per 1,000,000 units, one for each long-context
tier and service tier, so that a settlement names one row and stays one exact multiplication.
Whatever has no exact integer is refused when it is configured, never rounded when it is billed.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from decimal import Context, Decimal

import msgspec

from adapters.canonical import Usage
from adapters.catalogue import Kind, PriceSchedule, Rates

INPUT_UNITS = ("input", "cached_input", "cache_write", "cache_write_1h", "audio_input")
OUTPUT_UNITS = ("output", "reasoning", "audio_output")
PIECE_UNITS = ("image", "request", "web_search", "second")

_NANO_PER_USD = 10**9
_UNITS_PER_PRICE = 10**6
_AMOUNT = re.compile(r"[0-9]{1,9}(?:\.[0-9]{1,12})?")
_EXACT = Context(prec=60)  # far more digits than any product here has
_ONE = Decimal(1)

# Tiers that a provider may serve though another was asked for: what it serves is what it bills.
_STANDARD_TIERS = ("", "default")
_ANY_TIER = "auto"
_SERVED_AS = {"fast": "priority"}


def build_schedule(price: Mapping[str, object], kind: Kind = "chat") -> PriceSchedule | None:
    """The rows of one `[models.price]`; None where it does not price the model.

    A token kind that is absent costs what `input` or `output` of the same row costs, a piece kind
    that is absent nothing. Raises ValueError with a sentence for what is no exact price.
    """
    if "input" not in price or (kind == "chat" and "output" not in price):
        return None
    base = _amounts(price, "")
    rows = {0: _filled(base)}
    for tier in _tables(price.get("above", ()), "above"):
        threshold = tier.get("input_tokens")
        if not isinstance(threshold, int) or threshold < 1:
            raise ValueError("above.input_tokens must be a whole number above 0")
        if threshold in rows:
            raise ValueError(f"above has two tiers from {threshold} input tokens")
        own = _amounts({k: v for k, v in tier.items() if k != "input_tokens"}, "above.")
        # Input, output and pieces go on at the price below; what else the tier leaves out
        # costs what its input or output costs.
        inherited = {k: v for k, v in base.items() if k in ("input", "output", *PIECE_UNITS)}
        rows[threshold] = _filled(inherited | own)
    multipliers = _multipliers(price.get("service_tier", {}))
    return PriceSchedule(
        variants={
            (threshold, tier): _rates(row, multiplier, tier)
            for threshold, row in rows.items()
            for tier, multiplier in multipliers.items()
        },
        published=price,
    )


def variant(schedule: PriceSchedule, input_tokens: int, service_tier: str) -> Rates:
    """The row for a request with `input_tokens`, served at `service_tier`.

    A long-context tier begins strictly above its threshold and holds for the whole request. A
    service tier without a multiplier costs the standard price.
    """
    threshold = 0
    for higher in schedule.thresholds:
        if higher < input_tokens:
            threshold = higher
    tier = _SERVED_AS.get(service_tier, service_tier)
    rates = schedule.variants.get((threshold, tier))
    return rates if rates is not None else schedule.variants[threshold, ""]


def quantities(usage: Usage) -> dict[str, int]:
    """How much of each priced unit was consumed; units with nothing are left out.

    Totals become disjoint parts. Where details exceed their total, the rest is zero, not less.
    Pieces that have no price anywhere are not counted.
    """
    details_in = (
        usage.cached_input_tokens
        + usage.cache_write_tokens
        + usage.cache_write_1h_tokens
        + usage.audio_input_tokens
    )
    details_out = usage.reasoning_tokens + usage.audio_output_tokens
    found = {"request": 1}
    if (rest := usage.input_tokens - details_in) > 0:
        found["input"] = rest
    if (rest := usage.output_tokens - details_out) > 0:
        found["output"] = rest
    if details_in or details_out:
        found |= _details(usage)
    if usage.pieces:
        priced = {unit: count for unit, count in usage.pieces.items() if unit in PIECE_UNITS}
        found |= {unit: count for unit, count in priced.items() if count > 0}
    return found


def _details(usage: Usage) -> dict[str, int]:
    """The parts of the totals that are told."""
    parts = {
        "cached_input": usage.cached_input_tokens,
        "cache_write": usage.cache_write_tokens,
        "cache_write_1h": usage.cache_write_1h_tokens,
        "audio_input": usage.audio_input_tokens,
        "reasoning": usage.reasoning_tokens,
        "audio_output": usage.audio_output_tokens,
    }
    return {unit: count for unit, count in parts.items() if count > 0}


class Ceiling(msgspec.Struct, frozen=True, gc=False):
    """The most that a row takes, where it may apply: to input of more than `above` tokens.

    All input is of its dearest kind, and all output likewise; of the kinds that may occur.
    """

    rates: Rates
    above: int
    input_unit: str
    output_unit: str


def ceilings(
    schedule: PriceSchedule, service_tier: str, *, audio: bool, long_cache: bool
) -> list[Ceiling]:
    """Every row that may apply where `service_tier` was asked for.

    The amount to reserve is the largest of what they take.
    """
    inputs = ["input", "cached_input", "cache_write"]
    outputs = ["output", "reasoning"]
    if long_cache:
        inputs.append("cache_write_1h")
    if audio:
        inputs.append("audio_input")
        outputs.append("audio_output")
    tiers = _possible_tiers(schedule, service_tier)
    found = []
    for (above, tier), rates in schedule.variants.items():
        if tier in tiers:
            price = dict(rates.components).__getitem__
            found.append(Ceiling(rates, above, max(inputs, key=price), max(outputs, key=price)))
    return found


def asked_tier(schedule: PriceSchedule, service_tier: str) -> str:
    """Of the words for a service tier that mean the same ceilings, one; there are only so many."""
    tier = _SERVED_AS.get(service_tier, service_tier)
    known = tier == _ANY_TIER or (tier not in _STANDARD_TIERS and (0, tier) in schedule.variants)
    return tier if known else ""


def _possible_tiers(schedule: PriceSchedule, asked: str) -> Collection[str]:
    if asked in _STANDARD_TIERS:
        return ("",)
    if asked == _ANY_TIER:
        return {tier for _, tier in schedule.variants}
    return ("", _SERVED_AS.get(asked, asked))


def _amounts(table: Mapping[str, object], where: str) -> dict[str, Decimal]:
    """The priced units of one table. Raises ValueError for a unit or an amount that is none."""
    units = (*INPUT_UNITS, *OUTPUT_UNITS, *PIECE_UNITS)
    amounts = {}
    for unit, text in table.items():
        if unit in units:
            amounts[unit] = _amount(text, f"{where}{unit}")
        elif unit not in ("above", "service_tier"):
            raise ValueError(f"{where}{unit} is not a priced unit; those are {', '.join(units)}")
    return amounts


def _amount(text: object, name: str) -> Decimal:
    if not isinstance(text, str) or _AMOUNT.fullmatch(text) is None:
        raise ValueError(f'{name} must be a decimal string of 0 or more, such as "2.50"')
    return Decimal(text)


def _multipliers(table: object) -> dict[str, Decimal]:
    if not isinstance(table, Mapping):
        raise ValueError("service_tier must be a table of multipliers")
    factors = {str(tier): _amount(text, f"service_tier.{tier}") for tier, text in table.items()}
    return {"": _ONE} | factors


def _tables(value: object, name: str) -> Iterable[Mapping[str, object]]:
    if not isinstance(value, list | tuple) or not all(isinstance(t, Mapping) for t in value):
        raise ValueError(f"{name} must be a list of tables")
    return value


def _filled(amounts: Mapping[str, Decimal]) -> dict[str, Decimal]:
    """One row with every unit in it."""
    nothing = Decimal(0)
    return {
        **dict.fromkeys(INPUT_UNITS, amounts["input"]),
        **dict.fromkeys(OUTPUT_UNITS, amounts.get("output", nothing)),
        **dict.fromkeys(PIECE_UNITS, nothing),
        **amounts,
    }


def _rates(row: Mapping[str, Decimal], multiplier: Decimal, tier: str) -> Rates:
    return Rates(
        tuple(
            (unit, _nano_per_million(unit, amount, multiplier, tier))
            for unit, amount in sorted(row.items())
        )
    )


def _nano_per_million(unit: str, amount: Decimal, multiplier: Decimal, tier: str) -> int:
    scale = _NANO_PER_USD * (_UNITS_PER_PRICE if unit in PIECE_UNITS else 1)
    exact = _EXACT.multiply(_EXACT.multiply(amount, multiplier), Decimal(scale))
    if exact != exact.to_integral_value():
        at = f" at service tier {tier}" if tier else ""
        raise ValueError(f"{unit}{at} is finer than a nano-dollar per million tokens")
    return int(exact)
