"""`farebox serve` and `farebox check`: the gateway, and whether its configuration is fit."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from farebox.commands.common import common_options, config_option, say, show

if TYPE_CHECKING:
    from farebox.config import Config


@click.command()
@config_option
@click.option("--demo", is_flag=True, help="Serve a small local model; `make demo` installs it.")
def serve(config_path: Path | None, demo: bool) -> None:
    """Run the gateway. SIGTERM drains it, SIGHUP reloads its configuration."""
    from farebox.serve import main

    sys.exit(main(config_path, demo_model=demo))


@click.command(short_help="Say what is wrong with the configuration.")
@common_options
def check(config_path: Path | None, as_json: bool) -> None:
    """Validate the configuration: one line for each problem, exit code 1 if there is any."""
    from farebox.config import ConfigError

    try:
        found = _checked(config_path)
    except ConfigError as error:
        found = _Found(problems=error.problems)
    if as_json:
        show({"ok": not found.problems, **asdict(found)}, as_json=True)
    else:
        _tell(found)
    if found.problems:
        raise SystemExit(1)


def _tell(found: _Found) -> None:
    for sentence in (*found.remarks, *found.problems):
        say(sentence)
    if found.problems:
        return
    if found.sandbox:
        click.echo("The configuration is fine. No provider is configured: the sandbox serves.")
        return
    models = "1 model" if found.models == 1 else f"{found.models} models"
    click.echo(f"The configuration is fine: {models} from {', '.join(found.providers)}.")


@dataclass(frozen=True, slots=True)
class _Found:
    """What there is to say of a configuration, as `--json` prints it. With a problem the gateway is
    not fit to serve."""

    problems: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
    sandbox: bool = False
    models: int = 0
    providers: tuple[str, ...] = ()


def _checked(config_path: Path | None) -> _Found:
    """Raises ConfigError."""
    from farebox.catalogue import catalogue, priced, remarks
    from farebox.config import load
    from farebox.secret import find_secret

    config = load(config_path, os.environ)
    secret = find_secret(config, os.environ)
    served = catalogue(config)
    models = sum(priced(model) for model in served.models.values())
    database = _database_problems(config, secret)
    return _Found(
        problems=(*_model_problems(config, models), *database),
        remarks=(
            *config.warnings,
            *remarks(config, served),
            *(() if database else _database_remarks(config)),
        ),
        sandbox=config.sandbox,
        models=models,
        providers=tuple(served.providers),
    )


def _model_problems(config: Config, models: int) -> Iterator[str]:
    """The gateway starts without models, but nothing can be asked of it."""
    if models:
        return
    if config.models:
        yield "models: none is left to serve; write the price of one at least"
    else:
        yield "models: no price list knows any of these providers'; add [[models]], with prices"


def _database_problems(config: Config, secret: bytes | None) -> list[str]:
    """Why `farebox serve` would not start with this database. Where there is none yet, none is
    made; an embedded one that is down is started for the time that this takes."""
    from farebox.embedded import EmbeddedPostgresError, find_binaries, has_cluster, running
    from ledger.directory import DirectoryUnavailable

    try:
        if config.database.url:
            return _secret_problems(config.database.url, secret)
        if has_cluster(config.data_dir):
            with running(config.data_dir) as conninfo:
                return _secret_problems(conninfo, secret)
        find_binaries()
    except EmbeddedPostgresError as error:
        return [f"database: {error}"]
    except DirectoryUnavailable as error:
        return [f"database.url: {error}"]
    return []


def _secret_problems(conninfo: str, secret: bytes | None) -> list[str]:
    """Whether the database's keys were made with another secret than the configuration's."""
    from ledger.directory import Directory

    with Directory(conninfo, secret=secret or b"") as directory:
        if not directory.has_other_secret():
            return []
    what = "the one is gone that" if secret is None else "is another one than"
    return [
        f"server.secret: {what} this database's keys were made with; bring that back, or begin "
        'with a new one as docs/operating.md says ("A lost secret")'
    ]


def _database_remarks(config: Config) -> Iterator[str]:
    """What is to be said of a database that is not the embedded one."""
    from ledger.connection import remark

    found = remark(config.database.url) if config.database.url else None
    if found:
        yield f"database.url: {found}"
