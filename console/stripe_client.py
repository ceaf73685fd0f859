"""Stripe, as the rest of the console knows it: a few calls, frozen answers, three ways to fail.

The only file that imports the `stripe` package. It speaks HTTP through httpcore2, so that calls are
cancelled and timed like everything else here; which address they go to is `[stripe] api_base`.

What a call says of money is what Stripe holds true *now*. An event only says that something
happened to an object: deliveries come late, twice and in any order, so the object is always fetched
(`settled`), with its refunds and disputes, and the state follows from that alone.

Ways to fail, and what each says of money:
- `StripeUnavailable`: whether the call did anything is not known. Say it again, with the same
  idempotency key: Stripe answers as it did, or would have done, the first time.
- `CardDeclined`: the payment was tried and failed; nobody paid.
- `StripeRefused`: the call makes no sense as things are; saying it again will not help.
"""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import TYPE_CHECKING, Literal, TypeVar, cast

import httpcore2
import msgspec
import stripe
import trio

from console.settings import StripeSettings

if TYPE_CHECKING:
    from stripe.params import PaymentIntentCreateParams
    from stripe.params.checkout import SessionCreateParams

T = TypeVar("T")
Sleep = Callable[[float], Awaitable[None]]
Metadata = Mapping[str, str]

CENT = 10_000_000  # nano-dollars
CURRENCY = "usd"
EVENT_AGE_SECONDS_MAX = 300  # as Stripe's own libraries have it

_CALL_SECONDS = 30.0
_RETRIES = 2  # of a single call, within moments
_PAGE = 100
_CONNECTIONS_MAX = 10
_IDLE_SECONDS = 30.0


class StripeUnavailable(Exception):
    """No answer, or one that says nothing. What was asked may or may not have been done."""


