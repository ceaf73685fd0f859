"""What every answer of the console tells a browser, and who may ask for a change.

Problem: whatever page a person has open may make their browser send requests here, with the session
cookie, or show the console in a frame; and a text that came from somewhere else may turn out to be
a script. Approach, in one piece of ASGI around the whole app:

- A request that changes something has to come from our own pages. Browsers say where one comes from
  (`Sec-Fetch-Site`, older ones `Origin`) and pages cannot change that. What says neither is no
  browser: it may do without, unless it brings a session cookie. `/mcp` knows no cookies.
- Scripts, styles and forms are our own files and addresses, no others, and nothing stands inline
  (`content-security-policy`).
- Nothing is kept by caches, but for what says so itself.
- Who asks: only `proxy/control.py` can reach our socket, and says in a header from which address.

Sign-in is limited to so many tries a minute from an address, and what is asked of Stripe to so many
for an account (`RateLimit`).
"""

from __future__ import annotations

import ipaddress
from collections import OrderedDict
from collections.abc import Callable, Hashable
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from console.errors import Refused, in_json

SESSION_COOKIE = "farebox_session"
CLIENT_HEADER = "x-farebox-client"

_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
_OUR_SITE = frozenset({"same-origin", "none"})  # none: typed in, or a bookmark
_COUNTED_MAX = 10_000
_IPV6_PREFIX_BITS = 64  # of which one subscriber has all addresses
_DEFAULT_PORTS = {"http": 80, "https": 443}

_HEADERS = (
    (
        "content-security-policy",
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
        "font-src 'self'; connect-src 'self'; form-action 'self' https://checkout.stripe.com; "
        "frame-ancestors 'none'; base-uri 'none'",
    ),
    ("x-content-type-options", "nosniff"),
    ("x-frame-options", "DENY"),  # for who does not know frame-ancestors
    # Not `no-referrer`: the forms of our own pages would have `Origin: null`, which over plain HTTP
    # to another machine is all that a browser says of where they come from.
    ("referrer-policy", "same-origin"),
    ("cross-origin-opener-policy", "same-origin"),
    ("cross-origin-resource-policy", "same-origin"),
)


class Guard:
    """The piece of ASGI described above, around `app`."""

    def __init__(self, app: ASGIApp, public_url: str) -> None:
        self._app = app
        self._origin = origin_of(public_url)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI entry point."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        scope["client"] = (headers.get(CLIENT_HEADER, ""), 0)
        if self._origin is not None and headers.get("host", "") == self._origin[1]:
            scope["scheme"] = self._origin[0]  # whoever ends TLS before us does not say it

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                told = MutableHeaders(scope=message)
                for name, value in _HEADERS:
                    told.setdefault(name, value)
                told.setdefault("cache-control", "no-store")
            await send(message)

        if self._is_foreign(scope["method"], scope["path"], headers):
            message = "This request does not come from the console's own pages."
            await in_json(Refused(403, "cross_origin", message))(scope, receive, send_guarded)
            return
        await self._app(scope, receive, send_guarded)

    def _is_foreign(self, method: str, path: str, headers: Headers) -> bool:
        """Whether it would change something, and is not known to come from our pages."""
        if method in _SAFE_METHODS or path == "/mcp" or path.startswith("/mcp/"):
            return False
        if (site := headers.get("sec-fetch-site")) is not None:
            return site not in _OUR_SITE
        if (origin := headers.get("origin")) is not None:
            return not self._is_ours(origin_of(origin), headers.get("host", "").lower())
        return f"{SESSION_COOKIE}=" in headers.get("cookie", "")

    def _is_ours(self, origin: tuple[str, str] | None, host: str) -> bool:
        """Whether a page from `origin` is ours, where this request came to `host`."""
        if origin is None or origin == self._origin:
            return origin is not None
        reached_there = self._origin is not None and self._origin[1] == host
        return origin[1] == host and not reached_there  # there only its own scheme will do


def origin_of(url: str) -> tuple[str, str] | None:
    """Scheme and authority of a URL as browsers compare them; None where it is no origin."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return None
    if parts.scheme not in _DEFAULT_PORTS or not parts.hostname:
        return None
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    if port is None or port == _DEFAULT_PORTS[parts.scheme]:
        return parts.scheme, host
    return parts.scheme, f"{host}:{port}"


class RateLimit:
    """At most so many tries in so many seconds of whoever is counted; the oldest are forgotten.

    Who it is, is up to the caller: an account's number, or for an address its `network_of`.
    """

    def __init__(self, tries: int, seconds: float, clock: Callable[[], float]) -> None:
        self._tries = tries
        self._seconds = seconds
        self._clock = clock
        self._since: OrderedDict[Hashable, tuple[float, int]] = OrderedDict()

    def admit(self, who: Hashable) -> float:
        """Count a try. 0 where it is admitted, otherwise in how many seconds the next may be."""
        now = self._clock()
        began, made = self._since.get(who, (now, 0))
        if now - began >= self._seconds:
            began, made = now, 0
        if made >= self._tries:
            return began + self._seconds - now
        self._since[who] = (began, made + 1)
        self._since.move_to_end(who)
        if len(self._since) > _COUNTED_MAX:
            self._since.popitem(last=False)
        return 0.0


def network_of(address: str) -> str:
    """What counts as one address: of IPv6 the network of which one subscriber has every address.

    What is no address stays as it is.
    """
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv6Address):
        parsed = parsed.ipv4_mapped or parsed
    if parsed.version == 4:
        return str(parsed)
    return str(ipaddress.ip_network((parsed, _IPV6_PREFIX_BITS), strict=False))
