"""One of the gateway's processes, started by `farebox.supervise`: a worker, a shard's ledger, or
the console.

    python -m farebox.child NAME FD     FD: its end of the control channel (`farebox.control`)

Rules
- What it is to be, it reads from the channel; nothing secret is in its arguments or environment.
  The name is for whoever lists processes, and lets one load its code while it waits.
- Signals are the supervisor's: a Ctrl-C, or a service manager's SIGTERM to the whole group, reaches
  that one too, which then says here what to do, and in which order.
- An end of the channel that nobody announced means that the supervisor is dead. A worker then
  stops accepting at once, gives its streams a few seconds and cuts the rest; the ledger waits for
  the last worker, posts what it can in a moment, and leaves the rest to the journal: a successor
  is waiting for its lock already.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import trio

from farebox.books import Holder, SharedBooks
from farebox.control import (
    Ask,
    BeConsole,
    BeLedger,
    BeLeftover,
    BeWorker,
    Channel,
    ChannelClosed,
    Cut,
    Drain,
    Ready,
    Refused,
    Reload,
    Reloaded,
    Report,
    Served,
    Start,
    ToChild,
    childs_end,
)
from farebox.interpreter import settle_in
from farebox.totals import report_of
from ledger import link
from ledger.directory import DirectoryUnavailable
from ledger.segments import JournalError
from ledger.store import StoreError
from proxy.metrics import Metrics

if TYPE_CHECKING:
    from farebox.worker import Worker

LOCK_PATIENCE_SECONDS = 15.0

_ORPHAN_STREAM_SECONDS = 3.0
_ORPHAN_POST_SECONDS = 2.0
_RETRY_SECONDS = 1.0
_LEFTOVER_POLL_SECONDS = 0.2

_REFUSALS = (DirectoryUnavailable, JournalError, StoreError)


class Part(Protocol):
    """What a child is, once it has been told."""

    @property
    def metrics(self) -> Metrics:
        """What it counts."""
        ...

    def problems(self) -> list[str]:
        """Why it should get no traffic."""
        ...

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Do it until drained. Cancellation is for who must end unfinished."""
        ...

    def drain(self) -> None:
        """Finish what runs, and end."""
        ...

    def cut(self) -> None:
        """Finish now."""
        ...

    async def reload(self, served: Served) -> None:
        """Take this over for new requests."""
        ...

    async def outlive(self) -> None:
        """The supervisor is dead: end soon. The process ends when this returns, at the latest."""
        ...


