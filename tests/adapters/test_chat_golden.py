"""Streams as providers send them, and what the client sees of each, byte for byte.

`tests/golden/openai/CASE/` holds `upstream.txt`, the client's `expected.plain.txt` and
`expected.with-usage.txt` (without and with `include_usage`), and `expected.usage.json`, what is
billed. A new provider's oddity belongs into a case of its own, or into the nearest one.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from adapters.canonical import Usage
from adapters.openai.chat_relay import ChatStreamRelay
from adapters.stream import nothing_expected

CASES = sorted((Path(__file__).parents[1] / "golden" / "openai").iterdir())
SPLITS = 50


def pieces(stream: bytes) -> Iterator[list[bytes]]:
    """The stream whole, byte by byte, and cut at random places."""
    yield [stream]
    yield [stream[at : at + 1] for at in range(len(stream))]
    chance = random.Random(0)  # the same cuts each time
    for _ in range(SPLITS):
        cuts = sorted(chance.sample(range(len(stream)), 9))
        yield [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("show_usage", [False, True], ids=["plain", "with-usage"])
def test_the_client_sees_the_golden_bytes(case: Path, show_usage: bool) -> None:
    name = "with-usage" if show_usage else "plain"
    expected = (case / f"expected.{name}.txt").read_bytes()
    usage = msgspec.json.decode((case / "expected.usage.json").read_bytes(), type=Usage)
    for stream in pieces((case / "upstream.txt").read_bytes()):
        relay = ChatStreamRelay("mine", show_usage, {})
        assert b"".join(map(relay.feed, stream)) + relay.terminal == expected
        assert relay.ended
        assert relay.failure is None
        counted = relay.counted(nothing_expected)
        assert (counted.usage, counted.estimated) == (usage, False)
