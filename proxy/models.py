"""The list of models, answered from the snapshot: what this caller may use, and its prices."""

from __future__ import annotations

from collections.abc import Iterator

from adapters.codec import Ask, Listed, Operation
from adapters.errors import ModelNotAvailable
from proxy.authenticate import Principal
from proxy.route import Route, Snapshot, allowed


def answer(snapshot: Snapshot, principal: Principal, operation: Operation, ask: Ask) -> bytes:
    """The body of one entry, or of the whole list where the path names none.

    Raises ModelNotAvailable, and InvalidRequest for paging that is none.
    """
    assert operation.listing is not None, "it is an operation that lists"
    if not ask.id:
        return operation.listing.page(list(_listed(snapshot, principal)), ask.query)
    route = snapshot.routes.get(ask.id)
    if route is None or not allowed(principal, ask.id, route):
        raise ModelNotAvailable(f"The model {ask.id!r} is not available here.", param="model")
    return operation.listing.entry(_entry(ask.id, route))


def _listed(snapshot: Snapshot, principal: Principal) -> Iterator[Listed]:
    """Catalogue models, then virtual ones; a pinned upstream is not listed by itself."""
    names = [name for name in snapshot.catalogue.models if name in snapshot.routes]
    for name in (*names, *snapshot.virtual):
        route = snapshot.routes[name]
        if allowed(principal, name, route):
            yield _entry(name, route)


def _entry(name: str, route: Route) -> Listed:
    return Listed(name, route.model)
