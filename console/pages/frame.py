"""How a page is made: who visits it, its template, and what becomes of a refusal.

A page is an async function of a `Visit`; it shows what the routes of the JSON API give, by calling
the same functions, so that a page can do nothing that its visitor could not do there. A form is
posted to the page that it stands on; done, the page is shown again by a redirect (`done`), so that
reloading repeats nothing. Refused, the page is shown with what was wrong.

What is shown only once, such as a new key, cannot wait for a redirect: it is the answer to its
form. Reloading sends such a form again, so it carries a random token (`once`) and counts the first
time only (`Form.once`). Each page has another, so that several tabs do not disturb each other.

    page("/keys", show, {"create": Form("keys.write", create)})

What a form does is named in its field `do`. The routes' own functions do not ask whether somebody
may: so each page and each form says which action it is, as their routes do, and is refused here.
Who is not signed in goes to the sign-in page first.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Literal
from urllib.parse import parse_qsl, quote, urlencode

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

from console import tokens
from console.access import Action, Member, caller_of, member_of, moment, require_role
from console.context import Console
from console.errors import Refused, refusal_of
from console.pages import words
from console.store import forms as sent_forms
from ledger.directory import DirectoryRefused

STATIC = Path(__file__).parents[1] / "static"

_TEMPLATES = Path(__file__).parents[1] / "templates"
_FORM_BYTES_MAX = 64 * 1024
_FORM_FIELDS_MAX = 200
_ID_DIGITS_MAX = 18

Kind = Literal["", "good", "warn", "bad"]
Facts = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Notice:
    """What is said above a page."""

    text: str
    kind: Kind = ""


@dataclass(frozen=True, slots=True)
class Entry:
    """A place in the menu; `title` begins a new part of it."""

    path: str
    key: str
    icon: str
    name: str
    title: str = ""
    action: Action = "read"


MENU = (
    Entry("", "o", "overview", "Overview"),
    Entry("/usage", "u", "usage", "Usage"),
    Entry("/keys", "k", "keys", "Keys"),
    Entry("/models", "m", "models", "Models"),
    Entry("/billing", "b", "billing", "Credit & billing", "Account", "billing.read"),
    Entry("/plan", "l", "plan", "Plan & limits"),
    Entry("/members", "e", "members", "Members"),
    Entry("/audit", "a", "audit", "Audit log", action="audit.read"),
    Entry("/integrations", "i", "integrations", "Integrations", "Set-up"),
    Entry("/errors", "h", "help", "Error codes"),
    Entry("/settings", "s", "settings", "Settings"),
)


@dataclass(slots=True)
class Visit:
    """Somebody on a page of an account."""

    request: Request
    console: Console
    member: Member
    form: Mapping[str, str] = field(default_factory=dict)
    notices: list[Notice] = field(default_factory=list)
    status: int = 200

    def asked(self, name: str) -> str:
        """A parameter of the query, "" where there is none."""
        return self.request.query_params.get(name, "")

    def number(self, name: str) -> int:
        """A field of the form that is the number of something."""
        text = self.form.get(name, "")
        if not is_id(text):
            raise Refused(400, "invalid_request", f"{name}: this is no number.")
        return int(text)

    def render(self, template: str, here: str, facts: Facts) -> Response:
        """A page of the account; `here` is its place in the menu."""
        member = self.member
        return render(
            self.console,
            template,
            {
                "account": member.account,
                "menu": [entry for entry in MENU if member.may(entry.action)],
                "here": here,
                "who": member.caller.called,
                "role": "operator" if member.caller.is_operator else member.role,
                "notices": self.notices,
                "may": member.may,
                "is_operator": member.caller.is_operator,
                "once": tokens.mint(),
                **facts,
            },
            self.status,
        )


Show = Callable[[Visit], Awaitable[Response]]
Do = Callable[[Visit], Awaitable[Response | str]]
"""What a form does; returns an answer, or the name of what is said on the page: a key of `DONE`."""


@dataclass(frozen=True, slots=True)
class Form:
    """A form, and what its sender has to be allowed to do.

    `once` is what is said of one that shows what it made, when it is sent again; "" where that does
    no harm.
    """

    action: Action
    do: Do
    once: str = ""


DONE: Mapping[str, str] = {
    "key-changed": "The key was changed; applications see it within a second.",
    "key-revoked": "The key is revoked: within a second every request with it gets 401.",
    "project-made": "The project was made.",
    "project-changed": "The project's budget was changed.",
    "project-deleted": "The project and its keys are gone; its usage stays in the books.",
    "member-changed": "The member has another role.",
    "member-removed": "The member was removed.",
    "invitation-revoked": "The invitation is withdrawn.",
    "plan-asked": "Asked for. The operator of this gateway decides.",
    "plan-withdrawn": "The request was taken back.",
    "tier-set": "The account is in another tier, from its next request on.",
    "credit-added": "The credit was added.",
    "plan-decided": "Decided.",
    "recharge-changed": "Automatic top-ups were changed.",
    "card-removed": "The saved card was removed, and automatic top-ups are off.",
    "paid": "Thank you. Credit appears as soon as the payment is confirmed, as a rule in seconds.",
    "card-saved": "The card is being saved; it shows up here in a moment.",
    "account-made": "Your account is open.",
}


_LABELS: Mapping[str, str] = {
    "usd": "Budget",
    "reason": "What for",
    "name": "Name",
    "models": "Models",
    "email": "E-mail address",
    "role": "Role",
    "amount": "Amount",
    "threshold": "When to top up",
    "monthly_cap": "At most a month",
    "note": "Why",
    "reply": "Reply",
}


def page(
    path: str, show: Show, forms: Mapping[str, Form] | None = None, *, action: Action = "read"
) -> Route:
    """A page of an account at this path, for who may do `action`."""

    async def answer(request: Request) -> Response:
        console: Console = request.app.state.console
        try:
            visitor = await caller_of(request, console)
        except Refused as refused:
            return not_let_in(console, refused, _place_of(request))
        try:
            member = await member_of(request.path_params["account"], visitor, console)
            require_role(member.role, action, is_operator=visitor.is_operator)
            visit = Visit(request, console, member)
            if request.method == "POST":
                return await _do(visit, show, forms or {}, path)
            if said := DONE.get(visit.asked("done")):
                visit.notices.append(Notice(said, "good"))
            return await show(visit)
        except (Refused, DirectoryRefused, ValidationError) as refused:
            return problem(console, refusal_of(refused))

    methods = ["GET", "POST"] if forms else ["GET"]
    return Route(f"/console/{{account}}{path}", answer, methods=methods)


def _place_of(request: Request) -> str:
    """The page that was asked for, to come back to it; a form stands on the page it is sent to."""
    shown = [each for each in request.query_params.multi_items() if each[0] != "done"]
    return f"{request.url.path}?{urlencode(shown)}" if shown else request.url.path


async def _do(visit: Visit, show: Show, forms: Mapping[str, Form], path: str) -> Response:
    visit.form = await form_of(visit.request)
    form = forms.get(visit.form.get("do", ""))
    if form is None:
        raise Refused(400, "invalid_request", "This form is not known here.")
    try:
        is_operator = visit.member.caller.is_operator
        require_role(visit.member.role, form.action, is_operator=is_operator)
        done = await (_do_once(visit, form) if form.once else form.do(visit))
    except (Refused, DirectoryRefused, ValidationError) as error:
        refused = refusal_of(error)
        visit.notices.append(Notice(_told(refused), "bad"))
        visit.status = refused.status
        shown = await show(visit)
        shown.headers.update(refused.headers)
        return shown
    if isinstance(done, Response):
        return done
    back = f"/console/{quote(visit.member.account)}{path.format_map(visit.request.path_params)}"
    return RedirectResponse(f"{back}?{urlencode({'done': done})}", 303)


def _told(refused: Refused) -> str:
    """What was wrong, with the field as its label calls it."""
    field = refused.where.rpartition(".")[2]
    if field not in _LABELS:
        return refused.message
    return f"{_LABELS[field]}: {refused.problem}"


async def _do_once(visit: Visit, form: Form) -> Response | str:
    token = visit.form.get("once", "")
    if not token:
        raise Refused(400, "invalid_request", "Send this form from its page.")
    token_hash = tokens.hash_of(token)
    database, now = visit.console.database, moment(visit.console)
    if not await database.run(lambda connection: sent_forms.claim(connection, token_hash, now)):
        visit.form = {}
        raise Refused(409, "sent_already", form.once)
    try:
        return await form.do(visit)
    except (Refused, DirectoryRefused, ValidationError) as error:
        if refusal_of(error).status < 500:  # else it may have been done all the same
            await database.run(lambda connection: sent_forms.release(connection, token_hash))
        raise


async def form_of(request: Request) -> Mapping[str, str]:
    """The fields of a form, without blanks around them. Of a name given twice the values are
    joined by commas."""
    body = b""
    async with aclosing(request.stream()) as pieces:
        async for piece in pieces:
            body += piece
            if len(body) > _FORM_BYTES_MAX:
                raise Refused(413, "request_too_large", "The form is too long.")
    try:
        fields = parse_qsl(body.decode(), True, max_num_fields=_FORM_FIELDS_MAX)
    except ValueError:
        raise Refused(400, "invalid_request", "The form cannot be read.") from None
    found: dict[str, str] = {}
    for name, text in fields:
        found[name] = f"{found[name]},{text.strip()}" if name in found else text.strip()
    return found


def is_id(text: str) -> bool:
    """Whether this can be the number of something."""
    return text.isascii() and text.isdigit() and len(text) <= _ID_DIGITS_MAX


def problem(console: Console, refused: Refused) -> Response:
    """A page that says why there is none."""
    facts = {"status": refused.status, "message": refused.message}
    return render(console, "problem.html", facts, refused.status, refused.headers)


def not_let_in(console: Console, refused: Refused, wanted: str = "") -> Response:
    """Who is not signed in goes to do so, and comes back to `wanted`; others are told why."""
    if refused.status != 401:
        return problem(console, refused)
    query = f"?{urlencode({'next': wanted})}" if wanted else ""
    return RedirectResponse(f"/console/sign-in{query}", 303)


# -- templates ------------------------------------------------------------------------------------


def render(
    console: Console,
    template: str,
    facts: Facts,
    status: int = 200,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """A template with these facts."""
    text = _environment().get_template(template).render(brand=console.server.brand, **facts)
    return HTMLResponse(text, status, headers=dict(headers or {}))


@lru_cache(maxsize=1)
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["static"] = static
    environment.filters |= {
        "usd": words.usd,
        "price": words.price,
        "count": words.count,
        "day": words.day,
        "clock": words.clock,
        "lasted": words.lasted,
    }
    return environment


@lru_cache
def static(name: str) -> str:
    """The address of a file, with a part of its hash: browsers keep it until it changes."""
    mark = hashlib.sha256((STATIC / name).read_bytes()).hexdigest()[:12]
    return f"/console/static/{name}?{mark}"


async def serve_static(request: Request) -> Response:
    """A file of ours."""
    name = request.path_params["name"]
    if name not in _FILES:
        return Response("not found\n", 404, media_type="text/plain")
    kept = "public, max-age=31536000, immutable" if request.url.query else "no-cache"
    return Response(
        (STATIC / name).read_bytes(),
        media_type=_FILES[name],
        headers={"cache-control": kept},
    )


_FILES: Mapping[str, str] = {
    "console.css": "text/css",
    "console.js": "text/javascript",
    "sign_in.js": "text/javascript",
    "theme.js": "text/javascript",
    "icon.svg": "image/svg+xml",
}
