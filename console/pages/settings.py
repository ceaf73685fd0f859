"""An account, and who is signed in."""

from __future__ import annotations

from starlette.responses import RedirectResponse, Response

from console import plan, sign_in
from console.pages.frame import Form, Visit


async def show(visit: Visit) -> Response:
    """The account, and who is signed in."""
    state = await plan.show_account(visit.member, visit.console)
    return visit.render("settings.html", "/settings", {"state": state})


async def sign_out_everywhere(visit: Visit) -> Response:
    """End all sessions."""
    await sign_in.end(visit.console, visit.member.caller, everywhere=True)
    response = RedirectResponse("/console/sign-in", 303)
    sign_in.forget(visit.request, response)
    return response


FORMS = {"everywhere": Form("read", sign_out_everywhere)}
