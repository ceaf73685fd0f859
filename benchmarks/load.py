"""Clients: a closed loop, an open loop at a rate, and a holder of idle streams.

One thread, one epoll; results go to standard output as JSON lines: `{"event": "begin"}` when the
measured window starts (after the warm-up, or when all idle streams stand), `{"event": "end"}`
when it closes, then the result.

- Closed loop: each of C connections sends its next request when the last answer is complete.
  Says how much fits; its latencies describe a saturated server.
- Open loop: requests are due at fixed times, whatever became of the earlier ones. Latency counts
  from the *scheduled* time, so a stalled server is not flattered by a client that waits for it.

A request counts if its answer completed inside the window. Everything ends by itself: an answer
that is still missing `PATIENCE_SECONDS` after the last request ends the run with an error.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import select
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

PATIENCE_SECONDS = 20.0

_RECEIVE_BYTES = 262_144
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding: *chunked", re.IGNORECASE)
_LAST_CHUNK = b"\r\n0\r\n\r\n"
_DONE = b"data: [DONE]"
_PROMPT = "Summarise the following paragraph in one sentence for a busy reader. " * 9


class LoadFailed(Exception):
    """The server behaved in a way that makes figures worthless; the message says how."""


@dataclass(frozen=True, slots=True)
class Result:
    """What the clients saw inside the window; latencies are milliseconds.

    `events` counts the `data:` lines that arrived, also of streams that began before the window or
    were still running after it; `incomplete` the streams that ended without `[DONE]`.
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


def percentile(ordered: Sequence[float], share: float) -> float:
    """The nearest rank: the smallest value with at least `share` of all at or below it."""
    if not ordered:
        return 0.0
    rank = -int(-share * len(ordered) // 1)
    return ordered[max(rank, 1) - 1]


def request_bytes(model: str, key: str) -> bytes:
    """A chat request as an SDK sends it: about 900 bytes of JSON, nine headers."""
    stream = model.startswith("stream") or model == "idle"
    fields: dict[str, object] = {
        "model": model,
        "messages": [
            {"role": "system", "content": "You are a helpful assistant."},
            {"role": "user", "content": _PROMPT},
        ],
        "temperature": 0.2,
        "max_tokens": 256,
        "user": "benchmark",
    }
    if stream:
        fields |= {"stream": True, "stream_options": {"include_usage": True}}
    body = json.dumps(fields, separators=(",", ":")).encode()
    head = (
        "POST /v1/chat/completions HTTP/1.1",
        "host: 127.0.0.1",
        "accept: application/json",
        "accept-encoding: identity",
        "connection: keep-alive",
        "content-type: application/json",
        "user-agent: benchmark/1.0",
        "x-stainless-lang: python",
        f"authorization: Bearer {key}",
        f"content-length: {len(body)}",
    )
    return "\r\n".join(head).encode() + b"\r\n\r\n" + body


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

    def start(self, request: bytes, begun: float) -> None:
        self.begun, self.busy, self.head, self.length = begun, True, 0, -1
        self.received.clear()
        self.socket.setblocking(True)  # a request of a kilobyte goes out at once
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

    def __init__(self, port: int, request: bytes, *, stream: bool) -> None:
        self._address = ("127.0.0.1", port)
        self._request = request
        self._stream = stream
        self._epoll = select.epoll()
        self._clients: dict[int, _Client] = {}
        self._latencies: list[float] = []
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
            self._connect().start(self._request, time.perf_counter())
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
            client.start(self._request, due)
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
            client.start(self._request, time.perf_counter())
            self._await_first_event(client)
        begin = self._begin()
        self._serve_until(begin + seconds)
        return dataclasses.replace(self._end(begin), requests=streams, max_ms=_ms(begin - begun))

    def _await_first_event(self, client: _Client) -> None:
        client.socket.settimeout(PATIENCE_SECONDS)
        while b"data: " not in client.received:
            data = client.socket.recv(_RECEIVE_BYTES)
            if not data or (client.received + data)[:12] != b"HTTP/1.1 200":
                raise LoadFailed(f"no stream: {bytes(client.received + data)[:300]!r}")
            client.received += data
        client.socket.setblocking(False)

    def _connect(self) -> _Client:
        connected = socket.create_connection(self._address, timeout=PATIENCE_SECONDS)
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
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
                        client.start(self._request, time.perf_counter())
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
        if self._measuring and self._stream:  # the five bytes before may begin an event
            self._events += (client.received[-5:] + data).count(b"data: ")
        client.received += data
        if not client.busy or not client.complete():
            return False
        client.busy = False
        if self._measuring:
            self._count(client, time.perf_counter() - client.begun)
        return True

    def _count(self, client: _Client, latency: float) -> None:
        if not client.received.startswith(b"HTTP/1.1 200"):
            self._fail(bytes(client.received[:600]))
            return
        self._latencies.append(latency)
        if self._stream:
            body = bytes(client.received[client.head :])
            text = body if client.length >= 0 else decode_chunks(body)
            self._incomplete += _DONE not in text

    def _lose(self, client: _Client) -> None:
        """The server closed: an error in the middle of an answer, else its good right."""
        if client.busy:
            self._fail(b"closed after " + bytes(client.received[:300]))
        del self._clients[client.socket.fileno()]
        client.socket.close()
        if client.busy:
            self._connect().start(self._request, time.perf_counter())

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
        )


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 4)


def _say(message: dict[str, object]) -> None:
    print(json.dumps(message), flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description="Load for one server.")
    parser.add_argument("mode", choices=("closed", "open", "hold"))
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--key", default="none")
    parser.add_argument("--amount", type=float, required=True, help="connections, rate or streams")
    parser.add_argument("--warm-up", type=float, default=0.5)
    parser.add_argument("--seconds", type=float, required=True)
    options = parser.parse_args()
    request = request_bytes(options.model, options.key)
    load = Load(options.port, request, stream=b'"stream":true' in request)
    try:
        match options.mode:
            case "closed":
                result = load.closed(int(options.amount), options.warm_up, options.seconds)
            case "open":
                result = load.open(options.amount, options.warm_up, options.seconds)
            case _:
                result = load.hold(int(options.amount), options.seconds)
    except (LoadFailed, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    if load.first_error:
        print(f"first of {result.errors} errors: {load.first_error}", file=sys.stderr)
    _say(dataclasses.asdict(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
