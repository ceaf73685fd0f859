"""Coming in: signing in and out, choosing an account, accepting an invitation; and public pages.

A sign-in link shows a button first: whatever looks at links in messages does not press it, and the
link still works when a person does. With `[console] login_url` the sign-in page has one button, to
the issuer's own page; `static/sign_in.js` signs in with the token that comes back from there.
"""

from __future__ import annotations

from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from console import catalogue, people, plan, sign_in
from console.access import Caller, caller_of
from console.context import Console
from console.errors import Refused
from console.pages.filters import NameFilter
from console.pages.frame import form_of, not_let_in, problem, render
from console.pages.models import rows_of
from console.people import TOKEN_CHARACTERS_MAX, InvitationTokenIn
from console.security import SESSION_COOKIE

_INVITATION = "/console/invitation/"


async def choose(request: Request) -> Response:
    """Where a visitor belongs: straight to the one account, unless they want to see the list of
    all, where they may also open their own."""
    console: Console = request.app.state.console
    try:
        caller = await caller_of(request, console)
    except Refused as refused:
        return not_let_in(console, refused)
    message = ""
    if request.method == "POST":
        try:
            opened = await people.open_own_account(caller, console)
            return RedirectResponse(f"/console/{quote(opened.account)}?done=account-made", 303)
        except Refused as refused:
            message = refused.message
    try:
        is_wanted = request.query_params.get("accounts") == "shown"
        by_name = NameFilter.of(request)
        return await _accounts(console, caller, message, by_name, is_wanted=is_wanted)
    except Refused as refused:
        return problem(console, refused)


async def _accounts(
    console: Console, caller: Caller, message: str, by_name: NameFilter, *, is_wanted: bool
) -> Response:
    found = (await people.my_accounts(caller, console)).accounts
    requests = (await plan.list_requests(caller, console)).requests if caller.is_operator else []
    statements = await plan.statements(console) if caller.is_operator else []
    owns = any(each.role == "owner" for each in found)
    if len(found) == 1 and not (is_wanted or message or requests):
        return RedirectResponse(f"/console/{quote(found[0].account)}", 303)
    facts = {
        "accounts": [each for each in found if by_name.takes(each.account)],
        "filter": by_name.typed,
        "is_long": by_name.is_offered(len(found)),
        "may_open": bool(caller.email) and not owns and not caller.is_operator,
        "message": message,
        "requests": requests,
        "statements": {each.account.name: each for each in statements},
        "default_tier": console.server.default_tier,
    }
    return render(console, "accounts.html", facts)


async def show_sign_in(request: Request) -> Response:
    """The way to the issuer, the form for a token, or how to get a link."""
    console: Console = request.app.state.console
    if request.method != "POST":
        wanted = next_of(request.query_params.get("next", ""))
        return _sign_in(console, wanted, has_ended=await _has_ended(console, request))
    try:
        form = await form_of(request)
    except Refused as refused:
        return problem(console, refused)
    wanted = next_of(form.get("next", ""))
    try:
        opened = await sign_in.with_token(console, request, form.get("token", ""))
    except Refused as refused:
        return _sign_in(console, wanted, refused)
    return _signed_in(console, request, opened, wanted)


async def _has_ended(console: Console, request: Request) -> bool:
    """Whether the visitor's browser has a session that is over."""
    if SESSION_COOKIE not in request.cookies:
        return False
    try:
        await caller_of(request, console)
    except Refused as refused:
        return refused.status == 401
    return False


def _sign_in(
    console: Console, wanted: str, refused: Refused | None = None, *, has_ended: bool = False
) -> Response:
    settings = console.settings
    facts = {
        "next": wanted,
        "message": refused.message if refused else "",
        "has_ended": has_ended,
        "is_invited": wanted.startswith(_INVITATION),
        "login_url": settings.login_url,
        "by_token": bool(settings.jwt_secret or settings.jwks_url),
        "issuer": settings.issuer,
    }
    status = refused.status if refused else 200
    return render(console, "sign_in.html", facts, status, refused.headers if refused else None)


async def use_link(request: Request) -> Response:
    """A sign-in link: a button, and what pressing it does."""
    console: Console = request.app.state.console
    token = request.path_params["token"][:TOKEN_CHARACTERS_MAX]
    if request.method != "POST":
        facts = {"what": "Sign in as the operator", "button": "Sign in", "text": ""}
        return render(console, "confirm.html", facts)
    try:
        opened = await sign_in.with_link(console, request, token)
    except Refused as refused:
        return problem(console, refused)
    return _signed_in(console, request, opened, "/console")


async def accept_invitation(request: Request) -> Response:
    """An invitation: what it is to, and what accepting it does."""
    console: Console = request.app.state.console
    token = request.path_params["token"][:TOKEN_CHARACTERS_MAX]
    try:
        caller = await caller_of(request, console)
    except Refused as refused:
        return not_let_in(console, refused, request.url.path)
    try:
        if request.method == "POST":
            joined = await people.accept(caller, InvitationTokenIn(token=token), console)
            return RedirectResponse(f"/console/{quote(joined.account)}", 303)
        found = await people.show_invitation(caller, token, console)
    except Refused as refused:
        return problem(console, refused)
    text = f"{found.invited_by} invites {found.email} as {found.role}."
    if caller.email != found.email:
        text += f" You are {caller.called}: sign in under that address to accept."
    facts = {
        "what": f"Join {found.account}",
        "text": text,
        "button": "Accept" if caller.email == found.email else "",
    }
    return render(console, "confirm.html", facts)


async def sign_out(request: Request) -> Response:
    """End the session."""
    console: Console = request.app.state.console
    response = RedirectResponse("/console/sign-in", 303)
    try:
        caller = await caller_of(request, console)
        await sign_in.end(console, caller, everywhere=False)
    except Refused as refused:
        if refused.status != 401:
            return problem(console, refused)
    sign_in.forget(request, response)
    return response


async def show_public_models(request: Request) -> Response:
    """Models and prices for everybody, where that is switched on."""
    console: Console = request.app.state.console
    try:
        found = await catalogue.list_public_models(console)
    except Refused as refused:
        return problem(console, refused)
    return render(console, "public_models.html", {"models": rows_of(found.models)})


def next_of(path: str) -> str:
    """Where to go after signing in: a page of ours, wherever a link says to go."""
    ours = path.startswith("/console/") and "\\" not in path and "//" not in path
    return path if ours and path.isprintable() else "/console"


def _signed_in(console: Console, request: Request, opened: sign_in.Opened, wanted: str) -> Response:
    response = RedirectResponse(wanted, 303)
    sign_in.keep(console, request, response, opened)
    return response


ROUTES = (
    Route("/console", choose, methods=["GET", "POST"]),
    Route("/console/sign-in", show_sign_in, methods=["GET", "POST"]),
    Route("/console/sign-in/{token}", use_link, methods=["GET", "POST"]),
    Route("/console/invitation/{token}", accept_invitation, methods=["GET", "POST"]),
    Route("/console/sign-out", sign_out, methods=["POST"]),
    Route("/console/models", show_public_models),
)
