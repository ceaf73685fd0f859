"""A thousand mixed calls later, every nano-dollar is accounted for.

Plain and streamed answers, clients that leave, upstreams that fail in every way: the balance falls
by exactly the sum of usage × price × 1.10, each request rounded up once, and the books verify.
"""

from __future__ import annotations

import itertools
from collections import Counter
from decimal import ROUND_CEILING, Decimal
from pathlib import Path

import trio

from tests.fakes.callers import Outcome, call
from tests.fakes.process import GatewayProcess, serving

CALLS = 1000
AT_ONCE = 32
NANO = Decimal("1e-9")

KINDS: list[tuple[str, bool, int | None]] = [
    ("sandbox", False, None),
    ("sandbox", True, None),
    ("sandbox-no-usage", True, None),
    ("sandbox-no-usage", False, None),
    ("sandbox-usage-on-finish", True, None),
    ("sandbox-cached", True, None),
    ("sandbox-reasoning", False, None),
    ("sandbox-long", True, 2000),
    ("sandbox-long", True, None),
    ("sandbox-cut-40", True, None),
    ("sandbox-error-500", False, None),
    ("sandbox-error-429", True, None),
    ("sandbox-error-400", False, None),
    ("sandbox-error-in-stream", True, None),
    ("sandbox-empty", False, None),
    ("no-such-model", False, None),
]


async def run_calls(gateway: GatewayProcess, key: str) -> list[Outcome]:
    outcomes: list[Outcome] = []
    kinds = itertools.islice(itertools.cycle(KINDS), CALLS)

    async def caller() -> None:
        for model, stream, leave_after in kinds:
            outcomes.append(
                await call(gateway.base_url, key, model, stream=stream, leave_after=leave_after)
            )

    async with trio.open_nursery() as nursery:
        for _ in range(AT_ONCE):
            nursery.start_soon(caller)
    return outcomes


def exact_charge(record: dict[str, object], price: dict[str, str]) -> Decimal:
    """Usage × price × 1.10, rounded up to a nano-dollar once."""
    cached = int(str(record["cached_input_tokens"]))
    reasoning = int(str(record["reasoning_tokens"]))
    plain_in = int(str(record["input_tokens"])) - cached
    plain_out = int(str(record["output_tokens"])) - reasoning
    rate = {name: Decimal(value) for name, value in price.items()}
    exact = (
        plain_in * rate["input"]
        + cached * rate.get("cached_input", rate["input"])
        + plain_out * rate["output"]
        + reasoning * rate.get("reasoning", rate["output"])
    ) / 1_000_000
    return (exact * Decimal("1.10")).quantize(NANO, ROUND_CEILING)


async def test_a_thousand_mixed_calls_balance_to_the_nano_dollar(tmp_path: Path) -> None:
    with serving(tmp_path) as gateway:
        key = gateway.new_key("acme", "100.00")
        before = Decimal(str(gateway.record("account", "show", "acme")["balance_usd"]))
        outcomes = await run_calls(gateway, key)
        assert len(outcomes) == CALLS
        statuses = Counter(outcome.status for outcome in outcomes)
        assert statuses[200] > CALLS / 2, statuses

        prices = {str(model["id"]): model["pricing"] for model in await listed_models(gateway, key)}
        assert gateway.stop() == 0  # everything is posted, all leases are back
        account = gateway.record("account", "show", "acme")
        records = gateway.records("usage", "export", "acme", "--format", "jsonl")
        gateway.run("ledger", "verify")

        charged = Decimal(0)
        for record in records:
            charge = Decimal(str(record["charge_usd"]))
            charged += charge
            if record["billing_status"] == "charged":
                price = prices[str(record["model"])]
                assert isinstance(price, dict)
                assert charge == exact_charge(record, price), record
            else:
                assert charge == 0
        assert before - Decimal(str(account["balance_usd"])) == charged > 0
        assert Decimal(str(account["reserved_usd"])) == 0

        ids = Counter(str(record["request_id"]) for record in records)
        assert max(ids.values()) == 1
        answered = {o.request_id for o in outcomes if o.complete and o.status == 200}
        assert answered <= ids.keys()
        gateway.start()  # `serving` ends what it began


async def listed_models(gateway: GatewayProcess, key: str) -> list[dict[str, object]]:
    import json
    import urllib.request

    request = urllib.request.Request(  # noqa: S310 - loopback
        f"{gateway.base_url}/v1/models", headers={"authorization": f"Bearer {key}"}
    )

    def fetch() -> bytes:
        with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310 - loopback
            body: bytes = answer.read()
            return body

    data: list[dict[str, object]] = json.loads(await trio.to_thread.run_sync(fetch))["data"]
    return data
