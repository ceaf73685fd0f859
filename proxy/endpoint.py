"""One provider as one worker reaches it: its connections, its keys, its requests' heads.

Idle connections of a provider form a stack, only the one that is taken is checked, and nothing is
locked (decision record 0002 has the figures). It is checked however short it has been idle: that it
was closed meanwhile would be found out by asking, but what a provider has said unasked would be
taken for the answer to a request of somebody else. Waiting for one of our own places is no fault of
the provider: it is apart from connecting, and ends as "busy".
"""

from __future__ import annotations

import errno
import socket
import ssl

import trio

from adapters.catalogue import Provider
from proxy.api_keys import ApiKeys
from proxy.deadlines import Deadlines
from proxy.pool import Pool, PoolFull
from proxy.transport import Dialer
from proxy.upstream_connection import UpstreamConnection
from proxy.upstream_errors import AttemptFailed, Reason, StaleConnection
from proxy.upstream_request import Origin, RequestHeads, Sent
from proxy.upstream_response import UpstreamResponse

_IDLE_SECONDS_MAX = 60.0  # an idle connection older than this is not worth a try
SWEEP_SECONDS = _IDLE_SECONDS_MAX / 2
"""How often connections that have been idle for too long are looked for."""

# Errors of connecting that tell of this machine.
_OURS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL})


class Endpoint:
    """What of a provider lasts from one request to the next."""

    def __init__(self, dialer: Dialer, deadlines: Deadlines, provider: Provider) -> None:
        self.pool: Pool[UpstreamConnection] = Pool(provider.max_connections)
        self.keys = ApiKeys(provider.api_keys) if len(provider.api_keys) > 1 else None
        self._dialer = dialer
        self._deadlines = deadlines
        self._origin = Origin.of(provider)
        self._heads = RequestHeads(self._origin, provider)

    async def ask(
        self,
        provider: Provider,
        sent: Sent,
        api_key: str,
        queue_seconds: float,
        first_byte_seconds: float,
    ) -> UpstreamResponse:
        """Ask once, with one key. Raises AttemptFailed."""
        heads = self._heads
        if heads.provider is not provider:  # a reload may change what is said
            heads = self._heads = RequestHeads(self._origin, provider)
        head = heads.of(sent, api_key)
        connection = None if sent.once else self._idle()
        if connection is None:
            connection = await self._placed(provider, sent, queue_seconds)
        while True:
            sent.contacted = True
            try:
                answered = await connection.exchange(head, sent.body, first_byte_seconds)
                return UpstreamResponse(connection, answered, self)
            except StaleConnection:
                connection.close()
                connection = await self._connected(provider, contacted=True)
            except BaseException:
                self.discard(connection)
                raise

    def _idle(self) -> UpstreamConnection | None:
        """An idle connection that still stands."""
        while (connection := self.pool.take_idle()) is not None:
            if not connection.transport.is_stale():
                return connection
            self.discard(connection)
        return None

    async def _placed(
        self, provider: Provider, sent: Sent, queue_seconds: float
    ) -> UpstreamConnection:
        """A connection in the next place that is free, within the caller's time for that."""
        try:
            connection = await self.pool.place(queue_seconds)
        except PoolFull:
            detail = f"all {provider.max_connections} connections are in use"
            raise AttemptFailed("busy", detail, contacted=False) from None
        if connection is not None:
            if not sent.once and not connection.transport.is_stale():
                return connection
            connection.close()
        return await self._connected(provider)

    async def _connected(
        self, provider: Provider, *, contacted: bool = False
    ) -> UpstreamConnection:
        """A new connection, within the provider's time for it, in a place that is ours already.

        `contacted`: the request was sent before, over a connection that turned out to be stale.
        """
        origin = self._origin
        try:
            with trio.move_on_after(provider.connect_seconds):
                transport = await self._dialer.connect(origin.host, origin.port, tls=origin.tls)
                return UpstreamConnection(transport, self._deadlines)
            detail = f"no connection within {provider.connect_seconds} s"
            raise AttemptFailed("connect_timeout", detail, contacted=contacted)
        except BaseException as error:
            self.pool.free()
            if isinstance(error, OSError):
                reason = _connect_failure(error)
                raise AttemptFailed(reason, str(error), contacted=contacted) from error
            raise

    def give_back(self, connection: UpstreamConnection) -> None:
        """Keep a connection that another exchange may follow on."""
        connection.idle_since = connection.now()
        self.pool.give_back(connection)

    def discard(self, connection: UpstreamConnection) -> None:
        """Close a connection."""
        connection.close()
        self.pool.free()

    def sweep(self, *, everything: bool = False) -> None:
        """Close connections that have been idle for too long."""
        oldest = trio.current_time() - _IDLE_SECONDS_MAX
        for connection in self.pool.oldest(lambda idle: everything or idle.idle_since < oldest):
            self.discard(connection)

    def is_unused(self) -> bool:
        """Whether nothing would be lost with it."""
        rests = self.keys is not None and self.keys.rests(trio.current_time())
        return not rests and self.pool.statistics().taken == 0


def _connect_failure(error: OSError) -> Reason:
    if error.errno in _OURS:
        return "busy"
    if isinstance(error, ssl.SSLError):
        return "tls"
    if isinstance(error, socket.gaierror):
        return "dns"
    return "connect_timeout" if isinstance(error, TimeoutError) else "connect"
