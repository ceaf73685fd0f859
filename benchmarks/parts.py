"""What is measured: parts, each a list of samples (target, round, figures).

Targets take turns within a round, and every second round runs in reverse order, so that whatever
else the machine does hits all alike and ratios can be taken inside a round. Who is not measured
stands still: what an idle neighbour does now and then costs the one under test its caches.

A target takes part where it can: who knows no models translates nothing, and who serves a few
hundred requests a second is not asked to hold ten thousand events a second.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks import processes, requests
from benchmarks.answers import Protocol
from benchmarks.processes import Cores
from benchmarks.provider import FAILING_SHARE
from benchmarks.requests import Ask
from benchmarks.targets import PROTOCOLS, START_SECONDS, Provider, Target, Way

Figures = dict[str, float]

_SETTLE_SECONDS = 1.0
_SLOW_TIMES = 3  # longer windows for who serves little
_WRK_SCRIPT = Path(__file__).with_name("wrk.lua")
_WRK_MARGIN_SECONDS = 1.0  # it runs longer than the window on it
_SPARE_FILES = 500
_SHORT: dict[Protocol, str] = {
    "openai": "chat",
    "openai-responses": "responses",
    "anthropic": "messages",
    "gemini": "gemini",
}


class RunFailed(Exception):
    """A run gave no figures; the message says why."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How long and how often; seconds are of the measured window."""

    rounds: int
    seconds: float
    latency_seconds: float
    idle_streams: tuple[int, ...]
    unknown_keys: int
    known_keys: int
    pairs: tuple[tuple[Protocol, Protocol], ...]
    warm_up_seconds: float = 5.0
    connections: int = 64
    clients: tuple[int, ...] = (1, 16, 256)
    streams: int = 32
    rates: tuple[int, ...] = (20, 50)
    half_rate_max: float = 2000.0  # what clients in Python send without being late themselves
    prompts: tuple[int, ...] = (1_000, 10_000, 400_000)
    prompt_connections: int = 16
    image_bytes: int = 5_000_000
    image_connections: int = 4


_ALL_PAIRS = tuple((mine, theirs) for mine in PROTOCOLS for theirs in PROTOCOLS if mine != theirs)
FULL = Plan(
    rounds=5,
    seconds=2.0,
    latency_seconds=5.0,
    idle_streams=(1_000, 10_000),
    unknown_keys=100_000,
    known_keys=10_000,
    pairs=_ALL_PAIRS,
)
NORMAL = replace(
    FULL,
    rounds=3,
    latency_seconds=4.0,
    idle_streams=(1_000,),
    unknown_keys=20_000,
    known_keys=1_000,
    pairs=tuple(pair for pair in _ALL_PAIRS if pair[0] == "openai"),
)
QUICK = replace(
    NORMAL,
    rounds=1,
    seconds=1.5,
    warm_up_seconds=1.0,
    latency_seconds=2.5,
    idle_streams=(300,),
    unknown_keys=2_000,
    known_keys=100,
)


@dataclass(frozen=True, slots=True)
class Sample:
    """One run of one target; `part` names what was measured, `figures` are numbers by name."""

    part: str
    target: str
    round: int
    figures: Figures


@dataclass(frozen=True, slots=True)
class Bench:
    """Where and how long to measure; `plain` is the provider without anything in front of it."""

    plan: Plan
    cores: Cores
    provider: Provider
    plain: Target

    def seconds(self, target: Target) -> float:
        """How long to look at it."""
        return self.plan.seconds * (_SLOW_TIMES if target.slow else 1)


Measured = Iterator[tuple[str, Figures]]
Measure = Callable[[Target, Bench], Measured]


# -- whole answers ---------------------------------------------------------------------------------


def plain(target: Target, bench: Bench) -> Measured:
    """Whole answers in a closed loop: how many fit, and what one costs."""
    yield "plain", _repeated(target, bench, bench.plan.connections)


