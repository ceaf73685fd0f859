"""From one protocol to another: a prompt out, canonical events back, written for the client.

`Translation` is the call of one candidate. A plain answer goes the same way as a stream, as events
through the same writer, so the two cannot come to differ.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace

from adapters import estimate, sse
from adapters.canonical import Close, Event, Finish, Prompt, Usage, Used
from adapters.codec import (
    EMPTY_ANSWER,
    Counted,
    DownstreamCodec,
    Encoded,
    Expected,
    Made,
    Reader,
    Request,
    Target,
    UpstreamCodec,
    UpstreamFailure,
    Writer,
    family,
)
from adapters.envelope import Envelopes
from adapters.errors import APIError, RequestNotExpressible, UpstreamProtocolViolation
from adapters.expected import expected_input
from adapters.restore import Restorer
from adapters.stop import STOP_CHARACTERS_MAX, STOPS_MAX, StopScanner, can_be_scanned
from adapters.stream import Meter, cut_at, nothing_expected

# A request in another protocol is longer by its words for the same things, and never by far.
_GROWTH_MAX = 4
_GROWTH_FREE_BYTES = 16_384


class Translation:
    """A request at a provider of another protocol. Implements `codec.Call`."""

    __slots__ = (
        "_codec",
        "_encoded",
        "_envelopes",
        "_input",
        "_made",
        "_prompt",
        "_request",
        "_upstream",
        "body",
        "dropped",
        "headers",
        "path",
    )

    def __init__(
        self,
        codec: DownstreamCodec,
        upstream: UpstreamCodec,
        request: Request,
        prompt: Prompt,
        target: Target,
        envelopes: Envelopes,
        created: int = 0,
    ) -> None:
        """`created` is now, in seconds since the epoch. Raises RequestNotExpressible."""
        encoded: Encoded = upstream.encode(prompt, target)
        if len(encoded.body) > _GROWTH_MAX * request.body_bytes + _GROWTH_FREE_BYTES:
            # More than was reserved for: so far only references in schemas come to this.
            raise RequestNotExpressible(
                f"The request becomes too large for the provider {target.provider.name}, which "
                "wants everything written out that schemas refer to."
            )
        if not (encoded.stops_itself or can_be_scanned(prompt.stop)):
            raise RequestNotExpressible(
                f"stop: at most {STOPS_MAX} sequences of {STOP_CHARACTERS_MAX} characters are "
                f"looked for in answers of the provider {target.provider.name}.",
                param="stop",
            )
        self.path = encoded.path
        self.headers = encoded.headers
        self.body = encoded.body
        self.dropped = tuple(dict.fromkeys((*prompt.dropped, *encoded.dropped)))
        self._codec = codec
        self._upstream = upstream
        self._request = request
        self._prompt = prompt
        self._envelopes = envelopes
        self._encoded = encoded
        protocol = target.provider.protocol_for(request.protocol)
        self._input = expected_input(request, protocol, estimate.bound(request, native=False))
        self._made = Made(
            target.provider.name, family(target.model), self._input.input_tokens, created
        )

    def read_error(
        self, status: int, headers: Mapping[bytes, bytes], body: bytes
    ) -> UpstreamFailure:
        failure = self._upstream.read_error(status, headers, body)
        return replace(failure, param=None)  # it names a field that the client does not know

    def stream(self, *, limited: bool = False) -> TranslatedStream:
        return TranslatedStream(self._answer(), self._writer())

    def plain(self, body: bytes) -> TranslatedPlain:
        return TranslatedPlain(self._answer(), self._writer(), body)

    def _answer(self) -> _Answer:
        names, stops = self._encoded.names, self._prompt.stop
        return _Answer(
            self._encoded.reader(),
            Meter(self._encoded.pieces),
            None if names is None else Restorer(names),
            None if self._encoded.stops_itself or not stops else StopScanner(stops),
            self._input,
        )

    def _writer(self) -> Writer:
        return self._codec.writer(self._request, self._prompt, self._envelopes, self._made)


class _Answer:
    """What a reader makes of an upstream's bytes: counted, calls under the client's names, and
    cut at stop sequences that the provider does not know, and at a limit (`cut`)."""

    __slots__ = (
        "_composer",
        "_input",
        "_reader",
        "_restorer",
        "_scanner",
        "cut",
        "limit",
        "meter",
        "waiting",
    )

    def __init__(
        self,
        reader: Reader,
        meter: Meter,
        restorer: Restorer | None,
        scanner: StopScanner | None,
        expected: Usage,
    ) -> None:
        self._reader = reader
        self._composer = reader.composer
        self._restorer = restorer
        self._scanner = scanner
        self._input = expected
        self.meter = meter
        self.limit: int | None = None
        self.cut = False
        self.waiting: list[Event] = []  # those that the limit has no room for

    def read(self, data: bytes) -> list[Event]:
        self._reader.read(data)
        return self._taken()

    def plain(self, body: bytes) -> list[Event]:
        self._reader.plain(body)
        self._composer.finish()
        return self._taken()

    def close(self) -> list[Event]:
        self._reader.close()
        self._composer.finish()
        return self._taken()

    def read_on(self, data: bytes) -> None:
        """An event behind a cut, of which nothing but the usage counts."""
        self._reader.read(data)
        self.meter.read_on(self._composer.take())

    def ending(self) -> list[Event]:
        """What makes a whole answer of one that was cut at its limit."""
        index = self.meter.open_index
        ends: list[Event] = [] if index < 0 else [Close(index)]
        usage = self.counted(self._expected).usage
        return self._passed_on([*ends, Used(usage), Finish("length")])

    @property
    def output_tokens(self) -> int:
        output = self.meter.output_tokens
        return min(output, self.limit) if self.cut and self.limit is not None else output

    def counted(self, expected: Expected) -> Counted:
        counted = self.meter.counted(expected)
        return cut_at(counted, self.limit) if self.cut and self.limit is not None else counted

    def _expected(self) -> Usage:
        return self._input

    @property
    def failure(self) -> UpstreamFailure | None:
        return self._composer.failure

    @property
    def complete(self) -> bool:
        """Whether the upstream has said its last word."""
        return self._composer.ended

    def resume(self) -> list[Event]:
        """What waited, as far as there is room by now."""
        events, self.waiting = self.waiting, []
        limit = sys.maxsize if self.limit is None else self.limit
        return self._passed_on(self._within(events, limit))

    def cut_short(self) -> None:
        self.cut = True
        self.meter.read_on(self.waiting)
        self.waiting.clear()

    def _taken(self) -> list[Event]:
        events = self._composer.take()
        if self.limit is not None:
            events = self._within(events, self.limit)
        else:
            for event in events:
                self.meter.read(event)
        if self._restorer is None and self._scanner is None:
            return events
        return self._passed_on(events)

    def _within(self, events: list[Event], limit: int) -> list[Event]:
        """Count the first of `events`, as many as the limit has room for; the others wait."""
        ends = self._composer.has_reason
        for at, event in enumerate(events):
            if not (ends or self.meter.has_room((event,), limit)):
                self.waiting = events[at:]
                return events[:at]
            self.meter.read(event)
        return events

    def _passed_on(self, events: list[Event]) -> list[Event]:
        if self._restorer is not None:
            events = self._restorer.pass_on(events)
        return events if self._scanner is None else self._stopped(self._scanner, events)

    def _stopped(self, scanner: StopScanner, events: list[Event]) -> list[Event]:
        """The events up to a stop sequence. The upstream's usage comes behind what is cut off, or
        never: the client gets it as far as it is known, or was counted."""
        events = scanner.pass_on(events)
        if scanner.stopped and events:
            events.insert(-1, Used(self.meter.counted(self._expected).usage))
        return events


class TranslatedStream:
    """A stream of one protocol that leaves as another. Implements `codec.StreamRelay`."""

    __slots__ = ("_answer", "_splitter", "_terminal", "_waiting", "_writer", "ended", "failure")

    def __init__(self, answer: _Answer, writer: Writer) -> None:
        self.ended = False
        self.failure: UpstreamFailure | None = None
        self._terminal = b""
        self._answer = answer
        self._writer = writer
        self._splitter = sse.Splitter()
        self._waiting: list[bytes] = []  # payloads behind the event that waits

    @property
    def waiting_bytes(self) -> int:
        return self._splitter.waiting_bytes

    @property
    def cut(self) -> bool:
        return self._answer.cut

    @property
    def full(self) -> bool:
        return bool(self._answer.waiting)

    def limit(self, output_tokens: int | None) -> bytes:
        self._answer.limit = output_tokens
        if not self.full:
            return b""
        out = self._write(self._answer.resume())
        waiting, self._waiting = self._waiting, []
        return out + b"".join([self._read(payload) for payload in waiting])

    def cut_short(self, expected: Expected) -> None:
        self._answer.cut_short()
        self.ended = True
        for payload in self._waiting:
            self._answer.read_on(payload)
        self._waiting.clear()

    @property
    def terminal(self) -> bytes:
        if self.cut and not self._terminal:
            self._terminal = b"".join(map(self._writer.write, self._answer.ending()))
        return self._terminal

    @property
    def has_content(self) -> bool:
        return self._answer.meter.has_content

    def feed(self, data: bytes) -> bytes:
        if self.ended:
            return b""
        try:
            payloads = self._splitter.payloads(data)
        except UpstreamProtocolViolation as violation:
            self.failure, self.ended = UpstreamFailure("protocol", str(violation)), True
            return b""
        if len(payloads) == 1:
            return self._read(payloads[0])
        return b"".join([self._read(payload) for payload in payloads])

    def close(self) -> bytes:
        out = b""
        if not self.ended and (payload := sse.data_of(self._splitter.close())):
            out = self._read(payload)
        if not (self.ended or self.full):
            out += self._write(self._answer.close())
        return out

    def read_on(self, data: bytes) -> bool:
        if self.full:
            self.cut_short(nothing_expected)
        if not self.ended:
            self.feed(data)
        elif not self._answer.complete:
            try:
                payloads = self._splitter.payloads(data)
            except UpstreamProtocolViolation:
                return True
            for payload in payloads:
                self._answer.read_on(payload)
        return self.ended and self._answer.complete

    @property
    def output_tokens(self) -> int:
        return self._answer.output_tokens

    def counted(self, expected: Expected) -> Counted:
        return self._answer.counted(expected)

    def error_event(self, error: APIError, request_id: str) -> bytes:
        return self._writer.error_event(error, request_id)

    def _read(self, payload: bytes) -> bytes:
        answer = self._answer
        if answer.waiting:
            self._waiting.append(payload)
            return b""
        if not self.ended:
            return self._write(answer.read(payload))
        if not answer.complete:
            answer.read_on(payload)
        return b""

    def _write(self, events: list[Event]) -> bytes:
        out = b""
        for event in events:
            if type(event) is Finish:
                self._finish(event)
                return out
            out += self._writer.write(event)
        if self._answer.failure is not None:
            self.failure, self.ended = self._answer.failure, True
        return out

    def _finish(self, event: Finish) -> None:
        self.ended = True
        if self._answer.meter.empty:
            self.failure = EMPTY_ANSWER
        else:
            self._terminal = self._writer.write(event)


class TranslatedPlain:
    """An answer in one piece, from one protocol to another. Implements `codec.PlainRelay`."""

    __slots__ = ("_answer", "body", "failure")

    def __init__(self, answer: _Answer, writer: Writer, body: bytes) -> None:
        self.body = b""
        self._answer = answer
        events = answer.plain(body)
        for event in events:
            writer.write(event)
        # An answer that was cut at a stop sequence is complete, whatever came behind it.
        finished = bool(events) and type(events[-1]) is Finish
        self.failure = None if finished else answer.failure
        if self.failure is None and answer.meter.empty:
            self.failure = EMPTY_ANSWER
        if self.failure is None:
            self.body = writer.whole()

    def counted(self, expected: Expected) -> Counted:
        return self._answer.meter.counted(expected)
