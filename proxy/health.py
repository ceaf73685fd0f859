"""How every upstream is, as all workers of a node know it: circuits, rests, limits, places.

Problem: what one request learns of an upstream should spare all others the same, in every worker,
at once and for next to nothing; and a worker that dies must leave nothing behind. Approach: what is
known stands in rows that the workers share (`proxy.shared_rows`), the rules are functions of a row
(`proxy.circuit`), and `Health` is a worker's view of all of them: a `Seat` (`proxy.seat`) for each
upstream, a `Breaker` (`proxy.breaker`) for each upstream and each provider.

An attempt's life
    look     may it be asked, or from when on?            reads
    enter    a *place* in flight; the probe's claim with it where the circuit is half-open
    spoke    first content: a probe has succeeded
    served   a whole answer      ┐ one of these, or nothing: who is cancelled says nothing
    failed   any other outcome   ┘ of the upstream
    close    the place is given back, and with it a probe that came to nothing

What a place's own attempt has to say, it says by its place.

Rules
- What an outcome says is in `proxy.verdicts`. Whatever came of a request at a model says that its
  provider can be reached.
- Who reads may be wrong once; a change that cannot be made at once is not made at all.
- Only the process that has probed hears what a half-open circuit's attempt has to say; in which
  order a place is closed and its outcome told does not matter.
- A healthy upstream costs a dictionary and a few words a step; everything else is the seat's.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from typing import Final

from adapters.catalogue import Provider, Upstream
from proxy import circuit
from proxy.breaker import Alarm, Breaker, Change, Notice, unheard
from proxy.circuit import UNEASY, UNTIL, WORDS, Terms
from proxy.seat import Place, Seat, State, UpstreamState
from proxy.shared_rows import Rows, make_memory
from proxy.verdicts import VERDICTS, Outcome, Says

__all__ = [
    "Alarm",
    "Change",
    "Health",
    "Notice",
    "Place",
    "State",
    "UpstreamState",
    "shared_memory",
    "shared_rows",
]

_OVERLOADS: Final = frozenset[Outcome]({"rate_limited", "overloaded", "connect_timeout"})


def shared_memory(workers: int) -> int:
    """A descriptor of memory in which so many workers share how upstreams are."""
    return make_memory(WORDS, workers)


def shared_rows(descriptor: int, place: int | None = None) -> Rows:
    """That memory, for a worker with a place of its own in it, or for who only looks."""
    return Rows.shared(descriptor, WORDS, place=place)


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
        self._seats: dict[str, Seat] = {}  # by the upstream's name
        self._breakers: dict[str, Breaker] = {}

    def serve(self, upstreams: Iterable[Upstream]) -> None:
        """These are served from now on. What is known of them by name is known still."""
        self._served = tuple({upstream.name: upstream for upstream in upstreams}.values())
        for upstream in self._served:
            self._seat(upstream)

    # -- an attempt's life --------------------------------------------------------------------

    def look(self, upstream: Upstream, now: float, *, account: int = 0) -> tuple[State, float]:
        """Whether an upstream may be asked, and from when on that may be otherwise.

        That is `now` where it may be asked, and infinity where no more may even wait for it. What
        is open to one account alone is so to whom nobody knows.
        """
        seat = self._seats.get(upstream.name) or self._new_seat(upstream)
        if seat.words[UNEASY] or seat.provider_words[UNEASY]:
            return seat.look(now, account)
        return State.READY, now

    def enter(self, upstream: Upstream, now: float, account: int = 0) -> Place | None:
        """A place in flight, where the upstream may be asked now."""
        seat = self._seats.get(upstream.name) or self._new_seat(upstream)
        words = seat.words
        if words[UNEASY] or seat.provider_words[UNEASY]:
            return seat.enter(now, account)
        words[seat.place] += 1
        return Place(seat, account, False)

    async def room(self, upstream: Upstream) -> None:
        """Wait until there may be a place, in turn. The caller sets the deadline.

        Whoever comes back from here is the first to `look` and to `enter`.
        """
        await self._seat(upstream).room()

    def spoke(self, upstream: Upstream, account: int = 0) -> None:
        """It has said its first content."""
        self._seat(upstream).spoke(account)

    def served(self, upstream: Upstream, now: float, account: int = 0) -> None:
        """It has answered to the end. Others' failures do not close it for that `account`."""
        self._seat(upstream).served(now, account)

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
            seat.provider.alive()  # it was reached
            about = own
        else:
            account = 0  # whether a provider can be reached is nobody's doing
        if outcome in _OVERLOADS:
            own.cut(now, seat.in_flight(), outcome, account)
        if hint is not None and hint > 0 and verdict.says in (Says.REST, Says.FAILURE):
            own.rest(now, min(hint, circuit.REST_SECONDS_MAX), outcome)
        match verdict.says:
            case Says.FAILURE:
                about.failed(now, self._terms(upstream.provider), outcome, account)
            case Says.OUT:
                about.out(now, outcome)
            case Says.ALIVE | Says.REST if own.words[UNTIL]:  # as `spoke`
                own.alive(account)

    def _terms(self, provider: Provider) -> Terms:
        return Terms(provider.failures_to_open, provider.open_seconds, self._dice)

    # -- what others see ----------------------------------------------------------------------

    def in_flight(self, upstream: Upstream) -> int:
        """Attempts in flight, of the whole node."""
        return self._seat(upstream).in_flight()

    def states(self, now: float) -> list[UpstreamState]:
        """All that are served."""
        return [self.state(upstream, now) for upstream in self._served]

    def state(self, upstream: Upstream, now: float) -> UpstreamState:
        """One of them."""
        return self._seat(upstream).state(upstream, now)

    # -- who is who ---------------------------------------------------------------------------

    def _seat(self, upstream: Upstream) -> Seat:
        return self._seats.get(upstream.name) or self._new_seat(upstream)

    def _new_seat(self, upstream: Upstream) -> Seat:
        provider = upstream.provider
        shared = self._breakers.get(provider.name)
        if shared is None:
            row = self._rows.row(f"{provider.name}/")  # no upstream's name ends so
            shared = self._breakers[provider.name] = Breaker(provider.name, row, self._told)
        row = self._rows.row(upstream.name)
        own = Breaker(upstream.name, row, self._told)
        limit_max = provider.max_connections * len(row.places)
        seat = self._seats[upstream.name] = Seat(own, shared, row, limit_max)
        return seat
