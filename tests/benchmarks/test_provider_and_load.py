"""The benchmark's own ends against each other: what the clients count is what the provider sent."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.load import decode_chunks, percentile
from benchmarks.parts import Sample
from benchmarks.processes import Cores
from benchmarks.report import machine, text, with_added_latency
from benchmarks.targets import Target, provider

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def direct() -> Iterator[Target]:
    with provider(Cores.of_this_machine()) as target:
        yield target


def load(target: Target, *arguments: str) -> dict[str, float]:
    """The clients in a process of their own; their last line."""
    command = [sys.executable, "-m", "benchmarks.load", *arguments, "--port", str(target.port)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30, check=True)
    begin, end, result = map(json.loads, done.stdout.splitlines())
    assert (begin, end) == ({"event": "begin"}, {"event": "end"})
    assert done.stderr == ""
    figures: dict[str, float] = result
    return figures


def test_closed_loop_counts_whole_answers(direct: Target) -> None:
    figures = load(
        direct, "closed", "--model", "plain", "--amount", "4", "--seconds", "0.3", "--warm-up", "0"
    )
    assert figures["requests"] > 20
    assert figures["errors"] == 0
    assert 0 < figures["p50_ms"] <= figures["p90_ms"] <= figures["p99_ms"] <= figures["max_ms"]


def test_open_loop_sends_at_its_rate(direct: Target) -> None:
    figures = load(
        direct, "open", "--model", "plain", "--amount", "100", "--seconds", "0.5", "--warm-up", "0"
    )
    assert figures["requests"] == 50
    assert figures["errors"] == 0


def test_streams_arrive_complete(direct: Target) -> None:
    figures = load(
        direct,
        *(
            "open",
            "--model",
            "stream-7-2ms",
            "--amount",
            "20",
            "--seconds",
            "0.5",
            "--warm-up",
            "0",
        ),
    )
    assert figures["requests"] == 10
    assert figures["incomplete"] == figures["errors"] == 0
    assert figures["events"] == 10 * (7 + 3)  # deltas, then stop, usage, [DONE]
    assert figures["p50_ms"] >= 14


def test_streams_without_gap_are_the_same_streams(direct: Target) -> None:
    figures = load(
        direct,
        *("open", "--model", "stream-200-0ms", "--amount", "20", "--seconds", "0.2"),
        *("--warm-up", "0"),
    )
    assert figures["events"] == 4 * 203
    assert figures["incomplete"] == 0


def test_idle_streams_are_held(direct: Target) -> None:
    figures = load(direct, "hold", "--model", "idle", "--amount", "30", "--seconds", "0.2")
    assert figures["requests"] == 30
    assert figures["errors"] == 0


def test_usage_comes_only_when_asked_for(direct: Target) -> None:
    body = b'{"model":"stream-2-0ms","stream":true}'
    with socket.create_connection(("127.0.0.1", direct.port), timeout=10) as client:
        client.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\ncontent-length: %d\r\n\r\n" % len(body)
        )
        client.sendall(body)
        answer = b""
        while not answer.endswith(b"\r\n0\r\n\r\n"):
            answer += client.recv(65536)
    assert decode_chunks(answer.partition(b"\r\n\r\n")[2]).count(b"data: ") == 2 + 2
    assert b'"usage":{' not in answer


def test_percentile_is_the_nearest_rank() -> None:
    values = [float(n) for n in range(1, 101)]
    assert [percentile(values, share) for share in (0.5, 0.9, 0.99, 1.0)] == [50, 90, 99, 100]
    assert percentile([3.0], 0.5) == 3.0
    assert percentile([], 0.5) == 0.0


def test_report_pairs_inside_a_round() -> None:
    def sample(part: str, target: str, number: int, **figures: float) -> Sample:
        return Sample(part, target, number, {"requests": 10, "errors": 0, **figures})

    cpu = "cpu_us_per_request_total"
    samples = with_added_latency(
        [
            sample("latency-20", "direct", 0, p50_ms=1.0, p99_ms=2.0),
            sample("latency-20", "farebox", 0, p50_ms=1.5, p99_ms=4.0),
            *(sample("plain", "nginx", n, **{cpu: 10.0 * (n + 1)}) for n in range(3)),
            *(sample("plain", "farebox", n, **{cpu: 100.0}) for n in range(3)),
        ]
    )
    shown = text(samples, machine())
    assert "CPU per request, all processes  5.00 [3.33..10.00]" in shown
    assert "0.500" in shown
    assert "2.000" in shown
