"""Attempts at a model's upstreams, in priority order, until one has something to say.

A plain answer is complete before it counts; a stream counts with its first event of real content,
until which its bytes are held back. Before that point another upstream may be tried, afterwards
never: nothing is ever switched once content has left for the client.

Every failed attempt that a provider can have seen leaves a usage event with charge 0, and every
loser's connection is closed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import trio

from adapters.codec import Call, FailureKind, PlainRelay, StreamRelay, UpstreamFailure
from adapters.errors import (
    APIError,
    RequestNotExpressible,
    UpstreamOverloaded,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from adapters.losses import told
from ledger.client import Reservation
from ledger.store import EventStatus
from proxy.allowance import Allowance
from proxy.calls import Calls
from proxy.gateway import Gateway
from proxy.record import Record
from proxy.route import Candidate
from proxy.upstream import AttemptFailed, Sent, UpstreamResponse

_ANSWER_BYTES_MAX = 64 * 1024 * 1024
_HELD_BYTES_MAX = 16 * 1024 * 1024  # one event may be as large
_ERROR_BYTES_MAX = 64 * 1024
_RETRY_AFTER_SECONDS = 1.0
_TIMEOUTS = {"connect_timeout", "first_byte_timeout", "idle_timeout"}


@dataclass(frozen=True, slots=True)
class PlainAnswer:
    """An upstream's whole answer. Its connection is free again."""

    candidate: Candidate
    relay: PlainRelay

    def close(self) -> None:
        """Nothing is held."""


@dataclass(frozen=True, slots=True)
class StreamAnswer:
    """An upstream that has begun to stream. `first` are the client's first bytes of it;
    `allowance` is None where all that it may produce is held."""

    candidate: Candidate
    relay: StreamRelay
    response: UpstreamResponse
    first: bytes
    allowance: Allowance | None = None

    def close(self) -> None:
        """Stop the upstream where it has not finished by itself."""
        self.response.close()


Answer = PlainAnswer | StreamAnswer


class _Failed(Exception):
    """One attempt is over; `failure` says why, `contacted` whether the provider may bill it."""

    def __init__(self, failure: UpstreamFailure, outcome: str, *, contacted: bool) -> None:
        super().__init__(failure.message)
        self.failure = failure
        self.outcome = outcome
        self.contacted = contacted


class Held(Protocol):
    """What was set aside for the attempts."""

    @property
    def reservation(self) -> Reservation: ...

    @property
    def output_cap(self) -> int | None: ...

    def allowance(self, candidate: Candidate) -> Allowance | None: ...


async def first_event(
    gateway: Gateway,
    calls: Calls,
    candidates: Sequence[Candidate],
    held: Held,
    record: Record,
) -> Answer:
    """The first upstream that answers. Raises APIError where none does.

    A candidate whose protocol cannot express the request is passed over: another may.
    """
    failures: list[_Failed] = []
    inexpressible: RequestNotExpressible | None = None
    reservation = held.reservation
    for candidate in candidates:
        provider = candidate.upstream.provider
        started = trio.current_time()
        try:
            call = await _made(calls, candidate, held.output_cap)
        except RequestNotExpressible as error:
            inexpressible = inexpressible or error
            continue
        record.attempts += 1
        record.provider, record.upstream = provider.name, candidate.upstream.name
        record.dropped = told(call.dropped)
        try:
            allowance = held.allowance(candidate)
            stream = calls.request.stream
            answer = await _attempt(gateway, call, candidate, allowance, stream=stream)
        except _Failed as failed:
            gateway.metrics.attempt(provider.name, failed.outcome).inc()
            failures.append(failed)
            last = candidate is candidates[-1] or not failed.failure.retryable
            _book(reservation, candidate, failed, started, last=last)
            if last:
                break
        else:
            gateway.metrics.attempt(provider.name, "ok").inc()
            return answer
        finally:
            record.upstream_seconds += trio.current_time() - started
    if not failures:
        assert inexpressible is not None, "a route has candidates"
        raise inexpressible
    reservation.void()  # where the last candidates were passed over, nobody has done so yet
    raise _refusal(failures, record.provider)


async def _made(calls: Calls, candidate: Candidate, output_cap: int | None) -> Call:
    """The call of one candidate. A long one is made in a thread, so that other streams go on."""
    if calls.is_long(candidate):
        return await trio.to_thread.run_sync(calls.at, candidate, output_cap)
    return calls.at(candidate, output_cap)


