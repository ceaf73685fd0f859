"""Which forms were sent, in Postgres: any console may be asked again for what another has done."""

from __future__ import annotations

from datetime import datetime, timedelta

from console.store import Connection

REMEMBERED = timedelta(days=30)
"""Longer than any session lasts: who reloads a page after that has to sign in first."""


def claim(connection: Connection, token_hash: bytes, now: datetime) -> bool:
    """Whether the form with this token is sent for the first time; it is remembered."""
    connection.execute("DELETE FROM console.sent_form WHERE sent_at < %s", [now - REMEMBERED])
    claimed = connection.execute(
        "INSERT INTO console.sent_form (token_hash, sent_at) VALUES (%s, %s)"
        " ON CONFLICT DO NOTHING",
        [token_hash, now],
    )
    return claimed.rowcount > 0


def release(connection: Connection, token_hash: bytes) -> None:
    """Let a form be sent again: it was refused, and nothing was made."""
    connection.execute("DELETE FROM console.sent_form WHERE token_hash = %s", [token_hash])
