"""The private listener: `/metrics`, `/healthz`, `/readyz`, `/status`.

A small ASGI app on hypercorn, apart from the data plane's port, so that a scrape can be kept off
the public network. `/healthz` says that the process runs, `/readyz` that it should be sent
traffic: the ledger has a session and the gateway is not draining. Upstreams that are not well, or a
console that is not there, are named and change nothing. `/status` shows the processes and the
upstreams.

What it tells comes from an `Observed`: one worker in this process (`Alone`), or a supervisor's
children (`Together`).
"""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from typing import Protocol

import hypercorn.config
import hypercorn.trio
import hypercorn.typing
import msgspec
import trio
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from farebox.children import ChildStatus
from farebox.console_child import ConsoleChild
from farebox.supervise import Supervisor
from farebox.totals import report_of, text_of
from farebox.worker import Worker
from proxy.notices import Shown

Answer = tuple[int, str, bytes]


class Observed(Protocol):
    """What the private listener shows."""

    async def metrics(self) -> bytes:
        """In Prometheus's text format."""
        ...

    def readiness(self) -> tuple[bool, list[str]]:
        """Whether traffic should be sent here, and what is wrong."""
        ...

    def upstreams(self) -> Sequence[Shown]:
        """How every upstream is."""
        ...

    async def processes(self) -> Sequence[ChildStatus]:
        """Every process that serves, beside this one."""
        ...


class Alone:
    """One worker in this process."""

    def __init__(self, worker: Worker, console: ConsoleChild | None) -> None:
        self._worker = worker
        self._console = console

    async def metrics(self) -> bytes:
        """As of Observed."""
        # Rendering takes milliseconds: it must not stop the streams of this process.
        return await trio.to_thread.run_sync(
            lambda: text_of(report_of(self._worker.metrics.registry))
        )

    def readiness(self) -> tuple[bool, list[str]]:
        """As of Observed."""
        problems = self._worker.problems()
        return not problems, [*problems, *self._worker.remarks(), *_remarks(self._console)]

    def upstreams(self) -> Sequence[Shown]:
        """As of Observed."""
        return self._worker.upstreams()

    async def processes(self) -> Sequence[ChildStatus]:
        """As of Observed: the console's, if there is one."""
        return await _processes(self._console)


class Together:
    """The children of a supervisor."""

    def __init__(self, supervisor: Supervisor, console: ConsoleChild | None) -> None:
        self._supervisor = supervisor
        self._console = console

    async def metrics(self) -> bytes:
        """As of Observed."""
        await self._supervisor.look()
        return await trio.to_thread.run_sync(text_of, self._supervisor.figures())

    def readiness(self) -> tuple[bool, list[str]]:
        """As of Observed."""
        ready, problems = self._supervisor.readiness()
        return ready, [*problems, *_remarks(self._console)]

    def upstreams(self) -> Sequence[Shown]:
        """As of Observed."""
        return self._supervisor.upstreams()

    async def processes(self) -> Sequence[ChildStatus]:
        """As of Observed."""
        await self._supervisor.look()
        return [*self._supervisor.status(), *await _processes(self._console)]


def _remarks(console: ConsoleChild | None) -> list[str]:
    return [] if console is None else console.remarks()


async def _processes(console: ConsoleChild | None) -> list[ChildStatus]:
    return [] if console is None else [await console.status()]


class Admin:
    """Answers the four paths."""

    def __init__(self, observed: Observed) -> None:
        self._observed = observed

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
            return 200, CONTENT_TYPE_PLAIN_0_0_4, await self._observed.metrics()
        if path == "/healthz":
            return 200, "text/plain", b"ok\n"
        if path == "/readyz":
            ready, problems = self._observed.readiness()
            lines = ["ready", *problems] if ready else problems
            return (200 if ready else 503), "text/plain", "\n".join([*lines, ""]).encode()
        if path == "/status":
            status = {
                "pid": os.getpid(),
                "processes": await self._observed.processes(),
                "upstreams": self._observed.upstreams(),
            }
            return 200, "application/json", msgspec.json.encode(status) + b"\n"
        return 404, "text/plain", b"not found\n"


async def _live(
    receive: hypercorn.typing.ASGIReceiveCallable, send: hypercorn.typing.ASGISendCallable
) -> None:
    """There is nothing to start or stop, but hypercorn wants to be told so."""
    await receive()
    await send({"type": "lifespan.startup.complete"})
    await receive()
    await send({"type": "lifespan.shutdown.complete"})


async def serve(observed: Observed, listening: socket.socket) -> None:
    """Show `observed` on an open socket until cancelled."""
    config = hypercorn.config.Config()
    config.bind = [f"fd://{listening.detach()}"]
    config.graceful_timeout = 1
    config.accesslog = None
    config.errorlog = None
    config.include_server_header = False
    await hypercorn.trio.serve(Admin(observed), config)
