"""A whole console in memory, on a real Postgres: `running` serves it, a `Browser` calls it.

What stands between the two in a real gateway (hypercorn, a socket, `proxy/control.py`) has tests of
its own; here a request goes straight into the app, as it would arrive there.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager

import httpx2
import trio
from starlette.types import ASGIApp, Message

from adapters.catalogue import Catalogue
from console import app
from console.context import Console, ServerFacts, Tier, wall_seconds
from console.settings import ConsoleSettings, StripeSettings
from farebox.catalogue import catalogue
from farebox.config import load
from farebox.snapshot import on_offer

PUBLIC_URL = "http://127.0.0.1:8080"
SECRET = b"a secret of thirty-two bytes yes"
ADDRESS = "127.0.0.1"

FACTS = ServerFacts(
    public_url=PUBLIC_URL,
    gateway_url=PUBLIC_URL,
    admin_url="http://127.0.0.1:9464",
    brand="farebox",
    tiers={"free": Tier(20, 200_000, 2), "pro": Tier(200, 2_000_000, 10)},
    default_tier="",
    margin_bps=1000,
    catalogue=Catalogue.build([], []),
)


def sandbox_catalogue() -> Catalogue:
    """What a gateway serves where no provider is configured."""
    config = load(None, {})
    return on_offer(config, catalogue(config))


def console(
    conninfo: str,
    *,
    settings: ConsoleSettings | None = None,
    stripe: StripeSettings | None = None,
    server: ServerFacts = FACTS,
    wall: Callable[[], float] = wall_seconds,
) -> Console:
    """The parts of a console on this database."""
    return Console(settings or ConsoleSettings(), stripe, server, conninfo, SECRET, wall)


class Browser(httpx2.AsyncClient):
    """Calls the app from `address`, keeps cookies, and says as browsers do where it comes from."""

    def __init__(
        self, served: ASGIApp, *, address: str = ADDRESS, base_url: str = PUBLIC_URL
    ) -> None:
        super().__init__(
            transport=httpx2.ASGITransport(served, raise_app_exceptions=False),
            base_url=base_url,
            headers={"x-farebox-client": address, "sec-fetch-site": "same-origin"},
        )


@asynccontextmanager
async def running(parts: Console) -> AsyncIterator[ASGIApp]:
    """The app while its lifespan lasts, services included."""
    served = app.build(parts)
    to_app, from_us = trio.open_memory_channel[Message](1)
    async with trio.open_nursery() as nursery:
        started, stopped = trio.Event(), trio.Event()

        async def send(message: Mapping[str, object]) -> None:
            done = {
                "lifespan.startup.complete": started,
                "lifespan.shutdown.complete": stopped,
            }
            done[str(message["type"])].set()

        nursery.start_soon(served, {"type": "lifespan", "state": {}}, from_us.receive, send)
        await to_app.send({"type": "lifespan.startup"})
        await started.wait()
        try:
            yield served
        finally:
            with trio.CancelScope(shield=True):
                await to_app.send({"type": "lifespan.shutdown"})
                await stopped.wait()
                await parts.aclose()


@asynccontextmanager
async def browsing(parts: Console) -> AsyncIterator[Browser]:
    """A browser in front of a running console."""
    async with running(parts) as served, Browser(served) as browser:
        yield browser
