"""A stand-in for Stripe on a loopback port: what Farebox uses of the public API, strictly.

Stripe itself cannot be called from a test. This follows its documentation: form bodies with nested
names, the objects and their ids, `expand`, lists with `starting_after`, the error envelope with
types and codes, and idempotency keys (the same answer again; another request under the same key is
refused; one that still runs is a conflict). An unknown path or parameter is an error here as it is
there, so a typing mistake fails a test.

People and their banks act through methods: `pay`, `expire`, `refund`, `fail_refund`, `dispute`,
`close_dispute`. Whatever happens makes an event as Stripe would send it, with the object as it was
at that moment. Tests take them from `events` and deliver them as they like; `deliver_to` makes a
thread that does, and `sign` is the documented scheme. A browser pays on the page that a Checkout
session's url names.

`faults` is what happens to the next requests: the connection breaks before or after the work was
done, 500 before or after, 429.
"""

from __future__ import annotations

import copy
import hashlib
import hmac
import html
import itertools
import json
import re
import socket
import threading
import time
import urllib.request
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal
from urllib.parse import parse_qsl, urlsplit

API_KEY = "sk_test_stand_in"
WEBHOOK_SECRET = "whsec_stand_in"
API_VERSION = "2026-10-28.endive"

Fault = Literal["broken_before", "broken_after", "500_before", "500_after", "429"]
Json = dict[str, object]
Form = Mapping[str, str]

VISA = "4242424242424242"
DECLINED = "4000000000000002"  # at once
DECLINED_LATER = "4000000000000341"  # can be saved, and fails when it is charged
NEEDS_OWNER = "4000002760003184"  # has to be confirmed by its owner each time

_BODY_BYTES_MAX = 1 << 20
_PAGE_MAX = 100
_KEYS_LAST_SECONDS = 86_400


class Refusal(Exception):
    """An error envelope of the API."""

    def __init__(
        self, status: int, kind: str, message: str, code: str = "", param: str = "", **more: object
    ) -> None:
        super().__init__(message)
        self.status = status
        self.body: Json = {"type": kind, "message": message}
        if code:
            self.body["code"] = code
            self.body["doc_url"] = f"https://stripe.com/docs/error-codes/{code}"
        if param:
            self.body["param"] = param
        self.body |= more


def _invalid(message: str, code: str = "", param: str = "", status: int = 400) -> Refusal:
    return Refusal(status, "invalid_request_error", message, code, param)


# -- objects --------------------------------------------------------------------------------------


@dataclass
class Customer:
    """`cus_`."""

    id: str
    created: int
    name: str
    email: str | None
    metadata: dict[str, str]

    def render(self) -> Json:
        """As the API shows it."""
        return {
            "id": self.id,
            "object": "customer",
            "created": self.created,
            "email": self.email,
            "livemode": False,
            "metadata": dict(self.metadata),
            "name": self.name,
        }


@dataclass
class Method:
    """`pm_`: a card. Its number says what becomes of charges."""

    id: str
    created: int
    number: str
    customer: str | None = None
    exp_year: int = 2030

    def card(self) -> Json:
        """Its `card` object."""
        return {
            "brand": "visa",
            "country": "US",
            "exp_month": 12,
            "exp_year": self.exp_year,
            "funding": "credit",
            "last4": self.number[-4:],
        }

    def render(self) -> Json:
        """As the API shows it."""
        return {
            "id": self.id,
            "object": "payment_method",
            "card": self.card(),
            "created": self.created,
            "customer": self.customer,
            "livemode": False,
            "metadata": {},
            "type": "card",
        }


@dataclass
class Movement:
    """`txn_`: a movement on the balance."""

    id: str
    created: int
    kind: str
    amount: int
    fee: int
    source: str

    def render(self) -> Json:
        """As the API shows it, not expanded."""
        return {
            "id": self.id,
            "object": "balance_transaction",
            "amount": self.amount,
            "created": self.created,
            "currency": "usd",
            "fee": self.fee,
            "net": self.amount - self.fee,
            "reporting_category": self.kind,
            "source": self.source,
            "status": "available",
            "type": self.kind,
        }


@dataclass
class Charge:
    """`ch_` or `py_`: money of a payment."""

    id: str
    created: int
    intent: str
    customer: str | None
    amount: int
    method: str
    movement: str
    refunded: int = 0
    disputed: bool = False


@dataclass
class Refund:
    """`re_`."""

    id: str
    created: int
    charge: str
    intent: str
    amount: int
    status: str
    movement: str
    failure_movement: str | None = None


@dataclass
class Dispute:
    """`du_`."""

    id: str
    created: int
    charge: str
    intent: str
    amount: int
    status: str
    movements: list[str] = field(default_factory=list)


@dataclass
class Intent:
    """`pi_`."""

    id: str
    created: int
    amount: int
    customer: str | None
    metadata: dict[str, str]
    description: str | None = None
    method: str | None = None
    status: str = "requires_payment_method"
    currency: str = "usd"
    charge: str | None = None
    setup_future_usage: str | None = None
    error: Json | None = None


@dataclass
class SetupIntent:
    """`seti_`."""

    id: str
    created: int
    customer: str
    method: str | None = None
    status: str = "requires_payment_method"


