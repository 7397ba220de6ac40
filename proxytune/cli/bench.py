"""Hand everything that follows to the benchmarks: `proxytune bench --help` shows their tasks."""

import argparse
from importlib import import_module
from importlib.util import find_spec

from proxytune.errors import DependencyError

HELP = "benchmarks: quality and speed of base, expert and the steered base"

# As a wheel names them, and as a checkout does, beside which others' packages may have that name.
_PACKAGES = ("proxytune_benchmarks", "benchmarks")


def run(args: argparse.Namespace) -> int:
    """Run the benchmarks' command line on `args.arguments`; its exit code is the command's."""
    package = next((name for name in _PACKAGES if find_spec(name) and find_spec(f"{name}.task_command")), None)
    if package is None:
        raise DependencyError("the benchmarks are not installed beside proxytune: install its whole source.")
    code: int = import_module(f"{package}.cli").main(args.arguments)
    return code
