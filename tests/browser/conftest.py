"""One Chromium and two shops for all tests in a browser; who visits them has no complaint.

`shop` is as `make serve` starts it: a link signs in the operator. In `town` people sign in with
tokens of an issuer.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import pytest
from playwright.sync_api import Browser, expect

from tests.fakes import browser, shop
from tests.fakes.browser import DESK, Scheme, Visitor
from tests.fakes.shop import Shop

expect.set_options(timeout=15_000)  # as for actions: seconds are few where cores are scarce


class Visit(Protocol):
    """Makes visitors of a shop."""

    def __call__(
        self, of: Shop, size: tuple[int, int] = DESK, scheme: Scheme = "light"
    ) -> Visitor: ...


@pytest.fixture(scope="package")
def chromium() -> Iterator[Browser]:
    """The browser."""
    with browser.chromium() as started:
        yield started


@pytest.fixture(scope="package", name="shop")
def shop_of_one(chromium: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """A gateway with one operator."""
    assert chromium.is_connected()  # asked for first: without one nothing has to be started
    with shop.serving(tmp_path_factory.mktemp("shop")) as serving:
        yield serving
        serving.gateway.assert_sound_books()


@pytest.fixture(scope="package")
def town(chromium: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """A gateway with an identity provider."""
    assert chromium.is_connected()
    with shop.serving(tmp_path_factory.mktemp("town"), people=True) as serving:
        yield serving
        serving.gateway.assert_sound_books()


@pytest.fixture
def visit(chromium: Browser) -> Iterator[Visit]:
    """Makes visitors; in the end their pages have complained of nothing."""
    visitors: list[Visitor] = []

    def make(of: Shop, size: tuple[int, int] = DESK, scheme: Scheme = "light") -> Visitor:
        visitors.append(Visitor(chromium, of, size=size, scheme=scheme))
        return visitors[-1]

    yield make
    for visitor in visitors:
        visitor.close()
