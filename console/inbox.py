"""What Stripe says happened, looked into; and the comparison that finds what it did not say.

Problem: webhooks come late, twice, in any order or not at all, and several consoles may read them;
yet each payment has to be credited once, and whatever is refunded or disputed taken back once.
Approach:

1. An event is a hint. The route stores it and answers; here the *current* payment is fetched, with
   all its refunds and disputes, and the account is brought to where that says it should be
   (`settle`). Looking twice changes nothing, so duplicates and order do not matter.
2. Whoever fetches takes a turn first, and writes only while no later turn was taken. What is
   written was therefore never older than what stands there.
3. Each posting has a reference that the ledger takes once: the PaymentIntent, the refund or dispute
   and the number of the posting, the balance transaction of a fee.
4. What fails is looked into again, less and less often. What cannot succeed, or fails too often,
   is parked for a person, and the log says so. That nobody answers is no such failure.
5. Deliveries may be lost for good. Every hour Stripe's own list of what moved in the last 35 days
   is compared with the books, and what is missing goes into the inbox like an event.

A refund made at Stripe is taken back even where the credit has been used: there the money is gone.
So is a dispute as soon as it takes the money away, and the account is suspended; a dispute that is
won gives the credit back, and leaves to the operator whether to serve the account again.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from uuid import UUID

import trio

from console import notices, recharge
from console.access import moment
from console.context import Console
from console.errors import DatabaseUnavailable
from console.store import Connection, payments, recharges, stripe_events
from console.store.payments import PaymentRow, PaymentState
from console.stripe_client import (
    CURRENCY,
    Card,
    Event,
    Payment,
    Reversal,
    Stripe,
    StripeRefused,
    StripeUnavailable,
)
from ledger.connection import announce

log = logging.getLogger(__name__)

POLL_SECONDS = 0.5
COMPARE_POLL_SECONDS = 60.0
CLAIM = timedelta(minutes=2)
TRIES_MAX = 12
_FIRST_PAUSE = timedelta(seconds=2)
_PAUSE_MAX = timedelta(hours=1)
_TURN_PAUSE = timedelta(seconds=1)

COMPARE_EVERY = timedelta(hours=1)
COMPARE_AGAIN = timedelta(minutes=5)  # after a failure
LOOK_BACK = timedelta(days=35)
KEPT = timedelta(days=40)  # longer than anything is looked back for
_PAGE_OPENED = timedelta(hours=25)  # Stripe closes its pages after 24
_UNFINISHED_AT_ONCE = 100

# What we write on everything that we make at Stripe.
INSTANCE, PAYMENT, ACCOUNT = "farebox_instance", "farebox_payment", "farebox_account"

_STATES: Mapping[str, PaymentState] = {
    "succeeded": "succeeded",
    "processing": "processing",
    "canceled": "canceled",
}
_PAYMENT_KINDS = frozenset({"charge", "refund", "dispute"})


def metadata(instance: UUID, payment_id: UUID, account_id: int) -> dict[str, str]:
    """What we write on a payment, so that it is known again."""
    return {INSTANCE: str(instance), PAYMENT: str(payment_id), ACCOUNT: str(account_id)}


class Unusable(Exception):
    """It can never be credited as it is: a person has to look."""


class Overtaken(Exception):
    """Somebody else has begun to fetch the same payment after us."""


# -- reading the inbox ----------------------------------------------------------------------------


def subject_of(event: Event) -> str:
    """The id of what has to be looked into; '' for what we do not care about."""
    about = event.data.object
    if about.object == "payment_intent":
        return about.id
    if about.object in _PAYMENT_KINDS:
        return about.payment_intent or ""
    if about.object == "checkout.session":
        return about.payment_intent or about.id
    return about.id if about.object == "payment_method" else ""


async def run(console: Console) -> None:
    """Look into what arrives, and compare once an hour, until cancelled; over connections of its
    own, so that credit does not wait for whoever else asks Stripe for something."""
    if console.stripe is None:
        return
    async with aclosing(Stripe(console.stripe)) as stripe, trio.open_nursery() as nursery:
        nursery.start_soon(_every, POLL_SECONDS, look_into_all, console, stripe)
        nursery.start_soon(_every, COMPARE_POLL_SECONDS, compare_if_due, console, stripe)


async def _every(
    seconds: float,
    work: Callable[[Console, Stripe], Awaitable[None]],
    console: Console,
    stripe: Stripe,
) -> None:
    while True:
        try:
            await work(console, stripe)
        except DatabaseUnavailable:
            log.info("the database does not answer: what Stripe says waits")
        await trio.sleep(seconds)


async def look_into_all(console: Console, stripe: Stripe) -> None:
    """Look into everything that is due."""
    while await look_into_next(console, stripe):
        pass


async def look_into_next(console: Console, stripe: Stripe) -> bool:
    """Look into the subject that has been due for longest; whether there was one."""
    now = moment(console)
    claim = await console.database.run(lambda c: stripe_events.claim(c, now, now + CLAIM))
    if claim is None:
        return False
    try:
        outcome = await look_into(console, stripe, claim.subject)
    except Overtaken:
        await _postpone(console, claim, _TURN_PAUSE, "overtaken", tried=False)
    except StripeUnavailable as error:
        log.warning("Stripe does not answer about %s: %s", claim.subject, error)
        pause = min(moment(console) - claim.since + _FIRST_PAUSE, _PAUSE_MAX)
        await _postpone(console, claim, pause, str(error), tried=False)
    except Unusable as error:
        await _park(console, claim, str(error))
    except DatabaseUnavailable:
        raise
    except Exception as error:  # one that cannot be handled must not hold up the others
        why = f"{type(error).__name__}: {error}"
        if claim.tries >= TRIES_MAX:
            await _park(console, claim, why)
        else:
            log.warning("%s cannot be looked into: %s", claim.subject, why, exc_info=error)
            await _postpone(console, claim, _pause(claim.tries), why, tried=True)
    else:
        await console.database.run(lambda c: stripe_events.finish(c, claim.event_ids, outcome))
    return True


async def _postpone(
    console: Console, claim: stripe_events.Claim, pause: timedelta, why: str, *, tried: bool
) -> None:
    due = moment(console) + pause
    await console.database.run(
        lambda c: stripe_events.postpone(c, claim.event_ids, due, why, tried=tried)
    )


async def _park(console: Console, claim: stripe_events.Claim, why: str) -> None:
    log.error("%s is parked in console.stripe_event: %s", claim.subject, why)
    await console.database.run(lambda c: stripe_events.park(c, claim.event_ids, why))


def _pause(tries: int) -> timedelta:
    """2, 4, 8 … seconds, at most an hour."""
    return min(_FIRST_PAUSE * 2.0 ** min(tries - 1, 20), _PAUSE_MAX)


async def look_into(console: Console, stripe: Stripe, subject: str) -> str:
    """Bring what an event is about to where Stripe says it is; what that came to."""
    if subject.startswith("pi_"):
        return await settle(console, stripe, subject)
    if subject.startswith("cs_"):
        return await settle_page(console, stripe, subject)
    if subject.startswith("pm_"):
        return await refresh_card(console, stripe, subject)
    raise Unusable(f"nobody knows what {subject} is")


# -- a payment ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Written:
    """What became of an account's credit."""

    account_id: int
    credited: int = 0
    taken_back: int = 0
    suspended: bool = False

    def __str__(self) -> str:
        if self.credited or self.taken_back:
            return f"credited {self.credited}, taken back {self.taken_back}"
        return "unchanged"


