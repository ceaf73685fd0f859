"""`kill -9` of the gateway in the middle of many streams: nothing lost, doubled or left held.

Every answer that a client received completely is charged exactly once; what was open is voided at
the next start; every invariant of the books holds after each round.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from pathlib import Path

import trio

from tests.fakes.callers import Outcome, call
from tests.fakes.process import GatewayProcess

ROUNDS = int(os.environ.get("CRASH_ROUNDS", "5"))
STREAMS = 200


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


async def test_nothing_is_lost_doubled_or_left_held(tmp_path: Path) -> None:
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
