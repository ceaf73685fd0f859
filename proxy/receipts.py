"""What a caller is told of its usage: the receipt of one request, and the history in pages.

Every key of an account sees the whole account's: it pays from the account's balance, which any
answer tells it. Of other accounts there is nothing, as of ids that never were. What a provider
bills is the operator's business, so `cost_usd` stays in the export.

A look-up is free and counts towards no limit. There are few threads for receipts and others for
pages, so that nothing else waits for a long search. What was settled a moment ago may not be posted
yet: then the ledger is asked to post it, and the books are asked again. A request that still runs
has no receipt.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import partial
from typing import Protocol, TypeVar
from urllib.parse import parse_qsl
from uuid import UUID

import msgspec
import psycopg
import trio
from psycopg import errors

from adapters.errors import InvalidRequest, LedgerUnavailable, NotFound
from adapters.registry import ENDPOINTS
from ledger import client
from ledger.connection import Connections
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
from proxy.authenticate import Principal

T = TypeVar("T")

PAGE_RECORDS = 50
PAGE_RECORDS_MAX = 200
_KEY_ID_MAX = 2**63 - 1
_RECEIPTS_AT_ONCE = 2
_PAGES_AT_ONCE = 2
_RETRY_AFTER_SECONDS = 1.0
_PARAMETERS = ("limit", "after", "since", "until", "model", "key_id", "project")
_IGNORED = "key"  # one of the places for an API key
_TOLD = tuple(name for name in UsageRecord.__struct_fields__ if name != "cost_usd")


class UsageHistory(Protocol):
    """The books, read. Both raise LedgerUnavailable where they cannot be."""

    async def receipt(self, account_id: int, request_id: UUID) -> Receipt | None:
        """As of `ledger.usage.find_receipt`."""
        ...

    async def page(self, wanted: Wanted) -> Page:
        """As of `ledger.usage.find_page`. Raises InvalidRequest where that takes too long."""
        ...

    async def aclose(self) -> None:
        """Let the books go."""
        ...


class PostgresUsage:
    """`UsageHistory` on a migrated database. `aclose` lets the connections go."""

    def __init__(self, conninfo: str) -> None:
        self._connections = Connections(conninfo)
        self._receipts = trio.CapacityLimiter(_RECEIPTS_AT_ONCE)
        self._pages = trio.CapacityLimiter(_PAGES_AT_ONCE)

    async def aclose(self) -> None:
        """Close every connection; running calls end as they end."""
        self._connections.close()

    async def receipt(self, account_id: int, request_id: UUID) -> Receipt | None:
        """As of UsageHistory."""
        return await self._call(
            lambda connection: find_receipt(connection, account_id, request_id, ENDPOINTS),
            self._receipts,
        )

    async def page(self, wanted: Wanted) -> Page:
        """As of UsageHistory."""
        return await self._call(
            lambda connection: find_page(connection, wanted, ENDPOINTS), self._pages
        )

    async def _call(
        self, work: Callable[[psycopg.Connection], T], limiter: trio.CapacityLimiter
    ) -> T:
        try:
            return await trio.to_thread.run_sync(
                partial(self._connections.run, work), abandon_on_cancel=True, limiter=limiter
            )
        except errors.QueryCanceled as error:
            raise InvalidRequest(
                "There is too much usage to look through: narrow a listing by `since` and `until`."
            ) from error
        except (psycopg.OperationalError, psycopg.InterfaceError) as error:
            raise _unavailable() from error


async def answer(
    history: UsageHistory, ledger: client.Ledger, principal: Principal, request_id: str, query: str
) -> bytes:
    """The body of a receipt, or of a page of the history where the path names no request.

    Raises InvalidRequest, NotFound and LedgerUnavailable.
    """
    if not request_id:
        return _listing(await history.page(wanted(principal.account_id, query)))
    try:
        asked = parse_request_id(request_id)
    except ValueError:
        raise InvalidRequest(
            f"{request_id!r} is no request id: send the x-request-id of an answer.",
            param="request_id",
        ) from None
    found = await history.receipt(principal.account_id, asked)
    if found is None:
        await _post(ledger)
        found = await history.receipt(principal.account_id, asked)
    if found is None:
        raise NotFound(
            f"There is no receipt of request {request_id!r}. A request that still runs has none "
            "yet, and one that was refused before it was reserved or sent has none at all."
        )
    return _receipt(found)


async def _post(ledger: client.Ledger) -> None:
    """What was settled up to now gets into the books."""
    try:
        await ledger.flush()
    except client.LedgerUnavailable:
        raise _unavailable() from None


def _unavailable() -> LedgerUnavailable:
    return LedgerUnavailable(
        "The books cannot be read right now; try again shortly.", retry_after=_RETRY_AFTER_SECONDS
    )


# -- what is asked --------------------------------------------------------------------------------


def wanted(account_id: int, query: str) -> Wanted:
    """Which records a query string asks for. Raises InvalidRequest naming the parameter."""
    given = dict(parse_qsl(query))
    given.pop(_IGNORED, None)
    for name, text in given.items():
        if name not in _PARAMETERS:
            known = ", ".join(_PARAMETERS)
            raise InvalidRequest(f"There is no parameter {name!r} here; known are {known}.")
        if "\0" in text:
            raise InvalidRequest(f"{name} has a character that no name has.", param=name)
    return Wanted(
        account_id=account_id,
        limit=_number(given, "limit", 1, PAGE_RECORDS_MAX) or PAGE_RECORDS,
        after=_position(given),
        since=_moment(given, "since") or BEGINNING,
        until=_moment(given, "until") or END,
        model=given.get("model"),
        key_id=_number(given, "key_id", 0, _KEY_ID_MAX),
        project=given.get("project"),
    )


def _number(given: Mapping[str, str], name: str, least: int, most: int) -> int | None:
    text = given.get(name)
    if text is None:
        return None
    is_short = len(text) <= len(str(most))
    number = int(text) if is_short and text.isascii() and text.isdigit() else least - 1
    if not least <= number <= most:
        raise InvalidRequest(f"{name} is a whole number from {least} to {most}.", param=name)
    return number


def _moment(given: Mapping[str, str], name: str) -> datetime | None:
    text = given.get(name)
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
        moment = moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        raise InvalidRequest(
            f"{name} is a date or a time, such as 2026-11-21 or 2026-11-21T08:30:00Z "
            "(write the + of a zone as %2B).",
            param=name,
        ) from None
    return max(BEGINNING, min(END, moment))


def _position(given: Mapping[str, str]) -> Position | None:
    text = given.get("after")
    if text is None:
        return None
    try:
        return Position.decode(text)
    except ValueError:
        raise InvalidRequest("after is the `next` of the page before.", param="after") from None


# -- what is told ---------------------------------------------------------------------------------


def _receipt(found: Receipt) -> bytes:
    return msgspec.json.encode(
        {
            "object": "usage_receipt",
            **_told(found.record),
            "pieces": found.pieces,
            "attempts": [
                {
                    "time": attempt.time,
                    "upstream": attempt.upstream,
                    "status": attempt.status,
                    "charge_usd": attempt.charge_usd,
                    "ttfb_ms": attempt.ttfb_ms,
                    "duration_ms": attempt.duration_ms,
                }
                for attempt in found.attempts
            ],
        }
    )


def _listing(page: Page) -> bytes:
    return msgspec.json.encode(
        {
            "object": "list",
            "data": [{"object": "usage_record", **_told(record)} for record in page.records],
            "has_more": page.next is not None,
            "next": page.next.encode() if page.next else None,
        }
    )


def _told(record: UsageRecord) -> Mapping[str, object]:
    """A record as customers see it."""
    return {name: getattr(record, name) for name in _TOLD}
