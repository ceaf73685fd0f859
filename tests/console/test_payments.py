"""Paying as the API has it: pages at Stripe, what they may cost, who may; and the webhook."""

from __future__ import annotations

import json
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import httpx2
import pytest
import trio

from console import inbox, payments, recharger
from console.context import CARD_LOOKS_A_MINUTE, CARD_PAGES_A_MINUTE, Console
from console.settings import StripeSettings
from console.stripe_client import CENT, EVENT_AGE_SECONDS_MAX, Stripe, StripeRefused
from tests.fakes import stripe as stand_in
from tests.fakes.console import Browser
from tests.fakes.stripe import DECLINED, WEBHOOK_SECRET, Fault, sign
from tests.fakes.till import API, WEBHOOK, Till, till

DOLLAR = 100 * CENT
NOBODYS = "00000000-0000-4000-8000-000000000000"


async def member(place: Till, name: str, role: str) -> Browser:
    """Somebody who has signed in and belongs to the account."""
    person = await place.town.person(name)
    place.ask(
        "INSERT INTO console.member (account_id, user_id, role, created_at)"
        " SELECT 1, user_id, %s, now() FROM console.user WHERE email = %s",
        role,
        f"{name}@example.test",
    )
    return person


# -- top-ups --------------------------------------------------------------------------------------


async def test_a_page_at_stripe_asks_for_what_was_wanted(database: str) -> None:
    async with till(database) as place:
        payment_id, session_id = await place.start("12.50", save_card=True)
        session = place.stripe.sessions[session_id]
        assert (session.amount, session.product) == (1250, "farebox credit")
        assert session.success_url == (
            f"http://127.0.0.1:8080/console/acme/billing?payment={payment_id}"
        )
        assert session.cancel_url == "http://127.0.0.1:8080/console/acme/billing"
        assert session.intent_metadata == session.metadata
        assert session.metadata["farebox_payment"] == payment_id
        assert session.setup_future_usage == "off_session"
        (customer,) = place.stripe.customers.values()
        assert (customer.name, customer.metadata["farebox_account"]) == ("acme", "1")
        shown = await place.shown(f"/payments/{payment_id}")
        assert (shown["state"], shown["credited"]) == ("open", "0")


@pytest.mark.parametrize(
    ("amount", "message"),
    [
        ("4.99", "amount: it has to be between 5 and 10000 dollars."),
        ("10000.01", "amount: it has to be between 5 and 10000 dollars."),
        ("-25", "amount: it has to be between 5 and 10000 dollars."),
        ("12.505", "amount: cards pay whole cents."),
        ("0x19", "amount: '0x19' is not an amount in dollars; write it like 12.50."),
        ("", "amount: '' is not an amount in dollars; write it like 12.50."),
    ],
)
async def test_an_amount_that_cannot_be_paid(database: str, amount: str, message: str) -> None:
    async with till(database) as place:
        answer = await place.owner.post(f"{API}/top-ups", json={"amount": amount})
        assert answer.status_code == 400
        assert answer.json()["error"] == {"code": "invalid_amount", "message": message}
        assert place.stripe.requests == []


async def test_an_account_is_one_customer(database: str) -> None:
    async with till(database) as place:
        await place.start("10")
        await place.start("20")
        assert len(place.stripe.customers) == 1
        place.stripe.customers.clear()  # somebody has deleted it there
        _, session_id = await place.start("30")
        (customer,) = place.stripe.customers
        assert place.stripe.sessions[session_id].customer == customer


async def test_whoever_is_next_goes_on_where_a_customer_was_made_and_not_heard_of(
    database: str,
) -> None:
    async with till(database) as place:
        ann, bob = await member(place, "ann", "admin"), await member(place, "bob", "admin")
        place.stripe.faults.extend(["broken_after"] * 3)
        answer = await ann.post(f"{API}/top-ups", json={"amount": "10"})
        assert answer.status_code == 503
        (customer,) = place.stripe.customers
        for person in (bob, ann, place.owner):
            answer = await person.post(f"{API}/top-ups", json={"amount": "10"})
            assert answer.status_code == 201, answer.text
        assert list(place.stripe.customers) == [customer]
        assert {each.customer for each in place.stripe.sessions.values()} == {customer}


