"""Limits hold across nodes: two limiters, the real client, a real Valkey server.

Time is virtual: the nodes' clock and the script's time come from the test, so a minute of traffic
takes as long as its round trips do. That the script reads the server's own clock otherwise, and
that rights flow back by it, is shown in `tests/ledger/test_valkey.py`; a last test here does the
same for a fleet, in the blink that a fast limit needs.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest
import trio

from ledger.draws import EXPIRY_SECONDS
from ledger.fleet import POLL_SECONDS
from ledger.limits import WINDOW_SECONDS, Denied, LimitRef
from ledger.valkey import QuotasUnavailable, ValkeyQuotas
from tests.fakes.valkey import Node, Request, ValkeyServer, serve

PATIENCE_SECONDS = 10.0  # a busy machine is not what is tested
START_MICROSECONDS = 1_795_000_000_000_000
SLOTS = LimitRef("account:7", "concurrent", 8)


class Fleet:
    """Nodes with a client each, in virtual time."""

    def __init__(self) -> None:
        self.now = 0.0
        self.nodes: list[tuple[Node, ValkeyQuotas]] = []

    async def join(self, name: str, url: str, draw_seconds: float = PATIENCE_SECONDS) -> Node:
        quotas = await ValkeyQuotas.connect(
            url,
            draw_seconds=draw_seconds,
            time_microseconds=lambda: START_MICROSECONDS + int(self.now * 1e6),
        )
        node = Node(name)
        self.nodes.append((node, quotas))
        return node

    async def lanes(self) -> None:
        """Each node's lane, until it has nothing to ask."""
        for node, quotas in self.nodes:
            await lane(node, quotas, self.now)

    async def pass_time(self, seconds: float) -> None:
        end = self.now + seconds
        while self.now < end:
            self.now = min(self.now + POLL_SECONDS, end)
            await self.lanes()


async def lane(node: Node, quotas: ValkeyQuotas, now: float) -> None:
    while draws := node.limiter.next_draws(now):
        try:
            node.limiter.drawn(now, draws, await quotas.draw(draws))
        except QuotasUnavailable:
            node.limiter.lost(now)
        node.retry(now)


@asynccontextmanager
async def fleet_of(
    server: ValkeyServer, count: int, draw_seconds: float = PATIENCE_SECONDS
) -> AsyncIterator[Fleet]:
    fleet = Fleet()
    try:
        for number in range(count):
            await fleet.join(f"node {number}", server.url, draw_seconds)
        for _ in range(2):  # the second time each hears of all the others
            await fleet.pass_time(10)
        yield fleet
    finally:
        for _, quotas in fleet.nodes:
            await quotas.aclose()


def served(requests: Sequence[Request]) -> list[Request]:
    return [one for one in requests if one.outcome and not isinstance(one.outcome, Denied)]


@pytest.mark.parametrize("shares", [(1, 1), (9, 1)], ids=["evenly", "mostly one"])
async def test_a_key_under_more_load_than_its_limit_gets_its_limit_across_nodes(
    shares: tuple[int, int],
) -> None:
    rpm = LimitRef("account:7", "rpm", 200)
    chance = random.Random(7)
    requests: list[Request] = []
    with serve() as server:
        async with fleet_of(server, 2) as fleet:
            while len(served(requests)) < 200:  # the burst: a full minute's limit at once
                for node, _ in fleet.nodes:
                    requests.append(node.request(fleet.now, (rpm,)))
                await fleet.lanes()
            assert fleet.now == 20.0
            begun_at = fleet.now
            requests.clear()
            while fleet.now < begun_at + WINDOW_SECONDS:
                fleet.now += chance.expovariate(20)  # 1,200 a minute
                ((node, _),) = chance.choices(fleet.nodes, shares)
                requests.append(node.request(fleet.now, (rpm,)))
                await fleet.lanes()
    assert len(requests) > 1000
    assert abs(len(served(requests)) - 200) <= 4
    assert all(one.outcome for one in requests)


async def test_a_dead_nodes_slots_return_within_thirty_seconds() -> None:
    with serve() as server:
        async with fleet_of(server, 2) as fleet:
            dead, survivor = (node for node, _ in fleet.nodes)
            for _ in range(8):
                dead.request(fleet.now, (SLOTS,))
                await fleet.lanes()
            assert len(dead.open) == 8
            await fleet.pass_time(60)  # while it lives, it keeps them
            assert isinstance((await ask(fleet, survivor)).outcome, Denied)

            _, connection = fleet.nodes.pop(0)
            await connection.aclose()
            died_at = fleet.now
            while isinstance((await ask(fleet, survivor)).outcome, Denied):
                await fleet.pass_time(POLL_SECONDS)
            assert fleet.now - died_at <= EXPIRY_SECONDS
            for _ in range(7):
                await ask(fleet, survivor)
            assert len(survivor.open) == 8


async def ask(fleet: Fleet, node: Node) -> Request:
    request = node.request(fleet.now, (SLOTS,))
    await fleet.lanes()
    return request


async def test_a_fleet_survives_its_server() -> None:
    rpm = LimitRef("account:7", "rpm", 40)
    with serve() as server:
        async with fleet_of(server, 2, draw_seconds=0.5) as fleet:
            server.kill()
            for _ in range(30):  # alone: a half each, at once, then what flows off
                for node, _ in fleet.nodes:
                    node.request(fleet.now, (rpm,))
                await fleet.lanes()
            assert [len(node.open) for node, _ in fleet.nodes] == [20, 20]
            assert not any(node.limiter.fleet_connected for node, _ in fleet.nodes)

            server.start()
            with trio.fail_after(PATIENCE_SECONDS):
                while not all(node.limiter.fleet_connected for node, _ in fleet.nodes):
                    await fleet.pass_time(1)
            await fleet.pass_time(1)
            left = 40 * fleet.now / 60
            for _ in range(40):
                for node, _ in fleet.nodes:
                    node.request(fleet.now, (rpm,))
                await fleet.lanes()
            # What both used without the server is known to it again: no second burst.
            assert sum(len(node.open) for node, _ in fleet.nodes) <= 40 + left


async def test_a_fleet_lives_by_the_servers_clock() -> None:
    tpm = LimitRef("account:7", "tpm", 60_000_000)
    node = Node("node")
    with serve() as server:
        quotas = await ValkeyQuotas.connect(server.url, draw_seconds=PATIENCE_SECONDS)
        first = trio.current_time()
        node.request(first, (tpm,), 60_000_000)  # the burst
        await lane(node, quotas, first)
        spent = last = after_last = trio.current_time()
        assert len(node.open) == 1
        while last < spent + 0.2:
            before_last, last = last, trio.current_time()
            for _ in range(20 + int(1000 * (last - before_last))):  # more than flowed off meanwhile
                node.request(last, (tpm,), 1000)
            await lane(node, quotas, last)
            after_last = trio.current_time()
            await trio.lowlevel.checkpoint()
        await quotas.aclose()
    # The server's moments lie somewhere between when it was asked and when its answer was here.
    least, most = 1000 * (last - spent), 1000 * (after_last - first)
    assert 0.9 * least - 20 <= len(node.open) - 1 <= 1.1 * most + 20
