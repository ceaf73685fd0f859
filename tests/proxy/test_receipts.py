"""Receipts and the history: what a caller may ask, what it is told, and what it never is."""

from __future__ import annotations

import json
from typing import cast
from urllib.parse import quote, urlencode
from uuid import UUID

import psycopg
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from adapters.errors import InvalidRequest, LedgerUnavailable
from ledger.keys import keyed_hash
from ledger.usage import BEGINNING, END, Position, UsageRecord, Wanted
from proxy import receipts
from proxy.receipts import PAGE_RECORDS, PAGE_RECORDS_MAX, PostgresUsage
from tests.fakes import provider
from tests.fakes.gateway import KEY, SECRET, Answer, World, principal_of, running
from tests.fakes.provider import STREAM_HEAD, ScriptedProvider, delta
from tests.fakes.usage import MemoryUsage

CHAT = "/v1/chat/completions"
ASK = {"model": "gpt", "messages": [{"role": "user", "content": "Hi"}]}
CHARGE_USD = "0.000022"
UNKNOWN = "01919191-9191-7191-9191-919191919191"
OTHERS_KEY = "sk_farebox_other"
SISTERS_KEY = "sk_farebox_sister"
ODD = "0129-+:.,TZWab/_=&%#é²\0\u2028\ud800\U0001f600 "


async def get(world: World, path: str, key: str | None = KEY) -> Answer:
    return await world.connect().call(path, method="GET", key=key)


def usage_of(world: World) -> MemoryUsage:
    return cast("MemoryUsage", world.gateway.usage)


# -- receipts -------------------------------------------------------------------------------------


async def test_a_receipt_says_what_the_answer_said(autojump_clock: MockClock) -> None:
    async with running({"p": ScriptedProvider(provider.completion())}) as world:
        answer = await world.connect().call(CHAT, ASK)
        request_id = answer.headers["x-request-id"]
        receipt = await get(world, f"/v1/usage/{request_id}")
        assert receipt.status == 200, receipt.body
        assert receipt.json["object"] == "usage_receipt"
        assert receipt.json["request_id"] == request_id
        assert receipt.json["charge_usd"] == answer.headers["x-farebox-cost-usd"] == CHARGE_USD
        assert receipt.json["billing_status"] == "charged"
        assert receipt.json["surface"] == "openai"
        assert (receipt.json["input_tokens"], receipt.json["output_tokens"]) == (10, 5)
        (attempt,) = cast("list[dict[str, object]]", receipt.json["attempts"])
        assert (attempt["status"], attempt["charge_usd"]) == ("settled", CHARGE_USD)
        assert receipt.headers["x-request-id"] != request_id


async def test_what_providers_bill_is_not_told(autojump_clock: MockClock) -> None:
    async with running({"p": ScriptedProvider(provider.completion())}) as world:
        request_id = (await world.connect().call(CHAT, ASK)).headers["x-request-id"]
        for path in (f"/v1/usage/{request_id}", "/v1/usage"):
            assert b"cost_usd" not in (await get(world, path)).body
        (record,) = cast("list[dict[str, object]]", (await get(world, "/v1/usage")).json["data"])
        fields = UsageRecord.__struct_fields__
        assert tuple(record) == ("object", *(name for name in fields if name != "cost_usd"))


async def test_upstreams_that_failed_are_named(autojump_clock: MockClock) -> None:
    hosts = {
        "p": ScriptedProvider(provider.error(500, "broken")),
        "q": ScriptedProvider(provider.completion()),
    }
    async with running(hosts) as world:
        request_id = (await world.connect().call(CHAT, ASK)).headers["x-request-id"]
        receipt = await get(world, f"/v1/usage/{request_id}")
        attempts = cast("list[dict[str, object]]", receipt.json["attempts"])
        assert [(each["upstream"], each["status"]) for each in attempts] == [
            ("1", "failed"),
            ("2", "settled"),
        ]
        assert receipt.json["charge_usd"] == CHARGE_USD


async def test_a_failed_request_has_a_receipt_of_nothing(autojump_clock: MockClock) -> None:
    async with running({"p": ScriptedProvider(provider.error(500, "broken"))}) as world:
        failed = await world.connect().call(CHAT, ASK)
        assert failed.status == 502
        receipt = await get(world, f"/v1/usage/{failed.headers['x-request-id']}")
        assert (receipt.json["status"], receipt.json["billing_status"]) == ("failed", "voided")
        assert receipt.json["charge_usd"] == "0"


