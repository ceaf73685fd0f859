"""When an account is topped up by itself, and what follows from how that went. No I/O but the
database's; `console.recharger` talks to Stripe.

Below the threshold, an attempt is opened: a payment and everything that its call to Stripe will
say. Rules, each held in one transaction that has locked the account's settings:

- One attempt at a time: a unique index holds it against every other console, too.
- Only a served account whose balance is below its threshold, with a saved card, not before its rest
  is over, and not beyond its cap of the calendar month (UTC). What is under way counts as paid.
- A failure rests the account, a second one for longer. The third in a row switches it off: its
  owners are told, and switch it on again. A payment that succeeds, or new settings, forget them.
- A refund that takes the balance below the threshold switches it off too: nobody who gets money
  back is charged because of it.
- An attempt whose outcome is not known stays open, so that no second one can begin.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from uuid import UUID, uuid4

from console import notices
from console.store import Connection, payments, recharges
from console.store.payments import PaymentRow
from console.store.recharges import RechargeRow, Situation
from ledger.money import format_usd

FAILURES_MAX = 3
RESTS = (timedelta(minutes=15), timedelta(hours=2))  # after the first failure, and the second

_FAILED = frozenset({"requires_payment_method", "requires_action", "canceled"})


def begin(connection: Connection, account_id: int, now: datetime) -> UUID | None:
    """Open an attempt where one is due; its payment."""
    with connection.transaction():
        settings = recharges.lock(connection, account_id)
        if settings is None or settings.not_before > now:
            return None
        month = _month(now)
        situation = recharges.situation(connection, account_id, month)
        if not _is_due(settings, situation):
            return None
        if situation.paid_this_month + settings.amount > settings.monthly_cap:
            _tell_of_cap(connection, settings, month, now)
            return None
        customer_id, payment_method = situation.customer_id, situation.payment_method
        if customer_id is None or payment_method is None:
            _disable(connection, account_id, "no saved card", now)
            return None
        payment_id = uuid4()
        payments.open_payment(connection, payment_id, account_id, "recharge", settings.amount, now)
        recharges.open_attempt(connection, payment_id, account_id, customer_id, payment_method, now)
        return payment_id


def _month(now: datetime) -> datetime:
    return now.replace(day=1, hour=0, minute=0, second=0, microsecond=0)


def _is_due(settings: RechargeRow, situation: Situation) -> bool:
    return situation.is_served and not situation.is_open and situation.balance < settings.threshold


def _tell_of_cap(
    connection: Connection, settings: RechargeRow, month: datetime, now: datetime
) -> None:
    """Once a month."""
    if settings.capped_at >= month:
        return
    recharges.note_cap(connection, settings.account_id, now)
    cap = format_usd(settings.monthly_cap)
    notices.tell(connection, settings.account_id, "recharge_capped", {"monthly_cap": cap}, now)


def follow(
    connection: Connection, payment: PaymentRow, status: str, failure: str, now: datetime
) -> None:
    """Stripe has said how a recharge's PaymentIntent is; inside the transaction that records it."""
    if status == "succeeded":
        recharges.close(connection, payment.payment_id, "succeeded")
        if payment.state != "succeeded":
            recharges.forget_failures(connection, payment.account_id)
    elif payment.state == "processing" and status in _FAILED:
        fail(connection, payment.payment_id, failure or status, now)


def hold_back(connection: Connection, settings: RechargeRow, refunded: int, now: datetime) -> None:
    """A refund was posted, with `settings` locked before: where it is what took the balance below
    the threshold, recharges are switched off. Nobody who gets money back is charged for that."""
    account_id = settings.account_id
    balance = recharges.situation(connection, account_id, _month(now)).balance
    if balance < settings.threshold <= balance + refunded:
        _disable(connection, account_id, "refunded", now)


def fail(connection: Connection, payment_id: UUID, reason: str, now: datetime) -> None:
    """Nothing was paid. Called again, it does nothing."""
    with connection.transaction():
        payments.close_unpaid(connection, payment_id, "failed", reason)
        account_id = recharges.close(connection, payment_id, "failed")
        if account_id is None:
            return
        failures = recharges.count_failure(connection, account_id)
        if failures >= FAILURES_MAX:
            _disable(connection, account_id, reason, now)
            return
        recharges.rest_until(connection, account_id, now + RESTS[failures - 1])
        detail: dict[str, str | int] = {"reason": reason, "failures": failures}
        notices.tell(connection, account_id, "recharge_failed", detail, now)


def _disable(connection: Connection, account_id: int, reason: str, now: datetime) -> None:
    if recharges.disable(connection, account_id, reason):
        notices.tell(connection, account_id, "recharge_disabled", {"reason": reason}, now)
