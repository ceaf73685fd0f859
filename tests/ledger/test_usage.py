"""The usage history: one exact record per request, whatever its attempts were."""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

import msgspec
import psycopg
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from ledger.directory import Directory, PriceRow
from ledger.postgres import PostgresStore
from ledger.store import Ask, EventStatus, PoolId, UsageEvent
from ledger.usage import (
    END,
    Attempt,
    Page,
    Position,
    Receipt,
    UsageRecord,
    Wanted,
    billing_status,
    export,
    find_page,
    find_receipt,
    parse_request_id,
)
from tests.fakes import postgres
from tests.fakes.model_holder import ModelHolder, event, report

pytestmark = pytest.mark.unsound_books("most of the history has no batches and transfers")

ENDPOINTS = {1: ("openai", "chat/completions")}
NOW = datetime.now(UTC)
NOW_MS = int(NOW.timestamp() * 1000)
FREE_PRICE = 2


def request_id(number: int, at: datetime = NOW) -> uuid.UUID:
    """A UUIDv7 of about then."""
    milliseconds = int(at.timestamp() * 1000) + number
    return uuid.UUID(int=milliseconds << 80 | 7 << 76 | 2 << 62 | number)


def attempt(seq: int, request: int, key_id: int, **changes: object) -> UsageEvent:
    facts = {"request_id": request_id(request).bytes, "key_id": key_id}
    return event(seq, 1, **(facts | changes))


def receipt(conninfo: str, account_id: int, request: uuid.UUID) -> Receipt | None:
    with psycopg.connect(conninfo) as connection:
        return find_receipt(connection, account_id, request, ENDPOINTS)


def page(conninfo: str, wanted: Wanted) -> Page:
    with psycopg.connect(conninfo) as connection:
        return find_page(connection, wanted, ENDPOINTS)


def ids(records: Sequence[UsageRecord]) -> list[str]:
    return [record.request_id for record in records]


@pytest.fixture
def history(database: str) -> str:
    """Three requests: one with a failed attempt before, one cancelled, one free."""
    trio.run(post_three, database)
    return database


def furnish(database: str) -> int:
    """An account with two projects, two models of one provider, one of them free. A key's id."""
    with Directory(database, secret=b"s" * 32) as directory:
        directory.create_account("acme", credit=10_000_000_000)
        directory.create_project("acme", "web")
        key, _ = directory.create_key("acme", "web")
        directory.register_catalogue(
            ["gpt", "local"],
            ["openai"],
            [
                PriceRow("gpt", "openai/g-4", "", (("input", 5),), 0),
                PriceRow("local", "openai/l", "", (("input", 0),), 0),
            ],
        )
        return key.key_id


async def post_three(database: str) -> None:
    key_id = furnish(database)
    store = PostgresStore(database)
    holder = ModelHolder(store)
    await holder.open()
    await store.grant_lease(holder.session, [Ask(PoolId(1), 1000, 1000)])
    nothing = {"charge": 0, "covered": (0,), "cost": 0}
    failed = {**nothing, "status": EventStatus.FAILED, "cost": 7, "reserved": 0}
    units = {"cache_write": 4, "cache_write_1h": 5, "image": 1}
    events = [
        attempt(1, 1, key_id, **failed),
        attempt(2, 1, key_id, units=units),
        attempt(3, 2, key_id, **nothing, status=EventStatus.CANCELLED),
        attempt(4, 3, 0, **nothing, status=EventStatus.FREE, endpoint=9, price_id=0),
    ]
    await store.exchange(holder.session, events, [report(1, covered=110, held=890)])
    assert await store.check() == []
    await store.aclose()


