"""How many instructions a request takes: a regression guard that a noisy machine can run.

    python -m benchmarks.instructions                  # against the last release
    python -m benchmarks.instructions --against REF    # any commit, tag or branch

Times on a shared machine differ by half from one minute to the next. The number of instructions
that a program executes does not: it counts what our code makes the processor do, whoever else is
running. It is not time (a cache miss counts nothing, and the kernel's part is left out), but code
that grew slower by five per cent has, as a rule, grown by five per cent.

Approach
- The whole product runs: `farebox serve` with its journal and its embedded Postgres under
  valgrind's callgrind, the provider's stand-in beside it, real sockets between them. Postgres, the
  provider and the clients are other processes, and not counted.
- Figures of two interpreters, or of two builds of one, say nothing about each other. So nothing is
  compared with a figure in a file: the other commit is checked out and counted in the same run, by
  the same interpreter with the same dependencies, with this commit's benchmark.
- The clock stands still while requests are served, and is then moved by half a second
  (`benchmarks/still_clock.py`): a slow machine would otherwise do far more background work for each
  request. The background of such a step without requests is subtracted.
- A scenario is counted in several rounds; the least counts, because what disturbs only ever adds.
  What the rounds differ by is shown. With ten programs waiting for two cores a commit differed from
  itself by up to 5 %, on a quiet machine by 2: the band is wider, and what is beyond it is counted
  once more.

Without a tag, the commit in `instructions.json` is what is compared with. `--accept` writes this
commit there: after work that made it faster, so that the next one does not eat the gain unseen, or
where a feature is worth what it costs. The file's history tells what was accepted when.

Exit codes: 0 within the band · 1 beyond it, or the run failed · 3 nothing can be compared here.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from benchmarks import processes, targets
from benchmarks.callgrind import Callgrind, CannotCount, program
from benchmarks.load import LoadFailed, connect, take_answer
from benchmarks.processes import Cores
from benchmarks.requests import Ask

BAND_PERCENT = 8.0

_ROOT = Path(__file__).resolve().parents[1]
_BASELINE = Path(__file__).with_suffix(".json")
_CLOCK = Path(__file__).with_name("still_clock.py")
_ANSWER_SECONDS = 60.0
_QUIET_CPU_SECONDS = 0.01
_QUIET_SECONDS = 0.3
_STEPS_MAX = 20
_NOTHING_TO_COMPARE = 3


class CannotCompare(Exception):
    """This clone lacks what it takes; the message says what."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """One kind of request, `count` times in a row on one connection."""

    name: str
    count: int
    ask: Ask
    keyed: bool = False  # with an idempotency key, another one each time

    def request(self, key: str, number: int) -> bytes:
        """The `number`th request of a run."""
        headers = {"idempotency-key": f"benchmark-{number}"} if self.keyed else {}
        return replace(self.ask, headers=headers).request(key)


_SHORT, _LONG = 20, 200  # events of a stream
_SHORT_STREAM, _LONG_STREAM = f"stream-{_SHORT}-0ms", f"stream-{_LONG}-0ms"
SCENARIOS = (
    Scenario("plain", 120, Ask("plain")),
    Scenario("keyed", 20, Ask("plain"), keyed=True),
    Scenario("translated", 60, Ask("plain", "anthropic")),
    Scenario("short stream", 40, Ask(_SHORT_STREAM)),
    Scenario("long stream", 16, Ask(_LONG_STREAM)),
    Scenario("short translated stream", 40, Ask(_SHORT_STREAM, "anthropic")),
    Scenario("long translated stream", 16, Ask(_LONG_STREAM, "anthropic")),
)

Counts = Mapping[str, float]  # by scenario: instructions a request


def figures(counts: Counts) -> dict[str, float]:
    """What is compared: instructions by what they are for.

    An event's are what a long stream takes more than a short one.
    """
    found = {
        "a plain request": counts["plain"],
        "a plain request with an idempotency key": counts["keyed"],
        "a translated request": counts["translated"],
    }
    for kind in ("stream", "translated stream"):
        short, long = counts[f"short {kind}"], counts[f"long {kind}"]
        found[f"a {kind} of {_SHORT} events"] = short
        found[f"an event of a {kind}"] = (long - short) / (_LONG - _SHORT)
    return found


@dataclass(frozen=True, slots=True)
class Figure:
    """The least of its rounds, and by how much per cent the highest is above that."""

    name: str
    instructions: float
    spread_percent: float

    @classmethod
    def of(cls, name: str, rounds: Sequence[float]) -> Figure:
        least = min(rounds)
        return cls(name, least, (max(rounds) / least - 1) * 100)


@dataclass(frozen=True, slots=True)
class Comparison:
    """One figure here and there."""

    here: Figure
    there: Figure

    @property
    def percent(self) -> float:
        """By how much this commit takes more."""
        return (self.here.instructions / self.there.instructions - 1) * 100

    @property
    def exceeded(self) -> bool:
        return self.percent > BAND_PERCENT

    def __str__(self) -> str:
        mark = " !" if self.exceeded else ""
        return (
            f"{self.here.name:42} {self.here.instructions:12,.0f} {self.there.instructions:12,.0f}"
            f" {self.percent:+7.1f} % {self.here.spread_percent:9.1f} %"
            f" {self.there.spread_percent:6.1f} %{mark}"
        )


def least(rounds: Sequence[Counts]) -> list[Figure]:
    """The figures of several rounds."""
    by_round = [figures(counts) for counts in rounds]
    return [Figure.of(name, [one[name] for one in by_round]) for name in by_round[0]]


def await_answer(
    client: socket.socket, move_on: Callable[[], None], stuck_seconds: float = 2.0
) -> None:
    """Let the clock move on where an answer seems to wait for that: for the directory's next look
    at the keys, say, where the gateway does not know the key yet."""
    for _ in range(_STEPS_MAX):
        if select.select([client], (), (), stuck_seconds)[0]:
            return
        move_on()


class Counted:
    """A gateway under callgrind, asked on one connection."""

    def __init__(self, target: targets.Target, callgrind: Callgrind) -> None:
        assert target.root is not None
        self._pid, self._key, self._callgrind = target.root, target.key, callgrind
        self._socket = connect(target.port, _ANSWER_SECONDS)
        self._asked = 0

    @contextlib.contextmanager
    def standing_still(self) -> Iterator[None]:
        """Its clock moves by our steps only; everything is imported, connected, and counted."""
        os.kill(self._pid, signal.SIGUSR1)
        try:
            self._await_service()
            self._callgrind.tell(self._pid, "instrumentation", "on")
            for scenario in SCENARIOS:
                self._settle()
                self._ask(scenario, scenario.count // 2)
            self._settle()
            yield
        finally:
            self._socket.close()
            self._callgrind.tell(self._pid, "instrumentation", "off")
            os.kill(self._pid, signal.SIGUSR2)

    def round(self) -> Counts:
        """Each scenario once: instructions a request, without what happens without requests."""
        idle = self._counted(lambda: None)
        return {
            scenario.name: (self._counted(partial(self._ask, scenario, scenario.count)) - idle)
            / scenario.count
            for scenario in SCENARIOS
        }

    def _await_service(self) -> None:
        """Let pass what time it takes until it knows the key and does not think any more that it is
        overloaded, as it did while its clock ran so much faster than itself."""
        for _ in range(_STEPS_MAX):
            self._settle()
            with contextlib.suppress(LoadFailed):
                self._ask(SCENARIOS[0], 1)
                return
        self._ask(SCENARIOS[0], 1)

    def _counted(self, ask: Callable[[], None]) -> int:
        self._callgrind.tell(self._pid, "zero")
        ask()
        self._settle()
        return self._callgrind.total(self._pid)

    def _settle(self) -> None:
        """Move its clock, and wait until what is due then is done."""
        os.kill(self._pid, signal.SIGUSR1)
        spent = -1.0
        while (now := processes.cpu_seconds([self._pid])) > spent + _QUIET_CPU_SECONDS:
            spent = now
            processes.pause(_QUIET_SECONDS)

    def _ask(self, scenario: Scenario, count: int) -> None:
        for _ in range(count):
            self._asked += 1
            self._socket.sendall(scenario.request(self._key, self._asked))
            await_answer(self._socket, self._settle)
            take_answer(self._socket, scenario.name)


def count(tree: Path, behind: targets.Provider, rounds: int) -> list[Counts]:
    """Run the gateway of a source tree, and count."""
    everywhere = frozenset(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory(prefix="farebox-bench-") as name:
        directory = Path(name)
        callgrind = Callgrind(directory)
        command = (*callgrind.command(), sys.executable, "-P", str(_CLOCK))
        variables = {"PYTHONPATH": str(tree), "PYTHONHASHSEED": "0"}
        with targets.farebox(
            behind,
            directory,
            Cores(everywhere, everywhere),
            command=command,
            variables=variables,
        ) as target:
            counted = Counted(target, callgrind)
            with counted.standing_still():
                return [counted.round() for _ in range(rounds)]


@contextlib.contextmanager
def checked_out(ref: str) -> Iterator[Path]:
    """The tree of a commit, compiled, for as long as it is needed."""
    with tempfile.TemporaryDirectory(prefix="farebox-bench-") as name:
        tree = Path(name) / "tree"
        _git("worktree", "add", "--detach", "--quiet", str(tree), ref)
        try:
            compile_all = [sys.executable, "-m", "compileall", "-q", str(tree)]
            subprocess.run(compile_all, capture_output=True, check=False)
            yield tree
        finally:
            _git("worktree", "remove", "--force", str(tree))


def last_accepted() -> str:
    """The release before this commit, or else the commit that was accepted last."""
    try:
        return _git("describe", "--tags", "--abbrev=0", "HEAD^")
    except CannotCompare:
        return str(json.loads(_BASELINE.read_text())["commit"])


def accept(here: Sequence[Figure]) -> None:
    """Let later commits be compared with this one."""
    content = {
        "commit": _git("rev-parse", "HEAD"),
        "interpreter": sys.version,
        "instructions": {figure.name: round(figure.instructions) for figure in here},
    }
    _BASELINE.write_text(json.dumps(content, indent=2) + "\n")


def _git(*arguments: str) -> str:
    done = subprocess.run(
        [program("git"), *arguments], cwd=_ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise CannotCompare(f"git {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout.strip()


def compare(
    count_both: Callable[[], tuple[Sequence[Counts], Sequence[Counts]]],
) -> list[Comparison]:
    """This commit and the other one. What seems to be beyond the band is counted once more, as
    what disturbs only ever adds."""
    here, there = count_both()
    compared = _compared(here, there)
    if any(comparison.exceeded for comparison in compared):
        more_here, more_there = count_both()
        compared = _compared([*here, *more_here], [*there, *more_there])
    return compared


def _compared(here: Sequence[Counts], there: Sequence[Counts]) -> list[Comparison]:
    return [Comparison(*pair) for pair in zip(least(here), least(there), strict=True)]


def _count_both(ref: str, rounds: int) -> tuple[Sequence[Counts], Sequence[Counts]]:
    program("valgrind")
    with (
        checked_out(ref) as tree,
        targets.provider(Cores.of_this_machine()) as provider,
        ThreadPoolExecutor() as both,
    ):
        here, there = both.map(lambda of: count(of, provider, rounds), (_ROOT, tree))
        return here, there


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.instructions")
    parser.add_argument("--against", metavar="REF", help="default: the last release")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--accept", action="store_true", help="compare later commits with this one")
    options = parser.parse_args()
    begun = time.monotonic()
    try:
        ref = options.against or last_accepted()
        compared = compare(partial(_count_both, ref, options.rounds))
    except (CannotCompare, CannotCount) as error:
        print(f"nothing to compare: {error}", file=sys.stderr)
        return _NOTHING_TO_COMPARE
    except (LoadFailed, OSError, targets.TargetFailed) as error:
        print(f"stopped: {error}", file=sys.stderr)
        return 1
    print(f"{'instructions of':42} {'here':>12} {ref[:12]:>12} {'more':>9} {'spread':>11} {'':>8}")
    for comparison in compared:
        print(comparison)
    print(f"{time.monotonic() - begun:.0f} s")
    if options.accept:
        accept([comparison.here for comparison in compared])
        return 0
    return 1 if any(comparison.exceeded for comparison in compared) else 0


if __name__ == "__main__":
    processes.end_what_was_started_on_sigterm()
    sys.exit(main())
