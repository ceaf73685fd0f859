"""`python -m benchmarks.ledger`: what the ledger costs a request, and how soon it answers.

Without gateway and provider: a worker's `Ledger` through a real unix socket to a real `ledgerd`
with its journal on disk and its books in an embedded Postgres, or the same in one process.

- **cycle**: reserve (three limits, an account and a budget), settle, wait until it is journalled;
  in a closed loop of 1, 16 and 128. CPU time of worker and ledgerd, each with all its threads.
- **latency**: `reserve` at a steady rate, while each reservation stays open for a while.
- **flush**: exchanges of one holder straight into Postgres, by events and pools in a batch.
- **leases**: statements to the database for a given load, counted on virtual time.
- **recovery**: `ledgerd` is killed and started again on a journal of 100,000 records; until the
  worker that outlived it is granted a reservation.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import itertools
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import trio
from trio.testing import MockClock

from benchmarks import processes, report
from benchmarks.ledgerd import BOOT_ID, holder
from benchmarks.load import percentile
from benchmarks.parts import Sample
from benchmarks.processes import Cores
from farebox.embedded import EmbeddedPostgres
from farebox.interpreter import settle_in
from ledger.accounts import Budget
from ledger.client import Ledger, Reservation
from ledger.directory import Directory, PriceRow
from ledger.journal import Journal, RecoveredState
from ledger.limits import LimitRef
from ledger.link import LocalLink, SocketLink, WorkerIdentity
from ledger.memory import PROMOTIONS, MemoryStore
from ledger.migrate import migrate
from ledger.money import Price
from ledger.postgres import PostgresStore
from ledger.records import Ack, Record, Reserve, Settle
from ledger.reservation import ReservationRequest, TokenCounts
from ledger.server import LedgerServer
from ledger.store import Ask, EventStatus, PoolGrant, PoolId, PoolReport, Session, UsageEvent

CREDIT = 10**15  # a million dollars: no account shall run dry
POOLS = 600
CONCURRENT = (1, 16, 128)
BATCHES = ((1, 1), (100, 1), (100, 60), (1_000, 60), (1_000, 600), (5_000, 60), (5_000, 600))
LOADS = ((1, 1_000), (100, 1_000), (800, 1_000), (5_000, 250))  # accounts, requests a second
RECORDS = 100_000
OPEN_SECONDS = 0.2  # how long a reservation stays open where latency is measured

_PRICE = Price(price_id=1, components={"input": 100_000, "output": 400_000}, margin_bps=1_000)
_START_SECONDS = 60.0
_TURN = 16  # requests; a step of the event loop for each would be no cost of the ledger's

# part → (heading, figure, decimals)
_COLUMNS: dict[str, tuple[tuple[str, str, int], ...]] = {
    "cycle": (
        ("CPU µs/request", "cpu_us_total", 1),
        ("worker", "cpu_us_worker", 1),
        ("ledgerd", "cpu_us_ledgerd", 1),
        ("postgres", "cpu_us_postgres", 1),
        ("requests/s", "requests_per_second", 0),
    ),
    "latency": (
        ("requests/s", "requests_per_second", 0),
        ("p50 ms", "p50_ms", 3),
        ("p99 ms", "p99_ms", 3),
        ("max ms", "max_ms", 3),
    ),
    "flush": (
        ("exchange ms", "median_ms", 1),
        ("events/s", "events_per_second", 0),
        ("our CPU µs/event", "cpu_us_per_event", 1),
    ),
    "leases": (
        ("exchanges/s", "exchanges_per_second", 2),
        ("events each", "events_per_exchange", 0),
        ("pools each", "pools_per_exchange", 0),
        ("grants/s", "grants_per_second", 2),
        ("pools asked/s", "asks_per_second", 1),
        ("waited %", "waited_percent", 2),
    ),
    "recovery": (
        ("to admission ms", "admission_ms", 0),
        ("of it recovery", "recover_ms", 0),
        ("open", "open", 0),
        ("unposted", "unposted", 0),
    ),
}
# (part, target, figure, at most): what the design promises
_LIMITS = (
    *(("cycle", f"local, {n} at once", "cpu_us_total", 60.0) for n in CONCURRENT),
    # With fewer it is mostly the kernel's, which wakes one process for the other.
    ("cycle", f"socket, {CONCURRENT[-1]} at once", "cpu_us_total", 60.0),
    ("latency", "socket", "p50_ms", 0.3),
    ("latency", "socket", "p99_ms", 3.0),
    ("recovery", "all acknowledged", "admission_ms", 1_000.0),
    ("recovery", "nothing acknowledged", "admission_ms", 1_000.0),
)


@dataclass(frozen=True, slots=True)
class Plan:
    """How long and how often; seconds are of the measured window."""

    rounds: int
    seconds: float
    rate: int = 2_000
    exchanges: int = 12
    virtual_seconds: float = 30.0
    records: int = RECORDS


FULL = Plan(rounds=5, seconds=2.0)
QUICK = Plan(rounds=1, seconds=0.5, exchanges=3, virtual_seconds=10.0)


@dataclass(frozen=True, slots=True)
class Books:
    """A Postgres with `accounts`, the first of which has the `budget`."""

    folder: Path
    conninfo: str
    postgres: int
    accounts: Sequence[int]
    budget: int

    def journal(self) -> Path:
        """A folder for another journal."""
        return Path(tempfile.mkdtemp(prefix="journal-", dir=self.folder))


Figures = dict[str, float]
Runs = dict[str, Callable[[], Figures]]


# -- what everything happens on -------------------------------------------------------------------


@contextlib.contextmanager
def books(accounts: int = POOLS) -> Iterator[Books]:
    """Books in a Postgres of their own, durable as in production."""
    with tempfile.TemporaryDirectory(prefix="farebox-ledger-") as name:
        folder = Path(name)
        server = EmbeddedPostgres(folder)
        conninfo = server.start()
        try:
            migrate(conninfo)
            with Directory(conninfo, secret=b"benchmark") as directory:
                directory.register_catalogue(
                    ["m"], ["p"], [PriceRow("m", "p/m", "", (("input", 100_000),), 1_000)]
                )
                made = [
                    directory.create_account(f"a{n}", credit=CREDIT).account_id
                    for n in range(accounts)
                ]
                directory.create_project("a0", "budgeted", Budget(CREDIT))
                directory.create_key("a0", "budgeted")
                _, (credential,) = directory.live_keys()
            assert server.pid is not None
            yield Books(folder, conninfo, server.pid, made, credential.pools[1])
        finally:
            server.stop()


@contextlib.contextmanager
def ledgerd(made: Books, journal: Path, cores: Cores) -> Iterator[tuple[Path, int]]:
    """A ledger's process: its socket and its number. It is killed when the block ends."""
    path = made.folder / "ledgerd"
    path.unlink(missing_ok=True)
    command = [sys.executable, "-m", "benchmarks.ledgerd", *map(os.fspath, (path, journal))]
    process = processes.start([*command, made.conninfo], cores.under_test)
    try:
        assert process.stdout is not None
        if process.stdout.readline() != "ready\n":
            assert process.stderr is not None
            raise RuntimeError(process.stderr.read())
        yield path, process.pid
    finally:
        process.kill()
        processes.stop(process)


