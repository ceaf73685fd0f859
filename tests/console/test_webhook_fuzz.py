"""10,000 deliveries to the webhook in random order: duplicates, replays, losses, forgeries.

Payments are made, declined, refunded, disputed and given up at the stand-in, which makes the events
that Stripe would. They are delivered late, often, or never; in between come forgeries of every
kind, moments in which Stripe does not answer, and several readers of the inbox at once. In the end
the account has what was paid, less what was refunded and disputed, to the cent.

`WEBHOOK_FUZZ_DELIVERIES` and `WEBHOOK_FUZZ_SEED` change how many and which.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from random import Random

import pytest
import trio

from console import inbox
from console.stripe_client import CENT, EVENT_AGE_SECONDS_MAX
from tests.fakes.stripe import DECLINED, VISA, WEBHOOK_SECRET, Event, sign
from tests.fakes.till import Till, till

DELIVERIES = int(os.environ.get("WEBHOOK_FUZZ_DELIVERIES", "10000"))
SEED = int(os.environ.get("WEBHOOK_FUZZ_SEED", "1"))
ACTIONS = 320
LOST = 0.1  # of all that happens nobody is told


class Fuzz:
    """One run. `owed` is what the account should have in the end, kept by itself, in cents."""

    def __init__(self, place: Till, random: Random) -> None:
        self.place = place
        self.random = random
        self.owed = 0
        self.open: list[str] = []  # pages
        self.paid: dict[str, int] = {}  # PaymentIntents, and what is left of them
        self.pending: list[tuple[str, str, int]] = []  # refunds that may yet fail
        self.disputes: list[tuple[str, str, int]] = []
        self.events: list[Event] = []  # of which Stripe would tell
        self.told: set[str] = set()
        self.answers: Counter[str] = Counter()

    # -- what happens at Stripe -------------------------------------------------------------------

    async def act(self) -> None:
        """One thing happens."""
        random, stripe = self.random, self.place.stripe
        match random.choice(("start", "pay", "pay", "refund", "fail", "dispute", "close", "else")):
            case "start":
                _, session_id = await self.place.start(f"{random.randint(500, 20_000) / 100:.2f}")
                self.open.append(session_id)
            case "pay" if self.open:
                self.pay(random.choice(self.open))
            case "refund" if self.paid:
                self.refund(random.choice(list(self.paid)))
            case "fail" if self.pending:
                refund = self.pending.pop(random.randrange(len(self.pending)))
                stripe.fail_refund(refund[0])
                self.owed += refund[2]
                if refund[1] in self.paid:
                    self.paid[refund[1]] += refund[2]
            case "dispute" if self.paid:
                self.dispute(random.choice(list(self.paid)))
            case "close" if self.disputes:
                dispute_id, _, cents = self.disputes.pop(random.randrange(len(self.disputes)))
                won = random.random() < 0.5
                stripe.close_dispute(dispute_id, won=won)
                self.owed += cents if won else 0
            case "else":
                stripe.foreign_payment(random.randint(100, 9_999))
        events = stripe.take_events()
        if random.random() >= LOST:
            self.events += events

    def pay(self, session_id: str) -> None:
        stripe, random = self.place.stripe, self.random
        if random.random() < 0.1:
            stripe.expire(session_id)
        elif random.random() < 0.2:
            assert not stripe.pay(session_id, DECLINED)
            return
        else:
            assert stripe.pay(session_id, VISA)
            session = stripe.sessions[session_id]
            assert session.intent is not None
            self.paid[session.intent] = session.amount
            self.owed += session.amount
        self.open.remove(session_id)

    def refund(self, intent_id: str) -> None:
        left = self.paid[intent_id]
        cents = left if self.random.random() < 0.3 else self.random.randint(1, left)
        status = self.random.choice(("succeeded", "pending"))
        refund_id = self.place.stripe.refund(intent_id, cents, status)
        self.owed -= cents
        self.paid[intent_id] -= cents
        if not self.paid[intent_id]:
            del self.paid[intent_id]
        self.pending.append((refund_id, intent_id, cents))

    def dispute(self, intent_id: str) -> None:
        cents = self.paid.pop(intent_id)
        inquiry = self.random.random() < 0.2
        dispute_id = self.place.stripe.dispute(intent_id, inquiry=inquiry)
        if not inquiry:
            self.owed -= cents
            self.disputes.append((dispute_id, intent_id, cents))

    # -- what comes to the webhook ----------------------------------------------------------------

    async def deliver(self) -> None:
        """One request."""
        if not self.events or self.random.random() < 0.4:
            await self.forge()
            return
        recent = self.random.random() < 0.5
        event = self.random.choice(self.events[-20:] if recent else self.events)
        late = self.random.uniform(-EVENT_AGE_SECONDS_MAX + 1, EVENT_AGE_SECONDS_MAX - 1)
        signature = sign(event.body, at=self.place.wall() - late)
        await self.expect(200, event.body, signature)
        self.told.add(event.id)

    async def forge(self) -> None:
        """One that Stripe never sent: the payment of somebody who has not paid, mostly."""
        random, now = self.random, self.place.wall()
        real = random.choice(self.events).body if self.events else b"{}"
        body, wrong = self.invented(), f"whsec_{random.randrange(1 << 40)}"
        header = {
            "unsigned": "",
            "another secret": sign(body, wrong, now),
            "no secret": sign(body, "", now),
            "signature of another": sign(real + b" ", at=now),
            "too old": sign(body, at=now - EVENT_AGE_SECONDS_MAX - random.randint(1, 10**6)),
            "to come": sign(body, at=now + EVENT_AGE_SECONDS_MAX + random.randint(1, 10**6)),
            "noise": "".join(chr(random.randint(33, 255)) for _ in range(random.randint(1, 200))),
            "the secret itself": f"t={int(now)},v1={WEBHOOK_SECRET}",
            "another scheme": sign(body, at=now).replace("v1=", "v2="),
        }
        kind = random.choice(list(header))
        self.answers[kind] += 1
        await self.expect(400, body, header[kind])

    def invented(self) -> bytes:
        """A real event's shape, with more in it, or about something else."""
        random = self.random
        if not self.events or random.random() < 0.1:
            return random.randbytes(random.randint(0, 300))
        whole = json.loads(random.choice(self.events).body)
        whole["id"] = f"evt_forged{random.randrange(1 << 60)}"
        about = whole["data"]["object"]
        about["amount"] = about["amount_received"] = random.randint(1, 10**9)
        about["status"] = "succeeded"
        return json.dumps(whole).encode()

    async def expect(self, status: int, body: bytes, signature: str) -> None:
        answer = await self.place.send(body, signature)
        assert answer.status_code == status, answer.text
        self.answers[str(status)] += 1

    # -- who reads the inbox ----------------------------------------------------------------------

    async def look(self) -> None:
        """Some readers look into some of it, while Stripe may be in trouble."""
        place, random = self.place, self.random
        if random.random() < 0.2:
            with place.stripe.lock:
                place.stripe.faults.extend(
                    random.choices(("broken_before", "broken_after", "500_before", "429"), k=4)
                )

        async def read() -> None:
            for _ in range(random.randint(1, 6)):
                await inbox.look_into_next(place.console, place.client)

        async with trio.open_nursery() as readers:
            for _ in range(random.randint(1, 3)):
                readers.start_soon(read)
        place.stripe.faults.clear()
        place.wall.seconds += random.choice((0, 0, 1, 10))

    async def finish(self) -> None:
        """Everything that is due, and what no event told of."""
        place = self.place
        place.wall.seconds += 3600
        await place.look()
        await place.compare()
        while place.inbox().get("waiting"):
            place.wall.seconds += 3600
            await place.look()


