"""Put the shards of a run together: the result is what the undivided run would have written."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path

from benchmarks.files import append_rows
from benchmarks.judging.judgements import judged_rows
from benchmarks.registry import TASKS
from benchmarks.run import TIMINGS, RunFolder, Shard, read_timings, row_key
from benchmarks.tables import table
from proxytune.errors import OptionError

EXAMPLE = "  python -m benchmarks merge runs/whole runs/shard-1 runs/shard-2"


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Add this command's options."""
    command.add_argument("output", metavar="OUT", help="a new folder for the whole run")
    command.add_argument("shards", metavar="SHARD", nargs="+", help="the folders of all shards")


def run(args: argparse.Namespace) -> int:
    """Merge, make the figures, and print them."""
    merged = merge(Path(args.output).expanduser(), [Path(shard).expanduser() for shard in args.shards])
    task = import_module(TASKS[merged.configuration.task].module)
    sys.stdout.write(table(merged.measure(task.MEASURES, judged_rows(merged))))
    return 0


def merge(output: Path, folders: Sequence[Path]) -> RunFolder:
    """Write the run that the shards in `folders` make up, with the rows in the order of an undivided run.

    Raises:
        OptionError: A shard is missing, there twice, or of another run.
        OutputError: A shard lacks rows, or `output` holds a run already.
    """
    shards = [RunFolder.at(folder) for folder in folders]
    first = shards[0].configuration
    for shard in shards[1:]:
        first.require_same(replace(shard.configuration, shard=first.shard), shard.path)
    _require_each_once([shard.configuration.shard for shard in shards])
    rows = {row_key(row): row for shard in shards for row in shard.rows()}
    sessions = [session for shard in shards for session in shard.configuration.sessions]
    run = RunFolder.open(output, replace(first, shard=Shard(), sessions=sessions), is_resumed=False)
    with run.predictions() as predictions:
        for chunk in run.chunks:
            predictions.append([rows[key] for key in chunk.keys])
    append_rows(output / TIMINGS, [line for shard in shards for line in read_timings(shard.path)])
    return run


def _require_each_once(shards: Sequence[Shard]) -> None:
    totals = sorted({shard.total for shard in shards})
    if len(totals) > 1:
        raise OptionError(f"the shards are of divisions by {totals[0]} and by {totals[1]}: merge those of one run.")
    numbers = [shard.number for shard in shards]
    twice = sorted(number for number in set(numbers) if numbers.count(number) > 1)
    if twice:
        raise OptionError(f"shard {twice[0]}/{totals[0]} is named twice: name each once.")
    missing = sorted(set(range(1, totals[0] + 1)) - set(numbers))
    if missing:
        raise OptionError(f"shard {missing[0]}/{totals[0]} is missing: merge needs all {totals[0]}.")
