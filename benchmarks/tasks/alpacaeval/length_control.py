"""AlpacaEval 2's length-controlled win rate of outputs that have no published weights: fitted by the package itself.

Source: Dubois et al. 2024, "Length-Controlled AlpacaEval". The published form needs the package's `df_gamed.csv`, which
is only on the hub; without it the same regression is fitted on the model's own annotations, which comes out lower: for
phi-2 and vicuna-13b-v1.5 by 1.2 and 1.9 points.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.scoring.score import Metric, mean
from benchmarks.tasks.alpacaeval import length_control_worker
from benchmarks.tasks.alpacaeval.process import last_line, offline_environment, shortened, worker_lines

BASELINE = "gpt4_1106_preview"
PUBLISHED = "the published form (length_controlled_v1), fitted by alpaca-eval with df_gamed.csv"
ALONE = (
    "length_controlled_noreg, fitted by alpaca-eval's code on each column's own annotations, without df_gamed.csv: "
    "lower than the leaderboard's form (1.2 and 1.9 points on two published models), so not to be compared with it"
)
_FEWEST_ROWS = 5  # the folds of the package's cross-validation
_FIELDS = ("preference", "output_1", "output_2", "generator_1", "generator_2")
_COMMIT = "0" * 40


@dataclass(frozen=True, kw_only=True)
class LengthControl:
    """Inputs of the fit: `df_gamed.csv`, or the difficulty of each instruction by its text."""

    df_gamed: Path | None = None
    difficulties: Mapping[str, float] | None = None

    @property
    def form(self) -> str:
        """Kind of length-controlled rate."""
        return ALONE if self.df_gamed is None else PUBLISHED


@dataclass(frozen=True, kw_only=True)
class ControlledRate:
    """A length-controlled win rate in per cent; without a value there is a reason."""

    metric: Metric = Metric(value=None, n=0)  # noqa: RUF009 - frozen
    reason: str | None = None


def controlled_rates(
    annotations: Mapping[str, Sequence[Mapping[str, Any]]], control: LengthControl
) -> dict[str, ControlledRate]:
    """Return each column's rate.

    Annotations are in AlpacaEval's order with none left out; `preference` is null where there is no verdict. Standard
    errors and intervals hold the fitted weights fixed.
    """
    num_judged = {
        column: sum(row["preference"] is not None for row in column_annotations)
        for column, column_annotations in annotations.items()
    }
    asked = {
        column: _asked(column_annotations, control)
        for column, column_annotations in annotations.items()
        if num_judged[column] >= _FEWEST_ROWS
    }
    fitted = _fitted(asked, control) if asked else {}
    return {
        column: _rate(fitted[column])
        if column in asked
        else ControlledRate(reason=f"{number} verdicts are too few to fit: it takes {_FEWEST_ROWS} at least")
        for column, number in num_judged.items()
    }


def _asked(annotations: Sequence[Mapping[str, Any]], control: LengthControl) -> dict[str, Any]:
    known = control.difficulties
    return {
        "annotations": [{name: row[name] for name in _FIELDS} for row in annotations],
        "difficulties": None if known is None else [known[row["instruction"]] for row in annotations],
    }


def _rate(result: Mapping[str, Any]) -> ControlledRate:
    if "error" in result:
        return ControlledRate(reason=shortened(result["error"]))
    return ControlledRate(metric=mean(result["preferences"], scale=100))


def _fitted(asked: Mapping[str, Any], control: LengthControl) -> dict[str, dict[str, Any]]:
    with tempfile.TemporaryDirectory(prefix="proxytune-lengths-") as scratch, tempfile.TemporaryFile() as told:
        rows = Path(scratch, "rows.json")
        rows.write_text(json.dumps(asked), encoding="utf-8")
        environment = offline_environment()
        if control.df_gamed is not None:
            environment["HF_HUB_CACHE"] = str(_cache_with(control.df_gamed, Path(scratch, "hub")))
        lines = map(json.loads, worker_lines(length_control_worker.__file__, rows, told, environment))
        lines_by_column = {line["column"]: line for line in lines}
        return {column: lines_by_column.get(column) or {"error": last_line(told)} for column in asked}


def _cache_with(df_gamed: Path, cache: Path) -> Path:
    """Return a cache of the hub that holds this one file, where the package looks for it."""
    home = cache / "datasets--tatsu-lab--alpaca_eval"
    (home / "refs").mkdir(parents=True)
    (home / "refs" / "main").write_text(_COMMIT, encoding="utf-8")
    (home / "snapshots" / _COMMIT).mkdir(parents=True)
    shutil.copyfile(df_gamed, home / "snapshots" / _COMMIT / "df_gamed.csv")
    return cache
