"""adapters.nesting: complete exactly where a JSON parser says so, however the text is cut."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.nesting import Nesting

VALUES = st.recursive(
    st.text(st.sampled_from('ab"\\{}[]é\n'), max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
)


def complete(pieces: list[str]) -> bool:
    nesting = Nesting()
    for piece in pieces:
        nesting.feed(piece)
    return nesting.complete


@given(VALUES, st.booleans(), st.integers(1, 5))
def test_complete_at_the_last_character_and_not_before(
    value: object, ascii_only: bool, size: int
) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only)
    pieces = [text[at : at + size] for at in range(0, len(text), size)]
    assert complete(pieces)
    for end in range(len(text)):
        assert not complete(list(text[:end]))


@pytest.mark.parametrize("text", ["", " ", "null", "12", '"', '"\\"', '{"a\\', "[{}"])
def test_what_is_open_or_never_began_is_not_complete(text: str) -> None:
    assert not complete(list(text))
