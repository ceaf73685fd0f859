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
from adapters.codec import Expected, Headers, Refusals
from adapters.limits import Left, Unit
from ledger.client import LimitRef, LimitState, Reservation, ReservationRequest, Settled
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
_UNITS: Sequence[tuple[str, Unit]] = (("rpm", "requests"), ("tpm", "tokens"))
_ECHOED = re.compile(r"[!-~]([ -~]*[!-~])?")  # what any client reads in a header as it was written


async def admit(gateway: Gateway, route: Route, record: Record) -> Headers:
    """Count a request that costs nothing: limits and suspension hold for it, credit does not.

    The headers tell what is left of the limits. Raises APIError.
    """
    now = gateway.wall()
    try:
        reservation = await gateway.ledger.reserve(_request(route, record, amount=0, tokens=0))
    except LedgerError as error:
        raise _refusal(error, record.refusals, now) from error
    reservation.void()
    return record.refusals.limit_headers(_left(reservation.limits), now)


class Hold:
    """A reservation for the time of one exchange. Leaving it settles or gives back, always.

    With an answer: what was produced is charged. Without: nothing is, and a provider that was
    contacted leaves an event that says so. Where there is a `claim`, nothing is charged before it
    has kept the answer.
    """

    __slots__ = (
        "_begun",
        "_claim",
        "_ledger",
        "_loss",
        "_need",
        "_now",
        "_outputs",
        "_record",
        "_request",
        "_route",
        "answer",
        "reservation",
    )

    def __init__(
        self, gateway: Gateway, route: Route, need: Need, record: Record, claim: Claim | None = None
    ) -> None:
        self._ledger = gateway.ledger
        self._outputs = gateway.outputs  # those to begin with; None: the whole cap is held
        self._now = gateway.wall()  # for what is said of limits
        self._route = route
        self._need = need
        self._record = record
        self._claim = claim
        self._begun = self._first_tokens(need)
        record.reserved = _askable(need.amount_of(self._begun, route))
        tokens = need.bound.input_tokens + self._begun
        self._request = _request(route, record, amount=record.reserved, tokens=tokens)
        self._loss: Loss | None = None  # the last one: it may be what ends the reservation
        self.answer: Answer | None = None
        self.reservation: Reservation

    def _first_tokens(self, need: Need) -> int:
        """The output to begin with."""
        outputs = self._outputs
        if outputs is None or need.is_capped or not need.stream:
            return need.output_tokens
        usual = outputs.start(self._route.model.id) * need.choices
        return min(usual, need.output_tokens)

    async def __aenter__(self) -> Self:
        try:
            self.reservation = await self._reserved()
        except InsufficientCredit as error:
            raise self._insufficient(error) from error
        except LedgerError as error:
            raise _refusal(error, self._record.refusals, self._now) from error
        self._record.ending = "voided"  # unless it is settled
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
            if self._claim is not None and isinstance(self.answer, StreamAnswer):
                cut = errors.UpstreamTimeout("The answer was cut short: it took too long.")
                last = self.answer.relay.error_event(cut, self._record.id)
                await self._claim.keep_cut(last)
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
            loss = Loss(self.answer.candidate, EventStatus.UNKNOWN, self._record.duration_ms)
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

    @property
    def output_cap(self) -> int | None:
        """The output tokens that an upstream may be asked for, in each answer."""
        return self._need.output_cap

    def allowance(self, candidate: Candidate) -> Allowance | None:
        """What a stream of `candidate` may produce, where less than its cap is held."""
        need = self._need
        if self._begun == need.output_tokens:
            return None
        return Allowance(
            self.reservation,
            partial(need.amount_at, candidate),
            need.output_tokens,
            need.expected(candidate),
        )

    def expected(self, candidate: Candidate) -> Expected:
        """The input that the request most probably has at one upstream."""
        return self._need.expected(candidate)

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
        candidate = self.answer.candidate
        return settle.quote(
            self.reservation,
            candidate,
            self.answer.relay,
            self._need.expected(candidate),
            self._plausible,
        )

    @property
    def _plausible(self) -> int:
        """What the request may cost at most, also where less than that is held."""
        whole = self._begun == self._need.output_tokens
        return self.reservation.amount if whole else self._need.amount(self._route)

    def settle(self, *, cut: bool = False) -> Settled:
        """Charge the answer as far as it has come."""
        assert self.answer is not None, "only an answer can be charged"
        self._book_loss()
        if self._outputs is not None and not cut:
            self._learn(self._outputs, self.answer)
        candidate = self.answer.candidate
        return settle.post(
            self.reservation,
            self._record,
            candidate,
            self.answer.relay,
            self._need.expected(candidate),
            self._plausible,
            cut=cut,
            free=self._claim is not None and not self._claim.kept,
        )

    async def _reserved(self) -> Reservation:
        """The reservation, with a lower cap where only that is affordable. Raises LedgerError."""
        for _ in self._request.pools:  # the account and each budget may have less than another
            try:
                return await self._ledger.reserve(self._request)
            except InsufficientCredit as error:
                if not self._lower_cap(error.available):
                    raise
        return await self._ledger.reserve(self._request)

    def _lower_cap(self, available: int) -> bool:
        """Need no more than `available` nano-dollars; False where that cannot be."""
        need = self._need
        if self._outputs is None or need.output_cap is None or need.is_capped:
            return False
        cap = min(need.affordable_output_tokens(self._route, available), need.output_cap)
        if cap < OUTPUT_TOKENS_MIN:
            return False
        self._need = need = need.capped(cap)
        self._begun = need.output_tokens
        self._record.reserved = _askable(need.amount(self._route))
        self._request = msgspec.structs.replace(
            self._request,
            amount=self._record.reserved,
            tokens=need.bound.input_tokens + need.output_tokens,
        )
        return True

    def _learn(self, outputs: Outputs, answer: Answer) -> None:
        """Remember how long the answer became, if nothing of ours or the client's limited it."""
        need = self._need
        if need.is_capped or need.is_lowered:
            return
        if isinstance(answer, StreamAnswer) and not answer.relay.cut:
            outputs.add(self._route.model.id, answer.relay.output_tokens // need.choices)

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


def _request(route: Route, record: Record, *, amount: int, tokens: int) -> ReservationRequest:
    """What is said to the ledger; until it is known who serves, the first candidate stands."""
    principal, first = record.principal, route.candidates[0]
    assert principal is not None, "it was authenticated"
    return ReservationRequest(
        request_id=record.request_id,
        account_id=principal.account_id,
        key_id=principal.key_id,
        pools=principal.pools,
        amount=amount,
        tokens=tokens,
        limits=_limits(principal, route),
        model_id=route.model_id,
        provider_id=first.provider_id,
        price_id=first.base_price.price_id,
        endpoint=record.operation.number,
    )


def _askable(amount: int) -> int:
    """What to ask the ledger for: it knows no more than AMOUNT_MAX, which nobody has."""
    return min(amount, AMOUNT_MAX)


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
    scope = f"account:{principal.account_id}/model:{route.model_id}"
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
