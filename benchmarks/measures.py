"""From rows of predictions to figures: value, interval, missing rows, and paired comparisons between columns."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from benchmarks.scoring.intervals import bootstrap, wilson

Row = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Measure:
    """One figure of a part: the mean over its rows of a number in each.

    Attributes:
        name: As the table has it.
        value: A row's number; None where the row has none (unparsable, or no verdict), which is counted and left out.
        is_share: True if each number is 0 or 1, so that the interval is Wilson's and pairs are McNemar's.
        missing: Name of a row without a number.
        is_better_higher: True if higher is better.
        chance: A row's number of a system that guesses; None where guessing means nothing.
    """

    name: str
    value: Callable[[Row], float | None]
    is_share: bool = True
    missing: str = "missing"
    is_better_higher: bool = True
    chance: Callable[[Row], float | None] | None = None


def field(name: str) -> Callable[[Row], float | None]:
    """Return the function that takes a row's number (or truth value, or null) from this field."""

    def value(row: Row) -> float | None:
        number = row.get(name)
        return None if number is None else float(number)

    return value


def summarise(rows: Iterable[Row], measures: Mapping[str, Sequence[Measure]], *, seed: int = 0) -> dict[str, Any]:
    """Return `results` (one per part, measure and column) and `comparisons` (one per pair of columns).

    Columns come in the order in which rows first name them; `seed` is the bootstrap's.
    """
    grouped: dict[str, dict[str, list[Row]]] = {}
    for row in rows:
        grouped.setdefault(row["part"], {}).setdefault(row["column"], []).append(row)
    results, comparisons = [], []
    for part, columns in grouped.items():
        for measure in measures[part]:
            labels = {"part": part, "measure": measure.name, "is_better_higher": measure.is_better_higher}
            values = {column: _values(measure, part_rows) for column, part_rows in columns.items()}
            chance = _chance(measure, next(iter(columns.values())))
            results += [
                {**labels, "column": column, **_result(measure, values[column], seed), "chance": chance}
                for column in values
            ]
            for first, second in combinations(values, 2):
                pair = _comparison(measure, values[first], values[second], seed)
                comparisons.append({**labels, "first": first, "second": second, **pair})
    return {"results": results, "comparisons": comparisons}


def mcnemar(only_first: int, only_second: int) -> float:
    """Return the exact two-sided p of McNemar's test: how often one column alone is right, and how often the other.

    >>> mcnemar(1, 5), mcnemar(3, 3)
    (0.21875, 1.0)
    """
    total = only_first + only_second
    tail = sum(math.comb(total, count) for count in range(min(only_first, only_second) + 1))
    return min(1.0, float(2 * tail / 2**total))


def _chance(measure: Measure, rows: Sequence[Row]) -> float | None:
    """Return the mean over rows of what guessing gives; None where a row does not tell."""
    chances = [None if measure.chance is None else measure.chance(row) for row in rows]
    present = [value for value in chances if value is not None]
    return sum(present) / len(present) if present and len(present) == len(chances) else None


def _values(measure: Measure, rows: Sequence[Row]) -> dict[int, float | None]:
    return {row["index"]: measure.value(row) for row in rows}


def _result(measure: Measure, values: Mapping[int, float | None], seed: int) -> dict[str, Any]:
    present = [value for value in values.values() if value is not None]
    result: dict[str, Any] = {
        "n": len(present),
        "value": sum(present) / len(present) if present else None,
        "ci95": None,
        "ci_method": "wilson" if measure.is_share else "bootstrap",
        "num_missing": len(values) - len(present),
        "missing_are": measure.missing,
        # As if every row without a number had been wrong: the cautious reading.
        "value_missing_as_zero": sum(present) / len(values) if values else None,
    }
    if present:
        is_share = measure.is_share
        result["ci95"] = wilson(round(sum(present)), len(present)) if is_share else bootstrap(present, seed=seed)
    return result


def _comparison(
    measure: Measure, first: Mapping[int, float | None], second: Mapping[int, float | None], seed: int
) -> dict[str, Any]:
    """Compare on the rows for which both columns have a number; the difference is second minus first."""
    both = [
        (one, other) for index, one in first.items() if one is not None and (other := second.get(index)) is not None
    ]
    result: dict[str, Any] = {"n": len(both), "difference": None, "ci95": None, "ci_method": "paired bootstrap"}
    if not both:
        return result
    differences = [other - one for one, other in both]
    result["difference"] = sum(differences) / len(differences)
    result["ci95"] = bootstrap(differences, seed=seed)
    if measure.is_share:
        only_first = sum(one > other for one, other in both)
        only_second = sum(other > one for one, other in both)
        p = mcnemar(only_first, only_second)
        result["mcnemar"] = {"only_first": only_first, "only_second": only_second, "p": p}
    return result
