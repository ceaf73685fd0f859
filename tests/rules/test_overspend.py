"""A thousand requests at once for ten cents, at two nodes with two workers each, on one Postgres.

Whatever the scarce pool is (the balance, or the budget of a project or key): never more is charged
than it has; all of it can be spent, at either node; whoever is refused is told figures that explain
it; and while Postgres is there, no answer says that the ledger does not know.
"""

from __future__ import annotations

import itertools
import json
import random
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from pathlib import Path

import pytest
import trio

from tests.fakes.callers import Outcome, call
from tests.fakes.process import (
    LOOPBACK,
    GatewayProcess,
    sandbox_process,
    serving,
)

CREDIT = Decimal("0.10")
REQUESTS = 1000
NODES = 2
UNUSABLE = Decimal("0.001")
TOP_UP = Decimal("0.01")
EFFECTIVE_SECONDS = 3.0  # the promise is one; other tests may share the machine
SETTLED_SECONDS = 10
SECRET = "5e" * 32  # of the whole fleet: keys are hashed with it
LARGEST = 1_000_000  # output tokens that ten cents do not buy
CHUNK = 2000

MODELS = ("sandbox", "sandbox-slow", "sandbox-long")
PRICED = """
[[models]]
id = "{model}"
upstreams = ["chat/{model}"]
price = {{ input = "1.00", output = "4.00" }}
"""


@dataclass(frozen=True)
class Scarce:
    """What has no more than CREDIT: `kind` is balance, project or key."""

    kind: str
    reserve: str

    @property
    def account_credit(self) -> str:
        return str(CREDIT) if self.kind == "balance" else "100.00"


@contextmanager
def fleet(directory: Path, database: str, reserve: str) -> Iterator[list[GatewayProcess]]:
    """Gateways of two workers each, on one database, with one provider."""
    with ExitStack() as stack:
        origin = stack.enter_context(sandbox_process())
        config = (
            f'{LOOPBACK}workers = 2\nsecret = "{SECRET}"\n'
            f"[database]\nurl = {json.dumps(database)}\n"
            f'[billing]\nreserve = "{reserve}"\n'
            f'[[providers]]\nname = "chat"\nprotocol = "openai"\n'
            f'base_url = "{origin}/v1"\napi_key = "sandbox"\n'
            + "".join(PRICED.format(model=model) for model in MODELS)
        )
        gateways = []
        for number in range(NODES):
            folder = directory / f"node-{number}"
            folder.mkdir()
            gateways.append(stack.enter_context(serving(folder, config)))
        yield gateways


def new_key(gateways: Sequence[GatewayProcess], scarce: Scarce) -> str:
    """A key with CREDIT to spend."""
    first = gateways[0]
    first.record("account", "create", "acme", "--credit", scarce.account_credit)
    budget = ["--budget", str(CREDIT)]
    if scarce.kind == "project":
        first.record("project", "create", "acme/poor", *budget)
    options = budget if scarce.kind == "key" else []
    return str(first.record("key", "create", "acme/poor", *options)["key"])


async def storm(gateways: Sequence[GatewayProcess], key: str, seed: int) -> list[Outcome]:
    """All requests at once, of every size, plain and streamed, at all nodes."""
    outcomes: list[Outcome] = []
    dice = random.Random(seed)

    async def caller(gateway: GatewayProcess, model: str, stream: bool, cap: int | None) -> None:
        outcomes.append(await call(gateway.base_url, key, model, stream=stream, max_tokens=cap))

    async with trio.open_nursery() as nursery:
        for number in range(REQUESTS):
            nursery.start_soon(
                caller,
                gateways[number % NODES],
                dice.choice(MODELS),
                dice.random() < 0.5,
                dice.choice([20, 60, 200, 600, 2000, None]),
            )
    return outcomes


def usd(outcome: Outcome, name: str) -> Decimal:
    return Decimal(str(json.loads(outcome.body, parse_float=Decimal)["error"][name]))


def affordable(outcome: Outcome) -> int:
    return int(usd(outcome, "affordable_output_tokens"))


def assert_explained(refused: Outcome) -> None:
    """What a 402 says adds up: so much is left, and it is not enough."""
    balance, reserved = usd(refused, "balance_usd"), usd(refused, "reserved_usd")
    assert 0 <= reserved <= balance <= CREDIT, refused.body
    assert usd(refused, "required_usd") > balance - reserved, refused.body
    assert affordable(refused) >= 0
    assert refused.headers["x-should-retry"] == "false"


