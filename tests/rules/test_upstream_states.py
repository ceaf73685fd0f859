"""Workers share what they learn of upstreams, and operators see it.

A real gateway with two workers; one provider fails, the other serves, both are the sandbox.
"""

from __future__ import annotations

import json
import os
import signal
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from tests.fakes.callers import call
from tests.fakes.process import LOOPBACK, GatewayProcess, sandbox_process, serving
from tests.fakes.waiting import eventually, until
from tests.rules.test_workers import new_key, pid_of, processes, readiness

FAILURES_TO_OPEN = 3
ASKED = 12


def config(origin: str) -> str:
    """Its circuit stays open for longer than a test takes."""
    return f"""{LOOPBACK}workers = 2

[[providers]]
name = "broken"
protocol = "openai"
base_url = "{origin}/v1"
api_key = "sandbox"
failures_to_open = {FAILURES_TO_OPEN}
open_seconds = 60

[[providers]]
name = "well"
protocol = "openai"
base_url = "{origin}/v1"
api_key = "sandbox"

[[models]]
id = "m"
upstreams = ["broken/sandbox-error-500", "well/sandbox"]
price = {{ input = "1.00", output = "4.00" }}

[[models]]
id = "slow"
upstreams = ["well/sandbox-slower"]
price = {{ input = "1.00", output = "4.00" }}

[[models]]
id = "refused"
upstreams = ["broken/sandbox-error-401"]
price = {{ input = "1.00", output = "4.00" }}
"""


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[GatewayProcess]:
    with sandbox_process() as origin, serving(tmp_path, config(origin)) as started:
        yield started


def upstreams(gateway: GatewayProcess) -> dict[str, dict[str, object]]:
    with urllib.request.urlopen(f"{gateway.admin_url}/status", timeout=10) as answer:  # noqa: S310 - loopback
        return {each["name"]: each for each in json.load(answer)["upstreams"]}


async def told(gateway: GatewayProcess, name: str, value: float) -> None:
    """Wait for the metric; a worker that is not asked in time tells with the next figures."""

    def shown() -> float:
        return gateway.metrics().get(name, 0)

    await until(lambda: shown() >= value, name)
    assert shown() == value


def lines(gateway: GatewayProcess, event: str) -> list[dict[str, object]]:
    logged = [json.loads(line) for line in list(gateway.output) if line.startswith("{")]
    return [line for line in logged if line["event"] == event]


async def test_what_fails_in_one_worker_is_left_alone_by_both(gateway: GatewayProcess) -> None:
    key = new_key(gateway, "acme")
    assert {each["state"] for each in upstreams(gateway).values()} == {"ready"}
    for _ in range(ASKED):
        assert (await call(gateway.base_url, key, "m")).status == 200
    asked_in_vain = 'farebox_upstream_attempts_total{outcome="server_error",provider="broken"}'
    await told(gateway, asked_in_vain, FAILURES_TO_OPEN)
    counts = gateway.metrics()
    assert counts['farebox_circuit_state{provider="broken"}'] == 2
    assert counts['farebox_circuit_state{provider="well"}'] == 0
    assert counts['farebox_upstream_state{upstream="broken/sandbox-error-500"}'] == 2

    found = upstreams(gateway)["broken/sandbox-error-500"]
    assert (found["state"], found["cause"], found["failures"]) == ("open", "server_error", 3)
    status, said = readiness(gateway)
    assert status == 200, "another serves"
    assert said.startswith("ready\nbroken/sandbox-error-500: circuit open, ")
    assert said.endswith(" s, after 3 × server_error\n")
    eventually(lambda: bool(lines(gateway, "upstream")), "the log tells of it")
    (opened,) = lines(gateway, "upstream")
    assert opened["upstream"] == "broken/sandbox-error-500"


async def test_a_wrong_credential_is_an_alarm(gateway: GatewayProcess) -> None:
    key = new_key(gateway, "acme")
    for _ in range(3):
        assert (await call(gateway.base_url, key, "refused")).status in (502, 503)
    assert "broken: circuit open, " in readiness(gateway)[1]
    await told(gateway, 'farebox_upstream_alarms_total{provider="broken",reason="auth"}', 1)
    eventually(lambda: bool(lines(gateway, "alarm")), "the log tells of it")
    (alarm,) = lines(gateway, "alarm")
    assert (alarm["provider"], alarm["cause"]) == ("broken", "auth")


async def test_what_a_killed_worker_had_in_flight_is_gone_with_it(gateway: GatewayProcess) -> None:
    key = new_key(gateway, "acme")

    def in_flight() -> object:
        return upstreams(gateway)["well/sandbox-slower"]["in_flight"]

    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(lambda: call(gateway.base_url, key, "slow", stream=True))
        await until(lambda: in_flight() == 4, "four are in flight")
        for name, process in processes(gateway).items():
            if name.startswith("worker"):
                os.kill(pid_of(process), signal.SIGKILL)
        await until(lambda: in_flight() == 0, "none is")
        nursery.cancel_scope.cancel()
