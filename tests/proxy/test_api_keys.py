"""Which of several API keys is used: in turn, by affinity, and not while it rests."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from proxy.api_keys import ApiKeys

NAMES = ("a", "b", "c", "d")


def test_keys_are_used_in_turn() -> None:
    keys = ApiKeys(NAMES)
    assert [keys.first(0) for _ in range(8)] == [*NAMES, *NAMES]


def test_a_key_that_rests_is_passed_over_and_comes_back() -> None:
    keys = ApiKeys(NAMES)
    keys.rest("b", until=10)
    keys.rest("b", until=5)  # which does not shorten it
    assert "b" not in {keys.first(9.9) for _ in range(8)}
    assert keys.rests(9.9) == 1
    assert "b" in {keys.first(10) for _ in range(8)}
    assert keys.rests(10) == 0


def test_where_all_rest_the_one_that_is_back_first_is_asked() -> None:
    keys = ApiKeys(NAMES)
    for key, until in zip(NAMES, (30, 20, 40, 50), strict=True):
        keys.rest(key, until)
    assert keys.first(0) == "b"
    assert keys.next(0) is None


def test_each_is_asked_once() -> None:
    keys = ApiKeys(NAMES)
    asked = [keys.first(0)]
    while (key := keys.next(0, asked=asked)) is not None:
        asked.append(key)
    assert sorted(asked) == sorted(NAMES)


def test_the_same_affinity_gets_the_same_key_everywhere() -> None:
    here, there = ApiKeys(NAMES), ApiKeys(tuple(reversed(NAMES)))
    here.first(0)
    for affinity in range(200):
        assert here.first(0, affinity) == there.first(0, affinity)


def test_affinities_are_spread() -> None:
    keys = ApiKeys(NAMES)
    counts = Counter(keys.first(0, affinity) for affinity in range(10_000))
    # Chi-square, three degrees of freedom: beyond 16.3 once in a thousand; the draw is fixed.
    assert sum((counts[key] - 2500) ** 2 / 2500 for key in NAMES) < 16.3


@given(resting=st.sampled_from(NAMES), affinities=st.sets(st.integers(0, 2**64 - 1)))
def test_only_what_belongs_to_a_resting_key_moves(resting: str, affinities: set[int]) -> None:
    keys = ApiKeys(NAMES)
    before = {affinity: keys.first(0, affinity) for affinity in affinities}
    keys.rest(resting, until=10)
    for affinity, key in before.items():
        meanwhile = keys.first(0, affinity)
        assert meanwhile == key if key != resting else meanwhile != resting
        assert keys.first(10, affinity) == key
