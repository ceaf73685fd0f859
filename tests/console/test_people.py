"""Accounts of one's own, and invitations: who gets in, under which name, and for how long."""

from __future__ import annotations

import json
import re

import psycopg
import pytest
import trio
from httpx2 import Response
from hypothesis import given
from hypothesis import strategies as st

from console.people import INVITATION_LASTS, INVITATIONS_MAX, account_names
from ledger.directory import Directory
from tests.fakes.console import PUBLIC_URL, Browser
from tests.fakes.people import Town, town

API = "/console/api"
ACCEPT = f"{API}/invitations/accept"


async def account_of(browser: Browser) -> str:
    """The name of a new account of one's own."""
    answer = await browser.post(f"{API}/accounts")
    assert answer.status_code == 201, answer.text
    name: str = answer.json()["account"]
    return name


async def invite(browser: Browser, account: str, email: str, role: str = "developer") -> str:
    """The token of a new invitation."""
    answer = await browser.post(
        f"{API}/accounts/{account}/invitations", json={"email": email, "role": role}
    )
    assert answer.status_code == 201, answer.text
    link: str = answer.json()["link"]
    start = f"{PUBLIC_URL}/console/invitation/"
    assert link.startswith(start)
    return link.removeprefix(start)


async def roles(browser: Browser) -> dict[str, str]:
    """One's accounts and roles."""
    found = (await browser.get(f"{API}/accounts")).json()["accounts"]
    return {one["account"]: one["role"] for one in found}


def code(answer: Response) -> tuple[int, str]:
    """What a refusal says to programs."""
    return answer.status_code, answer.json()["error"]["code"]


# -- accounts of one's own ------------------------------------------------------------------------


async def test_somebody_new_opens_an_account_without_credit(database: str) -> None:
    async with town(database) as place:
        ann = await place.person("ann")
        assert await roles(ann) == {}
        assert await account_of(ann) == "ann@example.test"
        assert await roles(ann) == {"ann@example.test": "owner"}
    with Directory(database) as directory:
        statement = directory.show_account("ann@example.test")
    assert (statement.balance, statement.account.tier) == (0, "")


async def test_one_account_is_enough(database: str) -> None:
    async with town(database) as place:
        ann = await place.person("ann")
        await account_of(ann)
        assert code(await ann.post(f"{API}/accounts")) == (409, "has_account")


async def test_who_asks_twice_at_once_gets_one(database: str) -> None:
    async with town(database) as place:
        ann = await place.person("ann")
        statuses: list[int] = []

        async def ask() -> None:
            statuses.append((await ann.post(f"{API}/accounts")).status_code)

        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(ask)
        assert sorted(statuses) == [201, 409, 409, 409, 409]
        assert len(await roles(ann)) == 1


async def test_a_name_that_is_taken_gets_a_number(database: str) -> None:
    with Directory(database) as directory:
        directory.create_account("ann@example.test")
        directory.create_account("ann@example.test-2")
    async with town(database) as place:
        ann = await place.person("ann")
        assert await account_of(ann) == "ann@example.test-3"
        assert (await ann.get(f"{API}/accounts/ann@example.test/members")).status_code == 404


async def test_nobody_gets_the_name_that_is_somebody_elses_address(database: str) -> None:
    """Or who credits that address pays the wrong account."""
    async with town(database) as place:
        eve = await place.person("eve", email="_bob@example.test")
        assert await account_of(eve) == "bob@example.test-2"
        bob = await place.person("bob")
        assert await account_of(bob) == "bob@example.test"


@pytest.mark.parametrize(
    ("email", "first"),
    [
        ("bob+x@example.test", "bob+x@example.test"),
        ("_bob@example.test", "bob@example.test-2"),
        ("bob!@example.test", "bob-@example.test-2"),
        ("b" * 60 + "@x.test", "b" * 44 + "-2"),
        ("b" * 57 + "@x.test", "b" * 57 + "@x.test"),
    ],
)
def test_only_a_whole_address_is_a_name_without_a_number(email: str, first: str) -> None:
    assert next(account_names(email)) == first


