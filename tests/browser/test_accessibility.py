"""Everybody can use every page: axe-core finds nothing serious, nothing is wider than a phone."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser

from tests.browser.axe import findings
from tests.browser.furnish import ACCOUNT, furnish
from tests.browser.places import places
from tests.fakes import shop
from tests.fakes.browser import DESK, PHONE, Scheme, Visitor
from tests.fakes.shop import Shop

EMPTY = "empty"
LOOKS: dict[str, tuple[tuple[int, int], Scheme]] = {
    "light": (DESK, "light"),
    "dark": (DESK, "dark"),
    "phone": (PHONE, "light"),
}
_WIDER = """
() => document.documentElement.scrollWidth > document.documentElement.clientWidth
  ? [...document.querySelectorAll("main *")]
      .filter((each) => each.getBoundingClientRect().right > innerWidth + 1)
      .filter((each) => !each.closest(".table-wrap, pre"))
      .map((each) => each.outerHTML.slice(0, 120))
      .concat(["the page"])
  : []
"""


@pytest.fixture(scope="module")
def furnished(chromium: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """A shop with a full account and an empty one. The full one's books do not balance."""
    assert chromium.is_connected()
    with shop.serving(tmp_path_factory.mktemp("furnished"), people=True) as serving:
        serving.account(EMPTY, "0")
        furnish(serving)
        yield serving


@pytest.mark.parametrize("account", [ACCOUNT, EMPTY])
@pytest.mark.parametrize("look", LOOKS)
def test_every_page_can_be_used_by_everybody(
    chromium: Browser, furnished: Shop, look: str, account: str
) -> None:
    size, scheme = LOOKS[look]
    visitor = Visitor(chromium, furnished, size=size, scheme=scheme)
    visitor.expect_complaint("status of 404")
    visitor.sign_in_as_operator()
    found: list[str] = []
    wider: list[str] = []
    for name, path in places(visitor, account).items():
        page = visitor.open(path)
        if look == "phone" and page.locator(".menu").count():
            page.get_by_role("button", name="Menu").click()
        page.evaluate(
            "document.querySelectorAll('details').forEach((each) => { each.open = true })"
        )
        found += [f"{name}: {each}" for each in findings(page)]
        wider += [f"{name}: {each}" for each in page.evaluate(_WIDER)]
    visitor.close()
    assert not found, "\n".join(found)
    assert not wider, "\n".join(wider)
