"""The audit log: who changed what, and from where.

    with connection.transaction():
        …the change…
        audit.note(connection, member, "key.revoke", f"key {key_id}")

One entry for each change, in the transaction of the change: neither is there without the other, and
the database lets nobody alter it afterwards. What was refused changed nothing and is not noted.

Actions are `thing.verb` (`key.create`, `member.role`, `session.start`). `target` says what it was
done to in words that still mean something when it is gone; `detail` holds what else matters, such
as the old and the new value, and never a secret.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from console.access import Caller, Member
from console.store import Connection, people

NOTHING: Mapping[str, str | int] = {}


@dataclass(frozen=True, slots=True)
class Actor:
    """Who is neither member nor caller, such as an API key or this program itself."""

    name: str
    address: str
    account_id: int | None = None


def note(
    connection: Connection,
    who: Member | Caller | Actor,
    action: str,
    target: str,
    detail: Mapping[str, str | int] = NOTHING,
) -> None:
    """Add an entry; call it inside the transaction of the change."""
    account_id = None if isinstance(who, Caller) else who.account_id
    if isinstance(who, Actor):
        people.add_audit(
            connection, account_id, None, who.name, who.address, action, target, detail
        )
        return
    caller = who.caller if isinstance(who, Member) else who
    people.add_audit(
        connection,
        account_id,
        caller.user_id,
        caller.called,
        caller.address,
        action,
        target,
        detail,
    )
