"""`farebox serve` and `farebox check`: the gateway, and whether its configuration is fit."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from farebox.commands.common import config_option, say

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
@config_option
def check(config_path: Path | None) -> None:
    """Validate the configuration: one line for each problem, exit code 1 if there is any."""
    from farebox.config import ConfigError

    try:
        found = _checked(config_path)
    except ConfigError as error:
        found = _Found(problems=error.problems)
    for sentence in (*found.remarks, *found.problems):
        say(sentence)
    if found.problems:
        raise SystemExit(1)
    if found.sandbox:
        click.echo("The configuration is fine. No provider is configured: the sandbox serves.")
        return
    models = "1 model" if found.models == 1 else f"{found.models} models"
    click.echo(f"The configuration is fine: {models} from {', '.join(found.providers)}.")


@dataclass(frozen=True, slots=True)
class _Found:
    """What there is to say of a configuration. With a problem the gateway is not fit to serve."""

    problems: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
    sandbox: bool = False
    models: int = 0
    providers: tuple[str, ...] = ()


def _checked(config_path: Path | None) -> _Found:
    """Raises ConfigError."""
    from farebox.catalogue import catalogue, priced, remarks
    from farebox.config import load
    from farebox.secret import check_secret

    config = load(config_path, os.environ)
    check_secret(config, os.environ)
    served = catalogue(config)
    models = sum(priced(model) for model in served.models.values())
    away = tuple(_database_problems(config))
    return _Found(
        problems=(*_model_problems(config, models), *away),
        remarks=(
            *config.warnings,
            *remarks(config, served),
            *(() if away else _database_remarks(config)),
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


def _database_problems(config: Config) -> Iterator[str]:
    """Why there is no database, if there is none: `farebox serve` would not start."""
    from farebox.embedded import EmbeddedPostgresError, find_binaries
    from ledger.connection import connect, is_away
    from ledger.errors import brief

    if not config.database.url:
        try:
            find_binaries()
        except EmbeddedPostgresError as error:
            yield f"database: {error}"
        return
    try:
        connect(config.database.url).close()
    except Exception as error:
        if not is_away(error):
            raise
        yield f"database.url: the database does not answer: {brief(error)}"


def _database_remarks(config: Config) -> Iterator[str]:
    """What is to be said of a database that is not the embedded one."""
    from ledger.connection import remark

    found = remark(config.database.url) if config.database.url else None
    if found:
        yield f"database.url: {found}"
