"""Money from a card to a model: a real gateway, real HTTP, a stand-in for Stripe that posts back.

Top up, spend, fall below the threshold under load, be recharged once; and nothing is lost where the
console is killed at any of these moments.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import psycopg

from tests.fakes import stripe as stand_in
from tests.fakes.process import WITH_CONSOLE, GatewayProcess, serving
from tests.fakes.waiting import eventually

PATIENCE_TRIES = 1200
PATIENCE_SECONDS = 60
API = "/console/api/accounts/acme"
CHAT = {"model": "sandbox", "max_tokens": 5, "messages": [{"role": "user", "content": "hi"}]}
CALLERS = 3
CALLS = 60
RECHARGE = {"enabled": True, "threshold": "10", "amount": "20", "monthly_cap": "100"}


class Console:
    """Whoever runs the gateway, signed in by the link of its greeting."""

    def __init__(self, gateway: GatewayProcess) -> None:
        self._gateway = gateway
        self._cookie = ""
        words = " ".join(gateway.output).split()
        (token,) = {word.rpartition("/")[2] for word in words if "/console/sign-in/" in word}
        self.ask("POST", "/console/api/session/link", {"token": token})

    def ask(self, method: str, path: str, body: object = None) -> dict[str, object]:
        """What the API says."""
        request = urllib.request.Request(  # noqa: S310 - loopback
            f"{self._gateway.base_url}{path}",
            None if body is None else json.dumps(body).encode(),
            {
                "content-type": "application/json",
                "cookie": self._cookie,
                "sec-fetch-site": "same-origin",
            },
            method=method,
        )
        for _ in range(PATIENCE_TRIES):
            try:
                with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310 - loopback
                    self._cookie = (answer.headers["set-cookie"] or self._cookie).partition(";")[0]
                    found = json.loads(answer.read())
                assert isinstance(found, dict)
                return found
            except urllib.error.HTTPError as error:
                with error:
                    if error.code != 503:
                        raise
            threading.Event().wait(0.05)  # it is still loading
        raise AssertionError("there is no console")

    def pay(self, stripe: stand_in.Stripe, amount: str) -> None:
        """Pay on the page, as a browser does, and come back."""
        url = str(self.ask("POST", f"{API}/top-ups", {"amount": amount, "save_card": True})["url"])
        opener = urllib.request.build_opener(_StayHere)
        with opener.open(url, data=f"number={stand_in.VISA}".encode(), timeout=30) as answer:
            assert answer.status == 303
            assert "/console/acme/billing?payment=" in answer.headers["location"]

    def payments(self) -> list[tuple[str, str]]:
        """Kind and state of each."""
        found = self.ask("GET", f"{API}/payments")["payments"]
        assert isinstance(found, list)
        return sorted((each["kind"], each["state"]) for each in found)


class _StayHere(urllib.request.HTTPErrorProcessor):
    """Where one is sent is a page of the console."""

    def http_response(self, request: object, response: object) -> object:
        """As it came."""
        return response


def ask(gateway: GatewayProcess, statement: str) -> list[tuple[object, ...]]:
    """Rows of the gateway's own database."""
    with psycopg.connect(gateway.conninfo, autocommit=True) as connection:
        return connection.execute(statement.encode()).fetchall()


def balance(gateway: GatewayProcess) -> float:
    return float(str(gateway.record("account", "show", "acme")["balance_usd"]))


def has(gateway: GatewayProcess, usd: int) -> bool:
    return balance(gateway) == usd


def call(gateway: GatewayProcess, key: str) -> None:
    request = urllib.request.Request(  # noqa: S310 - loopback
        f"{gateway.base_url}/v1/chat/completions",
        json.dumps(CHAT).encode(),
        {"authorization": f"Bearer {key}", "content-type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310 - loopback
        assert answer.status == 200
        answer.read()


def load(gateway: GatewayProcess, key: str) -> None:
    """Calls from several at once."""
    failures: list[BaseException] = []

    def several() -> None:
        try:
            for _ in range(CALLS):
                call(gateway, key)
        except (OSError, AssertionError) as error:
            failures.append(error)

    threads = [threading.Thread(target=several) for _ in range(CALLERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


@contextmanager
def taking_payments(directory: Path) -> Iterator[tuple[GatewayProcess, stand_in.Stripe]]:
    """A gateway and the stand-in that it takes payments through."""
    with stand_in.serving() as stripe:
        settings = f"""{WITH_CONSOLE}
[stripe]
api_key = "{stand_in.API_KEY}"
webhook_secret = "{stand_in.WEBHOOK_SECRET}"
api_base = "{stripe.base_url}"
"""
        with serving(directory, settings) as gateway:
            stripe.deliver_to(f"{gateway.base_url}/console/api/stripe/webhook")
            yield gateway, stripe


def test_an_account_pays_and_is_recharged_once_under_load(tmp_path: Path) -> None:
    with taking_payments(tmp_path) as (gateway, stripe):
        key = gateway.new_key("acme", "5")
        console = Console(gateway)
        console.pay(stripe, "5")
        topped_up = [("top_up", "succeeded")]
        eventually(lambda: console.payments() == topped_up, "the top-up", PATIENCE_SECONDS)
        assert balance(gateway) == 10
        console.ask("PUT", f"{API}/recharge", RECHARGE)
        load(gateway, key)
        recharge = ("recharge", "succeeded")
        eventually(lambda: recharge in console.payments(), "the recharge", PATIENCE_SECONDS)
        load(gateway, key)
        assert console.payments() == [recharge, *topped_up]
        assert 29 < balance(gateway) < 30
        assert len(stripe.charges) == 2
        unfinished = "SELECT count(*)::int FROM console.stripe_event WHERE state <> 'done'"
        # One that met who recharges at the same payment is tried again after a second.
        eventually(lambda: ask(gateway, unfinished) == [(0,)], "no event is left", PATIENCE_SECONDS)


def test_a_console_that_is_killed_loses_no_payment(tmp_path: Path) -> None:
    with taking_payments(tmp_path) as (gateway, stripe):
        gateway.new_key("acme", "5")
        console = Console(gateway)
        for paid in range(1, 4):
            console.pay(stripe, "5")
            os.kill(console_process(gateway), signal.SIGKILL)
            credited = partial(has, gateway, 5 + 5 * paid)
            eventually(credited, f"payment {paid} on the balance", PATIENCE_SECONDS)
        assert ask(gateway, "SELECT count(*)::int FROM ledger.transfer WHERE code = 1") == [(3,)]


def console_process(gateway: GatewayProcess) -> int:
    with urllib.request.urlopen(f"{gateway.admin_url}/status", timeout=10) as answer:  # noqa: S310 - loopback
        processes = json.loads(answer.read())["processes"]
    (found,) = (each["pid"] for each in processes if each["name"] == "console")
    assert isinstance(found, int)
    return found
