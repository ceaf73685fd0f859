"""Several workers on one port: who dies takes nothing of the others along, the books stay right.

Real gateways with `workers = 2`, real clients, real `kill -9`.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path

import trio

from farebox.books import shard_directories
from tests.fakes.callers import Outcome, call
from tests.fakes.process import FAREBOX, LOOPBACK, GatewayProcess, serving
from tests.fakes.waiting import eventually, until

EFFECTIVE_SECONDS = 3.0  # the promise is one; other tests may share the machine
ASKED = 12  # so often that each of two workers has surely been asked
ORPHANS_SECONDS = 15
STREAMS = 24

Processes = dict[str, dict[str, object]]


def several(database: str, workers: int = 2, more: str = "") -> str:
    """A gateway of several workers on a database that outlives it."""
    return f"{LOOPBACK}workers = {workers}\n{more}[database]\nurl = {json.dumps(database)}\n"


def patient(database: str) -> str:
    """The same, and a drain waits for every stream."""
    return several(database).replace("drain_seconds = 5", "drain_seconds = 600")


@contextmanager
def started(
    directory: Path, config: str, program: Sequence[str] = FAREBOX
) -> Iterator[GatewayProcess]:
    """A gateway that the block ends itself, or that is killed."""
    gateway = GatewayProcess(directory, config)
    gateway.program = program
    children: list[int] = []
    try:
        gateway.start()
        children += pids(gateway)
        yield gateway
    finally:
        gateway.kill()
        assert gone_within(ORPHANS_SECONDS, children), gateway.tail()


def processes(gateway: GatewayProcess) -> Processes:
    with urllib.request.urlopen(f"{gateway.admin_url}/status", timeout=10) as answer:  # noqa: S310 - loopback
        status = json.load(answer)
    assert status["pid"] == gateway.pid
    return {each["name"]: each for each in status["processes"]}


def pids(gateway: GatewayProcess) -> list[int]:
    return [pid_of(each) for each in processes(gateway).values()]


def pid_of(process: dict[str, object]) -> int:
    return int(str(process["pid"]))


def requests_of(process: dict[str, object]) -> int:
    return int(str(process["requests"]))


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def accepts(gateway: GatewayProcess) -> bool:
    """Whether the public port takes connections."""
    host, _, port = gateway.base_url.removeprefix("http://").partition(":")
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except ConnectionRefusedError:
        return False
    return True


def readiness(gateway: GatewayProcess) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"{gateway.admin_url}/readyz", timeout=10) as answer:  # noqa: S310 - loopback
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def in_a_row(count: int, condition: Callable[[], bool]) -> bool:
    """Whether it holds so often, whichever worker is asked."""
    return all(condition() for _ in range(count))


def new_key(gateway: GatewayProcess, account: str, credit: str = "100.00") -> str:
    """A key that every worker knows as soon as it is made."""
    key = gateway.new_key(account, credit)
    assert in_a_row(ASKED, partial(gateway.knows, key)), "a worker does not know the key"
    return key


def replaced(gateway: GatewayProcess, name: str) -> None:
    """Kill a child, and wait for the next one to serve."""
    before = pid_of(processes(gateway)[name])
    os.kill(before, signal.SIGKILL)

    def serves_again() -> bool:
        now = processes(gateway)[name]
        return pid_of(now) not in (0, before) and bool(now["ready"])

    eventually(serves_again, f"another {name} serves")


def gone_within(seconds: float, numbers: Sequence[int]) -> bool:
    deadline = time.monotonic() + seconds
    while any(alive(number) for number in numbers):
        if time.monotonic() > deadline:
            return False
        threading.Event().wait(0.02)
    return True


def open_streams(gateway: GatewayProcess) -> int:
    return int(gateway.metrics()["farebox_open_streams"])


def open_reservations(gateway: GatewayProcess) -> int:
    return int(gateway.metrics()["farebox_ledger_open_reservations"])


def counters(gateway: GatewayProcess) -> dict[str, float]:
    return {
        name: value
        for name, value in gateway.metrics().items()
        if name.partition("{")[0].endswith(("_total", "_bucket", "_count", "_sum"))
    }


def assert_books_agree(
    gateway: GatewayProcess, account: str, outcomes: Sequence[Outcome]
) -> Counter[str]:
    """Every complete answer is charged once, nothing is held, every invariant holds."""
    gateway.run("ledger", "verify")
    shown = gateway.record("account", "show", account)
    assert shown["reserved_usd"] == "0"
    records = gateway.records("usage", "export", account, "--format", "jsonl")
    charged = Counter(
        str(record["request_id"]) for record in records if record["billing_status"] == "charged"
    )
    complete = {each.request_id for each in outcomes if each.complete and each.status == 200}
    assert complete <= charged.keys()
    assert max(charged.values(), default=1) == 1
    return charged


@asynccontextmanager
async def streams(
    gateway: GatewayProcess, key: str, model: str, count: int, others: int = 0
) -> AsyncIterator[list[Outcome]]:
    """So many streams that have begun, beside `others`. Yields those that have ended: at the
    block's end all."""
    ended: list[Outcome] = []

    async def caller() -> None:
        ended.append(await call(gateway.base_url, key, model, stream=True, max_tokens=600))

    async with trio.open_nursery() as nursery:
        for _ in range(count):
            nursery.start_soon(caller)
        begun = partial(open_reservations, gateway)
        await until(lambda: begun() == count + others, "all streams have begun")
        yield ended


