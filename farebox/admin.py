"""The private listener: `/metrics`, `/healthz`, `/readyz`.

A small ASGI app on hypercorn, apart from the data plane's port, so that a scrape can be kept off
the public network. `/healthz` says that the process runs, `/readyz` that it should be sent
traffic: the ledger has a session and the gateway is not draining.
"""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable, Iterable
from functools import partial

import hypercorn.config
import hypercorn.trio
import hypercorn.typing
import trio
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

Answer = tuple[int, str, bytes]


class Admin:
    """Answers the three paths. `problems` names why the gateway is not ready; empty: it is."""

    def __init__(
        self, registries: Iterable[CollectorRegistry], problems: Callable[[], list[str]]
    ) -> None:
        self._registries = list(registries)
        self._problems = problems

    async def __call__(
        self,
        scope: hypercorn.typing.Scope,
        receive: hypercorn.typing.ASGIReceiveCallable,
        send: hypercorn.typing.ASGISendCallable,
    ) -> None:
        """The ASGI entry point."""
        if scope["type"] == "lifespan":
            await _live(receive, send)
        if scope["type"] != "http":
            return
        status, content_type, body = await self._answer(scope["path"])
        headers = [(b"content-type", content_type.encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body, "more_body": False})

    async def _answer(self, path: str) -> Answer:
        if path == "/metrics":
            # Rendering takes milliseconds: it must not stop the streams of this process.
            return 200, CONTENT_TYPE_PLAIN_0_0_4, await trio.to_thread.run_sync(self._render)
        if path == "/healthz":
            return 200, "text/plain", b"ok\n"
        if path == "/readyz":
            problems = self._problems()
            text = "".join(f"{problem}\n" for problem in problems) or "ready\n"
            return (503 if problems else 200), "text/plain", text.encode()
        return 404, "text/plain", b"not found\n"

    def _render(self) -> bytes:
        return b"".join(generate_latest(registry) for registry in self._registries)


async def _live(
    receive: hypercorn.typing.ASGIReceiveCallable, send: hypercorn.typing.ASGISendCallable
) -> None:
    """There is nothing to start or stop, but hypercorn wants to be told so."""
    await receive()
    await send({"type": "lifespan.startup.complete"})
    await receive()
    await send({"type": "lifespan.shutdown.complete"})


async def serve(
    admin: Admin, listening: socket.socket, shutdown: Callable[[], Awaitable[None]]
) -> None:
    """Serve `admin` on an open socket until `shutdown` returns."""
    config = hypercorn.config.Config()
    config.bind = [f"fd://{listening.detach()}"]
    config.graceful_timeout = 1
    config.accesslog = None
    config.errorlog = None
    config.include_server_header = False
    await partial(hypercorn.trio.serve, shutdown_trigger=shutdown)(admin, config)
