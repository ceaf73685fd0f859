"""Routes about usage: what was asked of models, what it cost, request by request and in sums.

    GET /accounts/{account}/usage                  the history, newest first, in pages
    GET /accounts/{account}/usage.csv, usage.jsonl the same as a file
    GET /accounts/{account}/usage/{request_id}     one request, and what its charge is made of
    GET /accounts/{account}/spend                  sums by hour or day and model

A page goes by where a record stands in the history, so none is shown twice or left out while more
come. Sums are those of `console.rollup`, a few seconds late. What a provider took is shown to the
operator alone: to everybody else it is the charge that counts.
"""

from __future__ import annotations

import csv
import io
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Annotated, Literal

import msgspec
from fastapi import APIRouter, Depends, Query, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field

from adapters.canonical import Usage
from adapters.pricing import quantities
from adapters.registry import ENDPOINTS
from console.access import Member, Reader, moment
from console.bodies import ID_MAX
from console.catalogue import decimal_text, paid_for
from console.context import Console, ConsoleOf
from console.errors import Refused
from console.store import Connection, usage
from console.store.usage import Slice, Span
from ledger.money import format_usd
from ledger.store import EventStatus
from ledger.usage import (
    BEGINNING,
    END,
    Page,
    Position,
    Receipt,
    UsageRecord,
    Wanted,
    find_page,
    find_receipt,
    parse_request_id,
)

PAGE_RECORDS = 50
PAGE_RECORDS_MAX = 500
SPEND_DAYS_MAX = 400
HOURS_SHOWN_MAX = timedelta(days=8)

_EXPORTED_AT_ONCE = 2_000
_HOURS_AT_ONCE = 100
_NAME_CHARACTERS_MAX = 200
_KEYS_ASKED_MAX = 100

Outcome = Literal["served", "failed", "cancelled"]
_STATUSES: Mapping[Outcome, tuple[EventStatus, ...]] = {
    "served": (
        EventStatus.SETTLED,
        EventStatus.ESTIMATED,
        EventStatus.REVIEW,
        EventStatus.FREE,
    ),
    "failed": (
        EventStatus.FAILED,
        EventStatus.UNKNOWN,
        EventStatus.ORPHANED,
        EventStatus.QUARANTINED,
    ),
    "cancelled": (EventStatus.CANCELLED,),
}
_HIDDEN = frozenset({"cost_usd"})  # from everybody but operators


# -- what is said ---------------------------------------------------------------------------------


class RecordOut(BaseModel):
    """One request. `charge_usd` was taken from the balance; `cost_usd`, what the provider took, is
    null for everybody but operators."""

    time: datetime
    request_id: str
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
    billing_status: Literal["charged", "free", "voided"]
    charge_usd: str
    cost_usd: str | None
    reserved_usd: str
    ttfb_ms: int
    duration_ms: int


class HistoryOut(BaseModel):
    """Requests, newest first. `next` is the `after` of the next page, null on the last."""

    records: list[RecordOut]
    next: str | None


class AttemptOut(BaseModel):
    """An upstream that was tried; the last one ended the request."""

    time: datetime
    upstream: str
    status: str
    ttfb_ms: int
    duration_ms: int


class ItemOut(BaseModel):
    """A part of the charge: so many units at a price each, the operator's margin included."""

    unit: str
    quantity: int
    usd_per_million: str
    usd: str


class ReceiptOut(BaseModel):
    """One request with the upstreams that were tried, and what its charge is made of. The items
    are exact; the charge is their sum, rounded up to a nano-dollar."""

    record: RecordOut
    attempts: list[AttemptOut]
    items: list[ItemOut]


class SpendOut(BaseModel):
    """What came together of one model in an hour or a day."""

    starts_at: datetime
    model: str
    requests: int
    failed: int
    charge_usd: str
    input_tokens: int
    cached_input_tokens: int
    output_tokens: int
    reasoning_tokens: int


class SpendsOut(BaseModel):
    """By time and model, oldest first."""

    span: Literal["hour", "day"]
    slices: list[SpendOut]


