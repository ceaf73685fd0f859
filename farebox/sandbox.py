"""The sandbox provider as a server: `adapters.sandbox` behind the gateway's own HTTP parts.

It is a real HTTP server on loopback, in a process of its own, so that what `make serve` and the
tests call crosses the same sockets as a provider would. It never pretends to be a real model. It
ends when its standard input does: the process that started it holds the other end.

Its `Director` knows what the scripts, which are without state, do not: how often the same request
was asked before, and in what mood the provider is. Tests talk to it beside the protocols:

    GET  /sandbox/calls             how often each model was asked
    POST /sandbox/mood              {"mood": "sandbox-cut-40"}: from here on every model fails as
                                    that one does, and says what it says by itself as far as it
                                    comes to that; {"mood": ""}: all is well again. Answers that
                                    have begun are not changed
    GET  /sandbox/log?after=0       {"performances": […]}: every answer that has ended, in the order
                                    of their ends, behind the one of that number (`Performance`);
                                    the newest 100,000 are kept

A mood may come to an end by itself for each request, as models do: `sandbox-error-503-once`.
Whoever asks `sandbox-echo` to `echo 120 some-nonce` finds its attempts in the log by the nonce.
"""

from __future__ import annotations

import hashlib
import re
import socket
import struct
import subprocess
import sys
import time
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from functools import partial
from typing import Literal
from urllib.parse import parse_qs, unquote

import msgspec
import trio

from adapters import sandbox
from adapters.errors import APIError
from proxy.connection import ClientGone, Connection
from proxy.deadlines import Deadlines
from proxy.listener import Listener, bind
from proxy.request_head import Head
from proxy.settings import ServerSettings
from proxy.transport import Transport

_BODY_BYTES_MAX = 64 * 1024 * 1024
_SETTINGS = ServerSettings(keep_alive_seconds=3600)
_MODEL_IN_PATH = re.compile(r"/v1(?:beta|alpha)?/models/([^/:]+):\w+")
_NONCE = re.compile(sandbox.ECHO.pattern.encode())
_OK = 200
_TRIED_MAX = 100_000  # requests whose tries are counted
_PERFORMANCES_MAX = 100_000
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER for no time: what is unsent is dropped

End = Literal["whole", "refused", "spoilt", "cut", "reset", "hung", "left"]


class Performance(msgspec.Struct, frozen=True):
    """One answer, as it was given.

    Only where its `end` is `whole` was all of an answer sent: `refused` is another status than 200,
    `spoilt` a body that ended well with an answer in it that did not, and a client has `left` where
    there was more to send. `status` is 0 where not even that was sent. `nonce` is that of an echo
    (`sandbox.ECHO`), `tried` how often the same was asked before, `spoke` when the first word with
    that nonce went out; moments are those of `time.monotonic`, which is the same in all processes
    of a machine.
    """

    number: int
    model: str
    mood: str
    nonce: str
    tried: int
    status: int
    end: End
    began: float
    ended: float
    spoke: float | None = None


class _Named(msgspec.Struct):
    model: str = "?"


class _Mood(msgspec.Struct, forbid_unknown_fields=True):
    mood: str


class Director:
    """What tests decide, and what they assert by: mood, tries, calls and log of one server."""

    def __init__(self) -> None:
        self._calls: Counter[str] = Counter()
        self._tried: OrderedDict[bytes, int] = OrderedDict()
        self._mood = ""
        self._performances: deque[Performance] = deque(maxlen=_PERFORMANCES_MAX)
        self._numbered = 0

    def answer(self, head: Head, body: bytes) -> tuple[int, bytes] | None:
        """Status and body of what is asked of the director itself; None for a provider's paths."""
        match head.path:
            case "/sandbox/calls":
                calls = {"calls": self._calls.total(), "models": dict(self._calls)}
                return 200, msgspec.json.encode(calls)
            case "/sandbox/mood":
                return self._set_mood(body)
            case "/sandbox/log":
                return self._show_log(parse_qs(head.query).get("after", ["0"])[0])
        return None

    def _show_log(self, after: str) -> tuple[int, bytes]:
        if not after.isdecimal():
            return 400, msgspec.json.encode({"error": "after is the number of a performance."})
        found = [each for each in self._performances if each.number > int(after)]
        return 200, msgspec.json.encode({"performances": found})

    def _set_mood(self, body: bytes) -> tuple[int, bytes]:
        try:
            mood = msgspec.json.decode(body, type=_Mood).mood
        except msgspec.MsgspecError as error:
            return 400, msgspec.json.encode({"error": str(error)})
        if mood and sandbox.find(mood) is None:
            return 400, msgspec.json.encode({"error": f"There is no model {mood!r} to fail like."})
        self._mood = mood
        return 200, msgspec.json.encode({"mood": mood})

    def begin(self, head: Head, body: bytes) -> Performance:
        """Count a request. What is returned has yet to take place."""
        model = _model_of(head.path, body)
        self._calls[model] += 1
        nonce = _NONCE.search(body)
        now = time.monotonic()
        return Performance(
            number=0,
            model=model,
            mood=self._mood,
            nonce=nonce["nonce"].decode() if nonce else "",
            tried=self._try(head.path, body),
            status=0,
            end="left",
            began=now,
            ended=now,
        )

    def _try(self, path: str, body: bytes) -> int:
        """How often the very same was asked before."""
        digest = hashlib.blake2b(path.encode() + b"\n" + body, digest_size=16).digest()
        tried = self._tried.pop(digest, 0)
        self._tried[digest] = tried + 1
        if len(self._tried) > _TRIED_MAX:
            self._tried.popitem(last=False)
        return tried

    def end(
        self, performance: Performance, status: int, end: End, spoke: float | None = None
    ) -> None:
        """Log how it went."""
        self._numbered += 1
        self._performances.append(
            msgspec.structs.replace(
                performance,
                number=self._numbered,
                status=status,
                end=end,
                ended=time.monotonic(),
                spoke=spoke,
            )
        )


