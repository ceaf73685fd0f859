"""What a request may consume at most, and what that costs wherever it may be served.

Pure: from a decoded request and the route of its model to nano-dollars. `proxy.reserve` sets them
aside.
"""

from __future__ import annotations

from functools import partial

import msgspec

from adapters import estimate
from adapters.codec import Expected, Request
from adapters.estimate import Bound
from adapters.expected import expected_input
from ledger.money import cost_and_charge
from proxy.route import Candidate, Route


class Need(msgspec.Struct, frozen=True, gc=False):
    """What a request may consume at most.

    `output_cap` is the limit of each answer, as reserved and as sent upstream (None where the
    operation has no output tokens); `output_tokens` is over all its choices, and more where a
    provider allows no cap as low as that. `is_capped`: the client set the cap.
    """

    request: Request
    bound: Bound
    output_cap: int | None = None
    output_tokens: int = 0
    is_capped: bool = True

    @classmethod
    def of(cls, request: Request, route: Route) -> Need:
        """The upper bounds for `request` at whichever upstream of `route` serves it."""
        model, spoken = route.model, route.spoken[request.protocol]
        native = spoken.same and not request.foreign
        bound = estimate.bound(request, model.context_window, native=native)
        if request.kind != "chat":
            return cls(request, bound)
        cap = request.output_cap or model.default_max_output_tokens
        if model.max_output_tokens:
            cap = min(cap, model.max_output_tokens)
        output_tokens = max(cap, spoken.output_cap_min) * request.choices
        return cls(request, bound, cap, output_tokens, request.output_cap is not None)

    def expected(self, candidate: Candidate) -> Expected:
        """The input that the request most probably has at one upstream."""
        protocol = candidate.upstream.provider.protocol_for(self.request.protocol)
        return partial(expected_input, self.request, protocol, self.bound)

    def capped(self, output_cap: int) -> Need:
        """The same with a lower cap."""
        return msgspec.structs.replace(
            self,
            output_cap=output_cap,
            output_tokens=output_cap * self.request.choices,
            is_capped=True,
        )

    def amount(self, route: Route) -> int:
        """Nano-dollars at the dearest upstream of `route`, with margin."""
        return self.amount_of(self.output_tokens, route)

    def amount_of(self, output_tokens: int, route: Route) -> int:
        """The same for so much output."""
        return max([self.amount_at(candidate, output_tokens) for candidate in route.candidates])

    def affordable_output_tokens(self, route: Route, available: int) -> int:
        """The largest output cap that `available` nano-dollars would cover."""
        fixed = self.amount_of(0, route)
        whole = self.amount(route)
        if available <= fixed or whole <= fixed or not self.output_tokens:
            return 0
        return (available - fixed) * self.output_tokens // (whole - fixed) // self.request.choices

    def amount_at(self, candidate: Candidate, output_tokens: int) -> int:
        """Nano-dollars for so much output at one upstream, with margin."""
        bound = self.bound
        ceilings = candidate.ceilings(self.request.service_tier, bound.audio, bound.long_cache)
        return max(
            [
                cost_and_charge(price, ceiling.quantities(bound, output_tokens))[1]
                for ceiling, price in ceilings
                if not ceiling.above or ceiling.above < bound.input_tokens
            ]
        )
