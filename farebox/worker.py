"""One data-plane worker: its parts put together, its services and its connections run.

The nursery of services outlives that of connections, so that whatever an exchange still needs on
its way out (the ledger above all) is there until the last one has ended. Draining is: accept no
more, let exchanges finish for `drain_seconds`, cut the rest (each settles what it delivered), then
hand over to the books what is still to be posted. The books may be in this process or, where
several workers share them, in another (`farebox.books`).
"""

from __future__ import annotations

import os
import random
import select
import socket
import time
from functools import partial

import trio

from adapters.catalogue import Catalogue, Upstream
from farebox.books import Books
from farebox.catalogue import BuiltIn, catalogue
from farebox.config import Config
from farebox.follower import Follower
from farebox.interpreter import collect_when_idle, settle_in, use_large_pages
from farebox.snapshot import snapshot
from ledger.directory import Directory
from proxy.admit import Load
from proxy.answers import PostgresAnswers
from proxy.authenticate import Keyring
from proxy.budget import Budget
from proxy.control import Control, unix_dial
from proxy.cork import Cork
from proxy.exchange import serve_connection
from proxy.gateway import Gateway, wall_seconds
from proxy.health import Health
from proxy.idempotency import Answers
from proxy.listener import Listener, Shares
from proxy.memory import Memory, bound_of
from proxy.metrics import Metrics
from proxy.notices import Shown, Teller, remarks, shown
from proxy.outputs import Outputs
from proxy.receipts import PostgresUsage
from proxy.record import Log
from proxy.route import Snapshot
from proxy.settings import ServerSettings
from proxy.shared_rows import Rows
from proxy.state import PostgresResponses
from proxy.stored import Responses
from proxy.transport import SocketDialer
from proxy.turn import Means
from proxy.upstream import Upstreams
from proxy.watch import platform_watch

_DAY_SECONDS = 86_400
_LOG_FD = 1


def sold(served: Catalogue) -> list[Upstream]:
    """The upstreams of a catalogue that may be asked: those that have a price."""
    models = served.models.values()
    return [each for model in models for each in model.upstreams if each.prices is not None]


