"""Usage over the API: the right records to the right people, in pages, files, sums and receipts."""

from __future__ import annotations

import csv
import io
import json
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import psycopg
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from adapters.registry import ENDPOINTS
from console import rollup
from console.store import usage as sums
from console.store.usage import Span
from console.usage import Filters, narrow_page
from ledger.directory import Directory, PriceRow
from ledger.money import format_usd
from ledger.postgres import PostgresStore
from ledger.store import Ask, EventStatus, PoolId
from ledger.usage import Position, UsageRecord, find_page
from tests.fakes import history, postgres
from tests.fakes.console import Browser
from tests.fakes.history import Posted
from tests.fakes.model_holder import ModelHolder, event, report
from tests.fakes.people import Town, town

pytestmark = pytest.mark.unsound_books("a history without money behind it")

ACME = "/console/api/accounts/acme"
USAGE = f"{ACME}/usage"
FILLED = 250
NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)


@dataclass(frozen=True)
class Scene:
    """An account with a month of usage, and its operator."""

    place: Town
    operator: Browser
    keys: Sequence[int]


@asynccontextmanager
async def scene(database: str, filled: int = FILLED) -> AsyncIterator[Scene]:
    with Directory(database, secret=b"s" * 32) as directory:
        directory.create_account("acme")
        directory.create_project("acme", "web")
        directory.create_project("acme", "batch")
        directory.create_account("other")
        keys = [directory.create_key("acme", name)[0].key_id for name in ("web", "batch")]
        directory.register_catalogue(["gpt", "claude"], ["openai"], [])
    if filled:
        with psycopg.connect(database, autocommit=True) as connection:
            history.fill(connection, 1, keys, [1, 2], filled, days=20)
    async with town(database) as place:
        place.wall.seconds = datetime.now(UTC).timestamp()
        yield Scene(place, await place.operator(), keys)


async def everything(browser: Browser, **query: str | int) -> list[dict[str, object]]:
    """All pages."""
    records: list[dict[str, object]] = []
    after: dict[str, str] = {}
    while True:
        answer = await browser.get(USAGE, params={**query, **after})
        assert answer.status_code == 200, answer.text
        page = answer.json()
        records += page["records"]
        if page["next"] is None:
            return records
        after = {"after": page["next"]}


async def test_pages_have_every_request_once_newest_first(database: str) -> None:
    async with scene(database) as found:
        records = await everything(found.operator, limit=90)
    assert len({record["request_id"] for record in records}) == FILLED
    times = [str(record["time"]) for record in records]
    assert times == sorted(times, reverse=True)


async def test_filters_leave_the_rest_out(database: str) -> None:
    async with scene(database) as found:
        of_key = await everything(found.operator, key_id=found.keys[0])
        of_project = await everything(found.operator, project="batch")
        of_model = await everything(found.operator, model="claude", project="web")
        failed = await everything(found.operator, outcome="failed")
        since = (datetime.now(UTC) - timedelta(days=5)).isoformat()
        lately = await everything(found.operator, since=since)
        of_nobody = await everything(found.operator, model="none")
    assert {record["project"] for record in of_key} == {"web"}
    assert {record["project"] for record in of_project} == {"batch"}
    assert len(of_key) + len(of_project) == FILLED
    assert {(record["model"], record["project"]) for record in of_model} == {("claude", "web")}
    assert {record["status"] for record in failed} == {"failed"}
    assert len(failed) == FILLED // 97
    assert 0 < len(lately) < FILLED
    assert of_nobody == []


