"""Migrations: numbered SQL files, forward only, each applied once and whole.

A file's content is remembered by its hash: an applied file is history and may not change. Several
processes may call `migrate` at once; a session lock lets one work and the others find nothing to
do. The connection must be a direct one, since the lock belongs to its session.

The gateway works as the role `farebox_app` (see `connection`). What a migration makes is its to use
only where the migration says so: functions with `SELECT farebox.secure_functions()` at its end, and
tables of a new schema with `farebox.allow(…)`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psycopg
from psycopg import sql

from ledger.errors import brief

DIRECTORY = Path(__file__).with_name("migrations")

_FILE_NAME = re.compile(r"(\d{4})_([a-z0-9_]+)\.sql", re.ASCII)
_LOCK = 0x6661_7265_626F_78  # "farebox"
_OLDEST_SERVER = 150_000
_CONNECT_SECONDS = 10

_HISTORY = """
CREATE SCHEMA IF NOT EXISTS farebox;
CREATE TABLE IF NOT EXISTS farebox.schema_migrations (
  version    integer     PRIMARY KEY,
  name       text        NOT NULL,
  sha256     text        NOT NULL,
  applied_at timestamptz NOT NULL DEFAULT now()
);
"""


class MigrationError(Exception):
    """The database cannot be brought to this version; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Migration:
    """One file of the history."""

    version: int
    name: str
    script: bytes

    @property
    def sha256(self) -> str:
        """The hash under which it is remembered."""
        return hashlib.sha256(self.script).hexdigest()


def load(directory: Path = DIRECTORY) -> list[Migration]:
    """The migrations in `directory`, numbered from 1 without a gap."""
    found = []
    for path in sorted(directory.glob("*.sql")):
        match = _FILE_NAME.fullmatch(path.name)
        assert match is not None, f"{path.name} is not called 0001_some_name.sql"
        found.append(Migration(int(match[1]), match[2], path.read_bytes()))
    assert [m.version for m in found] == list(range(1, len(found) + 1)), "a number is missing"
    return found


def migrate(conninfo: str, migrations: Sequence[Migration] | None = None) -> list[Migration]:
    """Apply what is missing and return it. Safe to run at every start, and from several processes.

    Raises MigrationError where the database is newer than this code, an applied file was changed,
    or the server is too old or does not answer; then nothing was changed.
    """
    known = load() if migrations is None else list(migrations)
    with _connect(conninfo) as connection:
        if connection.info.server_version < _OLDEST_SERVER:
            raise MigrationError(
                f"PostgreSQL {connection.info.server_version // 10_000} is too old: 15 is needed"
            )
        connection.execute("SELECT pg_advisory_lock(%s)", [_LOCK])
        connection.execute(_HISTORY)
        missing = known[_applied(connection, known) :]
        for migration in missing:
            _apply(connection, migration)
        return missing


def _connect(conninfo: str) -> psycopg.Connection:
    try:
        return psycopg.connect(conninfo, autocommit=True, connect_timeout=_CONNECT_SECONDS)
    except psycopg.Error as error:
        raise MigrationError(
            f"the database does not answer: {brief(error)}; is [database] url right, and does it "
            "run?"
        ) from error


def _applied(connection: psycopg.Connection, known: Sequence[Migration]) -> int:
    """How many of `known` are in the database, after making sure that they are the same ones."""
    rows = connection.execute(
        "SELECT version, name, sha256 FROM farebox.schema_migrations ORDER BY version"
    ).fetchall()
    if len(rows) > len(known):
        raise MigrationError(
            f"the database is at version {len(rows)}, but this Farebox knows only {len(known)}: "
            "install the version that was used last, or a newer one"
        )
    for migration, (version, name, sha256) in zip(known, rows, strict=False):
        if (version, sha256) != (migration.version, migration.sha256):
            raise MigrationError(
                f"migration {migration.version:04d}_{migration.name}.sql differs from the one "
                f"applied to this database ({version:04d}_{name}): restore the file as it was "
                "released; changes belong into a new one"
            )
    return len(rows)


def _apply(connection: psycopg.Connection, migration: Migration) -> None:
    with connection.transaction():
        connection.execute(sql.SQL("SET LOCAL search_path = pg_catalog"))
        connection.execute(migration.script)
        connection.execute(
            "INSERT INTO farebox.schema_migrations (version, name, sha256) VALUES (%s, %s, %s)",
            [migration.version, migration.name, migration.sha256],
        )
