"""People in Postgres: users, members of accounts, invitations, sessions, sign-in links, audit log.

One statement a function, as far as it goes. What belongs together is put into a transaction by the
caller, who also decides what may be done and says what time it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from psycopg.rows import class_row
from psycopg.types.json import Jsonb

from console.store import Connection

Role = Literal["owner", "admin", "developer", "viewer"]

OUR_ISSUER = ""  # of users that this deployment itself signs in
OPERATOR = "operator"

SESSIONS_AT_ONCE = 1000  # that have ended are forgotten

CALLED = "coalesce(nullif(u.email, ''), nullif(u.name, ''), 'user ' || u.user_id)"
"""What a user `u` is called where people read it."""

_USER = "u.user_id, u.issuer, u.subject, u.email, u.name, u.is_operator"
_USER_NAME = f"SELECT {CALLED} FROM console.user u WHERE u.user_id = %s"  # noqa: S608
_FIND_USER = f"SELECT {_USER} FROM console.user u WHERE (u.issuer, u.subject) = (%s, %s)"  # noqa: S608
_SAVE_USER = f"""
INSERT INTO console.user AS u (issuer, subject, email, name, is_operator, created_at)
VALUES (%(issuer)s, %(subject)s, lower(%(email)s), %(name)s, %(is_operator)s, %(now)s)
ON CONFLICT (issuer, subject) DO UPDATE SET email = excluded.email, name = excluded.name
RETURNING {_USER}
"""  # noqa: S608
_FIND_SESSION = f"""
SELECT {_USER}, s.seen_at, s.expires_at FROM console.session s JOIN console.user u USING (user_id)
 WHERE s.token_hash = %(token_hash)s AND s.expires_at > %(now)s AND s.seen_at > %(seen_after)s
"""  # noqa: S608
_OPEN_SESSION = """
INSERT INTO console.session
  (token_hash, user_id, address, created_at, seen_at, expires_at, made_from)
VALUES (%(token_hash)s, %(user_id)s, %(address)s, %(now)s, %(now)s, %(expires_at)s, %(made_from)s)
"""
# Those that nothing was made from: what ends with a session would make a piece larger. The array is
# made once, so that the limit is one of the whole statement.
_FORGET_SESSIONS = """
DELETE FROM console.session WHERE token_hash = ANY (ARRAY(
  SELECT s.token_hash FROM console.session s
   WHERE s.expires_at <= %(now)s
     AND NOT EXISTS (SELECT FROM console.session made WHERE made.made_from = s.token_hash)
   LIMIT %(rows)s FOR UPDATE SKIP LOCKED))
"""
_HAS_PROGRAMS = """
SELECT count(*) >= %(programs)s FROM (
  SELECT FROM console.session
   WHERE user_id = %(user_id)s AND made_from IS NOT NULL
     AND expires_at > %(now)s AND seen_at > %(seen_after)s
   LIMIT %(programs)s) AS lasting
"""
_MEMBERSHIPS = """
SELECT a.account_id, a.name AS account, m.role
  FROM console.member m JOIN directory.account a USING (account_id)
 WHERE m.user_id = %s ORDER BY a.name
"""
_ALL_ACCOUNTS = """
SELECT account_id, name AS account, 'owner' AS role FROM directory.account ORDER BY name
"""
_FIND_MEMBERSHIP = """
SELECT a.account_id, a.name AS account, CASE WHEN %(is_operator)s THEN 'owner' ELSE m.role END AS role
  FROM directory.account a
  LEFT JOIN console.member m ON m.account_id = a.account_id AND m.user_id = %(user_id)s
 WHERE a.name = %(account)s AND (%(is_operator)s OR m.user_id IS NOT NULL)
"""  # noqa: E501
_MEMBERS = """
SELECT u.user_id, u.email, u.name, m.role, m.created_at AS since
  FROM console.member m JOIN console.user u USING (user_id)
 WHERE m.account_id = %s ORDER BY m.created_at, u.user_id
"""
_INVITATION = f"""
SELECT i.invitation_id, i.account_id, a.name AS account, i.email, i.role, {CALLED} AS invited_by,
       i.created_at, i.expires_at, i.accepted_at, i.revoked_at
  FROM console.invitation i
  JOIN directory.account a USING (account_id)
  JOIN console.user u ON u.user_id = i.invited_by
"""  # noqa: S608
_INVITE = """
INSERT INTO console.invitation
  (account_id, email, role, token_hash, invited_by, created_at, expires_at)
