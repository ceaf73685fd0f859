"""What the books must say after all of it, given what the clients know.

Every answer that a client received completely was charged once, with the amount that its usage
costs; nothing is held any more; nobody was charged more than they had.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal

from adapters import sse
from tests.crash.load import CUSTOMERS, Customer, Load
from tests.fakes.callers import Outcome
from tests.fakes.process import GatewayProcess

INPUT_USD = Decimal("1.00")  # per million tokens
OUTPUT_USD = Decimal("4.00")
MARGIN = Decimal("1.10")
_NANO = Decimal("1e-9")

Record = Mapping[str, object]


@dataclass
class Verdict:
    """Figures, and every sentence that should not have been possible."""

    answered: int = 0
    charged: int = 0
    free: int = 0
    charged_usd: Decimal = Decimal(0)
    problems: tuple[str, ...] = ()


def judge(gateway: GatewayProcess, load: Load) -> Verdict:
    """Compare, once the gateway has drained."""
    gateway.run("ledger", "verify")
    gateway.run("ledger", "journal", "verify")
    verdict = Verdict()
    problems = list(load.wrong)
    for customer in CUSTOMERS:
        records = gateway.records("usage", "export", customer.account, "--format", "jsonl")
        shown = gateway.record("account", "show", customer.account)
        answered = load.answered.get(customer.account, [])
        problems += _problems(customer, shown, records, answered)
        verdict.answered += len(answered)
        verdict.charged += sum(record["billing_status"] == "charged" for record in records)
        verdict.free += sum(record["billing_status"] != "charged" for record in records)
        verdict.charged_usd += _total(records)
    verdict.problems = tuple(problems)
    return verdict


def _total(records: list[dict[str, object]]) -> Decimal:
    return sum((Decimal(str(record["charge_usd"])) for record in records), Decimal(0))


def _problems(
    customer: Customer,
    shown: Record,
    records: list[dict[str, object]],
    answered: list[Outcome],
) -> Iterator[str]:
    name = customer.account
    by_request = {str(record["request_id"]): record for record in records}
    for request_id, count in Counter(str(record["request_id"]) for record in records).items():
        if count > 1:
            yield f"{name}: request {request_id} has {count} events"
    for outcome in answered:
        record = by_request.get(outcome.request_id)
        if record is None or record["billing_status"] != "charged":
            yield f"{name}: the answer {outcome.request_id} is not charged"
        else:
            yield from _wrongly_charged(name, outcome, record)
    total = _total(records)
    if total > customer.spendable:
        yield f"{name}: {total} charged, of {customer.spendable}"
    if Decimal(str(shown["reserved_usd"])):
        yield f"{name}: {shown['reserved_usd']} is still reserved"
    balance = Decimal(str(shown["balance_usd"]))
    if balance < 0 or balance != customer.credit - total:
        yield f"{name}: the balance is {balance}, after {total} of {customer.credit}"


def _wrongly_charged(name: str, outcome: Outcome, record: Record) -> Iterator[str]:
    tokens = (int(str(record["input_tokens"])), int(str(record["output_tokens"])))
    charge = Decimal(str(record["charge_usd"]))
    exact = (tokens[0] * INPUT_USD + tokens[1] * OUTPUT_USD) / 1_000_000 * MARGIN
    if charge != exact.quantize(_NANO, ROUND_CEILING):
        yield f"{name}: {charge} charged for {tokens} tokens ({outcome.request_id})"
    told = outcome.headers.get("x-farebox-cost-usd")
    if told is not None and Decimal(told) != charge:
        yield f"{name}: {told} told, {charge} charged ({outcome.request_id})"
    usage = usage_of(outcome)
    if usage is not None and usage != tokens:
        yield f"{name}: usage {usage} told, {tokens} recorded ({outcome.request_id})"


def usage_of(outcome: Outcome) -> tuple[int, int] | None:
    """Prompt and completion tokens as the client was told; None where it was not."""
    if outcome.headers.get("content-type", "").startswith("text/event-stream"):
        payloads = [sse.data_of(event) for event in sse.Splitter().feed(outcome.body)]
        chunks = [json.loads(payload) for payload in payloads if payload.startswith(b"{")]
    else:
        chunks = [json.loads(outcome.body)]
    told = [chunk["usage"] for chunk in chunks if chunk.get("usage")]
    if not told:
        return None
    return int(told[-1]["prompt_tokens"]), int(told[-1]["completion_tokens"])
