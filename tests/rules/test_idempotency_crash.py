"""`Idempotency-Key` where processes really are several, and really die: real workers on one port,
real Postgres, real clients, `kill -9`.
"""

from __future__ import annotations

import json
import os
import random
import signal
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import psycopg
import pytest
import trio

from tests.fakes.callers import Outcome, call
from tests.fakes.process import LOOPBACK, GatewayProcess
from tests.fakes.waiting import until
from tests.rules.test_workers import open_streams, pid_of, processes

ROUNDS = int(os.environ.get("IDEMPOTENCY_CRASH_ROUNDS", "1"))
CALLERS = 16
KEYS = 24
TRIES = 100
PAUSE_SECONDS = 0.1
SOON_SECONDS = 40.0  # an answer takes ten
MODELS = ("sandbox", "sandbox-slow", "sandbox-long")


@pytest.fixture
def gateway(tmp_path: Path, database: str) -> Iterator[GatewayProcess]:
    """Two workers on a database that outlives them; the test ends it."""
    config = f"{LOOPBACK}workers = 2\n[database]\nurl = {json.dumps(database)}\n"
    process = GatewayProcess(tmp_path, config)
    try:
        process.start()
        yield process
    finally:
        process.kill()


def charged(gateway: GatewayProcess) -> Counter[str]:
    """How often each request was charged."""
    records = gateway.records("usage", "export", "acme", "--format", "jsonl")
    return Counter(
        str(each["request_id"]) for each in records if each["billing_status"] == "charged"
    )


def busiest_worker(gateway: GatewayProcess) -> int:
    """The process of the worker that has most of the streams."""
    children = processes(gateway)
    workers = [each for name, each in children.items() if name.startswith("worker")]
    return pid_of(max(workers, key=lambda each: int(str(each["open_streams"]))))


async def test_many_at_once_make_one_answer(gateway: GatewayProcess) -> None:
    key = gateway.new_key("acme", "100.00")
    outcomes: list[Outcome] = []

    async def insist() -> None:
        """Ask until there is an answer, as an SDK that retries does."""
        while True:
            outcome = await call(gateway.base_url, key, "sandbox", stream=True, once="one")
            if outcome.status != 409:
                outcomes.append(outcome)
                return
            assert outcome.code == "idempotency_key_in_use"

    async with trio.open_nursery() as nursery:
        for _ in range(CALLERS):
            nursery.start_soon(insist)
    assert {outcome.status for outcome in outcomes} == {200}
    assert len({outcome.body for outcome in outcomes}) == 1
    assert len({outcome.request_id for outcome in outcomes}) == 1
    fresh = [each for each in outcomes if "idempotent-replayed" not in each.headers]
    assert len(fresh) == 1
    assert gateway.stop() == 0, gateway.tail()
    assert charged(gateway) == {outcomes[0].request_id: 1}


async def test_a_drain_waits_for_it_although_its_client_has_left(
    gateway: GatewayProcess, database: str
) -> None:
    key = gateway.new_key("acme", "100.00")
    left = await call(gateway.base_url, key, "sandbox-slow", stream=True, leave_after=1, once="one")
    assert left.status == 200
    assert await trio.to_thread.run_sync(gateway.stop) == 0, gateway.tail()
    with psycopg.connect(database) as connection:
        assert connection.execute("SELECT state FROM stored.answer").fetchall() == [(2,)]
    gateway.start()
    again = await call(gateway.base_url, key, "sandbox-slow", stream=True, once="one")
    assert again.request_id == left.request_id
    assert again.headers["idempotent-replayed"] == "true"
    assert again.body.startswith(left.body)
    assert again.body.endswith(b"data: [DONE]\n\n")
    assert gateway.stop() == 0, gateway.tail()
    assert charged(gateway) == {left.request_id: 1}


async def test_a_killed_worker_s_keys_can_be_used_again_at_once(gateway: GatewayProcess) -> None:
    """Those that the other worker serves go on meanwhile, and keep their keys."""
    key = gateway.new_key("acme", "100.00")
    outcomes: dict[str, Outcome] = {}

    async def ask(name: str) -> None:
        outcomes[name] = await call(gateway.base_url, key, "sandbox-slower", stream=True, once=name)

    async def insist(name: str) -> None:
        while not outcomes[name].complete or outcomes[name].status == 409:
            await trio.sleep(PAUSE_SECONDS)
            await ask(name)

    async with trio.open_nursery() as nursery:
        for number in range(CALLERS):
            nursery.start_soon(ask, str(number))
        await until(lambda: open_streams(gateway) == CALLERS, "all streams flow")
        os.kill(busiest_worker(gateway), signal.SIGKILL)
    broken = [name for name, outcome in outcomes.items() if not outcome.complete]
    assert broken
    with trio.fail_after(SOON_SECONDS):
        async with trio.open_nursery() as nursery:
            for name in broken:
                nursery.start_soon(insist, name)
    assert {(each.status, each.complete) for each in outcomes.values()} == {(200, True)}
    assert not [each for each in outcomes.values() if "idempotent-replayed" in each.headers]
    assert gateway.stop() == 0, gateway.tail()
    assert charged(gateway) == {each.request_id: 1 for each in outcomes.values()}
    records = gateway.records("usage", "export", "acme", "--format", "jsonl")
    orphaned = [each for each in records if each["status"] == "orphaned"]
    assert len(orphaned) == len(broken)
    assert all(each["reserved_usd"] != "0" for each in orphaned), "what providers bill at most"


async def test_killed_at_any_moment_no_key_is_charged_twice(
    gateway: GatewayProcess,
) -> None:
    seed = random.randrange(2**32)
    randomness = random.Random(seed)
    key = gateway.new_key("acme", "100.00")
    complete: dict[str, Outcome] = {}

    async def ask(name: str, number: int) -> Outcome:
        model = MODELS[number % len(MODELS)]
        outcome = await call(
            gateway.base_url, key, model, stream=number % 2 == 0, max_tokens=300, once=name
        )
        if outcome.complete and outcome.status == 200:
            first = complete.setdefault(name, outcome)
            assert outcome.body == first.body, f"seed {seed}: {name} has two answers"
        return outcome

    async def insist(name: str, number: int) -> None:
        for _ in range(TRIES):
            outcome = await ask(name, number)
            if outcome.complete and outcome.status == 200:
                return
            await trio.sleep(PAUSE_SECONDS)
        raise AssertionError(f"seed {seed}: {name} is stuck: {outcome}")

    async def for_each_key(round_: int, asking: Callable[[str, int], Awaitable[object]]) -> None:
        async with trio.open_nursery() as nursery:
            for number in range(KEYS):
                nursery.start_soon(asking, f"{round_}/{number}", number)

    for round_ in range(ROUNDS):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(for_each_key, round_, ask)
            await trio.sleep(randomness.uniform(0.0, 1.0))
            await trio.to_thread.run_sync(gateway.kill)
        await trio.to_thread.run_sync(gateway.start)
        await for_each_key(round_, insist)
    assert gateway.stop() == 0, gateway.tail()
    gateway.run("ledger", "verify")
    counts = charged(gateway)
    assert len(counts) <= ROUNDS * KEYS, f"seed {seed}: a key was charged twice"
    assert max(counts.values()) == 1, f"seed {seed}"
    assert gateway.record("account", "show", "acme")["reserved_usd"] == "0"
