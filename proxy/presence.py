"""That this process lives, as its database sees it, so that nobody waits for what died with it.

For as long as it lives a process holds an advisory lock of a number of its own, on a connection
that does nothing else. However it ends, the kernel closes that connection, and the database lets
the lock go: within milliseconds where the process was killed, within `_SILENT_SECONDS` or so where
its machine or the network went. Whoever finds a number in a row can ask whether its lock is held.

It is a hint and no proof: the database may restart while we live, and then nobody holds the lock
until we are back. What rests on it may cost an answer, never a customer.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable

import psycopg
import trio

from ledger.connection import connect
from ledger.errors import brief

_RETRY_SECONDS = 0.5
_SILENT_SECONDS = 20  # of a peer that does not even acknowledge that the connection is there
_PROBES = 3

# The server looks after the connection as we do; idle sessions may otherwise be ended.
_HOLD = """
SELECT set_config('tcp_keepalives_idle', %(idle)s, false),
       set_config('tcp_keepalives_interval', %(idle)s, false),
       set_config('tcp_keepalives_count', %(probes)s, false),
       set_config('idle_session_timeout', '0', false),
       pg_advisory_lock(%(number)s)
"""


class Presence:
    """One process. `run` it for as long as the process makes anything."""

    def __init__(self, conninfo: str, log: Callable[[str], object]) -> None:
        self._conninfo = conninfo
        self._log = log
        self._own = secrets.randbits(63)
        self._held = False

    @property
    def number(self) -> int | None:
        """What others can find out by whether we live; None while they cannot."""
        return self._own if self._held else None

    async def run(self) -> None:
        """Hold the lock, and again whenever its connection was lost, until cancelled."""
        while True:
            try:
                await self._hold()
            except psycopg.Error as error:
                self._log(f"the lock of this process: {brief(error)}\n")
            await trio.sleep(_RETRY_SECONDS)

    async def _hold(self) -> None:
        """Hold the lock until the connection ends. Raises psycopg.Error."""
        with await self._connected() as connection:
            self._held = True
            try:
                while True:  # nothing is asked, so what arrives is a notice, or the end
                    await trio.lowlevel.wait_readable(connection.fileno())
                    connection.pgconn.consume_input()
            finally:
                self._held = False

    async def _connected(self) -> psycopg.Connection:
        """A connection that has the lock."""
        abandoned = threading.Event()

        def work() -> psycopg.Connection:
            connection = connect(self._conninfo, limited=True)
            try:
                idle = str(_SILENT_SECONDS // (_PROBES + 1))
                known = {"number": self._own, "idle": idle, "probes": str(_PROBES)}
                connection.execute(_HOLD, known)
            except BaseException:
                connection.close()
                raise
            if abandoned.is_set():
                connection.close()
            return connection

        try:
            return await trio.to_thread.run_sync(work, abandon_on_cancel=True)
        except BaseException:
            abandoned.set()
            raise
