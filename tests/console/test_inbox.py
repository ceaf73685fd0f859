"""What Stripe says happened, in whatever order: an account is where its payments put it."""

from __future__ import annotations

import itertools
import json
from datetime import timedelta

import psycopg
import pytest
import trio

from console import inbox
from console.access import moment
from console.errors import DatabaseUnavailable
from console.store import payments, stripe_events
from console.stripe_client import CENT, Card, Stripe
from tests.fakes.stripe import DECLINED, DECLINED_LATER, Event
from tests.fakes.till import ACCOUNT, API, till

DOLLAR = 100 * CENT


async def test_a_payment_is_credited_once_however_many_events_tell_of_it(database: str) -> None:
    async with till(database) as place:
        _, intent_id = await place.pay("25")
        events = place.stripe.take_events()
        assert len(events) > 3
        for event in [*events, *events]:
            await place.deliver([event])
            await place.look()
        assert place.balance() == 25 * DOLLAR
        assert place.transfers(1) == [25 * DOLLAR]
        assert place.transfers(2) == [103 * CENT]  # 2.9 % and 30 cents
        assert place.ask("SELECT ref FROM ledger.external_ref WHERE code = 1") == [(intent_id,)]
        assert place.inbox() == {"done": len(events)}


async def test_events_about_one_payment_take_one_look(database: str) -> None:
    async with till(database) as place:
        await place.pay("25")
        await place.deliver()
        before = len(place.stripe.requests)
        await place.look()
        assert len(place.stripe.requests) - before < 8
        assert await inbox.look_into_next(place.console, place.client) is False


async def test_a_refund_before_its_payment_is_no_different(database: str) -> None:
    wanted = (
        "payment_intent.succeeded",
        "charge.refunded",
        "refund.created",
        "checkout.session.completed",
    )
    async with till(database, pages_a_minute=100) as place:
        for number, order in enumerate(itertools.permutations(wanted), start=1):
            _, intent_id = await place.pay("20")
            place.stripe.refund(intent_id, 500)
            events = {event.type: event for event in place.stripe.take_events()}
            for type_ in order:
                await place.deliver([events[type_]])
                await place.look()
            assert place.balance() == number * 15 * DOLLAR


async def test_refunds_add_up(database: str) -> None:
    async with till(database) as place:
        payment_id, intent_id = await place.top_up("20")
        for cents in (100, 300):
            place.stripe.refund(intent_id, cents)
            await place.deliver()
            await place.look()
            await place.look()
        assert place.balance() == 16 * DOLLAR
        place.stripe.refund(intent_id)
        await place.deliver()
        await place.look()
        assert place.balance() == 0
        assert place.transfers(3) == [1 * DOLLAR, 3 * DOLLAR, 16 * DOLLAR]
        shown = await place.shown(f"/payments/{payment_id}")
        assert shown["credited"] == "0"
        reversals = shown["reversals"]
        assert isinstance(reversals, list)
        assert sorted(each["taken"] for each in reversals) == ["1", "16", "3"]


async def test_a_refund_is_taken_back_also_where_the_credit_is_used(database: str) -> None:
    async with till(database) as place:
        _, intent_id = await place.top_up("20")
        place.spend("15")
        place.stripe.refund(intent_id)
        await place.deliver()
        await place.look()
        assert place.balance() == -15 * DOLLAR
        assert place.is_served()


async def test_a_refund_that_fails_gives_the_credit_back(database: str) -> None:
    async with till(database) as place:
        _, intent_id = await place.top_up("20")
        refund_id = place.stripe.refund(intent_id, 500, status="pending")
        await place.deliver()
        await place.look()
        assert place.balance() == 15 * DOLLAR
        place.stripe.fail_refund(refund_id)
        events = place.stripe.take_events()
        for event in [*events, *events]:
            await place.deliver([event])
            await place.look()
        assert place.balance() == 20 * DOLLAR
        assert place.ask("SELECT ref FROM ledger.external_ref WHERE code = 3 ORDER BY ref") == [
            (refund_id,),
            (f"{refund_id}:1",),
        ]


