"""How every upstream is, as all workers of a node know it: circuits, rests, limits, places.

Problem: what one request learns of an upstream should spare all others the same, in every worker,
at once and for next to nothing; and a worker that dies must leave nothing behind. Approach: what is
known stands in rows that the workers share (`proxy.shared_rows`), the rules are functions of a row
(`proxy.circuit`), and `Health` is a worker's view of all of them.

An attempt's life
    look     may it be asked, or from when on?            reads
    enter    a *place* in flight; the probe's claim with it where the circuit is half-open
    spoke    first content: a probe has succeeded
    served   a whole answer      ┐ one of these, or nothing: who is cancelled says nothing
    failed   any other outcome   ┘ of the upstream
    close    the place is given back, and with it a probe that came to nothing

Rules
- What an outcome says is in `proxy.verdicts`. Whatever came of a request at a model says that its
  provider can be reached.
- Who reads may be wrong once; a change that cannot be made at once is not made at all.
- Only the process that has probed hears what a half-open circuit's attempt has to say; in which
  order a place is closed and its outcome told does not matter.
- A healthy upstream costs a dictionary and a few words a step; everything else is in `_Seat`.

A queue is only for upstreams that have a limit (`room`), first come, first served; each worker has
its own, and looks four times a second whether others have left a place.
"""

from __future__ import annotations

import enum
import math
import random
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final, Literal

import trio

from adapters.catalogue import Provider, Upstream
from proxy import circuit
from proxy.circuit import (
    CAUSE,
    FAILURES,
    LIMIT,
    LIMITED_UNTIL,
    OPENINGS,
    RESTS_UNTIL,
    UNEASY,
    UNTIL,
    WORDS,
    Terms,
    seconds,
)
from proxy.shared_rows import Row, Rows, make_memory
from proxy.verdicts import VERDICTS, Outcome, Says

_PROBED_SECONDS: Final = 1.0  # for so long, at least, others wait for a probe's outcome
_ELSEWHERE_SECONDS: Final = 0.1  # so long another process is taken to be probing
_LOOK_SECONDS: Final = 0.25
_WINDOW_SECONDS: Final = 10.0
_WINDOW_FAILURES_MAX: Final = 512
_WINDOW_ATTEMPTS_MIN: Final = 20
_USED: Final = 0.8  # of a limit: below it nothing is learnt from what goes well
_INTERVAL_WEIGHT: Final = 0.1
_OVERLOADS: Final = frozenset[Outcome]({"rate_limited", "overloaded", "connect_timeout"})
_OUTCOMES: Final[tuple[Outcome, ...]] = tuple(VERDICTS)
_NUMBERS: Final = {outcome: number for number, outcome in enumerate(_OUTCOMES, 1)}


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


@dataclass(frozen=True, slots=True)
class Change:
    """An upstream or a provider, `name`, is otherwise from now on.

    `seconds`: for how long at least. `limit`: how many requests at once.
    """

    name: str
    what: Literal["opened", "closed", "resting", "limited"]
    cause: Outcome | None = None
    failures: int = 0
    seconds: float = 0
    limit: int = 0


@dataclass(frozen=True, slots=True)
class Alarm:
    """An operator has to do something. `loud`: nobody has said so for a minute."""

    provider: str
    upstream: str
    cause: Outcome
    loud: bool


Notice = Change | Alarm


def shared_memory(workers: int) -> int:
    """A descriptor of memory in which so many workers share how upstreams are."""
    return make_memory(WORDS, workers)


def shared_rows(descriptor: int, place: int | None = None) -> Rows:
    """That memory, for a worker with a place of its own in it, or for who only looks."""
    return Rows.shared(descriptor, WORDS, place=place)


def unheard(notice: Notice) -> None:
    """For who does not want to be told."""


class Place:
    """One attempt in flight."""

    __slots__ = ("_seat", "probe")

    def __init__(self, seat: _Seat, *, probe: bool) -> None:
        self.probe = probe
        self._seat: _Seat | None = seat

    def close(self) -> None:
        """Give it back. May be called twice."""
        seat = self._seat
        if seat is not None:
            self._seat = None
            seat.words[seat.place] -= 1
            if self.probe:
                seat.own.release(self)
                seat.provider.release(self)
            if seat.queue:
                seat.queue[0].set()


