"""`farebox serve`: from nothing to a running gateway, and back without losing anything.

Order of start: configuration, Postgres (embedded unless a URL is given), migrations, the sandbox
provider where no other is configured, the listening sockets, the ledger's journal, the workers.
One worker serves in this process, with the ledger's engine in it; several are children, and so are
their ledgers (`farebox.supervise`). The console is always a child, and starts when all else is
ready (`farebox.console_child`). Either way SIGTERM and SIGINT drain (a second one cuts the streams
that still run), SIGHUP reloads models, prices and providers for new requests without dropping a
connection.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import trio

from console.links import LinkUnavailable, local_url, sign_in_link
from farebox import admin, demo, maintenance, sandbox
from farebox.books import Holder, HolderTerms, OwnBooks, shard_directories
from farebox.catalogue import BuiltIn, catalogue, demo_provider, sandbox_provider
from farebox.config import Config, ConfigError, kept, load, restart_needed
from farebox.console_child import ConsoleChild, Urls, console_socket
from farebox.embedded import EmbeddedPostgres, EmbeddedPostgresError
from farebox.interpreter import allow_many_files
from farebox.secret import ensure_secret
from farebox.snapshot import snapshot
from farebox.supervise import Supervisor, keep_leftovers
from farebox.worker import Worker, worker_count
from ledger.directory import Directory, DirectoryRefused, DirectoryUnavailable
from ledger.migrate import MigrationError, migrate
from ledger.money import parse_usd
from ledger.segments import JournalError
from proxy.listener import bind
from proxy.settings import parse_address

_DEMO = "demo"
_DEMO_PROJECT = "default"
_DEMO_CREDIT = "25.00"
_DRAINING = "Draining: what runs may finish; a second signal cuts it.\n"
_CUTTING = "Cutting what still runs.\n"
_REVIVE_SECONDS = 0.5
_PORT_PATIENCE_SECONDS = 5.0
_PORT_POLL_SECONDS = 0.05


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


@dataclass(frozen=True, slots=True)
class _Addresses:
    """Where we listen."""

    public: tuple[str, int]
    private: tuple[str, int]


def main(config_path: Path | None, *, demo_model: bool = False) -> int:
    """Serve until told to stop; the process's exit code.

    `demo_model` serves a real small model where no provider is configured.
    """
    environ = dict(os.environ)
    postgres: EmbeddedPostgres | None = None
    allow_many_files()
    try:
        config = load(config_path, environ)
        conninfo = config.database.url
        if not conninfo:
            postgres = EmbeddedPostgres(config.data_dir)
            conninfo = postgres.start()
        migrate(conninfo)
        secret = ensure_secret(config, environ)
        with Directory(conninfo, secret=secret) as directory:
            directory.claim_secret()
        start = _Start(config_path, environ, config, conninfo, secret, postgres, demo_model)
        trio.run(_serve, start)
    except ConfigError as error:
        return _refuse(error.problems)
    except (
        StartRefused,
        EmbeddedPostgresError,
        MigrationError,
        JournalError,
        DirectoryRefused,
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
    workers = worker_count(config.server)
    # Whoever was killed a moment ago may have left workers that are letting the port go.
    patience = 0.0 if workers == 1 else _PORT_PATIENCE_SECONDS
    async with _built_in(start) as built_in:
        directory = Directory(start.conninfo, secret=start.secret, brand=config.server.brand)
        with (
            directory,
            await _open(config.server.listen, patience) as public,
            await _open(config.server.admin_listen, patience) as private,
        ):
            addresses = _Addresses(public.getsockname()[:2], private.getsockname()[:2])
            serve = _serve_alone if workers == 1 else _serve_together
            with _console(start, built_in, addresses) as console:
                await serve(start, built_in, directory, addresses, public, private, console)


@contextlib.contextmanager
def _console(
    start: _Start, built_in: BuiltIn | None, addresses: _Addresses
) -> Iterator[ConsoleChild | None]:
    """The console's place with its socket; None where there is to be no console."""
    config = start.config
    if not config.console.enabled:
        yield None
        return
    urls = Urls(local_url("", *addresses.public), local_url("", *addresses.private))
    with console_socket(config.data_dir / "run", addresses.public[1]) as (path, listening):
        yield ConsoleChild(config, start.conninfo, start.secret, built_in, urls, path, listening)