class WorkerPart:
    """A data-plane worker of several."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._draining = False
        self.metrics = worker.metrics
        self.problems = worker.problems
        self.run = worker.run

    def drain(self) -> None:
        """As of Part."""
        if not self._draining:
            self._draining = True
            self._worker.drain()

    def cut(self) -> None:
        """As of Part."""
        self.drain()
        self._worker.drain()

    async def reload(self, served: Served) -> None:
        """As of Part."""
        from farebox.served import unpacked

        settings = unpacked(served.settings)
        await self._worker.reload(settings.config, settings.built_in)

    async def outlive(self) -> None:
        """As of Part."""
        self.drain()
        with trio.move_on_after(_ORPHAN_STREAM_SECONDS):
            await self._worker.stopped.wait()
        self.cut()
        with trio.move_on_after(_ORPHAN_POST_SECONDS):
            await self._worker.stopped.wait()


class LedgerPart:
    """The lease holder of a shard, at the service of the workers."""

    def __init__(self, holder: Holder, listening: socket.socket, lifeline: int) -> None:
        self.metrics = Metrics()
        holder.watch(self.metrics)
        self.problems = holder.problems
        self._holder = holder
        self._listening = listening
        self._lifeline = lifeline
        self._end = trio.Event()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """As of Part."""
        async with trio.open_nursery() as services:
            await services.start(self._holder.run)
            await services.start(link.serve, self._holder.server, self._listening)
            task_status.started()
            await self._end.wait()
            await self._holder.server.drain()
            services.cancel_scope.cancel()

    def drain(self) -> None:
        """As of Part. The supervisor asks for it when the last worker has gone."""
        self._end.set()

    cut = drain

    async def reload(self, served: Served) -> None:
        """As of Part: nothing here can be reloaded."""

    async def outlive(self) -> None:
        """As of Part."""
        # Every worker holds the other end of this pipe, as did the supervisor.
        await trio.lowlevel.wait_readable(self._lifeline)
        self.drain()
        await trio.sleep(_ORPHAN_POST_SECONDS)


class LeftoverPart:
    """The lease holder of a shard that is no more: it posts what it has, gives back, and ends."""

    def __init__(self, holder: Holder) -> None:
        self.metrics = Metrics()
        holder.watch(self.metrics)
        self._holder = holder
        self._end = trio.Event()

    def problems(self) -> list[str]:
        """As of Part: no traffic depends on this."""
        return []

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """As of Part."""
        server = self._holder.server
        async with trio.open_nursery() as services:
            await services.start(self._holder.run)
            task_status.started()
            services.start_soon(self._settle_down)
            await self._end.wait()
            await server.drain()
            services.cancel_scope.cancel()

    async def _settle_down(self) -> None:
        """Until the database is there."""
        while not self._holder.server.ready:  # noqa: ASYNC110 - no event
            await trio.sleep(_LEFTOVER_POLL_SECONDS)
        self._end.set()

    def drain(self) -> None:
        """As of Part."""
        self._end.set()

    cut = drain

    async def reload(self, served: Served) -> None:
        """As of Part: nothing here can be reloaded."""

    async def outlive(self) -> None:
        """As of Part."""
        self.drain()
        await trio.sleep(_ORPHAN_POST_SECONDS)


async def build(start: Start) -> Part:
    """The part that `start` asks for. Raises one of the refusals."""
    match start:
        case BeWorker():
            from farebox.served import unpacked
            from farebox.worker import Worker
            from proxy.health import shared_rows

            settings = unpacked(start.served.settings)
            worker = await Worker.build(
                settings.config,
                start.conninfo,
                start.secret,
                settings.built_in,
                socket.socket(fileno=start.listening),
                SharedBooks(start.ledgers),
                shared_rows(start.rows, start.place),
                start.console,
            )
            return WorkerPart(worker)
        case BeLedger():
            holder = await Holder.open(
                start.terms, Path(start.directory), patience_seconds=LOCK_PATIENCE_SECONDS
            )
            return LedgerPart(holder, socket.socket(fileno=start.listening), start.lifeline)
        case BeLeftover():
            holder = await Holder.open(
                start.terms,
                Path(start.directory),
                served=False,
                linked=False,
                patience_seconds=LOCK_PATIENCE_SECONDS,
            )
            return LeftoverPart(holder)
        case BeConsole():
            from farebox.console_part import ConsolePart

            return ConsolePart(start)


class Child:
    """Obeys the channel while its part runs."""

    def __init__(self, channel: Channel[ToChild]) -> None:
        self._channel = channel
        self._building = trio.CancelScope()
        self._built = trio.Event()
        self._part: Part | None = None
        self._reloading = trio.CancelScope()
        self._thread = trio.CapacityLimiter(1)  # who waits for others' threads seems to hang
        self._asked = 0

    async def run(self) -> None:
        """Be told, do it, and return when it is done."""
        start = await self._channel.receive()
        if not isinstance(start, Start):
            return  # drained, or left alone, before it began
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._obey, nursery)
            with self._building:
                self._part = await build(start)
                self._built.set()
            if self._part is not None:
                await self._serve(self._part)
            nursery.cancel_scope.cancel()

    async def _serve(self, part: Part) -> None:
        async with trio.open_nursery() as running:
            await running.start(part.run)
            with contextlib.suppress(ChannelClosed):
                await self._channel.send(Ready())
        await self._report(part)  # its last figures are not lost

    async def _obey(self, nursery: trio.Nursery) -> None:
        while (message := await self._channel.receive()) is not None:
            match message:
                case Drain() | Cut():
                    self._building.cancel()
                    if self._part is not None:
                        self._part.cut() if isinstance(message, Cut) else self._part.drain()
                case Ask(number=number):
                    self._asked = number
                    if self._part is not None:
                        await self._report(self._part)
                case Reload():
                    self._reloading.cancel()  # only the newest counts
                    self._reloading = trio.CancelScope()
                    nursery.start_soon(self._reload, message, self._reloading)
                case _:
                    raise AssertionError(f"told twice what to be: {message}")
        self._building.cancel()
        if self._part is not None:
            await self._part.outlive()
        os._exit(1)  # what is left undone is in the journal

    async def _report(self, part: Part) -> None:
        # Rendering takes milliseconds: it must not stop the streams of this process.
        number = self._asked
        families = await trio.to_thread.run_sync(
            report_of, part.metrics.registry, limiter=self._thread
        )
        report = Report(number=number, problems=tuple(part.problems()), families=tuple(families))
        with contextlib.suppress(ChannelClosed):
            await self._channel.send(report)

    async def _reload(self, message: Reload, scope: trio.CancelScope) -> None:
        """Take the new configuration over. The supervisor has tried it: only the database can
        fail, and it will be back."""
        with scope:
            await self._built.wait()
            assert self._part is not None
            while True:
                try:
                    await self._part.reload(message.served)
                    break
                except DirectoryUnavailable:
                    await trio.sleep(_RETRY_SECONDS)
            with contextlib.suppress(ChannelClosed):
                await self._channel.send(Reloaded(version=message.served.version))


async def _live(end: socket.socket) -> int:
    channel = childs_end(end)
    problems: list[str] = []
    try:
        await Child(channel).run()
    except* _REFUSALS as group:
        problems += [str(error) for error in _leaves(group)]
    if not problems:
        return 0
    with contextlib.suppress(ChannelClosed):
        await channel.send(Refused(problems=tuple(problems)))
    return 1


def _leaves(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    leaves: list[BaseException] = []
    for error in group.exceptions:
        leaves += _leaves(error) if isinstance(error, BaseExceptionGroup) else [error]
    return leaves


def main(name: str, descriptor: int) -> int:
    """Live; the process's exit code."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    if name.startswith("worker"):  # a ledger needs neither the data plane nor what configures it
        importlib.import_module("farebox.worker")
    elif name == "console":
        importlib.import_module("farebox.console_part")
    settle_in()
    return trio.run(_live, socket.socket(fileno=descriptor))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2])))
