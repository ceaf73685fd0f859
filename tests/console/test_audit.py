"""The audit log: one entry for each change, none for what was refused, and nobody alters it."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime

import psycopg
import pytest
from psycopg import errors

from console import audit
from console.access import Caller, Member
from console.store import people
from ledger.connection import connect
from ledger.directory import Directory
from tests.fakes.console import Browser
from tests.fakes.people import town

API = "/console/api"


async def entries(browser: Browser, account: str, **query: int) -> list[dict[str, object]]:
    answer = await browser.get(f"{API}/accounts/{account}/audit", params=query)
    assert answer.status_code == 200, answer.text
    found: list[dict[str, object]] = answer.json()["entries"]
    return found


async def test_every_change_is_noted_with_who_what_and_from_where(database: str) -> None:
    async with town(database) as place:
        ann, bob = await place.person("ann"), await place.person("bob")
        account = (await ann.post(f"{API}/accounts")).json()["account"]
        base = f"{API}/accounts/{account}"
        invitation = {"email": "bob@example.test", "role": "admin"}
        made = (await ann.post(f"{base}/invitations", json=invitation)).json()
        token = made["link"].rpartition("/")[2]
        await bob.post(f"{API}/invitations/accept", json={"token": token})
        bob_id = (await bob.get(f"{API}/session")).json()["user"]["user_id"]
        await ann.patch(f"{base}/members/{bob_id}", json={"role": "viewer"})
        await ann.patch(f"{base}/members/{bob_id}", json={"role": "viewer"})  # no change
        again = (await ann.post(f"{base}/invitations", json=invitation)).json()
        await ann.delete(f"{base}/invitations/{again['invitation_id']}")
        await ann.delete(f"{base}/members/{bob_id}")
        # refused: nothing was changed
        await bob.patch(f"{base}/members/{bob_id}", json={"role": "owner"})
        await ann.delete(f"{base}/members/999")
        found = await entries(ann, account)
        assert token not in str(found)
        addresses = {entry["actor"]: entry["address"] for entry in found}
        assert len(set(addresses.values())) == 2
    said = [(one["actor"], one["action"], one["target"], one["detail"]) for one in found]
    ann_, bob_ = "ann@example.test", "bob@example.test"
    assert said == [
        (ann_, "member.remove", bob_, {"role": "viewer"}),
        (ann_, "invitation.revoke", bob_, {"role": "admin"}),
        (ann_, "invitation.create", bob_, {"role": "admin"}),
        (ann_, "member.role", bob_, {"before": "admin", "after": "viewer"}),
        (bob_, "invitation.accept", bob_, {"role": "admin"}),
        (ann_, "invitation.create", bob_, {"role": "admin"}),
        (ann_, "account.create", account, {}),
    ]


async def test_signing_in_and_out_is_noted_too(database: str) -> None:
    async with town(database) as place:
        ann = await place.person("ann")
        await ann.delete(f"{API}/session", params={"everywhere": True})
        operator = await place.operator()
        await operator.delete(f"{API}/session")
    with psycopg.connect(database) as connection:
        rows = connection.execute(
            "SELECT actor, action, account_id FROM console.audit ORDER BY audit_id"
        ).fetchall()
    assert rows == [
        ("ann@example.test", "session.start", None),
        ("ann@example.test", "session.end_all", None),
        ("operator", "session.start", None),
        ("operator", "session.end", None),
    ]


async def test_pages_follow_one_another_without_gap_or_overlap(database: str) -> None:
    async with town(database) as place:
        ann = await place.person("ann")
        account = (await ann.post(f"{API}/accounts")).json()["account"]
        with Directory(database) as directory:
            account_id = directory.show_account(account).account.account_id
            other_id = directory.create_account("other").account_id
        with connect(database) as connection:
            for number in range(25):
                for each in (account_id, other_id):
                    actor = audit.Actor("key 7", "192.0.2.1", each)
                    audit.note(connection, actor, "key.create", str(number))
        seen: list[object] = []
        before: int | None = None
        pages = 0
        while True:
            query = {"limit": 10} | ({} if before is None else {"before": before})
            page = (await ann.get(f"{API}/accounts/{account}/audit", params=query)).json()
            seen += [entry["target"] for entry in page["entries"]]
            pages += 1
            before = page["next_before"]
            if before is None:
                break
    assert seen == [str(number) for number in reversed(range(25))] + [account]
    assert pages == 3


async def test_a_page_that_makes_no_sense_is_refused(database: str) -> None:
    async with town(database) as place:
        ann = await place.person("ann")
        account = (await ann.post(f"{API}/accounts")).json()["account"]
        url = f"{API}/accounts/{account}/audit"
        for query in ("limit=0", "limit=201", "limit=x", "before=0", f"before={2**63}", "before="):
            answer = await ann.get(f"{url}?{query}")
            assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_request")


async def test_a_last_page_that_is_full_says_so(database: str) -> None:
    async with town(database) as place:
        ann = await place.person("ann")
        account = (await ann.post(f"{API}/accounts")).json()["account"]
        url = f"{API}/accounts/{account}/audit"
        page = (await ann.get(url, params={"limit": 1})).json()
    assert len(page["entries"]) == 1
    assert page["next_before"] is None


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE console.audit SET actor = 'eve'",
        "DELETE FROM console.audit",
        "TRUNCATE console.audit",
        "ALTER TABLE console.audit DISABLE TRIGGER audit_append_only",
    ],
)
def test_nobody_alters_an_entry(database: str, statement: str) -> None:
    with connect(database) as connection:
        audit.note(connection, audit.Actor("key 7", "192.0.2.1"), "key.create", "key 8")
        with pytest.raises(errors.InsufficientPrivilege):
            connection.execute(statement.encode())
    if statement.startswith(("UPDATE", "DELETE")):
        with psycopg.connect(database) as owner, pytest.raises(errors.DatabaseError):
            owner.execute(statement.encode())


def test_a_change_that_fails_leaves_no_entry(database: str) -> None:
    now = datetime.now(UTC)
    with connect(database) as connection:
        user = people.operator(connection, now)
        who = Caller(user.user_id, "", user.name, True, None, "127.0.0.1")
        with suppress(ZeroDivisionError), connection.transaction():
            audit.note(connection, who, "x.y", "z")
            raise ZeroDivisionError
        rows = connection.execute("SELECT count(*) FROM console.audit").fetchone()
    assert rows == (0,)


def test_who_has_no_name_is_noted_by_number(database: str) -> None:
    with Directory(database) as directory, connect(database) as connection:
        account_id = directory.create_account("a").account_id
        user = people.save_user(connection, "i", "s", "", "", datetime.now(UTC))
        caller = Caller(user.user_id, "", "", False, None, "192.0.2.1")
        audit.note(connection, Member(caller, account_id, "a", "viewer"), "x.y", "z", {"n": 1})
        (entry,) = people.audit(connection, account_id, 2**62, 10)
    assert (entry.actor, entry.detail) == (f"user {user.user_id}", {"n": 1})
