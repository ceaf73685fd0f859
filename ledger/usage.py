"""The usage history: one record per request, as exported and as a receipt.

The books keep one event per attempt; a record sums the attempts of its request and takes the rest
from the last of them. Amounts leave as exact decimal strings, names come from the directory, and
an endpoint is a number to the ledger: callers say what theirs are called.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Literal

import msgspec
import psycopg
from psycopg.rows import TupleRow

from ledger.money import format_usd
from ledger.store import EventStatus

BillingStatus = Literal["charged", "free", "voided"]
Endpoints = Mapping[int, tuple[str, str]]  # number → (surface, endpoint)

_FETCHED_AT_ONCE = 2000
_SERVED = frozenset(
    {EventStatus.SETTLED, EventStatus.ESTIMATED, EventStatus.REVIEW, EventStatus.FREE}
)
# A receipt is looked for around the time in its request id: clocks differ a little, and the
# database may have been away for long.
_RECEIPT_BEFORE = timedelta(minutes=10)
_RECEIPT_AFTER = timedelta(days=3)

_RECORDS = """
SELECT DISTINCT ON (e.request_id)
       e.occurred_at, e.request_id, a.name, coalesce(p.name, ''), e.key_id, e.endpoint,
       coalesce(m.name, ''), coalesce(r.upstream, v.name, ''),
       e.tok_in, e.tok_cached,
       coalesce((e.units ->> 'cache_write')::bigint, 0)
         + coalesce((e.units ->> 'cache_write_1h')::bigint, 0),
       e.tok_out, e.tok_reason, e.status,
       sum(e.cost) OVER request, sum(e.charge) OVER request, e.reserved, e.ttfb_ms, e.duration_ms
  FROM ledger.usage_event e
  JOIN directory.account a ON a.account_id = e.account_id
  LEFT JOIN directory.api_key k ON k.key_id = e.key_id
  LEFT JOIN directory.project p ON p.project_id = k.project_id
  LEFT JOIN directory.model m ON m.model_id = e.model_id
  LEFT JOIN directory.provider v ON v.provider_id = e.provider_id
  LEFT JOIN directory.price r ON r.price_id = e.price_id
 WHERE e.account_id = %(account_id)s
   AND e.recorded_at >= %(since)s AND e.recorded_at < %(until)s
   AND (%(request_id)s::uuid IS NULL OR e.request_id = %(request_id)s)
WINDOW request AS (PARTITION BY e.request_id)
 ORDER BY e.request_id, e.recorded_at DESC, e.seq DESC
"""


class UsageRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One request, in the fields and the order of an export."""

    time: str
    request_id: str
    account: str
    project: str
    key_id: int
    surface: str
    endpoint: str
    model: str
    upstream: str
    input_tokens: int
    cached_input_tokens: int
    cache_write_tokens: int
    output_tokens: int
    reasoning_tokens: int
    status: str
    billing_status: BillingStatus
    cost_usd: str
    charge_usd: str
    reserved_usd: str
    ttfb_ms: int
    duration_ms: int


def billing_status(status: int, charge: int) -> BillingStatus:
    """Whether a request was paid for, served for nothing, or not served."""
    if charge > 0:
        return "charged"
    return "free" if status in _SERVED else "voided"


def export(
    conninfo: str, account_id: int, endpoints: Endpoints, *, since: datetime | None = None
) -> Iterator[UsageRecord]:
    """Every request of an account, oldest first, streamed.

    `since` is compared with the time of posting, not of the request: so an export that begins
    where the last one was made misses nothing that was posted late.
    """
    parameters = {
        "account_id": account_id,
        "since": since or "-infinity",
        "until": "infinity",
        "request_id": None,
    }
    with psycopg.connect(conninfo) as connection, connection.cursor("usage_export") as cursor:
        cursor.itersize = _FETCHED_AT_ONCE
        cursor.execute(_RECORDS, parameters)
        for row in cursor:
            yield _record(row, endpoints)


def receipt(
    conninfo: str, account_id: int, request_id: str, endpoints: Endpoints
) -> UsageRecord | None:
    """The settled charge of one request; None where it is unknown, or not posted yet.

    Raises ValueError where `request_id` is no id of a request.
    """
    request = uuid.UUID(request_id)
    if request.version != 7:
        raise ValueError(f"{request_id!r} is not a request id")
    started_at = datetime.fromtimestamp((request.int >> 80) / 1000, UTC)
    parameters = {
        "account_id": account_id,
        "since": started_at - _RECEIPT_BEFORE,
        "until": started_at + _RECEIPT_AFTER,
        "request_id": request,
    }
    with psycopg.connect(conninfo) as connection:
        row = connection.execute(_RECORDS, parameters).fetchone()
    return None if row is None else _record(row, endpoints)


def _record(row: TupleRow, endpoints: Endpoints) -> UsageRecord:
    occurred_at, request_id, account, project, key_id, endpoint, model, upstream = row[:8]
    tokens_in, cached, cache_write, tokens_out, reasoning = row[8:13]
    status, cost, charge, reserved, ttfb_ms, duration_ms = row[13:]
    surface, operation = endpoints.get(endpoint, ("", ""))
    return UsageRecord(
        time=_timestamp(occurred_at),
        request_id=str(request_id),
        account=account,
        project=project,
        key_id=key_id,
        surface=surface,
        endpoint=operation,
        model=model,
        upstream=upstream,
        input_tokens=tokens_in,
        cached_input_tokens=cached,
        cache_write_tokens=cache_write,
        output_tokens=tokens_out,
        reasoning_tokens=reasoning,
        status=EventStatus(status).name.lower(),
        billing_status=billing_status(status, charge),
        cost_usd=format_usd(int(cost)),
        charge_usd=format_usd(int(charge)),
        reserved_usd=format_usd(reserved),
        ttfb_ms=ttfb_ms,
        duration_ms=duration_ms,
    )


def _timestamp(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