class Health:
    """All upstreams of a node, as one worker knows them.

    Every `now` is of the same clock in all processes. `dice` shortens pauses, so that several nodes
    do not probe together; `told` hears of what changes here.
    """

    def __init__(
        self,
        rows: Rows | None = None,
        *,
        dice: Callable[[], float] = random.random,
        told: Callable[[Notice], None] = unheard,
    ) -> None:
        self._rows = rows or Rows.private(WORDS)
        self._dice = dice
        self._told = told
        self._served: tuple[Upstream, ...] = ()
        self._seats: dict[int, _Seat] = {}
        self._known: list[Upstream] = []  # whose `id` is a key above: it must not be another's
        self._named: dict[str, _Seat] = {}
        self._circuits: dict[str, _Circuit] = {}

    def serve(self, upstreams: Iterable[Upstream]) -> None:
        """These are served from now on. What is known of them by name is known still."""
        self._served = tuple({upstream.name: upstream for upstream in upstreams}.values())
        self._seats.clear()
        self._known.clear()
        for upstream in self._served:
            self._seat(upstream)

    # -- an attempt's life --------------------------------------------------------------------

    def look(self, upstream: Upstream, now: float) -> tuple[State, float]:
        """Whether an upstream may be asked, and from when on that may be otherwise.

        That is `now` where it may be asked, and infinity where no more may even wait for it.
        """
        seat = self._seats.get(id(upstream)) or self._seat(upstream)
        if seat.words[UNEASY] or seat.provider_words[UNEASY]:
            return seat.look(now)
        return State.READY, now

    def enter(self, upstream: Upstream, now: float, *, account: int = 0) -> Place | None:
        """A place in flight, where the upstream may be asked now."""
        seat = self._seats.get(id(upstream)) or self._seat(upstream)
        words = seat.words
        if words[UNEASY] or seat.provider_words[UNEASY]:
            return seat.enter(now, account)
        words[seat.place] += 1
        return Place(seat, probe=False)

    async def room(self, upstream: Upstream) -> None:
        """Wait until there may be a place, in turn. The caller sets the deadline.

        Whoever comes back from here is the first to `look` and to `enter`.
        """
        await self._seat(upstream).room()

    def spoke(self, upstream: Upstream, now: float) -> None:
        """It has said its first content."""
        seat = self._seats.get(id(upstream)) or self._seat(upstream)
        if seat.words[UNTIL]:  # otherwise it breaks no run of failures
            seat.own.alive()
        if seat.provider_words[UNTIL]:
            seat.provider.alive()

    def served(self, upstream: Upstream, now: float, *, account: int = 0) -> None:
        """It has answered to the end; whom protects the others from whom it fails."""
        seat = self._seats.get(id(upstream)) or self._seat(upstream)
        seat.answers += 1
        words = seat.words
        if account:
            circuit.serve(words, account, now)
        if words[UNEASY] or seat.provider_words[UNEASY]:
            seat.served(now)

    def failed(
        self,
        upstream: Upstream,
        outcome: Outcome,
        now: float,
        *,
        hint: float | None = None,
        account: int = 0,
    ) -> None:
        """It has ended so. `hint`: the seconds after which it wants to be asked again."""
        verdict = VERDICTS[outcome]
        seat = self._seat(upstream)
        if verdict.alarm:
            seat.provider.alarm(upstream, outcome, now)
        if verdict.says is Says.NOTHING:
            return
        own, about = seat.own, seat.provider
        if verdict.scope == "upstream":
            seat.provider.alive()
            about = own
        if outcome in _OVERLOADS:
            own.cut(now, seat.in_flight(), outcome)
        if hint is not None and verdict.says in (Says.REST, Says.FAILURE):
            own.rest(now, min(hint, circuit.REST_SECONDS_MAX), outcome)
        match verdict.says:
            case Says.FAILURE:
                about.failed(now, self._terms(upstream.provider), outcome, account)
            case Says.OUT:
                about.out(now, outcome)
            case Says.ALIVE | Says.REST:
                about.alive()

    def _terms(self, provider: Provider) -> Terms:
        return Terms(provider.failures_to_open, provider.open_seconds, self._dice)

    # -- what others see ----------------------------------------------------------------------

    def in_flight(self, upstream: Upstream) -> int:
        """Attempts in flight, of the whole node."""
        return (self._seats.get(id(upstream)) or self._seat(upstream)).in_flight()

    def states(self, now: float) -> list[UpstreamState]:
        """All that are served."""
        return [self._seat(upstream).state(upstream, now) for upstream in self._served]

    # -- who is who ---------------------------------------------------------------------------

    def _seat(self, upstream: Upstream) -> _Seat:
        seat = self._seats.get(id(upstream))
        if seat is None:
            seat = self._named.get(upstream.name) or self._new_seat(upstream)
            self._seats[id(upstream)] = seat
            self._known.append(upstream)
        return seat

    def _new_seat(self, upstream: Upstream) -> _Seat:
        provider = upstream.provider
        shared = self._circuits.get(provider.name)
        if shared is None:
            row = self._rows.row(f"{provider.name}/")  # no upstream's name ends so
            shared = self._circuits[provider.name] = _Circuit(provider.name, row, self._told)
        row = self._rows.row(upstream.name)
        own = _Circuit(upstream.name, row, self._told)
        limit_max = provider.max_connections * len(row.places)
        seat = self._named[upstream.name] = _Seat(own, shared, row, limit_max)
        return seat