@contextlib.asynccontextmanager
async def through_socket(path: Path) -> AsyncIterator[Ledger]:
    """This process as a worker of that ledger."""
    way = SocketLink(path, worker=WorkerIdentity.of_this_process())
    ledger = Ledger([way], reserve_timeout=_START_SECONDS)
    async with trio.open_nursery() as nursery:
        with trio.fail_after(_START_SECONDS):
            await nursery.start(way.run)
        yield ledger
        nursery.cancel_scope.cancel()


@contextlib.asynccontextmanager
async def in_process(made: Books) -> AsyncIterator[Ledger]:
    """The ledger within this process."""
    store = PostgresStore(made.conninfo)
    server = holder(made.journal(), store)
    async with trio.open_nursery() as nursery:
        await nursery.start(server.run)
        yield Ledger([LocalLink(server)], reserve_timeout=_START_SECONDS)
        await server.drain()
        nursery.cancel_scope.cancel()
    await store.aclose()


def _request(account: int, *budgets: int) -> ReservationRequest:
    """As the gateway asks: an estimate of tokens, limits of account and model, perhaps budgets."""
    scope = f"account:{account}"
    return ReservationRequest(
        request_id=bytes(16),
        account_id=account,
        key_id=1,
        pools=(account, *budgets),
        amount=2_000,  # some eight times of what it will cost
        tokens=5_000,
        limits=(
            LimitRef(scope, "rpm", 10**9),
            LimitRef(f"{scope}/model:1", "tpm", 10**12),
            LimitRef(scope, "concurrent", 10**6),
        ),
        model_id=1,
        provider_id=1,
        price_id=1,
        endpoint=1,
    )


