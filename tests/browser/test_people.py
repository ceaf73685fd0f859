"""Several people and one account: invited, limited by their role, granted a plan."""

from __future__ import annotations

from urllib.parse import unquote, urlsplit

from playwright.sync_api import expect

from tests.browser.conftest import Visit
from tests.fakes.browser import Visitor
from tests.fakes.shop import Shop


def account_of(visitor: Visitor) -> str:
    """The account whose page is open."""
    return unquote(urlsplit(visitor.page.url).path.split("/")[2])


def test_somebody_is_invited_and_sees_what_a_viewer_sees(town: Shop, visit: Visit) -> None:
    ann, bob, eve = visit(town), visit(town), visit(town)
    ann.sign_in_as("ann")
    ann.page.get_by_role("button", name="Open an account of my own").click()
    expect(ann.page.get_by_text("Your account is open.")).to_be_visible()
    account = account_of(ann)
    page = ann.open(f"/{account}/members")
    page.get_by_label("E-mail address").fill("bob@example.test")
    page.get_by_label("Role", exact=True).select_option("viewer")
    page.get_by_role("button", name="Create invitation").click()
    link = page.locator("#link").inner_text()

    eve.sign_in_as("eve")
    eve.expect_complaint("status of 40[34]")
    eve.page.goto(link)
    expect(eve.page.get_by_role("button", name="Accept")).to_have_count(0)
    eve.open(f"/{account}")
    expect(eve.page.get_by_role("heading", name="Nothing here")).to_be_visible()

    bob.page.goto(link)  # not signed in yet: there first, and then back
    expect(bob.page).to_have_title("Sign in · farebox")
    bob.sign_in_as("bob")
    bob.page.goto(link)
    bob.page.get_by_role("button", name="Accept").click()
    expect(bob.page.get_by_role("heading", name="Overview")).to_be_visible()
    expect(bob.page.get_by_role("link", name="Credit & billing")).to_have_count(0)
    expect(bob.page.get_by_role("link", name="New key")).to_have_count(0)
    bob.open(f"/{account}/keys")
    expect(bob.page.get_by_role("button", name="Create key")).to_have_count(0)

    page = ann.open(f"/{account}/members")
    page.get_by_label("Role of bob@example.test").select_option("developer")
    page.get_by_role("row", name="bob@example.test").get_by_role("button", name="Save").click()
    expect(page.get_by_text("The member has another role.")).to_be_visible()
    page = bob.open(f"/{account}/keys")
    expect(page.get_by_text("A key belongs to a project")).to_be_visible()
    page = ann.open(f"/{account}/audit")
    for action in ("account", "invitation", "member"):
        expect(page.get_by_role("row").filter(has_text=action).first).to_be_visible()


def test_a_plan_is_asked_for_and_granted(town: Shop, visit: Visit) -> None:
    kim, operator = visit(town), visit(town)
    kim.sign_in_as("kim")
    kim.page.get_by_role("button", name="Open an account of my own").click()
    expect(kim.page.get_by_text("Your account is open.")).to_be_visible()
    account = account_of(kim)
    page = kim.open(f"/{account}/plan")
    expect(page.get_by_role("heading", name="No limits")).to_be_visible()
    row = page.get_by_role("region", name="Tiers").get_by_role("row", name="pro")
    row.get_by_label("Why").fill("We launch on Monday")
    row.get_by_role("button", name="Ask for it").click()
    expect(page.get_by_text("Asked for.")).to_be_visible()
    expect(page.get_by_role("button", name="Grant")).to_have_count(0)

    operator.sign_in_as_operator()
    page = operator.open("")
    asked = page.locator("form", has_text=account).filter(has_text="We launch on Monday")
    asked.get_by_label("Reply").fill("Good luck")
    asked.get_by_role("button", name="Grant").click()
    expect(page.get_by_text("Decided.")).to_be_visible()

    page = kim.open(f"/{account}/plan")
    expect(page.get_by_role("heading", name="pro")).to_be_visible()
    expect(page.get_by_text("Good luck")).to_be_visible()
    expect(page.get_by_text("granted")).to_be_visible()
