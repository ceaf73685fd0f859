"""What the clients talk to: the provider itself, Farebox in front of it; others are in `peers`.

A target is a server on a port, with the routes by which it reaches the provider: one for each
protocol, one over TLS, one whose first upstream fails now and then. All keep their files in a
temporary directory; leaving the context manager ends what it started.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, get_args

from benchmarks import processes
from benchmarks.answers import Protocol
from benchmarks.processes import Cores
from benchmarks.requests import Ask

Way = Literal["openai", "openai-responses", "anthropic", "gemini", "tls", "failover"]

START_SECONDS = 180.0
PROTOCOLS: tuple[Protocol, ...] = get_args(Protocol)
MODELS = (
    "plain",
    "idle",
    "stream-20-0ms",
    "stream-200-0ms",
    "stream-64-20ms",
    "stream-500-10ms",
    "stream-200-50ms",
)

_ROOT = Path(__file__).resolve().parents[1]
PROGRAM = _ROOT / ".venv" / "bin" / "farebox"
_MANY_KEYS = Path(__file__).with_name("known_keys.py")
_FAREBOX = """\
[server]
listen = "127.0.0.1:{port}"
admin_listen = "127.0.0.1:{admin}"
workers = {workers}
drain_seconds = 0
max_connections = 20000
retry_budget = "1"

[database]
data_dir = "{directory}/data"
"""
_NO_CONSOLE = """
[console]
enabled = false
"""
_PROVIDER = """
[[providers]]
name = "{name}"
protocol = "{protocol}"
base_url = "{base_url}"
api_key = "benchmark"
max_connections = 20000
"""
_MODEL = """
[[models]]
id = "{id}"
kind = "chat"
context_window = 2000000
max_output_tokens = 4096
upstreams = {upstreams}
[models.price]
input = "0.10"
output = "0.40"
"""


class TargetFailed(Exception):
    """It cannot be started; the message says what to look at."""


@dataclass(frozen=True, slots=True)
class Route:
    """A way through a target: where it listens for it, what it wants to be told."""

    port: int
    prefix: str = ""  # of the model's name
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Provider:
    """The stand-in: its ports, and the certificate of the authority that vouches for it."""

    port: int
    tls_port: int
    authority: Path

    def base_url(self, way: Way) -> str:
        """Where an SDK of that protocol would be pointed at."""
        origin = f"http://127.0.0.1:{self.port}"
        if way == "tls":
            origin = f"https://127.0.0.1:{self.tls_port}"
        return origin if way in ("anthropic", "gemini") else f"{origin}/v1"

    def answered(self) -> int:
        """How many requests it has answered."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=START_SECONDS)
        with contextlib.closing(connection):
            connection.request("GET", "/answered")
            return int(connection.getresponse().read())


