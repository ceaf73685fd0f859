"""Keys and projects over the API: shown once, limited, written down, and nobody else's."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import psycopg
import pytest
import trio

from console import keys
from ledger.directory import Directory
from ledger.keys import keyed_hash
from tests.fakes.console import FACTS, SECRET, Browser, sandbox_catalogue
from tests.fakes.people import Town, town

SERVING = replace(FACTS, catalogue=sandbox_catalogue())
KEYS = "/console/api/accounts/acme/keys"
PROJECTS = "/console/api/accounts/acme/projects"
MODEL = next(iter(SERVING.catalogue.models))


@asynccontextmanager
async def acme(database: str) -> AsyncIterator[tuple[Town, Browser]]:
    """An account with one project, and its operator."""
    with Directory(database) as directory:
        directory.create_account("acme")
        directory.create_project("acme", "web")
        directory.create_account("other")
        directory.create_project("other", "web")
    async with town(database, facts=SERVING) as place:
        yield place, await place.operator()


async def make(browser: Browser, **facts: object) -> dict[str, object]:
    answer = await browser.post(KEYS, json={"project": "web", **facts})
    assert answer.status_code == 201, answer.text
    made: dict[str, object] = answer.json()
    return made


def make_expire(database: str, key_id: int) -> None:
    with psycopg.connect(database) as connection:
        connection.execute(
            "UPDATE directory.api_key SET expires_at = '2020-01-01Z' WHERE key_id = %s", [key_id]
        )


def code(answer: object) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]  # type: ignore[attr-defined]


async def test_a_key_is_shown_once_and_works(database: str) -> None:
    async with acme(database) as (_, browser):
        made = await make(browser, name="production", models=[MODEL])
        secret = str(made["secret"])
        listed = (await browser.get(KEYS)).json()["keys"]
    assert listed == [made["key"]]
    assert listed[0]["state"] == "live"
    assert listed[0]["models"] == [MODEL]
    assert secret not in str(listed)
    with Directory(database) as directory:
        _, (credential,) = directory.live_keys()
    assert credential.key_hash == keyed_hash(SECRET, secret)


async def test_a_key_is_changed(database: str) -> None:
    async with acme(database) as (_, browser):
        await make(browser, budget={"usd": "5.00"})
        changed = await browser.put(
            f"{KEYS}/1",
            json={"name": "new", "budget": {"usd": "7.5", "period": "month"}, "models": []},
        )
        assert changed.status_code == 200, changed.text
        facts = (await browser.get(f"{KEYS}/1")).json()
    assert facts == changed.json()
    assert facts["name"] == "new"
    assert facts["budget"] == {"usd": "7.5", "period": "month", "spent_usd": "0"}


async def test_a_revoked_key_stays_revoked(database: str) -> None:
    async with acme(database) as (_, browser):
        await make(browser)
        for _again in range(2):
            assert (await browser.delete(f"{KEYS}/1")).status_code == 204
        assert (await browser.get(f"{KEYS}/1")).json()["state"] == "revoked"
        refused = await browser.put(f"{KEYS}/1", json={"name": "x"})
    assert code(refused) == (409, "key_revoked")
    with Directory(database) as directory:
        assert directory.live_keys()[1] == []


async def test_a_key_expires_by_the_clock(database: str) -> None:
    async with acme(database) as (place, browser):
        await make(browser, expires_at="2026-11-20T00:00:00Z")
        assert (await browser.get(f"{KEYS}/1")).json()["state"] == "live"
        place.wall.seconds += 86_400 * 365
        again = await place.operator()
        assert (await again.get(f"{KEYS}/1")).json()["state"] == "expired"


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ({"project": "none"}, (400, "refused")),
        ({"models": ["no-such-model"]}, (400, "unknown_model")),
        ({"expires_at": "2020-01-01T00:00:00Z"}, (400, "invalid_request")),
        ({"expires_at": "2030-01-01T00:00:00"}, (400, "invalid_request")),
        ({"expires_at": "9999-12-31T23:59:59-12:00"}, (400, "invalid_request")),
        ({"expires_at": "0001-01-01T00:00:00+12:00"}, (400, "invalid_request")),
        ({"budget": {"usd": "0"}}, (400, "invalid_request")),
        ({"budget": {"usd": "-1"}}, (400, "invalid_request")),
        ({"budget": {"usd": "1e3"}}, (400, "invalid_request")),
        ({"budget": {"usd": "0.0000000001"}}, (400, "invalid_request")),
        ({"budget": {"usd": "99999999999999999999"}}, (400, "invalid_request")),
        ({"budget": {"usd": "5", "period": "week"}}, (400, "invalid_request")),
        ({"name": "x" * 101}, (400, "invalid_request")),
        ({"name": "a\x00b"}, (400, "refused")),
    ],
)
async def test_what_makes_no_sense_makes_no_key(
    database: str, facts: dict[str, object], expected: tuple[int, str]
) -> None:
    async with acme(database) as (_, browser):
        answer = await browser.post(KEYS, json={"project": "web", **facts})
        assert code(answer) == expected
        assert (await browser.get(KEYS)).json() == {"keys": []}


async def test_an_account_has_only_so_many_live_keys(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every worker holds them, and anybody may open an account and make some."""
    monkeypatch.setattr(keys, "LIVE_KEYS_MAX", 2)
    async with acme(database) as (_, browser):
        await make(browser, expires_at="2099-01-01T00:00:00Z")
        await make(browser)
        assert code(await browser.post(KEYS, json={"project": "web"})) == (409, "too_many_keys")
        assert len((await browser.get(KEYS)).json()["keys"]) == 2
        await browser.delete(f"{KEYS}/1")
        await make(browser)


