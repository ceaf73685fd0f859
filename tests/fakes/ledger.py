"""What ledger tests have in common: requests, events, prices."""

from __future__ import annotations

from ledger.limits import LimitRef
from ledger.memory import PROMOTIONS, MemoryStore
from ledger.money import Price
from ledger.pool import BUDGET_POOL_MIN
from ledger.reservation import ReservationRequest, TokenCounts
from ledger.store import PoolId

ACCOUNT = 7
BUDGET = BUDGET_POOL_MIN + 1
PROVIDER = 3

PRICE = Price(price_id=11, components={"output": 1_000_000}, margin_bps=0)
"""One nano-dollar a unit, so that charges are quantities."""


def request(
    amount: int,
    *,
    account: int = ACCOUNT,
    pools: tuple[int, ...] | None = None,
    tokens: int = 0,
    limits: tuple[LimitRef, ...] = (),
) -> ReservationRequest:
    """A reservation request with ids that do not matter."""
    return ReservationRequest(
        request_id=bytes(16),
        account_id=account,
        key_id=1,
        pools=(account,) if pools is None else pools,
        amount=amount,
        tokens=tokens,
        limits=limits,
        model_id=5,
        provider_id=PROVIDER,
        price_id=PRICE.price_id,
        endpoint=1,
    )


def output(tokens: int) -> TokenCounts:
    """Counts of an answer without a prompt."""
    return TokenCounts(output=tokens)


async def funded_store(balance: int, *, account: int = ACCOUNT) -> MemoryStore:
    """A store with one customer, who was given `balance`, and one provider."""
    store = MemoryStore()
    store.add_provider(PROVIDER)
    await top_up(store, balance, "start", account=account, new=True)
    return store


async def top_up(
    store: MemoryStore, amount: int, ref: str, *, account: int = ACCOUNT, new: bool = False
) -> None:
    """Credit a customer."""
    if new:
        store.add_account(account)
    if amount:
        await store.credit_pool(PoolId(account), amount, 6, PROMOTIONS, ref)