def _settle(reservation: Reservation) -> None:
    reservation.settle(
        price=_PRICE,
        provider_id=1,
        quantities={"input": 1_000, "output": 300},
        tokens=TokenCounts(input=1_000, output=300),
        status=EventStatus.SETTLED,
        ttfb_ms=200,
        duration_ms=2_000,
    )


# -- cycle and latency ----------------------------------------------------------------------------


def cycle(made: Books, cores: Cores, plan: Plan) -> Runs:
    """The whole of what the ledger does for a request, in a closed loop."""
    settle_in()  # as a worker does

    def socket(concurrent: int) -> Figures:
        with ledgerd(made, made.journal(), cores) as (path, pid):
            return trio.run(_through_socket, made, path, pid, concurrent, plan.seconds)

    def local(concurrent: int) -> Figures:
        return trio.run(_in_process, made, concurrent, plan.seconds)

    return {
        f"{way.__name__}, {concurrent} at once": partial(way, concurrent)
        for way in (socket, local)
        for concurrent in CONCURRENT
    }


async def _through_socket(
    made: Books, path: Path, pid: int, concurrent: int, seconds: float
) -> Figures:
    async with through_socket(path) as ledger:
        return await _cycles(made, ledger, pid, concurrent, seconds)


async def _in_process(made: Books, concurrent: int, seconds: float) -> Figures:
    async with in_process(made) as ledger:
        return await _cycles(made, ledger, None, concurrent, seconds)


async def _cycles(
    made: Books, ledger: Ledger, pid: int | None, concurrent: int, seconds: float
) -> Figures:
    """CPU time for each request of a closed loop, once its first second is over."""
    done = 0

    async def once() -> None:
        reservation = await ledger.reserve(_request(made.accounts[0], made.budget))
        _settle(reservation)
        await reservation.journalled()

    async def caller() -> None:
        nonlocal done
        while True:
            await once()
            done += 1
            if pid is None and done % _TURN == 0:  # in one process nothing else waits
                await trio.lowlevel.checkpoint()

    def spent() -> tuple[float, float, float]:
        ledgerd_seconds = processes.cpu_seconds([pid]) if pid else 0.0
        postgres = processes.cpu_seconds(processes.tree(made.postgres))
        return time.process_time(), ledgerd_seconds, postgres

    await once()  # however long the first grant takes
    async with trio.open_nursery() as callers:
        for _ in range(concurrent):
            callers.start_soon(caller)
        await trio.sleep(min(1.0, seconds))
        first, before, begun = done, spent(), time.perf_counter()
        await trio.sleep(seconds)
        requests, after, ended = done - first, spent(), time.perf_counter()
        callers.cancel_scope.cancel()
    worker, ledgerd_, postgres = (
        (late - early) * 1e6 / requests for early, late in zip(before, after, strict=True)
    )
    return {
        "cpu_us_worker": worker,
        "cpu_us_ledgerd": ledgerd_,
        "cpu_us_postgres": postgres,
        "cpu_us_total": worker + ledgerd_,
        "requests_per_second": requests / (ended - begun),
    }


def latency(made: Books, cores: Cores, plan: Plan) -> Runs:
    """`reserve` at a steady rate, each in a task of its own."""

    def socket() -> Figures:
        with ledgerd(made, made.journal(), cores) as (path, _):
            return trio.run(_paced, made, path, plan)

    return {"socket": socket}


async def _paced(made: Books, path: Path, plan: Plan) -> Figures:
    seconds: list[float] = []

    async def caller(ledger: Ledger) -> None:
        begun = time.perf_counter()
        reservation = await ledger.reserve(_request(made.accounts[0], made.budget))
        seconds.append(time.perf_counter() - begun)
        await trio.sleep(OPEN_SECONDS)
        _settle(reservation)
        await reservation.journalled()

    async with through_socket(path) as ledger:
        begun = trio.current_time()
        async with trio.open_nursery() as callers:
            for number in range(int(plan.rate * (1 + plan.seconds))):
                # As many at a time as a millisecond has: the event loop's clock is no finer.
                await trio.sleep_until(begun + number / plan.rate)
                callers.start_soon(caller, ledger)
            elapsed = trio.current_time() - begun
    measured = sorted(seconds[plan.rate :])  # the first second is for warming up
    return {
        "requests_per_second": len(seconds) / elapsed,
        "p50_ms": percentile(measured, 0.5) * 1e3,
        "p99_ms": percentile(measured, 0.99) * 1e3,
        "max_ms": measured[-1] * 1e3,
    }


