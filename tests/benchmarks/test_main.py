"""A benchmark that is ended leaves nothing behind that it has started."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from benchmarks import processes


def test_what_a_benchmark_has_started_ends_with_it() -> None:
    command = ("-m", "benchmarks", "--quick", "--parts", "plain,latency", "--targets", "direct")
    with subprocess.Popen(
        [sys.executable, *command], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as bench:
        assert bench.stderr is not None
        assert "plain" in bench.stderr.readline(), "the first figure, while others are measured"
        started = [pid for pid in processes.tree(bench.pid) if pid != bench.pid]
        assert started, "a provider at least"
        bench.terminate()
    assert not [pid for pid in started if Path(f"/proc/{pid}").exists()]
