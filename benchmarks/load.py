"""Clients: a closed loop, an open loop at a rate, a holder of idle streams, a flood of keys.

One thread, one epoll; results go to standard output as JSON lines: `{"event": "begin"}` when the
measured window starts (after the warm-up, or when all idle streams stand), `{"event": "end"}`
when it closes, then the result.

- Closed loop: each of C connections sends its next request when the last answer is complete.
  Says how much fits; its latencies describe a saturated server.
- Open loop: requests are due at fixed times, whatever became of the earlier ones. Latency counts
  from the *scheduled* time, so a stalled server is not flattered by a client that waits for it.
- Flood: so many requests, 64 at a time, each with a key that nobody has ever had.

Where a delta carries the provider's time of sending, each one's way through the server is measured.
A request counts if its answer completed inside the window. Everything ends by itself: an answer
that is still missing `PATIENCE_SECONDS` after the last request ends the run with an error.
"""

from __future__ import annotations

import argparse
import dataclasses
import http.client
import itertools
import json
import re
import select
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import requests
from benchmarks.provider import STAMP
from benchmarks.requests import Ask

PATIENCE_SECONDS = 20.0
FLOOD_CONNECTIONS = 64

_RECEIVE_BYTES = 262_144
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding: *chunked", re.IGNORECASE)
_LAST_CHUNK = b"\r\n0\r\n\r\n"
_STAMP_BYTES = 19
_AT_ONCE_BYTES = 65536  # what a connection's buffers take without waiting


class LoadFailed(Exception):
    """The server behaved in a way that makes figures worthless; the message says how."""


def connect(port: int, seconds: float) -> socket.socket:
    """A connection of a client that waits for each answer, so many seconds at most."""
    connection = socket.create_connection(("127.0.0.1", port), seconds)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def take_answer(connection: socket.socket, asked: str) -> None:
    """Wait for the whole answer to what was `asked`. Raises LoadFailed, OSError."""
    answer = http.client.HTTPResponse(connection)
    answer.begin()
    body = answer.read()
    if answer.status != http.HTTPStatus.OK:
        raise LoadFailed(f"{asked}: {answer.status} {body[:300]!r}")


@dataclass(frozen=True, slots=True)
class Result:
    """What the clients saw inside the window; latencies are milliseconds.

    `events` counts the `data:` lines that arrived, also of streams that began before the window or
    were still running after it; `incomplete` the streams that ended without their last event.
    `first_…` is the time to a stream's first event, `token_…` a delta's way from the provider.
    """

    seconds: float
    requests: int
    errors: int
    incomplete: int
    events: int
    requests_per_second: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    max_ms: float
    first_p50_ms: float
    first_p99_ms: float
    token_p50_ms: float
    token_p99_ms: float


