"""Routes about people: sessions, one's accounts, members, invitations, the audit log.

    POST   /session                        begin one with an issuer's token (bearer)
    POST   /session/link                   begin the operator's, with a local link
    GET    /session                        who I am
    DELETE /session                        sign out, here or everywhere
    POST   /session/token                  a bearer token for programs, shown once
    GET    /accounts                       where I belong
    POST   /accounts                       an account of my own
    …      /accounts/{account}/members     who belongs to it, in which role
    …      /accounts/{account}/invitations whom it waits for
    …      /invitations/…                  what I was invited to
    GET    /accounts/{account}/audit       what was changed by whom

What a change needs is looked at once more inside its transaction, with the roles of the account
locked: two owners who remove each other at the same moment leave one.

An invitation is a link that its sender passes on (there is no mail server): it lets in only whom
the issuer of their token vouches for under the e-mail address that was invited, once, for 7 days.
It ends with the say of whoever made it: when they are removed or get another role.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request, Response
from pydantic import AfterValidator, BaseModel, Field

from console import audit, sign_in, tokens
from console.access import (
    Caller,
    CallerOf,
    Member,
    Reader,
    Role,
    allowed,
    bearer_of,
    check_rank,
    check_role_change,
    find_session,
    moment,
    no_such_account,
    require_role,
)
from console.bodies import ID_MAX, Id
from console.context import Console, ConsoleOf
from console.errors import Refused
from console.store import Connection, people
from ledger.accounts import RESERVED_NAMES

INVITATION_LASTS = timedelta(days=7)
INVITATIONS_MAX = 100
TOKEN_CHARACTERS_MAX = 200

_ENTRIES_MAX = 200
_EMAIL = re.compile(r"[^@\s]+@[^@\s]+")
_EMAIL_CHARACTERS_MAX = 320
_ACCOUNT_NAME_CHARACTERS_MAX = 64
_NUMBER_CHARACTERS_MAX = 20  # of what tells accounts of one name apart


# -- what is said ---------------------------------------------------------------------------------


class UserOut(BaseModel):
    """Somebody who can sign in."""

    user_id: int
    email: str
    name: str
    is_operator: bool = Field(description="may do everything in every account")


class SessionOut(BaseModel):
    """A session that lasts until `expires_at`, if it is used."""

    user: UserOut
    expires_at: datetime | None = Field(description="null where a token came with the request")


class LinkTokenIn(BaseModel):
    """The last part of a sign-in link."""

    token: str = Field(max_length=TOKEN_CHARACTERS_MAX)


class TokenOut(BaseModel):
    """A bearer token, shown this once."""

    token: str
    expires_at: datetime


class AccountOut(BaseModel):
    """An account one belongs to."""

    account: str
    role: Role


class AccountsOut(BaseModel):
    """The accounts one belongs to, by name."""

    accounts: list[AccountOut]


class MemberOut(BaseModel):
    """Somebody who belongs to an account."""

    user_id: int
    email: str
    name: str
    role: Role
    since: datetime


class MembersOut(BaseModel):
    """Everybody who belongs to an account."""

    members: list[MemberOut]


class RoleIn(BaseModel):
    """A member's new role."""

    role: Role


class InvitationOut(BaseModel):
    """Somebody who may become a member."""

    invitation_id: int
    account: str
    email: str
    role: Role
    invited_by: str
    created_at: datetime
    expires_at: datetime


class InvitationsOut(BaseModel):
    """The open invitations of an account, newest first."""

    invitations: list[InvitationOut]


class InvitedOut(BaseModel):
    """A new invitation, and its link, shown this once: pass it on to whom it is for."""

    invitation_id: int
    link: str
    expires_at: datetime


def _email(text: str) -> str:
    if not _EMAIL.fullmatch(text) or not text.isprintable() or not text.isascii():
        raise ValueError("expected an e-mail address")
    return text.lower()


class InvitationIn(BaseModel):
    """Whom to invite, and as what."""

    email: Annotated[str, Field(max_length=_EMAIL_CHARACTERS_MAX), AfterValidator(_email)]
    role: Role


class InvitationTokenIn(BaseModel):
    """The last part of an invitation's link."""

    token: str = Field(max_length=TOKEN_CHARACTERS_MAX)


class AuditOut(BaseModel):
    """One change that somebody has made."""

    audit_id: int
    at: datetime
    actor: str
    address: str
    action: str
    target: str
    detail: dict[str, str | int]


class AuditPageOut(BaseModel):
    """Changes, newest first. `next_before` is the `before` of the next page, null on the last."""

    entries: list[AuditOut]
    next_before: int | None


