"""Accounts that top themselves up, in Postgres: settings, attempts, and who is due.

At most one attempt of an account is open: a unique index says so, whoever asks. An attempt ends in
the transaction that credits its payment, so that nobody finds the one without the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal
from uuid import UUID

from psycopg.rows import class_row

from console.store import Connection

_SETTINGS = """
account_id, enabled, threshold, amount, monthly_cap, failures, not_before, disabled_reason,
capped_at
"""
_FIND = f"SELECT {_SETTINGS} FROM console.recharge WHERE account_id = %s"  # noqa: S608
_SAVE = """
INSERT INTO console.recharge (account_id, enabled, threshold, amount, monthly_cap)
VALUES (%(account_id)s, %(enabled)s, %(threshold)s, %(amount)s, %(monthly_cap)s)
ON CONFLICT (account_id) DO UPDATE SET
  enabled = excluded.enabled, threshold = excluded.threshold, amount = excluded.amount,
  monthly_cap = excluded.monthly_cap, failures = 0, not_before = 'epoch', disabled_reason = '',
  capped_at = 'epoch'
"""
_FALLEN_BELOW = """
SELECT r.account_id FROM console.recharge r JOIN ledger.pool p ON p.pool_id = r.account_id
 WHERE r.enabled AND r.not_before <= %(now)s AND p.available + p.leased < r.threshold
   AND NOT EXISTS (SELECT FROM console.recharge_attempt t
                    WHERE t.account_id = r.account_id AND t.state = 'open')
 ORDER BY r.account_id
"""
_LOCK = f"""
SELECT {_SETTINGS} FROM console.recharge WHERE account_id = %s AND enabled FOR UPDATE
"""  # noqa: S608
_SITUATION = """
SELECT p.available + p.leased AS balance, a.status = 1 AS is_served,
       EXISTS (SELECT FROM console.recharge_attempt t
                WHERE t.account_id = a.account_id AND t.state = 'open') AS is_open,
       coalesce((SELECT sum(y.amount) FROM console.payment y
                  WHERE y.account_id = a.account_id AND y.kind = 'recharge'
                    AND y.state IN ('open', 'processing', 'succeeded')
                    AND y.created_at >= %(month)s), 0)::bigint AS paid_this_month,
       c.customer_id, c.payment_method
  FROM directory.account a
  JOIN ledger.pool p ON p.pool_id = a.account_id
  LEFT JOIN console.stripe_customer c ON c.account_id = a.account_id
 WHERE a.account_id = %(account_id)s
"""
_OPEN = """
INSERT INTO console.recharge_attempt
  (payment_id, account_id, customer_id, payment_method, due_at, created_at)
VALUES (%(payment_id)s, %(account_id)s, %(customer_id)s, %(payment_method)s, %(now)s, %(now)s)
"""
_CLAIM = """
UPDATE console.recharge_attempt t SET tries = t.tries + 1, due_at = %(claimed_until)s
  FROM console.payment y
 WHERE y.payment_id = t.payment_id AND t.payment_id IN (
   SELECT d.payment_id FROM console.recharge_attempt d
    WHERE d.state = 'open' AND d.due_at <= %(now)s
    ORDER BY d.due_at LIMIT %(rows)s FOR UPDATE SKIP LOCKED)
RETURNING t.payment_id, t.account_id, t.customer_id, t.payment_method, y.amount,
          y.payment_intent, t.tries, t.created_at
"""


@dataclass(frozen=True, slots=True)
class RechargeRow:
    """An account's settings, and how its last attempts went."""

    account_id: int
    enabled: bool
    threshold: int
    amount: int
    monthly_cap: int
    failures: int
    not_before: datetime
    disabled_reason: str
    capped_at: datetime


@dataclass(frozen=True, slots=True)
class Situation:
    """What decides whether a recharge is due."""

    balance: int
    is_served: bool
    is_open: bool
    paid_this_month: int
    customer_id: str | None
    payment_method: str | None


@dataclass(frozen=True, slots=True)
class Attempt:
    """A recharge that is under way, and everything that its call says."""

    payment_id: UUID
    account_id: int
    customer_id: str
    payment_method: str
    amount: int
    payment_intent: str | None
    tries: int
    created_at: datetime


def find(connection: Connection, account_id: int) -> RechargeRow | None:
    """The settings, if the account ever had any."""
    with connection.cursor(row_factory=class_row(RechargeRow)) as cursor:
        return cursor.execute(_FIND, [account_id]).fetchone()


