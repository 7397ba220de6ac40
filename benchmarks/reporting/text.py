"""The table on standard output: aligned text, Markdown, or JSON."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.reporting.gap import GapLine
from benchmarks.reporting.grid import Cell, Figure, Group
from benchmarks.reporting.source import Source
from benchmarks.tables import aligned

_WIDTH = 132


@dataclass(frozen=True, kw_only=True)
class Table:
    """A group with its gaps and marks."""

    group: Group
    gaps: Sequence[GapLine]
    marks: Sequence[str]


def as_text(tables: Sequence[Table], sources: Sequence[Source]) -> str:
    """Return aligned lines, in blocks that fit a terminal."""
    parts = []
    for table in tables:
        blocks = _blocks(_grid(table))
        parts += [f"base: {table.group.title}\n\n", "\n".join(aligned(block) for block in blocks), "\n"]
        parts += [*(f"{mark}\n" for mark in table.marks), "\n"]
    return "".join(parts) + "".join(f"{line}\n" for line in _legend(sources))


def as_markdown(tables: Sequence[Table], sources: Sequence[Source]) -> str:
    """Return Markdown: a table per base, then what must be known of it."""
    parts = []
    for table in tables:
        first, *lines = _grid(table)
        rule = ["---", *("---:" for _ in first[1:])]
        parts.append(f"### {_escaped(table.group.title)}\n\n")
        parts += [f"| {' | '.join(map(_escaped, line))} |\n" for line in (first, rule, *lines)]
        parts += ["\n", *(f"- {_escaped(mark)}\n" for mark in table.marks), "\n"]
    return "".join(parts) + "".join(f"- {_escaped(line)}\n" for line in _legend(sources))


def as_json(tables: Sequence[Table], sources: Sequence[Source]) -> dict[str, Any]:
    """Return the tables as plain JSON values, scores unrounded."""
    return {
        "runs": [
            {"run": number, "folder": str(source.path), "task": source.task, "share": source.share}
            | {"fingerprint": source.configuration.fingerprint}
            for number, source in enumerate(sources, 1)
        ],
        "groups": [
            {
                "base": table.group.base,
                "rows": [_row(table, key) for key in table.group.rows],
                "marks": list(table.marks),
            }
            for table in tables
        ],
    }


def score(cell: Cell | None) -> str:
    """Return a score with its interval, as the table has it."""
    if cell is None:
        return ""
    if cell.value is None:
        return "no figure"
    interval = "" if cell.ci95 is None else f" [{cell.ci95[0]:.3f}, {cell.ci95[1]:.3f}]"
    return f"{cell.value:.3f}{interval}"


def percent(gap: float | None) -> str:
    """Return a gap in per cent.

    >>> percent(0.9105), percent(None)
    ('91.0 %', '-')
    """
    return "-" if gap is None or not math.isfinite(gap) else f"{100 * gap:.1f} %"


def _row(table: Table, key: str) -> dict[str, Any]:
    row = table.group.rows[key]
    gap = next((line for line in table.gaps if line.row == key), None)
    return {
        "name": row.name,
        "kind": row.kind,
        "alpha": row.alpha,
        "dtype": row.dtypes,
        "model": row.model,
        "scores": [
            {"task": figure.task, "part": figure.part, "measure": figure.measure, "batch_size": figure.batch_size}
            | {"runtime": figure.runtime, **asdict(figure.cells[key])}
            | ({} if gap is None else {"gap_closed": gap.gaps.get(number)})
            for number, figure in enumerate(table.group.figures)
            if key in figure.cells
        ],
        "mean_gap_closed": None if gap is None else gap.mean,
        "num_tasks_of_mean": 0 if gap is None else gap.num_tasks,
    }


def _grid(table: Table) -> list[list[str]]:
    """Return the table as texts: a title line, what holds for whole figures, rows, gaps."""
    figures = table.group.figures
    has_gaps = bool(table.gaps)
    lines = [
        ["", *(_title(figure) for figure in figures), *(["mean gap closed"] if has_gaps else [])],
        ["n; dtype; batch", *(_asked(table.group, figure) for figure in figures), *([""] if has_gaps else [])],
    ]
    for key, row in table.group.rows.items():
        lines.append([row.name, *(score(figure.cells.get(key)) for figure in figures), *([""] if has_gaps else [])])
    for line in table.gaps:
        cells = [_gap(line, number) for number in range(len(figures))]
        mean = f"{percent(line.mean)} ({line.num_tasks})"
        lines.append([f"gap closed, {table.group.rows[line.row].name}", *cells, mean])
    return lines


def _title(figure: Figure) -> str:
    return f"{figure.title} [{','.join(map(str, figure.runs))}]" + ("" if figure.is_better_higher else " ↓")


def _asked(group: Group, figure: Figure) -> str:
    counts = sorted({cell.n for cell in figure.cells.values()})
    number = str(counts[0]) if len(counts) == 1 else f"{counts[0]}–{counts[-1]}"
    return f"{number}; {dtype_of(group, figure)}; {figure.batch_size}"


def dtype_of(group: Group, figure: Figure) -> str:
    """Return the dtype of a figure's rows, or that they differ."""
    found = list(dict.fromkeys(group.rows[key].dtypes for key in figure.cells))
    return found[0] if len(found) == 1 else "mixed dtypes"


def _gap(line: GapLine, number: int) -> str:
    if number not in line.gaps:
        return ""
    return ("~" if number in line.uncertain else "") + percent(line.gaps[number])


def _blocks(lines: Sequence[Sequence[str]]) -> list[list[list[str]]]:
    """Return the table cut into tables that are narrow enough, each with the first column."""
    widths = [max(len(cell) for cell in column) for column in zip(*lines, strict=True)]
    starts, used = [1], widths[0]
    for place, width in enumerate(widths[1:], 1):
        used += width + 2
        if used > _WIDTH and place > starts[-1]:
            starts.append(place)
            used = widths[0] + width + 2
    ends = [*starts[1:], len(widths)]
    return [[[line[0], *line[start:end]] for line in lines] for start, end in zip(starts, ends, strict=True)]


def _legend(sources: Sequence[Source]) -> list[str]:
    told = [f"[{number}] {source.path}: {source.task}" for number, source in enumerate(sources, 1)]
    return [*told, "95 % intervals in brackets; ↓ marks measures where less is better."]


def _escaped(text: str) -> str:
    return "".join(f"\\{sign}" if sign in "|\\`*_<[" else sign for sign in text.replace("\n", " "))
