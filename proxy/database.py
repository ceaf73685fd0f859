"""The keys that seal what is stored: one for each project, kept in Postgres (wrapped)."""

from __future__ import annotations

import psycopg

from proxy.sealing import ProjectKey, Wrapping

_KEY = "SELECT key_id, wrapped FROM stored.key_of(%s, %b, %b)"


def project_key(
    connection: psycopg.Connection, wrapping: Wrapping, project_id: int
) -> tuple[int, ProjectKey] | None:
    """The project's key and its id, made where it has none; None where the project was deleted."""
    new = wrapping.new_key(project_id)
    row = connection.execute(_KEY, [project_id, wrapping.secret_id, new], binary=True).fetchone()
    return None if row is None else (row[0], wrapping.unwrap(row[1], project_id))
