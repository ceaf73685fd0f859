"""The most that a request can be charged: the dearest of the price rows that may apply to it.

What may apply is decided by little: which service tier was asked for, whether there may be audio in
it, and input that is cached for long. For each combination the rows are looked up once, as closed
forms of input and output, so that asking for an amount is a multiplication for each row.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from adapters import pricing
from adapters.catalogue import PriceSchedule, Rates
from adapters.estimate import Bound
from ledger.money import ChargeFormula, Price

_ANY_INPUT = -1  # tokens: no request has less


class Tariff(NamedTuple):
    """The prices of one upstream, and the rows that they have in the books."""

    schedule: PriceSchedule
    prices: Mapping[Rates, Price]


class _Ceiling(NamedTuple):
    """The most that one row takes, where input has more than `above` tokens."""

    above: int
    formula: ChargeFormula


class Ceilings:
    """The ceilings of one upstream, or of all that may serve a model. They last for a reload."""

    __slots__ = ("_known", "_tariffs")

    def __init__(self, tariffs: Iterable[Tariff]) -> None:
        self._tariffs = tuple(tariffs)
        self._known: dict[tuple[str, bool, bool], Sequence[_Ceiling]] = {}

    def __len__(self) -> int:
        """For how many kinds of requests they are known."""
        return len(self._known)

    def amount(self, bound: Bound, service_tier: str, output_tokens: int) -> int:
        """Nano-dollars for so much output at the dearest of them, with margin; all input is of its
        dearest kind, and all output likewise; of the kinds that may occur."""
        audio, long_cache = bound.audio, bound.long_cache
        ceilings = self._known.get((service_tier, audio, long_cache))
        if ceilings is None:
            ceilings = self._found(service_tier, audio, long_cache)
        input_tokens, pieces = bound.input_tokens, bound.pieces
        output_tokens += bound.predicted_tokens
        most = -1
        for above, formula in ceilings:  # mostly one: `max` of a comprehension takes twice as long
            if above < input_tokens:
                most = max(most, formula.charge(input_tokens, output_tokens, pieces))
        if most < 0:
            raise AssertionError("one row of each is for any input")
        return most

    def _found(self, service_tier: str, audio: bool, long_cache: bool) -> Sequence[_Ceiling]:
        """Looked up by what a word for a tier means: clients may say whatever they like."""
        meanings = (pricing.asked_tier(each.schedule, service_tier) for each in self._tariffs)
        tier = next(filter(None, meanings), "")
        if (tier, audio, long_cache) not in self._known:
            self._known[tier, audio, long_cache] = [
                ceiling for each in self._tariffs for ceiling in _of(each, tier, audio, long_cache)
            ]
        return self._known[tier, audio, long_cache]


def _of(tariff: Tariff, tier: str, audio: bool, long_cache: bool) -> Iterator[_Ceiling]:
    """The ceilings of one upstream."""
    schedule, prices = tariff
    for row in pricing.ceilings(schedule, tier, audio=audio, long_cache=long_cache):
        units = row.input_unit, row.output_unit
        formula = ChargeFormula(prices[row.rates], *units, {"request": 1})
        yield _Ceiling(row.above or _ANY_INPUT, formula)
