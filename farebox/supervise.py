"""The supervisor of several processes: workers that share one port, and the ledgers they share.

Problem: one process uses one core. Approach: the supervisor opens the public socket once and lends
it to every worker, so a connection waits in the *one* accept queue of them all, and whoever dies
takes no waiting connection along. The credit is with the ledgers, a process for each shard
(`shards_of`): a worker that dies loses its open streams and nothing else, a ledger that dies
loses nothing at all. Its unix socket is opened here too, so workers who call while it starts
again simply wait in that queue.

Rules
- A child that ends without having been told to is started again: at once, then, where it keeps on
  dying, less and less often (`Backoff`). A sentence on standard error says so.
- Everybody waits for a ledger, and loading Python code is nearly all of its start. So beside each
  serves an *understudy*: a process that has loaded everything, and has yet to be told what to be.
- A child that has not said a word for long, though asked once a second, is killed: what it bound is
  given back, and its clients come back elsewhere. Seconds that nobody counted, because the whole
  machine stood still, are nobody's silence.
- Children are spawned, never forked off this process, and are told what to be over a channel
  (`farebox.control`), which is also how they are asked for their figures, once a second and at
  every scrape.
- Order of an end: workers drain first, the ledgers when the last worker has gone, so that there is
  somebody to settle with until the last byte.
- A refusal of a child (a sentence of its own) while the gateway starts is the gateway's refusal.
  Later it is only told: what serves goes on serving.

Prior art: the masters of nginx, gunicorn and PostgreSQL.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import trio

from farebox.books import HolderTerms, leftover_directories, shard_directories
from farebox.catalogue import BuiltIn
from farebox.config import Config
from farebox.control import (
    Ask,
    BeLedger,
    BeLeftover,
    BeWorker,
    Channel,
    ChannelClosed,
    Cut,
    Drain,
    FromChild,
    Ready,
    Refused,
    Reload,
    Reloaded,
    Report,
    Served,
    Start,
    ToChild,
    supervisors_end,
)
from farebox.served import Settings, packed
from farebox.totals import Report as Figures
from farebox.totals import Totals, value_of

_PATH_BYTES_MAX = 100  # of a unix socket; the kernels' limits are 107 and 103
_BACKLOG = 1024
_LAST_WORDS_SECONDS = 2.0
_POLL_SECONDS = 1.0
_SCRAPE_SECONDS = 1.0
_ASKS_MAX = 10
_SILENT_POLLS = 3  # so many without a word are told
_RELOAD_SECONDS = 30.0
_GRACE_SECONDS = 20.0  # beyond its own deadlines, before a child that does not end is killed


@dataclass(frozen=True, slots=True)
class SupervisorSettings:
    """Bounds of a gateway with several workers.

    `polls_max` is how often in a row, about once a second, a child may leave us without an answer.
    A disk may let a ledger wait for some seconds, a body of many megabytes a worker for one.
    """

    workers_per_shard: int = 32
    polls_max: int = 30

    def shards(self, workers: int) -> int:
        """How many ledgers so many workers need."""
        return -(-workers // self.workers_per_shard)


SETTINGS = SupervisorSettings()


# -- restarts -------------------------------------------------------------------------------------


class Backoff:
    """Pauses before restarts, so that a start follows the last one after a time at the earliest.

    That time is none at first, then doubles, and is none again after a quiet life.
    """

    FIRST_SECONDS = 0.1
    MOST_SECONDS = 5.0
    QUIET_SECONDS = 10.0

    def __init__(self) -> None:
        self._next = 0.0

    def pause(self, lived_seconds: float) -> float:
        """How long to wait, now that a child has ended that lived so long."""
        apart = 0.0 if lived_seconds >= self.QUIET_SECONDS else self._next
        self._next = min(max(2 * apart, self.FIRST_SECONDS), self.MOST_SECONDS)
        return max(apart - lived_seconds, 0.0)


def told(returncode: int) -> str:
    """How a process ended, in words."""
    if returncode >= 0:
        return f"ended with exit code {returncode}"
    with contextlib.suppress(ValueError):
        return f"was ended by {signal.Signals(-returncode).name}"
    return f"was ended by signal {-returncode}"


class Bell:
    """Wakes whoever waits for a change among the children."""

    def __init__(self) -> None:
        self._rung = trio.Event()

    def ring(self) -> None:
        """Something has changed."""
        self._rung.set()
        self._rung = trio.Event()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for a change after which `condition` holds."""
        while not condition():
            await self._rung.wait()