async def nothing_reserved(gateways: Sequence[GatewayProcess]) -> None:
    """Wait until no request runs any more."""
    deadline = time.monotonic() + SETTLED_SECONDS
    for gateway in gateways:
        while True:
            metrics = await trio.to_thread.run_sync(gateway.metrics)
            if not metrics["farebox_ledger_open_reservations"]:
                break
            assert time.monotonic() < deadline, "a reservation is stuck"


async def spend_down(gateways: Sequence[GatewayProcess], key: str) -> list[Outcome]:
    """Nobody else spends: what a refusal says is affordable is served, at the other node."""
    served: list[Outcome] = []
    turns = itertools.cycle(gateways)
    while True:
        refused = await call(next(turns).base_url, key, "sandbox-long", max_tokens=LARGEST)
        assert refused.status == 402, refused.body
        assert_explained(refused)
        if not (fits := affordable(refused)):
            return served
        answer = await call(next(turns).base_url, key, "sandbox-long", max_tokens=min(fits, CHUNK))
        assert answer.status == 200, (refused.body, answer.body)
        served.append(answer)
        next(turns)  # each node asks and serves in turn


async def spend_crumbs(
    gateways: Sequence[GatewayProcess], key: str
) -> tuple[list[Outcome], Decimal]:
    """The smallest requests until every node refuses them; also what one would have needed."""
    served: list[Outcome] = []
    for gateway in [*gateways, *gateways]:
        while True:
            answer = await call(gateway.base_url, key, "sandbox", max_tokens=1)
            if answer.status != 200:
                break
            served.append(answer)
        assert answer.status == 402, answer.body
        assert_explained(answer)
    return served, usd(answer, "required_usd")


@pytest.mark.parametrize(
    "scarce",
    [
        Scarce("balance", "full"),
        Scarce("balance", "adaptive"),
        Scarce("project", "full"),
        Scarce("key", "adaptive"),
    ],
    ids=lambda scarce: f"{scarce.kind}-{scarce.reserve}",
)
async def test_ten_cents_are_spent_to_the_end_and_never_twice(
    tmp_path: Path, database: str, scarce: Scarce
) -> None:
    with fleet(tmp_path, database, scarce.reserve) as gateways:
        key = await trio.to_thread.run_sync(new_key, gateways, scarce)
        outcomes = await storm(gateways, key, seed=1)
        statuses = Counter((outcome.status, outcome.code) for outcome in outcomes)
        assert {status for status, _ in statuses} == {200, 402}, statuses
        for outcome in outcomes:
            if outcome.status == 402:
                assert_explained(outcome)

        await nothing_reserved(gateways)
        outcomes += await spend_down(gateways, key)
        crumbs, smallest = await spend_crumbs(gateways, key)
        outcomes += crumbs
        if scarce.kind == "balance":
            outcomes += await usable_after_top_up(gateways, key)

        for gateway in gateways:
            assert gateway.stop() == 0, gateway.tail()
        first = gateways[0]
        first.run("ledger", "verify")
        records = first.records("usage", "export", "acme", "--format", "jsonl")
        account = first.record("account", "show", "acme")
        for gateway in gateways:
            gateway.start()  # `serving` ends what it began

    answered = {o.request_id for o in outcomes if o.status == 200}
    charged = Counter(str(r["request_id"]) for r in records if r["billing_status"] == "charged")
    assert all(outcome.complete for outcome in outcomes)
    assert charged == Counter(answered)
    total = sum((Decimal(str(record["charge_usd"])) for record in records), Decimal(0))
    to_spend = CREDIT + TOP_UP if scarce.kind == "balance" else CREDIT
    assert to_spend - max(CREDIT * UNUSABLE, smallest) < total <= to_spend
    assert account["reserved_usd"] == "0"
    credited = Decimal(str(account["credited_usd"]))
    assert Decimal(str(account["balance_usd"])) == credited - total >= 0


async def usable_after_top_up(gateways: Sequence[GatewayProcess], key: str) -> list[Outcome]:
    """More credit is there for every worker of both nodes, and is spent as well."""
    credit = partial(gateways[0].record, "credit", "acme", str(TOP_UP), "--reason", "more")
    await trio.to_thread.run_sync(credit)
    credited = time.monotonic()
    for gateway in gateways:
        refused = await call(gateway.base_url, key, "sandbox", max_tokens=LARGEST)
        while affordable(refused) == 0:
            assert time.monotonic() < credited + EFFECTIVE_SECONDS, refused.body
            refused = await call(gateway.base_url, key, "sandbox", max_tokens=LARGEST)
    served = await spend_down(gateways, key)
    crumbs, _ = await spend_crumbs(gateways, key)
    return served + crumbs
