"""Charts as SVG, drawn by the server: no script, no library, and a page that prints.

Pure functions from figures to markup. Colours are classes of the style sheet (`s1` … `s6`), so a
chart follows light and dark; each bar and point has a title that says its figures, and each chart a
label for who cannot see it. Figures are floats here: they are drawn, never counted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

WIDE, NARROW = 960, 560
"""Widths in units of the drawing: for a chart alone in its row, and for one of two."""
SERIES_MAX = 6
"""As many colours as there are; the caller sums up what goes beyond."""

_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 18, 10, 24
_LINES = 4
_LABEL_WIDTH = 84
_GAP = 0.28  # of a bar's place
_LEAST = 1e-9  # a nano-dollar: what is below it looks like nothing

Format = Callable[[float], str]


@dataclass(frozen=True, slots=True)
class Series:
    """One value for each label of its chart; None where there is none.

    `colour` is a class of the style sheet; without one it is the next of `s1` … `s6`.
    """

    name: str
    values: Sequence[float | None]
    colour: str = ""


def bars(
    label: str,
    labels: Sequence[str],
    series: Sequence[Series],
    form: Format,
    *,
    width: int = WIDE,
    height: int = 240,
    whole: bool = False,
) -> Markup:
    """Bars, one for each label, the series on top of each other. `whole`: what they count comes in
    whole numbers, and so do the lines."""
    sums = [sum(each.values[n] or 0.0 for each in series) for n in range(len(labels))]
    most = _round_up(max(sums, default=0.0))
    if whole:
        most = float(_LINES * math.ceil(most / _LINES))
    frame = _Frame.of(width, height, most, len(labels))
    drawn = [_opening(label, width, height), frame.lines(form), frame.labels(labels)]
    bar = frame.step * (1 - _GAP)
    for n, name in enumerate(labels):
        left = frame.left(n) + frame.step * _GAP / 2
        drawn.append(f"<g class='bar'><title>{escape(_told(name, n, series, form))}</title>")
        # All of its place answers to the mouse, however small the bar.
        drawn.append(
            f"<rect x='{frame.left(n):.1f}' y='{_TOP}' width='{frame.step:.1f}'"
            f" height='{frame.bottom - _TOP}' fill='transparent'/>"
        )
        below = 0.0
        for colour, each in _coloured(series):
            value = each.values[n] or 0.0
            if value > 0:
                top = frame.height_of(below + value)
                drawn.append(
                    f"<rect class='{colour}' x='{left:.1f}' y='{top:.1f}' width='{bar:.1f}'"
                    f" height='{max(frame.height_of(below) - top, 0.6):.1f}' rx='1.5'/>"
                )
                below += value
        drawn.append("</g>")
    return Markup("".join(drawn) + "</svg>")  # noqa: S704  # every text in it was escaped


def lines(
    label: str,
    labels: Sequence[str],
    series: Sequence[Series],
    form: Format,
    *,
    width: int = WIDE,
    height: int = 200,
) -> Markup:
    """A line for each series, interrupted where it has no value."""
    values = [value for each in series for value in each.values if value is not None]
    frame = _Frame.of(width, height, _round_up(max(values, default=0.0)), len(labels))
    drawn = [_opening(label, width, height), frame.lines(form), frame.labels(labels)]
    for colour, each in _coloured(series):
        for run in _runs(each.values):
            points = [(frame.middle(n), frame.height_of(value)) for n, value in run]
            if len(points) == 1:
                ((x, y),) = points
                drawn.append(f"<circle class='{colour}' cx='{x:.1f}' cy='{y:.1f}' r='3'/>")
            else:
                path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
                drawn.append(f"<polyline class='line {colour}' points='{path}'/>")
    for n, name in enumerate(labels):
        drawn.append(
            f"<rect x='{frame.left(n):.1f}' y='{_TOP}' width='{frame.step:.1f}'"
            f" height='{frame.bottom - _TOP}' fill='transparent'>"
            f"<title>{escape(_told(name, n, series, form))}</title></rect>"
        )
    return Markup("".join(drawn) + "</svg>")  # noqa: S704  # every text in it was escaped


@dataclass(frozen=True, slots=True)
class _Frame:
    """Where things are drawn: `most` is the value of the highest line, `step` a label's place."""

    right: int
    bottom: int
    most: float
    step: float

    @classmethod
    def of(cls, width: int, height: int, most: float, places: int) -> _Frame:
        right = width - _RIGHT
        return cls(right, height - _BOTTOM, most, (right - _LEFT) / max(places, 1))

    def left(self, n: int) -> float:
        return _LEFT + n * self.step

    def middle(self, n: int) -> float:
        return self.left(n) + self.step / 2

    def height_of(self, value: float) -> float:
        return self.bottom - value / self.most * (self.bottom - _TOP)

    def lines(self, form: Format) -> str:
        drawn = []
        for n in range(_LINES + 1):
            value = self.most * n / _LINES
            y = self.height_of(value)
            drawn.append(
                f"<path class='grid-line' d='M{_LEFT} {y:.1f}H{self.right}'/>"
                f"<text x='{_LEFT - 8}' y='{y + 4:.1f}' text-anchor='end'>"
                f"{escape(form(value))}</text>"
            )
        return "".join(drawn)

    def labels(self, labels: Sequence[str]) -> str:
        """As many as there is room for, counted from the newest; on a phone, every second one."""
        room = max(1, int((self.right - _LEFT) / _LABEL_WIDTH))
        every = max(1, math.ceil(len(labels) / room))
        drawn = []
        for n, label in enumerate(labels):
            before, rest = divmod(len(labels) - 1 - n, every)
            if not rest:
                less = " class='minor'" if before % 2 else ""
                drawn.append(
                    f"<text{less} x='{self.middle(n):.1f}' y='{self.bottom + 17}'"
                    f" text-anchor='middle'>{escape(label)}</text>"
                )
        return "".join(drawn)


def _opening(label: str, width: int, height: int) -> str:
    size = "wide" if width == WIDE else "narrow"
    return (
        f"<svg class='chart {size}' viewBox='0 0 {width} {height}' role='img'"
        f" aria-label='{escape(label)}'>"
    )


def _coloured(series: Sequence[Series]) -> list[tuple[str, Series]]:
    return [(each.colour or f"s{number}", each) for number, each in enumerate(series, 1)]


def _told(label: str, n: int, series: Sequence[Series], form: Format) -> str:
    told = [
        f"{each.name} {form(value)}" for each in series if (value := each.values[n]) is not None
    ]
    return f"{label}: " + (", ".join(told) or "nothing")


def _runs(values: Sequence[float | None]) -> list[list[tuple[int, float]]]:
    """Stretches without a gap, as (place, value)."""
    runs: list[list[tuple[int, float]]] = [[]]
    for n, value in enumerate(values):
        if value is not None:
            runs[-1].append((n, value))
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]


def _round_up(value: float) -> float:
    """The next value whose quarters are plain: 1, 2, 4 or 8 times a power of ten."""
    if value < _LEAST:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(factor * power for factor in (1, 2, 4, 8, 10) if value <= factor * power * 1.000001)