def _book(
    reservation: Reservation, candidate: Candidate, failed: _Failed, started: float, *, last: bool
) -> None:
    """A provider that was contacted leaves an event; the last one ends the reservation."""
    duration_ms = round((trio.current_time() - started) * 1000)
    price_id = candidate.base_price.price_id
    if last:
        reservation.void(
            status=EventStatus.FAILED if failed.contacted else None,
            provider_id=candidate.provider_id,
            price_id=price_id,
            duration_ms=duration_ms,
        )
    elif failed.contacted:
        reservation.attempt(
            provider_id=candidate.provider_id,
            price_id=price_id,
            status=EventStatus.FAILED,
            duration_ms=duration_ms,
        )


async def _attempt(
    gateway: Gateway,
    call: Call,
    candidate: Candidate,
    allowance: Allowance | None,
    *,
    stream: bool,
) -> Answer:
    """One upstream up to the point where it is committed. Raises _Failed."""
    provider = candidate.upstream.provider
    sent = Sent(call.path, call.body, stream, call.headers)
    try:
        response = await gateway.upstreams.post(
            provider, sent, queue_seconds=provider.connect_seconds
        )
        try:
            if response.status != 200:
                error = await response.read(_ERROR_BYTES_MAX, provider.idle_seconds)
                raise _said(call.read_error(response.status, response.headers, error))
            if stream:
                relay = call.stream(limited=allowance is not None)
                first = await _first_content(response, relay, allowance, provider.idle_seconds)
                return StreamAnswer(candidate, relay, response, first, allowance)
            whole = await response.read(_ANSWER_BYTES_MAX, provider.idle_seconds)
            plain = call.plain(whole)
            if plain.failure is not None:
                raise _said(plain.failure)
            return PlainAnswer(candidate, plain)
        except BaseException:
            response.close()
            raise
    except AttemptFailed as failed:
        raise _Failed(_as_failure(failed), failed.reason, contacted=failed.contacted) from failed


async def _first_content(
    response: UpstreamResponse,
    relay: StreamRelay,
    allowance: Allowance | None,
    idle_seconds: float,
) -> bytes:
    """Read a stream up to its first content (or its end); the client's bytes of it."""
    held = bytearray()
    with trio.CancelScope() as scope:
        while not relay.has_content and not relay.ended:
            scope.deadline = trio.current_time() + idle_seconds
            data = await response.receive()
            if allowance is None:
                held += relay.feed(data) if data else relay.close()
            else:
                held += await allowance.feed(relay, data)
            if len(held) > _HELD_BYTES_MAX:
                raise AttemptFailed("protocol", "a stream without content", contacted=True)
    if scope.cancelled_caught:
        raise AttemptFailed("idle_timeout", f"no byte for {idle_seconds} s", contacted=True)
    if relay.failure is not None and not relay.has_content:
        raise _said(relay.failure)
    return bytes(held)


def _said(failure: UpstreamFailure) -> _Failed:
    return _Failed(failure, failure.kind, contacted=True)


def _as_failure(failed: AttemptFailed) -> UpstreamFailure:
    kind: FailureKind = "server_error"
    if failed.reason in _TIMEOUTS:
        kind = "timeout"
    elif failed.reason in ("protocol", "truncated"):
        kind = "truncated" if failed.reason == "truncated" else "protocol"
    return UpstreamFailure(kind, str(failed))


def _refusal(failures: Sequence[_Failed], provider: str) -> APIError:
    """What the client hears when no upstream served: the request's own fault first."""
    last = failures[-1].failure
    if (refusal := last.client_error()) is not None:
        return refusal
    kinds = {failed.failure.kind for failed in failures}
    attempts = len(failures)
    hints = [f.failure.retry_after for f in failures if f.failure.retry_after is not None]
    if kinds <= {"overloaded", "rate_limited"}:
        return UpstreamOverloaded(
            "Every upstream of this model is overloaded; try again shortly.",
            provider=provider,
            attempts=attempts,
            retry_after=min(hints, default=_RETRY_AFTER_SECONDS),
        )
    if last.kind == "timeout":
        return UpstreamTimeout(
            "The upstream of this model did not answer in time.",
            provider=provider,
            attempts=attempts,
        )
    return UpstreamUnavailable(
        "No upstream of this model could serve the request.", provider=provider, attempts=attempts
    )
