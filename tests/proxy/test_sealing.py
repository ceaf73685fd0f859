"""Sealed content: whole and unchanged with the right key and context, else nothing at all."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.sealing import ProjectKey, Unreadable, Wrapping

SECRET = bytes(range(32))
KEY = ProjectKey(bytes(32))


@given(st.binary(), st.binary())
def test_what_was_sealed_is_opened(content: bytes, context: bytes) -> None:
    assert KEY.open(KEY.seal(content, context), context) == content


def test_the_same_content_never_looks_the_same() -> None:
    assert KEY.seal(b"content", b"") != KEY.seal(b"content", b"")


def test_long_text_is_not_there_to_be_read_and_takes_less_room() -> None:
    sealed = KEY.seal(b"a secret " * 1000, b"")
    assert b"secret" not in sealed
    assert len(sealed) < 1000


def test_another_context_opens_nothing() -> None:
    with pytest.raises(Unreadable):
        KEY.open(KEY.seal(b"content", b"one"), b"other")


@given(st.data())
def test_damaged_bytes_open_nothing(data: st.DataObject) -> None:
    sealed = bytearray(KEY.seal(b"content", b""))
    sealed[data.draw(st.integers(0, len(sealed) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(Unreadable):
        KEY.open(bytes(sealed), b"")


@given(st.binary(max_size=40))
def test_no_bytes_make_it_fail_otherwise(noise: bytes) -> None:
    with pytest.raises(Unreadable):
        KEY.open(noise, b"")


def test_a_project_key_is_one_whoever_unwraps_it() -> None:
    wrapped = Wrapping(SECRET).new_key(1)
    sealed = Wrapping(SECRET).unwrap(wrapped, 1).seal(b"content", b"")
    assert Wrapping(SECRET).unwrap(wrapped, 1).open(sealed, b"") == b"content"


def test_a_wrapped_key_is_of_one_project_and_one_secret() -> None:
    wrapped = Wrapping(SECRET).new_key(1)
    with pytest.raises(Unreadable):
        Wrapping(SECRET).unwrap(wrapped, 2)
    with pytest.raises(Unreadable):
        Wrapping(SECRET[::-1]).unwrap(wrapped, 1)


def test_secrets_have_names_of_their_own() -> None:
    assert Wrapping(SECRET).secret_id == Wrapping(SECRET).secret_id
    assert Wrapping(SECRET).secret_id != Wrapping(SECRET[::-1]).secret_id
