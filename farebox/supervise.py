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
- How upstreams are, the workers tell each other in memory that the supervisor makes and only looks
  at (`proxy.health`). It outlives every worker, so one that starts knows at once what all know.
- Order of an end: workers drain first, the ledgers when the last worker has gone, so that there is
  somebody to settle with until the last byte.
- A refusal of a child (a sentence of its own) while the gateway starts is the gateway's refusal.
  Later it is only told: what serves goes on serving.

Prior art: the masters of nginx, gunicorn and PostgreSQL.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import trio

from farebox.books import HolderTerms, leftover_directories, shard_directories
from farebox.catalogue import BuiltIn, catalogue
from farebox.children import Bell, Child, ChildStatus
from farebox.config import Config
from farebox.control import BeLedger, BeLeftover, BeWorker, Served
from farebox.served import Settings, packed
from farebox.sockets import unix_sockets
from farebox.totals import Report as Figures
from farebox.totals import Totals
from farebox.worker import sold
from proxy.health import Health, shared_memory, shared_rows
from proxy.notices import Shown, remarks, shown

_POLL_SECONDS = 1.0
_SCRAPE_SECONDS = 1.0
_RELOAD_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class SupervisorSettings:
    """Bounds of a gateway with several workers.

    A ledger takes a sixth of what a worker takes for a request (`benchmarks/scaling.py`), and less
    where more comes at once: it can keep `workers_per_shard` busy.

    `polls_max` is how often in a row, about once a second, a child may leave us without an answer.
    A disk may let a ledger wait for some seconds, a body of many megabytes a worker for one.
    """

    workers_per_shard: int = 8
    polls_max: int = 30

    def shards(self, workers: int) -> int:
        """How many ledgers so many workers need."""
        return -(-workers // self.workers_per_shard)


SETTINGS = SupervisorSettings()


class Supervisor:
    """The children of a gateway with several workers. `run` it; `drain` ends it.

    Workers begin only after `open`: the ledgers are there by then. `console` is the path of the
    console's socket, whose process is looked after elsewhere (`farebox.console_child`).
    """

    def __init__(
        self,
        config: Config,
        conninfo: str,
        secret: bytes,
        built_in: BuiltIn | None,
        listening: socket.socket,
        workers: int,
        console: str = "",
    ) -> None:
        self.stopped = trio.Event()
        self.draining = False
        self._config = config
        self._conninfo = conninfo
        self._secret = secret
        self._built_in = built_in
        self._listening = listening
        self._console = console
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
        self._rows = shared_memory(workers)
        self._health = Health(shared_rows(self._rows))
        self._health.serve(sold(catalogue(config, built_in)))

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
        """Whether traffic should be sent here, and every problem of every child and upstream.

        One worker of many may be missing: the others accept what waits. A ledger may not.
        """
        problems = [problem for child in self._children for problem in child.problems()]
        problems += remarks(self._health, time.monotonic())
        if self.draining:
            return False, ["draining", *(each for each in problems if "draining" not in each)]
        ready = any(not worker.problems() for worker in self._workers) and not any(
            ledger.problems() for ledger in self._ledgers
        )
        return ready, problems

    def upstreams(self) -> list[Shown]:
        """How every upstream is, as all workers know it."""
        return shown(self._health, time.monotonic())

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
        self._health.serve(sold(catalogue(config, built_in)))
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
            names = [f"ledger-{number}" for number in range(shards)]
            with unix_sockets(self._config.data_dir / "run", names) as sockets:
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
            os.close(self._rows)
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
                rows=self._rows,
                place=number - 1,
                console=self._console,
            )

        inherited = [self._listening.fileno(), lifeline, self._rows]
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
