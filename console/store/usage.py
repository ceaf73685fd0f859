"""What was used, in sums: by hour and day, key and model. `console.rollup` keeps them.

Amounts are nano-dollars, moments aware datetimes in UTC. A page asks for the coarsest span that it
can show, so that it reads some hundred rows however many requests there were.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import IntEnum
from typing import Literal

from psycopg.rows import class_row

from console.store import Connection
from ledger.directory import KEY_IS_LIVE
from ledger.usage import Wanted

_HOUR = timedelta(hours=1)
_MICROSECOND = timedelta(microseconds=1)

_SUM_UP = "SELECT console.sum_up_usage(%s)"
_SLICES = """
SELECT s.starts_at, coalesce(m.name, '') AS model, sum(s.requests)::bigint AS requests,
       sum(s.failed)::bigint AS failed,
       sum(s.charge)::bigint AS charge, sum(s.cost)::bigint AS cost,
       sum(s.tok_in)::bigint AS input_tokens, sum(s.tok_cached)::bigint AS cached_input_tokens,
       sum(s.tok_out)::bigint AS output_tokens, sum(s.tok_reason)::bigint AS reasoning_tokens
  FROM console.usage_slice s LEFT JOIN directory.model m USING (model_id)
 WHERE s.account_id = %(account_id)s AND s.span = %(span)s
   AND s.starts_at >= %(since)s AND s.starts_at < %(until)s
   AND (%(key_ids)s::bigint[] IS NULL OR s.key_id = ANY (%(key_ids)s))
   AND (%(project_id)s::bigint IS NULL OR s.key_id = ANY (ARRAY(
         SELECT k.key_id FROM directory.api_key k WHERE k.project_id = %(project_id)s)))
 GROUP BY 1, 2 ORDER BY 1, 2
"""
# Once by time and once by model, rather than by both.
_LATENCIES = """
SELECT l.starts_at, l.model, l.bucket, l.requests
  FROM (SELECT starts_at, model_id, bucket, sum(requests)::bigint AS requests
          FROM console.usage_latency
         WHERE account_id = %(account_id)s AND span = %(span)s
           AND starts_at >= %(since)s AND starts_at < %(until)s
         GROUP BY GROUPING SETS ((starts_at, bucket), (model_id, bucket))) s
 CROSS JOIN LATERAL (
   SELECT s.starts_at, s.bucket, s.requests,
          CASE WHEN s.starts_at IS NULL
               THEN coalesce((SELECT m.name FROM directory.model m
                               WHERE m.model_id = s.model_id), '') END AS model) l
"""
# What is not summed up yet begins with the oldest batch above its holder's mark.
_NOT_SUMMED = """
SELECT min(b.recorded_at) FROM ledger.holder_progress h
  LEFT JOIN console.usage_mark m USING (holder_id)
 CROSS JOIN LATERAL (
   SELECT b.recorded_at FROM ledger.batch b
    WHERE b.holder_id = h.holder_id AND b.last_seq > coalesce(m.seq, 0)
    ORDER BY b.last_seq LIMIT 1) b
 WHERE h.applied_seq > coalesce(m.seq, 0)
"""
_HOURS = """
SELECT s.starts_at FROM console.usage_slice s
 WHERE s.account_id = %(account_id)s AND s.span = 1
   AND s.starts_at > %(since)s - interval '1 hour' AND s.starts_at < %(until)s
   AND (%(key_id)s::bigint IS NULL OR s.key_id = %(key_id)s)
   AND (%(model)s::text IS NULL OR s.model_id = ANY (ARRAY(
         SELECT m.model_id FROM directory.model m WHERE m.name = %(model)s)))
   AND (%(project)s::text IS NULL OR s.key_id = ANY (ARRAY(
         SELECT k.key_id FROM directory.api_key k JOIN directory.project p USING (project_id)
          WHERE p.account_id = %(account_id)s AND p.name = %(project)s)))
   AND (%(project_id)s::bigint IS NULL OR s.key_id = ANY (ARRAY(
         SELECT k.key_id FROM directory.api_key k WHERE k.project_id = %(project_id)s)))
   AND CASE %(outcome)s WHEN 'failed' THEN s.failed + s.attempts
                        WHEN 'cancelled' THEN s.cancelled + s.attempts
                        WHEN 'served' THEN s.requests - s.failed - s.cancelled
                        ELSE 1 END > 0
 GROUP BY 1 ORDER BY 1 DESC LIMIT %(hours)s
