"""The usage history: one record per request, as a receipt, in pages, and as an export.

The books keep one event per attempt, all of a request by the same holder and in order, at most as
far apart as the request took. A request's record is the event that *ended* it, with the amounts of
the attempts before it added. It stands where that event was posted (`Position`), which never
changes: so pages that go by it have no record twice and none missing, whatever is posted meanwhile,
and a request that still runs has no record.

What ended a request is told by its reservation, which attempts leave out (`_ENDED`). Only where
nothing was reserved, because the model is free, the last event has to be looked for.

There is no index of request ids. They are UUIDv7s (RFC 9562 §5.7) and so say when to look, by the
clock of the gateway that made them; events are kept by the database's. First the neighbourhood is
searched, then as far as a wrong clock or an outage of the database can have moved them apart.

Amounts leave as exact decimal strings, names come from the directory, and an endpoint is a number
to the ledger: callers say what theirs are called.
"""

from __future__ import annotations

import base64
import binascii
import struct
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal, NamedTuple

import msgspec
import psycopg
from psycopg.sql import SQL

from ledger.connection import connect
from ledger.money import format_usd
from ledger.store import EventStatus

BillingStatus = Literal["charged", "free", "voided"]
Endpoints = Mapping[int, tuple[str, str]]  # number → (surface, endpoint)
Units = Mapping[str, int]

BEGINNING = datetime(2000, 1, 1, tzinfo=UTC)
END = datetime(9999, 1, 1, tzinfo=UTC)

_EXPORTED_AT_ONCE = 10_000
_SERVED = frozenset(
    {EventStatus.SETTLED, EventStatus.ESTIMATED, EventStatus.REVIEW, EventStatus.FREE}
)
_CACHE_WRITES = ("cache_write", "cache_write_1h")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_POSITION = struct.Struct(">qiq")

# Around the time in a request id, first where nearly all are, then as far as requests last, then as
# far as clocks and outages go.
_SEARCHED = (
    (timedelta(minutes=1), timedelta(minutes=2)),
    (timedelta(minutes=10), timedelta(minutes=30)),
    (timedelta(days=1), timedelta(days=3)),
)
_CLOCKS_DIFFER = timedelta(minutes=1)
_ATTEMPTS_BEFORE_MAX = timedelta(days=1)

