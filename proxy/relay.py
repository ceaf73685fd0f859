"""Upstream bytes → client bytes, metered on the way, settled before the last byte.

The relay runs in the exchange's own task: what the client has not taken is not read from the
upstream, so back-pressure needs no buffer of ours. Each read has the provider's idle time; a client
that takes nothing is given up by its `Connection`, and charged as one that has left. A stream has
no scope of its own: most wait for nothing but their next byte, and there are hundreds of them.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Literal

import msgspec
import trio

from adapters.codec import Headers
from adapters.errors import APIError, Cancelled, UpstreamTimeout, UpstreamUnavailable
from ledger.money import format_usd
from proxy.attempt import PlainAnswer, StreamAnswer
from proxy.calls import Calls
from proxy.connection import ClientGone, Connection
from proxy.deadlines import NEVER
from proxy.gateway import Gateway
from proxy.idempotency import Claim
from proxy.keep_alive import Pulse
from proxy.record import Record
from proxy.reserve import Hold
from proxy.stored import Keeper
from proxy.upstream import AttemptFailed
from proxy.verdicts import VERDICTS, Outcome

_Broken = Outcome | Literal["stopped"]
"""How a stream has ended before its upstream was done; "stopped": another request had it
cancelled."""

_FIGURES_SECONDS = 0.5
_PLAIN_TYPE = ("content-type", "application/json")
_STREAM_HEADERS: Headers = [("cache-control", "no-cache"), ("x-accel-buffering", "no")]


class Delivery(msgspec.Struct, eq=False):
    """An answer on its way to its client; made before it is known which upstream serves it.

    `headers` are what the reservation and the route have to say; `keeper` is for answers that can
    be cancelled and may be kept, `claim` for those that a retry is to get again.
    """

    connection: Connection
    record: Record
    calls: Calls
    headers: Headers
    keeper: Keeper | None
    claim: Claim | None = None

    def beat(self) -> None:
        """A sign of life while the upstream says nothing, before its first event or after."""
        request = self.calls.request
        keep_alive = request.keep_alive
        if not (request.stream and keep_alive):
            return
        if self.connection.response_started:
            self.connection.beat(keep_alive)
        else:
            self.record.status = 200
            self.connection.beat_head(200, self._stream_head(), keep_alive)

    async def stream(self, first: bytes) -> None:
        """Begin a streamed answer. Raises ClientGone."""
        self.record.status = 200
        if self.claim is not None:
            self.claim.begin(200, self._stream_head())
            self.claim.add(first)
        if self.connection.response_started:
            await self.connection.send_chunk(first)
        else:
            await self.connection.start_stream(200, self._stream_head(), first)

    async def send(self, data: bytes) -> None:
        """Send the next bytes of a streamed answer that a retry may ask for. Raises ClientGone."""
        if self.claim is not None:
            self.claim.add(data)
        await self.connection.send_chunk(data)

    async def keep(self, final: bytes) -> None:
        """A streamed answer ends with these bytes: where a retry may ask for it, keep it, before it
        is charged. Raises Overloaded where it may not be."""
        if self.claim is not None:
            await self.claim.keep(final, self._kept_as(final))

    async def keep_plain(self, headers: Headers, body: bytes) -> None:
        """As `keep`, for a whole answer."""
        if self.claim is not None:
            self.claim.begin(200, self.plain_head(headers))
            await self.claim.keep(body, self._kept_as(body))

    def plain_head(self, headers: Headers) -> Headers:
        """All headers of a whole answer, with those that are only known at its end."""
        return [_PLAIN_TYPE, *self.record.answer_headers(), *self.headers, *headers]

    def _stream_head(self) -> Headers:
        content_type = self.calls.codec.stream_type(self.calls.request)
        known = *self.record.answer_headers(), *self.headers
        return [("content-type", content_type), *_STREAM_HEADERS, *known]

    def _kept_as(self, body: bytes) -> str:
        return "" if self.keeper is None else self.keeper.name_of(body)


async def plain(delivery: Delivery, hold: Hold) -> None:
    """Settle, then send an answer that is complete already. Raises ClientGone."""
    answer, record = hold.answer, delivery.record
    assert isinstance(answer, PlainAnswer), "it was not to be streamed"
    record.hear()
    if delivery.claim is not None:
        charge, estimated = hold.quote()
        told = _price(format_usd(charge), estimated=estimated)
        await delivery.keep_plain(told, answer.relay.body)
    hold.settle()
    money = _price(record.charge_usd, estimated=record.estimated)
    balance = await hold.reservation.journalled()
    if balance is not None:
        money.append(("x-farebox-balance-usd", format_usd(balance)))
    if delivery.keeper is not None:
        delivery.keeper.keep(answer.relay.body)
    record.status = 200
    await delivery.connection.respond(200, delivery.plain_head(money), answer.relay.body)


def _price(charge_usd: str, *, estimated: bool) -> Headers:
    """What a whole answer says of its price."""
    told = [("x-farebox-cost-usd", charge_usd)]
    return [*told, ("x-farebox-estimated", "true")] if estimated else told


async def stream(gateway: Gateway, delivery: Delivery, hold: Hold, pulse: Pulse) -> None:
    """Relay a stream to its end, and settle it. Raises ClientGone."""
    answer = hold.answer
    assert isinstance(answer, StreamAnswer), "it was to be streamed"
    pulse.stop()
    with gateway.metrics.open_streams.track_inprogress():
        delivery.record.hear()
        await delivery.stream(answer.first)
        relay = _pass_on if delivery.keeper is None else _pass_on_unless_stopped
        try:
            broken = await relay(answer, delivery, pulse)
        except (ClientGone, trio.Cancelled):
            if not delivery.connection.deadline.expired:
                await _last_figures(answer, delivery.record)
            raise
        pulse.stop()  # a beat into the last send would break its framing
        await _conclude(gateway, answer, delivery, hold, broken)


async def _conclude(
    gateway: Gateway, answer: StreamAnswer, delivery: Delivery, hold: Hold, broken: _Broken | None
) -> None:
    """Charge a stream for what there is of it, and end it.

    Where its allowance is used up, the relay has ended it as if its output cap were reached: it is
    complete like any other. Where the upstream breaks, the client gets an error in its own grammar,
    never a clean end, and is charged for what was produced.
    """
    if broken is None:
        await _last_figures(answer, delivery.record)
        _report(gateway, answer, delivery.record, None)
        await _end(gateway, answer, delivery, hold)
    elif broken == "stopped":
        await _last_figures(answer, delivery.record)
        await _break_off(answer, delivery, hold, Cancelled("The response was cancelled."))
    else:
        _report(gateway, answer, delivery.record, broken)
        await _break_off(answer, delivery, hold, _told(broken))


async def _end(gateway: Gateway, answer: StreamAnswer, delivery: Delivery, hold: Hold) -> None:
    """Charge a stream that is complete, then let its end go out."""
    relay = answer.relay
    await delivery.keep(relay.terminal)
    hold.settle()
    if relay.cut:
        gateway.metrics.short_of_credit(delivery.record.model).inc()
    if delivery.keeper is not None:
        delivery.keeper.keep(relay.terminal)
    await hold.reservation.journalled()
    await delivery.connection.end_stream(relay.terminal)
    delivery.record.ended = delivery.record.clock()
    await answer.response.finish()


async def _break_off(answer: StreamAnswer, delivery: Delivery, hold: Hold, error: APIError) -> None:
    """Charge what came of a stream, then end it with an error in the client's grammar."""
    record = delivery.record
    last = answer.relay.error_event(error, record.id)
    await delivery.keep(last)
    hold.settle(cut=True)
    if delivery.keeper is not None:
        delivery.keeper.keep_stopped()
    record.code = error.code
    await hold.reservation.journalled()
    await delivery.connection.end_stream(last)