def clients(target: Target, bench: Bench) -> Measured:
    """The same with few and with many clients."""
    for connections in bench.plan.clients:
        yield f"clients-{connections}", _repeated(target, bench, connections)


def latency(target: Target, bench: Bench) -> Measured:
    """Whole answers at fixed rates far below saturation: how long one takes."""
    for rate in bench.plan.rates:
        figures = _load(target, bench, "open", _PLAIN, rate, bench.plan.latency_seconds)
        yield f"latency-{rate}", figures


def half(target: Target, bench: Bench) -> Measured:
    """Whole answers at half of the rate that the target reaches, and at once without it."""
    if target.server is None:
        return
    most = _repeated(target, bench, bench.plan.connections)["requests_per_second"]
    rate = min(most / 2, bench.plan.half_rate_max)
    seconds = bench.plan.latency_seconds
    figures = _load(target, bench, "open", _PLAIN, rate, seconds)
    without = _load(bench.plain, bench, "open", _PLAIN, rate, seconds)
    figures["rate"] = rate
    for name in ("p50_ms", "p99_ms"):
        figures[f"added_{name}"] = figures[name] - without[name]
    yield "half", figures


def prompts(target: Target, bench: Bench) -> Measured:
    """Longer and longer prompts."""
    for size in bench.plan.prompts:
        ask = replace(_PLAIN, prompt_bytes=size)
        yield f"prompt-{size}", _counted(target, bench, ask, bench.plan.prompt_connections)


def images(target: Target, bench: Bench) -> Measured:
    """Bodies with a large image: what one costs, and how much memory they take at their peak."""
    ask = replace(_PLAIN, image_bytes=bench.plan.image_bytes)
    workers = target.roles()["worker"]
    before = processes.resident_bytes(workers)
    processes.forget_peak(workers)
    figures = _counted(target, bench, ask, bench.plan.image_connections)
    if workers:
        figures["growth_mib"] = (processes.peak_bytes(workers) - before) / (1 << 20)
    yield "image", figures


def failover(target: Target, bench: Bench) -> Measured:
    """A first upstream that answers two of five requests with 500, next to one that is well."""
    if not target.can("openai", "failover"):
        return
    connections = bench.plan.prompt_connections
    without = _counted(target, bench, _PLAIN, connections)
    yield "failover-not", without
    figures = _counted(target, bench, _PLAIN, connections, "failover")
    cpu = "cpu_us_per_request_worker"
    figures["cpu_us_per_failover"] = (figures[cpu] - without[cpu]) / FAILING_SHARE
    yield "failover-often", figures


def keys(target: Target, bench: Bench) -> Measured:
    """Keys that nobody was given, each another one; then many that somebody was."""
    if not target.known_keys:
        return
    plan = bench.plan
    before = processes.resident_bytes(target.roles()["worker"])
    expect = ("--expect", "401")
    figures = _load(target, bench, "flood", _PLAIN, plan.unknown_keys, 0, options=expect)
    _per(figures, "request", figures["requests"])
    after = processes.resident_bytes(target.roles()["worker"])
    figures["growth_mib"] = (after - before) / (1 << 20)
    yield "keys-unknown", figures
    with tempfile.TemporaryDirectory(prefix="farebox-bench-") as directory:
        file = Path(directory) / "keys"
        command = [*target.known_keys, str(plan.known_keys), str(file)]
        made = subprocess.run(command, capture_output=True, text=True, check=False)
        if made.returncode:
            raise RunFailed(f"no keys: {made.stderr.strip()[-500:]}")
        processes.pause(_SETTLE_SECONDS)  # the gateway hears of them within a second
        taken = ("--keys", str(file))
        figures = _load(
            target, bench, "closed", _PLAIN, plan.connections, plan.seconds, options=taken
        )
    _per(figures, "request", figures["requests"])
    yield "keys-known", figures


# -- streams ---------------------------------------------------------------------------------------


