"""Nothing is sent upstream before its cost is set aside.

The amount held is an upper bound: the most input tokens that the body can be, the whole output
cap, at the dearest row of the dearest upstream that may serve, plus margin. Credit, budgets, rpm,
tpm and concurrency are decided by the ledger in one call.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from adapters import errors, estimate, pricing
from adapters.codec import Headers, Refusals, Request
from adapters.estimate import Bound
from adapters.limits import Left, Unit
from adapters.registry import OUTPUT_CAP_MIN
from ledger.client import Ledger, LimitRef, LimitState, Reservation, ReservationRequest, Settled
from ledger.errors import (
    AccountSuspended,
    InsufficientCredit,
    LedgerError,
    LedgerUnavailable,
    RateLimited,
)
from ledger.money import cost_and_charge, format_usd
from ledger.store import EventStatus
from proxy import settle
from proxy.authenticate import Principal
from proxy.fallback import Answer, StreamAnswer
from proxy.idempotency import Claim
from proxy.record import Record
from proxy.route import Candidate, Route

_RETRY_AFTER_SECONDS_MAX = 60
_ECHOED_CHARACTERS_MAX = 512
_UNITS: Sequence[tuple[str, Unit]] = (("rpm", "requests"), ("tpm", "tokens"))
_ECHOED = re.compile(r"[!-~]([ -~]*[!-~])?")  # what any client reads in a header as it was written


@dataclass(frozen=True, slots=True)
class Need:
    """What a request may consume at most.

    `output_cap` is the limit of each answer, as reserved and as sent upstream (None where the
    operation has no output tokens); `output_tokens` is over all its answers, and more where a
    provider allows no cap as low as that.
    """

    bound: Bound
    output_cap: int | None
    output_tokens: int
    service_tier: str

    @classmethod
    def of(cls, request: Request, route: Route) -> Need:
        """The upper bounds for `request` at whichever upstream of `route` serves it."""
        model = route.model
        protocols = [
            candidate.upstream.provider.protocol_for(request.protocol)
            for candidate in route.candidates
        ]
        native = request.protocol in protocols and not request.foreign
        bound = estimate.bound(request, model.context_window, native=native)
        if request.kind != "chat":
            return cls(bound, None, 0, request.service_tier)
        cap = request.output_cap or model.default_max_output_tokens
        if model.max_output_tokens:
            cap = min(cap, model.max_output_tokens)
        allowed = max(cap, *(OUTPUT_CAP_MIN.get(protocol, 0) for protocol in protocols))
        return cls(bound, cap, allowed * request.choices, request.service_tier)

    def amount(self, route: Route) -> int:
        """Nano-dollars at the dearest upstream of `route`, with margin."""
        return max(self._amount(candidate, self.output_tokens) for candidate in route.candidates)

    def affordable_output_tokens(self, route: Route, available: int) -> int:
        """The largest output cap that `available` nano-dollars would cover."""
        fixed = max(self._amount(candidate, 0) for candidate in route.candidates)
        whole = self.amount(route)
        if available <= fixed or whole <= fixed or not self.output_tokens:
            return 0
        return (available - fixed) * self.output_tokens // (whole - fixed)

    def _amount(self, candidate: Candidate, output_tokens: int) -> int:
        return max(
            cost_and_charge(candidate.prices[rates], quantities)[1]
            for rates, quantities in pricing.dearest(
                candidate.schedule, self.bound, output_tokens, self.service_tier
            )
        )


async def admit(
    ledger: Ledger, principal: Principal, route: Route, record: Record, endpoint: int, now: float
) -> Headers:
    """Count a request that costs nothing: limits and suspension hold for it, credit does not.

    The headers tell what is left of the limits; `now` is wall time. Raises APIError.
    """
    first = route.candidates[0]
    try:
        reservation = await ledger.reserve(
            ReservationRequest(
                request_id=record.request_id,
                account_id=principal.account_id,
                key_id=principal.key_id,
                pools=principal.pools,
                amount=0,
                tokens=0,
                limits=_limits(principal, route),
                model_id=route.model_id,
                provider_id=first.provider_id,
                price_id=first.base_price.price_id,
                endpoint=endpoint,
            )
        )
    except LedgerError as error:
        raise _refusal(error, record.refusals, now) from error
    reservation.void()
    return record.refusals.limit_headers(_left(reservation.limits), now)


class Hold:
    """A reservation for the time of one exchange. Leaving it settles or gives back, always.

    With an answer: what was produced is charged. Without: nothing is, and a provider that was
    contacted leaves an event that says so. `now` is wall time, for what is said of limits. Where
    there is a `claim`, nothing is charged before it has kept the answer.
    """

    __slots__ = (
        "_claim",
        "_ledger",
        "_need",
        "_now",
        "_record",
        "_request",
        "_route",
        "answer",
        "reservation",
    )

    def __init__(
        self,
        ledger: Ledger,
        principal: Principal,
        route: Route,
        need: Need,
        record: Record,
        endpoint: int,
        now: float,
        claim: Claim | None = None,
    ) -> None:
        self._claim = claim
        self._ledger = ledger
        self._route = route
        self._need = need
        self._now = now
        self._record = record
        first = route.candidates[0]
        record.reserved = need.amount(route)
        self._request = ReservationRequest(
            request_id=record.request_id,
            account_id=principal.account_id,
            key_id=principal.key_id,
            pools=principal.pools,
            amount=record.reserved,
            tokens=need.bound.input_tokens + need.output_tokens,
            limits=_limits(principal, route),
            model_id=route.model_id,
            provider_id=first.provider_id,
            price_id=first.base_price.price_id,
            endpoint=endpoint,
        )
        self.answer: Answer | None = None
        self.reservation: Reservation

    async def __aenter__(self) -> Self:
        try:
            self.reservation = await self._ledger.reserve(self._request)
        except InsufficientCredit as error:
            raise self._insufficient(error) from error
        except LedgerError as error:
            raise _refusal(error, self._record.refusals, self._now) from error
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.answer is not None:
            self.answer.close()
        if not self.reservation.open:
            return
        if self.answer is not None:
            if self._claim is not None and isinstance(self.answer, StreamAnswer):
                cut = errors.UpstreamTimeout("The answer was cut short: it took too long.")
                last = self.answer.relay.error_event(cut, self._record.id)
                await self._claim.keep_cut(last)
            self.settle(cut=True)
        elif self._record.attempts:
            name = self._record.upstream
            tried = next(each for each in self._route.candidates if each.upstream.name == name)
            self.reservation.void(
                status=EventStatus.CANCELLED,
                provider_id=tried.provider_id,
                price_id=tried.base_price.price_id,
                duration_ms=self._record.duration_ms,
            )
        else:
            self.reservation.void()

    def headers(self, conversation_id: str) -> Headers:
        """What the answer says of the model, the route and the limits."""
        headers = [("x-farebox-model", self._route.model.id)]
        if self._route.reason:
            headers.append(("x-farebox-route", self._route.reason))
        if len(conversation_id) <= _ECHOED_CHARACTERS_MAX and _ECHOED.fullmatch(conversation_id):
            headers.append(("x-farebox-conversation-id", conversation_id))
        left = _left(self.reservation.limits)
        return headers + self._record.refusals.limit_headers(left, self._now)

    def quote(self) -> tuple[int, bool]:
        """What the complete answer will be charged, and whether that is estimated."""
        assert self.answer is not None, "only an answer has a price"
        return settle.quote(
            self.reservation, self.answer.candidate, self.answer.relay, self._need.bound.text_bytes
        )

    def settle(self, *, cut: bool = False) -> Settled:
        """Charge the answer as far as it has come."""
        assert self.answer is not None, "only an answer can be charged"
        return settle.post(
            self.reservation,
            self._record,
            self.answer.candidate,
            self.answer.relay,
            self._need.bound.text_bytes,
            cut=cut,
            free=self._claim is not None and not self._claim.kept,
        )

    def _insufficient(self, error: InsufficientCredit) -> errors.InsufficientBalance:
        affordable = self._need.affordable_output_tokens(self._route, error.available)
        if error.kind == "account":
            whose, more = "prepaid balance", "Top up"
        else:
            whose, more = "budget of this key or project", "Raise it"
        advice = (
            f"{more}, or ask for at most {affordable} output tokens."
            if affordable
            else f"{more} to go on."
        )
        return errors.InsufficientBalance(
            f"The {whose} does not cover this request: it may cost up to "
            f"${format_usd(error.required)}, ${format_usd(error.available)} is available. {advice}",
            balance_usd=format_usd(error.balance),
            reserved_usd=format_usd(error.reserved),
            required_usd=format_usd(error.required),
            affordable_output_tokens=affordable,
        )


def _refusal(error: LedgerError, refusals: Refusals, now: float) -> errors.APIError:
    """The ledger's refusals as what the client is told."""
    match error:
        case RateLimited():
            return _rate_limited(error, refusals.limit_headers(_left(error.states), now))
        case AccountSuspended():
            return errors.AccountSuspended("The account is suspended.")
        case LedgerUnavailable():
            return errors.LedgerUnavailable(
                "The ledger cannot confirm credit right now; try again shortly.",
                retry_after=error.retry_after,
            )
        case _:
            raise error


