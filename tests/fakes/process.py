"""A real gateway for tests: `farebox serve` in a process of its own, driven by real clients.

Its data directory is the test's; ports are chosen by the system and read from its greeting. What
it prints is kept for the failure message. `four_providers` configures one whose providers speak
four protocols, all of them the sandbox in a process of its own.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from types import MappingProxyType
from urllib.parse import urlsplit

from adapters import sandbox
from farebox.embedded import EmbeddedPostgres
from ledger import verify

FAREBOX = (sys.executable, "-m", "farebox")
START_SECONDS = 60
STOP_SECONDS = 30
EFFECTIVE_TRIES = 500
EFFECTIVE_SECONDS = 1.0  # a change is effective everywhere
SANDBOX = (sys.executable, "-m", "farebox.sandbox")

WITH_CONSOLE = """
[server]
listen = "127.0.0.1:0"
admin_listen = "127.0.0.1:0"
drain_seconds = 5
"""
LOOPBACK = f"""
[console]
enabled = false
{WITH_CONSOLE}"""
"""Without a console, which takes seconds of a core to load."""


class GatewayProcess:
    """One `farebox serve`. `base_url` and `admin_url` are known once it has started."""

    program: Sequence[str] = FAREBOX

    def __init__(self, directory: Path, config: str = LOOPBACK, *arguments: str) -> None:
        self._arguments = arguments
        self.directory = directory
        self.config = directory / "farebox.toml"
        self.config.write_text(config)
        self.base_url = ""
        self.admin_url = ""
        self.key = ""
        self.output: list[str] = []
        self._process: subprocess.Popen[str] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def conninfo(self) -> str:
        """Of the database that it brought along."""
        return self._postgres.conninfo

    @property
    def _postgres(self) -> EmbeddedPostgres:
        return EmbeddedPostgres(self.directory / ".farebox")

    def start(self) -> None:
        """Start it and wait for its greeting."""
        greeted = threading.Event()
        self.base_url = ""
        self._process = subprocess.Popen(
            [*self.program, "serve", "--config", str(self.config), *self._arguments],
            cwd=self.directory,
            env=_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        threading.Thread(target=self._listen, args=[self._process, greeted], daemon=True).start()
        if not greeted.wait(START_SECONDS) or not self.base_url:
            self.kill()
            raise AssertionError(f"the gateway did not start:\n{self.tail()}")

    def _listen(self, process: subprocess.Popen[str], greeted: threading.Event) -> None:
        assert process.stdout is not None
        with process.stdout as lines:
            for line in lines:
                self.output.append(line)
                if found := re.match(r"Farebox serves at (\S+)", line):
                    self.base_url = found[1]
                elif found := re.match(r"\s+metrics\s+(\S+)/metrics", line):
                    self.admin_url = found[1]
                elif found := re.match(r"\s+(sk_farebox_\w+)", line):
                    self.key = found[1]
                elif line.startswith("Ready"):
                    greeted.set()
        greeted.set()  # it ended: waiting longer would not help

    def tail(self) -> str:
        """The last lines it printed, requests apart."""
        return "".join([line for line in self.output if not line.startswith("{")][-40:])

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        assert self._process is not None
        self._process.send_signal(number)

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        assert self._process is not None
        self._process.terminate()
        return self._process.wait(STOP_SECONDS)

    def kill(self) -> None:
        """`kill -9`. Harmless where it has ended."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(STOP_SECONDS)

    def run(self, *arguments: str) -> str:
        """What a `farebox` command prints. Raises AssertionError where it fails."""
        done = subprocess.run(
            [*FAREBOX, *arguments, "--config", str(self.config)],
            cwd=self.directory,
            env=_environment(),
            capture_output=True,
            text=True,
            timeout=START_SECONDS,
            check=False,
        )
        assert done.returncode == 0, f"farebox {' '.join(arguments)}: {done.stderr}{done.stdout}"
        return done.stdout

    def records(self, *arguments: str) -> list[dict[str, object]]:
        """The records that a command prints with `--json`, or as JSON lines."""
        return [json.loads(line) for line in self.run(*arguments).splitlines()]

    def record(self, *arguments: str) -> dict[str, object]:
        """The one record that a command prints with `--json`."""
        (found,) = self.records(*arguments, "--json")
        return found

    def assert_sound_books(self) -> None:
        """C1–C8 in the database that this gateway brought along; others are their owner's care.

        As `farebox ledger verify`, without a second for starting that.
        """
        if self._postgres.socket_directory.exists():
            found = [each for check in verify.run(self.conninfo) for each in check.violations]
            assert not found, self.tail()

    def new_key(self, account: str, credit: str = "10.00", *options: str) -> str:
        """A key of a new account. It works at once, whichever worker is asked."""
        self.record("account", "create", account, "--credit", credit, *options)
        return str(self.record("key", "create", f"{account}/default")["key"])

    def knows(self, key: str) -> bool:
        """Whether the gateway serves `key`; a refusal takes a moment to be answered."""
        request = urllib.request.Request(  # noqa: S310 - loopback
            f"{self.base_url}/v1/models", headers={"authorization": f"Bearer {key}"}
        )
        try:
            with urllib.request.urlopen(request, timeout=10):  # noqa: S310 - loopback
                return True
        except urllib.error.HTTPError as error:
            error.close()
            threading.Event().wait(0.02)
            return False

    def has_console(self) -> bool:
        """Whether its console answers; that is loaded once the gateway serves."""
        with (
            closing(HTTPConnection(urlsplit(self.base_url).netloc, timeout=30)) as connection,
            suppress(TimeoutError),
        ):
            connection.request("GET", "/console/sign-in")
            with connection.getresponse() as answer:
                return answer.status == 200
        return False

    def metrics(self) -> dict[str, float]:
        """Every sample of /metrics by its name with labels."""
        with urllib.request.urlopen(f"{self.admin_url}/metrics", timeout=10) as answer:  # noqa: S310 - loopback
            lines = answer.read().decode().splitlines()
        pairs = (line.rpartition(" ") for line in lines if not line.startswith("#"))
        return {name: float(value) for name, _, value in pairs}

    def calls_since(self, before: int, **labels: str) -> int:
        """How many more `calls` there are; one is counted just after its answer has left."""
        for _ in range(EFFECTIVE_TRIES):
            if (more := self.calls(**labels) - before) > 0:
                return more
            threading.Event().wait(0.02)
        return 0

    def calls(self, **labels: str) -> int:
        """How many requests it has answered that have all of these labels."""
        wanted = [f'{name}="{value}"' for name, value in labels.items()]
        return sum(
            int(value)
            for name, value in self.metrics().items()
            if name.startswith("farebox_requests_total{") and all(each in name for each in wanted)
        )


