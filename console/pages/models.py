"""Models with their prices, and how the providers are."""

from __future__ import annotations

from starlette.responses import Response

from console import catalogue, health
from console.errors import Refused
from console.pages import words
from console.pages.frame import Visit


async def show(visit: Visit) -> Response:
    """Models, prices, and how the providers are."""
    try:
        upstreams = await health.upstreams(visit.console)
    except Refused:
        upstreams = None
    facts = {"models": rows_of(catalogue.models(visit.console)), "upstreams": upstreams}
    return visit.render("models.html", "/models", facts)


def rows_of(models: list[catalogue.ModelOut]) -> list[dict[str, object]]:
    """Models as a table shows them."""
    rows: list[dict[str, object]] = []
    for model in models:
        first = model.price_rows[0].prices if model.price_rows else []
        plain = {price.unit: words.price(price.usd) for price in first}
        row: dict[str, object] = dict(model)
        row |= {
            "input": plain.get("input"),
            "output": plain.get("output"),
            "more": _more_prices(model),
        }
        rows.append(row)
    return rows


def _more_prices(model: catalogue.ModelOut) -> list[str]:
    """Whatever a price is beside that of input and output, in words."""
    said = []
    for row in model.price_rows:
        where = []
        if row.above_input_tokens:
            where.append(f"above {words.count(row.above_input_tokens)} tokens")
        if row.service_tier:
            where.append(row.service_tier)
        prices = [
            f"{price.unit.replace('_', ' ')} {words.price(price.usd)}"
            + (" each" if price.per == "piece" else "")
            for price in row.prices
            if where or price.unit not in ("input", "output")
        ]
        if prices:
            said.append(f"{', '.join(where)}: {', '.join(prices)}" if where else ", ".join(prices))
    return said
