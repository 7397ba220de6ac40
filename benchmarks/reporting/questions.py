"""Questions behind the scores: some of each part with what every column made of them, and scores by category."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.reporting.grid import Figure, Group
from benchmarks.reporting.source import Source

_MAX_CHARACTERS = 2000
_KEYS = ("column", "part", "index")


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One question.

    Attributes:
        part: Its part.
        index: Its number there.
        shared: Fields that are the same for all columns, as texts.
        columns: Fields that differ, by column.
    """

    part: str
    index: int
    shared: Mapping[str, str]
    columns: Mapping[str, Mapping[str, str]]

    @property
    def title(self) -> str:
        """The start of the question."""
        text = next(iter(self.shared.values()), "")
        line = " ".join(text.split())
        return line if len(line) <= 100 else line[:99] + "…"


def samples_of(source: Source, count: int) -> list[Sample]:
    """Return the first `count` questions of each part."""
    rows_by_question: dict[tuple[str, int], dict[str, Mapping[str, Any]]] = {}
    for row in source.rows:
        if row["index"] < count:
            rows_by_question.setdefault((row["part"], row["index"]), {})[row["column"]] = row
    return [
        _sample(part, index, rows)
        for (part, index), rows in sorted(rows_by_question.items(), key=lambda item: item[0][0])
    ]


def _sample(part: str, index: int, rows: Mapping[str, Mapping[str, Any]]) -> Sample:
    names = [name for name in dict.fromkeys(key for row in rows.values() for key in row) if name not in _KEYS]
    first = next(iter(rows.values()))
    # A column's answer stays its own even where all columns gave the same.
    shared = [
        name for name in names if len(rows) > 1 and all(row.get(name) == first.get(name) for row in rows.values())
    ]
    shared = [name for name in shared if not _is_answer(name)]
    return Sample(
        part=part,
        index=index,
        shared={name: _text(first.get(name)) for name in shared},
        columns={
            column: {name: _text(row[name]) for name in names if name not in shared and name in row}
            for column, row in rows.items()
        },
    )


def _is_answer(name: str) -> bool:
    return name in ("output", "model_output", "mc_output", "prediction", "responses", "logprobs", "metrics")


def _text(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    if len(text) <= _MAX_CHARACTERS:
        return text
    return f"{text[:_MAX_CHARACTERS]}… (the first {_MAX_CHARACTERS:,} of {len(text):,} characters)"


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
                key: (sum(numbers) / len(numbers), len(numbers))
                for key in figure.cells
                if (numbers := values.get((name, key))) is not None
            },
        )
        for name in sorted({name for name, _ in values})
    ]


def _has_category(row: Mapping[str, Any]) -> bool:
    return isinstance(row.get("Question"), str) and bool(row.get("Category"))
