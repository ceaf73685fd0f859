"""The console as one of the gateway's processes: its parts put together from what it was told.

Only that process loads this file: frameworks and SDKs come with it, which take seconds to load.
"""

from __future__ import annotations

import os
import socket

import trio

from console import serve
from console.context import Console, ServerFacts, Tier
from farebox.catalogue import catalogue
from farebox.control import BeConsole, Served
from farebox.served import unpacked
from farebox.snapshot import on_offer
from proxy.metrics import Metrics

_ORPHAN_SECONDS = 3.0
_NICENESS = 5  # where cores are scarce, requests to models go first


class ConsolePart:
    """Serves until drained. Nothing here can be reloaded: another process gets what is new."""

    def __init__(self, start: BeConsole) -> None:
        self.metrics = Metrics()
        self._console = console_of(start)
        self._listening = socket.socket(fileno=start.listening)
        self._stop = trio.Event()
        self._stopped = trio.Event()
        self._running = trio.CancelScope()

    def problems(self) -> list[str]:
        """As of Part."""
        return []

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """As of Part."""
        os.nice(_NICENESS)  # it has been loaded, for which somebody may have waited
        with self._running:
            await serve.serve(self._console, self._listening, self._stop, task_status=task_status)
        self._stopped.set()

    def drain(self) -> None:
        """As of Part."""
        self._stop.set()

    def cut(self) -> None:
        """As of Part."""
        self._running.cancel()

    async def reload(self, served: Served) -> None:
        """As of Part."""
        raise AssertionError("a console is never reloaded")

    async def outlive(self) -> None:
        """As of Part."""
        self.drain()
        with trio.move_on_after(_ORPHAN_SECONDS):
            await self._stopped.wait()


def console_of(start: BeConsole) -> Console:
    """The parts of a console that is told this."""
    settings = unpacked(start.served.settings)
    config = settings.config
    facts = ServerFacts(
        public_url=start.public_url,
        gateway_url=start.gateway_url,
        admin_url=start.admin_url,
        brand=config.server.brand,
        tiers={
            name: Tier(rpm=tier.rpm, tpm=tier.tpm, concurrent=tier.concurrent)
            for name, tier in config.tiers.items()
        },
        default_tier=config.limits.default_tier,
        margin_bps=config.billing.margin_bps,
        catalogue=on_offer(config, catalogue(config, settings.built_in)),
    )
    stripe = config.stripe if config.stripe.api_key else None
    return Console(config.console, stripe, facts, start.conninfo, start.secret)
