"""`neft merge`: an adapter and its base to one model folder."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any, get_args

from neft.kinds import DType

HELP = "write an adapter's base with the adapter merged into its weights"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `neft.merging.merge`."""
    parser.add_argument("--adapter", required=True, type=Path, metavar="DIR", help="adapter folder, as train writes it")
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="folder for the merged model")
    parser.add_argument("--model", metavar="DIR", help="the base, if it is no longer where the adapter says")
    parser.add_argument("--dtype", choices=get_args(DType), help="type of the weights (default: that of training)")
    parser.add_argument("--overwrite", action="store_true", help="replace an output folder that holds something else")


def run(options: dict[str, Any], *, is_quiet: bool) -> None:
    """Merges, and writes the result to standard output."""
    from transformers.utils import logging

    from neft.merging import merge

    logging.disable_progress_bar()
    output = merge(**options)
    if not is_quiet:
        sys.stdout.write(json.dumps({"output": str(output)}) + "\n")
