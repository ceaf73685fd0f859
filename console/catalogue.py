"""Routes about models: what may be asked for here, and what it costs.

    GET /accounts/{account}/models    every model with its prices
    GET /models                       the same for everybody, where the operator publishes it

Prices are what a customer pays: the provider's, with this gateway's margin.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal

from fastapi import APIRouter
from pydantic import BaseModel, Field

from adapters.catalogue import Model, Rates
from adapters.pricing import PIECE_UNITS
from console.access import Reader
from console.context import Console, ConsoleOf
from console.errors import Refused
from ledger.money import NANO_PER_USD

_PER_MILLION = 10**6
_BASIS_POINTS = 10_000


class PriceOut(BaseModel):
    """What is paid for one kind of unit: USD per million tokens, or USD a piece."""

    unit: str
    usd: str
    per: str = Field(description="`million` or `piece`")


class PriceRowOut(BaseModel):
    """The prices that hold for input longer than `above_input_tokens`, at a service tier."""

    above_input_tokens: int
    service_tier: str
    prices: list[PriceOut]


class ModelOut(BaseModel):
    """A model. 0 means that a size is not known, or that there is no limit."""

    id: str
    kind: str
    owned_by: str
    context_window: int
    max_output_tokens: int
    capabilities: list[str]
    rpm: int
    tpm: int
    upstreams: list[str]
    price_rows: list[PriceRowOut]


class ModelsOut(BaseModel):
    """Every model that is served, by name."""

    models: list[ModelOut]


router = APIRouter(tags=["models"])


@router.get("/accounts/{account}/models", summary="Models and prices")
async def list_models(_: Reader, console: ConsoleOf) -> ModelsOut:
    """What may be asked for, and what it costs."""
    return ModelsOut(models=models(console))


@router.get("/models", summary="Models and prices, for everybody")
async def list_public_models(console: ConsoleOf) -> ModelsOut:
    """The same without signing in, where the operator has switched that on."""
    if not console.settings.public_models:
        raise Refused(404, "not_found", "The list of models is not public here.")
    return ModelsOut(models=models(console))


def models(console: Console) -> list[ModelOut]:
    """Every model of the catalogue, by name."""
    margin = console.server.margin_bps
    found = console.server.catalogue.models
    return [_model(found[name], margin) for name in sorted(found)]


def _model(model: Model, margin_bps: int) -> ModelOut:
    rows = model.prices.variants if model.prices is not None else {}
    return ModelOut(
        id=model.id,
        kind=model.kind,
        owned_by=model.owned_by,
        context_window=model.context_window,
        max_output_tokens=model.max_output_tokens,
        capabilities=list(model.capabilities),
        rpm=model.rpm,
        tpm=model.tpm,
        upstreams=[upstream.name for upstream in model.upstreams],
        price_rows=[
            PriceRowOut(
                above_input_tokens=threshold,
                service_tier=tier,
                prices=_prices(rates, margin_bps),
            )
            for (threshold, tier), rates in sorted(rows.items())
        ],
    )


def _prices(rates: Rates, margin_bps: int) -> list[PriceOut]:
    """Kinds that cost nothing, or what `input` or `output` costs, say nothing new."""
    components = dict(rates.components)
    return [
        _price(unit, paid_for(amount, margin_bps))
        for unit, amount in components.items()
        if unit in ("input", "output") or amount not in (0, _otherwise(unit, components))
    ]


def _price(unit: str, usd_per_million: Decimal) -> PriceOut:
    if unit in PIECE_UNITS:
        return PriceOut(unit=unit, usd=decimal_text(usd_per_million / _PER_MILLION), per="piece")
    return PriceOut(unit=unit, usd=decimal_text(usd_per_million), per="million")


def _otherwise(unit: str, components: Mapping[str, int]) -> int:
    if unit in PIECE_UNITS:
        return 0
    whole = "output" if unit in ("reasoning", "audio_output") else "input"
    return components.get(whole, 0)


def paid_for(amount: int, margin_bps: int) -> Decimal:
    """The exact USD that a customer pays where a provider takes so many nano-dollars."""
    return Decimal(amount) * (_BASIS_POINTS + margin_bps) / _BASIS_POINTS / NANO_PER_USD


def decimal_text(amount: Decimal) -> str:
    """An exact amount with no more digits than it needs."""
    text = f"{amount:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