@dataclass
class Session:
    """`cs_`: a hosted page."""

    id: str
    created: int
    mode: str
    customer: str
    metadata: dict[str, str]
    success_url: str
    cancel_url: str
    amount: int = 0
    product: str = ""
    intent_metadata: dict[str, str] = field(default_factory=dict)
    setup_future_usage: str | None = None
    makes_invoice: bool = False
    status: str = "open"
    intent: str | None = None
    setup_intent: str | None = None
    invoice: str | None = None


@dataclass
class Event:
    """One that Stripe would send; `body` is the exact bytes."""

    id: str
    type: str
    body: bytes


@dataclass
class _Kept:
    """What was answered under an idempotency key."""

    request: tuple[str, str, str]
    since: int
    answer: tuple[int, Json] | None = None


def sign(body: bytes, secret: str = WEBHOOK_SECRET, at: float | None = None) -> str:
    """A `Stripe-Signature` header."""
    moment = int(time.time_ns() // 1_000_000_000 if at is None else at)
    signed = f"{moment}.".encode() + body
    digest = hmac.new(secret.encode(), signed, hashlib.sha256).hexdigest()
    return f"t={moment},v1={digest},v0={'0' * 64}"


# -- forms ----------------------------------------------------------------------------------------


class _Parameters:
    """The parameters of a request; whatever nobody asked for is refused at the end."""

    def __init__(self, form: Form) -> None:
        self._form = dict(form)
        self._asked: set[str] = set()

    def text(self, name: str) -> str | None:
        """A parameter, if it is there."""
        self._asked.add(name)
        return self._form.get(name)

    def required(self, name: str) -> str:
        """One that has to be there."""
        found = self.text(name)
        if found is None:
            raise _invalid(f"Missing required param: {name}.", "parameter_missing", name)
        if not found:
            raise _invalid(
                f"You passed an empty string for '{name}'.", "parameter_invalid_empty", name
            )
        return found

    def integer(self, name: str, default: int | None = None) -> int:
        """A whole number."""
        found = self.text(name) if default is not None else self.required(name)
        if found is None:
            assert default is not None
            return default
        if not re.fullmatch(r"-?\d+", found):
            raise _invalid(f"Invalid integer: {found}", "parameter_invalid_integer", name)
        return int(found)

    def boolean(self, name: str) -> bool:
        """`true` or `false`."""
        found = self.text(name)
        if found not in (None, "true", "false"):
            raise _invalid(f"Invalid boolean: {found}", param=name)
        return found == "true"

    def choice(self, name: str, *choices: str) -> str | None:
        """One of these, or nothing."""
        found = self.text(name)
        if found is not None and found not in choices:
            raise _invalid(f"Invalid {name}: must be one of {', '.join(choices)}", param=name)
        return found

    def metadata(self, prefix: str = "metadata") -> dict[str, str]:
        """All of a mapping."""
        names = [name for name in self._form if name.startswith(f"{prefix}[")]
        self._asked.update(names)
        found = {name[len(prefix) + 1 : -1]: self._form[name] for name in names}
        if len(found) > 50 or any(len(k) > 40 or len(v) > 500 for k, v in found.items()):
            raise _invalid("Metadata is too large.", param=prefix)
        return found

    def expand(self, *known: str) -> set[str]:
        """What is to be shown whole."""
        names = [name for name in self._form if re.fullmatch(r"expand\[\d*\]", name)]
        self._asked.update(names)
        found = {self._form[name] for name in names}
        for path in found - set(known):
            raise _invalid(f"This property cannot be expanded ({path}).", param="expand")
        return found

    def finish(self) -> None:
        """Refuse what nobody asked for."""
        for name in self._form.keys() - self._asked:
            raise _invalid(f"Received unknown parameter: {name}", "parameter_unknown", name)


# -- the account ----------------------------------------------------------------------------------


class Stripe:
    """One account, in test mode. All methods may be called from any thread."""

    def __init__(self) -> None:
        self.base_url = ""
        self.page_origin = ""  # where else browsers find its pages
        self.clock: Callable[[], float] = lambda: time.time_ns() / 1e9
        self.lock = threading.RLock()
        self.faults: deque[Fault] = deque()
        self.requests: list[tuple[str, str]] = []
        self.events: list[Event] = []
        self.customers: dict[str, Customer] = {}
        self.methods: dict[str, Method] = {}
        self.sessions: dict[str, Session] = {}
        self.intents: dict[str, Intent] = {}
        self.setup_intents: dict[str, SetupIntent] = {}
        self.charges: dict[str, Charge] = {}
        self.refunds: dict[str, Refund] = {}
        self.disputes: dict[str, Dispute] = {}
        self.movements: dict[str, Movement] = {}
        self._numbers = itertools.count(1)
        self._kept: dict[str, _Kept] = {}
        self._endpoint: tuple[str, str] | None = None

    # -- what people and banks do -----------------------------------------------------------------

    def pay(self, session_id: str, number: str = VISA) -> bool:
        """Somebody pays, or saves a card, on a page; whether the card was taken."""
        with self.lock:
            session = self.sessions[session_id]
            assert session.status == "open", "the page is closed"
            method = self._new_method(number)
            if session.mode == "setup":
                return self._save_on(session, method)
            intent = self._intent_of(session)
            intent.method = method.id
            if intent.setup_future_usage:
                method.customer = session.customer
            if not self._confirm(intent, off_session=False):
                return False
            session.status = "complete"
            if session.makes_invoice:
                session.invoice = self._id("in")
            self._emit("checkout.session.completed", self._session(session, set()))
            return True

    def expire(self, session_id: str) -> None:
        """Nobody paid for a day."""
        with self.lock:
            session = self.sessions[session_id]
            assert session.status == "open"
            session.status = "expired"
            self._emit("checkout.session.expired", self._session(session, set()))

    def refund(self, intent_id: str, cents: int | None = None, status: str = "succeeded") -> str:
        """The operator gives money back at Stripe; the refund."""
        with self.lock:
            charge = self._charge_of(intent_id)
            left = charge.amount - charge.refunded
            amount = left if cents is None else cents
            assert 0 < amount <= left, "more than was paid"
            assert not charge.disputed, "a disputed charge cannot be refunded"
            refund_id = self._id("re")
            movement = self._move("refund", -amount, 0, refund_id)
            refund = Refund(
                refund_id, self._now(), charge.id, intent_id, amount, status, movement.id
            )
            self.refunds[refund_id] = refund
            charge.refunded += amount
            self._emit("refund.created", self._refund(refund, set()))
            self._emit("charge.refunded", self._charge(charge, set()))
            return refund_id

    def fail_refund(self, refund_id: str) -> None:
        """The bank would not take it: the money is ours again."""
        with self.lock:
            refund = self.refunds[refund_id]
            assert refund.status in ("pending", "succeeded", "requires_action")
            refund.status = "failed"
            refund.failure_movement = self._move("refund_failure", refund.amount, 0, refund_id).id
            self.charges[refund.charge].refunded -= refund.amount
            self._emit("refund.updated", self._refund(refund, set()))
            self._emit("refund.failed", self._refund(refund, set()))

    def dispute(self, intent_id: str, *, inquiry: bool = False) -> str:
        """The cardholder says that they never paid for this; the dispute."""
        with self.lock:
            charge = self._charge_of(intent_id)
            amount = charge.amount - charge.refunded
            assert amount > 0, "there is nothing to dispute"
            assert not charge.disputed
            charge.disputed = True
            dispute = Dispute(self._id("du"), self._now(), charge.id, intent_id, amount, "")
            dispute.status = "warning_needs_response" if inquiry else "needs_response"
            self.disputes[dispute.id] = dispute
            if not inquiry:
                dispute.movements.append(self._move("adjustment", -amount, 1500, dispute.id).id)
            self._emit("charge.dispute.created", self._dispute(dispute))
            if not inquiry:
                self._emit("charge.dispute.funds_withdrawn", self._dispute(dispute))
            return dispute.id

    def close_dispute(self, dispute_id: str, *, won: bool) -> None:
        """The bank has decided."""
        with self.lock:
            dispute = self.disputes[dispute_id]
            if dispute.status.startswith("warning_"):
                dispute.status = "warning_closed"
            else:
                assert dispute.status in ("needs_response", "under_review")
                dispute.status = "won" if won else "lost"
                if won:
                    dispute.movements.append(
                        self._move("adjustment", dispute.amount, 0, dispute.id).id
                    )
                    self._emit("charge.dispute.funds_reinstated", self._dispute(dispute))
            self._emit("charge.dispute.closed", self._dispute(dispute))

    def detach(self, method_id: str) -> None:
        """A card is removed, at Stripe."""
        with self.lock:
            method = self.methods[method_id]
            method.customer = None
            self._emit("payment_method.detached", method.render())

    def foreign_payment(self, cents: int, currency: str = "usd", **metadata: str) -> str:
        """A payment that somebody else made in this account; its PaymentIntent."""
        with self.lock:
            intent = Intent(self._id("pi"), self._now(), cents, None, metadata, currency=currency)
            intent.method = self._new_method(VISA).id
            self.intents[intent.id] = intent
            self._confirm(intent, off_session=False)
            return intent.id

    def saved_card(self, customer_id: str, number: str = VISA) -> str:
        """A card that a customer has saved."""
        with self.lock:
            method = self._new_method(number)
            method.customer = customer_id
            return method.id

    # -- events -----------------------------------------------------------------------------------

    def take_events(self) -> list[Event]:
        """All that were made since the last call."""
        with self.lock:
            taken, self.events = self.events, []
            return taken

    def deliver_to(self, url: str, secret: str = WEBHOOK_SECRET) -> None:
        """From now on, send events there as they happen, until each is answered with 200."""
        self._endpoint = (url, secret)

    def _deliver(self, event: Event) -> None:
        assert self._endpoint is not None
        url, secret = self._endpoint
        for pause in (0.05, 0.2, 1.0, 2.0):
            request = urllib.request.Request(  # noqa: S310 - loopback
                url,
                event.body,
                {"content-type": "application/json", "stripe-signature": sign(event.body, secret)},
            )
            with suppress(OSError), urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310
                if answer.status == 200:
                    return
            threading.Event().wait(pause)

    def _emit(self, type_: str, thing: Json) -> None:
        event_id = self._id("evt")
        body = json.dumps(
            {
                "id": event_id,
                "object": "event",
                "api_version": API_VERSION,
                "created": self._now(),
                "data": {"object": copy.deepcopy(thing)},
                "livemode": False,
                "pending_webhooks": 1,
                "request": {"id": self._id("req"), "idempotency_key": None},
                "type": type_,
            },
            indent=2,
        ).encode()
        event = Event(event_id, type_, body)
        self.events.append(event)
        if self._endpoint is not None:
            threading.Thread(target=self._deliver, args=[event], daemon=True).start()

    # -- the API ----------------------------------------------------------------------------------

    def call(
        self, method: str, target: str, headers: Mapping[str, str], body: bytes
    ) -> tuple[int, Json, dict[str, str]]:
        """A request of the API: status, body, headers."""
        url = urlsplit(target)
        told = {"Request-Id": self._id("req"), "Stripe-Version": API_VERSION}
        key = headers.get("idempotency-key", "")
        try:
            _authenticate(headers)
            text = url.query if method == "GET" else _form_text(headers, body)
            if not key or method == "GET":
                return *self._answer(method, url.path, text), told
            status, answer, replayed = self._once(key, (method, url.path, text))
            told["Idempotency-Key"] = key
            if replayed:
                told["Idempotent-Replayed"] = "true"
            return status, answer, told
        except Refusal as refusal:
            return refusal.status, {"error": refusal.body}, told

    def _once(self, key: str, request: tuple[str, str, str]) -> tuple[int, Json, bool]:
        with self.lock:
            kept = self._kept.get(key)
            if kept is None or self._now() - kept.since > _KEYS_LAST_SECONDS:
                kept = self._kept[key] = _Kept(request, self._now())
                try:
                    status, answer = self._answer(*request)
                except Refusal as refusal:
                    if refusal.status != 402:  # it was not begun: the key is free
                        del self._kept[key]
                        raise
                    status, answer = refusal.status, {"error": refusal.body}
                kept.answer = status, answer
                return status, answer, False
            if kept.request != request:
                raise Refusal(
                    400,
                    "idempotency_error",
                    "Keys for idempotent requests can only be used with the same parameters they "
                    "were first used with.",
                )
            if kept.answer is None:
                raise Refusal(
                    409,
                    "idempotency_error",
                    "There is currently another in-progress request using this Idempotent Key.",
                    "idempotency_key_in_use",
                )
            return *kept.answer, True

    def _answer(self, method: str, path: str, text: str) -> tuple[int, Json]:
        pairs = parse_qsl(text, keep_blank_values=True)
        if len({name for name, _ in pairs}) != len(pairs) and "expand[]" not in dict(pairs):
            raise _invalid("A parameter was given twice.")
        parameters = _Parameters(dict(pairs))
        with self.lock:
            self.requests.append((method, path))
            if (of_all := _LISTS.get((method, path))) is not None:
                return 200, of_all(self, parameters)
            for verb, pattern, of_one in _THINGS:
                found = re.fullmatch(pattern, path)
                if verb == method and found:
                    return 200, of_one(self, parameters, found[1])
        raise _invalid(f"Unrecognized request URL ({method}: {path}).", status=404)

    def _create_customer(self, given: _Parameters) -> Json:
        customer = Customer(
            self._id("cus"),
            self._now(),
            given.text("name") or "",
            given.text("email"),
            given.metadata(),
        )
        given.finish()
        self.customers[customer.id] = customer
        return customer.render()

    def _create_session(self, given: _Parameters) -> Json:
        mode = given.choice("mode", "payment", "setup", "subscription")
        customer = self._customer(given.required("customer"), "customer")
        session = Session(
            "cs_test_" + self._id("x"),
            self._now(),
            mode or "payment",
            customer.id,
            given.metadata(),
            given.required("success_url"),
            given.text("cancel_url") or "",
        )
        if mode == "payment":
            self._fill(session, given)
        elif mode == "setup":
            _usd(given.required("currency"), "currency")
        else:
            raise _invalid("Missing required param: mode.", "parameter_missing", "mode")
        given.finish()
        self.sessions[session.id] = session
        return self._session(session, set())

    def _fill(self, session: Session, given: _Parameters) -> None:
        item = "line_items[0]"
        _usd(given.required(f"{item}[price_data][currency]"), f"{item}[price_data][currency]")
        cents = given.integer(f"{item}[price_data][unit_amount]")
        session.amount = cents * given.integer(f"{item}[quantity]")
        session.product = given.required(f"{item}[price_data][product_data][name]")
        _least(session.amount, "line_items")
        session.intent_metadata = given.metadata("payment_intent_data[metadata]")
        session.setup_future_usage = given.choice(
            "payment_intent_data[setup_future_usage]", "off_session", "on_session"
        )
        given.text("payment_intent_data[description]")
        session.makes_invoice = given.boolean("invoice_creation[enabled]")

    def _retrieve_session(self, given: _Parameters, session_id: str) -> Json:
        expand = given.expand("invoice", "payment_intent")
        given.finish()
        if session_id not in self.sessions:
            raise _missing("checkout.session", session_id)
        return self._session(self.sessions[session_id], expand)

    def _retrieve_setup_intent(self, given: _Parameters, setup_id: str) -> Json:
        expand = given.expand("payment_method")
        given.finish()
        if setup_id not in self.setup_intents:
            raise _missing("setup_intent", setup_id)
        found = self.setup_intents[setup_id]
        method: object = found.method
        if "payment_method" in expand and found.method:
            method = self.methods[found.method].render()
        return {
            "id": found.id,
            "object": "setup_intent",
            "created": found.created,
            "customer": found.customer,
            "livemode": False,
            "metadata": {},
            "payment_method": method,
            "status": found.status,
            "usage": "off_session",
        }

    def _retrieve_method(self, given: _Parameters, method_id: str) -> Json:
        given.finish()
        if method_id not in self.methods:
            raise _missing("payment_method", method_id)
        return self.methods[method_id].render()

    def _detach_method(self, given: _Parameters, method_id: str) -> Json:
        given.finish()
        method = self.methods.get(method_id)
        if method is None:
            raise _missing("payment_method", method_id)
        if method.customer is None:
            raise _invalid(
                "The payment method you provided is not attached to a customer so detachment is "
                "impossible."
            )
        self.detach(method_id)
        return method.render()

    def _create_intent(self, given: _Parameters) -> Json:
        amount = given.integer("amount")
        _least(amount, "amount")
        _usd(given.required("currency"), "currency")
        customer = self._customer(given.required("customer"), "customer")
        method = self.methods.get(given.required("payment_method"))
        if method is None:
            raise _missing("PaymentMethod", "", "payment_method", status=400)
        if method.customer != customer.id:
            raise _invalid(
                "The PaymentMethod does not belong to the Customer you supplied.",
                param="payment_method",
            )
        intent = Intent(
            self._id("pi"),
            self._now(),
            amount,
            customer.id,
            given.metadata(),
            given.text("description"),
            method.id,
        )
        off_session, confirm = given.boolean("off_session"), given.boolean("confirm")
        given.boolean("automatic_payment_methods[enabled]")
        given.choice("automatic_payment_methods[allow_redirects]", "always", "never")
        given.finish()
        if off_session and not confirm:
            raise _invalid("off_session can only be used with confirm.", param="off_session")
        self.intents[intent.id] = intent
        self._emit("payment_intent.created", self._intent(intent, set()))
        if confirm and not self._confirm(intent, off_session=off_session):
            assert intent.error is not None
            raise Refusal(
                402,
                "card_error",
                str(intent.error["message"]),
                **{k: v for k, v in intent.error.items() if k not in ("type", "message")},  # type: ignore[arg-type]  # code is text
                payment_intent=self._intent(intent, set()),
            )
        return self._intent(intent, set())

    def _retrieve_intent(self, given: _Parameters, intent_id: str) -> Json:
        expand = given.expand("latest_charge", "latest_charge.balance_transaction")
        given.finish()
        if intent_id not in self.intents:
            raise _missing("payment_intent", intent_id, "intent")
        return self._intent(self.intents[intent_id], expand)

    def _cancel_intent(self, given: _Parameters, intent_id: str) -> Json:
        given.finish()
        intent = self.intents[intent_id]
        if intent.status in ("succeeded", "canceled", "processing"):
            raise _invalid(
                f"You cannot cancel this PaymentIntent because it has a status of {intent.status}.",
                "payment_intent_unexpected_state",
            )
        intent.status = "canceled"
        self._emit("payment_intent.canceled", self._intent(intent, set()))
        return self._intent(intent, set())

    def _list_intents(self, given: _Parameters) -> Json:
        customer, since = given.text("customer"), given.integer("created[gte]", 0)
        found = [
            self._intent(each, set())
            for each in self.intents.values()
            if each.customer == customer and each.created >= since
        ]
        return _listed(given, "/v1/payment_intents", found)

    def _list_refunds(self, given: _Parameters) -> Json:
        intent_id = given.text("payment_intent")
        expand = {
            path.removeprefix("data.")
            for path in given.expand(
                "data.balance_transaction", "data.failure_balance_transaction", "data.charge"
            )
        }
        found = [
            self._refund(each, expand) for each in self.refunds.values() if each.intent == intent_id
        ]
        return _listed(given, "/v1/refunds", found)

    def _list_disputes(self, given: _Parameters) -> Json:
        intent_id = given.text("payment_intent")
        found = [self._dispute(d) for d in self.disputes.values() if d.intent == intent_id]
        return _listed(given, "/v1/disputes", found)

    def _list_movements(self, given: _Parameters) -> Json:
        since, expand = given.integer("created[gte]", 0), given.expand("data.source")
        found = []
        for movement in self.movements.values():
            if movement.created >= since:
                shown = movement.render()
                if expand:
                    shown["source"] = self._source(movement.source)
                found.append(shown)
        return _listed(given, "/v1/balance_transactions", found)

    # -- what becomes of payments -----------------------------------------------------------------

    def _confirm(self, intent: Intent, *, off_session: bool) -> bool:
        assert intent.method is not None
        method = self.methods[intent.method]
        error = _declines(method.number, off_session=off_session)
        if error is not None:
            error["payment_method"] = method.render()
            intent.error = error
            intent.status = "requires_payment_method"
            self._emit("payment_intent.payment_failed", self._intent(intent, set()))
            return False
        charge_id = self._id("ch")
        fee = (intent.amount * 29 + 500) // 1000 + 30
        movement = self._move("charge", intent.amount, fee, charge_id)
        self.charges[charge_id] = Charge(
            charge_id,
            self._now(),
            intent.id,
            intent.customer,
            intent.amount,
            method.id,
            movement.id,
        )
        intent.charge, intent.status, intent.error = charge_id, "succeeded", None
        self._emit("charge.succeeded", self._charge(self.charges[charge_id], set()))
        self._emit("payment_intent.succeeded", self._intent(intent, set()))
        return True

    def _intent_of(self, session: Session) -> Intent:
        """Stripe makes it when somebody pays, and keeps it for further tries."""
        if session.intent is None:
            intent = Intent(
                self._id("pi"),
                self._now(),
                session.amount,
                session.customer,
                dict(session.intent_metadata),
                session.product,
                setup_future_usage=session.setup_future_usage,
            )
            self.intents[intent.id] = intent
            session.intent = intent.id
            self._emit("payment_intent.created", self._intent(intent, set()))
        return self.intents[session.intent]

    def _save_on(self, session: Session, method: Method) -> bool:
        if method.number == DECLINED:
            return False
        method.customer = session.customer
        setup = SetupIntent(self._id("seti"), self._now(), session.customer, method.id, "succeeded")
        self.setup_intents[setup.id] = setup
        session.setup_intent, session.status = setup.id, "complete"
        self._emit("checkout.session.completed", self._session(session, set()))
        return True

    def _new_method(self, number: str) -> Method:
        method = Method(self._id("pm"), self._now(), number.replace(" ", ""))
        self.methods[method.id] = method
        return method

    def _move(self, kind: str, amount: int, fee: int, source: str) -> Movement:
        movement = Movement(self._id("txn"), self._now(), kind, amount, fee, source)
        self.movements[movement.id] = movement
        return movement

    def _charge_of(self, intent_id: str) -> Charge:
        charge_id = self.intents[intent_id].charge
        assert charge_id is not None, "nobody has paid"
        return self.charges[charge_id]

    def _customer(self, customer_id: str, param: str) -> Customer:
        found = self.customers.get(customer_id)
        if found is None:
            raise _missing("customer", customer_id, param, status=400)
        return found

    # -- how the API shows them -------------------------------------------------------------------

    def _session(self, session: Session, expand: set[str]) -> Json:
        invoice: object = session.invoice
        if session.invoice and "invoice" in expand:
            invoice = {
                "id": session.invoice,
                "object": "invoice",
                "hosted_invoice_url": f"{self.base_url}/i/{session.invoice}",
                "status": "paid",
            }
        paid = session.status == "complete"
        pages = self.page_origin or self.base_url
        return {
            "id": session.id,
            "object": "checkout.session",
            "amount_total": session.amount if session.mode == "payment" else None,
            "cancel_url": session.cancel_url,
            "created": session.created,
            "currency": "usd",
            "customer": session.customer,
            "expires_at": session.created + 86_400,
            "invoice": invoice,
            "livemode": False,
            "metadata": dict(session.metadata),
            "mode": session.mode,
            "payment_intent": session.intent,
            "payment_status": _payment_status(session, paid=paid),
            "setup_intent": session.setup_intent,
            "status": session.status,
            "success_url": session.success_url,
            "url": f"{pages}/c/pay/{session.id}" if session.status == "open" else None,
        }

    def _intent(self, intent: Intent, expand: set[str]) -> Json:
        charge: object = intent.charge
        if intent.charge and expand:
            shown = {path.removeprefix("latest_charge.") for path in expand}
            charge = self._charge(self.charges[intent.charge], shown)
        return {
            "id": intent.id,
            "object": "payment_intent",
            "amount": intent.amount,
            "amount_received": intent.amount if intent.status == "succeeded" else 0,
            "created": intent.created,
            "currency": intent.currency,
            "customer": intent.customer,
            "description": intent.description,
            "last_payment_error": intent.error,
            "latest_charge": charge,
            "livemode": False,
            "metadata": dict(intent.metadata),
            "payment_method": intent.method if intent.status == "succeeded" else None,
            "setup_future_usage": intent.setup_future_usage,
            "status": intent.status,
        }

    def _charge(self, charge: Charge, expand: set[str]) -> Json:
        movement: object = charge.movement
        if "balance_transaction" in expand:
            movement = self.movements[charge.movement].render()
        return {
            "id": charge.id,
            "object": "charge",
            "amount": charge.amount,
            "amount_captured": charge.amount,
            "amount_refunded": charge.refunded,
            "balance_transaction": movement,
            "captured": True,
            "created": charge.created,
            "currency": self.intents[charge.intent].currency,
            "customer": charge.customer,
            "disputed": charge.disputed,
            "livemode": False,
            "metadata": dict(self.intents[charge.intent].metadata),
            "paid": True,
            "payment_intent": charge.intent,
            "payment_method": charge.method,
            "payment_method_details": {"card": self.methods[charge.method].card(), "type": "card"},
            "receipt_url": f"{self.base_url}/receipts/{charge.id}",
            "refunded": charge.refunded == charge.amount,
            "status": "succeeded",
        }

    def _refund(self, refund: Refund, expand: set[str]) -> Json:
        shown: Json = {
            "id": refund.id,
            "object": "refund",
            "amount": refund.amount,
            "balance_transaction": refund.movement,
            "charge": refund.charge,
            "created": refund.created,
            "currency": "usd",
            "metadata": {},
            "payment_intent": refund.intent,
            "reason": None,
            "status": refund.status,
        }
        if refund.failure_movement:
            shown["failure_balance_transaction"] = refund.failure_movement
            shown["failure_reason"] = "expired_or_canceled_card"
        for name in expand & {"balance_transaction", "failure_balance_transaction"}:
            if name in shown:
                shown[name] = self.movements[str(shown[name])].render()
        return shown

    def _dispute(self, dispute: Dispute) -> Json:
        return {
            "id": dispute.id,
            "object": "dispute",
            "amount": dispute.amount,
            "balance_transactions": [self.movements[m].render() for m in dispute.movements],
            "charge": dispute.charge,
            "created": dispute.created,
            "currency": "usd",
            "is_charge_refundable": dispute.status.startswith("warning_"),
            "livemode": False,
            "metadata": {},
            "payment_intent": dispute.intent,
            "reason": "fraudulent",
            "status": dispute.status,
        }

    def _source(self, source: str) -> Json:
        if source in self.charges:
            return self._charge(self.charges[source], set())
        if source in self.refunds:
            return self._refund(self.refunds[source], set())
        return self._dispute(self.disputes[source])

    # -- pages ------------------------------------------------------------------------------------

    def page(self, session_id: str, note: str = "") -> str:
        """The hosted page of a session."""
        session = self.sessions[session_id]
        what = "Save card" if session.mode == "setup" else f"Pay ${session.amount / 100:.2f}"
        return (
            "<!doctype html><html lang=en><meta charset=utf-8><title>Checkout</title>"
            f"<h1>{html.escape(session.product or 'Save a card')}</h1><p>{html.escape(note)}</p>"
            f"<form method=post action='/c/pay/{session.id}'>"
            f"<label>Card number <input name=number value='{VISA}'></label>"
            f"<button type=submit>{what}</button></form>"
            f"<a href='{html.escape(session.cancel_url)}'>Back</a></html>"
        )

    def submit(self, session_id: str, number: str) -> str | None:
        """Where the page sends the person who pressed the button; None where the card failed."""
        if not self.pay(session_id, number):
            return None
        return self.sessions[session_id].success_url.replace("{CHECKOUT_SESSION_ID}", session_id)

    def _id(self, prefix: str) -> str:
        number = next(self._numbers)
        return f"{prefix}_{hashlib.sha256(str(number).encode()).hexdigest()[:16]}{number}"

    def _now(self) -> int:
        return int(self.clock())


_LISTS: Mapping[tuple[str, str], Callable[[Stripe, _Parameters], Json]] = {
    ("POST", "/v1/customers"): Stripe._create_customer,
    ("POST", "/v1/checkout/sessions"): Stripe._create_session,
    ("POST", "/v1/payment_intents"): Stripe._create_intent,
    ("GET", "/v1/payment_intents"): Stripe._list_intents,
    ("GET", "/v1/refunds"): Stripe._list_refunds,
    ("GET", "/v1/disputes"): Stripe._list_disputes,
    ("GET", "/v1/balance_transactions"): Stripe._list_movements,
}
_THINGS: tuple[tuple[str, str, Callable[[Stripe, _Parameters, str], Json]], ...] = (
    ("GET", r"/v1/checkout/sessions/(\w+)", Stripe._retrieve_session),
    ("GET", r"/v1/setup_intents/(\w+)", Stripe._retrieve_setup_intent),
    ("GET", r"/v1/payment_methods/(\w+)", Stripe._retrieve_method),
    ("POST", r"/v1/payment_methods/(\w+)/detach", Stripe._detach_method),
    ("GET", r"/v1/payment_intents/(\w+)", Stripe._retrieve_intent),
    ("POST", r"/v1/payment_intents/(\w+)/cancel", Stripe._cancel_intent),
)


def _authenticate(headers: Mapping[str, str]) -> None:
    given = headers.get("authorization", "")
    if given != f"Bearer {API_KEY}":
        raise _invalid("Invalid API Key provided.", status=401)


def _form_text(headers: Mapping[str, str], body: bytes) -> str:
    kind = headers.get("content-type", "").partition(";")[0]
    if body and kind != "application/x-www-form-urlencoded":
        raise _invalid("Invalid request (check that your POST content type is a form).")
    return body.decode()


def _usd(currency: str, param: str) -> None:
    if currency != "usd":
        raise _invalid(f"Invalid currency: {currency}", param=param)


def _least(cents: int, param: str) -> None:
    if cents < 50:
        raise _invalid("Amount must be at least $0.50 usd", "amount_too_small", param)
    if cents > 99_999_999:
        raise _invalid("Amount must be no more than $999,999.99", "amount_too_large", param)


def _missing(kind: str, found: str, param: str = "id", status: int = 404) -> Refusal:
    return _invalid(f"No such {kind}: '{found}'", "resource_missing", param, status)


def _payment_status(session: Session, *, paid: bool) -> str:
    if session.mode == "setup":
        return "no_payment_required"
    return "paid" if paid else "unpaid"


def _declines(number: str, *, off_session: bool) -> Json | None:
    if number in (DECLINED, DECLINED_LATER):
        return {
            "type": "card_error",
            "code": "card_declined",
            "decline_code": "generic_decline",
            "message": "Your card was declined.",
        }
    if number == NEEDS_OWNER and off_session:
        return {
            "type": "card_error",
            "code": "authentication_required",
            "decline_code": "authentication_required",
            "message": "Your card was declined. This transaction requires authentication.",
        }
    return None


def _listed(given: _Parameters, url: str, found: list[Json]) -> Json:
    """Newest first, from after the given one on."""
    limit, after = given.integer("limit", 10), given.text("starting_after")
    given.finish()
    if not 1 <= limit <= _PAGE_MAX:
        raise _invalid("Invalid limit.", param="limit")
    newest = found[::-1]
    if after is not None:
        ids = [each["id"] for each in newest]
        if after not in ids:
            raise _missing("object", after, "starting_after", status=400)
        newest = newest[ids.index(after) + 1 :]
    return {
        "object": "list",
        "data": newest[:limit],
        "has_more": len(newest) > limit,
        "url": url,
    }


# -- HTTP -----------------------------------------------------------------------------------------


@contextmanager
def serving() -> Iterator[Stripe]:
    """A stand-in on a loopback port, for the time of the block."""
    account = Stripe()
    handler = type("Handler", (_Requests,), {"account": account})
    server = _Server(("127.0.0.1", 0), handler)
    account.base_url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=[0.05], daemon=True)
    thread.start()
    try:
        yield account
    finally:
        server.shutdown()
        server.close_all()
        server.server_close()
        thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = True

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        super().__init__(address, handler)
        self._open: set[socket.socket] = set()

    def process_request(self, request: object, client_address: object) -> None:
        assert isinstance(request, socket.socket)
        self._open.add(request)
        super().process_request(request, client_address)

    def close_request(self, request: object) -> None:
        assert isinstance(request, socket.socket)
        self._open.discard(request)
        super().close_request(request)

    def close_all(self) -> None:
        """Wake those who wait for a next request."""
        for request in list(self._open):
            with suppress(OSError):
                request.shutdown(socket.SHUT_RDWR)


