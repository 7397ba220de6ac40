"""`neft analyze`: the paper's analyses of several models on the same data."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from neft.commands.borrowing import DATA, HELD_OUT, borrow, numbers
from neft.config import TrainingConfig

HELP = "compare models: losses, overlap with the targets, lengths, diversity, robustness to noise"
_OWN: dict[str, tuple[Callable[[str], Any], str, str]] = {
    "max_rows": (int, "N", "rows of each set for losses and flips (default: 1000)"),
    "num_texts": (int, "N", "rows of each set to generate for, 0 for none (default: 64)"),
    "max_new_tokens": (int, "N", "where an output is cut (default: 128)"),
    "repetition_penalty": (float, "F", "of the greedy outputs; the paper used 1.2 (default: 1, none)"),
    "flip_alphas": (numbers, "LIST", "strengths of the noise at inference (default: 5,10,15)"),
}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the models, train's options that say how data is read, and what to measure."""
    group = parser.add_argument_group("models")
    group.add_argument(
        "--model", dest="models", action="append", required=True, metavar="DIR", help="model or adapter; repeat it"
    )
    group.add_argument("--output", required=True, type=Path, metavar="DIR", help="folder for tables, plots and texts")
    group.add_argument("--overwrite", action="store_true", help="write into a folder that holds something else")
    borrow(parser, "as in neft train", ("data", *DATA, *HELD_OUT, "noise", "seed", "batch_size", "dtype"))
    measures = parser.add_argument_group("analysis")
    for name, (kind, metavar, text) in _OWN.items():
        measures.add_argument(f"--{name.replace('_', '-')}", type=kind, metavar=metavar, help=text)
    measures.add_argument("--no-plots", dest="has_plots", action="store_false", help="write no PNG files")
    measures.add_argument("--json", action="store_true", help="write JSON instead of the table")


def run(options: dict[str, Any], *, is_quiet: bool) -> None:
    """Analyses, and writes the table or one JSON line to standard output."""
    is_json = options.pop("json", False)
    names = (*_OWN, "models", "output", "overwrite", "has_plots")
    analysis = {name: options.pop(name) for name in names if name in options}
    analysis["models"] = tuple(analysis["models"])
    data = TrainingConfig(model=analysis["models"][0], output=analysis["output"], **options)
    from transformers.utils import logging

    from neft.analysis.analyzing import analyze
    from neft.analysis.options import AnalysisConfig
    from neft.analysis.report import analysis_table

    logging.disable_progress_bar()
    result = analyze(AnalysisConfig(data=data, show_progress=not is_quiet, **analysis))
    if not is_quiet:
        sys.stdout.write((json.dumps(result) if is_json else analysis_table(result["models"])) + "\n")
