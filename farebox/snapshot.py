"""What may be asked for: a catalogue joined with the numbers that the books give what it names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from adapters.catalogue import Catalogue, Rates
from farebox.config import Config
from ledger.directory import CatalogueIds, Directory, PriceRow
from ledger.money import Price
from proxy.route import BookIds, Snapshot

_Rows = Mapping[tuple[str, Rates], PriceRow]  # by upstream and what it takes


def snapshot(config: Config, served: Catalogue, directory: Directory) -> Snapshot:
    """Register what the catalogue names in the books, and join the two. Blocks."""
    rows = _price_rows(config, served)
    ids = directory.register_catalogue(
        list(served.models), list(served.providers), list(rows.values())
    )
    return _joined(config, served, rows, ids)


def on_offer(config: Config, served: Catalogue) -> Catalogue:
    """What of `served` the data plane answers to: for whoever lists models, or takes their names.

    What has no price is left out. `find` knows whatever may be asked for, so that virtual models
    are among the pinned names: each is the model that it means before anything is proven.
    """
    rows = _price_rows(config, served)
    no_ids = CatalogueIds(
        dict.fromkeys(served.models, 0),
        dict.fromkeys(served.providers, 0),
        dict.fromkeys(rows.values(), 0),
    )
    routes = _joined(config, served, rows, no_ids).routes
    return replace(
        served,
        models={name: model for name, model in served.models.items() if name in routes},
        pinned={
            name: (route.model, route.groups[0][0].upstream)
            for name, route in routes.items()
            if name not in served.models
        },
    )


def _price_rows(config: Config, served: Catalogue) -> _Rows:
    rows: dict[tuple[str, Rates], PriceRow] = {}
    for model in served.models.values():
        for upstream in model.upstreams:
            if upstream.prices is None:
                continue
            for (above, tier), rates in upstream.prices.variants.items():
                rows.setdefault(
                    (upstream.name, rates),
                    PriceRow(
                        model=model.id,
                        upstream=upstream.name,
                        variant=f"{above}/{tier}" if above or tier else "",
                        components=rates.components,
                        margin_bps=config.billing.margin_bps,
                    ),
                )
    return rows


def _joined(config: Config, served: Catalogue, rows: _Rows, ids: CatalogueIds) -> Snapshot:
    prices = {
        key: Price(ids.prices[row], dict(row.components), row.margin_bps)
        for key, row in rows.items()
    }
    return Snapshot.build(
        served,
        BookIds(ids.models, ids.providers, prices),
        brand=config.server.brand,
        reference=config.routing.default_reference,
    )
