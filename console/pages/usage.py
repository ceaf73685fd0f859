"""The history of requests: to be filtered, paged through, and looked at one by one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import cast, get_args
from urllib.parse import quote, urlencode

from starlette.responses import RedirectResponse, Response

from console import keys, usage
from console.access import moment
from console.errors import Refused
from console.pages.frame import Kind, Notice, Visit, is_id
from console.usage import Filters, Outcome

_DAYS = {"": "any time", "1": "24 hours", "7": "7 days", "30": "30 days", "90": "90 days"}
_OUTCOMES = {"": "any status", "served": "served", "failed": "failed", "cancelled": "cancelled"}

BADGES: Mapping[str, Kind] = {
    "settled": "good",
    "estimated": "warn",
    "free": "good",
    "review": "warn",
    "cancelled": "",
    "failed": "bad",
    "unknown": "bad",
    "orphaned": "bad",
    "quarantined": "bad",
}


async def show(visit: Visit) -> Response:
    """The explorer. A request that is asked for by its id has a page of its own."""
    console, member = visit.console, visit.member
    if request_id := visit.asked("request_id").strip():
        try:
            await usage.receipt(console, member, request_id)
        except Refused as refused:
            visit.notices.append(Notice(refused.message, "bad"))
            visit.status = refused.status
        else:
            found = f"/console/{quote(member.account)}/usage/{quote(request_id)}"
            return RedirectResponse(found, 303)
    wanted = _filters(visit)
    after = visit.asked("after") or None
    page = await usage.history(
        console, member, wanted, usage.PAGE_RECORDS, usage.position_of(after)
    )
    projects = await keys.list_projects(member, console)
    listed = (await keys.list_keys(member, console)).keys
    asked = {name: visit.asked(name) for name in ("model", "project", "key_id", "outcome", "days")}
    kept = {name: text for name, text in asked.items() if text}
    return visit.render(
        "usage.html",
        "/usage",
        {
            "records": [usage.record_out(record, member) for record in page.records],
            "badges": BADGES,
            "asked": asked,
            "filtered": bool(kept),
            "models": sorted(console.server.catalogue.models),
            "keys": {str(key.key_id): key.name or f"key {key.key_id}" for key in listed},
            "request_id": request_id,
            "projects": [project.name for project in projects.projects],
            "days": _DAYS,
            "outcomes": _OUTCOMES,
            "newest": f"?{urlencode(kept)}" if after else "",
            "older": f"?{urlencode({**kept, 'after': page.next.encode()})}" if page.next else "",
            "files": urlencode(_of_files(wanted)),
        },
    )


async def show_request(visit: Visit) -> Response:
    """One request, with what its charge is made of."""
    found = await usage.show_request(
        visit.member, visit.request.path_params["request_id"], visit.console
    )
    return visit.render(
        "request.html",
        "/usage",
        {
            "record": found.record,
            "attempts": found.attempts,
            "items": found.items,
            "badges": BADGES,
        },
    )


def _filters(visit: Visit) -> Filters:
    """Of the page's query; what makes no sense is said, and not passed over."""
    key_id = visit.asked("key_id")
    if key_id and not is_id(key_id):
        raise Refused(400, "invalid_request", "A key's id is a number.")
    outcome = visit.asked("outcome")
    if outcome and outcome not in get_args(Outcome):
        raise Refused(400, "invalid_request", "Requests end as served, failed or cancelled.")
    return usage.filters(
        since=_since(visit.asked("days"), moment(visit.console)),
        model=visit.asked("model") or None,
        project=visit.asked("project") or None,
        key_id=int(key_id) if key_id else None,
        outcome=cast("Outcome", outcome) if outcome else None,
    )


def _since(days: str, now: datetime) -> datetime | None:
    if not days:
        return None
    if days not in _DAYS:
        raise Refused(400, "invalid_request", "There are no pages of so many days.")
    return now.astimezone(UTC) - timedelta(days=int(days))


def _of_files(wanted: Filters) -> Sequence[tuple[str, str]]:
    """The same filters for a file."""
    facts = {
        "since": wanted.since.isoformat() if wanted.since else None,
        "model": wanted.model,
        "project": wanted.project,
        "key_id": wanted.key_id,
        "outcome": wanted.outcome,
    }
    return [(name, str(fact)) for name, fact in facts.items() if fact is not None]
