"""A machine: its disk, its clock, its ledger, its workers, and the supervisor that restarts them.

Everything in it is the product's own: `LedgerServer`, `Journal`, both ends of `ledger.link`,
`Ledger` and the reaper. The machine may lose power, be paused, come back, or be destroyed.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import trio

from ledger import reaper
from ledger.client import Ledger
from ledger.engine import Engine, EngineSettings
from ledger.journal import JournalCorrupt, JournalFailed, JournalFull, RecoveredState
from ledger.link import GRACE_SECONDS, LinkRejected, StreamLink, WorkerIdentity, serve_streams
from ledger.records import Worker as WorkerRecord
from ledger.reservation import INSTANCES_MAX
from ledger.segments import newest_segment
from ledger.server import LedgerServer, LedgerSettings
from tests.fakes.disk import MemoryDisk
from tests.simulation.database import Client, Database
from tests.simulation.oracle import Oracle, Violated, WatchedJournal
from tests.simulation.process import Dead, GatedDisk, Process
from tests.simulation.scheduling import Scheduler
from tests.simulation.wire import End, Port

DIRECTORY = Path("/journal")
POST_SECONDS = 0.5  # for a sync, the exchange that is under way and the next
YEAR_MICROSECONDS = 365 * 24 * 3600 * 1_000_000
_EXPECTED_ENDS = (JournalFailed, JournalFull, LinkRejected, Dead, trio.Cancelled, OSError)


@dataclass(frozen=True)
class NodeSettings:
    """What an operator would configure, and how fast the machine is."""

    workers: int = 1
    flush_seconds: float = 0.25
    fsync_interval: float = 0.010
    disk_seconds_max: float = 0.004
    segment_bytes: int = 1 << 15
    retention_bytes: int = 1 << 20
    engine: EngineSettings = field(default_factory=EngineSettings)
    instances_max: int = INSTANCES_MAX
    restart_seconds: float = 0.2


@dataclass
class Worker:
    """A worker process and its way to the ledger."""

    process: Process
    identity: WorkerIdentity
    ledger: Ledger
    link: StreamLink
    ends: list[End]
    linked_at: float = 0.0  # when it last had a link


class Node:
    """One machine. `traffic` is what each of its workers does all day."""

    def __init__(
        self,
        name: str,
        database: Database,
        oracle: Oracle,
        scheduler: Scheduler,
        generator: random.Random,
        settings: NodeSettings,
        traffic: Callable[[Node, Worker], Awaitable[None]],
        inspect: Callable[[Node, Engine], None],
    ) -> None:
        self.name = name
        self.disk = MemoryDisk()
        self.settings = settings
        self.drift = 1.0
        self.wall_offset = 0
        self.message_delay = 0.0
        self.boots = 0
        self.destroyed = False
        self.server: LedgerServer | None = None
        self.journal: WatchedJournal | None = None
        self.ledgerd: Process | None = None
        self.reaper: Process | None = None
        self.workers: dict[int, Worker] = {}
        self.machine = Process(f"{name} machine")
        self.machine.alive = False
        self.seen_open: set[int] = set()
        self.disturbed_at = 0.0  # when its ledger or disk last failed, or it stood still
        self._looked_at = -1.0
        self._database = database
        self._oracle = oracle
        self._scheduler = scheduler
        self._generator = generator
        self._traffic = traffic
        self._inspect = inspect
        self._processes: dict[tuple[int, int], Process] = {}
        self._pids = 100
        self._port = Port(self.machine, self._delay)

    # -- the machine --------------------------------------------------------------------------

    async def run(self) -> None:
        """Boot, and again after every power cut, until destroyed."""
        while not self.destroyed:
            self.boots += 1
            self.machine = machine = Process(f"{self.name} machine")
            self._port = Port(machine, self._delay)
            async with trio.open_nursery() as supervisor:
                supervisor.start_soon(self._keep, machine, self._run_ledgerd)
                supervisor.start_soon(self._keep, machine, self._run_reaper)
                for slot in range(self.settings.workers):
                    supervisor.start_soon(self._keep, machine, partial(self._run_worker, slot))
                await machine.died.wait()
                supervisor.cancel_scope.cancel()
            await trio.sleep(self._generator.uniform(0.5, 10))

    @property
    def up(self) -> bool:
        """Whether the machine runs."""
        return self.machine.alive

    def clock(self) -> float:
        """Boot time, as exact as this machine's crystal."""
        return trio.current_time() * self.drift

    def wall_clock(self) -> int:
        """Whatever somebody has set."""
        return int(trio.current_time() * 1e6) + self.wall_offset

    @property
    def processes(self) -> Iterator[Process]:
        """Everything that runs on it."""
        for process in (self.ledgerd, self.reaper):
            if process is not None:
                yield process
        for worker in self.workers.values():
            yield worker.process

    def pause(self) -> None:
        """Stand still, with all processes; clocks go on."""
        for process in self.processes:
            process.paused = process.alive
        self._scheduler.freeze()
        self.disturbed_at = trio.current_time()

    def resume(self) -> None:
        """Go on."""
        for process in self.processes:
            process.paused = False
        self._scheduler.thaw()
        self.disturbed_at = trio.current_time()

    def cut_power(self) -> None:
        """All processes die, and what was not synced may be gone, sector by sector."""
        journal, now = self.journal, trio.current_time()
        paused = any(process.paused for process in self.processes)
        if paused or self.disk.full or (journal is not None and journal.statistics().failed):
            self.disturbed_at = now
        self._die()
        self.disk.cut_power(lambda: self._generator.random() < 0.5)
        if journal is None:
            return
        state = self._survivors()
        # A sync under way, a new segment, an old one removed, and the next sync, maybe in vain.
        patience = self.settings.fsync_interval + 5 * self.settings.disk_seconds_max
        since = now - patience if now - self.disturbed_at > patience else float("-inf")
        self._oracle.cut(
            journal.journal_id,
            state.next_seq,
            open_requests={reserve.request_id for reserve in state.open.values()},
            synced=journal.synced,
            unsynced_since=since,
        )

    def _survivors(self) -> RecoveredState:
        try:
            newest = newest_segment(DIRECTORY, self.disk, f"boot {self.boots + 1}")
        except JournalCorrupt as error:
            raise Violated(f"a power cut left a journal that cannot be read: {error}") from error
        return RecoveredState() if newest is None else newest.state

    def post_seconds(self) -> float:
        """Within which an event is posted while nothing fails."""
        settings = self.settings
        return settings.flush_seconds + settings.fsync_interval + POST_SECONDS

    def destroy(self, *, unposted_since: float) -> None:
        """The machine burns down with its disk."""
        journal = self.journal
        self.destroyed = True
        self._die()
        self.disk = MemoryDisk()
        if journal is not None:
            rows = self._database.books.holder_rows.values()
            applied = (row.applied_seq for row in rows if row.journal_id == journal.journal_id)
            self._oracle.destroyed(
                journal.journal_id, next(applied, 0), unposted_since=unposted_since
            )

    def _die(self) -> None:
        for process in list(self.processes):
            process.kill()
        self.machine.kill()
        self._scheduler.thaw()

    # -- its processes ------------------------------------------------------------------------

    async def _keep(self, machine: Process, run: Callable[[], Awaitable[Process]]) -> None:
        """Restart it whenever it ends."""
        while machine.alive:
            process = await run()
            if process.failure is not None:
                self._judge(process.failure)
            await trio.sleep(self.settings.restart_seconds * self._generator.random())

    def _judge(self, failure: BaseException) -> None:
        for error in _leaves(failure):
            if not isinstance(error, _EXPECTED_ENDS):
                raise error

    async def _be(self, process: Process, main: Callable[[], Awaitable[None]]) -> Process:
        """Let it run; what is left of it after its death is cleared away by the by."""
        process.at_death.append(self._scheduler.thaw)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(process.run, main)
            await process.died.wait()
        return process

    async def _run_ledgerd(self) -> Process:
        process = Process(f"{self.name} ledgerd")
        self.ledgerd = self._port.owner = process
        process.at_death.append(self.disk.kill)
        process.after_step = partial(self._after_step, process)
        return await self._be(process, lambda: self._ledgerd(process))

    async def _ledgerd(self, process: Process) -> None:
        settings = self.settings
        try:
            journal, recovered = WatchedJournal.recover(
                DIRECTORY,
                boot_id=f"boot {self.boots}",
                segment_bytes=settings.segment_bytes,
                fsync_interval=settings.fsync_interval,
                retention_bytes=settings.retention_bytes,
                files=GatedDisk(self.disk, process),
            )
        except JournalCorrupt as error:
            raise Violated(f"the journal cannot be read: {error}") from error
        assert isinstance(journal, WatchedJournal)
        journal.watch(self._oracle)
        self.journal = journal
        self.seen_open = set(recovered.open)
        alive = {known for known, worker in recovered.workers.items() if self._lives(worker)}
        self.server = server = LedgerServer(
            Client(self._database, process),
            journal,
            recovered,
            alive=alive,
            settings=LedgerSettings(
                engine=settings.engine, node=self.name, flush_seconds=settings.flush_seconds
            ),
            clock=self.clock,
            wall_clock=self.wall_clock,
            jitter=self._generator.random,
        )
        async with trio.open_nursery() as services:
            await services.start(server.run)
            await services.start(serve_streams, server, self._port, self._ended)

    def _after_step(self, process: Process) -> None:
        if self.server is not None and process.alive:
            self.look()
            self._inspect(self, self.server.engine)

    async def _run_reaper(self) -> Process:
        self.reaper = process = Process(f"{self.name} reaper")
        store = Client(self._database, process)
        return await self._be(process, lambda: reaper.run(store, self.clock))

    async def _run_worker(self, slot: int) -> Process:
        self._pids += 1
        process = Process(f"{self.name} worker {self._pids}")
        identity = WorkerIdentity(
            self._generator.randrange(1, self.settings.instances_max), self._pids, self.boots
        )
        ends: list[End] = []

        async def connect() -> End:
            end = await self._port.connect(process)
            ends[:] = [end]
            return end

        link = StreamLink(connect, worker=identity)
        ledger = Ledger([link], wall_clock=self.wall_clock)
        worker = Worker(process, identity, ledger, link, ends, trio.current_time())
        self.workers[slot] = worker
        self._processes[identity.pid, identity.started] = process

        async def main() -> None:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(link.run)
                await self._traffic(self, worker)

        return await self._be(process, main)

    def is_silent(self, process: Process) -> bool:
        """Whether a worker has had no link for all of its grace."""
        worker = next(each for each in self.workers.values() if each.process is process)
        return trio.current_time() - worker.linked_at >= GRACE_SECONDS - 0.001

    def look(self) -> None:
        """Note which workers have a link, now or at least a moment ago."""
        now = trio.current_time()
        if now == self._looked_at:
            return
        self._looked_at = now
        for worker in self.workers.values():
            if worker.ends and worker.ends[0].intact and worker.link.connected:
                worker.linked_at = now

    def _lives(self, worker: WorkerRecord) -> bool:
        process = self._processes.get((worker.pid, worker.started))
        return process is not None and process.alive

    async def _ended(self, worker: WorkerRecord) -> bool:
        process = self._processes.get((worker.pid, worker.started))
        if process is not None:
            await process.died.wait()
        await trio.lowlevel.checkpoint()
        return True

    def _delay(self) -> float:
        return self._generator.uniform(0, self.message_delay) if self.message_delay else 0.0


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for each in error.exceptions:
            yield from _leaves(each)
    else:
        yield error
