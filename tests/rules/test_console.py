"""The console beside the gateway: it may die, hang or be replaced, and no call to a model notices.

Real gateways, real clients, real `kill -9`.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from functools import partial
from http.client import HTTPConnection
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

import pytest

from farebox.config import load
from farebox.console_child import without_keys
from farebox.served import Settings, packed
from tests.fakes.process import LOOPBACK, WITH_CONSOLE, GatewayProcess, serving
from tests.fakes.waiting import eventually

PATIENCE_SECONDS = 60
DOCUMENT = "/console/api/openapi.json"
CHAT = {"model": "sandbox", "max_tokens": 5, "messages": [{"role": "user", "content": "hi"}]}
CALLERS = 2
HEAVY = (
    "fastapi",
    "starlette",
    "pydantic",
    "mcp",
    "stripe",
    "jinja2",
    "jwt",
    "httpx2",
    "httpcore2",
)


def get(url: str) -> tuple[int, bytes, dict[str, str]]:
    try:
        with urllib.request.urlopen(url, timeout=30) as answer:  # noqa: S310 - loopback
            return answer.status, answer.read(), dict(answer.headers)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read(), dict(error.headers)


def console_of(gateway: GatewayProcess) -> dict[str, object]:
    """The console's process, as `/status` knows it."""
    status = json.loads(get(f"{gateway.admin_url}/status")[1])
    (found,) = (each for each in status["processes"] if each["name"] == "console")
    assert isinstance(found, dict)
    return found


def gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


def ready_console(gateway: GatewayProcess, after: int = 0) -> int:
    """The number of the console's process, once it is ready and another than `after`."""
    found: list[int] = []

    def there() -> bool:
        console = console_of(gateway)
        pid = int(str(console["pid"]))
        if console["ready"] and pid != after:
            found.append(pid)
        return bool(found)

    eventually(there, f"a console other than process {after} is ready", PATIENCE_SECONDS)
    return found[0]


class Callers:
    """Calls a model without a pause; every answer is looked at."""

    def __init__(self, gateway: GatewayProcess) -> None:
        self._gateway = gateway
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._call) for _ in range(CALLERS)]
        self.answered = 0
        self.failures: list[str] = []

    def _call(self) -> None:
        address = urlsplit(self._gateway.base_url)
        connection = HTTPConnection(address.hostname or "", address.port, timeout=30)
        headers = {
            "authorization": f"Bearer {self._gateway.key}",
            "content-type": "application/json",
        }
        while not self._stop.is_set():
            try:
                connection.request("POST", "/v1/chat/completions", json.dumps(CHAT), headers)
                answer = connection.getresponse()
                body = answer.read()
                if answer.status != 200:
                    self.failures.append(f"{answer.status} {body!r}")
            except OSError as error:
                self.failures.append(repr(error))
            self.answered += 1
        connection.close()

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    """One for those tests that leave it with a console."""
    with serving(tmp_path_factory.mktemp("gateway"), WITH_CONSOLE) as running:
        yield running


@pytest.mark.parametrize("workers", [1, 2])
def test_killing_it_under_load_fails_no_call_to_a_model(tmp_path: Path, workers: int) -> None:
    with serving(tmp_path, f"{WITH_CONSOLE}workers = {workers}\n") as gateway:
        pid = ready_console(gateway)
        with Callers(gateway) as callers:
            for _ in range(2):
                assert get(f"{gateway.base_url}{DOCUMENT}")[0] == 200
                before = callers.answered
                os.kill(pid, signal.SIGKILL)
                pid = ready_console(gateway, after=pid)
                assert callers.answered > before
            status, body, _ = get(f"{gateway.base_url}{DOCUMENT}")
        assert status == 200
        assert json.loads(body)["openapi"]
        assert callers.failures == []
        assert console_of(gateway)["restarts"] == 2, gateway.tail()


def test_who_calls_while_it_starts_waits_for_it(gateway: GatewayProcess) -> None:
    pid = ready_console(gateway)
    answers: list[int] = []
    os.kill(pid, signal.SIGSTOP)  # whoever is connected gets no answer, and is not turned away
    callers = [
        threading.Thread(target=lambda: answers.append(get(f"{gateway.base_url}{DOCUMENT}")[0]))
        for _ in range(3)
    ]
    for caller in callers:
        caller.start()
    assert get(f"{gateway.base_url}/v1/models")[0] == 401  # the data plane is there at once
    os.kill(pid, signal.SIGCONT)
    for caller in callers:
        caller.join()
    assert answers == [200, 200, 200]


