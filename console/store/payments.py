"""Payments in Postgres: customers and their cards, payments, what takes them back, notices.

What moves money does so through the functions of the ledger, whose references make each posting
happen once: a payment is its PaymentIntent, a refund or dispute its own id and the number of the
posting, a fee its balance transaction.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal
from uuid import UUID

from psycopg.rows import class_row
from psycopg.types.json import Jsonb

from console.store import Connection

PaymentKind = Literal["top_up", "recharge"]
PaymentState = Literal["open", "processing", "succeeded", "failed", "canceled"]
ReversalKind = Literal["refund", "dispute"]

TOP_UP, REFUND, DISPUTE = 1, 3, 7  # transfer codes
_CLEARING = 4  # gl_account: what Stripe holds for us
_CODES: Mapping[ReversalKind, int] = {"refund": REFUND, "dispute": DISPUTE}

_PAYMENT = """
payment_id, account_id, kind, state, amount, received, taken_back, session_id, payment_intent,
receipt_url, invoice_url, failure, turn, created_at, fetched_at, paid_at
"""
_FIND = f"SELECT {_PAYMENT} FROM console.payment WHERE payment_id = %s"  # noqa: S608
_FIND_BY_INTENT = f"SELECT {_PAYMENT} FROM console.payment WHERE payment_intent = %s"  # noqa: S608
_FIND_BY_SESSION = f"SELECT {_PAYMENT} FROM console.payment WHERE session_id = %s"  # noqa: S608
_OPEN = f"""
INSERT INTO console.payment (payment_id, account_id, kind, amount, created_at)
VALUES (%(payment_id)s, %(account_id)s, %(kind)s, %(amount)s, %(now)s)
RETURNING {_PAYMENT}
"""  # noqa: S608
_BEGIN_TURN = f"""
UPDATE console.payment SET turn = turn + 1, fetched_at = %s WHERE payment_id = %s
RETURNING {_PAYMENT}
"""  # noqa: S608
_LOCK_TURN = f"""
SELECT {_PAYMENT} FROM console.payment WHERE payment_id = %s AND turn = %s FOR UPDATE
"""  # noqa: S608
_PAGE = f"""
SELECT {_PAYMENT} FROM console.payment
 WHERE account_id = %(account_id)s AND (created_at, payment_id) < (%(before)s, %(before_id)s)
 ORDER BY created_at DESC, payment_id DESC LIMIT %(rows)s
"""  # noqa: S608
_UNFINISHED = f"""
SELECT {_PAYMENT} FROM console.payment
 WHERE state IN ('open', 'processing') AND kind = 'top_up' AND session_id IS NOT NULL
   AND created_at < %(created_before)s AND fetched_at < %(fetched_before)s
 ORDER BY created_at LIMIT %(rows)s
"""  # noqa: S608
_CUSTOMER = """
SELECT account_id, creation_key, customer_id, payment_method, card_brand, card_last4,
       card_exp_month, card_exp_year
  FROM console.stripe_customer WHERE account_id = %s
"""
_SAVE_CARD = """
UPDATE console.stripe_customer
   SET payment_method = %s, card_brand = %s, card_last4 = %s, card_exp_month = %s,
       card_exp_year = %s
 WHERE account_id = %s AND customer_id IS NOT NULL AND (payment_method = %s OR NOT %s)
"""
_SAVE_REVERSAL = """
INSERT INTO console.reversal (reversal_id, payment_id, kind, status, amount, created_at, changed_at)
VALUES (%(reversal_id)s, %(payment_id)s, %(kind)s, %(status)s, %(amount)s, %(now)s, %(now)s)
ON CONFLICT (reversal_id) DO UPDATE SET status = excluded.status, amount = excluded.amount,
  changed_at = CASE WHEN console.reversal.status = excluded.status
                    THEN console.reversal.changed_at ELSE excluded.changed_at END
RETURNING posted, postings
"""
_UNKNOWN_TRANSACTIONS = """
SELECT u.id FROM unnest(%s::text[]) AS u(id)
 WHERE NOT EXISTS (SELECT FROM console.stripe_transaction t WHERE t.transaction_id = u.id)
