"""Paying, as the API has it: top-ups, the list of payments, the saved card, recharge, the webhook.

A top-up is a page at Stripe: the answer says where, the person pays there and comes back, and the
credit arrives through the inbox. Whoever waits for it asks for the payment again and again; that
also works where no webhook reaches us, because an open payment is then looked up (`_look`).

Stripe is asked only so much a minute for one account, so that none keeps the connections from the
others: pages beyond that are refused, and payments are shown as they were known last.

Amounts are decimal strings in dollars, as everywhere; cards pay whole cents.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Annotated, Literal
from uuid import UUID, uuid4

from fastapi import APIRouter, Depends, Query, Request, Response
from pydantic import BaseModel, Field

from console import audit, inbox
from console.access import Member, allowed, moment
from console.context import Console, ConsoleOf
from console.errors import ErrorBody, Refused
from console.store import Connection, payments, recharges, stripe_events
from console.store.payments import CustomerRow, PaymentRow, ReversalRow
from console.stripe_client import (
    CENT,
    BadSignature,
    Checkout,
    Stripe,
    StripeRefused,
    StripeUnavailable,
)
from console.wording import dollars
from ledger.money import NANO_PER_USD, format_usd

log = logging.getLogger(__name__)

TOP_UP_MIN = 5 * NANO_PER_USD
TOP_UP_MAX = 10_000 * NANO_PER_USD
THRESHOLD_MIN = NANO_PER_USD
MONTHLY_CAP_MAX = 100_000 * NANO_PER_USD
EVENT_BYTES_MAX = 1 << 20
PAGE_MAX = 100

_LOOK_AGAIN = timedelta(seconds=3)
_PAGE_LASTS = timedelta(hours=24)  # Stripe's, where nobody asks for less
_END = datetime(9999, 1, 1, tzinfo=UTC)
_LAST_ID = UUID(int=(1 << 128) - 1)

router = APIRouter(prefix="/accounts/{account}", tags=["billing"])
webhook = APIRouter(tags=["billing"])

BillingReader = Annotated[Member, Depends(allowed("billing.read"))]
Payer = Annotated[Member, Depends(allowed("billing.write"))]


_PAGES: dict[int | str, dict[str, object]] = {
    409: {
        "model": ErrorBody,
        "description": "Payments by card are not set up, or no card is saved",
    },
    429: {"model": ErrorBody, "description": "Too many pages for the account within a minute"},
    502: {"model": ErrorBody, "description": "Stripe refuses"},
}

# -- bodies ---------------------------------------------------------------------------------------


class NewTopUp(BaseModel):
    """What somebody wants to pay."""

    amount: str = Field(description="US dollars, such as 25 or 12.50", max_length=32)
    save_card: bool = Field(False, description="keep the card for automatic recharges")


class Started(BaseModel):
    """Where to go on."""

    payment_id: UUID | None
    url: str


class Taken(BaseModel):
    """A refund or dispute of a payment. `taken` is what it takes from the account now."""

    id: str
    kind: Literal["refund", "dispute"]
    status: str
    amount: str
    taken: str
    created_at: datetime


class Paid(BaseModel):
    """A payment. `credited` is what the account has of it: what came, less what was taken back.
    `resumable`: it was not paid, and its page at Stripe may still be open."""

    payment_id: UUID
    kind: Literal["top_up", "recharge"]
    state: Literal["open", "processing", "succeeded", "failed", "canceled"]
    amount: str
    credited: str
    failure: str
    receipt_url: str
    invoice_url: str
    resumable: bool
    created_at: datetime
    paid_at: datetime | None
    reversals: list[Taken]


class PaidPage(BaseModel):
    """Payments, newest first; `next` is the cursor of the following page, where there is one."""

    payments: list[Paid]
    next: str | None


class SavedCard(BaseModel):
    """What is charged for recharges."""

    brand: str
    last4: str
    exp_month: int
    exp_year: int


class SavedCardBody(BaseModel):
    """The saved card, if there is one."""

    card: SavedCard | None


class RechargeBody(BaseModel):
    """When to top up by itself."""

    enabled: bool
    threshold: str = Field(description="below which balance, in US dollars", max_length=32)
    amount: str = Field(description="how much, in US dollars", max_length=32)
    monthly_cap: str = Field(
        description="no more than this in a calendar month (UTC), in US dollars", max_length=32
    )


class RechargeState(RechargeBody):
    """The same, and how it goes. `disabled_reason` says why it was switched off, if it was."""

    failures: int
    not_before: datetime | None
    disabled_reason: str


class RechargeStateBody(BaseModel):
    """The settings, if there ever were any."""

    recharge: RechargeState | None
    card: SavedCard | None


class Received(BaseModel):
    """All that Stripe wants to know."""

    received: bool = True


# -- top-ups --------------------------------------------------------------------------------------


@router.post("/top-ups", status_code=201, responses=_PAGES)
async def start_top_up(body: NewTopUp, member: Payer, console: ConsoleOf) -> Started:
    """Begin to pay by card: the answer names a page at Stripe."""
    stripe = _stripe(console)
    amount = _amount("amount", body.amount, TOP_UP_MIN, TOP_UP_MAX)
    _admit(console, member)
    payment_id = uuid4()
    now = moment(console)

    def begin(connection: Connection) -> UUID:
        with connection.transaction():
            payments.open_payment(connection, payment_id, member.account_id, "top_up", amount, now)
            detail = {"amount": format_usd(amount)}
            audit.note(connection, member, "payment.start", f"payment {payment_id}", detail)
            return payments.instance(connection)

    instance = await console.database.run(begin)
    back = _back(console, member)

    async def start(customer_id: str, key: str) -> Checkout:
        return await stripe.start_payment(
            customer_id,
            amount,
            f"{console.server.brand} credit",
            save_card=body.save_card,
            metadata=inbox.metadata(instance, payment_id, member.account_id),
            success_url=f"{back}?payment={payment_id}",
            cancel_url=back,
            key=key,
        )

    try:
        page = await _open_page(console, stripe, member, start, payment_id)
    except Refused:
        await console.database.run(
            lambda c: payments.close_unpaid(c, payment_id, "failed", "not started")
        )
        raise
    await console.database.run(lambda c: payments.set_session(c, payment_id, page.session_id))
    return Started(payment_id=payment_id, url=page.url)


@router.get("/payments")
async def list_payments(
    member: BillingReader,
    console: ConsoleOf,
    limit: Annotated[int, Query(ge=1, le=PAGE_MAX)] = 20,
    after: Annotated[str, Query(max_length=100)] = "",
) -> PaidPage:
    """The account's payments, newest first."""
    before = _cursor(after) if after else (_END, _LAST_ID)

    def read(connection: Connection) -> tuple[list[PaymentRow], list[ReversalRow]]:
        rows = payments.page(connection, member.account_id, before, limit + 1)
        return rows, payments.reversals(connection, [row.payment_id for row in rows])

    rows, reversals = await console.database.run(read)
    shown = rows[:limit]
    following = None
    if len(rows) > limit:
        last = shown[-1]
        following = f"{last.created_at.isoformat()}_{last.payment_id}"
    now = moment(console)
    return PaidPage(payments=[_paid(row, reversals, now) for row in shown], next=following)


