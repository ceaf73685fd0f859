"""A provider as fast as Python allows: one thread, one epoll, prepared answers.

`POST …/chat/completions`; the model's name says what comes back:

- `stream-N-GAPms`: N deltas, GAP milliseconds apart (0: all at once), then the stop, the usage if
  `stream_options.include_usage` asks for it, and `[DONE]`. One HTTP chunk per event.
- `idle`: the head and one delta, then silence until the client leaves.
- anything else: a whole answer of about 600 bytes with usage.

It trusts its clients: valid requests with `content-length`, one at a time per connection.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import json
import re
import select
import socket
import time
from dataclasses import dataclass, field
from functools import lru_cache

_RECEIVE_BYTES = 65536
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_MODEL = re.compile(rb'"model"\s*:\s*"([^"]*)"')
_USAGE_WANTED = re.compile(rb'"include_usage"\s*:\s*true')
_STREAM = re.compile(r"stream-(\d+)-(\d+)ms")

_USAGE = {"prompt_tokens": 220, "completion_tokens": 64, "total_tokens": 284}
_TEXT = "The quick brown fox jumps over the lazy dog and keeps on running. " * 4
_STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncache-control: no-cache\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)
_DONE = b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"


def _dump(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


@lru_cache
def _whole_answer(model: str) -> bytes:
    body = _dump(
        {
            "id": "chatcmpl-benchmark0000000000000000",
            "object": "chat.completion",
            "created": 1_750_000_000,
            "model": model,
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": _TEXT, "refusal": None},
                    "logprobs": None,
                    "finish_reason": "stop",
                }
            ],
            "usage": _USAGE,
            "service_tier": "default",
            "system_fingerprint": "fp_benchmark",
        }
    )
    head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(body)}"
    return head.encode() + b"\r\n\r\n" + body


def _chunk(model: str, choices: list[dict[str, object]], usage: dict[str, int] | None) -> bytes:
    event = b"data: %b\n\n" % _dump(
        {
            "id": "chatcmpl-benchmark0000000000000000",
            "object": "chat.completion.chunk",
            "created": 1_750_000_000,
            "model": model,
            "service_tier": "default",
            "system_fingerprint": "fp_benchmark",
            "choices": choices,
            "usage": usage,
        }
    )
    return b"%x\r\n%b\r\n" % (len(event), event)


@lru_cache
def _delta(model: str) -> bytes:
    delta = {"content": " benchmark"}
    return _chunk(model, [{"index": 0, "delta": delta, "finish_reason": None}], None)


@lru_cache
def _end(model: str, with_usage: bool) -> bytes:
    stop = _chunk(model, [{"index": 0, "delta": {}, "finish_reason": "stop"}], None)
    return stop + (_chunk(model, [], _USAGE) if with_usage else b"") + _DONE


@lru_cache
def _burst(model: str, count: int, with_usage: bool) -> bytes:
    return _STREAM_HEAD + _delta(model) * count + _end(model, with_usage)


@dataclass(slots=True, eq=False)
class _Connection:
    """One client: what it sent so far, what the kernel has not taken yet, and its stream."""

    socket: socket.socket
    received: bytearray = field(default_factory=bytearray)
    unsent: bytearray = field(default_factory=bytearray)
    open: bool = True


@dataclass(slots=True, eq=False)
class _Stream:
    """A paced stream: deltas still to send, then the end."""

    connection: _Connection
    model: str
    remaining: int
    gap: float
    end: bytes


class Provider:
    """The server; `run` until the process ends."""

    def __init__(self, port: int) -> None:
        self._listener = socket.create_server(("127.0.0.1", port), backlog=4096)
        self._listener.setblocking(False)
        self.port: int = self._listener.getsockname()[1]
        self._epoll = select.epoll()
        self._epoll.register(self._listener, select.EPOLLIN)
        self._connections: dict[int, _Connection] = {}
        self._timers: list[tuple[float, int, _Stream]] = []
        self._order = itertools.count()

    def run(self) -> None:
        while True:
            for descriptor, events in self._wait():
                connection = self._connections.get(descriptor)
                if connection is None:
                    self._accept()
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

    def _accept(self) -> None:
        while True:
            try:
                peer, _ = self._listener.accept()
            except BlockingIOError:
                return
            peer.setblocking(False)
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._connections[peer.fileno()] = _Connection(peer)
            self._epoll.register(peer, select.EPOLLIN)

    def _receive(self, connection: _Connection) -> None:
        try:
            data = connection.socket.recv(_RECEIVE_BYTES)
        except BlockingIOError:
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
        body = bytes(received[head + 4 :])
        received.clear()
        self._answer(connection, body)

    def _answer(self, connection: _Connection, body: bytes) -> None:
        named = _MODEL.search(body)
        model = named[1].decode() if named else "none"
        if model == "idle":
            self._send(connection, _STREAM_HEAD + _delta(model))
            return
        stream = _STREAM.fullmatch(model)
        if stream is None:
            self._send(connection, _whole_answer(model))
            return
        count, gap = int(stream[1]), int(stream[2]) / 1000
        with_usage = _USAGE_WANTED.search(body) is not None
        if gap == 0:
            self._send(connection, _burst(model, count, with_usage))
            return
        self._send(connection, _STREAM_HEAD + _delta(model))
        end = _end(model, with_usage)
        self._schedule(time.monotonic() + gap, _Stream(connection, model, count - 1, gap, end))

    def _schedule(self, due: float, stream: _Stream) -> None:
        heapq.heappush(self._timers, (due, next(self._order), stream))

    def _fire(self, now: float) -> None:
        while self._timers and self._timers[0][0] <= now:
            due, _, stream = heapq.heappop(self._timers)
            if not stream.connection.open:
                continue
            if stream.remaining > 0:
                stream.remaining -= 1
                self._send(stream.connection, _delta(stream.model))
                self._schedule(due + stream.gap, stream)
            else:
                self._send(stream.connection, stream.end)

    def _send(self, connection: _Connection, data: bytes) -> None:
        waiting = bool(connection.unsent)
        connection.unsent += data
        try:
            sent = connection.socket.send(connection.unsent)
        except BlockingIOError:
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
    provider = Provider(parser.parse_args().port)
    print(provider.port, flush=True)
    provider.run()


if __name__ == "__main__":
    main()
