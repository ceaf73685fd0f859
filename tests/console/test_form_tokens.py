"""Forms that make something and show it once: sent again, as by a reload, they make nothing."""

from __future__ import annotations

import re

import pytest
import trio

from ledger.directory import Directory
from tests.console.test_keys import SERVING, acme
from tests.fakes.console import Browser
from tests.fakes.people import town

KEYS, MEMBERS, INTEGRATIONS = (
    f"/console/acme/{name}" for name in ("keys", "members", "integrations")
)
KEY = {"do": "create", "project": "web", "name": "laptop"}
INVITATION = {"do": "invite", "email": "bob@example.test", "role": "viewer"}


def once(text: str) -> dict[str, str]:
    found = re.search(r"name=\"once\" value=\"([\w-]{43})\"", text)
    assert found, text[:500]
    return {"once": found[1]}


async def fresh(browser: Browser, path: str) -> dict[str, str]:
    return once((await browser.get(path)).text)


async def names(browser: Browser) -> list[str]:
    listed = await browser.get("/console/api/accounts/acme/keys")
    return [key["name"] for key in listed.json()["keys"]]


async def test_a_key_that_was_made_is_not_made_again(database: str) -> None:
    async with acme(database) as (_, browser):
        form = KEY | await fresh(browser, KEYS)
        made = await browser.post(KEYS, data=form)
        assert made.status_code == 200
        secret = re.search(r"sk_farebox_[\w-]+", made.text)
        assert secret
        again = await browser.post(KEYS, data=form)
        assert await names(browser) == ["laptop"]
        assert (await browser.post(KEYS, data=KEY | once(again.text))).status_code == 200
        assert await names(browser) == ["laptop", "laptop"]
    assert again.status_code == 409
    assert "made already" in again.text
    assert "cannot be shown again" in again.text
    assert secret[0] not in again.text
    assert 'value="laptop"' not in again.text, "nobody should send it a third time by mistake"


async def test_two_tabs_make_two_keys(database: str) -> None:
    async with acme(database) as (_, browser):
        tabs = [await fresh(browser, KEYS) for _ in range(2)]
        for number, tab in enumerate(tabs):
            made = await browser.post(KEYS, data=KEY | tab | {"name": str(number)})
            assert made.status_code == 200
        assert await names(browser) == ["1", "0"]


async def test_a_button_that_is_pressed_twice_makes_one_key(database: str) -> None:
    async with acme(database) as (_, browser):
        form = KEY | await fresh(browser, KEYS)
        statuses: list[int] = []

        async def press() -> None:
            statuses.append((await browser.post(KEYS, data=form)).status_code)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(press)
            nursery.start_soon(press)
        assert sorted(statuses) == [200, 409]
        assert await names(browser) == ["laptop"]


async def test_a_form_without_a_token_is_none_of_ours(database: str) -> None:
    async with acme(database) as (_, browser):
        for token in ({}, {"once": ""}):
            assert (await browser.post(KEYS, data=KEY | token)).status_code == 400
        assert await names(browser) == []


async def test_a_form_that_was_refused_is_refused_likewise(database: str) -> None:
    async with acme(database) as (_, browser):
        form = KEY | await fresh(browser, KEYS) | {"budget": "much"}
        refused = [await browser.post(KEYS, data=form) for _ in range(2)]
        assert [answer.status_code for answer in refused] == [400, 400]
        mended = form | {"budget": "5"}
        assert (await browser.post(KEYS, data=mended)).status_code == 200


async def test_an_invitation_stays_when_its_page_is_reloaded(database: str) -> None:
    async with acme(database) as (place, browser):
        form = INVITATION | await fresh(browser, MEMBERS)
        invited = await browser.post(MEMBERS, data=form)
        link = re.search(r"/console/invitation/[\w-]+", invited.text)
        assert link
        again = await browser.post(MEMBERS, data=form)
        assert again.status_code == 409
        assert link[0] not in again.text
        bob = await place.person("bob")
        assert "Accept" in (await bob.get(link[0])).text


async def test_one_token_is_made_for_a_program(database: str) -> None:
    async with acme(database) as (_, browser):
        form = {"do": "token"} | await fresh(browser, INTEGRATIONS)
        assert (await browser.post(INTEGRATIONS, data=form)).status_code == 200
        assert (await browser.post(INTEGRATIONS, data=form)).status_code == 409


@pytest.mark.parametrize("path", [KEYS, MEMBERS, INTEGRATIONS])
async def test_a_page_is_never_given_the_same_token_twice(database: str, path: str) -> None:
    with Directory(database) as directory:
        directory.create_account("acme")
        directory.create_project("acme", "web")
    async with town(database, facts=SERVING) as place:
        browser = await place.operator()
        assert await fresh(browser, path) != await fresh(browser, path)
