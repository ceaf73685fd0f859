"""The head of an answer, written by hand from parts that are checked once.

The status line and the date change at most once a second, and are kept as they are written. Values
come from configuration, from clients and from providers: none may end its line, or clients would
read a header, or an answer, that nobody gave. One look at all of them together tells.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus

from adapters.errors import InternalError

Headers = Iterable[tuple[str, str]]

CHUNKED = "transfer-encoding: chunked\r\n"
CLOSE = "connection: close\r\n"

_REASONS = {status.value: status.phrase for status in HTTPStatus} | {529: "Overloaded"}


def render_head(status: int, headers: Headers, framing: str) -> bytes:
    """The head of an answer; `framing` are lines that say where it ends, each with its CR LF.

    Raises InternalError where a header would break out of its line.
    """
    lines = [_opening(status, time.time_ns() // 10**9), *map(": ".join, headers)]
    head = "\r\n".join(lines)
    if not head.count("\n") == head.count("\r") == len(lines):  # the first one has one in it
        raise InternalError("A response header holds a line break.")
    return f"{head}\r\n{framing}\r\n".encode("latin-1", "replace")


@lru_cache(maxsize=16)  # statuses that are in use in one second
def _opening(status: int, second: int) -> str:
    """Status line and Date header (RFC 9110 §6.6.1)."""
    reason = _REASONS.get(status, "")
    return f"HTTP/1.1 {status} {reason}\r\ndate: {formatdate(second, usegmt=True)}"