def streams(target: Target, bench: Bench) -> Measured:
    """Streams without a gap, and streams of 64 events, 20 ms apart: what one event costs."""
    yield "stream-200-0ms", _streamed(target, bench, "stream-200-0ms", bench.plan.streams)
    yield "stream-64-20ms", _streamed(target, bench, "stream-64-20ms", 20 if target.slow else 100)


def paced(target: Target, bench: Bench) -> Measured:
    """Ten thousand events a second, each a wake-up of its own: on 100 streams, and on 512."""
    if target.slow:
        return
    yield "paced-100", _streamed(target, bench, "stream-500-10ms", 100)
    yield "paced-512", _streamed(target, bench, "stream-200-50ms", 512)


def translated(target: Target, bench: Bench) -> Measured:
    """Streams without a gap between clients and providers of different protocols."""
    for surface, protocol in bench.plan.pairs:
        if target.can(surface, protocol):
            ask = Ask("stream-200-0ms", surface)
            figures = _streamed_as(target, bench, ask, bench.plan.streams, protocol)
            yield f"translated-{_SHORT[surface]}-{_SHORT[protocol]}", figures


def tls(target: Target, bench: Bench) -> Measured:
    """The provider behind TLS: whole answers, and streams without a gap."""
    if not target.can("openai", "tls"):
        return
    yield "tls-plain", _counted(target, bench, _PLAIN, bench.plan.connections, "tls")
    ask = Ask("stream-200-0ms")
    yield "tls-stream", _streamed_as(target, bench, ask, bench.plan.streams, "tls")


