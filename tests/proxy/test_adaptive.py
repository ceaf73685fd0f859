"""How much a stream holds while it runs, and how long answers are thought to become; with fakes."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from adapters.codec import Request
from adapters.openai.chat_relay import ChatStreamRelay
from adapters.openai.responses_passing import ResponsesManner
from adapters.openai.responses_reader import ResponsesReader
from adapters.openai.responses_wire import event
from adapters.passing import PassingStream
from adapters.stream import Meter, nothing_expected
from proxy.allowance import OUTPUT_TOKENS_MIN, Allowance
from proxy.outputs import START_TOKENS_MIN, Outputs
from tests.fakes.provider import delta

FIXED = 1000
RATE = 7
MAX = 16_384
WORD = "word"
REQUEST = Request(fields={}, body_bytes=0, model="m", protocol="openai-responses")


def price(output_tokens: int) -> int:
    """Nano-dollars for so much output."""
    return FIXED + RATE * output_tokens


def tokens_of(amount: int) -> int:
    """The output that an amount covers."""
    return (amount - FIXED) // RATE


class FakeReservation:
    """Credit for `credit` tokens of output. A wish is decided after `seconds`, at once where 0."""

    def __init__(self, tokens: int, credit: int, seconds: float = 0) -> None:
        self.amount = price(tokens)
        self.refused = False
        self.asked: list[int] = []
        self.waited: list[int] = []
        self._credit = price(credit)
        self._seconds = seconds

    def ask_for(self, amount: int) -> None:
        self.asked.append(tokens_of(amount))
        self.refused = False
        if not self._seconds:
            self._decide(amount)

    async def extend(self, extra: int) -> bool:
        amount = self.amount + extra
        self.waited.append(tokens_of(amount))
        if self._seconds:
            await trio.sleep(self._seconds)
        self._decide(amount)
        return not self.refused

    def _decide(self, amount: int) -> None:
        self.refused = amount > self._credit
        if not self.refused:
            self.amount = max(self.amount, amount)


class CountingRelay(ChatStreamRelay):
    """Counts how often it is looked at."""

    looks = 0

    @property
    def output_tokens(self) -> int:
        self.looks += 1
        return super().output_tokens


def relay() -> CountingRelay:
    return CountingRelay("m", show_usage=False, pieces={}, limited=True)


def words(count: int) -> list[bytes]:
    """Events of one token each."""
    return [one_event(WORD)] * count


def one_event(text: str) -> bytes:
    return delta(text).partition(b"\r\n")[2].removesuffix(b"\r\n")


def output_of(stream: ChatStreamRelay) -> int:
    return stream.counted(nothing_expected).usage.output_tokens


async def fed(allowance: Allowance, stream: ChatStreamRelay, pieces: Iterable[bytes]) -> bytes:
    """As the data plane feeds a relay."""
    out = b""
    for piece in pieces:
        if stream.ended:
            break
        if allowance.takes(len(piece)):
            out += stream.feed(piece)
        else:
            out += await allowance.feed(stream, piece)
    return out


async def test_growth_is_asked_for_at_three_quarters_and_doubles() -> None:
    held, stream = FakeReservation(1024, MAX), relay()
    allowance = Allowance(held, price, MAX, nothing_expected)
    await fed(allowance, stream, words(760))
    assert held.asked == []
    await fed(allowance, stream, words(30))
    assert held.asked == [2048]
    await fed(allowance, stream, words(3000))
    assert held.asked == [2048, 4096, 8192]
    assert held.waited == []
    assert not stream.cut


async def test_looks_are_few() -> None:
    """One for two dozen events, as long as much is held; none at all once that is the cap."""
    held, stream = FakeReservation(8000, MAX), relay()
    allowance = Allowance(held, price, MAX, nothing_expected)
    await fed(allowance, stream, words(4000))
    assert stream.looks <= 4000 // 23
    held.amount = price(MAX)
    await fed(allowance, stream, words(200))
    before = stream.looks
    await fed(allowance, stream, words(20_000))
    assert stream.looks == before


async def test_a_refusal_is_met_with_smaller_wishes() -> None:
    held, stream = FakeReservation(1024, 1300), relay()
    allowance = Allowance(held, price, MAX, nothing_expected)
    out = await fed(allowance, stream, words(5000))
    assert held.asked[:3] == [2048, 1536, 1280]
    assert all(tokens <= 1300 + 1280 for tokens in held.asked[3:])
    assert stream.cut
    assert 1300 - OUTPUT_TOKENS_MIN < tokens_of(held.amount) <= 1300
    assert output_of(stream) == tokens_of(held.amount)
    assert out.count(WORD.encode()) == output_of(stream)


async def test_output_that_is_faster_than_the_decision_waits_for_it(
    autojump_clock: MockClock,
) -> None:
    held, stream = FakeReservation(1024, MAX, seconds=0.1), relay()
    allowance = Allowance(held, price, MAX, nothing_expected)
    out = await fed(allowance, stream, [b"".join(words(5000))])
    assert held.waited == [2048, 4096, 8192]
    assert out.count(WORD.encode()) == 5000
    assert trio.current_time() == pytest.approx(0.3)


async def test_what_goes_on_beyond_its_cap_is_the_providers_fault() -> None:
    """All that was asked for is held: nothing is cut then, as with the whole cap."""
    held, stream = FakeReservation(1024, MAX), relay()
    allowance = Allowance(held, price, 2000, nothing_expected)
    out = await fed(allowance, stream, [b"".join(words(1500)), b"".join(words(3000))])
    assert out.count(WORD.encode()) == 4500
    assert tokens_of(held.amount) == 2000


async def test_events_that_only_repeat_what_was_said_make_nothing_grow() -> None:
    """A Responses stream ends in events that say all of its text again, several times."""
    held = FakeReservation(1024, MAX)
    reader, manner = ResponsesReader(passing=True), ResponsesManner(REQUEST)
    stream = PassingStream(reader, Meter({}), manner, limited=True)
    allowance = Allowance(held, price, MAX, nothing_expected)
    place = {"item_id": "msg_1", "output_index": 0, "content_index": 0}
    for _ in range(700):
        said = event("response.output_text.delta", {**place, "delta": WORD})
        await allowance.feed(stream, said)
    whole = {"text": WORD * 700, "more": "x" * 50_000}
    await allowance.feed(stream, event("response.output_text.done", {**place, **whole}))
    assert not stream.full
    assert held.asked == held.waited == []


async def test_one_event_that_is_larger_than_all_that_is_held() -> None:
    for credit, fits in ((1024, False), (4000, False), (5000, True)):
        held, stream = FakeReservation(1024, credit), relay()
        allowance = Allowance(held, price, MAX, nothing_expected)
        out = await fed(allowance, stream, [one_event(WORD * 4500)])
        assert stream.cut is not fits
        assert bool(out) is fits
        assert output_of(stream) <= tokens_of(held.amount)


@settings(max_examples=200, deadline=None)
@given(
    begin=st.integers(1, 3000),
    credit=st.integers(1, 8000),
    sizes=st.lists(st.integers(1, 40_000), min_size=1, max_size=30),
    words_=st.integers(1, 6000),
    letters=st.integers(1, 60),
)
def test_nothing_is_counted_that_is_not_held(
    begin: int, credit: int, sizes: list[int], words_: int, letters: int
) -> None:
    """However the bytes arrive, and whatever a piece of text weighs."""

    async def main() -> None:
        held, stream = FakeReservation(begin, max(begin, credit)), relay()
        allowance = Allowance(held, price, MAX, nothing_expected)
        data, at, turn = one_event("x" * letters) * words_, 0, 0
        out = b""
        while at < len(data) and not stream.ended:
            size = sizes[turn % len(sizes)]
            out += await fed(allowance, stream, [data[at : at + size]])
            assert output_of(stream) <= tokens_of(held.amount)
            at, turn = at + size, turn + 1
        shown = out.count(b'"content":"x')
        assert output_of(stream) == max(shown, -(-shown * letters // 4))
        assert (shown == words_) is not stream.cut
        if stream.cut:  # what was left is less than one event, or than the least to grow by
            assert max(begin, credit) - output_of(stream) < OUTPUT_TOKENS_MIN + letters

    trio.run(main)


# -- how long answers become ----------------------------------------------------------------------


def test_what_is_not_known_begins_with_the_least() -> None:
    outputs = Outputs()
    assert outputs.start("m") == START_TOKENS_MIN
    outputs.add("m", 3)
    assert outputs.start("m") == START_TOKENS_MIN


@given(st.lists(st.integers(1, 200_000), min_size=1, max_size=300))
def test_the_start_covers_all_but_a_hundredth(lengths: list[int]) -> None:
    outputs = Outputs()
    for length in lengths:
        outputs.add("m", length)
    start = outputs.start("m")
    longer = sum(length > start for length in lengths)
    assert longer <= len(lengths) // 100
    assert start <= max(START_TOKENS_MIN, max(lengths) * 1.1)
    assert outputs.start("other") == START_TOKENS_MIN


def test_one_long_answer_in_a_thousand_is_not_what_the_others_hold() -> None:
    outputs = Outputs()
    for number in range(1000):
        outputs.add("m", 50_000 if number % 500 == 0 else 2000)
    assert 2000 <= outputs.start("m") <= 2200


def test_what_is_long_ago_is_forgotten() -> None:
    outputs = Outputs()
    for _ in range(500):
        outputs.add("m", 10_000)
    for _ in range(20_000):
        outputs.add("m", 1500)
    assert 1500 <= outputs.start("m") < 1650


def test_no_answer_is_too_long_for_it() -> None:
    outputs = Outputs()
    outputs.add("m", 2**40)
    outputs.add("n", 0)
    assert outputs.start("m") > 2**27
    assert outputs.start("n") == START_TOKENS_MIN
