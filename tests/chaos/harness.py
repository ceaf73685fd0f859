"""A real gateway between providers of changing moods and clients in numbers; then the audit.

Two workers, three providers in processes of their own, one model at `[["a/m*2", "b/m"], "c/m"]`.
First everybody asks once, and a calm phase follows, in which nothing fails; then the weather of
`moods`, with a worker killed now and then; then calm again, in which the gateway has to become well
by itself, to drain, and to have the right books.

The run ends by itself: whatever waits has a limit.
"""

from __future__ import annotations

import json
import os
import random
import signal
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import trio

from farebox.sandbox import Performance
from tests.chaos import latency, moods, oracle
from tests.chaos.clients import THINK_SECONDS, Crowd
from tests.chaos.oracle import Ending, Judge, Told
from tests.crash.faults import children_of
from tests.crash.harness import ImpatientGateway
from tests.fakes.director import Sandbox
from tests.fakes.process import LOOPBACK, GatewayProcess, sandbox_process

CLIENTS = 200
WARM_SECONDS = THINK_SECONDS[1]  # by then every client has asked once
CALM_SECONDS = 10.0
DEATH_SECONDS = (20.0, 40.0)  # between two of them
WELL_SECONDS = 60.0
WELL_ANSWERS = 50
SETTLED_SECONDS = 5.0

_PROTOCOLS = {"a": "openai", "b": "openai", "c": "anthropic"}
_ACCOUNT = "acme"
_CREDIT_USD = "100000.00"
_POLL_SECONDS = 0.1
_SHOWN = {
    "farebox_hedges_total",
    "farebox_retry_budget_denied_total",
    "farebox_unbilled_provider_cost_usd_total",
    "farebox_upstream_attempts_total",
}
_PROVIDER = """
[[providers]]
name = "{name}"
protocol = "{protocol}"
base_url = "{base_url}"
api_key = "sandbox"
connect_seconds = 2
first_byte_seconds = 4
idle_seconds = 4
"""
_MODEL = f"""
[[models]]
id = "m"
upstreams = [["a/sandbox-echo-slow*2", "b/sandbox-echo-slow"], "c/sandbox-echo-slow"]
price = {{ input = "{oracle.INPUT_USD}", output = "{oracle.OUTPUT_USD}" }}
hedge_after_percentile = 95
"""


@dataclass
class Report:
    """What was done, what the clients saw of it, and what was wrong."""

    seed: int
    seconds: float = 0.0
    moods: Counter[str] = field(default_factory=Counter)
    deaths: int = 0
    endings: Counter[tuple[Ending, str]] = field(default_factory=Counter)
    rough_endings: Counter[Ending] = field(default_factory=Counter)  # of what the weather met
    calm_added_seconds: Sequence[float] = ()
    rough_added_seconds: Sequence[float] = ()
    attempts: int = 0
    changes: Counter[str] = field(default_factory=Counter)
    figures: Mapping[str, float] = field(default_factory=dict)
    problems: Sequence[str] = ()

    @property
    def success(self) -> float:
        """What part of the answers was whole."""
        return self.endings[Ending.WHOLE, ""] / max(1, self.endings.total())

    @property
    def rough_success(self) -> float:
        """The same in the weather alone."""
        return self.rough_endings[Ending.WHOLE] / max(1, self.rough_endings.total())

    def __str__(self) -> str:
        asked = self.endings.total()
        lines = [
            f"seed {self.seed}: {asked} requests in {self.seconds:.0f} s, "
            f"{self.moods.total()} moods, {self.deaths} workers killed",
            f"  {self.success:.2%} whole, {self.rough_success:.2%} in the weather",
        ]
        for (ending, code), count in self.endings.most_common():
            lines.append(f"  {count:7} × {ending.value} {code}".rstrip())
        lines.append(f"  {self.attempts / max(1, asked):.3f} attempts a request")
        for percent in (50, 99):
            calm, rough = (
                latency.percentile(each, percent) * 1000
                for each in (self.calm_added_seconds, self.rough_added_seconds)
            )
            lines.append(
                f"  p{percent} added to the first word: {calm:.0f} ms when calm, "
                f"{rough:.0f} ms in the weather"
            )
        lines += [f"  {count:7} × an upstream {what}" for what, count in self.changes.most_common()]
        lines += [f"  {name}: {value:g}" for name, value in self.figures.items()]
        lines.append(f"  {len(self.problems)} problems")
        lines += [f"    {problem}" for problem in self.problems[:50]]
        return "\n".join(lines)


async def run(directory: Path, minutes: float, seed: int, clients: int = CLIENTS) -> Report:
    """So many minutes of weather. Raises AssertionError where the gateway does not recover."""
    report, judge = Report(seed), Judge()
    begun = time.monotonic()
    with world(directory) as (gateway, providers):
        key = await trio.to_thread.run_sync(gateway.new_key, _ACCOUNT, _CREDIT_USD)
        crowd = Crowd(gateway.base_url, key, clients, seed, judge.hear)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(crowd.run)
            await trio.sleep(WARM_SECONDS)
            calm_from = time.monotonic()
            await trio.sleep(CALM_SECONDS)
            rough_from = time.monotonic()
            await _storm(gateway, providers, judge, report, minutes * 60, seed)
            rough_until = time.monotonic()
            await _well_again(judge, gateway)
            crowd.done.set()
        in_flight = await trio.to_thread.run_sync(_left_in_flight, gateway)
        report.figures = await trio.to_thread.run_sync(_figures, gateway)
        assert await trio.to_thread.run_sync(gateway.stop) == 0, gateway.tail()
        performances = await trio.to_thread.run_sync(_performances, providers)
        books = await trio.to_thread.run_sync(_audit, gateway, judge)
    report.seconds = time.monotonic() - begun
    report.deaths = len(judge.deaths)
    report.changes = _changes(gateway.output)
    report.endings = Counter((told.ending, told.code) for told in judge.told)
    report.attempts = len(performances)
    calm = _asked(judge.told, calm_from, rough_from)
    report.calm_added_seconds = list(latency.added(calm, performances))
    rough = _asked(judge.told, rough_from, rough_until)
    report.rough_endings = Counter(told.ending for told in rough)
    report.rough_added_seconds = list(latency.added(rough, performances))
    upstream = oracle.wrong_upstream(judge.told, performances)
    report.problems = [*judge.problems, *upstream, *books, *in_flight]
    return report