async def test_an_expired_key_that_is_made_live_again_is_one_more(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys, "LIVE_KEYS_MAX", 1)
    async with acme(database) as (_, browser):
        await make(browser)
        make_expire(database, 1)
        again = await browser.put(f"{KEYS}/1", json={"name": "again"})
        assert again.json()["state"] == "live", again.text
        make_expire(database, 1)
        await make(browser)
        refused = await browser.put(f"{KEYS}/1", json={"name": "once more"})
        assert code(refused) == (409, "too_many_keys")
        assert (await browser.get(f"{KEYS}/1")).json()["state"] == "expired"
        renamed = {"name": "old", "expires_at": "2020-01-01T00:00:00Z"}
        assert (await browser.put(f"{KEYS}/1", json=renamed)).status_code == 200


async def test_a_key_is_refused_while_others_change_theirs(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever changes the directory waits for one another; counting is done before."""
    monkeypatch.setattr(keys, "LIVE_KEYS_MAX", 1)
    async with acme(database) as (_, browser):
        await make(browser)
        make_expire(database, 1)
        await make(browser)
        with psycopg.connect(database) as connection:
            connection.execute("SELECT FROM directory.change FOR UPDATE")
            refused = await browser.post(KEYS, json={"project": "web"})
            assert code(refused) == (409, "too_many_keys")
            refused = await browser.put(f"{KEYS}/1", json={"name": "again"})
            assert code(refused) == (409, "too_many_keys")


async def test_keys_that_ended_with_the_one_that_made_them_do_not_count(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys, "LIVE_KEYS_MAX", 3)

    async def live_keys(browser: Browser) -> int:
        (project,) = (await browser.get(PROJECTS)).json()["projects"]
        return int(project["live_keys"])

    async with acme(database) as (_, browser):
        for maker in (1, 4):
            await make(browser, scopes=["keys"])
            with Directory(database, secret=SECRET) as directory:
                for _child in range(2):
                    directory.create_key("acme", "web", made_by=maker)
            assert await live_keys(browser) == 3
            assert code(await browser.post(KEYS, json={"project": "web"})) == (409, "too_many_keys")
            if maker == 1:
                await browser.delete(f"{KEYS}/1")
            else:
                make_expire(database, 4)
            assert await live_keys(browser) == 0
        await make(browser)
        refused = await browser.put(f"{KEYS}/4", json={"name": "again"})  # with what it has made
        assert code(refused) == (409, "too_many_keys")
        await browser.delete(f"{KEYS}/7")
        again = await browser.put(f"{KEYS}/4", json={"name": "again"})
        assert again.status_code == 200, again.text
        assert await live_keys(browser) == 3


async def test_an_account_without_credit_has_a_few_keys(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Anybody can open one after another, and every worker holds the keys of all."""
    monkeypatch.setattr(keys, "UNFUNDED_KEYS_MAX", 2)
    async with acme(database) as (_, browser):
        await make(browser)
        await make(browser)
        refused = await browser.post(KEYS, json={"project": "web"})
        assert code(refused) == (409, "too_many_keys")
        assert "add credit" in refused.json()["error"]["message"]
        await browser.delete(f"{KEYS}/1")
        await make(browser)
        with Directory(database) as directory:
            directory.credit("acme", 5, "a trial")
            await make(browser)
            directory.credit("acme", -5, "it is over")
        await make(browser)  # it has had credit, if it has none


async def test_an_account_makes_only_so_many_keys_a_day(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows are never deleted: making and revoking would let them grow without end."""
    monkeypatch.setattr(keys, "MADE_A_DAY_MAX", 2)
    async with acme(database) as (_, browser):
        await make(browser)
        await browser.delete(f"{KEYS}/1")
        await browser.post(PROJECTS, json={"name": "batch"})
        await make(browser, project="batch")
        await browser.delete(f"{PROJECTS}/batch")
        refused = await browser.post(KEYS, json={"project": "web"})
        assert code(refused) == (409, "too_many_keys")
        assert "24 hours" in refused.json()["error"]["message"]
        with psycopg.connect(database) as connection:
            connection.execute("UPDATE directory.api_key SET created_at = now() - interval '1 day'")
        await make(browser)


async def test_of_keys_that_have_ended_the_newest_are_listed(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = "/console/acme/keys"
    monkeypatch.setattr(keys, "ENDED_LISTED_MAX", 2)
    said = "only the newest 2"
    async with acme(database) as (_, browser):
        for _key in range(4):
            await make(browser)
        await browser.delete(f"{KEYS}/1")
        assert said not in (await browser.get(page)).text
        await browser.delete(f"{KEYS}/2")
        await browser.delete(f"{KEYS}/3")
        listed = (await browser.get(KEYS)).json()["keys"]
        assert [each["key_id"] for each in listed] == [4, 3, 2]
        assert said in (await browser.get(page)).text
        assert (await browser.get(f"{KEYS}/1")).json()["state"] == "revoked"


async def test_a_new_key_is_of_the_usual_project(database: str) -> None:
    """That of the last key, or `default`: not whichever comes first in the alphabet."""
    async with acme(database) as (_, browser):
        page = "/console/acme/keys"
        for project in ("UPPER", "default"):
            await browser.post(PROJECTS, json={"name": project})
        assert "<option selected>default<" in (await browser.get(page)).text
        await make(browser)
        assert "<option selected>web<" in (await browser.get(page)).text
        typed = {"do": "create", "once": "x", "project": "UPPER", "budget": "much"}
        assert "<option selected>UPPER<" in (await browser.post(page, data=typed)).text


async def test_an_api_key_is_told_where_it_belongs(database: str) -> None:
    async with acme(database) as (place, browser):
        made = await make(browser)
        program = await place.browser()
        bearer = {"authorization": f"Bearer {made['secret']}"}
        answer = await program.get(KEYS, headers=bearer)
    assert code(answer) == (401, "not_signed_in")
    assert "/mcp" in answer.json()["error"]["message"]


async def test_a_key_is_not_ended_by_a_day_that_has_passed(database: str) -> None:
    """Revoking does that, and says so. A key that has expired keeps its day, also on its page."""
    page = "/console/acme/keys/1"
    async with acme(database) as (place, browser):
        await make(browser, name="old", expires_at="2026-11-21T10:30:00.5Z")
        before = (await browser.get(f"{KEYS}/1")).json()["expires_at"]
        past = {"name": "old", "expires_at": "2020-01-01T00:00:00Z"}
        assert code(await browser.put(f"{KEYS}/1", json=past)) == (400, "invalid_request")
        for day in ("2020-01-01", "0999-12-31"):
            refused = await browser.post(page, data={"do": "change", "expires": day})
            assert refused.status_code == 400
            assert "passed" in refused.text
        place.wall.seconds += 86_400 * 365
        again = await place.operator()
        assert 'value="2026-11-21"' in (await again.get(page)).text
        form = {"do": "change", "name": "older", "expires": "2026-11-21"}
        assert (await again.post(page, data=form)).status_code == 303
        key = (await again.get(f"{KEYS}/1")).json()
    assert (key["name"], key["state"], key["expires_at"]) == ("older", "expired", before)


async def test_a_last_day_of_long_ago_is_shown_as_browsers_read_it(database: str) -> None:
    async with acme(database) as (_, browser):
        await make(browser)
        with psycopg.connect(database) as connection:
            connection.execute("UPDATE directory.api_key SET expires_at = '0032-05-02T00:00Z'")
        assert 'value="0032-05-01"' in (await browser.get("/console/acme/keys/1")).text


@pytest.mark.parametrize(
    ("typed", "budget"),
    [("12,50", None), ("1,2,3", None), ("$1,250.50", "1250.5"), ("1,250", "1250"), ("12", "12")],
)
async def test_a_comma_never_makes_an_amount_larger(
    database: str, typed: str, budget: str | None
) -> None:
    async with acme(database) as (_, browser):
        form = {"do": "create", "once": "x", "project": "web", "budget": typed}
        answer = await browser.post("/console/acme/keys", data=form)
        made = (await browser.get(KEYS)).json()["keys"]
    assert answer.status_code == (400 if budget is None else 200)
    assert [key["budget"]["usd"] for key in made] == ([] if budget is None else [budget])


async def test_another_accounts_keys_do_not_exist(database: str) -> None:
    async with acme(database) as (_, browser):
        await make(browser)
        theirs = "/console/api/accounts/other/keys/1"
        assert code(await browser.get(theirs)) == (404, "not_found")
        assert code(await browser.put(theirs, json={"name": "x"})) == (404, "not_found")
        assert code(await browser.delete(theirs)) == (404, "not_found")
        assert (await browser.get(f"{KEYS}/1")).json()["state"] == "live"


async def test_a_stranger_sees_no_account(database: str) -> None:
    async with acme(database) as (place, _):
        stranger = await place.person("eve")
        assert code(await stranger.get(KEYS)) == (404, "not_found")
        assert code(await stranger.post(KEYS, json={"project": "web"})) == (404, "not_found")
        nobody = await place.browser()
        assert code(await nobody.get(KEYS)) == (401, "not_signed_in")


async def test_changes_are_written_down_without_the_secret(database: str) -> None:
    async with acme(database) as (_, browser):
        made = await make(browser, name="production", budget={"usd": "5", "period": "month"})
        await browser.put(f"{KEYS}/1", json={"name": "production"})
        await browser.put(f"{KEYS}/1", json={"name": "production"})
        await browser.delete(f"{KEYS}/1")
        log = (await browser.get("/console/api/accounts/acme/audit")).json()["entries"]
    entries = [(entry["action"], entry["target"], entry["detail"]) for entry in log]
    key = "key 1 of acme/web (production)"
    assert entries == [
        ("key.revoke", key, {}),
        ("key.change", key, {"budget": "none"}),
        ("key.create", key, {"budget": "5 USD month"}),
    ]
    assert str(made["secret"]) not in str(log)


async def test_projects_are_made_limited_and_deleted(database: str) -> None:
    async with acme(database) as (_, browser):
        made = await browser.post(PROJECTS, json={"name": "batch", "budget": {"usd": "50"}})
        assert made.status_code == 201, made.text
        assert code(await browser.post(PROJECTS, json={"name": "batch"})) == (400, "refused")
        await make(browser, project="batch")
        changed = await browser.put(f"{PROJECTS}/batch/budget", json={"budget": {"usd": "70"}})
        assert changed.status_code == 204
        listed = (await browser.get(PROJECTS)).json()["projects"]
        assert [(each["name"], each["live_keys"]) for each in listed] == [("batch", 1), ("web", 0)]
        assert listed[0]["budget"] == {"usd": "70", "period": None, "spent_usd": "0"}
        assert (await browser.delete(f"{PROJECTS}/batch")).status_code == 204
        assert code(await browser.delete(f"{PROJECTS}/batch")) == (404, "not_found")
        assert code(await browser.put(f"{PROJECTS}/no/budget", json={"budget": None})) == (
            404,
            "not_found",
        )
    with Directory(database) as directory:
        assert directory.live_keys()[1] == []


async def test_an_account_has_only_so_many_projects(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys, "PROJECTS_MAX", 2)
    async with acme(database) as (_, browser):
        assert (await browser.post(PROJECTS, json={"name": "batch"})).status_code == 201
        refused = await browser.post(PROJECTS, json={"name": "more"})
        assert code(refused) == (409, "too_many_projects")
        listed = (await browser.get(PROJECTS)).json()["projects"]
        assert [each["name"] for each in listed] == ["batch", "web"]
        await browser.delete(f"{PROJECTS}/batch")
        assert (await browser.post(PROJECTS, json={"name": "more"})).status_code == 201


async def test_an_account_makes_only_so_many_projects_a_day(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys, "MADE_A_DAY_MAX", 2)
    async with acme(database) as (_, browser):
        assert (await browser.post(PROJECTS, json={"name": "batch"})).status_code == 201
        await browser.delete(f"{PROJECTS}/batch")
        refused = await browser.post(PROJECTS, json={"name": "batch"})
        assert code(refused) == (409, "too_many_projects")
        assert "24 hours" in refused.json()["error"]["message"]
        with psycopg.connect(database) as connection:
            connection.execute("UPDATE directory.project SET created_at = now() - interval '1 day'")
        assert (await browser.post(PROJECTS, json={"name": "batch"})).status_code == 201


async def test_two_who_change_a_key_at_once_leave_one_of_both_wishes(database: str) -> None:
    async with acme(database) as (place, browser):
        await make(browser, budget={"usd": "1"})
        other = await place.operator()

        async def change(who: Browser, usd: str) -> None:
            wanted = {"name": usd, "budget": {"usd": usd}}
            assert (await who.put(f"{KEYS}/1", json=wanted)).status_code == 200

        async with trio.open_nursery() as nursery:
            nursery.start_soon(change, browser, "2")
            nursery.start_soon(change, other, "3")
        facts = (await browser.get(f"{KEYS}/1")).json()
    assert facts["name"] == facts["budget"]["usd"]
