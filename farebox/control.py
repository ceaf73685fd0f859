"""The words between the supervisor and its children, and the channel they travel on.

One socket pair a child, one JSON object a line, in both directions. The first line tells a child
what it is to be, with settings and secrets: neither arguments nor environment carry them, because
other processes may look at those. The channel is also the leash: its end, however it came, tells a
child that nobody looks after it any more.

This module knows nothing of what an operator can configure: that is most of the gateway to load,
and a ledger, which has no use for it, is to be there soon. It travels packed (`farebox.served`).
"""

from __future__ import annotations

import socket
from typing import Generic, TypeVar

import msgspec
import trio

from farebox.books import HolderTerms
from farebox.totals import Family

_LINE_BYTES_MAX = 64 << 20
_RECEIVE_BYTES = 65_536
_SEND_SECONDS = 5.0


class _Message(msgspec.Struct, frozen=True, kw_only=True, tag_field="do"):
    pass


# -- to a child -----------------------------------------------------------------------------------


class Served(_Message, frozen=True, kw_only=True, tag="served"):
    """What an operator may change while requests run; `version` counts up with every change.

    `settings` is for `farebox.served.unpacked`.
    """

    version: int
    settings: msgspec.Raw


class BeWorker(_Message, frozen=True, kw_only=True, tag="worker"):
    """Serve requests from the inherited `listening` socket; credit comes from the `ledgers`.

    `lifeline` is an inherited pipe that is only held: a ledger's process sees the last worker go.
    `rows` is inherited memory in which workers share how upstreams are, `place` this one's in it.
    `console` is the path of the console's socket, "" where there is none.
    """

    served: Served
    conninfo: str
    secret: bytes
    listening: int
    ledgers: tuple[str, ...]
    lifeline: int
    rows: int
    place: int
    console: str


class BeLedger(_Message, frozen=True, kw_only=True, tag="ledger"):
    """Keep the journal in `directory`, for the workers who call at the inherited `listening`."""

    terms: HolderTerms
    directory: str
    listening: int
    lifeline: int


class BeLeftover(_Message, frozen=True, kw_only=True, tag="leftover"):
    """Post what the journal in `directory` still holds, give its credit back, and end."""

    terms: HolderTerms
    directory: str


class BeConsole(_Message, frozen=True, kw_only=True, tag="console"):
    """Answer people and programs at the inherited `listening`, of a gateway with these URLs.

    What is `served` comes without the providers' keys: nothing here needs them.
    """

    served: Served
    conninfo: str
    secret: bytes
    listening: int
    public_url: str
    gateway_url: str
    admin_url: str


class Reload(_Message, frozen=True, kw_only=True, tag="reload"):
    """Take this over for new requests."""

    served: Served


class Drain(_Message, frozen=True, kw_only=True, tag="drain"):
    """Finish what runs, then end."""


class Cut(_Message, frozen=True, kw_only=True, tag="cut"):
    """Finish now."""


class Ask(_Message, frozen=True, kw_only=True, tag="ask"):
    """Report; `number` comes back with the answer."""

    number: int


Start = BeWorker | BeLedger | BeLeftover | BeConsole
ToChild = Start | Reload | Drain | Cut | Ask


# -- from a child ---------------------------------------------------------------------------------


class Ready(_Message, frozen=True, kw_only=True, tag="ready"):
    """What was asked for at the start is done from now on."""


class Reloaded(_Message, frozen=True, kw_only=True, tag="reloaded"):
    """New requests see this version."""

    version: int


class Report(_Message, frozen=True, kw_only=True, tag="report"):
    """How the child is: why it should get no traffic, and what it has counted."""

    number: int
    problems: tuple[str, ...]
    families: tuple[Family, ...]


class Refused(_Message, frozen=True, kw_only=True, tag="refused"):
    """The child cannot do what it should, and ends; a sentence for each reason."""

    problems: tuple[str, ...]


FromChild = Ready | Reloaded | Report | Refused


# -- the channel ----------------------------------------------------------------------------------


_encoder = msgspec.json.Encoder()
_of_supervisor = msgspec.json.Decoder[ToChild](ToChild)
_of_child = msgspec.json.Decoder[FromChild](FromChild)

_Received = TypeVar("_Received")


class ChannelClosed(Exception):
    """The other end is gone, or does not listen."""


class Channel(Generic[_Received]):
    """One end. Several tasks may send; one receives."""

    def __init__(self, end: socket.socket, decoder: msgspec.json.Decoder[_Received]) -> None:
        end.setblocking(False)
        self._stream = trio.SocketStream(trio.socket.from_stdlib_socket(end))
        self._decoder = decoder
        self._sending = trio.Lock()
        self._received = bytearray()
        self._searched = 0

    async def send(self, message: _Message) -> None:
        """Send a message whole, cancelled or not. Raises ChannelClosed."""
        line = _encoder.encode(message) + b"\n"
        async with self._sending:
            with trio.move_on_after(_SEND_SECONDS, shield=True) as scope:
                try:
                    await self._stream.send_all(line)
                except (trio.BrokenResourceError, trio.ClosedResourceError):
                    raise ChannelClosed from None
            if scope.cancelled_caught:  # half a line may be out: nothing sensible can follow
                self.close()
                raise ChannelClosed

    async def receive(self) -> _Received | None:
        """The next message; None where there will be no more."""
        while (end := self._received.find(b"\n", self._searched)) < 0:
            self._searched = len(self._received)
            try:
                piece = await self._stream.receive_some(_RECEIVE_BYTES)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                return None
            if not piece:
                return None
            self._received += piece
            assert len(self._received) <= _LINE_BYTES_MAX, "a message without end"
        line = bytes(self._received[:end])
        del self._received[: end + 1]
        self._searched = 0
        return self._decoder.decode(line)

    def close(self) -> None:
        """Let go; the other end sees it. May be called twice."""
        self._stream.socket.close()


def supervisors_end(end: socket.socket) -> Channel[FromChild]:
    """The supervisor's end of a socket pair."""
    return Channel(end, _of_child)


def childs_end(end: socket.socket) -> Channel[ToChild]:
    """A child's end of a socket pair."""
    return Channel(end, _of_supervisor)
