"""Several ledgers on a node: each has its accounts, and who dies takes nothing of others along.

Real gateways of two workers with a ledger each, which is what 33 to 64 workers have, real clients,
real `kill -9` and `SIGSTOP`.
"""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import trio

from farebox.books import shard_directories
from ledger.directory import Directory
from tests.fakes.callers import Outcome, call
from tests.fakes.process import FAREBOX, GatewayProcess
from tests.fakes.waiting import eventually, until
from tests.rules.sharded import SHARDED
from tests.rules.test_workers import (
    assert_books_agree,
    open_reservations,
    open_streams,
    pid_of,
    processes,
    replaced,
    several,
    started,
    streams,
)

CUSTOMERS = ("acme", "beta")
STREAMS = 8
CALLS = 20
HANGS_SECONDS = 30  # four polls leave it ten; other tests may share the machine


@dataclass
class Customer:
    """An account, whose ledger is the one of its number."""

    name: str
    key: str
    ledger: str
    outcomes: list[Outcome] = field(default_factory=list)

    @property
    def statuses(self) -> set[int]:
        return {outcome.status for outcome in self.outcomes}


async def customers_of(gateway: GatewayProcess, database: str) -> list[Customer]:
    """A customer of each ledger."""

    def make() -> list[Customer]:
        keys = {name: gateway.new_key(name) for name in CUSTOMERS}
        with Directory(database) as directory:
            numbers = {
                each.account.name: each.account.account_id for each in directory.list_accounts()
            }
        return [Customer(name, keys[name], f"ledger {numbers[name] % 2}") for name in CUSTOMERS]

    found = await trio.to_thread.run_sync(make)
    assert {customer.ledger for customer in found} == {"ledger 0", "ledger 1"}
    return sorted(found, key=lambda customer: customer.ledger)


@asynccontextmanager
async def calling(gateway: GatewayProcess, customers: list[Customer]) -> AsyncIterator[None]:
    """Every customer calls, again and again, for the time of the block."""
    done = trio.Event()

    async def caller(customer: Customer) -> None:
        while not done.is_set():
            customer.outcomes.append(await call(gateway.base_url, customer.key, "sandbox"))

    async with trio.open_nursery() as nursery:
        for customer in customers:
            nursery.start_soon(caller, customer)
        yield
        done.set()


async def served(customers: list[Customer]) -> None:
    """Wait until each of them was served some more."""
    before = [len(customer.outcomes) for customer in customers]

    def enough() -> bool:
        return all(
            [each.status for each in customer.outcomes[count:]].count(200) >= CALLS
            for customer, count in zip(customers, before, strict=True)
        )

    await until(enough, "everybody is served")


def nothing_is_held(gateway: GatewayProcess) -> bool:
    holders = gateway.records("ledger", "holders", "--json")
    return {holder["outstanding_usd"] for holder in holders} == {"0"}


async def test_a_killed_ledger_holds_only_its_own_accounts_up(
    tmp_path: Path, database: str
) -> None:
    with started(tmp_path, several(database), SHARDED) as gateway:
        assert set(processes(gateway)) == {"worker 1", "worker 2", "ledger 0", "ledger 1"}
        customers = await customers_of(gateway, database)
        held_up, undisturbed = customers
        async with (
            streams(gateway, held_up.key, "sandbox-slower", STREAMS) as slow,
            calling(gateway, customers),
        ):
            await served(customers)
            for _ in range(2):
                await trio.to_thread.run_sync(replaced, gateway, "ledger 0")
            await served(customers)
        assert undisturbed.statuses == {200}
        assert held_up.statuses <= {200, 503}
        assert all(each.complete and each.status == 200 for each in slow)
        status = processes(gateway)
        assert [status[f"ledger {number}"]["restarts"] for number in (0, 1)] == [2, 0]
        assert await trio.to_thread.run_sync(gateway.stop) == 0, gateway.tail()
        assert nothing_is_held(gateway)
        for customer in customers:
            outcomes = customer.outcomes + (slow if customer is held_up else [])
            charged = assert_books_agree(gateway, customer.name, outcomes)
            answered = {each.request_id for each in outcomes if each.status == 200}
            assert charged.keys() == answered