# -- the history ----------------------------------------------------------------------------------

router = APIRouter(prefix="/accounts/{account}", tags=["usage"])
Name = Annotated[str | None, Query(max_length=_NAME_CHARACTERS_MAX)]
KeyId = Annotated[int | None, Query(ge=0, le=ID_MAX)]


@dataclass(frozen=True, slots=True)
class Filters:
    """Which requests. Times are those of posting, within a second of the answer's end."""

    since: datetime | None = None
    until: datetime | None = None
    model: str | None = None
    project: str | None = None
    key_id: int | None = None
    outcome: Outcome | None = None
    project_id: int | None = None

    @property
    def is_narrow(self) -> bool:
        """Whether most requests may not fit."""
        asked = (self.model, self.project, self.project_id, self.key_id, self.outcome)
        return any(each is not None for each in asked)

    def wanted(self, account_id: int, limit: int, after: Position | None = None) -> Wanted:
        """As the books are asked."""
        return Wanted(
            account_id=account_id,
            limit=limit,
            after=after,
            since=_within(self.since, BEGINNING),
            until=_within(self.until, END),
            model=self.model or None,
            project=self.project or None,
            project_id=self.project_id,
            key_id=self.key_id,
            statuses=_STATUSES[self.outcome] if self.outcome else None,
        )


def filters(
    since: Annotated[datetime | None, Query(description="posted at or after")] = None,
    until: Annotated[datetime | None, Query(description="posted before")] = None,
    model: Name = None,
    project: Name = None,
    key_id: KeyId = None,
    outcome: Annotated[Outcome | None, Query(description="how they ended")] = None,
) -> Filters:
    """Of a query string."""
    for name in (model, project):
        if name is not None and "\0" in name:
            raise Refused(400, "invalid_request", "A name cannot have a NUL in it.")
    return Filters(since, until, model, project, key_id, outcome)


FiltersOf = Annotated[Filters, Depends(filters)]


async def history(
    console: Console, member: Member, wanted: Filters, limit: int, after: Position | None = None
) -> Page:
    """A page of the history."""
    return await console.database.run(
        partial(find, account_id=member.account_id, wanted=wanted, limit=limit, after=after)
    )


def find(
    connection: Connection,
    account_id: int,
    wanted: Filters,
    limit: int,
    after: Position | None = None,
) -> Page:
    """A page of an account's history."""
    asked = wanted.wanted(account_id, limit, after)
    if wanted.is_narrow:
        return narrow_page(connection, asked, wanted.outcome)
    return find_page(connection, asked, ENDPOINTS)


def narrow_page(
    connection: Connection,
    wanted: Wanted,
    outcome: Outcome | None,
    hours_at_once: int = _HOURS_AT_ONCE,
) -> Page:
    """A page of what fits filters that few requests may fit: the sums tell the hours to look at,
    so that a million others are not."""
    records: list[UsageRecord] = []
    last: Position | None = None
    until: datetime | None = wanted.until
    while until is not None:
        asked = replace(wanted, until=until)
        hours, until = usage.hours(connection, asked, outcome, hours_at_once)
        for begin, end in hours:
            if len(records) == wanted.limit:  # and another hour may have more
                return Page(records, last, last)
            left = wanted.limit - len(records)
            part = replace(wanted, since=begin, until=end, limit=left)
            page = find_page(connection, part, ENDPOINTS)
            records += page.records
            last = page.last or last
            if page.next is not None:
                return Page(records, page.next, last)
    return Page(records, None, last)


@router.get("/usage", summary="What was asked, newest first")
async def list_usage(
    member: Reader,
    wanted: FiltersOf,
    console: ConsoleOf,
    after: Annotated[str | None, Query(max_length=60, description="`next` of a page")] = None,
    limit: Annotated[int, Query(ge=1, le=PAGE_RECORDS_MAX)] = PAGE_RECORDS,
) -> HistoryOut:
    """One record for each request, in pages."""
    page = await history(console, member, wanted, limit, position_of(after))
    return HistoryOut(
        records=[record_out(record, member) for record in page.records],
        next=page.next.encode() if page.next else None,
    )


