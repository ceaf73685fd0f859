"""The sign-in page: whom it sends to the issuer, and where people are led once they are back."""

from __future__ import annotations

import re
from urllib.parse import quote

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from console.pages.entry import next_of
from console.sign_in import SESSION_LASTS
from tests.fakes.console import PUBLIC_URL
from tests.fakes.people import SETTINGS, Town, town

LOGIN_URL = 'https://id.test/authorize?provider=google&redirect_to="x"&state={state}'
WITH_LOGIN = msgspec.structs.replace(SETTINGS, login_url=LOGIN_URL)
HAS_ENDED = "Your session has ended"
PAGE = "/console/sign-in"


async def text_of(place: Town, path: str = PAGE) -> str:
    return (await (await place.browser()).get(path)).text


# -- the button -----------------------------------------------------------------------------------


async def test_a_login_url_is_one_button_and_the_token_folds_away(database: str) -> None:
    async with town(database, settings=WITH_LOGIN) as place:
        text = await text_of(place)
    assert (
        'href="https://id.test/authorize?provider=google&amp;redirect_to=&#34;x&#34;&amp;state={state}"'
        in text
    )
    assert re.search(r"<details\s*>\s*<summary>Sign in with a token", text)
    assert re.search(r'<script src="/console/static/sign_in\.js\?[0-9a-f]{12}"></script>', text)


async def test_without_a_login_url_the_token_is_all_there_is(database: str) -> None:
    async with town(database) as place:
        text = await text_of(place)
    assert 'id="token"' in text
    assert "<details" not in text
    assert "sign_in.js" not in text


async def test_a_token_that_is_refused_stays_unfolded(database: str) -> None:
    async with town(database, settings=WITH_LOGIN) as place:
        browser = await place.browser()
        answer = await browser.post(PAGE, data={"token": "no token", "next": "/console/acme/keys"})
    assert answer.status_code == 401
    assert re.search(r"<details open>", answer.text)
    assert 'data-next="/console/acme/keys"' in answer.text


async def test_the_script_is_served_and_nothing_stands_inline(database: str) -> None:
    async with town(database, settings=WITH_LOGIN) as place:
        browser = await place.browser()
        script = await browser.get("/console/static/sign_in.js")
        page = await browser.get(PAGE)
    assert script.headers["content-type"].startswith("text/javascript")
    assert "script-src 'self'" in page.headers["content-security-policy"]
    assert not re.search(r"<script(?![^>]* src=)|\son\w+=|\sstyle=|<style", page.text)


# -- where to go afterwards -----------------------------------------------------------------------


async def test_who_was_invited_is_told_why_they_are_here(database: str) -> None:
    async with town(database, settings=WITH_LOGIN) as place:
        browser = await place.browser()
        sent = await browser.get("/console/invitation/abc")
        assert sent.status_code == 303
        invited = (await browser.get(sent.headers["location"])).text
        plain = (await browser.get(PAGE)).text
    assert 'data-next="/console/invitation/abc"' in invited
    assert "You were invited" in invited
    assert "You were invited" not in plain


async def test_a_page_is_come_back_to_with_what_was_chosen_on_it(database: str) -> None:
    async with town(database, settings=WITH_LOGIN) as place:
        browser = await place.browser()
        asked = "/console/acme/usage?model=gpt-5.4&days=7"
        sent = await browser.get(f"{asked}&done=key-changed")
        text = (await browser.get(sent.headers["location"])).text
        posted = await browser.post("/console/acme/keys", data={"do": "create"})
    assert f'data-next="{asked.replace("&", "&amp;")}"' in text
    assert posted.headers["location"] == f"{PAGE}?next={quote('/console/acme/keys', safe='')}"


@example("/console//evil.test")
@example("/console/\\evil.test")
@example("//evil.test/console/")
@example("/console/\t/evil.test")
@example("/console/..//evil.test")
@given(st.text() | st.text(alphabet="/\\.?#&=@:\t console").map(lambda text: f"/console/{text}"))
def test_a_link_leads_to_no_page_but_ours(wanted: str) -> None:
    found = next_of(wanted)
    assert found == "/console" or (found == wanted and found.startswith("/console/"))
    assert "//" not in found
    assert "\\" not in found
    assert found.isprintable()


# -- sessions that have ended ---------------------------------------------------------------------


async def test_a_session_that_ended_with_its_token_is_said_to_have_ended(database: str) -> None:
    async with town(database, settings=WITH_LOGIN) as place:
        ann = await place.person("ann", seconds=600)
        assert HAS_ENDED not in (await ann.get(PAGE)).text
        place.wall.seconds += 601
        sent = await ann.get("/console/acme/keys")
        assert sent.status_code == 303
        page = await ann.get(sent.headers["location"])
        assert page.status_code == 200
        assert HAS_ENDED in page.text
        assert 'data-next="/console/acme/keys"' in page.text
        answer = await ann.post(PAGE, data={"token": place.token("ann")})
        assert answer.status_code == 303
        assert HAS_ENDED not in (await ann.get(PAGE)).text


@pytest.mark.parametrize("seconds", [600.0, 1e17])
async def test_a_cookie_outlasts_its_session(database: str, seconds: float) -> None:
    """Otherwise nobody could know that there was one. It lets nobody in any more."""
    async with town(database) as place:
        browser = await place.browser()
        bearer = {"authorization": f"Bearer {place.token('ann', seconds=seconds)}"}
        answer = await browser.post("/console/api/session", headers=bearer)
        found = re.search(r"max-age=(\d+)", answer.headers["set-cookie"].lower())
    assert found is not None
    lasts = min(seconds, SESSION_LASTS.total_seconds())
    assert int(found[1]) == pytest.approx(lasts + 7 * 86400, abs=2)


async def test_who_signed_out_or_was_never_here_has_no_session_that_ended(database: str) -> None:
    async with town(database, settings=WITH_LOGIN) as place:
        ann = await place.person("ann")
        assert (await ann.post("/console/sign-out")).status_code == 303
        assert HAS_ENDED not in (await ann.get(PAGE)).text
        assert HAS_ENDED not in await text_of(place)


async def test_a_link_to_the_page_does_not_say_that_a_session_has_ended(database: str) -> None:
    async with town(database, settings=WITH_LOGIN) as place:
        text = await text_of(place, f"{PAGE}?ended=1&message=evil&next={PUBLIC_URL}/evil")
    assert HAS_ENDED not in text
    assert "evil" not in text
