"""Credit and payments: adding credit by card, by hand or automatically, and what was paid."""

from __future__ import annotations

from uuid import UUID

from starlette.responses import RedirectResponse, Response

from console import payments, plan
from console.errors import Refused
from console.pages import words
from console.pages.frame import DONE, Form, Kind, Notice, Visit
from console.payments import NewTopUp, RechargeBody
from console.plan import CreditIn

_AMOUNTS = ("10", "25", "50", "100", "250")
_PAGE_PAYMENTS = 20
_CURSOR_CHARACTERS_MAX = 100

_STATES: dict[str, Kind] = {
    "open": "",
    "processing": "warn",
    "succeeded": "good",
    "failed": "bad",
    "canceled": "",
}


async def show(visit: Visit) -> Response:
    """The page. Whoever comes back from Stripe sees at once what has become of the payment."""
    console, member = visit.console, visit.member
    if paid := visit.asked("payment"):
        await _tell(visit, paid)
    if visit.asked("card") == "saved":
        visit.notices.append(Notice(DONE["card-saved"], "good"))
    after = visit.asked("after")[:_CURSOR_CHARACTERS_MAX]
    state = await plan.statement(console, member)
    page = await payments.list_payments(member, console, _PAGE_PAYMENTS, after)
    recharge = await payments.show_recharge(member, console)
    return visit.render(
        "billing.html",
        "/billing",
        {
            "balance": state.balance,
            "reserved": state.reserved,
            "credited": state.credited,
            "charged": state.charged,
            "by_card": console.card_payments is not None,
            "amounts": _AMOUNTS,
            "payments": page.payments,
            "next": page.next,
            "after": after,
            "states": _STATES,
            "recharge": recharge.recharge,
            "card": recharge.card,
            "typed": visit.form if visit.status != 200 else {},
        },
    )


async def _tell(visit: Visit, payment_id: str) -> None:
    try:
        paid = await payments.show_payment(UUID(payment_id), visit.member, visit.console)
    except (ValueError, Refused):
        return
    if paid.state == "succeeded":
        visit.notices.append(Notice(f"{words.usd(paid.amount)} were added to the balance.", "good"))
    elif paid.state == "failed":
        visit.notices.append(Notice(paid.failure or "The payment has failed.", "bad"))
    else:
        visit.notices.append(Notice(DONE["paid"]))


async def top_up(visit: Visit) -> Response:
    """Go to Stripe's page to pay."""
    amount = visit.form.get("other") or visit.form.get("amount", "")
    body = NewTopUp(amount=words.plain_amount(amount), save_card="save" in visit.form)
    started = await payments.start_top_up(body, visit.member, visit.console)
    return RedirectResponse(started.url, 303)


async def go_on(visit: Visit) -> Response:
    """Go back to Stripe's page, which was left without paying."""
    try:
        payment_id = UUID(visit.form.get("payment_id", ""))
    except ValueError:
        raise Refused(404, "not_found", "There is no such payment.") from None
    started = await payments.go_on(payment_id, visit.member, visit.console)
    return RedirectResponse(started.url, 303)


async def save_card(visit: Visit) -> Response:
    """Go to Stripe's page to save a card."""
    started = await payments.start_saving_card(visit.member, visit.console)
    return RedirectResponse(started.url, 303)


async def remove_card(visit: Visit) -> str:
    """Forget the card."""
    await payments.remove_card(visit.member, visit.console)
    return "card-removed"


async def set_recharge(visit: Visit) -> str:
    """Change automatic top-ups."""
    form = visit.form
    names = ("threshold", "amount", "monthly_cap")
    amounts = {name: words.plain_amount(form.get(name, "")) for name in names}
    body = RechargeBody(enabled="enabled" in form, **amounts)
    await payments.set_recharge(body, visit.member, visit.console)
    return "recharge-changed"


async def add_credit(visit: Visit) -> str:
    """Add credit by hand."""
    amount = words.plain_amount(visit.form.get("usd", ""))
    wanted = CreditIn(amount=amount, reason=visit.form.get("reason", ""))
    await plan.add_credit(visit.member, wanted, visit.console, visit.form["once"])
    return "credit-added"


FORMS = {
    "credit": Form("plan.grant", add_credit, once="This credit was added already."),
    "top-up": Form("billing.write", top_up),
    "go-on": Form("billing.write", go_on),
    "save-card": Form("billing.write", save_card),
    "remove-card": Form("billing.write", remove_card),
    "recharge": Form("billing.write", set_recharge),
}
