"""`python -m benchmarks.table RESULT…`: saved results as the table in README.md.

A row for each promise, a column for each target. Behind a figure of another target stands how many
times Farebox's it is (×), or of how many times as much Farebox's is (÷): the median over the
rounds, and the range. Samples of several files are put together as rounds of one run.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks import report
from benchmarks.parts import Sample
from benchmarks.report import Saved, median, ratios, spread

_NAMES = {
    "direct": "direct",
    "nginx": "nginx",
    "haproxy": "haproxy",
    "before": "Farebox before",
    "farebox": "**Farebox**",
    "portkey": "Portkey",
    "litellm": "LiteLLM",
}


@dataclass(frozen=True, slots=True)
class Row:
    """One figure of one part; `compared` where a ratio of it says something."""

    title: str
    part: str
    figure: str
    decimals: int = 0
    compared: bool = False


ROWS = (
    Row("CPU per request, 64 clients, µs", "plain", "cpu_us_per_request_worker", 0, True),
    Row("requests/s, one core", "plain", "requests_per_second"),
    Row("added latency at 20 requests/s, p50, ms", "latency-20", "added_p50_ms", 2, True),
    Row("… at 50 requests/s", "latency-50", "added_p50_ms", 2, True),
    Row("latency at half of what fits, p50, ms", "half", "p50_ms", 2),
    Row("… p99, ms", "half", "p99_ms", 1),
    Row(
        "CPU per event of a stream, no gap, µs",
        "stream-200-0ms",
        "cpu_us_per_event_worker",
        1,
        True,
    ),
    Row(
        "… translated from Anthropic's protocol, µs",
        "translated-chat-messages",
        "cpu_us_per_event_worker",
        1,
        True,
    ),
    Row("CPU per event, 10,000 events/s, µs", "paced-100", "cpu_us_per_event_worker", 0, True),
    Row("… on 512 streams: an event's way, p99, ms", "paced-512", "token_p99_ms", 1),
    Row("CPU per prompt of 400 KB, µs", "prompt-400000", "cpu_us_per_request_worker", 0, True),
    Row("memory per idle stream, 1,000 of them, KiB", "idle-1000", "kib_per_stream", 1),
    Row("memory after 64 clients, MiB", "plain", "rss_mib_worker", 0),
    Row("start to first answer, s", "cold", "start_seconds", 1),
)


def markdown(samples: Sequence[Sample], saved: Sequence[Saved]) -> str:
    """The table, and under it where its figures come from."""
    targets = [name for name in _NAMES if any(sample.target == name for sample in samples)]
    lines = [
        f"| | {' | '.join(_NAMES[name] for name in targets)} |",
        f"|---|{'---:|' * len(targets)}",
    ]
    for row in ROWS:
        cells = [_cell(samples, row, target) for target in targets]
        if any(cell != "–" for cell in cells):
            lines.append(f"| {row.title} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", *_sources(saved)])


def _cell(samples: Sequence[Sample], row: Row, target: str) -> str:
    value = median(samples, row.part, target, row.figure)
    if value is None:
        return "–"
    shown = f"{value:,.{row.decimals}f}"
    cheaper = target in report.CHEAPER
    pair = ("farebox", target) if cheaper else (target, "farebox")
    found = ratios(samples, row.part, row.figure, *pair)
    if target == "farebox" or not row.compared or not found:
        return shown
    return f"{shown} ({'÷' if cheaper else '×'} {spread(found)})"


def _sources(saved: Sequence[Saved]) -> Iterator[str]:
    for result in saved:
        facts = result.machine
        yield (
            f"{result.time[:10]}, commit {facts['commit']}, {facts['processor']}, {facts['cores']} "
            f"cores, Linux {facts['kernel']}, Farebox on {facts.get('farebox', facts['python'])}: "
            f"`{result.command}`"
        )


def together(saved: Sequence[Saved]) -> list[Sample]:
    """All samples; the rounds of each result come after those of the one before."""
    samples: list[Sample] = []
    for result in saved:
        first = 1 + max((sample.round for sample in samples), default=-1)
        samples += [replace(sample, round=first + sample.round) for sample in result.samples]
    return samples


def main() -> int:
    paths = [Path(argument) for argument in sys.argv[1:]]
    if not paths:
        print("usage: python -m benchmarks.table RESULT…", file=sys.stderr)
        return 2
    saved = [Saved.read(path) for path in paths]
    print(markdown(together(saved), saved))
    return 0


if __name__ == "__main__":
    sys.exit(main())
