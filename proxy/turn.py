"""Whom to ask next: one request's way through the upstreams of its model, decided without I/O.

A `Turn` is asked what to do (`next`), and told how that went. Its answers are values: `Ask` this
upstream, `Wait` until a moment, `GiveUp` with what the client is told. `fallback` carries them out.

The rules, in this order:

1. What is the request's own fault ends it at once.
2. Upstreams that were not asked yet, in the order given, as long as their `Health` admits them: one
   whose circuit is open, that rests, or that is full is passed over. A failure starts the next one
   without any pause.
3. Where none of those is left, an upstream whose failure may pass is asked again: after the time
   that it named, else after half a second, then a second, each shortened by chance so that clients
   who failed together do not return together. At most `ASKED_MAX` times each and `ATTEMPTS_MAX` in
   all, with `WAITS_SECONDS_MAX` of pauses, never past the request's deadline, and only within the
   retry budget.
4. Where all are only resting or full, or somebody just finds out whether one is back, and that ends
   soon, it is waited for.

A request during which the provider may run tools is not said again to an upstream that has seen it:
those would run twice.

A *hedge* is a second attempt beside a first one that is slow (`hedge`): one a request, within the
budget, and never where a provider has asked for less. As long as an attempt runs, nobody is asked
again: a failure beside it starts only who was not asked yet (`beside`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec

from adapters.catalogue import Upstream
from adapters.codec import UpstreamFailure
from adapters.errors import APIError, RequestNotExpressible
from proxy.budget import Budget
from proxy.deadlines import NEVER
from proxy.health import Health, Place, State
from proxy.refusal import refusal, shut_by
from proxy.route import Candidate
from proxy.verdicts import VERDICTS, Outcome

ASKED_MAX = 3
ATTEMPTS_MAX = 4  # or as many as there are upstreams
WAITS_SECONDS_MAX = 10.0

_PAUSE_SECONDS = 0.5
_PROBE_SECONDS = 30.0  # a head in this time, or the upstream is still away
_SOON_SECONDS = 1.0  # an opening that ends within this is as good as over
_LOOK_SECONDS = 0.1

Why = Literal["first", "fallback", "again", "hedge"]


class Ask(msgspec.Struct, frozen=True, gc=False):
    """Ask this upstream now. `place` is held for it, and to be closed by whoever asks.

    `queue_seconds` may be waited for a connection of ours: there is nobody else to ask. A probe has
    to show within `first_byte_seconds` that its upstream is back (None: as configured). `once`: the
    upstream may not see the request twice.
    """

    candidate: Candidate
    place: Place
    why: Why
    queue_seconds: float
    first_byte_seconds: float | None
    number: int  # in the order
    once: bool


class Wait(msgspec.Struct, frozen=True, gc=False):
    """Nobody may be asked before `until`, unless `room` is made at an upstream meanwhile."""

    until: float
    room: Upstream | None = None


class GiveUp(msgspec.Struct, frozen=True, gc=False):
    """Nobody is left to ask."""

    error: APIError


Step = Ask | Wait | GiveUp


@dataclass(frozen=True, slots=True)
class Means:
    """What all requests of a worker decide by. `dice` gives a chance from 0 to 1, `monotonic`
    seconds on a clock that all workers of a node share."""

    health: Health
    budget: Budget
    dice: Callable[[], float]
    monotonic: Callable[[], float]


class _Tried(msgspec.Struct, gc=False):
    """What a request knows of one upstream that it has asked."""

    asked: int = 0
    ready_at: float = 0.0  # NEVER: it is not asked again


class Turn:
    """One request's way through `order`, upstreams with the best first.

    Moments are of `Means.monotonic`. `ends_at`: nothing is begun after it. `repeatable`: an
    upstream may see the request twice. `account` is whose it is.
    """

    __slots__ = (
        "_account",
        "_ends_at",
        "_failures",
        "_fault",
        "_hedged",
        "_inexpressible",
        "_means",
        "_order",
        "_queue_ends_at",
        "_repeatable",
        "_tried",
        "_waited",
        "attempts",
    )

    def __init__(
        self,
        order: Sequence[Candidate],
        means: Means,
        ends_at: float,
        account: int,
        *,
        repeatable: bool,
    ) -> None:
        self.attempts = 0
        self._order = order
        self._means = means
        self._ends_at = ends_at
        self._account = account
        self._repeatable = repeatable
        self._tried: list[_Tried | None] = [None] * len(order)
        self._failures: list[tuple[Outcome, UpstreamFailure]] = []
        self._fault: APIError | None = None
        self._hedged = False
        self._inexpressible: RequestNotExpressible | None = None
        self._waited = 0.0
        self._queue_ends_at = 0.0

    @property
    def is_over(self) -> bool:
        """The request itself was found to be at fault."""
        return self._fault is not None

    def next(self, now: float) -> Step:
        """What to do now that no attempt runs. Waiting is taken to happen as it is told."""
        if self._fault is not None:
            return GiveUp(self._fault)
        return self._unasked(now) or self._asked(now) or self._pause(now)

    def beside(self, now: float) -> Ask | None:
        """Whom to ask where one attempt has failed and another one runs."""
        return None if self._fault is not None else self._unasked(now)

    def hedge(self, slow: Ask, now: float) -> Ask | None:
        """A second attempt beside a slow one, where one may be made: at another upstream, or at the
        same one where it is the only one. The slow one's budget pays for it: it is that one's
        requests of which only a fraction is asked twice."""
        asked_for_less = any(failure.retry_after for _, failure in self._failures)
        if self._hedged or asked_for_less or not self._repeatable:
            return None
        means, payer = self._means, slow.candidate.upstream.name
        if not means.budget.allows(payer, now):
            means.budget.denied()
            return None
        for number, candidate in enumerate(self._order):
            if self._tried[number] is None or len(self._order) == 1:
                place = means.health.enter(candidate.upstream, now, account=self._account)
                if place is not None:
                    means.budget.spend(payer, now)
                    self._hedged = True
                    return self._take(number, place, "hedge")
        return None

    def answered(self, ask: Ask, now: float, *, whole: bool) -> None:
        """An attempt has content: a whole answer, or the beginning of one."""
        upstream, health = ask.candidate.upstream, self._means.health
        if whole:
            health.served(upstream, now, account=self._account)
        else:
            health.spoke(upstream, account=self._account)

    def failed(self, ask: Ask, outcome: Outcome, failure: UpstreamFailure, now: float) -> None:
        """An attempt has ended without content."""
        verdict = VERDICTS[outcome]
        upstream = ask.candidate.upstream
        hint = failure.retry_after
        self._means.health.failed(upstream, outcome, now, hint=hint, account=self._account)
        self._failures.append((outcome, failure))
        if not verdict.elsewhere:
            self._fault = failure.client_error()
            return
        tried = self._tried[ask.number]
        assert tried is not None, "it was asked"
        if not verdict.again or not self._repeatable or tried.asked >= ASKED_MAX:
            tried.ready_at = NEVER
        elif not self._means.budget.allows(upstream.name, now):
            self._deny(tried)
        elif hint is not None:
            tried.ready_at = max(tried.ready_at, now + hint)
        else:
            pause = _PAUSE_SECONDS * 2 ** (tried.asked - 1)
            tried.ready_at = max(tried.ready_at, now + pause * (0.5 + self._means.dice() / 2))

    def passed_over(self, ask: Ask, error: RequestNotExpressible) -> None:
        """The protocol of this upstream has no words for the request: it was not asked."""
        tried = self._tried[ask.number]
        assert tried is not None, "it was to be asked"
        tried.ready_at = NEVER
        self.attempts -= 1
        self._inexpressible = self._inexpressible or error

    # -- the steps of `next`

    def _unasked(self, now: float) -> Ask | None:
        """The first upstream that was not asked and is admitted."""
        means = self._means
        for number, candidate in enumerate(self._order):
            if self._tried[number] is None:
                place = means.health.enter(candidate.upstream, now, account=self._account)
                if place is not None:
                    means.budget.asked(candidate.upstream.name, now)
                    return self._take(number, place, "fallback" if self.attempts else "first")
        return None

    def _asked(self, now: float) -> Ask | None:
        """An upstream that was asked, and whose pause is over."""
        if self._attempts_are_used_up():
            return None
        means = self._means
        for number, candidate in enumerate(self._order):
            tried = self._tried[number]
            if tried is None or tried.ready_at > now:
                continue
            name = candidate.upstream.name
            if not means.budget.allows(name, now):  # others were quicker
                self._deny(tried)
                continue
            place = means.health.enter(candidate.upstream, now, account=self._account)
            if place is not None:
                means.budget.spend(name, now)
                return self._take(number, place, "again")
        return None

    def _pause(self, now: float) -> Wait | GiveUp:
        """Until somebody may be asked, if that is soon enough."""
        soonest, room = NEVER, None
        for number, candidate in enumerate(self._order):
            at, full = self._may_be_asked_at(number, candidate.upstream, now)
            if at < soonest:
                soonest, room = at, candidate.upstream if full else None
        left = min(self._ends_at - now, WAITS_SECONDS_MAX - self._waited)
        if soonest - now > left:
            return GiveUp(self._refusal(now))
        self._waited += soonest - now
        return Wait(soonest, room)

    def _may_be_asked_at(self, number: int, upstream: Upstream, now: float) -> tuple[float, bool]:
        """(The moment, whether it may come sooner, because only a place is missing)."""
        tried = self._tried[number]
        ready_at = now
        if tried is not None:
            if tried.ready_at == NEVER or self._attempts_are_used_up():
                return NEVER, False
            ready_at = tried.ready_at
        state, until = self._means.health.look(upstream, now, account=self._account)
        if state is State.RESTING:
            return max(ready_at, until), False
        if state is State.OPEN and until > now + _SOON_SECONDS:
            return NEVER, False
        if ready_at > now:
            return ready_at, False
        # It could be asked, but somebody else finds out whether it is back, or there is no place.
        patient_until = self._patient_until(upstream, now)
        if until > patient_until or now >= patient_until:
            return NEVER, False
        full = state in (State.FULL, State.READY)
        return (patient_until, True) if full else (max(until, now + _LOOK_SECONDS), False)

    def _patient_until(self, upstream: Upstream, now: float) -> float:
        """Until when a request waits for what may come at any moment: as long as for a connection.
        Who would wait longer is told at once."""
        self._queue_ends_at = self._queue_ends_at or now + upstream.provider.connect_seconds
        return self._queue_ends_at

    def _deny(self, tried: _Tried) -> None:
        tried.ready_at = NEVER
        self._means.budget.denied()

    def _attempts_are_used_up(self) -> bool:
        return self.attempts >= max(ATTEMPTS_MAX, len(self._order))

    def _take(self, number: int, place: Place, why: Why) -> Ask:
        tried = self._tried[number]
        if tried is None:
            tried = self._tried[number] = _Tried()
        tried.asked += 1
        self.attempts += 1
        candidate = self._order[number]
        alone = None not in self._tried
        queue_seconds = candidate.upstream.provider.connect_seconds if alone else 0.0
        first_byte_seconds = None
        if place.probe:
            first_byte_seconds = min(candidate.upstream.provider.first_byte_seconds, _PROBE_SECONDS)
        once = not self._repeatable
        return Ask(candidate, place, why, queue_seconds, first_byte_seconds, number, once)

    def _refusal(self, now: float) -> APIError:
        """What the client hears, by all that is known of its upstreams."""
        if not self._failures and self._inexpressible is not None:
            return self._inexpressible
        health = self._means.health
        waits = [failure.retry_after for _, failure in self._failures if failure.retry_after]
        shut: list[Outcome] = []
        for tried, candidate in zip(self._tried, self._order, strict=True):
            upstream = candidate.upstream
            if tried is None:
                shut.append(shut_by(health.state(upstream, now)))
            state, until = health.look(upstream, now, account=self._account)
            if state in (State.OPEN, State.RESTING):
                waits.append(until - now)
        return refusal([outcome for outcome, _ in self._failures], shut, waits)
