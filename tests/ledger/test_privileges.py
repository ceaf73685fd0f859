"""The role with the least privilege: what it may not do, and who works without it.

That it may do all it must is shown by every other test: they work as this role.
"""

from __future__ import annotations

import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
import trio
from psycopg import errors, sql
from psycopg.conninfo import make_conninfo

from farebox.embedded import EmbeddedPostgres
from ledger import verify
from ledger.connection import connect, remark
from ledger.directory import Directory
from ledger.migrate import migrate
from ledger.postgres import PostgresStore
from tests.fakes.model_holder import ModelHolder
from tests.fakes.postgres import FAST


@pytest.fixture
def ours(database: str) -> Iterator[psycopg.Connection]:
    """A connection as every part of the gateway has it."""
    with connect(database) as connection:
        yield connection


def test_the_gateway_works_as_the_role(database: str, ours: psycopg.Connection) -> None:
    assert ours.execute("SELECT current_user").fetchone() == ("farebox_app",)
    assert remark(database) is None


def test_no_table_of_the_books_can_be_written(ours: psycopg.Connection) -> None:
    rows = ours.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'ledger'")
    names = [name for (name,) in rows]
    assert {"pool", "lease", "holder", "transfer", "transfer_default"} <= set(names)
    for name in names:
        for statement in ("INSERT INTO {} DEFAULT VALUES", "DELETE FROM {}", "TRUNCATE {}"):
            with pytest.raises(errors.InsufficientPrivilege):
                ours.execute(sql.SQL(statement).format(sql.Identifier("ledger", name)))
    held = ours.execute(
        "SELECT t.tablename, p FROM pg_tables t,"
        " unnest(ARRAY['INSERT', 'UPDATE', 'DELETE', 'TRUNCATE', 'TRIGGER']) AS p"
        " WHERE t.schemaname = 'ledger'"
        "   AND (has_table_privilege(format('ledger.%I', t.tablename), p)"
        "        OR has_any_column_privilege(format('ledger.%I', t.tablename), 'INSERT, UPDATE'))"
    )
    assert held.fetchall() == []


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM directory.account",
        "DELETE FROM directory.api_key",
        "UPDATE directory.api_key SET scopes = '{keys}'",
        "UPDATE directory.api_key SET key_hash = sha256('mine')",
        "UPDATE directory.api_key SET made_by = NULL",
        "UPDATE directory.price SET margin_bps = 0",
        "UPDATE directory.change SET version = 0",
        "INSERT INTO directory.budget_pool SELECT * FROM directory.budget_pool",
        "UPDATE stored.project_key SET wrapped = ''",
        "UPDATE console.audit SET actor = ''",
        "DELETE FROM console.audit",
        "SELECT * FROM farebox.schema_migrations",
        "SELECT nextval('ledger.budget_pool_id')",
        "ALTER TABLE ledger.transfer DISABLE TRIGGER transfer_append_only",
        "CREATE TABLE ledger.mine ()",
        "CREATE FUNCTION ledger.mine() RETURNS void LANGUAGE sql AS ''",
    ],
)
def test_nor_anything_else_that_is_not_needed(ours: psycopg.Connection, statement: str) -> None:
    with pytest.raises(errors.InsufficientPrivilege):
        ours.execute(statement.encode())


def test_functions_work_as_their_owner_and_only_for_the_role(database: str) -> None:
    """A migration that adds functions ends with `SELECT farebox.secure_functions()`."""
    query = """
        SELECT p.oid::regprocedure::text FROM pg_proc p
         WHERE p.pronamespace IN ('ledger'::regnamespace, 'directory'::regnamespace,
                                  'console'::regnamespace)
           AND (has_function_privilege('public', p.oid, 'EXECUTE')
                OR NOT has_function_privilege('farebox_app', p.oid, 'EXECUTE')
                OR p.provolatile = 'v' AND NOT (p.prosecdef AND EXISTS (
                     SELECT FROM unnest(p.proconfig) AS setting
                      WHERE setting = 'search_path=pg_catalog, pg_temp')))
    """
    with psycopg.connect(database) as connection:
        assert connection.execute(query.encode()).fetchall() == []


