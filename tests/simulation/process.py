"""A process that can die between any two steps, and whatever it touches of the world outside.

A kill closes the gate first, then cancels: code that still runs because of `finally` finds that
every way out raises `Dead`. What the dead process had handed over to the kernel (written files,
bytes in a socket) is there; what it had only meant to do never happens.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from pathlib import Path

import trio

from tests.fakes.disk import MemoryDisk


class Dead(BaseException):
    """The process is dead: there is no world any more to act upon."""


class Process:
    """One process of a node. `failure` is what it died of by itself."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.alive = True
        self.paused = False
        self.died = trio.Event()
        self.failure: BaseException | None = None
        self.at_death: list[Callable[[], None]] = []
        self.after_step: Callable[[], None] | None = None  # looks at what it has done
        self._scope = trio.CancelScope()

    def check(self) -> None:
        """Pass the gate. Raises Dead."""
        if not self.alive:
            raise Dead(self.name)

    def kill(self) -> None:
        """kill -9, between two steps."""
        if not self.alive:
            return
        self.alive = False
        self.paused = False
        for close in self.at_death:
            close()
        self.died.set()
        self._scope.cancel()

    async def run(self, main: Callable[[], Awaitable[None]]) -> None:
        """Be this process, until it ends."""
        CURRENT.set(self)
        try:
            with self._scope:
                await main()
        except BaseException as error:
            if self.alive:
                self.failure = error
        finally:
            self.kill()


CURRENT: ContextVar[Process | None] = ContextVar("process", default=None)


def process_of(task: trio.lowlevel.Task) -> Process | None:
    """Whose task it is; None for the world's own."""
    return task.context.get(CURRENT)


class GatedDisk:
    """A process's hands on a disk (`ledger.segments.Files`)."""

    def __init__(self, disk: MemoryDisk, process: Process) -> None:
        self._disk = disk
        self._process = process

    def lock(self, directory: Path) -> int:
        self._process.check()
        return self._disk.lock(directory)

    def segments(self, directory: Path) -> list[Path]:
        self._process.check()
        return self._disk.segments(directory)

    def read(self, path: Path) -> bytes:
        self._process.check()
        return self._disk.read(path)

    def create(self, path: Path, size: int) -> int:
        self._process.check()
        return self._disk.create(path, size)

    def write(self, file: int, data: bytes | bytearray, offset: int) -> None:
        self._process.check()
        self._disk.write(file, data, offset)

    def sync(self, file: int) -> None:
        self._process.check()
        self._disk.sync(file)

    def close(self, file: int) -> None:
        self._process.check()
        self._disk.close(file)

    def remove(self, path: Path) -> None:
        self._process.check()
        self._disk.remove(path)