class Worker:
    """A worker between start and end. Make one with `build`; `run` it; `drain` ends it."""

    def __init__(
        self,
        config: Config,
        directory: Directory,
        books: Books,
        gateway: Gateway,
        listener: Listener,
        responses: PostgresResponses,
        answers: PostgresAnswers,
    ) -> None:
        self.stopped = trio.Event()
        self._config = config
        self._directory = directory
        self._books = books
        self._gateway = gateway
        self._listener = listener
        self._responses = responses
        self._answers = answers
        self._follower = Follower(directory, gateway.keyring, config, gateway.wall)
        self._reloading = trio.Lock()
        self._draining = trio.Event()
        self._connections = trio.CancelScope()
        self.metrics = gateway.metrics

    @classmethod
    async def build(
        cls,
        config: Config,
        conninfo: str,
        secret: bytes,
        built_in: BuiltIn | None,
        listening: socket.socket,
        books: Books,
        rows: Rows | None = None,
        console: str = "",
    ) -> Worker:
        """Put the parts together: nothing is served yet.

        `built_in` serves where no provider is configured. Where there are other workers, they
        share `listening`, and `rows`. `console` is the path of the console's socket, "" where there
        is none. Raises ConfigError and DirectoryUnavailable.
        """
        directory = Directory(conninfo)
        served = catalogue(config, built_in)
        known = await trio.to_thread.run_sync(snapshot, config, served, directory)
        cork = Cork()
        metrics = Metrics()
        books.watch(metrics)
        memory = Memory(bound_of(config.server, worker_count(config.server)))
        metrics.watch_memory(memory)
        log = Log(write_lines)
        health = Health(rows, told=Teller(log, metrics).tell)
        health.serve(sold(served))
        metrics.watch_upstreams(lambda: health.states(time.monotonic()))
        stored = PostgresResponses(conninfo, secret, wall_seconds)
        answers = PostgresAnswers(conninfo, secret)
        gateway = Gateway(
            settings=config.server,
            snapshot=known,
            keyring=Keyring(secret),
            ledger=books.ledger,
            upstreams=Upstreams(SocketDialer(cork=cork)),
            watch=platform_watch(),
            metrics=metrics,
            log=log,
            load=Load(exchanges_max=config.server.max_connections),
            memory=memory,
            secret=secret,
            responses=Responses(stored, config.routing.retention_days * _DAY_SECONDS, wall_seconds),
            answers=Answers(answers, wall_seconds),
            usage=PostgresUsage(conninfo),
            means=Means(
                health,
                Budget(float(config.server.retry_budget), metrics.retry_budget_denied.inc),
                random.random,
                time.monotonic,
            ),
            outputs=Outputs() if config.billing.reserve == "adaptive" else None,
        )
        if console:
            gateway.control = Control(
                unix_dial(console), gateway.deadlines, config.server.max_request_seconds
            )
        listener = Listener(
            listening,
            partial(serve_connection, gateway),
            max_connections=config.server.max_connections,
            shares=None if rows is None else Shares(rows),
            cork=cork,
        )
        return cls(config, directory, books, gateway, listener, stored, answers)

    @property
    def catalogue(self) -> Catalogue:
        """What is served now."""
        return self._gateway.snapshot.catalogue

    def problems(self) -> list[str]:
        """Why traffic should not be sent here now; empty when it should."""
        found = ["draining"] if self._gateway.draining else []
        return found + self._books.problems()

    def remarks(self) -> list[str]:
        """What is the matter, although traffic may be sent here."""
        return remarks(self._gateway.means.health, time.monotonic())

    def upstreams(self) -> list[Shown]:
        """How every upstream is."""
        return shown(self._gateway.means.health, time.monotonic())

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until drained."""
        await self._follower.refresh()
        gateway = self._gateway
        async with trio.open_nursery() as services:
            await services.start(self._books.run)
            for service in (
                self._follower,
                gateway.watch,
                gateway.deadlines,
                gateway.upstreams,
                gateway.keep_alives,
                gateway.load,
                gateway.log,
                self._responses,
                self._answers,
            ):
                services.start_soon(service.run)
            if gateway.control is not None:
                services.start_soon(gateway.control.run)
            services.start_soon(collect_when_idle, lambda: not gateway.load.exchanges)
            settle_in()
            use_large_pages()
            task_status.started()
            services.start_soon(self._cut_when_late)
            with self._connections:
                await self._listener.run()
            await self._books.close()
            gateway.upstreams.close()
            services.cancel_scope.cancel()
        await self._responses.aclose()
        await self._answers.aclose()
        await gateway.usage.aclose()
        self.stopped.set()

    def drain(self) -> None:
        """Finish what runs and stop; called again, cut what still runs."""
        if self._draining.is_set():
            self._connections.cancel()
        self._draining.set()
        self._gateway.drain()
        self._listener.stop()

    async def reload(self, config: Config, built_in: BuiltIn | None) -> None:
        """Take over models, prices, providers, tiers and limits for new requests.

        What needs a restart (addresses, the database) keeps its old value. Raises ConfigError and
        DirectoryUnavailable, and has taken over nothing then.
        """
        async with self._reloading:
            served = catalogue(config, built_in)
            known = await trio.to_thread.run_sync(snapshot, config, served, self._directory)
            await self._follower.refresh(config)  # tiers may mean other limits
            self._take_over(config, served, known)

    def _take_over(self, config: Config, served: Catalogue, known: Snapshot) -> None:
        self._gateway.snapshot = known
        self._gateway.means.health.serve(sold(served))
        self._gateway.settings = config.server
        workers = worker_count(self._config.server)  # as many as there are until a restart
        self._gateway.memory.max_bytes = bound_of(config.server, workers)
        self._gateway.means.budget.fraction = float(config.server.retry_budget)
        self._gateway.responses.retention_seconds = config.routing.retention_days * _DAY_SECONDS
        if config.billing.reserve == "full":
            self._gateway.outputs = None
        elif self._gateway.outputs is None:
            self._gateway.outputs = Outputs()
        self._config = config

    async def _cut_when_late(self) -> None:
        await self._draining.wait()
        await trio.sleep(self._config.server.drain_seconds)
        self._connections.cancel()


def worker_count(server: ServerSettings) -> int:
    """How many workers are to serve: as many as were asked for, or one for each of our CPUs."""
    if server.workers:
        return server.workers
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def write_lines(batch: bytes) -> None:
    """Write lines to standard output, never one in two pieces.

    A pipe takes so many bytes whole; the lines of several processes mix, but stay lines.
    """
    start = 0
    while start < len(batch):
        end = batch.rfind(b"\n", start, start + select.PIPE_BUF) + 1
        if not end:  # a line beyond that length
            end = batch.find(b"\n", start) + 1 or len(batch)
        os.write(_LOG_FD, batch[start:end])
        start = end