async def test_without_an_address_there_is_no_account(database: str) -> None:
    async with town(database) as place:
        for nameless in (
            await place.person("phone", email=None),
            await place.person("unverified", email_verified=False),
            await place.operator(),
        ):
            assert code(await nameless.post(f"{API}/accounts")) == (403, "no_email")


def test_no_account_is_called_like_a_page() -> None:
    assert next(account_names("-@api")) == "api-2"


@given(st.emails() | st.text(max_size=400))
def test_whatever_the_address_the_name_is_one_for_an_account(email: str) -> None:
    names = account_names(email)
    first, second, third = next(names), next(names), next(names)
    assert len({first, second, third}) == 3
    for name in (first, second, third):
        assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._@+-]{0,63}", name)


async def test_the_operator_belongs_everywhere(database: str) -> None:
    with Directory(database) as directory:
        directory.create_account("b")
        directory.create_account("a")
    async with town(database) as place:
        operator = await place.operator()
        assert await roles(operator) == {"a": "owner", "b": "owner"}
        answer = await operator.get(f"{API}/accounts/a/members")
        assert answer.json() == {"members": []}


# -- invitations ----------------------------------------------------------------------------------


async def test_an_invitation_lets_in_whom_it_is_for_once(database: str) -> None:
    async with town(database) as place:
        ann, bob = await place.person("ann"), await place.person("bob")
        account = await account_of(ann)
        token = await invite(ann, account, "Bob@Example.test", "admin")
        seen = (await bob.get(f"{API}/invitations/{token}")).json()
        assert seen["account"] == account
        assert (seen["email"], seen["role"]) == ("bob@example.test", "admin")
        assert seen["invited_by"] == "ann@example.test"
        answer = await bob.post(ACCEPT, json={"token": token})
        assert (answer.status_code, answer.json()) == (201, {"account": account, "role": "admin"})
        assert await roles(bob) == {account: "admin"}
        assert code(await bob.post(ACCEPT, json={"token": token})) == (404, "not_found")
        assert (await bob.get(f"{API}/invitations/{token}")).status_code == 404
        members = (await bob.get(f"{API}/accounts/{account}/members")).json()["members"]
        assert [(one["email"], one["role"]) for one in members] == [
            ("ann@example.test", "owner"),
            ("bob@example.test", "admin"),
        ]
        assert (await ann.get(f"{API}/accounts/{account}/invitations")).json() == {
            "invitations": []
        }


async def test_nobody_else_can_use_it(database: str) -> None:
    async with town(database) as place:
        ann = await place.person("ann")
        account = await account_of(ann)
        token = await invite(ann, account, "bob@example.test")
        for other in (
            await place.person("eve"),
            await place.person("mail", email=None, user_metadata={"email": "bob@example.test"}),
            await place.person("loud", email="bob@example.test", email_verified=False),
            await place.person("long", email="bob@example.test.evil.test"),
            await place.operator(),
        ):
            assert code(await other.post(ACCEPT, json={"token": token})) == (403, "other_email")
        nobody = await place.browser()
        assert code(await nobody.post(ACCEPT, json={"token": token})) == (401, "not_signed_in")
        assert (await nobody.get(f"{API}/invitations/{token}")).status_code == 401
        bob = await place.person("bob")
        assert (await bob.post(ACCEPT, json={"token": token})).status_code == 201


async def test_it_lasts_seven_days(database: str) -> None:
    async with town(database) as place:
        ann = await place.person("ann", seconds=30 * 86_400)
        account = await account_of(ann)
        late = await invite(ann, account, "bob@example.test")
        in_time = await invite(ann, account, "cat@example.test")
        place.wall.seconds += INVITATION_LASTS.total_seconds() - 1
        ann, cat = await place.person("ann"), await place.person("cat")
        assert (await cat.post(ACCEPT, json={"token": in_time})).status_code == 201
        place.wall.seconds += 1
        bob = await place.person("bob")
        assert code(await bob.post(ACCEPT, json={"token": late})) == (404, "not_found")
        listed = (await ann.get(f"{API}/accounts/{account}/invitations")).json()
        assert listed == {"invitations": []}


