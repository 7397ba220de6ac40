"""Hand everything that follows to the benchmarks: `proxytune bench --help` shows their tasks."""

import argparse

from proxytune.errors import DependencyError

HELP = "benchmarks: quality and speed of base, expert and the steered base"


def run(args: argparse.Namespace) -> int:
    """Run `benchmarks.cli` on `args.arguments`; its exit code is the command's."""
    try:
        from benchmarks.cli import main
    except ModuleNotFoundError as error:
        if error.name not in ("benchmarks", "benchmarks.cli"):
            raise
        raise DependencyError("the benchmarks are not installed beside proxytune: install its whole source.") from error
    return main(args.arguments)