"""


@dataclass(frozen=True, slots=True)
class CustomerRow:
    """An account at Stripe, and its saved card."""

    account_id: int
    creation_key: UUID
    customer_id: str | None
    payment_method: str | None
    card_brand: str
    card_last4: str
    card_exp_month: int
    card_exp_year: int


@dataclass(frozen=True, slots=True)
class PaymentRow:
    """A payment; amounts in nano-dollars."""

    payment_id: UUID
    account_id: int
    kind: PaymentKind
    state: PaymentState
    amount: int
    received: int
    taken_back: int
    session_id: str | None
    payment_intent: str | None
    receipt_url: str
    invoice_url: str
    failure: str
    turn: int
    created_at: datetime
    fetched_at: datetime
    paid_at: datetime | None


@dataclass(frozen=True, slots=True)
class ReversalRow:
    """A refund or dispute of a payment, and what it takes from the account now."""

    reversal_id: str
    payment_id: UUID
    kind: ReversalKind
    status: str
    amount: int
    posted: int
    created_at: datetime


# -- customers and cards --------------------------------------------------------------------------


def instance(connection: Connection) -> UUID:
    """What whatever we make at Stripe is marked with."""
    row = connection.execute("SELECT instance FROM console.stripe").fetchone()
    assert row is not None, "the migration made it"
    found = row[0]
    assert isinstance(found, UUID)
    return found


def customer(connection: Connection, account_id: int) -> CustomerRow:
    """The account's row, made where there is none."""
    connection.execute(
        "INSERT INTO console.stripe_customer (account_id) VALUES (%s) ON CONFLICT DO NOTHING",
        [account_id],
    )
    with connection.cursor(row_factory=class_row(CustomerRow)) as cursor:
        found = cursor.execute(_CUSTOMER, [account_id]).fetchone()
        assert found is not None, "it was just made"
        return found


def set_customer_id(connection: Connection, known: CustomerRow, customer_id: str) -> None:
    """Remember whom Stripe made for this creation key."""
    connection.execute(
        "UPDATE console.stripe_customer SET customer_id = %s"
        " WHERE account_id = %s AND creation_key = %s",
        [customer_id, known.account_id, known.creation_key],
    )


def forget_customer(connection: Connection, known: CustomerRow) -> None:
    """Stripe does not know it (any more): the next call makes another."""
    connection.execute(
        "UPDATE console.stripe_customer SET creation_key = gen_random_uuid(), customer_id = NULL,"
        " payment_method = NULL WHERE account_id = %s AND creation_key = %s",
        [known.account_id, known.creation_key],
    )


def save_card(
    connection: Connection,
    account_id: int,
    payment_method: str,
    brand: str,
    last4: str,
    exp_month: int,
    exp_year: int,
    *,
    renewed: bool = False,
) -> None:
    """This is the card for payments without its owner. One that was `renewed` is so only where it
    is the saved one still."""
    facts = [payment_method, brand, last4, exp_month, exp_year]
    connection.execute(_SAVE_CARD, [*facts, account_id, payment_method, renewed])


def forget_card(connection: Connection, account_id: int, payment_method: str) -> bool:
    """No card is saved; whether it was this one."""
    return (
        connection.execute(
            "UPDATE console.stripe_customer SET payment_method = NULL"
            " WHERE account_id = %s AND payment_method = %s",
            [account_id, payment_method],
        ).rowcount
        > 0
    )


def owners_of_card(connection: Connection, payment_method: str) -> list[tuple[int, str]]:
    """The accounts, and their customer ids, whose saved card this is."""
    return connection.execute(
        "SELECT account_id, customer_id FROM console.stripe_customer WHERE payment_method = %s",
        [payment_method],
    ).fetchall()


# -- payments -------------------------------------------------------------------------------------


def open_payment(
    connection: Connection,
    payment_id: UUID,
    account_id: int,
    kind: PaymentKind,
    amount: int,
    now: datetime,
) -> PaymentRow:
    """Somebody is about to pay."""
    with connection.cursor(row_factory=class_row(PaymentRow)) as cursor:
        made = cursor.execute(
            _OPEN,
            {
                "payment_id": payment_id,
                "account_id": account_id,
                "kind": kind,
                "amount": amount,
                "now": now,
            },
        ).fetchone()
        assert made is not None, "an insert returns its row"
        return made


def find(connection: Connection, payment_id: UUID) -> PaymentRow | None:
    """A payment by its id."""
    with connection.cursor(row_factory=class_row(PaymentRow)) as cursor:
        return cursor.execute(_FIND, [payment_id]).fetchone()


