"""Signing in at the issuer's page and coming back with a token in the fragment; or with somebody
else's, with an error, or with none."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from urllib.parse import urlencode

import psycopg
import pytest
from playwright.sync_api import APIRequestContext, Browser, Page, Route, expect

from tests.browser.axe import findings
from tests.browser.conftest import Visit
from tests.fakes import login_page, shop
from tests.fakes.browser import DESK, Scheme, Visitor
from tests.fakes.login_page import LoginPage
from tests.fakes.shop import Shop, token

_ADDRESSES = itertools.count(1)


@pytest.fixture(scope="module")
def issuer() -> Iterator[LoginPage]:
    """Where people sign in."""
    with login_page.serving() as serving:
        yield serving


@pytest.fixture(scope="module")
def guild(
    chromium: Browser, issuer: LoginPage, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Shop]:
    """A gateway whose people sign in there."""
    assert chromium.is_connected()
    directory = tmp_path_factory.mktemp("guild")
    with shop.serving(directory, people=True, login_url=issuer.url, behind_proxy=True) as serving:
        issuer.returns_to = f"{serving.url}/console/sign-in"
        yield serving
        serving.gateway.assert_sound_books()


@pytest.fixture(name="visit")
def visit_from_elsewhere(visit: Visit) -> Visit:
    """Visitors come from an address each: only so many may sign in each minute from one."""

    def make(of: Shop, size: tuple[int, int] = DESK, scheme: Scheme = "light") -> Visitor:
        visitor = visit(of, size, scheme)
        visitor.page.set_extra_http_headers({"x-forwarded-for": f"192.0.2.{next(_ADDRESSES)}"})
        return visitor

    return make


@pytest.fixture(autouse=True)
def forgetful(issuer: LoginPage) -> None:
    """What one test was answered is nothing to the next."""
    issuer.answer = {}
    issuer.states.clear()


def go_and_come_back(page: Page) -> None:
    """Through the issuer's page."""
    page.get_by_role("link", name="Sign in").click()
    expect(page).to_have_title("Issuer")
    page.get_by_role("link", name="Continue").click()


def is_signed_in(page: Page) -> bool:
    return page.request.get("/console/api/session").ok


def name_of(page: Page) -> str:
    user = page.request.get("/console/api/session").json()["user"]
    assert isinstance(user["email"], str)
    return user["email"]


def invitation(guild: Shop, requests: APIRequestContext, email: str) -> str:
    """A link that Max makes, for somebody to join his account."""
    api = f"{guild.url}/console/api"
    as_max = {"authorization": f"Bearer {token('max')}"}
    requests.post(f"{api}/accounts", headers=as_max)
    (mine,) = requests.get(f"{api}/accounts", headers=as_max).json()["accounts"]
    made = requests.post(
        f"{api}/accounts/{mine['account']}/invitations",
        headers=as_max,
        data={"email": email, "role": "viewer"},
    )
    assert made.status == 201, made.text()
    return str(made.json()["link"])


def with_state(route: Route) -> None:
    """The page as it were if `login_url` had a place for the state. What comes from a redirection
    is not seen here: it counts how it was when signing in was begun."""
    answer = route.fetch()
    body = answer.text().replace("provider=google", "provider=google&amp;state={state}")
    route.fulfill(response=answer, body=body)


def foreign(guild: Shop, **answer: str) -> str:
    """A link with which somebody may try to have others sign in, or read something."""
    return f"{guild.url}/console/sign-in#{urlencode(answer)}"


# -- there and back -------------------------------------------------------------------------------


def test_who_signed_in_there_is_signed_in_here(
    guild: Shop, issuer: LoginPage, visit: Visit
) -> None:
    page = visit(guild).open("/sign-in")
    expect(page.get_by_label("Access token")).to_be_hidden()
    issuer.signs_in(token("ann"))
    go_and_come_back(page)
    expect(page).to_have_url(f"{guild.url}/console")
    assert name_of(page) == "ann@example.test"
    kept = page.evaluate("JSON.stringify([{...sessionStorage}, {...localStorage}])")
    assert kept == "[{},{}]"
    page.go_back()  # to the issuer's: no page of ours has the token in its address
    expect(page).to_have_title("Issuer")


