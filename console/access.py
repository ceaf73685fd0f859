"""Who may do what: roles in an account as data, and the dependency that routes ask for.

Problem: every route has to know who asks, whether they belong to the account in its path, and
whether their role allows what the route does; a route that forgets is a hole. Approach: a route
names an action, and gets a `Member` for whom all three hold:

    @router.post("/keys")
    async def create(member: Annotated[Member, Depends(allowed("keys.write"))], …)

Roles grow: each may do all that the one before it may (`ROLES`). An operator is owner everywhere.

- An account is known only to its members: for everyone else it is as if it did not exist (404).
- Nobody makes or unmakes somebody who may do more than they may themselves.
- An account that has an owner keeps one.

Somebody is signed in by a cookie or, as programs are, by a bearer token: an issuer's (`sessions`),
or that of a session of our own (`sign_in`), which has no dots in it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated, Literal

from fastapi import Depends, Request

from console import tokens
from console.context import Console, ConsoleOf
from console.errors import Refused
from console.security import SESSION_COOKIE
from console.sessions import Identity, KeysUnavailable, TokenRefused
from console.store import Connection, people
from console.store.people import Role as Role
from console.store.people import Session, User

Action = Literal[
    "read",
    "keys.write",
    "projects.write",
    "billing.read",
    "billing.write",
    "members.write",
    "settings.write",
    "audit.read",
    "plan.request",
    "plan.grant",
]

ROLES: tuple[Role, ...] = ("viewer", "developer", "admin", "owner")

# The least role that may. `None`: nobody in the account, only an operator.
LEAST: Mapping[Action, Role | None] = {
    "read": "viewer",
    "keys.write": "developer",
    "projects.write": "admin",
    "billing.read": "admin",
    "billing.write": "admin",
    "members.write": "admin",
    "settings.write": "admin",
    "audit.read": "admin",
    "plan.request": "admin",
    "plan.grant": None,
}

SESSION_IDLE = timedelta(hours=12)
_SEEN_AGAIN = timedelta(minutes=1)  # no more often is it written that a session was used


@dataclass(frozen=True, slots=True)
class Caller:
    """Somebody who is signed in, and from which address they ask.

    `email` is empty where nobody vouches for one; `session_id` is None where an issuer's token
    came with the request itself.
    """

    user_id: int
    email: str
    name: str
    is_operator: bool
    session_id: bytes | None
    address: str

    @property
    def called(self) -> str:
        """What they are called where people read it; as in `store.people.CALLED`."""
        return self.email or self.name or f"user {self.user_id}"


@dataclass(frozen=True, slots=True)
class Member:
    """Somebody who is signed in, in one account."""

    caller: Caller
    account_id: int
    account: str
    role: Role

    def may(self, action: Action) -> bool:
        """Whether they may do that here."""
        return may(self.role, action, is_operator=self.caller.is_operator)


def may(role: Role, action: Action, *, is_operator: bool = False) -> bool:
    """Whether a role allows an action."""
    least = LEAST[action]
    if least is None:
        return is_operator
    return is_operator or reaches(role, least)


def reaches(role: Role, other: Role) -> bool:
    """Whether `role` may do all that `other` may."""
    return ROLES.index(role) >= ROLES.index(other)


async def caller_of(request: Request, console: ConsoleOf) -> Caller:
    """Whoever is signed in. Refuses with 401 where nobody is."""
    bearer = bearer_of(request)
    if "." in bearer:
        identity = await identify(console, bearer)
        user = await console.database.run(
            lambda connection: save_user(connection, identity, moment(console))
        )
        return caller(user, None, address_of(request))
    token = bearer or request.cookies.get(SESSION_COOKIE, "")
    if not token:
        raise Refused(401, "not_signed_in", "You are not signed in.")
    session_id = tokens.hash_of(token)
    session = await find_session(console, session_id)
    if session is None:
        if bearer.startswith("sk_"):
            raise Refused(401, "not_signed_in", "An API key is for models and /mcp: sign in here.")
        raise Refused(401, "not_signed_in", "Your session has ended: sign in again.")
    return caller(session.user, session_id, address_of(request))


CallerOf = Annotated[Caller, Depends(caller_of)]


async def member_of(account: str, caller: CallerOf, console: ConsoleOf) -> Member:
    """The caller in the account that the path names. Refuses with 404 who does not belong to it."""
    found = None
    if account.isprintable():  # what Postgres cannot store it need not be asked for
        found = await console.database.run(
            lambda connection: people.find_membership(
                connection, account, caller.user_id, is_operator=caller.is_operator
            )
        )
    if found is None:
        raise no_such_account(account)
    return Member(caller, found.account_id, found.account, found.role)


def allowed(action: Action) -> Callable[..., Awaitable[Member]]:  # type: ignore[explicit-any] # as FastAPI calls it
    """The dependency of a route with `{account}` in its path: a member who may do `action`."""

    async def check(member: Annotated[Member, Depends(member_of)]) -> Member:
        require_role(member.role, action, is_operator=member.caller.is_operator)
        return member

    return check


Reader = Annotated[Member, Depends(allowed("read"))]
"""Any member: what most routes ask for."""


def require_role(role: Role, action: Action, *, is_operator: bool = False) -> None:
    """Refuse with 403 what a role does not allow."""
    if not may(role, action, is_operator=is_operator):
        raise Refused(403, "permission_denied", _denial(role, action))


def no_such_account(account: str) -> Refused:
    """What is said of accounts that are not there and of those one does not belong to."""
    return Refused(404, "not_found", f"You belong to no account {account!r}.")


def _denial(role: Role, action: Action) -> str:
    least = LEAST[action]
    who = f"{_with_article(least)} can" if least else "the operator of this gateway can"
    return f"You are {_with_article(role)} of this account: only {who} do this."


def _with_article(role: Role) -> str:
    return f"an {role}" if role[0] in "ao" else f"a {role}"


def check_role_change(
    acting: Role, roles: Mapping[int, Role], user_id: int, wanted: Role | None
) -> None:
    """Refuse what must not become of a member: `wanted` is their new role, None for no longer any.

    `acting` is the role of whoever asks; `roles` has that of each member.
    """
    current = roles.get(user_id)
    if current is None:
        raise Refused(404, "not_found", f"The account has no member {user_id}.")
    for role in (current, wanted):
        if role is not None:
            check_rank(acting, role)
    owners = sum(role == "owner" for role in roles.values())
    if current == "owner" and wanted != "owner" and owners == 1:
        raise Refused(
            409, "last_owner", "This is the account's last owner: make somebody else one first."
        )


def check_rank(acting: Role, role: Role) -> None:
    """Refuse who would make or unmake somebody that may do more than they may."""
    if not reaches(acting, role):
        raise Refused(
            403,
            "permission_denied",
            f"You are {_with_article(acting)}: you cannot make or unmake {_with_article(role)}.",
        )


# -- who asks -------------------------------------------------------------------------------------


def bearer_of(request: Request) -> str:
    """The bearer token of a request; "" where it has none."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def address_of(request: Request) -> str:
    """From where a request comes."""
    return request.client.host if request.client else ""