async def use(conninfo: str) -> None:
    """A little of everything that the gateway does."""
    with Directory(conninfo, secret=b"s" * 32) as directory:
        directory.register_catalogue(["m"], ["p"], [])
        account_id = directory.create_account("a", credit=1000).account_id
        directory.create_project("a", "p")
        directory.create_key("a", "p")
    store = PostgresStore(conninfo)
    await store.maintain()
    holder = ModelHolder(store)
    await holder.open()
    await holder.grant(account_id, 500, 500)
    holder.settle(account_id, 110, 100)
    await holder.exchange()
    assert await store.check() == []
    await store.aclose()
    assert not any(result.violations for result in verify.run(conninfo))


async def test_a_user_that_may_not_make_roles_does_the_work_itself(empty_database: str) -> None:
    user = f"tenant_{uuid.uuid4().hex}"  # roles stay on the server
    with psycopg.connect(empty_database, autocommit=True) as connection:
        name = sql.Identifier(user)
        connection.execute(sql.SQL("CREATE ROLE {} LOGIN").format(name))
        connection.execute(
            sql.SQL("ALTER DATABASE {} OWNER TO {}").format(
                sql.Identifier(connection.info.dbname), name
            )
        )
    conninfo = make_conninfo(empty_database, user=user)
    migrate(conninfo)
    with connect(conninfo) as connection:
        assert connection.execute("SELECT current_user").fetchone() == (user,)
    assert "no member of the role farebox_app" in str(remark(conninfo))
    await use(conninfo)


def test_a_database_that_does_not_answer_is_said() -> None:
    assert str(remark("host=/nowhere dbname=x")).startswith("the database does not answer: ")


def test_nothing_is_said_before_the_first_migration(empty_database: str) -> None:
    assert remark(empty_database) is None


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[str]:
    """A server on which nobody has made the role, with users that are no superusers."""
    server = EmbeddedPostgres(tmp_path, settings=FAST)
    try:
        conninfo = server.start()
        with psycopg.connect(conninfo, autocommit=True) as connection:
            connection.execute("CREATE ROLE tenant LOGIN")
            connection.execute("CREATE ROLE hosted LOGIN CREATEROLE")
        yield conninfo
    finally:
        server.stop()


def database_of(server: str, owner: str, name: str) -> str:
    """The conninfo of a new database for its owner."""
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} OWNER {owner}".encode())
    return make_conninfo(server, user=owner, dbname=name)


def test_databases_of_one_server_make_the_role_together(own_server: str) -> None:
    """As a user that may make roles, but is no superuser: the usual one of a hosted server."""
    each = [database_of(own_server, "hosted", f"farebox_{n}") for n in range(4)]
    program = "import sys; from ledger.migrate import migrate; migrate(sys.argv[1])"
    migrations = [subprocess.Popen([sys.executable, "-c", program, one]) for one in each]
    assert [process.wait(timeout=60) for process in migrations] == [0] * len(each)
    for one in each:
        assert remark(one) is None
    trio.run(use, each[0])


def test_the_role_may_come_later(own_server: str) -> None:
    conninfo = database_of(own_server, "tenant", "farebox")
    migrate(conninfo)
    with psycopg.connect(own_server, autocommit=True) as connection:
        connection.execute("CREATE ROLE farebox_app NOLOGIN")
        connection.execute("GRANT farebox_app TO tenant")
    with connect(conninfo) as connection:  # no use of a role that may do nothing here
        assert connection.execute("SELECT current_user").fetchone() == ("tenant",)
    assert remark(conninfo) is not None
    with psycopg.connect(conninfo) as connection:
        connection.execute("SELECT farebox.grant_privileges()")
    assert remark(conninfo) is None
    trio.run(use, conninfo)
