"""The console on its socket, and the public port before it: real hypercorn, a real unix socket.

What is between the two, `proxy/control.py`, is tried in `tests/proxy/test_control.py` against every
kind of console; here against the one there is.
"""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import h11
import pytest
import trio
from fastapi import APIRouter
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp

from console import app, serve
from console.context import Console
from farebox.sockets import unix_sockets
from proxy import control
from proxy.control import Control, unix_dial
from tests.fakes.console import console
from tests.fakes.gateway import Client, World, running
from tests.fakes.network import ADDRESS
from tests.fakes.provider import ScriptedProvider, completion

PATIENCE_SECONDS = 20
CSS = "body { color: black }\n" * 100


def test_both_sides_ask_at_the_same_place() -> None:
    assert serve.ALIVE_PATH == control.ALIVE_PATH


@dataclass
class Serving:
    """A gateway in memory whose console is served on a socket."""

    world: World
    stop: trio.Event
    stopped: trio.Event

    def connect(self) -> Client:
        return self.world.connect()


@asynccontextmanager
async def serving(parts: Console, directory: Path) -> AsyncIterator[Serving]:
    stop, stopped = trio.Event(), trio.Event()

    async def served(
        listening: socket.socket, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        await serve.serve(parts, listening, stop, task_status=task_status)
        stopped.set()

    with trio.fail_after(PATIENCE_SECONDS), unix_sockets(directory, ["console"]) as opened:
        ((path, listening),) = opened
        async with (
            running({"upstream": ScriptedProvider(completion())}) as world,
            trio.open_nursery() as nursery,
        ):
            gateway = world.gateway
            gateway.control = Control(unix_dial(str(path)), gateway.deadlines, 900.0)
            world.nursery.start_soon(gateway.control.run)
            await nursery.start(served, listening.dup())
            yield Serving(world, stop, stopped)
            stop.set()


@pytest.fixture
def serve_instead(monkeypatch: pytest.MonkeyPatch) -> Callable[[Starlette], None]:
    """Have another app served, without services."""

    def replace(served: Starlette) -> None:
        def build(_: Console) -> ASGIApp:
            return served

        monkeypatch.setattr(app, "build", build)
        monkeypatch.setattr(app, "SERVICES", ())

    return replace


async def test_the_real_app_answers_at_the_public_port(database: str, tmp_path: Path) -> None:
    async with serving(console(database), tmp_path) as gateway:
        answer = await gateway.connect().call("/console/api/openapi.json", method="GET")
        assert answer.status == 200
        assert str(answer.json["openapi"]).startswith("3.")
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["x-request-id"]
        refused = await gateway.connect().call("/console/api/nothing", method="GET")
        assert refused.status == 404
        assert refused.error["code"] == "not_found"
        outside = await gateway.connect().call(serve.ALIVE_PATH, method="GET")
        assert outside.status == 404


async def test_a_failing_service_ends_the_process(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(_: Console) -> None:
        await trio.lowlevel.checkpoint()
        raise RuntimeError("the inbox is broken")

    monkeypatch.setattr(app, "SERVICES", (fail,))
    with pytest.raises(BaseExceptionGroup) as caught:
        async with serving(console(database), tmp_path):
            await trio.sleep_forever()
    assert caught.group_contains(RuntimeError, match="the inbox is broken")


async def test_every_kind_of_answer_comes_through(
    database: str, tmp_path: Path, serve_instead: Callable[[Starlette], None]
) -> None:
    async def css(request: Request) -> Response:
        if request.headers.get("if-none-match") == '"1"':
            return Response(status_code=304, headers={"etag": '"1"'})
        return PlainTextResponse(CSS, headers={"etag": '"1"'})

    async def sign_in(request: Request) -> Response:
        answer = JSONResponse({"bytes": len(await request.body())}, 201)
        answer.set_cookie("one", "1", httponly=True)
        answer.set_cookie("two", "2")
        return answer

    async def nothing(_: Request) -> Response:
        return Response(status_code=204)

    async def who(request: Request) -> Response:
        return JSONResponse(dict(request.headers))

    serve_instead(
        Starlette(
            routes=[
                Route("/console/css", css),
                Route("/console/session", sign_in, methods=["POST"]),
                Route("/console/nothing", nothing, methods=["DELETE"]),
                Route("/console/who", who),
            ]
        )
    )
    async with serving(console(database), tmp_path) as gateway:
        client = gateway.connect()  # one connection for all
        whole = await client.call("/console/css", method="GET")
        assert whole.body == CSS.encode()
        head = await client.call("/console/css", method="HEAD")
        assert (head.status, head.body) == (200, b"")
        assert head.headers["content-length"] == str(len(CSS))
        known = await client.call("/console/css", method="GET", headers={"if-none-match": '"1"'})
        assert (known.status, known.body, known.headers["etag"]) == (304, b"", '"1"')
        gone = await client.call("/console/nothing", method="DELETE")
        assert (gone.status, gone.body) == (204, b"")
        told = (await client.call("/console/who", method="GET")).json
        assert told["x-farebox-client"] == ADDRESS
        assert told["host"] == "gateway"
        await client.send("/console/session", b"x" * 1_000_000)
        answer = await client.event()
        assert isinstance(answer, h11.Response)
        assert answer.status_code == 201
        cookies = [value for name, value in answer.headers if name == b"set-cookie"]
        assert [cookie[:5] for cookie in cookies] == [b"one=1", b"two=2"]
        body = await client.event()
        assert isinstance(body, h11.Data)
        assert bytes(body.data) == b'{"bytes":1000000}'


async def test_a_bug_is_answered_and_written_down_without_its_path(
    database: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    router = APIRouter()

    @router.get("/invitations/{token}")
    async def accept(token: str) -> None:
        raise RuntimeError(f"{len(token)} is too long")

    monkeypatch.setattr(app, "ROUTERS", (router,))
    monkeypatch.setattr(app, "SERVICES", ())
    async with serving(console(database), tmp_path) as gateway:
        client = gateway.connect()
        for _ in range(2):  # over the same connection
            answer = await client.call("/console/api/invitations/s3cret", method="GET")
            assert (answer.status, answer.error["code"]) == (500, "internal_error")
    written = capfd.readouterr().err
    assert "6 is too long" in written
    assert "s3cret" not in written


async def test_events_arrive_as_they_are_made_and_leaving_is_noticed(
    database: str, tmp_path: Path, serve_instead: Callable[[Starlette], None]
) -> None:
    heard, left = trio.Event(), trio.Event()

    async def events() -> AsyncIterator[bytes]:
        try:
            yield b"data: 1\n\n"
            await heard.wait()  # only who has received the first event asks for the second
            yield b"data: 2\n\n"
            await trio.sleep_forever()
        finally:
            left.set()

    async def stream(_: Request) -> Response:
        return StreamingResponse(events(), media_type="text/event-stream")

    serve_instead(Starlette(routes=[Route("/mcp", stream, methods=["POST"])]))
    async with serving(console(database), tmp_path) as gateway:
        client = gateway.connect()
        await client.send("/mcp", {})
        assert isinstance(await client.event(), h11.Response)
        for number in (1, 2):
            event = await client.event()
            assert isinstance(event, h11.Data)
            assert bytes(event.data) == b"data: %d\n\n" % number
            heard.set()
        client.transport.close()
        await left.wait()


async def test_what_runs_may_finish(
    database: str, tmp_path: Path, serve_instead: Callable[[Starlette], None]
) -> None:
    begun, may_end = trio.Event(), trio.Event()

    async def slow(_: Request) -> Response:
        begun.set()
        await may_end.wait()
        return PlainTextResponse("done")

    serve_instead(Starlette(routes=[Route("/console/slow", slow)]))
    async with serving(console(database), tmp_path) as gateway:
        client = gateway.connect()
        await client.send("/console/slow", method="GET")
        await begun.wait()
        gateway.stop.set()
        may_end.set()
        assert (await client.receive()).body == b"done"
        await gateway.stopped.wait()
