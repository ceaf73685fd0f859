"""How the gateway connects to its database: as the role with the least privilege, and not for ever.

After connecting it becomes `farebox_app`, which may read, and call the functions that keep the
books, but write none of their tables (migration 0004). Where the database has no such role, or the
user of the connection is no member of it, that user does the work itself.

`Connections` is for calls that come and go, from threads: a connection waits there for whoever
needs one next. How many there are is up to the callers, who limit their threads. The ledger's lanes
and the directory have connections of their own.
"""

from __future__ import annotations

import select
import threading
from collections.abc import Callable
from typing import TypeVar

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from ledger.errors import brief

T = TypeVar("T")
Work = Callable[[psycopg.Connection], T]

# SQLSTATEs, by their beginning, of a database that is at fault, not what it was asked: connection,
# read-only, rolled back, out of resources, locked, shut down.
_AWAY_CODES = ("08", "25", "40", "53", "55P03", "57P")
_CONNECT_SECONDS = 5
_UNACKNOWLEDGED_MS = 15_000  # after which the kernel gives a dead connection up

# Only where this database has granted the role anything: other databases of the server may have
# made it. Membership without the right to become the role exists since PostgreSQL 16.
_BECOME = """
SELECT set_config('role', r.rolname, false)
  FROM pg_catalog.pg_roles r
  JOIN pg_catalog.pg_namespace n ON n.nspname = 'ledger'
 WHERE r.rolname = 'farebox_app'
   AND has_schema_privilege(r.oid, n.oid, 'USAGE')
   AND pg_has_role(r.oid, CASE WHEN current_setting('server_version_num')::integer < 160000
                               THEN 'MEMBER' ELSE 'SET' END)
"""
TIMELINE = "substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8)"
"""SQL: which history of the database this is; a standby that takes over begins another. It fails on
one that still follows."""
_LIMITS = """
SELECT set_config('lock_timeout', '2s', false),
       set_config('statement_timeout', '10s', false),
       set_config('client_connection_check_interval', '1s', false)
"""


def connect(
    conninfo: str, *, limited: bool = False, connect_seconds: int = _CONNECT_SECONDS
) -> psycopg.Connection:
    """A connection that commits each statement, and tells times in UTC. `limited` is for statements
    that must be short: they give up after 10 seconds, or after 2 without a lock.

    Raises psycopg.Error.
    """
    connection = psycopg.connect(
        make_conninfo(conninfo, **_socket_defaults(conninfo, connect_seconds)),
        autocommit=True,
        prepare_threshold=None,  # poolers that switch sessions lose prepared statements
    )
    try:
        if connection.info.parameter_status("TimeZone") != "UTC":
            connection.execute("SET TIME ZONE 'UTC'")  # in others, year 9999 may have no end
        connection.execute(_BECOME)
        if limited:
            connection.execute(_LIMITS)
    except BaseException:
        connection.close()
        raise
    return connection


def understood(conninfo: str) -> bool:
    """Whether `conninfo` is a URL or a list of settings that Postgres's client can read."""
    try:
        conninfo_to_dict(conninfo)
    except psycopg.ProgrammingError:
        return False
    return True


def remark(conninfo: str) -> str | None:
    """What an operator should know of a database and its user, if anything."""
    try:
        with connect(conninfo) as connection:
            row = connection.execute(
                "SELECT current_user = 'farebox_app' OR to_regnamespace('ledger') IS NULL"
            ).fetchone()
    except psycopg.Error as error:
        return f"the database does not answer: {brief(error)}"
    if row == (True,):
        return None  # also before the first migration, which makes the role
    return (
        "its user has more rights than the gateway needs, because it is no member of the role"
        " farebox_app: see docs/operating.md"
    )


def announce(connection: psycopg.Connection, account_id: int) -> None:
    """Let every gateway know that an account was credited or changed.

    A transaction of its own, after that of the change: the server commits those that notify one
    after the other.
    """
    connection.execute("SELECT pg_notify('ledger_account', %s)", [str(account_id)])


def is_away(error: Exception) -> bool:
    """Whether the same statement may succeed later."""
    code = error.sqlstate if isinstance(error, psycopg.Error) else None
    if code is None:
        return isinstance(error, psycopg.OperationalError | psycopg.InterfaceError)
    return code.startswith(_AWAY_CODES)


class Connections:
    """Connections that wait for the next call, shared by threads."""

    def __init__(self, conninfo: str) -> None:
        self._conninfo = conninfo
        self._lock = threading.Lock()
        self._idle: list[psycopg.Connection] = []
        self._closed = False

    def run(self, work: Work[T]) -> T:
        """Do `work`, which may be done twice: a connection that waited may have died meanwhile."""
        connection = self._take()
        if connection is not None:
            try:
                return self._use(connection, work)
            except (psycopg.OperationalError, psycopg.InterfaceError):
                if not connection.closed or self._closed:
                    raise
        return self._use(self._connect(), work)

    def run_once(self, work: Work[T]) -> T:
        """Do `work` once at most. That a connection died while it waited is seen before."""
        while (connection := self._take()) is not None:
            if not _has_spoken(connection):
                return self._use(connection, work)
            connection.close()
        return self._use(self._connect(), work)

    def close(self) -> None:
        """Let all go; those in use go when they are given back."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def _use(self, connection: psycopg.Connection, work: Work[T]) -> T:
        try:
            return work(connection)
        finally:
            with self._lock:
                keep = not (connection.closed or self._closed)
                if keep:
                    self._idle.append(connection)
            if not keep:
                connection.close()

    def _take(self) -> psycopg.Connection | None:
        with self._lock:
            return self._idle.pop() if self._idle else None

    def _connect(self) -> psycopg.Connection:
        return connect(self._conninfo, limited=True)


def _has_spoken(connection: psycopg.Connection) -> bool:
    """Whether the server said something nobody asked for: practically always its goodbye."""
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN)
    return bool(poll.poll(0))


def _socket_defaults(conninfo: str, connect_seconds: int) -> dict[str, int]:
    """Time limits for a server that has gone silent, where the operator set none.

    The first two are for who waits for an answer, the others for who only listens.
    """
    given = conninfo_to_dict(conninfo)
    wanted = {
        "connect_timeout": connect_seconds,
        "tcp_user_timeout": _UNACKNOWLEDGED_MS,
        "keepalives_idle": 15,
        "keepalives_interval": 5,
        "keepalives_count": 3,
    }
    return {key: value for key, value in wanted.items() if key not in given}
