"""What is concluded from counts of several processes, and the clock by which they live."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import callgrind, scaling
from benchmarks.callgrind import Callgrind
from benchmarks.scaling import Counts, report
from benchmarks.slow_clock import SlowClock, in_every_python

ROOT = Path(__file__).resolve().parents[2]


def test_the_ledger_counts_where_it_has_no_core_of_its_own() -> None:
    *rows, conclusion = report(Counts(600_000), Counts(500_000, 100_000))
    assert [row.split()[-2:] for row in rows[1:]] == [
        ["600,000", "1.00"],
        ["500,000", "0.83"],
        ["100,000", "0.17"],
    ]
    assert "serve 2.40 times" in conclusion
    assert "2.00 times where two cores are all" in conclusion


def test_what_one_process_has_counted_is_not_anothers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[int, tuple[str, ...]]] = []
    monkeypatch.setattr(Callgrind, "tell", lambda _, pid, *command: told.append((pid, command)))
    for name, count in (("12.1", 5), ("12.2", 7), ("123.1", 100)):
        (tmp_path / f"callgrind.out.{name}").write_text(f"events: Ir\ntotals: {count}\n")
    counter = Callgrind(tmp_path)
    assert counter.total(12) == 12
    assert counter.total(12) == 0  # it is counted once
    assert counter.total(123) == 100
    assert told == [(12, ("dump",)), (12, ("dump",)), (123, ("dump",))]


def test_a_machine_without_valgrind_is_told_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert scaling.main([]) == 3
    assert "valgrind is not installed" in capsys.readouterr().err
    with pytest.raises(callgrind.CannotCount):
        Callgrind(tmp_path).tell(1, "dump")


def test_a_slow_clock_keeps_the_order_and_stretches_the_wait() -> None:
    clock = SlowClock(20)
    now = clock.current_time()
    assert 19.9 < clock.deadline_to_sleep_time(now + 1) <= 20
    assert clock.deadline_to_sleep_time(now - 1) < 0
    assert clock.current_time() >= now


def test_every_python_that_is_started_lives_by_it(tmp_path: Path) -> None:
    """Also one that is started by another."""
    path = os.pathsep.join(map(str, (ROOT, in_every_python(1e6, tmp_path))))
    inner = "import trio; trio.run(trio.sleep, 0); print(trio.run.keywords['clock'].current_time())"
    outer = f"import subprocess, sys; subprocess.run([sys.executable, '-P', '-c', {inner!r}])"
    done = subprocess.run(
        [sys.executable, "-P", "-c", outer],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    assert 0 < float(done.stdout) < time.monotonic() / 1e5
