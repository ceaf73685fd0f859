"""The inbox in Postgres: what Stripe said happened, until it has been looked into."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from console.store import Connection

_ADD = """
INSERT INTO console.stripe_event (event_id, type, subject, state, received_at, due_at, outcome)
VALUES (%(event_id)s, %(type)s, %(subject)s,
        CASE %(subject)s WHEN '' THEN 'done' ELSE 'waiting' END, %(now)s, %(now)s,
        CASE %(subject)s WHEN '' THEN 'ignored' ELSE '' END)
ON CONFLICT DO NOTHING
"""
_ADD_MANY = """
INSERT INTO console.stripe_event (event_id, type, subject, received_at, due_at)
SELECT u.event_id, %(type)s, u.subject, %(now)s, %(now)s
  FROM unnest(%(event_ids)s::text[], %(subjects)s::text[]) AS u(event_id, subject)
ON CONFLICT DO NOTHING
"""
# Everything that waits about one subject is claimed at once: one look answers all of it. Whoever
# dies in the middle loses the claim when it is due again.
_CLAIM = """
WITH due AS (
  SELECT subject FROM console.stripe_event
   WHERE state = 'waiting' AND due_at <= %(now)s ORDER BY due_at LIMIT 1
)
UPDATE console.stripe_event e SET tries = e.tries + 1, due_at = %(claimed_until)s
  FROM due WHERE e.subject = due.subject AND e.state = 'waiting' AND e.due_at <= %(now)s
RETURNING e.event_id, e.subject, e.tries, e.received_at
"""


@dataclass(frozen=True, slots=True)
class Claim:
    """Events about one subject, for whoever looks into it. `tries` counts this one; `since` the
    first of them has waited."""

    subject: str
    event_ids: Sequence[str]
    tries: int
    since: datetime


def add(connection: Connection, event_id: str, type_: str, subject: str, now: datetime) -> bool:
    """Keep an event; False where it is here already. One without a subject is done at once."""
    return (
        connection.execute(
            _ADD, {"event_id": event_id, "type": type_, "subject": subject, "now": now}
        ).rowcount
        > 0
    )


def add_many(
    connection: Connection,
    type_: str,
    event_ids: Sequence[str],
    subjects: Sequence[str],
    now: datetime,
) -> int:
    """Keep events that we found out about ourselves; how many are new."""
    return connection.execute(
        _ADD_MANY,
        {"type": type_, "event_ids": list(event_ids), "subjects": list(subjects), "now": now},
    ).rowcount


def claim(connection: Connection, now: datetime, claimed_until: datetime) -> Claim | None:
    """The longest due subject, which is now the caller's until then."""
    rows = connection.execute(_CLAIM, {"now": now, "claimed_until": claimed_until}).fetchall()
    if not rows:
        return None
    return Claim(
        subject=rows[0][1],
        event_ids=[row[0] for row in rows],
        tries=max(row[2] for row in rows),
        since=min(row[3] for row in rows),
    )


def finish(connection: Connection, event_ids: Sequence[str], outcome: str) -> None:
    """They have been looked into."""
    connection.execute(
        "UPDATE console.stripe_event SET state = 'done', outcome = %s WHERE event_id = ANY (%s)",
        [outcome, list(event_ids)],
    )


def postpone(
    connection: Connection, event_ids: Sequence[str], due_at: datetime, outcome: str, *, tried: bool
) -> None:
    """Look again later. Unless they were `tried` nothing has become of this claim."""
    connection.execute(
        "UPDATE console.stripe_event SET due_at = %s, outcome = %s, tries = tries - %s"
        " WHERE event_id = ANY (%s)",
        [due_at, outcome, int(not tried), list(event_ids)],
    )


def park(connection: Connection, event_ids: Sequence[str], outcome: str) -> None:
    """Wait for a person."""
    connection.execute(
        "UPDATE console.stripe_event SET state = 'parked', outcome = %s WHERE event_id = ANY (%s)",
        [outcome, list(event_ids)],
    )


def forget(connection: Connection, received_before: datetime) -> int:
    """Remove what is done and so old that nothing brings it again."""
    return connection.execute(
        "DELETE FROM console.stripe_event WHERE state = 'done' AND received_at < %s",
        [received_before],
    ).rowcount


def claim_comparison(connection: Connection, now: datetime, begun_before: datetime) -> bool:
    """Whether it is time to compare with Stripe's list, and the caller is who does it."""
    return (
        connection.execute(
            "UPDATE console.stripe SET reconciled_at = %s WHERE reconciled_at < %s",
            [now, begun_before],
        ).rowcount
        > 0
    )


def release_comparison(connection: Connection, claimed_at: datetime, due_at: datetime) -> None:
    """It failed: somebody may do it as soon as `due_at` lies an interval back."""
    connection.execute(
        "UPDATE console.stripe SET reconciled_at = %s WHERE reconciled_at = %s",
        [due_at, claimed_at],
    )
