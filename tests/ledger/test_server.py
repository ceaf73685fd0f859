"""The lease holder with its real neighbours: a journal on disk and the books in Postgres."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from ledger.client import InsufficientCredit, Ledger
from ledger.directory import Directory, PriceRow
from ledger.journal import Journal
from ledger.link import LocalLink
from ledger.money import Price
from ledger.postgres import PostgresStore
from ledger.server import LedgerServer
from ledger.store import EventStatus
from tests.fakes.holder import posted_balance
from tests.fakes.ledger import output, request

PAID = 100_000
RESERVED = 2_000


async def test_customers_are_charged_exactly_and_never_below_zero(
    database: str, tmp_path: Path
) -> None:
    """Three customers ask at once for more than they have; a reservation is left to its fate."""
    accounts, price = directory(database)
    charged = dict.fromkeys(accounts, 0)
    refused = 0
    store = PostgresStore(database)

    async def use(ledger: Ledger, account: int, tokens: int) -> None:
        nonlocal refused
        try:
            reservation = await ledger.reserve(request(RESERVED, account=account))
        except InsufficientCredit:
            refused += 1
            return
        settled = reservation.settle(
            price=price,
            provider_id=1,
            quantities={"input": tokens},
            tokens=output(tokens),
            status=EventStatus.SETTLED,
            ttfb_ms=1,
            duration_ms=2,
        )
        charged[account] += settled.charge

    for _ in range(2):
        journal, recovered = Journal.recover(tmp_path, boot_id="boot")
        server = LedgerServer(store, journal, recovered)
        ledger = Ledger([LocalLink(server)], reserve_timeout=10)
        async with trio.open_nursery() as services:
            await services.start(server.run)
            async with trio.open_nursery() as callers:
                for number in range(240):
                    account = accounts[number % len(accounts)]
                    callers.start_soon(use, ledger, account, 900 + number)
            for account in accounts:  # one after the other, to the last that fits
                ledger.credit_hint(account)
                before = refused
                while refused == before:
                    await use(ledger, account, 900)
            for account in accounts:
                assert posted_balance(server.engine, account) == PAID - charged[account]
            await ledger.reserve(request(0, account=accounts[0]))  # nobody will end it
            assert await server.drain()

    assert await store.check() == []
    await store.aclose()
    for account in accounts:
        assert PAID - RESERVED < charged[account] <= PAID


async def test_an_unknown_account_is_refused_and_disturbs_nobody(
    database: str, tmp_path: Path
) -> None:
    accounts, _ = directory(database)
    store = PostgresStore(database)
    journal, recovered = Journal.recover(tmp_path, boot_id="boot")
    server = LedgerServer(store, journal, recovered)
    ledger = Ledger([LocalLink(server)], reserve_timeout=10)
    async with trio.open_nursery() as services:
        await services.start(server.run)
        with pytest.raises(InsufficientCredit):
            await ledger.reserve(request(10, account=max(accounts) + 1))
        (await ledger.reserve(request(10, account=accounts[0]))).void()
        assert server.statistics().sessions == 1
        assert await server.drain()
    await store.aclose()


def directory(database: str) -> tuple[list[int], Price]:
    """Three customers with PAID each, and the price of the only model."""
    row = PriceRow("m", "p/m", "", (("input", 1_000_000),), 1000)
    with Directory(database) as books:
        books.register_catalogue(["m"], ["p"], [row])
        accounts = [books.create_account(f"a{n}", credit=PAID).account_id for n in range(3)]
    return accounts, Price(1, dict(row.components), 1000)