_ENDED = SQL("""
  (e.reserved > 0 OR e.charge > 0 OR e.status IN (1, 2, 8, 10)
    OR (NOT EXISTS (SELECT FROM directory.price r
                     WHERE r.price_id = e.price_id
                       AND jsonb_path_exists(r.components, '$.* ? (@ > 0)'))
        AND NOT EXISTS (SELECT FROM ledger.usage_event later
                         WHERE later.account_id = e.account_id
                           AND later.recorded_at >= e.recorded_at
                           AND later.recorded_at < e.recorded_at + interval '1 day'
                           AND later.request_id = e.request_id
                           AND later.holder_id = e.holder_id AND later.seq > e.seq)))
""")
# The events are chosen first, by an index scan that ends at the limit; then they get their names.
_NAMED = SQL("""
SELECT e.recorded_at, e.holder_id, e.seq, e.ended, e.occurred_at, e.request_id,
       a.name, coalesce(p.name, ''), e.key_id, e.endpoint,
       coalesce(m.name, ''), coalesce(r.upstream, v.name, ''),
       e.tok_in, e.tok_cached, e.tok_out, e.tok_reason, coalesce(e.units, '{}'),
       e.status, e.cost, e.charge, e.reserved, e.ttfb_ms, e.duration_ms,
       coalesce(r.components, '{}'), coalesce(r.margin_bps, 0)
  FROM chosen e
  JOIN directory.account a ON a.account_id = e.account_id
  LEFT JOIN directory.api_key k ON k.key_id = e.key_id
  LEFT JOIN directory.project p ON p.project_id = k.project_id
  LEFT JOIN directory.model m ON m.model_id = e.model_id
  LEFT JOIN directory.provider v ON v.provider_id = e.provider_id
  LEFT JOIN directory.price r ON r.price_id = e.price_id
""")
_PAGE = SQL("""
WITH chosen AS MATERIALIZED (
  SELECT e.*, true AS ended FROM ledger.usage_event e
   WHERE e.account_id = %(account_id)s
     AND e.recorded_at >= %(since)s AND e.recorded_at < %(until)s
     AND (e.recorded_at, e.holder_id, e.seq) {beyond} (%(at)s, %(holder_id)s, %(seq)s)
     AND (%(key_id)s::bigint IS NULL OR e.key_id = %(key_id)s)
     AND (%(statuses)s::smallint[] IS NULL OR e.status = ANY (%(statuses)s))
     AND (%(model)s::text IS NULL OR e.model_id = ANY (ARRAY(
           SELECT m.model_id FROM directory.model m WHERE m.name = %(model)s)))
     AND (%(project)s::text IS NULL OR e.key_id = ANY (ARRAY(
           SELECT k.key_id FROM directory.api_key k JOIN directory.project p USING (project_id)
            WHERE p.account_id = %(account_id)s AND p.name = %(project)s)))
     AND (%(project_id)s::bigint IS NULL OR e.key_id = ANY (ARRAY(
           SELECT k.key_id FROM directory.api_key k WHERE k.project_id = %(project_id)s)))
     AND {ended}
   ORDER BY e.recorded_at {order}, e.holder_id {order}, e.seq {order}
   LIMIT %(rows)s
)
{named} ORDER BY e.recorded_at {order}, e.holder_id {order}, e.seq {order}
""")
_NEWEST_FIRST = _PAGE.format(beyond=SQL("<"), order=SQL("DESC"), ended=_ENDED, named=_NAMED)
_OLDEST_FIRST = _PAGE.format(beyond=SQL(">"), order=SQL("ASC"), ended=_ENDED, named=_NAMED)
_ATTEMPTED = """
SELECT e.holder_id, e.seq, e.request_id, e.cost FROM ledger.usage_event e
 WHERE e.account_id = %(account_id)s
   AND e.recorded_at >= %(since)s AND e.recorded_at <= %(until)s
   AND e.reserved = 0 AND e.request_id = ANY (%(request_ids)s)
"""
_OF_REQUEST = SQL("""
WITH chosen AS MATERIALIZED (
  SELECT e.*, {ended} AS ended FROM ledger.usage_event e
   WHERE e.account_id = %(account_id)s
     AND e.recorded_at >= %(since)s AND e.recorded_at < %(until)s
     AND e.request_id = %(request_id)s
)
{named} ORDER BY e.recorded_at, e.seq
""").format(ended=_ENDED, named=_NAMED)


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


class Attempt(msgspec.Struct, frozen=True, kw_only=True):
    """One upstream that was tried; of those of a request the last one ended it."""

    time: str
    upstream: str
    status: str
    cost_usd: str
    charge_usd: str
    ttfb_ms: int
    duration_ms: int


class Receipt(msgspec.Struct, frozen=True, kw_only=True):
    """A request's record, the upstreams that were tried for it, and what was bought besides
    tokens with fields of their own: images, searches, audio tokens, by the names of their prices.

    `price` is nano-dollars of provider cost per 1,000,000 units, to which the margin came; `units`
    are the pieces and the two kinds of written cache, which a record has in one figure.
    """

    record: UsageRecord
    attempts: tuple[Attempt, ...]
    pieces: Units
    units: Units = {}
    price: Mapping[str, int] = {}
    margin_bps: int = 0