# -- one child ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ChildStatus:
    """A child for whoever looks at `/status`. `requests` counts those of this process alone."""

    name: str
    pid: int
    ready: bool
    restarts: int
    open_streams: int
    requests: int
    problems: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Recruit:
    """A process that waits to be told what to be."""

    process: trio.Process
    channel: Channel[FromChild]

    async def dismiss(self) -> None:
        """See to it that it has ended."""
        self.process.kill()
        self.channel.close()
        with trio.CancelScope(shield=True):
            await self.process.wait()


@dataclass(slots=True)
class _Life:
    """One process in the place of a child."""

    process: trio.Process
    channel: Channel[FromChild]
    ready: bool = False
    heard: bool = True
    silent_polls: int = 0
    promised: int = 0
    version: int = 0
    asked: int = 0
    answered: int = 0
    problems: tuple[str, ...] = ()
    figures: Figures = ()
    refused: tuple[str, ...] = field(default=())


class Child:
    """A place among the children, filled by one process after another.

    `start` says at each start what the process is to be, and `inherited` what it is handed;
    `wait` holds it back until there is something to do. With `once`, success is the end. With
    `understudied`, the next process is loaded while the present one serves. What it refuses at its
    first start it will always refuse: that is the end as well.
    """

    def __init__(
        self,
        name: str,
        totals: Totals,
        bell: Bell,
        start: Callable[[], Start],
        inherited: Sequence[int],
        *,
        wait: trio.Event | None = None,
        once: bool = False,
        understudied: bool = False,
    ) -> None:
        self.name = name
        self.restarts = 0
        self.refused: tuple[str, ...] = ()
        self._totals = totals
        self._bell = bell
        self._start = start
        self._inherited = tuple(inherited)
        self._wait = wait
        self._once = once
        self._understudied = understudied
        self._understudy: _Recruit | None = None
        self._life: _Life | None = None
        self._ending = trio.Event()
        self._served = False
        self._seconds_to_end = 0.0

    # -- what others see ----------------------------------------------------------------------

    @property
    def ready(self) -> bool:
        """Whether a process is there that does what it should."""
        return self._life is not None and self._life.ready

    def problems(self) -> list[str]:
        """Why traffic cannot rely on it."""
        life = self._life
        if life is None or not life.ready:
            return [f"{self.name}: starting"]
        if life.silent_polls >= _SILENT_POLLS:
            return [f"{self.name}: does not answer (process {life.process.pid})"]
        return [f"{self.name}: {problem}" for problem in life.problems]

    def status(self) -> ChildStatus:
        """A snapshot."""
        life = self._life
        return ChildStatus(
            name=self.name,
            pid=life.process.pid if life else 0,
            ready=self.ready,
            restarts=self.restarts,
            open_streams=int(value_of(life.figures, "farebox_open_streams")) if life else 0,
            requests=int(value_of(life.figures, "farebox_requests_total")) if life else 0,
            problems=life.problems if life else (),
        )

    async def look(self) -> None:
        """Have it report, and wait for that; returns at once where nobody can answer."""
        life = self._life
        if life is None or not life.ready or life.asked - life.answered >= _ASKS_MAX:
            return
        life.asked += 1
        number = life.asked
        with contextlib.suppress(ChannelClosed):
            await life.channel.send(Ask(number=number))
            await self._bell.until(lambda: life.answered >= number or self._life is not life)

    def judge(self, polls_max: int) -> None:
        """To be called after each poll: kill a process that left so many of them unanswered."""
        life = self._life
        if life is None or not life.ready:
            return
        life.silent_polls = 0 if life.heard else life.silent_polls + 1
        life.heard = False
        if life.silent_polls == polls_max:
            sys.stderr.write(
                f"{self.name} (process {life.process.pid}) does not answer; killing it.\n"
            )
            life.process.kill()

    async def reload(self, served: Served) -> None:
        """Hand a changed configuration over, and wait until its new requests see it."""
        if (life := self._life) is not None:
            await self._tell(life, Reload(served=served))
        await self._bell.until(
            lambda: self._life is not None and self._life.version >= served.version
        )

    async def drain(self, seconds: float) -> None:
        """Let it finish what runs, for `seconds` at most by its own clock; it is not replaced."""
        self._seconds_to_end = seconds + _GRACE_SECONDS
        self._ending.set()
        if (life := self._life) is not None:
            await self._tell(life, Drain())

    async def cut(self) -> None:
        """Let it finish now."""
        if (life := self._life) is not None:
            await self._tell(life, Cut())

    async def _tell(self, life: _Life, message: ToChild) -> None:
        with contextlib.suppress(ChannelClosed):  # its end is noticed elsewhere
            await life.channel.send(message)

    # -- its processes ------------------------------------------------------------------------

    async def keep(self) -> None:
        """Keep a process in this place, until one ends that was told to. Cancelled: kill it."""
        try:
            await self._keep()
        finally:
            if self._understudy is not None:
                await self._understudy.dismiss()

    async def _keep(self) -> None:
        backoff = Backoff()
        while not self._ending.is_set():
            began = trio.current_time()
            pid, returncode, refused = await self._live()
            if self._ending.is_set() or (self._once and returncode == 0):
                return
            if refused and not self._served:
                self.refused = refused
                self._bell.ring()
                return
            pause = backoff.pause(trio.current_time() - began)
            self.restarts += 1
            why = "".join(f"{problem}\n" for problem in refused)
            later = f" in {pause:g} seconds" if pause else ""
            sys.stderr.write(
                f"{why}{self.name} (process {pid}) {told(returncode)}; starting it again{later}.\n"
            )
            with trio.move_on_after(pause):
                await self._ending.wait()

    async def _live(self) -> tuple[int, int, tuple[str, ...]]:
        """One process from start to end: its number, how it ended, and what it refused."""
        recruit = await self._next()
        process = recruit.process
        life = self._life = _Life(process, recruit.channel)
        try:
            async with trio.open_nursery() as nursery:
                heard = trio.Event()
                nursery.start_soon(self._talk, life, heard)
                nursery.start_soon(self._kill_when_late, process)
                if self._understudied:
                    nursery.start_soon(self._keep_understudy, life)
                await process.wait()
                with trio.move_on_after(_LAST_WORDS_SECONDS):
                    await heard.wait()
                nursery.cancel_scope.cancel()
        finally:
            await recruit.dismiss()
            self._totals.retire(life.channel)
            self._life = None
            self._bell.ring()
        assert process.returncode is not None
        return process.pid, process.returncode, life.refused

    async def _next(self) -> _Recruit:
        """Who takes the place now."""
        waiting, self._understudy = self._understudy, None
        if waiting is None:
            return await self._recruit()
        if waiting.process.poll() is None:
            return waiting
        await waiting.dismiss()
        return await self._recruit()

    async def _keep_understudy(self, life: _Life) -> None:
        """Have somebody ready to take the place, once there is time for that."""
        await self._bell.until(lambda: life.ready)
        backoff = Backoff()
        while True:
            began = trio.current_time()
            self._understudy = await self._recruit()
            await self._understudy.process.wait()
            await self._understudy.dismiss()
            self._understudy = None
            await trio.sleep(backoff.pause(trio.current_time() - began))

    async def _recruit(self) -> _Recruit:
        ours, theirs = socket.socketpair()
        channel = supervisors_end(ours)
        try:
            with theirs:
                process = await trio.lowlevel.open_process(
                    [sys.executable, "-m", "farebox.child", self.name, str(theirs.fileno())],
                    stdin=subprocess.DEVNULL,
                    pass_fds=[theirs.fileno(), *self._inherited],
                    start_new_session=True,  # a Ctrl-C at the terminal is the supervisor's
                )
        except BaseException:
            channel.close()
            raise
        return _Recruit(process, channel)

    async def _talk(self, life: _Life, heard: trio.Event) -> None:
        """Tell it what to be, then listen until it is gone."""
        if self._wait is not None:
            await self._wait.wait()
        if self._ending.is_set():
            await self._tell(life, Drain())
        else:
            start = self._start()
            life.promised = start.served.version if isinstance(start, BeWorker) else 0
            await self._tell(life, start)
        while (message := await life.channel.receive()) is not None:
            self._hear(life, message)
            self._bell.ring()
        heard.set()

    def _hear(self, life: _Life, message: FromChild) -> None:
        life.heard = True
        match message:
            case Ready():
                life.ready = self._served = True
                life.version = max(life.version, life.promised)
            case Reloaded(version=version):
                life.version = max(life.version, version)
            case Refused(problems=problems):
                life.refused = problems
            case Report():
                life.answered = max(life.answered, message.number)
                life.problems = message.problems
                life.figures = message.families
                self._totals.update(life.channel, message.families)

    async def _kill_when_late(self, process: trio.Process) -> None:
        await self._ending.wait()
        await trio.sleep(self._seconds_to_end)
        sys.stderr.write(f"{self.name} (process {process.pid}) does not end; killing it.\n")
        process.kill()


