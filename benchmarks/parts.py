"""What is measured: four parts, each a list of samples (target, round, figures).

Targets take turns within a round, and every second round runs in reverse order, so that whatever
else the machine does hits all alike and ratios can be taken inside a round.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from benchmarks import processes
from benchmarks.processes import Cores
from benchmarks.targets import Target

_SETTLE_SECONDS = 1.0


class RunFailed(Exception):
    """A run gave no figures; the message says why."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How long and how often; seconds are of the measured window."""

    rounds: int
    seconds: float
    latency_seconds: float
    idle_streams: int
    connections: int = 64
    streams: int = 32
    paced_streams: int = 100
    rates: tuple[int, ...] = (20, 200)


FULL = Plan(rounds=3, seconds=2.0, latency_seconds=4.0, idle_streams=1000)
QUICK = Plan(rounds=1, seconds=1.5, latency_seconds=2.5, idle_streams=300)


@dataclass(frozen=True, slots=True)
class Sample:
    """One run of one target; `part` names what was measured, `figures` are numbers by name."""

    part: str
    target: str
    round: int
    figures: dict[str, float]


Measure = Callable[[Target, Plan, Cores], Iterator[tuple[str, dict[str, float]]]]


def plain(target: Target, plan: Plan, cores: Cores) -> Iterator[tuple[str, dict[str, float]]]:
    """Whole answers in a closed loop: how many fit, and what one costs."""
    figures = _load(target, cores, "closed", "plain", plan.connections, plan.seconds)
    _per(figures, "request", figures["requests"])
    yield "plain", figures


def latency(target: Target, plan: Plan, cores: Cores) -> Iterator[tuple[str, dict[str, float]]]:
    """Whole answers at fixed rates far below saturation: how long one takes."""
    for rate in plan.rates:
        yield (
            f"latency-{rate}",
            _load(target, cores, "open", "plain", rate, plan.latency_seconds),
        )


def streams(target: Target, plan: Plan, cores: Cores) -> Iterator[tuple[str, dict[str, float]]]:
    """Streams without a gap, and paced ones (a wake-up per event): what one event costs."""
    for model, count in (("stream-200-0ms", plan.streams), ("stream-64-20ms", plan.paced_streams)):
        figures = _load(target, cores, "closed", model, count, plan.seconds, warm_up=1.5)
        figures["events_per_second"] = figures["events"] / figures["seconds"]
        _per(figures, "event", figures["events"])
        yield model, figures


def idle(target: Target, plan: Plan, cores: Cores) -> Iterator[tuple[str, dict[str, float]]]:
    """Streams that say nothing: what holding one costs in memory."""
    if target.root is None:
        return
    _load(target, cores, "closed", "plain", plan.connections, 0.5)  # as after some traffic
    processes.pause(_SETTLE_SECONDS)
    before = processes.proportional_bytes(target.roles()["worker"])
    during: list[int] = []

    def look() -> None:
        processes.pause(_SETTLE_SECONDS)
        during.append(processes.proportional_bytes(target.roles()["worker"]))

    seconds = _SETTLE_SECONDS + 0.5
    figures = _load(target, cores, "hold", "idle", plan.idle_streams, seconds, at_begin=look)
    figures["kib_per_stream"] = (during[0] - before) / 1024 / plan.idle_streams
    yield "idle", figures


# In this order: memory that other parts have freed would hide what idle streams need.
PARTS: dict[str, Measure] = {
    "idle": idle,
    "plain": plain,
    "latency": latency,
    "streams": streams,
}


def measure(
    names: Sequence[str], targets: Sequence[Target], plan: Plan, cores: Cores
) -> Iterator[Sample]:
    """All parts over all targets, in turns."""
    for name in names:
        for round_ in range(1 if name == "idle" else plan.rounds):
            for target in targets if round_ % 2 == 0 else reversed(targets):
                for part, figures in PARTS[name](target, plan, cores):
                    yield Sample(part, target.name, round_, figures)


def _per(figures: dict[str, float], unit: str, count: float) -> None:
    """CPU microseconds per request or event, for each role."""
    for name in [name for name in figures if name.startswith("cpu_seconds_")]:
        role = name.removeprefix("cpu_seconds_")
        figures[f"cpu_us_per_{unit}_{role}"] = figures[name] * 1e6 / max(count, 1)


def _load(
    target: Target,
    cores: Cores,
    mode: str,
    model: str,
    amount: float,
    seconds: float,
    *,
    warm_up: float = 0.5,
    at_begin: Callable[[], None] | None = None,
) -> dict[str, float]:
    """One run of the clients; adds the CPU of each role inside the window, and memory after it."""
    command = [sys.executable, "-m", "benchmarks.load", mode, "--port", str(target.port)]
    command += ["--model", model, "--key", target.key, "--amount", str(amount)]
    command += ["--seconds", str(seconds), "--warm-up", str(warm_up)]
    process = processes.start(command, cores.rest)
    try:
        begun = _cpu_at(process, "begin", target)
        if at_begin:
            at_begin()
        ended = _cpu_at(process, "end", target)
        figures = _result(process, f"{target.name}, {model}")
    finally:
        processes.stop(process)
    for role, used in ended.items():
        figures[f"cpu_seconds_{role}"] = used - begun[role]
    if ended:
        figures["cpu_seconds_total"] = sum(ended.values()) - sum(begun.values())
        for role, pids in target.roles().items():
            figures[f"rss_mib_{role}"] = processes.resident_bytes(pids) / (1 << 20)
    return figures


def _result(process: subprocess.Popen[str], title: str) -> dict[str, float]:
    """The clients' last line; their complaints are passed on."""
    assert process.stdout is not None
    assert process.stderr is not None
    line, complaint = process.stdout.readline(), process.stderr.read().strip()
    if not line:
        raise RunFailed(f"{title}: {complaint}")
    if complaint:
        print(f"{title}: {complaint}", file=sys.stderr)
    figures: dict[str, float] = json.loads(line)
    return figures


def _cpu_at(process: subprocess.Popen[str], event: str, target: Target) -> dict[str, float]:
    """Wait for an event of the clients; the CPU that each role has used until then."""
    assert process.stdout is not None
    assert process.stderr is not None
    line = process.stdout.readline()  # the clients are bounded in time, so this is
    if not line or json.loads(line) != {"event": event}:
        raise RunFailed(f"{target.name}: {process.stderr.read().strip()}")
    roles = target.roles() if target.root else {}
    return {role: processes.cpu_seconds(pids) for role, pids in roles.items()}