@router.get("/usage.csv", summary="The history as CSV", response_class=Response)
async def export_csv(member: Reader, wanted: FiltersOf, console: ConsoleOf) -> Response:
    """Every request that fits the filters, newest first, as a file."""
    return _file(console, member, wanted, "csv", _csv)


@router.get("/usage.jsonl", summary="The history as JSON lines", response_class=Response)
async def export_jsonl(member: Reader, wanted: FiltersOf, console: ConsoleOf) -> Response:
    """Every request that fits the filters, newest first, as a file."""
    return _file(console, member, wanted, "jsonl", _jsonl)


def position_of(text: str | None) -> Position | None:
    """Where the next page begins."""
    if text is None:
        return None
    try:
        return Position.decode(text)
    except ValueError:
        raise Refused(400, "invalid_request", "after: this is no `next` of a page.") from None


def _within(given: datetime | None, otherwise: datetime) -> datetime:
    if given is None:
        return otherwise
    moment = given.replace(tzinfo=UTC) if given.tzinfo is None else given
    return max(BEGINNING, min(END, moment))


def record_out(record: UsageRecord, member: Member) -> RecordOut:
    """A record as this member may see it."""
    facts = msgspec.structs.asdict(record)
    del facts["account"]
    if not member.caller.is_operator:
        facts["cost_usd"] = None
    return RecordOut(**facts)


# -- files ----------------------------------------------------------------------------------------

Render = Callable[[Sequence[Mapping[str, object]], bool], bytes]


def _file(
    console: Console, member: Member, wanted: Filters, ending: str, render: Render
) -> Response:
    name = f"usage-{member.account}-{moment(console):%Y-%m-%d}.{ending}"
    return StreamingResponse(
        _pages(console, member, wanted, render),
        media_type="text/csv" if ending == "csv" else "application/jsonl",
        headers={"content-disposition": f'attachment; filename="{name}"'},
    )


async def _pages(
    console: Console, member: Member, wanted: Filters, render: Render
) -> AsyncIterator[bytes]:
    """Page after page, so that a year of usage never stands in memory."""
    after: Position | None = None
    first = True
    while first or after is not None:
        page = await history(console, member, wanted, _EXPORTED_AT_ONCE, after)
        hidden = frozenset[str]() if member.caller.is_operator else _HIDDEN
        rows = [
            {
                name: fact
                for name, fact in msgspec.structs.asdict(record).items()
                if name not in hidden
            }
            for record in page.records
        ]
        yield render(rows, first)
        first, after = False, page.next


def _csv(rows: Sequence[Mapping[str, object]], is_first: bool) -> bytes:
    """What a spreadsheet would take for a formula is text to it."""
    names = [name for name in UsageRecord.__struct_fields__ if not rows or name in rows[0]]
    text = io.StringIO()
    writer = csv.writer(text)
    if is_first:
        writer.writerow(names)
    for row in rows:
        writer.writerow([_plain(row[name]) for name in names])
    return text.getvalue().encode()


def _plain(fact: object) -> object:
    return f"'{fact}" if isinstance(fact, str) and fact[:1] in "=+-@\t\r" else fact


def _jsonl(rows: Sequence[Mapping[str, object]], _: bool) -> bytes:
    return b"".join(msgspec.json.encode(row) + b"\n" for row in rows)


# -- one request ----------------------------------------------------------------------------------


@router.get("/usage/{request_id}", summary="One request, and what its charge is made of")
async def show_request(member: Reader, request_id: str, console: ConsoleOf) -> ReceiptOut:
    """The receipt of a request by its id, `x-request-id` of its answer."""
    found = await receipt(console, member, request_id)
    return ReceiptOut(
        record=record_out(found.record, member),
        attempts=[
            AttemptOut(
                time=datetime.fromisoformat(attempt.time),
                upstream=attempt.upstream,
                status=attempt.status,
                ttfb_ms=attempt.ttfb_ms,
                duration_ms=attempt.duration_ms,
            )
            for attempt in found.attempts
        ],
        items=items(found),
    )