@settings(max_examples=20, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(
    batches=st.lists(
        st.lists(
            st.builds(
                Posted,
                at=st.integers(0, 30).map(lambda hours: NOON + timedelta(hours=hours)),
                account_id=st.just(1),
                key_id=st.integers(1, 2),
                model_id=st.integers(1, 2),
                status=st.sampled_from([1, 3, 5]),
                reserved=st.sampled_from([0, 200]),
                cost=st.just(0),
                charge=st.just(0),
                input_tokens=st.just(1),
                output_tokens=st.just(1),
                ttfb_ms=st.just(1),
            ),
            min_size=1,
            max_size=4,
        ),
        max_size=8,
    ),
    summed=st.integers(0, 8),
    limit=st.integers(1, 5),
    hours_at_once=st.integers(1, 3),
    wanted=st.builds(
        Filters,
        model=st.sampled_from([None, "gpt", "none"]),
        key_id=st.sampled_from([None, 1]),
        project=st.sampled_from([None, "web"]),
        outcome=st.sampled_from([None, "served", "failed", "cancelled"]),
        since=st.sampled_from([None, NOON + timedelta(hours=7, minutes=20)]),
        until=st.sampled_from([None, NOON + timedelta(hours=20, minutes=40)]),
    ),
)
def test_looking_only_where_something_is_finds_the_same(
    postgres_server: postgres.TestServer,
    batches: list[list[Posted]],
    summed: int,
    limit: int,
    hours_at_once: int,
    wanted: Filters,
) -> None:
    with (
        postgres_server.database() as conninfo,
        psycopg.connect(conninfo, autocommit=True) as connection,
    ):
        with Directory(conninfo, secret=b"s" * 32) as directory:
            directory.create_account("acme")
            directory.create_project("acme", "web")
            directory.create_project("acme", "batch")
            for project in ("web", "batch"):
                directory.create_key("acme", project)
            directory.register_catalogue(["gpt", "claude"], ["openai"], [])
        holder, seq = history.holder(connection), 1
        for number, batch in enumerate(sorted(batches, key=lambda batch: batch[0].at)):
            seq = history.post(connection, holder, seq, batch)
            if number == summed:
                sums.sum_up(connection, 100)
        asked = wanted.wanted(1, 1000)
        expected = list(find_page(connection, asked, ENDPOINTS).records)
        found: list[UsageRecord] = []
        after: Position | None = None
        while True:
            page = narrow_page(
                connection, wanted.wanted(1, limit, after), wanted.outcome, hours_at_once
            )
            found += page.records
            assert len(page.records) <= limit
            if page.next is None:
                break
            after = page.next
        assert found == expected


async def test_what_providers_take_is_shown_to_the_operator_alone(database: str) -> None:
    async with scene(database, 1) as found:
        own = await found.place.person("ada")
        opened = (await own.post("/console/api/accounts")).json()["account"]
        with psycopg.connect(database, autocommit=True) as connection:
            connection.execute(
                "INSERT INTO console.member (account_id, user_id, role, created_at)"
                " SELECT 1, user_id, 'owner', now() FROM console.user WHERE subject = 'ada'"
            )
        (theirs,) = await everything(own)
        (operators,) = await everything(found.operator)
        file = (await own.get(f"{USAGE}.csv")).text
        assert (await own.get(f"/console/api/accounts/{opened}/usage")).json()["records"] == []
    assert theirs == {**operators, "cost_usd": None}
    assert operators["cost_usd"] == "0.0009"
    assert "cost_usd" not in file


async def test_files_have_what_the_pages_have(database: str) -> None:
    async with scene(database) as found:
        records = await everything(found.operator, project="web")
        query = {"project": "web"}
        as_csv = await found.operator.get(f"{USAGE}.csv", params=query)
        as_lines = await found.operator.get(f"{USAGE}.jsonl", params=query)
    assert as_csv.headers["content-type"].startswith("text/csv")
    assert 'filename="usage-acme-' in as_csv.headers["content-disposition"]
    rows = list(csv.DictReader(io.StringIO(as_csv.text)))
    ids = [record["request_id"] for record in records]
    assert [row["request_id"] for row in rows] == ids
    assert [json.loads(line)["request_id"] for line in as_lines.text.splitlines()] == ids


async def test_a_spreadsheet_gets_no_formulas(database: str) -> None:
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("INSERT INTO directory.model (name) VALUES ('=cmd()')")
    async with scene(database, 1) as found:
        file = (await found.operator.get(f"{USAGE}.csv")).text
    (row,) = csv.DictReader(io.StringIO(file))
    assert row["model"] == "'=cmd()"


async def test_sums_are_by_day_and_model(database: str) -> None:
    async with scene(database) as found:
        while await rollup.sum_up(found.place.console):
            pass
        answer = await found.operator.get(f"{ACME}/spend")
        hours = await found.operator.get(f"{ACME}/spend", params={"span": "hour"})
        one = await found.operator.get(f"{ACME}/spend", params={"key_id": found.keys[0]})
        records = await everything(found.operator)
    slices = answer.json()["slices"]
    assert sum(each["requests"] for each in slices) == FILLED
    assert {each["model"] for each in slices} == {"gpt", "claude"}
    charged = sum(Decimal(str(record["charge_usd"])) for record in records)
    assert sum(Decimal(each["charge_usd"]) for each in slices) == charged
    assert (hours.status_code, hours.json()["error"]["code"]) == (400, "invalid_request")
    assert sum(each["requests"] for each in one.json()["slices"]) == FILLED // 2
    assert Span.DAY.name.lower() == answer.json()["span"]


@pytest.mark.parametrize(
    "query",
    [
        {"after": "nonsense"},
        {"limit": 0},
        {"limit": 501},
        {"key_id": -1},
        {"outcome": "lost"},
        {"since": "yesterday"},
        {"model": "a\0b"},
    ],
)
async def test_what_makes_no_sense_is_refused(database: str, query: dict[str, str]) -> None:
    async with scene(database, 0) as found:
        answer = await found.operator.get(USAGE, params=query)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_request")


async def test_sums_of_what_can_be_no_key_are_refused(database: str) -> None:
    async with scene(database, 0) as found:
        for key_id in ("-1", str(2**63), str(2**70), "x"):
            answer = await found.operator.get(f"{ACME}/spend", params={"key_id": key_id})
            assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_request")


# -- one request ----------------------------------------------------------------------------------


async def post(database: str, request_id: uuid.UUID) -> None:
    """A request that failed at one upstream and was served by another, with everything in it."""
    with Directory(database, secret=b"s" * 32) as directory:
        directory.create_account("acme", credit=10_000_000_000)
        directory.create_project("acme", "web")
        directory.create_key("acme", "web")
        prices = (
            ("cache_write", 3_000_000_000),
            ("cached_input", 250_000_000),
            ("input", 2_500_000_000),
            ("output", 10_000_000_000),
            ("reasoning", 10_000_000_000),
            ("web_search", 10_000_000_000_000),
        )
        row = PriceRow("gpt", "openai/g-4", "", prices, 1_000)
        directory.register_catalogue(["gpt"], ["openai"], [row])
    store = PostgresStore(database)
    holder = ModelHolder(store)
    await holder.open()
    await store.grant_lease(holder.session, [Ask(PoolId(1), 10**9, 10**9)])
    facts = {"request_id": request_id.bytes, "key_id": 1, "reserved": 0}
    nothing = {"charge": 0, "covered": (0,), "cost": 7}
    units = {"cache_write": 100, "web_search": 2}
    cost = 300 * 2500 + 600 * 250 + 100 * 3000 + 30 * 10000 + 20 * 10000 + 2 * 10_000_000
    charge = -(-cost * 11 // 10)
    events = [
        event(1, 1, **facts, **nothing, status=EventStatus.FAILED),
        event(
            2,
            1,
            **{**facts, "reserved": charge},
            units=units,
            input_tokens=1000,
            cached_input_tokens=600,
            output_tokens=50,
            reasoning_tokens=20,
            cost=cost,
            charge=charge,
            covered=(charge,),
        ),
    ]
    held = 10**9 - charge
    await store.exchange(holder.session, events, [report(1, covered=charge, held=held)])
    await store.aclose()


async def test_a_receipt_says_what_its_charge_is_made_of(database: str) -> None:
    milliseconds = int(datetime.now(UTC).timestamp() * 1000)
    request_id = uuid.UUID(int=milliseconds << 80 | 7 << 76 | 2 << 62 | 1)
    await post(database, request_id)
    async with town(database) as place:
        browser = await place.operator()
        answer = await browser.get(f"{USAGE}/{request_id}")
        assert answer.status_code == 200, answer.text
        found = answer.json()
    assert [attempt["status"] for attempt in found["attempts"]] == ["failed", "settled"]
    items = {item["unit"]: (item["quantity"], item["usd"]) for item in found["items"]}
    assert items == {
        "web_search": (2, "0.022"),
        "input": (300, "0.000825"),
        "cache_write": (100, "0.00033"),
        "output": (30, "0.00033"),
        "reasoning": (20, "0.00022"),
        "cached_input": (600, "0.000165"),
    }
    assert next(iter(items)) == "web_search"
    assert sum(Decimal(item["usd"]) for item in found["items"]) == Decimal(
        found["record"]["charge_usd"]
    )
    assert found["record"]["cost_usd"] == format_usd(21_700_000 + 7)


async def test_there_is_no_receipt_of_what_is_not_ours(database: str) -> None:
    async with scene(database, 1) as found:
        (record,) = await everything(found.operator)
        elsewhere = f"/console/api/accounts/other/usage/{record['request_id']}"
        for path in (elsewhere, f"{USAGE}/nonsense", f"{USAGE}/{uuid.uuid4()}"):
            answer = await found.operator.get(path)
            assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")
