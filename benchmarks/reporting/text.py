"""The table on standard output: tasks are rows, systems columns, gap closed first; as text, Markdown or JSON."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.reporting.gap import Difference, GapLine, base_row, difference, tuned_row
from benchmarks.reporting.grid import Cell, Figure, Group
from benchmarks.reporting.source import Source
from benchmarks.tables import aligned

_WIDTH = 132
NO_GAP = "No gap closed: it needs the columns base, steered and tuned."


@dataclass(frozen=True, kw_only=True)
class Paired:
    """A column of paired differences: one steered row less the base or the tuned model, by number of the figure."""

    title: str
    differences: Sequence[Difference | None]


@dataclass(frozen=True, kw_only=True)
class Table:
    """A group with its gaps, paired differences and marks."""

    group: Group
    gaps: Sequence[GapLine]
    marks: Sequence[str]
    paired: Sequence[Paired] = ()

    @property
    def headline(self) -> str:
        """The answer in a sentence."""
        told = [
            f"{self.group.rows[line.row].name} closes {percent(line.mean)} of the gap to direct tuning "
            f"({line.num_tasks} {'task' if line.num_tasks == 1 else 'tasks'})"
            for line in self.gaps
            if line.num_tasks
        ]
        return "; ".join(told) + "." if told else NO_GAP


def paired_columns(group: Group, sources: Sequence[Source], *, tuned: str | None) -> list[Paired]:
    """Return each steered row against the base and the tuned model, where one question answers another."""
    columns = []
    for other in (base_row(group), tuned_row(group, tuned)):
        for key, row in group.rows.items():
            if row.kind == "steered" and other is not None:
                differences = [difference(group, figure, sources, other, key) for figure in group.figures]
                if any(differences):
                    columns.append(Paired(title=f"{row.name} − {group.rows[other].name}", differences=differences))
    return columns


def as_text(tables: Sequence[Table], sources: Sequence[Source]) -> str:
    """Return aligned lines, in blocks that fit a terminal."""
    parts = []
    for table in tables:
        blocks = _blocks(grid(table))
        parts += [f"{table.headline}\n\nbase: {table.group.title}\n\n", "\n".join(aligned(block) for block in blocks)]
        parts += ["\n", *(f"{mark}\n" for mark in table.marks), "\n"]
    return "".join(parts) + "".join(f"{line}\n" for line in _legend(sources))


def as_markdown(tables: Sequence[Table], sources: Sequence[Source]) -> str:
    """Return Markdown: a table per base, then what must be known of it."""
    parts = []
    for table in tables:
        first, *lines = grid(table)
        rule = ["---", *("---:" for _ in first[1:])]
        parts.append(f"**{_escaped(table.headline)}**\n\nBase: {_escaped(table.group.title)}\n\n")
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
                "headline": table.headline,
                "rows": [_row(table, key) for key in table.group.rows],
                "differences": [_paired(table, column) for column in table.paired],
                "marks": list(table.marks),
            }
            for table in tables
        ],
    }


def grid(table: Table) -> list[list[str]]:
    """Return the table as texts: a title line, then a line per figure."""
    group = table.group
    names = [group.rows[line.row].name for line in table.gaps]
    gaps = ["gap closed"] if len(names) == 1 else [f"gap closed, {name}" for name in names]
    systems = [row.name for row in group.rows.values()]
    lines = [["", *gaps, *systems, *(column.title for column in table.paired), "random", "n; dtype; batch"]]
    for number, figure in enumerate(group.figures):
        lines.append(
            [
                _title(figure),
                *(gap_of(line, number) for line in table.gaps),
                *(score(figure.cells.get(key)) for key in group.rows),
                *(shown_difference(column.differences[number]) for column in table.paired),
                "" if figure.chance is None else f"{figure.chance:.3f}",
                _asked(group, figure),
            ]
        )
    return lines


def score(cell: Cell | None) -> str:
    """Return a score with its interval, as the table has it."""
    if cell is None:
        return ""
    if cell.value is None:
        return "no figure"
    interval = "" if cell.ci95 is None else f" [{cell.ci95[0]:.3f}, {cell.ci95[1]:.3f}]"
    return f"{cell.value:.3f}{interval}"


def shown_difference(found: Difference | None) -> str:
    """Return a paired difference with its interval and its sign."""
    return "" if found is None else f"{found.value:+.3f} [{found.ci95[0]:+.3f}, {found.ci95[1]:+.3f}]"


def percent(gap: float | None) -> str:
    """Return a gap in per cent.

    >>> percent(0.9105), percent(None)
    ('91.0 %', '-')
    """
    return "-" if gap is None or not math.isfinite(gap) else f"{100 * gap:.1f} %"


def gap_of(line: GapLine, number: int) -> str:
    """Return a figure's gap, marked where tuning does not differ from the base beyond chance."""
    if number not in line.gaps:
        return ""
    return ("~" if number in line.uncertain else "") + percent(line.gaps[number])


def dtype_of(group: Group, figure: Figure) -> str:
    """Return the dtype of a figure's rows, or that they differ."""
    dtypes = list(dict.fromkeys(group.rows[key].dtypes for key in figure.cells))
    return dtypes[0] if len(dtypes) == 1 else "mixed dtypes"


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
            | {"runtime": figure.runtime, "random": figure.chance, **asdict(figure.cells[key])}
            | ({} if gap is None else {"gap_closed": gap.gaps.get(number)})
            for number, figure in enumerate(table.group.figures)
            if key in figure.cells
        ],
        "mean_gap_closed": None if gap is None else gap.mean,
        "num_tasks_of_mean": 0 if gap is None else gap.num_tasks,
    }


def _paired(table: Table, column: Paired) -> dict[str, Any]:
    figures = zip(table.group.figures, column.differences, strict=True)
    differences = [{"part": figure.part, "measure": figure.measure, **asdict(one)} for figure, one in figures if one]
    return {"title": column.title, "figures": differences}


def _title(figure: Figure) -> str:
    return f"{figure.title} [{','.join(map(str, figure.runs))}]" + ("" if figure.is_better_higher else " ↓")


def _asked(group: Group, figure: Figure) -> str:
    counts = sorted({cell.n for cell in figure.cells.values()})
    number = str(counts[0]) if len(counts) == 1 else f"{counts[0]}–{counts[-1]}"
    return f"{number}; {dtype_of(group, figure)}; {figure.batch_size}"


def _blocks(lines: Sequence[Sequence[str]]) -> list[list[list[str]]]:
    """Return the table cut into tables that are narrow enough, each with the first column."""
    widths = [max(len(cell) for cell in column) for column in zip(*lines, strict=True)]
    starts, used = [1], widths[0]
    for column, width in enumerate(widths[1:], 1):
        used += width + 2
        if used > _WIDTH and column > starts[-1]:
            starts.append(column)
            used = widths[0] + width + 2
    ends = [*starts[1:], len(widths)]
    return [[[line[0], *line[start:end]] for line in lines] for start, end in zip(starts, ends, strict=True)]


def _legend(sources: Sequence[Source]) -> list[str]:
    told = [f"[{number}] {source.path}: {source.task}" for number, source in enumerate(sources, 1)]
    return [*told, "95 % intervals in brackets; ↓ marks measures where less is better; differences are paired."]


def _escaped(text: str) -> str:
    return "".join(f"\\{sign}" if sign in "|\\`*_<[" else sign for sign in text.replace("\n", " "))
