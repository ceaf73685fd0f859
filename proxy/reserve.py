"""Nothing is sent upstream before its cost is set aside.

The amount held is an upper bound (`proxy.need`): the most input tokens that the body can be, the
whole output cap, at the dearest row of the dearest upstream that may serve, plus margin. Credit,
budgets, rpm, tpm and concurrency are decided by the ledger in one call.

With `billing.reserve = "adaptive"` there is less to hold where the client set no cap of its own. A
stream begins with as much output as its model's answers usually have, and its `Allowance` has the
reservation grow. And what the balance does not cover is tried once more with the cap that it does
cover, down to a few dozen tokens, so that credit can be spent to its end. A cap of the client's is
never changed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from types import TracebackType
from typing import Self

import msgspec

from adapters import errors
from adapters.codec import Headers, Refusals
from adapters.limits import Left, Unit
from ledger.client import LimitKind, LimitRef, LimitState, Reservation, ReservationRequest, Settled
from ledger.errors import (
    AccountSuspended,
    InsufficientCredit,
    LedgerError,
    LedgerUnavailable,
    RateLimited,
)
from ledger.money import AMOUNT_MAX, format_usd
from ledger.store import EventStatus
from proxy import settle
from proxy.allowance import OUTPUT_TOKENS_MIN, Allowance
from proxy.attempt import Answer, Loss, StreamAnswer
from proxy.authenticate import Principal
from proxy.gateway import Gateway
from proxy.idempotency import Claim
from proxy.need import Need
from proxy.outputs import Outputs
from proxy.record import Record
from proxy.route import Candidate, Route

_RETRY_AFTER_SECONDS_MAX = 60
_ECHOED_CHARACTERS_MAX = 512
_UNITS: Sequence[tuple[LimitKind, Unit]] = (("rpm", "requests"), ("tpm", "tokens"))
_ECHOED = re.compile(r"[!-~]([ -~]*[!-~])?")  # what any client reads in a header as it was written


async def admit(gateway: Gateway, route: Route, record: Record) -> Headers:
    """Count a request that costs nothing: limits and suspension hold for it, credit does not.

    The headers tell what is left of the limits. Raises APIError.
    """
    now = gateway.wall()
    try:
        reservation = await gateway.ledger.reserve(_request(route, record, 0, 0))
    except LedgerError as error:
        raise _refusal(error, record.refusals, now) from error
    reservation.void()
    return _limit_headers(reservation.limits, record.refusals, now)


async def hold(
    gateway: Gateway, route: Route, need: Need, record: Record, claim: Claim | None = None
) -> Hold:
    """Set aside what a request may cost; to be entered at once. Raises APIError.

    Where only a lower cap is affordable, and may be set, less is needed.
    """
    outputs, begun = gateway.outputs, need.output_tokens
    if outputs is not None and need.stream and not need.is_capped:
        begun = min(outputs.start(route.model.id) * need.choices, begun)
    lowered = 0
    while True:
        record.reserved = amount = min(need.amount_of(begun, route), AMOUNT_MAX)
        request = _request(route, record, amount, need.bound.input_tokens + begun)
        try:
            reservation = await gateway.ledger.reserve(request)
        except InsufficientCredit as error:
            less = _affordable(need, route, error.available) if outputs is not None else None
            if less is None or lowered == len(request.pools):  # each may have less than another
                raise _insufficient(error, need, route) from error
            need, begun = less, less.output_tokens
            lowered += 1
        except LedgerError as error:
            raise _refusal(error, record.refusals, gateway.wall()) from error
        else:
            record.ending = "voided"  # unless it is settled
            return Hold(gateway, route, need, record, claim, reservation, begun)


class Hold(msgspec.Struct, eq=False):
    """A reservation for the time of one exchange. Leaving it settles or gives back, always.

    With an answer: what was produced is charged. Without: nothing is, and a provider that was
    contacted leaves an event that says so. Where there is a `claim`, nothing is charged before it
    has kept the answer. `begun` are the output tokens that it begins with.
    """

    gateway: Gateway
    route: Route
    need: Need
    record: Record
    claim: Claim | None
    reservation: Reservation
    begun: int
    answer: Answer | None = None
    _loss: Loss | None = None  # the last one: it may be what ends the reservation

    async def __aenter__(self) -> Self:
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
        try:
            await self._end()
        finally:  # whatever went wrong there, nothing stays held
            self._void()

    async def _end(self) -> None:
        """Charge what has come of an answer; void what never became one."""
        if self.answer is not None:
            if self.claim is not None and isinstance(self.answer, StreamAnswer):
                cut = errors.UpstreamTimeout("The answer was cut short: it took too long.")
                last = self.answer.relay.error_event(cut, self.record.id)
                await self.claim.keep_cut(last)
            self.settle(cut=True)

    def lost(self, loss: Loss) -> None:
        """An attempt has ended without an answer, at a provider that may bill it."""
        self._book_loss()
        self._loss = loss

    def _book_loss(self) -> None:
        """The reservation goes on after the last loss: that becomes an event of its own."""
        if (loss := self._loss) is not None:
            self._loss = None
            self.reservation.attempt(
                provider_id=loss.candidate.provider_id,
                price_id=loss.candidate.base_price.price_id,
                status=loss.status,
                cost=loss.cost,
                duration_ms=loss.duration_ms,
            )

    def _void(self) -> None:
        """Charge nothing. The last loss ends the reservation, if there was one."""
        loss = self._loss
        if loss is None and self.answer is not None:  # which could not be settled
            loss = Loss(self.answer.candidate, EventStatus.UNKNOWN, self.record.duration_ms)
        if loss is None:
            self.reservation.void()
            return
        self.reservation.void(
            status=loss.status,
            provider_id=loss.candidate.provider_id,
            price_id=loss.candidate.base_price.price_id,
            cost=loss.cost,
            duration_ms=loss.duration_ms,
        )

    def allowance(self, candidate: Candidate) -> Allowance | None:
        """What a stream of `candidate` may produce, where less than its cap is held."""
        need = self.need
        if self.begun == need.output_tokens:
            return None
        return Allowance(
            self.reservation,
            partial(need.amount_at, candidate),
            need.output_tokens,
            need.expected(candidate),
        )

    def headers(self, conversation_id: str) -> Headers:
        """What the answer says of the model, the route and the limits."""
        headers = [*self.route.headers]
        if conversation_id and _may_be_echoed(conversation_id):
            headers.append(("x-farebox-conversation-id", conversation_id))
        if limits := self.reservation.limits:
            headers += _limit_headers(limits, self.record.refusals, self.gateway.wall())
        return headers

    def quote(self) -> tuple[int, bool]:
        """What the complete answer will be charged, and whether that is estimated."""
        assert self.answer is not None, "only an answer has a price"
        candidate = self.answer.candidate
        return settle.quote(
            self.reservation,
            candidate,
            self.answer.relay,
            self.need.expected(candidate),
            self._plausible(),
        )

    def settle(self, *, cut: bool = False) -> Settled:
        """Charge the answer as far as it has come."""
        answer, claim, outputs = self.answer, self.claim, self.gateway.outputs
        assert answer is not None, "only an answer can be charged"
        if self._loss is not None:
            self._book_loss()
        if outputs is not None and not cut:
            self._learn(outputs, answer)
        candidate = answer.candidate
        return settle.post(
            self.reservation,
            self.record,
            candidate,
            answer.relay,
            self.need.expected(candidate),
            self._plausible(),
            cut=cut,
            free=claim is not None and not claim.kept,
        )

    def _plausible(self) -> int:
        """What the request may cost at most, also where less than that is held."""
        whole = self.begun == self.need.output_tokens
        return self.reservation.amount if whole else self.need.amount(self.route)

    def _learn(self, outputs: Outputs, answer: Answer) -> None:
        """Remember how long the answer became, if nothing of ours or the client's limited it."""
        need = self.need
        if need.is_capped or need.is_lowered:
            return
        if isinstance(answer, StreamAnswer) and not answer.relay.cut:
            outputs.add(self.route.model.id, answer.relay.output_tokens // need.choices)


def _request(route: Route, record: Record, amount: int, tokens: int) -> ReservationRequest:
    """What is said to the ledger; until it is known who serves, the first candidate stands."""
    principal, model, first = record.principal, route.model, route.candidates[0]
    assert principal is not None, "it was authenticated"
    limits = principal.limits
    if model.rpm or model.tpm:
        limits += _model_limits(principal, route)
    return ReservationRequest(
        record.request_id,
        principal.account_id,
        principal.key_id,
        principal.pools,
        amount,
        tokens,
        limits,
        route.model_id,
        first.provider_id,
        first.base_price.price_id,
        record.operation.number,
    )


def _may_be_echoed(conversation_id: str) -> bool:
    short = len(conversation_id) <= _ECHOED_CHARACTERS_MAX
    return short and _ECHOED.fullmatch(conversation_id) is not None


def _affordable(need: Need, route: Route, available: int) -> Need | None:
    """What needs no more than `available` nano-dollars; None where that cannot be."""
    if need.output_cap is None or need.is_capped:
        return None
    cap = min(need.affordable_output_tokens(route, available), need.output_cap)
    return None if cap < OUTPUT_TOKENS_MIN else need.capped(cap)


def _insufficient(
    error: InsufficientCredit, need: Need, route: Route
) -> errors.InsufficientBalance:
    affordable = need.affordable_output_tokens(route, error.available)
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
            return _rate_limited(error, _limit_headers(error.states, refusals, now))
        case AccountSuspended():
            return errors.AccountSuspended("The account is suspended.")
        case LedgerUnavailable():
            return errors.LedgerUnavailable(
                "The ledger cannot confirm credit right now; try again shortly.",
                retry_after=error.retry_after,
            )
        case _:
            raise error


def _model_limits(principal: Principal, route: Route) -> tuple[LimitRef, ...]:
    """Those of a model, which also count per account."""
    scope, model = f"account:{principal.account_id}/model:{route.model_id}", route.model
    limits = [LimitRef(scope, "rpm", model.rpm)] if model.rpm else []
    limits += [LimitRef(scope, "tpm", model.tpm)] if model.tpm else []
    return tuple(limits)


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


def _limit_headers(states: Sequence[LimitState], refusals: Refusals, now: float) -> Headers:
    """What is told of limits; where several count the same, the tightest."""
    tightest: dict[LimitKind, LimitState] = {}
    for state in states:
        known = tightest.get(state.kind)
        if known is None or state.remaining < known.remaining:
            tightest[state.kind] = state
    left = [
        Left(unit, tight.limit, tight.remaining, tight.reset_seconds)
        for kind, unit in _UNITS
        if (tight := tightest.get(kind)) is not None
    ]
    return refusals.limit_headers(left, now)