"""
_OF_KEYS = """
SELECT k.key_id, coalesce(u.charge, 0)::bigint AS charge,
       coalesce(u.requests, 0)::bigint AS requests,
       u.last_used_at, coalesce(b.spent, 0)::bigint AS budget_spent
  FROM directory.api_key k
  JOIN directory.project p USING (project_id)
  LEFT JOIN ledger.pool b ON b.pool_id = k.budget_pool_id
  LEFT JOIN (SELECT s.key_id, sum(s.charge) FILTER (WHERE s.starts_at >= %(since)s) AS charge,
                    sum(s.requests) FILTER (WHERE s.starts_at >= %(since)s) AS requests,
                    max(s.starts_at) AS last_used_at
               FROM console.usage_slice s
              WHERE s.account_id = %(account_id)s AND s.span = 2
                AND s.key_id = ANY (%(key_ids)s::bigint[]) GROUP BY 1) u USING (key_id)
 WHERE p.account_id = %(account_id)s AND k.key_id = ANY (%(key_ids)s::bigint[])
"""
_OF_PROJECTS = f"""
SELECT p.project_id, p.name AS project, coalesce(b.spent, 0)::bigint AS budget_spent,
       (SELECT count(*) FROM directory.api_key k
          LEFT JOIN directory.api_key m ON m.key_id = k.made_by
         WHERE k.project_id = p.project_id AND {KEY_IS_LIVE})::bigint AS live_keys
  FROM directory.project p LEFT JOIN ledger.pool b ON b.pool_id = p.budget_pool_id
 WHERE p.account_id = %s AND p.deleted_at IS NULL
"""  # noqa: S608
# Whether an account ever had credit, its pool says nearly always; but all may have been taken back.
_KEY_COUNTS = f"""
SELECT (SELECT count(*) FROM directory.project p
          JOIN directory.api_key k USING (project_id)
          LEFT JOIN directory.api_key m ON m.key_id = k.made_by
         WHERE p.account_id = a.account_id AND p.deleted_at IS NULL AND {KEY_IS_LIVE}
       )::bigint AS live,
       (SELECT count(*) FROM directory.project p JOIN directory.api_key k USING (project_id)
         WHERE p.account_id = a.account_id AND k.created_at > now() - interval '1 day'
       )::bigint AS made_today,
       b.funded <> 0 OR b.spent <> 0 OR EXISTS (
         SELECT FROM ledger.transfer t
          WHERE t.account_id = a.account_id AND t.credit_account_id = b.gl_account_id
       ) AS had_credit
  FROM directory.account a JOIN ledger.pool b ON b.pool_id = a.account_id
 WHERE a.name = %s
"""  # noqa: S608
_LIVE_WITH = """
SELECT 1 + count(*) FROM directory.api_key k
 WHERE k.made_by = %s AND k.revoked_at IS NULL AND coalesce(k.expires_at, 'infinity') > now()
"""
_PROJECT_COUNTS = """
SELECT count(*) FILTER (WHERE p.deleted_at IS NULL)::bigint AS present,
       count(*) FILTER (WHERE p.created_at > now() - interval '1 day')::bigint AS made_today
  FROM directory.project p JOIN directory.account a USING (account_id)
 WHERE a.name = %s AND (p.deleted_at IS NULL OR p.created_at > now() - interval '1 day')
"""
_LAST_MINUTE = """
SELECT count(*)::bigint AS requests, coalesce(sum(tok_in + tok_out), 0)::bigint AS tokens
  FROM ledger.usage_event
 WHERE account_id = %s AND recorded_at >= now() - interval '1 minute'
   AND (reserved > 0 OR charge > 0 OR status IN (1, 2, 8, 10))
"""


class Span(IntEnum):
    """How long a slice is."""

    HOUR = 1
    DAY = 2


@dataclass(frozen=True, slots=True)
class Slice:
    """What came together of one model between two moments."""

    starts_at: datetime
    model: str
    requests: int
    failed: int
    charge: int
    cost: int
    input_tokens: int
    cached_input_tokens: int
    output_tokens: int
    reasoning_tokens: int


@dataclass(frozen=True, slots=True)
class Latency:
    """How many answers began so soon; see the migration for buckets. Either of all models between
    two moments, or of one model in the whole time: `starts_at` or `model` is None."""

    starts_at: datetime | None
    model: str | None
    bucket: int
    requests: int


def milliseconds_of(bucket: int) -> float:
    """The longest time to the first byte in a bucket; it begins a sixth below that."""
    return float(2 ** ((bucket + 1) / 4) - 1)


@dataclass(frozen=True, slots=True)
class KeyUse:
    """What a key was used for since some moment; `last_used_at` is the beginning of a day."""

    key_id: int
    charge: int
    requests: int
    last_used_at: datetime | None
    budget_spent: int


@dataclass(frozen=True, slots=True)
class ProjectUse:
    """What was spent of a project's budget, and how many of its keys are served."""

    project_id: int
    project: str
    budget_spent: int
    live_keys: int


@dataclass(frozen=True, slots=True)
class KeyCounts:
    """How many keys of an account are served, and were made within 24 hours, in whatever project;
    and whether it had credit at any time."""

    live: int
    made_today: int
    had_credit: bool


