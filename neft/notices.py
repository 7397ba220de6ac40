"""Notices on stderr: facts about the data or the model that change what is learned or written."""

from __future__ import annotations

import os
import sys


def is_first_process() -> bool:
    """Returns whether this is the process, of those a launcher started, that speaks for all."""
    return os.environ.get("RANK", "0") == "0"


def notify(message: str) -> None:
    """Writes one line to stderr, in the first process only; `--quiet` does not silence it."""
    if is_first_process():
        sys.stderr.write(f"neft: {message}\n")