@router.get("/payments/{payment_id}")
async def show_payment(payment_id: UUID, member: BillingReader, console: ConsoleOf) -> Paid:
    """One payment; an open one is looked up at Stripe first, every few seconds at most."""
    row = await _payment(console, member, payment_id)
    if row.state in ("open", "processing") and moment(console) - row.fetched_at > _LOOK_AGAIN:
        if console.card_looks.admit(member.account_id) == 0:
            await _look(console, row)
        row = await _payment(console, member, payment_id)
    reversals = await console.database.run(lambda c: payments.reversals(c, [payment_id]))
    return _paid(row, reversals, moment(console))


@router.post("/payments/{payment_id}/page", responses=_PAGES)
async def go_on(payment_id: UUID, member: Payer, console: ConsoleOf) -> Started:
    """Go on with a payment whose page was left: the answer names it again, for as long as it is
    open."""
    stripe = _stripe(console)
    row = await _payment(console, member, payment_id)
    if row.state == "open" and row.session_id is not None:
        _admit(console, member)
        try:
            page = await stripe.checkout(row.session_id)
        except StripeUnavailable as error:
            raise _not_started(error) from error
        except StripeRefused as refusal:
            if refusal.code != "resource_missing":
                raise _not_started(refusal) from refusal
        else:
            if page.status == "open":
                return Started(payment_id=payment_id, url=page.url)
        await _look(console, row)
    raise Refused(409, "payment_ended", "It was paid, or its page at Stripe is closed.")