# -- serving --------------------------------------------------------------------------------------


async def test_both_workers_serve_as_one_gateway(tmp_path: Path, database: str) -> None:
    with serving(tmp_path, several(database)) as gateway:
        key = await trio.to_thread.run_sync(new_key, gateway, "acme")
        outcomes: list[Outcome] = []

        async def caller() -> None:
            while len(outcomes) < 100:
                outcomes.append(await call(gateway.base_url, key, "sandbox"))

        async with trio.open_nursery() as nursery:
            for _ in range(8):
                nursery.start_soon(caller)
        assert {outcome.status for outcome in outcomes} == {200}

        def answered() -> int:
            return gateway.calls(model="sandbox", status="200")

        # A worker that is not asked in time tells its figures with the next ones.
        await until(lambda: answered() >= len(outcomes), "all calls are counted")
        assert answered() == len(outcomes)
        children = processes(gateway)
        assert set(children) == {"worker 1", "worker 2", "ledger 0"}
        served = [requests_of(children[name]) for name in ("worker 1", "worker 2")]
        assert min(served) > 0, "one process served everything"
        assert sum(served) >= len(outcomes)
        assert requests_of(children["ledger 0"]) == 0
        assert len({pid_of(each) for each in children.values()} | {gateway.pid}) == 4

        metrics = gateway.metrics()
        assert [v for name, v in metrics.items() if name.startswith("farebox_build_info{")] == [1]
        assert metrics["farebox_ledger_leased_usd"] > 0
        assert metrics["farebox_overhead_seconds_count"] >= len(outcomes)

        gateway.record("key", "revoke", str(gateway.record("key", "list", "acme")["id"]))
        revoked = partial(in_a_row, ASKED, lambda: not gateway.knows(key))
        eventually(revoked, "every worker refuses a revoked key", EFFECTIVE_SECONDS)

    logged = [json.loads(line) for line in gateway.output if line.startswith("{")]
    assert {o.request_id for o in outcomes} <= {line["request_id"] for line in logged}
    assert_books_agree(gateway, "acme", outcomes)


def test_zero_means_one_worker_for_each_cpu_and_one_needs_no_supervisor(
    tmp_path: Path, database: str
) -> None:
    with serving(tmp_path, several(database, workers=0)) as gateway:
        workers = [name for name in processes(gateway) if name.startswith("worker")]
        cpus = len(os.sched_getaffinity(0))
        assert len(workers) == (cpus if cpus > 1 else 0)


# -- dying ----------------------------------------------------------------------------------------