def find_by_intent(connection: Connection, intent_id: str) -> PaymentRow | None:
    """A payment by its PaymentIntent."""
    with connection.cursor(row_factory=class_row(PaymentRow)) as cursor:
        return cursor.execute(_FIND_BY_INTENT, [intent_id]).fetchone()


def find_by_session(connection: Connection, session_id: str) -> PaymentRow | None:
    """A payment by the page on which it is made."""
    with connection.cursor(row_factory=class_row(PaymentRow)) as cursor:
        return cursor.execute(_FIND_BY_SESSION, [session_id]).fetchone()


def page(
    connection: Connection, account_id: int, before: tuple[datetime, UUID], rows: int
) -> list[PaymentRow]:
    """An account's payments, newest first, that were begun before one of them."""
    with connection.cursor(row_factory=class_row(PaymentRow)) as cursor:
        return cursor.execute(
            _PAGE,
            {
                "account_id": account_id,
                "before": before[0],
                "before_id": before[1],
                "rows": rows,
            },
        ).fetchall()


def unfinished(
    connection: Connection, created_before: datetime, fetched_before: datetime, rows: int
) -> list[PaymentRow]:
    """Payments on pages that nobody has told us the end of."""
    with connection.cursor(row_factory=class_row(PaymentRow)) as cursor:
        return cursor.execute(
            _UNFINISHED,
            {"created_before": created_before, "fetched_before": fetched_before, "rows": rows},
        ).fetchall()


def reversals(connection: Connection, payment_ids: Sequence[UUID]) -> list[ReversalRow]:
    """Refunds and disputes of these payments, oldest first."""
    with connection.cursor(row_factory=class_row(ReversalRow)) as cursor:
        return cursor.execute(
            "SELECT reversal_id, payment_id, kind, status, amount, posted, created_at"
            "  FROM console.reversal WHERE payment_id = ANY (%s) ORDER BY created_at, reversal_id",
            [list(payment_ids)],
        ).fetchall()


def set_session(connection: Connection, payment_id: UUID, session_id: str) -> None:
    """The page on which it is made."""
    connection.execute(
        "UPDATE console.payment SET session_id = %s WHERE payment_id = %s",
        [session_id, payment_id],
    )


def set_intent(connection: Connection, payment_id: UUID, intent_id: str) -> None:
    """The PaymentIntent that it is; it never becomes another."""
    connection.execute(
        "UPDATE console.payment SET payment_intent = %s"
        " WHERE payment_id = %s AND payment_intent IS NULL",
        [intent_id, payment_id],
    )


def close_unpaid(
    connection: Connection, payment_id: UUID, state: Literal["failed", "canceled"], failure: str
) -> None:
    """Nothing was paid, as far as is known."""
    connection.execute(
        "UPDATE console.payment SET state = %s, failure = %s"
        " WHERE payment_id = %s AND state IN ('open', 'processing')",
        [state, failure, payment_id],
    )


def close_without_page(connection: Connection, created_before: datetime) -> None:
    """Whoever was about to pay was never told where."""
    connection.execute(
        "UPDATE console.payment SET state = 'failed', failure = 'not started'"
        " WHERE state = 'open' AND kind = 'top_up' AND created_at < %s"
        "   AND session_id IS NULL AND payment_intent IS NULL",
        [created_before],
    )


def begin_turn(connection: Connection, payment_id: UUID, now: datetime) -> PaymentRow:
    """Whoever is about to fetch a payment from Stripe says so first: only the last may write."""
    with connection.cursor(row_factory=class_row(PaymentRow)) as cursor:
        found = cursor.execute(_BEGIN_TURN, [now, payment_id]).fetchone()
        assert found is not None, "payments are never deleted"
        return found


def lock_turn(connection: Connection, payment_id: UUID, turn: int) -> PaymentRow | None:
    """The payment, until the transaction ends; None where somebody began to fetch it later."""
    with connection.cursor(row_factory=class_row(PaymentRow)) as cursor:
        return cursor.execute(_LOCK_TURN, [payment_id, turn]).fetchone()


def record(
    connection: Connection,
    payment_id: UUID,
    state: PaymentState,
    received: int,
    receipt_url: str,
    invoice_url: str,
    failure: str,
    paid_at: datetime | None,
) -> None:
    """How the payment is now."""
    connection.execute(
        "UPDATE console.payment SET state = %s, received = %s, receipt_url = %s, invoice_url = %s,"
        " failure = %s, paid_at = %s WHERE payment_id = %s",
        [state, received, receipt_url, invoice_url, failure, paid_at, payment_id],
    )


