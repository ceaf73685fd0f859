"""How a process that serves is set: its limit of open files, and when all objects are looked at."""

from __future__ import annotations

import gc
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from farebox import interpreter
from farebox.interpreter import collect_when_idle

HARD = 512
RAISED = f"""
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (64, {HARD}))
from farebox.interpreter import allow_many_files
allow_many_files()
print(*resource.getrlimit(resource.RLIMIT_NOFILE))
"""


def test_as_many_files_may_be_open_as_the_system_allows() -> None:
    program = [sys.executable, "-c", RAISED]
    done = subprocess.run(program, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(HARD), str(HARD)]


MAPS = """\
00400000-0041f000 r--p 00000000 fe:00 21 /usr/bin/python3
Rss:                 124 kB
010ff000-01801000 rw-p 00000000 00:00 0                                  [heap]
Size:               7176 kB
KernelPageSize:        4 kB
Rss:                7000 kB
VmFlags: rd wr
20000000-20800000 rw-p 00000000 00:00 0
Size:               8192 kB
Rss:                  64 kB
30000000-30800000 rw-p 00000000 00:00 0
Rss:                8192 kB
40000000-40800000 rw-s 00000000 00:01 0
Rss:                8192 kB
50000000-50800000 rw-p 00000000 fe:00 35 /a/library.so
Rss:                8192 kB
60000000-60180000 rw-p 00000000 00:00 0
Rss:                1536 kB
7ff000000000-7ff000800000 rw-p 00000000 00:00 0                  [stack]
Rss:                8192 kB
"""


def test_what_is_hardly_used_or_not_ours_gets_no_large_pages() -> None:
    """Nor what holds no whole one; of the others each that lies wholly in it."""
    regions = list(interpreter._used_regions(MAPS))
    assert regions == [range(0x1200000, 0x1800000), range(0x30000000, 0x30800000)]


def _large_pages() -> bool:
    """Whether this system has them, and may be asked for them."""
    enabled = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    release = tuple(map(int, re.findall(r"\d+", platform.release())[:2]))
    return release >= (6, 1) and enabled.exists() and "[never]" not in enabled.read_text()


def test_where_it_is_not_told_what_memory_there_is_nothing_changes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """No /proc, or large pages that nobody shall use."""
    settings = tmp_path / "enabled"
    settings.write_text("always madvise [never]\n")
    for name in ("_LARGE_PAGES", "_MEMORY"):
        with monkeypatch.context() as patched:
            patched.setattr(interpreter, name, tmp_path / "missing")
            assert interpreter.use_large_pages() == 0
    monkeypatch.setattr(interpreter, "_LARGE_PAGES", settings)
    assert interpreter.use_large_pages() == 0


LARGE = """
from farebox.interpreter import use_large_pages
kept = [bytes(400) for _ in range(100_000)]
got = use_large_pages()
lines = open("/proc/self/smaps_rollup").read().splitlines()
print(got, *(line.split()[1] for line in lines if line.startswith("AnonHuge")))
"""


@pytest.mark.skipif(not _large_pages(), reason="a system without them, or older than Linux 6.1")
def test_memory_in_use_is_put_into_large_pages() -> None:
    done = subprocess.run([sys.executable, "-c", LARGE], capture_output=True, text=True, check=True)
    got, kilobytes = map(int, done.stdout.split())
    assert got >= 2 << 20, "fragmented memory has fewer than were asked for"
    assert kilobytes << 10 >= got


async def test_all_objects_are_looked_at_in_a_moment_of_rest(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    pending, busy, looked = 0, True, 0

    def collect() -> None:
        nonlocal pending, looked
        pending, looked = 0, looked + 1

    monkeypatch.setattr(gc, "collect", collect)
    monkeypatch.setattr(gc, "get_count", lambda: (0, 0, pending))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(collect_when_idle, lambda: not busy)
        pending = interpreter._MIDDLE_COLLECTIONS_IDLE
        await trio.sleep(100)
        assert looked == 0, "somebody is served"
        busy = False
        await trio.sleep(100)
        assert looked == 1
        pending = 1
        await trio.sleep(100)
        assert looked == 1, "there is hardly anything new"
        nursery.cancel_scope.cancel()
