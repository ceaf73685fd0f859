"""Years of usage in a moment: events and batches as holders post them, without the money.

`post` is one batch of one holder; `fill` is as many as wanted, spread over days, made by the
database itself. Books filled this way do not balance: mark such tests with `unsound_books`.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

import psycopg

_HOLDER = """
INSERT INTO ledger.holder (journal_id, node_name) VALUES (gen_random_uuid(), %s) RETURNING holder_id
"""
_PROGRESS = "INSERT INTO ledger.holder_progress (holder_id) VALUES (%s)"
_EVENT = """
INSERT INTO ledger.usage_event (
  recorded_at, occurred_at, seq, account_id, key_id, price_id, reserved, cost, charge, holder_id,
  model_id, provider_id, tok_in, tok_cached, tok_out, tok_reason, ttfb_ms, duration_ms, status,
  endpoint, request_id)
VALUES (%(at)s, %(at)s, %(seq)s, %(account_id)s, %(key_id)s, 1, %(reserved)s, %(cost)s, %(charge)s,
  %(holder_id)s, %(model_id)s, 1, %(input_tokens)s, 0, %(output_tokens)s, 0, %(ttfb_ms)s, 100,
  %(status)s, 1, gen_random_uuid())
"""
_BATCH = """
INSERT INTO ledger.batch (holder_id, last_seq, first_seq, recorded_at, events, cost, charge)
VALUES (%s, %s, %s, %s, %s, 0, 0)
"""
_APPLIED = "UPDATE ledger.holder_progress SET applied_seq = %s WHERE holder_id = %s"
# A batch of a hundred each, evenly over the days up to now; ids are UUIDv7 of their moment.
_FILL = """
WITH event AS (
  SELECT n, now() - %(days)s * interval '1 day'
              * (1 - ceil(n / 100.0) / ceil(%(count)s / 100.0)) AS at
    FROM generate_series(1, %(count)s) AS n
), batches AS (
  INSERT INTO ledger.batch (holder_id, last_seq, first_seq, recorded_at, events, cost, charge)
  SELECT %(holder_id)s, max(n), min(n), at, count(*), 0, 0 FROM event GROUP BY at
)
INSERT INTO ledger.usage_event (
  recorded_at, occurred_at, seq, account_id, key_id, price_id, reserved, cost, charge, holder_id,
  model_id, provider_id, tok_in, tok_cached, tok_out, tok_reason, ttfb_ms, duration_ms, status,
  endpoint, request_id)
SELECT at, at, n, %(account_id)s,
       (%(key_ids)s::bigint[])[1 + n %% cardinality(%(key_ids)s::bigint[])],
       1, 2000000, 900000, 1000000, %(holder_id)s,
       (%(model_ids)s::integer[])[1 + (n / 7) %% cardinality(%(model_ids)s::integer[])], 1,
       100 + n %% 900, n %% 50, 20 + n %% 300, 0, 50 + (n %% 2000) * 7919 %% 2000, 300,
       CASE WHEN n %% 97 = 0 THEN 5 ELSE 1 END, 1,
       (lpad(to_hex((extract(epoch FROM at) * 1000)::bigint), 12, '0') || '7'
        || lpad(to_hex(n %% 4096), 3, '0') || '8' || lpad(to_hex(n), 15, '0'))::uuid
  FROM event
"""


# What autovacuum does in time, which is switched off here.
_SUMMARISE = """
SELECT brin_summarize_new_values(i.indexrelid) FROM pg_index i
  JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_am m ON m.oid = c.relam
  JOIN pg_inherits h ON h.inhrelid = i.indrelid
 WHERE m.amname = 'brin' AND h.inhparent = 'ledger.usage_event'::regclass
"""


class Posted(NamedTuple):
    """An event in the fields that sums are made of."""

    at: datetime
    account_id: int
    key_id: int = 1
    model_id: int = 1
    status: int = 1
    reserved: int = 200
    cost: int = 100
    charge: int = 110
    input_tokens: int = 12
    output_tokens: int = 34
    ttfb_ms: int = 20


def holder(connection: psycopg.Connection, node: str = "node") -> int:
    """A holder that has posted nothing yet."""
    row = connection.execute(_HOLDER, [node]).fetchone()
    assert row is not None
    connection.execute(_PROGRESS, row)
    return int(row[0])


def post(
    connection: psycopg.Connection, holder_id: int, first_seq: int, events: Sequence[Posted]
) -> int:
    """One batch, at the moment of its first event. Returns the next sequence number."""
    with connection.transaction():
        at = events[0].at
        for seq, event in enumerate(events, first_seq):
            facts = {**event._asdict(), "at": at, "seq": seq, "holder_id": holder_id}
            connection.execute(_EVENT, facts)
        last_seq = first_seq + len(events) - 1
        connection.execute(_BATCH, [holder_id, last_seq, first_seq, at, len(events)])
        connection.execute(_APPLIED, [last_seq, holder_id])
    return last_seq + 1


def fill(
    connection: psycopg.Connection,
    account_id: int,
    key_ids: Sequence[int],
    model_ids: Sequence[int],
    count: int,
    *,
    days: int = 30,
) -> None:
    """`count` requests of an account over the last `days`, by a holder of their own."""
    holder_id = holder(connection, "filled")
    facts = {
        "account_id": account_id,
        "key_ids": list(key_ids),
        "model_ids": list(model_ids),
        "count": count,
        "days": days,
        "holder_id": holder_id,
    }
    with connection.transaction():
        connection.execute(_FILL, facts)
        connection.execute(_APPLIED, [count, holder_id])
    connection.execute(_SUMMARISE)
    connection.execute("ANALYZE ledger.usage_event")
