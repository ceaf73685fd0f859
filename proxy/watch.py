"""Noticing that a client has left while we wait for its upstream.

Nobody reads from the client during an exchange, so a closed connection would go unnoticed until
the next send. One epoll instance watches every connection for its peer's hang-up, and one task
waits on it: two system calls per connection, where a reading child task per exchange would cost
50 µs. A client that half-closes its sending side counts as gone.
"""

from __future__ import annotations

import select
from typing import Protocol

import trio

from proxy.transport import Transport


class Watch(Protocol):
    """Cancels a scope when the peer of a transport leaves."""

    def add(self, transport: Transport, scope: trio.CancelScope) -> None:
        """From now on, `scope` is cancelled if the peer goes."""
        ...

    def remove(self, transport: Transport) -> None:
        """Stop watching. Harmless where it was not watched."""
        ...

    async def run(self) -> None:
        """Serve until cancelled."""
        ...


class EpollWatch:
    """The watch of a worker on Linux."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._scopes: dict[int, trio.CancelScope] = {}

    def add(self, transport: Transport, scope: trio.CancelScope) -> None:
        fd = transport.fileno()
        if fd < 0:
            return
        self._epoll.register(fd, select.EPOLLRDHUP)  # EPOLLHUP and EPOLLERR are implied
        self._scopes[fd] = scope

    def remove(self, transport: Transport) -> None:
        fd = transport.fileno()
        if self._scopes.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    async def run(self) -> None:
        while True:
            await trio.lowlevel.wait_readable(self._epoll.fileno())
            for fd, _ in self._epoll.poll(0):
                # Level-triggered: what was reported once must not be reported again.
                self._epoll.unregister(fd)
                self._scopes.pop(fd).cancel()


class NoWatch:
    """Where the platform has no epoll: a client that left is noticed at the next send."""

    def add(self, transport: Transport, scope: trio.CancelScope) -> None:
        pass

    def remove(self, transport: Transport) -> None:
        pass

    async def run(self) -> None:
        await trio.sleep_forever()


def platform_watch() -> Watch:
    """The best watch that this platform offers."""
    return EpollWatch() if hasattr(select, "epoll") else NoWatch()
