"""The console's SQL, and nothing else: plain functions that are given a connection.

Who calls them decides what belongs into one transaction, and says what time it is.
"""

from __future__ import annotations

import psycopg

Connection = psycopg.Connection
DatabaseError = psycopg.Error


def tell_times_in_utc(connection: Connection) -> None:
    """Have times come in UTC, as pages and documents say, whatever zone the server is set to: of
    one that was set up on somebody's machine, that machine's."""
    if connection.info.parameter_status("TimeZone") != "UTC":
        connection.execute("SET TIME ZONE 'UTC'")
