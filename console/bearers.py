"""Who calls a tool: whoever has an API key, or the token of a session; and what they may do where.

Tools are called by programs, so nobody is known here by a cookie. What is sent in `Authorization:
Bearer` is told apart by its form: a key has a prefix and a checksum's length, a session's token of
our own is shorter, and an issuer's has dots in it.

- A key stands for its project: it sees that project's keys and usage, and its account's balance.
  It may manage keys only where it was made for that (`console.keys.delegated`).
- A session's user may do in each of their accounts what their role allows, as in the console.
- Revoked, expired, suspended and unknown keys are not told apart: 401, and no more.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime

from fastapi import Request

from console import tokens
from console.access import (
    Action,
    Caller,
    Member,
    address_of,
    bearer_of,
    caller,
    find_session,
    identify,
    member_of,
    moment,
    no_such_account,
    require_role,
    save_user,
)
from console.audit import Actor
from console.context import Console
from console.errors import Refused
from console.keys import called, require_scope, state_of
from console.store import Connection, people
from ledger.accounts import Holder
from ledger.directory import Directory
from ledger.keys import CHECKSUM_CHARACTERS, RANDOM_CHARACTERS

_KEY = re.compile(rf"sk_\w+_[0-9A-Za-z]{{{RANDOM_CHARACTERS + CHECKSUM_CHARACTERS}}}", re.ASCII)
_ACCOUNTS_NAMED_MAX = 20


@dataclass(frozen=True, slots=True)
class KeyBearer:
    """Whoever sends this API key."""

    holder: Holder
    key: str
    address: str


@dataclass(frozen=True, slots=True)
class SessionBearer:
    """Somebody who is signed in, with the token that says so, until it ends."""

    caller: Caller
    token: str
    ends_at: datetime


Bearer = KeyBearer | SessionBearer


@dataclass(frozen=True, slots=True)
class Seat:
    """What a bearer sees: an account, or of a key's only its `project`. `who` is for the log."""

    account_id: int
    account: str
    project: str | None
    project_id: int | None
    who: Member | Actor


async def bearer(console: Console, request: Request) -> Bearer:
    """Whoever sends a request. Refuses with 401, or 503 where that cannot be known."""
    token = bearer_of(request)
    if not token:
        raise Refused(401, "not_signed_in", "Send an API key or a session token as a bearer token.")
    address = address_of(request)
    if _KEY.fullmatch(token):
        return KeyBearer(await _holder(console, token), token, address)
    if "." in token:
        identity = await identify(console, token)
        user = await console.database.run(
            lambda connection: save_user(connection, identity, moment(console))
        )
        ends_at = datetime.fromtimestamp(identity.expires_at, UTC)
        return SessionBearer(caller(user, None, address), token, ends_at)
    session_id = tokens.hash_of(token)
    session = await find_session(console, session_id)
    if session is None:
        raise Refused(
            401, "not_signed_in", "This token is no API key, and of no session that lasts."
        )
    return SessionBearer(caller(session.user, session_id, address), token, session.expires_at)


async def _holder(console: Console, key: str) -> Holder:
    found = await console.database.run(
        lambda connection: Directory.within(connection, secret=console.secret).find_holder(key)
    )
    if found is None or found.suspended or state_of(found.key, moment(console)) != "live":
        raise Refused(401, "invalid_api_key", "The API key is unknown, expired or revoked.")
    return found


async def seat(console: Console, who: Bearer, account: str, action: Action) -> Seat:
    """Where somebody may do something: in the account they name, or the only one they have.

    Refuses with 400, 403 or 404.
    """
    if isinstance(who, KeyBearer):
        return _seat_of_key(who, account, action)
    name = account or await _only_account(console, who.caller)
    member = await member_of(name, who.caller, console)
    require_role(member.role, action, is_operator=member.caller.is_operator)
    return Seat(member.account_id, member.account, None, None, member)


def _seat_of_key(who: KeyBearer, account: str, action: Action) -> Seat:
    holder, key, account_id = who.holder, who.holder.key, who.holder.account_id
    if account not in ("", key.account):
        raise no_such_account(account)
    if action != "read":
        require_scope(holder)
    actor = Actor(called(key), who.address, account_id)
    return Seat(account_id, key.account, key.project, holder.project_id, actor)


async def _only_account(console: Console, who: Caller) -> str:
    def work(connection: Connection) -> list[str]:
        found = people.memberships(connection, who.user_id, is_operator=who.is_operator)
        return [each.account for each in found]

    names = await console.database.run(work)
    if len(names) == 1:
        return names[0]
    if not names:
        raise Refused(404, "not_found", "You belong to no account: open one in the console.")
    listed = ", ".join(names[:_ACCOUNTS_NAMED_MAX])
    more = ", …" if len(names) > _ACCOUNTS_NAMED_MAX else ""
    raise Refused(400, "invalid_request", f"Say which account: {listed}{more}.")
