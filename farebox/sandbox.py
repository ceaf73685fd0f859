"""The sandbox provider as a server: `adapters.sandbox` behind the gateway's own HTTP parts.

It is a real HTTP server on loopback, in a process of its own, so that what `make serve` and the
tests call crosses the same sockets as a provider would. It never pretends to be a real model. It
ends when its standard input does: the process that started it holds the other end.
"""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from functools import partial
from urllib.parse import unquote

import msgspec
import trio

from adapters import sandbox
from adapters.errors import APIError
from proxy.connection import ClientGone, Connection
from proxy.deadlines import Deadlines
from proxy.listener import Listener, bind
from proxy.settings import ServerSettings
from proxy.transport import Transport

_BODY_BYTES_MAX = 64 * 1024 * 1024
_SETTINGS = ServerSettings(keep_alive_seconds=3600)
_CALLS_PATH = "/sandbox/calls"
_MODEL_IN_PATH = re.compile(r"/v1(?:beta|alpha)?/models/([^/:]+):\w+")


class Calls:
    """How often each model was asked: what tests assert that nothing reached a provider with."""

    def __init__(self) -> None:
        self._by_model: Counter[str] = Counter()

    def count(self, path: str, body: bytes) -> None:
        """Count the model that the path (Gemini) or the body names, or `?` where neither does."""
        if found := _MODEL_IN_PATH.fullmatch(path):
            self._by_model[unquote(found[1])] += 1
            return
        try:
            model = msgspec.json.decode(body, type=_Named).model
        except msgspec.MsgspecError:
            model = "?"
        self._by_model[model] += 1

    def as_json(self) -> bytes:
        """`{"calls": total, "models": {name: calls}}`."""
        return msgspec.json.encode(
            {"calls": self._by_model.total(), "models": dict(self._by_model)}
        )


class _Named(msgspec.Struct):
    model: str = "?"


async def serve_transport(calls: Calls, deadlines: Deadlines, transport: Transport) -> None:
    """Serve one connection until its client leaves or the script cuts it."""
    with deadlines.new() as deadline:
        connection = Connection(transport, _SETTINGS, deadline)
        try:
            while connection.reusable and await _serve_request(calls, connection):
                pass
        except (ClientGone, APIError):
            return  # a client that left, or whose bytes are not HTTP


async def _serve_request(calls: Calls, connection: Connection) -> bool:
    head = await connection.read_head()
    if head is None:
        return False
    body = await connection.read_body(_BODY_BYTES_MAX)
    if head.path == _CALLS_PATH:
        await connection.respond(200, [("content-type", "application/json")], calls.as_json())
        return True
    if head.method == "POST":
        calls.count(head.path, body)
    target = f"{head.path}?{head.query}" if head.query else head.path
    return await _perform(connection, sandbox.respond(head.method, target, head.headers, body))


async def _perform(connection: Connection, script: Iterable[sandbox.Action]) -> bool:
    """Play a script to its end. False where it cuts the connection."""
    head: sandbox.Head | None = None
    started = False
    for action in script:
        match action:
            case sandbox.Head():
                head = action
            case sandbox.Data(data) if not started:
                assert head is not None, "a script begins with a head"
                await connection.start_stream(head.status, head.headers, data)
                started = True
            case sandbox.Data(data):
                await connection.send_chunk(data)
            case sandbox.Pause(seconds):
                await trio.sleep(seconds)
            case sandbox.Cut():
                return False
            case sandbox.Hang():
                await trio.sleep_forever()
    await connection.end_stream(b"")
    return True


@asynccontextmanager
async def upstream() -> AsyncIterator[str]:
    """Run the sandbox provider in a child process; yields its OpenAI base URL.

    Without its `/v1` that is the base URL of Anthropic's Messages and of Gemini's API.
    """
    listening = bind("127.0.0.1", 0)
    port = listening.getsockname()[1]
    with listening:
        child = await trio.lowlevel.open_process(
            [sys.executable, "-m", "farebox.sandbox", str(listening.fileno())],
            stdin=subprocess.PIPE,
            pass_fds=[listening.fileno()],
            start_new_session=True,  # a Ctrl-C at the terminal is the gateway's to handle
        )
    try:
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        child.kill()
        with trio.CancelScope(shield=True, deadline=trio.current_time() + 5):
            await child.wait()
        assert child.stdin is not None
        await trio.aclose_forcefully(child.stdin)


async def serve(listening: socket.socket) -> None:
    """Serve until cancelled."""
    deadlines = Deadlines()
    handler = partial(serve_transport, Calls(), deadlines)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(deadlines.run)
        await Listener(listening, handler, max_connections=20_000).run()
        nursery.cancel_scope.cancel()


async def _until_parent_ends(listening: socket.socket) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve, listening)
        # Our parent holds the other end of standard input: its end, however it came, ends us.
        await trio.lowlevel.wait_readable(sys.stdin.fileno())
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(_until_parent_ends, socket.socket(fileno=int(sys.argv[1])))