async def receipt(console: Console, member: Member, request_id: str) -> Receipt:
    """A request of the account. Refuses with 404 what is none, or has not ended."""
    try:
        asked = parse_request_id(request_id)
    except ValueError:
        raise Refused(404, "not_found", f"{request_id!r} is no request id.") from None
    found = await console.database.run(
        lambda connection: find_receipt(connection, member.account_id, asked, ENDPOINTS)
    )
    if found is None:
        raise Refused(
            404,
            "not_found",
            f"There is no request {request_id} in this account. One that still runs, or that was "
            "refused before anything was reserved, has no receipt.",
        )
    return found


def items(found: Receipt) -> list[ItemOut]:
    """What a charge is made of, dearest first; nothing where nothing was charged."""
    if found.record.billing_status != "charged":
        return []
    rows = []
    for unit, quantity in quantities(_usage(found)).items():
        price = paid_for(found.price.get(unit, 0), found.margin_bps)
        if price:
            rows.append((price * quantity / 10**6, unit, quantity, price))
    return [
        ItemOut(
            unit=unit, quantity=quantity, usd_per_million=decimal_text(price), usd=decimal_text(usd)
        )
        for usd, unit, quantity, price in sorted(rows, reverse=True)
    ]


def _usage(found: Receipt) -> Usage:
    record, units = found.record, dict(found.units)
    return Usage(
        input_tokens=record.input_tokens,
        cached_input_tokens=record.cached_input_tokens,
        cache_write_tokens=units.pop("cache_write", 0),
        cache_write_1h_tokens=units.pop("cache_write_1h", 0),
        audio_input_tokens=units.pop("audio_input", 0),
        output_tokens=record.output_tokens,
        reasoning_tokens=record.reasoning_tokens,
        audio_output_tokens=units.pop("audio_output", 0),
        pieces=units,
    )


# -- sums -----------------------------------------------------------------------------------------


async def spend(
    console: Console,
    member: Member,
    span: Span,
    since: datetime,
    until: datetime,
    key_ids: Sequence[int] | None = None,
) -> list[Slice]:
    """Sums by time and model."""
    work = partial(
        usage.slices,
        account_id=member.account_id,
        span=span,
        since=since,
        until=until,
        key_ids=key_ids,
    )
    return await console.database.run(work)


@router.get("/spend", summary="Sums by hour or day, and model")
async def show_spend(
    member: Reader,
    console: ConsoleOf,
    since: datetime | None = None,
    until: datetime | None = None,
    span: Annotated[Literal["hour", "day"], Query(description="how long each slice is")] = "day",
    key_id: Annotated[
        list[Annotated[int, Field(ge=0, le=ID_MAX)]] | None, Query(max_length=_KEYS_ASKED_MAX)
    ] = None,
) -> SpendsOut:
    """What was spent on which model; the last 30 days, if nothing is said. In UTC."""
    end = _within(until, moment(console))
    begin = _within(since, max(BEGINNING, end - timedelta(days=30)))
    longest = HOURS_SHOWN_MAX if span == "hour" else timedelta(days=SPEND_DAYS_MAX)
    if end - begin > longest:
        raise Refused(
            400, "invalid_request", f"Ask for at most {longest.days} days by the {span} at once."
        )
    found = await spend(console, member, Span[span.upper()], _midnight(begin), end, key_id)
    return SpendsOut(span=span, slices=[_spend(each) for each in found])


def _midnight(moment: datetime) -> datetime:
    """The beginning of its day: the slices of which a part is wanted are shown whole."""
    return moment.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)


def _spend(slice_: Slice) -> SpendOut:
    return SpendOut(
        starts_at=slice_.starts_at,
        model=slice_.model,
        requests=slice_.requests,
        failed=slice_.failed,
        charge_usd=format_usd(slice_.charge),
        input_tokens=slice_.input_tokens,
        cached_input_tokens=slice_.cached_input_tokens,
        output_tokens=slice_.output_tokens,
        reasoning_tokens=slice_.reasoning_tokens,
    )
