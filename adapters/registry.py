"""Protocol name to codec, path to operation: written out, nothing registers itself."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple
from urllib.parse import unquote

from adapters.catalogue import Kind, Protocol
from adapters.codec import Operation, UpstreamCodec
from adapters.errors import InvalidRequest, MethodNotAllowed, NotFound
from adapters.openai import routes as openai
from adapters.openai.chat_upstream import ChatUpstream
from adapters.openai.embeddings import EmbeddingsUpstream

_UPSTREAMS: Mapping[tuple[Protocol, Kind], UpstreamCodec] = MappingProxyType(
    {
        ("openai", "chat"): ChatUpstream(),
        ("openai", "embedding"): EmbeddingsUpstream(),
    }
)

# What words an error where no operation is known: a path that nobody serves.
DEFAULT_REFUSALS = openai.REFUSALS

# What the numbers in the books mean: (surface, endpoint).
ENDPOINTS: Mapping[int, tuple[str, str]] = MappingProxyType(
    {operation.number: (operation.surface, operation.name) for operation in openai.ROUTES.values()}
)

_ID = "{id}"
_EXACT = {route: operation for route, operation in openai.ROUTES.items() if _ID not in route[1]}
_BY_PREFIX = {
    (method, path.removesuffix(_ID)): operation
    for (method, path), operation in openai.ROUTES.items()
    if path.endswith(_ID)
}


class Match(NamedTuple):
    """An operation, with the id that its path names (percent-decoded; empty where it has none)."""

    operation: Operation
    id: str = ""


def find(method: str, path: str) -> Match:
    """What a request line asks for; `path` is without its query, still percent-encoded.

    A slash at the end is ignored. Raises NotFound, or MethodNotAllowed where another method is
    served.
    """
    operation = _EXACT.get((method, path))
    if operation is not None:
        return Match(operation)
    path = path.rstrip("/")
    match = _lookup(method, path)
    if match is not None:
        return match
    served = sorted({other for other, _ in openai.ROUTES if _lookup(other, path) is not None})
    if served:
        raise MethodNotAllowed(f"{path} is served for {' and '.join(served)}, not {method}.")
    raise NotFound(f"There is nothing at {path or '/'}.")


def upstream_codec(protocol: Protocol, kind: Kind) -> UpstreamCodec:
    """The codec for models of `kind` at providers that speak `protocol`.

    Raises InvalidRequest where that combination cannot be served.
    """
    codec = _UPSTREAMS.get((protocol, kind))
    if codec is None:
        raise InvalidRequest(f"This model's provider offers no {kind} endpoint.", param="model")
    return codec


def _lookup(method: str, path: str) -> Match | None:
    operation = _EXACT.get((method, path))
    if operation is not None:
        return Match(operation)
    for (served, prefix), operation in _BY_PREFIX.items():
        if served == method and len(path) > len(prefix) and path.startswith(prefix):
            return Match(operation, unquote(path[len(prefix) :]))
    return None
