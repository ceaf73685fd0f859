"""What is added to a first word: everything but the time of the provider that said it."""

from __future__ import annotations

import pytest

from farebox.sandbox import End, Performance
from tests.chaos import latency
from tests.chaos.oracle import Ending, Told

ASKED = 100.0


def told(first_content: float | None, nonce: str = "abc") -> Told:
    return Told("r1", nonce, Ending.WHOLE, "", ASKED, first_content, None, 10, text_came=True)


def performance(
    began: float, spoke: float | None = None, end: End = "whole", nonce: str = "abc"
) -> Performance:
    return Performance(1, "sandbox-echo", "", nonce, 0, 200, end, began, began + 9, spoke)


SERVED = performance(100.2, 101.0)


@pytest.mark.parametrize(
    ("performances", "added"),
    [
        pytest.param([SERVED], 0.3, id="the way there and back"),
        pytest.param(
            [performance(100.1, end="refused"), performance(100.7, 101.0)],
            0.8,
            id="an attempt before it",
        ),
        pytest.param([performance(100.05, 100.9, "left"), SERVED], 0.3, id="a lost race"),
        pytest.param([SERVED, performance(100.5, 101.05, "left")], 0.3, id="a lost hedge"),
        pytest.param(
            [SERVED, performance(101.1, 101.2)], 0.3, id="one whom nobody can have heard yet"
        ),
        pytest.param([performance(100.2, 101.0, "left")], 0.3, id="a worker died"),
        pytest.param([performance(100.2, 101.0, "cut")], 0.3, id="cut later"),
    ],
)
def test_the_rest_is_added(performances: list[Performance], added: float) -> None:
    assert list(latency.added([told(101.1)], performances)) == [pytest.approx(added)]


def test_where_nobody_spoke_nothing_is_added() -> None:
    assert list(latency.added([told(None)], [SERVED])) == []
    assert list(latency.added([told(101.1)], [performance(100.2)])) == []
    assert list(latency.added([told(101.1, nonce="other")], [SERVED])) == []


@pytest.mark.parametrize(("percent", "value"), [(50, 51.0), (99, 100.0), (0, 1.0)])
def test_percentiles(percent: int, value: float) -> None:
    assert latency.percentile([float(each) for each in range(100, 0, -1)], percent) == value
    assert latency.percentile([], percent) == 0
