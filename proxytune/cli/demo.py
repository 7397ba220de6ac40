"""Run proxy tuning on the trio that comes with the package, and print what it did.

It tunes the small expert live, steers the base with it, and measures all of them on people no tuning saw.
"""

import argparse
import sys
from pathlib import Path

from proxytune.cli.stderr import is_watched, quiet_progress
from proxytune.errors import OutputError
from proxytune.options import check_alpha

HELP = "see it work on the bundled trio"
EXAMPLE = "  proxytune demo"


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Add this command's options."""
    command.add_argument("--json", action="store_true", help="print one JSON object")
    command.add_argument("--output", metavar="FILE", help="write here in place of standard output (replaces the file)")
    command.add_argument("--alpha", type=float, default=1.0, metavar="NUMBER", help="strength of steering (1.0)")
    command.add_argument("--seed", type=int, default=0, metavar="N", help="of the tuning (0)")
    command.add_argument(
        "--progress",
        action=argparse.BooleanOptionalAction,
        help="say on stderr what is done (by default on a terminal)",
    )


def run(args: argparse.Namespace) -> int:
    """Run the demo."""
    from proxytune import demo

    alpha = check_alpha(args.alpha)
    has_progress = is_watched() if args.progress is None else args.progress
    try:
        stream = Path(args.output).open("a", encoding="utf-8") if args.output else None  # noqa: SIM115
    except OSError as error:
        raise OutputError(f"cannot write {args.output!r}: {error.strerror or error}; choose another output.") from error
    with quiet_progress():
        report = demo.run(seed=args.seed, alpha=alpha, progress=sys.stderr if has_progress else None)
    if stream is None:
        report.write(sys.stdout, as_json=args.json)
        return 0
    with stream:
        stream.truncate(0)
        report.write(stream, as_json=args.json)
    return 0
