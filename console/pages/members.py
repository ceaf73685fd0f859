"""Who belongs to an account, in which role, and who is invited."""

from __future__ import annotations

from starlette.responses import RedirectResponse, Response

from console import people
from console.access import ROLES
from console.pages.frame import Form, Notice, Visit
from console.people import InvitationIn, RoleIn


async def show(visit: Visit) -> Response:
    """Who belongs to the account, and who is invited."""
    return await _page(visit, link="")


async def _page(visit: Visit, *, link: str) -> Response:
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
            "others_sign_in": console.verifier.is_configured,
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
    return await _page(visit, link=made.link)


async def withdraw_invitation(visit: Visit) -> str:
    """Take an invitation back."""
    await people.revoke(visit.member, visit.number("invitation_id"), visit.console)
    return "invitation-revoked"


async def change_role(visit: Visit) -> str:
    """Give a member another role."""
    wanted = RoleIn.model_validate({"role": visit.form.get("role", "")})
    await people.change_role(visit.member, visit.number("user_id"), wanted, visit.console)
    return "member-changed"


async def remove(visit: Visit) -> Response | str:
    """Remove a member, or leave."""
    user_id = visit.number("user_id")
    await people.remove_member(visit.member, user_id, visit.console)
    if user_id == visit.member.caller.user_id and not visit.member.caller.is_operator:
        return RedirectResponse("/console", 303)
    return "member-removed"


FORMS = {
    "invite": Form(
        "members.write",
        invite,
        once="This invitation was made already, and its link cannot be shown again. If you have "
        "lost it, make another invitation: it takes the place of this one.",
    ),
    "withdraw": Form("members.write", withdraw_invitation),
    "change": Form("members.write", change_role),
    "remove": Form("read", remove),
}
