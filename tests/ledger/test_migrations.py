"""Migrations: each applies, once, whole; history may not change."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import psycopg
import pytest

from farebox.embedded import EmbeddedPostgres
from ledger.directory import Directory
from ledger.migrate import Migration, MigrationError, load, migrate
from tests.fakes.postgres import FAST

MIGRATIONS = load()
DEBIAN_15 = Path("/usr/lib/postgresql/15/bin")


def applied(conninfo: str) -> list[int]:
    with psycopg.connect(conninfo) as connection:
        rows = connection.execute("SELECT version FROM farebox.schema_migrations ORDER BY version")
        return [version for (version,) in rows]


@pytest.mark.parametrize("count", range(1, len(MIGRATIONS) + 1))
def test_each_applies_on_top_of_its_predecessors(empty_database: str, count: int) -> None:
    migrate(empty_database, MIGRATIONS[: count - 1])
    assert migrate(empty_database, MIGRATIONS[:count]) == MIGRATIONS[count - 1 : count]
    assert applied(empty_database) == list(range(1, count + 1))


def test_nothing_is_applied_twice(empty_database: str) -> None:
    assert migrate(empty_database) == MIGRATIONS
    assert migrate(empty_database) == []


def test_four_at_once_apply_each_migration_once(empty_database: str) -> None:
    program = f"from ledger.migrate import migrate; print(len(migrate({empty_database!r})))"
    processes = [
        subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    counts = sorted(int(process.communicate(timeout=60)[0]) for process in processes)
    assert counts == [0, 0, 0, len(MIGRATIONS)]


def test_a_changed_file_is_refused(database: str) -> None:
    changed = [replace(MIGRATIONS[0], script=MIGRATIONS[0].script + b"\n"), *MIGRATIONS[1:]]
    with pytest.raises(MigrationError, match="differs from the one applied"):
        migrate(database, changed)


def test_a_newer_database_is_refused(database: str) -> None:
    with pytest.raises(MigrationError, match="install the version that was used last"):
        migrate(database, MIGRATIONS[:-1])


def test_a_failing_file_leaves_nothing_behind(database: str) -> None:
    broken = Migration(
        len(MIGRATIONS) + 1, "broken", b"CREATE TABLE public.half (x integer); SELECT 1 / 0;"
    )
    with pytest.raises(psycopg.errors.DivisionByZero):
        migrate(database, [*MIGRATIONS, broken])
    assert applied(database) == [m.version for m in MIGRATIONS]
    with psycopg.connect(database) as connection:
        assert connection.execute("SELECT to_regclass('public.half')").fetchone() == (None,)


def test_partitions_lie_ahead_and_are_made_once(database: str) -> None:
    with psycopg.connect(database) as connection:  # one transaction, so one moment

        def made(days: int) -> object:
            (count,) = fetched(connection, f"SELECT ledger.create_partitions({days})")
            return count

        made(7)  # a day may have begun since the database was migrated
        before = partitions(connection)
        (today,) = fetched(connection, "SELECT date_trunc('day', now() AT TIME ZONE 'UTC')")
        assert isinstance(today, datetime)
        ahead = {f"usage_event_{today + timedelta(days):%Y%m%d}" for days in range(8)}
        assert ahead | {"usage_event_default", f"transfer_{today:%Y%m}"} <= before
        assert made(7) == 0
        count = made(8)
        new = partitions(connection) - before
        eighth = today + timedelta(8)
        assert new - {f"transfer_{eighth:%Y%m}"} == {f"usage_event_{eighth:%Y%m%d}"}
        assert count == len(new)


def fetched(connection: psycopg.Connection, statement: str) -> tuple[object, ...]:
    row = connection.execute(statement.encode()).fetchone()
    assert row is not None
    return row


def partitions(connection: psycopg.Connection) -> set[str]:
    rows = connection.execute(
        "SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid"
        " WHERE i.inhparent IN ('ledger.usage_event'::regclass, 'ledger.transfer'::regclass)"
    )
    return {name for (name,) in rows}


def test_a_range_with_rows_in_the_default_partition_is_left_there(database: str) -> None:
    with psycopg.connect(database) as connection:
        connection.execute(
            "INSERT INTO ledger.transfer"
            " (created_at, code, debit_account_id, credit_account_id, amount)"
            " VALUES (now() + interval '100 days', 5, 7, 3, 1)"
        )
        before = connection.execute("SELECT count(*) FROM ledger.transfer_default").fetchone()
        connection.execute("SELECT ledger.create_partitions(130)")
        after = connection.execute("SELECT count(*) FROM ledger.transfer_default").fetchone()
        assert before == after == (1,)


KEY_OF = "SELECT wrapped FROM stored.key_of(%s, %s, %s)"
SECRETS = (b"secret-1", b"secret-2")


@pytest.fixture
def project(database: str) -> int:
    with Directory(database) as directory:
        directory.create_account("a")
        return directory.create_project("a", "p").project_id


def test_a_project_has_one_key_for_each_secret(database: str, project: int) -> None:
    with psycopg.connect(database) as connection:
        for wrapped in (b"first", b"second"):
            for secret in SECRETS:
                found = connection.execute(KEY_OF, [project, secret, secret + wrapped]).fetchall()
                assert found == [(secret + b"first",)]


def test_a_deleted_project_has_no_key_and_gets_none(database: str, project: int) -> None:
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(KEY_OF, [project, SECRETS[0], b"key"])
        with Directory(database) as directory:
            directory.delete_project("a", "p")
        assert connection.execute("SELECT count(*) FROM stored.project_key").fetchone() == (0,)
        assert connection.execute(KEY_OF, [project, SECRETS[0], b"key"]).fetchall() == []
        assert connection.execute(KEY_OF, [project + 1, SECRETS[0], b"key"]).fetchall() == []


def test_no_key_appears_while_its_project_is_deleted(database: str, project: int) -> None:
    with psycopg.connect(database) as deleting, psycopg.connect(database) as asking:
        deleting.execute("UPDATE directory.project SET deleted_at = now()")
        asking.execute("SET lock_timeout = '100ms'")
        with pytest.raises(psycopg.errors.LockNotAvailable):
            asking.execute(KEY_OF, [project, SECRETS[0], b"key"])
        asking.rollback()
        deleting.commit()
        assert asking.execute(KEY_OF, [project, SECRETS[0], b"key"]).fetchall() == []


def test_a_purge_takes_no_more_than_it_may(database: str, project: int) -> None:
    with psycopg.connect(database) as connection:
        connection.execute(
            "INSERT INTO stored.response SELECT %s, 'r' || n, '', 1, now(),"
            " now() + (n - 4) * interval '1 hour', 0, '', '' FROM generate_series(1, 10) AS n",
            [project],
        )
        counts = [connection.execute("SELECT stored.purge(now(), 3)").fetchone() for _ in range(3)]
        assert counts == [(3,), (1,), (0,)]
        connection.execute("UPDATE directory.project SET deleted_at = now()")
        counts = [connection.execute("SELECT stored.purge(now(), 4)").fetchone() for _ in range(3)]
        assert counts == [(4,), (2,), (0,)]


@pytest.mark.skipif(
    not DEBIAN_15.exists() or bool(os.environ.get("FAREBOX_TEST_POSTGRES")),
    reason=f"no second PostgreSQL version at {DEBIAN_15}",
)
def test_the_oldest_supported_server_runs_them(tmp_path: Path) -> None:
    server = EmbeddedPostgres(tmp_path, settings=FAST, binaries=DEBIAN_15)
    try:
        assert migrate(server.start()) == MIGRATIONS
    finally:
        server.stop()