async def _payment(console: Console, member: Member, payment_id: UUID) -> PaymentRow:
    found = await console.database.run(lambda c: payments.find(c, payment_id))
    if found is None or found.account_id != member.account_id:
        raise Refused(404, "not_found", "There is no such payment.")
    return found


async def _look(console: Console, row: PaymentRow) -> None:
    """Settle it if it was paid. Whatever goes wrong, the inbox will get it right."""
    stripe = console.card_payments
    subject = row.payment_intent or row.session_id
    if stripe is None or subject is None:
        return
    now = moment(console)
    await console.database.run(lambda c: payments.begin_turn(c, row.payment_id, now))
    try:
        await inbox.look_into(console, stripe, subject)
    except (StripeUnavailable, StripeRefused, inbox.Unusable, inbox.Overtaken) as error:
        log.info("payment %s cannot be looked up now: %s", row.payment_id, error)


# -- the saved card -------------------------------------------------------------------------------


@router.get("/payment-method")
async def show_card(member: BillingReader, console: ConsoleOf) -> SavedCardBody:
    """The card that recharges are made with."""
    row = await console.database.run(lambda c: payments.customer(c, member.account_id))
    return SavedCardBody(card=_card(row))


@router.post("/payment-method", status_code=201, responses=_PAGES)
async def start_saving_card(member: Payer, console: ConsoleOf) -> Started:
    """Begin to save a card without paying: the answer names a page at Stripe."""
    stripe = _stripe(console)
    _admit(console, member)
    request_id = uuid4()
    instance = await console.database.run(payments.instance)
    back = _back(console, member)

    async def start(customer_id: str, key: str) -> Checkout:
        return await stripe.start_saving(
            customer_id,
            metadata=inbox.metadata(instance, request_id, member.account_id),
            success_url=f"{back}?card=saved",
            cancel_url=back,
            key=key,
        )

    page = await _open_page(console, stripe, member, start, request_id)
    await console.database.run(
        lambda c: audit.note(c, member, "card.start", f"account {member.account}")
    )
    return Started(payment_id=None, url=page.url)


@router.delete("/payment-method", status_code=204, responses=_PAGES)
async def remove_card(member: Payer, console: ConsoleOf) -> Response:
    """Forget the saved card, here and at Stripe; recharges are switched off."""
    stripe = _stripe(console)

    def forget(connection: Connection) -> str | None:
        with connection.transaction():
            row = payments.customer(connection, member.account_id)
            if row.payment_method is None:
                return None
            recharges.disable(connection, member.account_id, "no saved card")
            payments.forget_card(connection, member.account_id, row.payment_method)
            audit.note(connection, member, "card.remove", f"card {row.card_last4}")
            return row.payment_method

    payment_method = await console.database.run(forget)
    if payment_method is not None:
        try:
            await stripe.forget_card(payment_method)
        except (StripeUnavailable, StripeRefused) as error:
            log.warning("%s is still attached at Stripe: %s", payment_method, error)
    return Response(status_code=204)


# -- recharge -------------------------------------------------------------------------------------


@router.get("/recharge")
async def show_recharge(member: BillingReader, console: ConsoleOf) -> RechargeStateBody:
    """The settings of automatic recharges."""
    return await console.database.run(partial(_recharge, account_id=member.account_id))


