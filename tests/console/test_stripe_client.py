"""Our way to Stripe, and the stand-in it is tested against: each is held against the other, and
both against Stripe's own package."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from urllib.parse import urlencode, urlsplit

import pytest
import stripe
import trio

from console.settings import StripeSettings
from console.stripe_client import (
    CENT,
    BadSignature,
    CardDeclined,
    Reversal,
    Stripe,
    StripeRefused,
    StripeUnavailable,
)
from tests.fakes import stripe as stand_in
from tests.fakes.stripe import API_KEY, DECLINED_LATER, NEEDS_OWNER, WEBHOOK_SECRET, Fault, sign

NOW = 1_795_000_000.0


@pytest.fixture
def account() -> Iterator[stand_in.Stripe]:
    """An account at the stand-in."""
    with stand_in.serving() as served:
        served.clock = lambda: NOW
        yield served


@asynccontextmanager
async def client(account: stand_in.Stripe, slept: list[float]) -> AsyncIterator[Stripe]:
    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        await trio.lowlevel.checkpoint()

    settings = StripeSettings(
        api_key=API_KEY, webhook_secret=WEBHOOK_SECRET, api_base=account.base_url
    )
    found = Stripe(settings, sleep=sleep)
    try:
        yield found
    finally:
        await found.aclose()


async def charge(api: Stripe, account: stand_in.Stripe, number: str, key: str = "k") -> str:
    """Charge a card that was saved; the PaymentIntent."""
    customer_id = await api.create_customer("acme", {}, "customer")
    methods = [each.id for each in account.methods.values() if each.number == number]
    method = methods[0] if methods else account.saved_card(customer_id, number)
    intent_id, status = await api.charge(
        customer_id, method, 25 * 100 * CENT, "credit", metadata={"a": "b"}, key=key
    )
    assert status == "succeeded"
    return intent_id


# -- ways to fail ---------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["broken_before", "broken_after", "500_before"])
async def test_a_moment_of_trouble_is_tried_again(account: stand_in.Stripe, fault: Fault) -> None:
    slept: list[float] = []
    async with client(account, slept) as api:
        account.faults.append(fault)
        await charge(api, account, stand_in.VISA)
        account.faults.append(fault)
        await charge(api, account, stand_in.VISA)
    assert len(slept) == 2
    assert len(account.charges) == 1  # both had one key


@pytest.mark.parametrize("fault", ["broken_before", "broken_after", "500_before", "500_after"])
async def test_trouble_that_lasts_has_no_outcome(account: stand_in.Stripe, fault: Fault) -> None:
    async with client(account, []) as api:
        await api.create_customer("acme", {}, "customer")
        account.faults.extend([fault] * 3)
        with pytest.raises(StripeUnavailable):
            await api.movements(0)
        assert not account.faults


async def test_being_asked_for_less_has_no_outcome_either(account: stand_in.Stripe) -> None:
    async with client(account, []) as api:
        account.faults.append("429")
        with pytest.raises(StripeUnavailable):
            await api.movements(0)


@pytest.mark.parametrize(
    ("number", "code"),
    [(DECLINED_LATER, "generic_decline"), (NEEDS_OWNER, "authentication_required")],
)
async def test_a_card_that_is_declined(account: stand_in.Stripe, number: str, code: str) -> None:
    async with client(account, []) as api:
        for _ in range(2):  # a decline is repeated under its key like any answer
            with pytest.raises(CardDeclined) as told:
                await charge(api, account, number)
            assert told.value.code == code
            assert account.intents[told.value.intent_id].status == "requires_payment_method"
        assert len(account.intents) == 1


async def test_what_makes_no_sense_is_refused(account: stand_in.Stripe) -> None:
    async with client(account, []) as api:
        with pytest.raises(StripeRefused) as told:
            await api.charge("cus_nobody", "pm_none", 25 * CENT * 100, "", metadata={}, key="k")
        assert (told.value.code, told.value.param) == ("resource_missing", "customer")
        await charge(api, account, stand_in.VISA, "once")
        with pytest.raises(StripeRefused) as told:
            await api.create_customer("another", {}, "once")
        assert told.value.code == "idempotency_error"


async def test_a_key_in_use_has_no_outcome(
    account: stand_in.Stripe, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered, leave = threading.Event(), threading.Event()
    answer = account._answer

    def slow(method: str, path: str, text: str) -> tuple[int, stand_in.Json]:
        if path == "/v1/customers" and not entered.is_set():
            entered.set()
            account.lock.release()
            leave.wait(10)
            account.lock.acquire()
        return answer(method, path, text)

    monkeypatch.setattr(account, "_answer", slow)
    async with client(account, []) as api, trio.open_nursery() as nursery:
        nursery.start_soon(api.create_customer, "acme", {}, "key")
        await trio.to_thread.run_sync(entered.wait, 10)
        with pytest.raises(StripeUnavailable):
            await api.create_customer("acme", {}, "key")
        leave.set()
    assert len(account.customers) == 1


# -- what is read ---------------------------------------------------------------------------------


async def test_a_payment_with_everything_that_became_of_it(account: stand_in.Stripe) -> None:
    async with client(account, []) as api:
        intent_id = await charge(api, account, stand_in.VISA)
        refund_id = account.refund(intent_id, 500)
        failed_id = account.refund(intent_id, 300, "pending")
        account.fail_refund(failed_id)
        dispute_id = account.dispute(intent_id)
        found = await api.settled(intent_id)
    assert (found.status, found.received_nusd) == ("succeeded", 2500 * CENT)
    assert found.metadata == {"a": "b"}
    assert set(found.reversals) == {
        Reversal(refund_id, "refund", "succeeded", 500 * CENT, stands=True),
        Reversal(failed_id, "refund", "failed", 300 * CENT, stands=False),
        Reversal(dispute_id, "dispute", "needs_response", 2000 * CENT, stands=True),
    }
    assert {each.transaction_id for each in found.transactions} == set(account.movements)
    assert sum(each.fee_nusd for each in found.transactions) == (103 + 1500) * CENT


async def test_lists_are_read_to_their_end(account: stand_in.Stripe) -> None:
    async with client(account, []) as api:
        intent_id = await charge(api, account, stand_in.VISA)
        for _ in range(230):
            account.refund(intent_id, 1)
        found = await api.settled(intent_id)
        assert len(found.reversals) == 230
        seen, after = 0, ""
        while True:
            movements = await api.movements(0, after)
            seen += len(movements.page)
            after = movements.after
            if not after:
                break
        assert seen == 231


async def test_a_charge_is_found_by_what_was_written_on_it(account: stand_in.Stripe) -> None:
    async with client(account, []) as api:
        intent_id = await charge(api, account, stand_in.VISA)
        (customer_id,) = account.customers
        for _ in range(120):
            intent = stand_in.Intent(account._id("pi"), int(NOW), 100, customer_id, {"a": "c"})
            account.intents[intent.id] = intent
        assert await api.find_charge(customer_id, {"a": "b"}, NOW) == (intent_id, "succeeded")
        assert await api.find_charge(customer_id, {"a": "d"}, NOW) is None
        assert await api.find_charge(customer_id, {"a": "b"}, NOW + 1) is None


async def test_an_intent_can_be_cancelled_once(account: stand_in.Stripe) -> None:
    async with client(account, []) as api:
        account.intents["pi_1"] = stand_in.Intent("pi_1", int(NOW), 100, None, {})
        await api.cancel("pi_1")
        assert account.intents["pi_1"].status == "canceled"
        with pytest.raises(StripeRefused) as told:
            await api.cancel("pi_1")
        assert told.value.code == "payment_intent_unexpected_state"


# -- signatures -----------------------------------------------------------------------------------


def test_stripes_own_package_believes_the_stand_in(account: stand_in.Stripe) -> None:
    account.foreign_payment(500)
    for event in account.take_events():
        told = stripe.Webhook.construct_event(event.body, sign(event.body), WEBHOOK_SECRET)
        assert (told.id, told.type) == (event.id, event.type)


async def test_we_believe_what_stripes_own_package_signs(account: stand_in.Stripe) -> None:
    body = json.dumps({"id": "evt_1", "type": "x", "data": {"object": {"id": "é"}}})
    header = stripe.WebhookSignature.generate_signature_header(body, WEBHOOK_SECRET, int(NOW))
    async with client(account, []) as api:
        assert api.event(body.encode(), header, NOW).id == "evt_1"
        with pytest.raises(BadSignature):
            api.event(body.encode(), header, NOW + 301)
    empty = Stripe(StripeSettings(api_key=API_KEY))
    with pytest.raises(BadSignature):  # no secret is no secret, not an empty one
        empty.event(body.encode(), sign(body.encode(), "", NOW), NOW)


# -- the stand-in is strict -----------------------------------------------------------------------


def post(
    account: stand_in.Stripe,
    path: str,
    form: Mapping[str, str],
    key: str = "",
    authorization: str = f"Bearer {API_KEY}",
) -> tuple[int, dict[str, object], Mapping[str, str]]:
    connection = http.client.HTTPConnection(urlsplit(account.base_url).netloc, timeout=10)
    headers = {
        "authorization": authorization,
        "content-type": "application/x-www-form-urlencoded",
        "idempotency-key": key,
    }
    connection.request("POST", path, urlencode(form), headers)
    answer = connection.getresponse()
    told = json.loads(answer.read())
    connection.close()
    return answer.status, told, dict(answer.headers)


@pytest.mark.parametrize(
    ("path", "form", "status", "code"),
    [
        ("/v1/customers", {"nmae": "acme"}, 400, "parameter_unknown"),
        ("/v1/checkout/sessions", {"mode": "payment"}, 400, "parameter_missing"),
        ("/v1/payment_intents", {"amount": "1.5"}, 400, "parameter_invalid_integer"),
        ("/v1/payment_intents", {"amount": "49"}, 400, "amount_too_small"),
        ("/v1/nothing", {}, 404, None),
    ],
)
def test_what_is_asked_for_wrongly(
    account: stand_in.Stripe, path: str, form: Mapping[str, str], status: int, code: str | None
) -> None:
    answered, body, _ = post(account, path, form)
    error = body["error"]
    assert isinstance(error, dict)
    assert (answered, error["type"], error.get("code")) == (status, "invalid_request_error", code)


def test_who_has_no_key(account: stand_in.Stripe) -> None:
    assert post(account, "/v1/customers", {}, authorization="Bearer sk_test_no")[0] == 401


def test_a_key_gives_the_same_answer_for_a_day(account: stand_in.Stripe) -> None:
    first = post(account, "/v1/customers", {"name": "a"}, "key")
    again = post(account, "/v1/customers", {"name": "a"}, "key")
    assert first[:2] == again[:2]
    assert again[2]["Idempotent-Replayed"] == "true"
    status, body, _ = post(account, "/v1/customers", {"name": "b"}, "key")
    error = body["error"]
    assert isinstance(error, dict)
    assert (status, error["type"]) == (400, "idempotency_error")
    later: Callable[[], float] = lambda: NOW + 86_401  # noqa: E731
    account.clock = later
    assert post(account, "/v1/customers", {"name": "b"}, "key")[0] == 200


def test_a_person_pays_on_the_page(account: stand_in.Stripe) -> None:
    customer = post(account, "/v1/customers", {"name": "a"})[1]["id"]
    _, session, _ = post(
        account,
        "/v1/checkout/sessions",
        {
            "mode": "payment",
            "customer": str(customer),
            "line_items[0][quantity]": "1",
            "line_items[0][price_data][currency]": "usd",
            "line_items[0][price_data][unit_amount]": "2500",
            "line_items[0][price_data][product_data][name]": "<b>credit</b>",
            "success_url": "http://127.0.0.1:1/back?session={CHECKOUT_SESSION_ID}",
            "cancel_url": "http://127.0.0.1:1/",
        },
    )
    url = urlsplit(str(session["url"]))
    connection = http.client.HTTPConnection(url.netloc, timeout=10)
    connection.request("GET", url.path)
    page = connection.getresponse().read().decode()
    assert "Pay $25.00" in page
    assert "<b>credit" not in page
    connection.request("POST", url.path, urlencode({"number": stand_in.DECLINED}))
    assert "declined" in connection.getresponse().read().decode()
    connection.request("POST", url.path, urlencode({"number": "4242 4242 4242 4242"}))
    answer = connection.getresponse()
    answer.read()
    assert answer.status == 303
    assert answer.headers["location"] == f"http://127.0.0.1:1/back?session={session['id']}"
    connection.close()
