"""Tables in markdown, with columns that line up in a terminal too."""

from __future__ import annotations

from collections.abc import Sequence


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a table; the first column is left-aligned, the others right.

    >>> print(markdown_table(["model", "loss"], [["A", "1.25"], ["plain", "0.5"]]))
    | model | loss |
    | ----- | ---: |
    | A     | 1.25 |
    | plain |  0.5 |
    """
    columns = list(zip(header, *rows, strict=True))
    widths = [max(3, *map(len, column)) for column in columns]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    lines = [_cells(header, widths), rule, *(_cells(row, widths) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def number(value: float | None, digits: int = 3) -> str:
    """Returns a number with so many decimals, or a dash where there is none.

    >>> number(0.12345), number(None)
    ('0.123', '–')
    """
    return "–" if value is None else f"{value:.{digits}f}"


def _cells(row: Sequence[str], widths: Sequence[int]) -> list[str]:
    first = row[0].ljust(widths[0])
    return [first, *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
