"""Signing in and out: sessions of our own, begun with an issuer's token or with a local link.

A session is a random token in a cookie (`farebox_session`) or, for programs, in a bearer header. It
ends 12 hours after its last use, 7 days after it began, and with the issuer's token that it was
made from. Whoever signs in gets a new one, never one that came with the request. A token for
programs is a session too, and ends with the one it was asked from. Of these a user has a hundred at
most: one more is refused, since to end another would break the program that uses it. A cookie
outlasts its session by a week, so that whoever comes back can be told that it has ended.

A sign-in link makes whoever opens it the operator: once, within ten minutes, and on this machine
only. Whoever can run `farebox console link` here has the database anyway. A request that another
proxy has passed on says so in its headers, and then nobody knows from where it came: it is refused
like one from elsewhere, which does not use the link up.

Tries to sign in are limited for each address (`console.security`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime, timedelta

from fastapi import Request, Response

from console import audit, tokens
from console.access import (
    SESSION_IDLE,
    Caller,
    address_of,
    caller,
    identify,
    moment,
    save_user,
)
from console.context import Console
from console.errors import Refused
from console.links import is_local
from console.security import SESSION_COOKIE, network_of
from console.store import Connection, people
from console.store.people import User

SESSION_LASTS = timedelta(days=7)
PROGRAMS_MAX = 100  # tokens for programs of one user

_COOKIE_OUTLASTS = timedelta(days=7)
_COOKIE_PATH = "/console"
PASSED_ON = ("forwarded", "x-forwarded-for", "x-real-ip")


@dataclass(frozen=True, slots=True)
class Opened:
    """A session that has just begun; its token is known to nobody else."""

    token: str
    user: User
    expires_at: datetime


async def with_token(console: Console, request: Request, token: str) -> Opened:
    """Sign in whom an issuer's token is about. Refuses with 401, 429, or 503."""
    _admit(console, request)
    identity = await identify(console, token)
    now = moment(console)
    seconds = min(identity.expires_at - now.timestamp(), SESSION_LASTS.total_seconds())
    if seconds <= 0:  # within the time by which clocks may differ
        raise Refused(401, "invalid_token", "The token has expired: sign in again.")

    def work(connection: Connection) -> Opened:
        with connection.transaction():
            user = save_user(connection, identity, now)
            return _open(
                connection, user, address_of(request), now, now + timedelta(seconds=seconds)
            )

    return await console.database.run(work)


async def with_link(console: Console, request: Request, token: str) -> Opened:
    """Sign in the operator, by a link's token. Refuses with 401, 403, or 429."""
    _admit(console, request)
    address = address_of(request)
    passed_on = any(name in request.headers for name in PASSED_ON)
    if passed_on or not is_local(address, console.server.gateway_url):
        raise Refused(
            403,
            "sign_in_link_local_only",
            "This link works only in a browser on the gateway's own machine, without a proxy.",
        )
    now = moment(console)

    def work(connection: Connection) -> Opened | None:
        with connection.transaction():
            if not people.use_link(connection, tokens.hash_of(token), now):
                return None
            user = people.operator(connection, now)
            return _open(connection, user, address, now, now + SESSION_LASTS)

    opened = await console.database.run(work)
    if opened is None:
        raise Refused(
            401,
            "sign_in_link_invalid",
            "This link was used before, or is older than ten minutes:"
            " 'farebox console link' prints another.",
        )
    return opened


async def for_program(console: Console, who: Caller) -> Opened:
    """Another session for who has one already, to be used as a bearer token. It ends with theirs.

    Refuses with 400 who came with an issuer's token: that is one to use already. With 409 who has
    as many as there may be, from whichever session: a token can be asked for another.
    """
    now, parent = moment(console), who.session_id
    seen_after = now - SESSION_IDLE

    def work(connection: Connection) -> Opened | None:
        if parent is None:
            return None
        with connection.transaction():
            people.lock_user(connection, who.user_id)
            people.hold_session(connection, parent)
            theirs = people.find_session(connection, parent, now, seen_after)
            if theirs is None:
                return None
            if people.has_programs(connection, who.user_id, PROGRAMS_MAX, now, seen_after):
                raise Refused(
                    409,
                    "too_many_sessions",
                    f"You have {PROGRAMS_MAX} tokens for programs already. One ends after 12 hours "
                    "without use, or when the session it was asked from is signed out of.",
                )
            return _open(connection, theirs.user, who.address, now, theirs.expires_at, parent)

    opened = await console.database.run(work)
    if opened is None:
        raise Refused(400, "no_session", "Only somebody with a session can get a token of it.")
    return opened


async def end(console: Console, who: Caller, *, everywhere: bool) -> None:
    """Sign out: end the session of this request, or all that the user has."""

    def work(connection: Connection) -> None:
        with connection.transaction():
            if everywhere:
                ended = people.end_sessions(connection, who.user_id)
                audit.note(connection, who, "session.end_all", "sessions", {"sessions": ended})
            elif who.session_id is not None:
                people.end_session(connection, who.session_id)
                audit.note(connection, who, "session.end", "session")

    await console.database.run(work)


def keep(console: Console, request: Request, response: Response, opened: Opened) -> None:
    """Give a session's token to the browser."""
    response.set_cookie(
        SESSION_COOKIE,
        opened.token,
        max_age=math.ceil((opened.expires_at + _COOKIE_OUTLASTS).timestamp() - console.wall()),
        path=_COOKIE_PATH,
        secure=request.url.scheme == "https",
        httponly=True,
        samesite="lax",
    )


def forget(request: Request, response: Response) -> None:
    """Take a session's token back from the browser."""
    response.delete_cookie(
        SESSION_COOKIE,
        path=_COOKIE_PATH,
        secure=request.url.scheme == "https",
        httponly=True,
        samesite="lax",
    )


def _open(
    connection: Connection,
    user: User,
    address: str,
    now: datetime,
    expires_at: datetime,
    made_from: bytes | None = None,
) -> Opened:
    token = tokens.mint()
    session_id = tokens.hash_of(token)
    people.open_session(connection, session_id, user.user_id, address, now, expires_at, made_from)
    audit.note(connection, caller(user, session_id, address), "session.start", "session")
    return Opened(token, user, expires_at)


def _admit(console: Console, request: Request) -> None:
    wait_seconds = console.sign_ins.admit(network_of(address_of(request)))
    if wait_seconds > 0:
        raise Refused(
            429,
            "too_many_sign_ins",
            "Too many tries to sign in from this address: wait a minute.",
            {"retry-after": str(math.ceil(wait_seconds))},
        )
