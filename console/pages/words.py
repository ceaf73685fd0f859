"""Figures as people read them: exact amounts are shortened here, and only here."""

from __future__ import annotations

import re
from datetime import datetime
from decimal import ROUND_HALF_UP, Decimal

_CENT = Decimal("0.01")
_SMALL_DIGITS = 3
_PARTED = re.compile(r"[0-9]{1,3}(,[0-9]{3})+(\.[0-9]*)?", re.ASCII)


def usd(amount: str | int | Decimal) -> str:
    """An amount in dollars: to the cent, below a dollar to three digits that say something.

    An integer is nano-dollars.
    """
    exact = Decimal(amount) / 10**9 if isinstance(amount, int) else Decimal(amount)
    sign, size = ("-", -exact) if exact < 0 else ("", exact)
    if size >= 1 or size == 0:
        return f"{sign}${size.quantize(_CENT, ROUND_HALF_UP):,}"
    step = Decimal(1).scaleb(max(size.adjusted() - _SMALL_DIGITS + 1, -9))
    shown = size.quantize(min(step, _CENT), ROUND_HALF_UP)
    text = f"{shown:f}"
    whole, _, rest = text.partition(".")
    return f"{sign}${whole}.{rest.rstrip('0').ljust(2, '0')}"


def plain_amount(typed: str) -> str:
    """An amount as somebody types it, such as `$1,250.00`, for who parses it. A comma is dropped
    only where it parts thousands: `12,50` is no 1250 dollars."""
    amount = typed.removeprefix("$").strip()
    return amount.replace(",", "") if _PARTED.fullmatch(amount) else amount


def count(number: int) -> str:
    """A number, from a million on shortened to three digits that say something."""
    if number < 10**6:
        return f"{number:,}"
    rounded = round(number, _SMALL_DIGITS - len(str(number)))
    for size, name in ((10**12, "T"), (10**9, "B")):
        if rounded >= size:
            return f"{rounded / size:,g} {name}"
    return f"{rounded / 10**6:,g} M"


def share(part: int, whole: int) -> str:
    """How many of a hundred."""
    if not whole:
        return "0 %"
    of_hundred = part / whole * 100
    return f"{of_hundred:.1f} %" if 0 < of_hundred < 10 else f"{of_hundred:.0f} %"


def day(moment: datetime | None) -> str:
    """A day, such as `21 Nov 2026`."""
    return "never" if moment is None else f"{moment.day} {moment:%b %Y}"


def clock(moment: datetime | None) -> str:
    """A moment to the second, in UTC."""
    return "never" if moment is None else f"{moment:%Y-%m-%d %H:%M:%S}"


def lasted(milliseconds: float | None) -> str:
    """A duration."""
    if milliseconds is None:
        return "–"
    if milliseconds < 1000:
        return f"{milliseconds:.0f} ms"
    seconds = milliseconds / 1000
    return f"{seconds:.1f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


def price(text: str) -> str:
    """A price in dollars, with all of its digits and at least two."""
    whole, _, rest = text.partition(".")
    return f"${whole}.{rest.ljust(2, '0')}"