class Server:
    """A process that listens on a port, and can be started over."""

    def __init__(
        self,
        command: Sequence[str],
        cores: Cores,
        *,
        port: int,
        log: Path,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self._command, self._cores, self._port, self._log = command, cores, port, log
        self._environ = dict(environ or {}) | {
            name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ
        }
        self._process: subprocess.Popen[str] | None = None

    @property
    def pid(self) -> int:
        """The process; another one after each start."""
        assert self._process is not None, "it was started"
        return self._process.pid

    def start(self) -> None:
        """Start it, without waiting for it."""
        self._process = processes.start(
            self._command,
            self._cores.under_test,
            log=self._log,
            directory=self._log.parent,
            environ=self._environ,
        )

    def await_port(self) -> None:
        """Wait until somebody listens."""
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            self.check()
            with (
                contextlib.suppress(OSError),
                socket.create_connection(("127.0.0.1", self._port), 1),
            ):
                return
            processes.pause(0.01)
        raise TargetFailed(f"no answer within {START_SECONDS:.0f} s: {self._tail()}")

    def check(self) -> None:
        """Raise TargetFailed if it has ended."""
        assert self._process is not None, "it was started"
        if self._process.poll() is not None:
            raise TargetFailed(f"it ended: {self._tail()}")

    def stop(self) -> None:
        """End it, if it was started."""
        if self._process is not None:
            processes.stop(self._process)

    def _tail(self) -> str:
        return self._log.read_text(errors="replace")[-2000:].strip()


@dataclass(frozen=True, slots=True)
class Target:
    """Something that answers chat requests, and what it consists of.

    `translates`: it knows the protocols, and stands between different ones. `slow`: it serves a
    hundred requests a second at best, so that it needs longer windows and takes no part in what
    would drown it. `known_keys` is the command that makes many keys of Farebox, into a file.
    """

    name: str
    routes: Mapping[Way, Route]
    key: str = "none"
    server: Server | None = None
    surfaces: frozenset[Protocol] = frozenset({"openai"})
    translates: bool = False
    slow: bool = False
    known_keys: Sequence[str] = ()

    @property
    def port(self) -> int:
        """Where it listens for ordinary requests."""
        return self.routes["openai"].port

    @property
    def root(self) -> int | None:
        """Its first process."""
        return self.server.pid if self.server else None

    def roles(self) -> dict[str, list[int]]:
        """Its processes: the server's own (`worker`), and its database's (`postgres`)."""
        pids = processes.tree(self.root) if self.root else []
        postgres = [pid for pid in pids if processes.name(pid) == "postgres"]
        workers = [pid for pid in pids if pid not in postgres]
        return {"worker": workers, "postgres": postgres} if postgres else {"worker": workers}

    def ask(self, ask: Ask, way: Way = "openai") -> Ask:
        """A request as this target wants it, for a provider behind `way`."""
        route = self.routes[way]
        return replace(ask, model=route.prefix + ask.model, headers=route.headers)

    def can(self, surface: Protocol, way: Way) -> bool:
        """Whether it has such a way to the provider for clients of such a surface."""
        if way not in self.routes or surface not in self.surfaces:
            return False
        return self.translates or way not in PROTOCOLS or way == surface


@contextlib.contextmanager
def provider(cores: Cores) -> Iterator[Provider]:
    """The provider, beside the clients."""
    import trustme  # a tool, which nobody needs who only reads results

    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    with tempfile.TemporaryDirectory(prefix="farebox-bench-") as name:
        authority_path, chain, key = (Path(name, file) for file in ("ca.pem", "chain.pem", "key"))
        authority.cert_pem.write_to_path(authority_path)
        certificate.cert_chain_pems[0].write_to_path(chain)
        certificate.private_key_pem.write_to_path(key)
        command = [sys.executable, "-m", "benchmarks.provider", "--certificate", chain, key]
        process = processes.start(list(map(str, command)), cores.rest, directory=_ROOT)
        try:
            assert process.stdout is not None
            port, tls_port = (int(process.stdout.readline()) for _ in range(2))
            yield Provider(port, tls_port, authority_path)
        finally:
            processes.stop(process)


def direct(behind: Provider) -> Target:
    """The provider itself as a target: what everything else adds to."""
    return Target("direct", {protocol: Route(behind.port) for protocol in PROTOCOLS})


@contextlib.contextmanager
def serving(target: Target) -> Iterator[Target]:
    """Have a target's server run."""
    assert target.server is not None
    try:
        target.server.start()
        target.server.await_port()
        yield target
    finally:
        target.server.stop()


@contextlib.contextmanager
def farebox(
    behind: Provider,
    directory: Path,
    cores: Cores,
    *,
    name: str = "farebox",
    program: Path = PROGRAM,
    workers: int = 1,
    command: Sequence[str] = (),
    variables: Mapping[str, str] | None = None,
) -> Iterator[Target]:
    """Everything on: embedded Postgres, journal, billing, metrics, request log.

    The database runs where the clients do: it has a machine of its own where it matters.
    Several `workers` share the core with each other and with the process of their ledger.
    `program` is the `farebox` of any checkout. `command` stands for it where another program is to
    run it, and `variables` are added to its environment: what PYTHONPATH names first says which
    checkout.
    """
    if not program.is_file():
        raise TargetFailed(f"{program} is missing: run `make test` or `make serve` once")
    directory = directory / name
    directory.mkdir()
    port, admin = free_port(), free_port()
    config = directory / "farebox.toml"
    text = _farebox_config(behind, directory, port, admin, workers)
    tree = program.parents[2]
    if variables:
        tree = Path(variables["PYTHONPATH"].partition(os.pathsep)[0])
    if (tree / "proxy" / "control.py").is_file():  # what is older than the console has none
        text += _NO_CONSOLE  # its process loads for seconds, and answers nobody here
    config.write_text(text)
    serve = [*(command or [str(program)]), "serve", "--config", str(config)]
    variables = {"SSL_CERT_FILE": str(behind.authority), **(variables or {})}
    server = Server(serve, cores, port=port, log=directory / "farebox.log", environ=variables)
    ways: tuple[Way, ...] = get_args(Way)
    routes = {way: Route(port, "" if way == "openai" else f"{way}.") for way in ways}
    target = Target(name, routes, server=server, surfaces=frozenset(PROTOCOLS), translates=True)
    with serving(target):
        for pid in target.roles()["postgres"]:
            with contextlib.suppress(ProcessLookupError):  # it has done its work already
                os.sched_setaffinity(pid, cores.rest)  # and what it will fork
        key = _new_key(program, config, variables)
        python = str(program.with_name("python"))
        many = (python, "-P", str(_MANY_KEYS), str(config), "bench/default")
        yield replace(target, key=key, known_keys=many)


def _farebox_config(behind: Provider, directory: Path, port: int, admin: int, workers: int) -> str:
    """Each model at each protocol, over TLS, and one behind an upstream that fails."""
    text = _FAREBOX.format(port=port, admin=admin, workers=workers, directory=directory)
    ways: tuple[Way, ...] = (*PROTOCOLS, "tls")
    for way in ways:
        protocol = "openai" if way == "tls" else way
        text += _PROVIDER.format(name=way, protocol=protocol, base_url=behind.base_url(way))
        prefix = "" if way == "openai" else f"{way}."
        for model in MODELS:
            text += _MODEL.format(id=prefix + model, upstreams=json.dumps([f"{way}/{model}"]))
    upstreams = json.dumps(["openai/failing", "openai/plain"])
    return text + _MODEL.format(id="failover.plain", upstreams=upstreams)


def _new_key(program: Path, config: Path, variables: Mapping[str, str]) -> str:
    """A key of an account with credit, both made the way an operator makes them."""
    _run(program, config, variables, "account", "create", "bench", "--credit", "1000000")
    created = _run(program, config, variables, "key", "create", "bench/default")
    return str(json.loads(created)["key"])


def _run(program: Path, config: Path, variables: Mapping[str, str], *arguments: str) -> str:
    command = [str(program), *arguments, "--config", str(config), "--json"]
    done = subprocess.run(
        command,
        cwd=config.parent,
        env=os.environ | variables,
        capture_output=True,
        text=True,
        timeout=START_SECONDS,
        check=False,
    )
    if done.returncode:
        raise TargetFailed(f"`farebox {' '.join(arguments)}` failed: {done.stderr.strip()}")
    return done.stdout


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port
