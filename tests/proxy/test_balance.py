"""Who is asked first among equals: by weight, by load, by latency, and by whom it was before."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.catalogue import Upstream
from adapters.pricing import build_schedule
from proxy.balance import arranged
from proxy.latency import Latencies
from proxy.route import Candidate, Route
from tests.fakes.gateway import PRICE, model_of, providers_of, snapshot_of

SCHEDULE = build_schedule(PRICE)
NOW = 1000.0


def route_of(*groups: Sequence[int]) -> Route:
    """Groups of equals by their weights; the providers are p0, p1, … throughout."""
    providers = providers_of(*(f"p{number}" for number in range(sum(map(len, groups)))))
    left = iter(providers)
    made = tuple(
        tuple(Upstream(next(left), "m", SCHEDULE, weight) for weight in group) for group in groups
    )
    model = replace(model_of("gpt", providers[0]), groups=made)
    return snapshot_of([model], providers).routes["gpt"]


def name(candidate: Candidate) -> str:
    return candidate.upstream.provider.name


def idle(_: Upstream) -> int:
    return 0


def busy(places: Mapping[str, int]) -> Callable[[Upstream], int]:
    return lambda upstream: places.get(upstream.provider.name, 0)


def order(
    route: Route,
    *,
    affinity: int | None = None,
    in_flight: Callable[[Upstream], int] = idle,
    latencies: Latencies | None = None,
    dice: Callable[[], float] | None = None,
    now: float = NOW,
) -> tuple[Candidate, ...]:
    return arranged(
        route,
        streamed=True,
        affinity=affinity,
        in_flight=in_flight,
        latencies=Latencies() if latencies is None else latencies,
        dice=Random(7).random if dice is None else dice,
        now=now,
    )


def taking(seconds: Mapping[str, float], *, samples: int = 20, at: float = NOW) -> Latencies:
    """Latencies of upstreams, by the names of their providers."""
    latencies = Latencies()
    for provider, each in seconds.items():
        for _ in range(samples):
            latencies.of(f"{provider}/m", streamed=True).add(each, at)
    return latencies


def is_as_expected(drawn: Mapping[str, int], weights: Mapping[str, float]) -> bool:
    """Pearson's chi-square at one in a thousand, for up to five kinds."""
    critical = {1: 10.83, 2: 13.82, 3: 16.27, 4: 18.47}[len(weights) - 1]
    share = sum(drawn.values()) / sum(weights.values())
    distance = sum(
        (drawn.get(one, 0) - weight * share) ** 2 / (weight * share)
        for one, weight in weights.items()
    )
    return distance < critical


# -- groups ---------------------------------------------------------------------------------------


def test_a_route_without_equals_is_as_it_is_configured() -> None:
    route = route_of([1], [5], [1])

    def never(*_: object) -> float:
        raise AssertionError("nothing has to be decided")

    assert not route.has_equals
    assert order(route, affinity=1, dice=never) is route.candidates


groups = st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=4), min_size=1, max_size=4)
keys = st.integers(0, 2**64 - 1)


@given(
    groups,
    st.none() | keys,
    st.lists(st.integers(0, 50), min_size=16, max_size=16),
    st.lists(st.none() | st.floats(0.001, 60), min_size=16, max_size=16),
    st.randoms(use_true_random=False),
)
def test_everyone_has_a_turn_and_no_priority_is_crossed(
    weights: list[list[int]],
    affinity: int | None,
    places: list[int],
    seconds: list[float | None],
    random: Random,
) -> None:
    route = route_of(*weights)
    asked = order(
        route,
        affinity=affinity,
        in_flight=lambda upstream: places[int(upstream.provider.name[1:])],
        latencies=taking({f"p{n}": each for n, each in enumerate(seconds) if each is not None}),
        dice=random.random,
        now=NOW + 30,
    )
    at = 0
    for group in route.groups:
        assert sorted(map(name, asked[at : at + len(group)])) == sorted(map(name, group))
        at += len(group)
    assert at == len(asked)


@pytest.mark.parametrize("dice", [lambda: 0.0, lambda: 1 - 2**-53], ids=["least", "most"])
def test_dice_may_show_their_least_and_their_most(dice: Callable[[], float]) -> None:
    assert len(order(route_of([3, 1, 7, 9]), dice=dice)) == 4


# -- two choices ----------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", [[1, 1], [3, 1], [1, 2, 3], [5, 1, 1, 3]])
def test_idle_upstreams_are_drawn_by_weight(weights: list[int]) -> None:
    route, dice = route_of(weights), Random(3).random
    drawn = Counter(name(order(route, dice=dice)[0]) for _ in range(10_000))
    assert is_as_expected(drawn, {f"p{n}": weight for n, weight in enumerate(weights)})


def test_who_comes_second_is_drawn_by_weight_as_well() -> None:
    route, dice = route_of([1, 3, 1]), Random(3).random
    orders = [[name(each) for each in order(route, dice=dice)] for _ in range(10_000)]
    second = Counter(asked[1] for asked in orders if asked[0] == "p0")
    assert is_as_expected(second, {"p1": 3, "p2": 1})


def loads(route: Route, requests: int) -> list[float]:
    """What is in flight for each unit of weight after so many requests that do not end."""
    places: Counter[str] = Counter()
    dice = Random(11).random
    for _ in range(requests):
        places[name(order(route, in_flight=busy(places), dice=dice)[0])] += 1
    return [places[name(each)] / each.weight for each in route.candidates]


def test_two_choices_keep_the_most_loaded_near_the_mean() -> None:
    drawn = Random(11)
    random = Counter(drawn.randrange(50) for _ in range(500))
    assert max(random.values()) >= 17
    assert max(loads(route_of([1] * 50), 500)) <= 12


