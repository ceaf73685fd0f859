"""The head of a client's request: who asks for what, and how its body is framed.

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

Who keeps a connection says the same in each head, but for the length of the body. So a connection
remembers its last plain head, cut where that length stands: what is the same before and behind
other digits is as plain, and *is* that head again, with what was found out about it: its `Purpose`.
That keeps an API key in memory between two requests of its owner, as long as the connection stands
and no longer.
"""

from __future__ import annotations

import re
import string
from collections.abc import Mapping

import h11
import msgspec

from adapters.codec import Ask, Operation
from adapters.errors import InvalidRequest
from proxy.forwarded import FORWARDED_FOR

_PRINTABLE = bytes(range(0x20, 0x7F))
_NAME = (string.ascii_lowercase + string.digits + "!#$%&'*+-.^_`|~").encode()
_REQUEST_LINE = re.compile(r"(GET|POST|DELETE) (/[!->@-~]*)(?:\?([!-~]*))? HTTP/1\.1")
_LENGTH_DIGITS_MAX = 20
_REMEMBERED_BYTES_MAX = 4096  # a node may have ten thousand connections
# A request carries these at most once; two values would let two readers see two requests.
_SINGLE = frozenset(
    {b"authorization", b"content-type", b"content-encoding", b"idempotency-key", b"host"}
    | {b"x-api-key", b"x-goog-api-key", b"content-length", b"transfer-encoding"}
)


class Purpose(msgspec.Struct, frozen=True, gc=False):
    """What a head asks for, and the keyed hash of the key that it carries."""

    operation: Operation
    ask: Ask
    key_hash: bytes


class Head(msgspec.Struct, gc=False):
    """A request's head but for the length of its body: the target split into path and query, header
    names in lower case. `is_last`: the client sends no other request behind this one.

    Many requests may share it, so nothing of it changes, but that `purpose` is set by whoever finds
    it out.
    """

    method: str
    path: str
    query: str
    headers: Mapping[bytes, bytes]
    is_last: bool = False
    purpose: Purpose | None = None

    def header(self, name: bytes) -> str | None:
        """The value of a header by its lower-case name, or None."""
        value = self.headers.get(name)
        return None if value is None else value.decode("latin-1")


class PlainHeads:
    """Reads the plain heads of one connection."""

    __slots__ = ("_after", "_before", "_last")

    def __init__(self) -> None:
        self._last: Head | None = None
        self._before = b""  # what of it stands before the digits of its length
        self._after = b""  # and behind them

    def read(self, data: bytes) -> tuple[Head, int, bytes] | None:
        """As `plain_head`."""
        last = self._last
        if last is not None and data.startswith(self._before):
            begin = len(self._before)
            end = data.find(b"\r", begin)
            length = data[begin:end]
            if data.startswith(self._after, end) and _is_length(length):
                return last, int(length), data[end + len(self._after) :]
        plain = plain_head(data)
        if plain is not None:
            head, body_bytes, behind = plain
            self._remember(head, body_bytes, data[: len(data) - len(behind)])
        return plain

    def _remember(self, head: Head, body_bytes: int, said: bytes) -> None:
        line = b"\r\ncontent-length: %d" % body_bytes
        begin = said.lower().find(line + b"\r\n")  # once, if at all, and nowhere but in its place
        if begin >= 0 and len(said) <= _REMEMBERED_BYTES_MAX:
            end = begin + len(line)
            self._last = head
            self._before = said[: begin + len(b"\r\ncontent-length: ")]
            self._after = said[end:]


def plain_head(data: bytes) -> tuple[Head, int, bytes] | None:
    """The head that `data` begins with, the length of its body, and what comes behind the head;
    None where that is not of the plain form, or not all there."""
    block, end, behind = data.partition(b"\r\n\r\n")
    first, *lines = block.split(b"\r\n")
    if not end or block.translate(None, _PRINTABLE) != b"\r\n" * len(lines):
        return None
    request_line = _REQUEST_LINE.fullmatch(first.decode("ascii"))
    if request_line is None:
        return None
    headers: dict[bytes, bytes] = {}
    for line in lines:
        name, _, value = line.partition(b": ")
        headers[name.lower()] = value.strip()
    length = headers.get(b"content-length", b"0")
    if (
        len(headers) != len(lines)
        or b"" in headers
        or not all(headers.values())
        or b"".join(headers).translate(None, _NAME)
        or b"host" not in headers
        or b"transfer-encoding" in headers
        or b"expect" in headers
        or not _is_length(length)
    ):
        return None
    method, path, query = request_line.groups("")
    is_last = b"close" in headers.get(b"connection", b"").lower()
    headers.pop(b"content-length", None)
    return Head(method, path, query, headers, is_last), int(length), behind


def _is_length(digits: bytes) -> bool:
    return digits.isdigit() and len(digits) <= _LENGTH_DIGITS_MAX


def head_of(event: h11.Request) -> tuple[Head, int | None]:
    """The head that h11 has read, and the length of its body, None where that is chunked.

    Raises InvalidRequest where it contradicts itself.
    """
    path, _, query = event.target.partition(b"?")
    pairs = event.headers.raw_items()  # a list at once; iterating over h11's type is slow
    headers = {name.lower(): value for name, value in pairs}
    if len(headers) != len(pairs):
        _refuse_conflicts(headers, pairs)
        _join_hops(headers, pairs)
    body_bytes = _body_bytes(event, headers)
    headers.pop(b"content-length", None)
    head = Head(
        event.method.decode("ascii"),
        path.decode("latin-1"),
        query.decode("latin-1"),
        headers,
        _is_last(event, headers),
    )
    return head, body_bytes


def _body_bytes(event: h11.Request, headers: dict[bytes, bytes]) -> int | None:
    if b"transfer-encoding" not in headers:
        return int(headers.get(b"content-length", 0))
    if b"content-length" in headers:
        raise InvalidRequest("Send either Content-Length or Transfer-Encoding, not both.")
    if event.http_version < b"1.1":
        raise InvalidRequest("Transfer-Encoding is no part of HTTP/1.0: send Content-Length.")
    return None


def _is_last(event: h11.Request, headers: dict[bytes, bytes]) -> bool:
    wish = headers.get(b"connection", b"").lower()
    return b"close" in wish or (event.http_version < b"1.1" and b"keep-alive" not in wish)


def _refuse_conflicts(headers: dict[bytes, bytes], pairs: list[tuple[bytes, bytes]]) -> None:
    for raw_name, value in pairs:
        name = raw_name.lower()
        if name in _SINGLE and headers[name] != value:
            raise InvalidRequest(f"The header {name.decode()} was sent twice.")


def _join_hops(headers: dict[bytes, bytes], pairs: list[tuple[bytes, bytes]]) -> None:
    """Several proxies may each add a line: together they are one list (RFC 9110 §5.3)."""
    if FORWARDED_FOR in headers:
        lines = (value for name, value in pairs if name.lower() == FORWARDED_FOR)
        headers[FORWARDED_FOR] = b", ".join(lines)
