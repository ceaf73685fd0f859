"""`farebox account` and `farebox credit`: who may spend, and how much."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from farebox.commands.common import (
    USD,
    Record,
    Refused,
    common_options,
    directory,
    load,
    load_begun,
    say,
    show,
    show_all,
)

if TYPE_CHECKING:
    from farebox.config import Config
    from ledger.accounts import Statement


@click.group()
def account() -> None:
    """Customers: a prepaid balance and a tier each."""


@account.command("create")
@click.argument("name")
@click.option("--tier", default="", help="One of [tiers]; default: limits.default_tier.")
@click.option("--credit", type=USD, default="0", help="First credit, in dollars.")
@common_options
def create(name: str, tier: str, credit: int, config_path: Path | None, as_json: bool) -> None:
    """Open an account."""
    config = load(config_path)
    _check_tier(config, tier)
    with directory(config) as books:
        books.create_account(name, tier, credit)
        show(record_of(books.show_account(name), config), as_json=as_json)


@account.command("list")
@common_options
def list_(config_path: Path | None, as_json: bool) -> None:
    """All accounts with their money."""
    config = load_begun(config_path)
    with directory(config) as books:
        records = [record_of(statement, config) for statement in books.list_accounts()]
    empty = "There is no account yet: farebox account create NAME --credit 25.00"
    show_all(records, as_json=as_json, empty=empty)


@account.command("show")
@click.argument("name")
@common_options
def show_one(name: str, config_path: Path | None, as_json: bool) -> None:
    """One account with its money."""
    config = load_begun(config_path)
    with directory(config) as books:
        show(record_of(books.show_account(name), config), as_json=as_json)


@account.command("set")
@click.argument("name")
@click.option("--tier", help="Another tier; empty: the default tier.")
@click.option(
    "--status",
    type=click.Choice(["open", "suspended"]),
    help="suspended: none of its keys is served.",
)
@common_options
def set_(
    name: str,
    tier: str | None,
    status: Literal["open", "suspended"] | None,
    config_path: Path | None,
    as_json: bool,
) -> None:
    """Change an account; the gateway follows within a second."""
    if tier is None and status is None:
        raise click.UsageError("Nothing to change: give --tier or --status.")
    config = load_begun(config_path)
    _check_tier(config, tier or "")
    with directory(config) as books:
        if tier is not None:
            books.set_tier(name, tier)
        if status == "suspended":
            books.suspend(name)
        if status == "open":
            books.resume(name)
        show(record_of(books.show_account(name), config), as_json=as_json)


# A negative amount looks like an option, so unknown options are taken as arguments here.
@click.command(
    context_settings={"ignore_unknown_options": True},
    short_help="Add credit to an account, or take it away.",
)
@click.argument("name")
@click.argument("amount", type=USD)
@click.option("--reason", required=True, help="Kept with the entry.")
@click.option(
    "--idempotency-key",
    "key",
    help="Run again with the same one, the command changes nothing.",
)
@common_options
def credit(
    name: str, amount: int, reason: str, key: str | None, config_path: Path | None, as_json: bool
) -> None:
    """Add AMOUNT dollars to an account, or take them away where it is negative."""
    config = load_begun(config_path)
    with directory(config) as books:
        if key is None:
            books.credit(name, amount, reason)
        elif not books.credit_once(name, amount, reason, key):
            say("This was done before, with this key: nothing was changed.")
        show(record_of(books.show_account(name), config), as_json=as_json)


def record_of(statement: Statement, config: Config) -> Record:
    """An account as commands print it; amounts are exact decimal strings."""
    from ledger.money import format_usd

    return {
        "name": statement.account.name,
        "tier": statement.account.tier or config.limits.default_tier,
        "status": statement.account.status.name.lower(),
        "balance_usd": format_usd(statement.balance),
        "reserved_usd": format_usd(statement.reserved),
        "charged_usd": format_usd(statement.charged),
        "credited_usd": format_usd(statement.credited),
        "created_at": statement.account.created_at,
    }


def _check_tier(config: Config, tier: str) -> None:
    if tier and tier not in config.tiers:
        from farebox.decode import nearest

        known = ", ".join(config.tiers) or "none is configured"
        hint = nearest(tier, config.tiers) or f"; known: {known}"
        raise Refused(f'There is no tier "{tier}" in [tiers]{hint}')
