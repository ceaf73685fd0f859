"""Postgres for what a request itself has to wait for: connections that threads share.

The ledger's lanes have connections of their own. Here calls come and go, so a connection waits for
whoever needs one next, and a call that finds it dead is made again on a new one. How many there are
is up to the callers, who limit their threads.

What is stored is sealed with keys of the projects, which are found here as well (`project_key`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

import psycopg

from ledger.connection import connect
from proxy.sealing import ProjectKey, Wrapping

T = TypeVar("T")
Work = Callable[[psycopg.Connection], T]

_KEY = "SELECT key_id, wrapped FROM stored.key_of(%s, %b, %b)"
# SQLSTATEs, by their beginning, of a database that is at fault, not what it was asked: connection,
# read-only, rolled back, out of resources, locked, shut down.
_AWAY_CODES = ("08", "25", "40", "53", "55P03", "57P")


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


def is_away(error: Exception) -> bool:
    """Whether the same statement may succeed later."""
    code = error.sqlstate if isinstance(error, psycopg.Error) else None
    if code is None:
        return isinstance(error, psycopg.OperationalError | psycopg.InterfaceError)
    return code.startswith(_AWAY_CODES)


def project_key(
    connection: psycopg.Connection, wrapping: Wrapping, project_id: int
) -> tuple[int, ProjectKey] | None:
    """The project's key and its id, made where it has none; None where the project was deleted."""
    new = wrapping.new_key(project_id)
    row = connection.execute(_KEY, [project_id, wrapping.secret_id, new], binary=True).fetchone()
    return None if row is None else (row[0], wrapping.unwrap(row[1], project_id))