def _limits(principal: Principal, route: Route) -> tuple[LimitRef, ...]:
    """The tier's limits and those of the model, which also count per account."""
    model = route.model
    if not model.rpm and not model.tpm:
        return principal.limits
    scope = f"account:{principal.account_id}:{model.id}"
    own = [LimitRef(scope, "rpm", model.rpm)] if model.rpm else []
    own += [LimitRef(scope, "tpm", model.tpm)] if model.tpm else []
    return (*principal.limits, *own)


def _rate_limited(error: RateLimited, headers: Headers) -> errors.RateLimited:
    limit = error.limit
    unit = {"rpm": "requests per minute", "tpm": "tokens per minute", "concurrent": "at once"}
    seconds = max(1, min(_RETRY_AFTER_SECONDS_MAX, round(error.retry_after + 0.5)))
    if error.never_fits:
        return errors.RateLimited(
            f"This request alone is larger than the limit of {limit.limit} {unit[limit.kind]} "
            f"({limit.kind}): ask for fewer tokens.",
            retry_after=_RETRY_AFTER_SECONDS_MAX,
            should_retry=False,
            details={"limit": limit.kind, "size": limit.limit},
            headers=headers,
        )
    return errors.RateLimited(
        f"Rate limit reached: {limit.limit} {unit[limit.kind]} ({limit.kind}). "
        f"Try again in {seconds} s.",
        retry_after=seconds,
        details={"limit": limit.kind, "size": limit.limit},
        headers=headers,
    )


def _left(states: Sequence[LimitState]) -> list[Left]:
    """What is told of limits; where several count the same, the tightest."""
    left = []
    for kind, unit in _UNITS:
        of_kind = [state for state in states if state.kind == kind]
        if of_kind:
            tight = min(of_kind, key=lambda state: state.remaining)
            left.append(Left(unit, tight.limit, tight.remaining, tight.reset_seconds))
    return left
