"""A benchmark that is ended leaves nothing behind that it has started."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import processes


@pytest.mark.parametrize(
    ("module", "options", "figure"),
    [
        ("benchmarks", ("--quick", "--parts", "plain,latency", "--targets", "direct"), "plain"),
        ("benchmarks.ledger", ("--quick", "--parts", "cycle,latency"), "cycle"),
    ],
)
def test_what_a_benchmark_has_started_ends_with_it(
    module: str, options: tuple[str, ...], figure: str
) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", module, *options],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as bench:
        assert bench.stderr is not None
        assert figure in bench.stderr.readline(), "the first figure, while others are measured"
        started = [pid for pid in processes.tree(bench.pid) if pid != bench.pid]
        assert started, "a provider or a database at least"
        bench.terminate()
    assert not [pid for pid in started if Path(f"/proc/{pid}").exists()]
