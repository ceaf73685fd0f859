"""Protocol name to codec, path to operation: written out, nothing registers itself.

Three dialects share one port, and `/v1/models` even one path. A path under `/anthropic` or
`/gemini` says which is meant; elsewhere the operation does, and for the list of models the headers:
Google's key or client header, Anthropic's version header, else OpenAI.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple
from urllib.parse import unquote

from adapters.anthropic import routes as anthropic
from adapters.anthropic.upstream import MessagesUpstream
from adapters.catalogue import Protocol
from adapters.codec import Operation, Refusals, UpstreamCodec
from adapters.errors import MethodNotAllowed, NotFound
from adapters.gemini import routes as gemini
from adapters.gemini.upstream import GeminiUpstream
from adapters.openai import routes as openai
from adapters.openai.chat_upstream import ChatUpstream
from adapters.openai.responses_encode import OUTPUT_TOKENS_MIN
from adapters.openai.responses_upstream import ResponsesUpstream

_UPSTREAMS: Mapping[Protocol, UpstreamCodec] = MappingProxyType(
    {
        "openai": ChatUpstream(),
        "openai-responses": ResponsesUpstream(),
        "anthropic": MessagesUpstream(),
        "gemini": GeminiUpstream(),
    }
)

# The lowest output cap that a provider takes: lower ones are raised to it.
OUTPUT_CAP_MIN: Mapping[Protocol, int] = MappingProxyType({"openai-responses": OUTPUT_TOKENS_MIN})

# What is asked where nothing is known yet, with the words for an error there.
UNKNOWN = Operation("unknown", "", 0, openai.REFUSALS)

_ANTHROPIC, _GEMINI = "/anthropic", "/gemini"
_MESSAGES = "/v1/messages"
_VERSION_TWICE = re.compile(r"/v1(?:beta|alpha)?/v1")
_ID = "{id}"

Routes = Mapping[tuple[str, str], Operation]


class Match(NamedTuple):
    """An operation, with the id that its path names (percent-decoded; empty where it has none)."""

    operation: Operation
    id: str = ""


class _Template(NamedTuple):
    """A path with an id in it, which may hold slashes."""

    method: str
    before: str
    after: str
    operation: Operation

    def id_in(self, path: str) -> str:
        """The id, empty where the path is another."""
        if len(path) <= len(self.before) + len(self.after):
            return ""
        if not (path.startswith(self.before) and path.endswith(self.after)):
            return ""
        return unquote(path[len(self.before) : len(path) - len(self.after)])


class _Table:
    """The paths of one dialect."""

    def __init__(self, *routes: Routes) -> None:
        everything = {route: op for table in routes for route, op in table.items()}
        self._exact = {route: op for route, op in everything.items() if _ID not in route[1]}
        templates = [
            _Template(method, *path.partition(_ID)[::2], operation)
            for (method, path), operation in everything.items()
            if _ID in path
        ]
        # The longer ending first: an id may hold slashes, `/cancel` is not part of one.
        self._templates = sorted(templates, key=lambda each: -len(each.after))
        self._methods = sorted({method for method, _ in everything})

    def find(self, method: str, path: str) -> Match | None:
        """What is at `path`, or None. Raises MethodNotAllowed where another method is served."""
        found = self._lookup(method, path)
        if found is not None:
            return found
        served = [other for other in self._methods if self._lookup(other, path) is not None]
        if served:
            raise MethodNotAllowed(
                f"{path} is served for {' and '.join(served)}, not {method}.",
                headers=[("allow", ", ".join(served))],
            )
        return None

    def _lookup(self, method: str, path: str) -> Match | None:
        operation = self._exact.get((method, path))
        if operation is not None:
            return Match(operation)
        for template in self._templates:
            if template.method == method and (name := template.id_in(path)):
                return Match(template.operation, name)
        return None


def _names_models(path: str) -> bool:
    return path.startswith("/v1/models") and path[10:11] in ("", "/")


_OPENAI_TABLE = _Table(openai.ROUTES)
_ANTHROPIC_TABLE = _Table(anthropic.ROUTES, anthropic.MODEL_ROUTES)
_SHARED_TABLE = _Table(openai.ROUTES, anthropic.ROUTES)
# Those of it that are asked most: no id in the path, and no header decides.
_EXACT: Mapping[tuple[str, str], Match] = MappingProxyType(
    {
        (method, path): Match(operation)
        for (method, path), operation in {**openai.ROUTES, **anthropic.ROUTES}.items()
        if _ID not in path and not _names_models(path)
    }
)
_EVERY_OPERATION = (*openai.OPERATIONS, *anthropic.OPERATIONS, *gemini.OPERATIONS)

# What the numbers in the books mean: (surface, endpoint).
ENDPOINTS: Mapping[int, tuple[str, str]] = MappingProxyType(
    {operation.number: (operation.surface, operation.name) for operation in _EVERY_OPERATION}
)


def find(method: str, path: str, query: str = "", headers: Mapping[bytes, bytes] = {}) -> Match:
    """What a request line asks for; `path` is without its query, still percent-encoded.

    A slash at the end is ignored. Raises NotFound, or MethodNotAllowed where another method is
    served.
    """
    if (exact := _EXACT.get((method, path))) is not None:
        return exact
    path = path.rstrip("/")
    if path.startswith(f"{_ANTHROPIC}/"):
        found = _ANTHROPIC_TABLE.find(method, path[len(_ANTHROPIC) :])
    elif path.startswith(f"{_GEMINI}/"):
        found = _find_gemini(method, path[len(_GEMINI) :])
    elif _names_models(path):
        found = _find_models(method, path, query, headers)
    else:
        found = _SHARED_TABLE.find(method, path) or _find_gemini(method, path)
    if found is None:
        raise NotFound(f"There is nothing at {path or '/'}{_advice(method, path)}.")
    return found


def _advice(method: str, path: str) -> str:
    """What is to be done about a path that comes from a wrong base URL."""
    if _VERSION_TWICE.search(path):
        return "; the SDK adds the version, leave it out of the base URL"
    if (method, f"/v1{path}") in openai.ROUTES:
        return "; add /v1 to the base URL"
    return ""


def refusals(path: str, query: str, headers: Mapping[bytes, bytes]) -> Refusals:
    """In whose words to refuse what is no operation at all: as far as the caller gives itself
    away."""
    if path.startswith((_ANTHROPIC, _MESSAGES)) or _is_anthropic(headers):
        return anthropic.REFUSALS
    if path.startswith((_GEMINI, "/v1beta/", "/v1alpha/")) or _is_google(query, headers):
        return gemini.REFUSALS
    return UNKNOWN.refusals


def upstream_codec(protocol: Protocol) -> UpstreamCodec:
    """The codec for chat models at providers that speak `protocol`; `embedders` has the others."""
    return _UPSTREAMS[protocol]


def _find_models(
    method: str, path: str, query: str, headers: Mapping[bytes, bytes]
) -> Match | None:
    """`/v1/models…`, which three dialects share; only Google's has calls below it."""
    if method != "GET" or _is_google(query, headers):
        return _find_gemini(method, path)
    table = _ANTHROPIC_TABLE if _is_anthropic(headers) else _OPENAI_TABLE
    return table.find(method, path)


def _find_gemini(method: str, path: str) -> Match | None:
    found = gemini.find(method, path)
    return None if found is None else Match(*found)


def _is_google(query: str, headers: Mapping[bytes, bytes]) -> bool:
    return (
        b"x-goog-api-key" in headers
        or b"x-goog-api-client" in headers
        or query.startswith("key=")
        or "&key=" in query
    )


def _is_anthropic(headers: Mapping[bytes, bytes]) -> bool:
    return b"anthropic-version" in headers
