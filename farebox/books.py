"""Where a worker's reservations are kept: in its own process, or in one that several workers share.

`Holder` is the lease holder itself, whoever's process it is in: the engine with its journal, its
lanes to the database, and the reaper. With one worker it is in the worker's process (`OwnBooks`),
with several it has a process of its own, to which they are linked (`SharedBooks`). A worker sees
no difference.
"""

from __future__ import annotations

import socket
import sys
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import msgspec
import trio

from ledger import reaper
from ledger.client import Ledger
from ledger.clocks import boottime
from ledger.fleet import FleetLimiter
from ledger.journal import Journal, JournalLocked, RecoveredState
from ledger.link import LocalLink, SocketLink, WorkerIdentity, is_alive
from ledger.postgres import PostgresStore
from ledger.server import LedgerServer, LedgerSettings
from ledger.valkey import ValkeyQuotas
from proxy.metrics import Metrics

if TYPE_CHECKING:  # a ledger's process does not load what workers are configured with
    from farebox.config import Config

# A start reads one segment, 0.4 s for a full one of this size, and what a gateway has open must
# find room in one to be settled (`Journal.headroom`): 32,000 requests.
_SEGMENT_BYTES = 16 << 20
_LOCK_POLL_SECONDS = 0.1
_CLOSE_SECONDS = 15.0
_CLOSE_POLL_SECONDS = 0.01
_VALKEY_SECONDS = 0.5


class Books(Protocol):
    """What a worker needs of its ledger, beside the ledger."""

    @property
    def ledger(self) -> Ledger:
        """What the data plane calls."""
        ...

    def watch(self, metrics: Metrics) -> None:
        """Show in `metrics` what this process knows of the ledger's state."""
        ...

    def problems(self) -> list[str]:
        """Why nothing can be reserved now; empty where it can."""
        ...

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled."""
        ...

    async def close(self) -> None:
        """No request runs any more: see to it that everything settled is taken care of."""
        ...


class HolderTerms(msgspec.Struct, frozen=True, kw_only=True):
    """What a lease holder is told of the configuration. `shards` is how many the node has."""

    conninfo: str
    max_request_seconds: float
    valkey_url: str = ""
    shards: int = 1

    @classmethod
    def of(cls, config: Config, conninfo: str, shards: int = 1) -> HolderTerms:
        """As the configuration says."""
        return cls(
            conninfo=conninfo,
            max_request_seconds=config.server.max_request_seconds,
            valkey_url=config.limits.valkey_url,
            shards=shards,
        )


class Holder:
    """The lease holder of this process. Make one with `open`; only one at a time can have it."""

    def __init__(
        self,
        store: PostgresStore,
        journal: Journal,
        server: LedgerServer,
        quotas: ValkeyQuotas | None,
    ) -> None:
        self.server = server
        self._store = store
        self._journal = journal
        self._quotas = quotas

    @classmethod
    async def open(
        cls,
        terms: HolderTerms,
        directory: Path,
        *,
        served: bool = True,
        linked: bool = True,
        patience_seconds: float = 0,
    ) -> Holder:
        """Recover the journal in `directory`. A locked one is waited for as long as that.

        `served`: new requests will come. `linked`: through a socket, so that workers which have
        outlived their ledger come back with what they have open; else that is voided.
        Raises JournalError.
        """
        journal, recovered = await _recover(directory, patience_seconds)
        quotas = fleet = None
        if terms.valkey_url and served:
            quotas = await ValkeyQuotas.connect(terms.valkey_url)
            fleet = FleetLimiter(uuid.uuid4().hex, processes=terms.shards), quotas
        settings = LedgerSettings(
            node=socket.gethostname(), max_request_seconds=terms.max_request_seconds
        )
        workers = recovered.workers.items() if linked else ()
        store = PostgresStore(terms.conninfo)
        server = LedgerServer(
            store,
            journal,
            recovered,
            alive={number for number, worker in workers if is_alive(worker)},
            settings=settings,
            fleet=fleet,
        )
        return cls(store, journal, server, quotas)

    def watch(self, metrics: Metrics) -> None:
        """As of Books."""
        metrics.watch_ledger(self.server.statistics)
        metrics.watch_journal(self._journal.statistics)
        self.server.observers.append(lambda seconds, _events: metrics.flush.observe(seconds))

    def problems(self) -> list[str]:
        """As of Books."""
        return [] if self.server.ready else ["the ledger has no session with the database"]

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """As of Books."""
        try:
            async with trio.open_nursery() as services:
                await services.start(self.server.run)
                services.start_soon(reaper.run, self._store, boottime)
                task_status.started()
        finally:
            if self._quotas is not None:
                with trio.move_on_after(_VALKEY_SECONDS, shield=True):
                    await self._quotas.aclose()


async def _recover(directory: Path, patience_seconds: float) -> tuple[Journal, RecoveredState]:
    told = False
    deadline = trio.current_time() + patience_seconds
    while True:
        try:
            return Journal.recover(directory, boot_id=boot_id(), segment_bytes=_SEGMENT_BYTES)
        except JournalLocked:
            if trio.current_time() >= deadline:
                raise
        if not told:
            told = True
            sys.stderr.write(
                f"Another gateway, which may be ending, still uses the journal in {directory}; "
                f"waiting for it, at most {patience_seconds:g} seconds.\n"
            )
        await trio.sleep(_LOCK_POLL_SECONDS)


class OwnBooks:
    """`Books` with the lease holder in the worker's own process."""

    def __init__(self, holder: Holder) -> None:
        self.ledger = Ledger([LocalLink(holder.server)])
        self.watch = holder.watch
        self.problems = holder.problems
        self.run = holder.run
        self._holder = holder

    async def close(self) -> None:
        """As of Books: everything is posted, and all credit given back."""
        await self._holder.server.drain()


class SharedBooks:
    """`Books` with the lease holders in processes of their own, one at each of these sockets."""

    def __init__(self, paths: Sequence[str]) -> None:
        identity = WorkerIdentity.of_this_process()
        self._links = [SocketLink(path, worker=identity) for path in paths]
        self.ledger = Ledger(self._links)

    def watch(self, metrics: Metrics) -> None:
        """As of Books: the lease holders report their state themselves."""

    def problems(self) -> list[str]:
        """As of Books."""
        missing = not all(link.connected for link in self._links)
        return ["no link with the ledger"] if missing else []

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """As of Books."""
        async with trio.open_nursery() as links:
            for link in self._links:
                await links.start(link.run)
            task_status.started()

    async def close(self) -> None:
        """As of Books: it is in the lease holders' journals; posting it is their business.

        One that restarts is waited for, within bounds.
        """
        with trio.move_on_after(_CLOSE_SECONDS):
            while self.ledger.unconfirmed:  # noqa: ASYNC110 - once in a life, no event
                await trio.sleep(_CLOSE_POLL_SECONDS)


def boot_id() -> str:
    """What changes with every boot of the machine; "" where the system does not tell."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def shard_directories(data_dir: Path, shards: int) -> list[Path]:
    """Where the journals of `shards` lease holders are; the first is where a single one is."""
    first = data_dir / "ledger"
    return [first, *(first / f"shard-{number}" for number in range(1, shards))]


def leftover_directories(data_dir: Path, shards: int) -> Sequence[Path]:
    """Journals of a time with more shards than `shards`: what they hold must still be posted."""
    current = shard_directories(data_dir, shards)
    return sorted(set((data_dir / "ledger").glob("shard-*")) - set(current))
