"""adapters.envelope: what was sealed opens for the same account, and nothing else does."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters import envelope
from adapters.canonical import Blob, BlobKind
from adapters.envelope import Envelopes, is_sealed

SECRET = bytes(range(32))
OURS = Envelopes(SECRET, "account")
BLOB = Blob("anthropic", "claude", "thinking", "signature==")
SEALED = OURS.seal(BLOB)

KINDS: tuple[BlobKind, ...] = ("thinking", "redacted", "reasoning", "call", "text")
TEXTS = st.text(st.characters(exclude_categories=["Cs"]))


@given(st.builds(Blob, TEXTS, TEXTS, st.sampled_from(KINDS), TEXTS), TEXTS)
def test_what_is_sealed_opens_for_its_account_only(blob: Blob, account: str) -> None:
    sealed = Envelopes(SECRET, account).seal(blob)
    assert is_sealed(sealed)
    assert Envelopes(SECRET, account).open(sealed) == blob
    assert Envelopes(SECRET, account + "x").open(sealed) is None
    assert Envelopes(SECRET[::-1], account).open(sealed) is None


def test_it_is_safe_in_json_headers_and_ids() -> None:
    assert SEALED.isascii()
    assert SEALED.replace("-", "").replace("_", "").replace(".", "").isalnum()


@given(st.integers(0, len(SEALED) - 1), st.characters())
def test_a_changed_character_is_noticed(at: int, character: str) -> None:
    changed = SEALED[:at] + character + SEALED[at + 1 :]
    assert OURS.open(changed) == (BLOB if changed == SEALED else None)


@pytest.mark.parametrize("end", range(0, len(SEALED), 7))
def test_cut_or_longer_is_not_ours(end: int) -> None:
    assert OURS.open(SEALED[:end]) is None
    assert OURS.open(SEALED + SEALED[:end] + "=") is None


@given(st.text(st.characters(exclude_categories=[])))
def test_anything_else_is_nothing(text: str) -> None:
    assert OURS.open(text) is None
    assert OURS.open("fb1." + text) is None
    assert OURS.open("fb1." + text + "." + text) is None
    assert OURS.open(SEALED + text) == (None if text else BLOB)


def test_parts_of_two_envelopes_make_none() -> None:
    other = OURS.seal(Blob("anthropic", "claude", "thinking", "another"))
    head, _, mac = SEALED.rpartition(".")
    assert OURS.open(f"{other.rpartition('.')[0]}.{mac}") is None
    assert OURS.open(f"{head}.{other.rpartition('.')[2]}") is None


def test_a_huge_value_is_not_even_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(envelope, "_VALUE_CHARACTERS_MAX", len(SEALED))
    assert OURS.open(SEALED) == BLOB
    assert OURS.open(OURS.seal(Blob("p", "m", "text", "x" * 1000))) is None
    assert OURS.open("fb1." * 10_000_000) is None
