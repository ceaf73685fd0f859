"""Valkey itself: the script does what the model says, the client keeps deadlines, the lane asks."""

from __future__ import annotations

import importlib.util
import itertools
import threading
from collections.abc import Iterator, Sequence
from typing import Literal

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from ledger import valkey
from ledger.draws import (
    EXPIRY_SECONDS,
    UNITS,
    Draw,
    DrawReply,
    RightsAsk,
    RightsReply,
    SlotsAsk,
    SlotsReply,
)
from ledger.fleet import POLL_SECONDS, FleetLimiter
from ledger.limits import LimitRef, NotYet
from ledger.valkey import QuotaLane, QuotasUnavailable, ValkeyQuotas, parse_url, read_reply
from tests.fakes.valkey import ModelValkey, ValkeyServer, serve

PATIENCE_SECONDS = 10.0  # a busy machine is not what is tested
RPM = LimitRef("account:1", "rpm", 60)

_names = itertools.count()


@pytest.fixture(scope="module")
def server() -> Iterator[ValkeyServer]:
    with serve() as server:
        yield server


def draw_of(
    number: int, *asks: RightsAsk | SlotsAsk, holder: str = "a", tag: str | None = None
) -> Draw:
    return Draw(
        tag or "account:1",
        holder,
        number,
        tuple(ask for ask in asks if isinstance(ask, RightsAsk)),
        tuple(ask for ask in asks if isinstance(ask, SlotsAsk)),
    )


def fresh() -> str:
    """A tag that no other test has used."""
    return f"test:{next(_names)}"


# -- the script -----------------------------------------------------------------------------------

KINDS: tuple[Literal["rpm", "tpm"], ...] = ("rpm", "tpm")
LIMITS = st.sampled_from([1, 3, 60, 1000, 100_000_000])
AMOUNTS = st.one_of(st.integers(0, 70), st.integers(0, 200_000_000))


@st.composite
def rights_asks(draw: st.DrawFn) -> tuple[int, int, int, int]:
    least, more = draw(AMOUNTS), draw(AMOUNTS)
    returned = draw(st.one_of(st.just(0), st.integers(-(2**31), 2**31), st.integers(-70, 70)))
    return draw(LIMITS), least, least + more, returned


@st.composite
def slots_asks(draw: st.DrawFn) -> tuple[int, int, int, int]:
    running = draw(st.integers(0, 5))
    least = running + draw(st.integers(0, 3))
    return draw(st.integers(0, 10)), running, least, least + draw(st.integers(0, 5))


Figures = tuple[int, int, int, int]
CALLS = st.lists(
    st.tuples(
        st.sampled_from(["a", "b", "c"]),
        st.sampled_from([0, 1, 999_999, 10_000_000, 61_000_000, 301_000_000]),
        st.lists(rights_asks(), max_size=2),
        st.lists(slots_asks(), max_size=2),
    ),
    min_size=1,
    max_size=12,
)


@settings(max_examples=100, deadline=None)
@given(CALLS)
def test_the_script_does_what_the_model_says(
    server: ValkeyServer,
    calls: list[tuple[str, int, list[Figures], list[Figures]]],
) -> None:
    tag, model = fresh(), ModelValkey()
    now = 1_795_000_000_000_000

    async def compare() -> None:
        nonlocal now
        quotas = await ValkeyQuotas.connect(
            server.url, draw_seconds=PATIENCE_SECONDS, time_microseconds=lambda: now
        )
        try:
            for number, (holder, pause, rights, slots) in enumerate(calls, 1):
                now += pause
                asks = [
                    RightsAsk(tag, kind, *ask) for kind, ask in zip(KINDS, rights, strict=False)
                ]
                wanted = [SlotsAsk(f"{tag}/{place}", *ask) for place, ask in enumerate(slots)]
                draw = draw_of(number, *asks, *wanted, holder=holder, tag=tag)
                assert await quotas.draw([draw]) == [model.draw(now, draw)]
        finally:
            await quotas.aclose()

    trio.run(compare)


