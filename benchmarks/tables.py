"""Tables as aligned text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def table(metrics: Mapping[str, Any]) -> str:
    """Return one line per part and measure, one column per column of the run, each value with its 95 % interval."""
    results = metrics["results"]
    columns = list(dict.fromkeys(result["column"] for result in results))
    cells = {(result["part"], result["measure"], result["column"]): result for result in results}
    lines = [["", *columns]]
    for part, measure in dict.fromkeys((result["part"], result["measure"]) for result in results):
        row_results = [cells.get((part, measure, column)) for column in columns]
        lines.append([f"{part} {measure}", *(_cell(result) for result in row_results)])
    return aligned(lines) + "".join(f"{note}\n" for note in _notes(results))


def _cell(result: Mapping[str, Any] | None) -> str:
    if result is None or result["value"] is None:
        return "-"
    low, high = result["ci95"]
    return f"{result['value']:.3f} [{low:.3f}, {high:.3f}]"


def _notes(results: Sequence[Mapping[str, Any]]) -> list[str]:
    counts = sorted({result["n"] + result["num_missing"] for result in results})
    questions = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    notes = [f"{questions} questions per figure; 95 % intervals in brackets."]
    for result in results:
        figure, missing = f"{result['part']} {result['measure']}", f"{result['num_missing']} {result['missing_are']}"
        if result["value"] is None:
            notes.append(f"{figure}: no figure, all {missing}.")
        elif result["num_missing"]:
            cautious = f"{result['value_missing_as_zero']:.3f} if they counted as wrong"
            notes.append(f"{figure}, {result['column']}: {missing}, left out ({cautious}).")
    return list(dict.fromkeys(notes))


def aligned(lines: Sequence[Sequence[str]]) -> str:
    """Return lines of cells as text in columns."""
    widths = [max(len(cell) for cell in column) for column in zip(*lines, strict=True)]
    return "".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() + "\n" for line in lines
    )