@dataclass(frozen=True, slots=True)
class ProjectCounts:
    """How many projects an account has, and how many it made within 24 hours."""

    present: int
    made_today: int


@dataclass(frozen=True, slots=True)
class Minute:
    """What was posted in the last minute."""

    requests: int
    tokens: int


def sum_up(connection: Connection, batches_max: int) -> int:
    """Take what was posted since the last time into the sums; how many events that were."""
    with connection.transaction():
        connection.execute("SET LOCAL statement_timeout = '60s'")  # nobody waits for it
        ((events,),) = connection.execute(_SUM_UP, [batches_max]).fetchall()
    return int(events)


def slices(
    connection: Connection,
    account_id: int,
    span: Span,
    since: datetime,
    until: datetime,
    key_ids: Sequence[int] | None = None,
    project_id: int | None = None,
) -> list[Slice]:
    """By time and model; of all keys, of some, or of those of a project."""
    cursor = connection.cursor(row_factory=class_row(Slice))
    asked = {
        "account_id": account_id,
        "span": span.value,
        "since": since,
        "until": until,
        "key_ids": None if key_ids is None else list(key_ids),
        "project_id": project_id,
    }
    return cursor.execute(_SLICES, asked).fetchall()


def hours(
    connection: Connection,
    wanted: Wanted,
    outcome: Literal["served", "failed", "cancelled"] | None,
    hours_max: int,
) -> tuple[list[tuple[datetime, datetime]], datetime | None]:
    """Where requests that fit may be found, newest first, as (since, until): what is not summed up
    yet, and the last hours that may have some, those that follow each other as one. And before
    which moment to go on; None where there are no more."""
    until = wanted.until
    if wanted.after is not None:
        until = min(until, wanted.after.recorded_at + _MICROSECOND)
    ((not_summed,),) = connection.execute(_NOT_SUMMED).fetchall()
    found: list[tuple[datetime, datetime]] = []
    if not_summed is not None and not_summed < until:
        begin = max(wanted.since, not_summed.replace(minute=0, second=0, microsecond=0))
        found.append((begin, until))
        until = begin
    asked = {
        "account_id": wanted.account_id,
        "since": wanted.since,
        "until": until,
        "key_id": wanted.key_id,
        "model": wanted.model,
        "project": wanted.project,
        "project_id": wanted.project_id,
        "outcome": outcome,
        "hours": hours_max,
    }
    rows = connection.execute(_HOURS, asked).fetchall()
    for (hour,) in rows:
        begin, end = max(hour, wanted.since), min(hour + _HOUR, until)
        if found and found[-1][0] == end:
            end = found.pop()[1]
        found.append((begin, end))
    return found, found[-1][0] if len(rows) == hours_max else None


def latencies(
    connection: Connection, account_id: int, span: Span, since: datetime, until: datetime
) -> list[Latency]:
    """By time and bucket, and by model and bucket."""
    cursor = connection.cursor(row_factory=class_row(Latency))
    asked = {"account_id": account_id, "span": span.value, "since": since, "until": until}
    return cursor.execute(_LATENCIES, asked).fetchall()


def use_of_keys(
    connection: Connection, account_id: int, since: datetime, key_ids: Sequence[int]
) -> dict[int, KeyUse]:
    """Of these keys of an account, by their ids."""
    cursor = connection.cursor(row_factory=class_row(KeyUse))
    asked = {"account_id": account_id, "since": since, "key_ids": list(key_ids)}
    return {each.key_id: each for each in cursor.execute(_OF_KEYS, asked)}


def use_of_projects(connection: Connection, account_id: int) -> dict[str, ProjectUse]:
    """Of every project of an account, by its name."""
    cursor = connection.cursor(row_factory=class_row(ProjectUse))
    return {each.project: each for each in cursor.execute(_OF_PROJECTS, [account_id])}


def key_counts(connection: Connection, account: str) -> KeyCounts:
    """What decides whether an account may have another key."""
    cursor = connection.cursor(row_factory=class_row(KeyCounts))
    (counts,) = cursor.execute(_KEY_COUNTS, [account]).fetchall()
    return counts


def live_with(connection: Connection, key_id: int) -> int:
    """How many keys are served again when an expired one is: itself, and those that it made."""
    ((keys,),) = connection.execute(_LIVE_WITH, [key_id]).fetchall()
    return int(keys)


def project_counts(connection: Connection, account: str) -> ProjectCounts:
    """What decides whether an account may have another project."""
    cursor = connection.cursor(row_factory=class_row(ProjectCounts))
    (counts,) = cursor.execute(_PROJECT_COUNTS, [account]).fetchall()
    return counts


def last_minute(connection: Connection, account_id: int) -> Minute:
    """What counts against limits per minute, up to a quarter of a second ago."""
    cursor = connection.cursor(row_factory=class_row(Minute))
    (minute,) = cursor.execute(_LAST_MINUTE, [account_id]).fetchall()
    return minute
