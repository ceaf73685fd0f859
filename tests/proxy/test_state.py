"""Kept responses: found by their project until they expire, written behind the answer, sealed."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from pathlib import Path

import msgspec
import psycopg
import pytest
import trio

from adapters.errors import Overloaded, RequestTooLarge
from farebox.embedded import EmbeddedPostgres
from ledger.directory import Directory
from ledger.migrate import migrate
from proxy import state
from proxy.state import Link, PostgresResponses, ResponseStore, Stored
from tests.fakes.postgres import FAST
from tests.fakes.responses import MemoryResponses

SECRET = bytes(range(32))
NOW = 1_800_000_000.0
DAY = 86_400.0
OURS, THEIRS = 1, 2


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now


def raw(text: str) -> msgspec.Raw:
    return msgspec.Raw(text.encode())


def message(item_id: str, text: str = "hi") -> msgspec.Raw:
    return raw(f'{{"type":"message","id":"{item_id}","content":"{text}"}}')


def kept(name: str, previous: str = "", *, days: float = 30, text: str = "hi") -> Stored:
    """A response `name` with one item in, `name`_in, and one out."""
    return Stored(
        Link(
            name, previous, (message(f"{name}_in", text),), (message(f"{name}_out", text.upper()),)
        ),
        f'{{"id":"{name}","output":"{text.upper()}"}}'.encode(),
        NOW,
        NOW + days * DAY,
    )


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def projects(database: str) -> Iterator[Directory]:
    """Projects 1 (ours) and 2 (theirs)."""
    with Directory(database, secret=SECRET) as directory:
        directory.create_account("a")
        directory.create_project("a", "ours")
        directory.create_project("a", "theirs")
        yield directory


@pytest.fixture
async def responses(
    database: str, projects: Directory, clock: Clock
) -> AsyncIterator[PostgresResponses]:
    """On a real database; nothing is written unless a test says so."""
    responses = PostgresResponses(database, SECRET, clock, log=lambda _: None)
    yield responses
    await responses.aclose()


@contextlib.asynccontextmanager
async def writing(*stores: PostgresResponses) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        for store in stores:
            nursery.start_soon(store.run)
        yield
        nursery.cancel_scope.cancel()


async def written(store: PostgresResponses) -> None:
    """Everything that was put is in the database now."""
    async with writing(store):
        pass
    assert store.pending == 0


def scalar(database: str, query: str) -> object:
    with psycopg.connect(database) as connection:
        row = connection.execute(query.encode()).fetchone()
        assert row is not None
        return row[0]


# -- what every store does ------------------------------------------------------------------------


@pytest.fixture(params=["memory", "pending", "written"])
def store(
    request: pytest.FixtureRequest, responses: PostgresResponses, clock: Clock
) -> ResponseStore:
    """The store of the tests, and the real one before and after it wrote."""
    stores: dict[str, ResponseStore] = {
        "memory": MemoryResponses(clock),
        "pending": responses,
        "written": _Written(responses),
    }
    return stores[request.param]


class _Written:
    """Every call finds the database up to date."""

    def __init__(self, store: PostgresResponses) -> None:
        self._store = store
        self.put = store.put

    async def body(self, project_id: int, response_id: str) -> bytes | None:
        await written(self._store)
        return await self._store.body(project_id, response_id)

    async def links(self, project_id: int, response_id: str) -> list[Link]:
        await written(self._store)
        return await self._store.links(project_id, response_id)

    async def items(self, project_id: int, item_ids: Sequence[str]) -> Mapping[str, msgspec.Raw]:
        await written(self._store)
        return await self._store.items(project_id, item_ids)

    async def delete(self, project_id: int, response_id: str) -> bool:
        await written(self._store)
        return await self._store.delete(project_id, response_id)

    async def purge(self, now: float) -> int:
        await written(self._store)
        return await self._store.purge(now)


async def test_what_was_put_is_found_byte_for_byte(store: ResponseStore) -> None:
    odd = '{ "id" : "x",\n"big":1e400, "n":12345678901234567890, "t":"\\u00e9\\ud83d\\ude00😀" }'
    stored = Stored(Link("r", "", (raw(odd),), (raw("[1.0]"),)), odd.encode(), NOW, NOW + DAY)
    assert store.put(OURS, stored)
    assert await store.body(OURS, "r") == odd.encode()
    (link,) = await store.links(OURS, "r")
    assert [bytes(item) for item in link.input + link.output] == [odd.encode(), b"[1.0]"]


async def test_other_projects_find_nothing(store: ResponseStore) -> None:
    store.put(OURS, kept("r"))
    assert await store.body(THEIRS, "r") is None
    assert await store.links(THEIRS, "r") == []
    assert await store.items(THEIRS, ["r_in"]) == {}
    assert not await store.delete(THEIRS, "r")
    assert await store.body(OURS, "r") is not None


async def test_each_project_has_ids_of_its_own(store: ResponseStore) -> None:
    store.put(OURS, kept("r", text="ours"))
    store.put(THEIRS, kept("r", text="theirs"))
    assert await store.body(OURS, "r") == kept("r", text="ours").body
    assert await store.body(THEIRS, "r") == kept("r", text="theirs").body


async def test_unknown_and_impossible_ids_are_not_found(store: ResponseStore) -> None:
    for name in ("", "unknown", "x" * 5000, "nul\0", "é", "a\nb"):
        assert await store.body(OURS, name) is None
        assert await store.links(OURS, name) == []
        assert await store.items(OURS, [name]) == {}
        assert not await store.delete(OURS, name)


async def test_an_impossible_id_is_not_kept(store: ResponseStore) -> None:
    for name in ("", "x" * 257, "nul\0"):
        assert not store.put(OURS, kept(name))


async def test_a_conversation_comes_newest_first(store: ResponseStore) -> None:
    for name, previous in (("a", ""), ("b", "a"), ("c", "b"), ("other", "a")):
        store.put(OURS, kept(name, previous))
    assert await store.links(OURS, "c") == [
        kept("c", "b").link,
        kept("b", "a").link,
        kept("a").link,
    ]


async def test_what_was_deleted_is_gone_from_conversations_too(store: ResponseStore) -> None:
    for name, previous in (("a", ""), ("b", "a"), ("c", "b")):
        store.put(OURS, kept(name, previous))
    assert await store.delete(OURS, "b")
    assert not await store.delete(OURS, "b")
    assert await store.body(OURS, "b") is None
    assert await store.links(OURS, "c") == [kept("c", "b").link]
    assert await store.items(OURS, ["b_in", "b_out"]) == {}


async def test_what_expired_is_gone(store: ResponseStore, clock: Clock) -> None:
    store.put(OURS, kept("old", days=1))
    store.put(OURS, kept("new", "old", days=2))
    clock.now += DAY
    assert await store.body(OURS, "old") is None
    assert await store.links(OURS, "old") == []
    assert await store.links(OURS, "new") == [kept("new", "old").link]
    assert list(await store.items(OURS, ["old_in", "new_in"])) == ["new_in"]
    assert not await store.delete(OURS, "old")


async def test_items_are_found_by_their_id(store: ResponseStore) -> None:
    store.put(OURS, kept("a"))
    store.put(OURS, kept("b", "a"))
    found = await store.items(OURS, ["a_in", "b_out", "nowhere", "a_in"])
    assert found == {"a_in": message("a_in"), "b_out": message("b_out", "HI")}


async def test_items_without_a_proper_id_do_no_harm(store: ResponseStore) -> None:
    items = ("{}", "3", "null", '{"id":null}', '{"id":7}', '{"id":"nul\\u0000"}', '{"id":"é"}')
    stored = Stored(Link("r", "", tuple(map(raw, items)), ()), b"{}", NOW, NOW + DAY)
    assert store.put(OURS, stored)
    (link,) = await store.links(OURS, "r")
    assert [bytes(item).decode() for item in link.input] == list(items)


async def test_the_latest_of_one_id_counts(store: ResponseStore) -> None:
    store.put(OURS, kept("r", "a", text="first"))
    store.put(OURS, kept("r", text="second"))
    assert await store.body(OURS, "r") == kept("r", text="second").body
    assert await store.links(OURS, "r") == [kept("r", text="second").link]


async def test_a_large_response_is_kept_whole(store: ResponseStore) -> None:
    large = kept("r", text="0123456789abcdef" * (5 << 16))
    assert store.put(OURS, large)
    assert await store.body(OURS, "r") == large.body
    assert await store.links(OURS, "r") == [large.link]


# -- the real one: writing behind -----------------------------------------------------------------


async def test_a_later_response_of_one_id_replaces_a_written_one(
    responses: PostgresResponses,
) -> None:
    responses.put(OURS, kept("r", "a", text="first"))
    await written(responses)
    responses.put(OURS, kept("r", text="second"))
    await written(responses)
    assert await responses.links(OURS, "r") == [kept("r", text="second").link]


async def test_a_conversation_may_be_half_written(responses: PostgresResponses) -> None:
    responses.put(OURS, kept("a"))
    responses.put(OURS, kept("b", "a"))
    await written(responses)
    responses.put(OURS, kept("c", "b"))
    assert [link.id for link in await responses.links(OURS, "c")] == ["c", "b", "a"]
    responses.put(OURS, kept("a", text="again"))
    assert [link.id for link in await responses.links(OURS, "c")] == ["c", "b", "a"]


async def test_the_newest_item_of_an_id_is_taken(responses: PostgresResponses) -> None:
    for number, name in enumerate(("a", "b", "c")):
        link = Link(name, "", (message("same", name),), ())
        responses.put(OURS, Stored(link, b"{}", NOW + number, NOW + DAY))
    assert await responses.items(OURS, ["same"]) == {"same": message("same", "c")}
    await written(responses)
    assert await responses.items(OURS, ["same"]) == {"same": message("same", "c")}


async def test_conversations_too_long_for_a_request_are_refused(
    responses: PostgresResponses, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state, "LINKS_MAX", 3)
    for number in range(6):
        responses.put(OURS, kept(f"r{number}", f"r{number - 1}" if number else ""))
    await written(responses)
    assert len(await responses.links(OURS, "r2")) == 3
    with pytest.raises(RequestTooLarge):
        await responses.links(OURS, "r5")
    monkeypatch.setattr(state, "LINKS_MAX", 100)
    monkeypatch.setattr(state, "HISTORY_BYTES_MAX", 250)
    with pytest.raises(RequestTooLarge):
        await responses.links(OURS, "r5")


async def test_a_circle_is_too_long(
    responses: PostgresResponses, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state, "LINKS_MAX", 20)
    responses.put(OURS, kept("a", "b"))
    responses.put(OURS, kept("b", "a"))
    with pytest.raises(RequestTooLarge):
        await responses.links(OURS, "a")
    await written(responses)
    with pytest.raises(RequestTooLarge):
        await responses.links(OURS, "a")


async def test_many_at_once(responses: PostgresResponses) -> None:
    async def customer(number: int) -> None:
        project = number % 2 + 1
        previous = ""
        for turn in range(10):
            name = f"r{number}_{turn}"
            assert responses.put(project, kept(name, previous))
            assert len(await responses.links(project, name)) == turn + 1
            assert await responses.body(project, name) == kept(name).body
            previous = name
        assert await responses.delete(project, previous)
        assert await responses.body(project, previous) is None

    async with writing(responses), trio.open_nursery() as nursery:
        for number in range(20):
            nursery.start_soon(customer, number)
    assert (responses.pending, responses.dropped) == (0, 0)
    for number in range(20):
        assert await responses.body(number % 2 + 1, f"r{number}_9") is None
        assert len(await responses.links(number % 2 + 1, f"r{number}_8")) == 9


async def test_two_workers_agree_on_the_project_key(
    database: str, responses: PostgresResponses, clock: Clock
) -> None:
    other = PostgresResponses(database, SECRET, clock)
    responses.put(OURS, kept("a"))
    other.put(OURS, kept("b", "a"))
    async with writing(responses, other):
        pass
    assert len(await responses.links(OURS, "b")) == len(await other.links(OURS, "b")) == 2
    await other.aclose()


async def test_when_there_is_no_room_it_is_lost_and_counted(
    responses: PostgresResponses, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state, "_PENDING_MAX", 2)
    assert [responses.put(OURS, kept(f"r{n}")) for n in range(4)] == [True, True, False, False]
    assert (responses.pending, responses.dropped) == (2, 2)
    assert await responses.body(OURS, "r2") is None
    await written(responses)
    monkeypatch.setattr(state, "_PENDING_BYTES_MAX", 10)
    assert [responses.put(OURS, kept(f"s{n}")) for n in range(2)] == [True, False]


async def test_one_that_the_database_refuses_takes_no_other_with_it(
    database: str, responses: PostgresResponses
) -> None:
    logged: list[str] = []
    store = PostgresResponses(database, SECRET, lambda: NOW, log=logged.append)
    store.put(OURS, kept("a"))
    store.put(OURS, Stored(kept("b").link, b"{}", NOW, 1e30))  # beyond what a timestamp can be
    store.put(OURS, kept("c"))
    await written(store)
    assert await store.body(OURS, "a") is not None
    assert await store.body(OURS, "c") is not None
    assert await store.body(OURS, "b") is None
    assert store.dropped == 1
    assert len(logged) == 1
    await store.aclose()


# -- the real one: sealed, and gone ---------------------------------------------------------------


async def test_nothing_can_be_read_in_the_database(
    database: str, responses: PostgresResponses
) -> None:
    responses.put(OURS, kept("r", text="confidential"))
    await written(responses)
    with psycopg.connect(database) as connection:
        for table in ("response", "item", "project_key"):
            rows = connection.execute(f"SELECT * FROM stored.{table}".encode()).fetchall()
            assert rows
            assert b"confidential" not in repr(rows).lower().encode()


async def test_another_secret_reads_nothing_and_begins_anew(
    database: str, responses: PostgresResponses, clock: Clock
) -> None:
    responses.put(OURS, kept("r"))
    await written(responses)
    other = PostgresResponses(database, SECRET[::-1], clock)
    assert await other.body(OURS, "r") is None
    assert await other.links(OURS, "r") == []
    assert await other.items(OURS, ["r_in"]) == {}
    other.put(OURS, kept("s", "r"))
    await written(other)
    assert await other.body(OURS, "s") == kept("s").body
    assert [link.id for link in await other.links(OURS, "s")] == ["s"]
    assert await responses.body(OURS, "s") is None
    assert await responses.body(OURS, "r") == kept("r").body  # the old secret is back
    await other.aclose()


@pytest.mark.parametrize("column", ["items", "body"])
async def test_damaged_content_is_not_found_and_logged(
    database: str, projects: Directory, column: str
) -> None:
    logged: list[str] = []
    store = PostgresResponses(database, SECRET, lambda: NOW, log=logged.append)
    store.put(OURS, kept("r"))
    await written(store)
    with psycopg.connect(database) as connection:
        connection.execute(f"UPDATE stored.response SET {column} = '\\x00'".encode())
    assert (await store.body(OURS, "r") is None) == (column == "body")
    assert (await store.links(OURS, "r") == []) == (column == "items")
    assert len(logged) == 1
    await store.aclose()


async def test_a_damaged_key_loses_one_project_only(database: str, projects: Directory) -> None:
    logged: list[str] = []
    store = PostgresResponses(database, SECRET, lambda: NOW, log=logged.append)
    store.put(OURS, kept("r"))
    await written(store)
    with psycopg.connect(database) as connection:
        connection.execute("UPDATE stored.project_key SET wrapped = '\\x00'")
    store.put(OURS, kept("s"))
    store.put(THEIRS, kept("s"))
    await written(store)
    assert await store.body(OURS, "r") is None
    assert await store.body(OURS, "s") is None
    assert await store.body(THEIRS, "s") is not None
    await store.aclose()


async def test_sealed_content_cannot_be_put_in_anothers_place(
    database: str, responses: PostgresResponses
) -> None:
    responses.put(OURS, kept("a"))
    responses.put(OURS, kept("b"))
    await written(responses)
    with psycopg.connect(database) as connection:
        connection.execute(
            "UPDATE stored.response SET body ="
            " (SELECT body FROM stored.response WHERE response_id = 'b') WHERE response_id = 'a'"
        )
    assert await responses.body(OURS, "a") is None
    assert await responses.body(OURS, "b") is not None


async def test_with_its_project_all_is_gone(
    database: str, projects: Directory, responses: PostgresResponses
) -> None:
    responses.put(OURS, kept("r"))
    responses.put(THEIRS, kept("r"))
    await written(responses)
    projects.delete_project("a", "ours")
    assert scalar(database, "SELECT array_agg(project_id) FROM stored.project_key") == [THEIRS]
    assert await responses.body(OURS, "r") is None
    assert await responses.links(OURS, "r") == []
    assert await responses.items(OURS, ["r_in"]) == {}
    assert await responses.purge(NOW) == 1
    assert scalar(database, "SELECT array_agg(project_id) FROM stored.response") == [THEIRS]
    assert scalar(database, "SELECT count(*) FROM stored.item WHERE project_id = 1") == 0
    assert await responses.body(THEIRS, "r") is not None


async def test_nothing_is_written_for_a_project_that_was_deleted(
    database: str, projects: Directory, responses: PostgresResponses
) -> None:
    responses.put(OURS, kept("r"))
    responses.put(THEIRS, kept("r"))
    projects.delete_project("a", "ours")
    await written(responses)
    assert scalar(database, "SELECT array_agg(project_id) FROM stored.response") == [THEIRS]
    assert scalar(database, "SELECT array_agg(project_id) FROM stored.project_key") == [THEIRS]


async def test_purging_deletes_what_has_expired_and_nothing_else(
    database: str, responses: PostgresResponses, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state, "_PURGE_ROWS", 2)
    for number in range(5):
        responses.put(OURS, kept(f"old{number}", days=1))
        responses.put(OURS, kept(f"new{number}", days=2))
    await written(responses)
    assert await responses.purge(NOW + DAY) == 5
    assert scalar(database, "SELECT count(*) FROM stored.response") == 5
    assert scalar(database, "SELECT count(*) FROM stored.item") == 10
    assert await responses.body(OURS, "new4") is not None


# -- the database away ----------------------------------------------------------------------------


async def test_away_what_waits_is_served_and_the_rest_is_a_503(clock: Clock) -> None:
    logged: list[str] = []
    store = PostgresResponses("host=127.0.0.1 port=1", SECRET, clock, log=logged.append)
    async with writing(store):
        assert store.put(OURS, kept("r"))
        assert await store.body(OURS, "r") == kept("r").body
        assert await store.links(OURS, "r") == [kept("r").link]
        for call in (
            store.body(OURS, "other"),
            store.links(OURS, "other"),
            store.items(OURS, ["r_in", "other"]),
            store.delete(OURS, "other"),
            store.purge(NOW),
        ):
            with pytest.raises(Overloaded) as refused:
                await call
            assert refused.value.status == 503
    assert store.dropped == 1
    assert [line.split(":")[0] for line in logged] == [
        "stored responses wait in memory",
        "stored responses",
    ]
    await store.aclose()


async def test_what_waited_is_written_when_the_database_is_back(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state, "_RETRY_SECONDS", 0.05)
    server = EmbeddedPostgres(tmp_path, settings=FAST)
    conninfo = server.start()
    log, logged = trio.open_memory_channel[str](10)
    store = PostgresResponses(conninfo, SECRET, clock, log=log.send_nowait)
    try:
        migrate(conninfo)
        with Directory(conninfo) as directory:
            directory.create_account("a")
            directory.create_project("a", "ours")
        store.put(OURS, kept("before"))
        await written(store)
        assert await store.body(OURS, "before") is not None  # a connection waits now
        await trio.to_thread.run_sync(server.stop)
        async with writing(store):
            store.put(OURS, kept("during", "before"))
            assert "wait in memory" in await logged.receive()
            assert await store.body(OURS, "during") is not None
            with pytest.raises(Overloaded):
                await store.links(OURS, "during")
            await trio.to_thread.run_sync(server.start)
            with trio.fail_after(30):
                assert "written again" in await logged.receive()
            assert store.pending == 0
        assert len(await store.links(OURS, "during")) == 2
        assert store.dropped == 0
    finally:
        await store.aclose()
        server.stop()
