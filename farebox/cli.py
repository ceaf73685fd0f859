"""The command: `farebox`. Its subcommands are in `farebox.commands`.

Results go to standard output. Every error is one plain sentence on standard error that says what
to do, with exit code 1 where something was refused and 2 where the command line is wrong.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import click

from farebox.commands.accounts import account, credit
from farebox.commands.books import ledger, usage
from farebox.commands.console import console
from farebox.commands.gateway import check, serve
from farebox.commands.keys import key, project


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="farebox", prog_name="farebox")
def cli() -> None:
    """A prepaid gateway for language models: authenticate, reserve, relay, settle."""


for command in (serve, check, account, credit, project, key, ledger, usage, console):
    cli.add_command(command)


def main() -> None:
    """Entry point of the `farebox` program."""
    try:
        _check_text(sys.argv)
        code = cli.main(prog_name="farebox", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        code = error.exit_code
    except click.UsageError as error:
        where = error.ctx.command_path if error.ctx else "farebox"
        _complain(f"{error.format_message()} (See {where} --help.)")
        code = error.exit_code
    except click.ClickException as error:
        _complain(error.format_message())
        code = error.exit_code
    except click.Abort:
        code = 130
    sys.exit(code)


def _check_text(arguments: Sequence[str]) -> None:
    """Bytes that are no text become lone surrogates, which nothing behind here can store."""
    try:
        "".join(arguments).encode()
    except UnicodeEncodeError:
        raise click.UsageError("An argument is not text in UTF-8.") from None


def _complain(sentence: str) -> None:
    click.echo(f"farebox: {sentence}", err=True)