async def test_a_killed_worker_takes_only_its_own_streams_along(
    tmp_path: Path, database: str
) -> None:
    with started(tmp_path, several(database)) as gateway:
        key = await trio.to_thread.run_sync(new_key, gateway, "acme")
        async with streams(gateway, key, "sandbox-stall", STREAMS) as stalled:
            async with streams(gateway, key, "sandbox-slower", 2 * STREAMS, STREAMS) as slow:
                await until(lambda: open_streams(gateway) == 3 * STREAMS, "all streams flow")
                children = processes(gateway)
                shares = {name: int(str(each["open_streams"])) for name, each in children.items()}
                assert shares["worker 1"] + shares["worker 2"] == 3 * STREAMS
                assert min(shares["worker 1"], shares["worker 2"]) > 0, "one worker took all"
                before = children["worker 1"]
                counted = counters(gateway)
                os.kill(pid_of(before), signal.SIGKILL)
                await until(lambda: bool(stalled or slow), "clients of the killed worker see it")
            broken = len(stalled) + sum(not each.complete for each in slow)
            assert broken == shares["worker 1"], "exactly its own streams end with it"

            await until(
                lambda: open_reservations(gateway) == STREAMS - len(stalled),
                "exactly what the worker had open is voided",
            )
            await until(lambda: bool(processes(gateway)["worker 1"]["ready"]), "it is back")
            after = processes(gateway)["worker 1"]
            assert pid_of(after) != pid_of(before)
            assert after["restarts"] == 1
            assert (
                f"worker 1 (process {before['pid']}) was ended by SIGKILL; starting it again."
                in (gateway.tail())
            )
            now = counters(gateway)
            assert [name for name, value in counted.items() if now.get(name, 0) < value] == []
            assert (await call(gateway.base_url, key, "sandbox")).status == 200

            gateway.signal(signal.SIGTERM)  # the stalled ones are cut when it has drained enough
        assert await trio.to_thread.run_sync(gateway.stop) == 0, gateway.tail()
        charged = assert_books_agree(gateway, "acme", slow)
        assert len(charged) < 3 * STREAMS  # the killed worker's streams are nobody's cost but ours


async def test_a_killed_ledger_holds_nobody_up_for_long_and_loses_nothing(
    tmp_path: Path, database: str
) -> None:
    with started(tmp_path, several(database)) as gateway:
        key = await trio.to_thread.run_sync(new_key, gateway, "acme")
        outcomes: list[Outcome] = []
        done = trio.Event()

        async def caller() -> None:
            while not done.is_set():
                outcomes.append(await call(gateway.base_url, key, "sandbox"))

        async with (
            trio.open_nursery() as nursery,
            streams(gateway, key, "sandbox-slower", STREAMS) as slow,
        ):
            for _ in range(4):
                nursery.start_soon(caller)
            await until(lambda: len(outcomes) > 20, "calls are served")
            for _ in range(2):
                await trio.to_thread.run_sync(replaced, gateway, "ledger 0")
            served = len(outcomes)
            await until(lambda: len(outcomes) > served + 20, "calls are served again")
            done.set()
        assert all(each.complete and each.status == 200 for each in slow)
        # While the ledger starts, a call waits a little and is then told to come back.
        assert {each.status for each in outcomes} <= {200, 503}
        assert await trio.to_thread.run_sync(gateway.stop) == 0, gateway.tail()
        charged = assert_books_agree(gateway, "acme", [*slow, *outcomes])
        answered = {each.request_id for each in [*slow, *outcomes] if each.status == 200}
        assert charged.keys() == answered


def test_when_the_supervisor_is_killed_all_go_and_the_next_one_begins(
    tmp_path: Path, database: str
) -> None:
    with started(tmp_path, several(database)) as gateway:
        key = new_key(gateway, "acme")
        children = pids(gateway)
        gateway.kill()
        gateway.start()  # at once: the former processes still hold the journal, or even the port
        assert not any(alive(child) for child in children)
        assert gateway.knows(key)
        assert gateway.stop() == 0, gateway.tail()
        gateway.run("ledger", "verify")


def test_when_the_supervisor_is_killed_its_database_may_go_as_well(tmp_path: Path) -> None:
    gateway = GatewayProcess(tmp_path, f"{LOOPBACK}workers = 2\n")
    try:
        gateway.start()
        children = pids(gateway)
        assert gateway.knows(gateway.key)
    finally:
        gateway.kill()
    assert gone_within(ORPHANS_SECONDS, children)