async def test_a_refund_that_has_failed_before_anybody_looks_moves_nothing(database: str) -> None:
    async with till(database) as place:
        _, intent_id = await place.top_up("20")
        place.stripe.fail_refund(place.stripe.refund(intent_id, 500))
        await place.deliver()
        await place.look()
        assert place.balance() == 20 * DOLLAR
        assert place.transfers(3) == []


async def test_a_dispute_takes_the_money_and_suspends_the_account(database: str) -> None:
    async with till(database) as place:
        _, intent_id = await place.top_up("20")
        place.spend("8")
        place.stripe.dispute(intent_id)
        events = place.stripe.take_events()
        for event in [*events, *events]:
            await place.deliver([event])
            await place.look()
        assert place.balance() == -8 * DOLLAR
        assert not place.is_served()
        assert place.notices() == ["dispute_opened"]
        assert place.transfers(7) == [20 * DOLLAR]
        assert sum(place.transfers(2)) == (88 + 1500) * CENT


@pytest.mark.parametrize("won", [True, False])
async def test_a_dispute_that_is_won_gives_it_back(database: str, won: bool) -> None:
    async with till(database) as place:
        _, intent_id = await place.top_up("20")
        dispute_id = place.stripe.dispute(intent_id)
        await place.deliver()
        await place.look()
        place.stripe.close_dispute(dispute_id, won=won)
        await place.deliver()
        await place.look()
        assert place.balance() == (20 * DOLLAR if won else 0)
        assert place.notices() == ["dispute_opened", *(["dispute_won"] if won else [])]
        assert not place.is_served()  # that is for the operator to say


async def test_a_dispute_that_is_won_before_anybody_looks_is_only_noted(database: str) -> None:
    async with till(database) as place:
        _, intent_id = await place.top_up("20")
        place.stripe.close_dispute(place.stripe.dispute(intent_id), won=True)
        await place.deliver()
        await place.look()
        assert place.balance() == 20 * DOLLAR
        assert place.is_served()


async def test_an_inquiry_takes_nothing(database: str) -> None:
    async with till(database) as place:
        _, intent_id = await place.top_up("20")
        dispute_id = place.stripe.dispute(intent_id, inquiry=True)
        await place.deliver()
        await place.look()
        assert place.balance() == 20 * DOLLAR
        assert place.is_served()
        place.stripe.close_dispute(dispute_id, won=False)
        await place.deliver()
        await place.look()
        assert place.balance() == 20 * DOLLAR


async def test_what_is_left_after_a_refund_can_be_disputed(database: str) -> None:
    async with till(database) as place:
        _, intent_id = await place.top_up("20")
        place.stripe.refund(intent_id, 700)
        place.stripe.dispute(intent_id)
        await place.deliver()
        await place.look()
        assert place.balance() == 0
        assert (place.transfers(3), place.transfers(7)) == ([7 * DOLLAR], [13 * DOLLAR])


async def test_a_payment_that_fails_is_not_credited(database: str) -> None:
    async with till(database) as place:
        payment_id, session_id = await place.start("25")
        assert not place.stripe.pay(session_id, DECLINED)
        await place.deliver()
        await place.look()
        shown = await place.shown(f"/payments/{payment_id}")
        assert (shown["state"], shown["failure"]) == ("open", "generic_decline")
        assert place.stripe.pay(session_id)  # the page is still open
        await place.deliver()
        await place.look()
        assert place.balance() == 25 * DOLLAR
        shown = await place.shown(f"/payments/{payment_id}")
        assert (shown["state"], shown["failure"]) == ("succeeded", "")


async def test_a_page_that_nobody_paid_on(database: str) -> None:
    async with till(database) as place:
        payment_id, session_id = await place.start("25")
        place.stripe.expire(session_id)
        await place.deliver()
        await place.look()
        assert (await place.shown(f"/payments/{payment_id}"))["state"] == "canceled"


