"""The checks of the books: clean ones pass with a figure, each kind of damage is found."""

from __future__ import annotations

import psycopg
import pytest
import trio

from ledger import verify
from ledger.directory import Directory
from ledger.postgres import PostgresStore
from tests.fakes.model_holder import ModelHolder


@pytest.fixture
def books(database: str) -> str:
    """Two accounts and one holder that charged three requests in two batches."""
    trio.run(charge_three, database)
    return database


async def charge_three(database: str) -> None:
    with Directory(database) as directory:
        directory.register_catalogue(["m"], ["p"], [])
        accounts = [directory.create_account(name, credit=10_000).account_id for name in "ab"]
    store = PostgresStore(database)
    holder = ModelHolder(store, "node")
    await holder.open()
    for account_id in accounts:
        await holder.grant(account_id, 1000, 1000)
        holder.settle(account_id, 110, 100)
    await holder.exchange()
    holder.settle(accounts[0], 5, 7)
    await holder.exchange()
    await store.aclose()


def test_clean_books_pass_with_a_figure(books: str) -> None:
    results = {result.name: result for result in verify.run(books)}
    assert list(results) == ["C1", "C2", "C3", "C4", "C5", "C6", "C7", "C8"]
    assert not any(result.violations for result in results.values())
    assert [result.examined for result in results.values()] == [2, 2, 8, 2, 3, 6, 2, 2]


def test_empty_books_pass(database: str) -> None:
    assert not any(result.violations for result in verify.run(database))


DAMAGE = [
    ("C1", "UPDATE ledger.pool SET leased = leased + 1, funded = funded + 1 WHERE pool_id = 1"),
    ("C2", "UPDATE ledger.pool SET available = -1, funded = leased + spent - 1 WHERE pool_id = 1"),
    ("C3", "UPDATE ledger.pool SET available = available + 1, funded = funded + 1"),
    ("C3", "DELETE FROM ledger.transfer WHERE code = 5"),
    ("C4", "DELETE FROM ledger.batch WHERE last_seq = 2"),
    ("C4", "UPDATE ledger.holder_progress SET applied_seq = 9"),
    ("C5", "DELETE FROM ledger.usage_event WHERE seq = 2"),
    ("C5", "UPDATE ledger.usage_event SET cost = cost + 1 WHERE seq = 1"),
    ("C5", "DELETE FROM ledger.batch WHERE last_seq = 3"),
    ("C6", "UPDATE ledger.transfer SET amount = amount + 1 WHERE code = 30 AND account_id = 1"),
    ("C6", "DELETE FROM ledger.transfer WHERE code = 32"),
    ("C6", "UPDATE ledger.batch SET charge = charge + 1 WHERE last_seq = 3"),
    ("C7", "UPDATE ledger.holder SET state = 3"),
    ("C8", "UPDATE ledger.usage_event SET charge = charge + 1 WHERE seq = 3"),
    ("C8", "UPDATE ledger.usage_event SET account_id = 99 WHERE seq = 3"),
]


@pytest.mark.unsound_books("they are damaged")
@pytest.mark.parametrize(("name", "damage"), DAMAGE, ids=[sql for _, sql in DAMAGE])
def test_damage_is_found(books: str, name: str, damage: str) -> None:
    with psycopg.connect(books, autocommit=True) as connection:
        connection.execute("SET session_replication_role = replica")  # past the append-only guards
        connection.execute(damage.encode())
    found = {result.name: result.violations for result in verify.run(books)}
    assert found[name]
    assert all(violation.subject and violation.detail for violation in found[name])


def test_holders_are_listed_with_what_they_hold(books: str) -> None:
    (holder,) = verify.holders(books)
    assert (holder.node, holder.state, holder.epoch, holder.applied_seq) == ("node", "active", 1, 3)
    assert (holder.leases, holder.outstanding) == (2, 2000 - 225)
