"""The console on its socket: hypercorn, on trio, beside the console's own services.

The only file of the console that knows its server. The socket was opened by the supervisor, which
keeps it: who calls while there is no process waits in its queue. Only `proxy/control.py` calls, and
asks first whether anybody lives here (`ALIVE_PATH`): nobody from outside gets to that path.

A service that fails ends the process, which is then started again: no console goes on without what
it is to do by itself.
"""

from __future__ import annotations

import socket
from functools import partial

import hypercorn.config
import hypercorn.trio
import trio
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from console import app
from console.context import Console

ALIVE_PATH = "/alive"

_BACKLOG = 1024
_HEAD_BYTES_MAX = 256 * 1024  # what the public port admits, and more
_IDLE_SECONDS = 120  # longer than the other side keeps a connection
_FINISH_SECONDS = 10  # for what runs when the end is near


class Living:
    """Around the whole app: says that the process lives."""

    def __init__(self, inner: ASGIApp) -> None:
        self._inner = inner

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI entry point."""
        if scope["type"] == "http" and scope["path"] == ALIVE_PATH:
            await Response(status_code=204)(scope, receive, send)
        else:
            await self._inner(scope, receive, send)


async def serve(
    console: Console,
    listening: socket.socket,
    stop: trio.Event,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Answer until `stop`, and finish what runs then."""
    config = hypercorn.config.Config()
    config.bind = [f"fd://{listening.detach()}"]
    config.backlog = _BACKLOG
    config.h11_max_incomplete_size = _HEAD_BYTES_MAX
    config.keep_alive_timeout = _IDLE_SECONDS
    config.keep_alive_max_requests = 1_000_000
    config.graceful_timeout = _FINISH_SECONDS
    config.loglevel = "WARNING"
    config.accesslog = None  # the worker that handed a request over has a line for it
    config.include_date_header = False
    config.include_server_header = False
    async with trio.open_nursery() as nursery:
        for service in app.SERVICES:
            nursery.start_soon(service, console)
        await nursery.start(
            partial(
                _serve,
                Living(app.build(console)),
                config,
                stop,
                nursery.cancel_scope,
            )
        )
        task_status.started()
    await console.aclose()


async def _serve(
    served: ASGIApp,
    config: hypercorn.config.Config,
    stop: trio.Event,
    everything: trio.CancelScope,
    *,
    task_status: trio.TaskStatus[list[str]] = trio.TASK_STATUS_IGNORED,
) -> None:
    await hypercorn.trio.serve(
        served,  # type: ignore[arg-type]  # hypercorn spells ASGI's types out
        config,
        shutdown_trigger=stop.wait,
        task_status=task_status,
        mode="asgi",
    )
    everything.cancel()
