"""Requests to providers, over connections that are kept, with API keys that take turns.

The client side of HTTP/1.1, without a general-purpose connection pool. From the outside in: each
provider is an `endpoint` with a `pool` of connections; over an `upstream_connection` an
`upstream_request` goes out and an `upstream_head` comes in; the `upstream_response` made of it has
an `upstream_body`.

Whatever goes wrong leaves this file as `AttemptFailed` with facts: what happened, and whether the
provider can have seen the request.

**When a request is sent twice.** A provider closes idle connections when it likes, now and then
while a request is on its way to it. A POST is not idempotent: it may only be repeated by whoever
can tell that it was not acted upon (RFC 9110 §9.2.2; RFC 9112 §9.3.1 has no more for it). So it is
sent a second time, once, over a new connection, only where the first one had been idle, no byte of
an answer has come over it, and either

- it broke before the request had left whole: what lacks its end is never acted upon; or
- it ended within a second of that: so soon ends what was being closed already. Who reads a request
  and then takes its time to fail has been asked, and that is a `reset`.

What is left is a provider that takes a request and dies within the second. It is asked again, as it
would be after the `reset`; the client gets, and pays, one answer all the same. Only what makes the
provider act (`Sent.once`) is not left to that: it goes over a new connection, and is sent once.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

import trio

from adapters import failures
from adapters.catalogue import Provider
from adapters.codec import FailureKind, UpstreamFailure
from proxy.api_keys import ApiKeys
from proxy.deadlines import Deadlines
from proxy.endpoint import SWEEP_SECONDS, Endpoint
from proxy.pool import PoolStatistics
from proxy.transport import Dialer
from proxy.upstream_errors import AttemptFailed, Reason
from proxy.upstream_request import Sent
from proxy.upstream_response import ReadError, UpstreamResponse

__all__ = [
    "AttemptFailed",
    "Reason",
    "Sent",
    "UpstreamResponse",
    "Upstreams",
]

_KEY_RESTS_SECONDS: Mapping[FailureKind, float] = {"auth": 60.0, "quota": 60.0, "rate_limited": 1.0}
_KEY_RESTS_SECONDS_MAX = 60.0


def by_status(status: int, headers: Mapping[bytes, bytes], body: bytes) -> UpstreamFailure:
    """What an error answer says to whom no protocol is known."""
    hint = failures.retry_after(headers)
    return UpstreamFailure(failures.kind_of(status, ""), "", status, retry_after=hint)


def _unheard(failure: UpstreamFailure) -> None:
    pass


class Upstreams:
    """The connections of one worker to all providers."""

    def __init__(self, dialer: Dialer) -> None:
        self._dialer = dialer
        self._deadlines = Deadlines()
        self._endpoints: dict[tuple[str, str, int, tuple[str, ...]], Endpoint] = {}
        self._latest: dict[str, tuple[Provider, Endpoint]] = {}

    def post(
        self,
        provider: Provider,
        sent: Sent,
        *,
        queue_seconds: float,
        first_byte_seconds: float | None = None,
        affinity: int | None = None,
        read_error: ReadError = by_status,
        on_refused: Callable[[UpstreamFailure], None] = _unheard,
    ) -> Awaitable[UpstreamResponse]:
        """Send one request and wait for the head of its answer. Raises AttemptFailed.

        Where all connections are in use, one of them is waited for no longer than `queue_seconds`.
        `first_byte_seconds` is the provider's, if there is none.

        Of several API keys requests with the same `affinity` get the same. Where the provider
        refuses one (as `read_error` understands it), it rests for a while, and the request is sent
        with the next: an attempt of its own, of whose end `on_refused` is told. The answer to the
        last one is returned, whatever it says.
        """
        latest = self._latest.get(provider.name)
        if latest is None or latest[0] is not provider:
            latest = self._latest[provider.name] = (provider, self._endpoint(provider))
        if first_byte_seconds is None:
            first_byte_seconds = provider.first_byte_seconds
        endpoint = latest[1]
        if endpoint.keys is None:
            only = provider.api_keys[0] if provider.api_keys else ""
            return endpoint.ask(provider, sent, only, queue_seconds, first_byte_seconds)

        def ask(api_key: str) -> Awaitable[UpstreamResponse]:
            return endpoint.ask(provider, sent, api_key, queue_seconds, first_byte_seconds)

        return _with_next_key(endpoint.keys, ask, affinity, read_error, on_refused)

    async def run(self) -> None:
        """Keep deadlines, and close connections that have been idle for too long; until
        cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._deadlines.run)
            while True:
                await trio.sleep(SWEEP_SECONDS)
                self._latest.clear()
                for key, endpoint in list(self._endpoints.items()):
                    endpoint.sweep()
                    if endpoint.is_unused():  # a reload may have put another in its place
                        del self._endpoints[key]

    def close(self) -> None:
        """Drop all idle connections."""
        for endpoint in self._endpoints.values():
            endpoint.sweep(everything=True)

    def statistics(self) -> list[tuple[str, PoolStatistics]]:
        """The connections by provider; one has several pools while a reload is taking hold."""
        return [(key[0], endpoint.pool.statistics()) for key, endpoint in self._endpoints.items()]

    def _endpoint(self, provider: Provider) -> Endpoint:
        # Whatever it is made of: a reload that changes any of it begins one of its own.
        key = (provider.name, provider.base_url, provider.max_connections, provider.api_keys)
        endpoint = self._endpoints.get(key)
        if endpoint is None:
            endpoint = Endpoint(self._dialer, self._deadlines, provider)
            self._endpoints[key] = endpoint
        return endpoint


async def _with_next_key(
    keys: ApiKeys,
    ask: Callable[[str], Awaitable[UpstreamResponse]],
    affinity: int | None,
    read_error: ReadError,
    on_refused: Callable[[UpstreamFailure], None],
) -> UpstreamResponse:
    """Ask with one key after the other, until one is not refused or there is no other."""
    asked: list[str] = []
    api_key = keys.first(trio.current_time(), affinity)
    while True:
        asked.append(api_key)
        response = await ask(api_key)
        if response.status == 200:
            return response
        failure = await response.read_error(read_error)
        now = trio.current_time()
        if not _key_is_refused(keys, api_key, failure, now):
            return response
        following = keys.next(now, affinity, asked)
        if following is None:
            return response
        on_refused(failure)
        api_key = following


def _key_is_refused(keys: ApiKeys, api_key: str, failure: UpstreamFailure, now: float) -> bool:
    """Whether another key may do better. This one rests then, as long as the provider says."""
    seconds = _KEY_RESTS_SECONDS.get(failure.kind)
    if seconds is None:
        return False
    hint = failure.retry_after if failure.kind == "rate_limited" else None
    if hint is not None:
        seconds = min(hint, _KEY_RESTS_SECONDS_MAX)
    keys.rest(api_key, now + seconds)
    return True