FIRST = UsageRecord(
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


def test_a_record_sums_the_attempts_of_its_request(history: str) -> None:
    assert next(export(history, 1, ENDPOINTS)) == FIRST


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


# -- receipts -------------------------------------------------------------------------------------


def test_a_receipt_is_the_record_of_one_request_and_more(history: str) -> None:
    records = {record.request_id: record for record in export(history, 1, ENDPOINTS)}
    for number in (1, 2, 3):
        found = receipt(history, 1, request_id(number))
        assert found is not None
        assert found.record == records[str(request_id(number))]
    assert receipt(history, 2, request_id(1)) is None
    assert receipt(history, 1, request_id(4)) is None


def test_a_receipt_names_every_upstream_that_was_tried(history: str) -> None:
    found = receipt(history, 1, request_id(1))
    assert found is not None
    assert found.pieces == {"image": 1}
    failed = Attempt(
        time=FIRST.time,
        upstream="openai/g-4",
        status="failed",
        cost_usd="0.000000007",
        charge_usd="0",
        ttfb_ms=20,
        duration_ms=300,
    )
    served = msgspec.structs.replace(
        failed, status="settled", cost_usd="0.0000001", charge_usd="0.00000011"
    )
    assert found.attempts == (failed, served)


@pytest.mark.parametrize("text", ["", "x", str(uuid.UUID(int=5)), "0" * 40, "١" * 31])
def test_what_is_no_request_id_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError, match=r"request id|UUID"):
        parse_request_id(text)


# -- rows as they may be posted -------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """A row of the history, as far as it matters here."""

    request: uuid.UUID
    recorded_at: datetime
    seq: int
    status: EventStatus = EventStatus.SETTLED
    reserved: int = 200
    cost: int = 100
    charge: int = 110
    price_id: int = 1
    model_id: int = 1
    key_id: int = 1
    account_id: int = 1
    holder_id: int = 1


FAILED = {"status": EventStatus.FAILED, "charge": 0, "reserved": 0, "cost": 7}
_INSERT = """
INSERT INTO ledger.usage_event (
  recorded_at, occurred_at, seq, account_id, key_id, price_id, reserved, cost, charge, holder_id,
  model_id, provider_id, tok_in, tok_cached, tok_out, tok_reason, ttfb_ms, duration_ms, status,
  endpoint, request_id, units)
VALUES (%(recorded_at)s, %(recorded_at)s, %(seq)s, %(account_id)s, %(key_id)s, %(price_id)s,
  %(reserved)s, %(cost)s, %(charge)s, %(holder_id)s, %(model_id)s, 1, 1, 0, 1, 0, 1, 100,
  %(status)s, 1, %(request)s, NULL)
"""


def insert(connection: psycopg.Connection, rows: Sequence[Row]) -> None:
    with connection.cursor() as cursor:
        cursor.executemany(_INSERT, [vars(row) | {"status": int(row.status)} for row in rows])


@pytest.fixture
def rows(database: str) -> Iterator[psycopg.Connection]:
    """A furnished database that rows can be put into."""
    furnish(database)
    with psycopg.connect(database, autocommit=True) as connection:
        yield connection


def test_a_running_request_has_no_record(rows: psycopg.Connection) -> None:
    running = Row(request_id(1), NOW, 1, **FAILED)  # type: ignore[arg-type] # names of its own
    insert(rows, [running])
    assert find_receipt(rows, 1, running.request, ENDPOINTS) is None
    assert find_page(rows, Wanted(account_id=1, limit=9), ENDPOINTS) == ([], None, None)
    insert(rows, [Row(request_id(1), NOW + timedelta(seconds=9), 2)])
    (record,) = find_page(rows, Wanted(account_id=1, limit=9), ENDPOINTS).records
    found = find_receipt(rows, 1, running.request, ENDPOINTS)
    assert found is not None
    assert (record, len(found.attempts)) == (found.record, 2)
    assert (record.status, record.cost_usd) == ("settled", "0.000000107")


def test_a_free_model_that_failed_has_a_record(rows: psycopg.Connection) -> None:
    """Nothing was reserved for it, so its last event counts."""
    for seq in (1, 2):
        free = Row(request_id(1), NOW, seq, price_id=FREE_PRICE, **FAILED)  # type: ignore[arg-type] # names of its own
        insert(rows, [replace(free, model_id=2)])
    (record,) = find_page(rows, Wanted(account_id=1, limit=9), ENDPOINTS).records
    assert (record.model, record.status, record.cost_usd) == ("local", "failed", "0.000000014")


@pytest.mark.parametrize(
    "clock", [timedelta(hours=-20), timedelta(hours=20), timedelta(hours=-60), timedelta(0)]
)
def test_a_receipt_is_found_whatever_the_clock_or_an_outage_did(
    rows: psycopg.Connection, clock: timedelta
) -> None:
    """A gateway's clock that is wrong by most of a day, a database that was away for days."""
    request = request_id(1, NOW + clock)
    insert(rows, [Row(request, NOW, 1, **FAILED), Row(request, NOW, 2)])  # type: ignore[arg-type] # names of its own
    found = find_receipt(rows, 1, request, ENDPOINTS)
    assert found is not None
    assert len(found.attempts) == 2


