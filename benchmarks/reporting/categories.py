"""Scores by category of question, where rows name theirs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.reporting.grid import Figure, Group
from benchmarks.reporting.source import Source


@dataclass(frozen=True, kw_only=True)
class Category:
    """A category's mean score and number of questions, by row of the table."""

    name: str
    scores: Mapping[str, tuple[float, int]]


def categories_of(group: Group, figure: Figure, sources: Sequence[Source]) -> list[Category]:
    """Return the categories of a figure by name; none where rows have none, or a judge scored them elsewhere.

    A part whose rows have no `Category` takes it from another part of the run that asks the same `Question`.
    """
    values: dict[tuple[str, str], list[float]] = {}
    keys = {(cell.run, group.rows[key].name): key for key, cell in figure.cells.items()}
    for run in () if figure.judging else figure.runs:
        source = sources[run - 1]
        known = {row["Question"].strip(): row["Category"] for row in source.rows if _has_category(row)}
        measure = next(one for one in source.measures[figure.part] if one.name == figure.measure)
        for row in source.rows:
            category = known.get(str(row.get("Question")).strip())
            if row["part"] != figure.part or category is None or (run, row["column"]) not in keys:
                continue
            if (value := measure.value(row)) is not None:
                values.setdefault((str(category), keys[run, row["column"]]), []).append(value)
    return [
        Category(
            name=name,
            scores={
                key: (sum(found) / len(found), len(found))
                for key in figure.cells
                if (found := values.get((name, key))) is not None
            },
        )
        for name in sorted({name for name, _ in values})
    ]


def _has_category(row: Mapping[str, Any]) -> bool:
    return isinstance(row.get("Question"), str) and bool(row.get("Category"))
