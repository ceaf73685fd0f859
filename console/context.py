"""What one console process is made of: passed to every route, built by `farebox.child`.

Nothing here is global: tests build the same on a database of their own. A changed configuration
comes with a new process, so that whatever stands here stays as it is.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, TypeVar

import trio
from fastapi import Depends, Request

from adapters.catalogue import Catalogue
from console.errors import DatabaseUnavailable
from console.security import RateLimit
from console.sessions import Verifier
from console.settings import ConsoleSettings, StripeSettings
from console.stripe_client import Stripe
from ledger.connection import Connections, Work, is_away
from ledger.directory import DirectoryUnavailable

T = TypeVar("T")

_CONNECTIONS_MAX = 8
_SIGN_INS_A_MINUTE = 10
CARD_PAGES_A_MINUTE = 10  # that are asked of Stripe for one account
CARD_LOOKS_A_MINUTE = 30  # at one account's open payments there


def wall_seconds() -> float:
    """Seconds since the epoch."""
    return time.time_ns() / 1e9


@dataclass(frozen=True, slots=True)
class Tier:
    """Limits of an account, over all its keys. 0 means no limit."""

    rpm: int
    tpm: int
    concurrent: int


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """What the console has to know of the gateway it belongs to. URLs end without a slash.

    `public_url` is for people, browsers and webhooks; `gateway_url` and `admin_url` are where this
    machine reaches the data plane and the private listener.
    """

    public_url: str
    gateway_url: str
    admin_url: str
    brand: str
    tiers: Mapping[str, Tier]
    default_tier: str
    margin_bps: int
    catalogue: Catalogue


class Database:
    """Postgres, from threads. SQL is in `console/store`, nowhere else. Times come in UTC."""

    def __init__(self, conninfo: str) -> None:
        self._connections = Connections(conninfo)
        self._threads = trio.CapacityLimiter(_CONNECTIONS_MAX)

    async def run(self, work: Work[T]) -> T:
        """Do `work` in a thread, once at most; several statements that belong together open a
        `connection.transaction()`. A caller that leaves does not cut it.

        Raises DatabaseUnavailable, and whatever else `work` raises.
        """
        try:
            return await trio.to_thread.run_sync(
                self._connections.run_once, work, limiter=self._threads
            )
        except Exception as error:
            if is_away(error) or isinstance(error, DirectoryUnavailable):
                raise DatabaseUnavailable from error
            raise

    def close(self) -> None:
        """Let all connections go."""
        self._connections.close()


class Console:
    """The parts of the process. `stripe` and `card_payments` are None where no `[stripe]` is
    configured.

    `card_payments` is for what people ask for: what goes on by itself has connections of its own.
    `secret` makes API keys, and knows them by their hashes.
    """

    def __init__(
        self,
        settings: ConsoleSettings,
        stripe: StripeSettings | None,
        server: ServerFacts,
        conninfo: str,
        secret: bytes,
        wall: Callable[[], float] = wall_seconds,
    ) -> None:
        self.settings = settings
        self.stripe = stripe
        self.server = server
        self.secret = secret
        self.wall = wall
        self.verifier = Verifier(settings, wall)
        self.database = Database(conninfo)
        self.card_payments = None if stripe is None else Stripe(stripe)
        self.sign_ins = RateLimit(_SIGN_INS_A_MINUTE, 60.0, trio.current_time)
        self.card_pages = RateLimit(CARD_PAGES_A_MINUTE, 60.0, trio.current_time)
        self.card_looks = RateLimit(CARD_LOOKS_A_MINUTE, 60.0, trio.current_time)

    async def aclose(self) -> None:
        """Let the database go, and Stripe."""
        self.database.close()
        if self.card_payments is not None:
            with trio.CancelScope(shield=True):
                await self.card_payments.aclose()


def console_of(request: Request) -> Console:
    """The console that a request is for."""
    console = request.app.state.console
    assert isinstance(console, Console)
    return console


ConsoleOf = Annotated[Console, Depends(console_of)]
