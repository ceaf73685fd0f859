"""Attempts at a model's upstreams until one has something to say.

Whom to ask, and when, is decided by a `Turn` as values; here it is done. Nearly every request asks
its best upstream and has its answer: that is `first_event`, and only what comes to nothing there
needs a turn. As a rule one upstream is asked at a time, in the exchange's own task. Where a model
is hedged, the attempts *race*: they are children of one nursery, the first one with content wins
and the others are cancelled, and a failure starts the next at once beside those that still run.
Every loser's connection is closed and its place given back before the winner's answer goes on.

Until an answer is returned no content has left for the client, afterwards nothing is ever switched.
"""

from __future__ import annotations

import math

import msgspec
import trio

from adapters.affinity import conversation_key
from proxy.attempt import Answer, Attempt, Held
from proxy.balance import arranged
from proxy.calls import Calls
from proxy.gateway import Gateway
from proxy.memory import Share
from proxy.record import Record
from proxy.route import Candidate, Route
from proxy.turn import Ask, GiveUp, Turn, Wait, opening

_LAST_SECONDS = 1.0  # of a request are too late to begin anything
_HEDGE_SECONDS_MIN = 0.05


async def first_event(
    gateway: Gateway, calls: Calls, route: Route, held: Held, record: Record, conversation: str
) -> Answer:
    """The first upstream that answers. Raises APIError where none does.

    `conversation` is the id of the client's, as far as it named one.
    """
    means, request, principal = gateway.means, calls.request, record.principal
    assert principal is not None, "it was authenticated"
    order, affinity = route.candidates, None
    if route.has_choice:
        affinity = conversation_key(request, conversation)
        order = ordered(gateway, route, affinity, streamed=request.stream)
    if len(order) > 1:
        order = calls.signers_first(order)
    account, once, now = principal.account_id, request.scan.passes != 1, means.monotonic()
    ask = None
    if not route.model.hedge_after_percentile:
        ask = opening(order, means, now, account, once=once)
    first: Attempt | None = None
    if ask is not None:
        share = Share(gateway.memory)
        first = Attempt(gateway, calls, held, record, affinity, ask, now, share)
        answer = await first.run()
        if answer is not None:
            if route.is_timed:
                first.time()
            return answer
    ends_at = record.started + gateway.settings.max_request_seconds - _LAST_SECONDS
    turn = Turn(order, means, ends_at, account, once)
    if first is not None:
        turn.opened(first.ask)
        first.tell(turn)
    return await _Attempts(gateway, calls, route, turn, held, record, affinity).answer()


def ordered(
    gateway: Gateway, route: Route, affinity: int | None, *, streamed: bool
) -> tuple[Candidate, ...]:
    """The upstreams of `route` as one request goes through them."""
    if not route.has_equals:
        return route.candidates
    means = gateway.means
    return arranged(
        route,
        streamed=streamed,
        affinity=affinity,
        in_flight=means.health.in_flight,
        latencies=gateway.latencies,
        dice=means.dice,
        now=means.monotonic(),
    )


async def _wait(gateway: Gateway, wait: Wait, record: Record) -> None:
    started = trio.current_time()
    try:
        with trio.move_on_after(max(0.0, wait.until - gateway.means.monotonic())):
            if wait.room is None:
                await trio.sleep_forever()
            await gateway.means.health.room(wait.room)
    finally:
        record.upstream_seconds += trio.current_time() - started


