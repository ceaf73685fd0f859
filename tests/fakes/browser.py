"""Chromium for tests: visitors of a shop's console, whose every complaint is kept.

`chromium` starts the browser that the machine has; `Visitor` is somebody with a window of their
own. What a page says on its console, fails to load, or may not do by its content security policy is
a complaint: a test has none in the end, but for those that it says it expects.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal
from urllib.parse import urlsplit

from playwright._impl._api_structures import SetCookieParam
from playwright.sync_api import Browser, ConsoleMessage, Page, Route, sync_playwright

from tests.fakes.node import cannot_run
from tests.fakes.shop import CHECKOUT, Shop, eventually, token

_NAMES = ("chromium", "chromium-browser", "google-chrome")
_FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)

DESK = (1280, 800)
PHONE = (390, 844)

Scheme = Literal["light", "dark"]


@contextmanager
def chromium() -> Iterator[Browser]:
    """The machine's Chromium for the time of the block; skips the test where it has none."""
    found = next((path for name in _NAMES if (path := shutil.which(name))), None)
    if found is None:
        cannot_run("no Chromium: install the package chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=_FLAGS)
        try:
            yield browser
        finally:
            browser.close()


_OPERATORS: dict[str, SetCookieParam] = {}  # by shop: the cookie of a session that is shared


class Visitor:
    """Somebody in front of the shop's console. `close` once done; it says what pages complained."""

    def __init__(
        self,
        browser: Browser,
        shop: Shop,
        *,
        size: tuple[int, int] = DESK,
        scheme: Scheme = "light",
    ) -> None:
        width, height = size
        self._shop = shop
        self._context = browser.new_context(
            viewport={"width": width, "height": height},
            color_scheme=scheme,
            base_url=shop.url,
            reduced_motion="reduce",
            timezone_id="UTC",
            locale="en-US",
        )
        self._context.set_default_timeout(15_000)
        self._context.on("console", self._heard)
        self._context.on("weberror", lambda error: self.complaints.append(str(error.error)))
        self._context.route(f"{CHECKOUT}/**", self._to_the_stand_in)
        self._context.grant_permissions(["clipboard-read", "clipboard-write"], origin=shop.url)
        self.complaints: list[str] = []
        self._expected: list[re.Pattern[str]] = []
        self.page: Page = self._context.new_page()

    def _heard(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(f"{message.location.get('url', '')}: {message.text}")

    def _to_the_stand_in(self, route: Route) -> None:
        """Ask our Stripe what was asked of the real one's page."""
        request = route.request
        parts = urlsplit(request.url)
        answer = self._context.request.fetch(
            f"{self._shop.stripe.base_url}{parts.path}",
            method=request.method,
            data=request.post_data_buffer,
            headers={"content-type": request.headers.get("content-type", "")},
            max_redirects=0,
        )
        route.fulfill(response=answer)

    def expect_complaint(self, pattern: str) -> None:
        """What matches is none; a page that answers 403 cannot help the browser's saying so."""
        self._expected.append(re.compile(pattern))

    def open(self, path: str) -> Page:
        """Go to a page of the console; as people do, again where a busy gateway asks for that."""

        def shown() -> bool:
            answer = self.page.goto(f"{self._shop.url}/console{path}")
            if answer is None or answer.status != 503:
                return True
            self.expect_complaint("status of 503")
            return False

        eventually(shown, f"the page {path} of a gateway that has time for it")
        return self.page

    def sign_in_as_operator(self, link: str = "") -> None:
        """By a link; who has no link of their own shares a session with the others of this shop, as
        only so many may sign in each minute."""
        known = _OPERATORS.get(self._shop.url)
        if not link and known is not None:
            self._context.add_cookies([known])
            if self._context.request.get("/console/api/session").ok:
                return
        self.page.goto(link or self._shop.new_link())
        self.page.get_by_role("button", name="Sign in").click()
        if not link:
            self.page.wait_for_url(lambda url: "/sign-in" not in url)
            (cookie,) = self._context.cookies()
            _OPERATORS[self._shop.url] = {
                "name": cookie["name"],
                "value": cookie["value"],
                "url": f"{self._shop.url}/console",
            }

    def sign_in_as(self, name: str) -> None:
        """With a token of the issuer."""
        self.open("/sign-in")
        self.page.get_by_label("Access token").fill(token(name))
        self.page.get_by_role("button", name="Sign in").click()
        self.page.wait_for_url(lambda url: "/sign-in" not in url)

    def close(self) -> None:
        """Leave. Raises AssertionError where a page complained."""
        self._context.close()
        left = [
            each
            for each in self.complaints
            if not any(pattern.search(each) for pattern in self._expected)
        ]
        assert not left, "\n".join(left)
