"""An upstream as one worker sees it: whether it may be asked, its places in flight, its queue.

Two circuits decide whether it may be asked, its own and its provider's (`proxy.breaker`); an
attempt while one of them is half-open is its probe, and where both are, of both.

The queue is only for an upstream that has a limit, first come, first served. Each worker has its
own, and whoever is first in it looks four times a second whether other workers have left a place.
"""

from __future__ import annotations

import enum
import math
from collections import deque
from dataclasses import dataclass
from typing import Final

import msgspec
import trio

from adapters.catalogue import Upstream
from proxy import circuit
from proxy.breaker import Breaker
from proxy.circuit import FAILURES, LIMIT, LIMITED_UNTIL, RESTS_UNTIL, UNEASY, UNTIL, seconds
from proxy.shared_rows import Row
from proxy.verdicts import Outcome

_LOOK_SECONDS: Final = 0.25
_USED: Final = 0.8  # of a limit: below it nothing is learnt from what goes well
_INTERVAL_WEIGHT: Final = 0.1


class State(enum.Enum):
    """Whether an upstream may be asked. PROBE: by one request at a time."""

    READY = "ready"
    PROBE = "probe"
    OPEN = "open"
    RESTING = "resting"
    FULL = "full"


@dataclass(frozen=True, slots=True)
class UpstreamState:
    """An upstream for whoever looks.

    `by` is whose circuit or rest it is: the upstream's own, or its provider's. `until` is when that
    may be otherwise, `cause` the last outcome that was counted. `limit` is 0 where there is none.
    """

    name: str
    provider: str
    state: State
    by: str
    until: float
    failures: int
    cause: Outcome | None
    in_flight: int
    limit: int


class Place(msgspec.Struct, eq=False):
    """One attempt in flight, of an account; `taken` until it is given back."""

    seat: Seat
    account: int
    probe: bool
    taken: bool = True

    def spoke(self) -> None:
        """It has said its first content."""
        self.seat.spoke(self.account)

    def served(self, now: float) -> None:
        """It has answered to the end, and is given back: what was learnt of a limit counts it."""
        self.seat.served(now, self.account)
        self.close()

    def close(self) -> None:
        """Give it back. May be called twice."""
        if self.taken:
            self.taken = False
            seat = self.seat
            seat.words[seat.place] -= 1
            if self.probe:
                seat.own.release(self)
                seat.provider.release(self)
            if seat.queue:
                seat.queue[0].set()


