"""The other pages of an account: models, plan, members, audit, integrations, errors, settings."""

from __future__ import annotations

from starlette.responses import RedirectResponse, Response

from console import catalogue, health, people, plan, sign_in
from console.access import ROLES
from console.errors import Refused
from console.pages import words
from console.pages.frame import Form, Notice, Visit, is_id
from console.pages.setups import ERRORS, mcp_setup, setups
from console.people import InvitationIn, RoleIn
from console.plan import DecisionIn, PlanRequestIn

_ENTRIES = 50


# -- models ---------------------------------------------------------------------------------------


async def show_models(visit: Visit) -> Response:
    """Models, prices, and how the providers are."""
    try:
        upstreams = await health.upstreams(visit.console)
    except Refused:
        upstreams = None
    facts = {"models": model_rows(catalogue.models(visit.console)), "upstreams": upstreams}
    return visit.render("models.html", "/models", facts)


def model_rows(models: list[catalogue.ModelOut]) -> list[dict[str, object]]:
    """Models as a table shows them."""
    rows: list[dict[str, object]] = []
    for model in models:
        first = model.price_rows[0].prices if model.price_rows else []
        plain = {price.unit: words.price(price.usd) for price in first}
        row: dict[str, object] = dict(model)
        row |= {
            "input": plain.get("input"),
            "output": plain.get("output"),
            "more": _more_prices(model),
        }
        rows.append(row)
    return rows


def _more_prices(model: catalogue.ModelOut) -> list[str]:
    """Whatever a price is beside that of input and output, in words."""
    said = []
    for row in model.price_rows:
        where = []
        if row.above_input_tokens:
            where.append(f"above {words.count(row.above_input_tokens)} tokens")
        if row.service_tier:
            where.append(row.service_tier)
        prices = [
            f"{price.unit.replace('_', ' ')} {words.price(price.usd)}"
            + (" each" if price.per == "piece" else "")
            for price in row.prices
            if where or price.unit not in ("input", "output")
        ]
        if prices:
            said.append(f"{', '.join(where)}: {', '.join(prices)}" if where else ", ".join(prices))
    return said


# -- the plan -------------------------------------------------------------------------------------


async def show_plan(visit: Visit) -> Response:
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
    await plan.withdraw(visit.member, _number(visit, "request_id"), visit.console)
    return "plan-withdrawn"


async def decide(visit: Visit) -> str:
    """Grant or decline it."""
    decision = visit.form.get("decision")
    if decision not in ("grant", "decline"):
        raise Refused(400, "invalid_request", "Grant or decline?")
    said = DecisionIn(grant=decision == "grant", reply=visit.form.get("reply", ""))
    await plan.decide(visit.member.caller, _number(visit, "request_id"), said, visit.console)
    return "plan-decided"


PLAN_FORMS = {
    "ask": Form("plan.request", ask),
    "withdraw": Form("plan.request", withdraw),
    "decide": Form("plan.grant", decide),
}


# -- members --------------------------------------------------------------------------------------


async def show_members(visit: Visit) -> Response:
    """Who belongs to the account, and who is invited."""
    return await _members(visit, link="")


async def _members(visit: Visit, *, link: str) -> Response:
    console, member = visit.console, visit.member
    found = await people.list_members(member, console)
    may_invite = member.may("members.write")
    invited = (await people.list_invitations(member, console)).invitations if may_invite else []
    return visit.render(
        "members.html",
        "/members",
        {
            "members": found.members,
            "invitations": invited,
            "roles": ROLES,
            "me": member.caller.user_id,
            "link": link,
            "typed": visit.form if visit.status != 200 and visit.form.get("do") == "invite" else {},
        },
    )


async def invite(visit: Visit) -> Response:
    """Make an invitation, and show its link."""
    wanted = InvitationIn.model_validate(
        {"email": visit.form.get("email", ""), "role": visit.form.get("role", "")}
    )
    made = await people.invite(visit.member, wanted, visit.console)
    visit.notices.append(Notice(f"{wanted.email} is invited.", "good"))
    return await _members(visit, link=made.link)


async def withdraw_invitation(visit: Visit) -> str:
    """Take an invitation back."""
    await people.revoke(visit.member, _number(visit, "invitation_id"), visit.console)
    return "invitation-revoked"


async def change_role(visit: Visit) -> str:
    """Give a member another role."""
    wanted = RoleIn.model_validate({"role": visit.form.get("role", "")})
    await people.change_role(visit.member, _number(visit, "user_id"), wanted, visit.console)
    return "member-changed"


async def remove(visit: Visit) -> Response | str:
    """Remove a member, or leave."""
    user_id = _number(visit, "user_id")
    await people.remove_member(visit.member, user_id, visit.console)
    if user_id == visit.member.caller.user_id and not visit.member.caller.is_operator:
        return RedirectResponse("/console", 303)
    return "member-removed"


MEMBER_FORMS = {
    "invite": Form("members.write", invite),
    "withdraw": Form("members.write", withdraw_invitation),
    "change": Form("members.write", change_role),
    "remove": Form("read", remove),
}


# -- the audit log --------------------------------------------------------------------------------


async def show_audit(visit: Visit) -> Response:
    """What was changed."""
    before = visit.asked("before")
    if before and not is_id(before):
        raise Refused(400, "invalid_request", "before: this is the number of no entry.")
    older = {"before": int(before)} if before else {}
    found = await people.list_audit(visit.member, visit.console, **older, limit=_ENTRIES)
    facts = {"entries": found.entries, "next_before": found.next_before, "before": before}
    return visit.render("audit.html", "/audit", facts)


# -- set-up ---------------------------------------------------------------------------------------


async def show_integrations(visit: Visit) -> Response:
    """How to connect."""
    return _integrations(visit, token="")


def _integrations(visit: Visit, *, token: str) -> Response:
    base = visit.console.server.public_url
    model = next(iter(visit.console.server.catalogue.models), "MODEL")
    facts = {"setups": setups(base, model), "mcp": mcp_setup(base), "token": token}
    return visit.render("integrations.html", "/integrations", facts)


async def make_token(visit: Visit) -> Response:
    """A session's token for a program, shown once."""
    opened = await sign_in.for_program(visit.console, visit.member.caller)
    return _integrations(visit, token=opened.token)


INTEGRATION_FORMS = {"token": Form("read", make_token)}


async def show_errors(visit: Visit) -> Response:
    """What errors mean, and what to do."""
    return visit.render("errors.html", "/errors", {"codes": ERRORS})


async def show_settings(visit: Visit) -> Response:
    """The account, and who is signed in."""
    state = await plan.show_account(visit.member, visit.console)
    return visit.render("settings.html", "/settings", {"state": state})


async def sign_out_everywhere(visit: Visit) -> Response:
    """End all sessions."""
    await sign_in.end(visit.console, visit.member.caller, everywhere=True)
    response = RedirectResponse("/console/sign-in", 303)
    sign_in.forget(visit.request, response)
    return response


SETTINGS_FORMS = {"everywhere": Form("read", sign_out_everywhere)}


def _number(visit: Visit, name: str) -> int:
    text = visit.form.get(name, "")
    if not is_id(text):
        raise Refused(400, "invalid_request", f"{name}: this is no number.")
    return int(text)
