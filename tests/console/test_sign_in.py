"""Signing in and out: links work once, here and in time; sessions end when they should."""

from __future__ import annotations

import psycopg
import pytest
import trio

from console import tokens
from console.access import SESSION_IDLE
from console.links import LINK_LASTS, is_local, local_url
from console.sign_in import PROGRAMS_MAX, SESSION_LASTS
from console.store.people import SESSIONS_AT_ONCE
from tests.fakes.console import Browser
from tests.fakes.issuer import SECRET, by_secret
from tests.fakes.people import town

SESSION = "/console/api/session"
LINK = f"{SESSION}/link"
EVERYWHERE = "0.0.0.0"  # noqa: S104 - as operators write it


async def is_signed_in(browser: Browser) -> bool:
    answer = await browser.get(SESSION)
    assert answer.status_code in {200, 401}
    return answer.status_code == 200


def token_of(browser: Browser) -> str:
    token = browser.cookies.get("farebox_session")
    assert token is not None
    return token


# -- links ----------------------------------------------------------------------------------------


async def test_a_link_signs_in_the_operator_once(database: str) -> None:
    async with town(database) as place:
        link = await place.link()
        first = await place.browser("127.0.0.1")
        answer = await first.post(LINK, json={"token": link})
        assert answer.status_code == 201
        assert answer.json()["user"] == {
            "user_id": 1,
            "email": "",
            "name": "operator",
            "is_operator": True,
        }
        assert await is_signed_in(first)
        second = await place.browser("127.0.0.1")
        answer = await second.post(LINK, json={"token": link})
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, "sign_in_link_invalid")
        assert not await is_signed_in(second)


async def test_two_links_sign_in_one_operator(database: str) -> None:
    async with town(database) as place:
        both = [await place.operator(), await place.operator()]
        users = [(await browser.get(SESSION)).json()["user"]["user_id"] for browser in both]
    assert users == [1, 1]


async def test_a_link_that_is_late_is_of_no_use(database: str) -> None:
    async with town(database) as place:
        link = await place.link()
        place.wall.seconds += LINK_LASTS.total_seconds() - 1
        last = await place.link()
        place.wall.seconds += 1
        browser = await place.browser("127.0.0.1")
        assert (await browser.post(LINK, json={"token": link})).status_code == 401
        assert (await browser.post(LINK, json={"token": last})).status_code == 201


@pytest.mark.parametrize("address", ["127.0.0.1", "127.8.9.10", "::1", "::ffff:127.0.0.1"])
async def test_a_link_works_on_this_machine(database: str, address: str) -> None:
    async with town(database) as place:
        browser = await place.browser(address)
        answer = await browser.post(LINK, json={"token": await place.link()})
    assert answer.status_code == 201


@pytest.mark.parametrize(
    ("address", "headers"),
    [
        ("192.0.2.7", {}),
        ("10.0.0.1", {}),
        ("2001:db8::1", {}),
        ("::ffff:192.0.2.7", {}),
        ("localhost", {}),
        ("127.0.0.1.example.test", {}),
        (" ", {}),
        ("127.0.0.1", {"x-forwarded-for": "127.0.0.1"}),
        ("127.0.0.1", {"forwarded": "for=192.0.2.7"}),
        ("127.0.0.1", {"x-real-ip": "192.0.2.7"}),
        ("192.0.2.7", {"x-forwarded-for": "127.0.0.1"}),
    ],
)
async def test_a_link_from_elsewhere_is_refused_and_not_used_up(
    database: str, address: str, headers: dict[str, str]
) -> None:
    async with town(database) as place:
        link = await place.link()
        elsewhere = await place.browser(address)
        answer = await elsewhere.post(LINK, json={"token": link}, headers=headers)
        assert answer.status_code == 403
        assert answer.json()["error"]["code"] == "sign_in_link_local_only"
        here = await place.browser("127.0.0.1")
        assert (await here.post(LINK, json={"token": link})).status_code == 201


