"""Valkey for the fleet's limits: one script, a client with short deadlines, and the lane between.

`fleet` decides what to ask; here it is asked. A draw is one call of the script, with all keys on
one hash tag, so it is one step for the server: nothing is consumed unless all of it is. The clock
is the server's, in microseconds, so the nodes' clocks do not matter. Every figure is an integer;
every key expires once what it says is worth nothing: a level a minute after it has flowed off,
slots 30 s after the last word of the last holder.

The client is valkey-glide, the Valkey project's own, which runs on trio. It is an extra
(the extra `fleet`), imported only where a URL is set. It connects when first used, reconnects by
itself, calls scripts by their hash and sends the text where the server has forgotten it.

A batch that is not answered in `DRAW_SECONDS` counts as lost, whatever the server did with it:
requests wait for it, and the limiter is better off alone than slow. The client library measures
that in a thread of its own; here an answer may wait `TURN_SECONDS` more for other requests' turns.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol
from urllib.parse import unquote, urlsplit

import trio

from ledger.draws import EXPIRY_SECONDS, UNITS, Draw, DrawReply, RightsReply, SlotsReply
from ledger.errors import brief
from ledger.fleet import POLL_SECONDS
from ledger.limits import LimiterPort

if TYPE_CHECKING:
    import glide

log = logging.getLogger(__name__)

DRAW_SECONDS = 0.15
TURN_SECONDS = 0.25
CONNECT_SECONDS = 1.0
RECONNECT_SECONDS = 0.1
PORT = 6379

_SCHEMES = {"redis": False, "valkey": False, "rediss": True, "valkeys": True}

_SCRIPT = Path(__file__).with_name("draw.lua")


class QuotasUnavailable(Exception):
    """Valkey did not answer in time, or not as it should; what it did is unknown."""


class QuotasPort(Protocol):
    """What the lane needs of `ValkeyQuotas`."""

    async def draw(self, draws: Sequence[Draw]) -> list[DrawReply]: ...


@dataclass(frozen=True, slots=True)
class ValkeyAddress:
    """Where a server is, and how to be let in."""

    host: str
    port: int
    tls: bool
    username: str
    password: str
    database: int

    def __repr__(self) -> str:  # without the password
        return f"ValkeyAddress({self.host!r}, {self.port}, database={self.database})"


def parse_url(url: str) -> ValkeyAddress:
    """`redis://[[user]:password@]host[:port][/database]`, `valkey://`; with a final s: over TLS.

    Raises ValueError with a sentence fragment that repeats nothing of the URL.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise ValueError("is not a URL: the host or the port cannot be read") from None
    if parts.scheme not in _SCHEMES:
        raise ValueError('expected a URL that starts with "valkey://", "valkeys://" or "redis://"')
    if not parts.hostname:
        raise ValueError('names no host; write it as "valkey://host:6379"')
    if parts.query or parts.fragment:
        raise ValueError("has options after ? or #, which are not understood; leave them out")
    path = parts.path.strip("/")
    if path and not (path.isascii() and path.isdigit() and len(path) <= 5):
        raise ValueError("ends in something that is not the number of a database, such as /0")
    return ValkeyAddress(
        parts.hostname,
        port or PORT,
        _SCHEMES[parts.scheme],
        unquote(parts.username or ""),
        unquote(parts.password or ""),
        int(path or 0),
    )


def client_missing() -> str | None:
    """A sentence fragment where the client library is not installed."""
    if importlib.util.find_spec("glide") is not None:
        return None
    return (
        "needs the package valkey-glide, which is not installed: pip install 'valkey-glide>=2.5,<3'"
    )


class ValkeyQuotas:
    """The fleet's books of rights and slots. `time_microseconds` stands in for the server's clock.

    Belongs to one trio run; `aclose` it.
    """

    def __init__(
        self,
        client: glide.GlideClient,
        script: glide.Script,
        failure: type[Exception],
        *,
        draw_seconds: float = DRAW_SECONDS,
        time_microseconds: Callable[[], int] | None = None,
    ) -> None:
        self._client = client
        self._script = script
        self._failure = failure  # the client library's errors
        self._draw_seconds = draw_seconds
        self._time_microseconds = time_microseconds

    @classmethod
    async def connect(
        cls,
        url: str,
        *,
        draw_seconds: float = DRAW_SECONDS,
        time_microseconds: Callable[[], int] | None = None,
    ) -> ValkeyQuotas:
        """Get ready; waits a moment for the server, and goes on without if it is away.

        Raises ValueError for a URL or an installation that cannot work.
        """
        address = parse_url(url)
        if (why := client_missing()) is not None:
            raise ValueError(why)
        import glide

        quotas = cls(
            await _open_client(address, draw_seconds),
            glide.Script(_SCRIPT.read_text()),  # type: ignore[no-untyped-call]  # as shipped
            glide.GlideError,
            draw_seconds=draw_seconds,
            time_microseconds=time_microseconds,
        )
        await quotas._greet()
        return quotas

    async def draw(self, draws: Sequence[Draw]) -> list[DrawReply]:
        """The replies, one for each draw. Raises QuotasUnavailable: then any of them may count."""
        replies: list[DrawReply] = []
        with trio.move_on_after(self._draw_seconds + TURN_SECONDS):
            if len(draws) == 1:
                return [await self._draw_one(draws[0])]
            outcomes: dict[int, DrawReply | QuotasUnavailable] = {}
            async with trio.open_nursery() as nursery:
                for index, draw in enumerate(draws):
                    nursery.start_soon(self._draw_into, outcomes, index, draw)
            for index in range(len(draws)):
                outcome = outcomes[index]
                if isinstance(outcome, QuotasUnavailable):
                    raise outcome
                replies.append(outcome)
            return replies
        raise QuotasUnavailable(f"no answer within {self._draw_seconds:g} s")

    async def aclose(self) -> None:
        """Close the connection. What this holder has in Valkey expires by itself."""
        await self._client.close()

    async def _greet(self) -> None:
        """Connecting takes longer than a draw may; a server that is away is tried again later."""
        with trio.move_on_after(CONNECT_SECONDS):
            try:
                await self._client.ping()
            except self._failure as error:
                log.warning("limits: Valkey cannot be reached: %s", brief(error))

    async def _draw_into(
        self, outcomes: dict[int, DrawReply | QuotasUnavailable], index: int, draw: Draw
    ) -> None:
        try:
            outcomes[index] = await self._draw_one(draw)
        except QuotasUnavailable as error:
            outcomes[index] = error

    async def _draw_one(self, draw: Draw) -> DrawReply:
        try:
            reply = await self._client.invoke_script(
                self._script, keys=script_keys(draw), args=script_arguments(draw, self._time())
            )
        except self._failure as error:
            raise QuotasUnavailable(brief(error)) from error
        return read_reply(draw, reply)

    def _time(self) -> int | None:
        return None if self._time_microseconds is None else self._time_microseconds()