def test_a_gateway_without_its_console_is_ready_and_says_so(gateway: GatewayProcess) -> None:
    pid = ready_console(gateway)
    assert get(f"{gateway.admin_url}/readyz")[1] == b"ready\n"
    os.kill(pid, signal.SIGKILL)

    def told() -> bool:
        return b"console: starting" in get(f"{gateway.admin_url}/readyz")[1]

    eventually(told, "it tells that its console starts", PATIENCE_SECONDS)
    assert get(f"{gateway.admin_url}/readyz")[0] == 200
    ready_console(gateway, after=pid)


def test_a_changed_configuration_comes_with_a_new_process(gateway: GatewayProcess) -> None:
    pid = ready_console(gateway)
    gateway.config.write_text(f"{WITH_CONSOLE}[tiers.gold]\nrpm = 7\n")
    gateway.signal(signal.SIGHUP)
    after = ready_console(gateway, after=pid)
    assert get(f"{gateway.base_url}{DOCUMENT}")[0] == 200
    assert after != pid
    assert "[console] and [stripe]" in gateway.tail()
    assert f"console (process {pid})" not in "".join(gateway.output)


@pytest.mark.parametrize("workers", [1, 2])
def test_it_ends_with_the_gateway(tmp_path: Path, workers: int) -> None:
    with serving(tmp_path, f"{WITH_CONSOLE}workers = {workers}\n") as gateway:
        pid = ready_console(gateway)
        get(f"{gateway.base_url}{DOCUMENT}")
    eventually(partial(gone, pid), "the console has ended", PATIENCE_SECONDS)
    assert list((tmp_path / ".farebox" / "run").glob("*.sock")) == []


def test_a_gateway_that_is_killed_takes_it_along(tmp_path: Path) -> None:
    gateway = GatewayProcess(tmp_path, WITH_CONSOLE)
    gateway.start()
    pid = ready_console(gateway)
    gateway.kill()
    eventually(partial(gone, pid), "the console has ended", PATIENCE_SECONDS)


def test_without_one_there_is_nothing_at_its_paths(tmp_path: Path) -> None:
    with serving(tmp_path, LOOPBACK) as gateway:
        for path in ("/console", DOCUMENT, "/mcp"):
            status, body, _ = get(f"{gateway.base_url}{path}")
            assert status == 404
            assert json.loads(body)["error"]["code"] == "not_found"
        assert json.loads(get(f"{gateway.admin_url}/status")[1])["processes"] == []
        assert "console" not in gateway.tail()


def test_the_greeting_shows_a_way_in_that_no_log_repeats(gateway: GatewayProcess) -> None:
    links = [line.strip() for line in gateway.output if "/console/sign-in/" in line]
    assert len(links) == 1
    assert links[0].startswith(f"{gateway.base_url}/console/sign-in/")
    get(links[0])
    logged = [line for line in gateway.output if line.startswith("{")]
    assert not any("sign-in" in line for line in logged)


def test_no_link_where_others_say_who_may_come_in(tmp_path: Path) -> None:
    trusting = (
        f'{WITH_CONSOLE}[console]\njwt_secret = "{"s" * 32}"\nissuer = "https://issuer.test"\n'
    )
    with serving(tmp_path, trusting) as gateway:
        assert not any("/console/sign-in/" in line for line in gateway.output)


@pytest.mark.parametrize("module", ["farebox.serve", "farebox.worker", "farebox.child"])
def test_other_processes_load_nothing_of_what_it_is_made_of(module: str) -> None:
    script = f"import sys, {module}; print(*sys.modules)"
    loaded = subprocess.check_output([sys.executable, "-c", script], text=True).split()
    assert [name for name in loaded if name.partition(".")[0] in HEAVY] == []


def test_what_providers_are_asked_with_is_not_told_to_it(tmp_path: Path) -> None:
    (tmp_path / "farebox.toml").write_text(
        '[[providers]]\npreset = "openai"\napi_key = ["s3cret-1", "s3cret-2"]\n'
        'headers = { x-own = "s3cret-3" }\nquery = { code = "s3cret-4" }\n'
        'shadow_api_key = "s3cret-5"\n'
    )
    config = load(tmp_path / "farebox.toml", {})
    assert b"s3cret" in bytes(packed(Settings(config=config, built_in=None)))
    assert b"s3cret" not in bytes(packed(Settings(config=without_keys(config), built_in=None)))