class _Circuit:
    """A row of an upstream or a provider, and what this worker alone knows of it."""

    def __init__(self, name: str, row: Row, told: Callable[[Notice], None]) -> None:
        self.name = name
        self.words = row.words
        self.seats: list[_Seat] = []
        self._row = row
        self._told = told
        self._window = _Window()
        self._prober: Place | None = None
        self._probed = 0  # the opening, by its end, that we have probed
        self._elsewhere_until = -math.inf

    def open_until(self, now: float) -> float:
        """Until when nobody may ask; 0 where somebody may."""
        until = self.words[UNTIL]
        if not until:
            return 0
        if (moment := seconds(until)) > now:
            return moment
        probing = self._prober is not None or self._elsewhere_until > now
        return now + _PROBED_SECONDS if probing else 0

    def claim(self, place: Place, now: float, account: int) -> bool:
        """Whether `place` may find out about it, if it is half-open."""
        if not self.words[UNTIL]:
            return True
        if not circuit.may_probe(self.words, account, now):
            return False
        if not self._row.claim():
            self._elsewhere_until = now + _ELSEWHERE_SECONDS
            return False
        self._prober, self._probed = place, self.words[UNTIL]
        if seconds(self._probed) <= now:
            return True
        self.release(place)  # another process has probed it in this very moment
        return False

    def release(self, place: Place) -> None:
        """It finds out no more."""
        if self._prober is place:
            self._found_out()

    def _found_out(self) -> None:
        self._prober = None
        self._row.release()

    def alive(self) -> None:
        """It has answered."""
        if self.words[FAILURES] or self.words[UNTIL]:
            self._close(circuit.close)

    def calm(self, now: float) -> None:
        """It has answered to the end."""
        words = self.words
        if words[FAILURES] or words[UNTIL] or words[OPENINGS] or words[RESTS_UNTIL]:
            self._close(lambda words: circuit.calm(words, now))

    def _close(self, change: Callable[[circuit.Words], None]) -> None:
        with self._row.changing() as mine:
            until = self.words[UNTIL]
            if not mine or (until and until != self._probed):
                return  # said late, of before the opening
            change(self.words)
        if until:
            self._found_out()
            self._told(Change(self.name, "closed"))

    def failed(self, now: float, terms: Terms, outcome: Outcome, account: int) -> None:
        """It has failed."""
        words = self.words
        with self._row.changing() as mine:
            until = words[UNTIL]
            if not mine or (until and until != self._probed):
                return  # as above
            if until:
                circuit.fail_again(words, now, terms, account, _NUMBERS[outcome])
            elif not circuit.fail(words, now, terms, account, _NUMBERS[outcome]):
                if not self._fails_often(now, account):
                    return
                circuit.open_(words, now, terms)
        self._opened(now, outcome)

    def _fails_often(self, now: float, account: int) -> bool:
        answers = sum(seat.answers for seat in self.seats)
        others = circuit.serves_others(self.words, account, now)
        return self._window.bad(now, account, answers, others_served=others)

    def out(self, now: float, outcome: Outcome) -> None:
        """It will fail until somebody does something."""
        known = self.words[UNTIL] > circuit.micros(now)
        with self._row.changing() as mine:
            if not mine:
                return
            circuit.out(self.words, now, _NUMBERS[outcome])
        if not known:
            self._opened(now, outcome)

    def _opened(self, now: float, outcome: Outcome) -> None:
        self._found_out()
        self._window.clear()
        pause = seconds(self.words[UNTIL]) - now
        self._told(Change(self.name, "opened", outcome, self.words[FAILURES], pause))

    def rest(self, now: float, pause: float, outcome: Outcome) -> None:
        """It wants to be left alone for so long."""
        known = self.words[RESTS_UNTIL] > circuit.micros(now)
        with self._row.changing() as mine:
            if not mine:
                return
            circuit.rest(self.words, now + pause, _NUMBERS[outcome])
        if not known:
            self._told(Change(self.name, "resting", outcome, seconds=pause))

    def cut(self, now: float, in_flight: int, outcome: Outcome) -> None:
        """It has too much to do."""
        known = self.words[LIMIT]
        with self._row.changing() as mine:
            cut = mine and circuit.cut(self.words, now, in_flight)
        if cut and not known:
            self._told(Change(self.name, "limited", outcome, limit=self.words[LIMIT]))

    def raise_limit(self, most: int) -> None:
        """It can do more."""
        with self._row.changing() as mine:
            if mine:
                circuit.raise_limit(self.words, most)

    def forget_limit(self) -> None:
        """It has said nothing of it for long."""
        with self._row.changing() as mine:
            if mine:
                circuit.forget_limit(self.words)

    def alarm(self, upstream: Upstream, outcome: Outcome, now: float) -> None:
        """Somebody has to do something."""
        with self._row.changing() as mine:
            loud = mine and circuit.alarm(self.words, now)
        self._told(Alarm(upstream.provider.name, upstream.name, outcome, loud))