def _model_of(path: str, body: bytes) -> str:
    """The model that the path (Gemini) or the body names, or `?` where neither does."""
    if found := _MODEL_IN_PATH.fullmatch(path):
        return unquote(found[1])
    try:
        return msgspec.json.decode(body, type=_Named).model
    except msgspec.MsgspecError:
        return "?"


async def serve_transport(director: Director, deadlines: Deadlines, transport: Transport) -> None:
    """Serve one connection until its client leaves or the script ends it."""
    with deadlines.new() as deadline:
        connection = Connection(transport, _SETTINGS, deadline)
        try:
            while connection.reusable and await _serve_request(director, connection):
                pass
        except (ClientGone, APIError):
            return  # a client that left, or whose bytes are not HTTP


async def _serve_request(director: Director, connection: Connection) -> bool:
    head = await connection.read_head()
    if head is None:
        return False
    body = await connection.read_body(_BODY_BYTES_MAX)
    if (told := director.answer(head, body)) is not None:
        status, answer = told
        await connection.respond(status, [("content-type", "application/json")], answer)
        return True
    target = f"{head.path}?{head.query}" if head.query else head.path
    if head.method != "POST":
        script = sandbox.respond(head.method, target, head.headers, body)
        return await _Player(connection).play(script)
    performance = director.begin(head, body)
    player = _Player(connection, performance.nonce)
    circumstances = sandbox.Circumstances(performance.tried, performance.mood)
    script = sandbox.respond(head.method, target, head.headers, body, circumstances)
    try:
        return await player.play(script)
    finally:
        director.end(performance, player.status, player.end, player.spoke)


class _Player:
    """Plays one script to its client. `status` is 0 until the head goes out, and `spoke` None
    until the nonce does."""

    def __init__(self, connection: Connection, nonce: str = "") -> None:
        self._connection = connection
        self._nonce = nonce.encode()
        self._head: sandbox.Head | None = None
        self.status = 0
        self.end: End = "left"
        self.spoke: float | None = None

    async def play(self, script: Iterable[sandbox.Action]) -> bool:
        """False where it ends the connection."""
        end: End = "whole"
        for action in script:
            match action:
                case sandbox.Head():
                    self._head = action
                case sandbox.Data(data):
                    await self._send(data)
                case sandbox.Pause(seconds):
                    await trio.sleep(seconds)
                case sandbox.Spoilt():
                    end = "spoilt"
                case sandbox.Cut():
                    self.end = "cut"
                    return False
                case sandbox.Reset():
                    self.end = "reset"
                    _break_off(self._connection.transport)
                    return False
                case sandbox.Hang():
                    self.end = "hung"
                    await _until_left(self._connection.transport)
                    return False
        await self._connection.end_stream(b"")
        self.end = end if self.status == _OK else "refused"
        return True

    async def _send(self, data: bytes) -> None:
        if self.spoke is None and self._nonce and self._nonce in data:
            self.spoke = time.monotonic()
        if self.status:
            await self._connection.send_chunk(data)
            return
        assert self._head is not None, "a script begins with a head"
        self.status = self._head.status
        await self._connection.start_stream(self.status, self._head.headers, data)


def _break_off(transport: Transport) -> None:
    """Have the close that follows send a RST instead of a FIN."""
    connected = socket.socket(fileno=transport.fileno())
    try:
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    finally:
        connected.detach()  # it is the transport's to close


async def _until_left(transport: Transport) -> None:
    try:
        while await transport.receive():
            pass
    except OSError:
        pass


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
    handler = partial(serve_transport, Director(), deadlines)
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
