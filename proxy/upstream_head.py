"""The head of a provider's answer: what of it decides how the answer goes on.

A head comes whole in one read, written in the way in which everybody writes heads today. Such a one
is recognised by one regular expression and read with a handful of searches, however many headers it
has; h11 makes objects of each of them, which for the two dozen headers of a real provider takes ten
times as long. Whatever is not recognised (interim answers, HTTP/1.0, folded lines, framing that is
said twice, a head that comes in two reads …) goes to h11, which stays the parser of record: what is
read here, h11 reads alike (`tests/proxy/test_upstream_head.py`).

Of all headers three decide about framing. The others are of interest only where the answer is a
refusal, and are looked at only then.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import h11
import msgspec

from proxy.upstream_errors import AttemptFailed

_NO_CONTENT = frozenset({204, 304})  # whatever their heads announce (RFC 9112 §6.3)
_LENGTH_DIGITS_MAX = 20
# A line is whatever has no return: which bytes there may be is checked of the whole head at once.
_ORDINARY = re.compile(
    rb"HTTP/1\.1 (?!204|304)([2-9][0-9]{2})(?: [^\r]*+)?\r\n"
    rb"(?:[-!#$%&'*+.^_`|~0-9a-zA-Z]++:[^\r]*+\r\n)*+\r\n"
)
_TEXT = bytes({*b"\t", *range(0x20, 0x7F), *range(0x80, 0x100)})
_FRAMING = re.compile(rb"\n(content-length|transfer-encoding|connection):[ \t]*+([^\r]*+)")
_CONNECTION = frozenset({b"keep-alive", b"close"})
_FIELD = re.compile(rb"\n([^:\n]++):(.*+)")
# h11 needs to know that a POST was sent; what it would have written is not used.
_REQUEST = h11.Request(method=b"POST", target=b"/", headers=[(b"host", b"upstream")])


class ResponseHead(msgspec.Struct, frozen=True, gc=False):
    """What a head says.

    `length` is that of the body, None where it is `chunked` or ends with the connection; `ahead` is
    what came behind the head in the same read.
    """

    status: int
    length: int | None
    chunked: bool
    keeps_alive: bool
    ahead: bytes
    fields: bytes  # the head as it came

    def headers(self) -> Mapping[bytes, bytes]:
        """All headers by their names in lower case; of one that is repeated the last."""
        return {name.lower(): value.strip() for name, value in _FIELD.findall(self.fields)}

    def pairs(self) -> list[tuple[str, str]]:
        """All headers in their order, with names in lower case; one may be there several times."""
        return [
            (name.decode("latin-1").lower(), value.strip().decode("latin-1"))
            for name, value in _FIELD.findall(self.fields)
        ]


def ordinary_head(data: bytes) -> ResponseHead | None:
    """The head that `data` begins with; None where it is not all there, or is no ordinary one."""
    match = _ORDINARY.match(data)
    if match is None:
        return None
    head = match[0]
    breaks = head.translate(None, _TEXT)
    if breaks != b"\r\n" * (len(breaks) // 2):
        return None
    said = _FRAMING.findall(head.lower())
    framing = dict(said)
    connection = framing.get(b"connection", b"keep-alive")
    if len(framing) != len(said) or connection not in _CONNECTION:
        return None
    length, coding = framing.get(b"content-length"), framing.get(b"transfer-encoding")
    if length is not None and not (length.isdigit() and len(length) <= _LENGTH_DIGITS_MAX):
        return None
    if coding is not None and (coding != b"chunked" or length is not None):
        return None
    return ResponseHead(
        int(match[1]),
        None if length is None else int(length),
        coding is not None,
        connection == b"keep-alive",
        data[len(head) :],
        head,
    )


class HeadReader:
    """Reads any head, in as many parts as it comes: h11."""

    def __init__(self) -> None:
        self._h11 = h11.Connection(h11.CLIENT)
        self._h11.send(_REQUEST)
        self._h11.send(h11.EndOfMessage())

    def feed(self, data: bytes) -> ResponseHead | None:
        """What has arrived; the head, once it is there. Raises AttemptFailed."""
        self._h11.receive_data(data)
        try:
            while (event := self._h11.next_event()) is not h11.NEED_DATA:
                if isinstance(event, h11.Response):
                    return self._read(event)  # what came before was interim, and is not needed
        except h11.RemoteProtocolError as error:
            raise AttemptFailed("protocol", str(error), contacted=True) from error
        return None

    def _read(self, event: h11.Response) -> ResponseHead:
        framing = dict(event.headers)
        chunked = b"transfer-encoding" in framing
        return ResponseHead(
            event.status_code,
            _length(event, framing),
            chunked,
            self._h11.our_state is h11.DONE,  # and not MUST_CLOSE
            self._h11.trailing_data[0],
            b"".join(b"\n%s:%s" % field for field in event.headers),
        )


def _length(event: h11.Response, framing: dict[bytes, bytes]) -> int | None:
    if event.status_code in _NO_CONTENT:
        return 0
    if b"transfer-encoding" in framing:
        return None
    length = framing.get(b"content-length")
    return None if length is None else int(length)
