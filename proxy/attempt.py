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

from adapters.codec import Call, Expected, PlainRelay, Relay, StreamRelay, UpstreamFailure
from adapters.losses import told
from ledger.store import EventStatus
from proxy import settle
from proxy.allowance import Allowance
from proxy.calls import Calls
from proxy.gateway import Gateway
from proxy.health import Place
from proxy.memory import Share
from proxy.record import Record
from proxy.route import Candidate
from proxy.transport import RECEIVE_BYTES
from proxy.turn import Ask
from proxy.upstream import AttemptFailed, Sent, UpstreamResponse
from proxy.verdicts import Outcome

_ANSWER_BYTES_MAX = 64 * 1024 * 1024
_HELD_BYTES_MAX = 16 * 1024 * 1024  # one event may be as large


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


class Failed(Exception):
    """An attempt is over, without content."""

    def __init__(self, outcome: Outcome, failure: UpstreamFailure) -> None:
        super().__init__(failure.message)
        self.outcome = outcome
        self.failure = failure


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

    @property
    def output_cap(self) -> int | None: ...

    def allowance(self, candidate: Candidate) -> Allowance | None: ...

    def expected(self, candidate: Candidate) -> Expected: ...

    def lost(self, loss: Loss) -> None: ...


class Attempt:
    """One upstream that is asked for one request, as `ask` says; made to be run at once. `started`
    is on the clock of `Means`."""

    __slots__ = (
        "_began",
        "_dropped",
        "_gateway",
        "_held",
        "_record",
        "_relay",
        "_share",
        "_stream",
        "ask",
        "started",
    )

    def __init__(
        self, gateway: Gateway, ask: Ask, held: Held, record: Record, *, stream: bool
    ) -> None:
        self._gateway = gateway
        self.ask = ask
        self.started = gateway.means.monotonic()
        self._dropped: tuple[str, ...] = ()
        self._held = held
        self._record = record
        self._stream = stream
        self._began = 0.0
        self._relay: Relay | None = None
        self._share = gateway.memory.share()

    async def run(self, calls: Calls, affinity: int | None) -> Answer:
        """Ask. Raises Failed, and RequestNotExpressible where the upstream was not asked."""
        try:
            call = await self._call(calls)
            return await self._counted(call, affinity)
        except BaseException:
            self.ask.place.close()
            self._share.close()
            raise

    def serves(self) -> None:
        """It is this one that the client hears, or whose end it waits for."""
        self._record.serves(self.ask.candidate.upstream, self._dropped)

    def give_up(self, answer: Answer) -> None:
        """Nobody will get its answer."""
        answer.close()
        self._lose("cancelled", EventStatus.CANCELLED)

    async def _call(self, calls: Calls) -> Call:
        """What is sent. Where that takes long to make, it is made in a thread: streams go on."""
        candidate, output_cap = self.ask.candidate, self._held.output_cap
        if calls.is_long(candidate):
            return await trio.to_thread.run_sync(calls.at, candidate, output_cap)
        return calls.at(candidate, output_cap)

    async def _counted(self, call: Call, affinity: int | None) -> Answer:
        """The answer; how it went is written down everywhere."""
        record, upstream = self._record, self.ask.candidate.upstream
        record.attempts += 1
        self._dropped = told(call.dropped)
        self.serves()
        self._began = trio.current_time()
        sent = Sent(call.path, call.body, self._stream, call.headers, self.ask.once)
        try:
            answer = await self._answer(call, sent, affinity)
        except trio.Cancelled:
            if sent.contacted:
                self._lose("cancelled", EventStatus.CANCELLED)
            raise
        except AttemptFailed as broken:
            unknown = UpstreamFailure("server_error", str(broken))
            raise self._failed(broken.reason, unknown, contacted=broken.contacted) from broken
        except _Refused as refused:
            failure = refused.failure
            raise self._failed(failure.kind, failure, contacted=True) from refused
        finally:
            record.upstream_seconds += trio.current_time() - self._began
        self._gateway.metrics.attempt(upstream.provider.name, "ok").inc()
        return answer

    async def _answer(self, call: Call, sent: Sent, affinity: int | None) -> Answer:
        """The upstream's answer, as soon as it counts. Raises AttemptFailed and _Refused."""
        candidate, share = self.ask.candidate, self._share
        provider = candidate.upstream.provider
        response = await self._gateway.upstreams.post(
            provider,
            sent,
            queue_seconds=self.ask.queue_seconds,
            first_byte_seconds=self.ask.first_byte_seconds,
            affinity=affinity,
            read_error=call.read_error,
            on_refused=self._key_refused,
        )
        try:
            if response.status != 200:
                raise _Refused(await response.read_error(call.read_error))
            if self._stream:
                allowance = self._held.allowance(candidate)
                self._relay = relay = call.stream(limited=allowance is not None)
                idle_seconds = provider.idle_seconds
                first = await _first_content(response, relay, allowance, idle_seconds, share)
                place = self.ask.place
                return StreamAnswer(candidate, relay, response, first, share, place, allowance)
            whole = await response.read(_ANSWER_BYTES_MAX, provider.idle_seconds, share)
            self._relay = plain = call.plain(whole)
            if plain.failure is not None:
                raise _Refused(plain.failure)
        except BaseException:
            response.close()
            raise
        return PlainAnswer(candidate, plain, share)

    def _key_refused(self, failure: UpstreamFailure) -> None:
        """One of several API keys is refused; the next one is asked, which is another attempt."""
        upstream = self.ask.candidate.upstream
        self._gateway.metrics.attempt(upstream.provider.name, failure.kind).inc()
        self._record.attempts += 1
        self._record.failed(upstream, failure.kind, self._duration_ms)

    def _failed(self, outcome: Outcome, failure: UpstreamFailure, *, contacted: bool) -> Failed:
        """What is raised of a failure, once it is counted and booked."""
        upstream = self.ask.candidate.upstream
        self._gateway.metrics.attempt(upstream.provider.name, outcome).inc()
        self._record.failed(upstream, outcome, self._duration_ms)
        if contacted:
            unknown = outcome in ("first_byte_timeout", "idle_timeout")
            self._lose(outcome, EventStatus.UNKNOWN if unknown else EventStatus.FAILED)
        return Failed(outcome, failure)

    def _lose(self, outcome: settle.Lost, status: EventStatus) -> None:
        candidate = self.ask.candidate
        cost = settle.lost(candidate, outcome, self._held.expected(candidate), self._relay)
        self._gateway.metrics.unbilled(candidate.upstream.provider.name).inc(cost)
        self._held.lost(Loss(candidate, status, self._duration_ms, cost))

    @property
    def _duration_ms(self) -> int:
        return round((trio.current_time() - self._began) * 1000)


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
