"""Postgres away for half a minute: served from leased credit, then refused honestly, nothing lost.

The database is a server of the test's own, stopped and started under load. While it is away no
call is ever answered with 402, and after it is back every answered call is charged once.
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import trio

from farebox.embedded import EmbeddedPostgres
from tests.fakes.callers import Outcome, call
from tests.fakes.process import LOOPBACK, serving

AWAY_SECONDS = float(os.environ.get("OUTAGE_SECONDS", "30"))
CALLERS = 4


async def test_an_outage_is_ridden_out(tmp_path: Path) -> None:
    database = EmbeddedPostgres(tmp_path / "database", tied=False)
    url = database.start()
    try:
        config = f'{LOOPBACK}\n[database]\nurl = "{url}"\n'
        (tmp_path / "gateway").mkdir()
        with serving(tmp_path / "gateway", config) as gateway:
            key = gateway.new_key("acme", "100.00")
            outcomes: list[tuple[str, Outcome]] = []
            phase = "before"
            done = trio.Event()

            async def caller() -> None:
                while not done.is_set():
                    began = phase
                    outcome = await call(gateway.base_url, key, "sandbox")
                    outcomes.append((began if began == phase else "between", outcome))
                    await trio.sleep(0.05)

            async with trio.open_nursery() as nursery:
                for _ in range(CALLERS):
                    nursery.start_soon(caller)
                await trio.sleep(5)
                await trio.to_thread.run_sync(database.stop)
                phase = "away"
                await trio.sleep(AWAY_SECONDS)
                phase = "returning"
                await trio.to_thread.run_sync(database.start)
                while outcomes[-1][1].status != 200:  # noqa: ASYNC110 - many callers append
                    await trio.sleep(0.2)
                phase = "after"
                await trio.sleep(2)
                done.set()
            assert gateway.stop() == 0, gateway.tail()
            records = gateway.records("usage", "export", "acme", "--format", "jsonl")
            gateway.run("ledger", "verify")
            gateway.start()
    finally:
        database.stop()
    by_phase = {
        name: Counter(o.status for began, o in outcomes if began == name)
        for name in ("before", "away", "after")
    }
    assert by_phase["before"].keys() == {200}, by_phase
    assert by_phase["away"][200] > 0, by_phase
    assert by_phase["away"].keys() == {200, 503}, by_phase
    assert by_phase["after"].keys() == {200}, by_phase
    refused = {o.code for _, o in outcomes if o.status == 503}
    assert refused <= {"ledger_unavailable"}
    charged = Counter(str(r["request_id"]) for r in records if r["billing_status"] == "charged")
    answered = {o.request_id for _, o in outcomes if o.complete and o.status == 200}
    assert answered == charged.keys()
    assert set(charged.values()) == {1}