@pytest.mark.parametrize("declined", [False, True])
async def test_a_page_that_stripe_does_not_know_any_more(database: str, declined: bool) -> None:
    """It was made with the key of another account at Stripe, say with a test key."""
    async with till(database) as place:
        _, session_id = await place.start("25")
        if declined:
            assert not place.stripe.pay(session_id, DECLINED)
            await place.deliver()
            await place.look()
        place.stripe.sessions.clear()
        place.stripe.intents.clear()
        place.wall.seconds += timedelta(hours=26).total_seconds()
        assert await place.compare() == 1
        assert place.ask("SELECT state, failure FROM console.payment") == [
            ("canceled", "unknown to Stripe")
        ]
        place.wall.seconds += timedelta(hours=26).total_seconds()
        assert await place.compare() == 0
        assert set(place.inbox()) == {"done"}


async def test_a_payment_whose_page_nobody_was_told_of(database: str) -> None:
    async with till(database) as place:
        await place.start("25")
        place.ask("UPDATE console.payment SET session_id = NULL")  # the console died before
        place.wall.seconds += timedelta(hours=24).total_seconds()
        assert await place.compare() == 0
        assert place.ask("SELECT state FROM console.payment") == [("open",)]
        place.wall.seconds += timedelta(hours=2).total_seconds()
        assert await place.compare() == 0
        assert place.ask("SELECT state, failure FROM console.payment") == [
            ("failed", "not started")
        ]


async def test_payments_of_others_in_the_same_account_at_stripe_are_not_ours(database: str) -> None:
    async with till(database) as place:
        place.stripe.foreign_payment(5000)
        place.stripe.foreign_payment(
            5000, farebox_instance="9b4f1a7e-0000-4000-8000-000000000000", farebox_account="1"
        )
        await place.deliver()
        await place.look()
        assert place.balance() == 0
        assert place.transfers(1) == []
        assert await place.compare() == 2
        assert await place.compare() == 0
        assert place.ask(
            "SELECT DISTINCT outcome FROM console.stripe_event WHERE outcome <> ''"
        ) == [("not ours",)]


async def test_a_payment_that_the_database_has_lost_is_put_back(database: str) -> None:
    async with till(database) as place:
        payment_id, intent_id = await place.pay("25")
        place.ask("DELETE FROM console.payment")
        await place.deliver()
        await place.look()
        assert place.balance() == 25 * DOLLAR
        assert place.ask("SELECT payment_id::text, payment_intent FROM console.payment") == [
            (payment_id, intent_id)
        ]


async def test_what_can_never_be_credited_is_parked(database: str) -> None:
    async with till(database) as place:
        ((instance,),) = place.ask("SELECT instance::text FROM console.stripe")
        marks = {"farebox_instance": str(instance), "farebox_account": str(place.account_id)}
        euros = place.stripe.foreign_payment(
            900, "eur", **marks, farebox_payment="9b4f1a7e-0000-4000-8000-000000000001"
        )
        nobody = place.stripe.foreign_payment(
            900,
            farebox_instance=str(instance),
            farebox_account="999",
            farebox_payment="9b4f1a7e-0000-4000-8000-000000000002",
        )
        nothing = place.stripe.foreign_payment(900, farebox_instance=str(instance))
        await place.deliver()
        await place.look()
        parked = place.ask(
            "SELECT subject, min(outcome) FROM console.stripe_event"
            " WHERE state = 'parked' GROUP BY 1"
        )
        assert set(parked) == {
            (euros, f"{euros} is in eur, not in usd"),
            (nobody, f"{nobody} is of account 999, which is not here"),
            (nothing, f"{nothing} carries our mark, but not whose it is"),
        }
        assert place.balance() == 0


async def test_stripe_that_does_not_answer_is_asked_again_less_and_less_often(
    database: str,
) -> None:
    async with till(database) as place:
        await place.pay("25")
        await place.deliver()
        pauses = []
        for _ in range(14):
            place.stripe.faults.extend(["500_before"] * 3)  # the package tries three times
            assert await inbox.look_into_next(place.console, place.client)
            ((due,),) = place.ask("SELECT extract(epoch FROM min(due_at))::float"
                                  " FROM console.stripe_event WHERE state = 'waiting'")  # fmt: skip
            assert isinstance(due, float)
            pauses.append(due - place.wall())
            place.wall.seconds = due
        assert pauses == [*(2.0 * 2**n for n in range(11)), 3600.0, 3600.0, 3600.0]
        assert not place.stripe.faults
        await place.look()
        assert place.balance() == 25 * DOLLAR