async def test_a_killed_worker_is_noticed_by_every_ledger(tmp_path: Path, database: str) -> None:
    with started(tmp_path, several(database), SHARDED) as gateway:
        customers = await customers_of(gateway, database)
        one, other = customers
        async with (
            streams(gateway, one.key, "sandbox-stall", STREAMS) as ended_of_one,
            streams(gateway, other.key, "sandbox-stall", STREAMS, STREAMS) as ended_of_other,
        ):
            for name in ("worker 1", "worker 2"):
                os.kill(pid_of(processes(gateway)[name]), signal.SIGKILL)
            await until(lambda: open_reservations(gateway) == 0, "all that was open is voided")
        assert not any(each.complete for each in ended_of_one + ended_of_other)
        await until(partial(gateway.knows, one.key), "another worker serves")
        assert await trio.to_thread.run_sync(gateway.stop) == 0, gateway.tail()
        assert nothing_is_held(gateway)
        for customer in customers:
            assert not assert_books_agree(gateway, customer.name, [])


async def test_fewer_ledgers_leave_nothing_behind(tmp_path: Path, database: str) -> None:
    with started(tmp_path, several(database), SHARDED) as gateway:
        customers = await customers_of(gateway, database)
        async with calling(gateway, customers):
            await served(customers)
        gateway.kill()
        assert all(folder.is_dir() for folder in shard_directories(tmp_path / ".farebox", 2))
        gateway.program = FAREBOX
        gateway.start()
        assert set(processes(gateway)) == {"worker 1", "worker 2", "ledger 0"}
        async with calling(gateway, customers):
            await served(customers)
        assert await trio.to_thread.run_sync(gateway.stop) == 0, gateway.tail()
        assert nothing_is_held(gateway)
        for customer in customers:
            assert_books_agree(gateway, customer.name, customer.outcomes)


# -- who hangs ------------------------------------------------------------------------------------


async def test_a_worker_that_hangs_is_replaced(tmp_path: Path, database: str) -> None:
    with started(tmp_path, several(database), SHARDED) as gateway:
        customer, _ = await customers_of(gateway, database)
        async with streams(gateway, customer.key, "sandbox-stall", 2 * STREAMS) as ended:
            await until(lambda: open_streams(gateway) == 2 * STREAMS, "all streams flow")
            hung = pid_of(processes(gateway)["worker 1"])
            os.kill(hung, signal.SIGSTOP)
            said = f"worker 1 (process {hung}) does not answer; killing it."
            await until(lambda: said in gateway.tail(), "it is killed", HANGS_SECONDS)
            await until(
                lambda: open_reservations(gateway) == 2 * STREAMS - len(ended) < 2 * STREAMS,
                "what it had open is voided",
            )
            await until(lambda: bool(processes(gateway)["worker 1"]["ready"]), "another serves")
            assert len(ended) < 2 * STREAMS, "the other worker's streams go on"
            gateway.signal(signal.SIGTERM)
        assert await trio.to_thread.run_sync(gateway.stop) == 0, gateway.tail()
        assert_books_agree(gateway, customer.name, [])


async def test_a_ledger_that_hangs_is_replaced(tmp_path: Path, database: str) -> None:
    with started(tmp_path, several(database), SHARDED) as gateway:
        customers = await customers_of(gateway, database)
        async with calling(gateway, customers):
            await served(customers)
            hung = pid_of(processes(gateway)["ledger 1"])
            os.kill(hung, signal.SIGSTOP)
            said = f"ledger 1 (process {hung}) does not answer; killing it."
            await until(lambda: said in gateway.tail(), "it is killed", HANGS_SECONDS)
            await served(customers)
        assert all(customer.statuses <= {200, 503} for customer in customers)
        assert await trio.to_thread.run_sync(gateway.stop) == 0, gateway.tail()
        for customer in customers:
            assert_books_agree(gateway, customer.name, customer.outcomes)


def test_an_understudy_that_is_killed_is_replaced(tmp_path: Path, database: str) -> None:
    with started(tmp_path, several(database)) as gateway:
        serving = pid_of(processes(gateway)["ledger 0"])

        def waiting() -> set[int]:
            return {pid for pid in children_of(gateway.pid, "ledger 0") if pid != serving}

        eventually(lambda: len(waiting()) == 1, "somebody waits to take the ledger's place")
        (former,) = waiting()
        os.kill(former, signal.SIGKILL)
        eventually(lambda: len(waiting() - {former}) == 1, "another waits")
        (expected,) = waiting()
        replaced(gateway, "ledger 0")
        assert pid_of(processes(gateway)["ledger 0"]) == expected
        assert gateway.stop() == 0, gateway.tail()


def children_of(parent: int, name: str) -> set[int]:
    """The processes that it started under this name, as `ps` shows them."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
            status = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if name.encode() in words and int(status[1]) == parent:
            found.add(int(folder.name))
    return found
