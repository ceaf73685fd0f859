"""Two real gateways on one database and one Valkey: a key's limit holds over both together."""

from __future__ import annotations

from collections import Counter
from functools import partial
from pathlib import Path

import trio

from farebox.embedded import EmbeddedPostgres
from tests.fakes.callers import call
from tests.fakes.process import LOOPBACK, GatewayProcess, serving
from tests.fakes.valkey import serve
from tests.fakes.waiting import until

LIMIT = 40
CALLS = 60
CALLERS = 8


def config(database: str, valkey: str, secret: Path, workers: int) -> str:
    return f"""{LOOPBACK}
workers = {workers}
secret = "file:{secret}"

[database]
url = "{database}"

[limits]
valkey_url = "{valkey}"

[tiers.small]
rpm = {LIMIT}
"""


async def statuses(gateway: GatewayProcess, key: str, calls: int) -> Counter[int]:
    """From several callers, as many as leave a busy machine time to hear Valkey's answers."""
    found: Counter[int] = Counter()
    left = list(range(calls))

    async def caller() -> None:
        while left:
            left.pop()
            found[(await call(gateway.base_url, key, "sandbox", max_tokens=16)).status] += 1

    async with trio.open_nursery() as nursery:
        for _ in range(min(CALLERS, calls)):
            nursery.start_soon(caller)
    return found


def connected(gateway: GatewayProcess) -> bool:
    return gateway.metrics()["farebox_ledger_fleet_disconnected"] == 0.0


async def test_a_limit_holds_over_two_gateways(tmp_path: Path) -> None:
    """A burst is a full minute's limit; what flows back meanwhile is the only surplus."""
    database = EmbeddedPostgres(tmp_path / "database", tied=False)
    url = database.start()
    secret = tmp_path / "secret"  # keys are known by a hash that depends on it
    try:
        with serve() as valkey:
            for name in ("one", "two"):
                (tmp_path / name).mkdir()
            with (
                serving(tmp_path / "one", config(url, valkey.url, secret, 2)) as one,
                serving(tmp_path / "two", config(url, valkey.url, secret, 1)) as two,
            ):
                key = one.new_key("acme", "10.00", "--tier", "small")
                began = trio.current_time()
                found: Counter[int] = Counter()

                async def storm(gateway: GatewayProcess) -> None:
                    found.update(await statuses(gateway, key, CALLS))

                # Grants of credit, Valkey's script and the count of nodes are there before many
                # come; these calls count like all others.
                for gateway in (one, two):
                    found.update(await statuses(gateway, key, 1))
                    await until(partial(connected, gateway), "it has Valkey's answers")
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(storm, one)
                    nursery.start_soon(storm, two)
                flowed_back = (trio.current_time() - began) * LIMIT / 60
                assert connected(one)
    finally:
        database.stop()
    assert found.keys() == {200, 429}, found
    assert LIMIT * 0.98 <= found[200] <= LIMIT * 1.02 + flowed_back + 1, found
