"""A console that takes payments, with a stand-in for Stripe, an account, and its owner's browser.

Nothing happens by itself: a test says when events are delivered (`deliver`), when the inbox is
looked into (`look`), when recharges are due (`recharge`), and what time it is (`wall`).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

import httpx2
import psycopg
import trio

from console import inbox, recharger
from console.context import CARD_PAGES_A_MINUTE, Console
from console.security import RateLimit
from console.settings import StripeSettings
from console.stripe_client import Stripe
from ledger.directory import Directory
from ledger.money import parse_usd
from tests.fakes import stripe as stand_in
from tests.fakes.console import Browser, console, running
from tests.fakes.issuer import Wall
from tests.fakes.people import SETTINGS, Town
from tests.fakes.stripe import API_KEY, VISA, WEBHOOK_SECRET, Event, sign

WEBHOOK = "/console/api/stripe/webhook"
ACCOUNT = "acme"
API = f"/console/api/accounts/{ACCOUNT}"


@dataclass
class Till:
    """See above. Amounts are nano-dollars where nothing else is said."""

    stripe: stand_in.Stripe
    console: Console
    town: Town
    conninfo: str
    owner: Browser
    anybody: Browser
    slept: list[float] = field(default_factory=list)

    @property
    def wall(self) -> Wall:
        """What time it is."""
        return self.town.wall

    @property
    def client(self) -> Stripe:
        """The console's way to Stripe."""
        assert self.console.card_payments is not None
        return self.console.card_payments

    # -- people -----------------------------------------------------------------------------------

    async def start(self, amount: str = "25", *, save_card: bool = False) -> tuple[str, str]:
        """The owner begins a top-up: its payment and session ids."""
        answer = await self.owner.post(
            f"{API}/top-ups", json={"amount": amount, "save_card": save_card}
        )
        assert answer.status_code == 201, answer.text
        started = answer.json()
        return started["payment_id"], started["url"].rpartition("/")[2]

    async def pay(
        self, amount: str = "25", number: str = VISA, *, save_card: bool = False
    ) -> tuple[str, str]:
        """The owner tops up: its payment and PaymentIntent. Nothing has been delivered yet."""
        payment_id, session_id = await self.start(amount, save_card=save_card)
        assert self.stripe.pay(session_id, number)
        intent_id = self.stripe.sessions[session_id].intent
        assert intent_id is not None
        return payment_id, intent_id

    async def top_up(self, amount: str = "25", *, save_card: bool = False) -> tuple[str, str]:
        """The same, until it is credited."""
        paid = await self.pay(amount, save_card=save_card)
        await self.deliver()
        await self.look()
        return paid

    async def shown(self, path: str) -> dict[str, object]:
        """What the API says to the owner."""
        answer = await self.owner.get(f"{API}{path}")
        assert answer.status_code == 200, answer.text
        found = answer.json()
        assert isinstance(found, dict)
        return found

    # -- Stripe -----------------------------------------------------------------------------------

    async def send(self, body: bytes, signature: str) -> httpx2.Response:
        """A request to the webhook, from anywhere."""
        return await self.anybody.post(
            WEBHOOK, content=body, headers={b"stripe-signature": signature.encode("latin-1")}
        )

    async def deliver(self, events: Iterable[Event] | None = None) -> None:
        """Deliver events, by default all that have happened."""
        for event in self.stripe.take_events() if events is None else events:
            answer = await self.send(event.body, sign(event.body, at=self.wall()))
            assert answer.status_code == 200, answer.text

    async def look(self) -> None:
        """The inbox is looked into."""
        await inbox.look_into_all(self.console, self.client)

    async def compare(self) -> int:
        """The books are compared with Stripe, and what was missing looked into; how much it was."""
        missing = await inbox.compare(self.console, self.client)
        await self.look()
        return missing

    async def recharge(self, *, sweep: bool = True) -> None:
        """Recharges that are due are opened, and all that are under way gone on with."""
        await recharger.open_due(self.console, sweep=sweep)
        await recharger.pursue_due(self.console, self.client)

    # -- the database -----------------------------------------------------------------------------

    def ask(self, statement: str, *values: object) -> list[tuple[object, ...]]:
        """Rows of a statement, as the owner of the database."""
        with psycopg.connect(self.conninfo, autocommit=True) as connection:
            cursor = connection.execute(statement.encode(), values)
            return cursor.fetchall() if cursor.description else []

    @property
    def account_id(self) -> int:
        """The account's number."""
        ((found,),) = self.ask("SELECT account_id FROM directory.account WHERE name = %s", ACCOUNT)
        assert isinstance(found, int)
        return found

    def balance(self) -> int:
        """What the account has."""
        ((found,),) = self.ask(
            "SELECT funded - spent FROM ledger.pool WHERE pool_id = %s", self.account_id
        )
        assert isinstance(found, int)
        return found

    def spend(self, amount: str) -> None:
        """Take from the account, so that it falls below something."""
        with Directory(self.conninfo) as directory:
            directory.credit(ACCOUNT, -parse_usd(amount), "used")

    def transfers(self, code: int) -> list[int]:
        """The amounts of all journal entries of a kind."""
        rows = self.ask(
            "SELECT amount FROM ledger.transfer WHERE code = %s ORDER BY transfer_id", code
        )
        return [amount for (amount,) in rows if isinstance(amount, int)]

    def inbox(self) -> dict[str, int]:
        """How many events are in which state."""
        rows = self.ask("SELECT state, count(*)::int FROM console.stripe_event GROUP BY 1")
        return {str(state): count for state, count in rows if isinstance(count, int)}

    def notices(self) -> list[str]:
        """What the owners are to be told."""
        rows = self.ask("SELECT kind FROM console.notice ORDER BY notice_id")
        return [str(kind) for (kind,) in rows]

    def is_served(self) -> bool:
        """Whether the account is not suspended."""
        ((status,),) = self.ask("SELECT status FROM directory.account WHERE name = %s", ACCOUNT)
        return status == 1


@asynccontextmanager
async def till(conninfo: str, pages_a_minute: int = CARD_PAGES_A_MINUTE) -> AsyncIterator[Till]:
    """A till for the time of the block."""
    wall = Wall()
    with stand_in.serving() as stripe:
        stripe.clock = wall
        settings = StripeSettings(
            api_key=API_KEY, webhook_secret=WEBHOOK_SECRET, api_base=stripe.base_url
        )
        with Directory(conninfo) as directory:
            directory.create_account(ACCOUNT)
        parts = console(conninfo, settings=SETTINGS, stripe=settings, wall=wall)
        slept: list[float] = []

        async def sleep(seconds: float) -> None:
            slept.append(seconds)
            await trio.lowlevel.checkpoint()

        parts.card_payments = Stripe(settings, sleep=sleep)
        parts.card_pages = RateLimit(pages_a_minute, 60.0, trio.current_time)
        async with running(parts) as served, AsyncExitStack() as browsers:
            town = Town(served, parts, conninfo, wall, browsers)
            anybody = await town.browser()
            del anybody.headers["sec-fetch-site"]
            owner = await town.operator()
            found = Till(stripe, parts, town, conninfo, owner, anybody, slept)
            try:
                yield found
            finally:
                await found.client.aclose()
