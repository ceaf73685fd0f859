"""Pictures of every page: `make screenshots` writes them into a folder, and a few into `docs`.

    python -m tests.browser.screenshots [FOLDER]

Every page of a furnished account in light, in dark, and as a phone shows it.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from playwright.sync_api import Browser, Page

from tests.browser.furnish import ACCOUNT, furnish
from tests.browser.places import places
from tests.fakes import browser, shop
from tests.fakes.browser import DESK, PHONE, Scheme, Visitor
from tests.fakes.shop import Shop, eventually

_DOCS = Path(__file__).parents[2] / "docs" / "screenshots"
_KINDS: tuple[tuple[str, tuple[int, int], Scheme], ...] = (
    ("light", DESK, "light"),
    ("dark", DESK, "dark"),
    ("phone", PHONE, "light"),
)
_KEPT = {
    "overview-light": "overview-light.png",
    "request-dark": "request-dark.png",
    "overview-phone": "overview-phone.png",
}


def main(folder: Path) -> None:
    """Make them all."""
    folder.mkdir(parents=True, exist_ok=True)
    _DOCS.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory() as directory,
        browser.chromium() as chromium,
        shop.serving(Path(directory), people=True) as town,
    ):
        furnish(town)
        for kind, size, scheme in _KINDS:
            _take(chromium, town, folder, kind, size, scheme)


def _take(
    chromium: Browser, town: Shop, folder: Path, kind: str, size: tuple[int, int], scheme: Scheme
) -> None:
    visitor = Visitor(chromium, town, size=size, scheme=scheme)
    visitor.expect_complaint("40[1-4]")
    visitor.sign_in_as_operator()

    seen: list[str] = []

    def summed_up() -> bool:
        """Whether there are sums that have not changed for a while."""
        seen.append(visitor.open(f"/{ACCOUNT}").locator("main").inner_text())
        return visitor.page.locator("svg.chart.wide").count() == 1 and seen[-20:] == seen[-1:] * 20

    eventually(summed_up, "the sums of the history")
    for name, path in places(visitor, ACCOUNT).items():
        page = visitor.open(path)
        _shoot(page, folder / f"{name}-{kind}.png", whole=True)
        if kept := _KEPT.get(f"{name}-{kind}"):
            _shoot(page, _DOCS / kept, whole=False)
    visitor.close()


def _shoot(page: Page, file: Path, *, whole: bool) -> None:
    page.screenshot(path=file, full_page=whole, animations="disabled", caret="hide")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path("screenshots"))
