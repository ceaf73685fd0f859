"""A client that leaves stops its upstream within a second, on every surface, and has a receipt.

A real gateway and real sockets. Between it and the sandbox provider sits a tap, which sees when the
gateway hangs up.
"""

from __future__ import annotations

import json
import re
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import cast
from urllib.parse import urlsplit

import pytest
import trio

from tests.fakes.process import (
    LOOPBACK,
    SPEAKERS,
    GatewayProcess,
    four_providers,
    sandbox_process,
    serving,
)

SECONDS = 3.0
"""Within so long the upstream is stopped. The promise is one, of which half a second may be waited
for the last figures; other tests may share the machine."""

TEST_SECONDS = 30
RECEIPT_TRIES = 100
Json = dict[str, object]


class Tap:
    """Passes bytes between whoever connects and `origin`. `left_at`: when one hung up.

    While it is `mute` it passes on what is asked, and no answer.
    """

    def __init__(self, listening: socket.socket, origin: str) -> None:
        self.url = "http://{}:{}".format(*listening.getsockname())
        self.mute = False
        self.asked = trio.Event()
        self.left = trio.Event()
        self.left_at = 0.0
        self._listening = listening
        self._origin = urlsplit(origin)

    async def run(self) -> None:
        listener = trio.SocketListener(trio.socket.from_stdlib_socket(self._listening.dup()))
        await trio.serve_listeners(self._serve, [listener])

    async def _serve(self, gateway: trio.SocketStream) -> None:
        assert self._origin.hostname is not None
        assert self._origin.port is not None
        host = await trio.open_tcp_stream(self._origin.hostname, self._origin.port)
        async with gateway, host, trio.open_nursery() as nursery:
            nursery.start_soon(self._pass_answers, host, gateway)
            try:
                while data := await gateway.receive_some():
                    await host.send_all(data)
                    self.asked.set()
            except trio.BrokenResourceError:
                pass
            self.left_at = trio.current_time()
            self.left.set()
            nursery.cancel_scope.cancel()

    async def _pass_answers(self, host: trio.SocketStream, gateway: trio.SocketStream) -> None:
        try:
            while data := await host.receive_some():
                if not self.mute:
                    await gateway.send_all(data)
        except trio.BrokenResourceError:
            return


@dataclass(frozen=True)
class Surface:
    """How to ask for a slow stream of a model."""

    path: str
    body: Json = field(default_factory=dict)


HELLO = [{"role": "user", "content": "Hi"}]
GEMINI: Json = {"contents": [{"role": "user", "parts": [{"text": "Hi"}]}]}
STREAMS = {
    "chat": Surface("/v1/chat/completions", {"messages": HELLO, "stream": True}),
    "responses": Surface("/v1/responses", {"input": "Hi", "stream": True}),
    "messages": Surface("/v1/messages", {"messages": HELLO, "max_tokens": 1000, "stream": True}),
    "gemini": Surface("/v1beta/models/{}:streamGenerateContent?alt=sse", GEMINI),
    "gemini, array": Surface("/v1beta/models/{}:streamGenerateContent", GEMINI),
}


@pytest.fixture(scope="module")
def listening() -> Iterator[socket.socket]:
    with closing(socket.create_server(("127.0.0.1", 0), backlog=100)) as server:
        yield server


@pytest.fixture(scope="module")
def origin() -> Iterator[str]:
    with sandbox_process() as found:
        yield found


