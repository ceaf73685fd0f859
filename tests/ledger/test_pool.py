"""Invariant H of one pool: what it catches, whatever else is right."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger.errors import LedgerDivergence
from ledger.pool import HolderPool

BUCKETS = ("free", "pending", "unposted", "returning")
amounts = st.lists(st.integers(0, 10**12), min_size=4, max_size=4)


def pool_of(buckets: list[int], outstanding: int) -> HolderPool:
    pool = HolderPool(7, 0.0)
    for name, amount in zip(BUCKETS, buckets, strict=True):
        setattr(pool, name, amount)
    pool.outstanding = outstanding
    return pool


@given(amounts)
def test_the_buckets_are_the_lease(buckets: list[int]) -> None:
    pool_of(buckets, sum(buckets)).check()


@given(amounts, st.integers(-(10**12), 10**12).filter(bool))
def test_a_lease_of_another_size_is_a_divergence(buckets: list[int], difference: int) -> None:
    with pytest.raises(LedgerDivergence, match="outstanding"):
        pool_of(buckets, sum(buckets) + difference).check()


@given(amounts, st.integers(0, 3), st.integers(1, 10**12))
def test_no_bucket_is_below_zero_though_the_sum_is_right(
    buckets: list[int], which: int, debt: int
) -> None:
    total = sum(buckets)
    moved = buckets[which] + debt
    buckets[which] -= moved
    buckets[(which + 1) % 4] += moved
    with pytest.raises(LedgerDivergence):
        pool_of(buckets, total).check()