async def test_looking_at_a_link_does_not_use_it_up(database: str) -> None:
    """Whatever looks at links in messages may ask with HEAD, and pages elsewhere may send that."""
    async with town(database) as place:
        link = await place.link()
        browser = await place.browser("127.0.0.1")
        for method in ("HEAD", "GET"):
            looked = await browser.request(method, f"/console/sign-in/{link}")
            assert (looked.status_code, "set-cookie" in looked.headers) == (200, False)
        assert (await browser.post(f"/console/sign-in/{link}")).status_code == 303
        assert await is_signed_in(browser)


async def test_looking_at_the_sign_in_page_is_no_try(database: str) -> None:
    """A page elsewhere could have somebody's browser use their tries up."""
    async with town(database) as place:
        browser = await place.browser()
        for _ in range(20):
            elsewhere = {"sec-fetch-site": "cross-site"}
            looked = await browser.head("/console/sign-in", headers=elsewhere)
            assert looked.status_code == 200
        answer = await browser.post("/console/sign-in", data={"token": place.token("ada")})
        assert answer.status_code == 303


@pytest.mark.parametrize(
    ("form", "status"), [(b"token=" + b"x" * 70_000, 413), (b"token=\xff", 400)]
)
async def test_a_sign_in_form_that_cannot_be_read_is_refused(
    database: str, form: bytes, status: int
) -> None:
    async with town(database) as place:
        browser = await place.browser()
        kind = {"content-type": "application/x-www-form-urlencoded"}
        answer = await browser.post("/console/sign-in", content=form, headers=kind)
    assert answer.status_code == status


@pytest.mark.parametrize("token", ["", "x", "\u0000", "\ud800", "é", "../..", "x" * 101])
async def test_what_is_no_link_is_refused(database: str, token: str) -> None:
    async with town(database) as place:
        browser = await place.browser("127.0.0.1")
        answer = await browser.post(LINK, content=b'{"token": "%s"}' % escaped(token))
    assert answer.status_code in {400, 401}


def escaped(text: str) -> bytes:
    return "".join(f"\\u{ord(character):04x}" for character in text).encode()


def test_a_machines_own_address_is_local() -> None:
    """Who calls the one address that is listened on from the same machine comes from there."""
    assert is_local("10.0.0.5", "http://10.0.0.5:8080")
    assert not is_local("10.0.0.6", "http://10.0.0.5:8080")
    assert not is_local("", "")


@pytest.mark.parametrize(
    ("public_url", "host", "port", "base"),
    [
        ("", "127.0.0.1", 8080, "http://127.0.0.1:8080"),
        ("", EVERYWHERE, 80, "http://127.0.0.1:80"),
        ("", "::", 8080, "http://[::1]:8080"),
        ("https://llm.example.test", EVERYWHERE, 8080, "http://127.0.0.1:8080"),
        ("http://localhost:3000/", "127.0.0.1", 8080, "http://localhost:3000"),
        ("", "10.0.0.5", 8080, "http://10.0.0.5:8080"),
    ],
)
def test_a_link_leads_to_this_machine(public_url: str, host: str, port: int, base: str) -> None:
    assert local_url(public_url, host, port) == base


# -- sessions -------------------------------------------------------------------------------------


async def test_a_session_is_a_cookie_that_scripts_and_other_sites_do_not_get(
    database: str,
) -> None:
    async with town(database) as place:
        browser = await place.browser()
        bearer = {"authorization": f"Bearer {place.token('ann')}"}
        answer = await browser.post(SESSION, headers=bearer)
        cookie = answer.headers["set-cookie"].lower()
        assert answer.json()["user"]["email"] == "ann@example.test"
    parts = {part.strip().partition("=")[0] for part in cookie.split(";")}
    assert parts == {"farebox_session", "max-age", "path", "httponly", "samesite"}
    assert "samesite=lax" in cookie
    assert "path=/console" in cookie


async def test_a_cookie_over_tls_stays_there(database: str) -> None:
    async with town(database, "https://llm.example.test") as place:
        browser = await place.browser()
        bearer = {"authorization": f"Bearer {place.token('ann')}"}
        answer = await browser.post(SESSION, headers=bearer)
        assert "; secure" in answer.headers["set-cookie"].lower()
        assert "; secure" in (await browser.delete(SESSION)).headers["set-cookie"].lower()


