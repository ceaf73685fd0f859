"""The ledger's benchmark measures a ledger that works: everything settled, nothing refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from benchmarks import ledger
from benchmarks.ledger import Books, Plan
from benchmarks.ledgerd import BOOT_ID
from benchmarks.parts import Sample
from benchmarks.processes import Cores
from ledger.journal import Journal

PLAN = Plan(rounds=1, seconds=0.5, rate=50, exchanges=2, records=2_000)
CORES = Cores.of_this_machine()


@pytest.fixture(scope="module")
def made() -> Iterator[Books]:
    with ledger.books(accounts=60) as made:
        yield made


@pytest.mark.parametrize("target", ["socket, 16 at once", "local, 16 at once"])
def test_a_cycle_is_charged_to_whoever_does_the_work(made: Books, target: str) -> None:
    figures = ledger.cycle(made, CORES, PLAN)[target]()
    assert figures["requests_per_second"] > 0
    assert figures["cpu_us_worker"] > 0
    assert (figures["cpu_us_ledgerd"] > 0) == target.startswith("socket")
    assert figures["cpu_us_total"] == figures["cpu_us_worker"] + figures["cpu_us_ledgerd"]


def test_latency_is_of_every_reservation(made: Books) -> None:
    figures = ledger.latency(made, CORES, PLAN)["socket"]()
    assert 0 < figures["p50_ms"] <= figures["p99_ms"] <= figures["max_ms"]


def test_flushes_are_posted(made: Books) -> None:
    figures = trio.run(ledger.flushes, made, 100, 60, 2)
    assert figures["events_per_second"] > 0
    assert figures["cpu_us_per_event"] > 0


def test_a_restart_admits_on_a_full_journal(made: Books) -> None:
    figures = ledger.recovery(made, CORES, PLAN)["nothing acknowledged"]()
    assert figures["recover_ms"] > 0
    assert figures["admission_ms"] > 0


def test_the_journal_that_is_recovered_is_the_one_described(tmp_path: Path) -> None:
    still_open, unposted = ledger.write_journal(tmp_path, 2_000, acknowledged=False)
    journal, recovered = Journal.recover(tmp_path, boot_id=BOOT_ID)
    journal.close()
    assert (len(recovered.open), len(recovered.events)) == (still_open, unposted) == (200, 800)


def test_traffic_is_counted_on_virtual_time() -> None:
    clock = MockClock(autojump_threshold=0)
    figures = trio.run(ledger.lease_traffic, 10, 100, 10.0, clock=clock)
    assert 3 < figures["exchanges_per_second"] <= 4
    assert figures["events_per_exchange"] * figures["exchanges_per_second"] == pytest.approx(
        100, rel=0.1
    )
    assert figures["waited_percent"] < 5


def test_a_promise_is_broken_only_if_the_best_round_does_not_keep_it() -> None:
    def sample(number: int, p50_ms: float, p99_ms: float) -> Sample:
        figures = {"p50_ms": p50_ms, "p99_ms": p99_ms, "max_ms": 9.0, "requests_per_second": 2e3}
        return Sample("latency", "socket", number, figures)

    samples = [sample(0, 0.2, 5.0), sample(1, 0.9, 4.0)]
    (broken,) = ledger.exceeded(samples)
    assert broken == "latency, socket: p99_ms is 4.00, above 3"
    shown = ledger.text(samples, {"commit": "abc"})
    assert "commit abc" in shown
    assert "0.550" in shown
    assert "[2000..2000]" in shown