def idle(target: Target, bench: Bench) -> Measured:
    """Streams that say nothing: what holding one costs in memory."""
    if target.server is None:
        return
    for wanted in bench.plan.idle_streams:
        if target.slow and wanted > bench.plan.idle_streams[0]:
            return
        # Each has a socket on both sides of the target.
        count = min(wanted, (processes.open_files_max() - _SPARE_FILES) // 2)
        _load(target, bench, "closed", _PLAIN, bench.plan.connections, 0.5)  # as after traffic
        processes.pause(_SETTLE_SECONDS)
        before = processes.proportional_bytes(target.roles()["worker"])
        during: list[int] = []

        def look(during: list[int] = during) -> None:
            processes.pause(_SETTLE_SECONDS)
            during.append(processes.proportional_bytes(target.roles()["worker"]))

        seconds = _SETTLE_SECONDS + 0.5
        figures = _load(target, bench, "hold", Ask("idle"), count, seconds, at_begin=look)
        figures["kib_per_stream"] = (during[0] - before) / 1024 / count
        yield f"idle-{wanted}", figures


# -- start -----------------------------------------------------------------------------------------


def cold(target: Target, bench: Bench) -> Measured:
    """From the start of the process to its first answer, and its memory then."""
    server = target.server
    if server is None:
        return
    server.stop()
    begun = time.monotonic()
    server.start()
    ask = target.ask(_PLAIN)
    headers = ask.header_fields() | {"authorization": f"Bearer {target.key}"}
    while time.monotonic() < begun + START_SECONDS:
        server.check()
        with contextlib.suppress(OSError, http.client.HTTPException):
            connection = http.client.HTTPConnection("127.0.0.1", target.port, timeout=5)
            connection.request("POST", ask.path, ask.body, headers)
            if connection.getresponse().status == http.HTTPStatus.OK:
                break
        processes.pause(0.01)
    else:
        raise RunFailed(f"{target.name}: no answer {START_SECONDS:.0f} s after its start")
    figures = {"start_seconds": time.monotonic() - begun, "requests": 1.0, "errors": 0.0}
    roles = target.roles()
    for role, pids in roles.items():
        figures[f"cpu_seconds_{role}"] = processes.cpu_seconds(pids)
        figures[f"rss_mib_{role}"] = processes.resident_bytes(pids) / (1 << 20)
    yield "cold", figures


_PLAIN = Ask("plain")

# In this order: memory that other parts have freed would hide what idle streams need.
PARTS: dict[str, Measure] = {
    "cold": cold,
    "idle": idle,
    "plain": plain,
    "clients": clients,
    "latency": latency,
    "half": half,
    "streams": streams,
    "paced": paced,
    "translated": translated,
    "tls": tls,
    "prompts": prompts,
    "images": images,
    "failover": failover,
    "keys": keys,
}
USUAL = ("idle", "plain", "latency", "streams")
_ONCE = frozenset({"idle", "keys"})


def measure(
    names: Sequence[str], under_test: Sequence[Target], bench: Bench
) -> Generator[Sample, None, None]:
    """All parts over all targets, in turns."""
    warm = False
    try:
        for target in under_test:
            _stand_still(target)
        for name in names:
            if name != "cold" and not warm:
                warm_up(under_test, bench)
                warm = True
            for round_ in range(1 if name in _ONCE else bench.plan.rounds):
                for target in under_test if round_ % 2 == 0 else reversed(under_test):
                    _go_on(target)
                    for part, figures in PARTS[name](target, bench):
                        yield Sample(part, target.name, round_, figures)
                    _stand_still(target)
    finally:
        for target in under_test:
            _go_on(target)


def _stand_still(target: Target) -> None:
    if target.root:
        processes.pause(_SETTLE_SECONDS)  # in the middle of a statement it would lose it
        processes.stand_still(processes.tree(target.root))


def _go_on(target: Target) -> None:
    if target.root:
        processes.go_on(processes.tree(target.root))


def warm_up(under_test: Sequence[Target], bench: Bench) -> None:
    """Let whoever compiles, imports or connects at leisure have done so."""
    for target in under_test:
        if target.server:
            _go_on(target)
            seconds = bench.plan.warm_up_seconds * (_SLOW_TIMES if target.slow else 1)
            _load(target, bench, "closed", _PLAIN, bench.plan.connections, seconds)
            _stand_still(target)


# -- runs ------------------------------------------------------------------------------------------


def _repeated(target: Target, bench: Bench, connections: int) -> Figures:
    """Whole answers in a closed loop, by the fastest clients there are."""
    if shutil.which("wrk"):
        return _wrk(target, bench, _PLAIN, connections)
    return _counted(target, bench, _PLAIN, connections)


def _counted(
    target: Target, bench: Bench, ask: Ask, connections: int, way: Way = "openai"
) -> Figures:
    seconds = bench.seconds(target)
    figures = _load(target, bench, "closed", ask, connections, seconds, way=way)
    _per(figures, "request", figures["requests"])
    return figures


def _streamed(target: Target, bench: Bench, model: str, connections: int) -> Figures:
    return _streamed_as(target, bench, Ask(model), connections, "openai")


def _streamed_as(target: Target, bench: Bench, ask: Ask, connections: int, way: Way) -> Figures:
    seconds = bench.seconds(target)
    figures = _load(target, bench, "closed", ask, connections, seconds, way=way, warm_up=1.5)
    figures["events_per_second"] = figures["events"] / figures["seconds"]
    _per(figures, "event", figures["events"])
    return figures


def _per(figures: Figures, unit: str, count: float) -> None:
    """CPU microseconds per request or event, for each role."""
    for name in [name for name in figures if name.startswith("cpu_seconds_")]:
        role = name.removeprefix("cpu_seconds_")
        figures[f"cpu_us_per_{unit}_{role}"] = figures[name] * 1e6 / max(count, 1)


def _load(
    target: Target,
    bench: Bench,
    mode: str,
    ask: Ask,
    amount: float,
    seconds: float,
    *,
    way: Way = "openai",
    warm_up: float = 0.5,
    options: Sequence[str] = (),
    at_begin: Callable[[], None] | None = None,
) -> Figures:
    """One run of our clients; adds the CPU of each role inside the window, and memory after it."""
    port = target.routes[way].port
    command = [sys.executable, "-m", "benchmarks.load", mode, "--port", str(port)]
    command += [*requests.arguments(target.ask(ask, way)), "--key", target.key]
    command += ["--amount", str(amount), "--seconds", str(seconds), "--warm-up", str(warm_up)]
    process = processes.start([*command, *options], bench.cores.rest)
    try:
        begun = _cpu_at(process, "begin", target)
        if at_begin:
            at_begin()
        ended = _cpu_at(process, "end", target)
        figures = _result(process, f"{target.name}, {ask.model}")
    finally:
        processes.stop(process)
    return figures | _used(target, begun, ended)


def _wrk(target: Target, bench: Bench, ask: Ask, connections: int) -> Figures:
    """One run of wrk.

    The window is ours: what was answered in it is what the provider answered in it, so that work on
    answers which are still to come when wrk ends is counted nowhere.
    """
    seconds, warm_up = bench.seconds(target), 1.0
    asked = target.ask(ask)
    with tempfile.TemporaryDirectory(prefix="farebox-bench-") as directory:
        body = Path(directory) / "body"
        body.write_bytes(asked.body)
        headers = asked.header_fields() | {"authorization": f"Bearer {target.key}"}
        command = ["wrk", "--threads", "1", "--connections", str(connections), "--latency"]
        command += ["--duration", f"{warm_up + seconds + _WRK_MARGIN_SECONDS:.0f}s"]
        command += ["--timeout", "60s", "--script", str(_WRK_SCRIPT)]
        command += [f"--header={name}: {headers[name]}" for name in headers]
        command.append(f"http://127.0.0.1:{target.port}{asked.path}")
        environ = os.environ | {"BENCHMARK_BODY": str(body)}
        process = processes.start(command, bench.cores.rest, environ=environ)
        try:
            processes.pause(warm_up)
            begun, first, since = _cpu(target), bench.provider.answered(), time.monotonic()
            processes.pause(seconds)
            ended, last, until = _cpu(target), bench.provider.answered(), time.monotonic()
            output, complaint = process.communicate()
        finally:
            processes.stop(process)
    if process.returncode:
        raise RunFailed(f"{target.name}: wrk: {complaint.strip()}")
    figures: Figures = json.loads(output.splitlines()[-1])
    answered = last - first
    figures |= {"seconds": until - since, "requests": answered}
    figures["requests_per_second"] = answered / (until - since)
    figures |= _used(target, begun, ended)
    _per(figures, "request", answered)
    return figures


def _used(target: Target, begun: Figures, ended: Figures) -> Figures:
    """CPU seconds of each role between two looks, and its memory now."""
    figures = {f"cpu_seconds_{role}": ended[role] - begun.get(role, 0.0) for role in ended}
    if ended:
        figures["cpu_seconds_total"] = sum(figures.values())
        for role, pids in target.roles().items():
            figures[f"rss_mib_{role}"] = processes.resident_bytes(pids) / (1 << 20)
    return figures


def _result(process: subprocess.Popen[str], title: str) -> Figures:
    """The clients' last line; their complaints are passed on."""
    assert process.stdout is not None
    assert process.stderr is not None
    line, complaint = process.stdout.readline(), process.stderr.read().strip()
    if not line:
        raise RunFailed(f"{title}: {complaint}")
    if complaint:
        print(f"{title}: {complaint}", file=sys.stderr)
    figures: Figures = json.loads(line)
    return figures


def _cpu_at(process: subprocess.Popen[str], event: str, target: Target) -> Figures:
    """Wait for an event of the clients; the CPU that each role has used until then."""
    assert process.stdout is not None
    assert process.stderr is not None
    line = process.stdout.readline()  # the clients are bounded in time, so this is
    if not line or json.loads(line) != {"event": event}:
        raise RunFailed(f"{target.name}: {process.stderr.read().strip()}")
    return _cpu(target)


def _cpu(target: Target) -> Figures:
    roles = target.roles() if target.server else {}
    return {role: processes.cpu_seconds(pids) for role, pids in roles.items()}
