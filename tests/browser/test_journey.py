"""What an owner does in a browser, from signing in to a key that no longer works."""

from __future__ import annotations

import re
import threading
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal

import openai
from playwright.sync_api import Page, expect

from tests.browser.conftest import Visit
from tests.fakes import stripe
from tests.fakes.browser import Visitor
from tests.fakes.shop import MODELS, Shop, eventually

MODEL = MODELS["openai"][0]
CALLS = 48
CALLERS = 6


def make_key(visitor: Visitor, account: str, name: str) -> str:
    """A new key, by the form."""
    page = visitor.open(f"/{account}/keys")
    page.get_by_role("textbox", name="Name").fill(name)
    page.get_by_role("button", name="Create key").click()
    secret = page.locator("#secret").inner_text()
    assert secret.startswith("sk_farebox_")
    return secret


def figure(page: Page, label: str) -> str:
    """The figure in a card."""
    named = page.locator(".stat", has=page.get_by_text(label, exact=True))
    return named.locator(".value").inner_text()


def usd(text: str) -> Decimal:
    return Decimal(text.removeprefix("$").replace(",", ""))


def say_hello(client: openai.OpenAI) -> str:
    answer = client.chat.completions.create(
        model=MODEL,
        max_completion_tokens=200,
        messages=[{"role": "user", "content": "Hello, how are you?"}],
    )
    text = answer.choices[0].message.content
    assert text
    return text


def test_the_printed_link_signs_in_once(shop: Shop, visit: Visit) -> None:
    owner, other = visit(shop), visit(shop)
    owner.sign_in_as_operator(shop.printed_link())
    expect(owner.page.get_by_role("button", name="Sign out")).to_be_visible()
    other.expect_complaint("401")
    other.sign_in_as_operator(shop.printed_link())
    expect(other.page.get_by_role("heading", name="Please sign in")).to_be_visible()
    other.open("/demo")
    expect(other.page).to_have_title(re.compile("Sign in"))


def test_a_key_works_at_once_and_its_requests_are_seen(shop: Shop, visit: Visit) -> None:
    shop.account("first", "25.00")
    owner = visit(shop)
    owner.sign_in_as_operator()
    owner.open("/first")
    expect(owner.page.get_by_text("Nothing was spent yet")).to_be_visible()
    with shop.client(make_key(owner, "first", "laptop")) as client:
        owner.page.get_by_role("button", name="Copy").first.click()

        def copied() -> bool:
            return bool(owner.page.evaluate("navigator.clipboard.readText()") == client.api_key)

        eventually(copied, "the key in the clipboard")
        say_hello(client)

    def seen() -> bool:
        owner.open("/first/usage")
        return owner.page.locator("tbody tr").count() == 1

    eventually(seen, "the request on the page of usage")
    row = owner.page.locator("tbody tr")
    expect(row).to_contain_text(MODEL)
    expect(row).to_contain_text("settled")
    charged = usd(row.locator("td").last.inner_text())
    assert charged > 0
    row.get_by_role("link").click()
    expect(owner.page.get_by_role("heading", name="What the charge is made of")).to_be_visible()
    parts = owner.page.get_by_role("region", name="What the charge is made of").locator("tbody tr")
    expect(parts).to_have_count(3)  # input, output, and their sum

    def summed() -> bool:
        owner.open("/first")
        return figure(owner.page, "Requests") == "1"

    eventually(summed, "the request on the overview")
    expect(owner.page.locator("svg.chart.wide")).to_be_visible()
    expect(owner.page.locator("tbody").last).to_contain_text(MODEL)
    assert usd(figure(owner.open("/first/billing"), "Total charged")) == charged


def test_credit_is_bought_by_card(shop: Shop, visit: Visit) -> None:
    shop.account("buyer", "5.00")
    owner = visit(shop)
    owner.sign_in_as_operator()
    page = owner.open("/buyer/billing")
    assert usd(figure(page, "Balance")) == 5
    page.get_by_role("radio", name="$50").check()
    page.get_by_role("button", name="Pay by card").click()
    expect(page).to_have_title("Checkout")
    page.get_by_label("Card number").fill(stripe.DECLINED)
    page.get_by_role("button", name="Pay $50.00").click()
    expect(page.get_by_text("Your card was declined.")).to_be_visible()
    page.get_by_label("Card number").fill(stripe.VISA)
    page.get_by_role("button", name="Pay $50.00").click()
    expect(page.get_by_role("heading", name="Credit and billing")).to_be_visible()

    def credited() -> bool:
        page.reload()
        return page.get_by_text("$50.00 were added to the balance.").count() == 1

    eventually(credited, "the credit")
    assert usd(figure(page, "Balance")) == 55
    paid = page.get_by_role("region", name="Payments").locator("tbody tr")
    expect(paid).to_have_count(1)
    expect(paid).to_contain_text("succeeded")
    page.reload()  # pays nothing again
    assert usd(figure(page, "Balance")) == 55
    assert len(shop.stripe.charges) == 1