def test_what_is_in_flight_follows_the_weights() -> None:
    assert all(9 <= load <= 11 for load in loads(route_of([1, 2, 7]), 100))


@given(st.integers(0, 20), st.integers(0, 20))
def test_of_two_the_one_with_less_to_do_is_asked(one: int, other: int) -> None:
    asked = order(route_of([1, 1]), in_flight=busy({"p0": one, "p1": other}))
    if one != other:
        assert name(asked[0]) == ("p0" if one < other else "p1")


# -- latency --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "shares"),
    [
        ({"p0": 0.2, "p1": 0.4}, {"p0": 2, "p1": 1}),
        ({"p0": 0.2, "p1": 20.0}, {"p0": 4, "p1": 1}),  # bounded
        ({"p0": 0.001, "p1": 0.01}, {"p0": 1, "p1": 1}),  # nobody notices
        ({"p0": 9.0}, {"p0": 1, "p1": 1}),  # nothing is known of the other
        ({"p0": 0.5, "p1": 0.5, "p2": 1.0}, {"p0": 2, "p1": 2, "p2": 1}),
    ],
)
def test_a_slow_one_counts_for_less(
    seconds: Mapping[str, float], shares: Mapping[str, float]
) -> None:
    route, dice = route_of([1] * len(shares)), Random(5).random
    latencies = taking(seconds)
    drawn = Counter(name(order(route, latencies=latencies, dice=dice)[0]) for _ in range(10_000))
    assert is_as_expected(drawn, shares)


@pytest.mark.parametrize("affinity", [None, *range(8)])
def test_an_outlier_comes_last_and_is_forgiven(affinity: int | None) -> None:
    route = route_of([1, 9, 1], [1])
    latencies = taking({"p0": 0.2, "p1": 0.9, "p2": 0.2}, at=990)
    slow = {
        moment: {
            [
                name(each)
                for each in order(route, affinity=affinity, latencies=latencies, now=moment)
            ][2]
            == "p1"
            for _ in range(20)
        }
        for moment in (990, 1020, 1049)
    }
    assert slow[1020] == slow[1049] == {True}
    forgiven = Counter(
        name(order(route, affinity=key, latencies=latencies, now=1050)[0]) for key in range(200)
    )
    assert forgiven["p1"] > 100


def test_few_answers_make_no_outlier() -> None:
    route, latencies = route_of([1, 9]), taking({"p0": 0.2, "p1": 9.0}, samples=19, at=990)
    first = Counter(
        name(order(route, affinity=key, latencies=latencies, now=1020)[0]) for key in range(100)
    )
    assert first["p1"] > 50


# -- affinity -------------------------------------------------------------------------------------


@given(keys)
def test_a_conversation_stays_while_all_are_as_busy_as_their_weights_say(affinity: int) -> None:
    route = route_of([1, 2, 3])
    first = list(map(name, order(route, affinity=affinity)))
    for places in (0, 1, 100):
        everyone = busy({f"p{n}": places * (n + 1) for n in range(3)})
        assert list(map(name, order(route, affinity=affinity, in_flight=everyone))) == first


def test_every_worker_and_version_comes_to_the_same_order() -> None:
    asked = order(route_of([1, 1, 1, 1]), affinity=0x1234_5678_9ABC_DEF0)
    assert [name(each) for each in asked] == ["p0", "p2", "p3", "p1"]


@pytest.mark.parametrize("weights", [[1, 1], [3, 1], [1, 2, 3], [5, 1, 1, 3]])
def test_conversations_are_spread_by_weight(weights: list[int]) -> None:
    route = route_of(weights)
    placed = Counter(name(order(route, affinity=key)[0]) for key in range(10_000))
    assert is_as_expected(placed, {f"p{n}": weight for n, weight in enumerate(weights)})


def test_one_that_leaves_moves_nobody_elses_conversations() -> None:
    whole = route_of([1, 1, 1, 1])
    less = Route(whole.model, whole.model_id, (whole.groups[0][:3],))
    moved = 0
    for key in range(4000):
        before, after = order(whole, affinity=key), order(less, affinity=key)
        assert [each for each in before if name(each) != "p3"] == list(after)
        moved += before[0] != after[0]
    assert 900 < moved < 1100


def test_where_the_own_place_is_full_the_next_of_its_own_order_has_it() -> None:
    route, key = route_of([1, 1, 1]), 5
    first, second, third = map(name, order(route, affinity=key))
    full = busy({first: 20, second: 3, third: 4})
    assert [name(each) for each in order(route, affinity=key, in_flight=full)] == [
        second,
        third,
        first,
    ]


@given(st.lists(st.sampled_from([1, 2, 3]), min_size=2, max_size=5), st.integers(1, 200))
def test_one_conversation_cannot_fill_its_place_beyond_the_bound(
    weights: list[int], requests: int
) -> None:
    """All requests have the same key: the worst that can be asked."""
    route = route_of(weights)
    places: Counter[str] = Counter()
    for _ in range(requests):
        chosen = order(route, affinity=77, in_flight=busy(places))[0]
        fair = chosen.weight * places.total() / sum(weights)
        assert places[name(chosen)] <= 1.5 * fair + 4
        places[name(chosen)] += 1


def test_short_of_the_bound_nothing_moves() -> None:
    route, key = route_of([1, 1]), 9
    first, second = map(name, order(route, affinity=key))
    kept = [
        name(order(route, affinity=key, in_flight=busy({first: there, second: 10}))[0]) == first
        for there in range(80)
    ]
    assert all(before >= after for before, after in pairwise(kept))
    assert kept.index(False) > 19
