"""Kept answers: who gets a key, what a retry finds, and how long; in memory as on a database."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

import psycopg
import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adapters import registry
from adapters.codec import Ask
from adapters.errors import InvalidAPIKey, InvalidRequest, Overloaded
from ledger.directory import Directory
from proxy import idempotency
from proxy.answers import Answer, AnswerStore, Asked, PostgresAnswers, State
from proxy.record import new_request_id
from proxy.request_head import Head
from proxy.state import Link, PostgresResponses, Stored
from tests.fakes.responses import MemoryAnswers

SECRET = bytes(range(32))
NOW = 1_800_000_000.0
STALE = NOW + 1000
EXPIRES = NOW + 86_400
ACCOUNT, OURS, THEIRS = 1, 1, 2
LOCKS = (
    "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND granted AND objsubid = 1"
    " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
)
SAID = Answer(200, [("content-type", "text/event-stream"), ("x", "1")], b"data: \x00\xff\n\n")


def new_id() -> bytes:
    """Another one each time, also where chance is made to repeat itself."""
    return new_request_id(time.time_ns() // 1_000_000)


def asked(key: str = "k", **options: object) -> Asked:
    """A request of ours with a key; each has an id of its own."""
    known: dict[str, object] = {
        "account_id": ACCOUNT,
        "key": key,
        "project_id": OURS,
        "request_id": new_id(),
        "fingerprint": b"f" * 32,
        "stale": STALE,
        "expires": EXPIRES,
    }
    return Asked(**(known | options))  # type: ignore[arg-type] # keyword options


@pytest.fixture
def projects(database: str) -> Iterator[Directory]:
    """Account 1 with projects 1 (ours) and 2 (theirs)."""
    with Directory(database, secret=SECRET) as directory:
        directory.create_account("a")
        directory.create_project("a", "ours")
        directory.create_project("a", "theirs")
        yield directory


@contextlib.asynccontextmanager
async def opened(database: str, secret: bytes = SECRET) -> AsyncIterator[PostgresAnswers]:
    store = PostgresAnswers(database, secret, log=lambda _: None)
    try:
        yield store
    finally:
        await store.aclose()


@contextlib.asynccontextmanager
async def living(database: str) -> AsyncIterator[PostgresAnswers]:
    """A store whose process lives for the time of the block, as the database sees it."""
    async with opened(database) as store, trio.open_nursery() as services:
        services.start_soon(store.run)
        await until(database, LOCKS, 1)
        yield store
        services.cancel_scope.cancel()


async def until(database: str, statement: str, rows: int) -> None:
    """Until the database has so many rows."""
    with trio.fail_after(60):
        while len(execute(database, statement)) != rows:
            await trio.lowlevel.checkpoint()


@pytest.fixture
async def answers(database: str, projects: Directory) -> AsyncIterator[PostgresAnswers]:
    async with opened(database) as store:
        yield store


@pytest.fixture(params=["memory", "postgres"])
def store(request: pytest.FixtureRequest, answers: PostgresAnswers) -> AnswerStore:
    """The store of the tests, and the real one."""
    return MemoryAnswers() if request.param == "memory" else answers


def execute(database: str, statement: str, *parameters: object) -> list[tuple[object, ...]]:
    with psycopg.connect(database, autocommit=True) as connection:
        cursor = connection.execute(statement.encode(), parameters)
        return cursor.fetchall() if cursor.description else []


# -- what every store does ------------------------------------------------------------------------


async def test_the_first_gets_the_key_and_the_next_hears_of_it(store: AnswerStore) -> None:
    first, retry = asked(), asked()
    assert await store.claim(first, NOW) is None
    assert await store.claim(first, NOW) is None  # a call that was made again
    earlier = await store.claim(retry, NOW)
    assert earlier is not None
    assert (earlier.request_id, earlier.project_id) == (first.request_id, OURS)
    assert (earlier.fingerprint, earlier.state) == (b"f" * 32, State.RUNNING)


async def test_an_answer_is_found_byte_for_byte(store: AnswerStore) -> None:
    first = asked()
    await store.claim(first, NOW)
    assert await store.keep(first, SAID, "")
    assert await store.keep(first, SAID, "")  # a reply that was lost
    earlier = await store.claim(asked(), NOW)
    assert earlier is not None
    assert (earlier.state, earlier.answer) == (State.ANSWERED, SAID)
    assert earlier.request_id == first.request_id


async def test_each_account_and_each_key_is_its_own(store: AnswerStore) -> None:
    await store.claim(asked(), NOW)
    assert await store.claim(asked("K"), NOW) is None
    assert await store.claim(asked("k "), NOW) is None


@pytest.mark.parametrize("other", [{"project_id": THEIRS}, {"fingerprint": b"g" * 32}])
async def test_who_asks_for_something_else_gets_no_answer(
    store: AnswerStore, other: dict[str, object]
) -> None:
    first = asked()
    await store.claim(first, NOW)
    await store.keep(first, SAID, "")
    earlier = await store.claim(asked("k", **other), NOW)
    assert earlier is not None
    assert earlier.answer is None
    assert (earlier.project_id, earlier.fingerprint) == (OURS, b"f" * 32)
    assert await store.claim(asked("k", **other), STALE) is not None  # and no stale row either


async def test_an_answer_that_is_not_kept_is_lost_but_given(store: AnswerStore) -> None:
    first = asked()
    await store.claim(first, NOW)
    assert await store.keep(first, None, "")
    for now in (NOW, STALE):
        earlier = await store.claim(asked(), now)
        assert earlier is not None
        assert (earlier.state, earlier.answer) == (State.LOST, None)


async def test_what_was_given_back_can_be_claimed(store: AnswerStore) -> None:
    first, second = asked(), asked()
    await store.claim(first, NOW)
    await store.forget(second)  # not its own
    assert await store.claim(second, NOW) is not None
    await store.forget(first)
    assert await store.claim(second, NOW) is None
    assert not await store.keep(first, SAID, "")


async def test_what_is_answered_cannot_be_given_back(store: AnswerStore) -> None:
    first = asked()
    await store.claim(first, NOW)
    await store.keep(first, SAID, "")
    await store.forget(first)
    assert await store.claim(asked(), NOW) is not None


async def test_a_stale_key_is_taken_over_and_its_first_owner_finds_out(store: AnswerStore) -> None:
    first, second = asked(), asked(stale=STALE + 1000)
    await store.claim(first, NOW)
    assert await store.claim(second, STALE - 1) is not None
    assert await store.claim(second, STALE) is None
    assert not await store.keep(first, SAID, "")
    await store.forget(first)
    assert await store.keep(second, SAID, "")
    earlier = await store.claim(asked(), STALE + 5000)  # answers do not become stale
    assert earlier is not None
    assert earlier.request_id == second.request_id


@pytest.mark.parametrize("answered", [False, True])
async def test_after_a_day_a_key_is_new(store: AnswerStore, answered: bool) -> None:
    first = asked()
    await store.claim(first, NOW)
    if answered:
        await store.keep(first, SAID, "")
    other = asked(fingerprint=b"g" * 32, expires=EXPIRES + 86_400)
    assert await store.claim(other, EXPIRES - 1) is not None
    assert await store.claim(other, EXPIRES) is None
    assert not await store.keep(first, SAID, "")
    assert await store.purge(EXPIRES) == 0
    assert await store.purge(EXPIRES + 86_400) == 1
    assert not await store.keep(other, SAID, "")


# -- the database ---------------------------------------------------------------------------------


async def test_of_many_at_once_one_gets_the_key(database: str, projects: Directory) -> None:
    """Two workers, each with connections of its own."""
    won: list[bytes] = []

    async def claim(store: PostgresAnswers, request: Asked) -> None:
        if await store.claim(request, NOW) is None:
            won.append(request.request_id)

    async with opened(database) as left, opened(database) as right:
        for key in map(str, range(10)):
            async with trio.open_nursery() as nursery:
                for store in (left, right) * 8:
                    nursery.start_soon(claim, store, asked(key))
    assert len(won) == 10


async def test_of_many_that_take_over_one_gets_the_key(database: str, projects: Directory) -> None:
    won: list[bytes] = []

    async def claim(store: PostgresAnswers) -> None:
        request = asked(stale=STALE + 1000)
        if await store.claim(request, STALE) is None:
            won.append(request.request_id)

    async with opened(database) as left, opened(database) as right:
        await left.claim(asked(), NOW)
        async with trio.open_nursery() as nursery:
            for store in (left, right) * 8:
                nursery.start_soon(claim, store)
    assert len(won) == 1


async def test_keeping_and_taking_over_at_once_serve_one_of_them(
    database: str, projects: Directory
) -> None:
    """Whoever comes first: never may both be charged."""
    async with opened(database) as left, opened(database) as right:
        for key in map(str, range(20)):
            first, second = asked(key), asked(key, stale=STALE + 1000)
            await left.claim(first, NOW)
            outcomes: list[bool] = []

            async def keep(request: Asked, outcomes: list[bool]) -> None:
                outcomes.append(await left.keep(request, SAID, ""))

            async def take_over(request: Asked, outcomes: list[bool]) -> None:
                outcomes.append(await right.claim(request, STALE) is None)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(keep, first, outcomes)
                nursery.start_soon(take_over, second, outcomes)
            assert sorted(outcomes) == [False, True]


async def test_what_died_with_its_process_is_taken_over_at_once(
    database: str, answers: PostgresAnswers
) -> None:
    first, second = asked(), asked()
    async with living(database) as store:
        assert await store.claim(first, NOW) is None
        assert await store.claim(first, NOW) is None  # a call that was made again
        assert await store.claim(second, NOW) is not None
        assert await answers.claim(second, NOW) is not None
    await until(database, LOCKS, 0)
    assert await answers.claim(asked(fingerprint=b"g" * 32), NOW) is not None
    assert await answers.claim(asked(project_id=THEIRS), NOW) is not None
    assert await answers.claim(second, NOW) is None
    assert not await answers.keep(first, SAID, "")
    assert await answers.keep(second, SAID, "")


async def test_what_was_answered_outlives_its_process(
    database: str, answers: PostgresAnswers
) -> None:
    first = asked()
    async with living(database) as store:
        await store.claim(first, NOW)
        await store.keep(first, SAID, "")
    await until(database, LOCKS, 0)
    earlier = await answers.claim(asked(), NOW)
    assert earlier is not None
    assert earlier.answer == SAID


async def test_a_process_that_was_never_seen_is_not_taken_for_dead(
    answers: PostgresAnswers,
) -> None:
    await answers.claim(asked(), NOW)
    assert await answers.claim(asked(), NOW) is not None


async def test_many_ask_for_a_dead_process_at_once_and_each_gets_its_key(
    database: str, answers: PostgresAnswers
) -> None:
    keys = [str(number) for number in range(12)]
    async with living(database) as store:
        for key in keys:
            await store.claim(asked(key), NOW)
    await until(database, LOCKS, 0)
    refused: list[str] = []

    async def claim(key: str) -> None:
        if await answers.claim(asked(key), NOW) is not None:
            refused.append(key)

    async with trio.open_nursery() as nursery:
        for key in keys:
            nursery.start_soon(claim, key)
    assert not refused


async def test_who_lost_the_connection_is_soon_seen_again(
    database: str, answers: PostgresAnswers
) -> None:
    async with living(database) as store:
        await store.claim(asked("before"), NOW)
        ((before,),) = execute(database, LOCKS)
        execute(database, "SELECT pg_terminate_backend(%s)", before)
        while before in (found := {pid for (pid,) in execute(database, LOCKS)}) or not found:
            await trio.lowlevel.checkpoint()
        await store.claim(asked("after"), NOW)
        for key in ("before", "after"):
            assert await answers.claim(asked(key), NOW) is not None


@pytest.mark.unsound_books("events without their batch")
async def test_a_stale_row_that_the_books_charged_counts_as_answered(
    database: str, answers: PostgresAnswers
) -> None:
    for key, charge in (("free", 0), ("paid", 5)):
        first = asked(key)
        await answers.claim(first, NOW)
        execute(
            database,
            "INSERT INTO ledger.usage_event (recorded_at, occurred_at, seq, account_id, key_id,"
            " price_id, reserved, cost, charge, holder_id, model_id, provider_id, tok_in,"
            " tok_cached, tok_out, tok_reason, ttfb_ms, duration_ms, status, endpoint, request_id)"
            " VALUES (to_timestamp(%s), now(), 1, 1, 1, 1, 9, 5, %s, 1, 1, 1, 1, 0, 1, 0, 1, 1, 1,"
            " 1, %s::uuid)",
            NOW + 10,
            charge,
            first.request_id.hex(),
        )
    assert await answers.claim(asked("free"), STALE) is None
    for now in (STALE, STALE + 5000):
        earlier = await answers.claim(asked("paid"), now)
        assert earlier is not None
        assert (earlier.state, earlier.answer) == (State.LOST, None)


async def test_nothing_of_an_answer_can_be_read_in_the_database(
    database: str, answers: PostgresAnswers
) -> None:
    first = asked()
    await answers.claim(first, NOW)
    secret = Answer(200, [("x-secret", "header")], b"secret body " * 50)
    await answers.keep(first, secret, "")
    ((content, fingerprint),) = execute(database, "SELECT content, fingerprint FROM stored.answer")
    assert isinstance(content, bytes)
    assert b"secret" not in content
    assert fingerprint == first.fingerprint


async def test_another_s_content_in_a_row_is_lost(database: str, answers: PostgresAnswers) -> None:
    for key in ("a", "b"):
        first = asked(key)
        await answers.claim(first, NOW)
        await answers.keep(first, SAID, "")
    execute(
        database,
        "UPDATE stored.answer SET content = (SELECT content FROM stored.answer WHERE key = 'b')"
        " WHERE key = 'a'",
    )
    earlier = await answers.claim(asked("a"), NOW)
    assert earlier is not None
    assert earlier.state is State.LOST


async def test_under_another_secret_an_answer_is_lost_and_not_made_again(
    database: str, answers: PostgresAnswers
) -> None:
    first = asked()
    await answers.claim(first, NOW)
    await answers.keep(first, SAID, "")
    async with opened(database, b"another secret of thirty-two by.") as other:
        earlier = await other.claim(asked(fingerprint=b"g" * 32), NOW)
        assert earlier is not None
        assert (earlier.state, earlier.fingerprint) == (State.LOST, b"g" * 32)
    earlier = await answers.claim(asked(), NOW)
    assert earlier is not None
    assert earlier.answer == SAID


async def test_a_deleted_project_takes_its_answers_with_it(
    database: str, projects: Directory, answers: PostgresAnswers
) -> None:
    kept, running = asked("kept"), asked("running")
    for request in (kept, running):
        await answers.claim(request, NOW)
    await answers.keep(kept, SAID, "")
    projects.delete_project("a", "ours")
    assert await answers.keep(running, SAID, "")  # it was answered, and may be charged
    assert execute(database, "SELECT content FROM stored.answer WHERE key = 'running'") == [(None,)]
    with pytest.raises(InvalidAPIKey):
        await answers.claim(asked("kept"), NOW)
    earlier = await answers.claim(asked("kept", project_id=THEIRS), NOW)
    assert earlier is not None
    assert earlier.answer is None
    assert await answers.purge(NOW) == 2


async def test_a_deleted_response_does_not_come_back(
    database: str, answers: PostgresAnswers
) -> None:
    responses = PostgresResponses(database, SECRET, lambda: NOW, log=lambda _: None)
    for key, name in (("a", "resp_a"), ("b", "resp_b")):
        first = asked(key)
        await answers.claim(first, NOW)
        await answers.keep(first, SAID, name)
        responses.put(OURS, Stored(Link(name, "", (), ()), b"{}", NOW, EXPIRES))
    assert not await responses.delete(THEIRS, "resp_a")
    assert await responses.delete(OURS, "resp_a")
    states = [
        earlier.state
        for key in ("a", "b")
        if (earlier := await answers.claim(asked(key), NOW)) is not None
    ]
    assert states == [State.LOST, State.ANSWERED]
    await responses.aclose()


async def test_a_purge_takes_what_has_expired_and_no_more(answers: PostgresAnswers) -> None:
    for number in range(1203):
        await answers.claim(asked(str(number), expires=NOW + number % 2), NOW)
    assert await answers.purge(NOW) == 602
    assert await answers.purge(NOW + 1) == 601


async def test_a_database_that_is_away_is_said_so(database: str) -> None:
    store = PostgresAnswers("host=127.0.0.1 port=1 dbname=x", SECRET, log=lambda _: None)
    calls: list[Callable[[], Awaitable[object]]] = [
        lambda: store.claim(asked(), NOW),
        lambda: store.keep(asked(), SAID, ""),
        lambda: store.forget(asked()),
        lambda: store.purge(NOW),
    ]
    for call in calls:
        with pytest.raises(Overloaded):
            await call()


async def test_a_claim_that_was_given_up_leaves_no_row(
    database: str, answers: PostgresAnswers
) -> None:
    """The database is slow, the caller goes, and only then the row is inserted."""
    with psycopg.connect(database) as blocker:
        blocker.execute("LOCK TABLE stored.answer IN SHARE MODE")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(answers.claim, asked(), NOW)
            while not execute(database, "SELECT 1 FROM pg_locks WHERE NOT granted"):
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
        blocker.rollback()
    number = 0
    while execute(database, "SELECT 1 FROM stored.answer WHERE key = 'k'") or not number:
        number += 1
        await answers.claim(asked(str(number)), NOW)
    assert await answers.claim(asked(), NOW) is None


# -- keys and fingerprints ------------------------------------------------------------------------


def head_of(key: bytes | None) -> Head:
    headers = {b"host": b"x"} | ({} if key is None else {b"idempotency-key": key})
    return Head("POST", "/v1/chat/completions", "", headers)


CHAT = registry.find("POST", "/v1/chat/completions").operation


@given(st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), min_size=1, max_size=255))
def test_printable_keys_are_taken_as_they_are(key: str) -> None:
    if key == key.strip():  # else it is the header's own white space
        assert idempotency.key_of(head_of(key.encode()), CHAT) == key


@pytest.mark.parametrize("key", [b"", b"x" * 256, b"\xe9", b"a\tb", "caf\u00e9".encode()])
def test_other_keys_are_refused(key: bytes) -> None:
    with pytest.raises(InvalidRequest, match="Idempotency-Key"):
        idempotency.key_of(head_of(key), CHAT)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/models"),
        ("POST", "/v1/messages/count_tokens"),
        ("POST", "/v1/responses/input_tokens"),
        ("DELETE", "/v1/responses/resp_1"),
        ("POST", "/v1/responses/resp_1/cancel"),
    ],
)
def test_what_generates_nothing_has_no_key(method: str, path: str) -> None:
    operation = registry.find(method, path).operation
    assert idempotency.key_of(head_of(b"\xff"), operation) is None


def test_no_header_no_key() -> None:
    assert idempotency.key_of(head_of(None), CHAT) is None


async def printed(method: str, path: str, query: str, body: bytes, secret: bytes = SECRET) -> bytes:
    operation, name = registry.find(method, path, query)
    return await idempotency.fingerprint(secret, operation, Ask(name, query), body)


async def test_the_fingerprint_tells_requests_apart() -> None:
    gemini = "/v1beta/models/{}:generateContent"
    distinct = [
        await printed("POST", "/v1/chat/completions", "", b"{}"),
        await printed("POST", "/v1/chat/completions", "", b"{} "),
        await printed("POST", "/v1/chat/completions", "x=1", b"{}"),
        await printed("POST", "/v1/responses", "", b"{}"),
        await printed("POST", "/v1/messages", "", b"{}"),
        await printed("POST", gemini.format("a"), "", b"{}"),
        await printed("POST", gemini.format("b"), "", b"{}"),
        await printed("POST", gemini.format("b"), "$alt=json", b"{}"),
        await printed("POST", "/v1/messages", "", b"{}", b"another secret"),
        await printed("POST", "/v1/messages", "", b"x" * 3_000_000),
    ]
    assert len(set(distinct)) == len(distinct)


async def test_the_fingerprint_of_a_retry_is_the_same() -> None:
    gemini = "/v1beta/models/a:generateContent"
    plain = await printed("POST", gemini, "b=2&a=1", b"{}")
    assert await printed("POST", gemini, "key=sk_1&a=1&b=2", b"{}") == plain
    assert await printed("POST", f"/gemini{gemini}", "a=1&key=sk_2&b=2", b"{}") == plain


def test_the_room_for_answers_is_bounded() -> None:
    room = idempotency.Answers(MemoryAnswers(), lambda: NOW)
    assert room.take(idempotency.RECORDED_BYTES_MAX)
    assert not room.take(1)
    room.give_back(1)
    assert room.take(1)


# -- what charging once rests on ------------------------------------------------------------------

STEPS = st.lists(
    st.tuples(
        st.sampled_from(["claim", "keep", "forget", "die"]),
        st.integers(0, 3),  # whose turn it is
        st.integers(0, 600),  # minutes that pass before it
    ),
    max_size=40,
)


async def play(
    store: AnswerStore, die: Callable[[bytes], object], steps: list[tuple[str, int, int]], key: str
) -> list[object]:
    """What several callers hear who do things with one key, each when it likes.

    Whoever may charge is the only one for as long as the answer lasts, however the key was had:
    also where somebody who seems to `die` goes on.
    """
    heard: list[object] = []
    now, over = NOW, 0.0
    charged: bytes | None = None
    requests = [asked(key) for _ in range(4)]
    for step, index, minutes in steps:
        now += minutes * 60
        request = requests[index]
        if step == "claim":
            made = {"request_id": new_id(), "stale": now + 1000, "expires": now + 86_400}
            request = requests[index] = asked(key, **made)
            earlier = await store.claim(request, now)
            if charged is not None and now < over:
                assert earlier is not None
                assert (earlier.request_id, earlier.answer) == (charged, SAID)
            heard.append(None if earlier is None else (earlier.state, earlier.answer))
        elif step == "keep" and await store.keep(request, SAID, ""):
            assert charged in (None, request.request_id) or over <= now
            charged, over = request.request_id, request.expires
            heard.append(index)
        elif step == "forget":
            await store.forget(request)
        elif step == "die":
            die(request.request_id)
    return heard


async def play_in_memory(steps: list[tuple[str, int, int]]) -> list[object]:
    store = MemoryAnswers()
    return await play(store, store.died.add, steps, "k")


@given(steps=STEPS)
def test_one_a_day_may_charge(steps: list[tuple[str, int, int]]) -> None:
    trio.run(play_in_memory, steps)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(steps=STEPS)
def test_one_a_day_may_charge_in_the_database_too(
    database: str, projects: Directory, steps: list[tuple[str, int, int]]
) -> None:
    """And both stores say the same at every step."""

    def die(request_id: bytes) -> None:
        """Nobody holds this number's lock."""
        made_by = "UPDATE stored.answer SET maker = 1 WHERE request_id = %s::uuid"
        execute(database, made_by, request_id.hex())

    async def compare() -> None:
        async with opened(database) as store:
            key = new_id().hex()
            assert await play(store, die, steps, key) == await play_in_memory(steps)

    trio.run(compare)