async def test_a_client_that_left_has_its_receipt(autojump_clock: MockClock) -> None:
    upstream = ScriptedProvider([STREAM_HEAD, delta("Hello"), 100, delta("never")])
    async with running({"p": upstream}) as world:
        client = world.connect()
        await client.send(CHAT, ASK | {"stream": True})
        head = await client.event()
        await client.event()
        request_id = dict(head.headers)[b"x-request-id"].decode()  # type: ignore[union-attr] # a head
        client.transport.close()
        await trio.sleep(1)
        receipt = await get(world, f"/v1/usage/{request_id}")
        assert (receipt.json["status"], receipt.json["billing_status"]) == ("cancelled", "charged")
        await world.assert_books_are_clean()


async def test_a_running_request_has_none_yet(autojump_clock: MockClock) -> None:
    upstream = ScriptedProvider([STREAM_HEAD, delta("Hello"), 100, delta("end")])
    async with running({"p": upstream}) as world:
        client = world.connect()
        await client.send(CHAT, ASK | {"stream": True})
        head = await client.event()
        request_id = dict(head.headers)[b"x-request-id"].decode()  # type: ignore[union-attr] # a head
        refused = await get(world, f"/v1/usage/{request_id}")
        assert (refused.status, refused.error["code"]) == (404, "not_found")
        assert "still runs" in str(refused.error["message"])


async def test_keys_of_one_account_share_its_receipts_and_no_other_sees_them(
    autojump_clock: MockClock,
) -> None:
    async with running({"p": ScriptedProvider(provider.completion())}) as world:
        sister = principal_of(key_id=2, project_id=2)
        other = principal_of(key_id=3, account_id=8, pools=(8,))
        world.gateway.keyring.update(
            [(keyed_hash(SECRET, SISTERS_KEY), sister), (keyed_hash(SECRET, OTHERS_KEY), other)]
        )
        request_id = (await world.connect().call(CHAT, ASK)).headers["x-request-id"]
        assert (await get(world, f"/v1/usage/{request_id}", SISTERS_KEY)).status == 200
        refused = await get(world, f"/v1/usage/{request_id}", OTHERS_KEY)
        unknown = await get(world, f"/v1/usage/{UNKNOWN}", OTHERS_KEY)
        assert (refused.status, refused.error["code"]) == (404, "not_found")
        assert refused.body.replace(request_id.encode(), UNKNOWN.encode()) == unknown.body
        assert (
            len(cast("list[object]", (await get(world, "/v1/usage", SISTERS_KEY)).json["data"]))
            == 1
        )
        assert (await get(world, "/v1/usage", OTHERS_KEY)).json["data"] == []
        assert (await get(world, "/v1/usage", "sk_farebox_nobody")).status == 401


@pytest.mark.parametrize("text", ["x", "a/b", str(UUID(int=5)), "%00", "%F0%9F", UNKNOWN * 2])
async def test_what_is_no_id_is_a_400(text: str) -> None:
    async with running({"p": ScriptedProvider()}) as world:
        refused = await get(world, f"/v1/usage/{text}")
        assert (refused.status, refused.error["code"]) == (400, "invalid_request")
        assert refused.error["param"] == "request_id"


async def test_without_a_database_it_is_a_503_that_says_when(autojump_clock: MockClock) -> None:
    async with running({"p": ScriptedProvider(provider.completion())}) as world:
        usage_of(world).away = True
        for path in (f"/v1/usage/{UNKNOWN}", "/v1/usage"):
            refused = await get(world, path)
            assert (refused.status, refused.error["code"]) == (503, "ledger_unavailable")
            assert int(refused.headers["retry-after"]) >= 1


async def test_a_look_up_is_free_and_counts_towards_no_limit(autojump_clock: MockClock) -> None:
    async with running({"p": ScriptedProvider(provider.completion())}, credit=0) as world:
        for _ in range(3):
            assert (await get(world, "/v1/usage")).status == 200
        await world.assert_books_are_clean()


# -- the history ----------------------------------------------------------------------------------


async def test_the_history_comes_in_pages(autojump_clock: MockClock) -> None:
    async with running({"p": ScriptedProvider(provider.completion())}) as world:
        client = world.connect()
        asked = [(await client.call(CHAT, ASK)).headers["x-request-id"] for _ in range(5)]
        await trio.sleep(1)
        found: list[object] = []
        query = {"limit": "2"}
        while True:
            page = (await get(world, f"/v1/usage?{urlencode(query)}")).json
            assert page["object"] == "list"
            found += cast("list[object]", page["data"])
            if not page["has_more"]:
                break
            query["after"] = str(page["next"])
        assert page["next"] is None
        ids = [cast("dict[str, object]", record)["request_id"] for record in found]
        assert ids == asked[::-1]


