"""`farebox project` and `farebox key`: what an account's applications call with."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from farebox.commands.common import (
    DURATION,
    PROJECT,
    USD,
    Record,
    Refused,
    common_options,
    directory,
    load_begun,
    now,
    say,
    show,
    show_all,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import timedelta

    from farebox.config import Config
    from ledger.accounts import Budget, Key, Project
    from ledger.directory import Directory

budget_option = click.option("--budget", type=USD, help="The most it may spend, in dollars.")
period_option = click.option(
    "--budget-period",
    type=click.Choice(["month"]),
    help="The budget is for each calendar month; default: for its lifetime.",
)


@click.group()
def project() -> None:
    """Parts of an account, with keys and budgets of their own."""


@project.command("create")
@click.argument("path", type=PROJECT, metavar="ACCOUNT/PROJECT")
@budget_option
@period_option
@common_options
def create_project(
    path: tuple[str, str],
    budget: int | None,
    budget_period: Literal["month"] | None,
    config_path: Path | None,
    as_json: bool,
) -> None:
    """Add a project to an account."""
    limit = _budget(budget, budget_period)
    with directory(load_begun(config_path)) as books:
        show(project_record(books.create_project(*path, limit)), as_json=as_json)


@project.command("delete")
@click.argument("path", type=PROJECT, metavar="ACCOUNT/PROJECT")
@common_options
def delete_project(path: tuple[str, str], config_path: Path | None, as_json: bool) -> None:
    """Delete a project: none of its keys is served any more."""
    with directory(load_begun(config_path)) as books:
        books.delete_project(*path)
    show({"project": "/".join(path), "deleted": True}, as_json=as_json)


@click.group()
def key() -> None:
    """API keys: shown once, stored only as a hash."""


@key.command("create")
@click.argument("path", type=PROJECT, metavar="ACCOUNT/PROJECT")
@click.option("--name", default="", help="What the key is for.")
@budget_option
@period_option
@click.option("--expires", type=DURATION, help="How long it is valid, such as 90d.")
@click.option("--models", default="", help="The only models it may use, separated by commas.")
@click.option(
    "--scope",
    "scopes",
    type=click.Choice(["keys"]),
    multiple=True,
    help="What else it may do: 'keys' is making and revoking keys of its project.",
)
@common_options
def create_key(
    path: tuple[str, str],
    name: str,
    budget: int | None,
    budget_period: Literal["month"] | None,
    expires: timedelta | None,
    models: str,
    scopes: tuple[Literal["keys"], ...],
    config_path: Path | None,
    as_json: bool,
) -> None:
    """Make a key. A project that the account does not have yet is added."""
    limit = _budget(budget, budget_period)
    config = load_begun(config_path)
    allowed = [model.strip() for model in models.split(",") if model.strip()]
    _check_models(config, allowed)
    with directory(config, keys=True) as books:
        _ensure_project(books, *path)
        made, plain = books.create_key(
            *path,
            name,
            budget=limit,
            expires_at=now() + expires if expires else None,
            models=allowed,
            scopes=scopes,
        )
    record = key_record(made)
    show({"id": record["id"], "key": plain, **record}, as_json=as_json)
    if not as_json:
        say("The key is shown this once: keep it now.")


@key.command("list", short_help="Which keys there are; never the keys themselves.")
@click.argument("path", default="", metavar="[ACCOUNT[/PROJECT]]")
@common_options
def list_keys(path: str, config_path: Path | None, as_json: bool) -> None:
    """Keys of everyone, of an account, or of one project; never the keys themselves."""
    account, _, name = path.partition("/")
    with directory(load_begun(config_path)) as books:
        records = [key_record(found) for found in books.list_keys(account or None, name or None)]
    empty = "There is no key yet: farebox key create ACCOUNT/PROJECT"
    show_all(records, as_json=as_json, empty=empty)


@key.command("revoke")
@click.argument("key_id", type=int, metavar="ID")
@common_options
def revoke_key(key_id: int, config_path: Path | None, as_json: bool) -> None:
    """End a key for good; the gateway follows within a second."""
    with directory(load_begun(config_path)) as books:
        show(key_record(books.revoke_key(key_id)), as_json=as_json)


def project_record(made: Project) -> Record:
    """A project as commands print it."""
    return {"project": made.path, **_budget_record(made.budget), "created_at": made.created_at}


def key_record(found: Key) -> Record:
    """A key's facts as commands print them."""
    return {
        "id": found.key_id,
        "project": f"{found.account}/{found.project}",
        "name": found.name,
        **_budget_record(found.budget),
        "models": list(found.models),
        "scopes": list(found.scopes),
        "status": _status(found),
        "created_at": found.created_at,
        "expires_at": found.expires_at,
        "revoked_at": found.revoked_at,
    }


def _status(found: Key) -> Literal["active", "expired", "revoked"]:
    if found.revoked_at is not None:
        return "revoked"
    if found.expires_at is not None and found.expires_at <= now():
        return "expired"
    return "active"


def _budget_record(budget: Budget | None) -> Record:
    from ledger.money import format_usd

    return {
        "budget_usd": format_usd(budget.amount) if budget else None,
        "budget_period": budget.period if budget else None,
    }


def _budget(amount: int | None, period: Literal["month"] | None) -> Budget | None:
    if amount is None:
        if period is not None:
            raise click.UsageError("--budget-period says how often --budget is renewed: give both.")
        return None
    from ledger.accounts import Budget

    return Budget(amount, period)


def _check_models(config: Config, names: Sequence[str]) -> None:
    """A key with a slip in its models would be of no use."""
    if not names:
        return
    from farebox.catalogue import catalogue, demo_provider, known_somewhere
    from farebox.config import ConfigError
    from farebox.decode import nearest
    from farebox.snapshot import on_offer

    try:
        served = catalogue(config)
    except ConfigError as error:
        raise Refused(error.problems[0]) from None
    offers = [on_offer(config, served)]
    if config.sandbox:  # or `farebox serve --demo`
        offers.append(on_offer(config, catalogue(config, demo_provider(""))))
    for name in names:
        if any(offer.find(name) for offer in offers):
            continue
        if name in served.models:
            raise Refused(f'The model "{name}" is left out; `farebox check` says why.')
        if config.from_environment and known_somewhere(name):
            say(f'No provider of "{name}" has its key in the environment of this command.')
            continue
        askable = [each for offer in offers for each in (*offer.models, *offer.pinned)]
        hint = nearest(name, askable) or "; GET /v1/models lists what is"
        raise Refused(f'There is no model "{name}"{hint}')


def _ensure_project(books: Directory, account: str, name: str) -> None:
    """A first key should not need a command of its own for its project."""
    if name not in {found.name for found in books.list_projects(account)}:
        books.create_project(account, name)
        say(f"The project {account}/{name} is new; it was added.")
