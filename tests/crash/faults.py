"""What is done to a gateway of several processes: who is killed, or stopped for a moment, and when.

A plan is drawn from a seed: a deck of faults in random order with random short pauses. What the
processes do in between is their own, so a seed repeats the plan, and as a rule the trouble.
"""

from __future__ import annotations

import contextlib
import enum
import os
import random
import signal
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from farebox.embedded import EmbeddedPostgres
from tests.fakes.process import GatewayProcess

APPEAR_SECONDS = 30
_POLL_SECONDS = 0.01


class Fault(enum.Enum):
    """What happens in a cycle."""

    WORKER = "kill -9 of a worker"
    LEDGER = "kill -9 of the ledger"
    DATABASE = "Postgres, immediate shutdown"
    WORKER_PAUSE = "a worker stopped for a moment"
    LEDGER_PAUSE = "the ledger stopped for a moment"
    EVERYTHING = "kill -9 of everything"
    SUPERVISOR = "kill -9 of the supervisor"


_OF_A_HUNDRED = {
    Fault.WORKER: 40,
    Fault.LEDGER: 26,
    Fault.DATABASE: 8,
    Fault.WORKER_PAUSE: 11,
    Fault.LEDGER_PAUSE: 12,
    Fault.EVERYTHING: 2,
    Fault.SUPERVISOR: 1,
}
_WAIT_PROBABILITY = 0.7
_BEFORE_SECONDS = (0.0, 0.3)
_PAUSED_SECONDS = (0.02, 0.5)


@dataclass(frozen=True, slots=True)
class Cycle:
    """A fault after a pause; `choice` picks among the processes, `seconds` is for how long.

    Most wait before that until the gateway serves again; the others hit while it recovers.
    """

    waits: bool
    after_seconds: float
    fault: Fault
    choice: int
    seconds: float


def plan(cycles: int, seed: int) -> list[Cycle]:
    """So many cycles; each kind of fault at least once, if they are as many as that."""
    dice = random.Random(seed)
    deck = list(Fault)
    while len(deck) < cycles:
        deck += dice.choices(list(Fault), list(_OF_A_HUNDRED.values()), k=1)
    deck = deck[:cycles]
    dice.shuffle(deck)
    return [
        Cycle(
            dice.random() < _WAIT_PROBABILITY,
            dice.uniform(*_BEFORE_SECONDS),
            fault,
            dice.randrange(2**16),
            dice.uniform(*_PAUSED_SECONDS),
        )
        for fault in deck
    ]


class Saboteur:
    """Does it. `inflict` returns the moment of the fault; what it broke may still be broken."""

    def __init__(self, gateway: GatewayProcess, database: EmbeddedPostgres) -> None:
        self._gateway = gateway
        self._database = database

    def inflict(self, cycle: Cycle) -> float:
        """Blocks for as long as the fault, or the restart that is our part, lasts."""
        match cycle.fault:
            case Fault.WORKER:
                return self._kill("worker ", cycle.choice)
            case Fault.LEDGER:
                return self._kill("ledger ", cycle.choice)
            case Fault.WORKER_PAUSE:
                return self._pause("worker ", cycle)
            case Fault.LEDGER_PAUSE:
                return self._pause("ledger ", cycle)
            case Fault.DATABASE:
                return self._restart_database()
            case Fault.EVERYTHING:
                return self._restart_gateway(descendants_too=True)
            case Fault.SUPERVISOR:
                return self._restart_gateway(descendants_too=False)

    def _kill(self, name: str, choice: int) -> float:
        pid = self._victim(name, choice)
        begun = time.monotonic()
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        return begun

    def _pause(self, name: str, cycle: Cycle) -> float:
        pid = self._victim(name, cycle.choice)
        begun = time.monotonic()
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
            _wait(cycle.seconds)
            os.kill(pid, signal.SIGCONT)
        return begun

    def _restart_database(self) -> float:
        pid = self._database.pid
        assert pid is not None
        begun = time.monotonic()
        os.kill(pid, signal.SIGQUIT)
        while self._database.alive():
            _wait(_POLL_SECONDS)
        self._database.start()
        return begun

    def _restart_gateway(self, *, descendants_too: bool) -> float:
        children = list(children_of(self._gateway.pid).values())
        begun = time.monotonic()
        os.kill(self._gateway.pid, signal.SIGKILL)
        for child in children if descendants_too else ():
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        self._gateway.kill()  # collects it
        self._gateway.start()
        return begun

    def _victim(self, name: str, choice: int) -> int:
        """A child by the beginning of its name; one that is just starting will do as well."""
        deadline = time.monotonic() + APPEAR_SECONDS
        while True:
            found = children_of(self._gateway.pid)
            victims = [pid for child, pid in sorted(found.items()) if child.startswith(name)]
            if victims:
                return victims[choice % len(victims)]
            assert time.monotonic() < deadline, f"no {name}is started again: {self._gateway.tail()}"
            _wait(_POLL_SECONDS)


def children_of(supervisor: int) -> dict[str, int]:
    """The living children of a supervisor by their names."""
    found = {}
    for task in Path(f"/proc/{supervisor}/task").glob("*"):
        for number in _words(task / "children"):
            arguments = _arguments(Path("/proc", number, "cmdline"))
            if "farebox.child" in arguments:
                found[arguments[arguments.index("farebox.child") + 1]] = int(number)
    return found


def _words(path: Path) -> Sequence[str]:
    try:
        return path.read_text().split()
    except OSError:  # the task has ended
        return []


def _arguments(path: Path) -> Sequence[str]:
    """The command line of a process; empty where it has ended."""
    try:
        return path.read_bytes().decode().split("\0")
    except OSError:
        return []


def _wait(seconds: float) -> None:
    threading.Event().wait(seconds)