async def test_what_is_asked_reaches_the_books() -> None:
    async with running({"p": ScriptedProvider()}) as world:
        assert (await get(world, f"/v1/usage?key={KEY}", key=None)).status == 200
        query = (
            "limit=3&since=2026-11-21&until=2026-11-22T10:00:00%2B02:00"
            "&model=openai/gpt&key_id=7&project=web"
        )
        assert (await get(world, f"/v1/usage?{query}")).status == 200
        *_, asked = usage_of(world).wanted
        assert (asked.limit, asked.model, asked.key_id, asked.project) == (
            3,
            "openai/gpt",
            7,
            "web",
        )
        assert asked.since.isoformat() == "2026-11-21T00:00:00+00:00"
        assert asked.until.isoformat() == "2026-11-22T08:00:00+00:00"
        assert asked.newest_first
        await get(world, "/v1/usage")
        *_, default = usage_of(world).wanted
        assert default == Wanted(account_id=7, limit=PAGE_RECORDS)


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("limit=0", "limit"),
        (f"limit={PAGE_RECORDS_MAX + 1}", "limit"),
        ("limit=ten", "limit"),
        ("limit=-1", "limit"),
        ("limit=²", "limit"),
        ("limit=" + "9" * 5000, "limit"),
        ("key_id=9223372036854775808", "key_id"),
        ("since=yesterday", "since"),
        ("until=2026-13-01", "until"),
        ("until=0001-01-01T00:00%2B23:00", "until"),
        ("since=2026-11-21T10:00:00+02:00", "since"),
        ("after=nothing", "after"),
        ("model=a%00b", "model"),
        ("projct=web", None),
    ],
)
async def test_what_cannot_be_asked_is_a_400_that_names_it(query: str, param: str | None) -> None:
    async with running({"p": ScriptedProvider()}) as world:
        refused = await get(world, f"/v1/usage?{quote(query, safe='=%+&:-')}")
        assert (refused.status, refused.error["code"]) == (400, "invalid_request")
        assert refused.error["param"] == param


@given(
    st.dictionaries(
        st.sampled_from(("limit", "after", "since", "until", "model", "key_id", "project", "x")),
        st.text(ODD) | st.integers().map(str) | st.datetimes().map(str) | st.binary().map(repr),
    )
)
def test_no_query_is_more_than_a_400(given_: dict[str, str]) -> None:
    try:
        wanted = receipts.wanted(1, urlencode(given_, errors="surrogatepass"))
    except InvalidRequest:
        return
    assert 1 <= wanted.limit <= PAGE_RECORDS_MAX
    assert BEGINNING <= wanted.since <= END
    assert BEGINNING <= wanted.until <= END


# -- the books in Postgres ------------------------------------------------------------------------


async def test_a_database_that_is_not_there_is_said_so() -> None:
    history = PostgresUsage("host=127.0.0.1 port=1 dbname=x")
    with pytest.raises(LedgerUnavailable) as away:
        await history.page(Wanted(account_id=1, limit=1))
    assert away.value.retry_after
    with pytest.raises(LedgerUnavailable):
        await history.receipt(1, UUID(UNKNOWN))
    await history.aclose()


async def test_a_connection_that_died_is_replaced(database: str) -> None:
    history = PostgresUsage(database)
    wanted = Wanted(account_id=1, limit=1)
    assert await history.page(wanted) == ([], None, None)
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
    assert await history.page(wanted) == ([], None, None)
    await history.aclose()


async def test_who_leaves_waits_for_no_lock_and_harms_nobody(database: str) -> None:
    history = PostgresUsage(database)
    wanted = Wanted(account_id=1, limit=1)
    with psycopg.connect(database) as connection:
        connection.execute("LOCK TABLE ledger.usage_event IN ACCESS EXCLUSIVE MODE")
        with trio.move_on_after(0.1) as scope:
            await history.page(wanted)
        assert scope.cancelled_caught
        connection.rollback()
    assert await history.page(wanted) == ([], None, None)
    await history.aclose()


async def test_a_search_that_takes_too_long_says_what_to_do(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(connection: psycopg.Connection, *_: object) -> None:
        connection.execute("SET statement_timeout = '20ms'")
        connection.execute("SELECT pg_sleep(10)")

    monkeypatch.setattr(receipts, "find_page", slow)
    history = PostgresUsage(database)
    with pytest.raises(InvalidRequest, match="since"):
        await history.page(Wanted(account_id=1, limit=1))
    await history.aclose()


def test_a_cursor_is_opaque_but_stable() -> None:
    position = Position(BEGINNING, 1, 2)
    assert json.dumps(position.encode()).isascii()
    assert quote(position.encode()) == position.encode()
