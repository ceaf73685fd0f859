"""Models and the upstreams that serve them: one immutable snapshot, swapped whole on reload.

A running exchange keeps the snapshot it started with, so a reload can never change the price or
the route of a request that was already admitted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

Protocol = Literal["openai", "openai-responses", "anthropic", "gemini"]
PROTOCOLS: tuple[Protocol, ...] = get_args(Protocol)
Auth = Literal["bearer", "api-key", "x-api-key", "x-goog-api-key"]
Kind = str  # "chat", "embedding", …


@dataclass(frozen=True, slots=True)
class Provider:
    """Where requests are sent. `base_url` has no trailing slash; header names are lower case.

    `responses`: a provider of OpenAI's protocol that has the Responses API under the same base URL.
    After `failures_to_open` failures in a row it is left alone for `open_seconds`.
    """

    name: str
    protocol: Protocol
    base_url: str
    api_keys: tuple[str, ...] = field(default=(), repr=False)
    auth: Auth = "bearer"
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    query: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    connect_seconds: float = 5
    first_byte_seconds: float = 300
    idle_seconds: float = 120
    max_connections: int = 512
    failures_to_open: int = 5
    open_seconds: float = 5
    output_cap_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    responses: bool = False

    def protocol_for(self, asked: Protocol) -> Protocol:
        """The protocol to speak where the client speaks `asked`: its own, if the provider can."""
        return asked if asked == "openai-responses" and self.responses else self.protocol


@dataclass(frozen=True, slots=True)
class Rates:
    """One exact price row: integer nano-dollars per 1,000,000 units, per priced unit.

    Every unit is present: an absent token kind was filled in from `input` or `output` when the
    schedule was built, an absent piece kind costs 0. Hashable, so that equal rows are one row in
    the books; they are looked up with every request, so the hash is made only once.
    """

    components: tuple[tuple[str, int], ...]  # sorted by unit name
    _hash: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_hash", hash(self.components))

    def __hash__(self) -> int:
        return self._hash


@dataclass(frozen=True, slots=True)
class PriceSchedule:
    """Every price row that may apply at one upstream of one model.

    `variants` maps (long-context threshold in input tokens, service tier) to its row; (0, "") is
    always present. `thresholds` are those above 0, the lowest first. `published` is what the price
    list shows: decimal strings as configured.
    """

    variants: Mapping[tuple[int, str], Rates]
    published: Mapping[str, object]
    thresholds: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        thresholds = {threshold for threshold, _ in self.variants if threshold}
        object.__setattr__(self, "thresholds", tuple(sorted(thresholds)))


@dataclass(frozen=True, slots=True)
class Upstream:
    """A provider's model. `weight` counts among equals of one group.

    `name` is `provider/model`, as in configuration, metrics and usage records.
    """

    provider: Provider
    model: str
    prices: PriceSchedule | None
    weight: int = 1
    name: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", f"{self.provider.name}/{self.model}")


@dataclass(frozen=True, slots=True)
class Model:
    """What a caller asks for by name. `groups` are in priority order, equals inside a group."""

    id: str
    groups: tuple[tuple[Upstream, ...], ...]
    owned_by: str = ""
    kind: Kind = "chat"
    context_window: int = 0  # 0: unknown
    max_output_tokens: int = 0  # 0: unknown
    default_max_output_tokens: int = 0  # what is held and sent where the client sets no cap
    hedge_after_percentile: int = 0
    rpm: int = 0  # 0: no limit
    tpm: int = 0
    capabilities: tuple[str, ...] = ()
    created: int = 0
    prices: PriceSchedule | None = None  # None: unpriced

    @property
    def upstreams(self) -> tuple[Upstream, ...]:
        """All upstreams, in priority order."""
        return tuple(upstream for group in self.groups for upstream in group)


@dataclass(frozen=True, slots=True)
class Catalogue:
    """All models by id, and every upstream by its pinned name. `example` is a chat model for a
    first call, "" where there is none."""

    models: Mapping[str, Model]
    providers: Mapping[str, Provider]
    pinned: Mapping[str, tuple[Model, Upstream]]  # "provider/model" → where it is listed
    example: str = ""

    @classmethod
    def build(cls, models: list[Model], providers: list[Provider], example: str = "") -> Catalogue:
        """Index models and providers. The first model that lists an upstream owns its pin.

        Raises ValueError where two entries share an id.
        """
        by_id: dict[str, Model] = {}
        pinned: dict[str, tuple[Model, Upstream]] = {}
        for model in models:
            if model.id in by_id:
                raise ValueError(f"two models have the id {model.id!r}")
            by_id[model.id] = model
            for upstream in model.upstreams:
                pinned.setdefault(upstream.name, (model, upstream))
        by_name: dict[str, Provider] = {}
        for provider in providers:
            if provider.name in by_name:
                raise ValueError(f"two providers have the name {provider.name!r}")
            by_name[provider.name] = provider
        return cls(by_id, by_name, pinned, example)

    def find(self, name: str) -> tuple[Model, tuple[tuple[Upstream, ...], ...]] | None:
        """The model called `name` with the groups to try, or None.

        A pinned name (`provider/model`) is served by that upstream alone.
        """
        if (model := self.models.get(name)) is not None:
            return model, model.groups
        if (pin := self.pinned.get(name)) is not None:
            return pin[0], ((pin[1],),)
        return None
