"""What was changed in an account, by whom."""

from __future__ import annotations

from starlette.responses import Response

from console import people
from console.errors import Refused
from console.pages.frame import Visit, is_id

_ENTRIES = 50


async def show(visit: Visit) -> Response:
    """What was changed."""
    before = visit.asked("before")
    if before and not is_id(before):
        raise Refused(400, "invalid_request", "before: this is the number of no entry.")
    older = {"before": int(before)} if before else {}
    found = await people.list_audit(visit.member, visit.console, **older, limit=_ENTRIES)
    facts = {"entries": found.entries, "next_before": found.next_before, "before": before}
    return visit.render("audit.html", "/audit", facts)
