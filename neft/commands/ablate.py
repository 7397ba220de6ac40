"""`neft ablate`: a grid of trainings with error bars."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from neft.commands.borrowing import borrow_all, numbers
from neft.commands.train import words
from neft.config import TrainingConfig

HELP = "train a grid of noise strengths, distributions and seeds, and write one table"
_MEASURING = ("num_texts", "max_new_tokens", "repetition_penalty")
# The grid's own, or of no use to one run of many.
_NOT_TRAINS = ("alpha", "alpha_rel", "noise", "seed", "output", "resume", "tensorboard")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the grid, and train's options for every run of it."""
    group = parser.add_argument_group("grid; finished runs are not repeated")
    group.add_argument("--output", required=True, type=Path, metavar="DIR", help="folder for the table and the runs")
    group.add_argument("--alphas", type=numbers, metavar="LIST", help="noise strengths (default: 0,5,10,15)")
    group.add_argument("--noise", type=words, metavar="LIST", help="distributions (default: uniform)")
    group.add_argument("--seeds", type=int, metavar="N", help="runs of each setting (default: 3)")
    group.add_argument("--seed", type=int, metavar="N", help="the first of the seeds (default: 0)")
    group.add_argument("--num-texts", type=int, metavar="N", help="prompts to answer, for lengths (default: 0)")
    group.add_argument("--max-new-tokens", type=int, metavar="N", help="where an answer is cut (default: 128)")
    group.add_argument("--repetition-penalty", type=float, metavar="F", help="of the answers (default: 1, none)")
    group.add_argument("--discard-models", action="store_true", help="keep the figures of the runs only")
    group.add_argument("--plot", action="store_true", help="draw losses.png")
    group.add_argument("--json", action="store_true", help="write JSON instead of the table")
    borrow_all(parser, "as in neft train, for every run", but=_NOT_TRAINS)


def run(options: dict[str, Any], *, is_quiet: bool) -> None:
    """Runs the grid, and writes the table or one JSON line to standard output."""
    is_json, has_plot = options.pop("json", False), options.pop("plot", False)
    keeps_models = not options.pop("discard_models", False)
    names = {"alphas": "alphas", "noise": "noises", "seeds": "num_seeds"}
    grid = {ours: options.pop(name) for name, ours in names.items() if name in options}
    measuring = {name: options.pop(name) for name in _MEASURING if name in options}
    base = TrainingConfig(**options, show_progress=not is_quiet)
    from transformers.utils import logging

    from neft.ablation.ablating import ablate
    from neft.ablation.cells import Measuring
    from neft.ablation.plots import plot_losses
    from neft.ablation.summary import summary_table

    logging.disable_progress_bar()
    ablation = ablate(base, measuring=Measuring(**measuring), keeps_models=keeps_models, **grid)
    if has_plot:
        plot_losses(ablation.summaries, base.output / "losses.png")
    if not is_quiet:
        sys.stdout.write((json.dumps(ablation.to_dict()) if is_json else summary_table(ablation.summaries)) + "\n")
