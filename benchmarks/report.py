"""From samples to tables and JSON: medians over rounds, ratios inside a round."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.parts import Sample

_ROOT = Path(__file__).resolve().parents[1]

# part → (heading, figure, decimals): the columns of its table
_COLUMNS: dict[str, tuple[tuple[str, str, int], ...]] = {
    "plain": (
        ("req/s", "requests_per_second", 0),
        ("CPU µs/req", "cpu_us_per_request_total", 1),
        ("worker", "cpu_us_per_request_worker", 1),
        ("postgres", "cpu_us_per_request_postgres", 1),
        ("p50 ms", "p50_ms", 2),
        ("p99 ms", "p99_ms", 2),
        ("RSS MiB worker", "rss_mib_worker", 1),
        ("postgres", "rss_mib_postgres", 1),
        ("errors", "errors", 0),
    ),
    "latency": (
        ("p50 ms", "p50_ms", 3),
        ("p99 ms", "p99_ms", 3),
        ("added p50", "added_p50_ms", 3),
        ("added p99", "added_p99_ms", 3),
        ("requests", "requests", 0),
        ("errors", "errors", 0),
    ),
    "stream": (
        ("events/s", "events_per_second", 0),
        ("CPU µs/event", "cpu_us_per_event_total", 2),
        ("worker", "cpu_us_per_event_worker", 2),
        ("postgres", "cpu_us_per_event_postgres", 2),
        ("streams", "requests", 0),
        ("incomplete", "incomplete", 0),
        ("errors", "errors", 0),
    ),
    "idle": (
        ("KiB/stream", "kib_per_stream", 1),
        ("streams", "requests", 0),
        ("errors", "errors", 0),
    ),
}

_TITLES = {
    "plain": "Whole answers, closed loop: what fits, what one costs",
    "latency-20": "Whole answers at 20 requests/s: what one waits",
    "latency-200": "Whole answers at 200 requests/s: what one waits",
    "stream-200-0ms": "Streams of 200 events without gap: what an event costs",
    "stream-64-20ms": "Streams of 64 events, 20 ms apart: what an event costs",
    "idle": "Idle streams: what holding one costs in memory",
}

# (part, figure, what it is): ratios of two targets that did the same work
_RATIOS = (
    ("plain", "requests_per_second", "requests/s"),
    ("plain", "cpu_us_per_request_total", "CPU per request, all processes"),
    ("plain", "cpu_us_per_request_worker", "CPU per request, without Postgres"),
    ("stream-200-0ms", "cpu_us_per_event_total", "CPU per event, no gap"),
    ("stream-64-20ms", "cpu_us_per_event_total", "CPU per event, paced"),
)


def with_added_latency(samples: Sequence[Sample]) -> list[Sample]:
    """Adds `added_p50_ms` and `added_p99_ms`: over `direct` in the same round."""
    direct = {(s.part, s.round): s.figures for s in samples if s.target == "direct"}
    result = []
    for sample in samples:
        base = direct.get((sample.part, sample.round))
        if sample.target != "direct" and base is not None and sample.part.startswith("latency"):
            added = {f"added_{q}": sample.figures[q] - base[q] for q in ("p50_ms", "p99_ms")}
            sample = Sample(sample.part, sample.target, sample.round, sample.figures | added)
        result.append(sample)
    return result


def machine() -> dict[str, str]:
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


def text(samples: Sequence[Sample], facts: dict[str, str]) -> str:
    """Everything for a terminal."""
    lines = [", ".join(f"{name} {value}" for name, value in facts.items())]
    for part in dict.fromkeys(sample.part for sample in samples):
        lines += ["", _TITLES.get(part, part), *_table(part, samples)]
    ratios = list(_ratios(samples))
    if ratios:
        lines += ["", "Farebox / nginx, pair by pair: median [min..max]", *aligned(ratios)]
    return "\n".join(lines)


def _table(part: str, samples: Sequence[Sample]) -> list[str]:
    columns = _COLUMNS[part.partition("-")[0]]
    mine = [sample for sample in samples if sample.part == part]
    rows = [["", *(heading for heading, _, _ in columns)]]
    for target in dict.fromkeys(sample.target for sample in mine):
        row = [target]
        for _, figure, decimals in columns:
            values = [s.figures[figure] for s in mine if s.target == target and figure in s.figures]
            row.append(f"{statistics.median(values):.{decimals}f}" if values else "–")
        rows.append(row)
    return aligned(rows)


def _ratios(samples: Sequence[Sample]) -> Iterator[list[str]]:
    for part, figure, title in _RATIOS:
        by_target: dict[str, dict[int, float]] = {"farebox": {}, "nginx": {}}
        for s in samples:
            if s.part == part and s.target in by_target and s.figures.get(figure):
                by_target[s.target][s.round] = s.figures[figure]
        rounds = by_target["farebox"].keys() & by_target["nginx"].keys()
        ratios = [by_target["farebox"][r] / by_target["nginx"][r] for r in rounds]
        if ratios:
            middle = statistics.median(ratios)
            yield [title, f"{middle:.2f} [{min(ratios):.2f}..{max(ratios):.2f}]"]


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
