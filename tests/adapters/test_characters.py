"""adapters.characters: nothing that comes out has half a character in it."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.characters import REPLACEMENT, decode, joined, whole

UNITS = st.lists(st.sampled_from(["a", "é", "\ud83d", "\ude00", "😀"]))


class Chunk(msgspec.Struct):
    text: str = ""


decoder = msgspec.json.Decoder(Chunk)


@given(UNITS)
def test_joining_does_not_depend_on_the_cuts(units: list[str]) -> None:
    out, half = "", ""
    for unit in units:
        text, half = joined(half, unit)
        out += text
    out += REPLACEMENT if half else ""
    assert out == whole("".join(units))
    out.encode()


def test_pairs_become_one_character_and_lonely_halves_a_mark() -> None:
    assert whole("a\ud83d\ude00b") == "a😀b"
    assert whole("\ude00a\ud83d") == "\ufffda\ufffd"


def test_json_with_half_a_character_can_be_read() -> None:
    assert decode(decoder, b'{"text": "x"}').text == "x"
    assert decode(decoder, rb'{"text": "x\ud83d"}').text == "x\ud83d"


@pytest.mark.parametrize(
    "data", [b"{", rb'{"text": "\ud83d"', rb'{"text": 1}', rb'{"text": 1, "\ud83d": 2}', b"\xff"]
)
def test_what_cannot_be_read_is_still_refused(data: bytes) -> None:
    with pytest.raises(msgspec.MsgspecError):
        decode(decoder, data)


def test_half_a_character_where_raw_json_is_wanted_cannot_be_read() -> None:
    class Raw(msgspec.Struct):
        text: str = ""
        raw: msgspec.Raw = msgspec.Raw()

    with pytest.raises(msgspec.DecodeError):
        decode(msgspec.json.Decoder(Raw), rb'{"text": "x\ud83d", "raw": "\ud83d"}')
