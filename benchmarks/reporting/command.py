"""Put runs into one table, gap closed first: tasks are rows, systems columns; and into one page for browsers.

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
from benchmarks.reporting.text import Table, as_json, as_markdown, as_text, paired_columns
from proxytune.cli.stderr import note
from proxytune.errors import DependencyError, InputError, OptionError, OutputError

EXAMPLE = "  python -m benchmarks report runs/* -o report.html"


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Add this command's options."""
    command.add_argument("runs", metavar="RUN", nargs="+", help="folders of runs")
    command.add_argument("-o", "--output", metavar="FILE", help="write a page that loads nothing, with figure and rows")
    command.add_argument("--png", metavar="FILE", help="draw the scores")
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
    sources = _sources(_paths(args.runs), is_partial_allowed=args.partial)
    tables = tables_of(sources, tuned=args.tuned)
    if args.output or args.png:
        _write_pictures(args, tables, sources)
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
        marks = marks_of(group, sources, gaps, tuned=tuned)
        tables.append(Table(group=group, gaps=gaps, marks=marks, paired=paired_columns(group, sources, tuned=tuned)))
    return tables


def _sources(paths: Sequence[Path], *, is_partial_allowed: bool) -> list[Source]:
    """Return the runs that can be read, naming the others; an error where there is none."""
    sources, errors = [], []
    for path in paths:
        try:
            sources.append(read_source(path, is_partial_allowed=is_partial_allowed))
        except (InputError, OptionError, OutputError) as error:
            errors.append(error)
    if not sources:
        raise errors[0]
    for reason in errors:
        note(f"left out: {reason}")
    return sources


def _paths(given: Sequence[str]) -> list[Path]:
    paths = [Path(name).expanduser() for name in given]
    twice = next(
        (path for index, path in enumerate(paths) if path.resolve() in {p.resolve() for p in paths[:index]}), None
    )
    if twice is not None:
        raise OptionError(f"{str(twice)!r} is named twice: name each run once.")
    return paths


def _write_pictures(args: argparse.Namespace, tables: Sequence[Table], sources: Sequence[Source]) -> None:
    """Write the figure, and the page, which has it inside where matplotlib is installed."""
    from benchmarks.reporting.figure import png
    from benchmarks.reporting.page import render

    try:
        picture = png(tables)
    except DependencyError as error:
        if args.png:
            raise
        picture = None
        note(f"the page has no figure: {error}")
    if args.png and picture is not None:
        _write(Path(args.png).expanduser(), picture)
    if args.output:
        page = render(tables, sources, picture=picture, num_samples=args.samples)
        _write(Path(args.output).expanduser(), page.encode())


def _write(path: Path, content: bytes) -> None:
    try:
        path.write_bytes(content)
    except OSError as error:
        raise OutputError(f"cannot write {str(path)!r}: {error.strerror or error}; choose another file.") from error
    note(f"wrote {path}.")
