"""A provider as fast as Python allows: one thread, one epoll, prepared answers.

It speaks the four protocols, told apart by path. The model's name says what comes back:

- `stream-N-GAPms`: N deltas, GAP milliseconds apart (0: all at once), then the protocol's end. One
  HTTP chunk per event. A delta that is sent on its own carries the time of sending as its text:
  `@` and 18 digits of the monotonic clock's nanoseconds, which every process on the machine shares.
- `idle`: what comes before the first delta, and that delta, then silence until the client leaves.
- `failing`: 500 for two requests of five: for fewer than would make a gateway give it up.
- anything else: a whole answer of about 600 bytes with usage.

`GET /answered` says how many requests were answered so far. It trusts its clients: valid requests
with `content-length`, one at a time per connection. With a certificate it listens with TLS too; the
ports are printed, one a line.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import json
import re
import select
import socket
import ssl
import time
from dataclasses import dataclass, field
from functools import lru_cache

from benchmarks import answers
from benchmarks.answers import Protocol

STAMP = re.compile(rb"@(\d{18})")

_BURST = (" benchmark", " measured")  # two: LiteLLM ends a stream that says the same all the time
_NO_STAMP = "@" + "0" * 18
_RECEIVE_BYTES = 262_144
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_MODEL = re.compile(rb'"model"\s*:\s*"([^"]*)"')
_GEMINI_MODEL = re.compile(rb"/models/([^:/ ]+):")
_USAGE_WANTED = re.compile(rb'"include_usage"\s*:\s*true')
_STREAM = re.compile(r"stream-(\d+)-(\d+)ms")
_FAILS = (True, False, True, False, False)
FAILING_SHARE = sum(_FAILS) / len(_FAILS)

_STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncache-control: no-cache\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)


def _framed(status: str, body: bytes) -> bytes:
    head = f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}"
    return head.encode() + b"\r\n\r\n" + body


_FAILURE = _framed(
    "500 Internal Server Error",
    b'{"error":{"message":"benchmark","type":"server_error","code":null,"param":null}}',
)


def protocol_of(path: bytes) -> Protocol:
    """Which protocol a request to `path` speaks."""
    path = path.partition(b"?")[0]
    if path.endswith(b"/messages"):
        return "anthropic"
    if path.endswith(b"/responses"):
        return "openai-responses"
    return "gemini" if b":" in path else "openai"


@lru_cache
def _whole_answer(protocol: Protocol, model: str) -> bytes:
    return _framed("200 OK", answers.whole(protocol, model))


@dataclass(frozen=True, slots=True)
class _Script:
    """A stream in HTTP chunks; each delta is cut where its stamp goes."""

    opening: bytes
    deltas: tuple[tuple[bytes, bytes], ...]
    ending: bytes

    def delta(self, at: int) -> bytes:
        """A delta as it is sent now."""
        before, after = self.deltas[at]
        return b"%b@%018d%b" % (before, time.monotonic_ns(), after)


@lru_cache
def _script(protocol: Protocol, model: str, count: int, usage: bool) -> _Script:
    stream = answers.stream(protocol, count, texts=[_NO_STAMP], model=model, usage=usage)
    chunks = [b"%x\r\n%b\r\n" % (len(event), event) for event in stream]
    stamp = _NO_STAMP.encode()
    first = next(at for at, chunk in enumerate(chunks) if stamp in chunk)
    deltas = [chunk.partition(stamp) for chunk in chunks[first : first + count]]
    return _Script(
        opening=_STREAM_HEAD + b"".join(chunks[:first]),
        deltas=tuple((before, after) for before, _, after in deltas),
        ending=b"".join(chunks[first + count :]) + b"0\r\n\r\n",
    )


@lru_cache
def _burst(protocol: Protocol, model: str, count: int, usage: bool) -> bytes:
    stream = answers.stream(protocol, count, texts=_BURST, model=model, usage=usage)
    chunks = [b"%x\r\n%b\r\n" % (len(event), event) for event in stream]
    return _STREAM_HEAD + b"".join(chunks) + b"0\r\n\r\n"


@dataclass(slots=True, eq=False)
class _Connection:
    """One client: what it sent so far, what the kernel has not taken yet, and its stream."""

    socket: socket.socket
    received: bytearray = field(default_factory=bytearray)
    unsent: bytearray = field(default_factory=bytearray)
    open: bool = True


@dataclass(slots=True, eq=False)
class _Stream:
    """A paced stream: how many deltas are out, and what is to come."""

    connection: _Connection
    script: _Script
    gap: float
    sent: int = 1


class Provider:
    """The server; `run` until the process ends."""

    def __init__(self, port: int, certificate: tuple[str, str] | None = None) -> None:
        self._epoll = select.epoll()
        self._listeners: dict[int, tuple[socket.socket, ssl.SSLContext | None]] = {}
        self.ports = [self._listen(port, None)]
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*certificate)
            self.ports.append(self._listen(0, context))
        self._connections: dict[int, _Connection] = {}
        self._timers: list[tuple[float, int, _Stream]] = []
        self._order = itertools.count()
        self._answered = 0
        self._fails = itertools.cycle(_FAILS)

    def _listen(self, port: int, context: ssl.SSLContext | None) -> int:
        listener = socket.create_server(("127.0.0.1", port), backlog=4096)
        listener.setblocking(False)
        self._listeners[listener.fileno()] = listener, context
        self._epoll.register(listener, select.EPOLLIN)
        chosen: int = listener.getsockname()[1]
        return chosen

    def run(self) -> None:
        while True:
            for descriptor, events in self._wait():
                connection = self._connections.get(descriptor)
                if connection is None:
                    self._accept(*self._listeners[descriptor])
                    continue
                if events & select.EPOLLOUT:
                    self._send(connection, b"")
                if events & ~select.EPOLLOUT:
                    self._receive(connection)
            self._fire(time.monotonic())

    def _wait(self) -> list[tuple[int, int]]:
        if not self._timers:
            return self._epoll.poll()
        # epoll itself waits whole milliseconds; select on it is exact.
        pause = max(self._timers[0][0] - time.monotonic(), 0)
        select.select([self._epoll], [], [], pause)
        return self._epoll.poll(0)

    def _accept(self, listener: socket.socket, context: ssl.SSLContext | None) -> None:
        while True:
            try:
                peer, _ = listener.accept()
            except BlockingIOError:
                return
            peer.setblocking(False)
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if context:  # the first read shakes hands
                peer = context.wrap_socket(peer, server_side=True, do_handshake_on_connect=False)
            self._connections[peer.fileno()] = _Connection(peer)
            self._epoll.register(peer, select.EPOLLIN)

    def _receive(self, connection: _Connection) -> None:
        try:
            data = connection.socket.recv(_RECEIVE_BYTES)
            if isinstance(connection.socket, ssl.SSLSocket):
                while connection.socket.pending():  # epoll does not know of it
                    data += connection.socket.recv(_RECEIVE_BYTES)
        except (BlockingIOError, ssl.SSLWantReadError):
            return
        except OSError:
            data = b""
        if not data:
            self._close(connection)
            return
        received = connection.received
        received += data
        head = received.find(b"\r\n\r\n")
        if head < 0:
            return
        length = _LENGTH.search(received, 0, head)
        if len(received) < head + 4 + (int(length[1]) if length else 0):
            return
        path = bytes(received[: received.index(b"\r\n")]).split(b" ")[1]
        body = bytes(received[head + 4 :])
        received.clear()
        if path == b"/answered":
            self._send(connection, _framed("200 OK", json.dumps(self._answered).encode()))
            return
        self._answered += 1
        self._answer(connection, path, body)

    def _answer(self, connection: _Connection, path: bytes, body: bytes) -> None:
        protocol = protocol_of(path)
        named = _GEMINI_MODEL.search(path) if protocol == "gemini" else _MODEL.search(body)
        model = named[1].decode() if named else "none"
        stream = _STREAM.fullmatch(model)
        if model == "failing":
            answer = _FAILURE if next(self._fails) else _whole_answer(protocol, model)
            self._send(connection, answer)
        elif model == "idle":
            script = _script(protocol, model, 1, False)
            self._send(connection, script.opening + script.delta(0))
        elif stream is None:
            self._send(connection, _whole_answer(protocol, model))
        else:
            usage = _USAGE_WANTED.search(body) is not None
            self._stream(connection, protocol, model, int(stream[1]), int(stream[2]), usage)

    def _stream(
        self,
        connection: _Connection,
        protocol: Protocol,
        model: str,
        count: int,
        gap_ms: int,
        usage: bool,
    ) -> None:
        if gap_ms == 0:
            self._send(connection, _burst(protocol, model, count, usage))
            return
        script = _script(protocol, model, count, usage)
        self._send(connection, script.opening + script.delta(0))
        gap = gap_ms / 1000
        self._schedule(time.monotonic() + gap, _Stream(connection, script, gap))

    def _schedule(self, due: float, stream: _Stream) -> None:
        heapq.heappush(self._timers, (due, next(self._order), stream))

    def _fire(self, now: float) -> None:
        while self._timers and self._timers[0][0] <= now:
            due, _, stream = heapq.heappop(self._timers)
            if not stream.connection.open:
                continue
            if stream.sent < len(stream.script.deltas):
                stream.sent += 1
                self._send(stream.connection, stream.script.delta(stream.sent - 1))
                self._schedule(due + stream.gap, stream)
            else:
                self._send(stream.connection, stream.script.ending)

    def _send(self, connection: _Connection, data: bytes) -> None:
        waiting = bool(connection.unsent)
        connection.unsent += data
        try:
            sent = connection.socket.send(connection.unsent)
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            sent = 0
        except OSError:
            self._close(connection)
            return
        del connection.unsent[:sent]
        if bool(connection.unsent) != waiting:
            wanted = select.EPOLLIN | (select.EPOLLOUT if connection.unsent else 0)
            self._epoll.modify(connection.socket, wanted)

    def _close(self, connection: _Connection) -> None:
        if connection.open:
            connection.open = False
            del self._connections[connection.socket.fileno()]
            connection.socket.close()  # also leaves the epoll


def main() -> None:
    parser = argparse.ArgumentParser(description="A fast stand-in for an LLM provider.")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument(
        "--certificate", nargs=2, metavar=("CHAIN", "KEY"), help="listen with TLS too"
    )
    options = parser.parse_args()
    provider = Provider(options.port, tuple(options.certificate) if options.certificate else None)
    print(*provider.ports, sep="\n", flush=True)
    provider.run()


if __name__ == "__main__":
    main()
