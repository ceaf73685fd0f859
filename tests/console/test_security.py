"""What surrounds the whole console: who may change something, what browsers are told, how often."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from console.security import (
    CLIENT_HEADER,
    SESSION_COOKIE,
    Guard,
    RateLimit,
    network_of,
    origin_of,
)
from tests.fakes.console import ADDRESS, PUBLIC_URL, Browser

METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"]
COOKIE = f"{SESSION_COOKIE}=abc"


async def _echo(request: Request) -> Response:
    assert request.client is not None
    return JSONResponse({"address": request.client.host, "scheme": request.url.scheme})


async def _picture(_: Request) -> Response:
    return PlainTextResponse("<svg/>", headers={"cache-control": "public, max-age=60"})


def guarded(public_url: str = PUBLIC_URL) -> Guard:
    routes = [
        Route("/console/thing", _echo, methods=METHODS),
        Route("/mcp", _echo, methods=METHODS),
        Route("/console/static/icon.svg", _picture),
    ]
    return Guard(Starlette(routes=routes), public_url)


async def ask(
    method: str = "POST",
    path: str = "/console/thing",
    public_url: str = PUBLIC_URL,
    **headers: str,
) -> int:
    fields = {name.replace("_", "-"): value for name, value in headers.items()}
    async with Browser(guarded(public_url), base_url=public_url) as browser:
        del browser.headers["sec-fetch-site"]
        return (await browser.request(method, path, headers=fields)).status_code


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"sec_fetch_site": "same-origin", "cookie": COOKIE}, 200),
        ({"sec_fetch_site": "none", "cookie": COOKIE}, 200),
        ({"sec_fetch_site": "same-site", "cookie": COOKIE}, 403),
        ({"sec_fetch_site": "cross-site", "cookie": COOKIE}, 403),
        ({"sec_fetch_site": "cross-site"}, 403),  # signing somebody else in is a change, too
        ({"sec_fetch_site": "cross-site", "origin": PUBLIC_URL, "cookie": COOKIE}, 403),
        ({"origin": PUBLIC_URL, "cookie": COOKIE}, 200),
        ({"origin": f"{PUBLIC_URL}.evil.test", "cookie": COOKIE}, 403),
        ({"origin": "https://evil.test", "cookie": COOKIE}, 403),
        ({"origin": "https://evil.test"}, 403),
        ({"origin": "null", "cookie": COOKIE}, 403),
        ({"cookie": COOKIE}, 403),
        ({"cookie": f"theme=dark; {COOKIE}"}, 403),
        ({"cookie": "theme=dark"}, 200),
        ({"authorization": "Bearer abc"}, 200),
        ({}, 200),
    ],
)
async def test_a_change_has_to_come_from_our_own_pages(
    method: str, headers: dict[str, str], status: int
) -> None:
    assert await ask(method, **headers) == status


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_looking_is_no_change(method: str) -> None:
    assert await ask(method, sec_fetch_site="cross-site", cookie=COOKIE) == 200


async def test_tools_know_no_cookies() -> None:
    assert await ask(path="/mcp", sec_fetch_site="cross-site", cookie=COOKIE) == 200
    assert await ask(path="/mcpx", sec_fetch_site="cross-site", cookie=COOKIE) == 403


@pytest.mark.parametrize(
    ("public_url", "host", "origin", "status"),
    [
        ("https://gateway.test", "gateway.test", "https://gateway.test", 200),
        ("https://gateway.test", "gateway.test", "https://gateway.test:443", 200),
        ("https://gateway.test", "gateway.test", "https://gateway.test:8443", 403),
        ("https://gateway.test", "gateway.test", "http://gateway.test", 403),
        ("https://gateway.test", "10.0.0.1:8080", "http://10.0.0.1:8080", 200),
        ("https://gateway.test", "10.0.0.1:8080", "https://gateway.test", 200),
        ("https://gateway.test", "10.0.0.1:8080", "http://10.0.0.2:8080", 403),
        ("http://[::1]:8080", "[::1]:8080", "http://[::1]:8080", 200),
    ],
)
async def test_our_pages_are_where_we_are_reached(
    public_url: str, host: str, origin: str, status: int
) -> None:
    assert await ask(public_url=public_url, host=host, origin=origin, cookie=COOKIE) == status


async def test_a_refusal_has_the_consoles_form_and_headers() -> None:
    async with Browser(guarded()) as browser:
        answer = await browser.post("/console/thing", headers={"sec-fetch-site": "cross-site"})
    assert answer.json()["error"]["code"] == "cross_origin"
    assert answer.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("path", ["/console/thing", "/console/nothing", "/mcp"])
async def test_every_answer_tells_browsers_what_they_may_do(path: str) -> None:
    async with Browser(guarded()) as browser:
        headers = (await browser.get(path)).headers
    policy = dict(
        directive.strip().partition(" ")[::2]
        for directive in headers["content-security-policy"].split(";")
    )
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert policy["frame-ancestors"] == policy["base-uri"] == "'none'"
    assert policy["form-action"] == "'self' https://checkout.stripe.com"
    assert "unsafe" not in headers["content-security-policy"]
    assert headers["referrer-policy"] == "same-origin"  # with none, forms have `Origin: null`
    assert headers["cache-control"] == "no-store"


async def test_files_may_say_how_long_they_are_kept() -> None:
    async with Browser(guarded()) as browser:
        headers = (await browser.get("/console/static/icon.svg")).headers
    assert headers["cache-control"] == "public, max-age=60"


async def test_who_asks_is_known_by_address_and_scheme() -> None:
    async with Browser(guarded(), address="203.0.113.9") as browser:
        assert (await browser.get("/console/thing")).json()["address"] == "203.0.113.9"
        del browser.headers[CLIENT_HEADER]
        assert (await browser.get("/console/thing")).json()["address"] == ""
    behind_tls = guarded("https://gateway.test")
    async with Browser(behind_tls, base_url="http://gateway.test") as browser:
        assert (await browser.get("/console/thing")).json()["scheme"] == "https"
    async with Browser(behind_tls, base_url="http://10.0.0.1:8080") as browser:
        assert (await browser.get("/console/thing")).json()["scheme"] == "http"


@pytest.mark.parametrize(
    ("url", "origin"),
    [
        ("https://Gateway.test:443/console?x#y", ("https", "gateway.test")),
        ("http://gateway.test:80", ("http", "gateway.test")),
        ("http://gateway.test:443", ("http", "gateway.test:443")),
        ("http://user:password@gateway.test", ("http", "gateway.test")),
        ("http://[::1]:8080", ("http", "[::1]:8080")),
        ("null", None),
        ("", None),
        ("file:///etc/passwd", None),
        ("http://gateway.test:port", None),
        ("http://[::1", None),
    ],
)
def test_an_origin_is_what_browsers_compare(url: str, origin: tuple[str, str] | None) -> None:
    assert origin_of(url) == origin


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_so_many_tries_in_so_many_seconds() -> None:
    clock = Clock()
    limit = RateLimit(3, 60.0, clock)
    assert [limit.admit(ADDRESS) for _ in range(3)] == [0, 0, 0]
    clock.now += 20
    assert limit.admit(ADDRESS) == 40
    assert limit.admit("198.51.100.1") == 0  # others are not held responsible
    clock.now += 40
    assert limit.admit(ADDRESS) == 0


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("2001:db8::1", "2001:db8::ffff:1", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("192.0.2.1", "192.0.2.2", False),
        ("", "", True),
        ("::ffff:192.0.2.1", "192.0.2.1", True),
        ("::ffff:192.0.2.1", "::ffff:192.0.2.2", False),
    ],
)
def test_an_address_is_what_one_subscriber_has(one: str, other: str, *, same: bool) -> None:
    limit = RateLimit(1, 60.0, Clock())
    assert limit.admit(network_of(one)) == 0
    assert (limit.admit(network_of(other)) > 0) is same


def test_no_more_addresses_are_remembered_than_there_is_room_for() -> None:
    limit = RateLimit(1, 60.0, Clock())
    for number in range(20_000):
        limit.admit(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}")
    assert len(limit._since) == 10_000


@given(
    st.lists(st.tuples(st.floats(0, 30), st.sampled_from(["192.0.2.1", "192.0.2.2"])), max_size=60)
)
def test_nobody_gets_more_than_twice_the_tries_in_any_window(
    steps: list[tuple[float, str]],
) -> None:
    """A window begins with its first try, so two of them may meet."""
    clock = Clock()
    limit = RateLimit(5, 60.0, clock)
    admitted: dict[str, list[float]] = {}
    for pause, address in steps:
        clock.now += pause
        wait = limit.admit(address)
        assert 0 <= wait <= 60
        if not wait:
            admitted.setdefault(address, []).append(clock.now)
    for moments in admitted.values():
        for first in moments:
            assert sum(first <= moment < first + 60 for moment in moments) <= 10
