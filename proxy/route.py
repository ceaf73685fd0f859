"""Model name → the candidates that may serve it, from one immutable snapshot.

A snapshot joins the catalogue with the ids under which the books know its models, providers and
prices. It is built once per reload; an exchange keeps the one that it started with.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from adapters import registry
from adapters.catalogue import (
    PROTOCOLS,
    Catalogue,
    Model,
    PriceSchedule,
    Protocol,
    Provider,
    Rates,
    Upstream,
)
from adapters.codec import Headers, UpstreamCodec
from adapters.errors import InvalidRequest, ModelNotAvailable, PermissionDenied
from adapters.registry import OUTPUT_CAP_MIN
from ledger.money import Price
from proxy.authenticate import Principal
from proxy.ceilings import Ceilings, Tariff

_VIRTUAL = ("auto", "balanced", "cost-saver")


class Speech(NamedTuple):
    """How a provider is spoken with, for clients of one protocol; `same`: in that protocol."""

    protocol: Protocol
    same: bool
    codec: UpstreamCodec

    @classmethod
    def of(cls, provider: Provider, asked: Protocol) -> Speech:
        """With `provider`, where the client speaks `asked`."""
        protocol = provider.protocol_for(asked)
        return cls(protocol, protocol == asked, registry.upstream_codec(protocol))


@dataclass(frozen=True, slots=True)
class Candidate:
    """An upstream that may serve a request, with its price rows as the books know them.

    `base_price` is the row that applies without long context or a service tier; `ceilings` are the
    dearest that may. `speech` is by the client's protocol.
    """

    upstream: Upstream
    schedule: PriceSchedule
    provider_id: int
    prices: Mapping[Rates, Price]
    base_price: Price = field(init=False)
    ceilings: Ceilings = field(init=False, repr=False, compare=False)
    speech: Mapping[Protocol, Speech] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        provider = self.upstream.provider
        speech = {asked: Speech.of(provider, asked) for asked in PROTOCOLS}
        object.__setattr__(self, "base_price", self.prices[self.schedule.variants[0, ""]])
        object.__setattr__(self, "ceilings", Ceilings([self.tariff]))
        object.__setattr__(self, "speech", speech)

    @property
    def weight(self) -> int:
        """Its share of the requests, among the equals of its group."""
        return self.upstream.weight

    @property
    def tariff(self) -> Tariff:
        """What it takes."""
        return Tariff(self.schedule, self.prices)


class Spoken(NamedTuple):
    """What the upstreams of a route speak with a client of one protocol.

    `same`: one of them speaks that protocol too. `output_cap_min` is the lowest output cap that all
    of them take.
    """

    same: bool
    output_cap_min: int

    @classmethod
    def by(cls, candidates: Iterable[Candidate], asked: Protocol) -> Spoken:
        """By these, where the client speaks `asked`."""
        protocols = {each.speech[asked].protocol for each in candidates}
        return cls(asked in protocols, max(OUTPUT_CAP_MIN.get(each, 0) for each in protocols))


@dataclass(frozen=True, slots=True)
class Route:
    """What a model name means: groups of equals in priority order.

    `candidates` are all of them, in the order in which they are configured. `has_equals`: some
    group has more than one. `has_choice`: there are equals, or a provider with several API keys, so
    that it matters which request goes where. `is_timed`: how soon its upstreams answer decides
    something. `ceilings` are the dearest that may apply, `spoken` is by the client's protocol.
    `reason` says why these, for virtual models; `headers` are what answers say of all that.
    """

    model: Model
    model_id: int
    groups: tuple[tuple[Candidate, ...], ...]
    reason: str = ""
    candidates: tuple[Candidate, ...] = field(init=False)
    has_equals: bool = field(init=False)
    has_choice: bool = field(init=False)
    is_timed: bool = field(init=False)
    ceilings: Ceilings = field(init=False, repr=False, compare=False)
    spoken: Mapping[Protocol, Spoken] = field(init=False)
    headers: Headers = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        candidates = tuple(candidate for group in self.groups for candidate in group)
        has_equals = len(candidates) > len(self.groups)
        several_keys = any(len(each.upstream.provider.api_keys) > 1 for each in candidates)
        object.__setattr__(self, "candidates", candidates)
        object.__setattr__(self, "has_equals", has_equals)
        object.__setattr__(self, "has_choice", has_equals or several_keys)
        is_timed = has_equals or self.model.hedge_after_percentile > 0
        object.__setattr__(self, "is_timed", is_timed)
        object.__setattr__(self, "ceilings", Ceilings(each.tariff for each in candidates))
        spoken = {asked: Spoken.by(candidates, asked) for asked in PROTOCOLS}
        object.__setattr__(self, "spoken", spoken)
        why = [("x-farebox-route", self.reason)] if self.reason else []
        object.__setattr__(self, "headers", [("x-farebox-model", self.model.id), *why])


@dataclass(frozen=True, slots=True)
class BookIds:
    """The books' ids: models and providers by name, prices by (upstream name, row)."""

    models: Mapping[str, int]
    providers: Mapping[str, int]
    prices: Mapping[tuple[str, Rates], Price]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything that may be asked for by name. `virtual` are the names that lists show."""

    catalogue: Catalogue
    routes: Mapping[str, Route]
    virtual: tuple[str, ...] = ()

    @classmethod
    def build(cls, catalogue: Catalogue, ids: BookIds, *, brand: str, reference: str) -> Snapshot:
        """Join a catalogue with its ids. Models without a price are left out: they cannot be sold.

        Virtual models mean `reference` (empty: the first chat model) until evidence says better.
        """
        routes: dict[str, Route] = {}
        for name, model, groups in _names(catalogue):
            candidates = (tuple(_candidates(group, ids)) for group in groups)
            sold = tuple(group for group in candidates if group)
            if sold:
                routes[name] = Route(model, ids.models[model.id], sold)
        meant = routes.get(reference) or _first_chat(routes)
        if meant is None:
            return cls(catalogue, routes)
        virtual = Route(meant.model, meant.model_id, meant.groups, "reference")
        for kind in _VIRTUAL:
            routes[f"{brand}/{kind}"] = routes[f"{brand}-{kind}"] = virtual
        return cls(catalogue, routes, tuple(f"{brand}/{kind}" for kind in _VIRTUAL))


def _names(
    catalogue: Catalogue,
) -> Iterator[tuple[str, Model, tuple[tuple[Upstream, ...], ...]]]:
    for model in catalogue.models.values():
        yield model.id, model, model.groups
    for name, (model, upstream) in catalogue.pinned.items():
        if name not in catalogue.models:
            yield name, model, ((upstream,),)


def _candidates(group: Iterable[Upstream], ids: BookIds) -> Iterator[Candidate]:
    """Those of a group that have a price."""
    for upstream in group:
        if (schedule := upstream.prices) is not None:
            prices = {
                rates: ids.prices[upstream.name, rates] for rates in schedule.variants.values()
            }
            provider_id = ids.providers[upstream.provider.name]
            yield Candidate(upstream, schedule, provider_id, prices)


def _first_chat(routes: Mapping[str, Route]) -> Route | None:
    return next((route for route in routes.values() if route.model.kind == "chat"), None)


def allowed(principal: Principal, name: str, route: Route) -> bool:
    """Whether the caller's key may use a route under this name, or under its model's own."""
    return not principal.models or name in principal.models or route.model.id in principal.models


def find(snapshot: Snapshot, principal: Principal, name: str, kind: str) -> Route:
    """The route of the model called `name` for this caller.

    Raises ModelNotAvailable, PermissionDenied, and InvalidRequest where the model is of another
    kind than the operation needs.
    """
    route = snapshot.routes.get(name)
    if route is None:
        raise ModelNotAvailable(
            f"The model {name!r} is not available here; GET /v1/models lists what is.",
            param="model",
        )
    if principal.models and not allowed(principal, name, route):
        raise PermissionDenied(f"This API key may not use the model {name!r}.", param="model")
    if route.model.kind != kind:
        raise InvalidRequest(
            f"The model {name!r} is for {route.model.kind}, not for {kind}.", param="model"
        )
    return route