VALUES (%(account_id)s, lower(%(email)s), %(role)s, %(token_hash)s, %(invited_by)s, %(now)s,
        %(expires_at)s)
RETURNING invitation_id
"""
_AUDIT = """
SELECT audit_id, at, actor, address, action, target, detail
  FROM console.audit WHERE account_id = %(account_id)s AND audit_id < %(before)s
 ORDER BY audit_id DESC LIMIT %(rows)s
"""
_ADD_AUDIT = """
INSERT INTO console.audit (account_id, user_id, actor, address, action, target, detail)
VALUES (%s, %s, %s, %s, %s, %s, %s)
"""


# -- users and sessions ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class User:
    """Somebody an issuer knows. `email` is empty where it vouches for none."""

    user_id: int
    issuer: str
    subject: str
    email: str
    name: str
    is_operator: bool


@dataclass(frozen=True, slots=True)
class Session:
    """A session that has neither ended nor been idle for too long, and whose it is."""

    user: User
    seen_at: datetime
    expires_at: datetime


def save_user(
    connection: Connection, issuer: str, subject: str, email: str, name: str, now: datetime
) -> User:
    """The user whom the issuer knows by `subject`, as it says they are called now."""
    with connection.cursor(row_factory=class_row(User)) as cursor:
        known = cursor.execute(_FIND_USER, [issuer, subject]).fetchone()
        if known is not None and (known.email, known.name) == (email.lower(), name):
            return known  # nearly always
        facts = {"issuer": issuer, "subject": subject, "email": email, "name": name, "now": now}
        saved = cursor.execute(_SAVE_USER, {**facts, "is_operator": False}).fetchone()
        assert saved is not None, "an upsert returns its row"
        return saved


def operator(connection: Connection, now: datetime) -> User:
    """The local operator."""
    facts = {"issuer": OUR_ISSUER, "subject": OPERATOR, "email": "", "name": OPERATOR, "now": now}
    with connection.cursor(row_factory=class_row(User)) as cursor:
        saved = cursor.execute(_SAVE_USER, {**facts, "is_operator": True}).fetchone()
        assert saved is not None, "an upsert returns its row"
        return saved


def user_name(connection: Connection, user_id: int) -> str:
    """What a user is called."""
    ((name,),) = connection.execute(_USER_NAME, [user_id]).fetchall()
    assert isinstance(name, str)
    return name


def open_session(
    connection: Connection,
    token_hash: bytes,
    user_id: int,
    address: str,
    now: datetime,
    expires_at: datetime,
    made_from: bytes | None,
) -> None:
    """Begin a session, and forget some of those that have ended: more than begin, and never so many
    that whoever signs in would wait for it. It ends with the one it is made from."""
    connection.execute(_FORGET_SESSIONS, {"now": now, "rows": SESSIONS_AT_ONCE})
    connection.execute(
        _OPEN_SESSION,
        {
            "token_hash": token_hash,
            "user_id": user_id,
            "address": address,
            "now": now,
            "expires_at": expires_at,
            "made_from": made_from,
        },
    )


def has_programs(
    connection: Connection, user_id: int, programs: int, now: datetime, seen_after: datetime
) -> bool:
    """Whether so many sessions of a user, or more, that were made from others still last."""
    facts = {"user_id": user_id, "programs": programs, "now": now, "seen_after": seen_after}
    ((found,),) = connection.execute(_HAS_PROGRAMS, facts).fetchall()
    assert isinstance(found, bool)
    return found


def hold_session(connection: Connection, token_hash: bytes) -> None:
    """Let nobody end a session, until the transaction does."""
    connection.execute(
        "SELECT FROM console.session WHERE token_hash = %s FOR KEY SHARE", [token_hash]
    )


def find_session(
    connection: Connection, token_hash: bytes, now: datetime, seen_after: datetime
) -> Session | None:
    """The session of a token, if it has not ended and was used after `seen_after`."""
    row = connection.execute(
        _FIND_SESSION, {"token_hash": token_hash, "now": now, "seen_after": seen_after}
    ).fetchone()
    if row is None:
        return None
    *user, seen_at, expires_at = row
    return Session(User(*user), seen_at, expires_at)


def touch_session(connection: Connection, token_hash: bytes, now: datetime) -> None:
    """Remember that a session was used."""
    connection.execute(
        "UPDATE console.session SET seen_at = greatest(seen_at, %s) WHERE token_hash = %s",
        [now, token_hash],
    )


def end_session(connection: Connection, token_hash: bytes) -> None:
    """Sign out here, and of whatever was made from this session."""
    connection.execute("DELETE FROM console.session WHERE token_hash = %s", [token_hash])


def end_sessions(connection: Connection, user_id: int) -> int:
    """Sign a user out everywhere; how many sessions that were."""
    return connection.execute("DELETE FROM console.session WHERE user_id = %s", [user_id]).rowcount


def add_link(
    connection: Connection, token_hash: bytes, now: datetime, expires_at: datetime
) -> None:
    """Keep a new sign-in link, and forget those that nobody has used in time."""
    connection.execute("DELETE FROM console.sign_in_link WHERE expires_at <= %s", [now])
    connection.execute(
        "INSERT INTO console.sign_in_link (token_hash, created_at, expires_at) VALUES (%s, %s, %s)",
        [token_hash, now, expires_at],
    )


def use_link(connection: Connection, token_hash: bytes, now: datetime) -> bool:
    """Use a sign-in link up; whether it was good."""
    gone = connection.execute(
        "DELETE FROM console.sign_in_link WHERE token_hash = %s AND expires_at > %s",
        [token_hash, now],
    )
    return gone.rowcount == 1


# -- members --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Membership:
    """An account somebody belongs to."""

    account_id: int
    account: str
    role: Role


@dataclass(frozen=True, slots=True)
class MemberRow:
    """Somebody who belongs to an account."""

    user_id: int
    email: str
    name: str
    role: Role
    since: datetime


def memberships(connection: Connection, user_id: int, *, is_operator: bool) -> Sequence[Membership]:
    """The accounts of a user by name: all of them, for an operator."""
    with connection.cursor(row_factory=class_row(Membership)) as cursor:
        if is_operator:
            return cursor.execute(_ALL_ACCOUNTS).fetchall()
        return cursor.execute(_MEMBERSHIPS, [user_id]).fetchall()


def find_membership(
    connection: Connection, account: str, user_id: int, *, is_operator: bool
) -> Membership | None:
    """The account of that name, for who belongs to it."""
    facts = {"account": account, "user_id": user_id, "is_operator": is_operator}
    with connection.cursor(row_factory=class_row(Membership)) as cursor:
        return cursor.execute(_FIND_MEMBERSHIP, facts).fetchone()


def members(connection: Connection, account_id: int) -> Sequence[MemberRow]:
    """Everybody in an account, who came first first."""
    with connection.cursor(row_factory=class_row(MemberRow)) as cursor:
        return cursor.execute(_MEMBERS, [account_id]).fetchall()


def open_account(connection: Connection, name: str) -> int | None:
    """The id of a new account without credit; None where there is one of that name.

    The directory makes accounts in a transaction of its own; this one's first member has to come
    with it.
    """
    row = connection.execute(
        "INSERT INTO directory.account (name) VALUES (%s)"
        " ON CONFLICT (name) DO NOTHING RETURNING account_id",
        [name],
    ).fetchone()
    return None if row is None else row[0]


def lock_user(connection: Connection, user_id: int) -> None:
    """Let nobody else in who does the same for this user, until the transaction ends. What only
    names the user, such as an entry of the audit log, need not wait."""
    connection.execute("SELECT FROM console.user WHERE user_id = %s FOR NO KEY UPDATE", [user_id])


def lock_roles(connection: Connection, account_id: int) -> Mapping[int, Role]:
    """The role of each member by user id. Nobody else can change them in this transaction."""
    rows = connection.execute(
        "SELECT user_id, role FROM console.member WHERE account_id = %s"
        " ORDER BY user_id FOR UPDATE",
        [account_id],
    )
    return dict(rows.fetchall())


def add_member(
    connection: Connection, account_id: int, user_id: int, role: Role, now: datetime
) -> bool:
    """Let somebody in; False where they are in already."""
    added = connection.execute(
        "INSERT INTO console.member (account_id, user_id, role, created_at)"
        " VALUES (%s, %s, %s, %s) ON CONFLICT DO NOTHING",
        [account_id, user_id, role, now],
    )
    return added.rowcount == 1


def set_role(connection: Connection, account_id: int, user_id: int, role: Role) -> None:
    """Give a member another role."""
    connection.execute(
        "UPDATE console.member SET role = %s WHERE account_id = %s AND user_id = %s",
        [role, account_id, user_id],
    )


def remove_member(connection: Connection, account_id: int, user_id: int) -> None:
    """Let somebody out."""
    connection.execute(
        "DELETE FROM console.member WHERE account_id = %s AND user_id = %s", [account_id, user_id]
    )


# -- invitations ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Invitation:
    """Somebody who may become a member."""

    invitation_id: int
    account_id: int
    account: str
    email: str
    role: Role
    invited_by: str
    created_at: datetime
    expires_at: datetime
    accepted_at: datetime | None
    revoked_at: datetime | None

    def is_open(self, now: datetime) -> bool:
        """Whether it may still be accepted."""
        return self.accepted_at is None and self.revoked_at is None and now < self.expires_at


def invite(
    connection: Connection,
    account_id: int,
    email: str,
    role: Role,
    token_hash: bytes,
    invited_by: int,
    now: datetime,
    expires_at: datetime,
) -> int:
    """Invite an e-mail address. Its open invitations to the account are revoked."""
    connection.execute(
        "UPDATE console.invitation SET revoked_at = %s WHERE account_id = %s"
        " AND email = lower(%s) AND accepted_at IS NULL AND revoked_at IS NULL",
        [now, account_id, email],
    )
    row = connection.execute(
        _INVITE,
        {
            "account_id": account_id,
            "email": email,
            "role": role,
            "token_hash": token_hash,
            "invited_by": invited_by,
            "now": now,
            "expires_at": expires_at,
        },
    ).fetchone()
    assert row is not None, "an insert returns its row"
    invitation_id: int = row[0]
    return invitation_id


def open_invitations(
    connection: Connection, account_id: int, now: datetime
) -> Sequence[Invitation]:
    """The invitations to an account that may still be accepted, newest first."""
    with connection.cursor(row_factory=class_row(Invitation)) as cursor:
        return cursor.execute(
            _INVITATION + " WHERE i.account_id = %s AND i.expires_at > %s"
            " AND i.accepted_at IS NULL AND i.revoked_at IS NULL ORDER BY i.invitation_id DESC",
            [account_id, now],
        ).fetchall()


def find_invitation(connection: Connection, token_hash: bytes) -> Invitation | None:
    """The invitation of a token, whatever became of it. It is locked until the transaction ends."""
    with connection.cursor(row_factory=class_row(Invitation)) as cursor:
        return cursor.execute(
            _INVITATION + " WHERE i.token_hash = %s FOR UPDATE OF i", [token_hash]
        ).fetchone()


def accept_invitation(connection: Connection, invitation_id: int, now: datetime) -> None:
    """Close an invitation: whom it was for is in."""
    connection.execute(
        "UPDATE console.invitation SET accepted_at = %s WHERE invitation_id = %s",
        [now, invitation_id],
    )


def revoke_invitations_of(
    connection: Connection, account_id: int, user_id: int, now: datetime
) -> None:
    """Take back what a member has offered others."""
    connection.execute(
        "UPDATE console.invitation SET revoked_at = %s WHERE account_id = %s AND invited_by = %s"
        " AND accepted_at IS NULL AND revoked_at IS NULL",
        [now, account_id, user_id],
    )


def revoke_invitation(
    connection: Connection, account_id: int, invitation_id: int, now: datetime
) -> tuple[str, Role] | None:
    """Take an open invitation back; whom it was for, and as what."""
    row = connection.execute(
        "UPDATE console.invitation SET revoked_at = %s WHERE account_id = %s AND invitation_id = %s"
        " AND accepted_at IS NULL AND revoked_at IS NULL RETURNING email, role",
        [now, account_id, invitation_id],
    ).fetchone()
    return None if row is None else (row[0], row[1])


# -- the audit log --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class AuditRow:
    """One change that somebody has made."""

    audit_id: int
    at: datetime
    actor: str
    address: str
    action: str
    target: str
    detail: Mapping[str, str | int]


def add_audit(
    connection: Connection,
    account_id: int | None,
    user_id: int | None,
    actor: str,
    address: str,
    action: str,
    target: str,
    detail: Mapping[str, str | int],
) -> None:
    """Add an entry, for good."""
    connection.execute(
        _ADD_AUDIT, [account_id, user_id, actor, address, action, target, Jsonb(dict(detail))]
    )


def audit(connection: Connection, account_id: int, before: int, rows: int) -> Sequence[AuditRow]:
    """Up to `rows` entries of an account below the id `before`, newest first."""
    with connection.cursor(row_factory=class_row(AuditRow)) as cursor:
        return cursor.execute(
            _AUDIT, {"account_id": account_id, "before": before, "rows": rows}
        ).fetchall()
