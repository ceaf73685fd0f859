"""An account with a month behind it, so that pages have something to show.

`furnish` makes it in a running shop: keys with names, budgets, members, payments, and some ten
thousand requests of all models, by prices of the price list, with quiet nights and weekends, rising
slowly, a few of them failed. All from one seed. Books filled like this do not balance: nobody may
check them.
"""

from __future__ import annotations

import math
import random
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import psycopg

from ledger.directory import Directory
from ledger.money import parse_usd
from tests.fakes.history import holder
from tests.fakes.shop import MODELS, Shop, eventually

ACCOUNT = "northwind"
DAYS = 31
REQUESTS = 9000
CREDIT = "420.00"
MARGIN = 1.10

_SEED = 7
# How often a model is asked; the middle of its input and output tokens, and of its first byte, ms.
_HABITS: Mapping[str, tuple[float, int, int, int]] = {
    "claude-sonnet-5": (0.26, 5200, 620, 780),
    "gpt-5.4": (0.22, 3400, 480, 640),
    "gpt-5.4-mini": (0.24, 1900, 260, 310),
    "claude-opus-4-8": (0.05, 7800, 900, 1150),
    "gemini-3.5-flash": (0.16, 4100, 380, 420),
    "text-embedding-3-small": (0.07, 900, 0, 90),
}
_SETTLED, _CANCELLED, _FAILED = 1, 3, 5
_COLUMNS = (
    "recorded_at, occurred_at, seq, account_id, key_id, price_id, reserved, cost, charge,"
    " holder_id, model_id, provider_id, tok_in, tok_cached, tok_out, tok_reason, ttfb_ms,"
    " duration_ms, status, endpoint, request_id"
)
_BATCH_COLUMNS = "holder_id, last_seq, first_seq, recorded_at, events, cost, charge"
_PAYMENTS = """
INSERT INTO console.payment
  (payment_id, account_id, kind, state, amount, received, receipt_url, invoice_url, failure,
   created_at, paid_at)
SELECT gen_random_uuid(), %(account_id)s, p.kind, p.state, p.usd * 1000000000::bigint,
       CASE WHEN p.state = 'succeeded' THEN p.usd * 1000000000::bigint ELSE 0 END,
       CASE WHEN p.state = 'succeeded' THEN 'https://pay.example.test/receipt' ELSE '' END,
       CASE WHEN p.kind = 'top_up' AND p.state = 'succeeded'
            THEN 'https://pay.example.test/invoice' ELSE '' END,
       p.failure, now() - p.days * interval '1 day',
       CASE WHEN p.state = 'succeeded' THEN now() - p.days * interval '1 day' END
  FROM (VALUES ('top_up', 'succeeded', 250, 29, ''), ('recharge', 'succeeded', 50, 17, ''),
               ('recharge', 'failed', 50, 9, 'Your card has insufficient funds.'),
               ('recharge', 'succeeded', 50, 8, ''), ('top_up', 'succeeded', 70, 2, ''))
       AS p (kind, state, usd, days, failure)
"""
_CARD = """
INSERT INTO console.stripe_customer
  (account_id, customer_id, payment_method, card_brand, card_last4, card_exp_month, card_exp_year)
VALUES (%s, 'cus_northwind', 'pm_northwind', 'visa', '4242', 12, 2030)
"""
_RECHARGE = """
INSERT INTO console.recharge (account_id, enabled, threshold, amount, monthly_cap)
VALUES (%s, true, 25000000000, 50000000000, 300000000000)
"""
_PEOPLE = """
WITH person AS (
  INSERT INTO console.user (issuer, subject, email, created_at)
  SELECT 'https://id.example.test', p.name, p.name || '@northwind.example', now()
    FROM unnest(ARRAY['ada', 'bo', 'carla', 'dev']) AS p (name) RETURNING user_id, subject, email
), member AS (
  INSERT INTO console.member (account_id, user_id, role, created_at)
  SELECT %(account_id)s, p.user_id, r.role, now() - r.days * interval '1 day'
    FROM person p
    JOIN (VALUES ('ada', 'owner', 64), ('bo', 'admin', 60), ('carla', 'developer', 41),
                 ('dev', 'viewer', 12)) AS r (name, role, days) ON r.name = p.subject
)
INSERT INTO console.audit (at, account_id, user_id, actor, address, action, target, detail)
SELECT now() - n.hours * interval '1 hour', %(account_id)s, p.user_id, p.email, '192.0.2.17',
       n.action, n.target, n.detail::jsonb
  FROM (VALUES ('ada', 1400, 'account.create', 'account northwind', '{}'),
               ('ada', 690, 'topup.start', 'account northwind', '{"amount": "250"}'),
               ('bo', 610, 'project.create', 'project agents', '{}'),
               ('carla', 400, 'key.create', 'key 4', '{"budget_usd": "200", "project": "agents"}'),
               ('bo', 290, 'member.invite', 'dev@northwind.example', '{"role": "viewer"}'),
               ('ada', 30, 'recharge.set', 'account northwind',
                '{"threshold": "25", "amount": "50", "monthly_cap": "300"}'))
       AS n (name, hours, action, target, detail) JOIN person p ON p.subject = n.name
 ORDER BY n.hours DESC
"""
_SPENT = """
UPDATE ledger.pool SET spent = spent + %(spent)s, available = available - %(spent)s
 WHERE pool_id = %(account_id)s
"""
_OPENED = "UPDATE directory.account SET created_at = now() - interval '64 days' WHERE name = %s"


