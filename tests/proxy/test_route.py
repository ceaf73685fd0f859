"""What a model name means: groups of equals in their order, under every name that there is."""

from __future__ import annotations

from dataclasses import replace

from adapters.catalogue import Model, Provider, Upstream
from adapters.pricing import build_schedule
from proxy.route import Route
from tests.fakes.gateway import PRICE, model_of, providers_of, snapshot_of

A, B, C, D = providers_of("a", "b", "c", "d")


def upstream(provider: Provider, weight: int = 1, *, priced: bool = True) -> Upstream:
    return Upstream(provider, "m", build_schedule(PRICE) if priced else None, weight)


def grouped(*groups: tuple[Upstream, ...]) -> Model:
    return replace(model_of("gpt", A), groups=groups)


def names(route: Route) -> list[list[str]]:
    return [[candidate.upstream.provider.name for candidate in group] for group in route.groups]


def test_groups_and_weights_are_kept() -> None:
    model = grouped((upstream(A, 3), upstream(B)), (upstream(C),))
    route = snapshot_of([model], [A, B, C]).routes["gpt"]
    assert names(route) == [["a", "b"], ["c"]]
    assert [candidate.weight for candidate in route.candidates] == [3, 1, 1]
    assert route.candidates == (*route.groups[0], *route.groups[1])


def test_what_has_no_price_leaves_its_group_and_an_empty_group_leaves_the_route() -> None:
    model = grouped(
        (upstream(A, priced=False),),
        (upstream(B, priced=False), upstream(C)),
        (upstream(D),),
    )
    route = snapshot_of([model], [A, B, C, D]).routes["gpt"]
    assert names(route) == [["c"], ["d"]]


def test_a_pinned_name_is_that_upstream_alone() -> None:
    model = grouped((upstream(A), upstream(B)), (upstream(C),))
    assert names(snapshot_of([model], [A, B, C]).routes["b/m"]) == [["b"]]


def test_virtual_models_mean_the_groups_of_the_reference() -> None:
    model = grouped((upstream(A, 2), upstream(B)), (upstream(C),))
    snapshot = snapshot_of([model, model_of("other", D)], [A, B, C, D])
    meant = snapshot.routes["gpt"]
    for name in ("farebox/auto", "farebox-balanced", "farebox/cost-saver"):
        virtual = snapshot.routes[name]
        assert virtual.groups is meant.groups
        assert virtual.candidates == meant.candidates
        assert virtual.reason == "reference"


def test_a_choice_is_among_equals_or_among_api_keys() -> None:
    several = replace(B, api_keys=("one", "two"))

    def facts(*groups: tuple[Upstream, ...]) -> tuple[bool, bool]:
        route = snapshot_of([grouped(*groups)], [A, several, C]).routes["gpt"]
        return route.has_equals, route.has_choice

    assert facts((upstream(A),)) == (False, False)
    assert facts((upstream(A),), (upstream(C),)) == (False, False)
    assert facts((upstream(A), upstream(C))) == (True, True)
    assert facts((upstream(A),), (upstream(several),)) == (False, True)
