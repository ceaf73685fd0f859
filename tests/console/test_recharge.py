"""Accounts that top themselves up: once, within their cap, whatever becomes of the call."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import psycopg
import pytest
import trio

from console import recharge, recharger
from console.access import moment
from console.errors import DatabaseUnavailable
from console.settings import StripeSettings
from console.stripe_client import CENT, Stripe
from tests.fakes.stripe import DECLINED_LATER, NEEDS_OWNER, VISA, Fault
from tests.fakes.till import API, Till, till

DOLLAR = 100 * CENT
SETTINGS = {"enabled": True, "threshold": "10", "amount": "20", "monthly_cap": "100"}
HOUR = 3600


async def switch_on(place: Till, number: str = VISA, **changed: object) -> None:
    """An account of 25 dollars that is to be recharged below 10."""
    await place.top_up("25")
    started = await place.owner.post(f"{API}/payment-method")
    assert started.status_code == 201, started.text
    assert place.stripe.pay(started.json()["url"].rpartition("/")[2], number)
    await place.deliver()
    await place.look()
    answer = await place.owner.put(f"{API}/recharge", json=SETTINGS | changed)
    assert answer.status_code == 200, answer.text


def attempts(place: Till) -> list[object]:
    """The states of all attempts, oldest first."""
    return [
        state
        for (state,) in place.ask(
            "SELECT state FROM console.recharge_attempt ORDER BY created_at, payment_id"
        )
    ]


def charges(place: Till) -> int:
    """How often somebody was really charged for a recharge."""
    return sum(each.customer is not None for each in place.stripe.charges.values()) - 1


async def test_it_fires_once_below_the_threshold(database: str) -> None:
    async with till(database) as place:
        await switch_on(place)
        await place.recharge()
        assert attempts(place) == []
        place.spend("15")
        await place.recharge()
        assert attempts(place) == []  # 10 is not below 10
        place.spend("0.01")
        for _ in range(3):
            await place.recharge()
            await place.deliver()
            await place.look()
        assert attempts(place) == ["succeeded"]
        assert place.balance() == 30 * DOLLAR - CENT
        assert charges(place) == 1
        payments = (await place.shown("/payments"))["payments"]
        assert isinstance(payments, list)
        assert {(each["kind"], each["state"], each["amount"]) for each in payments} == {
            ("recharge", "succeeded", "20"),
            ("top_up", "succeeded", "25"),
        }


async def test_many_consoles_at_once_fire_once(database: str) -> None:
    async with till(database) as place:
        await switch_on(place)
        place.spend("20")

        async def another() -> None:
            for _ in range(3):
                await place.recharge()
                await place.deliver()
                await place.look()

        async with trio.open_nursery() as nursery:
            for _ in range(6):
                nursery.start_soon(another)
        assert attempts(place) == ["succeeded"]
        assert place.balance() == 25 * DOLLAR
        assert charges(place) == 1


async def test_the_exchange_asks_for_it(database: str) -> None:
    async with till(database) as place:
        await switch_on(place)
        assert place.ask("SELECT recharge_below FROM ledger.pool WHERE kind = 1") == [
            (10 * DOLLAR,)
        ]
        place.spend("20")
        await place.recharge(sweep=False)
        assert attempts(place) == []
        place.ask("INSERT INTO ledger.recharge_request VALUES (%s)", place.account_id)
        await place.recharge(sweep=False)
        assert attempts(place) == ["succeeded"]
        assert place.ask("SELECT * FROM ledger.recharge_request") == []


async def test_a_request_that_comes_late_recharges_nobody(database: str) -> None:
    async with till(database) as place:
        await switch_on(place)
        place.spend("20")
        await place.recharge()
        place.ask("INSERT INTO ledger.recharge_request VALUES (%s)", place.account_id)
        place.ask("INSERT INTO ledger.recharge_request VALUES (999)")  # which is nobody
        await place.recharge(sweep=False)
        assert attempts(place) == ["succeeded"]


@pytest.mark.parametrize("fault", ["broken_before", "broken_after", "500_before", "500_after"])
async def test_an_unknown_outcome_is_asked_for_with_the_same_key(
    database: str, fault: Fault
) -> None:
    async with till(database) as place:
        await switch_on(place)
        place.spend("20")
        place.stripe.faults.extend([fault] * 3)
        await place.recharge()
        assert attempts(place) == ["open"]
        assert place.balance() == 5 * DOLLAR
        await place.recharge()  # not yet due, and no second one is opened
        assert attempts(place) == ["open"]
        place.wall.seconds += 6
        await place.recharge()
        assert attempts(place) == ["succeeded"]
        assert place.balance() == 25 * DOLLAR
        assert charges(place) == 1


async def test_a_webhook_may_be_first(database: str) -> None:
    async with till(database) as place:
        await switch_on(place)
        place.spend("20")
        place.stripe.faults.extend(["broken_after"] * 3)
        await place.recharge()
        await place.deliver()
        await place.look()
        assert place.balance() == 25 * DOLLAR
        assert attempts(place) == ["succeeded"]
        place.wall.seconds += HOUR
        await place.recharge()
        assert charges(place) == 1


async def test_what_the_key_no_longer_tells_is_looked_for(database: str) -> None:
    async with till(database) as place:
        await switch_on(place)
        place.spend("20")
        place.stripe.faults.extend(["broken_after"] * 3)
        await place.recharge()
        assert charges(place) == 1
        place.stripe.take_events()  # nobody tells us
        place.wall.seconds += 25 * HOUR  # and nobody was here for a day
        await place.recharge()
        assert attempts(place) == ["succeeded"]
        assert charges(place) == 1
        assert place.balance() == 25 * DOLLAR


async def test_a_failure_that_stripe_repeats_is_looked_behind(database: str) -> None:
    async with till(database) as place:
        await switch_on(place)
        place.spend("20")
        for _ in range(recharger.TRIES_BEFORE_LOOKING):
            place.stripe.faults.extend(["500_after"] * 3)
            await place.recharge()
            assert attempts(place) == ["open"]
            place.wall.seconds += 600
        place.stripe.take_events()
        await place.recharge()
        assert attempts(place) == ["succeeded"]
        assert charges(place) == 1
        assert ("GET", "/v1/payment_intents") in place.stripe.requests


async def test_under_another_name_the_first_call_is_still_found(database: str) -> None:
    """Words on the payment that were configured anew make another call under the same key."""
    async with till(database) as place:
        await switch_on(place)
        place.spend("20")
        place.stripe.faults.extend(["broken_after"] * 3)
        await place.recharge()
        place.stripe.take_events()  # nobody tells us
        place.console.server = replace(place.console.server, brand="tollbooth")
        for _ in range(recharger.TRIES_BEFORE_LOOKING):
            assert attempts(place) == ["open"]
            place.wall.seconds += 600
            await place.recharge()
        assert attempts(place) == ["succeeded"]
        assert charges(place) == 1
        assert place.balance() == 25 * DOLLAR


async def test_with_an_api_key_that_is_no_more_nobody_knows_what_was_charged(
    database: str,
) -> None:
    async with till(database) as place:
        await switch_on(place)
        place.spend("20")
        place.stripe.faults.extend(["broken_after"] * 3)
        await place.recharge()
        place.stripe.take_events()
        client = place.client
        wrong = Stripe(StripeSettings(api_key="sk_wrong", api_base=place.stripe.base_url))
        place.console.card_payments = wrong
        for _ in range(recharger.TRIES_BEFORE_LOOKING + 2):
            place.wall.seconds += 700
            await place.recharge()
            assert attempts(place) == ["open"]
        await wrong.aclose()
        place.console.card_payments = client
        place.wall.seconds += 700
        await place.recharge()
        assert attempts(place) == ["succeeded"]
        assert (charges(place), place.notices()) == (1, [])


async def test_who_is_refused_at_once_was_charged_nothing(database: str) -> None:
    async with till(database) as place:
        await switch_on(place)
        place.spend("20")
        place.stripe.customers.clear()  # somebody has deleted it there
        await place.recharge()
        assert attempts(place) == ["failed"]
        assert place.notices() == ["recharge_failed"]


async def test_a_decline_that_is_found_later_says_what_it_was(database: str) -> None:
    async with till(database) as place:
        await switch_on(place, DECLINED_LATER)
        place.spend("20")
        place.stripe.faults.extend(["broken_after"] * 3)
        await place.recharge()
        place.stripe.take_events()
        place.wall.seconds += 25 * HOUR
        await place.recharge(sweep=False)
        assert attempts(place) == ["failed"]
        assert place.ask("SELECT failure FROM console.payment WHERE kind = 'recharge'") == [
            ("generic_decline",)
        ]


async def test_what_is_nowhere_after_an_hour_was_never_made(database: str) -> None:
    async with till(database) as place:
        await switch_on(place)
        place.spend("20")
        for _ in range(7):
            # what it looks for is found missing, and then the call fails
            place.stripe.faults.extend(["500_before"] * 3)
            await place.recharge()
            place.wall.seconds += 500
        assert attempts(place) == ["open"]
        place.stripe.faults.clear()
        place.wall.seconds += HOUR
        await place.recharge(sweep=False)
        assert attempts(place) == ["failed"]
        assert place.notices() == ["recharge_failed"]
        assert charges(place) == 0


async def test_stripe_that_is_away_for_long_is_neither_success_nor_failure(database: str) -> None:
    async with till(database) as place:
        await switch_on(place)
        place.spend("20")
        for _ in range(10):
            place.stripe.faults.clear()
            place.stripe.faults.extend(["500_before"] * 3)
            await place.recharge()
            assert attempts(place) == ["open"]
            place.wall.seconds += 650
        place.stripe.faults.clear()
        assert place.notices() == []


@pytest.mark.parametrize(
    ("number", "reason"),
    [(DECLINED_LATER, "generic_decline"), (NEEDS_OWNER, "authentication_required")],
)
async def test_three_failures_switch_it_off(database: str, number: str, reason: str) -> None:
    async with till(database) as place:
        await switch_on(place, number)
        place.spend("20")
        for rest in (*recharge.RESTS, None):
            await place.recharge()
            await place.deliver()
            await place.look()
            before = len(attempts(place))
            await place.recharge()
            assert len(attempts(place)) == before  # it rests
            if rest is not None:
                place.wall.seconds += rest.total_seconds() - 1
                await place.recharge()
                assert len(attempts(place)) == before
                place.wall.seconds += 1
        place.wall.seconds += 5 * HOUR
        await place.recharge()
        assert attempts(place) == ["failed"] * 3
        assert place.notices() == ["recharge_failed", "recharge_failed", "recharge_disabled"]
        state = (await place.shown("/recharge"))["recharge"]
        assert isinstance(state, dict)
        assert (state["enabled"], state["disabled_reason"]) == (False, reason)
        assert place.balance() == 5 * DOLLAR
        assert place.ask("SELECT recharge_below FROM ledger.pool WHERE kind = 1") == [(0,)]
        assert place.ask(
            "SELECT DISTINCT failure FROM console.payment WHERE kind = 'recharge'"
        ) == [(reason,)]
        answer = await place.owner.put(f"{API}/recharge", json=SETTINGS)
        assert answer.json()["recharge"]["failures"] == 0
        await place.recharge()
        assert len(attempts(place)) == 4


async def test_a_success_forgets_failures(database: str) -> None:
    async with till(database) as place:
        await switch_on(place, DECLINED_LATER)
        place.spend("20")
        await place.recharge()
        for method in place.stripe.methods.values():
            method.number = VISA  # its owner has paid their bank
        place.wall.seconds += recharge.RESTS[0].total_seconds()
        await place.recharge()
        assert attempts(place) == ["failed", "succeeded"]
        state = (await place.shown("/recharge"))["recharge"]
        assert isinstance(state, dict)
        assert state["failures"] == 0


async def test_the_cap_is_of_a_calendar_month(database: str) -> None:
    async with till(database) as place:
        place.wall.seconds = datetime(2026, 11, 30, 23, 0, tzinfo=UTC).timestamp()
        place.owner = await place.town.operator()
        await switch_on(place, monthly_cap="45")
        for spent in (25, 20, 20):
            place.spend(str(spent))
            for _ in range(2):
                await place.recharge()
        assert attempts(place) == ["succeeded", "succeeded"]
        assert place.notices() == ["recharge_capped"]  # once
        place.wall.seconds += HOUR
        await place.recharge()
        assert attempts(place) == ["succeeded"] * 3


@pytest.mark.parametrize("how", ["suspended", "off", "no card"])
async def test_who_is_not_recharged(database: str, how: str) -> None:
    async with till(database) as place:
        await switch_on(place)
        place.spend("20")
        match how:
            case "suspended":
                place.ask("UPDATE directory.account SET status = 2")
            case "off":
                await place.owner.put(f"{API}/recharge", json=SETTINGS | {"enabled": False})
            case _:
                await place.owner.delete(f"{API}/payment-method")
        place.ask("INSERT INTO ledger.recharge_request VALUES (%s)", place.account_id)
        await place.recharge()
        assert attempts(place) == []
        assert charges(place) == 0


@pytest.mark.parametrize(("cents", "stays_on"), [(1500, True), (1600, False), (2500, False)])
async def test_nobody_is_charged_because_of_a_refund(
    database: str, cents: int, stays_on: bool
) -> None:
    async with till(database) as place:
        await switch_on(place)
        (intent_id,) = place.stripe.intents
        place.stripe.refund(intent_id, cents)
        await place.deliver()
        await place.look()
        await place.recharge()
        assert place.balance() == (2500 - cents) * CENT
        assert attempts(place) == []
        state = (await place.shown("/recharge"))["recharge"]
        assert isinstance(state, dict)
        assert state["enabled"] == stays_on
        assert place.notices() == ([] if stays_on else ["recharge_disabled"])


async def test_a_refund_to_who_was_below_already_leaves_it_on(database: str) -> None:
    async with till(database) as place:
        await switch_on(place)
        place.spend("20")
        (intent_id,) = place.stripe.intents
        place.stripe.refund(intent_id, 100)
        await place.deliver()
        await place.look()
        await place.recharge()
        assert attempts(place) == ["succeeded"]
        assert place.balance() == 24 * DOLLAR


async def test_a_card_removed_at_stripe_switches_it_off(database: str) -> None:
    async with till(database) as place:
        await switch_on(place)
        place.spend("20")
        (method,) = [each for each in place.stripe.methods.values() if each.customer]
        place.stripe.detach(method.id)
        await place.deliver()
        await place.look()
        await place.recharge()
        assert attempts(place) == []
        assert place.notices() == ["recharge_disabled"]


async def test_a_recharge_that_was_given_up_and_succeeded_all_the_same_is_credited(
    database: str,
) -> None:
    async with till(database) as place:
        await switch_on(place)
        place.spend("20")
        place.stripe.faults.extend(["broken_after"] * 3)
        await place.recharge()
        now = moment(place.console)
        ((payment_id,),) = place.ask("SELECT payment_id FROM console.recharge_attempt")
        await place.console.database.run(
            lambda c: recharge.fail(c, payment_id, "no_outcome", now)  # type: ignore[arg-type]  # a UUID
        )
        await place.deliver()
        await place.look()
        assert attempts(place) == ["failed"]
        assert place.balance() == 25 * DOLLAR


async def test_settings_have_bounds(database: str) -> None:
    async with till(database) as place:
        answer = await place.owner.put(f"{API}/recharge", json=SETTINGS)
        assert (answer.status_code, answer.json()["error"]["code"]) == (409, "no_saved_card")
        await switch_on(place)
        for changed, status in (
            ({"threshold": "0.99"}, 400),
            ({"threshold": "-1"}, 400),
            ({"amount": "4.99"}, 400),
            ({"amount": "20.001"}, 400),
            ({"amount": "10001"}, 400),
            ({"amount": "1e3"}, 400),
            ({"monthly_cap": "19.99"}, 400),
            ({"monthly_cap": "100001"}, 400),
            ({"monthly_cap": "20"}, 200),
            ({"enabled": False}, 200),
        ):
            answer = await place.owner.put(f"{API}/recharge", json=SETTINGS | changed)
            assert answer.status_code == status, (changed, answer.text)


async def test_what_nobody_foresaw_ends_neither_the_service_nor_the_attempt(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with till(database) as place:
        await switch_on(place)
        place.spend("20")
        for trouble in (KeyError("id"), DatabaseUnavailable()):
            with monkeypatch.context() as broken:

                async def charge(*_: object, trouble: Exception = trouble, **__: object) -> None:
                    raise trouble

                broken.setattr(Stripe, "charge", charge)
                await place.recharge()
            assert attempts(place) == ["open"]
            place.wall.seconds += recharger.CLAIM.total_seconds()
        await place.recharge()
        assert attempts(place) == ["succeeded"]


def test_only_one_attempt_can_be_open(database: str) -> None:
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("INSERT INTO directory.account (name) VALUES ('acme')")
        connection.execute(
            "INSERT INTO console.payment (payment_id, account_id, kind, amount, created_at)"
            " SELECT gen_random_uuid(), 1, 'recharge', 10000000, now() FROM generate_series(1, 2)"
        )
        with pytest.raises(psycopg.errors.UniqueViolation):
            connection.execute(
                "INSERT INTO console.recharge_attempt"
                " (payment_id, account_id, customer_id, payment_method, due_at, created_at)"
                " SELECT payment_id, 1, 'cus_1', 'pm_1', now(), now() FROM console.payment"
            )
