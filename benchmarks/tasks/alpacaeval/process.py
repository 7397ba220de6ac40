"""The alpaca-eval package in a process of its own, offline, ended with whoever started it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO

_LONGEST_TEXT = 300
_OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TQDM_DISABLE": "1", "PYTHON_DOTENV_DISABLED": "1"}


def offline_environment() -> dict[str, str]:
    """Return this environment without OpenAI's variables, and with the hub switched off."""
    return {name: value for name, value in os.environ.items() if not name.startswith("OPENAI_")} | _OFFLINE


def worker_lines(script: str, rows: Path, told: IO[bytes], environment: Mapping[str, str]) -> Iterator[str]:
    """Yield the lines that a script of ours prints, given a file of rows; its stderr goes to the file `told`."""
    with (
        subprocess.Popen(
            # -P: modules beside the script are not the script's to import.
            [sys.executable, "-P", "-W", "ignore", script, str(rows)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=told,
            env=environment,
            # Ctrl-C is for us alone: the process ends when its stdin does.
            start_new_session=True,
        ) as process,
    ):
        try:
            for line in process.stdout or ():
                if line.endswith(b"\n"):  # else it was killed in the middle of the line
                    yield line.decode()
        finally:
            process.kill()


def last_line(told: IO[bytes]) -> str:
    """Return the last line that a process said on stderr, in bounded length."""
    told.seek(0)
    lines = told.read().decode(errors="replace").splitlines()
    return next((shortened(line) for line in reversed(lines) if line.strip()), "it said nothing")


def shortened(text: str) -> str:
    """Return a text in one line of bounded length."""
    line = " ".join(text.split())
    return line if len(line) <= _LONGEST_TEXT else line[: _LONGEST_TEXT - 3] + "..."
