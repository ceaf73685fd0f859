"""What one exchange was: filled in step by step, turned into metrics and one log line.

The request id is a UUIDv7 (RFC 9562 §5.7): its time part, the moment at which the request came,
lets a receipt be found without an index of its own. Log lines are written in batches by a service
task; they name the key by its id, never the key.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import lru_cache
from random import getrandbits
from typing import TYPE_CHECKING

import msgspec
import trio

from adapters.canonical import Usage
from adapters.codec import Headers, Operation, Refusals
from adapters.registry import UNKNOWN
from ledger.money import format_usd
from proxy.metrics import Metrics

if TYPE_CHECKING:
    from adapters.catalogue import Upstream
    from ledger.client import Settled
    from proxy.authenticate import Principal

CLIENT_CLOSED = 499
_ENCODER = msgspec.json.Encoder()
_LOG_LINES_MAX = 20_000
_UUID_VERSION_7 = (0x7 << 76) | (0x2 << 62)
_UUID_RANDOM = 2**80 - 1 - (0xF << 76) - (0x3 << 62)


def new_request_id(milliseconds: int) -> bytes:
    """The 16 bytes of a UUIDv7: 48 bits of milliseconds since the epoch, then 74 random bits.

    It has to be unique, not a secret: who asks for a receipt needs the account's key as well.
    """
    random = getrandbits(80) & _UUID_RANDOM
    return (milliseconds << 80 | _UUID_VERSION_7 | random).to_bytes(16)


def uuid_text(value: bytes) -> str:
    """Its usual form; `str(uuid.UUID(bytes=value))` takes three times as long."""
    quads = value.hex("-", 2)  # with seven hyphens, of which the inner four belong there
    return "".join(quads.replace("-", "", 1).rsplit("-", 2))


class FailedAttempt(msgspec.Struct, frozen=True, gc=False):
    """An upstream that was asked in vain: `outcome` is one of `verdicts.Outcome`."""

    upstream: str
    outcome: str
    duration_ms: int


class Record(msgspec.Struct, gc=False, eq=False):
    """The facts of one exchange, from its `start`. Each step of the exchange writes what it learnt.

    `came_at` is in seconds since the epoch, the other moments are on its `clock`, which is that of
    `Means`; one that has not come is 0. `upstream_seconds` and `client_seconds` sum up waiting, so
    that what is left is our own time. `reserved` is what was asked for, and once it is settled what
    was held then. `ending` is one of `metrics.ENDINGS`, "" where nothing was reserved.
    """

    clock: Callable[[], float]
    request_id: bytes = b""
    came_at: float = 0.0
    started: float = 0.0
    first_byte: float = 0.0
    ended: float = 0.0
    upstream_seconds: float = 0.0
    client_seconds: float = 0.0
    operation: Operation = UNKNOWN
    refusals: Refusals = UNKNOWN.refusals
    model: str = "unknown"
    provider: str = "none"
    upstream: str = ""
    status: int = 0
    code: str = ""
    stream: bool = False
    estimated: bool = False
    ttfb_ms: int = 0
    attempts: int = 0
    failures: tuple[FailedAttempt, ...] = ()
    dropped: str = ""
    reserved: int = 0
    ending: str = ""
    principal: Principal | None = None
    usage: Usage | None = None
    settled: Settled | None = None
    charge_usd: str = "0"
    _id: str = ""

    def start(self, wall: float) -> None:
        """The head has arrived, or what there is of it: waiting for that was not the request's."""
        self.came_at, self.started = wall, self.clock()
        self.request_id = new_request_id(int(wall * 1000))

    @property
    def id(self) -> str:
        """The request id as it is told: written once, when it is first needed."""
        if not self._id:
            self._id = uuid_text(self.request_id)
        return self._id

    def serves(self, upstream: Upstream, dropped: tuple[str, ...]) -> None:
        """It is this upstream that is asked, and without these fields."""
        self.provider, self.upstream = upstream.provider.name, upstream.name
        self.dropped = ",".join(dropped)

    def failed(self, upstream: Upstream, outcome: str, duration_ms: int) -> None:
        """An attempt has ended without content."""
        self.failures += (FailedAttempt(upstream.name, outcome, duration_ms),)

    def id_headers(self) -> Headers:
        """The request id under the names that the SDKs read."""
        told = self.id
        return [("x-request-id", told), ("request-id", told)]

    def answer_headers(self) -> Headers:
        """What is known of the answer when its head goes out."""
        headers = self.id_headers()
        if self.dropped:
            headers.append(("x-farebox-dropped", self.dropped))
        return headers

    def hear(self) -> None:
        """The answer begins."""
        self.first_byte = now = self.clock()
        self.ttfb_ms = round((now - self.started) * 1000)

    @property
    def duration_ms(self) -> int:
        """How long it took, or has taken by now."""
        return round(((self.ended or self.clock()) - self.started) * 1000)

    def count(self, metrics: Metrics) -> None:
        """Add it to the metrics, now that it has ended."""
        seen = metrics.exchanges[self.operation.surface, self.model, self.provider, self.status]
        seconds = self.ended - self.started
        seen.requests.value += 1
        seen.duration.observe(seconds)
        seen.overhead.observe(max(0.0, seconds - self.upstream_seconds - self.client_seconds))
        if self.first_byte:
            seen.first_byte.observe(self.first_byte - self.started)
        if (usage := self.usage) is not None:
            seen.input_tokens.value += usage.input_tokens
            seen.output_tokens.value += usage.output_tokens
            if usage.cached_input_tokens:
                seen.cached_input_tokens.value += usage.cached_input_tokens
            if usage.reasoning_tokens:
                seen.reasoning_tokens.value += usage.reasoning_tokens
        if self.ending:
            seen.endings[self.ending].value += 1
        if (settled := self.settled) is not None:
            seen.settle(self.reserved, settled.charge, settled.cost)

    def line(self) -> bytes:
        """As one line of JSON, now that it has ended; what is unknown is left out."""
        caller, usage = self.principal, self.usage
        return _ENCODER.encode(
            _Line(
                _timestamp(time.time_ns() // 10**9),
                "request",
                self.id,
                self.operation.surface,
                self.operation.name,
                self.status,
                self.code,
                caller.account if caller else "",
                caller.project if caller else "",
                caller.key_id if caller else 0,
                self.model,
                self.upstream,
                self.attempts,
                self.failures,
                self.dropped,
                self.stream,
                format_usd(self.reserved),
                usage.input_tokens if usage else 0,
                usage.output_tokens if usage else 0,
                self.estimated,
                self.charge_usd,
                self.ttfb_ms,
                self.duration_ms,
                round(self.upstream_seconds * 1000),
            )
        )


class _Line(msgspec.Struct, omit_defaults=True, gc=False):
    """What a line says, in its order. It is made by position, which is a third of the work."""

    time: str
    event: str
    request_id: str
    surface: str
    endpoint: str = ""
    status: int = -1  # which it never is, so that it is always told
    code: str = ""
    account: str = ""
    project: str = ""
    key_id: int = 0
    model: str = "unknown"
    upstream: str = ""
    attempts: int = 0
    failed: tuple[FailedAttempt, ...] = ()
    dropped: str = ""
    stream: bool = False
    reserved_usd: str = "0"
    input_tokens: int = 0
    output_tokens: int = 0
    estimated: bool = False
    charge_usd: str = "0"
    ttfb_ms: int = 0
    duration_ms: int = -1  # as the status
    upstream_ms: int = 0


@lru_cache(maxsize=2)
def _timestamp(second: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(second))


class Log:
    """Log lines, written in batches so that a slow terminal never holds up a request."""

    def __init__(self, write: Callable[[bytes], object], *, seconds: float = 0.2) -> None:
        self._write = write
        self._seconds = seconds
        self._lines: list[bytes] = []
        self.dropped = 0

    def add(self, line: bytes) -> None:
        """Queue a line; when nobody takes lines away, new ones are dropped and counted."""
        if len(self._lines) < _LOG_LINES_MAX:
            self._lines.append(line)
        else:
            self.dropped += 1

    async def run(self) -> None:
        """Write what has gathered, five times a second, until cancelled; then once more."""
        try:
            while True:
                await trio.sleep(self._seconds)
                if self._lines:
                    await trio.to_thread.run_sync(self._write_out, self._take())
        finally:
            if self._lines:
                self._write_out(self._take())

    def _take(self) -> list[bytes]:
        lines, self._lines = self._lines, []
        return lines

    def _write_out(self, lines: list[bytes]) -> None:
        try:
            self._write(b"\n".join(lines) + b"\n")
        except OSError:  # nobody reads the log any more, which is no reason to stop serving
            self.dropped += len(lines)
