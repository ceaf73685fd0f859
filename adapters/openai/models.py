"""The list of models, with their prices, as OpenAI's SDK reads it."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from adapters.codec import Listed


class ModelList:
    """`GET /v1/models` and `GET /v1/models/{id}`; there are no pages. A `codec.Listing`."""

    def page(self, models: Sequence[Listed], query: str) -> bytes:
        return msgspec.json.encode({"object": "list", "data": [_entry(each) for each in models]})

    def entry(self, model: Listed) -> bytes:
        return msgspec.json.encode(_entry(model))


def _entry(listed: Listed) -> dict[str, object]:
    model = listed.model
    return {
        "id": listed.id,
        "object": "model",
        "created": model.created,
        "owned_by": model.owned_by,
        "pricing": None if model.prices is None else dict(model.prices.published),
    }
