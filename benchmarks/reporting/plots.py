"""The plots of a page, as places in a picture: score against α, cost against score, scores by category."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.reporting.grid import Cell, Figure, Group, Row
from benchmarks.reporting.questions import Category
from benchmarks.reporting.text import score

WIDTH, HEIGHT = 460, 300
LEFT, RIGHT, TOP, BOTTOM = 52, 110, 14, 44
_LINE = 22  # height of a category
_NAMES = 190  # width of the names of categories
_NICE = (1.0, 2.0, 2.5, 5.0, 10.0)


@dataclass(frozen=True, kw_only=True)
class Mark:
    """A score: where it stands, its interval's ends in the same direction as the axis of scores, and what it is."""

    x: float
    y: float
    style: int
    name: str
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, kw_only=True)
class Level:
    """A score that does not move along the other axis."""

    y: float
    style: int
    label: str
    name: str


@dataclass(frozen=True, kw_only=True)
class Plot:
    """A picture.

    Attributes:
        title: Its heading.
        description: The same in words.
        x_label: Of the lower axis.
        width: In units of the picture.
        height: Likewise.
        x_ticks: Place and label.
        y_ticks: Likewise.
        marks: Scores.
        levels: Lines from side to side.
        path: A line through marks, or nothing.
    """

    title: str
    description: str
    x_label: str
    width: float
    height: float
    x_ticks: Sequence[tuple[float, str]]
    y_ticks: Sequence[tuple[float, str]]
    marks: Sequence[Mark]
    levels: Sequence[Level] = ()
    path: str = ""


@dataclass(frozen=True)
class _Axis:
    """A scale from `start` to `end` onto `low` to `high`, places in the picture."""

    start: float
    end: float
    low: float
    high: float

    def at(self, value: float) -> float:
        share = (value - self.start) / (self.end - self.start)
        return round(self.low + share * (self.high - self.low), 1)

    def ticks(self) -> list[tuple[float, str]]:
        step = _step((self.end - self.start) / 4)
        first = math.ceil(self.start / step - 1e-9)
        values = [number * step for number in range(first, math.floor(self.end / step + 1e-9) + 1)]
        return [(self.at(value), f"{value:g}") for value in values]


def alpha_plots(group: Group, styles: dict[str, int]) -> list[Plot]:
    """Return for each headline figure its score against α, where two strengths or more were run."""
    plots = (_alpha_plot(group, figure, styles) for figure in group.figures if figure.is_headline)
    return [plot for plot in plots if plot is not None]


def cost_plots(group: Group, styles: dict[str, int]) -> list[Plot]:
    """Return for each headline figure its score against seconds per question, where these were timed."""
    plots = (_cost_plot(group, figure, styles) for figure in group.figures if figure.is_headline)
    return [plot for plot in plots if plot is not None]


def category_plot(group: Group, figure: Figure, categories: Sequence[Category], styles: dict[str, int]) -> Plot:
    """Return the scores of each category, one below the other."""
    top = max((value for category in categories for value, _ in category.scores.values()), default=1.0)
    axis = _Axis(0.0, _end([top], figure), _NAMES, WIDTH + _NAMES - LEFT)
    names = {key: group.rows[key].name for key in figure.cells}
    marks = [
        Mark(
            x=axis.at(value),
            y=TOP + _LINE * (place + 0.5),
            style=styles[key],
            name=f"{category.name}, {names[key]}: {value:.3f} (n = {n})",
        )
        for place, category in enumerate(categories)
        for key, (value, n) in category.scores.items()
    ]
    height = TOP + _LINE * len(categories) + BOTTOM
    return Plot(
        title=f"{figure.title} by category",
        description=f"{figure.title} by category, for {', '.join(names.values())}; the numbers are in the table below.",
        x_label=figure.measure,
        width=WIDTH + _NAMES,
        height=height,
        x_ticks=axis.ticks(),
        y_ticks=[(TOP + _LINE * (place + 0.5), category.name) for place, category in enumerate(categories)],
        marks=marks,
    )