@pytest.fixture(scope="module")
def gateway(
    listening: socket.socket, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[GatewayProcess]:
    directory: Path = tmp_path_factory.mktemp("leaving")
    tapped = "http://{}:{}".format(*listening.getsockname())
    with serving(directory, LOOPBACK + four_providers(tapped)) as process:
        process.key = process.new_key("acme")
        yield process


@pytest.fixture
def tap(listening: socket.socket, origin: str) -> Tap:
    return Tap(listening, origin)


async def asked(gateway: GatewayProcess, path: str, body: Json) -> trio.SocketStream:
    """A connection on which this was asked."""
    parts = urlsplit(gateway.base_url)
    stream = await trio.open_tcp_stream(parts.hostname or "", parts.port or 80)
    data = json.dumps(body).encode()
    await stream.send_all(
        f"POST {path} HTTP/1.1\r\nhost: gateway\r\nauthorization: Bearer {gateway.key}\r\n"
        f"content-length: {len(data)}\r\n\r\n".encode()
        + data
    )
    return stream


async def first_of(stream: trio.SocketStream) -> str:
    """Read the answer up to its first content; the id of the request."""
    data = b""
    while b"\r\n\r\n" not in data or data.endswith(b"\r\n\r\n"):
        part = await stream.receive_some()
        assert part, data
        data += part
    assert data.startswith(b"HTTP/1.1 200 "), data
    found = re.search(rb"x-request-id: (\S+)", data)
    assert found is not None
    return found[1].decode()


def _get(gateway: GatewayProcess, path: str) -> Json:
    request = urllib.request.Request(  # noqa: S310 - loopback
        gateway.base_url + path, headers={"authorization": f"Bearer {gateway.key}"}
    )
    with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310 - loopback
        return cast("Json", json.load(answer))


async def receipt(gateway: GatewayProcess, request_id: str) -> Json:
    """The receipt, once there is one."""
    for _ in range(RECEIPT_TRIES):
        try:
            return await trio.to_thread.run_sync(_get, gateway, f"/v1/usage/{request_id}")
        except urllib.error.HTTPError as missing:
            missing.close()
            await trio.sleep(0.05)
    raise AssertionError("there is no receipt")


async def newest(gateway: GatewayProcess, model: str) -> Json:
    """The receipt of the newest request, once that is one for `model`."""
    for _ in range(RECEIPT_TRIES):
        page = await trio.to_thread.run_sync(_get, gateway, "/v1/usage?limit=1")
        for record in cast("list[Json]", page["data"]):  # none yet, where it is the first
            if record["model"] == model:
                return await receipt(gateway, str(record["request_id"]))
        await trio.sleep(0.05)
    raise AssertionError("there is no record")


async def leave(stream: trio.SocketStream, tap: Tap) -> None:
    """Hang up, and see the upstream stopped."""
    moment = trio.current_time()
    await stream.aclose()
    await tap.left.wait()
    assert tap.left_at <= moment + SECONDS


@pytest.mark.parametrize("speaker", [each.name for each in SPEAKERS])
@pytest.mark.parametrize("surface", STREAMS)
async def test_a_stream_that_is_left_is_stopped_and_charged_as_far_as_it_came(
    gateway: GatewayProcess, tap: Tap, surface: str, speaker: str
) -> None:
    model = f"{speaker}-sandbox-slower"
    how = STREAMS[surface]
    body = how.body if "{}" in how.path else how.body | {"model": model}
    with trio.fail_after(TEST_SECONDS):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(tap.run)
            stream = await asked(gateway, how.path.format(model), body)
            request_id = await first_of(stream)
            assert not tap.left.is_set()
            await leave(stream, tap)
            found = await receipt(gateway, request_id)
            nursery.cancel_scope.cancel()
    assert (found["status"], found["billing_status"]) == ("cancelled", "charged")
    assert Decimal(str(found["charge_usd"])) > 0
    assert cast("int", found["output_tokens"]) > 0


@pytest.mark.parametrize("speaker", [each.name for each in SPEAKERS if each.embeds])
async def test_an_embedding_that_nobody_waits_for_is_stopped_and_costs_nothing(
    gateway: GatewayProcess, tap: Tap, speaker: str
) -> None:
    tap.mute = True
    body: Json = {"model": f"{speaker}-sandbox-embedding", "input": "Hi"}
    with trio.fail_after(TEST_SECONDS):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(tap.run)
            stream = await asked(gateway, "/v1/embeddings", body)
            await tap.asked.wait()
            await leave(stream, tap)
            nursery.cancel_scope.cancel()
        found = await newest(gateway, str(body["model"]))
    assert (found["status"], found["charge_usd"]) == ("cancelled", "0")
