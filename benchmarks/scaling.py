"""What a second worker is worth: instructions a request of one worker, of two, and of their ledger.

    python -m benchmarks.scaling          # needs valgrind; three minutes; --clients, --requests

One worker has its ledger in its own process; several speak with one beside them. What that costs is
lost in the noise of a machine where they share caches with each other, and with whoever else runs:
the same two measured 0.9 to 1.4 of one's processor time. Instructions do not differ like that.

Approach
- The whole product runs under valgrind's callgrind, all its processes on one core, Postgres, the
  provider and the clients on the other. The clients are a closed loop, so that under load messages
  gather as they do in life.
- Its clocks go twenty times slower (`benchmarks/slow_clock.py`), as it does itself. What it does
  in as much time without requests is subtracted.
- The least of the rounds counts, because what disturbs only ever adds.

It says two things. Where each process has a core of its own, what two workers take themselves is
what bounds them. Where there are two cores for all three, the ledger's part counts too.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from benchmarks import processes, slow_clock, targets
from benchmarks.callgrind import Callgrind, CannotCount
from benchmarks.load import LoadFailed, connect, take_answer
from benchmarks.processes import Cores
from benchmarks.requests import Ask

_ROOT = Path(__file__).resolve().parents[1]
_SLOWER_TIMES = 20.0
_ANSWER_SECONDS = 120.0
_TRIES_MAX = 20
_WARM_UP_REQUESTS = 4  # of each client, before it is counted and once it is
_UNCOUNTED = "--trace-children-skip=*postgres*,*initdb*,*pg_ctl*"
_NOTHING_TO_COUNT = 3


@dataclass(frozen=True, slots=True)
class Counts:
    """Instructions a request: of the workers together, and of the process of their ledger."""

    workers: float
    ledger: float = 0.0

    @property
    def all(self) -> float:
        return self.workers + self.ledger


def report(one: Counts, two: Counts) -> list[str]:
    """What it comes to."""
    rows = (("one worker", one.all), ("two workers", two.workers), ("their ledger", two.ledger))
    apart, together = 2 * one.all / two.workers, 2 * one.all / two.all
    return [
        "instructions a request",
        *(f"{name:14} {count:12,.0f} {count / one.all:8.2f}" for name, count in rows),
        f"two workers serve {apart:.2f} times what one does, with a core for their ledger;"
        f" {together:.2f} times where two cores are all there is",
    ]


class Clients:
    """A closed loop of so many."""

    def __init__(self, target: targets.Target, clients: int) -> None:
        self._port = target.port
        self._request = Ask("plain").request(target.key)
        self._clients = clients

    def await_service(self) -> None:
        """Until it has credit at hand, which takes so slow a gateway a while. Raises LoadFailed."""
        for _ in range(_TRIES_MAX):
            with contextlib.suppress(LoadFailed):
                self._ask(1)
                return
        self._ask(1)

    def ask(self, each: int) -> float:
        """So many requests of each client; the seconds it took. Raises LoadFailed, OSError."""
        begun = time.monotonic()
        with ThreadPoolExecutor(self._clients) as threads:
            list(threads.map(self._ask, [each] * self._clients))
        return time.monotonic() - begun

    def _ask(self, count: int) -> None:
        with connect(self._port, _ANSWER_SECONDS) as connection:
            for _ in range(count):
                connection.sendall(self._request)
                take_answer(connection, "plain")


class Counted:
    """A gateway of several processes, each under callgrind."""

    def __init__(self, target: targets.Target, callgrind: Callgrind) -> None:
        self._callgrind = callgrind
        self._pids = target.roles()["worker"]
        self._ledgers = {pid for pid in self._pids if b"\0ledger " in _command_line(pid)}

    def begin(self) -> None:
        """Count from here on."""
        for pid in self._pids:
            self._callgrind.tell(pid, "instrumentation", "on")

    def zero(self) -> None:
        """Forget what was counted."""
        for pid in self._pids:
            self._callgrind.tell(pid, "zero")

    def total(self) -> Counts:
        """What was counted since."""
        totals = {pid: self._callgrind.total(pid) for pid in self._pids}
        ledger = sum(totals[pid] for pid in self._ledgers)
        return Counts(sum(totals.values()) - ledger, ledger)


def count(
    behind: targets.Provider, workers: int, clients: int, requests: int, rounds: int
) -> Counts:
    """The least round of a gateway of so many workers.

    Raises CannotCount, LoadFailed, OSError, TargetFailed.
    """
    with _gateway(behind, workers) as (target, counted):
        loop = Clients(target, clients)
        loop.await_service()
        loop.ask(_WARM_UP_REQUESTS)
        counted.begin()
        loop.ask(_WARM_UP_REQUESTS)
        each = max(requests // clients, 1)
        found = [_round(counted, loop, each, each * clients) for _ in range(rounds)]
    return min(found, key=lambda counts: counts.all)


def _round(counted: Counted, loop: Clients, each: int, requests: int) -> Counts:
    counted.zero()
    seconds = loop.ask(each)
    busy = counted.total()
    counted.zero()
    processes.pause(seconds)
    idle = counted.total()
    return Counts((busy.workers - idle.workers) / requests, (busy.ledger - idle.ledger) / requests)


@contextlib.contextmanager
def _gateway(behind: targets.Provider, workers: int) -> Iterator[tuple[targets.Target, Counted]]:
    with tempfile.TemporaryDirectory(prefix="farebox-bench-") as name:
        directory = Path(name)
        callgrind = Callgrind(directory)
        command = callgrind.command("--trace-children=yes", _UNCOUNTED)
        slow = slow_clock.in_every_python(_SLOWER_TIMES, directory)
        variables = {"PYTHONPATH": os.pathsep.join(map(str, (_ROOT, slow))), "PYTHONHASHSEED": "0"}
        with targets.farebox(
            behind,
            directory,
            Cores.of_this_machine(),
            workers=workers,
            command=(*command, sys.executable, "-P", "-m", "farebox"),
            variables=variables,
        ) as target:
            yield target, Counted(target, callgrind)


def _command_line(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--requests", type=int, default=1_280, help="of a round")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args(arguments)
    begun = time.monotonic()
    try:
        with targets.provider(Cores.of_this_machine()) as behind:
            one, two = (
                count(behind, workers, options.clients, options.requests, options.rounds)
                for workers in (1, 2)
            )
    except CannotCount as error:
        print(f"nothing to count: {error}", file=sys.stderr)
        return _NOTHING_TO_COUNT
    except (LoadFailed, OSError, targets.TargetFailed) as error:
        print(f"stopped: {error}", file=sys.stderr)
        return 1
    print("\n".join(report(one, two)))
    print(f"{time.monotonic() - begun:.0f} s")
    return 0


if __name__ == "__main__":
    processes.end_what_was_started_on_sigterm()
    sys.exit(main())