# -- sessions -------------------------------------------------------------------------------------

sessions = APIRouter(prefix="/session", tags=["session"])


@sessions.post("", status_code=201, summary="Sign in with an issuer's token")
async def start(request: Request, response: Response, console: ConsoleOf) -> SessionOut:
    """Begin a session with the token in `Authorization: Bearer`; the answer sets its cookie."""
    token = bearer_of(request)
    if not token:
        raise Refused(401, "not_signed_in", "Send your token as Authorization: Bearer TOKEN.")
    opened = await sign_in.with_token(console, request, token)
    sign_in.keep(console, request, response, opened)
    return SessionOut(user=_user(opened.user), expires_at=opened.expires_at)


@sessions.post("/link", status_code=201, summary="Sign in with a local link")
async def start_with_link(
    wanted: LinkTokenIn, request: Request, response: Response, console: ConsoleOf
) -> SessionOut:
    """Begin the operator's session, on the gateway's own machine; the answer sets its cookie."""
    opened = await sign_in.with_link(console, request, wanted.token)
    sign_in.keep(console, request, response, opened)
    return SessionOut(user=_user(opened.user), expires_at=opened.expires_at)


@sessions.get("", summary="Who I am")
async def show(caller: CallerOf, console: ConsoleOf) -> SessionOut:
    """Whose session this is, and until when it lasts."""
    session = None if caller.session_id is None else await find_session(console, caller.session_id)
    return SessionOut(user=_user(caller), expires_at=session.expires_at if session else None)


@sessions.delete("", status_code=204, summary="Sign out")
async def end(
    caller: CallerOf,
    request: Request,
    response: Response,
    console: ConsoleOf,
    everywhere: Annotated[bool, Query(description="on all other devices too")] = False,
) -> None:
    """End this session, or all of mine."""
    await sign_in.end(console, caller, everywhere=everywhere)
    sign_in.forget(request, response)


@sessions.post("/token", status_code=201, summary="Get a bearer token for a program")
async def for_program(caller: CallerOf, console: ConsoleOf) -> TokenOut:
    """Another session of mine, as a bearer token: for MCP clients and scripts."""
    opened = await sign_in.for_program(console, caller)
    return TokenOut(token=opened.token, expires_at=opened.expires_at)


def _user(user: people.User | Caller) -> UserOut:
    return UserOut(
        user_id=user.user_id, email=user.email, name=user.name, is_operator=user.is_operator
    )


# -- accounts -------------------------------------------------------------------------------------

accounts = APIRouter(prefix="/accounts", tags=["accounts"])


@accounts.get("", summary="The accounts I belong to")
async def my_accounts(caller: CallerOf, console: ConsoleOf) -> AccountsOut:
    """Where I belong, in which role; all accounts, for an operator."""
    found = await console.database.run(
        lambda connection: people.memberships(
            connection, caller.user_id, is_operator=caller.is_operator
        )
    )
    return AccountsOut(accounts=[AccountOut(account=one.account, role=one.role) for one in found])


@accounts.post("", status_code=201, summary="Open an account of my own")
async def open_own_account(caller: CallerOf, console: ConsoleOf) -> AccountOut:
    """An account named after my e-mail address, without credit, for who owns none."""
    if not caller.email:
        raise Refused(403, "no_email", "Only somebody with an e-mail address can open an account.")
    now = moment(console)

    def work(connection: Connection) -> AccountOut:
        with connection.transaction():
            people.lock_user(connection, caller.user_id)
            mine = people.memberships(connection, caller.user_id, is_operator=False)
            if any(one.role == "owner" for one in mine):
                raise Refused(409, "has_account", "You own an account already.")
            account_id, name = _open_account(connection, caller.email)
            people.add_member(connection, account_id, caller.user_id, "owner", now)
            member = Member(caller, account_id, name, "owner")
            audit.note(connection, member, "account.create", name)
            return AccountOut(account=name, role="owner")

    return await console.database.run(work)


def _open_account(connection: Connection, email: str) -> tuple[int, str]:
    for name in account_names(email):
        account_id = people.open_account(connection, name)
        if account_id is not None:
            return account_id, name
    raise AssertionError("names do not run out")


def account_names(email: str) -> Iterator[str]:
    """Names after an e-mail address that an account may have, until one is free.

    Only the whole address is a name without a number: several addresses may come to one name, and
    none of them is to be taken for another where somebody is credited by theirs.
    """
    name = re.sub(r"[^A-Za-z0-9._@+-]", "-", email).lstrip("._@+-") or "account"
    if name == email and len(name) <= _ACCOUNT_NAME_CHARACTERS_MAX and name not in RESERVED_NAMES:
        yield name
    start = name[: _ACCOUNT_NAME_CHARACTERS_MAX - _NUMBER_CHARACTERS_MAX]
    for number in itertools.count(2):
        yield f"{start}-{number}"


