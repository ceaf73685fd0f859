"""From samples to tables and JSON: medians over rounds, ratios inside a round."""

from __future__ import annotations

import datetime as dt
import json
import os
import platform
import statistics
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import msgspec

from benchmarks.parts import Plan, Sample

_ROOT = Path(__file__).resolve().parents[1]
_RESULTS = Path(__file__).with_name("results")

CHEAPER = ("nginx", "haproxy", "before")  # Farebox is compared with them, all others with Farebox

Facts = dict[str, str]
Columns = tuple[tuple[str, str, int], ...]  # (heading, figure, decimals)

_REQUEST: Columns = (
    ("CPU µs/req", "cpu_us_per_request_worker", 1),
    ("postgres", "cpu_us_per_request_postgres", 1),
)
_ANSWERS: Columns = (
    ("req/s", "requests_per_second", 0),
    *_REQUEST,
    ("p50 ms", "p50_ms", 2),
    ("p99 ms", "p99_ms", 2),
    ("requests", "requests", 0),
    ("errors", "errors", 0),
)
_EVENTS: Columns = (
    ("events/s", "events_per_second", 0),
    ("CPU µs/event", "cpu_us_per_event_worker", 2),
    ("postgres", "cpu_us_per_event_postgres", 2),
    ("first p50 ms", "first_p50_ms", 2),
    ("added", "added_first_p50_ms", 2),
    ("token p50 ms", "token_p50_ms", 2),
    ("token p99 ms", "token_p99_ms", 2),
    ("added p99", "added_token_p99_ms", 2),
    ("streams", "requests", 0),
    ("incomplete", "incomplete", 0),
    ("errors", "errors", 0),
)
_WAITS: Columns = (
    ("p50 ms", "p50_ms", 3),
    ("p99 ms", "p99_ms", 3),
    ("added p50", "added_p50_ms", 3),
    ("added p99", "added_p99_ms", 3),
    ("requests", "requests", 0),
    ("errors", "errors", 0),
)
_MEMORY: Columns = (("RSS MiB", "rss_mib_worker", 1), ("postgres", "rss_mib_postgres", 1))
_GROWTH: Columns = (("growth MiB", "growth_mib", 1),)

# What a part's name begins with → the columns of its table
_COLUMNS: Mapping[str, Columns] = {
    "plain": (*_ANSWERS[:-2], *_MEMORY, *_ANSWERS[-2:]),
    "clients": _ANSWERS,
    "latency": _WAITS,
    "half": (("requests/s", "rate", 0), *_WAITS),
    "prompt": _ANSWERS,
    "image": (*_ANSWERS[:-2], *_GROWTH, *_ANSWERS[-2:]),
    "failover": (*_ANSWERS[:-2], ("CPU µs/failover", "cpu_us_per_failover", 1), *_ANSWERS[-2:]),
    "keys": (*_ANSWERS[:-2], *_GROWTH, *_ANSWERS[-2:]),
    "stream": _EVENTS,
    "paced": _EVENTS,
    "translated": _EVENTS,
    "tls": (*_EVENTS[:3], *_ANSWERS),
    "idle": (("KiB/stream", "kib_per_stream", 1), ("streams", "requests", 0), *_ANSWERS[-1:]),
    "cold": (("seconds", "start_seconds", 2), ("CPU s", "cpu_seconds_worker", 2), *_MEMORY),
}
_TITLES: Mapping[str, str] = {
    "plain": "Whole answers, 64 clients in a closed loop: what fits, what one costs",
    "half": "Whole answers at half of what fits: what one waits",
    "stream-200-0ms": "Streams of 200 events without gap: what an event costs",
    "stream-64-20ms": "Streams of 64 events, 20 ms apart: what an event costs",
    "paced-100": "10,000 events/s on 100 streams: what an event costs and waits",
    "paced-512": "10,000 events/s on 512 streams: what an event costs and waits",
    "tls-plain": "Whole answers of a provider behind TLS",
    "tls-stream": "Streams of 200 events without gap from a provider behind TLS",
    "image": "Bodies with a large image: what one costs, in CPU and in memory",
    "failover-not": "Whole answers, the first upstream well: what failover is compared with",
    "failover-often": "Whole answers, the first upstream failing two of five times",
    "keys-unknown": "Requests with unknown keys, each another one: what a refusal costs",
    "keys-known": "Requests with many known keys in turn",
    "cold": "From the start of the process to its first answer",
}
_TITLES_OF: Mapping[str, str] = {
    "clients": "Whole answers, {} clients in a closed loop",
    "latency": "Whole answers at {} requests/s: what one waits",
    "prompt": "Prompts of {} bytes",
    "translated": "Streams of 200 events without gap, translated: {}",
    "idle": "{} idle streams: what holding one costs in memory",
}

_ADDED = ("p50_ms", "p99_ms", "first_p50_ms", "first_p99_ms", "token_p50_ms", "token_p99_ms")
_WAITING = ("latency", "stream", "paced")
_MEANING = {
    "cpu_us_per_request_worker": "CPU per request",
    "cpu_us_per_event_worker": "CPU per event",
}