def _alpha_plot(group: Group, figure: Figure, styles: dict[str, int]) -> Plot | None:
    scored = [(group.rows[key], key, cell) for key, cell in figure.cells.items() if cell.value is not None]
    moving = {
        row.alpha: (row, key, cell) for row, key, cell in scored if row.kind == "steered" and row.alpha is not None
    }
    if len(moving) < 2:
        return None
    for row, key, cell in scored:
        if row.kind == "base":
            moving.setdefault(0.0, (row, key, cell))
    strengths = sorted(alpha for alpha in moving if alpha is not None)
    x = _Axis(strengths[0], strengths[-1], LEFT + 12, WIDTH - RIGHT)
    y = _Axis(0.0, _end(_tops([cell for _, _, cell in scored]), figure), HEIGHT - BOTTOM, TOP)
    marks = [_mark(x.at(alpha), y, *moving[alpha], styles) for alpha in strengths]
    levels = [
        Level(y=y.at(cell.value or 0.0), style=styles[key], label=row.name, name=_told(row, cell))
        for row, key, cell in scored
        if row.kind != "steered"
    ]
    return Plot(
        title=figure.title,
        description=f"{figure.title} against α: "
        + "; ".join([*(mark.name for mark in marks), *(level.name for level in levels)]),
        x_label="α, strength of steering",
        width=WIDTH,
        height=HEIGHT,
        x_ticks=x.ticks(),
        y_ticks=y.ticks(),
        marks=marks,
        levels=_apart(levels),
        path="M" + " L".join(f"{mark.x} {mark.y}" for mark in marks),
    )


def _cost_plot(group: Group, figure: Figure, styles: dict[str, int]) -> Plot | None:
    timed = [
        (group.rows[key], key, cell)
        for key, cell in figure.cells.items()
        if cell.value is not None and cell.seconds is not None
    ]
    if len(timed) < 2:
        return None
    longest = max(cell.seconds or 0.0 for _, _, cell in timed)
    x = _Axis(0.0, _nice(longest * 1.02), LEFT, WIDTH - RIGHT)
    y = _Axis(0.0, _end(_tops([cell for _, _, cell in timed]), figure), HEIGHT - BOTTOM, TOP)
    marks = [_mark(x.at(cell.seconds or 0.0), y, row, key, cell, styles) for row, key, cell in timed]
    return Plot(
        title=figure.title,
        description=f"{figure.title} against seconds per question: " + "; ".join(mark.name for mark in marks),
        x_label="seconds per question",
        width=WIDTH,
        height=HEIGHT,
        x_ticks=x.ticks(),
        y_ticks=y.ticks(),
        marks=marks,
    )


def _mark(x: float, y: _Axis, row: Row, key: str, cell: Cell, styles: dict[str, int]) -> Mark:
    low, high = cell.ci95 or (None, None)
    return Mark(
        x=x,
        y=y.at(cell.value or 0.0),
        style=styles[key],
        name=_told(row, cell),
        low=None if low is None else y.at(low),
        high=None if high is None else y.at(high),
    )


def _told(row: Row, cell: Cell) -> str:
    cost = "" if cell.seconds is None else f", {cell.seconds:.3g} s per question"
    return f"{row.name} {score(cell)} (n = {cell.n}{cost})"


def _apart(levels: Sequence[Level]) -> list[Level]:
    """Return the levels with labels that do not cover each other: those of nearly equal height are put together."""
    found: list[Level] = []
    for level in sorted(levels, key=lambda one: one.y):
        if found and level.y - found[-1].y < 14 and found[-1].label:
            last = found[-1]
            found[-1] = Level(y=last.y, style=last.style, label=f"{last.label}, {level.label}", name=last.name)
            found.append(Level(y=level.y, style=level.style, label="", name=level.name))
        else:
            found.append(level)
    return found


def _tops(cells: Sequence[Cell]) -> list[float]:
    return [cell.ci95[1] if cell.ci95 else cell.value or 0.0 for cell in cells]


def _end(values: Sequence[float], figure: Figure) -> float:
    """Return the upper end of the axis of scores: 1 for shares."""
    top = max(values)
    return 1.0 if top <= 1.0 and figure.is_headline else _nice(top)


def _nice(value: float) -> float:
    return _step(value) if value > 0 else 1.0


def _step(value: float) -> float:
    """Return the smallest round number that is not below `value`, which is positive.

    >>> _step(0.23), _step(3.0)
    (0.25, 5.0)
    """
    unit = 10.0 ** math.floor(math.log10(value))
    return next(unit * step for step in _NICE if unit * step >= value * (1 - 1e-9))
