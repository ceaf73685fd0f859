"""Heads of answers: an ordinary one is read as h11 reads it, and every other one by h11."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from proxy.upstream_errors import AttemptFailed
from proxy.upstream_head import HeadReader, ResponseHead, ordinary_head

# As a large provider's edge answers, with what it says of its limits, its proxies and its cookies.
PROVIDER = b"""HTTP/1.1 200 OK
Date: Sat, 21 Nov 2026 20:00:00 GMT
Content-Type: application/json
Transfer-Encoding: chunked
Connection: keep-alive
access-control-expose-headers: X-Request-ID
openai-organization: user-abcdefghijklmnop
openai-processing-ms: 412
openai-version: 2020-10-01
x-ratelimit-limit-requests: 10000
x-ratelimit-remaining-requests: 9999
x-ratelimit-reset-requests: 6ms
x-request-id: req_0123456789abcdef
strict-transport-security: max-age=31536000; includeSubDomains; preload
CF-Cache-Status: DYNAMIC
Set-Cookie: __cf_bm=Abc.def-1732219200-1.0.1.1; path=/; expires=Sat, 21-Nov-26 20:30:00 GMT; Secure
Set-Cookie: _cfuvid=abc-0.0.1.1-604800000; path=/; domain=.api.openai.com; HttpOnly
X-Content-Type-Options: nosniff
Server: cloudflare
CF-RAY: 8e6a1b2c3d4e5f60-FRA
alt-svc: h3=":443"; ma=86400

""".replace(b"\n", b"\r\n")


def told(head: ResponseHead) -> tuple[object, ...]:
    """All that a head says; h11 writes the name of a coding in lower case."""
    framing = (head.length, head.chunked, head.keeps_alive)
    headers = dict(head.headers())
    if b"transfer-encoding" in headers:
        headers[b"transfer-encoding"] = headers[b"transfer-encoding"].lower()
    return head.status, framing, headers, head.ahead


def by_h11(data: bytes) -> tuple[object, ...] | None:
    """What h11 reads; None where it refuses, or there is no whole head."""
    try:
        head = HeadReader().feed(data)
    except AttemptFailed:
        return None
    return None if head is None else told(head)


def field(*values: bytes) -> st.SearchStrategy[bytes]:
    """One of several header lines; ordinary ones are more frequent."""
    return st.sampled_from(values)


FIELD = st.one_of(
    field(
        b"content-length: 5", b"Content-Length:12 ", b"content-length: ", b"content-length: 1, 1"
    ),
    field(
        b"transfer-encoding: chunked", b"Transfer-Encoding:\tChunked", b"transfer-encoding: gzip"
    ),
    field(b"connection: close", b"Connection: Keep-Alive", b"connection: x, close", b"connection:"),
    field(b"retry-after: 5", b"Retry-After:  7 \t", b"Set-Cookie: a=b; c", b"x: \xe9", b"x:\x01"),
    field(b" folded", b"bad name: 1", b"no-colon", b"x: a\x00b", b": empty", b"x : y", b"x: a\rb"),
    st.tuples(st.binary(max_size=6), st.binary(max_size=6)).map(b":".join),
    st.tuples(
        st.from_regex(rb"[!#-'*-.0-9A-Z^-z|~]{1,6}", fullmatch=True), st.binary(max_size=9)
    ).map(b": ".join),
)
STATUS = field(
    *[b"HTTP/1.1 200 OK"] * 6,
    *[b"HTTP/1.1 429 Too Many Requests", b"HTTP/1.1 204 No Content", b"HTTP/1.1 503"],
    *[b"HTTP/1.0 200 OK", b"HTTP/1.1 103 Early Hints", b"HTTP/1.1 2000 OK", b"HTTP/1.1 200 \xe9"],
    *[b"HTTP/1.1 200 ", b"http/1.1 200 OK", b"HTTP/1.1  200 OK", b"", b"HTTP/1.1 304 \x02"],
)
BREAK = field(*[b"\r\n"] * 12, b"\n", b"\r", b"\r\r\n", b"")


@st.composite
def heads(draw: st.DrawFn) -> bytes:
    """A head, ordinary or not, and what may come behind it."""
    data = draw(STATUS) + draw(BREAK)
    for each in draw(st.lists(FIELD, max_size=6)):
        data += each + draw(BREAK)
    return data + draw(BREAK) + draw(st.binary(max_size=8))


@given(heads())
@example(b"HTTP/1.1 200 OK\r\nTransfer-Encoding:\tChunked\r\n\r\n")
def test_what_is_read_here_h11_reads_alike(data: bytes) -> None:
    head = ordinary_head(data)
    if head is not None:
        assert told(head) == by_h11(data)


@given(st.binary(max_size=80), st.integers(0, len(PROVIDER)), st.integers(0, 4))
def test_a_damaged_head_is_read_as_h11_reads_it(junk: bytes, at: int, cut: int) -> None:
    data = PROVIDER[:at] + junk + PROVIDER[at + cut :]
    head = ordinary_head(data)
    if head is not None:
        assert told(head) == by_h11(data)


@pytest.mark.parametrize("byte", range(256))
def test_every_byte_is_read_as_h11_reads_it(byte: int) -> None:
    for damaged in (b"x%c: y\r\n", b"x: y%cz\r\n", b"x: y%c\r\n", b"%cx: y\r\n", b"x%c y: z\r\n"):
        data = b"HTTP/1.1 200 OK\r\na: b\r\n" + damaged % byte + b"\r\nbody"
        head = ordinary_head(data)
        assert head is None or told(head) == by_h11(data)


@pytest.mark.parametrize(
    "head",
    [
        PROVIDER,
        PROVIDER.replace(b"\r\nTransfer-Encoding: chunked", b"\r\nContent-Length: 625"),
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n",
        b"HTTP/1.1 429 Too Many Requests\r\nRetry-After: 7\r\nconnection: close\r\n\r\n",
    ],
)
def test_ordinary_heads_never_need_h11(head: bytes) -> None:
    read = ordinary_head(head + b"body")
    assert read is not None
    assert told(read) == by_h11(head + b"body")
    assert read.ahead == b"body"
    for cut in range(len(head)):
        assert ordinary_head(head[:cut]) is None


@pytest.mark.parametrize("status", [204, 304])
def test_an_answer_that_has_no_body_is_h11s(status: int) -> None:
    data = b"HTTP/1.1 %d x\r\nContent-Length: 5\r\n\r\n" % status
    assert ordinary_head(data) is None
    head = HeadReader().feed(data)
    assert head is not None
    assert head.length == 0


def test_a_head_in_parts_is_read() -> None:
    for cut in range(1, len(PROVIDER)):
        reader = HeadReader()
        assert reader.feed(PROVIDER[:cut]) is None
        head = reader.feed(PROVIDER[cut:])
        assert head is not None
        assert head.chunked


def test_what_only_refusals_are_asked_for_is_found() -> None:
    head = ordinary_head(b"HTTP/1.1 429 No\r\nRetry-After:  7 \r\nX: 1\r\nx: 2\r\nE:\r\n\r\n")
    assert head is not None
    assert head.headers() == {b"retry-after": b"7", b"x": b"2", b"e": b""}
