"""A stand-in for an issuer's own page, where people sign in and are sent back with a fragment.

As Supabase does it: `/authorize?redirect_to=…` shows a page; whoever goes on there is redirected to
`RETURNS_TO#access_token=…`, or to whatever a test says that the fragment is. A `state` that the
page was asked with comes back in the fragment, as of OAuth's implicit grant (RFC 6749, 4.2.2).

It is at `localhost`, and consoles of tests are at 127.0.0.1: another site, as in the real world.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlencode, urlsplit

_PAGE = """<!doctype html><html lang="en"><head><title>Issuer</title><link rel="icon" href="data:,">
</head><body><h1>Issuer</h1><a href="/callback">Continue</a></body></html>"""


@dataclass
class LoginPage:
    """The page at `url`; it sends people to `returns_to` with `answer` in the fragment."""

    url: str = ""
    returns_to: str = ""
    answer: dict[str, str] = field(default_factory=dict)
    states: list[str] = field(default_factory=list)  # with which it was asked

    def signs_in(self, token: str) -> None:
        """Let the next one be whom `token` is about."""
        self.answer = {
            "access_token": token,
            "refresh_token": "of-no-use-here",
            "expires_in": "3600",
            "token_type": "bearer",
        }

    def fragment(self) -> str:
        """What stands behind the `#`."""
        state = {"state": self.states[-1]} if self.states else {}
        return urlencode(self.answer | state)


@contextmanager
def serving() -> Iterator[LoginPage]:
    """The page on a loopback port, for the time of the block."""
    page = LoginPage()
    handler = type("Handler", (_Requests,), {"page": page})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    page.url = f"http://localhost:{server.server_address[1]}/authorize?provider=google"
    thread = threading.Thread(target=server.serve_forever, args=[0.05], daemon=True)
    thread.start()
    try:
        yield page
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Requests(BaseHTTPRequestHandler):
    page: LoginPage

    def do_GET(self) -> None:
        """The page, or the way back from it."""
        parts = urlsplit(self.path)
        if parts.path == "/callback":
            self.send_response(303)
            self.send_header("location", f"{self.page.returns_to}#{self.page.fragment()}")
            self.end_headers()
            return
        self.page.states += parse_qs(parts.query).get("state", [])
        self.send_response(200)
        self.send_header("content-type", "text/html; charset=utf-8")
        self.end_headers()
        self.wfile.write(_PAGE.encode())

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name
        """Nothing to be read."""
