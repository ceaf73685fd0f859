"""The list of models, with their prices, as OpenAI's SDK reads it."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from adapters.catalogue import Model


def model_list(models: Iterable[Model]) -> bytes:
    """The body of `GET /v1/models`."""
    return msgspec.json.encode({"object": "list", "data": [_entry(model) for model in models]})


def model_entry(model: Model) -> bytes:
    """The body of `GET /v1/models/{id}`."""
    return msgspec.json.encode(_entry(model))


def _entry(model: Model) -> dict[str, object]:
    return {
        "id": model.id,
        "object": "model",
        "created": model.created,
        "owned_by": model.owned_by,
        "pricing": None if model.prices is None else dict(model.prices.published),
    }
