"""Whoever was charged can see for what: right after the answer, and also where none was received.

A real gateway and its database, asked through the official SDK as any application would.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from decimal import Decimal
from typing import cast

import openai
import pytest
import trio
from openai import OpenAI

from tests.fakes.callers import call
from tests.fakes.process import LOOPBACK, GatewayProcess, serving

CALLS = 7
Json = dict[str, object]


@pytest.fixture(scope="module", params=[1, 2], ids=["one worker", "two workers"])
def gateway(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[GatewayProcess]:
    config = f"{LOOPBACK}workers = {request.param}\n"
    with serving(tmp_path_factory.mktemp("receipts"), config) as process:
        yield process


@pytest.fixture(scope="module")
def client(gateway: GatewayProcess) -> Iterator[OpenAI]:
    with client_of(gateway, gateway.new_key("acme")) as sdk:
        yield sdk


def client_of(gateway: GatewayProcess, key: str) -> OpenAI:
    return OpenAI(base_url=f"{gateway.base_url}/v1", api_key=key, max_retries=0)


def receipt(client: OpenAI, request_id: str) -> Json:
    return cast("Json", client.get(f"/usage/{request_id}", cast_to=object))


def ask(client: OpenAI, model: str = "sandbox") -> tuple[str, str]:
    """One call: its request id, and what the answer says it costs."""
    raw = client.chat.completions.with_raw_response.create(
        model=model, messages=[{"role": "user", "content": "Hi"}]
    )
    return raw.headers["x-request-id"], raw.headers["x-farebox-cost-usd"]


def test_a_receipt_is_there_as_soon_as_the_answer(gateway: GatewayProcess, client: OpenAI) -> None:
    """Whichever worker is asked for it: the second connection may be another's."""
    for _ in range(CALLS):
        request_id, cost = ask(client)
        with client_of(gateway, client.api_key) as another:
            found = receipt(another, request_id)
        assert found["object"] == "usage_receipt"
        assert found["request_id"] == request_id
        assert found["charge_usd"] == cost
        assert Decimal(cost) > 0
        assert (found["status"], found["billing_status"]) == ("settled", "charged")
        assert (found["account"], found["project"]) == ("acme", "default")
        assert (found["model"], found["upstream"]) == ("sandbox", "sandbox/sandbox")


async def test_a_client_that_left_mid_stream_has_its_receipt(
    gateway: GatewayProcess, client: OpenAI
) -> None:
    left = await call(
        gateway.base_url, client.api_key, "sandbox-stall", stream=True, leave_after=500
    )
    assert not left.complete
    found = await eventually(client, left.request_id)
    assert (found["status"], found["billing_status"]) == ("cancelled", "charged")
    assert Decimal(str(found["charge_usd"])) > 0
    assert cast("int", found["output_tokens"]) > 0


async def eventually(client: OpenAI, request_id: str) -> Json:
    """The receipt, once the gateway has seen that the client is gone."""
    for _ in range(200):
        try:
            return receipt(client, request_id)
        except openai.NotFoundError:
            await trio.sleep(0.05)
    raise AssertionError("there is no receipt")


def test_a_request_that_failed_has_a_receipt_of_nothing(client: OpenAI) -> None:
    with pytest.raises(openai.InternalServerError) as failed:
        ask(client, "sandbox-error-500")
    found = receipt(client, failed.value.response.headers["x-request-id"])
    assert (found["status"], found["billing_status"]) == ("failed", "voided")
    assert found["charge_usd"] == "0"
    attempts = cast("list[Json]", found["attempts"])
    assert len(attempts) > 1  # what may pass is tried again
    assert {attempt["upstream"] for attempt in attempts} == {"sandbox/sandbox-error-500"}
    assert {attempt["charge_usd"] for attempt in attempts} == {"0"}


def test_other_accounts_see_nothing(gateway: GatewayProcess, client: OpenAI) -> None:
    request_id, _ = ask(client)
    with client_of(gateway, gateway.new_key("other")) as other:
        with pytest.raises(openai.NotFoundError) as foreign:
            receipt(other, request_id)
        assert foreign.value.code == "not_found"
        assert cast("Json", other.get("/usage", cast_to=object))["data"] == []
    with pytest.raises(openai.NotFoundError):
        receipt(client, str(uuid.UUID(int=uuid.UUID(request_id).int ^ 1)))
    with pytest.raises(openai.BadRequestError, match="x-request-id"):
        receipt(client, "nothing")


def test_the_history_and_the_export_tell_the_same(gateway: GatewayProcess, client: OpenAI) -> None:
    receipt(client, ask(client)[0])  # everything before is posted as well
    exported = {
        str(record["request_id"]): record
        for record in gateway.records("usage", "export", "acme", "--format", "jsonl")
    }
    listed: list[Json] = []
    query: Json = {"limit": 3, "project": "default"}
    while True:
        page = cast("Json", client.get("/usage", cast_to=object, options={"params": query}))
        listed += cast("list[Json]", page["data"])
        if not page["has_more"]:
            break
        query["after"] = page["next"]
    assert [record["request_id"] for record in listed] == list(exported)[::-1]
    for record in listed:
        own = exported[str(record["request_id"])]
        assert {**record, "cost_usd": own["cost_usd"]} == {"object": "usage_record", **own}
    assert len(listed) > CALLS