# -- flush ----------------------------------------------------------------------------------------


def flush(made: Books, cores: Cores, plan: Plan) -> Runs:
    """Exchanges of one holder, one after the other."""
    return {
        f"{events} events, {pools} pools": partial(
            trio.run, flushes, made, events, pools, plan.exchanges
        )
        for events, pools in BATCHES
    }


async def flushes(made: Books, events: int, pools: int, exchanges: int) -> Figures:
    store = PostgresStore(made.conninfo)
    journal_id = os.urandom(16)
    holder_id = await store.register_holder(journal_id, "benchmark")
    session = await store.open_session(holder_id, journal_id)
    chosen = [PoolId(account) for account in made.accounts[:pools]]
    wanted = [Ask(pool, 10**9, 10**9) for pool in chosen]
    held = {grant.pool_id: grant.outstanding for grant in await store.grant_lease(session, wanted)}
    seconds: list[float] = []
    cpu_seconds: list[float] = []
    for number in range(exchanges + 1):
        batch = _batch(number * events + 1, events, chosen)
        reports = [_report(pool, batch, held) for pool in chosen]
        begun, busy = time.perf_counter(), time.process_time()
        await store.exchange(session, batch, reports)
        seconds.append(time.perf_counter() - begun)
        cpu_seconds.append(time.process_time() - busy)
    await store.exchange(
        session, [], [_report(pool, [], dict.fromkeys(held, 0)) for pool in chosen]
    )
    await store.aclose()
    middle = statistics.median(seconds[1:])  # the first one plans its statements
    return {
        "median_ms": middle * 1e3,
        "events_per_second": events / middle,
        "cpu_us_per_event": statistics.median(cpu_seconds[1:]) * 1e6 / events,
    }


def _batch(first: int, count: int, pools: Sequence[PoolId]) -> list[UsageEvent]:
    return [_event(first + n, pools[n % len(pools)]) for n in range(count)]


def _event(seq: int, account: int) -> UsageEvent:
    return UsageEvent(
        seq=seq,
        occurred_at=1_800_000_000_000_000 + seq,
        request_id=seq.to_bytes(16),
        account_id=account,
        key_id=1,
        model_id=1,
        provider_id=1,
        price_id=1,
        endpoint=1,
        status=int(EventStatus.SETTLED),
        reserved=2_000,
        cost=220,
        charge=242,
        input_tokens=1_000,
        cached_input_tokens=0,
        output_tokens=300,
        reasoning_tokens=0,
        ttfb_ms=200,
        duration_ms=2_000,
        units={},
        pools=(account,),
        covered=(242,),
        short=(0,),
    )


def _report(pool: PoolId, batch: Sequence[UsageEvent], held: dict[PoolId, int]) -> PoolReport:
    """What the lease has left after this batch; `held` keeps the account."""
    covered = sum(event.charge for event in batch if event.account_id == pool)
    held[pool] -= covered
    return PoolReport(pool, covered, 0, sync=True, held=held[pool], pending=0, need=0, want=0)


# -- leases ---------------------------------------------------------------------------------------


class _CountingStore(MemoryStore):
    """Books that count what is asked of them."""

    def __init__(self) -> None:
        super().__init__()
        self.exchanges = self.reports = self.grants = self.asks = self.posted = 0

    async def exchange(
        self, session: Session, events: Sequence[UsageEvent], pools: Sequence[PoolReport]
    ) -> list[PoolGrant]:
        self.exchanges += 1
        self.reports += len(pools)
        self.posted += len(events)
        await trio.sleep(0.010)  # a database takes its time
        return await super().exchange(session, events, pools)

    async def grant_lease(self, session: Session, asks: Sequence[Ask]) -> list[PoolGrant]:
        self.grants += 1
        self.asks += len(asks)
        await trio.sleep(0.003)
        return await super().grant_lease(session, asks)