class _Attempts(msgspec.Struct, frozen=True):
    """What the attempts of one request have in common, and who decides about them."""

    gateway: Gateway
    calls: Calls
    route: Route
    turn: Turn
    held: Held
    record: Record
    affinity: int | None

    async def answer(self) -> Answer:
        """The first one. Raises APIError."""
        monotonic = self.gateway.means.monotonic
        while True:
            match self.turn.next(monotonic()):
                case Ask() as ask:
                    hedge_after = self._hedge_after(ask)
                    if hedge_after is None:
                        answer = await self.one(self.attempt(ask))
                    else:
                        answer = await _Race(self).run(ask, hedge_after)
                    if answer is not None:
                        return answer
                case Wait() as wait:
                    await _wait(self.gateway, wait, self.record)
                case GiveUp(error):
                    raise error

    def attempt(self, ask: Ask) -> Attempt:
        """One attempt, that is still to be made."""
        gateway, now = self.gateway, self.gateway.means.monotonic()
        share = Share(gateway.memory)
        return Attempt(gateway, self.calls, self.held, self.record, self.affinity, ask, now, share)

    async def one(self, attempt: Attempt) -> Answer | None:
        """Make an attempt; None where it failed, and the turn knows."""
        answer = await attempt.run()
        if answer is None:
            attempt.tell(self.turn)
        elif self.route.is_timed:
            attempt.time()
        return answer

    def _hedge_after(self, ask: Ask) -> float | None:
        """Seconds of silence after which a second attempt begins; None: it never does."""
        percentile = self.route.model.hedge_after_percentile
        if not percentile or ask.why == "again":
            return None
        name, streamed = ask.candidate.upstream.name, self.calls.request.stream
        usual = self.gateway.latencies.of(name, streamed=streamed).quantile(percentile)
        return None if usual is None else max(usual, _HEDGE_SECONDS_MIN)


class _Race:
    """Attempts of one request that may overlap; the first with content wins."""

    __slots__ = ("_attempts", "_changed", "_error", "_running", "_won")

    def __init__(self, attempts: _Attempts) -> None:
        self._attempts = attempts
        self._running = 0
        self._changed = trio.Event()
        self._won: tuple[Attempt, Answer] | None = None
        self._error: Exception | None = None

    async def run(self, first: Ask, hedge_after: float) -> Answer | None:
        """The winner's answer; None where all attempts have failed, and the turn knows."""
        record = self._attempts.record
        started, waited_before = trio.current_time(), record.upstream_seconds
        try:
            async with trio.open_nursery() as nursery:
                self._start(nursery, first)
                await self._decide(nursery, first, started + hedge_after)
                nursery.cancel_scope.cancel()
        except BaseException:
            if self._won is not None:  # and then the client left
                attempt, answer = self._won
                attempt.give_up(answer)
            raise
        finally:  # what the attempts have added overlaps
            record.upstream_seconds = waited_before + trio.current_time() - started
        if self._won is not None:
            attempt, answer = self._won
            attempt.serves()  # another one may have begun since
            return answer
        if self._error is not None:
            raise self._error
        return None

    async def _decide(self, nursery: trio.Nursery, first: Ask, hedge_at: float) -> None:
        """Start what the turn says, until somebody has won or nobody runs."""
        turn, monotonic = self._attempts.turn, self._attempts.gateway.means.monotonic
        while True:
            with trio.move_on_at(hedge_at):
                await self._changed.wait()
            if self._won or self._error or turn.is_over or not self._running:
                return
            if self._changed.is_set():
                self._changed = trio.Event()
                ask = turn.beside(monotonic())
            else:
                hedge_at = math.inf
                ask = turn.hedge(first, monotonic())
            if ask is not None:
                self._start(nursery, ask)

    def _start(self, nursery: trio.Nursery, ask: Ask) -> None:
        self._running += 1
        nursery.start_soon(self._run, ask)

    async def _run(self, ask: Ask) -> None:
        came = "lost"  # unless it goes otherwise
        attempts = self._attempts
        attempt = attempts.attempt(ask)
        try:
            answer = await attempts.one(attempt)
            if answer is None:
                came = "failed"
            elif self._won is not None:  # by less than a turn of the event loop
                attempt.give_up(answer)
            else:
                self._won, came = (attempt, answer), "won"
        except trio.Cancelled:
            # A first attempt that lost would have taken longer still. That says nothing of a hedge,
            # which may just have begun, and nothing of an upstream whose client has left.
            if self._won is not None and ask.why != "hedge":
                attempt.time()
            raise
        except Exception as error:  # raised where the request is served
            self._error = error
        finally:
            self._running -= 1
            self._changed.set()
            if ask.why == "hedge":
                attempts.gateway.metrics.hedge(attempts.route.model.id, came).inc()
