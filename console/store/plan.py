"""Requests for another tier, in Postgres."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from psycopg import errors
from psycopg.rows import class_row

from console.store import Connection
from console.store.people import CALLED

State = Literal["open", "granted", "declined", "withdrawn"]

_ASK = """
INSERT INTO console.plan_request (account_id, tier, note, asked_by, asked_at)
VALUES (%(account_id)s, %(tier)s, %(note)s, %(asked_by)s, %(now)s) RETURNING request_id
"""
_REQUESTS = f"""
SELECT r.request_id, r.account_id, a.name AS account, a.tier AS present_tier, r.tier, r.note,
       {CALLED} AS asked_by, r.asked_at, r.state, r.decided_at, r.reply
  FROM console.plan_request r
  JOIN directory.account a USING (account_id)
  JOIN console.user u ON u.user_id = r.asked_by
"""  # noqa: S608
_DECIDE = """
UPDATE console.plan_request
   SET state = %(state)s, decided_by = %(by)s, decided_at = %(now)s, reply = %(reply)s
 WHERE request_id = %(request_id)s AND state = 'open'
"""


@dataclass(frozen=True, slots=True)
class PlanRequest:
    """Somebody's wish that their account were in another tier."""

    request_id: int
    account_id: int
    account: str
    present_tier: str
    tier: str
    note: str
    asked_by: str
    asked_at: datetime
    state: State
    decided_at: datetime | None
    reply: str


def ask(
    connection: Connection, account_id: int, tier: str, note: str, asked_by: int, now: datetime
) -> int | None:
    """A new request; None where one is open already."""
    asked = {
        "account_id": account_id,
        "tier": tier,
        "note": note,
        "asked_by": asked_by,
        "now": now,
    }
    try:
        with connection.transaction():
            ((request_id,),) = connection.execute(_ASK, asked).fetchall()
    except errors.UniqueViolation:
        return None
    return int(request_id)


def of_account(connection: Connection, account_id: int, limit: int) -> list[PlanRequest]:
    """An account's requests, newest first."""
    cursor = connection.cursor(row_factory=class_row(PlanRequest))
    statement = _REQUESTS + " WHERE r.account_id = %s ORDER BY r.request_id DESC LIMIT %s"
    return cursor.execute(statement, [account_id, limit]).fetchall()


def all_open(connection: Connection) -> list[PlanRequest]:
    """What waits for the operator, oldest first."""
    cursor = connection.cursor(row_factory=class_row(PlanRequest))
    return cursor.execute(_REQUESTS + " WHERE r.state = 'open' ORDER BY r.request_id").fetchall()


def find(connection: Connection, request_id: int) -> PlanRequest | None:
    """One request, of whichever account."""
    cursor = connection.cursor(row_factory=class_row(PlanRequest))
    return cursor.execute(_REQUESTS + " WHERE r.request_id = %s", [request_id]).fetchone()


def decide(
    connection: Connection, request_id: int, state: State, by: int, reply: str, now: datetime
) -> bool:
    """End a request; False where it is not open any more."""
    said = {"request_id": request_id, "state": state, "by": by, "reply": reply, "now": now}
    return connection.execute(_DECIDE, said).rowcount > 0
