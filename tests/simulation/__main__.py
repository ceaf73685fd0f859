"""`make simulate SEEDS=10000`: many seeds over all cores; `make simulate SEED=n` is one, again.

Prints what was simulated and every seed that broke a promise, with the line that repeats it; ends
with 1 if there was one.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from tests.simulation.world import Report, run

REPORTED_MAX = 20  # violations, one line each


@dataclass
class Sum:
    """What many seeds did."""

    seeds: int = 0
    steps: int = 0
    virtual_seconds: float = 0.0
    requests: int = 0
    permitted: int = 0
    settled: int = 0
    lost: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    violated: list[Report] = field(default_factory=list)

    def add(self, report: Report) -> None:
        """One more."""
        self.seeds += 1
        self.steps += report.steps
        self.virtual_seconds += report.virtual_seconds
        self.requests += report.requests
        self.permitted += report.permitted
        self.settled += report.settled
        self.lost += report.lost
        self.faults.update(report.faults)
        if report.violation:
            self.violated.append(report)

    def lines(self, seconds: float) -> Iterator[str]:
        """For people."""
        yield (
            f"{self.seeds} seeds, {self.steps:,} steps, {self.virtual_seconds / 3600:.1f} virtual"
            f" hours in {seconds:.0f} s"
        )
        yield (
            f"{self.requests:,} requests, {self.permitted:,} permitted, {self.settled:,} settled;"
            f" {self.lost:,} events lost with a disk, each of them accounted for"
        )
        faults = ", ".join(f"{name} {count:,}" for name, count in self.faults.most_common())
        yield f"{self.faults.total():,} faults: {faults}"
        yield f"{len(self.violated)} violations"
        for report in self.violated[:REPORTED_MAX]:
            yield f"  seed {report.seed}: {report.violation}"
            yield f"    make simulate SEED={report.seed}"


def simulate(seeds: Iterable[int], processes: int) -> Sum:
    """Run them all."""
    total = Sum()
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        for report in pool.imap_unordered(run, seeds, chunksize=5):
            total.add(report)
            if report.violation:
                sys.stderr.write(f"seed {report.seed}: {report.violation}\n")
    return total


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="make simulate", description=__doc__)
    parser.add_argument("--seeds", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seed", type=int)
    arguments = parser.parse_args()
    began = time.monotonic()
    if arguments.seed is not None:
        total = Sum()
        total.add(run(arguments.seed))
    else:
        seeds = range(arguments.first, arguments.first + arguments.seeds)
        total = simulate(seeds, min(os.cpu_count() or 1, 8))
    for line in total.lines(time.monotonic() - began):
        sys.stdout.write(line + "\n")
    return 1 if total.violated else 0


if __name__ == "__main__":
    sys.exit(main())
