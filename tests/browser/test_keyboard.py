"""The console without a mouse: keys, the order of things, and a theme that stays."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import Visit
from tests.browser.places import places
from tests.fakes.browser import PHONE, Visitor
from tests.fakes.shop import Shop

TABS_MAX = 200
GOES = {
    "o": "Overview",
    "u": "Usage",
    "k": "Keys",
    "m": "Models",
    "b": "Credit and billing",
    "l": "Plan and limits",
    "e": "Members",
    "a": "Audit log",
    "i": "Integrations",
    "h": "Error codes",
    "s": "Settings",
}
_FOCUSED = """
() => {
  const each = document.activeElement;
  return each === document.body ? "" : each.outerHTML.slice(0, 200);
}
"""
_USABLE = """
() => [...document.querySelectorAll("main a, main button, main input, main select, main textarea")]
  .filter((each) => each.type !== "hidden" && each.checkVisibility())
  .filter((each) => each.type !== "radio" || each.checked)
  .map((each) => each.outerHTML.slice(0, 200))
"""
_IN_VIEW = """
() => {
  const at = document.activeElement.getBoundingClientRect();
  return at.bottom > 0 && at.top < innerHeight;
}
"""


@pytest.fixture(scope="module")
def account(shop: Shop) -> str:
    """An account of its own."""
    shop.account("keyboard", "5.00")
    return "keyboard"


@pytest.fixture
def operator(shop: Shop, visit: Visit) -> Visitor:
    """The operator, signed in."""
    visitor = visit(shop)
    visitor.sign_in_as_operator()
    return visitor


def theme(page: Page) -> str:
    ground = page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
    red = int(re.findall(r"\d+", ground)[0])
    return "light" if red > 128 else "dark"


def test_the_first_key_skips_the_menu(operator: Visitor, account: str) -> None:
    page = operator.open(f"/{account}/keys")
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    expect(page.get_by_role("link", name="Skip to the content")).to_be_in_viewport()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.closest('main') !== null")


def test_g_and_a_letter_go_to_every_page(operator: Visitor, account: str) -> None:
    page = operator.open(f"/{account}/settings")  # not the first: its title is awaited
    for letter, title in GOES.items():
        page.wait_for_load_state()
        page.keyboard.press("g")
        page.keyboard.press(letter)
        expect(page).to_have_title(f"{title} · farebox")
        current = page.locator(".nav [aria-current=page]")
        expect(current).to_have_attribute("data-key", letter)


def test_letters_that_are_typed_go_nowhere(operator: Visitor, account: str) -> None:
    page = operator.open(f"/{account}/usage")
    page.keyboard.press("/")
    filter_ = page.get_by_label("Model")
    expect(filter_).to_be_focused()
    page.keyboard.type("gk?t")
    expect(filter_).to_have_value("gk?t")
    expect(page).to_have_title("Usage · farebox")
    expect(page.locator("dialog#keys")).to_be_hidden()


def test_a_question_mark_lists_the_keys(operator: Visitor, account: str) -> None:
    page = operator.open(f"/{account}")
    page.keyboard.press("?")
    listed = page.get_by_role("dialog", name="Keys")
    expect(listed).to_be_visible()
    assert listed.locator("dt").count() == len(GOES) + 3
    page.keyboard.press("Escape")
    expect(listed).to_be_hidden()


def test_the_theme_stays(operator: Visitor, account: str) -> None:
    page = operator.open(f"/{account}")
    assert theme(page) == "light"
    page.keyboard.press("t")
    assert theme(page) == "dark"
    page = operator.open(f"/{account}/keys")
    assert theme(page) == "dark"
    page.get_by_role("button", name="Theme").click()
    assert theme(page) == "light"
    page.reload()
    assert theme(page) == "light"


def test_the_systems_theme_is_followed(shop: Shop, visit: Visit) -> None:
    visitor = visit(shop, scheme="dark")
    assert theme(visitor.open("/sign-in")) == "dark"
    visitor.page.emulate_media(color_scheme="light")
    assert theme(visitor.page) == "light"


def test_tab_reaches_everything_in_its_order(operator: Visitor, account: str) -> None:
    for name, path in places(operator, account).items():
        if name == "nothing-here":
            continue
        page = operator.open(path)
        wanted = page.evaluate(_USABLE)
        reached: list[str] = []
        for _ in range(TABS_MAX):
            page.keyboard.press("Tab")
            focused = page.evaluate(_FOCUSED)
            if not focused or focused in reached[:1]:  # around it goes
                break
            assert page.evaluate(_IN_VIEW), focused
            reached.append(focused)
        else:
            raise AssertionError(f"{name}: Tab never leaves the page")
        assert [each for each in reached if each in wanted] == wanted, name


def test_a_key_is_made_by_keyboard(operator: Visitor, account: str) -> None:
    page = operator.open(f"/{account}/keys")
    page.get_by_role("textbox", name="Name").focus()
    page.keyboard.type("typed")
    page.keyboard.press("Enter")
    expect(page.locator("#secret")).to_be_visible()
    expect(page.get_by_role("link", name="typed", exact=True)).to_be_visible()


def test_the_menu_of_a_phone_opens(shop: Shop, visit: Visit, account: str) -> None:
    visitor = visit(shop, size=PHONE)
    visitor.sign_in_as_operator()
    page = visitor.open(f"/{account}")
    menu = page.get_by_role("button", name="Menu")
    expect(menu).to_have_attribute("aria-expanded", "false")
    expect(page.get_by_role("link", name="Usage", exact=True)).to_be_hidden()
    menu.click()
    expect(menu).to_have_attribute("aria-expanded", "true")
    page.get_by_role("link", name="Usage", exact=True).click()
    expect(page).to_have_title("Usage · farebox")
