"""The packaged price list: what the presets' known models cost, and what they can do.

One JSON file a preset, dated, written by `scripts/import_prices.py`; prices are US dollars per
million tokens as decimal strings, exactly the keys of `[models.price]`. A preset without public
prices has no file. Nothing here is fetched at run time: a newer list comes with a newer version,
and an operator's own `[models.price]` always wins.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from importlib import resources

import msgspec

from adapters.settings import PriceSettings


class KnownModel(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A model of one preset. `aliases` are other names the provider serves it under."""

    id: str
    aliases: tuple[str, ...] = ()
    kind: str = "chat"
    context_window: int = 0
    max_output_tokens: int = 0
    capabilities: tuple[str, ...] = ()
    deprecated: bool = False
    note: str = ""
    price: PriceSettings


class PriceFile(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What one preset's models cost on `date`, according to `source`."""

    preset: str
    date: str
    source: str
    models: tuple[KnownModel, ...] = ()


def price_file(preset: str) -> PriceFile | None:
    """The whole list of a preset, or None where it has no public prices."""
    file = resources.files(__name__) / f"{preset}.json"
    if not file.is_file():
        return None
    return msgspec.json.decode(file.read_bytes(), type=PriceFile)


@functools.cache
def known_models(preset: str) -> Mapping[str, KnownModel]:
    """The models of a preset by id and by alias; empty where none are known.

    An id goes before an alias of the same name.
    """
    file = price_file(preset)
    models = file.models if file else ()
    by_name = {alias: model for model in models for alias in model.aliases}
    return by_name | {model.id: model for model in models}