def test_a_token_can_still_be_pasted(guild: Shop, visit: Visit) -> None:
    page = visit(guild).open("/sign-in")
    page.get_by_text("Sign in with a token").click()
    page.get_by_label("Access token").fill(token("pat"))
    page.get_by_role("button", name="Sign in").click()
    expect(page).to_have_url(f"{guild.url}/console")
    assert name_of(page) == "pat@example.test"


def test_an_invitation_is_there_again_after_signing_in(
    guild: Shop, issuer: LoginPage, visit: Visit
) -> None:
    bob = visit(guild)
    link = invitation(guild, bob.page.request, "bob@example.test")
    bob.page.goto(link)
    expect(bob.page.get_by_text("You were invited")).to_be_visible()
    issuer.signs_in(token("bob"))
    go_and_come_back(bob.page)
    bob.page.get_by_role("button", name="Accept").click()
    expect(bob.page.get_by_role("heading", name="Overview")).to_be_visible()


def test_a_session_that_ended_goes_on_where_it_was(
    guild: Shop, issuer: LoginPage, visit: Visit
) -> None:
    eva = visit(guild)
    page = eva.open("/sign-in")
    issuer.signs_in(token("eva"))
    go_and_come_back(page)
    expect(page).to_have_url(f"{guild.url}/console")
    with psycopg.connect(guild.conninfo) as connection:
        connection.execute("UPDATE console.session SET expires_at = created_at")
    eva.open("/nobodys/usage?model=gpt-5.4")
    expect(page.get_by_text("Your session has ended")).to_be_visible()
    eva.expect_complaint("status of 404")
    go_and_come_back(page)
    expect(page).to_have_url(f"{guild.url}/console/nobodys/usage?model=gpt-5.4")


# -- what does not succeed ------------------------------------------------------------------------


def test_an_error_is_said_in_words_and_signing_in_can_be_tried_again(
    guild: Shop, issuer: LoginPage, visit: Visit
) -> None:
    page = visit(guild).open("/sign-in?next=/console/nobodys/keys")
    issuer.answer = {
        "error": "access_denied",
        "error_code": "403",
        "error_description": "The user <b>denied</b> it",
    }
    go_and_come_back(page)
    said = page.get_by_role("alert")
    expect(said).to_contain_text("Signing in was cancelled, or refused")
    expect(said).to_contain_text("“The user <b>denied</b> it”")
    expect(page).to_have_url(f"{guild.url}/console/sign-in?next=%2Fconsole%2Fnobodys%2Fkeys")
    expect(page.get_by_role("link", name="Sign in")).to_be_visible()
    assert not is_signed_in(page)


def test_an_expired_token_is_refused_in_words(guild: Shop, issuer: LoginPage, visit: Visit) -> None:
    visitor = visit(guild)
    visitor.expect_complaint("status of 401")
    page = visitor.open("/sign-in")
    issuer.signs_in(token("ann", seconds=-3600))
    go_and_come_back(page)
    expect(page.get_by_role("alert")).to_contain_text("The token has expired: sign in again.")
    expect(page).to_have_url(f"{guild.url}/console/sign-in")
    assert not is_signed_in(page)


# -- for everybody --------------------------------------------------------------------------------


def test_each_state_of_the_page_is_for_everybody(guild: Shop, visit: Visit) -> None:
    page = visit(guild).open("/sign-in")
    page.get_by_text("Sign in with a token").click()
    assert findings(page) == []
    page.goto(foreign(guild, error="otp_expired"))
    assert findings(page) == []
    page.goto(foreign(guild, access_token=token("eve")))
    expect(page.get_by_role("heading", name="Sign in as")).to_be_visible()
    assert findings(page) == []
    page.keyboard.press("Tab")
    expect(page.get_by_role("button", name="Sign in as this user")).to_be_focused()


# -- what others may send -------------------------------------------------------------------------


