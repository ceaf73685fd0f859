"""The console's database: from threads, once at most, and plainly away when it is away."""

from __future__ import annotations

import threading

import psycopg
import pytest
import trio
from psycopg import errors, sql

from console.context import Database
from console.errors import DatabaseUnavailable
from ledger.connection import Connections


def own_pid(connection: psycopg.Connection) -> int:
    return connection.info.backend_pid


def end(conninfo: str, pid: int) -> None:
    """Have the server end a connection, and wait until it has."""
    with psycopg.connect(conninfo, autocommit=True) as other:
        other.execute("SELECT pg_terminate_backend(%s, 10000)", [pid])


async def test_a_connection_waits_for_the_next_call(database: str) -> None:
    connections = Database(database)
    first = await connections.run(own_pid)
    assert await connections.run(own_pid) == first
    connections.close()


async def test_times_come_in_utc_whatever_zone_the_server_is_set_to(database: str) -> None:
    """Pages print them as they come, and say that they are in UTC."""
    with psycopg.connect(database, autocommit=True) as connection:
        name = sql.Identifier(connection.info.dbname)
        zoned = sql.SQL("ALTER DATABASE {} SET timezone TO 'America/New_York'").format(name)
        connection.execute(zoned)

    def tell(connection: psycopg.Connection) -> object:
        ((moment,),) = connection.execute("SELECT timestamptz '2026-11-21 02:00Z'").fetchall()
        return moment.isoformat()

    with psycopg.connect(database) as connection:
        assert tell(connection) == "2026-11-20T21:00:00-05:00"
    connections = Database(database)
    for _ in range(2):
        assert await connections.run(tell) == "2026-11-21T02:00:00+00:00"
    connections.close()


async def test_a_connection_that_died_while_it_waited_is_passed_over(database: str) -> None:
    connections = Database(database)
    first = await connections.run(own_pid)
    await trio.to_thread.run_sync(end, database, first)
    assert await connections.run(own_pid) != first
    connections.close()


def test_work_is_never_done_twice(database: str) -> None:
    """`run` would do it again on a new connection, which is for work that only looks."""
    connections = Connections(database)
    connections.run_once(own_pid)
    done: list[int] = []

    def work(connection: psycopg.Connection) -> None:
        done.append(own_pid(connection))
        end(database, done[-1])
        connection.execute("SELECT 1")

    with pytest.raises(psycopg.OperationalError):
        connections.run_once(work)
    assert len(done) == 1
    connections.close()


async def test_a_database_that_ends_the_connection_is_away(database: str) -> None:
    connections = Database(database)

    def work(connection: psycopg.Connection) -> None:
        end(database, own_pid(connection))
        connection.execute("SELECT 1")

    with pytest.raises(DatabaseUnavailable) as caught:
        await connections.run(work)
    assert caught.value.status == 503
    assert caught.value.headers["retry-after"] == "1"
    assert await connections.run(own_pid)  # which it is not for ever
    connections.close()


async def test_no_database_is_away() -> None:
    connections = Database("host=127.0.0.1 port=1 connect_timeout=1")
    with pytest.raises(DatabaseUnavailable):
        await connections.run(own_pid)


async def test_what_is_wrong_with_the_statement_is_not_hidden(database: str) -> None:
    connections = Database(database)

    def work(connection: psycopg.Connection) -> None:
        connection.execute("SELECT nothing FROM nowhere")

    with pytest.raises(errors.UndefinedTable):
        await connections.run(work)
    connections.close()


async def test_a_caller_that_leaves_does_not_cut_what_it_began(database: str) -> None:
    connections = Database(database)
    begun, may_end = threading.Event(), threading.Event()
    done: list[int] = []

    def work(connection: psycopg.Connection) -> None:
        begun.set()
        may_end.wait(10)
        done.append(own_pid(connection))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(connections.run, work)
        await trio.to_thread.run_sync(begun.wait, 10)
        nursery.cancel_scope.cancel()
        may_end.set()
    assert done
    connections.close()
