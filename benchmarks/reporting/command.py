"""Put runs into one table, with how much of the gap to direct tuning steering closes, and into one page for browsers.

Scores of different configuration never share a column of the table, and what differs between runs is said below it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.reporting.gap import gap_lines
from benchmarks.reporting.grid import groups_of
from benchmarks.reporting.marks import marks_of
from benchmarks.reporting.source import Source, read_source
from benchmarks.reporting.text import Table, as_json, as_markdown, as_text
from proxytune.cli.stderr import note
from proxytune.errors import OptionError, OutputError

EXAMPLE = "  python -m benchmarks report runs/* -o report.html"


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Add this command's options."""
    command.add_argument("runs", metavar="RUN", nargs="+", help="folders of runs")
    command.add_argument("-o", "--output", metavar="FILE", help="write a page that loads nothing, with plots and rows")
    form = command.add_mutually_exclusive_group()
    form.add_argument("--markdown", action="store_true", help="the table as Markdown")
    form.add_argument("--json", action="store_true", help="the table as JSON, unrounded")
    command.add_argument("--tuned", metavar="NAME", help="the column that gap closed is against (tuned)")
    command.add_argument("--partial", action="store_true", help="take incomplete runs too, marked with their share")
    command.add_argument("--samples", type=int, default=5, metavar="N", help="questions of each part in the page (5)")


def run(args: argparse.Namespace) -> int:
    """Print the table, and write the page if one was asked for.

    Raises:
        InputError: A folder holds no run.
        OptionError: A run is incomplete, or named twice.
        OutputError: The page cannot be written.
    """
    if args.samples < 0:
        raise OptionError(f"samples is {args.samples}: it must be a whole number of at least 0.")
    sources = [read_source(path, is_partial_allowed=args.partial) for path in _paths(args.runs)]
    tables = tables_of(sources, tuned=args.tuned)
    if args.output:
        from benchmarks.reporting.page import render

        _write(Path(args.output).expanduser(), render(tables, sources, num_samples=args.samples))
    if args.json:
        sys.stdout.write(json.dumps(as_json(tables, sources), ensure_ascii=False) + "\n")
    else:
        sys.stdout.write((as_markdown if args.markdown else as_text)(tables, sources))
    return 0


def tables_of(sources: Sequence[Source], *, tuned: str | None = None) -> list[Table]:
    """Return a table for each base."""
    tables = []
    for group in groups_of(sources):
        gaps = gap_lines(group, sources, tuned=tuned)
        tables.append(Table(group=group, gaps=gaps, marks=marks_of(group, sources, gaps, tuned=tuned)))
    return tables


def _paths(given: Sequence[str]) -> list[Path]:
    paths = [Path(name).expanduser() for name in given]
    twice = next(
        (path for place, path in enumerate(paths) if path.resolve() in {p.resolve() for p in paths[:place]}), None
    )
    if twice is not None:
        raise OptionError(f"{str(twice)!r} is named twice: name each run once.")
    return paths


def _write(path: Path, page: str) -> None:
    try:
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise OutputError(f"cannot write {str(path)!r}: {error.strerror or error}; choose another file.") from error
    note(f"wrote {path}.")
