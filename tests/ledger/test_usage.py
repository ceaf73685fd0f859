"""The usage history: one exact record per request, whatever its attempts were."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta

import msgspec
import psycopg
import pytest
import trio

from ledger.directory import Directory, PriceRow
from ledger.postgres import PostgresStore
from ledger.store import Ask, EventStatus, PoolId, UsageEvent
from ledger.usage import UsageRecord, billing_status, export, receipt
from tests.fakes.model_holder import ModelHolder, event, report

ENDPOINTS = {1: ("openai", "chat/completions")}
NOW_MS = int(datetime.now(UTC).timestamp() * 1000)


def request_id(number: int) -> uuid.UUID:
    """A UUIDv7 of about now."""
    return uuid.UUID(int=(NOW_MS + number) << 80 | 7 << 76 | 2 << 62 | number)


def attempt(seq: int, request: int, key_id: int, **changes: object) -> UsageEvent:
    facts = {"request_id": request_id(request).bytes, "key_id": key_id}
    return event(seq, 1, **(facts | changes))


@pytest.fixture
def history(database: str) -> str:
    """Three requests: one with a failed attempt before, one cancelled, one free."""
    trio.run(post_three, database)
    return database


async def post_three(database: str) -> None:
    with Directory(database, secret=b"s" * 32) as directory:
        directory.create_account("acme", credit=10_000_000_000)
        directory.create_project("acme", "web")
        key, _ = directory.create_key("acme", "web")
        directory.register_catalogue(
            ["gpt"], ["openai"], [PriceRow("gpt", "openai/g-4", "", (), 0)]
        )
    store = PostgresStore(database)
    holder = ModelHolder(store)
    await holder.open()
    await store.grant_lease(holder.session, [Ask(PoolId(1), 1000, 1000)])
    nothing = {"charge": 0, "covered": (0,), "cost": 0}
    failed = {**nothing, "status": EventStatus.FAILED, "cost": 7}
    units = {"cache_write": 4, "cache_write_1h": 5, "image": 1}
    events = [
        attempt(1, 1, key.key_id, **failed),
        attempt(2, 1, key.key_id, units=units),
        attempt(3, 2, key.key_id, **nothing, status=EventStatus.CANCELLED),
        attempt(4, 3, 0, **nothing, status=EventStatus.FREE, endpoint=9, price_id=0),
    ]
    await store.exchange(holder.session, events, [report(1, covered=110, held=890)])
    assert await store.check() == []
    await store.aclose()


def test_a_record_sums_the_attempts_of_its_request(history: str) -> None:
    first = next(export(history, 1, ENDPOINTS))
    assert first == UsageRecord(
        time="2027-01-15T08:00:00.000Z",
        request_id=str(request_id(1)),
        account="acme",
        project="web",
        key_id=1,
        surface="openai",
        endpoint="chat/completions",
        model="gpt",
        upstream="openai/g-4",
        input_tokens=12,
        cached_input_tokens=3,
        cache_write_tokens=9,
        output_tokens=34,
        reasoning_tokens=5,
        status="settled",
        billing_status="charged",
        cost_usd="0.000000107",
        charge_usd="0.00000011",
        reserved_usd="0.0000002",
        ttfb_ms=20,
        duration_ms=300,
    )


def test_there_is_one_record_per_request_in_order(history: str) -> None:
    records = list(export(history, 1, ENDPOINTS))
    assert [(record.request_id, record.status, record.billing_status) for record in records] == [
        (str(request_id(1)), "settled", "charged"),
        (str(request_id(2)), "cancelled", "voided"),
        (str(request_id(3)), "free", "free"),
    ]
    assert (records[2].project, records[2].surface, records[2].upstream) == ("", "", "openai")


def test_other_accounts_and_earlier_times_are_left_out(history: str) -> None:
    assert list(export(history, 2, ENDPOINTS)) == []
    later, earlier = (datetime.now(UTC) + timedelta(hours=sign) for sign in (1, -1))
    assert list(export(history, 1, ENDPOINTS, since=later)) == []
    assert len(list(export(history, 1, ENDPOINTS, since=earlier))) == 3


def test_an_export_may_be_left_early(history: str) -> None:
    records = export(history, 1, ENDPOINTS)
    next(records)
    records.close()  # type: ignore[attr-defined]  # a generator, typed as the iterator it is used as
    with psycopg.connect(history) as connection:
        row = connection.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE state = 'idle in transaction'"
            " AND datname = current_database()"
        ).fetchone()
    assert row == (0,)


def test_a_receipt_is_the_record_of_one_request(history: str) -> None:
    records = {record.request_id: record for record in export(history, 1, ENDPOINTS)}
    for number in (1, 2, 3):
        text = str(request_id(number))
        assert receipt(history, 1, text, ENDPOINTS) == records[text]
    assert receipt(history, 2, str(request_id(1)), ENDPOINTS) is None
    assert receipt(history, 1, str(request_id(4)), ENDPOINTS) is None


@pytest.mark.parametrize("text", ["", "x", str(uuid.UUID(int=5))])
def test_what_is_no_request_id_is_a_value_error(database: str, text: str) -> None:
    with pytest.raises(ValueError, match=r"request id|UUID"):
        receipt(database, 1, text, ENDPOINTS)


@pytest.mark.parametrize(
    ("status", "charge", "billed"),
    [
        (EventStatus.SETTLED, 1, "charged"),
        (EventStatus.CANCELLED, 1, "charged"),
        (EventStatus.SETTLED, 0, "free"),
        (EventStatus.FREE, 0, "free"),
        (EventStatus.FAILED, 0, "voided"),
        (EventStatus.ORPHANED, 0, "voided"),
        (EventStatus.QUARANTINED, 0, "voided"),
    ],
)
def test_billing_status(status: EventStatus, charge: int, billed: str) -> None:
    assert billing_status(status, charge) == billed


def test_the_fields_are_the_promised_ones() -> None:
    assert msgspec.structs.fields(UsageRecord)[0].name == "time"
    assert len(UsageRecord.__struct_fields__) == 21