# -- members --------------------------------------------------------------------------------------

members = APIRouter(prefix="/accounts/{account}/members", tags=["members"])


@members.get("", summary="Who belongs to the account")
async def list_members(member: Reader, console: ConsoleOf) -> MembersOut:
    """All members, who came first first."""
    found = await console.database.run(
        lambda connection: people.members(connection, member.account_id)
    )
    return MembersOut(
        members=[
            MemberOut(
                user_id=one.user_id, email=one.email, name=one.name, role=one.role, since=one.since
            )
            for one in found
        ]
    )


@members.patch("/{user_id}", status_code=204, summary="Give a member another role")
async def change_role(
    member: Annotated[Member, Depends(allowed("members.write"))],
    user_id: Id,
    wanted: RoleIn,
    console: ConsoleOf,
) -> None:
    """Nobody can make or unmake somebody who may do more than they; one owner has to stay."""
    await _change_member(console, member, user_id, wanted.role)


@members.delete("/{user_id}", status_code=204, summary="Remove a member, or leave")
async def remove_member(member: Reader, user_id: Id, console: ConsoleOf) -> None:
    """The keys that they made stay: revoke those that they may still know."""
    await _change_member(console, member, user_id, None)


async def _change_member(
    console: Console, member: Member, user_id: int, wanted: Role | None
) -> None:
    now = moment(console)

    def work(connection: Connection) -> None:
        with connection.transaction():
            roles = people.lock_roles(connection, member.account_id)
            acting = _acting(member, roles)
            if wanted is not None or user_id != member.caller.user_id:  # anybody may leave
                require_role(acting, "members.write", is_operator=member.caller.is_operator)
            check_role_change(acting, roles, user_id, wanted)
            if roles[user_id] == wanted:
                return
            people.revoke_invitations_of(connection, member.account_id, user_id, now)
            if wanted is None:
                people.remove_member(connection, member.account_id, user_id)
            else:
                people.set_role(connection, member.account_id, user_id, wanted)
            _note_member(connection, member, user_id, roles[user_id], wanted)

    await console.database.run(work)


def _acting(member: Member, roles: Mapping[int, Role]) -> Role:
    """The role in which somebody acts, as it is by now."""
    if member.caller.is_operator:
        return "owner"
    role = roles.get(member.caller.user_id)
    if role is None:
        raise no_such_account(member.account)
    return role


def _note_member(
    connection: Connection, member: Member, user_id: int, before: Role, after: Role | None
) -> None:
    target = people.user_name(connection, user_id)
    if after is None:
        audit.note(connection, member, "member.remove", target, {"role": before})
    else:
        audit.note(connection, member, "member.role", target, {"before": before, "after": after})


# -- invitations ----------------------------------------------------------------------------------

invitations = APIRouter(prefix="/accounts/{account}/invitations", tags=["invitations"])
invited = APIRouter(prefix="/invitations", tags=["invitations"])

_NOT_OPEN = "This invitation was used, taken back, or is older than 7 days: ask for another."


@invitations.get("", summary="Whom the account waits for")
async def list_invitations(
    member: Annotated[Member, Depends(allowed("members.write"))], console: ConsoleOf
) -> InvitationsOut:
    """The open invitations, newest first."""
    now = moment(console)
    found = await console.database.run(
        lambda connection: people.open_invitations(connection, member.account_id, now)
    )
    return InvitationsOut(invitations=[_invitation(one) for one in found])


