"""The benchmark's own ends against each other: what the clients count is what the provider sent."""

from __future__ import annotations

import argparse
import json
import shutil
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import parts, targets
from benchmarks.answers import Protocol
from benchmarks.load import decode_chunks, percentile
from benchmarks.parts import Bench
from benchmarks.processes import Cores
from benchmarks.requests import (
    LAST_EVENT,
    Ask,
    add_arguments,
    arguments,
    from_arguments,
    unknown_keys,
)
from benchmarks.targets import PROTOCOLS, Provider, provider

ROOT = Path(__file__).resolve().parents[2]
_FAILING = ("500", "200", "500", "200", "200")


@pytest.fixture(scope="module")
def direct() -> Iterator[Provider]:
    with provider(Cores.of_this_machine()) as started:
        yield started


def load(target: Provider, *options: str) -> dict[str, float]:
    """The clients in a process of their own; their last line."""
    command = [sys.executable, "-m", "benchmarks.load", *options, "--port", str(target.port)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30, check=True)
    begin, end, result = map(json.loads, done.stdout.splitlines())
    assert (begin, end) == ({"event": "begin"}, {"event": "end"})
    assert done.stderr == ""
    figures: dict[str, float] = result
    return figures


def test_closed_loop_counts_whole_answers(direct: Provider) -> None:
    figures = load(
        direct, "closed", "--model", "plain", "--amount", "4", "--seconds", "0.5", "--warm-up", "0"
    )
    assert figures["requests"] > 1
    assert figures["errors"] == 0
    assert 0 < figures["p50_ms"] <= figures["p90_ms"] <= figures["p99_ms"] <= figures["max_ms"]


def test_open_loop_sends_at_its_rate(direct: Provider) -> None:
    figures = load(
        direct, "open", "--model", "plain", "--amount", "100", "--seconds", "0.5", "--warm-up", "0"
    )
    assert figures["requests"] == 50
    assert figures["errors"] == 0


def test_streams_arrive_complete(direct: Provider) -> None:
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
    assert figures["events"] == 10 * (1 + 7 + 3)  # role, deltas, then stop, usage, [DONE]
    assert figures["p50_ms"] >= 14
    assert 0 < figures["first_p50_ms"] <= figures["first_p99_ms"] < figures["max_ms"]
    assert 0 < figures["token_p50_ms"] <= figures["token_p99_ms"]


def test_streams_without_gap_are_the_same_streams(direct: Provider) -> None:
    figures = load(
        direct,
        *("open", "--model", "stream-200-0ms", "--amount", "20", "--seconds", "0.2"),
        *("--warm-up", "0"),
    )
    assert figures["events"] == 4 * 204
    assert figures["incomplete"] == 0
    assert figures["token_p50_ms"] == 0  # nobody can say when each was sent


def test_idle_streams_are_held(direct: Provider) -> None:
    figures = load(direct, "hold", "--model", "idle", "--amount", "30", "--seconds", "0.2")
    assert figures["requests"] == 30
    assert figures["errors"] == 0


def test_usage_comes_only_when_asked_for(direct: Provider) -> None:
    body = b'{"model":"stream-2-0ms","stream":true}'
    with socket.create_connection(("127.0.0.1", direct.port), timeout=10) as client:
        client.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\ncontent-length: %d\r\n\r\n" % len(body)
        )
        client.sendall(body)
        answer = b""
        while not answer.endswith(b"\r\n0\r\n\r\n"):
            answer += client.recv(65536)
    assert decode_chunks(answer.partition(b"\r\n\r\n")[2]).count(b"data: ") == 1 + 2 + 2
    assert b'"usage":{' not in answer


def test_percentile_is_the_nearest_rank() -> None:
    values = [float(n) for n in range(1, 101)]
    assert [percentile(values, share) for share in (0.5, 0.9, 0.99, 1.0)] == [50, 90, 99, 100]
    assert percentile([3.0], 0.5) == 3.0
    assert percentile([], 0.5) == 0.0


@pytest.mark.parametrize("surface", PROTOCOLS)
@pytest.mark.parametrize("model", ["plain", "stream-3-0ms", "stream-3-1ms"])
def test_every_protocol_is_spoken(direct: Provider, surface: Protocol, model: str) -> None:
    figures = load(
        direct,
        *("closed", "--amount", "2", "--seconds", "0.5", "--warm-up", "0"),
        *arguments(Ask(model, surface)),
    )
    assert figures["requests"] > 0
    assert figures["errors"] == figures["incomplete"] == 0


def test_requests_are_as_large_as_asked_for() -> None:
    assert 750 < len(Ask("plain").body) < 850
    assert 400_000 < len(Ask("plain", prompt_bytes=400_000).body) < 400_500
    assert 4 / 3 * 5_000_000 < len(Ask("plain", image_bytes=5_000_000).body) < 6_670_000


def test_options_carry_a_request() -> None:
    asked = Ask("m", "gemini", 10, 20, {"x-config": '{"a": "b:c"}'})
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    assert from_arguments(parser.parse_args(arguments(asked))) == asked


def test_large_bodies_arrive(direct: Provider) -> None:
    figures = load(
        direct,
        *("closed", "--amount", "2", "--seconds", "1", "--warm-up", "0"),
        *arguments(Ask("plain", image_bytes=1_000_000)),
    )
    assert figures["requests"] > 0
    assert figures["errors"] == 0


def test_an_upstream_fails_two_of_five_times(direct: Provider) -> None:
    before = direct.answered()
    asked = ("--model", "failing", "--amount", "1")
    each = [load(direct, "flood", *asked, "--expect", code)["errors"] for code in _FAILING]
    assert each == [0, 0, 0, 0, 0]
    assert direct.answered() == before + 5


def test_a_flood_is_of_distinct_keys() -> None:
    keys = list(unknown_keys(1000))
    assert len(set(keys)) == 1000
    assert len({len(key) for key in keys}) == 1


def test_the_provider_speaks_tls(direct: Provider) -> None:
    context = ssl.create_default_context(cafile=str(direct.authority))
    ask = Ask("stream-200-1ms")
    with (
        socket.create_connection(("127.0.0.1", direct.tls_port), timeout=10) as raw,
        context.wrap_socket(raw, server_hostname="127.0.0.1") as client,
    ):
        large = Ask("plain", prompt_bytes=300_000)
        for sent in (large, ask):
            client.sendall(sent.request("none"))
            answer = b""
            while not answer.endswith((b"\r\n0\r\n\r\n", b'"fp_benchmark"}')):
                answer += client.recv(65536)
    assert LAST_EVENT["openai"] in decode_chunks(answer.partition(b"\r\n\r\n")[2])


@pytest.mark.skipif(not shutil.which("wrk"), reason="wrk is not installed")
def test_wrk_counts_what_the_provider_answered(direct: Provider) -> None:
    cores = Cores.of_this_machine()
    plain = targets.direct(direct)
    plan = replace(parts.QUICK, seconds=0.5, connections=4)
    figures = dict(parts.plain(plain, Bench(plan, cores, direct, plain)))["plain"]
    assert figures["errors"] == 0
    assert figures["requests"] > 1
    assert 0 < figures["p50_ms"] <= figures["p99_ms"] <= figures["max_ms"]
