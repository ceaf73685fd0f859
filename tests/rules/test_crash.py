"""`kill -9` in the middle of many requests: nothing lost, doubled or left held.

Every answer that a client received completely is charged exactly once, with what it costs; what
was open is voided; every invariant of the books holds. `tests/crash` is the harness of the first
test, and `make crash` runs a thousand cycles of it.
"""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections import Counter
from pathlib import Path

import trio

from tests.crash import harness
from tests.crash.faults import Fault, children_of
from tests.fakes.callers import Outcome, call
from tests.fakes.process import LOOPBACK, GatewayProcess, serving
from tests.fakes.waiting import until
from tests.rules.test_workers import open_streams

CYCLES = int(os.environ.get("CRASH_CYCLES", "30"))
ROUNDS = int(os.environ.get("CRASH_ROUNDS", "3"))
STREAMS = 200
ASKERS = 8
SLOW_STREAMS = 8
ASKED = 12
AWAY_SECONDS = 15.0  # a ledger is back within two; other tests may share the machine


# -- several processes, every one of them killed --------------------------------------------------


async def test_whoever_dies_nothing_is_lost_doubled_or_left_held(tmp_path: Path) -> None:
    seed = int(os.environ.get("CRASH_SEED", str(random.randrange(2**32))))
    report = await harness.run(tmp_path, CYCLES, seed)
    assert not report.verdict.problems, report
    assert set(report.cycles) == set(Fault), report
    assert report.verdict.answered > CYCLES, report
    assert report.verdict.charged >= report.verdict.answered, report


async def test_without_its_ledger_a_gateway_waits_a_little_and_then_says_so(
    tmp_path: Path, database: str
) -> None:
    """Streams go on; a new request waits, or is told when to come back: never 500, never 402."""
    config = f"{LOOPBACK}workers = 2\n[database]\nurl = {json.dumps(database)}\n"
    with serving(tmp_path, config) as gateway:
        key = await trio.to_thread.run_sync(gateway.new_key, "acme", "100.00")
        streams: list[Outcome] = []
        during: list[Outcome] = []
        done = trio.Event()

        async def stream() -> None:
            outcome = await call(
                gateway.base_url, key, "sandbox-slower", stream=True, max_tokens=50
            )
            streams.append(outcome)

        async def ask() -> None:
            while not done.is_set():
                during.append(await call(gateway.base_url, key, "sandbox", max_tokens=50))

        in_a_row = 0  # so often that surely both workers know the key
        while in_a_row < ASKED:
            served = (await call(gateway.base_url, key, "sandbox")).status == 200
            in_a_row = in_a_row + 1 if served else 0
        async with trio.open_nursery() as nursery:
            for _ in range(SLOW_STREAMS):
                nursery.start_soon(stream)
            await until(lambda: open_streams(gateway) == SLOW_STREAMS, "all streams flow")
            os.kill(children_of(gateway.pid)["ledger 0"], signal.SIGKILL)
            killed = time.monotonic()
            for _ in range(ASKERS):
                nursery.start_soon(ask)
            while not any(outcome.status == 200 for outcome in during):
                assert time.monotonic() < killed + AWAY_SECONDS, gateway.tail()
                await trio.sleep(0.01)
            done.set()
    assert all(each.complete and each.status == 200 for each in streams)
    assert {each.status for each in during} <= {200, 503}
    for refused in during:
        if refused.status == 503:
            assert refused.code == "ledger_unavailable"
            assert 0 < int(refused.headers["retry-after"]) <= 2
    gateway.run("ledger", "verify")


# -- one process ----------------------------------------------------------------------------------


async def crash_under_load(gateway: GatewayProcess, key: str, delay: float) -> list[Outcome]:
    """Run streams of different lengths and kill the gateway `delay` seconds into them."""
    outcomes: list[Outcome] = []

    async def caller(model: str) -> None:
        outcomes.append(await call(gateway.base_url, key, model, stream=True, max_tokens=600))

    async with trio.open_nursery() as nursery:
        for number in range(STREAMS):
            nursery.start_soon(caller, ("sandbox", "sandbox-slow", "sandbox-long")[number % 3])
        await trio.sleep(delay)
        await trio.to_thread.run_sync(gateway.kill)
    return outcomes


async def test_a_single_process_loses_nothing_either(tmp_path: Path) -> None:
    seed = random.randrange(2**32)
    randomness = random.Random(seed)
    gateway = GatewayProcess(tmp_path)
    answered: set[str] = set()
    seen = 0
    try:
        await trio.to_thread.run_sync(gateway.start)
        key = gateway.new_key("acme", "100.00")
        for _ in range(ROUNDS):
            outcomes = await crash_under_load(gateway, key, randomness.uniform(0.05, 1.5))
            answered |= {o.request_id for o in outcomes if o.complete and o.status == 200}
            seen += len(outcomes)
            await trio.to_thread.run_sync(gateway.start)
        assert gateway.stop() == 0, gateway.tail()
        gateway.run("ledger", "verify")
        gateway.run("ledger", "journal", "verify")
        account = gateway.record("account", "show", "acme")
        records = gateway.records("usage", "export", "acme", "--format", "jsonl")
    finally:
        gateway.kill()
    assert seen == ROUNDS * STREAMS
    assert account["reserved_usd"] == "0", f"seed {seed}"
    charged = Counter(
        str(record["request_id"]) for record in records if record["billing_status"] == "charged"
    )
    assert answered, f"seed {seed}"
    assert answered <= charged.keys(), f"seed {seed}: an answer was not charged"
    assert max(charged.values()) == 1, f"seed {seed}: an answer was charged twice"
