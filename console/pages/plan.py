"""Tier and limits of an account, and asking for another."""

from __future__ import annotations

from starlette.responses import Response

from console import plan
from console.errors import Refused
from console.pages.frame import Form, Visit
from console.plan import DecisionIn, PlanRequestIn, TierIn


async def show(visit: Visit) -> Response:
    """Tier, limits, and what was asked for."""
    found = await plan.show_plan(visit.member, visit.console)
    open_ = any(request.state == "open" for request in found.requests)
    return visit.render("plan.html", "/plan", {"plan": found, "open": open_})


async def ask(visit: Visit) -> str:
    """Ask for another tier."""
    wanted = PlanRequestIn(tier=visit.form.get("tier", ""), note=visit.form.get("note", ""))
    await plan.ask(visit.member, wanted, visit.console)
    return "plan-asked"


async def withdraw(visit: Visit) -> str:
    """Take it back."""
    await plan.withdraw(visit.member, visit.number("request_id"), visit.console)
    return "plan-withdrawn"


async def decide(visit: Visit) -> str:
    """Grant or decline it."""
    decision = visit.form.get("decision")
    if decision not in ("grant", "decline"):
        raise Refused(400, "invalid_request", "Grant or decline?")
    said = DecisionIn(grant=decision == "grant", reply=visit.form.get("reply", ""))
    await plan.decide(visit.member.caller, visit.number("request_id"), said, visit.console)
    return "plan-decided"


async def set_tier(visit: Visit) -> str:
    """Move the account to another tier."""
    await plan.set_tier(visit.member, TierIn(tier=visit.form.get("tier", "")), visit.console)
    return "tier-set"


FORMS = {
    "set": Form("plan.grant", set_tier),
    "ask": Form("plan.request", ask),
    "withdraw": Form("plan.request", withdraw),
    "decide": Form("plan.grant", decide),
}
