"""adapters.freeform: raw text in JSON arguments, and out of them again as they stream."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.canonical import Grammar, Tool
from adapters.freeform import Unwrapper, arguments, description, parameters

TEXTS = st.text(
    st.sampled_from('ab"\\{}:/\n\té😀\u2028\x00') | st.characters(exclude_categories=[])
)


def unwrapped(pieces: list[str]) -> tuple[str, str]:
    """What came out as it streamed, and at the close."""
    unwrapper = Unwrapper()
    return "".join([unwrapper.feed(piece) for piece in pieces]), unwrapper.close()


def cut(text: str, cuts: list[int]) -> list[str]:
    places = [0, *sorted(place % (len(text) + 1) for place in cuts), len(text)]
    return [text[begin:end] for begin, end in pairwise(places)]


@given(
    TEXTS.filter(lambda text: text.isascii() or text == text.encode(errors="replace").decode()),
    st.lists(st.integers(0), max_size=12),
    st.booleans(),
    st.sampled_from([None, 2, "\t"]),
)
def test_any_text_comes_through_any_split(
    text: str, cuts: list[int], ascii_only: bool, indent: int | str | None
) -> None:
    wrapped = json.dumps({"input": text}, ensure_ascii=ascii_only, indent=indent)
    assert unwrapped(cut(wrapped, cuts)) == (text, "")


@given(TEXTS)
def test_what_is_wrapped_for_the_history_unwraps(text: str) -> None:
    raw = arguments(text)
    assert json.loads(raw).keys() == {"input"}
    assert "".join(unwrapped([raw])) == json.loads(raw)["input"]


@given(st.text(), st.lists(st.integers(0), max_size=6))
def test_nothing_raises_and_the_split_changes_nothing(text: str, cuts: list[int]) -> None:
    assert "".join(unwrapped(cut(text, cuts))) == "".join(unwrapped([text]))


@given(st.integers(0, 30))
def test_cut_arguments_give_what_came(end: int) -> None:
    wrapped = '{"input": "ab\\ud83d\\ude00c"}'
    out = "".join(unwrapped([wrapped[:end]]))
    assert "ab😀c".startswith(out.removesuffix("\ufffd"))


@pytest.mark.parametrize(
    ("given_arguments", "text"),
    [
        ('"bare"', "bare"),
        ('{"patch": "x"}', "x"),
        ('{"in\\u0070ut": "x"}', "x"),
        ('{"note": "n", "input": "x"}', "x"),
        ('{"note": "n", "other": "x"}', '{"note": "n", "other": "x"}'),
        ('{"input": {"a": 1}}', '{"input": {"a": 1}}'),
        ('{"input": 1}', '{"input": 1}'),
        ("*** Begin Patch", "*** Begin Patch"),
        ("[1, 2]", "[1, 2]"),
        ('{"inputs": "x"', '{"inputs": "x"'),
        ("{}", ""),
        ("", ""),
    ],
)
def test_edge_70_another_answer_comes_out_at_the_close_as_text(
    given_arguments: str, text: str
) -> None:
    assert unwrapped(list(given_arguments)) == ("", text)


def test_what_models_write_against_json_is_taken_as_meant() -> None:
    assert unwrapped(['{"input": "a\nb\\qc\\u12', 'xy"}']) == ("a\nb\\qc\\u12xy", "")


def test_members_behind_the_text_are_left_out() -> None:
    assert unwrapped(['{"input": "a", "more": "b"}', " "]) == ("a", "")


def test_text_comes_out_as_soon_as_it_is_there() -> None:
    unwrapper = Unwrapper()
    assert unwrapper.feed('{"input') == ""
    assert unwrapper.feed('": "a') == "a"
    assert unwrapper.feed("\\") == ""
    assert unwrapper.feed("nb\\u00e") == "\nb"
    assert unwrapper.feed("9") == "é"
    assert unwrapper.feed("\\ud83d") == ""
    assert unwrapper.feed("\\ude00") == "😀"
    assert unwrapper.feed("\\ud83d") == ""
    assert unwrapper.close() == "\ufffd"


def test_edge_69_a_free_form_tool_is_a_function_with_an_object() -> None:
    tool = Tool(name="patch", description="Edits.", free=True, grammar=Grammar("lark", "start: x"))
    schema = parameters(tool)
    assert schema["type"] == "object"
    assert schema["required"] == ["input"]
    assert schema["additionalProperties"] is False
    assert "lark" in str(schema["properties"])
    assert "start: x" in str(schema["properties"])


def test_the_description_says_that_the_input_is_raw() -> None:
    assert description(Tool(name="t", description="Edits.", free=True)).startswith("Edits.\n\n")
    assert "raw text" in description(Tool(name="t", free=True))
    assert parameters(Tool(name="t", free=True))["properties"] == {"input": {"type": "string"}}