async def test_levels_flow_off_by_the_servers_clock(server: ValkeyServer) -> None:
    quotas = await ValkeyQuotas.connect(server.url, draw_seconds=PATIENCE_SECONDS)
    tag = fresh()
    ask = RightsAsk(tag, "tpm", 60_000_000, 60_000_000, 60_000_000, 0)
    (first,) = await quotas.draw([draw_of(1, ask, tag=tag)])
    assert first.rights[0] == RightsReply(60_000_000, 60_000_000 * UNITS)
    look = RightsAsk(tag, "tpm", 60_000_000, 0, 0, 0)
    (second,) = await quotas.draw([draw_of(2, look, tag=tag)])
    flown = (first.rights[0].level - second.rights[0].level) / UNITS
    assert 0 < flown <= 1_000_000 * PATIENCE_SECONDS  # a token a microsecond
    await quotas.aclose()


async def test_every_key_is_on_one_slot_and_expires(server: ValkeyServer) -> None:
    quotas = await ValkeyQuotas.connect(server.url, draw_seconds=PATIENCE_SECONDS)
    tag = fresh()
    rights, slots = RightsAsk(tag, "rpm", 60, 2, 2, 0), SlotsAsk(tag, 5, 1, 1, 1)
    draw = draw_of(1, rights, slots, tag=tag)
    await quotas.draw([draw])
    keys = valkey.script_keys(draw)
    assert keys == [f"farebox:{{{tag}}}:{tag}:rpm", f"farebox:{{{tag}}}:{tag}:slots"]
    assert server.ask("EXISTS", *keys) == b":2\r\n"
    for key, most in zip(keys, (62_000, EXPIRY_SECONDS * 1000), strict=True):
        assert 0 < int(server.ask("PTTL", key)[1:]) <= most
    given_back = draw_of(2, RightsAsk(tag, "rpm", 60, 0, 0, 2), SlotsAsk(tag, 5, 0, 0, 0), tag=tag)
    await quotas.draw([given_back])
    assert server.ask("EXISTS", *keys) == b":0\r\n"
    await quotas.aclose()


async def test_a_draw_that_was_overtaken_changes_nothing(server: ValkeyServer) -> None:
    quotas = await ValkeyQuotas.connect(server.url, draw_seconds=PATIENCE_SECONDS)
    tag = fresh()
    await quotas.draw([draw_of(5, SlotsAsk(tag, 9, 0, 3, 3), tag=tag)])
    late = draw_of(4, RightsAsk(tag, "rpm", 60, 1, 1, 0), SlotsAsk(tag, 9, 0, 0, 0), tag=tag)
    with pytest.raises(QuotasUnavailable, match="later draw"):
        await quotas.draw([late])
    look = draw_of(1, SlotsAsk(tag, 9, 0, 0, 0), holder="b", tag=tag)
    assert (await quotas.draw([look]))[0].slots == (SlotsReply(0, 3),)
    assert server.ask("EXISTS", *valkey.script_keys(late)[:1]) == b":0\r\n"
    await quotas.aclose()


# -- the client -----------------------------------------------------------------------------------


async def test_a_batch_is_answered_in_order(server: ValkeyServer) -> None:
    quotas = await ValkeyQuotas.connect(server.url, draw_seconds=PATIENCE_SECONDS)
    tags = [fresh() for _ in range(50)]
    draws = [
        draw_of(1, RightsAsk(tag, "rpm", 100, count, count, 0), tag=tag)
        for count, tag in enumerate(tags, 1)
    ]
    replies = await quotas.draw(draws)
    assert [reply.rights[0].granted for reply in replies] == list(range(1, 51))
    await quotas.aclose()


async def test_a_draw_of_nothing_is_answered(server: ValkeyServer) -> None:
    quotas = await ValkeyQuotas.connect(server.url, draw_seconds=PATIENCE_SECONDS)
    assert await quotas.draw([draw_of(1)]) == [DrawReply((), ())]
    await quotas.aclose()


async def test_a_server_that_has_forgotten_the_script_is_told_again(server: ValkeyServer) -> None:
    quotas = await ValkeyQuotas.connect(server.url, draw_seconds=PATIENCE_SECONDS)
    tag = fresh()
    for number in (1, 2):
        (reply,) = await quotas.draw([draw_of(number, RightsAsk(tag, "rpm", 60, 1, 1, 0), tag=tag)])
        assert reply.rights[0].granted == 1
        assert server.ask("SCRIPT", "FLUSH") == b"+OK\r\n"
    await quotas.aclose()


