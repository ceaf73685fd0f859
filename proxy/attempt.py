"""One upstream asked once, up to the point where it is committed.

A plain answer is complete before it counts. A stream counts with its first event of real content;
until then its bytes are held back, so that the client sees nothing of an upstream that fails after
its opening words. An attempt that ends without content leaves nothing behind: its connection is
closed, its place given back, and what the provider may bill for it is told to the hold as a `Loss`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import msgspec
import trio

from adapters.catalogue import Provider
from adapters.codec import Call, PlainRelay, Relay, StreamRelay, UpstreamFailure
from adapters.errors import RequestNotExpressible
from adapters.losses import told
from ledger.store import EventStatus
from proxy import settle
from proxy.allowance import Allowance
from proxy.calls import Calls
from proxy.gateway import Gateway
from proxy.health import Place
from proxy.memory import Share
from proxy.need import Need
from proxy.record import Record
from proxy.route import Candidate
from proxy.transport import RECEIVE_BYTES
from proxy.turn import Ask, Turn
from proxy.upstream import AttemptFailed, Sent, UpstreamResponse
from proxy.verdicts import Outcome

_ANSWER_BYTES_MAX = 64 * 1024 * 1024
_HELD_BYTES_MAX = 16 * 1024 * 1024  # one event may be as large
_PROBE_SECONDS = 30.0  # a head in this time, or the upstream is still away


class PlainAnswer(msgspec.Struct, frozen=True):
    """An upstream's whole answer. Its connection is free again."""

    candidate: Candidate
    relay: PlainRelay
    share: Share

    def close(self) -> None:
        """Its bytes are held no more."""
        self.share.close()


class StreamAnswer(msgspec.Struct, frozen=True):
    """An upstream that has begun to stream. `first` are the client's first bytes of it;
    `allowance` is None where all that it may produce is held."""

    candidate: Candidate
    relay: StreamRelay
    response: UpstreamResponse
    first: bytes
    share: Share
    place: Place
    allowance: Allowance | None = None

    def close(self) -> None:
        """Stop the upstream where it has not finished by itself."""
        self.response.close()
        self.share.close()
        self.place.close()


Answer = PlainAnswer | StreamAnswer


@dataclass(frozen=True, slots=True)
class Loss:
    """What an attempt without an answer leaves in the books: an event with charge 0.

    `cost`, in nano-dollars, is what the provider probably bills for it.
    """

    candidate: Candidate
    status: EventStatus
    duration_ms: int
    cost: int = 0


class Held(Protocol):
    """What was set aside for the attempts."""

    need: Need

    def allowance(self, candidate: Candidate) -> Allowance | None: ...

    def lost(self, loss: Loss) -> None: ...