class Seat:
    """An upstream as one worker sees it."""

    def __init__(self, own: Breaker, provider: Breaker, row: Row, limit_max: int) -> None:
        self.own = own
        self.provider = provider
        self.words = own.words
        self.provider_words = provider.words
        self.place = row.place
        self.answers = 0
        self.queue: deque[trio.Event] = deque()
        self._places = row.places
        self._limit_max = limit_max
        self._called: trio.lowlevel.Task | None = None
        self._credit = 0.0
        self._answered = math.inf  # the latest whole answer while the limit was used
        self._interval_seconds = 0.0
        own.seats.append(self)
        provider.seats.append(self)

    def in_flight(self) -> int:
        """Attempts in flight, of the whole node."""
        return sum(self._places)

    def look(self, now: float, account: int) -> tuple[State, float]:
        """As of Health."""
        closed = max(self.own.open_until(now, account), self.provider.open_until(now, account))
        if closed:
            return State.OPEN, closed
        if (rested := seconds(self.words[RESTS_UNTIL])) > now:
            return State.RESTING, rested
        if self._is_full(now):
            return State.FULL, self._expected(now)
        own, provider = self.words, self.provider_words
        if circuit.is_open_to(own, account) or circuit.is_open_to(provider, account):
            return State.PROBE, now
        return State.READY, now

    def enter(self, now: float, account: int) -> Place | None:
        """As of Health."""
        state, _ = self.look(now, account)
        if state is not State.READY and state is not State.PROBE:
            return None
        place = Place(self, account, state is State.PROBE)
        if place.probe and not self._claim(place, now, account):
            return None
        self._called = None
        self.words[self.place] += 1
        return place

    def _claim(self, place: Place, now: float, account: int) -> bool:
        if self.provider.claim(place, now, account):
            if self.own.claim(place, now, account):
                return True
            self.provider.release(place)
        return False

    def spoke(self, account: int) -> None:
        """As of Health."""
        if self.words[UNTIL]:  # otherwise it breaks no run of failures
            self.own.alive(account)
        if self.provider_words[UNTIL]:
            self.provider.alive()

    def served(self, now: float, account: int) -> None:
        """As of Health."""
        self.answers += 1
        words = self.words
        if account:
            circuit.serve(words, account, now)
        if words[UNEASY] or self.provider_words[UNEASY]:
            self._calm(now, account)

    def _calm(self, now: float, account: int) -> None:
        self.own.calm(now, account)
        self.provider.calm(now, account)
        if self.words[LIMIT]:
            self._learn(now)

    # -- limit ----------------------------------------------------------------------------------

    def _learn(self, now: float) -> None:
        """More may be in flight, the more answers there are while the limit is used."""
        limit = self.words[LIMIT]
        if self.in_flight() < _USED * limit:
            self._answered = math.inf
            return
        if self._answered < now:
            interval = now - self._answered
            weight = _INTERVAL_WEIGHT if self._interval_seconds else 1
            self._interval_seconds += weight * (interval - self._interval_seconds)
        self._answered = now
        self._credit += circuit.growth(self.words, now)
        if self._credit >= 1:
            self._credit = 0
            self.own.raise_limit(self._limit_max)

    def _is_full(self, now: float) -> bool:
        words = self.words
        if not words[LIMIT]:
            return False
        if now >= seconds(words[LIMITED_UNTIL]):
            self.own.forget_limit()
            return False
        if self.in_flight() >= words[LIMIT]:
            return True
        return bool(self.queue) and trio.lowlevel.current_task() is not self._called

    def _expected(self, now: float) -> float:
        """When who waits from now on may have a place; never, where as many wait as may."""
        waiting = len(self.queue)
        if waiting >= self.words[LIMIT]:
            return math.inf
        return now + (waiting + 1) * self._interval_seconds

    async def room(self) -> None:
        """As of Health."""
        bell = trio.Event()
        self.queue.append(bell)
        try:
            if self.queue[0] is not bell:
                await bell.wait()
            while self._held():
                self.queue[0] = bell = trio.Event()
                with trio.move_on_after(_LOOK_SECONDS):
                    await bell.wait()
        finally:
            first = self.queue[0] is bell
            self.queue.remove(bell)
            if first and self.queue:
                self.queue[0].set()
        self._called = trio.lowlevel.current_task()

    def _held(self) -> bool:
        """Whether it is the limit, and nothing else, that keeps the first one waiting."""
        closed = self.words[UNTIL] or self.provider_words[UNTIL]
        return 0 < self.words[LIMIT] <= self.in_flight() and not closed

    # -- what others see ----------------------------------------------------------------------

    def state(self, upstream: Upstream, now: float) -> UpstreamState:
        """A snapshot. Whether somebody probes is not said: that is over soon."""
        closed = max((self.own, self.provider), key=lambda each: each.words[UNTIL])
        until, rests = seconds(closed.words[UNTIL]), seconds(self.words[RESTS_UNTIL])
        limit, in_flight = self.words[LIMIT], self.in_flight()
        by, moment, state = self.own, now, State.READY
        if until > now:
            by, moment, state = closed, until, State.OPEN
        elif rests > now:
            moment, state = rests, State.RESTING
        elif until:
            by, state = closed, State.PROBE
        elif 0 < limit <= in_flight:
            state = State.FULL
        return UpstreamState(
            name=upstream.name,
            provider=upstream.provider.name,
            state=state,
            by=by.name,
            until=moment,
            failures=by.words[FAILURES],
            cause=by.cause,
            in_flight=in_flight,
            limit=limit,
        )
