"""`neft inspect`: the noise that a run would have, on this model and this data."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from neft.commands.borrowing import DATA, borrow, numbers
from neft.config import TrainingConfig
from neft.errors import NoiseError

HELP = "show how strong the noise is on a model and data, and check that it is on"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds train's options that decide the noise, and the grid of strengths."""
    borrow(parser, "as in neft train", ("model", "data", *DATA, "alpha", "noise", "seed", "batch_size", "dtype"))
    group = parser.add_argument_group("inspection")
    group.add_argument("--alphas", type=numbers, metavar="LIST", help="strengths to show (default: 2,5,10,15)")
    group.add_argument("--json", action="store_true", help="write JSON instead of tables")


def run(options: dict[str, Any], *, is_quiet: bool) -> None:
    """Inspects, and writes tables or one JSON line to standard output.

    Raises:
        NoiseError: the check on the model failed.
    """
    is_json = options.pop("json", False)
    grid = {"alphas": options.pop("alphas")} if "alphas" in options else {}
    # Nothing is written, but the options are those of a run.
    config = TrainingConfig(**options, output=Path("inspect"))
    from transformers.utils import logging

    from neft.inspecting.inspecting import inspect_noise
    from neft.inspecting.report import inspection_tables

    logging.disable_progress_bar()
    inspection = inspect_noise(config, **grid)
    if not is_quiet:
        sys.stdout.write((json.dumps(inspection.to_dict()) if is_json else inspection_tables(inspection)) + "\n")
    if not inspection.live.is_right:
        raise NoiseError(
            f"the noise on {config.model} is not what it should be: {inspection.live}; do not train it with noise."
        )
