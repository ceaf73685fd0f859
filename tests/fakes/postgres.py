"""A real Postgres for the tests: one server per session, a fresh migrated database per test.

The server is the embedded one with `fsync` off. `FAREBOX_TEST_POSTGRES` names another folder of
binaries, so that the same tests run on every supported version.
"""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from farebox.embedded import EmbeddedPostgres
from ledger.migrate import migrate

FAST = {
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "autovacuum": "off",
    "shared_buffers": "32MB",
    "max_wal_size": "64MB",
}
_MEMORY = Path("/dev/shm")  # noqa: S108 - a file system, not a file name
_MEMORY_BYTES_MIN = 2 << 30


class TestServer:
    """A running server that copies a migrated template for whoever asks."""

    __test__ = False  # not a test class, whatever its name says

    def __init__(self, conninfo: str) -> None:
        self._conninfo = conninfo
        self._numbers = itertools.count(1)
        self._create("template")
        migrate(make_conninfo(conninfo, dbname="template"))

    @contextmanager
    def database(self) -> Iterator[str]:
        """The conninfo of a fresh migrated database, dropped afterwards."""
        with self._fresh("template") as conninfo:
            yield conninfo

    @contextmanager
    def empty_database(self) -> Iterator[str]:
        """The conninfo of a database in which nothing was migrated."""
        with self._fresh("template1") as conninfo:
            yield conninfo

    @contextmanager
    def _fresh(self, template: str) -> Iterator[str]:
        name = f"test_{next(self._numbers)}"
        self._create(name, template)
        try:
            yield make_conninfo(self._conninfo, dbname=name)
        finally:
            self._execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))

    def _create(self, name: str, template: str = "template1") -> None:
        self._execute(
            sql.SQL("CREATE DATABASE {} TEMPLATE {} STRATEGY file_copy").format(
                sql.Identifier(name), sql.Identifier(template)
            )
        )

    def _execute(self, statement: sql.Composed) -> None:
        with psycopg.connect(self._conninfo, autocommit=True) as connection:
            connection.execute(statement)


@contextmanager
def serve() -> Iterator[TestServer]:
    """A server for the time of the block."""
    chosen = os.environ.get("FAREBOX_TEST_POSTGRES")
    # Copying a template is nearly all writing: 13 ms in memory, up to 400 ms on a busy disk.
    roomy = _MEMORY.is_dir() and shutil.disk_usage(_MEMORY).free >= _MEMORY_BYTES_MIN
    with tempfile.TemporaryDirectory(
        prefix="farebox-tests-", dir=_MEMORY if roomy else None
    ) as folder:
        server = EmbeddedPostgres(
            Path(folder), settings=FAST, binaries=Path(chosen) if chosen else None
        )
        conninfo = server.start()
        try:
            yield TestServer(conninfo)
        finally:
            server.stop()