async def test_a_password_and_a_database_are_used() -> None:
    with serve(password="s3cret/+") as guarded:
        url = f"redis://:s3cret%2F%2B@127.0.0.1:{guarded.port}/3"
        quotas = await ValkeyQuotas.connect(url, draw_seconds=PATIENCE_SECONDS)
        await quotas.draw([draw_of(1, RightsAsk("t", "rpm", 1, 1, 1, 0))])
        await quotas.aclose()
        reply = guarded.ask("AUTH", "s3cret/+\r\nINFO", "keyspace")
        while b"keyspace" not in reply.lower():
            reply = guarded.ask("AUTH", "s3cret/+\r\nINFO", "keyspace")
        wrong = await ValkeyQuotas.connect(
            f"redis://:wrong@127.0.0.1:{guarded.port}", draw_seconds=PATIENCE_SECONDS
        )
        with pytest.raises(QuotasUnavailable):
            await wrong.draw([draw_of(1, RightsAsk("t", "rpm", 1, 1, 1, 0))])
        await wrong.aclose()


async def test_a_server_that_dies_and_comes_back_is_used_again() -> None:
    with serve() as mortal:
        quotas = await ValkeyQuotas.connect(mortal.url, draw_seconds=0.2)
        numbers = itertools.count(1)

        async def draw() -> DrawReply | None:
            try:
                ask = RightsAsk("t", "rpm", 60, 1, 1, 0)
                return (await quotas.draw([draw_of(next(numbers), ask)]))[0]
            except QuotasUnavailable:
                return None

        with trio.fail_after(PATIENCE_SECONDS):
            while await draw() is None:
                pass
            mortal.kill()
            started_at = trio.current_time()
            assert await draw() is None
            assert trio.current_time() - started_at < 1
            mortal.start()
            while (reply := await draw()) is None:
                pass
        assert reply.rights[0].level <= 2 * 60 * UNITS  # it began anew
        await quotas.aclose()


async def test_an_answer_that_comes_while_the_loop_is_busy_counts(server: ValkeyServer) -> None:
    quotas = await ValkeyQuotas.connect(server.url, draw_seconds=0.2)
    await quotas.draw([draw_of(1, RightsAsk("busy", "rpm", 60, 1, 1, 0))])  # it has the script now
    replies: list[DrawReply] = []

    async def draw() -> None:
        replies.extend(await quotas.draw([draw_of(2, RightsAsk("busy", "rpm", 60, 1, 1, 0))]))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(draw)
        await wait_all_tasks_blocked()
        threading.Event().wait(0.35)  # other requests have the loop
    assert len(replies) == 1
    await quotas.aclose()


async def test_a_server_that_is_away_at_start_is_no_error() -> None:
    with serve() as mortal:
        mortal.kill()
        quotas = await ValkeyQuotas.connect(mortal.url, draw_seconds=0.05)
        with pytest.raises(QuotasUnavailable):
            await quotas.draw([draw_of(1, RightsAsk("t", "rpm", 60, 1, 1, 0))])
        await quotas.aclose()


async def test_without_the_client_library_a_sentence_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'valkey-glide>=2\.5,<3'"):
        await ValkeyQuotas.connect("valkey://127.0.0.1")


def test_a_reply_that_is_not_the_scripts_is_refused() -> None:
    draw = draw_of(1, RightsAsk("t", "rpm", 60, 1, 1, 0), SlotsAsk("t", 5, 0, 1, 1))
    assert read_reply(draw, [1, UNITS, 2, 3]) == DrawReply(
        (RightsReply(1, UNITS),), (SlotsReply(2, 3),)
    )
    for odd in (None, b"OK", [1, 2, 3], [1, 2, 3, b"4"]):
        with pytest.raises(QuotasUnavailable):
            read_reply(draw, odd)


