"""From what was produced to what is charged, exactly once on every way out.

Everything here is synchronous: a cancellation cannot fall between deciding and booking. A settled
answer is in the journal before its last byte leaves.

What an attempt without an answer has cost is not charged to anybody. It is booked all the same
(`lost`), as far as it can be known: the provider sends its invoice for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

from adapters import pricing
from adapters.canonical import Usage
from adapters.codec import Expected, Relay
from adapters.stream import nothing_expected
from ledger.client import Reservation, Settled, TokenCounts, bill
from ledger.money import AMOUNT_MAX, Price, cost_and_charge, format_usd
from ledger.store import EventStatus
from proxy.record import Record
from proxy.route import Candidate
from proxy.verdicts import Outcome

Lost = Outcome | Literal["cancelled"]
"""How an attempt ended; `cancelled` by us: the client left, another attempt won, time was up."""

# Looked up once: in an enum's class they take a while to find.
_SETTLED, _ESTIMATED = EventStatus.SETTLED, EventStatus.ESTIMATED
_CANCELLED, _FREE = EventStatus.CANCELLED, EventStatus.FREE
_ENDINGS: Mapping[EventStatus, str] = MappingProxyType(
    {status: status.name.lower() for status in EventStatus}
)
# After these the provider has most probably begun to work for its money.
_BEGUN: frozenset[Lost] = frozenset(
    {"cancelled", "first_byte_timeout", "idle_timeout", "truncated", "protocol", "empty"}
)


def post(
    reservation: Reservation,
    record: Record,
    candidate: Candidate,
    relay: Relay,
    expected: Expected,
    plausible: int,
    *,
    cut: bool = False,
    free: bool = False,
) -> Settled:
    """Charge what `relay` has read up to now. `cut`: the client will not get the rest. `free`: the
    cost is booked, and nothing is charged.

    The provider's own usage counts where it came, else what was relayed is counted, and the input
    that was to be `expected`. `plausible` nano-dollars may come together at most.
    """
    counted = relay.counted(expected)
    usage = counted.usage
    settled = reservation.settle(
        price=_price(candidate, usage),
        provider_id=candidate.provider_id,
        quantities=pricing.quantities(usage),
        tokens=_tokens(usage),
        status=_FREE if free else _status(cut=cut, estimated=counted.estimated),
        ttfb_ms=record.ttfb_ms,
        duration_ms=record.duration_ms,
        plausible=plausible,
    )
    record.usage = usage
    record.estimated = counted.estimated
    record.reserved = reservation.amount
    record.settled = settled
    record.charge_usd = format_usd(settled.charge)
    record.ending = _ENDINGS[settled.status]
    return settled


def quote(
    reservation: Reservation,
    candidate: Candidate,
    relay: Relay,
    expected: Expected,
    plausible: int,
) -> tuple[int, bool]:
    """The charge that `post` would make of a complete answer, and whether it is estimated."""
    counted = relay.counted(expected)
    price, quantities = _price(candidate, counted.usage), pricing.quantities(counted.usage)
    status = _status(cut=False, estimated=counted.estimated)
    _, charge, _ = bill(price, quantities, reservation.amount, status, plausible)
    return charge, counted.estimated


def lost(
    candidate: Candidate, outcome: Lost, expected: Expected, relay: Relay | None = None
) -> int:
    """What the operator probably pays for an attempt without an answer, in nano-dollars.

    `relay` is what has read the answer, where one has begun. After

    - time that ran out, with or without a part of an answer,
    - an answer that broke off, made no sense or was empty,
    - an end by our own will,

    it is the price of what the provider told, else of the input that was to be `expected` and of
    what was said. After everything else, such as a status of 400 and above, a connection that was
    reset, or a failure told inside a 200, it is what the provider told until then, mostly nothing:
    who knows that he has failed sends no invoice for it. Not for attempts that never reached their
    provider: those cost nothing.
    """
    begun = outcome in _BEGUN
    probable = expected if begun else nothing_expected
    usage = probable() if relay is None else relay.counted(probable).usage
    return cost_of(candidate, usage) if begun or usage.input_tokens else 0


def cost_of(candidate: Candidate, usage: Usage) -> int:
    """What a candidate's provider takes for `usage`, in nano-dollars.

    Of two attempts at a plain answer the loser is taken to have written what the winner has.
    """
    cost, _ = cost_and_charge(_price(candidate, usage), pricing.quantities(usage))
    return min(cost, AMOUNT_MAX)


def _price(candidate: Candidate, usage: Usage) -> Price:
    """The row that applies to so long an input, at the tier that served it."""
    prices = candidate.prices
    if len(prices) == 1:
        return candidate.base_price
    return prices[pricing.variant(candidate.schedule, usage.input_tokens, usage.service_tier)]


def _status(*, cut: bool, estimated: bool) -> EventStatus:
    if cut:
        return _CANCELLED
    return _ESTIMATED if estimated else _SETTLED


def _tokens(usage: Usage) -> TokenCounts:
    """Token counts with columns of their own, and whatever else was consumed by name."""
    others = {
        "cache_write": usage.cache_write_tokens,
        "cache_write_1h": usage.cache_write_1h_tokens,
        "audio_input": usage.audio_input_tokens,
        "audio_output": usage.audio_output_tokens,
        **usage.pieces,
    }
    return TokenCounts(
        input=usage.input_tokens,
        cached_input=usage.cached_input_tokens,
        output=usage.output_tokens,
        reasoning=usage.reasoning_tokens,
        units=_some(others) if any(others.values()) else {},
    )


def _some(counts: Mapping[str, int]) -> dict[str, int]:
    """Those of which there are any."""
    return {name: count for name, count in counts.items() if count}
