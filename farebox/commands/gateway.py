"""`farebox serve` and `farebox check`: the gateway, and whether its configuration is fit."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
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
    from farebox.catalogue import catalogue, priced, remarks
    from farebox.config import ConfigError, load
    from farebox.secret import check_secret

    try:
        config = load(config_path, os.environ)
        check_secret(config, os.environ)
        served = catalogue(config)
    except ConfigError as error:
        for problem in error.problems:
            say(problem)
        raise SystemExit(1) from None
    for remark in (*config.warnings, *remarks(config, served), *_database_remarks(config)):
        say(remark)
    if config.sandbox:
        click.echo("The configuration is fine. No provider is configured: the sandbox serves.")
        return
    sold = sum(priced(model) for model in served.models.values())
    models = "1 model" if sold == 1 else f"{sold} models"
    click.echo(f"The configuration is fine: {models} from {', '.join(served.providers)}.")


def _database_remarks(config: Config) -> Iterator[str]:
    """What is to be said of a database that is not the embedded one."""
    from ledger.connection import remark

    found = remark(config.database.url) if config.database.url else None
    if found:
        yield f"database.url: {found}"