def save(
    connection: Connection,
    account_id: int,
    *,
    enabled: bool,
    threshold: int,
    amount: int,
    monthly_cap: int,
) -> None:
    """New settings; earlier failures are forgotten."""
    connection.execute(
        _SAVE,
        {
            "account_id": account_id,
            "enabled": enabled,
            "threshold": threshold,
            "amount": amount,
            "monthly_cap": monthly_cap,
        },
    )
    _ask_below(connection, account_id, threshold if enabled else 0)


def disable(connection: Connection, account_id: int, reason: str) -> bool:
    """Switch it off; whether it was on."""
    changed = connection.execute(
        "UPDATE console.recharge SET enabled = false, disabled_reason = %s"
        " WHERE account_id = %s AND enabled",
        [reason, account_id],
    ).rowcount
    if changed:
        _ask_below(connection, account_id, 0)
    return changed > 0


def _ask_below(connection: Connection, account_id: int, threshold: int) -> None:
    """Have the gateways' exchanges ask for a recharge below this balance."""
    connection.execute("SELECT ledger.set_recharge_below(%s, %s)", [account_id, threshold])


def take_requests(connection: Connection) -> list[int]:
    """The accounts that exchanges found below their threshold since the last call."""
    return [row[0] for row in connection.execute("SELECT ledger.take_recharge_requests()")]


def fallen_below(connection: Connection, now: datetime) -> list[int]:
    """All accounts below their threshold with nothing under way."""
    return [row[0] for row in connection.execute(_FALLEN_BELOW, {"now": now})]


def lock(connection: Connection, account_id: int) -> RechargeRow | None:
    """The settings of an account that may be recharged, until the transaction ends."""
    with connection.cursor(row_factory=class_row(RechargeRow)) as cursor:
        return cursor.execute(_LOCK, [account_id]).fetchone()


def situation(connection: Connection, account_id: int, month: datetime) -> Situation:
    """How things are, in one statement. To be asked after `lock`, which may have waited."""
    with connection.cursor(row_factory=class_row(Situation)) as cursor:
        found = cursor.execute(_SITUATION, {"account_id": account_id, "month": month}).fetchone()
        assert found is not None, "accounts are never deleted"
        return found


def open_attempt(
    connection: Connection,
    payment_id: UUID,
    account_id: int,
    customer_id: str,
    payment_method: str,
    now: datetime,
) -> None:
    """Begin an attempt to make a payment that is open."""
    connection.execute(
        _OPEN,
        {
            "payment_id": payment_id,
            "account_id": account_id,
            "customer_id": customer_id,
            "payment_method": payment_method,
            "now": now,
        },
    )


def claim(
    connection: Connection, now: datetime, claimed_until: datetime, rows: int
) -> Sequence[Attempt]:
    """Attempts that are due, which are the caller's until then. `tries` counts this one."""
    with connection.cursor(row_factory=class_row(Attempt)) as cursor:
        return cursor.execute(
            _CLAIM, {"now": now, "claimed_until": claimed_until, "rows": rows}
        ).fetchall()


def postpone(connection: Connection, payment_id: UUID, due_at: datetime) -> None:
    """Go on later."""
    connection.execute(
        "UPDATE console.recharge_attempt SET due_at = %s WHERE payment_id = %s AND state = 'open'",
        [due_at, payment_id],
    )


def close(
    connection: Connection, payment_id: UUID, state: Literal["succeeded", "failed"]
) -> int | None:
    """End an attempt; its account, or None where it had ended before."""
    row = connection.execute(
        "UPDATE console.recharge_attempt SET state = %s WHERE payment_id = %s AND state = 'open'"
        " RETURNING account_id",
        [state, payment_id],
    ).fetchone()
    return None if row is None else row[0]


def count_failure(connection: Connection, account_id: int) -> int:
    """One more in a row; how many it are."""
    row = connection.execute(
        "UPDATE console.recharge SET failures = failures + 1 WHERE account_id = %s"
        " RETURNING failures",
        [account_id],
    ).fetchone()
    assert row is not None, "settings are never deleted"
    failures = row[0]
    assert isinstance(failures, int)
    return failures


def rest_until(connection: Connection, account_id: int, not_before: datetime) -> None:
    """Try nothing before then."""
    connection.execute(
        "UPDATE console.recharge SET not_before = %s WHERE account_id = %s",
        [not_before, account_id],
    )


def forget_failures(connection: Connection, account_id: int) -> None:
    """A payment succeeded."""
    connection.execute(
        "UPDATE console.recharge SET failures = 0, not_before = 'epoch' WHERE account_id = %s",
        [account_id],
    )


def note_cap(connection: Connection, account_id: int, now: datetime) -> None:
    """Its owner is told of the cap."""
    connection.execute(
        "UPDATE console.recharge SET capped_at = %s WHERE account_id = %s", [now, account_id]
    )
