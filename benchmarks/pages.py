"""How long the console takes for a page of its own, on an account with a million requests.

    python -m benchmarks.pages                   # a million events; two minutes
    python -m benchmarks.pages --events 100000

The console's app on an embedded Postgres, asked in memory: no sockets, no browser. Events are made
by the database and summed up as the console does it; what is measured is a page from its request
to its last byte, the median of several. Exit code 1 where one takes more than 100 ms.
"""

from __future__ import annotations

import argparse
import re
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime

import psycopg
import trio

from console.links import sign_in_link
from console.store import usage
from ledger.directory import Directory
from tests.fakes import history, postgres
from tests.fakes.console import FACTS, PUBLIC_URL, SECRET, Browser, browsing, console
from tests.fakes.console import sandbox_catalogue as catalogue

PROMISED_MS = 100.0

_KEYS, _MODELS = 20, 8
_TIMES = 9
_PAGES = (
    "",
    "/usage",
    "/usage?days=30",
    "/usage?key_id=3",
    "/usage?model=model-3",
    "/usage?outcome=failed",
    "/usage?model=none",
    "/usage?model=model-3&key_id=3&outcome=cancelled",
    "/keys",
    "/keys/3",
    "/models",
    "/billing",
    "/plan",
    "/members",
    "/audit",
    "/integrations",
    "/settings",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a table; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pages")
    parser.add_argument("--events", type=int, default=1_000_000)
    events = parser.parse_args(arguments).events
    with _furnished(events) as conninfo:
        slowest = trio.run(_measure, conninfo)
    return 0 if slowest <= PROMISED_MS else 1


@contextmanager
def _furnished(events: int) -> Iterator[str]:
    """A database with an account that has asked so often."""
    with postgres.serve() as server, server.database() as conninfo:
        with Directory(conninfo, secret=SECRET) as directory:
            directory.create_account("acme", credit=500 * 10**9)
            directory.create_project("acme", "web")
            keys = [directory.create_key("acme", "web", f"key {n}")[0] for n in range(_KEYS)]
            names = [f"model-{n}" for n in range(_MODELS)]
            directory.register_catalogue(names, ["openai"], [])
        with psycopg.connect(conninfo, autocommit=True) as connection:
            models = list(range(1, _MODELS + 1))
            history.fill(connection, 1, [key.key_id for key in keys], models, events)
            started = time.perf_counter()
            while usage.sum_up(connection, 200):
                pass
            seconds = time.perf_counter() - started
            sys.stdout.write(f"{events:,} events, summed up at {events / seconds:,.0f} a second\n")
            connection.execute("VACUUM ANALYZE")
        yield conninfo


async def _measure(conninfo: str) -> float:
    server = replace(FACTS, catalogue=catalogue())
    slowest = 0.0
    async with browsing(console(conninfo, server=server)) as browser:
        link = sign_in_link(conninfo, PUBLIC_URL, datetime.now(UTC))
        await browser.post(link.removeprefix(PUBLIC_URL))
        for path in [*_PAGES, *await _found(browser)]:
            milliseconds = await _timed(browser, f"/console/acme{path}")
            middle = statistics.median(milliseconds)
            slowest = max(slowest, middle)
            mark = " !" if middle > PROMISED_MS else ""
            sys.stdout.write(f"{middle:8.1f} ms  {max(milliseconds):8.1f}  {path or '/'}{mark}\n")
    return slowest


async def _found(browser: Browser) -> list[str]:
    """A request, and the second page of all."""
    text = (await browser.get("/console/acme/usage")).text
    links = re.findall(r'href="/console/acme(/usage[/?][0-9a-zA-Z?=_-]{30,})"', text)
    return [links[0], links[-1]]


async def _timed(browser: Browser, path: str) -> list[float]:
    milliseconds = []
    for _ in range(_TIMES):
        started = time.perf_counter()
        answer = await browser.get(path)
        milliseconds.append((time.perf_counter() - started) * 1000)
        if answer.status_code != 200:
            raise SystemExit(f"{path}: {answer.status_code}")
    return milliseconds


if __name__ == "__main__":
    sys.exit(main())
