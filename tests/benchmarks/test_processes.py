"""What the kernel says about processes is what they did."""

from __future__ import annotations

import os
import subprocess
import sys
import time

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
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    assert processes.cpu_seconds([child.pid]) == 0.0


def test_memory_is_remembered_at_its_peak_until_told_to_forget() -> None:
    me, much = [os.getpid()], 64 << 20
    before = processes.resident_bytes(me)
    held = bytearray(b"x") * much
    del held
    assert processes.peak_bytes(me) > before + much * 0.9
    processes.forget_peak(me)
    assert processes.peak_bytes(me) < before + much * 0.5
