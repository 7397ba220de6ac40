"""The page: a template that escapes what it is given, its style inside and hashed in its CSP, and no script."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from benchmarks.reporting.grid import Figure, Group, model_name
from benchmarks.reporting.plots import Plot, alpha_plots, category_plot, cost_plots
from benchmarks.reporting.questions import Category, categories_of, samples_of
from benchmarks.reporting.source import Source
from benchmarks.reporting.text import Table, dtype_of, percent, score

_FOLDER = Path(__file__).parent
_BROKEN = re.compile("[\ud800-\udfff]")
# Around the origin, about 10 units wide; shape and colour both tell rows apart.
_SHAPES = (
    "M-5 0A5 5 0 1 0 5 0A5 5 0 1 0 -5 0Z",
    "M-4.5 -4.5H4.5V4.5H-4.5Z",
    "M0 -5.5L5.5 4.5H-5.5Z",
    "M0 -6L6 0L0 6L-6 0Z",
    "M-5.5 -4.5H5.5L0 5.5Z",
    "M-1.5 -5.5H1.5V-1.5H5.5V1.5H1.5V5.5H-1.5V1.5H-5.5V-1.5H-1.5Z",
    "M-5.5 -2.5H5.5V2.5H-5.5Z",
    "M-2.5 -5.5H2.5V5.5H-2.5Z",
)


@dataclass(frozen=True, kw_only=True)
class _ByCategory:
    """A figure's categories, drawn and in numbers."""

    figure: Figure
    categories: Sequence[Category]
    plot: Plot


def render(tables: Sequence[Table], sources: Sequence[Source], *, num_samples: int = 5) -> str:
    """Return the page as HTML that loads nothing."""
    style = (_FOLDER / "page.css").read_text(encoding="utf-8")
    environment = Environment(
        loader=FileSystemLoader(_FOLDER), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters |= {
        "score": score,
        "percent": percent,
        "model": model_name,
        "json": _json,
        "shape": _shape,
        "colour": _colour,
    }
    page = environment.get_template("page.html").render(
        title="Benchmark report",
        style=Markup(style),
        style_hash=base64.b64encode(hashlib.sha256(style.encode()).digest()).decode(),
        dtype_of=dtype_of,
        tables=[_shown(table, sources) for table in tables],
        sources=sources,
        samples=[samples_of(source, num_samples) for source in sources],
    )
    return _BROKEN.sub("\ufffd", page)


def _shown(table: Table, sources: Sequence[Source]) -> dict[str, Any]:
    group = table.group
    styles = {key: style for style, key in enumerate(group.rows)}
    return {
        "group": group,
        "gaps": table.gaps,
        "marks": table.marks,
        "styles": styles,
        "alpha_plots": alpha_plots(group, styles),
        "cost_plots": cost_plots(group, styles),
        "by_category": _by_category(group, sources, styles),
    }


def _by_category(group: Group, sources: Sequence[Source], styles: dict[str, int]) -> list[_ByCategory]:
    found = []
    for figure in group.figures:
        if figure.is_headline and (categories := categories_of(group, figure, sources)):
            plot = category_plot(group, figure, categories, styles)
            found.append(_ByCategory(figure=figure, categories=categories, plot=plot))
    return found


def _shape(style: int) -> str:
    return _SHAPES[style % len(_SHAPES)]


def _colour(style: int) -> int:
    """Return a row's colour, another one each time its shape comes again."""
    return (style + style // len(_SHAPES)) % len(_SHAPES)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, indent=2)