# -- all of them ----------------------------------------------------------------------------------


class Supervisor:
    """The children of a gateway with several workers. `run` it; `drain` ends it.

    Workers begin only after `open`: the ledgers are there by then.
    """

    def __init__(
        self,
        config: Config,
        conninfo: str,
        secret: bytes,
        built_in: BuiltIn | None,
        listening: socket.socket,
        workers: int,
    ) -> None:
        self.stopped = trio.Event()
        self.draining = False
        self._config = config
        self._conninfo = conninfo
        self._secret = secret
        self._built_in = built_in
        self._listening = listening
        self._count = workers
        self._shards = SETTINGS.shards(workers)
        self._version = 1
        self._totals = Totals()
        self._bell = Bell()
        self._opened = trio.Event()
        self._drained = trio.Event()
        self._cut = trio.Event()
        self._workers: list[Child] = []
        self._ledgers: list[Child] = []

    # -- what others see ----------------------------------------------------------------------

    @property
    def refused(self) -> tuple[str, ...]:
        """Why a child could not do what it should, from its latest start; sentences."""
        found = [problem for child in self._children for problem in child.refused]
        return tuple(dict.fromkeys(found))

    @property
    def _children(self) -> list[Child]:
        return self._workers + self._ledgers

    def readiness(self) -> tuple[bool, list[str]]:
        """Whether traffic should be sent here, and every problem of every child.

        One worker of many may be missing: the others accept what waits. A ledger may not.
        """
        problems = [problem for child in self._children for problem in child.problems()]
        if self.draining:
            return False, ["draining", *(each for each in problems if "draining" not in each)]
        ready = any(not worker.problems() for worker in self._workers) and not any(
            ledger.problems() for ledger in self._ledgers
        )
        return ready, problems

    def status(self) -> list[ChildStatus]:
        """A snapshot of every child."""
        return [child.status() for child in self._children]

    async def look(self) -> None:
        """Ask every child for its figures; one that does not answer at once is left out."""
        with trio.move_on_after(_SCRAPE_SECONDS):
            async with trio.open_nursery() as nursery:
                for child in self._children:
                    nursery.start_soon(child.look)

    def figures(self) -> Figures:
        """What all children have counted, as of their latest reports."""
        return self._totals.report()

    # -- orders -------------------------------------------------------------------------------

    async def ledgers_ready(self) -> bool:
        """Wait for every ledger; False where that will not be."""
        return await self._started(self._ledgers)

    async def open(self) -> bool:
        """Let the workers begin, and wait for all; False where that will not be."""
        self._opened.set()
        return await self._started(self._workers)

    async def _started(self, children: Sequence[Child]) -> bool:
        await self._bell.until(lambda: self._given_up or all(child.ready for child in children))
        return not self._given_up

    @property
    def _given_up(self) -> bool:
        return self.draining or bool(self.refused)

    async def reload(self, config: Config, built_in: BuiltIn | None) -> bool:
        """Hand a configuration that was tried to every worker; whether all see it in time."""
        self._version += 1
        self._config, self._built_in = config, built_in
        served = self._served()
        with trio.move_on_after(_RELOAD_SECONDS) as scope:
            async with trio.open_nursery() as nursery:
                for worker in self._workers:
                    nursery.start_soon(worker.reload, served)
        return not scope.cancelled_caught

    def drain(self) -> None:
        """Finish what runs and stop; called again, cut what still runs."""
        if self.draining:
            self._cut.set()
        self.draining = True
        self._drained.set()
        self._bell.ring()

    # -- the service --------------------------------------------------------------------------

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep the children until drained. Reports started when there are places for them all."""
        shards = self._shards
        directories = shard_directories(self._config.data_dir, shards)
        held, lifeline = os.pipe()
        try:
            with unix_sockets(self._config.data_dir / "run", shards) as sockets:
                self._ledgers = [
                    self._ledger(number, directories[number], sockets[number][1], held)
                    for number in range(shards)
                ]
                paths = tuple(str(path) for path, _ in sockets)
                self._workers = [
                    self._worker(number, paths, lifeline) for number in range(1, self._count + 1)
                ]
                task_status.started()
                await self._keep()
        finally:
            os.close(held)
            os.close(lifeline)
            self.stopped.set()

    async def _keep(self) -> None:
        async with trio.open_nursery() as services:
            services.start_soon(self._poll)
            async with trio.open_nursery() as ledgers:
                for ledger in self._ledgers:
                    ledgers.start_soon(ledger.keep)
                services.start_soon(
                    keep_leftovers, self._config, self._conninfo, len(self._ledgers)
                )
                async with trio.open_nursery() as workers:
                    for worker in self._workers:
                        workers.start_soon(worker.keep)
                    workers.start_soon(self._drain_workers)
                    services.start_soon(self._cut_workers)
                for ledger in self._ledgers:
                    await ledger.drain(0)
            services.cancel_scope.cancel()

    async def _drain_workers(self) -> None:
        await self._drained.wait()
        self._listening.close()
        for worker in self._workers:
            await worker.drain(self._config.server.drain_seconds)
        self._opened.set()  # who still waits learns that there is nothing to do

    async def _cut_workers(self) -> None:
        await self._cut.wait()
        for worker in self._workers:
            await worker.cut()

    async def _poll(self) -> None:
        while True:
            await trio.sleep(_POLL_SECONDS)
            await self.look()
            for child in self._children:
                child.judge(SETTINGS.polls_max)

    def _served(self) -> Served:
        settings = Settings(config=self._config, built_in=self._built_in)
        return Served(version=self._version, settings=packed(settings))

    def _worker(self, number: int, ledgers: tuple[str, ...], lifeline: int) -> Child:
        def start() -> BeWorker:
            return BeWorker(
                served=self._served(),
                conninfo=self._conninfo,
                secret=self._secret,
                listening=self._listening.fileno(),
                ledgers=ledgers,
                lifeline=lifeline,
            )

        inherited = [self._listening.fileno(), lifeline]
        return Child(
            f"worker {number}", self._totals, self._bell, start, inherited, wait=self._opened
        )

    def _ledger(self, number: int, directory: Path, listening: socket.socket, held: int) -> Child:
        terms = HolderTerms.of(self._config, self._conninfo, self._shards)
        start = BeLedger(
            terms=terms,
            directory=str(directory),
            listening=listening.fileno(),
            lifeline=held,
        )
        inherited = [listening.fileno(), held]
        return Child(
            f"ledger {number}",
            self._totals,
            self._bell,
            lambda: start,
            inherited,
            understudied=True,
        )


async def keep_leftovers(config: Config, conninfo: str, shards: int) -> None:
    """Have the journals of shards that are no more posted and emptied; return when all are."""
    async with trio.open_nursery() as nursery:
        terms = HolderTerms.of(config, conninfo)
        for directory in leftover_directories(config.data_dir, shards):
            nursery.start_soon(_keep_leftover, directory, terms)


async def _keep_leftover(directory: Path, terms: HolderTerms) -> None:
    start = BeLeftover(terms=terms, directory=str(directory))
    child = Child(f"leftover {directory.name}", Totals(), Bell(), lambda: start, [], once=True)
    await child.keep()
    for problem in child.refused:
        sys.stderr.write(f"{problem}\n")


@contextlib.contextmanager
def unix_sockets(directory: Path, count: int) -> Iterator[list[tuple[Path, socket.socket]]]:
    """Listening sockets for the ledgers, each with its path; for this user alone.

    They lie in `directory`, or in a temporary one where that path is too long for the kernel.
    """
    with contextlib.ExitStack() as stack:
        if len(os.fsencode(directory / f"ledger-{count}.sock")) > _PATH_BYTES_MAX:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="farebox-")))
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        directory.chmod(0o700)
        yield [
            stack.enter_context(_unix_socket(directory / f"ledger-{number}.sock"))
            for number in range(count)
        ]


@contextlib.contextmanager
def _unix_socket(path: Path) -> Iterator[tuple[Path, socket.socket]]:
    path.unlink(missing_ok=True)  # of a predecessor that was killed
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
        listening.bind(str(path))
        path.chmod(0o600)
        listening.listen(_BACKLOG)
        try:
            yield path, listening
        finally:
            path.unlink(missing_ok=True)