@dataclass(frozen=True)
class Sort:
    """What requests of one model have in common; prices are dollars per million tokens."""

    model: str
    model_id: int
    provider_id: int
    price_id: int
    endpoint: int
    prices: Mapping[str, float]


def furnish(shop: Shop) -> str:
    """Make the account; returns one of its keys."""
    with Directory(shop.conninfo) as directory:
        directory.create_account(ACCOUNT, tier="pro", credit=parse_usd(CREDIT))
    keys = [
        _key(shop, "web", "storefront chat"),
        _key(shop, "web", "search", "--budget", "120.00", "--budget-period", "month"),
        _key(shop, "agents", "support triage", "--budget", "200.00", "--expires", "90d"),
        _key(shop, "agents", "nightly reports", "--models", "claude-opus-4-8,claude-sonnet-5"),
        _key(shop, "research", "notebooks", "--expires", "30d"),
    ]
    _ask_every_model(shop, keys[0][1])
    with psycopg.connect(shop.conninfo) as connection:
        account_id, sorts = _known(connection)
        spent = _fill(connection, account_id, [key_id for key_id, _ in keys], sorts)
        connection.execute(_SPENT, {"spent": spent, "account_id": account_id})
        connection.execute(_PAYMENTS, {"account_id": account_id})
        connection.execute(_PEOPLE, {"account_id": account_id})
        connection.execute(_CARD, [account_id])
        connection.execute(_RECHARGE, [account_id])
        connection.execute(_OPENED, [ACCOUNT])
    _ask_every_model(shop, keys[0][1])
    return keys[0][1]


def _key(shop: Shop, project: str, name: str, *options: str) -> tuple[int, str]:
    made = shop.gateway.record("key", "create", f"{ACCOUNT}/{project}", "--name", name, *options)
    return int(str(made["id"])), str(made["key"])


def _ask_every_model(shop: Shop, key: str) -> None:
    """Real requests, so that the directory knows models, providers and prices."""
    prompt = "Write a short, friendly reply to a customer whose parcel is late. " * 12
    with shop.client(key) as client:
        for model in _HABITS:
            if model.startswith("text-embedding"):
                client.embeddings.create(model=model, input=prompt)
            else:
                client.chat.completions.create(
                    model=model,
                    max_completion_tokens=400,
                    messages=[{"role": "user", "content": prompt}],
                )


def _known(connection: psycopg.Connection) -> tuple[int, list[Sort]]:
    asked = len(_HABITS)

    def posted() -> bool:
        row = connection.execute("SELECT count(*) FROM ledger.usage_event WHERE status = 1")
        connection.commit()
        ((count,),) = row.fetchall()
        return int(count) >= asked

    eventually(posted, "the first requests in the books")
    rows = connection.execute(
        """
        SELECT DISTINCT ON (m.name) e.account_id, m.name, e.model_id, e.provider_id, e.price_id,
               e.endpoint, r.components
          FROM ledger.usage_event e JOIN directory.model m USING (model_id)
          JOIN directory.price r USING (price_id)
         WHERE e.status = 1 ORDER BY m.name
        """
    ).fetchall()
    sorts = [
        Sort(name, model_id, provider_id, price_id, endpoint, _dollars(components))
        for _, name, model_id, provider_id, price_id, endpoint, components in rows
    ]
    assert {each.model for each in sorts} == {name for names in MODELS.values() for name in names}
    return int(rows[0][0]), sorts