class _NoJournal:
    """Nothing will crash on virtual time."""

    journal_id = bytes(16)
    synced = 0

    def append(self, records: Sequence[Record]) -> int:
        return 0

    async def sync(self, upto: int) -> None: ...

    def acknowledge(self, applied_seq: int) -> None: ...

    def headroom(self, open_reservations: int) -> bool:
        return True

    async def events_after(self, applied_seq: int) -> list[UsageEvent]:
        return []

    def begin_anew(self) -> None: ...

    async def run(self) -> None:
        await trio.sleep_forever()

    def close(self) -> None: ...


def leases(made: Books, cores: Cores, plan: Plan) -> Runs:
    """What a holder says to the database under a load, on virtual time."""

    def on_virtual_time(accounts: int, rate: int) -> Figures:
        clock = MockClock(autojump_threshold=0)
        return trio.run(lease_traffic, accounts, rate, plan.virtual_seconds, clock=clock)

    return {
        f"{accounts} accounts, {rate}/s": partial(on_virtual_time, accounts, rate)
        for accounts, rate in LOADS
    }


async def lease_traffic(accounts: int, rate: int, seconds: float) -> Figures:
    store = _CountingStore()
    store.add_provider(1)
    for account in range(1, accounts + 1):
        pool = store.add_account(account)
        await store.credit_pool(pool, CREDIT, 6, PROMOTIONS, str(account))
    server = LedgerServer(store, _NoJournal(), RecoveredState(), clock=trio.current_time)
    chance = random.Random(1)  # noqa: S311  # a load, not a secret
    waited = 0

    async def caller(ledger: Ledger, account: int) -> None:
        nonlocal waited
        begun = trio.current_time()
        reservation = await ledger.reserve(_request(account))
        waited += trio.current_time() > begun
        await trio.sleep(chance.expovariate(1))  # an answer takes a second
        _settle(reservation)

    async with trio.open_nursery() as nursery:
        await nursery.start(server.run)
        ledger = Ledger([LocalLink(server)])
        warm_seconds = 30.0  # so long is unused credit kept
        counted = (0, 0, 0, 0, 0, 0)
        begun = trio.current_time()
        for number in itertools.count():
            due = begun + number / rate
            await trio.sleep_until(due)
            if not any(counted) and due >= begun + warm_seconds:
                counted = _counts(store, waited)
            if due >= begun + warm_seconds + seconds:
                break
            nursery.start_soon(caller, ledger, chance.randint(1, accounts))
        later = _counts(store, waited)
        nursery.cancel_scope.cancel()
    exchanges, reports, posted, grants, asks, waits = (
        late - early for early, late in zip(counted, later, strict=True)
    )
    return {
        "exchanges_per_second": exchanges / seconds,
        "events_per_exchange": posted / exchanges,
        "pools_per_exchange": reports / exchanges,
        "grants_per_second": grants / seconds,
        "asks_per_second": asks / seconds,
        "waited_percent": 100 * waits / (rate * seconds),
    }


def _counts(store: _CountingStore, waited: int) -> tuple[int, int, int, int, int, int]:
    return store.exchanges, store.reports, store.posted, store.grants, store.asks, waited


# -- recovery -------------------------------------------------------------------------------------


def recovery(made: Books, cores: Cores, plan: Plan) -> Runs:
    """A restart on a full journal: as a rule, and after a long time without Postgres."""

    def restart(*, acknowledged: bool) -> Figures:
        journal = made.journal()
        opened, unposted = write_journal(journal, plan.records, acknowledged=acknowledged)
        begun = time.perf_counter()
        with ledgerd(made, journal, cores) as (path, _):
            trio.run(_admit_one, made, path)
            admission_seconds = time.perf_counter() - begun
        journal = made.journal()
        write_journal(journal, plan.records, acknowledged=acknowledged)
        begun = time.perf_counter()
        recovered, _ = Journal.recover(journal, boot_id=BOOT_ID)
        recover_seconds = time.perf_counter() - begun
        recovered.close()
        return {
            "admission_ms": admission_seconds * 1e3,
            "recover_ms": recover_seconds * 1e3,
            "open": opened,
            "unposted": unposted,
        }

    return {
        "all acknowledged": partial(restart, acknowledged=True),
        "nothing acknowledged": partial(restart, acknowledged=False),
    }


async def _admit_one(made: Books, path: Path) -> None:
    async with through_socket(path) as ledger:
        await ledger.reserve(_request(made.accounts[0]))