async def test_only_hashes_are_stored(database: str) -> None:
    async with town(database) as place:
        ann = await place.person("ann")
        await place.link()
        token = token_of(ann)
    with psycopg.connect(database) as connection:
        rows = connection.execute("SELECT token_hash FROM console.session").fetchall()
        dump = [
            str(row)
            for table in ("user", "session", "sign_in_link", "audit")
            for row in connection.execute(f"SELECT * FROM console.{table}".encode())
        ]
    assert rows == [(tokens.hash_of(token),)]
    assert not any(token in line for line in dump)


async def test_a_session_that_is_not_used_ends(database: str) -> None:
    async with town(database) as place:
        operator = await place.operator()
        for _ in range(3):
            place.wall.seconds += SESSION_IDLE.total_seconds() - 1
            assert await is_signed_in(operator)
        place.wall.seconds += SESSION_IDLE.total_seconds() + 60
        assert not await is_signed_in(operator)


async def test_a_session_ends_after_a_week_whatever_happens(database: str) -> None:
    async with town(database) as place:
        operator = await place.operator()
        ends = place.wall.seconds + SESSION_LASTS.total_seconds()
        while place.wall.seconds < ends - 3600:
            assert await is_signed_in(operator)
            place.wall.seconds += 3600
        place.wall.seconds = ends
        assert not await is_signed_in(operator)


async def test_a_session_ends_with_its_token(database: str) -> None:
    async with town(database) as place:
        ann = await place.person("ann", seconds=600)
        place.wall.seconds += 599
        assert await is_signed_in(ann)
        place.wall.seconds += 1
        assert not await is_signed_in(ann)


async def test_a_token_that_has_just_expired_begins_no_session(database: str) -> None:
    async with town(database) as place:
        browser = await place.browser()
        bearer = {"authorization": f"Bearer {place.token('ann', seconds=-5)}"}
        answer = await browser.post(SESSION, headers=bearer)
    assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_token")


async def test_a_token_without_end_makes_a_session_of_a_week(database: str) -> None:
    async with town(database) as place:
        ann = await place.person("ann", seconds=1e17)
        place.wall.seconds += 1
        assert await is_signed_in(ann)


async def test_signing_out_ends_this_session_only(database: str) -> None:
    async with town(database) as place:
        here, there = await place.person("ann"), await place.person("ann")
        token = token_of(here)
        answer = await here.delete(SESSION)
        assert answer.status_code == 204
        assert "farebox_session" not in here.cookies
        here.cookies.set("farebox_session", token)
        assert not await is_signed_in(here)
        assert await is_signed_in(there)


async def test_signing_out_everywhere_ends_all_of_mine(database: str) -> None:
    async with town(database) as place:
        here, there, bob = [await place.person(name) for name in ("ann", "ann", "bob")]
        program = (await here.post(f"{SESSION}/token")).json()["token"]
        assert (await here.delete(SESSION, params={"everywhere": True})).status_code == 204
        assert not await is_signed_in(there)
        assert await is_signed_in(bob)
        there.cookies.clear()
        answer = await there.get(SESSION, headers={"authorization": f"Bearer {program}"})
        assert answer.status_code == 401


async def test_a_program_gets_a_token_that_ends_with_the_session(database: str) -> None:
    async with town(database) as place:
        ann = await place.person("ann", seconds=600)
        answer = await ann.post(f"{SESSION}/token")
        assert answer.status_code == 201
        bearer = {"authorization": f"Bearer {answer.json()['token']}"}
        program = await place.browser()
        found = (await program.get(SESSION, headers=bearer)).json()
        assert found["user"]["email"] == "ann@example.test"
        assert found["expires_at"] == answer.json()["expires_at"]
        place.wall.seconds += 600
        assert (await program.get(SESSION, headers=bearer)).status_code == 401