def with_added_latency(samples: Sequence[Sample]) -> list[Sample]:
    """Adds `added_…` to each latency of a part: over `direct` in the same round."""
    direct = {(s.part, s.round): s.figures for s in samples if s.target == "direct"}
    result = []
    for sample in samples:
        base = direct.get((sample.part, sample.round))
        if sample.target != "direct" and base and sample.part.partition("-")[0] in _WAITING:
            mine = sample.figures
            added = {f"added_{name}": mine[name] - base[name] for name in _ADDED if name in mine}
            sample = replace(sample, figures=mine | added)
        result.append(sample)
    return result


def machine() -> Facts:
    """Where and on what this ran; a figure without it means nothing."""
    model = "unknown"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    return {
        "processor": model,
        "cores": str(os.cpu_count()),
        "kernel": platform.release(),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "load_average": f"{os.getloadavg()[0]:.2f}",
        "commit": _commit(),
    }


def save(samples: Sequence[Sample], facts: Facts, plan: Plan, command: str) -> Path:
    """Everything that was measured, as JSON in `benchmarks/results`."""
    now = dt.datetime.now(dt.UTC)
    _RESULTS.mkdir(exist_ok=True)
    path = _RESULTS / f"{now:%Y-%m-%d-%H%M%S}-{facts['commit']}.json"
    content = {
        "time": now.isoformat(timespec="seconds"),
        "command": command,
        "machine": facts,
        "plan": asdict(plan),
        "samples": [asdict(sample) for sample in samples],
    }
    path.write_text(json.dumps(content, indent=1) + "\n")
    return path


class Saved(msgspec.Struct, frozen=True):
    """A file that `save` wrote."""

    time: str
    machine: Facts
    samples: list[Sample]
    command: str = ""

    @classmethod
    def read(cls, path: Path) -> Saved:
        """What is in it."""
        return msgspec.json.decode(path.read_bytes(), type=cls)


def text(samples: Sequence[Sample], facts: Facts) -> str:
    """Everything for a terminal."""
    lines = [", ".join(f"{name} {value}" for name, value in facts.items())]
    for part in dict.fromkeys(sample.part for sample in samples):
        lines += ["", title(part), *_table(part, samples)]
    rows = list(_ratio_rows(samples))
    if rows:
        lines += ["", "Ratios, pair by pair: median [min..max]", *aligned(rows)]
    return "\n".join(lines)


def title(part: str) -> str:
    """What a part is, for people."""
    kind, _, rest = part.partition("-")
    if part in _TITLES:
        return _TITLES[part]
    return _TITLES_OF.get(kind, part).format(rest.replace("-", " at "))


def median(samples: Sequence[Sample], part: str, target: str, figure: str) -> float | None:
    """The middle of all rounds; None where it was not measured."""
    values = [
        sample.figures[figure]
        for sample in samples
        if sample.part == part and sample.target == target and figure in sample.figures
    ]
    return statistics.median(values) if values else None


def ratios(
    samples: Sequence[Sample], part: str, figure: str, above: str, below: str
) -> list[float]:
    """One target's figure over another's, for each round that has both."""
    by_target: dict[str, dict[int, float]] = {above: {}, below: {}}
    for sample in samples:
        if sample.part == part and sample.target in by_target and sample.figures.get(figure):
            by_target[sample.target][sample.round] = sample.figures[figure]
    rounds = sorted(by_target[above].keys() & by_target[below].keys())
    return [by_target[above][number] / by_target[below][number] for number in rounds]


def spread(values: Sequence[float]) -> str:
    """Median and range, as ratios are shown."""
    return f"{statistics.median(values):.2f} [{min(values):.2f}..{max(values):.2f}]"


def _table(part: str, samples: Sequence[Sample]) -> list[str]:
    mine = [sample for sample in samples if sample.part == part]
    measured = {figure for sample in mine for figure in sample.figures}
    columns = [column for column in _COLUMNS[part.partition("-")[0]] if column[1] in measured]
    rows = [["", *(heading for heading, _, _ in columns)]]
    for target in dict.fromkeys(sample.target for sample in mine):
        medians = [(median(mine, part, target, name), places) for _, name, places in columns]
        cells = ["–" if value is None else f"{value:.{places}f}" for value, places in medians]
        rows.append([target, *cells])
    return aligned(rows)


def _ratio_rows(samples: Sequence[Sample]) -> Iterator[list[str]]:
    """Farebox over those that do less or were before it; those that do as much over Farebox."""
    targets = dict.fromkeys(sample.target for sample in samples)
    others = [name for name in targets if name not in ("direct", "farebox")]
    for part in dict.fromkeys(sample.part for sample in samples):
        for figure, meaning in _MEANING.items():
            for other in others:
                pair = ("farebox", other) if other in CHEAPER else (other, "farebox")
                found = ratios(samples, part, figure, *pair)
                if found:
                    yield [f"{part}, {meaning}: {pair[0]} / {pair[1]}", spread(found)]


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns as wide as their widest cell: the first to the left, figures to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip()
        for row in rows
    ]


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty", "--abbrev=10"]
    try:
        done = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, check=False)
    except OSError:
        return "unknown"
    return done.stdout.strip() or "unknown"