async def test_what_shards_of_former_times_hold_is_posted_and_given_back(
    tmp_path: Path, database: str
) -> None:
    with started(tmp_path, several(database, workers=1)) as gateway:
        key = await trio.to_thread.run_sync(new_key, gateway, "acme")
        outcome = await call(gateway.base_url, key, "sandbox")
        gateway.kill()
        first, second = shard_directories(tmp_path / ".farebox", 2)
        first.rename(tmp_path / "former")
        first.mkdir(mode=0o700)
        (tmp_path / "former").rename(second)

        def held() -> set[object]:
            holders = gateway.records("ledger", "holders", "--json")
            return {holder["outstanding_usd"] for holder in holders}

        assert held() != {"0"}
        gateway.config.write_text(several(database))
        gateway.start()
        await until(lambda: held() == {"0"}, "the former shard's credit is given back")
        assert "leftover" not in gateway.tail()
        assert set(processes(gateway)) == {"worker 1", "worker 2", "ledger 0"}
        assert gateway.stop() == 0, gateway.tail()
        assert_books_agree(gateway, "acme", [outcome])


# -- ending and reloading -------------------------------------------------------------------------


async def test_sigterm_drains_every_worker_and_gives_all_credit_back(
    tmp_path: Path, database: str
) -> None:
    with started(tmp_path, patient(database)) as gateway:
        key = await trio.to_thread.run_sync(new_key, gateway, "acme")
        async with streams(gateway, key, "sandbox-slower", STREAMS) as slow:
            gateway.signal(signal.SIGTERM)
            await until(lambda: not accepts(gateway), "new connections are refused")
            status, why = readiness(gateway)
            assert (status, why.splitlines()[0]) == (503, "draining")
        assert all(each.complete for each in slow)
        assert await trio.to_thread.run_sync(gateway.stop) == 0, gateway.tail()
        holders = gateway.records("ledger", "holders", "--json")
        assert {holder["outstanding_usd"] for holder in holders} == {"0"}
        assert len(assert_books_agree(gateway, "acme", slow)) == STREAMS


async def test_a_second_signal_cuts_and_charges_what_was_delivered(
    tmp_path: Path, database: str
) -> None:
    with started(tmp_path, patient(database)) as gateway:
        key = await trio.to_thread.run_sync(new_key, gateway, "acme")
        async with streams(gateway, key, "sandbox-stall", STREAMS) as stalled:
            # As a Ctrl-C, or a service manager, that reaches more than the supervisor.
            for pid in [*pids(gateway), gateway.pid]:
                os.kill(pid, signal.SIGINT)
                os.kill(pid, signal.SIGHUP if pid == gateway.pid else signal.SIGTERM)
            await until(lambda: not accepts(gateway), "new connections are refused")
            assert stalled == []
            gateway.signal(signal.SIGINT)
        assert not any(each.complete for each in stalled)
        assert await trio.to_thread.run_sync(gateway.stop) == 0, gateway.tail()
        assert len(assert_books_agree(gateway, "acme", stalled)) == STREAMS


async def test_a_reload_reaches_every_worker_and_whoever_comes_later(
    tmp_path: Path, database: str
) -> None:
    with serving(tmp_path, several(database)) as gateway:
        key = await trio.to_thread.run_sync(new_key, gateway, "acme")

        async def statuses() -> set[int]:
            return {(await call(gateway.base_url, key, "sandbox")).status for _ in range(ASKED)}

        async with streams(gateway, key, "sandbox-slower", 4) as slow:
            limited = '[limits]\ndefault_tier = "one"\n[tiers.one]\nrpm = 1\n'
            gateway.config.write_text(several(database) + limited)
            gateway.signal(signal.SIGHUP)
            await until(lambda: "Reloaded: " in gateway.tail(), "the reload is told")
            assert await statuses() <= {200, 429}
            assert await statuses() == {429}

            gateway.config.write_text("[server]\nlistem = 1\n")
            gateway.signal(signal.SIGHUP)
            await until(lambda: "server.listem" in gateway.tail(), "a bad one is refused")
        assert all(each.complete for each in slow)
        await trio.to_thread.run_sync(replaced, gateway, "worker 1")
        assert await statuses() == {429}