# -- the books ------------------------------------------------------------------------------------


def account_exists(connection: Connection, account_id: int) -> bool:
    """Whether there is such an account."""
    row = connection.execute(
        "SELECT FROM directory.account WHERE account_id = %s", [account_id]
    ).fetchone()
    return row is not None


def suspend(connection: Connection, account_id: int) -> bool:
    """Serve none of its keys any more; whether it was served. To be called before anything that
    locks the account's credit: changes of accounts lock their counter first."""
    return (
        connection.execute(
            "UPDATE directory.account SET status = 2 WHERE account_id = %s AND status = 1",
            [account_id],
        ).rowcount
        > 0
    )


def credit_payment(connection: Connection, account_id: int, amount: int, intent_id: str) -> bool:
    """Credit what was paid; False where it was before."""
    row = connection.execute(
        "SELECT ledger.credit_pool(%s, %s, %s::smallint, %s, %s, %s)",
        [account_id, amount, TOP_UP, _CLEARING, intent_id, "card payment"],
    ).fetchone()
    return row == (True,)


def save_reversal(
    connection: Connection,
    payment_id: UUID,
    reversal_id: str,
    kind: ReversalKind,
    status: str,
    amount: int,
    now: datetime,
) -> tuple[int, int]:
    """A refund or dispute as it is now; what was posted for it, and in how many postings."""
    row = connection.execute(
        _SAVE_REVERSAL,
        {
            "reversal_id": reversal_id,
            "payment_id": payment_id,
            "kind": kind,
            "status": status,
            "amount": amount,
            "now": now,
        },
    ).fetchone()
    assert row is not None, "an upsert returns its row"
    return row[0], row[1]


def post_reversal(
    connection: Connection,
    account_id: int,
    payment_id: UUID,
    reversal_id: str,
    kind: ReversalKind,
    change: int,
    posting: int,
) -> None:
    """Take `change` from the account, below zero if need be: at Stripe the money is gone. What is
    negative comes back."""
    reference = reversal_id if posting == 0 else f"{reversal_id}:{posting}"
    facts = [account_id, abs(change), _CODES[kind], _CLEARING, reference]
    if change > 0:
        statement = "SELECT ledger.debit_pool(%s, %s, %s::smallint, %s, %s, true, %s)"
    else:
        statement = "SELECT ledger.credit_pool(%s, %s, %s::smallint, %s, %s, %s)"
    row = connection.execute(statement, [*facts, kind]).fetchone()
    assert row == (True,), f"{reference} was posted before"
    connection.execute(
        "UPDATE console.reversal SET posted = posted + %s, postings = postings + 1"
        " WHERE reversal_id = %s",
        [change, reversal_id],
    )
    connection.execute(
        "UPDATE console.payment SET taken_back = taken_back + %s WHERE payment_id = %s",
        [change, payment_id],
    )


def book_transaction(
    connection: Connection, payment_id: UUID, transaction_id: str, fee: int
) -> None:
    """A movement on the Stripe balance that belongs to a payment, and what Stripe kept of it."""
    connection.execute(
        "INSERT INTO console.stripe_transaction (transaction_id, payment_id) VALUES (%s, %s)"
        " ON CONFLICT DO NOTHING",
        [transaction_id, payment_id],
    )
    if fee:
        connection.execute("SELECT ledger.book_stripe_fee(%s, %s)", [fee, transaction_id])


def unknown_transactions(connection: Connection, transaction_ids: Sequence[str]) -> set[str]:
    """Those of which nothing is in the books."""
    rows = connection.execute(_UNKNOWN_TRANSACTIONS, [list(transaction_ids)])
    return {row[0] for row in rows}


# -- notices --------------------------------------------------------------------------------------


def add_notice(
    connection: Connection,
    account_id: int,
    kind: str,
    detail: Mapping[str, str | int],
    now: datetime,
) -> None:
    """Something that the account's owners should be told."""
    connection.execute(
        "INSERT INTO console.notice (account_id, kind, detail, created_at) VALUES (%s, %s, %s, %s)",
        [account_id, kind, Jsonb(dict(detail)), now],
    )
