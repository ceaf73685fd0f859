"""Upstream bytes → client bytes, metered on the way, settled before the last byte.

The relay runs in the exchange's own task: what the client has not taken is not read from the
upstream, so back-pressure needs no buffer of ours. Each read has the provider's idle deadline.
"""

from __future__ import annotations

import trio

from adapters.codec import Headers, UpstreamFailure
from adapters.errors import APIError, UpstreamTimeout, UpstreamUnavailable
from ledger.money import format_usd
from proxy.connection import Connection
from proxy.deadlines import NEVER, Deadline
from proxy.fallback import PlainAnswer, StreamAnswer
from proxy.gateway import Gateway
from proxy.record import Record
from proxy.reserve import Hold
from proxy.upstream import AttemptFailed

_STREAM_HEADERS: Headers = [
    ("content-type", "text/event-stream; charset=utf-8"),
    ("cache-control", "no-cache"),
    ("x-accel-buffering", "no"),
]


async def deliver(
    gateway: Gateway,
    connection: Connection,
    hold: Hold,
    record: Record,
    headers: Headers,
) -> None:
    """Bring the answer of `hold` to the client. Raises ClientGone."""
    record.status = 200
    match hold.answer:
        case PlainAnswer() as answer:
            await _plain(answer, connection, hold, record, headers)
        case StreamAnswer() as answer:
            gateway.metrics.open_streams.inc()
            try:
                await _stream(gateway, answer, connection, hold, record, headers)
            finally:
                gateway.metrics.open_streams.dec()
        case None:
            raise AssertionError("there is nothing to deliver")


async def _plain(
    answer: PlainAnswer, connection: Connection, hold: Hold, record: Record, headers: Headers
) -> None:
    """Settle, then send an answer that is complete already."""
    record.first_byte = trio.current_time()
    settled = hold.settle()
    money = [("x-farebox-cost-usd", format_usd(settled.charge))]
    if settled.balance is not None:
        money.append(("x-farebox-balance-usd", format_usd(settled.balance)))
    if record.estimated:
        money.append(("x-farebox-estimated", "true"))
    content_type = [("content-type", "application/json")]
    sending = trio.current_time()
    await connection.respond(200, content_type + headers + money, answer.relay.body)
    record.client_seconds += trio.current_time() - sending


async def _stream(
    gateway: Gateway,
    answer: StreamAnswer,
    connection: Connection,
    hold: Hold,
    record: Record,
    headers: Headers,
) -> None:
    """Relay a stream to its end.

    Where the upstream breaks, the client gets an error in its own grammar, never a clean end, and
    is charged for what was produced.
    """
    relay = answer.relay
    record.first_byte = trio.current_time()
    await connection.start_stream(200, _STREAM_HEADERS + headers, answer.first)
    with gateway.deadlines.new() as idle:
        failure = await _pass_on(answer, connection, record, idle) or relay.failure
    if idle.scope.cancelled_caught:
        failure = UpstreamFailure("timeout", "the upstream stopped sending")
    if failure is None:
        hold.settle()
        await connection.end_stream(relay.terminal)
        await answer.response.finish()
        return
    hold.settle(cut=True)
    error = _broken(failure)
    record.code = error.code
    await connection.end_stream(record.refusals.error_event(error, record.id))


async def _pass_on(
    answer: StreamAnswer, connection: Connection, record: Record, idle: Deadline
) -> UpstreamFailure | None:
    """Relay until the upstream has ended; why it ended early, as far as its bytes do not tell."""
    relay, response = answer.relay, answer.response
    idle_seconds = answer.candidate.upstream.provider.idle_seconds
    now = trio.current_time()
    while not relay.ended:
        idle.at = now + idle_seconds
        try:
            data = await response.receive()
        except AttemptFailed as failed:
            return UpstreamFailure("truncated", str(failed))
        received = trio.current_time()
        record.upstream_seconds += received - now
        out = relay.feed(data) if data else relay.close()
        idle.at = NEVER  # how slowly the client reads is not the upstream's doing
        if out:
            await connection.send_chunk(out)
        now = trio.current_time()
        record.client_seconds += now - received
    return None


def _broken(failure: UpstreamFailure) -> APIError:
    if failure.kind == "timeout":
        return UpstreamTimeout("The upstream stopped sending in the middle of its answer.")
    return UpstreamUnavailable("The upstream broke off in the middle of its answer.")