def percentile(ordered: Sequence[float], share: float) -> float:
    """The nearest rank: the smallest value with at least `share` of all at or below it."""
    if not ordered:
        return 0.0
    rank = -int(-share * len(ordered) // 1)
    return ordered[max(rank, 1) - 1]


def decode_chunks(body: bytes) -> bytes:
    """The payload of a complete chunked body; its framing may cut events anywhere."""
    parts, at = [], 0
    while size := int(body[at : (line := body.index(b"\r\n", at))].split(b";")[0], 16):
        parts.append(body[line + 2 : line + 2 + size])
        at = line + 2 + size + 2
    return b"".join(parts)


@dataclass(slots=True, eq=False)
class _Client:
    """One connection, and the answer that it is receiving."""

    socket: socket.socket
    begun: float = 0.0
    busy: bool = False
    received: bytearray = field(default_factory=bytearray)
    head: int = 0  # its length with the empty line; 0: not complete yet
    length: int = -1  # of the body; -1: chunked
    first: float = 0.0  # when the first event came; 0: not yet

    def start(self, request: bytes, begun: float) -> None:
        self.begun, self.busy, self.head, self.length, self.first = begun, True, 0, -1, 0.0
        self.received.clear()
        at_once = len(request) <= _AT_ONCE_BYTES
        self.socket.settimeout(None if at_once else PATIENCE_SECONDS)
        self.socket.sendall(request)
        self.socket.setblocking(False)

    def complete(self) -> bool:
        """Whether the answer is all there. Raises LoadFailed for one that cannot be framed."""
        received = self.received
        if not self.head:
            end = received.find(b"\r\n\r\n")
            if end < 0:
                return False
            self.head = end + 4
            length = _LENGTH.search(received, 0, self.head)
            self.length = int(length[1]) if length else -1
            if length is None and not _CHUNKED.search(received, 0, self.head):
                raise LoadFailed(f"an answer without length: {bytes(received[:200])!r}")
        if self.length >= 0:
            return len(received) >= self.head + self.length
        return received.endswith(_LAST_CHUNK)


class Load:
    """The clients of one run against one server."""

    def __init__(self, port: int, ask: Ask, keys: Iterator[str], *, expected: int = 200) -> None:
        self._port = port
        self._ask = ask
        self._keys = keys
        self._stream = ask.stream
        self._last_event = requests.LAST_EVENT[ask.surface]
        self._expected = b"HTTP/1.1 %d" % expected
        self._epoll = select.epoll()
        self._clients: dict[int, _Client] = {}
        self._latencies: list[float] = []
        self._firsts: list[float] = []
        self._tokens: list[float] = []
        self._errors = 0
        self._incomplete = 0
        self._events = 0
        self._measuring = False
        self.first_error = ""

    def closed(self, connections: int, warm_up: float, seconds: float) -> Result:
        """Keep `connections` requests in flight; they start evenly spread over the warm-up."""
        first = time.perf_counter()
        for number in range(connections):
            self._serve_until(first + warm_up * number / connections)
            self._start(self._connect())
        self._serve_until(first + warm_up)
        begin = self._begin()
        self._serve_until(begin + seconds)
        return self._end(begin)

    def open(self, rate: float, warm_up: float, seconds: float) -> Result:
        """Send `rate` requests per second; as many connections as that takes."""
        idle: list[_Client] = []
        first = time.perf_counter()
        begin = 0.0
        for number in range(round(rate * (warm_up + seconds))):
            due = first + number / rate
            self._serve_until(due, idle)
            if number >= rate * warm_up and not begin:
                begin = self._begin()
            idle = [client for client in idle if client.socket.fileno() >= 0]
            client = idle.pop() if idle else self._connect()
            self._start(client, due)
        begin = begin or self._begin()
        self._serve_until(first + warm_up + seconds, idle)
        self._finish(idle)
        return self._end(begin)

    def _finish(self, idle: list[_Client]) -> None:
        """Wait for the answers that are still due."""
        patience = time.perf_counter() + PATIENCE_SECONDS
        while any(client.busy for client in self._clients.values()):
            if time.perf_counter() > patience:
                raise LoadFailed(f"no answer after {PATIENCE_SECONDS:.0f} s")
            self._serve_until(time.perf_counter() + 0.01, idle)

    def hold(self, streams: int, seconds: float) -> Result:
        """Open `streams` streams, wait for the first event of each, then just keep them."""
        begun = time.perf_counter()
        for _ in range(streams):
            client = self._connect()
            self._start(client)
            self._await_first_event(client)
        begin = self._begin()
        self._serve_until(begin + seconds)
        return dataclasses.replace(self._end(begin), requests=streams, max_ms=_ms(begin - begun))

    def flood(self) -> Result:
        """Send a request with each key there is, and wait for all answers."""
        begin = self._begin()
        idle = [self._connect() for _ in range(FLOOD_CONNECTIONS)]
        patience = begin
        for key in self._keys:
            while not idle:
                self._serve_until(time.perf_counter() + 0.001, idle)
                if time.perf_counter() > patience:
                    raise LoadFailed(f"no answer for {PATIENCE_SECONDS:.0f} s")
            patience = time.perf_counter() + PATIENCE_SECONDS
            idle.pop().start(self._ask.request(key), time.perf_counter())
        self._finish(idle)
        return self._end(begin)

    def _start(self, client: _Client, begun: float | None = None) -> None:
        request = self._ask.request(next(self._keys))
        client.start(request, time.perf_counter() if begun is None else begun)

    def _await_first_event(self, client: _Client) -> None:
        client.socket.settimeout(PATIENCE_SECONDS)
        while b"data: " not in client.received:
            data = client.socket.recv(_RECEIVE_BYTES)
            if not data or (client.received + data)[:12] != b"HTTP/1.1 200":
                raise LoadFailed(f"no stream: {bytes(client.received + data)[:300]!r}")
            client.received += data
        client.socket.setblocking(False)

    def _connect(self) -> _Client:
        connected = connect(self._port, PATIENCE_SECONDS)
        connected.setblocking(False)
        client = _Client(connected)
        self._clients[connected.fileno()] = client
        self._epoll.register(connected, select.EPOLLIN)
        return client

    def _serve_until(self, end: float, idle: list[_Client] | None = None) -> None:
        """Take answers until `end`; a client that is done repeats, or joins `idle`."""
        while (pause := end - time.perf_counter()) > 0:
            # epoll itself waits whole milliseconds; select on it is exact.
            select.select([self._epoll], [], [], pause)
            for descriptor, _ in self._epoll.poll(0):
                client = self._clients.get(descriptor)
                if client is not None and self._receive(client):
                    if idle is None:
                        self._start(client)
                    else:
                        idle.append(client)

    def _receive(self, client: _Client) -> bool:
        """Take what came; whether the client is free for its next request."""
        try:
            data = client.socket.recv(_RECEIVE_BYTES)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if not data:
            self._lose(client)
            return False
        if self._stream:
            self._watch(client, data)
        client.received += data
        if not client.busy or not client.complete():
            return False
        client.busy = False
        if self._measuring:
            self._count(client, time.perf_counter() - client.begun)
        return True

    def _count(self, client: _Client, latency: float) -> None:
        if not client.received.startswith(self._expected):
            self._fail(bytes(client.received[:600]))
            return
        self._latencies.append(latency)
        if self._stream:
            body = bytes(client.received[client.head :])
            text = body if client.length >= 0 else decode_chunks(body)
            self._incomplete += self._last_event not in text
            self._firsts.append(client.first - client.begun)

    def _watch(self, client: _Client, data: bytes) -> None:
        """What a piece of a stream tells: its first event's time, its events, their way here."""
        now = time.perf_counter()
        before = bytes(client.received[-_STAMP_BYTES:])  # may begin an event or a stamp
        if not client.first and b"data: " in before + data:
            client.first = now
        if not self._measuring:
            return
        self._events += (before[-5:] + data).count(b"data: ")
        if self._ask.stamped:
            arrived = time.monotonic_ns()
            for stamp in STAMP.finditer(before + data):
                if stamp.end() > len(before) and (sent := int(stamp[1])):
                    self._tokens.append((arrived - sent) / 1e9)

    def _lose(self, client: _Client) -> None:
        """The server closed: an error in the middle of an answer, else its good right."""
        if client.busy:
            self._fail(b"closed after " + bytes(client.received[:300]))
        del self._clients[client.socket.fileno()]
        client.socket.close()
        if client.busy:
            self._start(self._connect())

    def _fail(self, evidence: bytes) -> None:
        self._errors += 1
        self.first_error = self.first_error or repr(evidence)

    def _begin(self) -> float:
        self._measuring = True
        _say({"event": "begin"})
        return time.perf_counter()

    def _end(self, begin: float) -> Result:
        seconds = time.perf_counter() - begin
        _say({"event": "end"})
        ordered = sorted(self._latencies)
        firsts, tokens = sorted(self._firsts), sorted(self._tokens)
        return Result(
            seconds=seconds,
            requests=len(ordered),
            errors=self._errors,
            incomplete=self._incomplete,
            events=self._events,
            requests_per_second=len(ordered) / seconds,
            p50_ms=_ms(percentile(ordered, 0.50)),
            p90_ms=_ms(percentile(ordered, 0.90)),
            p99_ms=_ms(percentile(ordered, 0.99)),
            max_ms=_ms(ordered[-1] if ordered else 0.0),
            first_p50_ms=_ms(percentile(firsts, 0.50)),
            first_p99_ms=_ms(percentile(firsts, 0.99)),
            token_p50_ms=_ms(percentile(tokens, 0.50)),
            token_p99_ms=_ms(percentile(tokens, 0.99)),
        )


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 4)