async def _serve_alone(
    start: _Start,
    built_in: BuiltIn | None,
    directory: Directory,
    addresses: _Addresses,
    public: socket.socket,
    private: socket.socket,
    console: ConsoleChild | None,
) -> None:
    """One worker, in this process."""
    config = start.config
    terms = HolderTerms.of(config, start.conninfo)
    holder = await Holder.open(terms, shard_directories(config.data_dir, 1)[0], linked=False)
    await maintenance.prepare(start.conninfo)
    worker = await Worker.build(
        config,
        start.conninfo,
        start.secret,
        built_in,
        public,
        OwnBooks(holder),
        console=console.path if console else "",
    )

    async def reload(config: Config) -> bool:
        await worker.reload(config, built_in)
        return True

    async with trio.open_nursery() as nursery:
        nursery.start_soon(_follow_signals, start, built_in, worker.drain, reload, console)
        nursery.start_soon(_look_after, start)
        nursery.start_soon(keep_leftovers, config, start.conninfo, 1)
        nursery.start_soon(admin.serve, admin.Alone(worker, console), private)
        await nursery.start(worker.run)
        key = await trio.to_thread.run_sync(_first_key, directory)
        await _greet(start, addresses, key, worker.catalogue.example)
        if console:
            nursery.start_soon(console.run)
        await worker.stopped.wait()
        if console:
            await console.ended()
        nursery.cancel_scope.cancel()


async def _serve_together(
    start: _Start,
    built_in: BuiltIn | None,
    directory: Directory,
    addresses: _Addresses,
    public: socket.socket,
    private: socket.socket,
    console: ConsoleChild | None,
) -> None:
    """Several workers and their ledgers, as children."""
    config = start.config
    workers = worker_count(config.server)
    supervisor = Supervisor(
        config,
        start.conninfo,
        start.secret,
        built_in,
        public,
        workers,
        console.path if console else "",
    )

    async def reload(config: Config) -> bool:
        await trio.to_thread.run_sync(snapshot, config, catalogue(config, built_in), directory)
        return await supervisor.reload(config, built_in)

    await maintenance.prepare(start.conninfo)
    served = catalogue(config, built_in)
    await trio.to_thread.run_sync(snapshot, config, served, directory)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_follow_signals, start, built_in, supervisor.drain, reload, console)
        await nursery.start(supervisor.run)
        nursery.start_soon(_look_after, start)
        nursery.start_soon(admin.serve, admin.Together(supervisor, console), private)
        if await supervisor.ledgers_ready():
            key = await trio.to_thread.run_sync(_first_key, directory)
            if await supervisor.open():
                await _greet(start, addresses, key, served.example)
                if console:
                    nursery.start_soon(console.run)
        if refused := supervisor.refused:
            supervisor.drain()
        await supervisor.stopped.wait()
        if console:
            await console.ended()
        nursery.cancel_scope.cancel()
    if refused:
        raise StartRefused("\n".join(refused))


