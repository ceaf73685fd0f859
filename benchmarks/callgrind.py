"""Programs whose instructions valgrind's callgrind counts, and what it is told meanwhile."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

_TOTALS = re.compile(r"^(?:summary|totals): (\d+)", re.MULTILINE)


class CannotCount(Exception):
    """This machine lacks what it takes; the message says what."""


def program(name: str) -> str:
    """Where it is. Raises CannotCount."""
    found = shutil.which(name)
    if found is None:
        raise CannotCount(f"{name} is not installed")
    return found


class Callgrind:
    """What runs under it, writes what it counted into `directory`."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def command(self, *options: str) -> tuple[str, ...]:
        """What a program is started with. It counts once it is told `instrumentation on`.

        Raises CannotCount.
        """
        written = self._directory / "callgrind.out.%p"
        counting = ("--tool=callgrind", "--instr-atstart=no", "--quiet", *options)
        return (program("valgrind"), *counting, f"--callgrind-out-file={written}")

    def tell(self, pid: int, *command: str) -> None:
        """As of callgrind_control(1): `zero`, `dump`, `instrumentation on`. Raises CannotCount."""
        done = subprocess.run(
            [program("vgdb"), f"--pid={pid}", *command],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise CannotCount(f"callgrind cannot be told anything: {done.stderr.strip()[-300:]}")

    def total(self, pid: int) -> int:
        """What it has executed since `zero`, in all threads."""
        self.tell(pid, "dump")
        total = 0
        for dump in self._directory.glob(f"callgrind.out.{pid}.*"):
            if found := _TOTALS.search(dump.read_text()):
                total += int(found[1])
            dump.unlink()
        return total
