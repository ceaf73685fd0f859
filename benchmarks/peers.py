"""Other proxies in front of the same provider, each as fast as its documentation lets it be.

nginx and haproxy pass bytes on and know nothing of models: what any hop costs. LiteLLM's proxy and
Portkey's gateway do a part of what Farebox does. `python -m benchmarks.peers` (`make bench-peers`)
installs the latter into `.bench`, each into an environment of its own, and the former with apt
where it may; whatever is missing is said, and left out of a run.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from benchmarks import processes
from benchmarks.processes import Cores
from benchmarks.targets import (
    MODELS,
    PROTOCOLS,
    Provider,
    Route,
    Server,
    Target,
    TargetFailed,
    Way,
    free_port,
    serving,
)

LITELLM_VERSION = "1.106.2"
PORTKEY_VERSION = "1.15.2"

_ROOT = Path(__file__).resolve().parents[1]
_FOLDER = _ROOT / ".bench"
_LITELLM = _FOLDER / "litellm"
_PORTKEY = _FOLDER / "portkey"
_PORTKEY_SCRIPT = _PORTKEY / "node_modules/@portkey-ai/gateway/build/start-server.js"
_SPARE_FILES = 100
_SYSTEM_PROGRAMS = ("nginx", "haproxy", "wrk")

# With the newest of these two, Portkey answers every stream with 500.
_PORTKEY_PACKAGE = {
    "private": True,
    "dependencies": {"@portkey-ai/gateway": PORTKEY_VERSION},
    "overrides": {"@hono/node-server": "1.13.7", "hono": "4.9.7"},
}

_NGINX = """\
worker_processes 1;
daemon off;
pid {directory}/nginx.pid;
error_log {directory}/nginx.log;
events {{ worker_connections 32768; }}
http {{
  access_log off;
  client_body_temp_path {directory}/body;
  proxy_temp_path {directory}/proxy;
  fastcgi_temp_path {directory}/fastcgi;
  uwsgi_temp_path {directory}/uwsgi;
  scgi_temp_path {directory}/scgi;
  client_max_body_size 64m;
  client_body_buffer_size 8m;
  keepalive_requests 1000000;
  proxy_http_version 1.1;
  proxy_set_header Connection "";
  proxy_buffering off;
  proxy_read_timeout 600s;
  upstream plain {{ server 127.0.0.1:{provider}; keepalive 2048; keepalive_requests 1000000; }}
  upstream tls {{ server 127.0.0.1:{provider_tls}; keepalive 2048; keepalive_requests 1000000; }}
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location / {{ proxy_pass http://plain; }}
  }}
  server {{
    listen 127.0.0.1:{port_tls} backlog=4096;
    location / {{ proxy_pass https://tls; proxy_ssl_session_reuse on; }}
  }}
}}
"""
_HAPROXY = """\
global
  nbthread 1
  maxconn {connections}
defaults
  mode http
  option http-keep-alive
  option http-no-delay
  http-reuse always
  timeout connect 5s
  timeout client 600s
  timeout server 600s
frontend plain
  bind 127.0.0.1:{port} backlog 4096
  default_backend plain
frontend tls
  bind 127.0.0.1:{port_tls} backlog 4096
  default_backend tls
backend plain
  server provider 127.0.0.1:{provider} pool-max-conn 32768
backend tls
  default-server ssl verify required ca-file {authority}
  server provider 127.0.0.1:{provider_tls} pool-max-conn 32768
"""


# -- configurations --------------------------------------------------------------------------------


def nginx(behind: Provider, directory: Path, cores: Cores) -> AbstractContextManager[Target]:
    """One worker, kept-alive upstream connections, no buffering, no access log."""
    return _proxy("nginx", _NGINX, ("-p", str(directory), "-c"), behind, directory, cores)


def haproxy(behind: Provider, directory: Path, cores: Cores) -> AbstractContextManager[Target]:
    """One thread, upstream connections shared by all clients, no log."""
    return _proxy("haproxy", _HAPROXY, ("-db", "-f"), behind, directory, cores)


@contextlib.contextmanager
def _proxy(
    name: str,
    template: str,
    options: Sequence[str],
    behind: Provider,
    directory: Path,
    cores: Cores,
) -> Iterator[Target]:
    """A proxy that is started with `options` and the path of its configuration."""
    program = _program(name)
    port, port_tls = free_port(), free_port()
    config = directory / f"{name}.cfg"
    config.write_text(
        template.format(
            directory=directory,
            connections=(processes.open_files_max() - _SPARE_FILES) // 2,
            port=port,
            port_tls=port_tls,
            provider=behind.port,
            provider_tls=behind.tls_port,
            authority=behind.authority,
        )
    )
    command = [program, *options, str(config)]
    server = Server(command, cores, port=port, log=directory / f"{name}-output.log")
    with serving(Target(name, _passing(port, port_tls), server=server)) as target:
        yield target


def _passing(port: int, port_tls: int) -> dict[Way, Route]:
    """What a proxy can that passes whatever it is sent."""
    routes: dict[Way, Route] = {protocol: Route(port) for protocol in PROTOCOLS}
    return routes | {"tls": Route(port_tls)}


@contextlib.contextmanager
def litellm(behind: Provider, directory: Path, cores: Cores) -> Iterator[Target]:
    """One uvicorn worker on uvloop and httptools, in production mode, without database and logs."""
    program = _LITELLM / "bin" / "litellm"
    if not program.is_file():
        raise TargetFailed("LiteLLM is not installed: make bench-peers")
    port, key = free_port(), "sk-benchmark"
    config = directory / "litellm.yaml"
    config.write_text(json.dumps(_litellm_config(behind, key)))
    environ = {
        "LITELLM_MODE": "PRODUCTION",
        "LITELLM_LOG": "ERROR",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "NO_DOCS": "True",
        "DISABLE_ADMIN_UI": "True",
        "SSL_CERT_FILE": str(behind.authority),
    }
    command = [str(program), "--config", str(config), "--host", "127.0.0.1", "--port", str(port)]
    command += ["--num_workers", "1", "--telemetry", "False"]
    log = directory / "litellm.log"
    server = Server(command, cores, port=port, log=log, environ=environ)
    ways: tuple[Way, ...] = (*PROTOCOLS, "tls", "failover")
    routes = {way: Route(port, "" if way == "openai" else f"{way}.") for way in ways}
    with serving(Target("litellm", routes, key, server, translates=True, slow=True)) as target:
        yield target


def _litellm_config(behind: Provider, key: str) -> dict[str, object]:
    names: Mapping[Way, str] = {
        "openai": "openai",
        "openai-responses": "openai/responses",
        "anthropic": "anthropic",
        "gemini": "gemini",
        "tls": "openai",
    }

    def deployment(name: str, way: Way, model: str) -> dict[str, object]:
        base = behind.base_url(way) + ("/v1beta" if way == "gemini" else "")
        known = {"model": f"{names[way]}/{model}", "api_base": base, "api_key": "none"}
        return {"model_name": name, "litellm_params": known}

    deployments = [
        deployment(("" if way == "openai" else f"{way}.") + model, way, model)
        for way in names
        for model in MODELS
    ]
    deployments.append(deployment("failover.plain", "openai", "failing"))
    return {
        "model_list": deployments,
        "litellm_settings": {
            "num_retries": 0,
            "telemetry": False,
            "fallbacks": [{"failover.plain": ["plain"]}],
        },
        "router_settings": {"num_retries": 0, "disable_cooldowns": True},
        "general_settings": {
            "master_key": key,
            "disable_spend_logs": True,
            "disable_error_logs": True,
        },
    }


@contextlib.contextmanager
def portkey(behind: Provider, directory: Path, cores: Cores) -> Iterator[Target]:
    """One Node process in production mode, without its console; each request says where to."""
    program = _program("node")
    if not _PORTKEY_SCRIPT.is_file():
        raise TargetFailed("Portkey is not installed: make bench-peers")
    port = free_port()
    environ = {"NODE_ENV": "production", "NODE_EXTRA_CA_CERTS": str(behind.authority)}
    command = [program, str(_PORTKEY_SCRIPT), "--headless", f"--port={port}"]
    log = directory / "portkey.log"
    server = Server(command, cores, port=port, log=log, environ=environ)
    routes = _portkey_routes(behind, port)
    with serving(Target("portkey", routes, server=server, translates=True)) as target:
        yield target


def _portkey_routes(behind: Provider, port: int) -> dict[Way, Route]:
    def route(way: Way, name: str) -> Route:
        base = behind.base_url(way) + ("/v1" if way == "anthropic" else "")
        return Route(port, "", {"x-portkey-provider": name, "x-portkey-custom-host": base})

    def upstream(model: str) -> dict[str, object]:
        return {
            "provider": "openai",
            "api_key": "none",
            "custom_host": behind.base_url("openai"),
            "override_params": {"model": model},
        }

    both = [upstream("failing"), upstream("plain")]
    failover = json.dumps({"strategy": {"mode": "fallback"}, "targets": both})
    return {
        "openai": route("openai", "openai"),
        "anthropic": route("anthropic", "anthropic"),
        "gemini": route("gemini", "google"),
        "tls": route("tls", "openai"),
        "failover": Route(port, "", {"x-portkey-config": failover}),
    }


def _program(name: str) -> str:
    found = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    if found is None:
        raise TargetFailed(f"{name} is not installed")
    return found


Start = Callable[[Provider, Path, Cores], AbstractContextManager[Target]]
PEERS: Mapping[str, Start] = {
    "nginx": nginx,
    "haproxy": haproxy,
    "litellm": litellm,
    "portkey": portkey,
}


# -- installation ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Step:
    """An installation: how it is known to be done, and what does it."""

    name: str
    done: Callable[[], bool]
    install: Callable[[], None]


def install_litellm() -> None:
    """Into an environment of the Python that runs Farebox, with the fastest loop and parser."""
    uv = str(_ROOT / ".venv" / "bin" / "uv")
    base = str(Path(sys.executable).resolve())
    _run([uv, "venv", "--quiet", "--clear", "--python", base, str(_LITELLM)])
    packages = [f"litellm[proxy]=={LITELLM_VERSION}", "uvloop", "httptools"]
    _run([uv, "pip", "install", "--quiet", "--python", str(_LITELLM / "bin/python"), *packages])


def install_portkey() -> None:
    """As npm resolves it, but for two libraries."""
    _PORTKEY.mkdir(parents=True, exist_ok=True)
    (_PORTKEY / "package.json").write_text(json.dumps(_PORTKEY_PACKAGE, indent=2))
    options = ["--ignore-scripts", "--no-package-lock", "--no-audit", "--no-fund"]
    _run([_program("npm"), "install", "--silent", "--prefix", str(_PORTKEY), *options])


def install_system_programs() -> None:
    """With apt, where there is apt and the right to use it."""
    missing = [name for name in _SYSTEM_PROGRAMS if not _installed(name)]
    apt = shutil.which("apt-get")
    if apt is None or os.geteuid() != 0:
        raise TargetFailed(f"install {', '.join(missing)} with your system's package manager")
    quiet = ["-qq", "--yes", "--no-install-recommends"]
    _run([apt, "update", "-qq"])
    _run([apt, "install", *quiet, *missing], DEBIAN_FRONTEND="noninteractive")


def _installed(name: str) -> bool:
    with contextlib.suppress(TargetFailed):
        return bool(_program(name))
    return False


def _run(command: list[str], **variables: str) -> None:
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=os.environ | variables
    )
    if done.returncode:
        raise TargetFailed((done.stderr or done.stdout).strip()[-2000:])


STEPS = (
    Step(
        ", ".join(_SYSTEM_PROGRAMS),
        lambda: all(map(_installed, _SYSTEM_PROGRAMS)),
        install_system_programs,
    ),
    Step("Portkey", _PORTKEY_SCRIPT.is_file, install_portkey),
    Step("LiteLLM", (_LITELLM / "bin" / "litellm").is_file, install_litellm),
)


def main() -> int:
    failed = 0
    for step in STEPS:
        if step.done():
            print(f"{step.name}: there")
            continue
        print(f"{step.name}: installing", flush=True)
        try:
            step.install()
        except TargetFailed as error:
            failed = 1
            print(f"{step.name}: {error}", file=sys.stderr)
    return failed


if __name__ == "__main__":
    sys.exit(main())
