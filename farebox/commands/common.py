"""What every command needs: its options, the books, and how a result is shown."""

from __future__ import annotations

import datetime as dt
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

if TYPE_CHECKING:
    from farebox.config import Config
    from ledger.directory import Directory

Record = Mapping[str, object]
_Command = TypeVar("_Command", bound=Callable[..., object])  # type: ignore[explicit-any] # as in click

_WIDE = 240  # columns where nobody looks at a terminal: nothing is wrapped
_DURATION = re.compile(r"([1-9][0-9]{0,5})([smhdw])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_DURATION_MAX = dt.timedelta(days=36_525)  # dates far beyond it have no name


class Refused(click.ClickException):
    """The command cannot do what was asked; the message is one sentence that says what to do."""

    exit_code = 1


# -- options --------------------------------------------------------------------------------------


config_option = click.option(
    "--config",
    "config_path",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Configuration file; default: farebox.toml here, if there is one.",
)

json_option = click.option(
    "--json", "as_json", is_flag=True, help="One JSON object (a line each for lists)."
)


def common_options(command: _Command) -> _Command:  # type: ignore[explicit-any] # as in click
    """`--config` and `--json`."""
    return config_option(json_option(command))


class UsdType(click.ParamType[int, object]):
    """An exact amount of dollars, as nano-dollars."""

    name = "usd"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        if isinstance(value, int):
            return value
        from ledger.money import parse_usd

        try:
            return parse_usd(str(value))
        except ValueError as error:
            self.fail(f"{error}.", param, ctx)


class ProjectType(click.ParamType[tuple[str, str], object]):
    """`ACCOUNT/PROJECT`, as the two names."""

    name = "account/project"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, str]:
        if isinstance(value, tuple):
            return value
        account, _, project = str(value).partition("/")
        if not account or not project:
            self.fail(f"{value!r} is not ACCOUNT/PROJECT, such as acme/chat.", param, ctx)
        return account, project


class DurationType(click.ParamType[dt.timedelta, object]):
    """A time span such as `90d`: seconds, minutes, hours, days or weeks."""

    name = "duration"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> dt.timedelta:
        if isinstance(value, dt.timedelta):
            return value
        match = _DURATION.fullmatch(str(value))
        if match is None:
            self.fail(f"{value!r} is not a duration; write it like 90d, 12h or 30m.", param, ctx)
        duration = dt.timedelta(seconds=int(match[1]) * _SECONDS[match[2]])
        if duration > _DURATION_MAX:
            self.fail(f"{value!r} is more than a hundred years.", param, ctx)
        return duration


class SinceType(click.ParamType[dt.datetime, object]):
    """A moment: a date, a date and time (UTC unless it says otherwise), or `7d` for a week ago."""

    name = "since"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> dt.datetime:
        if isinstance(value, dt.datetime):
            return value
        text = str(value)
        if _DURATION.fullmatch(text):
            return now() - DURATION.convert(text, param, ctx)
        try:
            moment = dt.datetime.fromisoformat(text)
        except ValueError:
            self.fail(f"{text!r} is no date; write 2026-11-21 or 7d.", param, ctx)
        return moment if moment.tzinfo else moment.replace(tzinfo=dt.UTC)


USD = UsdType()
PROJECT = ProjectType()
DURATION = DurationType()
SINCE = SinceType()


def now() -> dt.datetime:
    """This moment, in UTC."""
    return dt.datetime.now(dt.UTC)


# -- the books ------------------------------------------------------------------------------------


def load(path: Path | None) -> Config:
    """The configuration; a problem with it is the command's refusal."""
    from farebox.config import ConfigError, load

    try:
        return load(path, os.environ)
    except ConfigError as error:
        first, *others = error.problems
        more = f" (and {len(others)} more: see `farebox check`)" if others else ""
        raise Refused(f"{first}{more}") from None


def load_begun(path: Path | None) -> Config:
    """The configuration of a gateway that has books already: most commands have nothing to do where
    there are none, and would make empty ones in a wrong folder."""
    from farebox.embedded import has_cluster

    config = load(path)
    if not config.database.url and not has_cluster(config.data_dir):
        raise Refused(
            f"No gateway's books are in {config.data_dir}: run this in the folder of the gateway,"
            " or name its configuration with --config. 'farebox account create' and"
            " 'farebox serve' begin new ones."
        )
    return config


@contextmanager
def database(config: Config) -> Iterator[str]:
    """The conninfo of a database that is up and migrated, for the time of the block.

    The embedded Postgres is started where it is down, and stopped again.
    """
    from farebox.embedded import EmbeddedPostgresError, running
    from ledger.migrate import MigrationError, migrate

    try:
        if config.database.url:
            migrate(config.database.url)
            yield config.database.url
            return
        with running(config.data_dir) as conninfo:
            migrate(conninfo)
            yield conninfo
    except (EmbeddedPostgresError, MigrationError) as error:
        raise Refused(str(error)) from None


@contextmanager
def directory(config: Config, *, keys: bool = False) -> Iterator[Directory]:
    """The directory of accounts. With `keys`, new ones can be made in it."""
    from farebox.config import ConfigError
    from farebox.secret import ensure_secret
    from ledger.directory import Directory, DirectoryRefused, DirectoryUnavailable

    try:
        secret = ensure_secret(config, os.environ) if keys else b""
        with (
            database(config) as conninfo,
            Directory(conninfo, secret=secret, brand=config.server.brand) as opened,
        ):
            if keys:
                opened.claim_secret()
            yield opened
    except ConfigError as error:
        raise Refused(error.problems[0]) from None
    except (DirectoryRefused, DirectoryUnavailable) as error:
        raise Refused(str(error)) from None


# -- showing --------------------------------------------------------------------------------------


def show(record: Record, *, as_json: bool) -> None:
    """One record: a JSON object, or a line for each of its values."""
    if as_json:
        _json(record)
        return
    from rich.table import Table

    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(no_wrap=True)
    for name, value in record.items():
        table.add_row(_title(name), _text(value))
    _print(table)


def show_all(records: Sequence[Record], *, as_json: bool, empty: str) -> None:
    """Several records of one shape: a JSON object a line, or a table. `empty` is said of none."""
    if as_json:
        for record in records:
            _json(record)
        return
    if not records:
        say(empty)
        return
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in records[0]:
        table.add_column(_title(name), justify="right" if name.endswith("_usd") else "left")
    for record in records:
        table.add_row(*(_text(value) for value in record.values()))
    _print(table)


def say(sentence: str) -> None:
    """A remark for people: it goes to standard error, so that scripts never read it."""
    click.echo(sentence, err=True)


def _json(record: Record) -> None:
    import msgspec

    click.echo(msgspec.json.encode(record))


def _print(table: object) -> None:
    from rich.console import Console

    width = None if sys.stdout.isatty() else _WIDE
    Console(width=width, highlight=False, markup=False, emoji=False).print(table)


def _title(name: str) -> str:
    return name.removesuffix("_usd").replace("_", " ")


def _text(value: object) -> str:
    if value in (None, "", []):
        return "–"
    if isinstance(value, list):
        return ", ".join(str(item) for item in value)
    if isinstance(value, dt.datetime):
        return value.astimezone(dt.UTC).strftime("%Y-%m-%d %H:%M UTC")
    return str(value)