async def test_it_can_be_taken_back(database: str) -> None:
    async with town(database) as place:
        ann, bob, eve = [await place.person(name) for name in ("ann", "bob", "eve")]
        account = await account_of(ann)
        others = await account_of(eve)
        token = await invite(ann, account, "bob@example.test")
        url = f"{API}/accounts/{account}/invitations"
        (listed,) = (await ann.get(url)).json()["invitations"]
        one = listed["invitation_id"]
        assert token not in str(listed)
        elsewhere = f"{API}/accounts/{others}/invitations/{one}"
        assert (await eve.delete(elsewhere)).status_code == 404
        assert (await ann.delete(f"{url}/{one}")).status_code == 204
        assert (await ann.delete(f"{url}/{one}")).status_code == 404
        assert code(await bob.post(ACCEPT, json={"token": token})) == (404, "not_found")


async def test_a_new_one_takes_the_place_of_the_old(database: str) -> None:
    async with town(database) as place:
        ann, bob = await place.person("ann"), await place.person("bob")
        account = await account_of(ann)
        old = await invite(ann, account, "bob@example.test", "owner")
        new = await invite(ann, account, "BOB@example.test", "viewer")
        assert (await bob.post(ACCEPT, json={"token": old})).status_code == 404
        assert (await bob.post(ACCEPT, json={"token": new})).json()["role"] == "viewer"


async def test_a_member_needs_no_invitation(database: str) -> None:
    """And gets no other role by one: its link may have been made long before."""
    async with town(database) as place:
        ann, bob = await place.person("ann"), await place.person("bob")
        account = await account_of(ann)
        await bob.post(ACCEPT, json={"token": await invite(ann, account, "bob@example.test")})
        token = await invite(ann, account, "bob@example.test", "owner")
        assert code(await bob.post(ACCEPT, json={"token": token})) == (409, "member_already")
        assert await roles(bob) == {account: "developer"}


async def test_two_who_accept_at_once_become_one_member(database: str) -> None:
    async with town(database) as place:
        ann, bob, other = [await place.person(name) for name in ("ann", "bob", "bob")]
        account = await account_of(ann)
        token = await invite(ann, account, "bob@example.test")
        statuses: list[int] = []

        async def accept(browser: Browser) -> None:
            statuses.append((await browser.post(ACCEPT, json={"token": token})).status_code)

        async with trio.open_nursery() as nursery:
            for browser in (bob, other):
                nursery.start_soon(accept, browser)
        assert sorted(statuses) == [201, 404]


@pytest.mark.parametrize("role", ["viewer", None])
async def test_it_ends_with_the_say_of_who_made_it(database: str, role: str | None) -> None:
    """Or whoever is about to be removed would leave the door open behind them."""
    async with town(database) as place:
        ann, bob, cat = [await place.person(name) for name in ("ann", "bob", "cat")]
        account = await account_of(ann)
        token = await invite(ann, account, "bob@example.test", "admin")
        await bob.post(ACCEPT, json={"token": token})
        token = await invite(bob, account, "cat@example.test", "admin")
        kept = await invite(ann, account, "dan@example.test")
        user_id = (await bob.get(f"{API}/session")).json()["user"]["user_id"]
        member = f"{API}/accounts/{account}/members/{user_id}"
        if role is None:
            assert (await ann.delete(member)).status_code == 204
        else:
            assert (await ann.patch(member, json={"role": role})).status_code == 204
        assert (await cat.post(ACCEPT, json={"token": token})).status_code == 404
        dan = await place.person("dan")
        assert (await dan.post(ACCEPT, json={"token": kept})).status_code == 201


