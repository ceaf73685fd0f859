"""API keys: their look, their checksum, the form in which they are stored."""

from __future__ import annotations

import re
import string
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger.keys import ALPHABET, is_minted, keyed_hash, mint

KEY = mint("farebox")


def looks_valid(text: str, brand: str) -> bool:
    """What a scanner for leaked secrets does: nobody is asked."""
    found = re.fullmatch(rf"(sk_{brand}_[0-9A-Za-z]{{36}})([0-9A-Za-z]{{6}})", text)
    if found is None:
        return False
    checksum = 0
    for character in found[2]:
        checksum = checksum * 62 + ALPHABET.index(character)
    return checksum == zlib.crc32(found[1].encode())


def test_a_key_is_one_word_of_62_characters_and_underscores() -> None:
    brand, body = KEY.split("_")[1:]
    assert (KEY.startswith("sk_farebox_"), brand, len(body)) == (True, "farebox", 42)
    assert set(body) <= set(string.ascii_letters + string.digits)


def test_no_two_keys_are_alike() -> None:
    assert len({mint("farebox") for _ in range(100)}) == 100


def test_the_brand_is_part_of_the_key() -> None:
    assert looks_valid(mint("acme"), "acme")
    assert not looks_valid(mint("acme"), "farebox")


@pytest.mark.parametrize("text", ["", "sk_farebox_", "sk_farebox_" + "0" * 42, KEY[:-1], KEY + "0"])
def test_what_was_not_minted_does_not_look_valid(text: str) -> None:
    assert not looks_valid(text, "farebox")
    assert not is_minted(text)


@given(st.integers(len("sk_farebox_"), len(KEY) - 1), st.sampled_from([*ALPHABET, "é", " "]))
def test_one_wrong_character_is_noticed(position: int, character: str) -> None:
    changed = KEY[:position] + character + KEY[position + 1 :]
    assert looks_valid(changed, "farebox") == (changed == KEY)


def test_the_hash_needs_key_and_secret() -> None:
    assert len(keyed_hash(b"s" * 32, KEY)) == 32
    assert keyed_hash(b"s" * 32, KEY) == keyed_hash(b"s" * 32, KEY)
    assert keyed_hash(b"s" * 32, KEY) != keyed_hash(b"t" * 32, KEY)
    assert keyed_hash(b"s" * 32, KEY) != keyed_hash(b"s" * 32, mint("farebox"))