@invitations.post("", status_code=201, summary="Invite somebody")
async def invite(
    member: Annotated[Member, Depends(allowed("members.write"))],
    wanted: InvitationIn,
    console: ConsoleOf,
) -> InvitedOut:
    """An invitation takes the place of earlier ones to the same address."""
    if not console.verifier.is_configured:
        raise Refused(
            409,
            "no_sign_in",
            "Nobody but the operator can sign in here, and so nobody could accept: set up an "
            "identity provider first ([console] in farebox.toml).",
        )
    now = moment(console)
    token = tokens.mint()

    def work(connection: Connection) -> int:
        with connection.transaction():
            roles = people.lock_roles(connection, member.account_id)
            acting = _acting(member, roles)
            require_role(acting, "members.write", is_operator=member.caller.is_operator)
            check_rank(acting, wanted.role)
            made = people.invite(
                connection,
                member.account_id,
                wanted.email,
                wanted.role,
                tokens.hash_of(token),
                member.caller.user_id,
                now,
                now + INVITATION_LASTS,
            )
            if len(people.open_invitations(connection, member.account_id, now)) > INVITATIONS_MAX:
                raise Refused(
                    409,
                    "too_many_invitations",
                    f"{INVITATIONS_MAX} invitations are open: take some back first.",
                )
            audit.note(connection, member, "invitation.create", wanted.email, {"role": wanted.role})
            return made

    invitation_id = await console.database.run(work)
    return InvitedOut(
        invitation_id=invitation_id,
        link=f"{console.server.public_url}/console/invitation/{token}",
        expires_at=now + INVITATION_LASTS,
    )


@invitations.delete("/{invitation_id}", status_code=204, summary="Take an invitation back")
async def revoke(
    member: Annotated[Member, Depends(allowed("members.write"))],
    invitation_id: Id,
    console: ConsoleOf,
) -> None:
    """Its link is of no use any more."""
    now = moment(console)

    def work(connection: Connection) -> None:
        with connection.transaction():
            found = people.revoke_invitation(connection, member.account_id, invitation_id, now)
            if found is None:
                raise Refused(404, "not_found", f"There is no open invitation {invitation_id}.")
            email, role = found
            audit.note(connection, member, "invitation.revoke", email, {"role": role})

    await console.database.run(work)


@invited.get("/{token}", summary="What I was invited to")
async def show_invitation(_: CallerOf, token: str, console: ConsoleOf) -> InvitationOut:
    """An invitation that is still open, by the last part of its link."""
    now = moment(console)
    found = await console.database.run(
        lambda connection: people.find_invitation(connection, tokens.hash_of(token))
    )
    if found is None or not found.is_open(now):
        raise Refused(404, "not_found", _NOT_OPEN)
    return _invitation(found)


@invited.post("/accept", status_code=201, summary="Accept an invitation")
async def accept(caller: CallerOf, wanted: InvitationTokenIn, console: ConsoleOf) -> AccountOut:
    """Become a member, as whom the issuer of my token vouches for under the invited address."""
    now = moment(console)

    def work(connection: Connection) -> AccountOut:
        with connection.transaction():
            found = people.find_invitation(connection, tokens.hash_of(wanted.token))
            if found is None or not found.is_open(now):
                raise Refused(404, "not_found", _NOT_OPEN)
            if caller.email != found.email:
                raise Refused(
                    403,
                    "other_email",
                    f"This invitation is for {found.email}: sign in under that address.",
                )
            added = people.add_member(connection, found.account_id, caller.user_id, found.role, now)
            if not added:
                raise Refused(409, "member_already", "You belong to this account already.")
            people.accept_invitation(connection, found.invitation_id, now)
            member = Member(caller, found.account_id, found.account, found.role)
            audit.note(connection, member, "invitation.accept", found.email, {"role": found.role})
            return AccountOut(account=found.account, role=found.role)

    return await console.database.run(work)


def _invitation(found: people.Invitation) -> InvitationOut:
    return InvitationOut(
        invitation_id=found.invitation_id,
        account=found.account,
        email=found.email,
        role=found.role,
        invited_by=found.invited_by,
        created_at=found.created_at,
        expires_at=found.expires_at,
    )


# -- the audit log --------------------------------------------------------------------------------

log = APIRouter(prefix="/accounts/{account}/audit", tags=["audit"])


@log.get("", summary="What was changed, by whom")
async def list_audit(
    member: Annotated[Member, Depends(allowed("audit.read"))],
    console: ConsoleOf,
    before: Annotated[int, Query(ge=1, le=ID_MAX, description="only older entries")] = ID_MAX,
    limit: Annotated[int, Query(ge=1, le=_ENTRIES_MAX)] = 50,
) -> AuditPageOut:
    """Changes of the account, newest first, a page at a time."""
    found = await console.database.run(
        lambda connection: people.audit(connection, member.account_id, before, limit + 1)
    )
    page = found[:limit]
    return AuditPageOut(
        entries=[
            AuditOut(
                audit_id=one.audit_id,
                at=one.at,
                actor=one.actor,
                address=one.address,
                action=one.action,
                target=one.target,
                detail=dict(one.detail),
            )
            for one in page
        ],
        next_before=page[-1].audit_id if len(found) > limit else None,
    )


router = APIRouter()
for part in (sessions, accounts, members, invitations, invited, log):
    router.include_router(part)
