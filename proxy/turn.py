"""Whom to ask next: one request's way through the upstreams of its model, decided without I/O.

A `Turn` is asked what to do (`next`), and told what has failed. Its answers are values: `Ask` this
upstream, `Wait` until a moment, `GiveUp` with what the client is told. `fallback` carries them out.
The first step of nearly all turns is the same, and the last: it has a function of its own
(`opening`), and a turn goes on from there.

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
_SOON_SECONDS = 1.0  # an opening that ends within this is as good as over
_LOOK_SECONDS = 0.1

Why = Literal["first", "fallback", "again", "hedge"]


class Ask(msgspec.Struct, frozen=True, gc=False):
    """Ask this upstream now. `place` is held for it, and to be closed by whoever asks.

    `alone`: there is nobody else to ask, so a connection of ours may be waited for. `once`: the
    upstream may not see the request twice.
    """

    candidate: Candidate
    place: Place
    why: Why
    number: int  # in the order
    alone: bool
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


def opening(
    order: Sequence[Candidate], means: Means, now: float, account: int, *, once: bool
) -> Ask | None:
    """What nearly every request comes to: the best upstream is asked, and answers.

    Where that one is not admitted (None), or fails, a `Turn` goes on.
    """
    best = order[0]
    place = means.health.enter(best.upstream, now, account)
    if place is None:
        return None
    means.budget.asked(best.upstream.name, now)
    return Ask(best, place, "first", 0, len(order) == 1, once)


class Turn(msgspec.Struct, eq=False):
    """One request's way through `order`, upstreams with the best first.

    Moments are of `Means.monotonic`. `ends_at`: nothing is begun after it. `account` is whose it
    is. `once`: no upstream may see the request twice. An upstream's number is its place in the
    order.
    """

    order: Sequence[Candidate]
    means: Means
    ends_at: float
    account: int
    once: bool
    _times: dict[int, int] = {}  # that each was asked, by its number
    _ready_at: dict[int, float] = {}  # of who has failed; NEVER: it is not asked again
    _failures: list[tuple[Outcome, UpstreamFailure]] = []
    _fault: APIError | None = None
    _hedged: bool = False
    _inexpressible: RequestNotExpressible | None = None
    _waited: float = 0.0
    _queue_ends_at: float = 0.0

    @property
    def attempts(self) -> int:
        """So many were made, or are being made."""
        return sum(self._times.values())

    @property
    def is_over(self) -> bool:
        """The request itself was found to be at fault."""
        return self._fault is not None

    def opened(self, ask: Ask) -> None:
        """This was asked, before there was a turn."""
        self._times[ask.number] = 1

    def next(self, now: float) -> Step:
        """What to do now that no attempt runs. Waiting is taken to happen as it is told."""
        if self._fault is not None:
            return GiveUp(self._fault)
        return self._unasked(now) or self._again(now) or self._pause(now)

    def beside(self, now: float) -> Ask | None:
        """Whom to ask where one attempt has failed and another one runs."""
        return None if self._fault is not None else self._unasked(now)

    def hedge(self, slow: Ask, now: float) -> Ask | None:
        """A second attempt beside a slow one, where one may be made: at another upstream, or at the
        same one where it is the only one. The slow one's budget pays for it: it is that one's
        requests of which only a fraction is asked twice."""
        asked_for_less = any(failure.retry_after for _, failure in self._failures)
        if self._hedged or asked_for_less or self.once:
            return None
        means, payer = self.means, slow.candidate.upstream.name
        if not means.budget.allows(payer, now):
            means.budget.denied()
            return None
        for number, candidate in enumerate(self.order):
            if number not in self._times or len(self.order) == 1:
                place = means.health.enter(candidate.upstream, now, self.account)
                if place is not None:
                    means.budget.spend(payer, now)
                    self._hedged = True
                    return self._take(number, place, "hedge")
        return None

    def failed(self, ask: Ask, outcome: Outcome, failure: UpstreamFailure, now: float) -> None:
        """An attempt has ended without content."""
        verdict = VERDICTS[outcome]
        upstream = ask.candidate.upstream
        hint = failure.retry_after
        self.means.health.failed(upstream, outcome, now, hint=hint, account=self.account)
        self._failures.append((outcome, failure))
        if not verdict.elsewhere:
            self._fault = failure.client_error()
            return
        times = self._times[ask.number]
        if not verdict.again or self.once or times >= ASKED_MAX:
            self._ready_at[ask.number] = NEVER
        elif not self.means.budget.allows(upstream.name, now):
            self._deny(ask.number)
        elif hint is not None:
            self._ready_not_before(ask.number, now + hint)
        else:
            pause = _PAUSE_SECONDS * 2 ** (times - 1)
            self._ready_not_before(ask.number, now + pause * (0.5 + self.means.dice() / 2))

    def passed_over(self, ask: Ask, error: RequestNotExpressible) -> None:
        """The protocol of this upstream has no words for the request: it was not asked."""
        self._times[ask.number] -= 1
        self._ready_at[ask.number] = NEVER
        self._inexpressible = self._inexpressible or error.with_traceback(None)

    # -- the steps of `next`

    def _unasked(self, now: float) -> Ask | None:
        """The first upstream that was not asked and is admitted."""
        means, times = self.means, self._times
        for number, candidate in enumerate(self.order):
            if number not in times:
                place = means.health.enter(candidate.upstream, now, self.account)
                if place is not None:
                    means.budget.asked(candidate.upstream.name, now)
                    return self._take(number, place, "fallback" if times else "first")
        return None

    def _again(self, now: float) -> Ask | None:
        """An upstream that was asked, and whose pause is over."""
        if self._attempts_are_used_up():
            return None
        means = self.means
        for number, candidate in enumerate(self.order):
            if number not in self._times or self._ready_at.get(number, now) > now:
                continue
            name = candidate.upstream.name
            if not means.budget.allows(name, now):  # others were quicker
                self._deny(number)
                continue
            place = means.health.enter(candidate.upstream, now, self.account)
            if place is not None:
                means.budget.spend(name, now)
                return self._take(number, place, "again")
        return None

    def _pause(self, now: float) -> Wait | GiveUp:
        """Until somebody may be asked, if that is soon enough."""
        soonest, room = NEVER, None
        for number, candidate in enumerate(self.order):
            at, full = self._may_be_asked_at(number, candidate.upstream, now)
            if at < soonest:
                soonest, room = at, candidate.upstream if full else None
        left = min(self.ends_at - now, WAITS_SECONDS_MAX - self._waited)
        if soonest - now > left:
            return GiveUp(self._refusal(now))
        self._waited += soonest - now
        return Wait(soonest, room)

    def _may_be_asked_at(self, number: int, upstream: Upstream, now: float) -> tuple[float, bool]:
        """(The moment, whether it may come sooner, because only a place is missing)."""
        ready_at = self._ready_at.get(number, now)
        if ready_at == NEVER or (number in self._times and self._attempts_are_used_up()):
            return NEVER, False
        state, until = self.means.health.look(upstream, now, account=self.account)
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

    def _ready_not_before(self, number: int, moment: float) -> None:
        self._ready_at[number] = max(self._ready_at.get(number, moment), moment)

    def _deny(self, number: int) -> None:
        self._ready_at[number] = NEVER
        self.means.budget.denied()

    def _attempts_are_used_up(self) -> bool:
        return self.attempts >= max(ATTEMPTS_MAX, len(self.order))

    def _take(self, number: int, place: Place, why: Why) -> Ask:
        times = self._times
        times[number] = times.get(number, 0) + 1
        alone = len(times) == len(self.order)
        return Ask(self.order[number], place, why, number, alone, self.once)

    def _refusal(self, now: float) -> APIError:
        """What the client hears, by all that is known of its upstreams."""
        if not self._failures and self._inexpressible is not None:
            return self._inexpressible
        health = self.means.health
        waits = [failure.retry_after for _, failure in self._failures if failure.retry_after]
        shut: list[Outcome] = []
        for number, candidate in enumerate(self.order):
            upstream = candidate.upstream
            if number not in self._times:
                shut.append(shut_by(health.state(upstream, now)))
            state, until = health.look(upstream, now, account=self.account)
            if state in (State.OPEN, State.RESTING):
                waits.append(until - now)
        return refusal([outcome for outcome, _ in self._failures], shut, waits)
