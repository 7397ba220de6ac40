"""Caveats for a reader who compares scores: where runs differ, what is incomplete, which rows are missing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.reporting.gap import GapLine, tuned_row
from benchmarks.reporting.grid import Group
from benchmarks.reporting.source import Source

_ABOUT: Mapping[str, Callable[[Source], Any]] = {
    "batch size": lambda source: source.configuration.settings["batch_size"],
    "runtime": lambda source: source.configuration.settings["runtime"],
    "limit": lambda source: source.configuration.settings["limit"],
    "prompt formats": lambda source: source.configuration.settings["prompt_formats"],
    "commit": lambda source: _of_sessions(source, "git_sha"),
    "device": lambda source: _of_sessions(source, "device"),
    "versions": lambda source: _of_sessions(source, "versions"),
}


def marks_of(
    group: Group, sources: Sequence[Source], gaps: Sequence[GapLine], *, tuned: str | None = None
) -> list[str]:
    """Return the marks of a group's table, one sentence each."""
    runs = {number: sources[number - 1] for number in group.runs}
    marks = [_incomplete(number, source) for number, source in runs.items() if _is_partial(source)]
    marks += [mark for name, value in _ABOUT.items() for mark in _differing(name, runs, value)]
    marks += _dtypes(group)
    marks += _sizes(group)
    marks += _missing(group)
    return marks + _about_gaps(group, gaps, tuned)


def _incomplete(number: int, source: Source) -> str:
    shard = source.configuration.shard
    shard_text = "" if shard.total == 1 else f", shard {shard}"
    return (
        f"Run {number} is incomplete: {len(source.rows)} of {source.num_wanted} rows ({source.share:.1%}{shard_text})."
    )


def _is_partial(source: Source) -> bool:
    return len(source.rows) < source.num_wanted


def _differing(name: str, runs: Mapping[int, Source], value: Callable[[Source], Any]) -> list[str]:
    values = {number: value(source) for number, source in runs.items()}
    if all(one == next(iter(values.values())) for one in values.values()):
        return []
    if name in ("versions", "prompt formats"):
        return [f"Runs differ in {name}: see where they come from."]
    told = "; ".join(f"run {number}: {'none' if one is None else one}" for number, one in values.items())
    return [f"Runs differ in {name} ({told})."]


def _dtypes(group: Group) -> list[str]:
    dtypes_by_row = {row.name: row.dtypes for row in group.rows.values()}
    if len(set(dtypes_by_row.values())) < 2:
        return []
    return [f"Rows differ in dtype ({'; '.join(f'{name}: {dtypes}' for name, dtypes in dtypes_by_row.items())})."]


def _sizes(group: Group) -> list[str]:
    marks = []
    for figure in group.figures:
        counts = {group.rows[key].name: cell.n for key, cell in figure.cells.items()}
        if len(set(counts.values())) > 1:
            told = ", ".join(f"{name} {n}" for name, n in counts.items())
            marks.append(f"{figure.title}: rows count differently many answers ({told}).")
    return marks


def _missing(group: Group) -> list[str]:
    return [
        f"{figure.title}, {group.rows[key].name}: {cell.num_missing} {cell.missing_are}, left out."
        for figure in group.figures
        for key, cell in figure.cells.items()
        if cell.num_missing
    ]


def _about_gaps(group: Group, gaps: Sequence[GapLine], tuned: str | None) -> list[str]:
    if not gaps:
        return []
    top = group.rows[str(tuned_row(group, tuned))].name
    marks = [f"Gap closed is (steered - base) / ({top} - base); its mean is over the first score of each part."]
    if any(line.mean is None and line.num_tasks for line in gaps):
        marks.append("No mean gap: the same part was asked or judged twice in different ways, so it would count twice.")
    uncertain = {number for line in gaps for number in line.uncertain}
    marks += [
        f"{group.figures[number].title}: {top} does not differ from base beyond chance (the 95 % interval of the "
        "difference holds 0), so its gap says little (marked ~)."
        for number in sorted(uncertain)
    ]
    return marks


def _of_sessions(source: Source, name: str) -> Any:
    values = [session.get(name) for session in source.configuration.sessions]
    distinct = [one for index, one in enumerate(values) if one not in values[:index]]
    return distinct[0] if len(distinct) == 1 else distinct
