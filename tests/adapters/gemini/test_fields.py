"""Members of Google's objects, in both of their spellings."""

from __future__ import annotations

import msgspec
import pytest

from adapters.errors import InvalidRequest
from adapters.gemini import fields


def members(body: bytes) -> dict[str, msgspec.Raw]:
    return fields.members(msgspec.Raw(body), "it")


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("maxOutputTokens", "maxOutputTokens"),
        ("max_output_tokens", "maxOutputTokens"),
        ("parameters_json_schema", "parametersJsonSchema"),
        ("id", "id"),
    ],
)
def test_both_spellings_are_one_name(key: str, name: str) -> None:
    assert fields.camel(key) == name


def test_two_spellings_of_one_member_are_refused() -> None:
    with pytest.raises(InvalidRequest) as refused:
        members(b'{"topK":1,"top_k":2}')
    assert refused.value.param == "it.topK"


def test_a_key_that_stands_twice_is_refused() -> None:
    with pytest.raises(InvalidRequest) as refused:
        members(b'{"topK":1,"topK":2}')
    assert refused.value.param == "it.topK"


def test_null_is_absent() -> None:
    assert members(b'{"topK":null}') == {}


def test_the_key_is_found_as_it_was_spelled() -> None:
    raw = fields.raw_members(msgspec.Raw(b'{"max_output_tokens":1}'), "it")
    assert fields.spelled(raw, "maxOutputTokens") == "max_output_tokens"
    assert fields.spelled(raw, "topK") == "topK"


@pytest.mark.parametrize("body", [b"[]", b"5", b'"x"', b"{", b""])
def test_what_is_no_object_is_named(body: bytes) -> None:
    with pytest.raises(InvalidRequest) as refused:
        members(body)
    assert refused.value.param == "it"


def test_types_are_checked_by_name() -> None:
    found = members(b'{"a":"x","b":[1],"c":true,"d":1.5}')
    for read in (fields.whole, fields.flag, fields.texts, fields.mapping):
        with pytest.raises(InvalidRequest) as refused:
            read(found, "a", "it")
        assert refused.value.param == "it.a"
    assert fields.text(found, "a") == "x"
    assert fields.flag(found, "c") is True
    assert fields.number(found, "d") == 1.5
    assert fields.whole(found, "absent") is None