@pytest.mark.parametrize(
    ("url", "host", "port", "tls", "user", "password", "database"),
    [
        ("valkey://h", "h", 6379, False, "", "", 0),
        ("redis://:s3%40@h:7000/2", "h", 7000, False, "", "s3@", 2),
        ("rediss://u:p@[::1]:1/", "::1", 1, True, "u", "p", 0),
        ("valkeys://h/15", "h", 6379, True, "", "", 15),
    ],
)
def test_urls(
    url: str, host: str, port: int, tls: bool, user: str, password: str, database: int
) -> None:
    address = parse_url(url)
    assert (address.host, address.port, address.tls) == (host, port, tls)
    assert (address.username, address.password, address.database) == (user, password, database)
    assert "s3" not in repr(address)


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("http://h", "starts with"),
        ("h:6379", "starts with"),
        ("redis://", "no host"),
        ("redis://:secret@h:port", "port"),
        ("redis://h/zero", "number of a database"),
        ("redis://h/0?timeout=3", "options"),
    ],
)
def test_odd_urls(url: str, why: str) -> None:
    with pytest.raises(ValueError, match=why) as error:
        parse_url(url)
    assert "secret" not in str(error.value)


# -- the lane -------------------------------------------------------------------------------------


class ScriptedQuotas:
    """The model behind a latency, which may stop answering."""

    def __init__(self) -> None:
        self.model = ModelValkey()
        self.up = True
        self.batches: list[tuple[float, int]] = []

    async def draw(self, draws: Sequence[Draw]) -> list[DrawReply]:
        self.batches.append((trio.current_time(), len(draws)))
        await trio.sleep(0.001 if self.up else valkey.DRAW_SECONDS)
        if not self.up:
            raise QuotasUnavailable("no answer")
        now = int(trio.current_time() * 1e6)
        return [self.model.draw(now, draw) for draw in draws]


class LaneAtWork:
    """A limiter, its lane, and requests that wait until they are decided."""

    def __init__(self) -> None:
        self.quotas = ScriptedQuotas()
        self.limiter = FleetLimiter("node")
        self.decided = trio.Event()
        self.lane = QuotaLane(
            self.limiter, self.quotas, clock=trio.current_time, decided=self._decided
        )

    def _decided(self) -> None:
        self.decided.set()
        self.decided = trio.Event()

    async def admit(self) -> object:
        while True:
            outcome = self.limiter.admit(trio.current_time(), [RPM], 0)
            if not isinstance(outcome, NotYet):
                return outcome
            self.lane.wake()
            await self.decided.wait()


async def test_a_request_waits_one_round_trip(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    work = LaneAtWork()
    nursery.start_soon(work.lane.run)
    await trio.sleep(1)
    started_at = trio.current_time()
    await work.admit()
    assert trio.current_time() - started_at == pytest.approx(0.001)
    assert work.limiter.statistics().fleet_connected


async def test_a_request_waits_for_a_silent_server_no_longer_than_a_draw_may_take(
    autojump_clock: MockClock, nursery: trio.Nursery, caplog: pytest.LogCaptureFixture
) -> None:
    work = LaneAtWork()
    nursery.start_soon(work.lane.run)
    await trio.sleep(1)
    work.quotas.up = False
    started_at = trio.current_time()
    await work.admit()
    assert trio.current_time() - started_at == pytest.approx(valkey.DRAW_SECONDS)
    assert not work.limiter.statistics().fleet_connected
    started_at = trio.current_time()
    await work.admit()
    assert trio.current_time() == started_at
    work.quotas.up = True
    await trio.sleep(2)
    assert work.limiter.statistics().fleet_connected
    said = [record.message for record in caplog.records if record.name == valkey.__name__]
    assert [line.split(":")[1].split(",")[0] for line in said] == [
        " shared through Valkey",
        " Valkey is away",
        " shared through Valkey",
    ]


async def test_an_idle_lane_asks_nothing_but_to_stay_announced(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    work = LaneAtWork()
    nursery.start_soon(work.lane.run)
    await trio.sleep(60)
    assert 6 <= len(work.quotas.batches) <= 7
    pauses = [later - sooner for (sooner, _), (later, _) in itertools.pairwise(work.quotas.batches)]
    assert max(pauses) < EXPIRY_SECONDS / 2
    assert min(pauses) > POLL_SECONDS