async def settle(console: Console, stripe: Stripe, intent_id: str) -> str:
    """Bring an account to where one of its payments says it should be. Safe to call at any time.

    Raises Unusable, Overtaken, StripeUnavailable and StripeRefused.
    """
    payment_id = await _whose(console, stripe, intent_id)
    if payment_id is None:
        return "not ours"
    now = moment(console)
    begun = await console.database.run(lambda c: payments.begin_turn(c, payment_id, now))
    found = await stripe.settled(intent_id)
    if found.currency != CURRENCY:
        raise Unusable(f"{intent_id} is in {found.currency}, not in {CURRENCY}")
    invoice_url = await _invoice_url(stripe, begun, found)
    written = await console.database.run(
        lambda c: _write(c, begun, found, invoice_url, moment(console))
    )
    if written.credited or written.taken_back:
        await console.database.run(lambda c: announce(c, written.account_id))
    if written.suspended:
        log.warning("account %d is suspended: %s is disputed", written.account_id, intent_id)
    return str(written)


async def _whose(console: Console, stripe: Stripe, intent_id: str) -> UUID | None:
    """Our payment that this PaymentIntent is; None where it is somebody else's.

    What carries our mark and is not in the database was lost from it, and is put back.
    """
    known = await console.database.run(lambda c: payments.find_by_intent(c, intent_id))
    if known is not None:
        return known.payment_id
    metadata, amount = await stripe.marks(intent_id)
    ours = await console.database.run(payments.instance)
    if metadata.get(INSTANCE) != str(ours):
        return None
    try:
        payment_id, account_id = UUID(metadata[PAYMENT]), int(metadata[ACCOUNT])
    except (KeyError, ValueError):
        raise Unusable(f"{intent_id} carries our mark, but not whose it is") from None
    now = moment(console)

    def link(connection: Connection) -> None:
        with connection.transaction():
            if payments.find(connection, payment_id) is None:
                if not payments.account_exists(connection, account_id):
                    raise Unusable(f"{intent_id} is of account {account_id}, which is not here")
                payments.open_payment(connection, payment_id, account_id, "top_up", amount, now)
            payments.set_intent(connection, payment_id, intent_id)

    await console.database.run(link)
    return payment_id