def _report(
    gateway: Gateway, answer: StreamAnswer, record: Record, outcome: Outcome | None
) -> None:
    """Tell of the upstream, to all who may ask it next, how its answer has ended; None: well."""
    assert record.principal is not None, "it was authenticated"
    account, means = record.principal.account_id, gateway.means
    upstream, now = answer.candidate.upstream, means.monotonic()
    if outcome is None:
        means.health.served(upstream, now, account=account)
    else:
        means.health.failed(upstream, outcome, now, account=account)
        record.failed(upstream, outcome, record.duration_ms)


async def _last_figures(answer: StreamAnswer, record: Record) -> None:
    """Let an upstream whose answer was cut say what it costs, if it was just about to.

    Many say so last of all, and whoever knows that could leave, or have the answer stopped, right
    before. An answer that goes on for longer is counted as far as it has come.
    """
    relay, response = answer.relay, answer.response
    if relay.read_on(b"") or response.ended:  # as nearly all have
        return
    began = record.clock()
    with trio.move_on_after(_FIGURES_SECONDS, shield=True):
        with suppress(AttemptFailed):
            while not (relay.read_on(await response.receive()) or response.ended):
                pass
    record.upstream_seconds += record.clock() - began


async def _pass_on_unless_stopped(
    answer: StreamAnswer, delivery: Delivery, pulse: Pulse
) -> _Broken | None:
    """As `_pass_on`, for streams that another request may have cancelled."""
    assert delivery.keeper is not None, "it is of a kind that can be stopped"
    broken: Outcome | None = None
    with trio.CancelScope() as scope, delivery.keeper.running(answer.first, scope.cancel):
        broken = await _pass_on(answer, delivery, pulse)
    return "stopped" if scope.cancelled_caught else broken


async def _pass_on(answer: StreamAnswer, delivery: Delivery, pulse: Pulse) -> Outcome | None:
    """Pass a stream on until the upstream has ended; how it broke, None: it has not.

    What is done here is done for each piece of each stream.
    """
    relay, response, allowance = answer.relay, answer.response, answer.allowance
    send = delivery.connection.send_chunk if delivery.claim is None else delivery.send
    record, current_time = delivery.record, trio.lowlevel.current_clock().current_time
    idle_seconds = answer.candidate.upstream.provider.idle_seconds
    if allowance is not None and (out := await allowance.room_made(relay)):
        await send(out)
    now = current_time()
    while not relay.ended:
        pulse.since = now
        try:
            data = await response.receive(now + idle_seconds)
        except AttemptFailed as failed:
            return failed.reason
        finally:
            record.upstream_seconds += current_time() - now
        if allowance is None or (data and allowance.takes(len(data))):
            out = relay.feed(data) if data else relay.close()
        else:
            out = await allowance.feed(relay, data)
        pulse.since = NEVER  # how slowly the client reads is not the upstream's doing
        if out:
            await send(out)
        now = current_time()
    return None if relay.failure is None else relay.failure.kind


def _told(broken: Outcome) -> APIError:
    """What the client, which has read a part, is told of how its answer broke."""
    if VERDICTS[broken].told == "timeout":
        return UpstreamTimeout("The upstream stopped sending in the middle of its answer.")
    return UpstreamUnavailable("The upstream broke off in the middle of its answer.")
