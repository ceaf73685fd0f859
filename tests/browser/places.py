"""Every page that there is, by name; some are found by looking at others."""

from __future__ import annotations

from collections.abc import Mapping

from tests.fakes.browser import Visitor
from tests.fakes.shop import SHAKY

_FIXED = {
    "overview": "",
    "usage": "/usage",
    "keys": "/keys",
    "models": "/models",
    "billing": "/billing",
    "plan": "/plan",
    "members": "/members",
    "audit": "/audit",
    "integrations": "/integrations",
    "errors": "/errors",
    "settings": "/settings",
}


def places(visitor: Visitor, account: str) -> Mapping[str, str]:
    """The pages that an account's operator has, below `/console`."""
    found = {name: f"/{account}{path}" for name, path in _FIXED.items()}
    page = visitor.open(f"/{account}/usage?model={SHAKY}")
    if page.locator("tbody a").count():
        found["request"] = _path_of(visitor, "tbody a")
    visitor.open(f"/{account}/keys")
    if page.locator("tbody a").count():
        found["key"] = _path_of(visitor, "tbody a")
    found["no-requests"] = f"/{account}/usage?model=none-of-this-name"
    found["accounts"] = ""
    found["sign-in"] = "/sign-in"
    found["sign-in-link"] = "/sign-in/some-token"
    found["nothing-here"] = "/nobodys/keys"
    return found


def _path_of(visitor: Visitor, selector: str) -> str:
    path = visitor.page.locator(selector).first.get_attribute("href")
    assert path
    return path.removeprefix("/console")