def _dollars(components: Mapping[str, object]) -> Mapping[str, float]:
    return {unit: float(str(nano)) / 1e9 for unit, nano in components.items() if unit}


def _fill(
    connection: psycopg.Connection, account_id: int, key_ids: Sequence[int], sorts: Sequence[Sort]
) -> int:
    """The requests, each in a batch of its own; what they cost the account, in nano-dollars."""
    chance = random.Random(_SEED)
    holder_id = holder(connection, "filled")
    weights = [_HABITS[each.model][0] for each in sorts]
    moments = sorted(_moments(chance))
    spent = 0
    events: list[tuple[object, ...]] = []
    for seq, at in enumerate(moments, 1):
        (sort,) = chance.choices(sorts, weights)
        event, charge = _event(chance, sort, at)
        key_id = key_ids[min(int(chance.expovariate(0.7)), len(key_ids) - 1)]
        spent += charge
        events.append((at, at, seq, account_id, key_id, *event[:4], holder_id, *event[4:]))
    with connection.cursor() as cursor:
        with cursor.copy(f"COPY ledger.usage_event ({_COLUMNS}) FROM STDIN") as copy:
            for row in events:
                copy.write_row(row)
        with cursor.copy(f"COPY ledger.batch ({_BATCH_COLUMNS}) FROM STDIN") as copy:
            for seq, at in enumerate(moments, 1):
                copy.write_row((holder_id, seq, seq, at, 1, 0, 0))
        cursor.execute(
            "UPDATE ledger.holder_progress SET applied_seq = %s WHERE holder_id = %s",
            [len(moments), holder_id],
        )
    return spent


def _moments(chance: random.Random) -> Iterator[datetime]:
    """When requests came: mostly by day, on weekdays, and more lately."""
    now = datetime.now(UTC) - timedelta(minutes=3)
    made = 0
    while made < REQUESTS:
        at = now - timedelta(days=DAYS * chance.random())
        likely = 0.35 + 0.65 * math.exp(-(((at.hour + at.minute / 60 - 14) / 4.5) ** 2))
        likely *= 0.42 if at.weekday() >= 5 else 1.0
        likely *= 1 - 0.5 * (now - at) / timedelta(days=DAYS)
        if chance.random() < likely:
            made += 1
            yield at


def _event(chance: random.Random, sort: Sort, at: datetime) -> tuple[tuple[object, ...], int]:
    """An event from its price on, and its charge."""
    _, usual_input, usual_output, usual_first = _HABITS[sort.model]
    status = chance.choices((_SETTLED, _CANCELLED, _FAILED), (97.4, 1.2, 1.4))[0]
    given = round(usual_input * chance.lognormvariate(0, 0.7))
    cached = round(given * chance.choice((0, 0, 0.3, 0.6)))
    written = round(usual_output * chance.lognormvariate(0, 0.6)) if usual_output else 0
    first = round(usual_first * chance.lognormvariate(0, 0.45))
    lasted = first + round(written * chance.uniform(7, 12))
    if status == _FAILED:
        given, cached, written, first = 0, 0, 0, 0
    elif status == _CANCELLED:
        written //= 3
    input_price = sort.prices.get("input", 0.0)
    usd = (
        (given - cached) * input_price
        + cached * sort.prices.get("cached_input", input_price)
        + written * sort.prices.get("output", 0.0)
    ) / 1e6
    cost = round(usd * 1e9)
    charge = math.ceil(cost * MARGIN)
    facts = (
        sort.price_id,
        max(charge * 3, 1),
        cost,
        charge,
        sort.model_id,
        sort.provider_id,
        given,
        cached,
        written,
        0,
        first,
        lasted,
        status,
        sort.endpoint,
        _request_id(chance, at),
    )
    return facts, charge


def _request_id(chance: random.Random, at: datetime) -> uuid.UUID:
    """UUIDv7 (RFC 9562 §5.7)."""
    milliseconds = int(at.timestamp() * 1000)
    number = milliseconds << 80 | 7 << 76 | chance.getrandbits(12) << 64
    return uuid.UUID(int=number | 2 << 62 | chance.getrandbits(62))