async def _look_after(start: _Start) -> None:
    """What goes on beside serving, once for all workers."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(maintenance.keep_tidy, start.conninfo, start.secret)
        if start.postgres is not None:
            nursery.start_soon(_revive, start.postgres)


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


async def _open(address: str, patience_seconds: float) -> socket.socket:
    host, port = parse_address(address)
    deadline = trio.current_time() + patience_seconds
    while True:
        try:
            return bind(host, port)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or trio.current_time() >= deadline:
                raise StartRefused(
                    f"Cannot listen on {address}: {error.strerror}. Stop whoever uses it, or set "
                    "another address under [server]."
                ) from error
        await trio.sleep(_PORT_POLL_SECONDS)


async def _follow_signals(
    start: _Start,
    built_in: BuiltIn | None,
    drain: Callable[[], None],
    reload: Callable[[Config], Awaitable[bool]],
    console: ConsoleChild | None,
) -> None:
    draining = False
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as received:
        async with trio.open_nursery() as nursery:
            async for number in received:
                if number == signal.SIGHUP:
                    nursery.start_soon(_reload, start, built_in, reload, console)
                else:
                    sys.stderr.write(_CUTTING if draining else _DRAINING)
                    draining = True
                    drain()
                    if console:
                        console.drain()


async def _reload(
    start: _Start,
    built_in: BuiltIn | None,
    reload: Callable[[Config], Awaitable[bool]],
    console: ConsoleChild | None,
) -> None:
    """Read the configuration once, and take it over everywhere or nowhere."""
    try:
        config = load(start.config_path, start.environ)
        if config.sandbox and built_in is None:
            raise ConfigError(
                ["no provider is left that can serve; add one, the sandbox needs a restart"]
            )
        done = await reload(kept(start.config, config))
        if console:
            await console.reload(config, built_in)
    except (ConfigError, DirectoryUnavailable) as error:
        sys.stderr.write(f"Not reloaded, the old configuration stays: {error}\n")
        return
    if done:
        more = "; [console] and [stripe], by a new process of the console" if console else ""
        sys.stderr.write(f"Reloaded: models, prices, providers, tiers and limits{more}.\n")
    else:
        sys.stderr.write("Reloaded, but not yet by every worker; see /status.\n")
    if later := restart_needed(start.config, config):
        sys.stderr.write(f"These keep their old values until a restart: {', '.join(later)}.\n")


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


async def _greet(start: _Start, addresses: _Addresses, key: str, model: str) -> None:
    """Say where the gateway is, how to get into its console, and on the first start how to make a
    first call."""
    config = start.config
    base = config.server.public_url or _url(addresses.public)
    link = await trio.to_thread.run_sync(_sign_in_link, start, addresses)
    lines = [
        f"Farebox serves at {base}",
        f"  OpenAI SDKs     base_url={base}/v1",
        f"  Anthropic SDKs  base_url={base}/anthropic",
        f"  Gemini SDKs     base_url={base}/gemini",
        *([f"  console         {base}/console"] if config.console.enabled else []),
        f"  metrics         {_url(addresses.private)}/metrics",
        *(f"  note            {warning}" for warning in config.warnings),
        *_margin(config),
    ]
    if key:
        lines += [
            f"A demo account with ${_DEMO_CREDIT} of credit was made. Its API key, shown only now:",
            f"  {key}",
        ]
    else:
        lines.append("Another API key: farebox key create ACCOUNT/PROJECT")
    if link:
        lines += [
            "Sign in to the console, once, within ten minutes, on this machine:",
            f"  {link}",
        ]
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


def _margin(config: Config) -> list[str]:
    """What charges are more than providers take, which nobody should learn from a bill."""
    if config.sandbox or not config.billing.margin_bps:
        return []
    percent = f"{config.billing.margin_bps / 100:.10g}"
    return [f"  prices          what providers take and {percent} % more: [billing] margin"]


def _sign_in_link(start: _Start, addresses: _Addresses) -> str:
    """A link for the operator; "" where there is no console, or others say who may use it."""
    console = start.config.console
    if not console.enabled or console.jwt_secret or console.jwks_url:
        return ""
    base = local_url(start.config.server.public_url, *addresses.public)
    try:
        return sign_in_link(start.conninfo, base, datetime.now(UTC))
    except LinkUnavailable:
        return ""  # 'farebox console link' makes another


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
