"""`ablate`: a grid of runs, one folder per cell, and one table."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from neft.ablation.cells import CellResult, Measuring, run_cell
from neft.ablation.grid import cells
from neft.ablation.summary import SettingSummary, summarize, summary_table
from neft.analysis.files import read_json, write_json, write_whole
from neft.analysis.interrupts import resumable
from neft.config import TrainingConfig
from neft.errors import InputError, OutputError
from neft.kinds import NoiseKind
from neft.recording import now, versions

RESULT_FILE = "ablation.json"
TABLE_FILE = "table.md"
_CELLS = "cells"


@dataclass(frozen=True)
class Ablation:
    """A finished grid."""

    results: list[CellResult]
    summaries: list[SettingSummary]

    def to_dict(self) -> dict[str, Any]:
        """Returns the figures as JSON values."""
        return {
            "summary": [summary.to_dict() for summary in self.summaries],
            "cells": [
                {"name": result.cell.name, "metrics": result.metrics, "failure": result.failure}
                for result in self.results
            ],
        }


def ablate(
    base: TrainingConfig,
    *,
    alphas: Sequence[float] = (0.0, 5.0, 10.0, 15.0),
    noises: Sequence[NoiseKind] = ("uniform",),
    num_seeds: int = 3,
    measuring: Measuring | None = None,
    keeps_models: bool = True,
) -> Ablation:
    """Runs a grid of trainings and writes `ablation.json`, `table.md`, and a folder per cell into `base.output`.

    A cell that is finished, with the same options, model and data, is not run again; the table is written anew after
    every cell, so that an interrupted grid leaves one too.

    Args:
        base: The options of every run. Its noise strength, distribution and `show_progress` are the grid's; its seed is
            the first of the seeds. With `eval_fraction` every seed holds out rows of its own.
        alphas: Strengths.
        noises: Distributions.
        num_seeds: Runs of each setting.
        measuring: Measurements beside the losses.
        keeps_models: Leave the tuned models in the cells' folders.

    Raises:
        InputError: the options, the model or the data cannot be used.
        OutputError: the output folder holds something else.
        KeyboardInterrupt: Ctrl-C or SIGTERM; the same call goes on where it stopped.
    """
    _check_process()
    _check_output(base)
    grid = cells(alphas, noises, num_seeds, first_seed=base.seed)
    results: list[CellResult] = []
    measuring = measuring or Measuring()
    bar = tqdm(total=len(grid), desc="ablate", unit="run", file=sys.stderr, disable=not base.show_progress)
    with resumable("run"), bar:
        for cell in grid:
            bar.set_postfix_str(cell.name)
            folder = base.output / _CELLS / cell.name
            results.append(run_cell(cell, base, folder, measuring=measuring, keeps_model=keeps_models))
            _write(Ablation(results, summarize(results)), base.output, num_cells=len(grid))
            bar.update()
    return Ablation(results, summarize(results))


def _write(ablation: Ablation, output: Path, *, num_cells: int) -> None:
    num_finished = len(ablation.results)
    note = "" if num_finished == num_cells else f"\n\n{num_finished} of {num_cells} runs are finished."
    write_whole(output / TABLE_FILE, f"{summary_table(ablation.summaries)}{note}\n")
    record = {**ablation.to_dict(), "num_cells": num_cells, "versions": versions(), "finished": now()}
    write_json(output / RESULT_FILE, record)


def _check_process() -> None:
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError("a grid runs in one process, and a launcher started several; run neft ablate by itself.")


def _check_output(base: TrainingConfig) -> None:
    output = base.output
    if output.exists() and not output.is_dir():
        raise OutputError(f"output {output} is a file; choose a folder.")
    is_ours = read_json(output / RESULT_FILE) is not None or (output / _CELLS).is_dir()
    if output.is_dir() and any(output.iterdir()) and not is_ours and not base.overwrite:
        raise OutputError(f"output {output} already holds something else; choose another folder or add --overwrite.")