def moment(console: Console) -> datetime:
    """Now, by the console's clock."""
    return datetime.fromtimestamp(console.wall(), UTC)


def caller(user: User, session_id: bytes | None, address: str) -> Caller:
    """A user who asks for something."""
    return Caller(user.user_id, user.email, user.name, user.is_operator, session_id, address)


async def identify(console: Console, token: str) -> Identity:
    """Whom an issuer's token is about. Refuses with 401, or 503 where that cannot be known."""
    if not console.verifier.is_configured:
        raise Refused(401, "invalid_token", "This gateway takes tokens of no issuer ([console]).")
    try:
        return await console.verifier.verify(token)
    except TokenRefused as error:
        raise Refused(401, "invalid_token", str(error)) from None
    except KeysUnavailable:
        raise Refused(
            503,
            "sign_in_unavailable",
            "The keys that tokens are signed with cannot be fetched at the moment.",
            {"retry-after": "5"},
        ) from None


def save_user(connection: Connection, identity: Identity, now: datetime) -> User:
    """The user whom a token is about."""
    return people.save_user(
        connection, identity.issuer, identity.subject, identity.email, identity.name, now
    )


async def find_session(console: Console, session_id: bytes) -> Session | None:
    """The session with this hash, if it still lasts; it was used now."""
    now = moment(console)

    def work(connection: Connection) -> Session | None:
        found = people.find_session(connection, session_id, now, now - SESSION_IDLE)
        if found is not None and now - found.seen_at >= _SEEN_AGAIN:
            people.touch_session(connection, session_id, now)
        return found

    return await console.database.run(work)
