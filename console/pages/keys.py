"""Keys and projects: made, limited and ended here. A new key is shown once, when it was made."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Literal

from starlette.responses import Response

from console import keys
from console.access import moment
from console.errors import Refused
from console.keys import BudgetIn, KeyFactsIn, KeyIn, KeyOut, ProjectBudgetIn, ProjectIn
from console.pages import words
from console.pages.filters import NameFilter
from console.pages.frame import Form, Notice, Visit, is_id

_MOMENT = timedelta(microseconds=1)  # a key that ends at midnight was good the day before


async def show(visit: Visit) -> Response:
    """All keys and projects."""
    return await _page(visit, secret="")


async def _page(visit: Visit, *, secret: str) -> Response:
    console, member = visit.console, visit.member
    found = (await keys.list_keys(member, console)).keys
    projects = (await keys.list_projects(member, console)).projects
    revoked = visit.asked("revoked") == "shown"
    by_name = NameFilter.of(visit.request)
    matching = [key for key in found if by_name.takes(key.name or f"key {key.key_id}", key.project)]
    return visit.render(
        "keys.html",
        "/keys",
        {
            "keys": [key for key in matching if revoked or key.state != "revoked"],
            "hidden": 0 if revoked else sum(key.state == "revoked" for key in matching),
            "revoked": revoked,
            "ended_max": keys.ENDED_LISTED_MAX,
            "ended_left_out": sum(key.state != "live" for key in found) >= keys.ENDED_LISTED_MAX,
            "filter": by_name.typed,
            "is_long": by_name.is_offered(len(found)),
            "projects": projects,
            "models": sorted(console.server.catalogue.models),
            "secret": secret,
            "typed": visit.form if visit.status != 200 else {},
            "usual_project": _usual_project(found),
            "base_url": console.server.public_url,
            "example_model": console.server.catalogue.example or "MODEL",
        },
    )


def _usual_project(found: list[KeyOut]) -> str:
    """Where a new key most likely belongs: where the last one was made."""
    return found[0].project if found else "default"


async def create(visit: Visit) -> Response:
    """Make a key, and show it."""
    form = visit.form
    project = form.get("project", "")
    made = await keys.create_key(
        visit.member,
        KeyIn(
            project=project,
            name=form.get("name", ""),
            budget=_budget(form),
            expires_at=_expiry(form.get("expires", ""), moment(visit.console)),
            models=_names(form.get("models", "")),
            scopes=["keys"] if form.get("scopes") == "keys" else [],
        ),
        visit.console,
    )
    visit.form = {}
    visit.notices.append(Notice(f"Key {made.key.key_id} of {project} was made.", "good"))
    return await _page(visit, secret=made.secret)


async def show_key(visit: Visit) -> Response:
    """One key, and a form to change it."""
    key_id = _id(visit.request.path_params["key_id"])
    key = await keys.show_key(visit.member, key_id, visit.console)
    return visit.render(
        "key.html",
        "/keys",
        {
            "key": key,
            "last_day": _last_day(key.expires_at),
            "models": sorted(visit.console.server.catalogue.models),
            "typed": visit.form if visit.status != 200 else {},
        },
    )


async def change(visit: Visit) -> str:
    """Change what a key may do. A last day that is left as it is keeps its hour."""
    form = visit.form
    key_id = _id(visit.request.path_params["key_id"])
    key = await keys.show_key(visit.member, key_id, visit.console)
    typed = form.get("expires", "")
    kept = typed == _last_day(key.expires_at)
    await keys.change_key(
        visit.member,
        key_id,
        KeyFactsIn(
            name=form.get("name", ""),
            budget=_budget(form),
            expires_at=key.expires_at if kept else _expiry(typed, moment(visit.console)),
            models=_names(form.get("models", "")),
        ),
        visit.console,
    )
    return "key-changed"


async def revoke(visit: Visit) -> str:
    """End a key."""
    key_id = _id(visit.form.get("key_id", "") or visit.request.path_params.get("key_id", ""))
    await keys.revoke_key(visit.member, key_id, visit.console)
    return "key-revoked"


async def create_project(visit: Visit) -> str:
    """Make a project."""
    wanted = ProjectIn(name=visit.form.get("name", ""), budget=_budget(visit.form))
    await keys.create_project(visit.member, wanted, visit.console)
    return "project-made"


async def change_project(visit: Visit) -> str:
    """Give a project another budget."""
    await keys.change_project_budget(
        visit.member,
        visit.form.get("project", ""),
        ProjectBudgetIn(budget=_budget(visit.form)),
        visit.console,
    )
    return "project-changed"


async def delete_project(visit: Visit) -> str:
    """Delete a project."""
    project = visit.form.get("project", "")
    await keys.delete_project(visit.member, project, visit.console)
    return "project-deleted"


FORMS = {
    "create": Form(
        "keys.write",
        create,
        once="This key was made already, and cannot be shown again. If you have lost it, revoke it "
        "and make another.",
    ),
    "revoke": Form("keys.write", revoke),
    "create-project": Form("projects.write", create_project),
    "change-project": Form("projects.write", change_project),
    "delete-project": Form("projects.write", delete_project),
}
KEY_FORMS = {"change": Form("keys.write", change), "revoke": Form("keys.write", revoke)}


# -- what was typed -------------------------------------------------------------------------------


def _id(text: str) -> int:
    if not is_id(text):
        raise Refused(404, "not_found", f"There is no key {text!r}.")
    return int(text)


def _budget(form: Mapping[str, str]) -> BudgetIn | None:
    amount = words.plain_amount(form.get("budget", ""))
    if not amount:
        return None
    period: Literal["month"] | None = "month" if form.get("period") == "month" else None
    return BudgetIn(usd=amount, period=period)


def _expiry(text: str, now: datetime) -> datetime | None:
    """A number of days, or a date, which is meant to its end (UTC)."""
    if not text:
        return None
    try:
        if text.isascii() and text.isdigit():
            return now + timedelta(days=int(text))
        day = datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=UTC)
        return day + timedelta(days=1)
    except (ValueError, OverflowError):
        raise Refused(400, "invalid_request", f"{text!r} is no date.") from None


def _last_day(expires_at: datetime | None) -> str:
    """As a browser's field for a date takes it: years have four digits."""
    if expires_at is None:
        return ""
    is_first = expires_at.year == 1  # of all there are: nothing can be taken off
    return (expires_at if is_first else expires_at - _MOMENT).date().isoformat()


def _names(text: str) -> list[str]:
    return [name for each in text.replace("\n", ",").split(",") if (name := each.strip())]