class Attempt(msgspec.Struct, eq=False):
    """One upstream that is asked for one request, as `ask` says; made to be run at once.

    `started` is on the clock of `Means`. `share` is the answer's, and closed with it.
    """

    gateway: Gateway
    calls: Calls
    held: Held
    record: Record
    affinity: int | None
    ask: Ask
    started: float
    share: Share
    _dropped: tuple[str, ...] = ()
    _began: float = 0.0
    _sent: Sent | None = None
    _relay: Relay | None = None
    _failed: tuple[Outcome, UpstreamFailure] | None = None
    _inexpressible: RequestNotExpressible | None = None

    async def run(self) -> Answer | None:
        """Ask. None where that has failed: `tell` knows how, and nothing is held any more."""
        gateway, calls, record, ask = self.gateway, self.calls, self.record, self.ask
        candidate, stream, clock = ask.candidate, calls.request.stream, record.clock
        provider, output_cap = candidate.upstream.provider, self.held.need.output_cap
        response: UpstreamResponse | None = None
        answer: Answer
        try:
            if calls.is_long(candidate):  # then it is made in a thread: streams go on
                call = await trio.to_thread.run_sync(calls.at, candidate, output_cap)
            else:
                call = calls.at(candidate, output_cap)
            if call.dropped:
                self._dropped = told(call.dropped)
            record.attempts += 1
            record.serves(candidate.upstream, self._dropped)
            self._began = clock()
            self._sent = sent = Sent(call.path, call.body, stream, call.headers, ask.once)
            response = await gateway.upstreams.post(
                provider,
                sent,
                queue_seconds=provider.connect_seconds if ask.alone else 0.0,
                first_byte_seconds=_probe_seconds(provider) if ask.place.probe else None,
                affinity=self.affinity,
                read_error=call.read_error,
                on_refused=self._key_refused,
            )
            if response.status != 200:
                raise _Refused(await response.read_error(call.read_error))
            if stream:
                answer = await self._begun(call, response)
            else:
                whole = await response.read(_ANSWER_BYTES_MAX, provider.idle_seconds, self.share)
                self._relay = plain = call.plain(whole)
                if plain.failure is not None:
                    raise _Refused(plain.failure)
                answer = PlainAnswer(candidate, plain, self.share)
        except BaseException as error:
            if response is not None:
                response.close()
            if not self._is_failure(error):
                raise
            return None
        now = clock()
        record.upstream_seconds += now - self._began
        gateway.metrics.attempt(provider.name, "ok").inc()
        if stream:
            ask.place.spoke()
        else:
            ask.place.served(now)
        return answer

    def tell(self, turn: Turn) -> None:
        """Have a turn know how it has failed."""
        if self._inexpressible is not None:
            turn.passed_over(self.ask, self._inexpressible)
        elif self._failed is not None:
            turn.failed(self.ask, *self._failed, self.gateway.means.monotonic())

    def time(self) -> None:
        """Remember how long its upstream took to say something, or at least took."""
        now, streamed = self.gateway.means.monotonic(), self.calls.request.stream
        latency = self.gateway.latencies.of(self.ask.candidate.upstream.name, streamed=streamed)
        latency.add(now - self.started, now)

    def serves(self) -> None:
        """It is this one that the client hears, or whose end it waits for."""
        self.record.serves(self.ask.candidate.upstream, self._dropped)

    def give_up(self, answer: Answer) -> None:
        """Nobody will get its answer."""
        answer.close()
        self._lose("cancelled", EventStatus.CANCELLED)

    async def _begun(self, call: Call, response: UpstreamResponse) -> StreamAnswer:
        """A stream with its first content."""
        candidate, share = self.ask.candidate, self.share
        allowance = self.held.allowance(candidate)
        self._relay = relay = call.stream(limited=allowance is not None)
        idle_seconds = candidate.upstream.provider.idle_seconds
        first = await _first_content(response, relay, allowance, idle_seconds, share)
        return StreamAnswer(candidate, relay, response, first, share, self.ask.place, allowance)

    def _is_failure(self, error: BaseException) -> bool:
        """Whether `error` is a failure, which is written down. What is held is given back."""
        self.ask.place.close()
        self.share.close()
        sent = self._sent
        if sent is not None:
            self.record.upstream_seconds += self.record.clock() - self._began
        match error:
            case AttemptFailed():
                unknown = UpstreamFailure("server_error", str(error))
                self._fail(error.reason, unknown, contacted=error.contacted)
            case _Refused():
                self._fail(error.failure.kind, error.failure, contacted=True)
            case RequestNotExpressible():  # the upstream was not asked
                self._inexpressible = error.with_traceback(None)
            case _:
                if isinstance(error, trio.Cancelled) and sent is not None and sent.contacted:
                    self._lose("cancelled", EventStatus.CANCELLED)
                return False
        return True

    def _key_refused(self, failure: UpstreamFailure) -> None:
        """One of several API keys is refused; the next one is asked, which is another attempt."""
        upstream = self.ask.candidate.upstream
        self.gateway.metrics.attempt(upstream.provider.name, failure.kind).inc()
        self.record.attempts += 1
        self.record.failed(upstream, failure.kind, self._duration_ms)

    def _fail(self, outcome: Outcome, failure: UpstreamFailure, *, contacted: bool) -> None:
        self._failed = outcome, failure
        upstream = self.ask.candidate.upstream
        self.gateway.metrics.attempt(upstream.provider.name, outcome).inc()
        self.record.failed(upstream, outcome, self._duration_ms)
        if contacted:
            unknown = outcome in ("first_byte_timeout", "idle_timeout")
            self._lose(outcome, EventStatus.UNKNOWN if unknown else EventStatus.FAILED)

    def _lose(self, outcome: settle.Lost, status: EventStatus) -> None:
        candidate = self.ask.candidate
        cost = settle.lost(candidate, outcome, self.held.need.expected(candidate), self._relay)
        self.gateway.metrics.unbilled(candidate.upstream.provider.name).inc(cost)
        self.held.lost(Loss(candidate, status, self._duration_ms, cost))

    @property
    def _duration_ms(self) -> int:
        return round((self.record.clock() - self._began) * 1000)


def _probe_seconds(provider: Provider) -> float:
    return min(provider.first_byte_seconds, _PROBE_SECONDS)


class _Refused(Exception):
    """The upstream has said why it does not answer."""

    def __init__(self, failure: UpstreamFailure) -> None:
        super().__init__(failure.message)
        self.failure = failure


async def _first_content(
    response: UpstreamResponse,
    relay: StreamRelay,
    allowance: Allowance | None,
    idle_seconds: float,
    share: Share,
) -> bytes:
    """Read a stream up to its first content (or its end); the client's bytes of it.

    Content that waits for credit counts: it is there, and whoever serves lets it wait. What is held
    back beyond one read is counted in `share`.
    """
    held = bytearray()
    while not (relay.has_content or relay.ended or relay.full):
        data = await response.receive(trio.current_time() + idle_seconds)
        if allowance is not None:
            held += allowance.feed_now(relay, data)
        else:
            held += relay.feed(data) if data else relay.close()
        if len(held) > _HELD_BYTES_MAX:
            raise AttemptFailed("protocol", "a stream without content", contacted=True)
        more = len(held) - RECEIVE_BYTES - share.held_bytes
        if more > 0 and not share.take(more):
            raise AttemptFailed("busy", "no memory for the answer", contacted=True)
    if relay.failure is not None and not relay.has_content:
        raise _Refused(relay.failure)
    return bytes(held)
