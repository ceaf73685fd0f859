"""Charges saved cards: the attempts that `console.recharge` opens, until each has an outcome.

Problem: a call that charges a card may time out after it has done so. Approach: everything that the
call says is in the database before it is made, and its idempotency key is the payment's id, so that
saying it again charges nobody twice.

1. Which accounts are due: whom the gateways' exchanges have found below their threshold (they write
   that down anyway), every second; and once a minute everyone there is, for what that misses.
2. An outcome that is not known: the same call with the same key, less and less often. That a later
   call is refused (another API key by now, or words that were configured anew, which Stripe does
   not take under the same key) says nothing of the first.
3. Stripe remembers keys for a day, and gives a failure of its own again under the same key. So
   after some tries, or where the first was long ago, the payment is looked for by what we wrote on
   it. What is nowhere an hour later was never made.
4. What succeeded is credited like any payment (`console.inbox.settle`): whoever hears of it first,
   this or the webhook, once.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from contextlib import aclosing
from datetime import timedelta
from functools import partial

import trio

from console import inbox, recharge
from console.access import moment
from console.context import Console
from console.errors import DatabaseUnavailable
from console.store import payments, recharges
from console.store.recharges import Attempt
from console.stripe_client import CardDeclined, Stripe, StripeRefused, StripeUnavailable

log = logging.getLogger(__name__)

POLL_SECONDS = 1.0
SWEEP_EVERY = 60  # polls
CLAIM = timedelta(minutes=3)  # longer than all tries of one call take
_AT_ONCE = 20
_FIRST_PAUSE = timedelta(seconds=5)
_PAUSE_MAX = timedelta(minutes=10)
_PROCESSING_PAUSE = timedelta(hours=1)

TRIES_BEFORE_LOOKING = 4
_LONG_AGO = timedelta(hours=20)  # Stripe forgets a key after 24
_NEVER_MADE_AFTER = timedelta(hours=1)
_CLOCKS_DIFFER = timedelta(hours=1)


async def run(console: Console) -> None:
    """Recharge whoever is due, until cancelled; over connections of its own, as the inbox."""
    if console.stripe is None:
        return
    async with aclosing(Stripe(console.stripe)) as stripe:
        polls = 0
        while True:
            try:
                await open_due(console, sweep=polls % SWEEP_EVERY == 0)
                await pursue_due(console, stripe)
            except DatabaseUnavailable:
                log.info("the database does not answer: recharges wait")
            polls += 1
            await trio.sleep(POLL_SECONDS)


async def open_due(console: Console, *, sweep: bool) -> None:
    """Open an attempt for everyone who is due."""
    now = moment(console)
    due: Iterable[int] = await console.database.run(recharges.take_requests)
    if sweep:
        due = {*due, *await console.database.run(lambda c: recharges.fallen_below(c, now))}
    for account_id in sorted(due):
        await console.database.run(partial(recharge.begin, account_id=account_id, now=now))


async def pursue_due(console: Console, stripe: Stripe) -> None:
    """Go on with every attempt whose time has come."""
    now = moment(console)
    attempts = await console.database.run(lambda c: recharges.claim(c, now, now + CLAIM, _AT_ONCE))
    async with trio.open_nursery() as nursery:
        for attempt in attempts:
            nursery.start_soon(_pursue, console, stripe, attempt)


async def _pursue(console: Console, stripe: Stripe, attempt: Attempt) -> None:
    """One that cannot be gone on with must not hold up the others: it is due again when its claim
    ends."""
    try:
        await _go_on(console, stripe, attempt)
    except DatabaseUnavailable:
        log.info("the database does not answer: recharge %s waits", attempt.payment_id)
    except Exception:
        log.exception("recharge %s cannot be gone on with", attempt.payment_id)


async def _go_on(console: Console, stripe: Stripe, attempt: Attempt) -> None:
    try:
        made = await _make(console, stripe, attempt)
    except CardDeclined as declined:
        await _link(console, attempt, declined.intent_id)
        await _fail(console, attempt, declined.code)
    except (StripeRefused, StripeUnavailable) as error:
        if isinstance(error, StripeRefused) and attempt.tries == 1:
            await _fail(console, attempt, error.code or str(error))
            return
        log.warning("recharge %s has no outcome yet: %s", attempt.payment_id, error)
        await _postpone(console, attempt, _pause(attempt.tries))
    else:
        if made is None:
            await _fail(console, attempt, "no_outcome")
        else:
            await _conclude(console, stripe, attempt, *made)


async def _make(console: Console, stripe: Stripe, attempt: Attempt) -> tuple[str, str] | None:
    """Make the payment, or find it made: its PaymentIntent and the status of that. None where it
    can never have been made.
    """
    age = moment(console) - attempt.created_at
    instance = await console.database.run(payments.instance)
    metadata = inbox.metadata(instance, attempt.payment_id, attempt.account_id)
    if attempt.tries > TRIES_BEFORE_LOOKING or age > _LONG_AGO:
        since = (attempt.created_at - _CLOCKS_DIFFER).timestamp()
        made = await stripe.find_charge(attempt.customer_id, metadata, since)
        if made is not None:
            return made
        if age > _NEVER_MADE_AFTER:
            return None
    return await stripe.charge(
        attempt.customer_id,
        attempt.payment_method,
        attempt.amount,
        f"{console.server.brand} credit",
        metadata=metadata,
        key=str(attempt.payment_id),
    )


async def _conclude(
    console: Console, stripe: Stripe, attempt: Attempt, intent_id: str, status: str
) -> None:
    """Credit a payment that was made; end one that cannot succeed without its owner."""
    await _link(console, attempt, intent_id)
    try:
        if status in ("succeeded", "processing"):
            await inbox.settle(console, stripe, intent_id)
            await _postpone(console, attempt, _PROCESSING_PAUSE)  # unless it has ended
            return
        if status in ("canceled", "requires_payment_method"):
            reason = (await stripe.settled(intent_id)).failure or status
        else:
            await stripe.cancel(intent_id)
            reason = "authentication_required"
    except (StripeUnavailable, StripeRefused, inbox.Overtaken, inbox.Unusable) as error:
        log.warning("recharge %s is %s, but not settled yet: %s", intent_id, status, error)
        await _postpone(console, attempt, _pause(attempt.tries))
    else:
        await _fail(console, attempt, reason)


def _pause(tries: int) -> timedelta:
    """5, 10, 20 … seconds, at most ten minutes."""
    return min(_FIRST_PAUSE * 2.0 ** min(tries - 1, 20), _PAUSE_MAX)


async def _link(console: Console, attempt: Attempt, intent_id: str) -> None:
    if intent_id:
        await console.database.run(lambda c: payments.set_intent(c, attempt.payment_id, intent_id))


async def _fail(console: Console, attempt: Attempt, reason: str) -> None:
    now = moment(console)
    await console.database.run(lambda c: recharge.fail(c, attempt.payment_id, reason, now))


async def _postpone(console: Console, attempt: Attempt, pause: timedelta) -> None:
    due_at = moment(console) + pause
    await console.database.run(lambda c: recharges.postpone(c, attempt.payment_id, due_at))
