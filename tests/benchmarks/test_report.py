"""From samples to tables: medians over rounds, ratios inside a round, and the README's table."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import report, table
from benchmarks.parts import PARTS, QUICK, Sample
from benchmarks.report import Saved, machine, median, ratios, spread, text, with_added_latency

CPU = "cpu_us_per_request_worker"


def sample(part: str, target: str, number: int, **figures: float) -> Sample:
    return Sample(part, target, number, {"requests": 10, "errors": 0, **figures})


@pytest.fixture
def samples() -> list[Sample]:
    measured = [
        sample("latency-20", "direct", 0, p50_ms=1.0, p99_ms=2.0),
        sample("latency-20", "farebox", 0, p50_ms=1.5, p99_ms=4.0),
        *(sample("plain", "nginx", n, **{CPU: 10.0 * (n + 1)}) for n in range(3)),
        *(sample("plain", "farebox", n, **{CPU: 100.0}) for n in range(3)),
        *(sample("plain", "litellm", n, **{CPU: 4000.0 + n}) for n in range(3)),
    ]
    return with_added_latency(measured)


def test_ratios_are_of_one_round(samples: list[Sample]) -> None:
    assert ratios(samples, "plain", CPU, "farebox", "nginx") == [10.0, 5.0, 100 / 30]
    assert ratios(samples, "plain", CPU, "litellm", "farebox") == [40.0, 40.01, 40.02]
    assert ratios(samples, "plain", CPU, "farebox", "nobody") == []
    assert spread([10.0, 5.0, 3.0]) == "5.00 [3.00..10.00]"


def test_latency_is_added_to_that_of_the_same_round(samples: list[Sample]) -> None:
    assert median(samples, "latency-20", "farebox", "added_p50_ms") == 0.5
    assert median(samples, "latency-20", "farebox", "added_p99_ms") == 2.0
    assert median(samples, "latency-20", "direct", "added_p50_ms") is None


def test_a_terminal_sees_who_is_cheaper(samples: list[Sample]) -> None:
    shown = text(samples, machine())
    assert "plain, CPU per request: farebox / nginx      5.00 [3.33..10.00]" in shown
    assert "plain, CPU per request: litellm / farebox  40.01 [40.00..40.02]" in shown


@pytest.mark.parametrize("part", PARTS)
def test_every_part_has_a_title_and_a_table(part: str) -> None:
    names = {"prompts": "prompt-1000", "images": "image", "streams": "stream-200-0ms"}
    name = names.get(part, part)
    assert report.title(name)
    assert name in text([sample(name, "farebox", 0)], {}) or report.title(name) != name


def test_what_is_saved_makes_the_table(
    samples: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "_RESULTS", tmp_path)
    facts = machine() | {"farebox": "Python 3.11.2"}
    saved = Saved.read(report.save(samples, facts, QUICK, "python -m benchmarks"))
    assert saved.samples == samples
    shown = table.markdown(table.together([saved]), [saved])
    assert "| | direct | nginx | **Farebox** | LiteLLM |" in shown
    assert "| CPU per request, 64 clients, µs | – | 20 (÷ 5.00 [3.33..10.00]) | 100 | " in shown
    assert "4,001 (× 40.01 [40.00..40.02])" in shown
    assert "memory per idle stream" not in shown
    assert "Python 3.11.2: `python -m benchmarks`" in shown


def test_results_are_put_together_as_rounds_of_one_run(samples: list[Sample]) -> None:
    facts = machine()
    once, twice = Saved("2026-01-01", facts, samples), Saved("2026-01-02", facts, samples)
    both = table.together([once, twice])
    assert len(both) == 2 * len(samples)
    assert len(ratios(both, "plain", CPU, "farebox", "nginx")) == 6