class QuotaLane:
    """The task that asks Valkey for what the limiter needs. Whoever defers a request calls `wake`.

    `decided` is called after each batch: every waiting request is to be tried again then.
    """

    def __init__(
        self,
        limiter: LimiterPort,
        quotas: QuotasPort,
        *,
        clock: Callable[[], float],
        decided: Callable[[], None],
    ) -> None:
        self._limiter = limiter
        self._quotas = quotas
        self._clock = clock
        self._decided = decided
        self._wanted = trio.Event()

    def wake(self) -> None:
        """`wants_draw` has become true."""
        self._wanted.set()

    async def run(self) -> None:
        """Ask until cancelled."""
        while True:
            draws = self._limiter.next_draws(self._clock())
            if draws:
                await self._batch(draws)
                self._decided()
            elif not self._limiter.wants_draw:
                with trio.move_on_after(POLL_SECONDS):
                    await self._wanted.wait()
                self._wanted = trio.Event()

    async def _batch(self, draws: Sequence[Draw]) -> None:
        before = self._limiter.fleet_connected
        try:
            replies = await self._quotas.draw(draws)
        except QuotasUnavailable as error:
            self._limiter.lost(self._clock())
            if before:
                log.error("limits: Valkey is away, each node applies its share: %s", error)
        else:
            self._limiter.drawn(self._clock(), draws, replies)
            if not before:
                log.warning("limits: shared through Valkey")


def script_keys(draw: Draw) -> list[str]:
    """One key an ask, all on the tag's hash slot."""
    rights = [f"farebox:{{{draw.tag}}}:{ask.scope}:{ask.kind}" for ask in draw.rights]
    return rights + [f"farebox:{{{draw.tag}}}:{ask.scope}:slots" for ask in draw.slots]


def script_arguments(draw: Draw, time_microseconds: int | None) -> list[str]:
    """The script's ARGV."""
    figures = [draw.number, len(draw.rights), UNITS, int(EXPIRY_SECONDS * 1000)]
    for rights in draw.rights:
        figures += [rights.limit, rights.least, rights.most, rights.returned]
    for slots in draw.slots:
        figures += [slots.limit, slots.running, slots.least, slots.most]
    time = "" if time_microseconds is None else str(time_microseconds)
    return [time, draw.holder, *map(str, figures)]


def read_reply(draw: Draw, reply: object) -> DrawReply:
    """Two integers an ask. Raises QuotasUnavailable for anything else."""
    count = len(draw.rights) + len(draw.slots)
    figures = [one for one in reply if isinstance(one, int)] if isinstance(reply, list) else []
    if len(figures) != 2 * count:
        raise QuotasUnavailable("the server's reply is not the script's")
    pairs = list(zip(figures[::2], figures[1::2], strict=True))
    rights = tuple([RightsReply(*pair) for pair in pairs[: len(draw.rights)]])
    return DrawReply(rights, tuple([SlotsReply(*pair) for pair in pairs[len(draw.rights) :]]))


async def _open_client(address: ValkeyAddress, draw_seconds: float) -> glide.GlideClient:
    import glide

    glide.Logger.set_logger_config(glide.LogLevel.OFF)  # each failure is told by who called
    credentials = None
    if address.password:
        credentials = glide.ServerCredentials(address.password, address.username or None)
    return await glide.GlideClient.create(
        glide.GlideClientConfiguration(
            [glide.NodeAddress(address.host, address.port)],
            use_tls=address.tls,
            credentials=credentials,
            database_id=address.database,
            client_name="farebox",
            request_timeout=max(int(draw_seconds * 1000), 1),
            reconnect_strategy=glide.BackoffStrategy(1, int(RECONNECT_SECONDS * 1000), 2),
            # Without this `create` blocks the thread, and with it all requests, until connected.
            lazy_connect=True,
            advanced_config=glide.AdvancedGlideClientConfiguration(
                connection_timeout=int(CONNECT_SECONDS * 1000)
            ),
        )
    )