def write_journal(directory: Path, records: int, *, acknowledged: bool) -> tuple[int, int]:
    """A journal of so many records: how many reservations are open, and events unposted."""
    journal, _ = Journal.recover(directory, boot_id=BOOT_ID)
    pairs, still_open = records // 2, 200
    for first in range(1, pairs + 1, 500):
        batch: list[Record] = []
        for number in range(first, min(first + 500, pairs + 1)):
            batch.append(_reserve_record(number))
            if number <= pairs - still_open:
                batch.append(Settle(number, _event(number, 1)))
        journal.append(batch)
    unposted = pairs - still_open
    if acknowledged:
        journal.append([Ack(unposted)])
        unposted = 0
    journal.close()
    return still_open, unposted


def _reserve_record(number: int) -> Reserve:
    return Reserve(number, number.to_bytes(16), 1, 1, (1,), 2_000, 1, 1, 1, 1)


# -- the command ----------------------------------------------------------------------------------

PARTS: dict[str, Callable[[Books, Cores, Plan], Runs]] = {
    part.__name__: part for part in (cycle, latency, flush, leases, recovery)
}


def measure(parts: Sequence[str], plan: Plan, cores: Cores) -> Iterator[Sample]:
    """Every run of the chosen parts, round by round; each second round in reverse order."""
    os.sched_setaffinity(0, cores.under_test)
    with books() as made:
        os.sched_setaffinity(0, cores.rest)
        for part in parts:
            runs = list(PARTS[part](made, cores, plan).items())
            for number in range(1 if part == "leases" else plan.rounds):
                for target, run in reversed(runs) if number % 2 else runs:
                    yield Sample(part, target, number, run())


def text(samples: Sequence[Sample], facts: dict[str, str]) -> str:
    """A table for each part: the median over the rounds, and [least..most] of its first column."""
    lines = [", ".join(f"{name} {value}" for name, value in facts.items())]
    for part in dict.fromkeys(sample.part for sample in samples):
        columns = _COLUMNS[part]
        rows = [[part, *(heading for heading, _, _ in columns), "[least..most]"]]
        mine = [sample for sample in samples if sample.part == part]
        for target in sorted({sample.target for sample in mine}, key=_order(mine)):
            figures = [sample.figures for sample in mine if sample.target == target]
            row = [
                f"{statistics.median(each[figure] for each in figures):.{decimals}f}"
                for _, figure, decimals in columns
            ]
            first = [each[columns[0][1]] for each in figures]
            spread = f"[{min(first):.{columns[0][2]}f}..{max(first):.{columns[0][2]}f}]"
            rows.append([target, *row, spread])
        lines += ["", *report.aligned(rows)]
    return "\n".join(lines)


def _order(samples: Sequence[Sample]) -> Callable[[str], int]:
    targets = list(dict.fromkeys(sample.target for sample in samples))
    return targets.index


def exceeded(samples: Sequence[Sample]) -> list[str]:
    """The promises that even the best round did not keep: others' load only ever adds."""
    broken = []
    for part, target, figure, at_most in _LIMITS:
        values = [s.figures[figure] for s in samples if (s.part, s.target) == (part, target)]
        if values and min(values) > at_most:
            broken.append(f"{part}, {target}: {figure} is {min(values):.2f}, above {at_most:g}")
    return broken


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ledger", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one short round")
    parser.add_argument("--parts", default=",".join(PARTS), help="some of %(default)s")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--json", action="store_true", help="every sample, for later")
    options = parser.parse_args()
    parts = options.parts.split(",")
    if unknown := set(parts) - PARTS.keys():
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    plan = QUICK if options.quick else FULL
    plan = dataclasses.replace(plan, rounds=options.rounds or plan.rounds)
    facts = report.machine()
    samples = []
    for sample in measure(parts, plan, Cores.of_this_machine()):
        samples.append(sample)
        print(f"  {sample.part}: {sample.target}, {sample.round + 1}", file=sys.stderr, flush=True)
    if options.json:
        print(json.dumps({"machine": facts, "samples": [dataclasses.asdict(s) for s in samples]}))
    else:
        print(text(samples, facts))
    broken = exceeded(samples)
    print("\n".join(broken), end="\n" if broken else "", file=sys.stderr)
    return 1 if broken else 0


if __name__ == "__main__":
    processes.end_what_was_started_on_sigterm()
    sys.exit(main())