class Position(NamedTuple):
    """Where a record stands: when its request's end was posted, and by whom as the how manieth."""

    recorded_at: datetime
    holder_id: int
    seq: int

    def encode(self) -> str:
        """An opaque form for callers to hand back."""
        microseconds = (self.recorded_at - _EPOCH) // _MICROSECOND
        packed = _POSITION.pack(microseconds, self.holder_id, self.seq)
        return base64.urlsafe_b64encode(packed).decode().rstrip("=")

    @classmethod
    def decode(cls, text: str) -> Position:
        """The reverse of `encode`. Raises ValueError for what never came from it."""
        try:
            packed = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
            microseconds, holder_id, seq = _POSITION.unpack(packed)
            position = cls(_EPOCH + timedelta(microseconds=microseconds), holder_id, seq)
        except (binascii.Error, struct.error, OverflowError, ValueError) as error:
            raise ValueError(f"{text!r} is no position in the history") from error
        if not BEGINNING <= position.recorded_at < END:
            raise ValueError(f"{text!r} is no position in the history")
        return position


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Which records, and how many at once. Times are those of posting, `until` is excluded.

    `after` is the position of the last record that the caller has. `project` is a name, perhaps of
    several projects one after another, deleted ones too; `project_id` is one of them.
    """

    account_id: int
    limit: int
    after: Position | None = None
    since: datetime = BEGINNING
    until: datetime = END
    model: str | None = None
    key_id: int | None = None
    project: str | None = None
    project_id: int | None = None
    statuses: Sequence[EventStatus] | None = None
    newest_first: bool = True


class Page(NamedTuple):
    """Some records, and the position to go on from; None where there are no more. `last` is the
    position of the last record, if there is one."""

    records: Sequence[UsageRecord]
    next: Position | None
    last: Position | None = None


def billing_status(status: int, charge: int) -> BillingStatus:
    """Whether a request was paid for, served for nothing, or not served."""
    if charge > 0:
        return "charged"
    return "free" if status in _SERVED else "voided"


def parse_request_id(text: str) -> uuid.UUID:
    """Raises ValueError where `text` is no id of a request."""
    request_id = uuid.UUID(text)
    if request_id.version != 7:
        raise ValueError(f"{text!r} is not a request id")
    return request_id


def find_page(connection: psycopg.Connection, wanted: Wanted, endpoints: Endpoints) -> Page:
    """The next records in order."""
    statement = _NEWEST_FIRST if wanted.newest_first else _OLDEST_FIRST
    rows = connection.execute(statement, _page_parameters(wanted)).fetchall()
    events = [_Event(*row) for row in rows[: wanted.limit]]
    costs = _attempted_costs(connection, wanted.account_id, events) if events else {}
    records = [_record(event, costs.get(event.request_id, 0), endpoints) for event in events]
    last = events[-1].position if events else None
    return Page(records, last if len(rows) > wanted.limit else None, last)


def find_receipt(
    connection: psycopg.Connection, account_id: int, request_id: uuid.UUID, endpoints: Endpoints
) -> Receipt | None:
    """A request's receipt; None where the account has no such request, or it has not ended."""
    started_at = _time_of(request_id)
    for before, after in _SEARCHED:
        parameters = {
            "account_id": account_id,
            "request_id": request_id,
            "since": max(BEGINNING, started_at - before),
            "until": min(END, started_at + after),
        }
        events = [_Event(*row) for row in connection.execute(_OF_REQUEST, parameters)]
        if any(event.ended for event in events):
            return _receipt(events, endpoints)
    return None


def export(
    conninfo: str, account_id: int, endpoints: Endpoints, *, since: datetime | None = None
) -> Iterator[UsageRecord]:
    """Every request of an account, oldest first, a page at a time.

    `since` is compared with the time of posting, not of the request: so an export that begins
    where the last one was made misses nothing that was posted late. All pages are of one moment.
    """
    after: Position | None = None
    with connect(conninfo) as connection:
        connection.autocommit = False
        connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        connection.read_only = True
        while True:
            wanted = Wanted(
                account_id=account_id,
                limit=_EXPORTED_AT_ONCE,
                after=after,
                since=since or BEGINNING,
                newest_first=False,
            )
            records, after, _ = find_page(connection, wanted, endpoints)
            yield from records
            if after is None:
                return


class _Event(NamedTuple):
    """A row of what was chosen."""

    recorded_at: datetime
    holder_id: int
    seq: int
    ended: bool
    occurred_at: datetime
    request_id: uuid.UUID
    account: str
    project: str
    key_id: int
    endpoint: int
    model: str
    upstream: str
    input_tokens: int
    cached_input_tokens: int
    output_tokens: int
    reasoning_tokens: int
    units: Units
    status: int
    cost: int
    charge: int
    reserved: int
    ttfb_ms: int
    duration_ms: int
    components: Mapping[str, int]
    margin_bps: int

    @property
    def position(self) -> Position:
        return Position(self.recorded_at, self.holder_id, self.seq)


