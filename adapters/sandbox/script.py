"""What a server plays: bytes, pauses, and the ways in which providers fail; and refusals."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import msgspec

Json = dict[str, object]
encode = msgspec.json.encode


@dataclass(frozen=True, slots=True)
class Head:
    """Every script begins with it. The server adds the framing of the body."""

    status: int
    headers: list[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Data:
    """Bytes of the body, to be sent at once."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Pause:
    """Wait before going on."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Cut:
    """Close the connection where it is, without an end of the body."""


@dataclass(frozen=True, slots=True)
class Reset:
    """Break the connection off, so that its other side reads an error instead of an end."""


@dataclass(frozen=True, slots=True)
class Hang:
    """Send nothing more, but keep the connection open. Before any data: not even the head."""


@dataclass(frozen=True, slots=True)
class Spoilt:
    """The body ends here as bodies do, but the answer in it is not whole. For the records only."""


Action = Head | Data | Pause | Cut | Reset | Hang | Spoilt


class Refused(Exception):
    """A whole answer that is no 200, in the words of the protocol that was asked."""

    def __init__(self, status: int, body: bytes, headers: Sequence[tuple[str, str]] = ()) -> None:
        super().__init__(body.decode(errors="replace"))
        self.status = status
        self.body = body
        self.headers = [("content-type", "application/json"), *headers]


def page(status: int, title: str) -> Refused:
    """An HTML page, as what stands in front of a provider answers."""
    refused = Refused(
        status, b"<html><head><title>%d %b</title></head></html>" % (status, title.encode())
    )
    refused.headers = [("content-type", "text/html")]
    return refused


def moved() -> Refused:
    """Another address, where a client that followed it would take its credentials."""
    refused = page(307, "Temporary Redirect")
    refused.headers.append(("location", "https://elsewhere.invalid/"))
    return refused


def json_answer(value: object, headers: Sequence[tuple[str, str]] = ()) -> Iterable[Action]:
    """The script of a 200 with JSON."""
    return (Head(200, [("content-type", "application/json"), *headers]), Data(encode(value)))