@pytest.mark.parametrize("milliseconds", [0, 1, 2**48 - 1, 253_402_300_800_000, NOW_MS + 10**10])
def test_an_id_of_any_time_is_looked_for(rows: psycopg.Connection, milliseconds: int) -> None:
    request = uuid.UUID(int=milliseconds << 80 | 7 << 76 | 2 << 62 | 1)
    assert find_receipt(rows, 1, parse_request_id(str(request)), ENDPOINTS) is None


def test_records_can_be_chosen(rows: psycopg.Connection) -> None:
    at = [NOW + timedelta(seconds=second) for second in range(4)]
    insert(
        rows,
        [
            Row(request_id(0), at[0], 1),
            Row(request_id(1), at[1], 2, model_id=2),
            Row(request_id(2), at[2], 3, key_id=77),
            Row(request_id(3), at[3], 4, account_id=2),
        ],
    )
    everything = Wanted(account_id=1, limit=9)

    def chosen(**choice: object) -> list[str]:
        wanted = replace(everything, **choice)  # type: ignore[arg-type] # names of its own
        return ids(find_page(rows, wanted, ENDPOINTS).records)

    zero, one, two = (str(request_id(number)) for number in range(3))
    assert chosen() == [two, one, zero]
    assert chosen(newest_first=False) == [zero, one, two]
    assert chosen(model="local") == [one]
    assert chosen(model="none") == []
    assert chosen(key_id=77) == [two]
    assert chosen(project="web") == [one, zero]
    assert chosen(project="web", model="gpt") == [zero]
    assert chosen(since=at[1]) == [two, one]
    assert chosen(until=at[1]) == [zero]


# -- pages ----------------------------------------------------------------------------------------


@dataclass
class Posting:
    """Holders that post requests, each with attempts before its end, one batch after the other."""

    connection: psycopg.Connection
    clock: datetime = NOW
    seqs: dict[int, int] = field(default_factory=dict)
    requests: Iterator[int] = field(default_factory=itertools.count)
    running: list[tuple[int, uuid.UUID]] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)

    def post(self, holder_id: int, starts: int, ends: int, seconds: int) -> None:
        """A batch: some requests fail at their first upstream, some that run end."""
        self.clock += timedelta(seconds=seconds)
        batch = []
        for _ in range(starts):
            request = request_id(next(self.requests), self.clock)
            self.running.append((holder_id, request))
            batch.append(self._row(holder_id, request, FAILED))
        mine = [each for each in self.running if each[0] == holder_id][:ends]
        for each in mine:
            self.running.remove(each)
            self.ended.append(str(each[1]))
            batch.append(self._row(holder_id, each[1], {}))
        insert(self.connection, batch)

    def _row(self, holder_id: int, request: uuid.UUID, facts: Mapping[str, object]) -> Row:
        seq = self.seqs[holder_id] = self.seqs.get(holder_id, 0) + 1
        return Row(request, self.clock, seq, holder_id=holder_id, **facts)  # type: ignore[arg-type] # names of its own


@pytest.fixture(scope="module")
def shared(postgres_server: postgres.TestServer) -> Iterator[psycopg.Connection]:
    """One database for all examples of a property, emptied by each."""
    with postgres_server.database() as conninfo:
        furnish(conninfo)
        with psycopg.connect(conninfo, autocommit=True) as connection:
            yield connection


BATCHES = st.lists(
    st.tuples(st.integers(1, 3), st.integers(0, 4), st.integers(0, 4), st.integers(0, 2)),
    max_size=12,
)


