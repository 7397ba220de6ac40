"""Putting the shards of one run together again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.runs.folder import RunFolder
from benchmarks.runs.plan import Shard
from benchmarks.runs.timings import append_timings, read_timings
from proxytune.errors import OptionError


def merge(output: Path, folders: Sequence[Path]) -> RunFolder:
    """Write the run that the shards in `folders` make up, with the rows in the order of an undivided run.

    Raises:
        OptionError: A shard is missing, there twice, or of another run.
        OutputError: A shard lacks rows, or `output` holds a run already.
    """
    shards = [RunFolder.at(folder) for folder in folders]
    if not shards:
        raise OptionError("there is no shard to merge: name the folders of all of them.")
    first = shards[0]
    for shard in shards[1:]:
        first.configuration.require_same(replace(shard.configuration, shard=first.configuration.shard), shard.path)
    _require_each_once([shard.configuration.shard for shard in shards])
    rows = {(row["column"], row["part"], row["index"]): row for shard in shards for row in shard.rows()}
    sessions = [session for shard in shards for session in shard.configuration.sessions]
    whole = replace(first.configuration, shard=Shard(), sessions=sessions)
    run = RunFolder.open(output, whole, is_resumed=False)
    with run.predictions() as predictions:
        for chunk in run.chunks:
            predictions.append([rows[key] for key in chunk.keys])
    append_timings(output, [line for shard in shards for line in read_timings(shard.path)])
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