@pytest.mark.parametrize("seed", [SEED])
async def test_the_account_has_what_was_paid(database: str, seed: int) -> None:
    random = Random(seed)
    async with till(database, pages_a_minute=10_000) as place:
        fuzz = Fuzz(place, random)
        every = max(DELIVERIES // ACTIONS, 1)
        for number in range(DELIVERIES):
            if number % every == 0:
                await fuzz.act()
            await fuzz.deliver()
            if random.random() < 0.01:
                await fuzz.look()
        kept = place.ask("SELECT event_id FROM console.stripe_event WHERE event_id LIKE 'evt_%%'")
        assert {event_id for (event_id,) in kept} == fuzz.told
        await fuzz.finish()

        assert set(place.inbox()) == {"done"}
        assert place.balance() == fuzz.owed * CENT
        paid = place.ask("SELECT ref FROM ledger.external_ref WHERE code = 1 ORDER BY ref")
        ours = [
            each for each in place.stripe.intents.values() if "farebox_payment" in each.metadata
        ]
        assert [ref for (ref,) in paid] == sorted(
            each.id for each in ours if each.status == "succeeded"
        )
        fees = sum(
            movement.fee
            for movement in place.stripe.movements.values()
            if intent_of(place, movement.source) in {each.id for each in ours}
        )
        assert sum(place.transfers(2)) == fees * CENT
        assert await place.compare() == 0
        assert min(fuzz.answers.values()) > 0
        assert len(paid) > 5


def intent_of(place: Till, source: str) -> str:
    """The PaymentIntent of whatever moved."""
    stripe = place.stripe
    found = stripe.charges.get(source) or stripe.refunds.get(source) or stripe.disputes.get(source)
    assert found is not None
    return found.intent