@settings(max_examples=60, deadline=None)
@given(before=BATCHES, meanwhile=BATCHES, size=st.integers(1, 5), newest_first=st.booleans())
def test_pages_have_every_record_once_whatever_is_posted_meanwhile(
    shared: psycopg.Connection,
    before: list[tuple[int, int, int, int]],
    meanwhile: list[tuple[int, int, int, int]],
    size: int,
    newest_first: bool,
) -> None:
    shared.execute("TRUNCATE ledger.usage_event")
    posting = Posting(shared)
    for batch in before:
        posting.post(*batch)
    there = list(posting.ended)
    batches = iter(meanwhile)
    wanted = Wanted(account_id=1, limit=size, newest_first=newest_first)
    found: list[UsageRecord] = []
    while True:
        records, after, _ = find_page(shared, wanted, ENDPOINTS)
        found += records
        if after is None:
            break
        assert len(records) == size
        wanted = replace(wanted, after=Position.decode(after.encode()))
        for more in itertools.islice(batches, 1):
            posting.post(*more)
    seen = ids(found)
    assert len(seen) == len(set(seen))
    assert set(there) <= set(seen) <= set(posting.ended)
    if newest_first and not any(seconds == 0 for *_, seconds in meanwhile):
        assert set(seen) == set(there)
    assert {record.cost_usd for record in found} <= {"0.000000107"}
    for record in found[:3]:
        receipt_of = find_receipt(shared, 1, uuid.UUID(record.request_id), ENDPOINTS)
        assert receipt_of is not None
        assert receipt_of.record == record


@given(
    st.datetimes(datetime(2001, 1, 1), datetime(9000, 1, 1), timezones=st.just(UTC)),  # noqa: DTZ001 - as hypothesis wants them
    st.integers(0, 2**31 - 1),
    st.integers(0, 2**63 - 1),
)
def test_a_position_survives_its_opaque_form(moment: datetime, holder_id: int, seq: int) -> None:
    position = Position(moment, holder_id, seq)
    assert Position.decode(position.encode()) == position


@given(st.text("AZaz09-_=+/é\0 ") | st.binary(max_size=40).map(lambda data: data.hex()))
def test_what_is_no_position_is_a_value_error(text: str) -> None:
    try:
        position = Position.decode(text)
    except ValueError:
        return
    assert position.recorded_at < END
    assert Position.decode(position.encode()) == position


# -- how the database looks -----------------------------------------------------------------------

DAYS = 6
PER_DAY = 3000


@pytest.fixture(scope="module")
def large(postgres_server: postgres.TestServer) -> Iterator[psycopg.Connection]:
    """A history of some days, each in a partition of its own, most of it other accounts'."""
    with postgres_server.database() as conninfo:
        furnish(conninfo)
        with psycopg.connect(conninfo, autocommit=True) as connection:
            connection.execute("SET timezone = 'UTC'")
            connection.execute(_PAST_DAYS)
            connection.execute(_FILL, {"days": DAYS, "rows": PER_DAY})
            connection.execute("ANALYZE ledger.usage_event")
            yield connection


_PAST_DAYS = f"""
DO $$ DECLARE
  v_day integer; v_from timestamptz;
BEGIN
  FOR v_day IN 1 .. {DAYS} LOOP
    v_from := date_trunc('day', now()) - v_day * interval '1 day';
    -- There is one already where a day has begun since the database was migrated.
    EXECUTE format('CREATE TABLE IF NOT EXISTS ledger.%I PARTITION OF ledger.usage_event'
                   ' FOR VALUES FROM (%L) TO (%L)',
                   'usage_event_' || to_char(v_from, 'YYYYMMDD'),
                   v_from, v_from + interval '1 day');
  END LOOP;
END $$
"""
_FILL = """
INSERT INTO ledger.usage_event (
  recorded_at, occurred_at, seq, account_id, key_id, price_id, reserved, cost, charge, holder_id,
  model_id, provider_id, tok_in, tok_cached, tok_out, tok_reason, ttfb_ms, duration_ms, status,
  endpoint, request_id, units)
SELECT t, t, d * 100000 + n, n %% 10, 1, 1, 200, 100, 110, 1, 1, 1, 1, 0, 1, 0, 1, 100, 1, 1,
       (lpad(to_hex((extract(epoch FROM t) * 1000)::bigint), 12, '0')
         || '7000' || '8000' || lpad(to_hex(d * 100000 + n), 12, '0'))::uuid, NULL
  FROM generate_series(1, %(days)s::int) d, generate_series(1, %(rows)s::int) n,
       LATERAL (SELECT date_trunc('day', now()) - d * interval '1 day'
                       + n * interval '28 seconds' AS t) x
"""


