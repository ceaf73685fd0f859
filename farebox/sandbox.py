"""The sandbox provider as a server: `adapters.sandbox` behind the gateway's own HTTP parts.

It is a real HTTP server on loopback, in a process of its own, so that what `make serve` and the
tests call crosses the same sockets as a provider would. It never pretends to be a real model. It
ends when its standard input does: the process that started it holds the other end.
"""

from __future__ import annotations

from collections import Counter

import msgspec
import trio

from adapters import sandbox
from adapters.errors import APIError
from proxy.connection import ClientGone, Connection, Head
from proxy.settings import ServerSettings
from proxy.transport import Transport

_BODY_BYTES_MAX = 64 * 1024 * 1024
_SETTINGS = ServerSettings(keep_alive_seconds=3600)
_CALLS_PATH = "/sandbox/calls"


class Calls:
    """How often each model was asked: what tests assert that nothing reached a provider with."""

    def __init__(self) -> None:
        self._by_model: Counter[str] = Counter()

    def count(self, body: bytes) -> None:
        """Count the request's model, or `?` where the body names none."""
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


async def serve_transport(calls: Calls, transport: Transport) -> None:
    """Serve one connection until its client leaves or the script cuts it."""
    connection = Connection(transport, _SETTINGS)
    try:
        while connection.reusable:
            with trio.CancelScope() as scope:
                head = await connection.read_head(scope)
                if head is None:
                    return
                body = await connection.read_body(_BODY_BYTES_MAX)
            if scope.cancelled_caught:
                return
            await _answer(calls, connection, head, body)
    except (ClientGone, APIError):
        return


async def _answer(calls: Calls, connection: Connection, head: Head, body: bytes) -> None:
    if head.path == _CALLS_PATH:
        await connection.respond(200, [("content-type", "application/json")], calls.as_json())
        return
    if head.method == "POST":
        calls.count(body)
    await _perform(connection, sandbox.respond(head.method, head.path, head.headers, body))
