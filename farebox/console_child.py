"""The supervisor's side of the console: its socket, its process, and what it is told.

Problem: the console is for people, and must cost requests to models nothing, whatever becomes of
it. Approach: it is a child like a worker, also where one worker serves in this process, and its
socket stays here, so that nobody is turned away while one process takes the place of another.

Rules
- It starts when the gateway is ready, and never before: a start is not slower for it, and a
  gateway without its console is ready.
- A changed configuration comes with a new process. What is asked meanwhile waits in the queue.
- It ends when the workers end, not after them: nobody but they could ask it anything.
- What it counts is not in `/metrics`; the workers count what they hand over to it.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import trio

from farebox.catalogue import BuiltIn
from farebox.children import Bell, Child, ChildStatus
from farebox.config import Config
from farebox.control import BeConsole, Served
from farebox.served import Settings, packed
from farebox.sockets import unix_sockets
from farebox.totals import Totals

_POLL_SECONDS = 1.0
_POLLS_MAX = 30
_FINISH_SECONDS = 10.0
_LINGER_SECONDS = 5.0  # a gateway that has nothing else to wait for


@dataclass(frozen=True, slots=True)
class Urls:
    """Where this machine reaches the public port and the private one. Neither ends with a slash."""

    gateway: str
    admin: str


class ConsoleChild:
    """The console's place among the children. `run` it once the gateway is ready."""

    def __init__(
        self,
        config: Config,
        conninfo: str,
        secret: bytes,
        built_in: BuiltIn | None,
        urls: Urls,
        path: Path,
        listening: socket.socket,
    ) -> None:
        self.path = str(path)
        self._config = config
        self._conninfo = conninfo
        self._secret = secret
        self._built_in = built_in
        self._urls = urls
        self._listening = listening
        self._version = 1
        self._child = Child("console", Totals(), Bell(), self._start, [listening.fileno()])
        self._draining = trio.Event()
        self._cutting = trio.Event()
        self._ended = trio.Event()

    def remarks(self) -> list[str]:
        """Why nobody should count on it now; no reason to send a gateway no traffic."""
        return [] if self._draining.is_set() else self._child.problems()

    async def status(self) -> ChildStatus:
        """How its process is."""
        await self._look()
        return self._child.status()

    async def reload(self, config: Config, built_in: BuiltIn | None) -> None:
        """Have it started anew, with this configuration."""
        self._version += 1
        self._config, self._built_in = config, built_in
        await self._child.renew()

    def drain(self) -> None:
        """Finish what runs and end; called again, end now."""
        if self._draining.is_set():
            self._cutting.set()
        self._draining.set()

    async def ended(self) -> None:
        """Wait for its end, for a moment: what it does can be cut at any time."""
        if self._child.ready:
            with trio.move_on_after(_LINGER_SECONDS):
                await self._ended.wait()

    async def run(self) -> None:
        """Keep its process until drained. Cancelled: kill it."""
        async with trio.open_nursery() as services:
            services.start_soon(self._poll)
            services.start_soon(self._obey)
            await self._child.keep()
            services.cancel_scope.cancel()
        self._ended.set()

    async def _poll(self) -> None:
        while True:
            await trio.sleep(_POLL_SECONDS)
            await self._look()
            self._child.judge(_POLLS_MAX)

    async def _look(self) -> None:
        with trio.move_on_after(_POLL_SECONDS):
            await self._child.look()

    async def _obey(self) -> None:
        await self._draining.wait()
        await self._child.drain(_FINISH_SECONDS)
        await self._cutting.wait()
        await self._child.cut()

    def _start(self) -> BeConsole:
        settings = Settings(config=without_keys(self._config), built_in=self._built_in)
        return BeConsole(
            served=Served(version=self._version, settings=packed(settings)),
            conninfo=self._conninfo,
            secret=self._secret,
            listening=self._listening.fileno(),
            public_url=self._config.server.public_url.rstrip("/") or self._urls.gateway,
            gateway_url=self._urls.gateway,
            admin_url=self._urls.admin,
        )


def without_keys(config: Config) -> Config:
    """A configuration as whoever asks no provider needs it."""
    bare = tuple(
        msgspec.structs.replace(provider, api_key=(), shadow_api_key=None, headers={}, query={})
        for provider in config.providers
    )
    return replace(config, providers=bare)


@contextmanager
def console_socket(directory: Path, port: int) -> Iterator[tuple[Path, socket.socket]]:
    """The console's listening socket in `directory`, with its path; for this user alone.

    It is named for the gateway's own `port`: of two that were given one directory, the second is
    told so only later, and must not have taken anything from the first by then.
    """
    with unix_sockets(directory, [f"console-{port}"]) as ((path, listening),):
        yield path, listening
