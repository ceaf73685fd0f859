"""What the kernel says about processes is what they did."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks import processes

_SPIN = """
import sys, threading, time
def spin():
    while time.thread_time() < 0.05:
        pass
spin()
thread = threading.Thread(target=spin)
thread.start()
thread.join()
print(time.process_time(), flush=True)
sys.stdin.read()
"""


def test_processor_time_counts_threads_that_have_ended() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _SPIN], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        said = float(child.stdout.readline())
        seen = processes.cpu_seconds([child.pid])
        assert child.stdin is not None
        child.stdin.close()
    assert said > 0.1
    assert said <= seen < said + 0.05


def test_processor_time_is_finer_than_a_tick() -> None:
    before = processes.cpu_seconds([os.getpid()])
    busy_until = time.process_time() + 0.001
    while time.process_time() < busy_until:
        pass
    assert processes.cpu_seconds([os.getpid()]) - before >= 0.001


def test_a_process_that_is_gone_has_used_nothing() -> None:
    assert processes.cpu_seconds([_gone()]) == 0.0


def test_who_stands_still_uses_no_time_until_that_is_over() -> None:
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as child:
        try:
            processes.stand_still([child.pid, _gone()])
            _until(lambda: _state(child.pid) == "T")
            before = processes.cpu_seconds([child.pid])
            processes.pause(0.1)
            assert processes.cpu_seconds([child.pid]) == before
            processes.go_on([child.pid, _gone()])
            _until(lambda: processes.cpu_seconds([child.pid]) > before)
        finally:
            child.kill()


def _gone() -> int:
    """The number of a process that has ended."""
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def _until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not is_so():
        assert time.monotonic() < deadline, "never"
        processes.pause(0.01)


def test_memory_is_remembered_at_its_peak_until_told_to_forget() -> None:
    me, much = [os.getpid()], 64 << 20
    before = processes.resident_bytes(me)
    held = bytearray(b"x") * much
    del held
    assert processes.peak_bytes(me) > before + much * 0.9
    processes.forget_peak(me)
    assert processes.peak_bytes(me) < before + much * 0.5
