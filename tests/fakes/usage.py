"""The usage history over books in memory, with numbers for names."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import UUID

from adapters.errors import LedgerUnavailable
from adapters.registry import ENDPOINTS
from ledger.memory import MemoryStore
from ledger.money import format_usd
from ledger.store import EventStatus, UsageEvent
from ledger.usage import Attempt, Page, Position, Receipt, UsageRecord, Wanted, billing_status

_POSTED = datetime(2027, 1, 1, tzinfo=UTC)


class MemoryUsage:
    """`UsageHistory` of a `MemoryStore`; events count as posted a second apart. While `away`,
    nothing can be read."""

    def __init__(self, store: MemoryStore) -> None:
        self.away = False
        self.wanted: list[Wanted] = []
        self._store = store

    async def receipt(self, account_id: int, request_id: UUID) -> Receipt | None:
        self._refuse_if_away()
        events = self._events_of(account_id, request_id.bytes)
        if not events or not _ended(events[-1]):
            return None
        units = events[-1].units
        return Receipt(
            record=_record(events),
            attempts=tuple(map(_attempt, events)),
            pieces={unit: count for unit, count in units.items() if "cache_write" not in unit},
        )

    async def page(self, wanted: Wanted) -> Page:
        self._refuse_if_away()
        self.wanted.append(wanted)
        found = [
            (Position(_POSTED + timedelta(seconds=number), holder_id, event.seq), event)
            for number, (holder_id, event) in enumerate(self._store.events)
            if event.account_id == wanted.account_id and _ended(event)
        ]
        left = [each for each in reversed(found) if not wanted.after or each[0] < wanted.after]
        chosen = left[: wanted.limit]
        records = [_record(self._events_of(wanted.account_id, e.request_id)) for _, e in chosen]
        return Page(records, chosen[-1][0] if len(left) > len(chosen) else None)

    async def aclose(self) -> None:
        """Nothing is held."""

    def _events_of(self, account_id: int, request_id: bytes) -> list[UsageEvent]:
        return [
            event
            for _, event in self._store.events
            if (event.account_id, event.request_id) == (account_id, request_id)
        ]

    def _refuse_if_away(self) -> None:
        if self.away:
            raise LedgerUnavailable("The books are away.", retry_after=1)


def _ended(event: UsageEvent) -> bool:
    return event.reserved > 0


def _status(event: UsageEvent) -> str:
    return EventStatus(event.status).name.lower()


def _time(event: UsageEvent) -> str:
    return datetime.fromtimestamp(event.occurred_at / 1e6, UTC).isoformat(timespec="milliseconds")


def _attempt(event: UsageEvent) -> Attempt:
    return Attempt(
        time=_time(event),
        upstream=str(event.provider_id),
        status=_status(event),
        cost_usd=format_usd(event.cost),
        charge_usd=format_usd(event.charge),
        ttfb_ms=event.ttfb_ms,
        duration_ms=event.duration_ms,
    )


def _record(events: list[UsageEvent]) -> UsageRecord:
    end = events[-1]
    surface, endpoint = ENDPOINTS[end.endpoint]
    return UsageRecord(
        time=_time(end),
        request_id=str(UUID(bytes=end.request_id)),
        account=str(end.account_id),
        project="",
        key_id=end.key_id,
        surface=surface,
        endpoint=endpoint,
        model=str(end.model_id),
        upstream=str(end.provider_id),
        input_tokens=end.input_tokens,
        cached_input_tokens=end.cached_input_tokens,
        cache_write_tokens=end.units.get("cache_write", 0),
        output_tokens=end.output_tokens,
        reasoning_tokens=end.reasoning_tokens,
        status=_status(end),
        billing_status=billing_status(end.status, end.charge),
        cost_usd=format_usd(sum(event.cost for event in events)),
        charge_usd=format_usd(end.charge),
        reserved_usd=format_usd(end.reserved),
        ttfb_ms=end.ttfb_ms,
        duration_ms=end.duration_ms,
    )
