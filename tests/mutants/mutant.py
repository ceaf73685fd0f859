"""A mutant is the product with one deliberate fault; tests that do not notice it prove nothing.

This file knows how one is made and judged; `faults` lists them, `__main__` runs them all. The work
tree is never touched: a `Laboratory` is a copy of it, and every mutant gets a copy of that, made of
links, in which the faulty file is replaced. The tests of that copy then run in a process of their
own, the quickest first, until one fails. Only a *failing test* counts: a fault that cannot be
imported, or migrated, or that makes everything hang, is a mistake in the table.
"""

from __future__ import annotations

import enum
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TEST_SECONDS = 150.0
STOP_SECONDS = 30.0  # to let go of what the tests have started

_COPIED = ("adapters", "benchmarks", "console", "evals", "farebox", "ledger", "proxy", "tests")
_NOT_COPIED = shutil.ignore_patterns("__pycache__", "node_modules", "golden", "sdk", "results")
_BLOCK = re.compile(r"^(?:CREATE |ALTER |class | *(?:async )?def |[A-Z_]+ =)", re.MULTILINE)
_MEMORY = Path("/dev/shm")  # noqa: S108 - a file system, not a file name
_MEMORY_BYTES_MIN = 3 << 30


@dataclass(frozen=True, slots=True)
class Mutant:
    """One fault: in `file`, `old` becomes `new`.

    `old` occurs once in the file, or once in the function (or class, or statement of a migration)
    whose first line contains `within`. `tests` should notice, the quickest come first.
    """

    name: str
    file: str
    old: str
    new: str
    why: str
    tests: tuple[str, ...]
    within: str = ""


class TableRotten(Exception):
    """The code is not what the table says any more."""


def mutated(mutant: Mutant, source: str) -> str:
    """The faulty file. Raises TableRotten where `old` is not there exactly once."""
    at = position(mutant, source)
    return source[:at] + mutant.new + source[at + len(mutant.old) :]


def position(mutant: Mutant, source: str) -> int:
    """Where the fault is made. Raises TableRotten as `mutated`."""
    begin, end = _span(mutant, source)
    found = source.count(mutant.old, begin, end)
    if found != 1:
        place = f"{mutant.within!r} in {mutant.file}" if mutant.within else mutant.file
        raise TableRotten(f"{mutant.name}: found {found} times in {place}: {mutant.old!r}")
    return source.index(mutant.old, begin, end)


def _span(mutant: Mutant, source: str) -> tuple[int, int]:
    """Where in the file `old` is looked for."""
    if not mutant.within:
        return 0, len(source)
    found = source.count(mutant.within)
    if found != 1:
        raise TableRotten(f"{mutant.name}: {mutant.within!r} is {found} times in {mutant.file}")
    begin = source.index(mutant.within)
    following = _BLOCK.search(source, begin + len(mutant.within))
    return begin, following.start() if following else len(source)


class Verdict(enum.Enum):
    """What became of a mutant."""

    NOTICED = "noticed"
    SURVIVED = "survived"
    BROKEN = "broken"


@dataclass(frozen=True, slots=True)
class Outcome:
    """A verdict with its evidence: the test that failed, or what went wrong."""

    verdict: Verdict
    evidence: str


class Laboratory:
    """A copy of the tree to make mutants from."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._original = folder / "original"
        self._original.mkdir()
        for name in _COPIED:
            shutil.copytree(ROOT / name, self._original / name, ignore=_NOT_COPIED)
        shutil.copy2(ROOT / "pyproject.toml", self._original)

    def examine_original(self, tests: Sequence[str]) -> Outcome:
        """The tests on the code as it is; they have to pass, or no verdict means anything."""
        return _examine(self._original, tests)

    def examine(self, mutant: Mutant) -> Outcome:
        """Make the mutant, let its tests look at it, take it away."""
        copy = self._folder / mutant.name
        shutil.copytree(self._original, copy, copy_function=os.link)
        try:
            faulty = copy / mutant.file
            source = faulty.read_text()
            faulty.unlink()  # a link: the others keep theirs
            faulty.write_text(mutated(mutant, source))
            return _examine(copy, mutant.tests)
        finally:
            shutil.rmtree(copy, ignore_errors=True)


@contextmanager
def laboratory() -> Iterator[Laboratory]:
    """A laboratory for the time of the block; in memory where there is room, since it is copied."""
    roomy = _MEMORY.is_dir() and shutil.disk_usage(_MEMORY).free >= _MEMORY_BYTES_MIN
    with tempfile.TemporaryDirectory(
        prefix="farebox-mutants-", dir=_MEMORY if roomy else None
    ) as folder:
        yield Laboratory(Path(folder))


def _examine(tree: Path, tests: Sequence[str]) -> Outcome:
    """Run tests of the tree until one fails."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "--tb=line", "-rf", "--no-header"]
    command += ["-p", "no:cacheprovider", "-p", "tests.mutants.hurried", "--hypothesis-seed=1"]
    environ = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST_", "COV_"))}
    environ["PYTHONPATH"] = str(tree)  # before the checkout, also in what the tests start
    process = subprocess.Popen(
        [*command, *tests],
        cwd=tree,
        env=environ,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        output, _ = process.communicate(timeout=TEST_SECONDS)
    except subprocess.TimeoutExpired:
        return Outcome(Verdict.BROKEN, f"not done in {TEST_SECONDS:.0f} s\n{_stop(process)}")
    return _judge(process.returncode, output)


def _stop(process: subprocess.Popen[str]) -> str:
    """End it as from the keyboard, so that its servers end too; what it had to say."""
    process.send_signal(signal.SIGINT)
    try:
        output, _ = process.communicate(timeout=STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        output, _ = process.communicate()
    return _tail(output)


def _judge(code: int, output: str) -> Outcome:
    if code == 0:
        return Outcome(Verdict.SURVIVED, "every test passes")
    # Books are audited after a test as well; an error before one says that the fault is no good.
    failed = re.search(r"^FAILED (\S+)|ERROR at teardown of (\S+)", output, re.MULTILINE)
    if code == 1 and failed:
        return Outcome(Verdict.NOTICED, failed[1] or failed[2])
    return Outcome(Verdict.BROKEN, _tail(output))


def _tail(output: str) -> str:
    return "\n".join(output.splitlines()[-25:])
