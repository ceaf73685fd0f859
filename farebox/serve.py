"""`farebox serve`: from nothing to a running gateway, and back without losing anything.

Order of start: configuration, Postgres (embedded unless a URL is given), migrations, the sandbox
provider where no other is configured, the ledger's journal, the listening sockets, the worker.
SIGTERM and SIGINT drain (a second one cuts the streams that still run), SIGHUP reloads models,
prices and providers for new requests without dropping a connection.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import trio

from farebox import admin, demo, sandbox
from farebox.catalogue import BuiltIn, demo_provider, sandbox_provider
from farebox.config import Config, ConfigError, load
from farebox.embedded import EmbeddedPostgres, EmbeddedPostgresError
from farebox.secret import ensure_secret
from farebox.worker import Worker
from ledger.directory import Directory, DirectoryUnavailable
from ledger.migrate import MigrationError, migrate
from ledger.money import parse_usd
from ledger.segments import JournalError
from proxy.listener import bind
from proxy.settings import parse_address

_DEMO = "demo"
_DEMO_PROJECT = "default"
_DEMO_CREDIT = "25.00"
_REVIVE_SECONDS = 0.5


class StartRefused(Exception):
    """The gateway cannot start; the message is a sentence that says what to do."""


@dataclass(frozen=True, slots=True)
class _Start:
    """What the start has settled before the event loop runs."""

    config_path: Path | None
    environ: Mapping[str, str]
    config: Config
    conninfo: str
    secret: bytes
    postgres: EmbeddedPostgres | None
    demo_model: bool


def main(config_path: Path | None, *, demo_model: bool = False) -> int:
    """Serve until told to stop; the process's exit code.

    `demo_model` serves a real small model where no provider is configured.
    """
    environ = dict(os.environ)
    postgres: EmbeddedPostgres | None = None
    try:
        config = load(config_path, environ)
        conninfo = config.database.url
        if not conninfo:
            postgres = EmbeddedPostgres(config.data_dir)
            conninfo = postgres.start()
        migrate(conninfo)
        secret = ensure_secret(config, environ)
        start = _Start(config_path, environ, config, conninfo, secret, postgres, demo_model)
        trio.run(_serve, start)
    except ConfigError as error:
        return _refuse(error.problems)
    except (
        StartRefused,
        EmbeddedPostgresError,
        MigrationError,
        JournalError,
        DirectoryUnavailable,
        demo.DemoUnavailable,
    ) as error:
        return _refuse([str(error)])
    finally:
        if postgres is not None:
            postgres.stop()
    return 0


def _refuse(problems: Sequence[str]) -> int:
    for problem in problems:
        sys.stderr.write(f"{problem}\n")
    return 1


async def _serve(start: _Start) -> None:
    config = start.config
    async with _built_in(start) as built_in:
        directory = Directory(start.conninfo, secret=start.secret, brand=config.server.brand)
        with (
            directory,
            _open(config.server.listen) as public,
            _open(config.server.admin_listen) as private,
        ):
            admin_address = private.getsockname()[:2]
            worker = await Worker.build(config, start.conninfo, start.secret, built_in, public)
            observed = admin.Admin([worker.metrics.registry], worker.problems)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_follow_signals, start, worker, built_in)
                if start.postgres is not None:
                    nursery.start_soon(_revive, start.postgres)
                nursery.start_soon(admin.serve, observed, private, trio.sleep_forever)
                await nursery.start(worker.run)
                await _greet(config, directory, worker, admin_address)
                await worker.stopped.wait()
                nursery.cancel_scope.cancel()


@contextlib.asynccontextmanager
async def _built_in(start: _Start) -> AsyncIterator[BuiltIn | None]:
    """The provider that we run ourselves, where no real one is configured."""
    if not start.config.sandbox:
        yield None
    elif start.demo_model:
        async with demo.upstream() as base_url:
            yield demo_provider(base_url)
    else:
        async with sandbox.upstream() as base_url:
            yield sandbox_provider(base_url)


def _open(address: str) -> socket.socket:
    host, port = parse_address(address)
    try:
        return bind(host, port)
    except OSError as error:
        raise StartRefused(
            f"Cannot listen on {address}: {error.strerror}. Stop whoever uses it, or set another "
            "address under [server]."
        ) from error


async def _follow_signals(start: _Start, worker: Worker, built_in: BuiltIn | None) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as received:
        async for number in received:
            if number != signal.SIGHUP:
                worker.drain()
                continue
            try:
                config = load(start.config_path, start.environ)
                if config.sandbox and built_in is None:
                    raise ConfigError(
                        ["no provider is left that can serve; add one, the sandbox needs a restart"]
                    )
                await worker.reload(config, built_in)
                sys.stderr.write("Reloaded: models, prices, providers, tiers and limits.\n")
            except (ConfigError, DirectoryUnavailable) as error:
                sys.stderr.write(f"Not reloaded, the old configuration stays: {error}\n")


async def _revive(postgres: EmbeddedPostgres) -> None:
    """Start the embedded Postgres again whenever it dies; leases carry the traffic meanwhile."""
    while True:
        await trio.to_thread.run_sync(postgres.wait, abandon_on_cancel=True)
        sys.stderr.write("The embedded Postgres has ended; starting it again.\n")
        try:
            await trio.to_thread.run_sync(postgres.start)
        except EmbeddedPostgresError as error:
            sys.stderr.write(f"{error}\n")
            await trio.sleep(_REVIVE_SECONDS)


async def _greet(
    config: Config, directory: Directory, worker: Worker, admin_address: tuple[str, int]
) -> None:
    """Say where the gateway is, and on the first start how to make a first call."""
    base = config.server.public_url or _url(worker.address)
    lines = [
        f"Farebox serves at {base}",
        f"  OpenAI SDKs     base_url={base}/v1",
        f"  Anthropic SDKs  base_url={base}/anthropic",
        f"  Gemini SDKs     base_url={base}/gemini",
        f"  metrics         {_url(admin_address)}/metrics",
        *(f"  note            {warning}" for warning in config.warnings),
    ]
    key = await trio.to_thread.run_sync(_first_key, directory)
    model = worker.example_model
    if key:
        await worker.refresh()  # it works from the moment it is shown
        lines += [
            f"A demo account with ${_DEMO_CREDIT} of credit was made. Its API key, shown only now:",
            f"  {key}",
        ]
    else:
        lines.append(f"Another API key: farebox key create {_DEMO}/{_DEMO_PROJECT}")
    if model:
        lines += [
            "Try it:",
            f"  curl {base}/v1/chat/completions -H 'Authorization: Bearer {key or 'YOUR_KEY'}' \\",
            "    -H 'Content-Type: application/json' \\",
            f'    -d \'{{"model": "{model}", '
            '"messages": [{"role": "user", "content": "Hello!"}]}\'',
        ]
    lines.append("Ready.")
    sys.stdout.write("\n".join(lines) + "\n")
    sys.stdout.flush()


def _url(address: tuple[str, int]) -> str:
    host, port = address
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _first_key(directory: Directory) -> str:
    """The key of a new demo account; "" where there are accounts already."""
    if directory.list_accounts():
        return ""
    directory.create_account(_DEMO, credit=parse_usd(_DEMO_CREDIT))
    directory.create_project(_DEMO, _DEMO_PROJECT)
    _, key = directory.create_key(_DEMO, _DEMO_PROJECT, "first key")
    return key