def wait_until_effective() -> None:
    """Until a change of accounts or keys has reached every worker, as is promised; a new key needs
    no waiting for."""
    threading.Event().wait(EFFECTIVE_SECONDS)


def _environment() -> Mapping[str, str]:
    """Ours without anything that would switch a provider on."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.endswith(("_API_KEY", "DATABASE_URL"))
    } | {"PYTHONUNBUFFERED": "1"}


@contextmanager
def serving(directory: Path, config: str = LOOPBACK, *arguments: str) -> Iterator[GatewayProcess]:
    """A gateway for the time of the block; it has to end by itself when told to.

    Every invariant of its books has to hold by then.
    """
    gateway = GatewayProcess(directory, config, *arguments)
    try:
        gateway.start()
        yield gateway
        gateway.assert_sound_books()
        assert gateway.stop() == 0, gateway.tail()
    finally:
        gateway.kill()


@contextmanager
def sandbox_process() -> Iterator[str]:
    """The sandbox provider for the time of the block; its origin, which speaks every protocol."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        process = subprocess.Popen(
            [*SANDBOX, str(listening.fileno())],
            env=_environment(),
            stdin=subprocess.PIPE,
            pass_fds=[listening.fileno()],
        )
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        assert process.stdin is not None
        process.stdin.close()
        process.kill()
        process.wait(STOP_SECONDS)


@dataclass(frozen=True)
class Speaker:
    """A provider of `four_providers`, named for what it speaks."""

    name: str
    protocol: str
    prefix: str
    embeds: bool = False


SPEAKERS = (
    Speaker("chat", "openai", "/v1", embeds=True),
    Speaker("responses", "openai-responses", "/v1"),
    Speaker("messages", "anthropic", ""),
    Speaker("gemini", "gemini", "", embeds=True),
)


def four_providers(
    origin: str, extra: Mapping[str, str] = MappingProxyType({}), failures_to_open: int = 5
) -> str:
    """The configuration of a gateway whose every provider is the sandbox at `origin`.

    Every model of the sandbox is served by each provider, as `chat-sandbox-tools` and so on;
    `extra` are models of other names: `{name: "provider/model"}`.
    """
    providers = [
        f"""
[[providers]]
name = "{each.name}"
protocol = "{each.protocol}"
base_url = "{origin}{each.prefix}"
api_key = "sandbox"
failures_to_open = {failures_to_open}
"""
        for each in SPEAKERS
    ]
    models = [
        _model(f"{each.name}-{name}", f"{each.name}/{name}", model.kind)
        for each in SPEAKERS
        for name, model in sandbox.MODELS.items()
        if each.embeds or model.kind != "embedding"
    ]
    models += [_model(name, upstream, "chat") for name, upstream in extra.items()]
    return "".join(providers + models)


def _model(name: str, upstream: str, kind: str) -> str:
    return f"""
[[models]]
id = "{name}"
kind = "{kind}"
upstreams = ["{upstream}"]
price = {{ input = "1.00", cached_input = "0.10", cache_write = "1.25", output = "4.00" }}
"""
