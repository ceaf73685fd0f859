"""The head of a client's request: who asks for what, and how long its body is.

Practically every head is of one plain form that can have one meaning only, and a few operations
over the whole of it suffice to read it:

- it comes whole, in one read; every line ends with CR LF, and neither occurs elsewhere;
- all is printable ASCII; a field is `name: value`, its name a token, its value not empty;
- no field occurs twice;
- it is of HTTP/1.1, for a path, with a host, and its body has a length or there is none;
- nothing is expected of us before the body is sent.

*Whatever else comes is not judged here*: it goes to h11, which stays the parser of record, and
accepts or refuses it as if the short way did not exist. So what is taken here has to be what h11
would have read: tests try that with any bytes (`tests/proxy/test_request_head.py`).
"""

from __future__ import annotations

import re
import string

import h11

from adapters.errors import InvalidRequest

_PRINTABLE = bytes(range(0x20, 0x7F))
_NAME = (string.ascii_lowercase + string.digits + "!#$%&'*+-.^_`|~").encode()
_REQUEST_LINE = re.compile(r"(GET|POST|DELETE) (/[!->@-~]*)(?:\?([!-~]*))? HTTP/1\.1")
_LENGTH_DIGITS_MAX = 20
# A request carries these at most once; two values would let two readers see two requests.
_SINGLE = frozenset(
    {b"authorization", b"content-type", b"content-encoding", b"idempotency-key", b"host"}
    | {b"x-api-key", b"x-goog-api-key", b"content-length", b"transfer-encoding"}
)


class Head:
    """A request's head: its target split into path and query, header names in lower case."""

    __slots__ = ("headers", "method", "path", "query")

    def __init__(self, method: str, path: str, query: str, headers: dict[bytes, bytes]) -> None:
        self.method = method
        self.path = path
        self.query = query
        self.headers = headers

    def header(self, name: bytes) -> str | None:
        """The value of a header by its lower-case name, or None."""
        value = self.headers.get(name)
        return None if value is None else value.decode("latin-1")


def plain_head(data: bytes) -> tuple[Head, bytes] | None:
    """The head that `data` begins with, and what comes behind it; None where that is not of the
    plain form, or not all there."""
    block, end, behind = data.partition(b"\r\n\r\n")
    first, *lines = block.split(b"\r\n")
    if not end or b"".join((first, *lines)).translate(None, _PRINTABLE):
        return None
    request_line = _REQUEST_LINE.fullmatch(first.decode("ascii"))
    if request_line is None:
        return None
    headers: dict[bytes, bytes] = {}
    for line in lines:
        name, _, value = line.partition(b": ")
        if not name or not value:
            return None
        headers[name.lower()] = value.strip()
    if len(headers) != len(lines) or not _is_plain(headers):
        return None
    method, path, query = request_line.groups("")
    return Head(method, path, query, headers), behind


def _is_plain(headers: dict[bytes, bytes]) -> bool:
    """Whether all names are tokens, and the request ends where its length says."""
    length = headers.get(b"content-length", b"0")
    return (
        not b"".join(headers).translate(None, _NAME)
        and b"host" in headers
        and length.isdigit()
        and len(length) <= _LENGTH_DIGITS_MAX
        and b"transfer-encoding" not in headers
        and b"expect" not in headers
    )


def head_of(event: h11.Request) -> Head:
    """The head that h11 has read. Raises InvalidRequest where it contradicts itself."""
    path, _, query = event.target.partition(b"?")
    pairs = event.headers.raw_items()  # a list at once; iterating over h11's type is slow
    headers = {name.lower(): value for name, value in pairs}
    if len(headers) != len(pairs):
        _refuse_conflicts(headers, pairs)
    method = event.method.decode("ascii")
    return Head(method, path.decode("latin-1"), query.decode("latin-1"), headers)


def _refuse_conflicts(headers: dict[bytes, bytes], pairs: list[tuple[bytes, bytes]]) -> None:
    for raw_name, value in pairs:
        name = raw_name.lower()
        if name in _SINGLE and headers[name] != value:
            raise InvalidRequest(f"The header {name.decode()} was sent twice.")