async def _invoice_url(stripe: Stripe, known: PaymentRow, found: Payment) -> str:
    if known.invoice_url or known.session_id is None or found.status != "succeeded":
        return known.invoice_url
    return (await stripe.checkout(known.session_id)).invoice_url


def _write(
    connection: Connection, begun: PaymentRow, found: Payment, invoice_url: str, now: datetime
) -> _Written:
    """One transaction. Locks are taken in this order everywhere: payment, recharge, the counter of
    directory changes, the pool of credit."""
    with connection.transaction():
        payment = payments.lock_turn(connection, begun.payment_id, begun.turn)
        if payment is None:
            raise Overtaken
        _record(connection, payment, found, invoice_url, now)
        if payment.kind == "recharge":
            recharge.follow(connection, payment, found.status, found.failure, now)
        reversals = [_save(connection, payment, each, now) for each in found.reversals]
        refunded = sum(max(each.change, 0) for each in reversals if each.found.kind == "refund")
        settings = recharges.lock(connection, payment.account_id) if refunded else None
        suspended = False
        for each in reversals:
            suspended |= _follow_dispute(connection, payment, each, now)
        credited = 0
        if found.status == "succeeded" and found.received_nusd:
            new = payments.credit_payment(
                connection, payment.account_id, found.received_nusd, found.intent_id
            )
            credited = found.received_nusd if new else 0
        if credited and found.card is not None:
            _keep_card(connection, payment.account_id, found.card)
        for each in reversals:
            _post(connection, payment, each)
        if settings is not None:
            recharge.hold_back(connection, settings, refunded, now)
        taken_back = sum(each.change for each in reversals)
        for movement in found.transactions:
            payments.book_transaction(
                connection, payment.payment_id, movement.transaction_id, movement.fee_nusd
            )
        return _Written(payment.account_id, credited, taken_back, suspended)


def _record(
    connection: Connection, known: PaymentRow, found: Payment, invoice_url: str, now: datetime
) -> None:
    state = _STATES.get(found.status, "open" if known.kind == "top_up" else known.state)
    paid_at = known.paid_at
    if state == "succeeded":
        paid_at = known.paid_at or now
    elif known.state in ("failed", "canceled") and state == "open":
        state = known.state  # the page on which it could still be paid is closed
    payments.record(
        connection,
        known.payment_id,
        state,
        found.received_nusd,
        found.receipt_url or known.receipt_url,
        invoice_url,
        "" if state == "succeeded" else found.failure or known.failure,
        paid_at,
    )


@dataclass(frozen=True, slots=True)
class _Change:
    """A refund or dispute, and how much more it has to take from the account (less: negative)."""

    found: Reversal
    change: int
    postings: int


def _save(connection: Connection, payment: PaymentRow, found: Reversal, now: datetime) -> _Change:
    posted, postings = payments.save_reversal(
        connection,
        payment.payment_id,
        found.reversal_id,
        found.kind,
        found.status,
        found.amount_nusd,
        now,
    )
    return _Change(found, (found.amount_nusd if found.stands else 0) - posted, postings)


def _follow_dispute(
    connection: Connection, payment: PaymentRow, each: _Change, now: datetime
) -> bool:
    """Tell of a dispute that takes or gives back; whether it suspends the account."""
    if each.found.kind != "dispute" or not each.change:
        return False
    notices.tell(
        connection,
        payment.account_id,
        "dispute_opened" if each.found.stands else "dispute_won",
        {"dispute": each.found.reversal_id, "payment": str(payment.payment_id)},
        now,
    )
    return each.found.stands and payments.suspend(connection, payment.account_id)


def _post(connection: Connection, payment: PaymentRow, each: _Change) -> None:
    if each.change:
        payments.post_reversal(
            connection,
            payment.account_id,
            payment.payment_id,
            each.found.reversal_id,
            each.found.kind,
            each.change,
            each.postings,
        )


# -- pages and cards ------------------------------------------------------------------------------


async def settle_page(console: Console, stripe: Stripe, session_id: str) -> str:
    """A hosted page: what was paid or saved on it, or that it was closed, or is of another account
    at Stripe than the one we use now."""
    try:
        page = await stripe.checkout(session_id)
    except StripeRefused as refusal:
        if refusal.code != "resource_missing":
            raise
        return await _close(console, session_id, "unknown to Stripe")
    ours = await console.database.run(payments.instance)
    if page.metadata.get(INSTANCE) != str(ours):
        return "not ours"
    if page.intent_id:
        return await settle(console, stripe, page.intent_id)
    if page.setup_intent_id and page.status == "complete":
        return await _save_card(console, stripe, page.setup_intent_id, page.metadata)
    return await _close(console, session_id, "expired") if page.status == "expired" else "unchanged"


