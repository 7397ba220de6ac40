"""Write a run's answers as AlpacaEval's model_outputs.json: one file for each column."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from urllib.parse import quote

from benchmarks.files import make_folder, write_json
from benchmarks.run import RunFolder
from benchmarks.tasks.alpacaeval.generation import TASK
from proxytune.errors import InputError

EXAMPLE = "  python -m benchmarks alpacaeval-outputs runs/alpacaeval-13b"
NAME = "model_outputs.json"


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Add this command's options."""
    command.add_argument("run_folder", metavar="RUN", help="the folder of a complete run of alpacaeval")


def run(args: argparse.Namespace) -> int:
    """Write the files, and print their paths."""
    for path in write_outputs(open_run(Path(args.run_folder).expanduser())).values():
        sys.stdout.write(f"{path}\n")
    return 0


def open_run(path: Path) -> RunFolder:
    """Return the run in this folder.

    Raises:
        InputError: There is none, or it is of another task.
    """
    folder = RunFolder.at(path)
    if folder.configuration.task != TASK:
        raise InputError(f"{str(path)!r} is a run of {folder.configuration.task}: name one of {TASK}.")
    return folder


def write_outputs(folder: RunFolder) -> dict[str, Path]:
    """Write `outputs/<column>/model_outputs.json` below the run's folder, and return the paths by column.

    Raises:
        OutputError: Rows are missing yet, or the files cannot be written.
    """
    rows = folder.rows()
    paths = {}
    for column in folder.configuration.columns:
        paths[column] = folder.path / "outputs" / file_name(column) / NAME
        make_folder(paths[column].parent)
        write_json(
            paths[column],
            [
                {**{key: row[key] for key in ("dataset", "instruction", "output")}, "generator": column}
                for row in rows
                if row["column"] == column
            ],
        )
    return paths


def file_name(column: str) -> str:
    """Return a column's name as a folder's.

    >>> file_name("steered@0.5"), file_name("a/b")
    ('steered@0.5', 'a%2Fb')
    """
    return quote(column, safe="@ ")
