"""From what was produced to what is charged, exactly once on every way out.

Everything here is synchronous: a cancellation cannot fall between deciding and booking. A settled
answer is in the journal before its last byte leaves.
"""

from __future__ import annotations

from adapters import pricing
from adapters.canonical import Usage
from adapters.codec import Relay
from ledger.client import Reservation, Settled, TokenCounts, bill
from ledger.money import Price
from ledger.store import EventStatus
from proxy.record import Record
from proxy.route import Candidate


def post(
    reservation: Reservation,
    record: Record,
    candidate: Candidate,
    relay: Relay,
    input_text_bytes: int,
    plausible: int,
    *,
    cut: bool = False,
    free: bool = False,
) -> Settled:
    """Charge what `relay` has read up to now. `cut`: the client will not get the rest. `free`: the
    cost is booked, and nothing is charged.

    The provider's own usage counts where it came, else what was relayed is counted. `plausible`
    nano-dollars were to be expected at most.
    """
    counted = relay.counted(input_text_bytes)
    usage = counted.usage
    settled = reservation.settle(
        price=_price(candidate, usage),
        provider_id=candidate.provider_id,
        quantities=pricing.quantities(usage),
        tokens=_tokens(usage),
        status=EventStatus.FREE if free else _status(cut=cut, estimated=counted.estimated),
        ttfb_ms=record.ttfb_ms,
        duration_ms=record.duration_ms,
        plausible=plausible,
    )
    record.usage = usage
    record.estimated = counted.estimated
    record.reserved = reservation.amount
    record.settled = settled
    record.ending = settled.status.name.lower()
    return settled


def quote(
    reservation: Reservation,
    candidate: Candidate,
    relay: Relay,
    input_text_bytes: int,
    plausible: int,
) -> tuple[int, bool]:
    """The charge that `post` would make of a complete answer, and whether it is estimated."""
    counted = relay.counted(input_text_bytes)
    price, quantities = _price(candidate, counted.usage), pricing.quantities(counted.usage)
    status = _status(cut=False, estimated=counted.estimated)
    _, charge, _ = bill(price, quantities, reservation.amount, status, plausible)
    return charge, counted.estimated


def _price(candidate: Candidate, usage: Usage) -> Price:
    """The row that applies to so long an input, at the tier that served it."""
    return candidate.prices[
        pricing.variant(candidate.schedule, usage.input_tokens, usage.service_tier)
    ]


def _status(*, cut: bool, estimated: bool) -> EventStatus:
    if cut:
        return EventStatus.CANCELLED
    return EventStatus.ESTIMATED if estimated else EventStatus.SETTLED


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
        units={name: count for name, count in others.items() if count},
    )
