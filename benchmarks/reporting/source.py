"""One run as a report takes it: its configuration, figures, rows and costs, checked against each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.files import read_json, read_rows
from benchmarks.judging.judgements import JUDGES, judged_rows
from benchmarks.measures import Measure, summarise
from benchmarks.registry import TASKS
from benchmarks.run import CONFIG, METRICS, PREDICTIONS, Configuration, Cost, RunFolder, Shard, costs
from proxytune.errors import InputError, OptionError

_SETTINGS = ("models", "batch_size", "runtime", "limit", "prompt_formats", "seed")


@dataclass(frozen=True, kw_only=True)
class Judging:
    """Figures that a judge made of a run afterwards (AlpacaEval), and who it was."""

    description: Mapping[str, Any]
    metrics: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Source:
    """A run.

    Attributes:
        path: Its folder, as the user named it.
        configuration: Content of config.json.
        metrics: Content of metrics.json; of an incomplete run, the figures of the rows there are.
        rows: The rows, open answers with the verdicts there are.
        num_wanted: Rows of the complete run, all shards together.
        measures: The task's, by part.
        judges: Who judged open answers, if anybody did.
        judgings: Figures made by `bench alpacaeval-judge`.
        costs: By column and part.
    """

    path: Path
    configuration: Configuration
    metrics: Mapping[str, Any]
    rows: Sequence[Mapping[str, Any]]
    num_wanted: int
    measures: Mapping[str, Sequence[Measure]]
    judges: Mapping[str, Any] = field(default_factory=dict)
    judgings: Sequence[Judging] = ()
    costs: Mapping[tuple[str, str], Cost] = field(default_factory=dict)

    @property
    def task(self) -> str:
        """The task's name."""
        return self.configuration.task

    @property
    def share(self) -> float:
        """Share of the run's rows that is there."""
        return len(self.rows) / self.num_wanted

    @property
    def models(self) -> Mapping[str, Any]:
        """Description of each column in config.json."""
        models: Mapping[str, Any] = self.configuration.settings["models"]
        return models


def read_source(path: Path, *, is_partial_allowed: bool = False) -> Source:
    """Return the run in a folder.

    Raises:
        InputError: There is none, or its files cannot be read.
        OptionError: It is incomplete, or one shard of several, and `is_partial_allowed` is not set; or its figures are
            not of this configuration.
    """
    run = RunFolder.at(path)
    configuration = run.configuration
    if configuration.task not in TASKS:
        raise InputError(
            f"{str(path)!r} is a run of {configuration.task!r}, which is no task: known are {list(TASKS)}."
        )
    absent = [name for name in _SETTINGS if name not in configuration.settings]
    if absent:
        raise InputError(
            f"{str(path)!r} has a {CONFIG} without {absent[0]!r} in its settings: name the folder of a run."
        )
    measures = import_module(TASKS[configuration.task].module).MEASURES
    stored = read_rows(path / PREDICTIONS)
    num_expected = len(configuration.columns) * sum(configuration.sizes.values())
    is_complete = len(stored) == num_expected and configuration.shard == Shard()
    if not is_complete and not is_partial_allowed:
        raise OptionError(
            f"{str(path)!r} has {len(stored)} of {num_expected} rows (shard {configuration.shard}): end it with "
            "--resume and put shards together with merge, or pass --partial to have it in the report, marked with "
            "its share."
        )
    rows = judged_rows(run) if is_complete else stored
    return Source(
        path=path,
        configuration=configuration,
        metrics=_metrics(run) if is_complete else _of_rows(run, rows, measures),
        rows=rows,
        num_wanted=num_expected,
        measures=measures,
        judges=read_json(path / JUDGES) if (path / JUDGES).exists() else {},
        judgings=_judgings(path, configuration) if is_complete else (),
        costs=costs(path),
    )


def _metrics(run: RunFolder) -> Mapping[str, Any]:
    path = run.path / METRICS
    if not path.exists():
        raise OptionError(
            f"{str(run.path)!r} has all its rows but no {METRICS}: the same command with --resume makes it."
        )
    metrics = read_json(path)
    if metrics.get("fingerprint") != run.configuration.fingerprint or not isinstance(metrics.get("results"), list):
        raise OptionError(f"{str(path)!r} is not of this run's configuration: run it again with --resume.")
    return metrics


def _of_rows(
    run: RunFolder, rows: Sequence[Mapping[str, Any]], measures: Mapping[str, Sequence[Measure]]
) -> Mapping[str, Any]:
    seed = run.configuration.settings.get("seed", 0)
    return {"fingerprint": run.configuration.fingerprint, **summarise(rows, measures, seed=seed)}


def _judgings(path: Path, configuration: Configuration) -> list[Judging]:
    judgings = []
    for file in sorted(path.glob(f"judged/*/{METRICS}")):
        metrics = read_json(file)
        if metrics.get("fingerprint") != configuration.fingerprint:
            raise OptionError(f"{str(file)!r} judges another run than this one: take it away, or judge again.")
        description = {key: metrics.get(key) for key in ("judge", "reference")}
        judgings.append(Judging(description=description, metrics=metrics))
    return judgings
