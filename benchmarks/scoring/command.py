"""`bench score TASK --predictions FILE [--json]`: scores anybody's outputs without a model."""

import argparse
import hashlib
import json
import sys
from pathlib import Path

from benchmarks.scoring.registry import SCORERS
from benchmarks.scoring.rows import read_rows
from benchmarks.scoring.score import Metric, Score


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add a subcommand for each scorer, with its options."""
    tasks = parser.add_subparsers(dest="scoring_task", metavar="TASK", required=True)
    for name, scorer in SCORERS.items():
        task = tasks.add_parser(name, help=scorer.summary, description=f"{scorer.summary}.")
        task.add_argument(
            "--predictions",
            type=Path,
            required=True,
            metavar="FILE",
            help="a row a question: .jsonl or .json, also .gz",
        )
        task.add_argument("--json", action="store_true", help="write one JSON object instead of a table")
        scorer.add_arguments(task)


def run(args: argparse.Namespace) -> int:
    """Score the file and write the result to standard output.

    Raises:
        InputError: The file cannot be scored.
        OptionError: An option lacks its companion.
    """
    scored = SCORERS[args.scoring_task].score(read_rows(args.predictions), args)
    if args.json:
        source = {
            "predictions": str(args.predictions),
            "sha256": hashlib.sha256(args.predictions.read_bytes()).hexdigest(),
        }
        sys.stdout.write(json.dumps(source | scored.as_dict(), allow_nan=False) + "\n")
    else:
        sys.stdout.write(table(scored))
    return 0


def table(score: Score) -> str:
    """Return the score as lines of text: metrics with their intervals, counts, notes."""
    lines = [f"{score.task}: {score.n} rows", ""]
    width = max(len(name) for name in (*score.metrics, *score.counts))
    lines += [f"{name:<{width}}  {_figures(metric)}" for name, metric in score.metrics.items()]
    lines += ["", *(f"{name:<{width}}  {count}" for name, count in score.counts.items())]
    lines += ["", *(f"note: {note}" for note in score.notes)]
    return "\n".join(lines) + "\n"


def _figures(metric: Metric) -> str:
    if metric.value is None:
        return "no row counts"
    figures = f"{metric.value:.4f}"
    if metric.low is not None and metric.high is not None:
        figures += f"  [{metric.low:.4f}, {metric.high:.4f}] 95 % {metric.interval}"
    if metric.standard_error is not None:
        figures += f"  SE {metric.standard_error:.4f}"
    return f"{figures}  n={metric.n}"
