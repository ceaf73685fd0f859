"""Charts are well-formed, say their figures, and let no name become markup."""

from __future__ import annotations

from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from console.pages.charts import NARROW, WIDE, Series, bars, lines

_texts = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=12)
_values = st.one_of(st.none(), st.floats(0, 1e12, allow_nan=False))


def parsed(drawn: str) -> ET.Element:
    return ET.fromstring(drawn)  # noqa: S314  # our own


def numbers(drawing: ET.Element, name: str) -> list[float]:
    return [float(value) for each in drawing.iter() if (value := each.get(name)) is not None]


@pytest.mark.parametrize("most", [*range(1, 30), 99, 1000, 4321])
def test_lines_of_what_is_counted_are_whole_numbers(most: int) -> None:
    drawing = parsed(bars("requests", ["today"], [Series("all", [most])], str, whole=True))
    texts = [each.text or "" for each in drawing.iter() if each.get("text-anchor") == "end"]
    values = [float(text) for text in texts]
    assert len(set(values)) == 5
    assert all(value.is_integer() for value in values)
    assert values[-1] >= most


@given(
    names=st.lists(_texts, min_size=1, max_size=4),
    labels=st.lists(_texts, max_size=20),
    values=st.data(),
    width=st.sampled_from([WIDE, NARROW]),
)
def test_whatever_is_drawn_stays_inside_and_is_well_formed(
    names: list[str], labels: list[str], values: st.DataObject, width: int
) -> None:
    size = len(labels)
    series = [
        Series(name, values.draw(st.lists(_values, min_size=size, max_size=size))) for name in names
    ]
    for draw in (bars, lines):
        drawing = parsed(draw("what it shows", labels, series, str, width=width, height=200))
        assert all(-0.1 <= y <= 200 for y in numbers(drawing, "y"))
        assert all(0 <= height <= 200.1 for height in numbers(drawing, "height"))


@pytest.mark.parametrize("value", [0.0, 5e-324, 1e-300, 1e-9, 1e300])
def test_a_value_may_be_next_to_nothing_or_enormous(value: float) -> None:
    drawing = parsed(bars("spend", ["x"], [Series("a", [value])], str, height=200))
    assert all(0 <= height <= 200.1 for height in numbers(drawing, "height"))


def test_a_name_is_text() -> None:
    drawn = bars("<b>", ["<i>"], [Series("<script>", [1.0])], str)
    assert "<script>" not in drawn
    assert "<b>" not in drawn
    assert "&lt;script&gt; 1.0" in drawn


def test_each_place_tells_its_figures() -> None:
    drawing = parsed(bars("spend", ["May 1", "May 2"], [Series("a", [1, None])], str))
    titles = [title.text for title in drawing.iter() if title.tag.endswith("title")]
    assert titles == ["May 1: a 1", "May 2: nothing"]


def test_bars_stand_on_each_other() -> None:
    drawing = parsed(bars("spend", ["x"], [Series("a", [1.0]), Series("b", [3.0])], str))
    drawn = {box.get("class"): box for box in drawing.iter() if box.get("class") in ("s1", "s2")}
    lower, upper = drawn["s1"], drawn["s2"]
    assert float(upper.get("y", 0)) + float(upper.get("height", 0)) == float(lower.get("y", 0))
    ratio = float(upper.get("height", 0)) / float(lower.get("height", 1))
    assert abs(ratio - 3) < 0.05


def test_a_line_breaks_where_a_value_is_missing() -> None:
    values: list[float | None] = [1, 2, None, 4, 5, None, 7]
    drawing = parsed(lines("latency", list("abcdefg"), [Series("p50", values)], str))
    tags = [each.tag.rpartition("}")[2] for each in drawing.iter()]
    assert tags.count("polyline") == 2
    assert tags.count("circle") == 1
