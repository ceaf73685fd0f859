"""Settings of the outside: `[[providers]]`, `[[models]]` and their prices.

Prices are US dollars per million tokens (pieces: a piece), always decimal strings, so that no
float comes near money.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

import msgspec

from adapters.catalogue import Auth, Protocol

Seconds = Annotated[float, msgspec.Meta(gt=0, description="a number of seconds above 0")]
Count = Annotated[int, msgspec.Meta(ge=0, description="a whole number, 0 or more")]
Price = Annotated[
    str,
    msgspec.Meta(
        pattern=r"^[0-9]{1,6}(\.[0-9]{1,9})?$",
        description='a decimal string in quotes, such as "2.50"',
    ),
]
Text = Annotated[str, msgspec.Meta(min_length=1, description="text that is not empty")]
Upstreams = Annotated[
    tuple[str | tuple[str, ...], ...],
    msgspec.Meta(
        description='a list in the order of trying, such as ["openai/gpt-4o", "azure/gpt-4o"]'
    ),
]

WEIGHT_MAX = 1000
HEDGE_PERCENTILE_MIN = 50  # below it most requests would be asked twice

_WEIGHT = re.compile(r"[0-9]{1,6}")


class Rates(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True
):
    """The priced units. What an absent one costs is decided by `adapters.pricing`."""

    input: Price | None = None
    cached_input: Price | None = None
    cache_write: Price | None = None
    cache_write_1h: Price | None = None
    audio_input: Price | None = None
    output: Price | None = None
    reasoning: Price | None = None
    audio_output: Price | None = None
    image: Price | None = None
    request: Price | None = None
    web_search: Price | None = None
    second: Price | None = None


class RatesAbove(Rates, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A long-context tier: what the whole request costs above `input_tokens` of input."""

    input_tokens: Annotated[int, msgspec.Meta(ge=1, description="a whole number above 0")]


class PriceSettings(
    Rates, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True
):
    """`[models.price]` and `[models.upstream_price."provider/model"]`.

    `service_tier` maps what the provider says it served to a multiplier.
    """

    above: tuple[RatesAbove, ...] = ()
    service_tier: dict[str, Price] = {}


class ProviderSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One `[[providers]]`. What is None comes from the preset, else from the protocol."""

    preset: str | None = None
    name: Text | None = None
    protocol: Protocol | None = None
    base_url: Text | None = None
    api_key: str | tuple[str, ...] | None = None
    shadow_api_key: str | None = None
    auth: Auth | None = None
    headers: dict[str, str] = {}
    query: dict[str, str] = {}
    connect_seconds: Seconds = 5
    first_byte_seconds: Seconds = 300
    idle_seconds: Seconds = 120
    max_connections: Annotated[int, msgspec.Meta(ge=1, description="a whole number above 0")] = 512
    failures_to_open: Annotated[
        int, msgspec.Meta(ge=1, le=1000, description="a whole number from 1 to 1000")
    ] = 5
    open_seconds: Annotated[
        float, msgspec.Meta(gt=0, le=60, description="a number of seconds above 0, at most 60")
    ] = 5

    def __repr__(self) -> str:  # keys, headers and query may be secrets
        return f"ProviderSettings(name={self.name!r}, base_url={self.base_url!r})"


class ModelSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One `[[models]]`.

    `upstreams` are in priority order; a list inside the list is a group of equals.
    """

    id: Text
    owned_by: str = ""
    kind: Text = "chat"
    context_window: Count = 0
    max_output_tokens: Count = 0
    upstreams: Upstreams
    hedge_after_percentile: Annotated[
        int, msgspec.Meta(ge=0, le=99, description="0 (never), or a whole number from 50 to 99")
    ] = 0
    default_max_output_tokens: Count = 0
    rpm: Count = 0
    tpm: Count = 0
    capabilities: tuple[str, ...] = ()
    latency_class: Literal["", "interactive", "batch"] = ""
    price: PriceSettings | None = None
    upstream_price: dict[str, PriceSettings] = {}


class UpstreamRef(msgspec.Struct, frozen=True):
    """Where a model is served: `provider/model`, with its weight among equals."""

    provider: str
    model: str
    weight: int = 1

    @property
    def name(self) -> str:
        """`provider/model`, without the weight."""
        return f"{self.provider}/{self.model}"


def parse_upstream(text: str) -> UpstreamRef:
    """Read `provider/model` or `provider/model*weight`; the first slash separates.

    Raises ValueError with a sentence fragment that says what is wrong.
    """
    target, star, weight = text.rpartition("*")
    if not star:
        target, weight = text, "1"
    provider, slash, model = target.partition("/")
    if not (provider and slash and model):
        raise ValueError(f'{text!r} is not "provider/model", such as "openai/gpt-4o"')
    if not _WEIGHT.fullmatch(weight) or not 1 <= int(weight) <= WEIGHT_MAX:
        raise ValueError(f"the weight in {text!r} is not a whole number from 1 to {WEIGHT_MAX}")
    return UpstreamRef(provider, model, int(weight))
