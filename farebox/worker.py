"""One data-plane worker: its parts put together, its services and its connections run.

The nursery of services outlives that of connections, so that whatever an exchange still needs on
its way out (the ledger above all) is there until the last one has ended. Draining is: accept no
more, let exchanges finish for `drain_seconds`, cut the rest (each settles what it delivered), then
hand over to the books what is still to be posted. The books may be in this process or, where
several workers share them, in another (`farebox.books`).
"""

from __future__ import annotations

import contextlib
import os
import random
import select
import socket
import sys
import time
from collections.abc import Mapping
from functools import partial

import trio

from adapters.catalogue import Catalogue, Rates, Upstream
from farebox.books import Books
from farebox.catalogue import BuiltIn, catalogue
from farebox.config import Config
from farebox.interpreter import collect_when_idle, settle_in
from ledger.accounts import Credential
from ledger.directory import Directory, DirectoryUnavailable, PriceRow
from ledger.limits import LimitKind, LimitRef
from ledger.money import Price
from proxy.admit import Load
from proxy.answers import PostgresAnswers
from proxy.authenticate import Keyring, Principal
from proxy.budget import Budget
from proxy.control import Control, unix_dial
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
from proxy.route import BookIds, Snapshot
from proxy.settings import ServerSettings, TierSettings
from proxy.shared_rows import Rows
from proxy.state import PostgresResponses
from proxy.stored import Responses
from proxy.transport import SocketDialer
from proxy.turn import Means
from proxy.upstream import Upstreams
from proxy.watch import platform_watch

_REFRESH_SECONDS = 0.25
_KEYS_A_TURN = 500  # taken over between two turns of other tasks
_DAY_SECONDS = 86_400
_LOG_FD = 1


def principals(
    credentials: list[Credential], tiers: Mapping[str, TierSettings], default_tier: str
) -> list[tuple[bytes, Principal]]:
    """What the data plane needs of live keys, with their hashes and the limits of their tiers.

    There may be a hundred thousand: what is equal in many is one object, and `credentials` are
    taken away one by one, as no thread can do anything while a long list is freed.
    """
    limits: dict[tuple[str, str], tuple[LimitRef, ...]] = {}
    same: dict[tuple[int, ...], tuple[int, ...]] = {}
    found: list[tuple[bytes, Principal]] = []
    while credentials:
        each = credentials.pop()
        if each.revoked:
            continue
        tier = each.tier or default_tier
        scope = f"account:{each.account_id}"
        if (scope, tier) not in limits:
            limits[scope, tier] = _limits(scope, tiers.get(tier, TierSettings()))
        principal = Principal(
            key_id=each.key_id,
            key_name=each.key_name,
            account_id=each.account_id,
            account=sys.intern(each.account),
            project_id=each.project_id,
            project=sys.intern(each.project),
            tier=sys.intern(tier),
            suspended=each.suspended,
            expires_at=each.expires_at.timestamp() if each.expires_at else 0,
            models=each.models,
            pools=same.setdefault(each.pools, each.pools),
            limits=limits[scope, tier],
        )
        found.append((each.key_hash, principal))
    return found


def _limits(scope: str, settings: TierSettings) -> tuple[LimitRef, ...]:
    sizes: list[tuple[LimitKind, int]] = [
        ("rpm", settings.rpm),
        ("tpm", settings.tpm),
        ("concurrent", settings.concurrent),
    ]
    return tuple(LimitRef(scope, kind, size) for kind, size in sizes if size)


def snapshot(config: Config, served: Catalogue, directory: Directory) -> Snapshot:
    """Register what the catalogue names in the books, and join the two. Blocks."""
    rows: dict[tuple[str, Rates], PriceRow] = {}
    for model in served.models.values():
        for upstream in model.upstreams:
            if upstream.prices is None:
                continue
            for (above, tier), rates in upstream.prices.variants.items():
                rows.setdefault(
                    (upstream.name, rates),
                    PriceRow(
                        model=model.id,
                        upstream=upstream.name,
                        variant=f"{above}/{tier}" if above or tier else "",
                        components=rates.components,
                        margin_bps=config.billing.margin_bps,
                    ),
                )
    ids = directory.register_catalogue(
        list(served.models), list(served.providers), list(rows.values())
    )
    prices = {
        key: Price(ids.prices[row], dict(row.components), row.margin_bps)
        for key, row in rows.items()
    }
    return Snapshot.build(
        served,
        BookIds(ids.models, ids.providers, prices),
        brand=config.server.brand,
        reference=config.routing.default_reference,
    )


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
        self._version = 0
        self._refreshing = trio.Lock()
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
            upstreams=Upstreams(SocketDialer()),
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
        await self.refresh()
        gateway = self._gateway
        async with trio.open_nursery() as services:
            await services.start(self._books.run)
            services.start_soon(self._keep_fresh)
            for service in (
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

        What needs a restart (addresses, the database) keeps its old value.
        """
        served = catalogue(config, built_in)
        self._gateway.snapshot = await trio.to_thread.run_sync(
            snapshot, config, served, self._directory
        )
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
        await self.refresh(anew=True)  # tiers may mean other limits

    async def _cut_when_late(self) -> None:
        await self._draining.wait()
        await trio.sleep(self._config.server.drain_seconds)
        self._connections.cancel()

    async def _keep_fresh(self) -> None:
        """Follow the directory: a change of a key or an account is effective within a second."""
        while True:
            await trio.sleep(_REFRESH_SECONDS)
            with contextlib.suppress(DirectoryUnavailable):  # the keys we know go on working
                await self.refresh()

    async def refresh(self, *, anew: bool = False) -> None:
        """Take over what has changed in the directory since the last time, or all that it has.

        One at a time, or what was true before could come after what is true now.
        """
        keyring = self._gateway.keyring
        async with self._refreshing:
            with keyring.refreshing():
                since = 0 if anew else self._version
                version, keys, revoked = await trio.to_thread.run_sync(self._changes, since)
                keyring.update((), removed=revoked)
                keyring.forget_expired(self._gateway.wall())
                while keys:
                    keyring.update(keys[-_KEYS_A_TURN:])
                    del keys[-_KEYS_A_TURN:]
                    await trio.lowlevel.checkpoint()
            if not anew:  # all that there is does not tell what is no more
                self._version = version

    def _changes(self, since: int) -> tuple[int, list[tuple[bytes, Principal]], list[int]]:
        """Since a version of the directory: its version, live keys, ids of others. Blocks."""
        version, changed = self._directory.changes_since(since)
        revoked = [each.key_id for each in changed if each.revoked]
        keys = principals(changed, self._config.tiers, self._config.limits.default_tier)
        return version, keys, revoked


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