class StripeRefused(Exception):
    """Stripe will not do this. `code` and `param` are Stripe's own."""

    def __init__(self, message: str, code: str = "", param: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.param = param


class CardDeclined(Exception):
    """The payment failed at the card. `code` is the issuer's reason, where there is one."""

    def __init__(self, message: str, code: str, intent_id: str) -> None:
        super().__init__(message)
        self.code = code
        self.intent_id = intent_id


class BadSignature(Exception):
    """This was not signed by Stripe, or too long ago."""


# -- what is said of money ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Card:
    """A payment method that may be used again. Only cards have a brand and digits."""

    payment_method: str
    brand: str = ""
    last4: str = ""
    exp_month: int = 0
    exp_year: int = 0


@dataclass(frozen=True, slots=True)
class Transaction:
    """A movement on the Stripe balance. `fee_nusd` is 0 where that is not in dollars."""

    transaction_id: str
    fee_nusd: int


@dataclass(frozen=True, slots=True)
class Reversal:
    """A refund or dispute. `stands` while the money is away: not of a failed refund, a dispute that
    is only an inquiry, or one that was won."""

    reversal_id: str
    kind: Literal["refund", "dispute"]
    status: str
    amount_nusd: int
    stands: bool


@dataclass(frozen=True, slots=True)
class Payment:
    """A PaymentIntent with everything that became of it. Amounts are nano-dollars."""

    intent_id: str
    status: str
    currency: str
    received_nusd: int
    metadata: Metadata
    receipt_url: str = ""
    failure: str = ""
    card: Card | None = None  # where it was saved for payments without its owner
    reversals: Sequence[Reversal] = ()
    transactions: Sequence[Transaction] = ()


@dataclass(frozen=True, slots=True)
class Checkout:
    """A hosted page where somebody pays or saves a card."""

    session_id: str
    status: str  # open, complete, expired
    metadata: Metadata
    url: str = ""
    intent_id: str = ""
    setup_intent_id: str = ""
    invoice_url: str = ""


@dataclass(frozen=True, slots=True)
class Movement:
    """A movement on the balance, and the PaymentIntent it belongs to ('' for none)."""

    transaction_id: str
    intent_id: str


@dataclass(frozen=True, slots=True)
class Movements:
    """A page of them, newest first. `after` asks for the next page; '' at the end."""

    page: Sequence[Movement]
    after: str


class EventObject(msgspec.Struct, frozen=True):
    """What an event is about. Which of these there are depends on the kind of object."""

    id: str = ""
    object: str = ""
    payment_intent: str | None = None


class EventData(msgspec.Struct, frozen=True):
    """Where Stripe puts it."""

    object: EventObject = EventObject()


class Event(msgspec.Struct, frozen=True):
    """What a webhook delivers, as far as it is believed."""

    id: str
    type: str
    data: EventData = field(default_factory=EventData)


# -- the client -----------------------------------------------------------------------------------


class Stripe:
    """One account at Stripe, over connections of its own. Close it when done with it."""

    def __init__(self, settings: StripeSettings, *, sleep: Sleep = trio.sleep) -> None:
        self._secret = settings.webhook_secret
        self._http = _TrioHTTPClient(sleep)
        self._api = stripe.StripeClient(
            settings.api_key,
            http_client=self._http,
            base_addresses={"api": settings.api_base.rstrip("/")},
            max_network_retries=_RETRIES,
        )

    async def aclose(self) -> None:
        """Let its connections go."""
        await self._http.close_async()

    def event(self, body: bytes, signature: str, now: float) -> Event:
        """The event in a webhook's body. Raises BadSignature where Stripe has not signed it just
        now, and ValueError where it is none."""
        _verify(body, signature, self._secret, now)
        return msgspec.json.decode(body, type=Event)

    async def create_customer(self, name: str, metadata: Metadata, key: str) -> str:
        """A new customer's id. Without an e-mail address: Stripe's page asks for one, and keeps
        it."""
        created = await _answer(
            self._api.v1.customers.create_async(
                {"name": name, "metadata": dict(metadata)}, {"idempotency_key": key}
            )
        )
        return created.id

    async def start_payment(
        self,
        customer_id: str,
        amount_nusd: int,
        product: str,
        *,
        save_card: bool,
        metadata: Metadata,
        success_url: str,
        cancel_url: str,
        key: str,
    ) -> Checkout:
        """A page on which the customer pays an amount, and gets an invoice for it."""
        intent: dict[str, object] = {"metadata": dict(metadata), "description": product}
        if save_card:
            intent["setup_future_usage"] = "off_session"
        params: dict[str, object] = {
            "mode": "payment",
            "customer": customer_id,
            "line_items": [
                {
                    "quantity": 1,
                    "price_data": {
                        "currency": CURRENCY,
                        "unit_amount": _cents(amount_nusd),
                        "product_data": {"name": product},
                    },
                }
            ],
            "payment_intent_data": intent,
            "invoice_creation": {"enabled": True},
            "metadata": dict(metadata),
            "success_url": success_url,
            "cancel_url": cancel_url,
        }
        return await self._create_session(params, key)

    async def start_saving(
        self,
        customer_id: str,
        *,
        metadata: Metadata,
        success_url: str,
        cancel_url: str,
        key: str,
    ) -> Checkout:
        """A page on which the customer saves a card without paying."""
        params: dict[str, object] = {
            "mode": "setup",
            "currency": CURRENCY,
            "customer": customer_id,
            "metadata": dict(metadata),
            "success_url": success_url,
            "cancel_url": cancel_url,
        }
        return await self._create_session(params, key)

    async def _create_session(self, params: Mapping[str, object], key: str) -> Checkout:
        session = await _answer(
            self._api.v1.checkout.sessions.create_async(
                cast("SessionCreateParams", params), {"idempotency_key": key}
            )
        )
        return _checkout(session)

    async def checkout(self, session_id: str) -> Checkout:
        """A page as it is now."""
        return _checkout(
            await _answer(
                self._api.v1.checkout.sessions.retrieve_async(session_id, {"expand": ["invoice"]})
            )
        )

    async def saved_card(self, setup_intent_id: str) -> Card | None:
        """The card that a page saved; None where it has not, or where it was removed since."""
        found = await _answer(
            self._api.v1.setup_intents.retrieve_async(
                setup_intent_id, {"expand": ["payment_method"]}
            )
        )
        method = found.payment_method
        if found.status != "succeeded" or not isinstance(method, stripe.PaymentMethod):
            return None
        return _card_of(method) if _id(method.customer) else None

    async def card(self, payment_method: str) -> tuple[Card, str]:
        """A payment method as it is now, and whose it is ('' for nobody's)."""
        method = await _answer(self._api.v1.payment_methods.retrieve_async(payment_method))
        return _card_of(method), _id(method.customer)

    async def forget_card(self, payment_method: str) -> None:
        """No payment is made with it any more. One that is gone already is no error."""
        try:
            await _answer(self._api.v1.payment_methods.detach_async(payment_method))
        except StripeRefused as refusal:
            if refusal.code not in ("resource_missing", "payment_method_unexpected_state", ""):
                raise

    async def charge(
        self,
        customer_id: str,
        payment_method: str,
        amount_nusd: int,
        description: str,
        *,
        metadata: Metadata,
        key: str,
    ) -> tuple[str, str]:
        """Charge a saved card without its owner: the PaymentIntent and its status.

        Raises CardDeclined also where its owner would have to confirm.
        """
        params: dict[str, object] = {
            "amount": _cents(amount_nusd),
            "currency": CURRENCY,
            "customer": customer_id,
            "payment_method": payment_method,
            "description": description,
            "automatic_payment_methods": {"enabled": True, "allow_redirects": "never"},
            "off_session": True,
            "confirm": True,
            "metadata": dict(metadata),
        }
        intent = await _answer(
            self._api.v1.payment_intents.create_async(
                cast("PaymentIntentCreateParams", params), {"idempotency_key": key}
            )
        )
        return intent.id, intent.status

    async def cancel(self, intent_id: str) -> None:
        """Nobody can pay it any more."""
        await _answer(self._api.v1.payment_intents.cancel_async(intent_id))

    async def find_charge(
        self, customer_id: str, metadata: Metadata, since: float
    ) -> tuple[str, str] | None:
        """A PaymentIntent of the customer that carries all of `metadata`, and its status.

        Lists are read as they are written; Stripe's search may lag behind.
        """
        after = ""
        while True:
            params: dict[str, object] = {
                "customer": customer_id,
                "created": {"gte": int(since)},
                "limit": _PAGE,
            }
            if after:
                params["starting_after"] = after
            listed = await _answer(
                self._api.v1.payment_intents.list_async(
                    cast("stripe.params.PaymentIntentListParams", params)
                )
            )
            for intent in listed.data:
                if metadata.items() <= _metadata(intent.metadata).items():
                    return intent.id, intent.status
            if not listed.has_more:
                return None
            after = listed.data[-1].id

    async def marks(self, intent_id: str) -> tuple[Metadata, int]:
        """What whoever made a PaymentIntent wrote on it, and its amount."""
        found = await _answer(self._api.v1.payment_intents.retrieve_async(intent_id))
        return _metadata(found.metadata), found.amount * CENT

    async def settled(self, intent_id: str) -> Payment:
        """A payment with all its refunds and disputes, as they are now."""
        intent = await _answer(
            self._api.v1.payment_intents.retrieve_async(
                intent_id, {"expand": ["latest_charge.balance_transaction"]}
            )
        )
        transactions: dict[str, Transaction] = {}
        reversals: list[Reversal] = []
        if intent.status == "succeeded":
            for refund in await self._refunds(intent_id):
                reversals.append(_refund(refund))
                _add(transactions, refund.balance_transaction)
                _add(transactions, _optional(refund, "failure_balance_transaction"))
            for dispute in await self._disputes(intent_id):
                reversals.append(_dispute(dispute))
                for movement in dispute.balance_transactions:
                    _add(transactions, movement)
        charge = intent.latest_charge
        receipt_url = ""
        if isinstance(charge, stripe.Charge):
            receipt_url = charge.receipt_url or ""
            _add(transactions, charge.balance_transaction)
        return Payment(
            intent_id=intent.id,
            status=intent.status,
            currency=intent.currency,
            received_nusd=intent.amount_received * CENT,
            metadata=_metadata(intent.metadata),
            receipt_url=receipt_url,
            failure=_failure(intent),
            card=_card_saved_by(intent),
            reversals=reversals,
            transactions=tuple(transactions.values()),
        )

    async def _refunds(self, intent_id: str) -> list[stripe.Refund]:
        listed = await _answer(
            self._api.v1.refunds.list_async(
                {
                    "payment_intent": intent_id,
                    "limit": _PAGE,
                    "expand": [
                        "data.balance_transaction",
                        "data.failure_balance_transaction",
                    ],
                }
            )
        )
        return await _whole(listed)

    async def _disputes(self, intent_id: str) -> list[stripe.Dispute]:
        listed = await _answer(
            self._api.v1.disputes.list_async({"payment_intent": intent_id, "limit": _PAGE})
        )
        return await _whole(listed)

    async def movements(self, since: float, after: str = "") -> Movements:
        """What moved on the balance since then, a page at a time."""
        params: dict[str, object] = {
            "created": {"gte": int(since)},
            "limit": _PAGE,
            "expand": ["data.source"],
        }
        if after:
            params["starting_after"] = after
        listed = await _answer(
            self._api.v1.balance_transactions.list_async(
                cast("stripe.params.BalanceTransactionListParams", params)
            )
        )
        page = [Movement(each.id, _intent_of(each.source)) for each in listed.data]
        return Movements(page, listed.data[-1].id if listed.has_more else "")


# -- HTTP -----------------------------------------------------------------------------------------


class _Headers(dict[str, str]):
    """Names in any case: the package asks in more than one."""

    def __init__(self, headers: Sequence[tuple[bytes, bytes]]) -> None:
        super().__init__(
            (name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in headers
        )

    def __getitem__(self, name: str) -> str:
        return super().__getitem__(name.lower())

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and super().__contains__(name.lower())


class _TrioHTTPClient(stripe.HTTPClient):
    """How the package sends a request and waits between two tries; what to try again, it knows."""

    name = "httpcore2"

    def __init__(self, sleep: Sleep) -> None:
        super().__init__()
        self._sleep = sleep
        self._pool = httpcore2.AsyncConnectionPool(
            max_connections=_CONNECTIONS_MAX, keepalive_expiry=_IDLE_SECONDS
        )

    async def request_async(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        post_data: str | bytes | None = None,
    ) -> tuple[bytes, int, Mapping[str, str]]:
        """Send it once."""
        content = post_data.encode() if isinstance(post_data, str) else post_data
        try:
            with trio.fail_after(_CALL_SECONDS):
                response = await self._pool.request(
                    method.upper(), url, headers=list(headers.items()), content=content
                )
        except (httpcore2.NetworkError, httpcore2.TimeoutException, httpcore2.ProtocolError) as e:
            raise _unreachable(f"{type(e).__name__}: {e}") from e
        except trio.TooSlowError as e:
            raise _unreachable("no answer in time") from e
        return response.content, response.status, _Headers(response.headers)

    def sleep_async(self, secs: float) -> Awaitable[None]:
        """Wait before the next try."""
        return self._sleep(secs)

    async def close_async(self) -> None:
        """Let all connections go."""
        await self._pool.aclose()


def _unreachable(why: str) -> stripe.APIConnectionError:
    return stripe.APIConnectionError(why, should_retry=True)  # type: ignore[no-untyped-call]  # theirs


async def _answer(call: Awaitable[T]) -> T:
    """The package's answer, or one of the three ways to fail."""
    try:
        return await call
    except stripe.CardError as error:
        told = error.error
        intent = None if told is None else _optional(told, "payment_intent")
        reason = None if told is None else _optional(told, "decline_code")
        raise CardDeclined(
            error.user_message or "The card was declined.",
            str(reason or error.code or "card_declined"),
            _id(intent),
        ) from error
    except (stripe.InvalidRequestError, stripe.AuthenticationError, stripe.PermissionError) as e:
        if e.http_status == 409:  # the same key, at the same moment
            raise StripeUnavailable(str(e)) from e
        raise StripeRefused(
            e.user_message or str(e), e.code or "", str(_optional(e, "param") or "")
        ) from e
    except stripe.IdempotencyError as error:
        # The key in use by a call that still runs is a 409; with other parameters, a 400.
        if error.http_status == 409:
            raise StripeUnavailable(str(error)) from error
        raise StripeRefused(str(error), "idempotency_error") from error
    except stripe.StripeError as error:
        raise StripeUnavailable(str(error)) from error


# -- the signature --------------------------------------------------------------------------------


def _verify(body: bytes, header: str, secret: str, now: float) -> None:
    """As documented: HMAC-SHA256 over the time, a dot, and the body as it came.

    By hand, because the package's own looks at the machine's clock, fails on bytes that are not
    text, and accepts any time to come.
    """
    if not secret:
        raise BadSignature("no secret is configured")
    moments = [value for name, value in _pairs(header) if name == "t"]
    signatures = [value for name, value in _pairs(header) if name == "v1"]
    if len(moments) != 1 or not moments[0].isascii() or not moments[0].isdigit():
        raise BadSignature("the header says no time")
    expected = hmac.new(secret.encode(), moments[0].encode() + b"." + body, sha256).hexdigest()
    if not any(hmac.compare_digest(expected.encode(), each.encode()) for each in signatures):
        raise BadSignature("no signature matches")
    if len(moments[0]) > 12 or abs(now - int(moments[0])) > EVENT_AGE_SECONDS_MAX:
        raise BadSignature("it was signed at another time")


def _pairs(header: str) -> list[tuple[str, str]]:
    return [
        (name.strip(), value) for name, _, value in (p.partition("=") for p in header.split(","))
    ]


# -- Stripe's objects -----------------------------------------------------------------------------


def _cents(amount_nusd: int) -> int:
    cents, rest = divmod(amount_nusd, CENT)
    assert rest == 0, "an amount that cannot be paid"
    return cents


def _id(reference: object) -> str:
    """The id of what may be an id, the object itself, or nothing."""
    if isinstance(reference, str):
        return reference
    found = getattr(reference, "id", "")
    return found if isinstance(found, str) else ""


def _optional(thing: object, name: str) -> object:
    """A field that not every object has."""
    return getattr(thing, name, None)


def _metadata(metadata: object) -> dict[str, str]:
    found = metadata.to_dict() if isinstance(metadata, stripe.StripeObject) else metadata
    return {k: str(v) for k, v in found.items()} if isinstance(found, dict) else {}


def _checkout(session: stripe.checkout.Session) -> Checkout:
    invoice = session.invoice
    return Checkout(
        session_id=session.id,
        status=session.status or "open",
        metadata=_metadata(session.metadata),
        url=session.url or "",
        intent_id=_id(session.payment_intent),
        setup_intent_id=_id(session.setup_intent),
        invoice_url=str(_optional(invoice, "hosted_invoice_url") or ""),
    )


def _card_of(method: stripe.PaymentMethod) -> Card:
    card = _optional(method, "card")
    return _card(method.id, card)


def _card(payment_method: str, card: object) -> Card:
    def number(name: str) -> int:
        found = _optional(card, name)
        return found if isinstance(found, int) else 0

    return Card(
        payment_method,
        str(_optional(card, "brand") or ""),
        str(_optional(card, "last4") or ""),
        number("exp_month"),
        number("exp_year"),
    )


def _card_saved_by(intent: stripe.PaymentIntent) -> Card | None:
    if intent.setup_future_usage != "off_session" or intent.status != "succeeded":
        return None
    charge = intent.latest_charge
    details = charge.payment_method_details if isinstance(charge, stripe.Charge) else None
    return _card(_id(intent.payment_method), _optional(details, "card"))


def _failure(intent: stripe.PaymentIntent) -> str:
    error = intent.last_payment_error
    if error is None:
        return ""
    return str(_optional(error, "decline_code") or _optional(error, "code") or "failed")


def _refund(refund: stripe.Refund) -> Reversal:
    status = refund.status or "pending"
    return Reversal(
        refund.id, "refund", status, refund.amount * CENT, status not in ("failed", "canceled")
    )


def _dispute(dispute: stripe.Dispute) -> Reversal:
    """What has moved says whether the money is away; before anything moved, the status does."""
    moved = [movement.amount for movement in dispute.balance_transactions]
    away = sum(moved) < 0 if moved else dispute.status in _AWAY_BEFORE_IT_MOVES
    return Reversal(dispute.id, "dispute", dispute.status, dispute.amount * CENT, away)


_AWAY_BEFORE_IT_MOVES = frozenset(
    {"needs_response", "under_review", "lost", "appeal_needs_response", "appeal_under_review"}
)


def _add(transactions: dict[str, Transaction], found: object) -> None:
    if isinstance(found, stripe.BalanceTransaction):
        fee = found.fee * CENT if found.currency == CURRENCY else 0
        transactions[found.id] = Transaction(found.id, fee)


def _intent_of(source: object) -> str:
    return _id(_optional(source, "payment_intent"))


Listed = TypeVar("Listed", bound=stripe.StripeObject)


async def _whole(listed: stripe.ListObject[Listed]) -> list[Listed]:
    """All pages of a list."""
    found = list(listed.data)
    while listed.has_more:
        listed = await _answer(listed.next_page_async())
        found.extend(listed.data)
    return found
