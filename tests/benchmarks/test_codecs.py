"""The codecs' benchmark measures complete answers, and nothing piles up behind a stream."""

from __future__ import annotations

import pytest

from benchmarks import codecs
from benchmarks.answers import WORD, stream
from benchmarks.codecs import PAIRS, Pair

WORDS = 4000


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: f"{pair.surface}-{pair.provider}")
def test_every_pair_is_measured_on_a_whole_answer(pair: Pair) -> None:
    events = list(stream(pair.provider, 50))
    assert codecs.cost_us(pair, events) > 0


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: f"{pair.surface}-{pair.provider}")
def test_a_stream_holds_no_more_than_its_text(pair: Pair) -> None:
    events = list(stream(pair.provider, WORDS))
    text = WORDS * len(WORD)
    held = codecs.held_bytes(pair, events)
    # A Responses client is told the whole text again at the end: the pieces wait for that.
    limit = 20 * text if pair.surface == "openai-responses" and not pair.passes else 64 * 1024
    assert held < limit
