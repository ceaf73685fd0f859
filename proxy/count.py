"""How many input tokens a request has: the provider's own count, else our estimate.

A count costs nothing, so no credit is set aside; it does count as a request where requests are
limited. It is never refused for want of a counter: clients that get no number send something
dearer instead. What is our own estimate is said so in `x-farebox-estimated`.

Upstreams are asked in the order in which answers are, once each, and only such as are well: it is
not for a count to find out who is back, or to take the place of an answer. A provider that cannot
be reached is told of, as it would be by any request. What a counter says of itself is its own: many
providers have none, or other limits for it.
"""

from __future__ import annotations

from typing import cast

import trio

from adapters import estimate
from adapters.codec import CountCall, CountingCodec, Headers, Request
from adapters.errors import RequestNotExpressible
from adapters.expected import expected_input
from proxy import reserve
from proxy.calls import Calls
from proxy.connection import Connection
from proxy.fallback import ordered
from proxy.gateway import Gateway
from proxy.health import State
from proxy.record import Record
from proxy.route import Candidate, Route
from proxy.upstream import AttemptFailed, Sent
from proxy.verdicts import VERDICTS

_ANSWER_BYTES_MAX = 64 * 1024
_SECONDS = 10.0  # in all: clients wait for a count before they ask; an estimate is worth more


async def serve(
    gateway: Gateway,
    connection: Connection,
    route: Route,
    calls: Calls,
    record: Record,
) -> None:
    """Answer with a count. Raises RateLimited, AccountSuspended and ClientGone."""
    codec = cast("CountingCodec", record.operation.codec)
    limits = await reserve.admit(gateway, route, record)
    headers: Headers = [
        ("content-type", "application/json"),
        *record.id_headers(),
        ("x-farebox-model", route.model.id),
        *limits,
    ]
    tokens = None
    began = record.clock()
    with trio.move_on_after(_SECONDS):
        tokens = await _asked(gateway, calls, route, record)
    record.upstream_seconds += record.clock() - began
    if tokens is None:
        record.estimated = True
        headers.append(("x-farebox-estimated", "true"))
        tokens = _expected(calls.request, route)
    record.status = 200
    await connection.respond(200, headers, codec.counted(tokens))


async def _asked(gateway: Gateway, calls: Calls, route: Route, record: Record) -> int | None:
    """The first count that a provider gives."""
    health, monotonic = gateway.means.health, gateway.means.monotonic
    for candidate in ordered(gateway, route, None, streamed=False):
        state, _ = health.look(candidate.upstream, monotonic())
        if state is not State.READY:
            continue
        try:
            call = await _made(calls, candidate)
        except RequestNotExpressible:
            continue
        if call is None:
            continue
        tokens = await _ask(gateway, call, candidate)
        if tokens is not None:
            record.provider = candidate.upstream.provider.name
            record.upstream = candidate.upstream.name
            return tokens
    return None


def _expected(request: Request, route: Route) -> int:
    """Our own count, as at the provider that would be asked first."""
    protocol = route.candidates[0].upstream.provider.protocol_for(request.protocol)
    bound = estimate.bound(request, route.model.context_window)
    return expected_input(request, protocol, bound).input_tokens


async def _made(calls: Calls, candidate: Candidate) -> CountCall | None:
    if calls.is_long(candidate):  # other streams go on meanwhile
        return await trio.to_thread.run_sync(calls.counting, candidate)
    return calls.counting(candidate)


async def _ask(gateway: Gateway, call: CountCall, candidate: Candidate) -> int | None:
    provider = candidate.upstream.provider
    sent = Sent(call.path, call.body, headers=call.headers)
    try:
        response = await gateway.upstreams.post(provider, sent, queue_seconds=0)
        try:
            body = await response.read(_ANSWER_BYTES_MAX, provider.idle_seconds)
        finally:
            response.close()
    except AttemptFailed as failed:
        if VERDICTS[failed.reason].scope == "provider":
            means = gateway.means
            means.health.failed(candidate.upstream, failed.reason, means.monotonic())
        return None
    return call.read(body) if response.status == 200 else None
