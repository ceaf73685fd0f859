"""What the clients talk to: the provider itself, nginx in front of it, Farebox in front of it.

A target is a port, a key, and the processes that do its work, by role. All keep their files in a
temporary directory; leaving the context manager ends what it started.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import processes
from benchmarks.processes import Cores

START_SECONDS = 120.0
MODELS = ("plain", "stream-64-20ms", "stream-20-0ms", "stream-200-0ms", "idle")

_ROOT = Path(__file__).resolve().parents[1]
_NGINX = """\
worker_processes 1;
daemon off;
pid {directory}/nginx.pid;
error_log {directory}/nginx.log;
events {{ worker_connections 8192; }}
http {{
  access_log off;
  client_body_temp_path {directory}/body;
  proxy_temp_path {directory}/proxy;
  fastcgi_temp_path {directory}/fastcgi;
  uwsgi_temp_path {directory}/uwsgi;
  scgi_temp_path {directory}/scgi;
  keepalive_requests 1000000;
  upstream provider {{ server 127.0.0.1:{provider}; keepalive 2048; keepalive_requests 1000000; }}
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location / {{
      proxy_pass http://provider;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_buffering off;
      proxy_read_timeout 600s;
    }}
  }}
}}
"""
_FAREBOX = """\
[server]
listen = "127.0.0.1:{port}"
admin_listen = "127.0.0.1:{admin}"
workers = 1
drain_seconds = 0

[database]
data_dir = "{directory}/data"

[[providers]]
name = "bench"
protocol = "openai"
base_url = "http://127.0.0.1:{provider}/v1"
api_key = "benchmark"
max_connections = 8192
"""
_MODEL = """
[[models]]
id = "{model}"
kind = "chat"
context_window = 128000
max_output_tokens = 4096
upstreams = ["bench/{model}"]
[models.price]
input = "0.10"
output = "0.40"
"""


class TargetFailed(Exception):
    """It cannot be started; the message says what to look at."""


@dataclass(frozen=True, slots=True)
class Target:
    """Something that answers chat requests, and what it consists of (`root`: its first process)."""

    name: str
    port: int
    key: str = "none"
    root: int | None = None

    def roles(self) -> dict[str, list[int]]:
        """Its processes: the server's own (`worker`), and its database's (`postgres`)."""
        pids = processes.tree(self.root) if self.root else []
        postgres = [pid for pid in pids if processes.name(pid) == "postgres"]
        workers = [pid for pid in pids if pid not in postgres]
        return {"worker": workers, "postgres": postgres} if postgres else {"worker": workers}


@contextlib.contextmanager
def provider(cores: Cores) -> Iterator[Target]:
    """The provider beside the clients; also the target `direct`, under test itself by nobody."""
    process = processes.start([sys.executable, "-m", "benchmarks.provider"], cores.rest)
    try:
        assert process.stdout is not None
        yield Target("direct", int(process.stdout.readline()))
    finally:
        processes.stop(process)


@contextlib.contextmanager
def nginx(provider_port: int, directory: Path, cores: Cores) -> Iterator[Target]:
    """One worker, kept-alive upstream connections, no buffering, no access log."""
    program = shutil.which("nginx")
    if program is None:
        raise TargetFailed("nginx is not installed")
    port = _free_port()
    config = directory / "nginx.conf"
    config.write_text(_NGINX.format(directory=directory, port=port, provider=provider_port))
    log = directory / "nginx-output.log"
    process = processes.start(
        [program, "-p", str(directory), "-c", str(config)], cores.under_test, log=log
    )
    try:
        _await_port(port, process, log)
        yield Target("nginx", port, root=process.pid)
    finally:
        processes.stop(process)


@contextlib.contextmanager
def farebox(
    provider_port: int,
    directory: Path,
    cores: Cores,
    *,
    command: Sequence[str] = (),
    variables: Mapping[str, str] | None = None,
) -> Iterator[Target]:
    """One worker with everything on: embedded Postgres, journal, billing, metrics, request log.

    `command` stands for `farebox` where another program is to run it, and `variables` are added to
    its environment.
    """
    program = _ROOT / ".venv" / "bin" / "farebox"
    if not program.is_file():
        raise TargetFailed(f"{program} is missing: run `make test` or `make serve` once")
    port, admin = _free_port(), _free_port()
    text = _FAREBOX.format(port=port, admin=admin, directory=directory, provider=provider_port)
    config = directory / "farebox.toml"
    config.write_text(text + "".join(_MODEL.format(model=model) for model in MODELS))
    log = directory / "farebox.log"
    environ = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    environ |= variables or {}
    process = processes.start(
        [*(command or [str(program)]), "serve", "--config", str(config)],
        cores.under_test,
        log=log,
        directory=directory,
        environ=environ,
    )
    try:
        _await_port(port, process, log)
        yield Target("farebox", port, _new_key(program, config, environ), process.pid)
    finally:
        processes.stop(process)


def _new_key(program: Path, config: Path, environ: dict[str, str]) -> str:
    """A key of an account with credit, both made the way an operator makes them."""
    _run(program, config, environ, "account", "create", "bench", "--credit", "1000")
    created = _run(program, config, environ, "key", "create", "bench/default")
    return str(json.loads(created)["key"])


def _run(program: Path, config: Path, environ: dict[str, str], *arguments: str) -> str:
    command = [str(program), *arguments, "--config", str(config), "--json"]
    done = subprocess.run(
        command,
        env=environ,
        cwd=config.parent,
        capture_output=True,
        text=True,
        timeout=START_SECONDS,
        check=False,
    )
    if done.returncode:
        raise TargetFailed(f"`farebox {' '.join(arguments)}` failed: {done.stderr.strip()}")
    return done.stdout


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def _await_port(port: int, process: subprocess.Popen[str], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise TargetFailed(f"it ended at start: {_tail(log)}")
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        processes.pause(0.05)
    raise TargetFailed(f"no answer within {START_SECONDS:.0f} s: {_tail(log)}")


def _tail(log: Path) -> str:
    return log.read_text(errors="replace")[-2000:].strip()