@dataclass
class Plan:
    """What EXPLAIN says was done: kinds of nodes, and the tables that they read."""

    scans: list[tuple[str, str]] = field(default_factory=list)

    def read(self, node: Mapping[str, object]) -> None:
        if "Relation Name" in node and node["Actual Loops"]:
            self.scans.append((str(node["Node Type"]), str(node["Relation Name"])))
        for child in node.get("Plans", []):  # type: ignore[attr-defined] # a list of nodes
            self.read(child)

    @property
    def events(self) -> set[tuple[str, str]]:
        return {(kind, table) for kind, table in self.scans if table.startswith("usage_event")}


class Explaining:
    """A connection that notes how each statement is carried out."""

    def __init__(self, connection: psycopg.Connection) -> None:
        self._connection = connection
        self.plans: list[Plan] = []

    def execute(self, statement: object, parameters: Mapping[str, object]) -> psycopg.Cursor:
        text = statement if isinstance(statement, str) else statement.as_string(None)  # type: ignore[attr-defined] # composed SQL
        row = self._connection.execute(
            f"EXPLAIN (ANALYZE, FORMAT json) {text}", parameters
        ).fetchone()
        assert row is not None
        plan = Plan()
        plan.read(row[0][0]["Plan"])
        self.plans.append(plan)
        return self._connection.execute(text, parameters)


def day_of(large: psycopg.Connection) -> datetime:
    """The day on which the history was made: midnight may have passed since."""
    row = large.execute("SELECT max(recorded_at) FROM ledger.usage_event").fetchone()
    assert row is not None
    newest: datetime = row[0].astimezone(UTC)
    return newest.replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=1)


def table_of(today: datetime, days_ago: int) -> str:
    """The partition of a day."""
    return f"usage_event_{today - timedelta(days=days_ago):%Y%m%d}"


INDEXED = {"Index Scan", "Index Only Scan", "Bitmap Heap Scan"}


def test_a_receipt_reads_the_index_of_the_days_around_its_id(large: psycopg.Connection) -> None:
    (row,) = large.execute(
        "SELECT request_id, tableoid::regclass::text FROM ledger.usage_event"
        " WHERE account_id = 1 AND recorded_at < now() - interval '3 days'"
        " AND recorded_at::time BETWEEN '06:00' AND '18:00' ORDER BY recorded_at DESC LIMIT 1"
    ).fetchall()
    explaining = Explaining(large)
    found = find_receipt(explaining, 1, row[0], ENDPOINTS)  # type: ignore[arg-type] # executes like one
    assert found is not None
    (plan,) = explaining.plans
    assert {table for _, table in plan.events} == {row[1].removeprefix("ledger.")}
    assert {kind for kind, _ in plan.events} <= INDEXED


def test_an_unknown_id_is_looked_for_in_a_few_days(large: psycopg.Connection) -> None:
    explaining = Explaining(large)
    today = day_of(large)
    noon = today - timedelta(days=6, hours=-12)
    unknown = request_id(9, noon)
    assert find_receipt(explaining, 1, unknown, ENDPOINTS) is None  # type: ignore[arg-type] # executes like one
    *near, far = explaining.plans
    assert {table for plan in near for _, table in plan.events} == {table_of(today, 6)}
    days = {table_of(today, ago) for ago in (3, 4, 5, 6)}
    assert {table for _, table in far.events} - {"usage_event_default"} == days
    events = {event for plan in explaining.plans for event in plan.events}
    kinds = {kind for kind, table in events if table in days}
    assert kinds <= INDEXED


def test_a_page_reads_no_more_than_its_days_and_by_the_index(large: psycopg.Connection) -> None:
    explaining = Explaining(large)
    start = day_of(large)
    wanted = Wanted(
        account_id=1,
        limit=20,
        since=start - timedelta(days=3),
        after=Position(start - timedelta(days=1, hours=12), 1, 10**9),
    )
    records, after, _ = find_page(explaining, wanted, ENDPOINTS)  # type: ignore[arg-type] # executes like one
    assert len(records) == 20
    assert after is not None
    chosen, attempted = explaining.plans
    past = {table_of(start, ago) for ago in range(1, DAYS + 1)}
    days = {table for _, table in chosen.events} & past
    assert {table_of(start, 2)} <= days <= {table_of(start, 2), table_of(start, 3)}
    assert {kind for kind, _ in chosen.events | attempted.events} <= INDEXED


# -- words ----------------------------------------------------------------------------------------


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