class _Requests(BaseHTTPRequestHandler):
    account: Stripe
    protocol_version = "HTTP/1.1"
    wbufsize = -1
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        """The API, or a page."""
        if (session_id := self._page_of()) is not None:
            self._say(200, self.account.page(session_id).encode(), "text/html; charset=utf-8")
        else:
            self._api(b"")

    def do_POST(self) -> None:
        """The API, or the button of a page."""
        length = int(self.headers.get("content-length", "0"))
        assert length <= _BODY_BYTES_MAX
        body = self.rfile.read(length)
        session_id = self._page_of()
        if session_id is None:
            self._api(body)
            return
        number = dict(parse_qsl(body.decode())).get("number", "")
        where = self.account.submit(session_id, number)
        if where is None:
            page = self.account.page(session_id, "Your card was declined.")
            self._say(200, page.encode(), "text/html; charset=utf-8")
        else:
            self._say(303, b"", "text/plain", {"Location": where})

    def _page_of(self) -> str | None:
        found = re.fullmatch(r"/c/pay/(\w+)", urlsplit(self.path).path)
        return found[1] if found and found[1] in self.account.sessions else None

    def _api(self, body: bytes) -> None:
        with self.account.lock:
            fault = self.account.faults.popleft() if self.account.faults else None
        if fault == "broken_before":
            self.close_connection = True
            return
        headers = {name.lower(): value for name, value in self.headers.items()}
        if fault in ("500_before", "429"):
            status = 429 if fault == "429" else 500
            kind = "invalid_request_error" if fault == "429" else "api_error"
            code = {"code": "rate_limit"} if fault == "429" else {}
            told = {"error": {"type": kind, "message": "Try again later.", **code}}
            self._say(status, json.dumps(told).encode(), "application/json")
            return
        status, answer, more = self.account.call(self.command, self.path, headers, body)
        if fault == "broken_after":
            self.close_connection = True
            return
        if fault == "500_after":
            status, answer = 500, {"error": {"type": "api_error", "message": "Something broke."}}
        self._say(status, json.dumps(answer).encode(), "application/json", more)

    def _say(
        self, status: int, body: bytes, kind: str, more: Mapping[str, str] | None = None
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        for name, value in (more or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name
        """Nothing."""