async def _close(console: Console, session_id: str, why: str) -> str:
    """Nobody can pay on this page any more."""
    known = await console.database.run(lambda c: payments.find_by_session(c, session_id))
    if known is None:
        return "unchanged"
    await console.database.run(
        lambda c: payments.close_unpaid(c, known.payment_id, "canceled", why)
    )
    return why


async def _save_card(
    console: Console, stripe: Stripe, setup_intent_id: str, metadata: Mapping[str, str]
) -> str:
    card = await stripe.saved_card(setup_intent_id)
    if card is None:
        return "unchanged"
    try:
        account_id = int(metadata[ACCOUNT])
    except (KeyError, ValueError):
        raise Unusable(f"{setup_intent_id} carries our mark, but not whose it is") from None
    await console.database.run(lambda c: _keep_card(c, account_id, card))
    return "card saved"


def _keep_card(
    connection: Connection, account_id: int, card: Card, *, renewed: bool = False
) -> None:
    payments.save_card(
        connection,
        account_id,
        card.payment_method,
        card.brand,
        card.last4,
        card.exp_month,
        card.exp_year,
        renewed=renewed,
    )


async def refresh_card(console: Console, stripe: Stripe, payment_method: str) -> str:
    """A saved card that was renewed by its bank, or removed at Stripe. While Stripe answers its
    owner may remove or replace it: it is not saved again then, or recharges would be made with it.
    """
    owners = await console.database.run(lambda c: payments.owners_of_card(c, payment_method))
    if not owners:
        return "not ours"
    try:
        card, customer_id = await stripe.card(payment_method)
    except StripeRefused as refusal:
        if refusal.code != "resource_missing":
            raise
        card, customer_id = None, ""

    def write(connection: Connection) -> None:
        for account_id, owner in owners:
            if card is None or customer_id != owner:
                payments.forget_card(connection, account_id, payment_method)
            else:
                _keep_card(connection, account_id, card, renewed=True)

    await console.database.run(write)
    return "card refreshed"


# -- the comparison -------------------------------------------------------------------------------


async def compare_if_due(console: Console, stripe: Stripe) -> None:
    """Compare with Stripe once an hour, whichever console gets to it first."""
    now = moment(console)
    if not await console.database.run(
        lambda c: stripe_events.claim_comparison(c, now, now - COMPARE_EVERY)
    ):
        return
    try:
        missing = await compare(console, stripe)
    except DatabaseUnavailable:
        raise
    except Exception as error:  # neither silence nor an odd answer may end the console
        known = isinstance(error, StripeUnavailable | StripeRefused)
        log.warning("the books could not be compared with Stripe: %s", error, exc_info=not known)
        due = now - COMPARE_EVERY + COMPARE_AGAIN
        await console.database.run(lambda c: stripe_events.release_comparison(c, now, due))
        return
    if missing:
        log.warning("%d movements at Stripe were not in the books: they are looked into", missing)
    await console.database.run(lambda c: stripe_events.forget(c, now - KEPT))


async def compare(console: Console, stripe: Stripe) -> int:
    """Put into the inbox what Stripe has that the books do not; how much of it is new."""
    now = moment(console)
    since = (now - LOOK_BACK).timestamp()
    missing, after, more = 0, "", True
    while more:
        movements = await stripe.movements(since, after)
        subjects = {m.transaction_id: m.intent_id for m in movements.page if m.intent_id}
        missing += await console.database.run(partial(_ask_about, subjects=subjects, now=now))
        after, more = movements.after, bool(movements.after)
    return missing + await console.database.run(lambda c: _ask_about_pages(c, now))


def _ask_about(connection: Connection, subjects: Mapping[str, str], now: datetime) -> int:
    unknown = sorted(payments.unknown_transactions(connection, list(subjects)))
    ids = [f"movement:{each}" for each in unknown]
    return stripe_events.add_many(
        connection, "comparison", ids, [subjects[each] for each in unknown], now
    )


def _ask_about_pages(connection: Connection, now: datetime) -> int:
    """Pages that must have been closed by now, and of which nobody told us. What has no page until
    then never had one that anybody saw."""
    payments.close_without_page(connection, now - _PAGE_OPENED)
    found = payments.unfinished(
        connection, now - _PAGE_OPENED, now - COMPARE_EVERY, _UNFINISHED_AT_ONCE
    )
    ids = [f"page:{each.payment_id}:{now:%Y-%m-%d}" for each in found]
    subjects = [each.session_id or "" for each in found]
    return stripe_events.add_many(connection, "comparison", ids, subjects, now)
