"""Processes on chosen cores: started, watched, accounted for, and ended by their own id."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_TICK = 1 / os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_STOP_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class Cores:
    """Where things run: the system under test apart from its clients and its provider."""

    under_test: frozenset[int]
    rest: frozenset[int]

    @classmethod
    def of_this_machine(cls) -> Cores:
        """One core each, or one for all where there is no second."""
        first, *others = sorted(os.sched_getaffinity(0))
        return cls(frozenset({first}), frozenset(others[:1] or [first]))


def open_files_max() -> int:
    """How many files a process started here may have open."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def pause(seconds: float) -> None:
    """Wait in a program without an event loop."""
    threading.Event().wait(seconds)


def start(
    command: Sequence[str],
    cores: frozenset[int],
    *,
    log: Path | None = None,
    directory: Path | None = None,
    environ: Mapping[str, str] | None = None,
) -> subprocess.Popen[str]:
    """Start a program on `cores`: into `log`, or with its standard output as a pipe."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(_pinned(cores))
        output = stack.enter_context(log.open("ab")) if log else subprocess.PIPE
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output if log else subprocess.PIPE,
            cwd=directory,
            env=environ,
            text=True,
        )


@contextlib.contextmanager
def _pinned(cores: frozenset[int]) -> Iterator[None]:
    """A child inherits its parent's cores, from its first instruction and in every thread."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def stop(process: subprocess.Popen[str]) -> None:
    """Ask it to end, and insist after a while."""
    process.terminate()
    try:
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for pipe in (process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()


def end_what_was_started_on_sigterm() -> None:
    """Have SIGTERM unwind this program, as Ctrl-C does: it ends its children on the way."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def stand_still(pids: Sequence[int]) -> None:
    """Let none of these run from here on. Those that are gone are passed over."""
    _signal(pids, signal.SIGSTOP)


def go_on(pids: Sequence[int]) -> None:
    """Let them run again."""
    _signal(pids, signal.SIGCONT)


def _signal(pids: Sequence[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def tree(root: int) -> list[int]:
    """A process and all its descendants."""
    found = [root]
    for pid in found:  # grows while it is walked
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{pid}/task").iterdir():
                found += map(int, (task / "children").read_text().split())
    return found


def name(pid: int) -> str:
    """What the kernel calls it; empty if it is gone."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def cpu_seconds(pids: Sequence[int]) -> float:
    """Processor time of all threads of these processes, ended children included.

    A living process's own clock counts nanoseconds; what its ended children used is in ticks.
    """
    total = 0.0
    for pid in pids:
        with contextlib.suppress(OSError):
            total += time.clock_gettime(_clock(pid))
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            total += sum(map(int, fields[13:15])) * _TICK  # cutime cstime
    return total


def _clock(pid: int) -> int:
    """The CPU-time clock of a process, as clock_getcpuclockid(3) would say."""
    return ~pid << 3 | 2


def resident_bytes(pids: Sequence[int]) -> int:
    """Physical memory, shared pages counted in each process."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            total += int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE_BYTES
    return total


def forget_peak(pids: Sequence[int]) -> None:
    """Let `peak_bytes` count from now on."""
    for pid in pids:
        with contextlib.suppress(OSError):
            Path(f"/proc/{pid}/clear_refs").write_text("5")


def peak_bytes(pids: Sequence[int]) -> int:
    """The most physical memory that each has had, added up."""
    return sum(_status_kib(pid, "VmHWM") for pid in pids) * 1024


def _status_kib(pid: int, name: str) -> int:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1])
    return 0


def proportional_bytes(pids: Sequence[int]) -> int:
    """Physical memory, shared pages divided among those who share them (PSS)."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1]) * 1024
    return total