async def test_stripe_does_not_answer(database: str) -> None:
    async with till(database) as place:
        place.stripe.faults.extend(["broken_before"] * 3)
        answer = await place.owner.post(f"{API}/top-ups", json={"amount": "10"})
        assert answer.status_code == 503
        assert answer.json()["error"]["code"] == "payments_unavailable"
        assert answer.headers["retry-after"] == "5"
        assert len(place.slept) == 2
        (payment,) = (await place.owner.get(f"{API}/payments")).json()["payments"]
        assert (payment["state"], payment["failure"]) == ("failed", "not started")


@pytest.mark.parametrize("fault", ["broken_before", "broken_after", "500_before", "429"])
async def test_a_moment_of_trouble_is_not_noticed(database: str, fault: Fault) -> None:
    async with till(database) as place:
        await place.start("10")
        place.stripe.faults.append(fault)
        if fault == "429":
            answer = await place.owner.post(f"{API}/top-ups", json={"amount": "10"})
            assert answer.status_code == 503  # Stripe asks for less, not for the same again
        else:
            await place.start("10")
            assert len(place.stripe.sessions) == 2  # the key made the second try the first


async def test_a_key_that_stripe_does_not_know(database: str) -> None:
    async with till(database) as place:
        client = place.client
        wrong = Stripe(StripeSettings(api_key="sk_wrong", api_base=place.stripe.base_url))
        place.console.card_payments = wrong
        answer = await place.owner.post(f"{API}/top-ups", json={"amount": "10"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (502, "payment_refused")
        assert "sk_wrong" not in answer.text
        await wrong.aclose()
        place.console.card_payments = client


async def test_who_waits_for_a_payment_needs_no_webhook(database: str) -> None:
    async with till(database) as place:
        payment_id, session_id = await place.start("10")
        assert (await place.shown(f"/payments/{payment_id}"))["state"] == "open"
        place.stripe.pay(session_id)
        place.stripe.take_events()  # nobody delivers them
        before = len(place.stripe.requests)
        assert (await place.shown(f"/payments/{payment_id}"))["state"] == "open"
        assert len(place.stripe.requests) == before  # it was looked up just now
        place.wall.seconds += 4
        shown = await place.shown(f"/payments/{payment_id}")
        assert (shown["state"], shown["credited"]) == ("succeeded", "10")
        assert place.balance() == 10 * DOLLAR
        assert await place.compare() == 0


async def test_who_left_the_page_goes_on_there(database: str) -> None:
    async with till(database) as place:
        payment_id, session_id = await place.start("25")
        assert (await place.shown(f"/payments/{payment_id}"))["resumable"]
        for _ in range(2):
            answer = await place.owner.post(f"{API}/payments/{payment_id}/page")
            assert answer.status_code == 200
            assert answer.json()["payment_id"] == payment_id
            assert answer.json()["url"].rpartition("/")[2] == session_id
        assert len(place.stripe.sessions) == 1
        assert place.stripe.pay(session_id)
        await place.deliver()
        await place.look()
        shown = await place.shown(f"/payments/{payment_id}")
        assert (shown["state"], shown["resumable"]) == ("succeeded", False)
        assert place.balance() == 25 * DOLLAR


async def test_who_had_a_card_declined_goes_on_with_another(database: str) -> None:
    async with till(database) as place:
        payment_id, session_id = await place.start("25")
        assert not place.stripe.pay(session_id, DECLINED)
        await place.deliver()
        await place.look()
        shown = await place.shown(f"/payments/{payment_id}")
        assert (shown["state"], shown["resumable"]) == ("open", True)
        assert shown["failure"]
        answer = await place.owner.post(f"{API}/payments/{payment_id}/page")
        assert answer.json()["url"].rpartition("/")[2] == session_id


async def test_what_was_paid_meanwhile_is_credited_and_not_gone_on_with(database: str) -> None:
    async with till(database) as place:
        payment_id, session_id = await place.start("25")
        place.stripe.pay(session_id)
        place.stripe.take_events()  # nobody delivers them
        for _ in range(2):
            answer = await place.owner.post(f"{API}/payments/{payment_id}/page")
            assert (answer.status_code, answer.json()["error"]["code"]) == (409, "payment_ended")
        assert place.balance() == 25 * DOLLAR
        assert not (await place.shown(f"/payments/{payment_id}"))["resumable"]


@pytest.mark.parametrize("how", ["expired", "unknown"])
async def test_a_page_that_is_closed_is_not_gone_on_with(database: str, how: str) -> None:
    async with till(database) as place:
        payment_id, session_id = await place.start("25")
        if how == "expired":
            place.stripe.expire(session_id)
        else:
            place.stripe.sessions.clear()
        answer = await place.owner.post(f"{API}/payments/{payment_id}/page")
        assert (answer.status_code, answer.json()["error"]["code"]) == (409, "payment_ended")
        shown = await place.shown(f"/payments/{payment_id}")
        assert (shown["state"], shown["resumable"]) == ("canceled", False)


async def test_a_page_is_not_offered_after_its_day(database: str) -> None:
    async with till(database) as place:
        await place.start("25")
        steps = ((36_000, True), (36_000, True), (14_399, True), (1, False))  # still signed in
        for seconds, resumable in steps:
            place.wall.seconds += seconds
            page = await place.shown("/payments")
            assert isinstance(page["payments"], list)
            assert [each["resumable"] for each in page["payments"]] == [resumable]


async def test_going_on_waits_for_stripe(database: str) -> None:
    async with till(database) as place:
        payment_id, _ = await place.start("25")
        place.stripe.faults.extend(["broken_before"] * 3)
        answer = await place.owner.post(f"{API}/payments/{payment_id}/page")
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "payments_unavailable")
        answer = await place.owner.post(f"{API}/payments/{payment_id}/page")
        assert answer.status_code == 200


async def test_what_has_no_page_is_not_gone_on_with(database: str) -> None:
    async with till(database) as place:
        place.ask(
            "INSERT INTO console.payment (payment_id, account_id, kind, amount, created_at)"
            " VALUES (%s, %s, 'recharge', 10000000, now())",
            NOBODYS,
            place.account_id,
        )
        answer = await place.owner.post(f"{API}/payments/{NOBODYS}/page")
        assert (answer.status_code, answer.json()["error"]["code"]) == (409, "payment_ended")
        place.ask("INSERT INTO directory.account (name) VALUES ('another')")
        others = "/console/api/accounts/another/payments"
        assert (await place.owner.post(f"{others}/{NOBODYS}/page")).status_code == 404


async def test_the_page_of_payments_leads_back_to_stripe(database: str) -> None:
    billing = "/console/acme/billing"
    async with till(database) as place:
        payment_id, session_id = await place.start("25")
        asked = len(place.stripe.requests)
        assert "Go on paying" in (await place.owner.get(billing)).text
        assert len(place.stripe.requests) == asked  # to look at a page asks nobody anything
        form = {"do": "go-on", "payment_id": payment_id}
        led = await place.owner.post(billing, data=form)
        assert (led.status_code, led.headers["location"].rpartition("/")[2]) == (303, session_id)
        place.stripe.expire(session_id)
        refused = await place.owner.post(billing, data=form)
        assert refused.status_code == 409
        assert "page at Stripe is closed" in refused.text
        assert "Go on paying" not in refused.text
        for wrong in ("", "x", NOBODYS):
            answer = await place.owner.post(billing, data=form | {"payment_id": wrong})
            assert answer.status_code == 404


# -- how much of Stripe one account may have ------------------------------------------------------


ASKS_STRIPE = ["go on", "top up", "save a card"]


async def ask_for_page(place: Till, how: str, payment_id: str) -> httpx2.Response:
    """Ask for a page at Stripe, in one of the ways that there are."""
    if how == "go on":
        return await place.owner.post(f"{API}/payments/{payment_id}/page")
    if how == "top up":
        return await place.owner.post(f"{API}/top-ups", json={"amount": "10"})
    return await place.owner.post(f"{API}/payment-method")


@pytest.mark.parametrize("how", ASKS_STRIPE)
async def test_an_account_gets_only_so_many_pages_a_minute(database: str, how: str) -> None:
    async with till(database) as place:
        payment_id, _ = await place.start("25")
        answers: list[httpx2.Response] = []

        async def ask() -> None:
            answers.append(await ask_for_page(place, how, payment_id))

        async with trio.open_nursery() as nursery:
            for _ in range(CARD_PAGES_A_MINUTE + 5):
                nursery.start_soon(ask)
        refused = [each for each in answers if not each.is_success]
        assert len(refused) == 6
        asked = len(place.stripe.requests)
        begun = await place.shown("/payments")
        refused += [await ask_for_page(place, other, payment_id) for other in ASKS_STRIPE]
        for each in refused:
            assert each.status_code == 429
            assert each.json()["error"]["code"] == "too_many_tries"
            assert 0 < int(each.headers["retry-after"]) <= 60
        assert len(place.stripe.requests) == asked
        assert await place.shown("/payments") == begun
        place.ask("INSERT INTO directory.account (name) VALUES ('another')")
        another = await place.owner.post(
            "/console/api/accounts/another/top-ups", json={"amount": "10"}
        )
        assert another.status_code == 201


async def test_the_page_says_when_there_are_more(database: str) -> None:
    billing = "/console/acme/billing"
    async with till(database) as place:
        payment_id, _ = await place.start("25")
        for _ in range(CARD_PAGES_A_MINUTE - 1):
            await ask_for_page(place, "go on", payment_id)
        for form in (
            {"do": "go-on", "payment_id": payment_id},
            {"do": "top-up", "amount": "25"},
            {"do": "save-card"},
        ):
            answer = await place.owner.post(billing, data=form)
            assert answer.status_code == 429
            assert 0 < int(answer.headers["retry-after"]) <= 60
            assert "try again in" in answer.text


async def test_what_asks_stripe_nothing_is_not_counted(database: str) -> None:
    async with till(database) as place:
        payment_id, session_id = await place.start("25")
        place.stripe.pay(session_id)
        await place.deliver()
        await place.look()
        for _ in range(CARD_PAGES_A_MINUTE + 1):
            ended = await ask_for_page(place, "go on", payment_id)
            assert (ended.status_code, ended.json()["error"]["code"]) == (409, "payment_ended")
            wrong = await place.owner.post(f"{API}/top-ups", json={"amount": "1"})
            assert wrong.status_code == 400
        await place.start("10")


async def test_an_account_looks_only_so_often_at_its_payments(database: str) -> None:
    """Beyond that it is shown what is known, and the inbox finds out by itself."""
    async with till(database) as place:
        payment_id, _ = await place.start("25")
        asked = len(place.stripe.requests)
        for _ in range(CARD_LOOKS_A_MINUTE + 5):
            place.wall.seconds += 4
            assert (await place.shown(f"/payments/{payment_id}"))["state"] == "open"
        assert len(place.stripe.requests) - asked == CARD_LOOKS_A_MINUTE


@asynccontextmanager
async def people_who_wait(place: Till, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    """More people wait for an answer of Stripe's than there are connections for them."""
    waiting, leave = threading.Semaphore(0), threading.Event()
    answer = place.stripe._answer

    def slow(method: str, path: str, text: str) -> tuple[int, stand_in.Json]:
        if path.endswith("/cs_slow"):
            waiting.release()
            leave.wait(30)
        return answer(method, path, text)

    async def wait() -> None:
        with suppress(StripeRefused):
            await place.client.checkout("cs_slow")

    monkeypatch.setattr(place.stripe, "_answer", slow)
    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(wait)
        for _ in range(10):
            assert await trio.to_thread.run_sync(waiting.acquire, True, 10)
        try:
            yield
        finally:
            leave.set()


@pytest.mark.parametrize("service", [inbox.run, recharger.run])
async def test_credit_does_not_wait_for_people_at_stripe(
    database: str,
    monkeypatch: pytest.MonkeyPatch,
    service: Callable[[Console], Awaitable[None]],
) -> None:
    settings = {"enabled": True, "threshold": "10", "amount": "20", "monthly_cap": "100"}
    async with till(database) as place:
        if service is inbox.run:
            await place.pay("25")
            await place.deliver()
        else:
            await place.top_up("10", save_card=True)
            answer = await place.owner.put(f"{API}/recharge", json=settings)
            assert answer.status_code == 200
            place.spend("5")
        before = place.balance()
        async with people_who_wait(place, monkeypatch), trio.open_nursery() as nursery:
            nursery.start_soon(service, place.console)
            for _ in range(100):
                await trio.sleep(0.1)
                if place.balance() > before:
                    break
            nursery.cancel_scope.cancel()
            assert place.balance() > before


# -- the list of payments -------------------------------------------------------------------------


async def test_payments_come_in_pages(database: str) -> None:
    async with till(database) as place:
        for number in range(5):
            await place.start(f"{10 + number}")
            place.wall.seconds += number % 2  # some at the same moment
        seen, after = [], ""
        while True:
            page = await place.shown(f"/payments?limit=2&after={after.replace('+', '%2B')}")
            assert isinstance(page["payments"], list)
            seen += [each["payment_id"] for each in page["payments"]]
            if page["next"] is None:
                break
            after = str(page["next"])
        assert len(seen) == len(set(seen)) == 5
        for wrong in ("x", "2026-01-01_x", "_", "2026-01-01T00:00:00_" + seen[0]):
            answer = await place.owner.get(f"{API}/payments", params={"after": wrong})
            assert answer.status_code == 400


async def test_a_payment_is_its_accounts_own(database: str) -> None:
    async with till(database) as place:
        payment_id, _ = await place.start("10")
        await place.owner.post("/console/api/accounts", json={"name": "other"})
        place.ask("INSERT INTO directory.account (name) VALUES ('another')")
        answer = await place.owner.get(f"/console/api/accounts/another/payments/{payment_id}")
        assert answer.status_code == 404


@pytest.mark.parametrize("role", ["viewer", "developer", "admin", "owner"])
async def test_who_may_pay(database: str, role: str) -> None:
    async with till(database) as place:
        person = await member(place, "pat", role)
        payment_id, _ = await place.start("10")
        may = role in ("admin", "owner")
        for method, path, body in (
            ("POST", "/top-ups", {"amount": "10"}),
            ("POST", f"/payments/{payment_id}/page", None),
            ("POST", "/payment-method", None),
            ("DELETE", "/payment-method", None),
            ("PUT", "/recharge", {"enabled": False, "threshold": "10", "amount": "20",
                                  "monthly_cap": "100"}),
            ("GET", "/payments", None),
            ("GET", "/payment-method", None),
            ("GET", "/recharge", None),
        ):  # fmt: skip
            answer = await person.request(method, f"{API}{path}", json=body)
            assert answer.is_success == may, (path, answer.text)
            assert may or answer.status_code == 403


async def test_what_was_changed_is_in_the_audit_log(database: str) -> None:
    async with till(database) as place:
        await place.top_up("10", save_card=True)
        settings = {"enabled": True, "threshold": "10", "amount": "20", "monthly_cap": "100"}
        await place.owner.put(f"{API}/recharge", json=settings)
        await place.owner.delete(f"{API}/payment-method")
        actions = place.ask(
            "SELECT action FROM console.audit WHERE account_id = 1 ORDER BY audit_id"
        )
        assert actions == [("payment.start",), ("recharge.set",), ("card.remove",)]


async def test_without_stripe_nothing_can_be_paid(database: str) -> None:
    async with till(database) as place:
        client, place.console.card_payments = place.client, None
        answer = await place.owner.post(f"{API}/top-ups", json={"amount": "10"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (409, "no_card_payments")
        assert (await place.send(b"{}", sign(b"{}"))).status_code == 404
        assert await place.shown("/payments") == {"payments": [], "next": None}
        place.console.card_payments = client


async def test_a_card_is_forgotten_at_stripe_too(database: str) -> None:
    async with till(database) as place:
        await place.top_up("10", save_card=True)
        assert [each.customer for each in place.stripe.methods.values()] != [None]
        for _ in range(2):
            assert (await place.owner.delete(f"{API}/payment-method")).status_code == 204
        assert [each.customer for each in place.stripe.methods.values()] == [None]
        await place.deliver()
        await place.look()


# -- the webhook ----------------------------------------------------------------------------------


def event(**changed: object) -> bytes:
    """An event about nothing in particular."""
    about = {"id": "pi_1", "object": "payment_intent"}
    whole = {
        "id": "evt_1",
        "object": "event",
        "type": "payment_intent.succeeded",
        "data": {"object": about},
    }
    return json.dumps(whole | changed).encode()


async def test_what_stripe_signed_is_kept(database: str) -> None:
    async with till(database) as place:
        body = event()
        for _ in range(3):
            answer = await place.send(body, sign(body, at=place.wall()))
            assert (answer.status_code, answer.json()) == (200, {"received": True})
        assert place.ask("SELECT event_id, type, subject, state FROM console.stripe_event") == [
            ("evt_1", "payment_intent.succeeded", "pi_1", "waiting")
        ]


async def test_a_new_secret_may_sign_beside_the_old_one(database: str) -> None:
    async with till(database) as place:
        body, now = event(), place.wall()
        old = sign(body, "whsec_old", now)
        ours = sign(body, WEBHOOK_SECRET, now).partition("v1=")[2]
        assert (await place.send(body, f"{old},v1={ours}")).status_code == 200


async def test_what_is_about_nothing_of_ours_is_kept_and_done(database: str) -> None:
    async with till(database) as place:
        body = event(data={"object": {"id": "prod_1", "object": "product"}})
        assert (await place.send(body, sign(body, at=place.wall()))).status_code == 200
        assert place.ask("SELECT state, outcome FROM console.stripe_event") == [("done", "ignored")]


@pytest.mark.parametrize("seconds", [-EVENT_AGE_SECONDS_MAX, EVENT_AGE_SECONDS_MAX])
async def test_the_replay_window(database: str, seconds: int) -> None:
    async with till(database) as place:
        body = event()
        beyond = seconds + (1 if seconds > 0 else -1)
        answer = await place.send(body, sign(body, at=place.wall() + beyond))
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "bad_signature")
        answer = await place.send(body, sign(body, at=place.wall() + seconds))
        assert answer.status_code == 200


async def test_forgeries(database: str) -> None:
    async with till(database) as place:
        body, now = event(), int(place.wall())
        good = sign(body, at=now)
        digest = good.partition("v1=")[2].partition(",")[0]
        for header in (
            "",
            "t=,v1=",
            f"t={now}",
            f"v1={digest}",
            f"t={now},v1=",
            f"t={now},v0={digest}",
            f"t={now},v1={digest[:-1]}",
            f"t={now},v1={digest[::-1]}",
            f"t={now + 1},v1={digest}",
            f"t={now},t={now},v1={digest}",
            f"t=0{now},v1={digest}",
            f"t= {now},v1={digest}",
            f"t={now}.0,v1={digest}",
            f"t=-{now},v1={digest}",
            f"t={'9' * 5000},v1={digest}",
            f"t={now},v1={'é' * 64}",
            f"t=٣,v1={digest}".encode().decode("latin-1"),
            sign(body, "", now),
            sign(body, "whsec_", now),
            sign(body + b" ", at=now),
            ",".join(["v1=0"] * 1000),
        ):
            answer = await place.send(body, header)
            assert answer.status_code == 400, header
            assert answer.json()["error"]["code"] == "bad_signature", header
        assert (await place.anybody.post(WEBHOOK, content=body)).status_code == 400
        assert place.inbox() == {}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b'{"id": 1, "type": "x"}',
        b'{"id": "evt_1"}',
        b'{"id": "evt_1", "type": "x", "data": {"object": {"id": 7}}}',
        b"[" * 100_000,
    ],
)
async def test_what_is_signed_and_no_event(database: str, body: bytes) -> None:
    async with till(database) as place:
        answer = await place.send(body, sign(body, at=place.wall()))
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_request")
        assert place.inbox() == {}


async def test_a_body_has_an_end(database: str) -> None:
    async with till(database) as place:
        body = b" " * payments.EVENT_BYTES_MAX + b"x"
        answer = await place.send(body, sign(body, at=place.wall()))
        assert (answer.status_code, answer.json()["error"]["code"]) == (413, "request_too_large")


async def test_the_webhook_needs_no_session_and_gives_none(database: str) -> None:
    async with till(database) as place:
        body = event()
        answer = await place.send(body, sign(body, at=place.wall()))
        assert answer.status_code == 200
        assert "set-cookie" not in answer.headers
        assert (await place.anybody.get(f"{API}/payments")).status_code == 401
