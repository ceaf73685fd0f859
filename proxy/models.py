"""The list of models, answered from the snapshot: what is priced, and at which prices."""

from __future__ import annotations

from adapters.errors import ModelNotAvailable
from adapters.openai.models import model_entry, model_list
from proxy.route import Snapshot


def answer(snapshot: Snapshot, name: str) -> bytes:
    """The body of one entry, or of the whole list where `name` is empty.

    Raises ModelNotAvailable.
    """
    if not name:
        return model_list(
            model for model in snapshot.catalogue.models.values() if model.id in snapshot.routes
        )
    route = snapshot.routes.get(name)
    if route is None:
        raise ModelNotAvailable(f"The model {name!r} is not available here.", param="model")
    return model_entry(route.model)