@router.put("/recharge", responses=_PAGES)
async def set_recharge(body: RechargeBody, member: Payer, console: ConsoleOf) -> RechargeStateBody:
    """Change them. Earlier failures are forgotten, so this also switches recharges on again."""
    _stripe(console)
    threshold = _amount("threshold", body.threshold, THRESHOLD_MIN, TOP_UP_MAX)
    amount = _amount("amount", body.amount, TOP_UP_MIN, TOP_UP_MAX)
    monthly_cap = _amount("monthly_cap", body.monthly_cap, amount, MONTHLY_CAP_MAX)

    def save(connection: Connection) -> RechargeStateBody:
        with connection.transaction():
            row = payments.customer(connection, member.account_id)
            if body.enabled and row.payment_method is None:
                raise Refused(
                    409, "no_saved_card", "Save a card first: recharges are made with it."
                )
            recharges.save(
                connection,
                member.account_id,
                enabled=body.enabled,
                threshold=threshold,
                amount=amount,
                monthly_cap=monthly_cap,
            )
            detail: dict[str, str | int] = {
                "enabled": int(body.enabled),
                "threshold": format_usd(threshold),
                "amount": format_usd(amount),
                "monthly_cap": format_usd(monthly_cap),
            }
            audit.note(connection, member, "recharge.set", f"account {member.account}", detail)
            return _recharge(connection, member.account_id)

    return await console.database.run(save)


def _recharge(connection: Connection, account_id: int) -> RechargeStateBody:
    row = recharges.find(connection, account_id)
    card = _card(payments.customer(connection, account_id))
    if row is None:
        return RechargeStateBody(recharge=None, card=card)
    return RechargeStateBody(
        recharge=RechargeState(
            enabled=row.enabled,
            threshold=format_usd(row.threshold),
            amount=format_usd(row.amount),
            monthly_cap=format_usd(row.monthly_cap),
            failures=row.failures,
            not_before=row.not_before if row.not_before.year > 1970 else None,
            disabled_reason=row.disabled_reason,
        ),
        card=card,
    )


# -- the webhook ----------------------------------------------------------------------------------


@webhook.post(
    "/stripe/webhook",
    responses={413: {"model": ErrorBody, "description": "Larger than any event"}},
)
async def receive_event(request: Request, console: ConsoleOf) -> Received:
    """What Stripe says happened. Kept, and looked into afterwards: Stripe wants a quick answer, and
    sends again what it gets none for."""
    stripe = console.card_payments
    if stripe is None:
        raise Refused(404, "not_found", "No payments are configured here.")
    body = await _bounded_body(request)
    signature = request.headers.get("stripe-signature", "")
    try:
        event = stripe.event(body, signature, console.wall())
    except BadSignature as error:
        raise Refused(400, "bad_signature", f"This is not from Stripe: {error}.") from error
    except ValueError as error:
        raise Refused(400, "invalid_request", "This is no event of Stripe's.") from error
    now = moment(console)
    subject = inbox.subject_of(event)
    await console.database.run(lambda c: stripe_events.add(c, event.id, event.type, subject, now))
    return Received()


async def _bounded_body(request: Request) -> bytes:
    body = bytearray()
    async with aclosing(request.stream()) as chunks:
        async for chunk in chunks:
            body += chunk
            if len(body) > EVENT_BYTES_MAX:
                raise Refused(413, "request_too_large", "No event of Stripe's is as large as this.")
    return bytes(body)


# -- parts ----------------------------------------------------------------------------------------


def _stripe(console: Console) -> Stripe:
    if console.card_payments is None:
        raise Refused(409, "no_card_payments", "Payments by card are not set up here.")
    return console.card_payments


def _admit(console: Console, member: Member) -> None:
    """Count a page at Stripe. Refuses with 429 where the account has had its share."""
    wait_seconds = math.ceil(console.card_pages.admit(member.account_id))
    if wait_seconds > 0:
        raise Refused(
            429,
            "too_many_tries",
            "The payment provider was asked too often for this account:"
            f" try again in {wait_seconds} seconds.",
            {"retry-after": str(wait_seconds)},
        )


def _back(console: Console, member: Member) -> str:
    """Where the person comes back to."""
    return f"{console.server.public_url}/console/{member.account}/billing"


