"""Tools in front of a whole gateway: what they do and cost is what the books say."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from functools import partial

import httpx2
import pytest
import trio

from console.links import sign_in_link
from tests.fakes.issuer import AUDIENCE, ISSUER, SECRET, by_secret
from tests.fakes.process import WITH_CONSOLE, GatewayProcess, serving
from tests.fakes.tools import TOOLS, ToolFailed, toolbox_at
from tests.fakes.waiting import eventually, until

CONFIG = f"""
[console]
jwt_secret = "{SECRET}"
issuer = "{ISSUER}"
audience = "{AUDIENCE}"
{WITH_CONSOLE}
workers = 2

[tiers.slow]
rpm = 1
"""
MODEL = "sandbox"
HELLO = [{"role": "user", "content": "Hello!"}]
FAR = 4_000_000_000
PATIENCE_SECONDS = 60


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    """`farebox serve` with its console, in front of the sandbox."""
    with serving(tmp_path_factory.mktemp("tools"), CONFIG) as process:
        loaded = "a console, which loads once the gateway serves"
        eventually(process.has_console, loaded, PATIENCE_SECONDS)
        yield process


async def session_token(gateway: GatewayProcess) -> str:
    """The token of a session of the operator, as the integrations page gives it."""
    link = await trio.to_thread.run_sync(sign_in_link, gateway.conninfo, "", datetime.now(UTC))
    async with httpx2.AsyncClient(
        base_url=gateway.base_url, headers={"sec-fetch-site": "same-origin"}, timeout=60
    ) as browser:
        one_time = {"token": link.rpartition("/")[2]}
        signed = await browser.post("/console/api/session/link", json=one_time)
        assert signed.status_code == 201, signed.text
        answer = await browser.post("/console/api/session/token")
        assert answer.status_code == 201, answer.text
        return str(answer.json()["token"])


def balance(gateway: GatewayProcess, account: str) -> Decimal:
    return Decimal(str(gateway.record("account", "show", account)["balance_usd"]))


async def until_balance(gateway: GatewayProcess, account: str, usd: Decimal) -> None:
    """Until all that the account was charged is in the books, and nothing more."""
    posted = "what was charged is in the books"
    await until(lambda: balance(gateway, account) <= usd, posted, PATIENCE_SECONDS)
    assert await trio.to_thread.run_sync(balance, gateway, account) == usd


@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_a_key_calls_all_seven_tools(gateway: GatewayProcess, mode: str) -> None:
    account = f"key-{mode}"
    gateway.record("account", "create", account, "--credit", "5.00")
    made = gateway.record("key", "create", f"{account}/web", "--scope", "keys", "--budget", "2.00")
    async with toolbox_at(gateway.base_url, str(made["key"]), mode) as box:
        listed = (await box.client.list_tools()).tools
        assert {tool.name for tool in listed} == TOOLS
        assert all(tool.description and tool.output_schema for tool in listed)

        models = await box.rows("models", "list_models", contains=MODEL)
        assert MODEL in {each["id"] for each in models}

        answered = await box.call("chat_completion", model=MODEL, messages=HELLO, max_tokens=20)
        assert answered["text"]
        cost = Decimal(str(answered["cost_usd"]))
        assert cost > 0
        await until_balance(gateway, account, Decimal("5.00") - cost)
        told = await box.call("get_balance")
        assert Decimal(str(told["balance_usd"])) == Decimal("5.00") - cost
        assert Decimal(str(told["key_budget_left_usd"])) == Decimal("2.00") - cost

        (latest,) = await box.rows("latest", "get_usage", days=2)
        assert latest["request_id"] == answered["request_id"]
        assert Decimal(str(latest["charge_usd"])) == cost
        assert latest["output_tokens"] == answered["output_tokens"]

        child = await box.call("create_api_key", project="web", name="child", budget_usd="0.50")
        keys = await box.rows("keys", "list_api_keys")
        assert [each["name"] for each in keys] == ["child", ""]
        child_id = keys[0]["key_id"]
        assert gateway.knows(str(child["secret"]))
        assert await box.call("revoke_api_key", key_id=child_id) == {
            "key_id": child_id,
            "revoked": True,
        }
        secret = str(child["secret"])
        eventually(lambda: not gateway.knows(secret), "the key's refusal", PATIENCE_SECONDS)


async def test_a_session_calls_all_seven_tools(gateway: GatewayProcess) -> None:
    gateway.record("account", "create", "sess", "--credit", "5.00")
    gateway.record("project", "create", "sess/web")
    token = await session_token(gateway)
    async with toolbox_at(gateway.base_url, token) as box:
        assert {tool.name for tool in (await box.client.list_tools()).tools} == TOOLS
        asked = {"model": MODEL, "messages": HELLO, "max_tokens": 20, "account": "sess"}
        first = await box.call("chat_completion", **asked, project="web")
        second = await box.call("chat_completion", **asked, project="web")
        cost = Decimal(str(first["cost_usd"])) + Decimal(str(second["cost_usd"]))
        await until_balance(gateway, "sess", Decimal("5.00") - cost)
        told = await box.call("get_balance", account="sess")
        assert Decimal(str(told["balance_usd"])) == Decimal("5.00") - cost

        (key,) = await box.rows("keys", "list_api_keys", account="sess")
        assert (key["name"], key["project"], key["scopes"]) == ("MCP of operator", "web", [])
        assert key["expires_at"] is not None
        await box.call("create_api_key", account="sess", project="web", name="made")
        made, _ = await box.rows("keys", "list_api_keys", account="sess")
        await box.call("revoke_api_key", account="sess", key_id=made["key_id"])
        used = await box.rows("latest", "get_usage", account="sess")
        assert [each["key_id"] for each in used] == [key["key_id"]] * 2
        assert (await box.call("list_models"))["models"]

        await box.call("revoke_api_key", account="sess", key_id=key["key_id"])
        refused = await box.refusal("chat_completion", **asked, project="web")
        assert "The key of this session was revoked" in refused


async def test_what_the_gateway_refuses_is_told_in_its_words(gateway: GatewayProcess) -> None:
    poor = gateway.new_key("poor", "0.000001")
    async with toolbox_at(gateway.base_url, poor) as box:
        asked = {"messages": HELLO, "max_tokens": 20}
        refused = await box.refusal("chat_completion", model=MODEL, **asked)
        assert "402 insufficient_credit" in refused
        assert "balance does not cover" in refused
        refused = await box.refusal("chat_completion", model="no-such-model", **asked)
        assert "404 model_not_available" in refused
        assert "no-such-model" in refused
    slow = gateway.new_key("slow", "5.00", "--tier", "slow")
    async with toolbox_at(gateway.base_url, slow) as box:
        await box.call("chat_completion", model=MODEL, **asked)
        refused = await box.refusal("chat_completion", model=MODEL, **asked)
        assert "429 rate_limit_exceeded" in refused
        assert "Try again after" in refused


async def test_a_key_that_ends_ends_for_tools_too(gateway: GatewayProcess) -> None:
    gateway.record("account", "create", "ends", "--credit", "1.00")
    made = gateway.record("key", "create", "ends/web")
    key = str(made["key"])
    async with toolbox_at(gateway.base_url, key) as box:
        assert (await box.call("get_balance"))["balance_usd"] == "1"
        gateway.run("key", "revoke", str(made["id"]))
        with pytest.raises(Exception, match="Server returned an error response"):
            await box.call("get_balance")


async def test_roles_hold(gateway: GatewayProcess) -> None:
    """A token of the issuer itself: somebody with an account of their own, and without credit."""
    token = by_secret(SECRET, None, sub="ann", email="ann@example.test", exp=FAR, iat=1)
    async with toolbox_at(gateway.base_url, token) as box:
        with pytest.raises(ToolFailed, match="You belong to no account"):
            await box.call("get_balance")
        assert "You belong to no account 'sess'" in await box.refusal("get_balance", account="sess")


@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_who_leaves_is_not_answered_any_more(gateway: GatewayProcess, mode: str) -> None:
    """As of any client: what is asked of a provider ends with who asked."""
    key = gateway.new_key(f"leaves-{mode}", "5.00")
    cut = {"status": "499", "model": "sandbox-silent"}
    started = gateway.calls(**cut)
    with trio.CancelScope() as leaving:
        async with toolbox_at(gateway.base_url, key, mode) as box, trio.open_nursery() as nursery:
            asked = {"model": "sandbox-silent", "messages": HELLO}
            nursery.start_soon(partial(box.call, "chat_completion", **asked))
            asking = "the request is at a provider"
            await until(partial(runs, gateway), asking, PATIENCE_SECONDS)
            leaving.cancel()
    assert await trio.to_thread.run_sync(partial(gateway.calls_since, started, **cut)) == 1


def runs(gateway: GatewayProcess) -> bool:
    """Whether the data plane has something to do."""
    running = [
        value
        for name, value in gateway.metrics().items()
        if name.startswith("farebox_upstream_in_flight")
    ]
    return sum(running) > 0
