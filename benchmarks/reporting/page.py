"""The report as a page: the answer, the table, the figure, and the questions behind the scores."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.reporting.figure import describe
from benchmarks.reporting.grid import Figure, Group, model_name
from benchmarks.reporting.questions import Category, categories_of, samples_of
from benchmarks.reporting.source import Source
from benchmarks.reporting.text import Table, dtype_of, gap_of, percent, shown_difference
from proxytune.report.builder import build

_FOLDER = Path(__file__).parent


@dataclass(frozen=True, kw_only=True)
class _ByCategory:
    """A figure's scores by category."""

    figure: Figure
    categories: Sequence[Category]


def render(
    tables: Sequence[Table], sources: Sequence[Source], *, picture: bytes | None = None, num_samples: int = 5
) -> str:
    """Return the page as HTML that loads nothing; `picture` is a PNG of the tables."""
    return build(
        _FOLDER,
        title="Benchmark report",
        filters={"percent": percent, "model": model_name, "json": _json, "difference": shown_difference},
        dtype_of=dtype_of,
        gap_of=gap_of,
        tables=tables,
        by_category=[_by_category(table.group, sources) for table in tables],
        picture=None if picture is None else base64.b64encode(picture).decode(),
        description=" ".join(describe(table) for table in tables),
        sources=sources,
        samples=[samples_of(source, num_samples) for source in sources],
    )


def _by_category(group: Group, sources: Sequence[Source]) -> list[_ByCategory]:
    pairs = ((figure, categories_of(group, figure, sources)) for figure in group.figures if figure.is_headline)
    return [_ByCategory(figure=figure, categories=categories) for figure, categories in pairs if categories]


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, indent=2)