def test_a_token_that_nobody_asked_for_signs_nobody_in(guild: Shop, visit: Visit) -> None:
    visitor = visit(guild)
    visitor.page.goto(foreign(guild, access_token=token("eve")))
    page = visitor.page
    expect(page.get_by_role("heading", name="Sign in as eve@example.test?")).to_be_focused()
    expect(page).to_have_url(f"{guild.url}/console/sign-in")
    assert not is_signed_in(page)
    page.get_by_role("button", name="Do not").click()
    expect(page.get_by_role("link", name="Sign in")).to_be_visible()
    page.goto(foreign(guild, access_token=token("eve")))  # the same page: nothing is loaded
    page.get_by_role("button", name="Sign in as this user").click()
    expect(page).to_have_url(f"{guild.url}/console")
    assert name_of(page) == "eve@example.test"


def test_what_was_begun_counts_once_and_in_its_window(
    guild: Shop, issuer: LoginPage, visit: Visit
) -> None:
    visitor = visit(guild)
    page = visitor.open("/sign-in")
    issuer.answer = {"error": "server_error"}
    go_and_come_back(page)
    expect(page.get_by_role("alert")).to_contain_text("The identity provider failed.")
    page.goto(foreign(guild, access_token=token("eve")))
    expect(page.get_by_role("heading", name="Sign in as eve@example.test?")).to_be_visible()
    visitor.open("/sign-in")
    page.get_by_role("link", name="Sign in").click()
    expect(page).to_have_title("Issuer")
    other = page.context.new_page()
    other.goto(foreign(guild, access_token=token("eve")))
    expect(other.get_by_role("heading", name="Sign in as eve@example.test?")).to_be_visible()
    assert not is_signed_in(page)


def test_a_sign_in_begun_long_ago_is_asked_about(
    guild: Shop, issuer: LoginPage, visit: Visit
) -> None:
    visitor = visit(guild)
    visitor.page.clock.install()
    page = visitor.open("/sign-in")
    issuer.signs_in(token("ann"))
    page.get_by_role("link", name="Sign in").click()
    page.clock.fast_forward("11:00")
    page.get_by_role("link", name="Continue").click()
    expect(page.get_by_role("heading", name="Sign in as ann@example.test?")).to_be_visible()


def test_a_state_has_to_come_back(guild: Shop, issuer: LoginPage, visit: Visit) -> None:
    visitor = visit(guild)
    visitor.page.route("**/console/sign-in*", with_state)
    page = visitor.open("/sign-in")
    issuer.signs_in(token("ann"))
    page.get_by_role("link", name="Sign in").click()
    expect(page).to_have_title("Issuer")
    (state,) = issuer.states
    assert len(state) == 32
    issuer.states[:] = ["somebody-elses"]
    page.get_by_role("link", name="Continue").click()
    expect(page.get_by_role("heading", name="Sign in as ann@example.test?")).to_be_visible()
    visitor.open("/sign-in")
    go_and_come_back(page)
    expect(page).to_have_url(f"{guild.url}/console")
    assert issuer.states[-1] not in ("somebody-elses", state)


def test_words_that_others_wrote_are_not_shown(guild: Shop, visit: Visit) -> None:
    page = visit(guild).page
    page.goto(foreign(guild, error="otp_expired", error_description="Call 555 0199 now"))
    expect(page.get_by_role("alert")).to_contain_text("was used before, or has expired")
    expect(page.get_by_text("555")).to_have_count(0)
    page.goto(foreign(guild, error="constructor"))
    expect(page.get_by_role("alert")).to_contain_text("did not sign you in")
    page.goto(foreign(guild, access_token="no-token"))
    expect(page.get_by_role("alert")).to_contain_text("no token that can be read")


def test_nobody_is_led_away_after_signing_in(guild: Shop, issuer: LoginPage, visit: Visit) -> None:
    visitor = visit(guild)
    page = visitor.open("/sign-in?next=https://evil.test/console/")
    issuer.signs_in(token("ann"))
    go_and_come_back(page)
    expect(page).to_have_url(f"{guild.url}/console")