async def test_a_programs_token_ends_when_the_session_is_signed_out_of(database: str) -> None:
    async with town(database) as place:
        ann, elsewhere = await place.person("ann"), await place.person("ann")
        program = await place.browser()

        async def works(token: str) -> bool:
            bearer = {"authorization": f"Bearer {token}"}
            return (await program.get(SESSION, headers=bearer)).status_code == 200

        async def token_from(browser: Browser, **headers: str) -> str:
            answer = await browser.post(f"{SESSION}/token", headers=headers)
            assert answer.status_code == 201, answer.text
            token: str = answer.json()["token"]
            return token

        token = await token_from(ann)
        of_token = await token_from(program, authorization=f"Bearer {token}")
        other = await token_from(elsewhere)
        assert await works(token)
        assert await works(of_token)
        await ann.delete(SESSION)
        assert not await works(token)
        assert not await works(of_token)
        assert await works(other)


def make_programs(database: str, count: int) -> None:
    """So many tokens from the only session that there is."""
    with psycopg.connect(database) as connection:
        connection.execute(
            "INSERT INTO console.session"
            " (token_hash, user_id, address, created_at, seen_at, expires_at, made_from)"
            " SELECT sha256(n::text::bytea), user_id, '', created_at, seen_at, expires_at,"
            "        token_hash"
            "   FROM console.session, generate_series(1, %s) AS n",
            [count],
        )


async def test_programs_have_only_so_many_tokens_of_somebody(database: str) -> None:
    async with town(database) as place:
        ann = await place.person("ann", seconds=86_400)
        make_programs(database, PROGRAMS_MAX - 1)
        token = (await ann.post(f"{SESSION}/token")).json()["token"]
        bearer = {"authorization": f"Bearer {token}"}
        program, again = await place.browser(), await place.person("ann")
        for refused in (
            await ann.post(f"{SESSION}/token"),
            await program.post(f"{SESSION}/token", headers=bearer),  # nor by way of another
            await again.post(f"{SESSION}/token"),
        ):
            assert refused.status_code == 409
            assert refused.json()["error"]["code"] == "too_many_sessions"
        page = await ann.post("/console/sign-in", data={"token": place.token("ann")})
        assert page.status_code == 303  # signing in oneself is something else
        bob = await place.person("bob")
        assert (await bob.post(f"{SESSION}/token")).status_code == 201
        assert (await program.delete(SESSION, headers=bearer)).status_code == 204
        assert (await again.post(f"{SESSION}/token")).status_code == 201


async def test_tokens_that_are_not_used_make_room(database: str) -> None:
    async with town(database) as place:
        ann = await place.person("ann", seconds=86_400)
        make_programs(database, PROGRAMS_MAX)
        for _ in range(2):
            assert (await ann.post(f"{SESSION}/token")).status_code == 409
            place.wall.seconds += SESSION_IDLE.total_seconds() / 2
        assert (await ann.post(f"{SESSION}/token")).status_code == 201


async def test_who_asks_for_tokens_at_once_gets_no_more(database: str) -> None:
    async with town(database) as place:
        ann = await place.person("ann")
        make_programs(database, PROGRAMS_MAX - 2)
        statuses: list[int] = []

        async def ask() -> None:
            statuses.append((await ann.post(f"{SESSION}/token")).status_code)

        async with trio.open_nursery() as nursery:
            for _ in range(6):
                nursery.start_soon(ask)
        assert sorted(statuses) == [201] * 2 + [409] * 4


async def test_an_issuers_token_is_no_session_to_get_another_from(database: str) -> None:
    async with town(database) as place:
        browser = await place.browser()
        bearer = {"authorization": f"Bearer {place.token('ann')}"}
        assert (await browser.get(SESSION, headers=bearer)).json()["expires_at"] is None
        answer = await browser.post(f"{SESSION}/token", headers=bearer)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "no_session")


async def test_a_user_is_who_the_issuer_says_whatever_they_are_called(database: str) -> None:
    async with town(database) as place:
        ann = await place.person("ann")
        called = {"full_name": "Ann B."}
        renamed = await place.person("ann", email="Ann@New.Test", user_metadata=called)
        eve = await place.person("eve", email="ann@example.test")
        first, second, third = [
            (await browser.get(SESSION)).json()["user"] for browser in (ann, renamed, eve)
        ]
    assert first == second
    assert (second["email"], second["name"]) == ("ann@new.test", "Ann B.")
    assert third["user_id"] != first["user_id"]