@contextmanager
def world(directory: Path) -> Iterator[tuple[GatewayProcess, Sequence[Sandbox]]]:
    """Everything that runs, for the time of the block."""
    with ExitStack() as stack:
        origins = [stack.enter_context(sandbox_process()) for _ in _PROTOCOLS]
        config = f"{LOOPBACK}workers = 2\n" + _MODEL
        for (name, protocol), origin in zip(_PROTOCOLS.items(), origins, strict=True):
            prefix = "/v1" if protocol == "openai" else ""
            config += _PROVIDER.format(name=name, protocol=protocol, base_url=origin + prefix)
        gateway = ImpatientGateway(directory, config)
        stack.callback(gateway.kill)
        gateway.start()
        yield gateway, [Sandbox(origin) for origin in origins]


async def _storm(
    gateway: GatewayProcess,
    providers: Sequence[Sandbox],
    judge: Judge,
    report: Report,
    seconds: float,
    seed: int,
) -> None:
    """The weather, and the deaths in it."""
    begun = trio.current_time()
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_deaths, gateway, judge, random.Random(f"{seed} deaths"))
            for change in moods.plan(seed, seconds, len(providers)):
                await trio.sleep_until(begun + change.at)
                provider = providers[change.provider]
                await trio.to_thread.run_sync(provider.set_mood, change.mood)
                report.moods[change.mood] += 1
            scope.cancel()


async def _deaths(gateway: GatewayProcess, judge: Judge, dice: random.Random) -> None:
    """Kill a worker now and then, until cancelled."""
    while True:
        await trio.sleep(dice.uniform(*DEATH_SECONDS))
        children = children_of(gateway.pid)
        workers = sorted(name for name in children if name.startswith("worker "))
        if workers:
            judge.deaths.append(time.monotonic())
            os.kill(children[dice.choice(workers)], signal.SIGKILL)


async def _well_again(judge: Judge, gateway: GatewayProcess) -> None:
    """Until everybody who asks is served, for as many requests as there are clients."""
    deadline = time.monotonic() + WELL_SECONDS
    calm_from = time.monotonic()
    while True:
        asked = [told for told in judge.told if told.begun > calm_from]
        if any(told.ending is not Ending.WHOLE for told in asked):
            calm_from = time.monotonic()
        elif len(asked) >= WELL_ANSWERS:
            return
        assert time.monotonic() < deadline, f"not well again\n{gateway.tail()}"
        await trio.sleep(_POLL_SECONDS)


def _performances(providers: Sequence[Sandbox]) -> list[Performance]:
    """All that all providers did."""
    return [each for provider in providers for each in provider.performances()]


def _audit(gateway: GatewayProcess, judge: Judge) -> list[str]:
    """What the books say, once the gateway has drained. Raises where an invariant is broken."""
    gateway.run("ledger", "verify")
    gateway.run("ledger", "journal", "verify")
    records = gateway.records("usage", "export", _ACCOUNT, "--format", "jsonl")
    account = gateway.record("account", "show", _ACCOUNT)
    return list(oracle.wrong_in_the_books(judge.told, records, account))


def _left_in_flight(gateway: GatewayProcess) -> list[str]:
    """Places at upstreams that nobody holds any more, and that were not given back.

    Whoever lost a race may take a moment to go; a worker that was killed can give nothing back, and
    its places count no more once another one has its seat.
    """
    deadline = time.monotonic() + SETTLED_SECONDS
    while True:
        metrics = gateway.metrics()
        held = {
            name: value
            for name, value in metrics.items()
            if name.startswith("farebox_upstream_in_flight") and value
        }
        if not held or time.monotonic() > deadline:
            return [f"at the end {name} is {value:g}" for name, value in held.items()]
        threading.Event().wait(_POLL_SECONDS)


def _figures(gateway: GatewayProcess) -> Mapping[str, float]:
    """The gateway's own account of it: sums of each metric that this is about."""
    figures: dict[str, float] = defaultdict(float)
    for name, value in gateway.metrics().items():
        family, _, labels = name.partition("{")
        if family in _SHOWN and value:
            figures[f"{family}{{{labels}" if labels else family] += value
    return dict(sorted(figures.items()))


def _changes(output: Sequence[str]) -> Counter[str]:
    """What the log says of upstreams: opened, closed, resting, limited."""
    lines = [json.loads(line) for line in output if '"event":"upstream"' in line]
    return Counter(str(line["state"]) for line in lines)


def _asked(told: Iterable[Told], begin: float, end: float) -> Sequence[Told]:
    """The requests that were made between these moments."""
    return [each for each in told if begin <= each.begun < end]
