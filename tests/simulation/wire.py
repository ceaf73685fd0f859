"""Sockets between the processes of a node: in order, in time, and sometimes not at all.

What a process has sent survives it and is read to its end. A connection that is cut loses what was
under way, in both directions. The port outlives the ledger's process: whoever connects meanwhile
waits in its queue.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextlib import nullcontext

import trio

from tests.simulation.process import Process


class _Pipe:
    """One direction: what was sent, and when it arrives."""

    def __init__(self) -> None:
        self.parcels: deque[tuple[float, bytes]] = deque()
        self.arrives_at = 0.0
        self.ended = False  # nothing more will be sent
        self.abandoned = False  # nobody will read
        self.cut = False
        self.changed = trio.Event()

    def wake(self) -> None:
        self.changed.set()
        self.changed = trio.Event()


class End(trio.abc.Stream):
    """One end of a connection, in the hands of a process."""

    def __init__(
        self, process: Process, incoming: _Pipe, outgoing: _Pipe, delay: Callable[[], float]
    ) -> None:
        self._incoming = incoming
        self._outgoing = outgoing
        self._delay = delay
        self._closed = False
        self.process = process
        process.at_death.append(self._close)

    def own(self, process: Process) -> None:
        """Be accepted by a process."""
        self.process = process
        process.at_death.append(self._close)

    @property
    def intact(self) -> bool:
        """Whether messages go through."""
        pipe = self._outgoing
        return not (self._closed or pipe.cut or pipe.abandoned)

    def cut(self) -> None:
        """Break the connection: what is under way is lost."""
        for pipe in (self._incoming, self._outgoing):
            pipe.cut = True
            pipe.parcels.clear()
            pipe.wake()

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await trio.lowlevel.checkpoint()
        self.process.check()
        pipe = self._outgoing
        if self._closed:
            raise trio.ClosedResourceError
        if pipe.cut or pipe.abandoned:
            raise trio.BrokenResourceError
        pipe.arrives_at = max(pipe.arrives_at, trio.current_time() + self._delay())
        pipe.parcels.append((pipe.arrives_at, bytes(data)))
        pipe.wake()

    async def wait_send_all_might_not_block(self) -> None:
        await trio.lowlevel.checkpoint()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        pipe = self._incoming
        if self._readable:
            await trio.lowlevel.checkpoint()
        while not self._readable:
            with trio.move_on_at(pipe.parcels[0][0]) if pipe.parcels else nullcontext():
                await pipe.changed.wait()
        if self._closed:
            raise trio.ClosedResourceError
        if pipe.cut:
            raise trio.BrokenResourceError
        return pipe.parcels.popleft()[1] if pipe.parcels else b""

    @property
    def _readable(self) -> bool:
        """Whether `receive_some` has something to say."""
        self.process.check()
        pipe = self._incoming
        if self._closed or pipe.cut:
            return True
        return pipe.parcels[0][0] <= trio.current_time() if pipe.parcels else pipe.ended

    async def aclose(self) -> None:
        self._close()
        await trio.lowlevel.checkpoint()

    def _close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._outgoing.ended = True
        self._incoming.abandoned = True
        self._incoming.parcels.clear()
        self._outgoing.wake()
        self._incoming.wake()


class Port(trio.abc.Listener[End]):
    """Where a ledger listens; kept open by the node while nobody does."""

    def __init__(self, nobody: Process, delay: Callable[[], float]) -> None:
        self._nobody = nobody
        self._delay = delay
        self._queue: deque[End] = deque()
        self._arrived = trio.Event()
        self.ends: list[End] = []
        self.owner: Process = nobody

    async def connect(self, process: Process) -> End:
        """As a worker does. Raises OSError where the node is off."""
        await trio.lowlevel.checkpoint()
        process.check()
        if not self._nobody.alive:
            raise ConnectionRefusedError
        there, back = _Pipe(), _Pipe()
        end = End(process, back, there, self._delay)
        self.ends = [known for known in self.ends if known.intact]
        self.ends.append(end)
        self._queue.append(End(self._nobody, there, back, self._delay))
        self._arrived.set()
        return end

    async def accept(self) -> End:
        while not self._queue:
            self._arrived = trio.Event()
            await self._arrived.wait()
        await trio.lowlevel.checkpoint()
        self.owner.check()
        end = self._queue.popleft()
        end.own(self.owner)
        return end

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()