def _say(message: dict[str, object]) -> None:
    print(json.dumps(message), flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description="Load for one server.")
    parser.add_argument("mode", choices=("closed", "open", "hold", "flood"))
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument(
        "--amount", type=float, required=True, help="connections, rate, streams, keys"
    )
    parser.add_argument("--warm-up", type=float, default=0.5)
    parser.add_argument("--seconds", type=float, default=0.0)
    parser.add_argument("--key", default="none")
    parser.add_argument("--keys", type=Path, help="a file of keys to take in turn")
    parser.add_argument("--expect", type=int, default=200, help="the status of a good answer")
    requests.add_arguments(parser)
    options = parser.parse_args()
    if options.mode == "flood":
        keys = requests.unknown_keys(int(options.amount))
    else:
        keys = itertools.cycle(options.keys.read_text().split() if options.keys else [options.key])
    load = Load(options.port, requests.from_arguments(options), keys, expected=options.expect)
    try:
        match options.mode:
            case "closed":
                result = load.closed(int(options.amount), options.warm_up, options.seconds)
            case "open":
                result = load.open(options.amount, options.warm_up, options.seconds)
            case "hold":
                result = load.hold(int(options.amount), options.seconds)
            case _:
                result = load.flood()
    except (LoadFailed, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    if load.first_error:
        print(f"first of {result.errors} errors: {load.first_error}", file=sys.stderr)
    _say(dataclasses.asdict(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
