"""Put the shards of a run together: the result is what the undivided run would have written."""

from __future__ import annotations

import argparse
import sys
from importlib import import_module
from pathlib import Path

from benchmarks.judging.judgements import judged_rows
from benchmarks.registry import TASKS
from benchmarks.runs.merging import merge
from benchmarks.runs.table import table

EXAMPLE = "  python -m benchmarks merge runs/whole runs/shard-1 runs/shard-2"


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Add this command's options."""
    command.add_argument("output", metavar="OUT", help="a new folder for the whole run")
    command.add_argument("shards", metavar="SHARD", nargs="+", help="the folders of all shards")


def run(args: argparse.Namespace) -> int:
    """Merge, make the figures, and print them."""
    found = merge(Path(args.output).expanduser(), [Path(shard).expanduser() for shard in args.shards])
    task = import_module(TASKS[found.configuration.task].module)
    sys.stdout.write(table(found.measure(task.MEASURES, judged_rows(found))))
    return 0
