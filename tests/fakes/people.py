"""People in front of a console: users with tokens of the fake issuer, and the operator.

`town` is a console of a deployment whose issuer signs with a shared secret; `Town.person` is a
browser of somebody who has signed in, each from an address of their own.
"""

from __future__ import annotations

import datetime as dt
import itertools
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace

import trio
from starlette.types import ASGIApp

from console.context import Console, ServerFacts
from console.links import sign_in_link
from console.settings import ConsoleSettings, StripeSettings
from tests.fakes.console import FACTS, PUBLIC_URL, Browser, console, running
from tests.fakes.issuer import AUDIENCE, ISSUER, SECRET, Wall, by_secret

SETTINGS = ConsoleSettings(jwt_secret=SECRET, issuer=ISSUER, audience=AUDIENCE)


class Town:
    """A console and everybody in front of it."""

    def __init__(
        self, served: ASGIApp, parts: Console, conninfo: str, wall: Wall, browsers: AsyncExitStack
    ) -> None:
        self.console = parts
        self.wall = wall
        self._served = served
        self._conninfo = conninfo
        self._browsers = browsers
        self._numbers = itertools.count(1)

    async def browser(self, address: str = "") -> Browser:
        """Somebody who has not signed in, from an address of their own."""
        number = next(self._numbers)
        unused = f"198.51.{number // 256}.{number % 256}"
        browser = Browser(
            self._served,
            address=address or unused,
            base_url=self.console.server.public_url,
        )
        return await self._browsers.enter_async_context(browser)

    def token(self, name: str, seconds: float = 3600, **changed: object) -> str:
        """A token about somebody, that lasts so long from now."""
        now = int(self.wall())
        facts = {"sub": name, "email": f"{name}@example.test", "exp": now + seconds, "iat": now}
        return by_secret(SECRET, None, **(facts | {"user_metadata": None} | changed))

    async def person(self, name: str, seconds: float = 3600, **changed: object) -> Browser:
        """Somebody who has signed in."""
        browser = await self.browser()
        bearer = {"authorization": f"Bearer {self.token(name, seconds, **changed)}"}
        answer = await browser.post("/console/api/session", headers=bearer)
        assert answer.status_code == 201, answer.text
        return browser

    async def link(self) -> str:
        """The token of a new sign-in link."""
        now = dt.datetime.fromtimestamp(self.wall(), dt.UTC)
        url = await trio.to_thread.run_sync(sign_in_link, self._conninfo, PUBLIC_URL, now)
        return url.removeprefix(f"{PUBLIC_URL}/console/sign-in/")

    async def operator(self) -> Browser:
        """Whoever runs the gateway, signed in."""
        browser = await self.browser("127.0.0.1")
        answer = await browser.post("/console/api/session/link", json={"token": await self.link()})
        assert answer.status_code == 201, answer.text
        return browser


@asynccontextmanager
async def town(
    conninfo: str,
    public_url: str = PUBLIC_URL,
    facts: ServerFacts = FACTS,
    stripe: StripeSettings | None = None,
    settings: ConsoleSettings = SETTINGS,
) -> AsyncIterator[Town]:
    """A town for the time of the block."""
    wall = Wall()
    server = replace(facts, public_url=public_url)
    parts = console(conninfo, settings=settings, stripe=stripe, server=server, wall=wall)
    async with running(parts) as served, AsyncExitStack() as browsers:
        yield Town(served, parts, conninfo, wall, browsers)
