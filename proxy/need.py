"""What a request may consume at most, and what that costs wherever it may be served.

Pure: from a decoded request and the route of its model to nano-dollars. `proxy.reserve` sets them
aside. A need lasts as long as its answer, and so it takes figures from the request, not the body.
"""

from __future__ import annotations

from functools import partial

import msgspec

from adapters import estimate
from adapters.catalogue import Protocol
from adapters.codec import Expected, Request
from adapters.estimate import Bound
from adapters.expected import Input
from proxy.route import Candidate, Route


class Need(msgspec.Struct, frozen=True, gc=False):
    """What a request may consume at most.

    `output_cap` is the limit of each answer, as reserved and as sent upstream (None where the
    operation has no output tokens); `output_tokens` is over all its choices, and more where a
    provider allows no cap as low as that. `is_capped`: the client set the cap; `is_lowered`: it is
    what the balance covers.
    """

    bound: Bound
    input: Input
    protocol: Protocol
    service_tier: str
    stream: bool
    choices: int
    output_cap: int | None
    output_tokens: int
    is_capped: bool
    is_lowered: bool = False

    @classmethod
    def of(cls, request: Request, route: Route) -> Need:
        """The upper bounds for `request` at whichever upstream of `route` serves it."""
        model, spoken = route.model, route.spoken[request.protocol]
        native = spoken.same and not request.foreign
        bound = estimate.bound(request, model.context_window, native=native)
        cap: int | None = None
        output_tokens = 0
        if request.kind == "chat":
            cap = request.output_cap or model.default_max_output_tokens
            if model.max_output_tokens:
                cap = min(cap, model.max_output_tokens)
            output_tokens = max(cap, spoken.output_cap_min) * request.choices
        return cls(
            bound,
            Input(request, bound),
            request.protocol,
            request.service_tier,
            request.stream,
            request.choices,
            cap,
            output_tokens,
            cap is None or request.output_cap is not None,
        )

    def expected(self, candidate: Candidate) -> Expected:
        """The input that the request most probably has at one upstream."""
        return partial(self.input.at, candidate.speech[self.protocol].protocol)

    def capped(self, output_cap: int) -> Need:
        """The same with a lower cap."""
        return msgspec.structs.replace(
            self,
            output_cap=output_cap,
            output_tokens=output_cap * self.choices,
            is_lowered=True,
        )

    def amount(self, route: Route) -> int:
        """Nano-dollars at the dearest upstream of `route`, with margin."""
        return self.amount_of(self.output_tokens, route)

    def amount_of(self, output_tokens: int, route: Route) -> int:
        """The same for so much output."""
        return route.ceilings.amount(self.bound, self.service_tier, output_tokens)

    def affordable_output_tokens(self, route: Route, available: int) -> int:
        """The largest output cap that `available` nano-dollars would cover."""
        fixed = self.amount_of(0, route)
        whole = self.amount(route)
        if available <= fixed or whole <= fixed or not self.output_tokens:
            return 0
        return (available - fixed) * self.output_tokens // (whole - fixed) // self.choices

    def amount_at(self, candidate: Candidate, output_tokens: int) -> int:
        """Nano-dollars for so much output at one upstream, with margin."""
        return candidate.ceilings.amount(self.bound, self.service_tier, output_tokens)