class _Seat:
    """An upstream as one worker sees it: the circuits it depends on, its places, its queue."""

    def __init__(self, own: _Circuit, provider: _Circuit, row: Row, limit_max: int) -> None:
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

    def look(self, now: float) -> tuple[State, float]:
        """As of Health."""
        closed = max(self.own.open_until(now), self.provider.open_until(now))
        if closed:
            return State.OPEN, closed
        if (rested := seconds(self.words[RESTS_UNTIL])) > now:
            return State.RESTING, rested
        if self._is_full(now):
            return State.FULL, self._expected(now)
        if self.words[UNTIL] or self.provider_words[UNTIL]:
            return State.PROBE, now
        return State.READY, now

    def enter(self, now: float, account: int) -> Place | None:
        """As of Health."""
        state, _ = self.look(now)
        if state is State.OPEN:
            self._want(now, account)
        if state is not State.READY and state is not State.PROBE:
            return None
        place = Place(self, probe=state is State.PROBE)
        if place.probe and not self._claim(place, now, account):
            self._want(now, account)
            return None
        self._called = None
        self.words[self.place] += 1
        return place

    def _want(self, now: float, account: int) -> None:
        for words in (self.words, self.provider_words):
            if words[UNTIL]:
                circuit.want(words, account, now)

    def _claim(self, place: Place, now: float, account: int) -> bool:
        if self.provider.claim(place, now, account):
            if self.own.claim(place, now, account):
                return True
            self.provider.release(place)
        return False

    def served(self, now: float) -> None:
        """As of Health."""
        self.own.calm(now)
        self.provider.calm(now)
        if self.words[LIMIT]:
            self._learn(now)

    # -- limit ----------------------------------------------------------------------------------

    def _learn(self, now: float) -> None:
        """One more may be in flight after each round of answers while the limit is used."""
        limit = self.words[LIMIT]
        if self.in_flight() < _USED * limit:
            self._answered = math.inf
            return
        if self._answered < now:
            interval = now - self._answered
            weight = _INTERVAL_WEIGHT if self._interval_seconds else 1
            self._interval_seconds += weight * (interval - self._interval_seconds)
        self._answered = now
        self._credit += 1 / limit
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
        cause = by.words[CAUSE]
        return UpstreamState(
            name=upstream.name,
            provider=upstream.provider.name,
            state=state,
            by=by.name,
            until=moment,
            failures=by.words[FAILURES],
            cause=_OUTCOMES[cause - 1] if cause else None,
            in_flight=in_flight,
            limit=limit,
        )


class _Window:
    """Failures of the last seconds, to find an upstream that fails often, if not in a row."""

    def __init__(self) -> None:
        self._failures: deque[tuple[float, int, int]] = deque()
        self._of_account: Counter[int] = Counter()

    def bad(self, now: float, account: int, answers: int, *, others_served: bool) -> bool:
        """Whether half of the attempts since the oldest failure here have failed, with this one.

        `answers` counts all whole answers so far. As long as others are served, an account counts
        for no more than all the others together.
        """
        self._failures.append((now, account, answers))
        self._of_account[account] += 1
        while (
            self._failures[0][0] < now - _WINDOW_SECONDS
            or len(self._failures) > _WINDOW_FAILURES_MAX
        ):
            self._forget_oldest()
        failures = len(self._failures)
        if others_served:
            most = max(self._of_account.values())
            failures = min(failures, 2 * (failures - most))
        attempts = failures + answers - self._failures[0][2]
        return attempts >= _WINDOW_ATTEMPTS_MIN and 2 * failures >= attempts

    def _forget_oldest(self) -> None:
        _, account, _ = self._failures.popleft()
        self._of_account[account] -= 1
        if not self._of_account[account]:
            del self._of_account[account]

    def clear(self) -> None:
        """Begin anew."""
        self._failures.clear()
        self._of_account.clear()
