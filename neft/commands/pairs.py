"""`neft pairs`: answer pairs from votes, for `neft reward` and `neft rl --method dpo`."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from neft.rl.pairs import write_pairs
from neft.rl.scores import MAX_PAIRS, TEMPLATE, read_scored_pairs

HELP = "make answer pairs from StackExchange-style votes"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `neft.rl.read_scored_pairs`."""
    rows = 'rows {"question", "answers": [{"text", "upvotes", "accepted"}, …]}'
    parser.add_argument("--data", required=True, type=Path, metavar="FILE", help=rows)
    parser.add_argument("--output", required=True, type=Path, metavar="FILE", help="JSON lines of pairs")
    parser.add_argument("--max-pairs", type=int, metavar="N", help=f"of one question (default: {MAX_PAIRS})")
    parser.add_argument("--seed", type=int, metavar="N", help="chooses among more pairs (default: 0)")
    parser.add_argument("--template", metavar="TEXT", help=f"prompt with {{question}} in it (default: {TEMPLATE!r})")
    parser.add_argument("--overwrite", action="store_true", help="replace the output file")


def run(options: dict[str, Any], *, is_quiet: bool) -> None:
    """Writes the pairs, and their number to standard output."""
    data, output, overwrite = options.pop("data"), options.pop("output"), options.pop("overwrite", False)
    pairs = read_scored_pairs(data, **options)
    write_pairs(output, pairs, overwrite=overwrite)
    if not is_quiet:
        num_questions = len({pair.row for pair in pairs})
        result = {"output": str(output), "num_pairs": len(pairs), "num_questions": num_questions}
        sys.stdout.write(json.dumps(result) + "\n")