async def test_there_are_only_so_many(database: str) -> None:
    async with town(database) as place:
        ann = await place.person("ann")
        account = await account_of(ann)
        fill(database)
        url = f"{API}/accounts/{account}/invitations"
        wanted = {"email": "more@example.test", "role": "viewer"}
        assert code(await ann.post(url, json=wanted)) == (409, "too_many_invitations")
        assert len((await ann.get(url)).json()["invitations"]) == INVITATIONS_MAX
        await invite(ann, account, "one1@example.test")  # in the place of another


def fill(database: str) -> None:
    """As many open invitations as there may be."""
    with psycopg.connect(database) as connection:
        connection.execute(
            "INSERT INTO console.invitation"
            " (account_id, email, role, token_hash, invited_by, created_at, expires_at)"
            " SELECT m.account_id, format('one%%s@example.test', n), 'viewer',"
            "        sha256(n::text::bytea), m.user_id, now(), '9999-01-01'"
            "   FROM console.member m, generate_series(1, %s) AS n",
            [INVITATIONS_MAX],
        )


NO_INVITATIONS: list[dict[str, object]] = [
    {},
    {"email": "bob", "role": "viewer"},
    {"email": "", "role": "viewer"},
    {"email": "@", "role": "viewer"},
    {"email": "a b@c", "role": "viewer"},
    {"email": "an\u212a@c", "role": "viewer"},
    {"email": "a@b\u0000", "role": "viewer"},
    {"email": "a@b\n", "role": "viewer"},
    {"email": "\ud800@b", "role": "viewer"},
    {"email": "a" * 400 + "@b", "role": "viewer"},
    {"email": ["a@b"], "role": "viewer"},
    {"email": "a@b", "role": "king"},
    {"email": "a@b", "role": None},
    {"email": "a@b"},
]


async def test_what_is_no_invitation_is_said(database: str) -> None:
    async with town(database) as place:
        ann = await place.person("ann")
        url = f"{API}/accounts/{await account_of(ann)}/invitations"
        for body in NO_INVITATIONS:
            answer = await ann.post(url, content=json.dumps(body).encode())
            assert code(answer) == (400, "invalid_request"), body


async def test_an_unknown_token_invites_nobody(database: str) -> None:
    async with town(database) as place:
        ann = await place.person("ann")
        for token in ("x", "%00", "%ed%a0%80", "x" * 5000):
            assert (await ann.get(f"{API}/invitations/{token}")).status_code == 404


async def test_an_unknown_number_is_nobody(database: str) -> None:
    async with town(database) as place:
        ann = await place.person("ann")
        account = await account_of(ann)
        for number in ("0", "-1", "x", str(2**63), str(2**63 - 1), "1e3", "%00"):
            for path in ("members", "invitations"):
                answer = await ann.delete(f"{API}/accounts/{account}/{path}/{number}")
                assert answer.status_code in {400, 404}, (path, number)


async def somebody_gone(place: Town) -> tuple[Browser, Browser, str]:
    """An owner, whom they have just removed, and from where."""
    ann, bob = await place.person("ann"), await place.person("bob")
    account = await account_of(ann)
    await bob.post(ACCEPT, json={"token": await invite(ann, account, "bob@example.test", "admin")})
    user_id = (await bob.get(f"{API}/session")).json()["user"]["user_id"]
    await ann.delete(f"{API}/accounts/{account}/members/{user_id}")
    return ann, bob, account


async def test_who_was_removed_is_out_at_once_and_can_come_back(database: str) -> None:
    async with town(database) as place:
        ann, bob, account = await somebody_gone(place)
        assert (await bob.get(f"{API}/accounts/{account}/members")).status_code == 404
        assert await roles(bob) == {}
        token = await invite(ann, account, "bob@example.test", "viewer")
        await bob.post(ACCEPT, json={"token": token})
        assert await roles(bob) == {account: "viewer"}
