"""A request to a provider, and its head: written from parts that configuration has checked.

All of a head but the body's length is the same from one request to the next, for one API key, path
and set of forwarded headers, and is therefore written once.
"""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import quote, urlsplit

import msgspec

from adapters.catalogue import Provider
from adapters.pieces import Body, length_of

_HEADS_MAX = 1024
_HEAD_BYTES_MAX = 2048  # clients may have more forwarded, and other things each time
_AUTH_HEADERS = {
    "bearer": "authorization: Bearer {}",
    "api-key": "api-key: {}",
    "x-api-key": "x-api-key: {}",
    "x-goog-api-key": "x-goog-api-key: {}",
}


class Sent(msgspec.Struct, eq=False):
    """One POST. `path` is relative to the base URL and may have a query; `headers` are added to
    the provider's. `once`: it may not be said twice, and so not over a used connection, which may
    break under it. `contacted`: the provider may have seen it, also where nobody was told how that
    ended."""

    path: str
    body: Body
    stream: bool = False
    headers: tuple[tuple[str, str], ...] = ()
    once: bool = False
    contacted: bool = False


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a provider's connections go."""

    host: str
    port: int
    tls: bool
    authority: str
    prefix: str  # path of the base URL, without a trailing slash

    @classmethod
    def of(cls, provider: Provider) -> Origin:
        parts = urlsplit(provider.base_url)
        tls = parts.scheme == "https"
        return cls(
            host=parts.hostname or "",
            port=parts.port or (443 if tls else 80),
            tls=tls,
            authority=parts.netloc.rpartition("@")[2],
            prefix=parts.path.rstrip("/"),
        )


class RequestHeads:
    """The heads of all requests to one provider, as it is configured."""

    __slots__ = ("_heads", "_origin", "provider")

    def __init__(self, origin: Origin, provider: Provider) -> None:
        self.provider = provider
        self._origin = origin
        self._heads: dict[tuple[object, ...], bytes] = {}

    def of(self, sent: Sent, api_key: str) -> bytes:
        """The head of `sent`, with one of the provider's keys; without any where that is empty."""
        key = (api_key, sent.path, sent.stream, sent.headers)
        fixed = self._heads.get(key)
        if fixed is None:
            fixed = self._written(sent, api_key)
            if len(self._heads) >= _HEADS_MAX:
                self._heads.clear()  # what is forwarded is for clients to choose
            if len(fixed) <= _HEAD_BYTES_MAX:
                self._heads[key] = fixed
        return b"%scontent-length: %d\r\n\r\n" % (fixed, length_of(sent.body))

    def _written(self, sent: Sent, api_key: str) -> bytes:
        """All of a head but the length of the body."""
        provider, origin = self.provider, self._origin
        query = "&".join(f"{quote(name)}={quote(value)}" for name, value in provider.query)
        target = origin.prefix + sent.path
        if query:
            target += f"{'&' if '?' in target else '?'}{query}"
        own = {
            "host": origin.authority,
            "user-agent": "farebox",
            "accept": "text/event-stream" if sent.stream else "application/json",
            "accept-encoding": "identity",
            "content-type": "application/json",
            **dict(sent.headers),
            **dict(provider.headers),
        }
        lines = [f"POST {target} HTTP/1.1"]
        if api_key:
            lines.append(_AUTH_HEADERS[provider.auth].format(api_key))
        lines += [f"{name}: {value}" for name, value in own.items()]
        head = "\r\n".join(lines).encode("latin-1")
        assert head.count(b"\r") == head.count(b"\n") == len(lines) - 1, (
            "neither configuration nor h11 admit line breaks"
        )
        return head + b"\r\n"