async def test_what_nobody_foresaw_is_tried_again_and_then_parked(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with till(database) as place:
        await place.pay("25")
        await place.deliver()
        with monkeypatch.context() as broken:

            async def settled(_: Stripe, intent_id: str) -> None:
                raise KeyError(intent_id)

            broken.setattr(Stripe, "settled", settled)
            for _ in range(inbox.TRIES_MAX):
                await place.look()
                place.wall.seconds += 3600
        assert set(place.inbox()) == {"parked"}
        place.ask("UPDATE console.stripe_event SET state = 'waiting', due_at = received_at")
        await place.look()
        assert place.balance() == 25 * DOLLAR


async def test_that_stripe_was_away_counts_for_no_failure(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with till(database) as place:
        await place.pay("25")
        await place.deliver()
        for _ in range(inbox.TRIES_MAX + 2):
            place.stripe.faults.extend(["500_before"] * 3)
            assert await inbox.look_into_next(place.console, place.client)
            place.wall.seconds += 3600
        with monkeypatch.context() as broken:

            async def settled(_: Stripe, intent_id: str) -> None:
                raise KeyError(intent_id)

            broken.setattr(Stripe, "settled", settled)
            await place.look()
        assert set(place.inbox()) == {"waiting"}
        place.wall.seconds += 3600
        await place.look()
        assert set(place.inbox()) == {"done"}
        assert place.balance() == 25 * DOLLAR


async def test_who_dies_in_the_middle_is_followed_by_another(database: str) -> None:
    async with till(database) as place:
        await place.pay("25")
        await place.deliver()
        now = moment(place.console)
        claimed = await place.console.database.run(
            lambda c: stripe_events.claim(c, now, now + inbox.CLAIM)
        )
        assert claimed is not None
        await place.look()
        assert place.balance() == 0
        place.wall.seconds += inbox.CLAIM.total_seconds()
        await place.look()
        assert place.balance() == 25 * DOLLAR


async def test_what_was_fetched_earlier_is_not_written_over_what_was_fetched_later(
    database: str,
) -> None:
    async with till(database) as place:
        _, intent_id = await place.top_up("20")
        row = await place.console.database.run(lambda c: payments.find_by_intent(c, intent_id))
        assert row is not None
        now = moment(place.console)
        begun = await place.console.database.run(
            lambda c: payments.begin_turn(c, row.payment_id, now)
        )
        old = await place.client.settled(intent_id)
        place.stripe.refund(intent_id, 500)
        await inbox.settle(place.console, place.client, intent_id)
        with pytest.raises(inbox.Overtaken):
            await place.console.database.run(lambda c: inbox._write(c, begun, old, "", now))
        assert place.balance() == 15 * DOLLAR


async def test_many_at_once_credit_once(database: str) -> None:
    async with till(database) as place:
        _, intent_id = await place.pay("20")
        place.stripe.refund(intent_id, 500)

        async def settle() -> None:
            try:
                await inbox.settle(place.console, place.client, intent_id)
            except inbox.Overtaken:
                return

        async with trio.open_nursery() as nursery:
            for _ in range(8):
                nursery.start_soon(settle)
        await inbox.settle(place.console, place.client, intent_id)
        assert place.balance() == 15 * DOLLAR
        assert (place.transfers(1), place.transfers(3)) == ([20 * DOLLAR], [5 * DOLLAR])


# -- the comparison -------------------------------------------------------------------------------


async def test_what_no_event_told_of_is_found(database: str) -> None:
    async with till(database) as place:
        _, paid = await place.pay("20")
        place.stripe.take_events()
        _, refunded = await place.top_up("30")
        place.stripe.take_events()
        place.stripe.refund(refunded, 1000)
        place.stripe.take_events()
        assert await place.compare() == 2
        assert place.balance() == 40 * DOLLAR
        place.stripe.dispute(paid)
        place.stripe.take_events()
        assert await place.compare() == 1
        assert place.balance() == 20 * DOLLAR
        assert await place.compare() == 0


async def test_every_payment_at_stripe_has_one_transfer_of_its_amount(database: str) -> None:
    async with till(database, pages_a_minute=200) as place:
        paid = {}
        for number in range(130):  # more than a page
            _, intent_id = await place.pay(f"{5 + number}")
            paid[intent_id] = (5 + number) * DOLLAR
        place.stripe.take_events()
        await place.compare()
        booked = place.ask(
            "SELECT r.ref, t.amount FROM ledger.external_ref r JOIN ledger.transfer t"
            " USING (transfer_id) WHERE r.code = 1"
        )
        assert set(booked) == set(paid.items())
        assert place.balance() == sum(paid.values())


async def test_it_looks_back_35_days(database: str) -> None:
    async with till(database) as place:
        await place.pay("20")
        place.stripe.take_events()
        place.wall.seconds += timedelta(days=35, seconds=1).total_seconds()
        assert await place.compare() == 1  # the page, which must have been closed by now
        assert place.balance() == 20 * DOLLAR  # so it was asked for all the same
        place.owner = await place.town.operator()
        await place.pay("30")
        place.stripe.take_events()
        place.ask("UPDATE console.payment SET session_id = NULL")
        place.wall.seconds += timedelta(days=35, seconds=1).total_seconds()
        assert await place.compare() == 0


async def test_it_is_made_once_an_hour_whoever_gets_to_it_first(database: str) -> None:
    async with till(database) as place:

        def compared() -> int:
            return place.stripe.requests.count(("GET", "/v1/balance_transactions"))

        for _ in range(3):
            await inbox.compare_if_due(place.console, place.client)
        assert compared() == 1
        place.wall.seconds += 3599
        await inbox.compare_if_due(place.console, place.client)
        assert compared() == 1
        place.wall.seconds += 2
        place.stripe.faults.extend(["500_before"] * 3)
        await inbox.compare_if_due(place.console, place.client)  # which fails
        assert compared() == 1
        place.wall.seconds += inbox.COMPARE_AGAIN.total_seconds() + 1
        await inbox.compare_if_due(place.console, place.client)
        assert compared() == 2


async def test_a_list_that_nobody_understands_ends_nothing(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with till(database) as place:
        await place.pay("20")
        with monkeypatch.context() as broken:

            async def movements(*_: object) -> None:
                raise KeyError("data")

            broken.setattr(Stripe, "movements", movements)
            await inbox.compare_if_due(place.console, place.client)
        place.wall.seconds += inbox.COMPARE_AGAIN.total_seconds() + 1
        await inbox.compare_if_due(place.console, place.client)
        await place.look()
        assert place.balance() == 20 * DOLLAR


async def test_old_events_are_forgotten(database: str) -> None:
    async with till(database) as place:
        await place.top_up("20")
        assert place.inbox()
        place.wall.seconds += inbox.KEPT.total_seconds() + 1
        await inbox.compare_if_due(place.console, place.client)
        assert place.inbox() == {}


# -- cards ----------------------------------------------------------------------------------------


async def test_a_card_is_saved_with_a_payment_or_by_itself(database: str) -> None:
    async with till(database) as place:
        await place.top_up("20")
        assert await place.shown("/payment-method") == {"card": None}
        await place.top_up("20", save_card=True)
        card = {"brand": "visa", "last4": "4242", "exp_month": 12, "exp_year": 2030}
        assert await place.shown("/payment-method") == {"card": card}
        started = await place.owner.post("/console/api/accounts/acme/payment-method")
        place.stripe.pay(started.json()["url"].rpartition("/")[2], "4000 0000 0000 0341")
        await place.deliver()
        await place.look()
        assert await place.shown("/payment-method") == {"card": card | {"last4": "0341"}}


async def test_an_older_payment_does_not_bring_its_card_back(database: str) -> None:
    async with till(database) as place:
        _, intent_id = await place.top_up("20", save_card=True)
        answer = await place.owner.delete(f"/console/api/accounts/{ACCOUNT}/payment-method")
        assert answer.status_code == 204
        await inbox.settle(place.console, place.client, intent_id)
        assert await place.shown("/payment-method") == {"card": None}


async def test_a_page_that_is_told_of_late_does_not_bring_its_card_back(database: str) -> None:
    async with till(database) as place:
        await place.top_up("20")
        started = await place.owner.post(f"{API}/payment-method")
        session_id = started.json()["url"].rpartition("/")[2]
        assert place.stripe.pay(session_id, DECLINED_LATER)
        assert await inbox.settle_page(place.console, place.client, session_id) == "card saved"
        assert (await place.owner.delete(f"{API}/payment-method")).status_code == 204
        assert await inbox.settle_page(place.console, place.client, session_id) == "unchanged"
        assert await place.shown("/payment-method") == {"card": None}


async def test_a_card_that_was_renewed_or_removed_at_stripe(database: str) -> None:
    async with till(database) as place:
        await place.top_up("20", save_card=True)
        (method,) = place.stripe.methods.values()
        method.exp_year = 2035
        updated = {
            "id": "evt_renewed",
            "object": "event",
            "type": "payment_method.automatically_updated",
            "data": {"object": method.render()},
        }
        await place.deliver(
            [Event("evt_renewed", str(updated["type"]), json.dumps(updated).encode())]
        )
        await place.look()
        card = (await place.shown("/payment-method"))["card"]
        assert isinstance(card, dict)
        assert card["exp_year"] == 2035
        place.stripe.detach(method.id)
        await place.deliver()
        await place.look()
        assert await place.shown("/payment-method") == {"card": None}


@pytest.mark.parametrize("meanwhile", ["removed", "replaced"])
async def test_a_card_that_its_owner_gives_up_while_stripe_tells_of_it(
    database: str, monkeypatch: pytest.MonkeyPatch, meanwhile: str
) -> None:
    async with till(database) as place:
        await place.top_up("20", save_card=True)
        (old,) = place.stripe.methods.values()
        fetch = Stripe.card

        async def card(stripe: Stripe, payment_method: str) -> tuple[Card, str]:
            answer = await fetch(stripe, payment_method)  # it was the customer's then
            if meanwhile == "removed":
                gone = await place.owner.delete(f"{API}/payment-method")
                assert gone.status_code == 204
            else:
                started = await place.owner.post(f"{API}/payment-method")
                session_id = started.json()["url"].rpartition("/")[2]
                assert place.stripe.pay(session_id, DECLINED_LATER)
                assert await inbox.settle_page(place.console, stripe, session_id) == "card saved"
            return answer

        with monkeypatch.context() as slow:
            slow.setattr(Stripe, "card", card)
            await inbox.refresh_card(place.console, place.client, old.id)
        shown = (await place.shown("/payment-method"))["card"]
        saved = {"brand": "visa", "last4": "0341", "exp_month": 12, "exp_year": 2030}
        assert shown == (None if meanwhile == "removed" else saved)
        ((method,),) = place.ask("SELECT payment_method FROM console.stripe_customer")
        assert method != old.id


# -- the loop -------------------------------------------------------------------------------------


async def test_a_database_that_does_not_answer_is_waited_for(
    database: str, monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    calls = []

    async def work(console: object, stripe: object) -> None:
        calls.append(trio.current_time())
        if len(calls) < 3:
            raise DatabaseUnavailable

    with trio.move_on_after(2.2):
        await inbox._every(0.5, work, None, None)  # type: ignore[arg-type]  # neither is used
    assert len(calls) == 5


def test_the_inbox_is_all_that_the_gateways_role_may_write(database: str) -> None:
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("SET ROLE farebox_app")
        connection.execute("SELECT ledger.set_recharge_below(1, 0)")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("DELETE FROM ledger.recharge_request")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("INSERT INTO ledger.transfer DEFAULT VALUES")
        connection.execute("SELECT * FROM ledger.take_recharge_requests()")
