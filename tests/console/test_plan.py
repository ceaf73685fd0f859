"""An account's money and plan, and asking for another; models with prices; how providers are."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import hypercorn.config
import hypercorn.trio
import psycopg
import pytest
import trio
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from adapters.catalogue import Catalogue, Model
from adapters.pricing import build_schedule
from console.context import ServerFacts
from console.settings import ConsoleSettings
from ledger.directory import Directory
from tests.fakes.console import FACTS, Browser, browsing, console, sandbox_catalogue
from tests.fakes.people import Town, town

ACME = "/console/api/accounts/acme"
REQUESTS = "/console/api/plan/requests"


@asynccontextmanager
async def acme(database: str, facts: ServerFacts = FACTS) -> AsyncIterator[tuple[Town, Browser]]:
    """An account with $12.50, and its operator."""
    with Directory(database) as directory:
        directory.create_account("acme", tier="free", credit=12_500_000_000)
    async with town(database, facts=facts) as place:
        yield place, await place.operator()


async def owner(place: Town, database: str, name: str = "ada") -> tuple[Browser, str]:
    """Somebody with an account of their own, and what that is called."""
    browser = await place.person(name)
    opened = await browser.post("/console/api/accounts")
    return browser, opened.json()["account"]


async def test_a_note_is_text_that_can_be_kept(database: str) -> None:
    async with acme(database) as (_, browser):
        wanted = {"tier": "pro", "note": "two\nlines\0"}
        answer = await browser.post(f"{ACME}/plan/requests", json=wanted)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_request")
        answer = await browser.post("/console/acme/plan", data={"do": "ask", **wanted})
        assert answer.status_code == 400
        answer = await browser.post(f"{ACME}/plan/requests", json={**wanted, "note": "two\nlines"})
        assert answer.status_code == 201


async def test_an_account_says_what_it_has(database: str) -> None:
    async with acme(database) as (_, browser):
        facts = (await browser.get(ACME)).json()
    del facts["created_at"]
    assert facts == {
        "account": "acme",
        "tier": "free",
        "suspended": False,
        "balance_usd": "12.5",
        "reserved_usd": "0",
        "credited_usd": "12.5",
        "charged_usd": "0",
    }


async def test_a_plan_has_limits_and_what_the_last_minute_took(database: str) -> None:
    async with acme(database) as (_, browser):
        plan = (await browser.get(f"{ACME}/plan")).json()
    assert plan["tier"] == "free"
    assert plan["limits"] == [
        {"kind": "rpm", "limit": 20, "used": 0},
        {"kind": "tpm", "limit": 200_000, "used": 0},
        {"kind": "concurrent", "limit": 2, "used": None},
    ]
    assert [tier["name"] for tier in plan["tiers"]] == ["free", "pro"]


async def test_a_plan_that_is_granted_holds(database: str) -> None:
    async with acme(database) as (place, operator):
        browser, account = await owner(place, database)
        mine = f"/console/api/accounts/{account}/plan"
        asked = await browser.post(f"{mine}/requests", json={"tier": "pro", "note": "growing"})
        assert asked.status_code == 201, asked.text
        again = await browser.post(f"{mine}/requests", json={"tier": "pro"})
        assert (again.status_code, again.json()["error"]["code"]) == (409, "already_asked")
        (waiting,) = (await operator.get(REQUESTS)).json()["requests"]
        assert (waiting["account"], waiting["tier"], waiting["note"]) == (account, "pro", "growing")
        said = {"grant": True, "reply": "welcome"}
        assert (
            await operator.post(f"{REQUESTS}/{waiting['request_id']}", json=said)
        ).status_code == 204
        late = await operator.post(f"{REQUESTS}/{waiting['request_id']}", json={"grant": False})
        assert (late.status_code, late.json()["error"]["code"]) == (409, "already_decided")
        plan = (await browser.get(mine)).json()
        log = (await browser.get(f"/console/api/accounts/{account}/audit")).json()["entries"]
    assert plan["tier"] == "pro"
    assert [(each["state"], each["reply"]) for each in plan["requests"]] == [("granted", "welcome")]
    assert [entry["action"] for entry in log][:2] == ["plan.grant", "plan.request"]


async def test_a_tier_that_is_no_more_is_not_granted(database: str) -> None:
    """Workers would hold the account to no limit at all."""
    async with acme(database) as (place, operator):
        asked = await operator.post(f"{ACME}/plan/requests", json={"tier": "pro"})
        number = asked.json()["request_id"]
        place.console.server = replace(FACTS, tiers={"free": FACTS.tiers["free"]})
        answer = await operator.post(f"{REQUESTS}/{number}", json={"grant": True})
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "unknown_tier")
        assert (await operator.get(ACME)).json()["tier"] == "free"
        declined = await operator.post(f"{REQUESTS}/{number}", json={"grant": False})
        assert declined.status_code == 204


async def test_who_asks_has_a_name_whatever_their_issuer_says(database: str) -> None:
    async with acme(database) as (place, operator):
        await place.person("phone", email=None)
        with psycopg.connect(database) as connection:
            connection.execute(
                "INSERT INTO console.member (account_id, user_id, role, created_at)"
                " SELECT 1, user_id, 'admin', now() FROM console.user WHERE subject = 'phone'"
            )
        phone = await place.person("phone", email=None)
        asked = await phone.post(f"{ACME}/plan/requests", json={"tier": "pro"})
        assert asked.json()["asked_by"] == "user 2"
        log = (await operator.get(f"{ACME}/audit")).json()["entries"]
        assert log[0]["actor"] == "user 2"
        assert "user 2" in (await operator.get("/console/acme/members")).text


async def test_a_request_is_taken_back_and_made_again(database: str) -> None:
    async with acme(database) as (place, operator):
        browser, account = await owner(place, database)
        mine = f"/console/api/accounts/{account}/plan/requests"
        number = (await browser.post(mine, json={"tier": "pro"})).json()["request_id"]
        elsewhere = await operator.delete(f"{ACME}/plan/requests/{number}")
        assert (elsewhere.status_code, elsewhere.json()["error"]["code"]) == (404, "not_found")
        assert (await browser.delete(f"{mine}/{number}")).status_code == 204
        assert (await browser.post(mine, json={"tier": "pro"})).status_code == 201


async def test_only_the_operator_decides(database: str) -> None:
    async with acme(database) as (place, _):
        browser, account = await owner(place, database)
        mine = f"/console/api/accounts/{account}/plan/requests"
        number = (await browser.post(mine, json={"tier": "pro"})).json()["request_id"]
        for answer in (
            await browser.get(REQUESTS),
            await browser.post(f"{REQUESTS}/{number}", json={"grant": True}),
        ):
            assert (answer.status_code, answer.json()["error"]["code"]) == (
                403,
                "permission_denied",
            )
        unknown = await browser.post(mine, json={"tier": "galactic"})
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (400, "unknown_tier")


# -- models ---------------------------------------------------------------------------------------

_PRICED = Model(
    id="big",
    groups=(),
    context_window=400_000,
    max_output_tokens=8_000,
    capabilities=("tools",),
    prices=build_schedule(
        {
            "input": "2.50",
            "cached_input": "0.25",
            "output": "10",
            "web_search": "0.01",
            "above": [{"input_tokens": 272_000, "input": "5", "output": "15"}],
            "service_tier": {"flex": "0.5"},
        }
    ),
)


async def test_prices_are_what_customers_pay(database: str) -> None:
    facts = replace(FACTS, catalogue=Catalogue.build([_PRICED], []), margin_bps=1000)
    async with acme(database, facts) as (_, browser):
        (model,) = (await browser.get(f"{ACME}/models")).json()["models"]
    rows = {
        (row["above_input_tokens"], row["service_tier"]): {
            price["unit"]: (price["usd"], price["per"]) for price in row["prices"]
        }
        for row in model["price_rows"]
    }
    assert rows[0, ""] == {
        "input": ("2.75", "million"),
        "cached_input": ("0.275", "million"),
        "output": ("11", "million"),
        "web_search": ("0.011", "piece"),
    }
    assert rows[0, "flex"]["input"] == ("1.375", "million")
    assert rows[272_000, ""]["output"] == ("16.5", "million")
    assert (model["context_window"], model["capabilities"]) == (400_000, ["tools"])


@pytest.mark.parametrize("public", [True, False])
async def test_models_are_public_where_the_operator_says_so(database: str, public: bool) -> None:
    server = replace(FACTS, catalogue=sandbox_catalogue())
    settings = ConsoleSettings(public_models=public)
    async with browsing(console(database, server=server, settings=settings)) as browser:
        answer = await browser.get("/console/api/models")
        page = await browser.get("/console/models")
    assert answer.status_code == page.status_code == (200 if public else 404)
    if public:
        names = [model["id"] for model in answer.json()["models"]]
        assert names == sorted(server.catalogue.models)
        assert all(name in page.text for name in names)


# -- credit by hand -------------------------------------------------------------------------------

CREDIT = {"amount": "5", "reason": "invoice 7"}


async def test_credit_that_is_sent_again_is_added_once(database: str) -> None:
    async with acme(database) as (_, browser):
        key = {"Idempotency-Key": "invoice 7"}
        answers = [await browser.post(f"{ACME}/credit", json=CREDIT, headers=key) for _ in range(3)]
        same = {"reason": "invoice 7", "amount": "5.00"}  # the same amount, however it is written
        answers.append(await browser.post(f"{ACME}/credit", json=same, headers=key))
        balance = (await browser.get(ACME)).json()["balance_usd"]
        entries = (await browser.get(f"{ACME}/audit")).json()["entries"]
    assert [answer.status_code for answer in answers] == [204] * 4
    replayed = [answer.headers.get("idempotent-replayed") for answer in answers]
    assert replayed == [None, "true", "true", "true"]
    assert balance == "17.5"
    assert [each["action"] for each in entries] == ["credit.add"]


async def test_a_key_is_remembered_by_the_books(database: str) -> None:
    key = {"Idempotency-Key": "k"}
    async with acme(database) as (_, browser):
        await browser.post(f"{ACME}/credit", json=CREDIT, headers=key)
    async with town(database) as place:  # a console that was started again
        operator = await place.operator()
        again = await operator.post(f"{ACME}/credit", json=CREDIT, headers=key)
        assert again.headers["idempotent-replayed"] == "true"
        assert (await operator.get(ACME)).json()["balance_usd"] == "17.5"


@pytest.mark.parametrize("other", [{"amount": "6"}, {"reason": "invoice 8"}])
async def test_a_key_belongs_to_one_credit(database: str, other: dict[str, str]) -> None:
    async with acme(database) as (_, browser):
        key = {"Idempotency-Key": "k"}
        await browser.post(f"{ACME}/credit", json=CREDIT, headers=key)
        answer = await browser.post(f"{ACME}/credit", json=CREDIT | other, headers=key)
        balance = (await browser.get(ACME)).json()["balance_usd"]
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (422, "idempotency_key_reused")
    assert "'k'" in error["message"]
    assert balance == "17.5"


async def test_without_a_key_every_credit_counts(database: str) -> None:
    async with acme(database) as (_, browser):
        for _ in range(2):
            assert (await browser.post(f"{ACME}/credit", json=CREDIT)).status_code == 204
        assert (await browser.get(ACME)).json()["balance_usd"] == "22.5"


@pytest.mark.parametrize("key", ["", "k" * 256, "ключ"])
async def test_what_cannot_be_a_key_is_refused(database: str, key: str) -> None:
    async with acme(database) as (_, browser):
        headers = {"Idempotency-Key": key.encode()}
        answer = await browser.post(f"{ACME}/credit", json=CREDIT, headers=headers)  # type: ignore[arg-type]  # bytes that are no text, too
        balance = (await browser.get(ACME)).json()["balance_usd"]
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (400, "invalid_request")
    assert error["message"].lower().startswith("idempotency-key: ")
    assert balance == "12.5"


async def test_the_document_tells_of_the_key(database: str) -> None:
    async with acme(database) as (_, browser):
        document = (await browser.get("/console/api/openapi.json")).json()
    operation = document["paths"]["/accounts/{account}/credit"]["post"]
    assert "idempotency-key" in [each["name"].lower() for each in operation["parameters"]]
    assert operation["responses"]["422"]["description"] == "The key belongs to another request"
    others = [
        told["responses"]
        for path in document["paths"].values()
        for told in path.values()
        if told is not operation
    ]
    assert not any("422" in responses for responses in others)


# -- providers ------------------------------------------------------------------------------------


@asynccontextmanager
async def listener(answer: Response) -> AsyncIterator[str]:
    """The gateway's private listener."""

    async def status(_: Request) -> Response:
        return answer

    config = hypercorn.config.Config()
    config.bind = ["127.0.0.1:0"]
    app = Starlette(routes=[Route("/status", status)])
    stop = trio.Event()
    async with trio.open_nursery() as nursery:

        async def serve(*, task_status: trio.TaskStatus[list[str]]) -> None:
            await hypercorn.trio.serve(
                app,  # type: ignore[arg-type]  # hypercorn has types of its own for ASGI
                config,
                shutdown_trigger=stop.wait,
                task_status=task_status,
            )

        (address,) = await nursery.start(serve)
        yield address
        stop.set()


STATUS = {
    "pid": 1,
    "processes": [],
    "upstreams": [
        {
            "name": "openai/gpt",
            "state": "open",
            "by": "upstream",
            "seconds": 12.5,
            "failures": 5,
            "cause": "timeout",
            "in_flight": 0,
            "limit": 0,
        }
    ],
}


async def test_providers_are_as_the_gateway_says(database: str) -> None:
    async with listener(JSONResponse(STATUS)) as address:
        facts = replace(FACTS, admin_url=address)
        async with acme(database, facts) as (_, browser):
            (upstream,) = (await browser.get(f"{ACME}/upstreams")).json()["upstreams"]
    assert upstream == {
        "name": "openai/gpt",
        "state": "open",
        "seconds": 12.5,
        "cause": "timeout",
        "in_flight": 0,
    }


async def test_a_gateway_that_says_nothing_is_no_fault_of_the_page(database: str) -> None:
    async with listener(Response("busy", 503)) as address:
        facts = replace(FACTS, admin_url=address)
        async with acme(database, facts) as (_, browser):
            answer = await browser.get(f"{ACME}/upstreams")
            page = await browser.get("/console/acme/models")
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "unavailable")
    assert page.status_code == 200
    assert "does not say" in page.text