def test_who_changes_their_mind_pays_nothing(shop: Shop, visit: Visit) -> None:
    shop.account("hesitant", "5.00")
    owner = visit(shop)
    owner.sign_in_as_operator()
    page = owner.open("/hesitant/billing")
    page.get_by_label("Another amount").fill("12.50")
    page.get_by_role("button", name="Pay by card").click()
    expect(page.get_by_role("button", name="Pay $12.50")).to_be_visible()
    page.get_by_role("link", name="Back").click()
    expect(page.get_by_role("heading", name="Credit and billing")).to_be_visible()
    assert usd(figure(page, "Balance")) == 5
    page.get_by_role("button", name="Go on paying $12.50").click()  # and once more
    expect(page.get_by_role("button", name="Pay $12.50")).to_be_visible()


def test_an_amount_that_makes_no_sense_is_explained(shop: Shop, visit: Visit) -> None:
    shop.account("careless", "5.00")
    owner = visit(shop)
    owner.sign_in_as_operator()
    owner.expect_complaint("400")
    page = owner.open("/careless/billing")
    page.get_by_label("Another amount").fill("1.00")
    page.get_by_role("button", name="Pay by card").click()
    expect(page.locator(".callout.bad")).to_be_visible()
    expect(page.get_by_label("Another amount")).to_have_value("1.00")


def test_a_revoked_key_gets_401(shop: Shop, visit: Visit) -> None:
    shop.account("careful", "25.00")
    owner = visit(shop)
    owner.sign_in_as_operator()
    with shop.client(make_key(owner, "careful", "lost laptop")) as client:
        say_hello(client)
        page = owner.open("/careful/keys")
        page.once("dialog", lambda dialog: dialog.dismiss())
        page.get_by_role("button", name="Revoke lost laptop").click()
        say_hello(client)
        page.once("dialog", lambda dialog: dialog.accept())
        page.get_by_role("button", name="Revoke lost laptop").click()
        expect(page.get_by_text("The key is revoked")).to_be_visible()
        expect(page.get_by_text("No keys yet")).to_be_visible()

        def refused() -> bool:
            try:
                say_hello(client)
            except openai.AuthenticationError:
                return True
            return False

        eventually(refused, "the key's refusal")
    page.get_by_role("link", name="Show 1 revoked").click()
    expect(page.locator("tr.spent")).to_contain_text("lost laptop")


def test_a_low_balance_recharges_once(shop: Shop, visit: Visit) -> None:
    shop.account("busy", "1.02", "pro")
    owner = visit(shop)
    owner.sign_in_as_operator()
    page = owner.open("/busy/billing")
    page.get_by_role("button", name="Save a card").click()
    page.get_by_role("button", name="Save card").click()
    expect(page.get_by_role("heading", name="Credit and billing")).to_be_visible()

    def saved() -> bool:
        owner.open("/busy/billing")
        return page.get_by_text("Visa ending in 4242").count() == 1

    eventually(saved, "the saved card")
    with shop.client(make_key(owner, "busy", "worker")) as client:
        say_hello(client)
        page = owner.open("/busy/billing")
        page.get_by_label("Top up automatically").check()
        page.get_by_label("When below").fill("1.01")
        page.get_by_label("Add, USD").fill("20")
        page.get_by_label("At most a month").fill("20")
        page.get_by_role("button", name="Save").click()
        expect(page.get_by_text("Automatic top-ups were changed.")).to_be_visible()
        with ThreadPoolExecutor(CALLERS) as pool:
            assert all(pool.map(lambda _: say_hello(client), range(CALLS)))

    def recharged() -> bool:
        owner.open("/busy/billing")
        rows = page.get_by_role("region", name="Payments").locator("tbody tr")
        return rows.filter(has_text="Automatic top-up").filter(has_text="succeeded").count() == 1

    eventually(recharged, "the automatic top-up")
    threading.Event().wait(2)  # two more polls of the recharger: it has to stay one
    page.reload()
    expect(page.get_by_role("region", name="Payments").locator("tbody tr")).to_have_count(1)
    assert usd(figure(page, "Balance")) > 20
    charges = [charge for charge in shop.stripe.charges.values() if charge.amount == 2000]
    assert len(charges) == 1
