"""Names of providers → addresses, without waiting for DNS more often than needed.

A lookup blocks a thread that nothing can stop: where the name server is away it stays for half a
minute. In trio's own pool of threads a few of them keep the worker from everything else that needs
a thread, so lookups have their own, and few of them:

- one lookup a name, whoever asks for it meanwhile; its result is kept even if nobody waits any
  more. Whoever stops waiting leaves nothing behind;
- an answer is good for 30 seconds. Its addresses are handed out in turn, as a name server would:
  connections that are opened in one burst go to all of them;
- an older answer is used where there is no newer one to be had: the lookup failed, or takes longer
  than 1.8 seconds. So it is for an hour, and after a failure 30 seconds pass before the next
  lookup. These are the rules of RFC 8767 (serve stale), by which a name that is said not to exist
  is an answer, no failure: its addresses may be somebody else's by now;
- a host that is an address is never looked up.

The caller sets the deadline.
"""

from __future__ import annotations

import contextlib
import math
import socket
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import trio

THREADS_MAX = 8
_FRESH_SECONDS = 30.0
_KEPT_SECONDS = 3600.0
_PATIENCE_SECONDS = 1.8
_NO_SUCH_NAME = {socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)}


@dataclass(frozen=True, slots=True)
class Address:
    """An IP address. `scope` is the interface of a link-local one of IPv6."""

    family: socket.AddressFamily
    host: str
    scope: int = 0

    def at(self, port: int) -> tuple[str, int] | tuple[str, int, int, int]:
        """The same with a port, as sockets take it."""
        if self.family == socket.AF_INET6:
            return self.host, port, 0, self.scope
        return self.host, port


LookUp = Callable[[str], tuple[Address, ...]]


def look_up(host: str, flags: int = 0) -> tuple[Address, ...]:
    """What the system knows of a name, the best address first (RFC 6724). Blocks.

    Raises `socket.gaierror`.
    """
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=flags)
    except ValueError as error:  # not a name that DNS could have
        raise socket.gaierror(socket.EAI_NONAME, str(error)) from error
    addresses = [
        Address(family, str(address[0]), address[3] if len(address) == 4 else 0)
        for family, _, _, _, address in found
        if family in (socket.AF_INET, socket.AF_INET6)
    ]
    if not addresses:
        raise socket.gaierror(socket.EAI_NONAME, "the name has no IP address")
    return tuple(dict.fromkeys(addresses))


@dataclass(slots=True)
class _Answer:
    addresses: tuple[Address, ...]
    fresh_until: float
    kept_until: float
    turn: int = 0

    def in_turn(self) -> tuple[Address, ...]:
        self.turn += 1
        return interleaved(self.addresses, self.turn - 1)


@dataclass(slots=True)
class _Lookup:
    host: str
    began: float
    done: trio.Event = field(default_factory=trio.Event)
    error: OSError | None = None


class Resolver:
    """What one worker knows of names."""

    def __init__(self, look_up: LookUp = look_up) -> None:
        self._look_up = look_up
        self._answers: dict[str, _Answer] = {}
        self._lookups: dict[str, _Lookup] = {}
        self._waiting: deque[_Lookup] = deque()  # for a thread
        self._threads = 0

    async def addresses(self, host: str) -> tuple[Address, ...]:
        """The addresses of a host in the order in which to try them.

        Raises OSError (`socket.gaierror`) where there are none.
        """
        literal = _literal(host)
        if literal is not None:
            return literal
        now = trio.current_time()
        answer = self._answers.get(host)
        if answer is not None and now < answer.fresh_until:
            return answer.in_turn()
        lookup = self._lookups.get(host) or self._begin(host, now)
        kept = answer is not None and now < answer.kept_until
        with trio.move_on_at(lookup.began + _PATIENCE_SECONDS if kept else math.inf):
            await lookup.done.wait()
        answer = self._answers.get(host)
        if answer is not None and now < answer.kept_until:
            return answer.in_turn()
        assert lookup.error is not None, "a lookup ends with an answer or an error"
        raise socket.gaierror(*lookup.error.args) from lookup.error

    def _begin(self, host: str, now: float) -> _Lookup:
        lookup = self._lookups[host] = _Lookup(host, now)
        self._waiting.append(lookup)
        self._start_threads()
        return lookup

    def _start_threads(self) -> None:
        while self._waiting and self._threads < THREADS_MAX:
            self._threads += 1
            self._start(self._waiting.popleft(), trio.lowlevel.current_trio_token())

    def _start(self, lookup: _Lookup, token: trio.lowlevel.TrioToken) -> None:
        def deliver(result: Callable[[], tuple[Address, ...]]) -> None:
            with contextlib.suppress(trio.RunFinishedError):  # the worker has ended meanwhile
                token.run_sync_soon(self._arrived, lookup, result)

        trio.lowlevel.start_thread_soon(
            lambda: self._look_up(lookup.host),
            lambda outcome: deliver(outcome.unwrap),
            name="name lookup",
        )

    def _arrived(self, lookup: _Lookup, result: Callable[[], tuple[Address, ...]]) -> None:
        now = trio.current_time()
        try:
            fresh_until, kept_until = now + _FRESH_SECONDS, now + _KEPT_SECONDS
            self._answers[lookup.host] = _Answer(result(), fresh_until, kept_until)
        except OSError as error:
            lookup.error = error
            self._failed(lookup.host, error, now)
        del self._lookups[lookup.host]
        lookup.done.set()
        self._threads -= 1
        self._start_threads()

    def _failed(self, host: str, error: OSError, now: float) -> None:
        answer = self._answers.get(host)
        if answer is None:
            return
        if error.errno in _NO_SUCH_NAME or now >= answer.kept_until:
            del self._answers[host]
        else:
            answer.fresh_until = min(now + _FRESH_SECONDS, answer.kept_until)


def interleaved(addresses: Sequence[Address], turn: int) -> tuple[Address, ...]:
    """The families by turns, the first one first (RFC 8305 §4); inside of each, the one whose turn
    it is comes first."""
    families: dict[socket.AddressFamily, list[Address]] = {}
    for address in addresses:
        families.setdefault(address.family, []).append(address)
    rotated = [
        deque(family[turn % len(family) :] + family[: turn % len(family)])
        for family in families.values()
    ]
    order: list[Address] = []
    while any(rotated):
        order += [family.popleft() for family in rotated if family]
    return tuple(order)


def _literal(host: str) -> tuple[Address, ...] | None:
    """The address that a host is; None where it is a name."""
    try:
        return look_up(host, socket.AI_NUMERICHOST)
    except OSError:
        return None