def _page_parameters(wanted: Wanted) -> Mapping[str, object]:
    """`since` and `until` are narrowed by the position, so that days beyond it are left out."""
    since, until = wanted.since, wanted.until
    if wanted.newest_first:
        after = wanted.after or Position(END, 0, 0)
        until = min(until, after.recorded_at + _MICROSECOND)
    else:
        after = wanted.after or Position(BEGINNING, 0, 0)
        since = max(since, after.recorded_at)
    return {
        "account_id": wanted.account_id,
        "since": since,
        "until": until,
        "at": after.recorded_at,
        "holder_id": after.holder_id,
        "seq": after.seq,
        "key_id": wanted.key_id,
        "model": wanted.model,
        "project": wanted.project,
        "project_id": wanted.project_id,
        "statuses": None if wanted.statuses is None else [int(each) for each in wanted.statuses],
        "rows": wanted.limit + 1,
    }


def _attempted_costs(
    connection: psycopg.Connection, account_id: int, ended: Sequence[_Event]
) -> Mapping[uuid.UUID, int]:
    """What the attempts before these ends cost; nothing was charged for them."""
    parameters = {
        "account_id": account_id,
        "since": min(map(_attempts_since, ended)),
        "until": max(event.recorded_at for event in ended),
        "request_ids": [event.request_id for event in ended],
    }
    ends = {(event.holder_id, event.seq) for event in ended}
    costs: dict[uuid.UUID, int] = {}
    for holder_id, seq, request_id, cost in connection.execute(_ATTEMPTED, parameters):
        if (holder_id, seq) not in ends:
            costs[request_id] = costs.get(request_id, 0) + cost
    return costs


def _attempts_since(ended: _Event) -> datetime:
    """Before this, no attempt of the request can have been posted, as far as clocks agree."""
    lasted = timedelta(milliseconds=ended.duration_ms)
    started_at = min(_time_of(ended.request_id), ended.recorded_at - lasted)
    return max(started_at - _CLOCKS_DIFFER, ended.recorded_at - _ATTEMPTS_BEFORE_MAX)


def _time_of(request_id: uuid.UUID) -> datetime:
    """The time in a UUIDv7, whatever it says, within the times that there are."""
    milliseconds = request_id.int >> 80
    try:
        return max(BEGINNING, min(END, _EPOCH + timedelta(milliseconds=milliseconds)))
    except OverflowError:
        return END


def _receipt(events: Sequence[_Event], endpoints: Endpoints) -> Receipt:
    ended = next(event for event in reversed(events) if event.ended)
    others = sum(event.cost for event in events if event is not ended)
    return Receipt(
        record=_record(ended, others, endpoints),
        attempts=tuple(map(_attempt, events)),
        pieces={unit: count for unit, count in ended.units.items() if unit not in _CACHE_WRITES},
        units=ended.units,
        price=ended.components,
        margin_bps=ended.margin_bps,
    )


def _attempt(event: _Event) -> Attempt:
    return Attempt(
        time=_timestamp(event.occurred_at),
        upstream=event.upstream,
        status=_status(event),
        cost_usd=format_usd(event.cost),
        charge_usd=format_usd(event.charge),
        ttfb_ms=event.ttfb_ms,
        duration_ms=event.duration_ms,
    )


def _record(event: _Event, attempted_cost: int, endpoints: Endpoints) -> UsageRecord:
    surface, endpoint = endpoints.get(event.endpoint, ("", ""))
    return UsageRecord(
        time=_timestamp(event.occurred_at),
        request_id=str(event.request_id),
        account=event.account,
        project=event.project,
        key_id=event.key_id,
        surface=surface,
        endpoint=endpoint,
        model=event.model,
        upstream=event.upstream,
        input_tokens=event.input_tokens,
        cached_input_tokens=event.cached_input_tokens,
        cache_write_tokens=sum(event.units.get(unit, 0) for unit in _CACHE_WRITES),
        output_tokens=event.output_tokens,
        reasoning_tokens=event.reasoning_tokens,
        status=_status(event),
        billing_status=billing_status(event.status, event.charge),
        cost_usd=format_usd(event.cost + attempted_cost),
        charge_usd=format_usd(event.charge),
        reserved_usd=format_usd(event.reserved),
        ttfb_ms=event.ttfb_ms,
        duration_ms=event.duration_ms,
    )


def _status(event: _Event) -> str:
    return EventStatus(event.status).name.lower()


def _timestamp(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
