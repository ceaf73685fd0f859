"""How the interpreter is set for a process that serves: pauses are kept small and few.

And `allow_many_files`: a connection is a file, of which most systems give a process 1,024 at first,
and more where it asks.

`use_large_pages`: where a request comes alone, others have used the caches since the last one, and
a tenth of its way was looking up where its memory lies.

Two things of Python's own can hold a loop that has something better to do.

*The cyclic collector.* It looks at young objects every 700 allocations, which takes a tenth of a
millisecond, but at *all* that was made since the start when a quarter has been added: some 95 of
them for each open stream, at a microsecond each. With 2,000 streams all of them stood still for
180 ms, with 512 for 45. Nothing of ours needs it: what ends is freed by its reference count, of
which `tests/rules/test_garbage.py` makes sure. So a look at all is made now and then while nobody
is served (`collect_when_idle`), or, where that is never, ten times less often. The young are looked
at in smaller portions instead. A higher first threshold, which is often recommended, only makes
each pause longer: 50,000 objects take 25 ms.

*Threads.* The database's answers are read, and metrics rendered, in threads. Whoever comes back
from a system call, and a request makes a dozen, waits for one that computes, by default for 5 ms
each time.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import re
import resource
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import trio

_YOUNG_OBJECTS = 700
_YOUNG_COLLECTIONS = 3  # before those that survived them are looked at once more
_MIDDLE_COLLECTIONS = 1_000  # before all are, if nobody ever rests
_MIDDLE_COLLECTIONS_IDLE = 100  # else: after some 200,000 requests, or 3,000 streams
_SWITCH_SECONDS = 0.001
_LOOK_SECONDS = 5.0
_MEMORY = Path("/proc/self/smaps")
_LARGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_LARGE_PAGE_BYTES = 2 << 20
_MADV_COLLAPSE = 25  # of Linux 6.1
_REGION = re.compile(
    r"^(?P<begin>[0-9a-f]+)-(?P<end>[0-9a-f]+) rw-p \S+ \S+ 0 *(?:\[heap\])?\n"
    r"(?:\w+: .*\n)*?Rss: +(?P<resident>\d+) kB$",
    re.MULTILINE,
)


def allow_many_files() -> None:
    """Take as many open files as we may have; children inherit that."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # where "no limit" is more than the kernel's
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def settle_in() -> None:
    """Everything is loaded: what there is now lives as long as the process."""
    gc.collect()
    gc.freeze()  # not worth a look at every collection
    gc.set_threshold(_YOUNG_OBJECTS, _YOUNG_COLLECTIONS, _MIDDLE_COLLECTIONS)
    sys.setswitchinterval(_SWITCH_SECONDS)


def use_large_pages() -> int:
    """Have the kernel put what is in memory now into pages of 2 MiB; how many bytes are.

    Of 4 KiB, several hundred are touched by one request, and where each lies is looked up anew if
    others have run meanwhile: on a virtual machine in two tables. Memory that is hardly used stays
    as it is, and so does everything where the system has no such pages, or shall not use them.
    """
    try:
        if "[never]" in _LARGE_PAGES.read_text():
            return 0
        regions = list(_used_regions(_MEMORY.read_text(errors="replace")))
    except OSError:  # another system, or one that does not tell
        return 0
    advise = ctypes.CDLL(None).madvise
    advise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return sum(
        len(region) for region in regions if advise(region.start, len(region), _MADV_COLLAPSE) == 0
    )


def _used_regions(smaps: str) -> Iterator[range]:
    """The addresses of whole large pages in regions of our own that are mostly in memory."""
    for region in _REGION.finditer(smaps):
        begin, end = int(region["begin"], 16), int(region["end"], 16)
        if int(region["resident"]) * 1024 < (end - begin) * 3 // 4:
            continue
        begin = -(-begin // _LARGE_PAGE_BYTES) * _LARGE_PAGE_BYTES
        end = end // _LARGE_PAGE_BYTES * _LARGE_PAGE_BYTES
        if begin < end:
            yield range(begin, end)


async def collect_when_idle(idle: Callable[[], bool]) -> None:
    """Look at all objects while nobody has to wait for it, until cancelled."""
    while True:
        await trio.sleep(_LOOK_SECONDS)
        *_, middle = gc.get_count()
        if middle >= _MIDDLE_COLLECTIONS_IDLE and idle():
            gc.collect()
