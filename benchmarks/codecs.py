"""`python -m benchmarks.codecs`: what one event of a stream costs in the codecs alone.

Every surface at every provider protocol, without network or ledger: a stream as the provider sends
it, one event a read, through the relay that the data plane would use. CPU time of this process,
the median of several rounds with the pairs taking turns. Three questions: what does an event cost
(targets: 10 µs where bytes pass, 40 µs translated), does it stay flat over 10 MB, and how much
memory does a stream hold, next to the text that it has carried.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import time
import tracemalloc
from dataclasses import dataclass

from adapters import registry
from adapters.catalogue import Protocol, Provider
from adapters.codec import Ask, StreamRelay, Target
from adapters.envelope import Envelopes
from adapters.translate import Translation
from benchmarks.answers import Json, stream

PASSING_US_MAX = 10.0
TRANSLATED_US_MAX = 40.0
_ENVELOPES = Envelopes(b"b" * 32, "1")

_HELLO: list[Json] = [{"role": "user", "content": "Hello"}]
_REQUESTS: dict[Protocol, tuple[str, Json]] = {
    "openai": ("/v1/chat/completions", {"model": "m", "messages": _HELLO, "stream": True}),
    "openai-responses": ("/v1/responses", {"model": "m", "input": "Hello", "stream": True}),
    "anthropic": (
        "/v1/messages",
        {"model": "m", "max_tokens": 100, "messages": _HELLO, "stream": True},
    ),
    "gemini": (
        "/v1beta/models/m:streamGenerateContent?alt=sse",
        {"contents": [{"role": "user", "parts": [{"text": "Hello"}]}]},
    ),
}


@dataclass(frozen=True, slots=True)
class Pair:
    """A surface at a provider protocol."""

    surface: Protocol
    provider: Protocol

    @property
    def passes(self) -> bool:
        """Whether bytes go through as they came."""
        return self.surface == self.provider

    def relay(self) -> StreamRelay:
        """A relay for one streamed answer."""
        path, body = _REQUESTS[self.surface]
        path, _, query = path.partition("?")
        found = registry.find("POST", path, query)
        codec = found.operation.codec
        assert codec is not None, "it generates"
        request = codec.decode(json.dumps(body).encode(), Ask(found.id, query))
        provider = Provider("p", self.provider, "http://p")
        upstream = registry.upstream_codec(self.provider)
        target = Target(provider, "m", 100, stream=True)
        if self.passes:
            return upstream.passing(request, target, _ENVELOPES).stream()
        prompt = codec.prompt(request, _ENVELOPES)
        return Translation(codec, upstream, request, prompt, target, _ENVELOPES).stream()


PAIRS = [Pair(surface, provider) for surface in _REQUESTS for provider in _REQUESTS]


def cost_us(pair: Pair, events: list[bytes]) -> float:
    """CPU microseconds an event takes."""
    relay = pair.relay()
    gc.collect()
    begun = time.process_time_ns()
    for event in events:
        relay.feed(event)
    spent = time.process_time_ns() - begun
    relay.close()
    if relay.failure is not None or not relay.terminal:
        raise AssertionError(f"{pair}: {relay.failure}")
    return spent / 1000 / len(events)


def held_bytes(pair: Pair, events: list[bytes]) -> int:
    """What the relay holds before the last event of a stream."""
    relay = pair.relay()
    gc.collect()
    tracemalloc.start()
    try:
        for event in events[:-4]:
            relay.feed(event)
        return tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.codecs", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--words", type=int, default=2000, help="deltas of the short stream")
    parser.add_argument("--megabytes", type=int, default=10, help="size of the long stream")
    options = parser.parse_args()
    print(f"{'surface':17} {'provider':17} {'µs/event':>9} {'at 10 MB':>9} {'KiB held per MB':>16}")
    exceeded = 0
    short = {name: list(stream(name, options.words)) for name in _REQUESTS}
    costs: dict[Pair, list[float]] = {pair: [] for pair in PAIRS}
    for _ in range(options.rounds):
        for pair in PAIRS:
            costs[pair].append(cost_us(pair, short[pair.provider]))
    for pair in PAIRS:
        size = sum(map(len, short[pair.provider])) / options.words
        long = list(stream(pair.provider, int(options.megabytes * 1e6 / size)))
        median = statistics.median(costs[pair])
        at_length = statistics.median(cost_us(pair, long) for _ in range(3))
        held = held_bytes(pair, long) / 1024 / (sum(map(len, long)) / 1e6)
        limit = PASSING_US_MAX if pair.passes else TRANSLATED_US_MAX
        mark = " !" if max(median, at_length) > limit else ""
        exceeded += bool(mark)
        figures = f"{median:9.1f} {at_length:9.1f} {held:16.1f}{mark}"
        print(f"{pair.surface:17} {pair.provider:17} {figures}")
    return 1 if exceeded else 0


if __name__ == "__main__":
    sys.exit(main())