async def test_every_sign_in_gets_a_session_of_its_own(database: str) -> None:
    """None that came with the request goes on: somebody else may know it."""
    async with town(database) as place:
        ann = await place.person("ann")
        planted = token_of(ann)
        bearer = {"authorization": f"Bearer {place.token('bob')}"}
        await ann.post(SESSION, headers=bearer)
        assert token_of(ann) != planted
        assert (await ann.get(SESSION)).json()["user"]["email"] == "bob@example.test"


async def test_an_issuers_token_in_a_cookie_is_no_session(database: str) -> None:
    async with town(database) as place:
        browser = await place.browser()
        browser.cookies.set("farebox_session", place.token("ann"))
        assert not await is_signed_in(browser)


@pytest.mark.parametrize(
    "header",
    ["", "Bearer", "Bearer ", "Basic YTpi", "Bearer x", "bearer \u00e9", "Bearer sk_farebox_x"],
)
async def test_what_is_no_session_is_a_401(database: str, header: str) -> None:
    async with town(database) as place:
        browser = await place.browser()
        answer = await browser.get(SESSION, headers=[(b"authorization", header.encode())])
    assert (answer.status_code, answer.json()["error"]["code"]) == (401, "not_signed_in")


async def test_tries_to_sign_in_are_limited_for_each_address(database: str) -> None:
    async with town(database) as place:
        browser = await place.browser()
        bad = {"authorization": f"Bearer {by_secret('x' * 40)}"}
        answers = [await browser.post(SESSION, headers=bad) for _ in range(12)]
        statuses = [answer.status_code for answer in answers]
        assert statuses == [401] * 10 + [429] * 2
        assert 0 < int(answers[-1].headers["retry-after"]) <= 60
        good = {"authorization": f"Bearer {place.token('ann')}"}
        assert (await browser.post(SESSION, headers=good)).status_code == 429
        await place.person("ann")  # from another address
        assert SECRET not in answers[0].text


async def test_one_subscriber_s_addresses_have_their_tries_together(database: str) -> None:
    async with town(database) as place:
        bad = {"authorization": f"Bearer {by_secret('x' * 40)}"}
        statuses: list[int] = []
        for number in range(12):  # of one /64
            browser = await place.browser(f"2001:db8::{number:x}")
            statuses.append((await browser.post(SESSION, headers=bad)).status_code)
        assert statuses == [401] * 10 + [429] * 2
        neighbour = await place.browser("2001:db8:0:1::1")
        assert (await neighbour.post(SESSION, headers=bad)).status_code == 401


async def test_sessions_that_have_ended_are_forgotten(database: str) -> None:
    async with town(database) as place:
        await place.person("ann", seconds=60)
        place.wall.seconds += 60
        await place.person("bob")
    with psycopg.connect(database) as connection:
        rows = connection.execute("SELECT count(*) FROM console.session").fetchone()
    assert rows == (1,)


def sessions_left(database: str) -> int:
    with psycopg.connect(database) as connection:
        row = connection.execute("SELECT count(*)::int FROM console.session").fetchone()
    assert row is not None
    found: int = row[0]
    return found


async def test_sessions_are_forgotten_in_pieces(database: str) -> None:
    """However many there are, nobody waits for all of them to go."""
    async with town(database) as place:
        await place.person("ann", seconds=60)
        make_programs(database, 2 * SESSIONS_AT_ONCE)
        place.wall.seconds += 60
        left = []
        for _ in range(4):
            await place.person("bob")
            left.append(sessions_left(database))
    assert left == [SESSIONS_AT_ONCE + 2, 3, 3, 4]


async def test_who_signs_in_waits_for_nobody_that_holds_an_old_session(database: str) -> None:
    async with town(database) as place:
        await place.person("ann", seconds=60)
        place.wall.seconds += 60
        with psycopg.connect(database) as connection, trio.fail_after(5):
            connection.execute("SELECT FROM console.session FOR UPDATE")
            await place.person("bob")
    assert sessions_left(database) == 2