async def _open_page(
    console: Console,
    stripe: Stripe,
    member: Member,
    start: Callable[[str, str], Awaitable[Checkout]],
    request_id: UUID,
) -> Checkout:
    """A page for the account's customer, who is made where there is none, or none any more."""
    try:
        row, customer_id = await _customer(console, stripe, member)
        try:
            return await start(customer_id, str(request_id))
        except StripeRefused as refusal:
            if (refusal.code, refusal.param) != ("resource_missing", "customer"):
                raise
        await console.database.run(lambda c: payments.forget_customer(c, row))
        _, customer_id = await _customer(console, stripe, member)
        return await start(customer_id, f"{request_id}:again")
    except (StripeUnavailable, StripeRefused) as error:
        raise _not_started(error) from error


async def _customer(console: Console, stripe: Stripe, member: Member) -> tuple[CustomerRow, str]:
    """The account's customer, made where there is none.

    Nothing that is sent depends on who asks: Stripe takes a key again with the same body only, and
    where its answer was lost, any member gets the same customer with the next try. So there is no
    e-mail address in it. That is for invoices and receipts, and the payer's to say: Stripe's page
    asks for it where the customer has none, and does not let anybody change one that was given.
    """
    row = await console.database.run(lambda c: payments.customer(c, member.account_id))
    if row.customer_id is not None:
        return row, row.customer_id
    instance = await console.database.run(payments.instance)
    customer_id = await stripe.create_customer(
        member.account,
        {inbox.INSTANCE: str(instance), inbox.ACCOUNT: str(member.account_id)},
        str(row.creation_key),
    )
    await console.database.run(lambda c: payments.set_customer_id(c, row, customer_id))
    return row, customer_id


def _not_started(error: StripeUnavailable | StripeRefused) -> Refused:
    log.warning("a page at Stripe could not be opened: %s", error)
    if isinstance(error, StripeUnavailable):
        return Refused(
            503,
            "payments_unavailable",
            "The payment provider does not answer. Nothing was charged; try again soon.",
            {"retry-after": "5"},
        )
    return Refused(502, "payment_refused", "The payment provider refused. Nothing was charged.")


def _amount(name: str, text: str, least: int, most: int) -> int:
    try:
        amount = dollars(text, least, most)
    except ValueError as error:
        raise Refused(400, "invalid_amount", f"{error}.", where=name) from error
    if amount % CENT:
        raise Refused(400, "invalid_amount", "cards pay whole cents.", where=name)
    return amount


def _cursor(text: str) -> tuple[datetime, UUID]:
    created_at, _, payment_id = text.partition("_")
    try:
        moment_of, found = datetime.fromisoformat(created_at), UUID(payment_id)
        if moment_of.tzinfo is None:
            raise ValueError("no time zone")
    except ValueError as error:
        raise Refused(400, "invalid_request", "after: this is no cursor of ours.") from error
    return moment_of, found


def _paid(row: PaymentRow, reversals: list[ReversalRow], now: datetime) -> Paid:
    has_page = row.state == "open" and row.session_id is not None
    return Paid(
        payment_id=row.payment_id,
        kind=row.kind,
        state=row.state,
        amount=format_usd(row.amount),
        credited=format_usd((row.received if row.state == "succeeded" else 0) - row.taken_back),
        failure=row.failure,
        receipt_url=row.receipt_url,
        invoice_url=row.invoice_url,
        resumable=has_page and now - row.created_at < _PAGE_LASTS,
        created_at=row.created_at,
        paid_at=row.paid_at,
        reversals=[
            Taken(
                id=each.reversal_id,
                kind=each.kind,
                status=each.status,
                amount=format_usd(each.amount),
                taken=format_usd(each.posted),
                created_at=each.created_at,
            )
            for each in reversals
            if each.payment_id == row.payment_id
        ],
    )


def _card(row: CustomerRow) -> SavedCard | None:
    if row.payment_method is None:
        return None
    return SavedCard(
        brand=row.card_brand,
        last4=row.card_last4,
        exp_month=row.card_exp_month,
        exp_year=row.card_exp_year,
    )
