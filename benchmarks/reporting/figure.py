"""The report's figure: scores of every system by task with their intervals, and scores against α, by matplotlib."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from benchmarks.reporting.grid import Cell, Group
from benchmarks.reporting.text import Table
from proxytune.errors import DependencyError

_MARKERS = "osD^vPX*"
_COLOURS = ("#0b5cad", "#b04a00", "#00694e", "#8a1c4a", "#6b3fa0", "#3f4a00", "#007a8a", "#4a4a4a")


def png(tables: Sequence[Table]) -> bytes:
    """Return a PNG: a row of panels for each base.

    Raises:
        DependencyError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise DependencyError("a figure needs matplotlib: pip install 'proxytune[bench]'.") from error
    heights = [1.5 + 0.5 * max(1, sum(figure.is_headline for figure in table.group.figures)) for table in tables]
    has_alphas = any(sum(row.kind == "steered" for row in table.group.rows.values()) > 1 for table in tables)
    canvas = Figure(figsize=(11 if has_alphas else 7, sum(heights)), layout="constrained")
    FigureCanvasAgg(canvas)
    axes = canvas.subplots(len(tables), 2 if has_alphas else 1, squeeze=False, height_ratios=heights)
    for row, table in zip(axes, tables, strict=True):
        _draw_scores(row[0], table)
        if has_alphas:
            _draw_alphas(row[1], table.group)
    stream = io.BytesIO()
    canvas.savefig(stream, dpi=140, metadata={"Software": None})
    return stream.getvalue()


def describe(table: Table) -> str:
    """Return the figure in words, for whoever cannot see it."""
    told = [
        f"{figure.title}: "
        + ", ".join(
            f"{table.group.rows[key].name} {cell.value:.3f}"
            for key, cell in figure.cells.items()
            if cell.value is not None
        )
        for figure in table.group.figures
        if figure.is_headline
    ]
    return f"Scores by task. {table.headline} {'; '.join(told)}."


def _draw_scores(axes: Any, table: Table) -> None:
    group = table.group
    figures = [figure for figure in group.figures if figure.is_headline]
    for number, (key, row) in enumerate(group.rows.items()):
        offset = 0.6 * ((number + 0.5) / len(group.rows) - 0.5)
        points = [(index + offset, cell) for index, one in enumerate(figures) if (cell := one.cells.get(key))]
        points = [(y, cell) for y, cell in points if cell.value is not None]
        style = {"fmt": _MARKERS[number % 8], "color": _COLOURS[number % 8], "capsize": 2, "markersize": 5}
        values = [cell.value for _, cell in points]
        axes.errorbar(
            values, [y for y, _ in points], xerr=_errors([cell for _, cell in points]), label=row.name, **style
        )
    for index, one in enumerate(figures):
        if one.chance is not None:
            axes.plot([one.chance] * 2, [index - 0.4, index + 0.4], color="#888888", linestyle=":", linewidth=1.5)
    axes.set_yticks(range(len(figures)), [one.title + ("" if one.is_better_higher else " ↓") for one in figures])
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.3)
    axes.set_title(f"{group.title}\n{table.headline}", fontsize=9)
    axes.set_xlabel("score, 95 % interval (dotted: guessing)")
    axes.legend(fontsize=8, loc="best")


def _draw_alphas(axes: Any, group: Group) -> None:
    strengths = _strengths(group)
    for number, one in enumerate(figure for figure in group.figures if figure.is_headline):
        cells = [(alpha, one.cells[key]) for alpha, key in strengths.items() if key in one.cells]
        cells = [(alpha, cell) for alpha, cell in cells if cell.value is not None]
        errors = _errors([cell for _, cell in cells])
        style = {"marker": _MARKERS[number % 8], "color": _COLOURS[number % 8], "capsize": 2, "markersize": 5}
        axes.errorbar(
            [alpha for alpha, _ in cells], [cell.value for _, cell in cells], errors, label=one.title, **style
        )
    axes.set_xlabel("α, strength of steering")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)


def _strengths(group: Group) -> dict[float, str]:
    """Return the row of each strength, the base at 0 where nothing else was run there."""
    keys_by_alpha = {row.alpha: key for key, row in group.rows.items() if row.kind in ("base", "steered")}
    return dict(sorted((alpha, key) for alpha, key in keys_by_alpha.items() if alpha is not None))


def _errors(cells: Sequence[Cell]) -> list[list[float]]:
    ends = [(cell.value or 0.0, *(cell.ci95 or (cell.value or 0.0,) * 2)) for cell in cells]
    return [[max(0.0, value - low) for value, low, _ in ends], [max(0.0, high - value) for value, _, high in ends]]
