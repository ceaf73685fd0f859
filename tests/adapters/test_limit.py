"""Streams that are cut at a limit: every surface at every provider protocol ends in its grammar.

The provider is the sandbox, the client a strict reader. Wherever the limit falls, the client must
understand a whole answer that reached its cap: a prefix of the full one, with the figures that are
charged; and what is counted never exceeds the limit.
"""

from __future__ import annotations

import msgspec
import pytest

from adapters import sse
from adapters.catalogue import Protocol
from adapters.codec import StreamRelay
from adapters.envelope import Envelopes
from tests.adapters.test_matrix import FINISHES, PAIRS, Exchange, answered, comparable
from tests.fakes import askers
from tests.fakes.askers import Ask
from tests.fakes.expected import text_of
from tests.fakes.readers import STREAMS, Meaning

TOOLS = {"get_weather": askers.WEATHER, "get_time": askers.CLOCK}
ASKS = {
    "text": Ask("sandbox-long"),
    "reasoning": Ask("sandbox-reasoning", thinking=True, cap=4000),
    "tools": Ask("sandbox-parallel-tools", tools=TOOLS),
    "short": Ask("sandbox"),
}
ENVELOPES = Envelopes(b"m" * 32, "7")
TEXT_BYTES = 40


def events_of(found: Exchange) -> list[bytes]:
    """The provider's raw events."""
    return sse.Splitter().feed(found.played.body)


def limited(found: Exchange, limit: int, *, size: int = 1) -> tuple[Meaning, StreamRelay, bytes]:
    """What the client understands where `limit` tokens are allowed; `size` events come at once."""
    relay = found.call.stream(limited=True)
    relay.limit(limit)
    events, out = events_of(found), b""
    for at in range(0, len(events), size):
        if not relay.ended:
            out += relay.feed(b"".join(events[at : at + size]))
        if relay.full:
            relay.cut_short(text_of(TEXT_BYTES))
    if not relay.ended:
        out += relay.close()
    assert relay.failure is None
    whole = out + relay.terminal
    assert whole == out + relay.terminal, "asked twice, it is the same"
    return STREAMS[found.surface](whole), relay, whole


@pytest.mark.parametrize("name", ASKS)
@pytest.mark.parametrize(("surface", "protocol"), PAIRS)
def test_a_cut_stream_is_a_whole_answer_that_reached_its_cap(
    surface: Protocol, protocol: Protocol, name: str
) -> None:
    found = answered(surface, protocol, ASKS[name].streamed())
    full, uncut, _ = limited(found, 10**6)
    assert not uncut.cut
    output = uncut.counted(text_of(TEXT_BYTES)).usage.output_tokens
    cuts = 0
    for limit in sorted({1, 3, 7, output // 2, output - 1}):
        meaning, relay, _ = limited(found, limit)
        if not relay.cut:  # all that was left ended the answer, or was no text
            continue
        cuts += 1
        counted = relay.counted(text_of(TEXT_BYTES))
        assert meaning.finish == FINISHES["length"][surface]
        assert full.text.startswith(meaning.text)
        assert full.thinking.startswith(meaning.thinking)
        assert len(meaning.calls) <= len(full.calls)
        assert meaning.model == full.model
        assert meaning.usage is not None
        assert meaning.usage[2] == counted.usage.output_tokens
        assert counted.usage.input_tokens > 0
        assert counted.usage.output_tokens <= limit
        assert counted.usage.reasoning_tokens <= limit
    assert cuts


@pytest.mark.parametrize(("surface", "protocol"), PAIRS)
def test_the_providers_figures_count_as_far_as_the_answer_went(
    surface: Protocol, protocol: Protocol
) -> None:
    found = answered(surface, protocol, ASKS["text"].streamed())
    _, uncut, _ = limited(found, 10**6)
    for size in (1, 10**6):  # the rest comes later, or in the same piece
        meaning, relay, _ = limited(found, 5, size=size)
        assert relay.cut
        if size == 1:
            relay = found.call.stream(limited=True)
            relay.limit(5)
            out, known = b"", False
            for event in events_of(found):
                if relay.ended:
                    known = relay.read_on(event)
                else:
                    out += relay.feed(event)
                if relay.full:
                    relay.cut_short(text_of(TEXT_BYTES))
            assert known or protocol == "gemini"  # which only the end of its body ends
            meaning = STREAMS[surface](out + relay.terminal)
        told = uncut.counted(text_of(TEXT_BYTES)).usage
        assert relay.counted(text_of(TEXT_BYTES)).usage == msgspec.structs.replace(
            told, output_tokens=5
        )
        assert meaning.usage == (told.input_tokens, told.cached_input_tokens, 5)
        assert meaning.finish == FINISHES["length"][surface]


@pytest.mark.parametrize(("surface", "protocol"), PAIRS)
def test_an_answer_that_ends_is_not_cut_by_its_figures(
    surface: Protocol, protocol: Protocol
) -> None:
    """Our count may be lower than the provider's: only more text is too much."""
    found = answered(surface, protocol, ASKS["short"].streamed())
    relay, counted = found.call.stream(), 0
    for event in events_of(found):
        relay.feed(event)
        if not relay.ended:
            counted = max(counted, relay.counted(text_of(TEXT_BYTES)).usage.output_tokens)
    meaning, again, _ = limited(found, counted)
    assert not again.cut
    assert meaning.finish == FINISHES["end"][surface]


def test_a_stream_that_was_not_limited_remembers_nothing() -> None:
    found = answered("openai", "openai", ASKS["short"].streamed())
    relay = found.call.stream()
    with pytest.raises(AssertionError, match="without"):
        relay.limit(5)


@pytest.mark.parametrize("name", ASKS)
@pytest.mark.parametrize(("surface", "protocol"), PAIRS)
def test_what_waited_comes_out_as_it_would_have(
    surface: Protocol, protocol: Protocol, name: str
) -> None:
    """A limit that is raised again and again leaves no trace, however the stream arrives."""
    found = answered(surface, protocol, ASKS[name].streamed())
    full, uncut, _ = limited(found, 10**6)
    for size in (1, 7, 10**6):
        relay, limit = found.call.stream(limited=True), 0
        relay.limit(limit)
        events, out = events_of(found), b""
        for at in range(0, len(events), size):
            out += relay.feed(b"".join(events[at : at + size]))
            while relay.full:
                limit += 1 + limit // 3
                out += relay.limit(limit)
        if not relay.ended:
            out += relay.close()
        assert not relay.cut
        meaning = STREAMS[surface](out + relay.terminal)
        assert comparable(meaning) == comparable(full)
        assert relay.counted(text_of(TEXT_BYTES)) == uncut.counted(text_of(TEXT_BYTES))


@pytest.mark.parametrize(("surface", "protocol"), PAIRS)
def test_a_client_that_leaves_before_more_is_allowed_pays_for_what_it_got(
    surface: Protocol, protocol: Protocol
) -> None:
    found = answered(surface, protocol, ASKS["text"].streamed())
    relay = found.call.stream(limited=True)
    relay.limit(5)
    relay.feed(found.played.body)
    assert relay.full
    relay.read_on(b"")
    counted = relay.counted(text_of(TEXT_BYTES))
    assert counted.usage.output_tokens == 5
    assert counted.usage.input_tokens > 0
