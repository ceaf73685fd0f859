"""A whole gateway under load, and one fault after the other: nothing lost, doubled or left held.

Two workers, a ledger, a Postgres of the harness's own and a provider that outlives them all. After
the last fault the gateway has to be well again by itself, to drain, and to have the right books.
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import trio

from farebox.embedded import EmbeddedPostgres
from tests.crash import oracle
from tests.crash.faults import Cycle, Fault, Saboteur, children_of, plan
from tests.crash.load import CUSTOMERS, Load
from tests.fakes.process import (
    LOOPBACK,
    GatewayProcess,
    sandbox_process,
)

WELL_SECONDS = 60
PATIENCE_SECONDS = 5
_CHILDREN = 3  # two workers and a ledger
_POLL_SECONDS = 0.05
# Whoever kills Postgres must find what it said it had committed; the disk itself is not tried.
_DURABLE = {"fsync": "off", "full_page_writes": "off", "autovacuum": "off"}
_MODELS = ("sandbox", "sandbox-slow", "sandbox-long")
_MODEL = """
[[models]]
id = "{model}"
upstreams = ["chat/{model}"]
price = {{ input = "{input}", output = "{output}" }}
"""


class ImpatientGateway(GatewayProcess):
    """A gateway whose children start again without long pauses."""

    program: Sequence[str] = (sys.executable, str(Path(__file__).with_name("impatient.py")))


@dataclass
class Report:
    """What was done, what it did to the clients, and whether the books are right."""

    seed: int
    cycles: Counter[Fault] = field(default_factory=Counter)
    statuses: Counter[tuple[int, str]] = field(default_factory=Counter)
    slowest: dict[Fault, float] = field(default_factory=lambda: defaultdict(float))
    seconds: float = 0.0
    verdict: oracle.Verdict = field(default_factory=oracle.Verdict)

    def __str__(self) -> str:
        verdict = self.verdict
        lines = [f"seed {self.seed}: {self.cycles.total()} cycles in {self.seconds:.0f} s"]
        for fault, count in self.cycles.most_common():
            lines.append(
                f"  {count:7} × {fault.value}, served again after "
                f"{self.slowest[fault]:.2f} s at most"
            )
        for (status, code), count in sorted(self.statuses.items()):
            lines.append(f"  {count:7} answers {status or 'broken'} {code}".rstrip())
        lines.append(
            f"  {verdict.answered} received completely, {verdict.charged} charged "
            f"(${verdict.charged_usd}), {verdict.free} not charged"
        )
        lines.append(f"  {len(verdict.problems)} problems")
        lines += [f"    {problem}" for problem in verdict.problems[:50]]
        return "\n".join(lines)


async def run(directory: Path, cycles: int, seed: int) -> Report:
    """So many cycles. Raises AssertionError where the gateway itself does not recover."""
    report = Report(seed)
    begun = time.monotonic()
    with world(directory) as (gateway, database):
        keys = await trio.to_thread.run_sync(_open_accounts, gateway)
        load = Load(gateway, keys, seed)
        saboteur = Saboteur(gateway, database)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(load.run)
            faults = await _suffer(saboteur, load, plan(cycles, seed))
            await _well_again(gateway, load)
            load.done.set()
        stopped = await trio.to_thread.run_sync(gateway.stop)
        assert stopped == 0, f"seed {seed}: exit code {stopped}\n{gateway.tail()}"
        report.verdict = await trio.to_thread.run_sync(oracle.judge, gateway, load)
    report.cycles = Counter(fault for fault, _ in faults)
    report.statuses = load.statuses
    report.seconds = time.monotonic() - begun
    for fault, seconds in _recoveries(faults, load.served):
        report.slowest[fault] = max(report.slowest[fault], seconds)
    return report


@contextmanager
def world(directory: Path) -> Iterator[tuple[GatewayProcess, EmbeddedPostgres]]:
    """Everything that runs, for the time of the block."""
    database = EmbeddedPostgres(directory / "database", tied=False, settings=_DURABLE)
    with ExitStack() as stack:
        url = database.start()
        stack.callback(database.stop)
        origin = stack.enter_context(sandbox_process())
        config = (
            f"{LOOPBACK}workers = 2\n[database]\nurl = {json.dumps(url)}\n"
            f'[[providers]]\nname = "chat"\nprotocol = "openai"\n'
            f'base_url = "{origin}/v1"\napi_key = "sandbox"\n'
        )
        config += "".join(
            _MODEL.format(model=model, input=oracle.INPUT_USD, output=oracle.OUTPUT_USD)
            for model in _MODELS
        )
        (directory / "gateway").mkdir()
        gateway = ImpatientGateway(directory / "gateway", config)
        stack.callback(gateway.kill)
        gateway.start()
        yield gateway, database


def _open_accounts(gateway: GatewayProcess) -> dict[str, str]:
    keys = {}
    for customer in CUSTOMERS:
        name = customer.account
        gateway.record("account", "create", name, "--credit", str(customer.credit))
        budget = [] if customer.budget is None else ["--budget", str(customer.budget)]
        keys[name] = str(gateway.record("key", "create", f"{name}/default", *budget)["key"])
    return keys


async def _suffer(
    saboteur: Saboteur, load: Load, cycles: Sequence[Cycle]
) -> list[tuple[Fault, float]]:
    """One fault after the other: what it was, and when."""
    faults: list[tuple[Fault, float]] = []
    moment = time.monotonic()
    for cycle in cycles:
        if cycle.waits:
            with trio.move_on_after(PATIENCE_SECONDS):
                while not load.served_since(moment):  # noqa: ASYNC110 - many callers append
                    await trio.sleep(_POLL_SECONDS)
        await trio.sleep(cycle.after_seconds)
        moment = await trio.to_thread.run_sync(saboteur.inflict, cycle)
        faults.append((cycle.fault, moment))
    return faults


async def _well_again(gateway: GatewayProcess, load: Load) -> None:
    """Every process is there, and whoever asks now is served."""
    moment = time.monotonic()
    while not load.served_since(moment) or len(children_of(gateway.pid)) < _CHILDREN:
        assert time.monotonic() < moment + WELL_SECONDS, (
            f"seed {load.seed}: not well again\n{gateway.tail()}"
        )
        await trio.sleep(_POLL_SECONDS)


def _recoveries(
    faults: list[tuple[Fault, float]], served: list[tuple[float, float]]
) -> Iterator[tuple[Fault, float]]:
    """For each fault, how long it took until a request that came after it was answered."""
    answers = sorted(served)
    for fault, moment in faults:
        later = [ended for begun, ended in answers if moment <= begun <= moment + WELL_SECONDS]
        if later:
            yield fault, min(later) - moment
